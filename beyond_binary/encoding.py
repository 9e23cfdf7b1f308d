"""Items to embeddings, batch by batch: what encoding images and encoding texts share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .preprocess import batches
from .towers import evaluating

if TYPE_CHECKING:
    from .embedder import Embedder


def encoded(
    embedder: Embedder,
    embed: Callable[[list[Any]], Tensor],
    items: Iterable[Any],
    batch_size: int,
    progress: bool,
    show_progress_bar: bool | None,
    normalize: bool,
    device: str | torch.device | None,
    unit: str = "image",
) -> Tensor:
    """Embeddings float32 [n dim] of the items on the CPU, in evaluation mode without gradients.

    Args:
        embedder: moved to `device` if there is one, and left there.
        embed: a batch of items -> embeddings.
        items: read batch by batch.
        batch_size: items at once.
        progress: show a progress bar.
        show_progress_bar: unset: as `progress` says; else this says it.
        normalize: bring embeddings to length 1 where the embedder does not.
        device: None: where the embedder is.
        unit: what the bar counts.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if device is not None:
        embedder.to(device)
    bar = progress if show_progress_bar is None else show_progress_bar
    with evaluating(embedder):
        rows = [embed(batch).float().cpu() for batch in batches(items, batch_size, bar, unit)]
    z = torch.cat(rows) if rows else torch.zeros(0, embedder.dim)
    return F.normalize(z, dim=-1) if normalize and not embedder.normalize else z
