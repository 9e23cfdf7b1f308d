"""Decidability, proxy-decidability and mean-field losses on Cars196, classes never seen in training.

python recipes/studies/distributions.py --data cars196_train_cropped_96.zip --weights mobilenetv2_035_imagenet.safetensors

Each loss and batch size is run at two learning rates of the trunk (its proxies' rates go with it), as losses of pairs want a
lower one. Losses that list pairs get batches of 4 images of each class, losses with proxies or mean fields random batches, as
in their papers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import study
from study import ROOT, Cell, Study

BATCHES = (16, 64, 256)
DIMS = (16, 64, 512)
RATES = (1.5e-4, 6e-4)
LOWEST = 4e-5  # for losses that do better at the lower of the two
FIELD_RATES = ((16, 1.5e-4), (64, 1.5e-4), (64, 6e-4), (256, 6e-4))
LONG = ("--optimizer.epochs", "40", "--evaluation.every", "4")
PAIRS = ("--sampler.name", "classes(samples_per_class=4)")
FIELDS = "mean_field_class_wise_multi_similarity"
SIZED = ("contrastive", "mean_field_contrastive", "class_wise_multi_similarity", FIELDS, "proxy_anchor")
SLOW = ("mean_field_contrastive", "class_wise_multi_similarity")  # better at the lower rate


def cell(loss: str, *changes: str, rate: float | None = None, options: str = "") -> Cell:
    """A loss with further settings, at this learning rate of the trunk or that of the study."""
    own = () if rate is None else ("--optimizer.lr", f"{rate:g}")
    return Cell(("--objective.loss", loss, *changes, *own, *(("--objective.options", options) if options else ())))


def contrastive(*changes: str, rate: float = RATES[1]) -> Cell:
    """The contrastive loss that mean_field_contrastive stands for: margins 0.02 and 0.3 on 1 - cosine, which is half the
    squared distance of unit vectors."""
    space = ("--objective.geometry", "squared_euclidean(normalize=True)")
    margins = "{positive_margin: 0.04, negative_margin: 0.6}"
    return cell("contrastive", *PAIRS, *space, *changes, rate=rate, options=margins)


def fields(loss: str, *changes: str, rate: float = RATES[1], ratio: float = 2000, options: str = "") -> Cell:
    """A mean-field loss; its own learning rate is 2,000 times the trunk's, as in its paper."""
    return cell(loss, "--optimizer.proxy_lr", f"{ratio * rate:g}", *changes, rate=rate, options=options)


def at(rate: float) -> str:
    """How a name tells the trunk's learning rate, where it is not that of most configurations."""
    return "" if rate == RATES[1] else f", rate {rate:g}"


def sized(name: str, dim: int, rate: float) -> str:
    """A loss with embeddings of this size; of two losses the configurations with B = 64 are those with 512."""
    return f"{name}, B = 64{at(rate)}" if dim == 512 and name in (FIELDS, "pd_loss") else f"{name}, {dim}-d{at(rate)}"


