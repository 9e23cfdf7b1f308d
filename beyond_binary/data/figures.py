"""Draws articulated figures: people seen from the front in continuous poses, with the places of their joints.

The pose is a random blend of a few movements, each at a random phase. Everything else (proportions, clothes,
place, size, background, clutter) is drawn independently of it, so only the arrangement of the limbs tells the
pose. The person's left limbs (on the right of the picture) are darker than the right ones.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

JOINTS = (
    "right ankle",
    "right knee",
    "right hip",
    "left hip",
    "left knee",
    "left ankle",
    "right wrist",
    "right elbow",
    "right shoulder",
    "left shoulder",
    "left elbow",
    "left wrist",
    "neck",
    "head top",
)
"""The order of the Leeds Sports Pose data; left and right are the person's."""

Array = NDArray[np.float64]
Colour = tuple[int, int, int]
Range = tuple[float, float]
SKINS = ((255, 219, 190), (236, 188, 150), (208, 150, 108), (160, 108, 72), (112, 74, 50))
HAIRS = ((40, 30, 26), (92, 58, 34), (178, 124, 62), (224, 190, 116), (150, 150, 156), (160, 66, 40))
DRAWN = 3  # canvas pixels per pixel of the picture, in each direction


# A pose is [10, 2] radians. Rows: trunk, head, upper arm, forearm, thigh, shin of the right, then the left.
# Columns: sideways (limbs from straight down, outwards; trunk and head from straight up), out of the picture.


def march(t: float) -> Array:
    """One knee and the opposite arm lifted towards the viewer, in turn."""
    right, left = (0.5 + 0.5 * np.sin(t)) ** 2, (0.5 - 0.5 * np.sin(t)) ** 2
    sides = [
        [(0.25, 0.7 * b), (0.1 + 0.3 * b, 1.2 * b), (0.08 + 0.2 * a, 1.25 * a), (0.03, -0.5 * a)]
        for a, b in ((right, left), (left, right))
    ]
    return pose((0.12 * (left - right), 0), *sides)


def wave(t: float) -> Array:
    """The right arm waves above the shoulder, the left hand rests on the hip."""
    right = [(1.75 + 0.35 * np.sin(t), 0), (2.75 + 0.75 * np.sin(t), 0), (0.12, 0), (0.1, 0)]
    return pose((0.08, 0), right, [(0.75, 0), (-0.55, 0.2), (0.15, 0), (0.1, 0)])


def jump(t: float) -> Array:
    """Arms and legs spread and close, as in a jumping jack."""
    k = 0.5 - 0.5 * np.cos(t)
    side = [(0.3 + 2.1 * k, 0), (0.2 + 2.5 * k, 0), (0.05 + 0.55 * k, 0), (0.03 + 0.6 * k, 0)]
    return pose((0, 0), side, side)


def squat(t: float) -> Array:
    """The hips sink, the knees go out and forwards, the arms stretch sideways."""
    k = 0.5 - 0.5 * np.cos(t)
    arm = [(0.2 + 1.3 * k, 0.3 * k), (0.1 + 1.4 * k, 0.3 * k)]
    leg = [(0.12 + 0.75 * k, 0.95 * k), (0.06 - 0.3 * k, -0.5 * k)]
    return pose((0, 0.5 * k), arm + leg, arm + leg)


def lean(t: float) -> Array:
    """The trunk leans to the left with the right arm bent over the head."""
    k = 0.5 - 0.5 * np.cos(t)
    right = [(0.2 + 2.3 * k, 0), (0.1 + 3.4 * k, 0), (0.1 + 0.15 * k, 0), (0.1 + 0.15 * k, 0)]
    return pose((0.6 * k, 0), right, [(0.3 + 0.3 * k, 0), (0.1 - 0.7 * k, 0), (0.12, 0), (0.1, 0)])


def lunge(t: float) -> Array:
    """A wide step to the right with a bent knee, the arms raised to the sides by different amounts."""
    k = 0.5 - 0.5 * np.cos(t)
    right = [(0.3 + 1.2 * k, 0), (0.2 + 1.8 * k, 0), (0.1 + 0.95 * k, 0.3 * k), (0.08 - 0.15 * k, -0.2 * k)]
    left = [(0.3 + 0.7 * k, 0), (0.2 + 0.5 * k, 0), (0.1 + 0.6 * k, 0), (0.06 + 0.7 * k, 0)]
    return pose((-0.2 * k, 0), right, left)


MOVEMENTS: tuple[Callable[[float], Array], ...] = (march, wave, jump, squat, lean, lunge)


