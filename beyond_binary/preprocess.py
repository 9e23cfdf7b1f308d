"""Evaluation preprocessing: images to the float tensors that a trunk expects, one by one and in batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

RESIZE_MODES = ("shortest", "squash")


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read and fully decode the image at `path`, turned upright as its EXIF orientation says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, or is truncated; the message names it.
    """
    try:
        with Image.open(Path(path)) as image:
            image.load()
            upright: Image.Image = ImageOps.exif_transpose(image)
            return upright
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read image {str(path)!r}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode to RGB: grey is repeated (16 bits scaled to 8), palettes looked up, alpha dropped."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _covering_size(height: int, width: int, target: Sequence[int]) -> tuple[int, int]:
    """Size [h, w] of the image scaled so that it just covers the target; its aspect ratio is kept."""
    target_height, target_width = target
    if target_height * width >= target_width * height:
        return target_height, max(target_width, target_height * width // height)
    return max(target_height, target_width * height // width), target_width


def resize(image: Image.Image, size: Sequence[int], interpolation: str, mode: str) -> Image.Image:
    """Resize to `size` = [h, w]: "squash" ignores the aspect ratio, "shortest" covers the size, then crops.

    The crop is the centre. Both modes are the same for an image that already has the aspect ratio of `size`.
    """
    height, width = size
    resample = Image.Resampling[interpolation.upper()]
    if mode == "squash":
        return image.resize((width, height), resample)
    new_height, new_width = _covering_size(image.height, image.width, size)
    left, top = round((new_width - width) / 2), round((new_height - height) / 2)
    return image.resize((new_width, new_height), resample).crop((left, top, left + width, top + height))


def image_to_tensor(
    image: Image.Image,
    *,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    resize_mode: str = "shortest",
) -> Tensor:
    """RGB, resize to `size` = [h, w], scale to [0, 1], then (x - mean) / std per channel -> float32 [3 h w].

    The keywords are those of `Embedder.preprocess`, so that `partial(image_to_tensor, **embedder.preprocess)`
    is the transform without the network (cheap to send to data-loading workers).
    """
    pixels = np.array(resize(to_rgb(image), size, interpolation, resize_mode))
    x = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255.0)
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def stack(images: list[Tensor]) -> Tensor:
    """Preprocessed images [3 h w] of one size -> [n 3 h w]."""
    for image in images:
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"expected preprocessed images [3 h w], got one of shape {list(image.shape)}")
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) > 1:
        told = ", ".join(f"{h}x{w}" for h, w in sizes[:5])
        raise ValueError(f"expected tensors of one size, got {told}; make them with embedder.transform")
    return torch.stack(images)


def batches(items: Iterable[Any], size: int, progress: bool = False, unit: str = "image") -> Iterator[list[Any]]:
    """Lists of `size` items in their order, the last one shorter, none of them empty."""
    from tqdm import tqdm

    total = len(items) if isinstance(items, Sized) else None
    stream = iter(items)
    with tqdm(total=total, unit=unit, disable=not progress) as bar:
        while batch := list(islice(stream, size)):
            yield batch
            bar.update(len(batch))