def cells() -> dict[str, Cell]:
    """All configurations by name."""
    found = {}
    for size, rate in sorted([*itertools.product(BATCHES, RATES), (16, LOWEST), (64, LOWEST), (256, 2.4e-3)]):
        batch = ("--sampler.batch_size", str(size))
        name = f"B = {size}{at(rate)}"
        found[f"d_loss, {name}"] = cell("d_loss", *PAIRS, *batch, rate=rate)
        found[f"triplet, {name}"] = cell("triplet", *PAIRS, *batch, rate=rate)
        if rate > LOWEST:
            found[f"pd_loss, {name}"] = cell("pd_loss", *batch, rate=rate)
        if (size, rate) in FIELD_RATES:
            found[f"{FIELDS}, {name}"] = fields(FIELDS, *batch, rate=rate)
        if rate == RATES[0] or name == "B = 64":
            found[f"d_loss with a memory, {name}"] = cell(
                "d_loss", *PAIRS, *batch, "--objective.memory", "8192", rate=rate
            )
    random = ("--objective.proxy_init", "random")
    found["pd_loss, random proxies"] = cell("pd_loss", *random)
    found["pd_loss, no logarithm"] = cell("pd_loss", options="{form: neg}")
    found["pd_loss, random proxies, no logarithm"] = cell("pd_loss", *random, options="{form: neg}")
    for own in ("0.006", "0.6"):
        found[f"pd_loss, proxy rate {own}"] = cell("pd_loss", "--optimizer.proxy_lr", own)
    fast = (*random, "--optimizer.proxy_lr", "0.6")
    found["pd_loss, random proxies, proxy rate 0.6"] = cell("pd_loss", *fast)
    found["pd_loss, random proxies, proxy rate 0.6, B = 32"] = cell("pd_loss", *fast, "--sampler.batch_size", "32")
    for floor in ("0.0001", "0.01"):
        found[f"pd_loss, variance floor {floor}"] = cell("pd_loss", options=f"{{variance_floor: {floor}}}")
    for hardness in (10, 20):
        found[f"pd_loss, hardness {hardness}"] = cell("pd_loss", options=f"{{hardness: {hardness}}}")
    found["pd_loss, hardness 20, 40 epochs"] = cell("pd_loss", *LONG, options="{hardness: 20}")
    found["d_loss, hardness 20"] = cell("d_loss", *PAIRS, options="{hardness: 20}")
    found["pd_loss, constant rate"] = cell("pd_loss", "--optimizer.schedule", "constant")
    makers: dict[str, Callable[..., Cell]] = {
        "contrastive": contrastive,
        "mean_field_contrastive": functools.partial(fields, "mean_field_contrastive"),
        "class_wise_multi_similarity": functools.partial(cell, "class_wise_multi_similarity", *PAIRS),
        FIELDS: functools.partial(fields, FIELDS),
        **{name: functools.partial(cell, name) for name in ("proxy_anchor", "normalized_softmax", "pd_loss")},
    }
    for name, make in makers.items():
        best, tried = RATES[name not in SLOW], (LOWEST, *RATES) if name == "mean_field_contrastive" else RATES
        for dim in DIMS if name in SIZED else (512,):
            for rate in tried if dim == 512 or name == "proxy_anchor" else (best,):
                found.setdefault(sized(name, dim, rate), make("--embedder.dim", str(dim), rate=rate))
        if name != "normalized_softmax":
            found[f"{name}{at(best)}, 40 epochs"] = make(*LONG, rate=best)
    for beta, base in ((40, 0.6), (40, 0.8), (40, 0.9), (80, 0.6), (80, 0.9)):
        found[f"{FIELDS}, beta {beta}, delta {base}"] = fields(FIELDS, options=f"{{beta: {beta}, base: {base}}}")
    for weight in ("0.1", "10.0"):
        found[f"{FIELDS}, regularizer {weight}"] = fields(FIELDS, options=f"{{regularizer: {weight}}}")
    name = "mean_field_contrastive"  # what might keep it from the collapse at 6e-4
    found[f"{name}, rate of proxies"] = fields(name, ratio=100)
    found[f"{name}, class means"] = fields(name, "--objective.proxy_init", "class_mean", ratio=100)
    found[f"{name}, trunk frozen in epoch 1"] = fields(name, "--optimizer.freeze_trunk", "1")  # as in their paper
    return found


CELLS = cells()
MAIN, MAIN_FIELDS = "pd_loss, B = 64", f"{FIELDS}, B = 64"
OF_FIELDS = ("beta", "regularizer", "rate of", "class means", "frozen")


def of_size(dim: int) -> list[str]:
    """The configurations with embeddings of this size."""
    own = [name for name in CELLS if f", {dim}-d" in name]
    return [*own, MAIN_FIELDS, f"{MAIN_FIELDS}{at(RATES[0])}", MAIN, f"{MAIN}{at(RATES[0])}"] if dim == 512 else own


STUDY = Study(
    base=(
        "--config", str(ROOT / "recipes/configs/cars196.yaml"), "--sampler.batch_size", "64", "--compile", "inductor",
        "--evaluation.metrics", "[map_at_r,recall_at_1,d_prime,eer]",
    ),
    cells=CELLS,
    shown=("map_at_r", "recall_at_1", "d_prime", "eer"),
    results="distributions.md",
    epochs=10,
    questions={
        "1. batch size": [MAIN, *(name for name in CELLS if ", B = " in name and "random" not in name and name != MAIN)],
        "2. PD-Loss": [
            MAIN, *(name for name in CELLS if name.startswith("pd_loss") and not any(w in name for w in (" = ", "-d", "hard"))),
            "pd_loss, random proxies, proxy rate 0.6, B = 32",
        ],
        "2. hardness": [
            MAIN, "pd_loss, hardness 10", "pd_loss, hardness 20", "normalized_softmax, 512-d", "proxy_anchor, 512-d", "triplet, B = 64",
            "d_loss, B = 64", "d_loss, hardness 20",
        ],
        **{f"3. mean fields, {dim}-d": of_size(dim) for dim in DIMS},
        "3. 40 epochs": [name for name in CELLS if name.endswith(", 40 epochs")],
        "3. settings of mean fields": [MAIN_FIELDS, *(name for name in CELLS if "mean_field" in name and any(w in name for w in OF_FIELDS))],
    },
    curves={
        "batch size": {
            f"{name}{at(rate)}": {size: one for size in BATCHES if (one := f"{name}, B = {size}{at(rate)}") in CELLS}
            for name in ("d_loss", "pd_loss", "triplet", FIELDS)
            for rate in RATES
        },
        "embedding size": {
            f"{name}{at(rate)}": {dim: sized(name, dim, rate) for dim in DIMS}
            for name in SIZED
            for rate in (RATES if name == "proxy_anchor" else (RATES[name not in SLOW],))
        },
    },
)  # fmt: skip

if __name__ == "__main__":
    study.main(STUDY, __doc__)