def pose(trunk: tuple[float, float], right: list[tuple], left: list[tuple]) -> Array:
    """The pose [10, 2] of a trunk and two sides; the head follows half of the trunk's lean."""
    return np.array([trunk, (0.5 * trunk[0], 0.0), *right, *left])


def random_pose(rng: np.random.Generator) -> Array:
    """A pose [10, 2]: a blend of all movements at random phases, often near one of them, mirrored or not."""
    blend = rng.dirichlet(np.full(len(MOVEMENTS), 0.2))
    angles = np.einsum(
        "m,mij->ij",
        blend,
        [move(phase) for move, phase in zip(MOVEMENTS, rng.uniform(0, 2 * np.pi, len(MOVEMENTS)), strict=True)],
    )
    angles += rng.normal(0, 0.08, angles.shape)
    if rng.random() < 0.5:
        angles = angles[[0, 1, 6, 7, 8, 9, 2, 3, 4, 5]]
        angles[:2, 0] *= -1
    return angles


def random_body(rng: np.random.Generator) -> Array:
    """Lengths [8] in metres: trunk, head, upper arm, forearm, thigh, shin, half of shoulders and of hips."""
    usual = np.array([0.52, 0.29, 0.29, 0.27, 0.42, 0.42, 0.17, 0.095])
    return usual * rng.uniform(0.9, 1.1, 8)


def place_joints(angles: Array, body: Array) -> Array:
    """The joints [14, 2] of a pose [10, 2] and a body's lengths [8]: x rightwards, y down, hip midpoint at 0.

    Seen from far away: what points out of the picture by an angle is shortened by its cosine.
    """
    x, y = np.sin(angles[:, 0]) * np.cos(angles[:, 1]), np.cos(angles[:, 0]) * np.cos(angles[:, 1])
    trunk, head, *limbs, shoulder, hip = body
    neck = trunk * np.array([x[0], -y[0]])
    top = neck + head * np.array([x[1], -y[1]])
    across = np.array([np.cos(angles[0, 0]), np.sin(angles[0, 0])])
    chains = []
    for first, sign in ((2, -1), (6, 1)):  # the person's right is on the left of the picture
        step = np.array(limbs)[:, None] * np.stack([sign * x[first : first + 4], y[first : first + 4]], 1)
        start = neck + 0.04 * np.array([0, 1]) + sign * shoulder * across
        root = np.array([sign * hip, 0.0])
        chains.append(
            (start, start + step[0], start + step[0] + step[1], root, root + step[2], root + step[2] + step[3])
        )
    (rs, re, rw, rh, rk, ra), (ls, le, lw, lh, lk, la) = chains
    return np.array([ra, rk, rh, lh, lk, la, rw, re, rs, ls, le, lw, neck, top])


def fit(joints: Array, rng: np.random.Generator, margin: float = 0.06) -> tuple[Array, float]:
    """The joints [14, 2] moved to a random place inside the picture (0..1), and the size of a metre there.

    A standing person is about 0.7 to 0.8 of the picture high; a pose that would not fit is drawn smaller.
    """
    low, high = joints.min(0), joints.max(0)
    scale = min(rng.uniform(0.42, 0.48), float((1 - 2 * margin) / (high - low).max()))
    room = 1 - 2 * margin - scale * (high - low)
    return scale * (joints - low) + margin + room * rng.uniform(0.25, 0.75, 2), scale


