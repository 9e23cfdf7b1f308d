"""For users of pytorch-metric-learning 2.9: its call shape, its tuples of a miner, and a table of its names and defaults.

`python -m beyond_binary.migrate` prints the tables of docs/migration.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .losses import check_fit
from .objective import Objective, create_objective
from .points import Points
from .registry import suggest
from .targets import Gives

REQUIRED: Any = object()
OF_TRIPLETS = ("triplet", "dense_triplet")
OF_MASKS = ("multi_similarity", "supcon", "circle", "generalized_lifted_structure")  # there, a pair counts once
OF_WEIGHTS = ("fastap", "smooth_ap")


class _Named:
    """A target for pairs that a miner named: codes are places in a table of label distances (NaN: not named)."""

    gives: ClassVar[Gives] = "same"

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Places [n] in the table."""
        return torch.as_tensor(labels)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """0 for a positive, 1 for a negative, NaN for a pair that was not named [q k]."""
        return self.table[code_q[:, None], code_k[None, :]]


class TupleObjective(nn.Module):
    """An objective that is called as pytorch-metric-learning calls its losses, with or without tuples of a miner.

    Tuples are (anchors, positives, anchors, negatives) for pairs or (anchors, positives, negatives) for triplets, int64
    places in the batch, and positives and negatives in the references where there are any. They decide what is same and
    what different. Losses of triplets take exactly the triplets that are named, other losses over rows of pairs exactly
    the pairs. With tuples, comparisons stay within a process.

    Args:
        objective: from `create_objective`; its parameters are this module's.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(
        self,
        embeddings: Tensor,
        labels: Any = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Any = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            embeddings: [n d].
            labels: [n ...], as the objective's target takes them; not read if there are tuples.
            indices_tuple: what a miner returned; None: all pairs of the batch.
            ref_emb: references [m d] to compare with, instead of the batch itself.
            ref_labels: their labels.

        Raises:
            ValueError: tuples for a loss that cannot take them (among these the losses that read how large label
                distances are: tuples say only same and different), or that are none; neither labels nor tuples.
        """
        if indices_tuple is None:
            return self.objective(embeddings, labels, ref_emb, ref_labels)
        keys = embeddings if ref_emb is None else ref_emb
        parts = _checked(indices_tuple, len(embeddings), len(keys), embeddings.device)
        rows, table = self._table(parts, len(embeddings), len(keys))
        first = 0 if ref_emb is None else len(embeddings)
        ids = torch.arange(first, first + len(keys), device=keys.device)
        queries = Points(embeddings[rows], torch.arange(len(rows), device=rows.device), rows)
        view = copy.copy(self.objective)
        view._modules = {k: m for k, m in self.objective._modules.items() if k != "target"}
        view.target = _Named(table)
        return view(queries, Points(keys, torch.arange(len(keys), device=keys.device), ids))

    def _table(self, parts: Sequence[Tensor], n: int, m: int) -> tuple[Tensor, Tensor]:
        """The items that are rows [q], and the label distances of their named pairs [q m]."""
        loss, facts, options = self.objective.loss, self.objective.facts, self.objective.options
        check_fit(loss, facts.reads_with(options), "indices_tuple", "same")
        if facts.form != "rows" or facts.needs_proxies or loss in OF_WEIGHTS:
            way_out = "leave it out, or choose the batches (a sampler) instead of the pairs"
            raise ValueError(f"{loss} takes no indices_tuple, as it does not compare pair by pair; {way_out}")
        if self.objective.memory is not None:
            raise ValueError("a memory takes no indices_tuple: the pairs with what is remembered are not in it")
        if self.objective.boundary is not None and self.objective.boundary.per_class:
            raise ValueError(f"{loss} with beta_per_class takes no indices_tuple: it needs the labels' classes")
        anchors, positives = parts[:2]
        negative_anchors, negatives = parts[-2:] if len(parts) == 4 else (anchors, parts[2])
        if len(parts) == 3 and (loss in OF_TRIPLETS or options.get("over") == "triplets"):
            # a row for each pair of anchor and positive: then its triplets are those that are named
            pair, place = torch.unique(anchors * m + positives, return_inverse=True)
            rows, same, other = pair // m, (torch.arange(len(pair), device=pair.device), pair % m), (place, negatives)
            named = len(pair) + len(negatives)
        else:
            rows = torch.arange(n, device=anchors.device)
            same, other = (anchors, positives), (negative_anchors, negatives)
            named = len(anchors) + len(negatives)
        table = torch.full((len(rows), m), torch.nan, device=rows.device)
        table[other], table[same] = 1.0, 0.0
        if int((~table.isnan()).sum()) != named and loss not in OF_MASKS:
            raise ValueError(
                f"indices_tuple names a pair or triplet more than once, and {loss} counts each once; "
                "keep each once (torch.unique), or give pairs instead of triplets"
            )
        return rows, table


