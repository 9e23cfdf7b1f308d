"""Decidability, proxy-decidability and mean-field losses on Cars196, classes never seen in training.

python recipes/studies/distributions.py --data cars196_train_cropped_96.zip --weights mobilenetv2_035_imagenet.safetensors
"""

from __future__ import annotations

import study
from study import ROOT, Cell, Study

BATCHES = (16, 64, 256)
DIMS = (16, 64, 512)
FIELDS = "mean_field_class_wise_multi_similarity"
PD = "pd_loss, class means"
PAIRS = ("--sampler.name", "classes(samples_per_class=4)")


def loss(name: str, *changes: str, options: str = "") -> Cell:
    """A loss with further settings."""
    return Cell(("--objective.loss", name, *changes, *(("--objective.options", options) if options else ())))


def proxies(name: str, *changes: str, options: str = "") -> Cell:
    """A loss whose proxies start at the class means, on random batches."""
    start = ("--sampler.name", "random(drop_last=True)", "--objective.proxy_init", "class_mean")
    return loss(name, *start, *changes, options=options)


def cells() -> dict[str, Cell]:
    """All configurations by name."""
    found = {}
    for size in BATCHES:
        batch = ("--sampler.batch_size", str(size))
        found[f"d_loss, B = {size}"] = loss("d_loss", *PAIRS, *batch)
        found[f"d_loss with a memory, B = {size}"] = loss("d_loss", *PAIRS, *batch, "--objective.memory", "8192")
        found[f"{PD}, B = {size}"] = proxies("pd_loss", *batch)
        found[f"triplet, B = {size}"] = loss("triplet", *PAIRS, *batch)
        found[f"{FIELDS}, B = {size}"] = loss(FIELDS, *PAIRS, *batch)
    found["pd_loss, random proxies"] = proxies("pd_loss", "--objective.proxy_init", "random")
    found["pd_loss, class means, no logarithm"] = proxies("pd_loss", options="{form: neg}")
    for rate in ("0.0006", "0.006", "0.6"):
        found[f"{PD}, proxy rate {rate}"] = proxies("pd_loss", "--optimizer.proxy_lr", rate)
    for floor in ("0.0001", "0.01"):
        found[f"{PD}, variance floor {floor}"] = proxies("pd_loss", options=f"{{variance_floor: {floor}}}")
    for dim in DIMS:
        width = ("--embedder.dim", str(dim))
        for name in ("contrastive", "class_wise_multi_similarity"):
            found[f"{name}, {dim}-d"] = loss(name, *PAIRS, *width)
        found[f"mean_field_contrastive, {dim}-d"] = loss("mean_field_contrastive", *PAIRS, *width)
        for name in ("proxy_anchor", "normalized_softmax"):
            found[f"{name}, {dim}-d"] = loss(name, *width)
        if dim != 512:  # which the configurations with B = 64 have
            found[f"{FIELDS}, {dim}-d"] = loss(FIELDS, *PAIRS, *width)
            found[f"{PD}, {dim}-d"] = proxies("pd_loss", *width)
    for beta, base in ((40.0, 0.8), (80.0, 0.6), (80.0, 0.9)):
        found[f"{FIELDS}, beta {beta:g}, delta {base}"] = loss(
            FIELDS, *PAIRS, options=f"{{beta: {beta}, base: {base}}}"
        )
    for weight in ("0.1", "10.0"):
        found[f"{FIELDS}, regularizer {weight}"] = loss(FIELDS, *PAIRS, options=f"{{regularizer: {weight}}}")
    return found


CELLS = cells()
MAIN, MAIN_FIELDS = f"{PD}, B = 64", f"{FIELDS}, B = 64"


def named(*texts: str) -> list[str]:
    """Configurations whose names begin with one of these."""
    return [name for text in texts for name in CELLS if name.startswith(text)]


STUDY = Study(
    base=(
        "--config",
        str(ROOT / "recipes/configs/cars196.yaml"),
        "--sampler.batch_size",
        "64",
        "--compile",
        "inductor",
    ),
    cells=CELLS,
    shown=("recall_at_1", "map_at_r"),
    results="distributions.md",
    epochs=10,
    questions={
        "1. batch size": [name for name in CELLS if ", B = " in name],
        "2. PD-Loss": [
            MAIN,
            *named("pd_loss, random", f"{PD}, no", f"{PD}, proxy", f"{PD}, var"),
            "proxy_anchor, 512-d",
        ],
        "3. mean fields, 512-d": [*(name for name in CELLS if name.endswith(", 512-d")), MAIN_FIELDS, MAIN],
        "3. mean fields, 64-d": [name for name in CELLS if name.endswith(", 64-d")],
        "3. mean fields, 16-d": [name for name in CELLS if name.endswith(", 16-d")],
        "3. their settings": [MAIN_FIELDS, *named(f"{FIELDS}, beta", f"{FIELDS}, reg")],
    },
    curves={
        "batch size": {
            name: {size: f"{name}, B = {size}" for size in BATCHES}
            for name in ("d_loss", "d_loss with a memory", PD, "triplet", FIELDS)
        },
        "embedding size": {
            name: {
                dim: f"{name}, B = 64" if dim == 512 and name in (FIELDS, PD) else f"{name}, {dim}-d" for dim in DIMS
            }
            for name in (
                "contrastive",
                "mean_field_contrastive",
                "class_wise_multi_similarity",
                FIELDS,
                "proxy_anchor",
                PD,
            )
        },
    },
)

if __name__ == "__main__":
    study.main(STUDY, __doc__)
