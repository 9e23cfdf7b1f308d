"""The judgement of an embedder on held-out items: metrics of images, and of images beside texts where there are texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from . import clip, distributed, towers
from .config import EvaluationConfig
from .data import Items, Splits
from .data.items import Picked
from .embedder import Embedder
from .evaluation import evaluate
from .geometry import create_geometry
from .metrics import IMAGE_TEXT, create_metrics
from .targets import LabelError, Target, create_target

if TYPE_CHECKING:
    from accelerate import Accelerator

USUAL = ("map_at_r", "text_to_image_recall_at_10", "mean_label_distance_at_10")


@contextmanager
def named(items: Items) -> Iterator[None]:
    """An error about the label of one of these items names the item."""
    try:
        yield
    except LabelError as error:
        raise ValueError(f"{items.names[error.row]}: {error}") from error


class Judge:
    """Evaluates embeddings of the held-out items, with the random and the oracle ranking beside them.

    With an embedder that has a text tower, captions of the queries are searched for among the queries' images and the
    other way round, and queries of classes with names are classified by these.

    Raises ValueError where labels, metrics or the monitored metric do not fit.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        splits: Splits,
        target: str | Target,
        embedder: Embedder,
        geometry: str = "euclidean",
    ) -> None:
        self.config, self.splits, self.target = config, splits, create_target(config.target or target)
        self.geometry = geometry
        create_geometry(geometry)
        for items in (splits.query, splits.gallery):
            if items is not None:
                with named(items):
                    self.target.encode(items.labels)
        self.captions = captions_of(splits.query) if embedder.has_text else None
        self.classes = class_numbers(splits, splits.query) if embedder.has_text else None
        wanted = self._offered() if config.metrics is None else [m for m in config.metrics if IMAGE_TEXT.fullmatch(m)]
        for name in wanted:
            if (self.classes if name == "zero_shot_accuracy" else self.captions) is None:
                raise ValueError(
                    f"metric {name!r} needs a trunk 'open_clip/...' with head none, and "
                    + ("classes with names" if name == "zero_shot_accuracy" else "labels that are captions")
                )
        if "zero_shot_accuracy" in wanted:
            clip.check_prompts(config.prompts)
        self.between = [m.replace("_at_k", f"_at_{k}") for m in wanted for k in (clip.KS if m.endswith("_k") else (0,))]
        self.metrics = None if config.metrics is None else [m for m in config.metrics if m not in wanted]
        own = [] if self.metrics == [] and wanted else create_metrics(
            self.metrics, self.target.gives, config.ks, self.target
        )  # fmt: skip
        self.monitored([*(m.name for m in own), *self.between])

    def _offered(self) -> list[str]:
        both = ["text_to_image_recall_at_k", "image_to_text_recall_at_k"]
        return (both if self.captions is not None else []) + (
            ["zero_shot_accuracy"] if self.classes is not None else []
        )

    def encode(self, embedder: Embedder, accelerator: Accelerator) -> dict[str, Tensor]:
        """Embeddings [n d] on the CPU of the `query` items, the `gallery`, the queries' `captions` and the `classes`."""
        parts = {"query": self.splits.query, "gallery": self.splits.gallery}
        size = self.config.batch_size
        z = {name: encode(embedder, part.images, accelerator, size) for name, part in parts.items() if part is not None}
        if self.captions is not None and any("recall" in name for name in self.between):
            z["captions"] = encode_texts(embedder, self.captions[0], accelerator)
        if self.classes is not None and "zero_shot_accuracy" in self.between:
            z["classes"] = clip.embed_classes(embedder, self.classes[0], self.config.prompts)
        return z

    def frozen(self, embedder: Embedder, accelerator: Accelerator) -> dict[str, float] | None:
        """Metrics of the trunk's own features, compared by cosine; None if the embedder has no head over them."""
        if embedder.config["head"] == "none":
            return None
        head, embedder.head = embedder.head, nn.Identity()
        try:
            return self(self.encode(embedder, accelerator), geometry="cosine")
        finally:
            embedder.head = head

    def __call__(
        self, z: dict[str, Tensor], ranking: str = "embedding", geometry: str | None = None
    ) -> dict[str, float]:
        """Metrics of the embeddings that `encode` gives."""
        query, other = self.splits.query, self.splits.gallery
        scores = {}
        if self.metrics != []:
            scores = evaluate(
                z["query"],
                query.labels,
                target=self.target,
                ref_embeddings=z.get("gallery"),
                ref_labels=None if other is None else other.labels,
                ids=query.ids,
                ref_ids=None if other is None else other.ids,
                geometry=geometry or self.geometry,
                metrics=self.metrics,
                ks=self.config.ks,
                ranking=ranking,
            )
        if "captions" in z and self.captions is not None:
            ks = sorted({int(m.rpartition("_")[2]) for m in self.between if "recall" in m})
            found = clip.image_text_recall(
                z["query"], z["captions"], self.captions[1], ks=ks, geometry=self.geometry, ranking=ranking
            )
            scores |= {name: value for name, value in found.items() if name in self.between}
        if "classes" in z and self.classes is not None:
            scores["zero_shot_accuracy"] = clip.zero_shot_accuracy(
                z["query"], self.classes[1], z["classes"], geometry=self.geometry, ranking=ranking
            )
        return scores

    def monitored(self, metrics: Iterable[str]) -> str:
        """Name of the metric that picks the best epoch."""
        metrics = list(metrics)
        usual = [name for name in (*USUAL, *metrics) if name in metrics]
        wanted = self.config.monitor or (usual[0] if usual else "any")
        if wanted not in metrics:
            raise ValueError(f"evaluation.monitor {wanted!r} is not among the metrics: {', '.join(metrics)}")
        return wanted


