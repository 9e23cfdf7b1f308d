"""Offline mining: for each item, its hardest partners among all items, by embeddings that were taken at one moment."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from . import distributed
from .geometry import Geometry, cosine, create_geometry, dot, euclidean, squared_euclidean
from .neighbours import smallest
from .points import Points
from .targets import Target, create_target

Find = Literal["negatives", "positives"]

PAIRS_PER_TILE = {"cpu": 1 << 21, "cuda": 1 << 25}
"""Pairs that are compared at once: the memory of a search, at some tens of bytes a pair."""

INDICES = {
    cosine(): "IndexFlatIP",
    dot(): "IndexFlatIP",
    euclidean(): "IndexFlatL2",
    euclidean(normalize=True): "IndexFlatL2",
    squared_euclidean(): "IndexFlatL2",
    squared_euclidean(normalize=True): "IndexFlatL2",
}
"""The exact index of faiss that orders prepared embeddings as a geometry does."""


@torch.no_grad()
def mine_offline(
    embeddings: Tensor,
    labels: Any,
    *,
    target: str | Target = "classes",
    geometry: str | Geometry = "cosine",
    find: Find = "negatives",
    count: int = 4,
    skip: int = 0,
    radius: float = 0.0,
    ids: Any = None,
    k: int = 32,
    search: Literal["auto", "faiss", "torch"] = "auto",
) -> Tensor:
    """The nearest items of another label for each item (its hard negatives), or the farthest of its own label.

    Exact up to the rounding of distances, whatever `k` and `search`; equal distances go by position. Under a process
    group, which must hold the same embeddings everywhere, each process mines a share and all get the whole lists.

    faiss looks at the `k` nearest items of each and takes the negatives among them; items for which that does not
    decide (too many of their own class are near, or too many are equally far) are searched by torch, as are all for
    positives, targets that compare keys with one another (`nearest`) and geometries that faiss does not have (`snr`).

    Args:
        embeddings: [n d], finite, on any device.
        labels: their labels [n ...], as the target wants them.
        target: what similar means. Pairs at an unknown (NaN) label distance are neither positive nor negative.
        geometry: what near means, such as "cosine" or "euclidean"; best that of the loss.
        find: "negatives", nearest first, or "positives", farthest first.
        count: how many for each item.
        skip: so many of the hardest are left out first (they may be mislabelled, or of the same kind after all).
        radius: label distance up to which two items are the same, for targets that give distances (0: equal labels).
        ids: [n] integers; items with equal ids are one thing and no pair. Default: every item is its own thing.
        k: neighbours that faiss looks at, more than items of a class lie together; a matter of speed alone.
        search: "faiss" (float32, on the CPU), "torch", or "auto": faiss if it is installed, for embeddings in single
            precision on the CPU, else torch.

    Returns:
        Indices [n count] int64 on the device of the embeddings; -1 where an item has no more partners.

    Raises:
        ValueError: embeddings that are not finite, labels that do not fit, or an option out of range.
        ModuleNotFoundError: `search="faiss"` without faiss.

    Cost: time O(n^2 d / processes), memory O(n (d + count)) and a tile of pairs; never n x n.
    """
    if not embeddings.isfinite().all():
        raise ValueError("embeddings hold NaN or infinite values; mine before the embedder diverges")
    space, meaning = create_geometry(geometry), create_target(target)
    check_mining(meaning, count, skip, radius, k)
    z = space.prepare(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
    if space.shift_invariant and len(z):
        z = z - z[(z - z.mean(0)).square().sum(1).argmin()]  # sets far from 0 keep their precision, equals stay equal
    ids = torch.arange(len(z)) if ids is None else torch.as_tensor(ids)
    points = Points(z, meaning.encode(labels, embeddings).to(z.device), ids.to(z.device))
    miner = _Miner(points, space, meaning, find, count, skip, radius)
    share = distributed.share(len(z))
    left = torch.arange(len(z), device=z.device)[share]
    found = torch.full((len(z), count), -1, device=z.device)
    if _by_faiss(miner, search) and len(left):
        left = miner.among_neighbours(left, found, min(k + 1, len(z)))
    tile = max(1, PAIRS_PER_TILE.get(z.device.type, 1 << 23) // max(len(z), 1))
    for rows in left.split(tile) if len(left) else ():
        found[rows] = miner.among_all(rows)
    return distributed.all_rows(found[share])


def check_mining(target: Target, count: int, skip: int, radius: float, k: int) -> None:
    """Raise a ValueError for options of `mine_offline` that are out of range or do not fit the target."""
    if count < 1 or skip < 0 or k < 1:
        raise ValueError(f"expected 1 or more to mine, k >= 1 and skip >= 0, got {count}, k={k} and skip={skip}")
    if not radius >= 0 or (radius > 0 and target.gives == "same"):
        raise ValueError(f"expected a radius of at least 0, and 0 for a target of same or different, got {radius}")


def _by_faiss(miner: _Miner, search: str) -> bool:
    """Whether faiss looks first."""
    fits = miner.find == "negatives" and miner.geometry in INDICES and not getattr(miner.target, "relative", False)
    z = miner.points.z
    if search == "faiss" and importlib.util.find_spec("faiss") is None:
        raise ModuleNotFoundError("search='faiss' needs faiss: pip install faiss-cpu")
    if search == "auto":
        fits &= z.device.type == "cpu" and z.dtype == torch.float32 and importlib.util.find_spec("faiss") is not None
    return fits and search != "torch"


@dataclass(frozen=True)
class _Miner:
    """What is searched (prepared embeddings), and for what."""

    points: Points
    geometry: Geometry
    target: Target
    find: Find
    count: int
    skip: int
    radius: float

    def wanted(self, rows: Tensor, keys: Tensor | slice) -> Tensor:
        """Which pairs are of the kind that is looked for [rows keys]."""
        valid = self.points.id[rows, None] != self.points.id[keys]
        y = self.target.distance(self.points.code[rows], self.points.code[keys], valid)
        if y.dtype == torch.bool:
            return valid & (y if self.find == "negatives" else ~y)
        return valid & (y > self.radius if self.find == "negatives" else y <= self.radius)

    def among_all(self, rows: Tensor) -> Tensor:
        """The partners of some items [rows count], out of all items."""
        z = self.points.z
        x = self.geometry.block(z[rows], z)
        if (self.geometry.kind == "similarity") == (self.find == "negatives"):
            x = x.neg_()
        depth = min(self.skip + self.count, len(z))
        x.masked_fill_(~self.wanted(rows, slice(None)), torch.inf)
        best = smallest(x, depth)[0][:, self.skip :]
        return torch.nn.functional.pad(best, (0, self.count - best.shape[1]), value=-1)

    def among_neighbours(self, rows: Tensor, found: Tensor, width: int) -> Tensor:
        """Fill in what the `width` nearest neighbours decide; returns the items for which they do not."""
        import faiss

        z = self.points.z.float().cpu().numpy()
        index = getattr(faiss, INDICES[self.geometry])(z.shape[1])
        index.add(z)
        left = []
        for part in rows.split(max(16, PAIRS_PER_TILE["cpu"] // width)):
            reach, near = map(torch.from_numpy, index.search(z[part.cpu().numpy()], width))
            near, order = near.sort(1)
            reach = reach.gather(1, order) * (-1 if self.geometry.kind == "similarity" else 1)
            reach, order = reach.sort(stable=True, dim=1)
            near = near.gather(1, order).to(rows.device)
            wanted = self._wanted_of(part, near)
            place = wanted.cumsum(1)
            chosen = wanted & (place > self.skip) & (place <= self.skip + self.count)
            last = torch.where(chosen.cpu(), reach, -torch.inf).amax(1)
            decided = (place[:, -1] >= self.skip + self.count).cpu() & ((last < reach[:, -1]) | (width == len(z)))
            decided = decided.to(rows.device)
            found[part[decided]] = near[decided][chosen[decided]].view(-1, self.count)
            left.append(part[~decided])
        return torch.cat(left)

    def _wanted_of(self, rows: Tensor, near: Tensor) -> Tensor:
        """Which of each item's own candidates [rows width] are of the kind that is looked for."""
        found = []
        for row, candidates in zip(rows.split(16), near.split(16), strict=True):
            keys, place = candidates.unique(return_inverse=True)
            found.append(self.wanted(row, keys).gather(1, place))
        return torch.cat(found)


