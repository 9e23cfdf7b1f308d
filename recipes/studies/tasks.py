"""Does training help? Room layouts and captions of drawn scenes, several seeds, against the untrained embedder.

python recipes/studies/tasks.py
"""

from __future__ import annotations

import study
from study import ROOT, Cell, Study

TASKS = ("layout", "captions")
STUDY = Study(
    base=(),
    cells={task: Cell(("--config", str(ROOT / f"recipes/configs/{task}.yaml"))) for task in TASKS},
    shown=("mean_label_distance_at_10", "spearman"),
    results="tasks.md",
    epochs=None,
    questions={},
)

if __name__ == "__main__":
    study.main(STUDY, __doc__)