def random_colour(rng: np.random.Generator, saturation: Range, value: Range) -> Colour:
    """An RGB colour of any hue with saturation and value from the given ranges in 0..1."""
    r, g, b = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return round(255 * r), round(255 * g), round(255 * b)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour with its brightness multiplied by `factor`."""
    return tuple(min(255, round(factor * c)) for c in colour)  # type: ignore[return-value]


def draw_background(rng: np.random.Generator, size: int) -> Image.Image:
    """A canvas of `size` pixels: a gradient between four colours, perhaps a floor, a few random shapes."""
    colour = random_colour(rng, (0.0, 0.25), (0.6, 1.0))
    corners = np.clip(np.array(colour) + rng.normal(0, 14, (2, 2, 3)), 0, 255).astype(np.uint8)
    canvas = Image.fromarray(corners).resize((size, size), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)
    if rng.random() < 0.6:
        floor = random_colour(rng, (0.0, 0.25), (0.55, 0.95))
        draw.rectangle((0, size * rng.uniform(0.6, 0.9), size, size), floor)
    for _ in range(rng.integers(0, 5)):
        centre, half = rng.random(2), rng.uniform(0.03, 0.22, 2)
        box = tuple(size * np.concatenate([centre - half, centre + half]))
        fill = random_colour(rng, (0.0, 0.3), (0.5, 1.0))
        kind = rng.integers(3)
        if kind == 2:
            draw.line(box, fill, int(size * rng.uniform(0.01, 0.04)))
        else:
            (draw.rectangle, draw.ellipse)[kind](box, fill)
    return canvas


def draw_limb(
    draw: ImageDraw.ImageDraw, a: Array, b: Array, ra: float, rb: float, fill: Colour, edge: float = 0
) -> None:
    """A limb from a to b, with radii ra and rb at its ends and a dark outline `edge` wide (all in pixels)."""
    (ax, ay), (bx, by) = a.tolist(), b.tolist()
    length = max(math.hypot(bx - ax, by - ay), 1e-6)
    nx, ny = (ay - by) / length, (bx - ax) / length
    for grow, colour in ((edge, shade(fill, 0.5)), (0.0, fill))[edge == 0 :]:
        r, s = ra + grow, rb + grow
        draw.polygon(
            (ax + r * nx, ay + r * ny, bx + s * nx, by + s * ny, bx - s * nx, by - s * ny, ax - r * nx, ay - r * ny),
            colour,
        )
        draw.ellipse((ax - r, ay - r, ax + r, ay + r), colour)
        draw.ellipse((bx - s, by - s, bx + s, by + s), colour)


def draw_person(canvas: Image.Image, joints: Array, metre: float, rng: np.random.Generator) -> None:
    """Draws a person with random clothes and thickness; joints [14, 2] and `metre` are in canvas pixels."""
    draw = ImageDraw.Draw(canvas)
    skin, hair = SKINS[rng.integers(len(SKINS))], HAIRS[rng.integers(len(HAIRS))]
    shirt, trousers, shoes = (random_colour(rng, (0.55, 1.0), (0.45, 0.9)) for _ in range(3))
    sleeve, leg = (shirt if rng.random() < 0.5 else skin), (trousers if rng.random() < 0.65 else skin)
    r = metre * rng.uniform(0.85, 1.2)
    edge, left = 0.012 * metre, 0.6
    ra, rk, rh, lh, lk, la, rw, re, rs, ls, le, lw, neck, top = joints
    for ankle, knee, hip, dark in ((la, lk, lh, left), (ra, rk, rh, 1.0)):
        toes = ankle + 0.04 * metre * np.sign(ankle - (lh + rh) / 2) * (1, 0)
        draw_limb(draw, ankle, toes, 0.055 * r, 0.05 * r, shade(shoes, dark), edge)
        draw_limb(draw, knee, ankle, 0.06 * r, 0.045 * r, shade(leg, dark), edge)
        draw_limb(draw, hip, knee, 0.085 * r, 0.065 * r, shade(trousers, dark), edge)
    outline = [tuple(p) for p in (rs, ls, lh, rh)]
    draw.polygon(outline, shirt)
    draw.line([*outline, outline[0]], shirt, max(1, int(0.12 * r)), joint="curve")
    draw_limb(draw, rh, lh, 0.075 * r, 0.075 * r, shade(trousers, 0.85))
    draw_limb(draw, neck, neck + 0.3 * (top - neck), 0.055 * r, 0.055 * r, shade(skin, 0.9))
    face, crown = neck + 0.5 * (top - neck), neck + 0.72 * (top - neck)
    draw_limb(draw, crown, top - 0.2 * (top - crown), 0.108 * metre, 0.105 * metre, hair, edge)
    draw_limb(draw, face, crown, 0.085 * metre, 0.092 * metre, skin)
    for shoulder, elbow, wrist, dark in ((ls, le, lw, left), (rs, re, rw, 1.0)):
        draw_limb(draw, elbow, wrist, 0.045 * r, 0.035 * r, shade(sleeve, dark), edge)
        draw_limb(draw, wrist, wrist + 0.1 * (wrist - elbow), 0.042 * r, 0.042 * r, shade(skin, dark), edge)
        draw_limb(draw, shoulder, elbow, 0.065 * r, 0.05 * r, shade(shirt, 0.93 * dark), edge)


def draw_figure(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], Array]:
    """One picture [size, size, 3] and its joints [14, 2]: (x, y) from the top left, in picture sizes."""
    angles, body = random_pose(rng), random_body(rng)
    joints, scale = fit(place_joints(angles, body), rng)
    canvas = draw_background(rng, DRAWN * size)
    draw_person(canvas, joints * DRAWN * size, scale * DRAWN * size, rng)
    return np.asarray(canvas.reduce(DRAWN)), joints
