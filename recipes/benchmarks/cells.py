"""What is measured: a loss at a size, in our forms, as pytorch-metric-learning has it, or the bare similarity matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import beyond_binary as bb

Step = Callable[[], float]  # one forward and backward; the loss


class Peer(NamedTuple):
    """What in pytorch-metric-learning equals a loss of ours under these options of ours."""

    options: dict[str, Any]
    name: str
    arguments: dict[str, Any]
    miner: str = ""
    same: bool = True  # whether the values can be compared


PEERS = {
    "angular": Peer({}, "AngularLoss", {"alpha": 45}),
    "arcface": Peer({}, "ArcFaceLoss", {"margin": math.degrees(0.5), "scale": 64}),
    "circle": Peer({"margin": 0.4, "scale": 80.0}, "CircleLoss", {"m": 0.4, "gamma": 80}),
    "contrastive": Peer({"power": 1, "average": "active"}, "ContrastiveLoss", {}),
    "cosface": Peer({}, "CosFaceLoss", {"margin": 0.35, "scale": 64}),
    "fastap": Peer({}, "FastAPLoss", {"num_bins": 10}),
    "generalized_lifted_structure": Peer(
        {"geometry": "euclidean(normalize=True)"},
        "GeneralizedLiftedStructureLoss",
        {"neg_margin": 1, "pos_margin": 0},
    ),
    "histogram": Peer({}, "HistogramLoss", {"n_bins": 100}),
    "lifted_structure": Peer({"geometry": "euclidean(normalize=True)"}, "LiftedStructureLoss", {}),
    "margin": Peer({"mining": "distance_weighted"}, "MarginLoss", {}, miner="DistanceWeightedMiner", same=False),
    "multi_similarity": Peer({}, "MultiSimilarityLoss", {}),
    "n_pairs": Peer({"geometry": "cosine"}, "NPairsLoss", {}),
    "normalized_softmax": Peer({}, "NormalizedSoftmaxLoss", {"temperature": 0.05}),
    "nt_xent": Peer({"temperature": 0.07, "positives": "separate"}, "NTXentLoss", {"temperature": 0.07}),
    "proxy_anchor": Peer({}, "ProxyAnchorLoss", {}),
    "proxy_nca_pp": Peer({}, "ProxyNCALoss", {"softmax_scale": 9}),
    "smooth_ap": Peer({"with_query": True}, "SmoothAPLoss", {"temperature": 0.01}, same=False),
    "snr_contrastive": Peer({"regularizer": 0.0}, "SignalToNoiseRatioContrastiveLoss", {}),
    "soft_triple": Peer(
        {"tau": 0.0}, "SoftTripleLoss", {"centers_per_class": 10, "la": 20, "gamma": 0.1, "margin": 0.01}
    ),
    "sphereface": Peer({"annealing": False}, "SphereFaceLoss", {"margin": 4, "scale": 1}),
    "supcon": Peer({}, "SupConLoss", {"temperature": 0.1}),
    "triplet": Peer({}, "TripletMarginLoss", {"margin": 0.2}),
    "tuplet_margin": Peer({"variance_weight": 0.0}, "TupletMarginLoss", {"margin": math.degrees(0.1), "scale": 64}),
}


@dataclass(frozen=True)
class Cell:
    """A loss at one size."""

    loss: str
    n: int
    dim: int
    samples: int  # of each class; 0: continuous labels
    proxies: int  # 0: the batch is compared with itself


@dataclass(frozen=True)
class How:
    """What is the same for all cells of a table."""

    threads: int = 2
    device: str = "cpu"
    precision: str = "float32"
    rounds: int = 15
    seconds: float = 1.0
    memory: float = 16.0
    limit: float = 60.0


def data(cell: Cell) -> tuple[Tensor, Tensor]:
    """Clustered unit embeddings [n dim], and their classes [n] or continuous labels [n 3]."""
    rng = torch.Generator().manual_seed(0)
    group = torch.arange(cell.n) // (cell.samples or 4)
    place = torch.randn(cell.n, cell.dim + 3, generator=rng)[group]
    place += 0.5 * torch.randn(cell.n, cell.dim + 3, generator=rng)
    if cell.proxies:
        group = torch.randperm(cell.proxies, generator=rng)[group % cell.proxies]
    return F.normalize(place[:, : cell.dim], dim=1), group if cell.samples else place[:, cell.dim :]


class Mined(nn.Module):
    """A loss of the peer behind its miner."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """The loss of what the miner drew."""
        value: Tensor = self.loss(z, labels, self.miner(z, labels))
        return value


def create(who: str, cell: Cell) -> nn.Module:
    """The loss in the form `tiled`, `dense`, `compiled` or `PML`, with the same proxies in each."""
    peer = PEERS.get(cell.loss, Peer({}, "", {}))
    loss: nn.Module
    if who == "PML":
        from pytorch_metric_learning import losses, miners

        sizes: dict[str, Any] = {"num_classes": cell.proxies, "embedding_size": cell.dim} if cell.proxies else {}
        loss = getattr(losses, peer.name)(**peer.arguments, **sizes)
        loss = Mined(loss, getattr(miners, peer.miner)()) if peer.miner else loss
    else:
        sizes = {"num_classes": cell.proxies, "dim": cell.dim} if cell.proxies else {}
        form: dict[str, Any] = {} if who == "tiled" else {"block": None}
        target = "classes" if cell.samples else "euclidean"
        loss = bb.create_objective(cell.loss, target=target, **peer.options, **sizes, **form)
    for weight in loss.parameters():
        if weight.ndim == 2:  # theirs may be transposed
            start = torch.randn(weight.numel() // cell.dim, cell.dim, generator=torch.Generator().manual_seed(1))
            weight.data.copy_(start if weight.shape == start.shape else start.T)
    return torch.compile(loss, fullgraph=True, dynamic=False) if who == "compiled" else loss  # type: ignore[return-value]


def make_step(who: str, cell: Cell, how: How) -> Step:
    """Forward and backward of a form of the cell's loss, or of the floor."""
    z, labels = (tensor.to(how.device) for tensor in data(cell))
    learned: list[Tensor] = [z.requires_grad_()]
    dtype = getattr(torch, how.precision)
    gradient = None
    if who == "floor":
        if cell.proxies:
            learned.append(torch.randn(cell.proxies, cell.dim, device=how.device).requires_grad_())
        keys = learned[-1]
        gradient = torch.outer(torch.randn(cell.n) / cell.n, torch.randn(len(keys))).to(how.device, dtype)
    else:
        loss = create(who, cell).to(how.device)
        learned += loss.parameters()

    def step() -> float:
        for tensor in learned:
            tensor.grad = None
        with torch.autocast(how.device, torch.bfloat16, enabled=how.precision == "bfloat16"):
            x = z.to(dtype)
            if who == "floor":
                other = keys.to(dtype) if cell.proxies else x
                out = (F.normalize(x, dim=1) @ F.normalize(other, dim=1).T).to(dtype)
            else:
                out = loss(x, labels)
        out.backward(gradient)
        return out.detach().flatten()[0].item()

    return step
