"""Labels made visible: drawn on the picture where they have a shape, and as colours of a map."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..data import Items
from ..distances import KnownDistances
from ..targets import Target
from ..targets.algebra import Nearest, Scaled, Sum, Within
from ..targets.layout import Layout
from ..targets.pose import Pose
from ..targets.vectors import Circular, Classes

Paint = Callable[[Image.Image, np.ndarray, float], Image.Image]
"""(picture, label, how many times larger than the original the picture is) to the picture with the label."""


def painter(target: Target, items: Items) -> Paint | None:
    """A function that draws a label on its picture: skeletons, edges of label maps, angles; None for other labels.

    The bones of a skeleton are not known: they are the tree over the joints whose lengths vary least among the items.
    """
    if isinstance(target, Pose):
        joints = _joints(items.labels[:500], target)
        bones = steady_tree(joints)
        unit = bool(np.nanmax(np.abs(joints), initial=0) <= 2)  # of the picture's sides, not of its pixels
        return lambda image, label, scale: _skeleton(
            image, _joints(label[None], target)[0] * (image.size if unit else scale), bones
        )
    if isinstance(target, Layout):
        return _edges
    if isinstance(target, Circular):
        return lambda image, label, scale: _needle(image, float(np.ravel(label)[0]) / target.period)
    if isinstance(target, Scaled | Within | Nearest | KnownDistances):
        return painter(target.target, items)
    if isinstance(target, Sum):
        end = 0
        for part, width in zip(target.targets, target.columns, strict=True):
            columns = slice(end, end := end + width)
            own = Items(items.images, items.labels[:, columns], items.names, items.ids)
            if (paint := painter(part, own)) is not None:
                return functools.partial(_of_columns, paint, columns)
    return None


def _of_columns(paint: Paint, columns: slice, image: Image.Image, label: np.ndarray, scale: float) -> Image.Image:
    return paint(image, label[columns], scale)


def _joints(labels: np.ndarray, pose: Pose) -> np.ndarray:
    """The first two coordinates [n j 2] of joint labels of any accepted form, NaN where a joint is not visible."""
    joints = np.array(labels, dtype=np.float64)
    if joints.ndim == 2:
        joints = joints.reshape(len(joints), -1, pose.per_joint)
    if joints.shape[2] > pose.dims:
        joints[joints[..., pose.dims] == 0] = np.nan
    return joints[..., :2]


def steady_tree(joints: np.ndarray) -> list[tuple[int, int]]:
    """The spanning tree (Prim) of the joints [n j 2] whose lengths vary least (then: are least), relative to each skeleton."""
    with np.errstate(invalid="ignore"):
        gaps = np.linalg.norm(joints[:, :, None] - joints[:, None], axis=-1)
    known = ~np.isnan(gaps)
    gaps = np.where(known, gaps, 0)
    size = gaps.sum((1, 2)) / np.maximum(known.sum((1, 2)), 1)
    gaps = gaps / np.where(size > 0, size, 1)[:, None, None]
    count = np.maximum(known.sum(0), 1)
    mean = gaps.sum(0) / count
    varied = (np.where(known, gaps - mean, 0) ** 2).sum(0) / count
    varied[~known.any(0)] = math.inf
    bones, inside = [], [0]
    while len(inside) < joints.shape[1]:
        outside = [j for j in range(joints.shape[1]) if j not in inside]
        a, b = min(((a, b) for a in inside for b in outside), key=lambda bone: (varied[bone].round(9), mean[bone]))
        bones.append((a, b))
        inside.append(b)
    return bones


def _skeleton(image: Image.Image, place: np.ndarray, bones: list[tuple[int, int]]) -> Image.Image:
    image = image.copy()
    pen = ImageDraw.Draw(image)
    width = max(1, round(min(image.size) / 60))
    for number, (a, b) in enumerate(bones):
        if not np.isnan(place[[a, b]]).any():
            colour = colorsys.hsv_to_rgb(number / len(bones), 0.9, 1.0)
            ends = [tuple(place[a]), tuple(place[b])]
            pen.line(ends, fill=(0, 0, 0), width=width + 2)
            pen.line(ends, fill=tuple(round(255 * c) for c in colour), width=width)
    return image


def _edges(image: Image.Image, label: np.ndarray, scale: float) -> Image.Image:
    regions = np.asarray(Image.fromarray(label.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST))
    edge = np.zeros(regions.shape, dtype=bool)
    edge[1:] |= regions[1:] != regions[:-1]
    edge[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    pixels = np.array(image.convert("RGB"))
    pixels[edge] = (255, 40, 160)
    return Image.fromarray(pixels)


def _needle(image: Image.Image, turn: float) -> Image.Image:
    image = image.copy()
    pen = ImageDraw.Draw(image)
    width, height = image.size
    radius = min(width, height) / 6
    middle = (width - radius - 2, radius + 2)
    box = [middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius]
    pen.ellipse(box, fill=(255, 255, 255), outline=(40, 40, 40))
    angle = 2 * math.pi * turn
    tip = (middle[0] + radius * math.sin(angle), middle[1] - radius * math.cos(angle))
    pen.line([middle, tip], fill=(220, 40, 60), width=max(2, round(radius / 5)))
    return image


def label_colours(target: Target, code: torch.Tensor, landmarks: int = 64) -> np.ndarray:
    """Colours [n 3] in 0..1 that are near where labels are near.

    Classes go round the circle of hues by their number. Other labels are placed in a plane by their distances to some
    landmarks (the two leading principal components); hue is the direction there, saturation the distance from the middle.
    """
    if isinstance(target, Classes):
        names, place = np.unique(code.cpu().numpy(), return_inverse=True)
        hue, strength = place / max(len(names), 1), np.full(len(place), 0.8)
    else:
        some = torch.linspace(0, len(code) - 1, min(landmarks, len(code)), device=code.device).long()
        y = target.distance(code, code[some]).double().cpu().numpy()
        y = np.where(np.isnan(y), np.nanmean(y) if not np.isnan(y).all() else 0, y)
        y = y - y.mean(0)
        across, size, _ = np.linalg.svd(y, full_matrices=False)
        plane = np.zeros((len(y), 2))
        plane[:, : min(2, across.shape[1])] = (across * size)[:, :2]
        radius = np.hypot(plane[:, 0], plane[:, 1])
        hue = np.arctan2(plane[:, 1], plane[:, 0]) / (2 * math.pi) % 1
        strength = 0.15 + 0.85 * radius / max(np.quantile(radius, 0.95), 1e-12)
    return np.array([colorsys.hsv_to_rgb(h, min(s, 1), 0.85) for h, s in zip(hue, strength, strict=True)]).reshape(
        -1, 3
    )


def flattened(z: torch.Tensor) -> np.ndarray:
    """The two leading principal components [n 2] of embeddings."""
    z = z.double() - z.double().mean(0)
    across, size, _ = torch.linalg.svd(z, full_matrices=False)
    plane = torch.zeros(len(z), 2, dtype=torch.float64)
    plane[:, : across.shape[1]] = (across * size)[:, :2]
    return plane.numpy()