# ----------------------------------------------------------------------------------------------------


class Snapshot:
    """Lists of hard partners, mined from embeddings of all items and renewed every `refresh` epochs.

    Args:
        mine: embeddings [n d] -> the lists by name, each [n m].
        refresh: epochs between two snapshots.
    """

    def __init__(self, mine: Callable[[Tensor], dict[str, Tensor]], refresh: int = 1) -> None:
        self.mine, self.refresh = mine, refresh
        self.epoch: int | None = None
        self._lists: dict[str, Tensor] = {}

    def due(self, epoch: int) -> bool:
        """Whether an epoch should start with `renew`."""
        return self.epoch is None or epoch >= self.epoch + self.refresh

    def renew(self, embeddings: Tensor, epoch: int) -> None:
        """Mine from embeddings of all items [n d], the same on all processes, in the order of the labels."""
        self._lists = {name: found.cpu() for name, found in self.mine(embeddings).items()}
        self.epoch = epoch

    def __getitem__(self, name: str) -> Tensor:
        if not self._lists:
            raise RuntimeError("nothing is mined yet: call snapshot.renew(embeddings, epoch) before the first batch")
        return self._lists[name]

    def state_dict(self) -> dict[str, Any]:
        """The lists and the epoch they were mined for: the weights they came from are gone."""
        return {"epoch": self.epoch, "lists": dict(self._lists)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with kept lists."""
        self.epoch, self._lists = state["epoch"], state["lists"]
