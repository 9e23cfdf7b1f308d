"""Random changes to training images, as a pure function of a generator, and to labels that are places in the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..preprocess import resize
from .items import Items

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow converts to grey
DRAWS = 12


class Augment:
    """Crop, move, turn, mirror and recolour a training image; then scale and normalise it as the embedder wants.

    Args:
        preprocess: that of the embedder: {"size": [h, w], "mean": [3], "std": [3], "interpolation": name, ...}.
        crop_scale: least and greatest share of the image area that is kept, the aspect ratio within 3/4 .. 4/3 of the
            pixels; (1, 1) keeps all.
        flip: probability of a mirror image.
        jitter: brightness, contrast and saturation are each multiplied by a factor from [1 - jitter, 1 + jitter].
        shift: largest shift along each axis, as a share of the side.
        zoom: the image is enlarged by a factor from [1 / (1 + zoom), 1 + zoom].
        rotate: largest turn either way, in degrees.
        move_labels: labels are points [j 2] (or [j 3] with visibility, or flat [j*point]) in shares of the image's
            width and height, and move with the image.
        point: how many numbers of a flat label make a point; only the first two of each, x and y, move.

    Calling it with (PIL image, label, numpy Generator) gives (float32 [3 h w], label). Every call takes the same number
    of draws.

    Raises:
        ValueError: ranges that cannot be, or a flip together with `move_labels` (a mirrored person's left hand is a
            right hand: use `augment.mirror` instead).
    """

    def __init__(
        self,
        preprocess: dict[str, Any],
        *,
        crop_scale: Sequence[float] = (1.0, 1.0),
        flip: float = 0.0,
        jitter: float = 0.0,
        shift: float = 0.0,
        zoom: float = 0.0,
        rotate: float = 0.0,
        move_labels: bool = False,
        point: int = 2,
    ) -> None:
        low, high = crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"expected augment.crop_scale [low, high] with 0 < low <= high <= 1, got {list(crop_scale)}"
            )
        if not (0 <= flip <= 1 and 0 <= jitter < 1 and 0 <= shift < 1 and zoom >= 0 and rotate >= 0):
            raise ValueError(
                "expected augment.flip in [0, 1], jitter and shift in [0, 1), zoom and rotate at least 0, got "
                f"flip={flip}, jitter={jitter}, shift={shift}, zoom={zoom}, rotate={rotate}"
            )
        if flip and move_labels:
            raise ValueError("augment.flip would swap left and right joints; use augment.mirror, which renumbers them")
        self.crop_scale, self.flip, self.jitter = (low, high), flip, jitter
        self.shift, self.zoom, self.rotate = shift, zoom, rotate
        self.move_labels, self.point = move_labels, point
        self.size, self.mode = preprocess["size"], preprocess.get("resize_mode", "shortest")
        self.interpolation = preprocess.get("interpolation", "bicubic")
        mean, std = (np.array(preprocess[key], dtype=np.float64)[:, None, None] for key in ("mean", "std"))
        self.gain, self.offset = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def __call__(self, image: Image.Image, label: Any, rng: np.random.Generator) -> tuple[Tensor, Any]:
        """The changed image as float32 [3 h w], and its label."""
        draws = rng.random(DRAWS)
        image, crop = self._crop(image, draws[:4])
        pixels = np.asarray(image)
        if self.shift or self.zoom or self.rotate:
            pixels, move = self._move(pixels, 2 * draws[4:8] - 1)
        else:
            move = np.eye(3)
        planes = pixels.transpose(2, 0, 1)
        values = np.array(planes[:, :, ::-1] if draws[8] < self.flip else planes, dtype=np.float32, order="C")
        if self.jitter:
            values = jitter_colours(values, *(1 + self.jitter * (2 * draws[9:12] - 1)))
        values *= self.gain
        values += self.offset
        if self.move_labels:
            label = move_points(label, move @ crop, self.point)
        return torch.from_numpy(values), label

    def _crop(self, image: Image.Image, draws: np.ndarray) -> tuple[Image.Image, np.ndarray]:
        """The image resized to the model's size, after a random crop; and its map of shares of the image [3 3]."""
        low, high = self.crop_scale
        if low == 1:
            x, y = self._covering(image.size)
            shares = np.array([[x, 0, (1 - x) / 2], [0, y, (1 - y) / 2], [0, 0, 1]])
            return resize(image, self.size, self.interpolation, self.mode), shares
        left, top, right, bottom = crop_box(image.size, low + (high - low) * draws[0], *draws[1:4])
        size, method = (self.size[1], self.size[0]), Image.Resampling[self.interpolation.upper()]
        x, y = image.width / (right - left), image.height / (bottom - top)
        shares = np.array([[x, 0, -left / (right - left)], [0, y, -top / (bottom - top)], [0, 0, 1]])
        return image.resize(size, method, box=(left, top, right, bottom)), shares

    def _covering(self, size: tuple[int, int]) -> tuple[float, float]:
        """By how much evaluation's resizing outgrows the model's width and height: 1 but for the side it crops."""
        if self.mode == "squash":
            return 1.0, 1.0
        wide = (size[0] / size[1]) / (self.size[1] / self.size[0])
        return max(wide, 1.0), max(1 / wide, 1.0)

    def _move(self, pixels: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [h w 3] turned, zoomed and shifted, edges continued outward; and the map of shares [3 3]."""
        h, w = pixels.shape[:2]
        turn, factor = math.radians(self.rotate * draws[0]), (1 + self.zoom) ** draws[1]
        cos, sin = factor * math.cos(turn), factor * math.sin(turn)
        to_centre = np.array([[1, 0, -w / 2], [0, 1, -h / 2], [0, 0, 1.0]])
        turned = np.array([[cos, -sin, self.shift * draws[2] * w], [sin, cos, self.shift * draws[3] * h], [0, 0, 1]])
        forward = np.linalg.inv(to_centre) @ turned @ to_centre
        border = max(h, w) // 2
        wide = Image.fromarray(np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="edge"))
        back = np.linalg.inv(forward)
        data = (*back[0, :2], back[0, 2] + border, *back[1, :2], back[1, 2] + border)
        moved = wide.transform((w, h), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
        shares = np.diag([1 / w, 1 / h, 1]) @ forward @ np.diag([w, h, 1])
        return np.asarray(moved), shares


def crop_box(
    size: tuple[int, int], share: float, shape: float, across: float, down: float
) -> tuple[float, float, float, float]:
    """The box (left, top, right, bottom) in pixels with `share` of the area of an image (width, height).

    shape, across, down in [0, 1) choose the aspect ratio (log-uniform between 3/4 and 4/3, as far as a box of that area
    fits into the image) and the place. With share=1 the box is the image.
    """
    width, height = size
    narrowest, widest = math.log(share * width / height), math.log(width / (share * height))
    least, most = (min(max(math.log(ratio), narrowest), widest) for ratio in (3 / 4, 4 / 3))
    ratio = math.exp(least + (most - least) * shape)
    w = min(math.sqrt(share * width * height * ratio), width)
    h = min(math.sqrt(share * width * height / ratio), height)
    left, top = (width - w) * across, (height - h) * down
    return left, top, min(left + w, width), min(top + h, height)


def jitter_colours(pixels: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Change saturation (about each pixel's grey), contrast (about the mean grey) and brightness in turn.

    pixels: float32 [3 h w] in 0..255, and so is the result. The three together are one affine map of the colours,
    clipped once: b (c (s x + (1 - s) g(x)) + (1 - c) mean g), with g(x) = LUMA . x.
    """
    flat = pixels.reshape(3, -1)
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA)
    changed = matrix.astype(np.float32) @ flat
    changed += np.float32(brightness * (1 - contrast) * (LUMA @ flat.mean(1)))
    return np.clip(changed, 0, 255, out=changed).reshape(pixels.shape)


