"""Learning curves of runs, a metric by epoch as a picture, with chance as a line.

python recipes/studies/curve.py text_to_image_recall_at_10 curve.png "soft_contrastive=runs/a" "nt_xent=runs/b"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from beyond_binary.runs import Run


def points(run: Path, metric: str) -> tuple[list[int], list[float]]:
    """Epochs and values of a metric in a run's log."""
    found = [(line["epoch"], line[metric]) for line in Run(run).history() if line.get("event") == "evaluation"]
    return [epoch for epoch, _ in found], [value for _, value in found]


def draw(metric: str, path: Path, runs: dict[str, Path]) -> None:
    """Write the picture; chance is that of the first run, if it has ended."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, run in runs.items():
        axes.plot(*points(run, metric), marker="o", markersize=3, label=name)
    for run in [run for run in list(runs.values())[:1] if (run / "metrics.json").exists()]:
        chance = json.loads((run / "metrics.json").read_text())["table"]["random"][metric]
        if chance is not None:
            axes.axhline(chance, color="grey", linestyle=":", label="random ranking")
    axes.set(xlabel="epoch", ylabel=metric, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read the arguments and draw."""
    if len(sys.argv) < 4 or any("=" not in run for run in sys.argv[3:]):
        print(f"error: expected METRIC FILE.png NAME=RUN ..., got {' '.join(sys.argv[1:])}", file=sys.stderr)
        raise SystemExit(2)
    runs = dict(run.split("=", 1) for run in sys.argv[3:])
    draw(sys.argv[1], Path(sys.argv[2]), {name: Path(run) for name, run in runs.items()})


if __name__ == "__main__":
    main()