def _checked(parts: Sequence[Tensor], n: int, m: int, device: torch.device) -> list[Tensor]:
    if len(parts) not in (3, 4):
        raise ValueError(f"expected indices_tuple of 3 (triplets) or 4 (pairs) tensors, got {len(parts)}")
    parts = [part.to(device) for part in parts]
    limits = (n, m, m) if len(parts) == 3 else (n, m, n, m)
    groups = (parts,) if len(parts) == 3 else (parts[:2], parts[2:])
    if any(p.ndim != 1 or p.is_floating_point() for p in parts) or any(len({len(p) for p in g}) > 1 for g in groups):
        raise ValueError(f"expected places [k] of one length, got {[(p.dtype, list(p.shape)) for p in parts]}")
    for part, limit in zip(parts, limits, strict=True):
        if len(wrong := part[(part < 0) | (part >= limit)]):
            raise ValueError(f"indices_tuple names item {int(wrong[0])} of {limit}")
    return parts


Argument = tuple[Any, Callable[[Any], dict[str, Any]] | None]


@dataclass(frozen=True)
class Peer:
    """A loss of pytorch-metric-learning, and what it is here.

    Attributes:
        loss: our name.
        arguments: of each of its arguments the default, and what it becomes among the keywords of `create_objective`;
            None for an argument that has no peer and may only have its default.
        fixed: keywords that are always given.
        differs: where the two do not give the same number.
    """

    loss: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""


def _as(name: str, change: Callable[[Any], Any] = lambda value: value) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: change(value)}


def _beta(num_classes: int | None) -> dict[str, Any]:
    return {} if num_classes is None else {"beta_per_class": True, "num_classes": num_classes}


