"""From items to batches: checked, cached, augmented by (seed, epoch, index) alone, collated."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .config import DataConfig
from .items import Items, Splits
from .splits import load_splits

CACHE_BYTES = 2**30


# ---------------------------------------------------------------- unreadable images


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded: its split, its position and name there, and what the decoder said."""

    split: str
    index: int
    name: str
    error: str


def check_images(splits: Splits, workers: int = 0, progress: bool = False) -> list[BadImage]:
    """Decode every image once, in `workers` threads (0: one per core), and list those that fail, in order."""
    places = [(name, items, i) for name, items in _parts(splits).items() for i in range(len(items))]

    def check(place: tuple[str, Items, int]) -> BadImage | None:
        name, items, i = place
        try:
            items.images[i].load()
        except Exception as error:
            return BadImage(name, i, items.names[i], f"{type(error).__name__}: {error}")
        return None

    from tqdm import tqdm

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = tqdm(pool.map(check, places), "checking images", len(places), disable=not progress)
        return [bad for bad in results if bad is not None]


def without_bad(splits: Splits, bad: Sequence[BadImage], bad_images: str = "error") -> Splits:
    """The splits without the bad images ("skip"); a ValueError that names them if there are any ("error")."""
    if not bad:
        return splits
    if bad_images != "skip":
        first = "; ".join(f"{b.name!r} ({b.split}): {b.error}" for b in bad[:5])
        raise ValueError(
            f"{len(bad)} images cannot be read, the first: {first}; "
            f"repair or remove them, or leave them out with data.bad_images=skip"
        )
    kept = {}
    for name, items in _parts(splits).items():
        keep = np.ones(len(items), dtype=bool)
        keep[[b.index for b in bad if b.split == name]] = False
        if not keep.any():
            raise ValueError(f"none of the {len(items)} images of split {name!r} can be read")
        kept[name] = items.select(np.flatnonzero(keep))
    return replace(splits, train=kept["train"], query=kept["query"], gallery=kept.get("gallery"))


def load_checked(config: DataConfig, progress: bool = False) -> tuple[Splits, list[BadImage]]:
    """`load_splits`, then every image decoded once: splits without unreadable images, and the list of these.

    Embedded sets are not checked. Raises what `load_splits` raises, and ValueError for bad images unless
    `bad_images` is "skip".
    """
    splits = load_splits(config)
    bad = [] if config.source.startswith("embedded:") else check_images(splits, config.workers, progress)
    return without_bad(splits, bad, config.bad_images), bad


def _parts(splits: Splits) -> dict[str, Items]:
    parts = {"train": splits.train, "query": splits.query, "gallery": splits.gallery}
    return {name: items for name, items in parts.items() if items is not None}


# ---------------------------------------------------------------- the torch data set


class ImageSet(Dataset):
    """Items as `{"image": Tensor [3 h w], "label": Tensor [...] (text as array), "id": int64 Tensor []}`.

    Without `seed`, `transform(image)` prepares each image. With `seed` it is called as `transform(image,
    label, rng)` and gives both, the generator depending only on (seed, epoch, index, how often the index came
    earlier in the same batch): neither the order of loading, nor the number of workers, nor resuming changes
    an item. `set_epoch` reaches running worker processes too.

    cache: keep decoded images (uint8) in memory, in each process that loads; None: if they take less than 1
    GiB, judged by the first image.
    """

    def __init__(
        self,
        items: Items,
        transform: Callable[..., Any],
        *,
        seed: int | None = None,
        cache: bool | None = False,
    ) -> None:
        self.items, self.transform, self.seed = items, transform, seed
        numeric = items.labels.dtype.kind in "biuf"
        self.labels = torch.as_tensor(items.labels) if numeric else items.labels
        self.ids = torch.as_tensor(items.ids)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if cache is None:
            cache = len(items) > 0 and len(items) * np.asarray(self._read(0)).nbytes < CACHE_BYTES
        self._cache: dict[int, np.ndarray] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.items)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the items that are fetched from now on."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One item; raises OSError naming the image if it cannot be read."""
        return self._item(int(index), 0)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The items of a batch (called by the torch loader)."""
        seen: Counter[int] = Counter()
        batch = []
        for index in map(int, indices):
            batch.append(self._item(index, seen[index]))
            seen[index] += 1
        return batch

    def _item(self, index: int, occurrence: int) -> dict[str, Any]:
        image = self._image(index)
        label = self.labels[index]
        if self.seed is None:
            pixels = self.transform(image)
        else:
            rng = np.random.default_rng((self.seed, int(self._epoch), index, occurrence))
            pixels, label = self.transform(image, label, rng)
        return {"image": pixels, "label": label, "id": self.ids[index]}

    def _image(self, index: int) -> Image.Image:
        if self._cache is None:
            return self._read(index)
        if index not in self._cache:
            self._cache[index] = np.asarray(self._read(index))
        return Image.fromarray(self._cache[index])

    def _read(self, index: int) -> Image.Image:
        try:
            image: Image.Image = self.items.images[index]
            image.load()
        except Exception as error:
            raise OSError(
                f"image {self.items.names[index]!r} cannot be read: {type(error).__name__}: {error}"
            ) from error
        return image


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items: images [n 3 h w], labels [n ...] (an array if text), ids [n] int64."""
    return {
        "images": torch.stack([item["image"] for item in items]),
        "labels": (torch if isinstance(items[0]["label"], Tensor) else np).stack([i["label"] for i in items]),
        "ids": torch.stack([item["id"] for item in items]),
    }
