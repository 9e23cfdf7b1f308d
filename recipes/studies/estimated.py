"""Classes as distributions that proxies estimate, against classes, on Cars196.

    python recipes/studies/estimated.py --data cars196_train_cropped_96.zip --weights mobilenetv2_035_imagenet.safetensors

Weight 0 is the class alone (distance 0 or 1), weight 1 the estimate alone. The log-ratio loss needs a label distance
above 0: items of one class count as 0.1 apart.
"""

from __future__ import annotations

import study
from study import ROOT, Cell, Study

WEIGHTS = ("0.0", "0.5", "1.0")


def cells() -> dict[str, Cell]:
    """Two losses that read distances at three weights, beside their nearest relative on classes."""
    found = {"contrastive on classes": Cell(("--objective.loss", "contrastive"))}
    for weight in WEIGHTS:
        target = ("--objective.target", f"estimated(weight={weight})")
        floor = ("--objective.options", "{zero_labels: floor, label_floor: 0.1}")
        found[f"log_ratio, weight {weight}"] = Cell(("--objective.loss", "log_ratio", *target, *floor))
        found[f"soft_contrastive, weight {weight}"] = Cell(("--objective.loss", "soft_contrastive", *target))
    return found


STUDY = Study(
    base=(
        "--config", str(ROOT / "recipes/configs/cars196.yaml"), "--sampler.name", "classes(samples_per_class=4)",
        "--embedder.dim", "128", "--compile", "inductor",
    ),
    cells=cells(),
    shown=("recall_at_1", "map_at_r"),
    results="estimated.md",
    epochs=10,
    questions={
        "hard labels or estimates, contrastive": ("contrastive on classes", *(f"soft_contrastive, weight {w}" for w in WEIGHTS)),
        "hard labels or estimates, log_ratio": [f"log_ratio, weight {w}" for w in WEIGHTS],
    },
)  # fmt: skip

if __name__ == "__main__":
    study.main(STUDY, __doc__)