SIZE: Mapping[str, Argument] = {
    "num_classes": (REQUIRED, _as("num_classes")),
    "embedding_size": (REQUIRED, _as("dim")),
}
_DEGREES = "the margin is in degrees there and in radians here"
PEERS: Mapping[str, Peer] = {
    "AngularLoss": Peer(
        "angular", {"alpha": (40, _as("alpha", float))}, {}, "theirs forgets to normalise the negatives"
    ),
    "ArcFaceLoss": Peer(
        "arcface",
        {**SIZE, "margin": (28.6, _as("margin", math.radians)), "scale": (64, _as("scale", float))},
        {},
        _DEGREES,
    ),
    "CircleLoss": Peer("circle", {"m": (0.4, _as("margin")), "gamma": (80, _as("scale", float))}),
    "ContrastiveLoss": Peer(
        "contrastive",
        {"pos_margin": (0, _as("positive_margin", float)), "neg_margin": (1, _as("negative_margin", float))},
        {"power": 1, "average": "active"},
        "the paper's squares are our default",
    ),
    "CosFaceLoss": Peer("cosface", {**SIZE, "margin": (0.35, _as("margin")), "scale": (64, _as("scale", float))}),
    "FastAPLoss": Peer("fastap", {"num_bins": (10, _as("bins"))}, {}, "theirs turns tuples into weights of items"),
    "GeneralizedLiftedStructureLoss": Peer(
        "generalized_lifted_structure",
        {"neg_margin": (1, _as("margin", float)), "pos_margin": (0, None)},
        {"geometry": "euclidean(normalize=True)"},
        "theirs lets an anchor without positives pay for its negatives, and divides by all anchors",
    ),
    "HistogramLoss": Peer("histogram", {"n_bins": (None, _as("steps", lambda n: n or 100)), "delta": (None, None)}),
    "LiftedStructureLoss": Peer(
        "lifted_structure",
        {"neg_margin": (1, _as("margin", float)), "pos_margin": (0, None)},
        {"geometry": "euclidean(normalize=True)"},
        "our default does not normalise, as in the paper",
    ),
    "MarginLoss": Peer(
        "margin",
        {
            "margin": (0.2, _as("alpha")),
            "nu": (0, _as("nu", float)),
            "beta": (1.2, _as("beta")),
            "triplets_per_anchor": ("all", None),
            "learn_beta": (False, _as("learn_beta")),
            "num_classes": (None, _beta),
        },
        {"over": "triplets"},
        "with nu and one beta for all, theirs adds nu * beta undivided",
    ),
    "MultiSimilarityLoss": Peer(
        "multi_similarity",
        {"alpha": (2, _as("alpha", float)), "beta": (50, _as("beta", float)), "base": (0.5, _as("base"))},
        {},
        "with tuples, theirs divides by the batch size, ours by the anchors that have a pair",
    ),
    "NPairsLoss": Peer("n_pairs", {}, {"geometry": "cosine"}, "our default is the paper's scalar product"),
    "NTXentLoss": Peer("nt_xent", {"temperature": (0.07, _as("temperature"))}, {"positives": "separate"}),
    "NormalizedSoftmaxLoss": Peer("normalized_softmax", {**SIZE, "temperature": (0.05, _as("temperature"))}),
    "ProxyAnchorLoss": Peer(
        "proxy_anchor", {**SIZE, "margin": (0.1, _as("margin")), "alpha": (32, _as("alpha", float))}
    ),
    "ProxyNCALoss": Peer(
        "proxy_nca_pp",
        {**SIZE, "softmax_scale": (1, _as("temperature", lambda scale: 1 / scale))},
        {},
        "theirs is ProxyNCA++; `proxy_nca` is the earlier loss",
    ),
    "SignalToNoiseRatioContrastiveLoss": Peer(
        "snr_contrastive",
        {"pos_margin": (0, _as("positive_margin", float)), "neg_margin": (1, _as("negative_margin", float))},
        {"regularizer": 0.0},
        "the paper's regulariser is on here by default",
    ),
    "SmoothAPLoss": Peer(
        "smooth_ap",
        {"temperature": (0.01, _as("temperature"))},
        {"with_query": True},
        "theirs is right only where there are as many classes as items of each",
    ),
    "SoftTripleLoss": Peer(
        "soft_triple",
        {
            **SIZE,
            "centers_per_class": (10, _as("centers")),
            "la": (20, _as("la", float)),
            "gamma": (0.1, _as("gamma")),
            "margin": (0.01, _as("margin")),
        },
        {"tau": 0.0},
        "the paper's regulariser is on here by default",
    ),
    "SphereFaceLoss": Peer(
        "sphereface",
        {**SIZE, "margin": (4, _as("margin")), "scale": (1, _as("scale", float))},
        {"annealing": False},
        "the paper's annealing is on here by default",
    ),
    "SubCenterArcFaceLoss": Peer(
        "arcface",
        {
            **SIZE,
            "margin": (28.6, _as("margin", math.radians)),
            "scale": (64, _as("scale", float)),
            "sub_centers": (3, _as("centers")),
        },
        {},
        _DEGREES,
    ),
    "SupConLoss": Peer("supcon", {"temperature": (0.1, _as("temperature"))}),
    "TripletMarginLoss": Peer(
        "triplet",
        {
            "margin": (0.05, _as("margin")),
            "swap": (False, None),
            "smooth_loss": (False, _as("hinge", lambda smooth: "soft" if smooth else "hinge")),
            "triplets_per_anchor": ("all", None),
        },
        {},
        "`swap=True` is the loss `swapped_triplet`",
    ),
    "TupletMarginLoss": Peer(
        "tuplet_margin",
        {"margin": (5.73, _as("margin", math.radians)), "scale": (64, _as("scale", float))},
        {"variance_weight": 0.0},
        f"{_DEGREES}; IntraPairVarianceLoss is part of ours, on by default",
    ),
}
OTHER: Mapping[str, str] = {
    "CrossBatchMemory": "`create_objective(..., memory=1024)`, which counts once it is full",
    "GenericPairLoss": "a function `(x, y, valid) -> (value, count)`, see concepts.md",
    "IntraPairVarianceLoss": "`tuplet_margin`, its option `variance_weight`",
    "LargeMarginSoftmaxLoss": "no peer with unnormalised weights; `sphereface` with normalised ones",
    "MultipleLosses": "a weighted sum of objectives",
    "NCALoss": "none",
    "SelfSupervisedLoss": "`objective(torch.cat([a, b]), torch.arange(n).repeat(2))`",
    "DynamicSoftMarginLoss": "none",
    "InstanceLoss": "none",
    "ManifoldLoss": "none",
    "P2SGradLoss": "none",
    "PNPLoss": "none",
    "RankedListLoss": "none",
    "ThresholdConsistentMarginLoss": "none",
    "VICRegLoss": "none",
}
MINERS: Mapping[str, str] = {
    "AngularMiner": "none",
    "BatchEasyHardMiner": '`mining="easy_positive"`: the nearest positive and all negatives',
    "BatchHardMiner": '`mining="batch_hard"`',
    "DistanceWeightedMiner": '`mining="distance_weighted"`: as many negatives as positives, by logarithms',
    "EmbeddingsAlreadyPackagedAsTriplets": "`indices_tuple` of a `TupleObjective`",
    "HDCMiner": "none",
    "MultiSimilarityMiner": '`mining="multi_similarity(epsilon=0.1)"`',
    "PairMarginMiner": "none",
    "TripletMarginMiner": '`create_objective("triplet", triplets="semi_hard")`, also `hard`; any loss: `mining="semi_hard"`, `hard`, `all`',
    "UniformHistogramMiner": "none",
}
DISTANCES: Mapping[str, tuple[str, str]] = {
    "LpDistance()": ("euclidean(normalize=True)", ""),
    "LpDistance(normalize_embeddings=False)": ("euclidean", ""),
    "LpDistance(power=2)": ("squared_euclidean(normalize=True)", ""),
    "CosineSimilarity()": ("cosine", ""),
    "DotProductSimilarity()": ("cosine", "it normalises unless told otherwise"),
    "DotProductSimilarity(normalize_embeddings=False)": ("dot", ""),
    "SNRDistance()": ("snr", ""),
}


