"""Images and texts in one space: captions beside images in a batch, retrieval both ways, zero-shot classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import distributed
from .embedder import Embedder
from .evaluation import evaluate
from .geometry import Geometry
from .objective import Objective
from .points import Points
from .targets.captions import as_texts
from .targets.vectors import Classes, as_array

KS = (1, 5, 10)


def draw_captions(labels: Any) -> list[str]:
    """One caption of each item, at random from torch's global generator.

    Args:
        labels: texts [n captions]; an empty text is no caption.

    Raises:
        ValueError: labels that are no texts, or an item without a caption.
    """
    texts = as_texts(labels, "captions")
    chance = torch.rand(texts.shape).numpy()
    chance[np.char.strip(texts) == ""] = -1
    if (chance.max(1) < 0).any():
        raise ValueError(f"item {int(np.flatnonzero(chance.max(1) < 0)[0])} has no caption that is not empty")
    drawn: list[str] = texts[np.arange(len(texts)), chance.argmax(1)].tolist()
    return drawn


def beside(images: Tensor, texts: Tensor, labels: Any, ids: Tensor) -> tuple[Tensor, Any, Tensor]:
    """Images and their texts as one batch of 2 n items: embeddings, labels, ids.

    An item's image and text have the same label, so their label distance is 0, and ids of their own (2 i and 2 i + 1),
    so that they are a pair like any other: whatever the loss and the target, images and texts are compared with each
    other and among themselves, over all processes.

    Args:
        images: embeddings [n d].
        texts: embeddings [n d] of one text of each.
        labels: of the items [n ...].
        ids: of the items [n].
    """
    labels = torch.cat([labels, labels]) if isinstance(labels, Tensor) else np.concatenate([labels, labels])
    return torch.cat([images, texts]), labels, torch.cat([2 * ids, 2 * ids + 1])


class ClipCriterion(nn.Module):
    """An objective in the place of open_clip's losses: `loss(image_features, text_features, logit_scale, ...)`.

    An image and its text are the same, other pairs of the batch different, unless labels say otherwise. The scale (and
    bias) of the logits is not read: losses have their own temperature; it stays in the graph, with gradient 0, for
    DistributedDataParallel.

    Args:
        objective: from `create_objective`; its parameters are this module's.
        across: compare images with texts alone and texts with images alone, and take the mean, as CLIP does; False: as
            one batch (`beside`), so that images are compared with images too.
    """

    def __init__(self, objective: Objective, across: bool = False) -> None:
        super().__init__()
        self.objective, self.across = objective, across

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float = 1.0,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        labels: Any = None,
    ) -> Tensor | dict[str, Tensor]:
        """The loss, or a dict with it as `contrastive_loss`.

        Args:
            image_features: [n d].
            text_features: [n d], of each image's text.
            logit_scale: not read.
            logit_bias: not read.
            output_dict: whether to return a dict, as open_clip's training does.
            labels: what the objective's target takes [n ...]; None: each image and its text are a class of their own.

        Raises:
            ValueError: no labels, but a target other than `classes`.
        """
        if labels is None and not isinstance(self.objective.target, Classes):
            raise ValueError(
                f"target {type(self.objective.target).__name__} needs labels= [n ...]; without them each image and its text are "
                "a class of their own, which target 'classes' alone can tell"
            )
        n, device = len(image_features), image_features.device
        counts = distributed.sizes(n, device)
        first = sum(counts[: distributed.rank()])
        if self.objective.memory is not None:
            first += int(self.objective.memory.seen)  # what is remembered is not what comes now
        ids = torch.arange(first, first + n, device=device)
        labels = ids if labels is None else labels
        if self.across:
            towers = [
                Points(z, self.objective.target.encode(labels, z.detach()).to(device), 2 * ids + text)
                for text, z in enumerate((image_features, text_features))
            ]
            images, texts = (distributed.gather(z, counts) if self.objective.gather else z for z in towers)
            loss = (self.objective(images, texts) + self.objective(texts, images)) / 2
        else:
            z, labels, ids = beside(image_features, text_features, labels, ids)
            loss = self.objective(z, labels, ids=ids)
        for unread in (logit_scale, logit_bias):
            if isinstance(unread, Tensor):
                loss = loss + 0 * unread.sum()
        return {"contrastive_loss": loss} if output_dict else loss


def image_text_recall(
    images: Tensor,
    texts: Tensor,
    image_of_text: Any,
    *,
    ks: int | Sequence[int] = KS,
    geometry: str | Geometry = "euclidean",
    ranking: str = "embedding",
) -> dict[str, float]:
    """Retrieval both ways: `text_to_image_recall_at_k` and `image_to_text_recall_at_k`.

    The share of texts whose image is among the k nearest images, and of images of which any text is among the k nearest
    texts; ties count in expectation.

    Args:
        images: embeddings [n d].
        texts: embeddings [m d].
        image_of_text: the number of each text's image [m].
        ks: numbers of neighbours.
        geometry: what near means.
        ranking: "embedding", "random" or "oracle", as in `evaluate`.

    Raises:
        ValueError: a text of no image.
    """
    _check_numbers("image_of_text", image_of_text, len(images))
    number, names = np.arange(len(images)), [f"recall_at_{k}" for k in ([ks] if isinstance(ks, int) else ks)]
    scores: dict[str, float] = {}
    for way, query, reference in (
        ("text_to_image", (texts, image_of_text), (images, number)),
        ("image_to_text", (images, number), (texts, image_of_text)),
    ):
        found = evaluate(
            *query,
            ref_embeddings=reference[0],
            ref_labels=reference[1],
            metrics=names,
            geometry=geometry,
            ranking=ranking,
        )
        scores |= {f"{way}_{name}": found[name] for name in names}
    return scores


def zero_shot_accuracy(
    images: Tensor, labels: Any, classes: Tensor, *, geometry: str | Geometry = "euclidean", ranking: str = "embedding"
) -> float:
    """Share of images whose nearest class embedding is that of their own class.

    Args:
        images: embeddings [n d].
        labels: the row of each image's class in `classes` [n].
        classes: embeddings of the class names [c d], see `embed_classes`.
        geometry: what near means.
        ranking: as in `evaluate`.

    Raises:
        ValueError: a label without a class embedding.
    """
    _check_numbers("labels", labels, len(classes))
    rows = np.arange(len(classes))
    found = evaluate(
        images,
        labels,
        ref_embeddings=classes,
        ref_labels=rows,
        metrics=["recall_at_1"],
        geometry=geometry,
        ranking=ranking,
    )
    return found["recall_at_1"]


def _check_numbers(name: str, numbers: Any, count: int) -> None:
    """Raise unless all are numbers of one of `count` things; the others would be left out of the mean without a word."""
    numbers = as_array(numbers)
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"expected {name} as integers from 0 to {count - 1}, got {numbers.dtype}")
    if wrong := int(((numbers < 0) | (numbers >= count)).sum()):
        raise ValueError(
            f"expected {name} from 0 to {count - 1}, got {wrong} others from {numbers.min()} to {numbers.max()}"
        )


def embed_classes(embedder: Embedder, names: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Embeddings of class names [c d]: the mean over prompts such as "a photo of a {}.", normalised as the embedder does.

    Raises:
        ValueError: no name, no prompt, or a prompt without {}; an embedder without a text tower.
    """
    if isinstance(names, str) or not len(names):
        raise ValueError(f"expected a list of class names, got {names!r}")
    check_prompts(prompts)
    texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
    z = embedder.encode_text(texts).view(len(names), len(prompts), -1).mean(1)
    return torch.nn.functional.normalize(z, dim=1) if embedder.normalize else z


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise a ValueError unless there are prompts, each with {} in the place of the class name."""
    if isinstance(prompts, str) or not prompts or any("{}" not in prompt for prompt in prompts):
        raise ValueError(f"expected a list of prompts with {{}} in the place of the class name, got {prompts!r}")


def start_at_names(embedder: Embedder, objective: Objective, names: Sequence[str], prompts: Sequence[str]) -> None:
    """Start each class's proxy at the text tower's embedding of its name [c]; raises as `embed_classes`."""
    z = embed_classes(embedder, names, prompts)
    objective.start_at_means(z, torch.arange(len(z)))
