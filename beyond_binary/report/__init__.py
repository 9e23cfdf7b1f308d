"""A run as one HTML page: table, neighbours, curves and histograms."""

from .charts import require_matplotlib
from .page import write_report

__all__ = ["require_matplotlib", "write_report"]