def keywords(name: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    """Our loss and the keywords of `create_objective` for a loss of pytorch-metric-learning with its arguments.

    Raises:
        ValueError: a loss or argument without a peer (the message says what there is).
    """
    if name not in PEERS:
        raise ValueError(
            f"no peer for {name}{'; see docs/migration.md' if OTHER[name] == 'none' else f': {OTHER[name]}'}"
            if name in OTHER
            else f"no loss {name}{suggest(name, PEERS)}"
        )
    peer = PEERS[name]
    if unknown := sorted(arguments.keys() - peer.arguments.keys()):
        hint = "; distance= is geometry= of create_objective" if "distance" in unknown else ""
        raise ValueError(f"{name}: no peer for {', '.join(unknown)}; known: {', '.join(peer.arguments)}{hint}")
    options = dict(peer.fixed)
    for argument, (default, change) in peer.arguments.items():
        value = arguments.get(argument, default)
        if value is REQUIRED:
            raise ValueError(f"{name} needs {argument}=")
        if change is not None:
            options |= change(value)
        elif value != default:
            raise ValueError(f"{name}: {argument}={value!r} has no peer here, only {default!r}; {peer.differs}")
    return peer.loss, options


def from_pml(name: str, **arguments: Any) -> TupleObjective:
    """The peer of a loss of pytorch-metric-learning 2.9, by its name, arguments and defaults.

    `from_pml("TripletMarginLoss", margin=0.1)` is `TupleObjective(create_objective("triplet", margin=0.1, ...))`.

    Raises:
        ValueError: as `keywords`.
    """
    loss, options = keywords(name, **arguments)
    return TupleObjective(create_objective(loss, **options))


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={round(v, 4) if isinstance(v, float) else v!r}" for k, v in options.items())


def tables() -> str:
    """The tables of docs/migration.md."""
    lines = ["| pytorch-metric-learning | here | differs |", "|---|---|---|"]
    for name, peer in PEERS.items():
        sizes = {a: 10 for a, (default, _) in peer.arguments.items() if default is REQUIRED}
        theirs = ", ".join(a if d is REQUIRED else f"{a}={d!r}" for a, (d, _) in peer.arguments.items())
        loss, options = keywords(name, **sizes)
        ours = _shown(options).replace("num_classes=10", "num_classes=...").replace("dim=10", "dim=...")
        lines.append(f"| `{name}({theirs})` | `{', '.join(filter(None, [repr(loss), ours]))}` | {peer.differs} |")
    lines += ["", "| other losses | here |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in OTHER.items())]
    lines += ["", "| miner | here |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in MINERS.items())]
    lines += ["", "| distance | `geometry=` | |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | `{spec}` | {why} |" for name, (spec, why) in DISTANCES.items())]) + "\n"


if __name__ == "__main__":
    print(tables(), end="")