def captions_of(items: Items) -> tuple[list[str], np.ndarray] | None:
    """The captions of all items and the number of the item that each belongs to; None where labels are no captions."""
    labels = items.labels
    if labels.dtype.kind != "U" or labels.ndim != 2:
        return None
    there = np.char.strip(labels) != ""
    return labels[there].tolist(), np.nonzero(there)[0]


def class_numbers(splits: Splits, items: Items) -> tuple[list[str], np.ndarray] | None:
    """Names of the classes that occur among the items, and the number of each item's class there; None without names."""
    if splits.class_names is None or items.labels.dtype.kind not in "iu" or items.labels.ndim != 1:
        return None
    present, number = np.unique(items.labels, return_inverse=True)
    if present[0] < 0 or present[-1] >= len(splits.class_names):
        return None
    return [str(splits.class_names[c]) for c in present.tolist()], number


def encode(embedder: Embedder, images: Sequence[Any], accelerator: Accelerator, batch_size: int) -> Tensor:
    """Embeddings [n d] on the CPU, each process encoding its share with the first one's running statistics."""
    distributed.same_buffers(embedder)
    own = Picked(images, np.arange(len(images))[distributed.share(len(images))])
    z = embedder.encode(own, batch_size=batch_size).to(accelerator.device)
    return distributed.all_rows(z).cpu()


def encode_as_in_training(
    embedder: Embedder, images: Sequence[Any], accelerator: Accelerator, batch_size: int, seed: int
) -> Tensor:
    """Embeddings [n d] on the CPU as steps of training see them: BatchNorm layers that are not frozen read the batch.

    Running statistics may be far from those of the data (weights of other images, or none), and stay as they are. Batches,
    of `batch_size` items on all processes together, are random: those of a single class would have its statistics.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    own = max(1, batch_size // distributed.world_size())
    together = own * distributed.world_size()
    whole = Picked(images, np.resize(order, -(-len(images) // together) * together))  # no batch is smaller
    with towers.batch_statistics(embedder):
        z = encode(embedder, whole, accelerator, own)
    return z[: len(images)][np.argsort(order)]


def encode_texts(embedder: Embedder, texts: list[str], accelerator: Accelerator) -> Tensor:
    """Embeddings [n d] of texts on the CPU, each process encoding its share."""
    z = embedder.encode_text(texts[distributed.share(len(texts))]).to(accelerator.device)
    return distributed.all_rows(z).cpu()
