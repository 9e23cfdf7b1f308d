"""What the log-ratio paper left open, measured on Leeds Sports Pose.

Runs that are in the results file are not repeated, so give the command again to go on after an interruption. Trunks are
compiled, which needs a C++ compiler and takes half of the time:

    python recipes/studies/pose.py --data lspet_pose_96.zip --weights mobilenetv2_035_imagenet.safetensors
"""

from __future__ import annotations

from typing import Any

import study
import torch
from study import ROOT, Around, Cell, Study, recipe
from torch import Tensor, nn

import beyond_binary as bb
from beyond_binary.neighbours import label_neighbours
from beyond_binary.targets import Target, create_target
from beyond_binary.targets.algebra import Within
from beyond_binary.targets.tables import Precomputed

POSE = "pose(root=(2, 3))"
SINGLE = ("--sampler.name", "dense_triplet(anchors=1, k=5, batches_per_epoch=31)")
RANDOM = ("--sampler.name", "random(drop_last=True)")
JOINTS = 28  # coordinates of 14 joints
DIMS = (8, 16, 32, 64, 128)
MAIN = "log_ratio, 128-d"
NEIGHBOURS = 30  # how many are positive under M(Binary)


def without_logarithms(setup: recipe.Setup) -> Around:
    """Ratios of distances instead of log-ratios: `(d_i / d_j - y_i / y_j)^2` over pairs y_i < y_j of an anchor."""
    target = setup.objective.target

    def loss(z: Tensor, labels: Any, ids: Tensor) -> Tensor:
        codes, others = target.encode(labels), ~torch.eye(len(z), dtype=torch.bool)
        y, d = target.distance(codes, codes).to(z), torch.cdist(z, z) + 1e-6
        use = (others & (y > 0))[:, :, None] & (others & (y > 0))[:, None, :] & (y[:, :, None] < y[:, None, :])
        gap = d[:, :, None] / d[:, None, :] - y[:, :, None] / torch.where(y > 0, y, 1)[:, None, :]
        return gap[use].square().mean()

    return Around(loss)


def first_anchor(setup: recipe.Setup) -> Around:
    """The paper's batch: the first item alone is an anchor."""
    whole = setup.objective
    return Around(lambda z, labels, ids: whole(z[:1], labels[:1], z, labels, ids=ids[:1], ref_ids=ids), whole)


def binary(setup: recipe.Setup) -> Around:
    """Triplets whose positives are the nearest labels of the whole training set, M(Binary)."""
    items, target = setup.data.items, create_target(POSE)
    near, _ = label_neighbours(target, target.encode(items.labels), NEIGHBOURS)
    table = torch.ones(len(items), len(items)).scatter_(1, near, 0.0).fill_diagonal_(0.0)
    place = {int(number): i for i, number in enumerate(items.ids)}
    same = Within(Precomputed(table.numpy(), check=False), radius=0.5)
    inner = bb.create_objective("triplet", target=same, mining="binary(positives=5)", triplets="all")

    def loss(z: Tensor, labels: Any, ids: Tensor) -> Tensor:
        return inner(z, torch.tensor([place[int(i)] for i in ids]), ids=ids)

    setup.judge.geometry = "cosine"  # as the triplet loss compares
    return Around(loss, inner)


def regression(setup: recipe.Setup) -> Around:
    """Joints about the hips from the embedding by a linear layer, squared error."""
    target, layer = create_target(POSE), nn.Linear(setup.embedder.dim, JOINTS)
    start_at_mean(layer, flat(target, setup.data.items.labels))
    setup.optimizer.add_param_group({"params": layer.parameters(), "base_lr": 1e-3, "lr": 1e-3, "name": "joints"})
    return Around(lambda z, labels, ids: nn.functional.mse_loss(layer(z), flat(target, labels)), layer)


def regressed_joints(setup: recipe.Setup) -> Around:
    """The embedding is the joints about the hips, squared error."""
    target = create_target(POSE)
    start_at_mean(setup.embedder.head[-1], flat(target, setup.data.items.labels))
    return Around(lambda z, labels, ids: nn.functional.mse_loss(z, flat(target, labels)))


def start_at_mean(layer: nn.Linear, joints: Tensor) -> None:
    """Whatever comes in, the mean pose comes out."""
    nn.init.zeros_(layer.weight)
    layer.bias.data = joints.mean(0)


def flat(target: Target, labels: Any) -> Tensor:
    """Joints about the hips [n 28]."""
    return target.encode(labels)[..., :-1].flatten(1).float()


def cells() -> dict[str, Cell]:
    """All configurations by name."""
    found = {
        "log_ratio, random batches": Cell(RANDOM),
        "triplet M(Binary), random batches": Cell(RANDOM, binary),
        "dense_triplet": Cell(("--objective.loss", "dense_triplet")),
        "rank_n_contrast": Cell(("--objective.loss", "rank_n_contrast")),
        "pose regression, features": Cell(around=regression),
        "pose regression, joints": Cell(("--embedder.dim", str(JOINTS)), regressed_joints),
        "plain ratio": Cell(around=without_logarithms),
        "log_ratio, one anchor": Cell(SINGLE, first_anchor),
        "log_ratio, one neighbourhood, all anchors": Cell(SINGLE),
    }
    for dim in DIMS:
        size = ("--embedder.dim", str(dim))
        found[f"log_ratio, {dim}-d"] = Cell(size)
        found[f"triplet M(Binary), {dim}-d"] = Cell(size, binary)
        found[f"log_ratio normalised, {dim}-d"] = Cell((*size, "--embedder.normalize", "true"))
    return found


STUDY = Study(
    base=(
        "--config", str(ROOT / "recipes/configs/lspet.yaml"), "--embedder.trunk", "timm/mobilenetv2_035",
        "--augment.mirror", "null", "--compile", "inductor", "--sampler.name", "dense_triplet(anchors=8, k=5, batches_per_epoch=31)",
    ),
    cells=cells(),
    shown=("mean_label_distance_at_10", "ndcg_at_100", "spearman"),
    results="pose_questions.md",
    epochs=9,
    search=5,
    questions={
        "1. dense or random batches": (MAIN, "log_ratio, random batches"),
        "2. losses": (MAIN, "triplet M(Binary), 128-d", "dense_triplet", "rank_n_contrast", "pose regression, features", "pose regression, joints"),
        "3. size, log_ratio": [f"log_ratio, {dim}-d" for dim in reversed(DIMS)],
        "3. size, triplet": [f"triplet M(Binary), {dim}-d" for dim in reversed(DIMS)],
        "4. anchors": (MAIN, "log_ratio, one anchor", "log_ratio, one neighbourhood, all anchors"),
        "5. the logarithm": (MAIN, "plain ratio"),
        "5. normalised or not": ("log_ratio, 128-d", "log_ratio normalised, 128-d"),
        "5. size, normalised": [f"log_ratio normalised, {dim}-d" for dim in reversed(DIMS)],
        "6. triplet batches": ("triplet M(Binary), 128-d", "triplet M(Binary), random batches"),
    },
    curves={
        "embedding size": {
            loss: {dim: f"{loss}, {dim}-d" for dim in DIMS}
            for loss in ("log_ratio", "triplet M(Binary)", "log_ratio normalised")
        }
    },
)  # fmt: skip

if __name__ == "__main__":
    study.main(STUDY, __doc__)