def move_points(label: Any, shares: np.ndarray, point: int = 2) -> Any:
    """Points of a label (tensor or array [j 2], [j 3] with visibility, or flat [j*point]) under a map of shares [3 3]."""
    points = np.asarray(label).copy()
    flat = points.ndim == 1
    if flat:
        points = points.reshape(-1, point)
    points[:, :2] = points[:, :2] @ shares[:2, :2].T + shares[:2, 2]
    points = points.reshape(-1) if flat else points
    return torch.from_numpy(points) if isinstance(label, Tensor) else points


def with_mirror(items: Items, swap: Sequence[int], point: int = 2) -> Items:
    """The items, then their mirror images, for labels that are points in shares of the image; ids are 0..2n-1.

    Args:
        items: labels [n j 2], [n j 3] with visibility, or flat [n j*point].
        swap: number of the joint that each joint becomes in the mirror (left wrist for right wrist, ...) [j].
        point: how many numbers of a flat label make a point, x first.

    Raises:
        ValueError: `swap` is not its own inverse permutation of the joints, or labels are no points.
    """
    labels = np.asarray(items.labels)
    flat = labels.ndim == 2 and labels.shape[1] % point == 0
    points = labels.reshape(len(labels), -1, point) if flat else labels
    joints = points.shape[1] if points.ndim == 3 else 0
    if sorted(swap) != list(range(joints)) or [swap[s] for s in swap] != list(range(joints)):
        raise ValueError(
            f"augment.mirror must give for each of the {joints} joints the one it becomes in a mirror, got {list(swap)}"
        )
    turned = points[:, list(swap)].copy()
    turned[..., 0] = 1 - turned[..., 0]
    return Items(
        _Mirrored(items.images),
        np.concatenate([labels, turned.reshape(labels.shape)]),
        [*items.names, *(f"{name} (mirrored)" for name in items.names)],
        np.arange(2 * len(items), dtype=np.int64),
    )


@dataclass(frozen=True)
class _Mirrored(Sequence):
    """A sequence of images followed by their mirror images."""

    images: Sequence[Image.Image]

    def __len__(self) -> int:
        return 2 * len(self.images)

    def __getitem__(self, index: Any) -> Any:
        image = self.images[index % len(self.images)]
        return image if index < len(self.images) else ImageOps.mirror(image)
