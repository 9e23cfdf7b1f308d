"""Draws the inside of box rooms in perspective, with the layout: which of the five surfaces is seen where.

The layout looks through the furniture: a pixel's label is the surface behind it. Room, camera, colours,
patterns, light and furniture are random and independent of each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SURFACES = ("floor", "ceiling", "left wall", "centre wall", "right wall")
MAP = 32  # rows and columns of the label map
DRAWN = 1.5  # rays per pixel of the picture, in each direction

Array = NDArray[np.float32]
# Points are (x to the right, y up, z ahead) in metres, the camera at 0.
# A box is [2, 3]: its lowest and its highest corner.
NORMALS = np.array([[0, 1, 0], [0, -1, 0], [1, 0, 0], [0, 0, -1], [-1, 0, 0]], np.float32).T
PLANE_AXES = ((0, 2), (0, 2), (2, 1), (0, 1), (2, 1))  # the axes that run along each surface


def random_room(rng: np.random.Generator) -> Array:
    """The room [2, 3] around a camera that looks along z; its back end lies behind the camera."""
    width, height, depth = rng.uniform((2.6, 2.3, 2.2), (6.0, 3.2, 6.0))
    left, eye = width * rng.uniform(0.25, 0.75), height * rng.uniform(0.4, 0.65)
    return np.array([[-left, -eye, -1.0], [width - left, height - eye, depth]], np.float32)


def random_camera(rng: np.random.Generator) -> Array:
    """The camera [3, 3]: its axes right, up, forward as columns, the first two times tan(half the view)."""
    yaw, pitch, roll = rng.uniform((-0.5, -0.28, -0.04), (0.5, 0.22, 0.04))
    half = np.tan(np.deg2rad(rng.uniform(62, 88)) / 2)
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (about_y @ about_x @ about_z * (half, half, 1)).astype(np.float32)


def cast_rays(camera: Array, size: int) -> Array:
    """The directions [3, size * size] of the rays through the pixel centres, row by row from the top left."""
    across = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    u, v = np.meshgrid(across, -across)
    return camera @ np.stack([u.ravel(), v.ravel(), np.ones(size * size, np.float32)])


def hit_room(inverse: Array, room: Array) -> tuple[Array, NDArray[np.uint8]]:
    """How far the room's inside lies along each ray ([n], in ray lengths), and which surface is there ([n]).

    inverse: [3, n] one divided by the directions of the rays.
    """
    ahead = inverse > 0
    far = np.where(ahead, room[1][:, None], room[0][:, None]) * inverse
    depth = far.min(0)
    side = np.where(ahead[0], np.uint8(4), np.uint8(2))
    level = np.where(far[1] == depth, ahead[1].astype(np.uint8), side)
    return depth, np.where(far[2] == depth, np.uint8(3), level)


def hit_box(inverse: Array, box: Array) -> tuple[Array, Array]:
    """How far a box [2, 3] lies along each ray ([n], inf where it is missed), and its near planes [3, n].

    inverse: [3, n] one divided by the directions of the rays.
    """
    low, high = box[0][:, None] * inverse, box[1][:, None] * inverse
    near, far = np.minimum(low, high), np.maximum(low, high)
    enter = near.max(0)
    return np.where((enter < far.min(0)) & (enter > 0), enter, np.float32(np.inf)), near


def random_furniture(rng: np.random.Generator, room: Array) -> list[Array]:
    """Up to five boxes [2, 3] on the floor, some against a wall, none around the camera."""
    boxes = []
    for _ in range(rng.integers(0, 6)):
        size = rng.uniform((0.4, 0.3, 0.3), (1.6, 1.1, 0.9))
        if rng.random() < 0.2:
            size = rng.uniform((0.5, 1.4, 0.4), (1.1, 2.0, 0.6))  # a cupboard
        low = np.array([room[0, 0], room[0, 1], 1.2]) + rng.random(3) * (
            np.maximum(room[1] - (room[0, 0], room[0, 1], 1.2) - size, 0)
        )
        low[1] = room[0, 1]
        wall = rng.integers(4)
        if wall == 0:
            low[2] = room[1, 2] - size[2]
        elif wall < 3:
            size = size[[2, 1, 0]]
            low[0] = (room[0, 0], room[1, 0] - size[0])[wall - 1]
        boxes.append(np.array([low, np.minimum(low + size, room[1])], np.float32))
    return boxes


def random_colour(rng: np.random.Generator, strength: float) -> Array:
    """An RGB colour [3] in 0..1: a random grey moved towards a random hue by at most `strength`."""
    return (rng.uniform(0.45, 0.95) + strength * rng.uniform(-0.5, 0.5, 3)).clip(0.05, 1).astype(np.float32)


def paint(u: Array, v: Array, rng: np.random.Generator) -> Array:
    """The colour [3, n] of a surface at u, v [n] in metres: plain, stripes, tiles, checks, planks or dots."""
    main, other = random_colour(rng, 0.5), random_colour(rng, 0.5)
    other = main + (other - main) * np.float32(rng.uniform(0.2, 0.7))
    step, shift = rng.uniform(0.25, 0.8), rng.random()
    a, b = u / np.float32(step) + np.float32(shift), v / np.float32(step)
    a1, b1 = a - np.floor(a), b - np.floor(b)
    pattern = rng.integers(6)
    if pattern == 0:
        mask = a1 < 0.5
    elif pattern == 1:
        mask = (a1 < 0.06) | (b1 < 0.06)
    elif pattern == 2:
        mask = (a1 < 0.5) ^ (b1 < 0.5)
    elif pattern == 3:
        mask = (b1 < 0.05) | ((0.5 * a + 0.37 * np.floor(b)) % 1 < 0.025)
    elif pattern == 4:
        mask = (a1 - 0.5) ** 2 + (b1 - 0.5) ** 2 < 0.06
    else:
        mask = np.zeros(len(a), bool)
    return np.where(mask, other[:, None], main[:, None])


def hang(colour: Array, u: Array, v: Array, rng: np.random.Generator) -> None:
    """Puts up to two framed rectangles on a surface, in place: its colours [3, n] at u, v [n] in metres."""
    if len(u) == 0:
        return
    for _ in range(rng.integers(0, 3)):
        at, half = rng.integers(len(u)), rng.uniform(0.2, 0.7, 2).astype(np.float32)
        away = np.maximum(np.abs(u - u[at]) / half[0], np.abs(v - v[at]) / half[1])
        colour[:, away < 1] = random_colour(rng, 0.9)[:, None] * np.float32(0.4)
        colour[:, away < 0.85] = random_colour(rng, 0.9)[:, None]


def paint_surfaces(point: Array, surface: NDArray[np.uint8], room: Array, rng: np.random.Generator) -> Array:
    """The colours [3, n] of the surfaces [n] (ascending) at the points [3, n], darker along the edges."""
    colour = np.empty_like(point)
    ends = np.searchsorted(surface, np.arange(len(SURFACES) + 1, dtype=np.uint8))
    for label, (i, j) in enumerate(PLANE_AXES):
        here = slice(ends[label], ends[label + 1])
        u, v = point[i, here], point[j, here]
        colour[:, here] = paint(u, v, rng)
        if label != 1:
            hang(colour[:, here], u, v, rng)
    gap = np.minimum(point - room[0][:, None], room[1][:, None] - point)
    edge = gap.sum(0) - gap.max(0) - gap.min(0)  # to the nearest other surface: the median of the three
    colour *= 1 - np.float32(0.35) * np.exp(edge * np.float32(-4))
    return colour


def light(colour: Array, point: Array, normal: Array, room: Array, rng: np.random.Generator) -> Array:
    """The colours [3, n] under a lamp somewhere below the ceiling and tinted light from everywhere."""
    lamp = (room[0] + (room[1] - room[0]) * rng.uniform((0.2, 0.8, 0.4), (0.8, 0.95, 0.8))).astype(np.float32)
    way = lamp[:, None] - point
    squared = (way * way).sum(0) + np.float32(0.1)
    facing = ((normal * way).sum(0) / np.sqrt(squared)).clip(0)
    around, strength = rng.uniform((0.45, 0.3), (0.65, 0.6)).astype(np.float32)
    tint = (1 + 0.08 * rng.normal(0, 1, (3, 1))).astype(np.float32)
    return colour * (around + strength * facing / (1 + np.float32(0.05) * squared)) * tint


def draw_room(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture [size, size, 3] and its label map [32, 32], whose values are the indices of `SURFACES`."""
    room, camera = random_room(rng), random_camera(rng)
    across = int(DRAWN * size)
    rays = cast_rays(camera, across)
    depth, surface = hit_room(np.reciprocal(rays), room)
    order = np.argsort(surface, kind="stable")  # each surface's rays side by side
    rays, depth, surface = rays.take(order, 1), depth[order], surface[order]
    point, inverse = depth * rays, np.reciprocal(rays)
    colour, normal = paint_surfaces(point, surface, room, rng), NORMALS.take(surface, 1)
    for box in random_furniture(rng, room):
        near, planes = hit_box(inverse, box)
        seen = np.flatnonzero(near < depth)
        depth[seen], ray = near[seen], rays.take(seen, 1)
        point[:, seen] = at = near[seen] * ray
        face = (planes.take(seen, 1) == near[seen]).astype(np.float32)
        colour[:, seen] = paint(at[0] + at[2], at[1], rng) * random_colour(rng, 0.9)[:, None]
        normal[:, seen] = -np.sign(ray) * face
    pixels = np.empty((len(order), 3), np.uint8)
    pixels[order] = (np.float32(255) * light(colour, point, normal, room, rng)).clip(0, 255).T
    _, layout = hit_room(np.reciprocal(cast_rays(camera, MAP)), room)
    canvas = Image.fromarray(pixels.reshape(across, across, 3)).resize((size, size), Image.Resampling.BOX)
    return np.asarray(canvas), layout.reshape(MAP, MAP)
