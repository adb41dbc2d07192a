"""From the world to pixels: a pinhole camera, and a painter who draws from far to near."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lovasz_embed.synthetic._silhouettes import Floats, Parts
from lovasz_embed.synthetic._world import BUILDING, PAVEMENT, ROAD, SKY, VOID, Thing, World

_VISIBLE_SHARE = 0.2
_NOISE = 0.06
_COVERS = np.array([[0, 0, 0], [0.03, 0.03, 0.04], [0.12, 0.13, 0.16], [0.45, 0.47, 0.52]], dtype=np.float32)

Window = tuple[slice, slice]


class Painting(NamedTuple):
    """A picture (H, W, 3) in [0, 1] and its labels (H, W)."""

    image: NDArray[np.float32]
    semantic: NDArray[np.int64]
    instance: NDArray[np.int32]
    crowd: NDArray[np.bool_]


class _Figure(NamedTuple):
    """A thing in the picture: the rectangle it lies in, its parts there (0 = none), and its shadow."""

    thing: Thing
    where: Window
    parts: Parts
    shadow: Window
    shade: NDArray[np.float32]


def paint(world: World, size: tuple[int, int], min_area: int, *, renumber: bool) -> Painting:
    """Draw the world as it is now.

    Args:
        world: Its random numbers are used for the noise of the sensor.
        size: Height and width in pixels.
        min_area: A thing shows at least this many pixels, and a fifth of its outline, or is left out.
        renumber: Whether instances are numbered 1..K from far to near instead of by the things' own ids.
    """
    image, semantic = _backdrop(world, size)
    instance, crowd = np.zeros(size, dtype=np.int32), np.zeros(size, dtype=bool)
    cover = _cover(world, size)
    figures = [_project(world, thing, size) for thing in sorted(world.things, key=lambda t: (-t.z, t.ident))]
    # Leaving out a thing only uncovers others, so one count of what is seen settles who is drawn.
    seen = _visible_areas(figures, cover)
    drawn = 0
    for figure, area in zip(figures, seen, strict=True):
        inside, thing = figure.parts > 0, figure.thing
        if area < max(min_area, _VISIBLE_SHARE * np.count_nonzero(inside)):
            continue
        drawn += thing.ident > 0
        image[figure.shadow] *= figure.shade
        image[figure.where][inside] = thing.colours[figure.parts[inside]]
        semantic[figure.where][inside] = thing.category
        instance[figure.where][inside] = drawn if renumber and thing.ident else thing.ident
        crowd[figure.where][inside] = thing.members > 1
    hidden = cover > 0
    image[hidden] = _COVERS[cover[hidden]]
    semantic[hidden], instance[hidden], crowd[hidden] = VOID, 0, False
    return Painting(_expose(image * world.light, world.rng), semantic, instance, crowd)


def _visible_areas(figures: list[_Figure], cover: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the pixels that each figure shows; the later ones lie in front."""
    owner = np.zeros(cover.shape, dtype=np.int32)
    for number, figure in enumerate(figures, start=1):
        owner[figure.where][figure.parts > 0] = number
    owner[cover > 0] = 0
    return np.bincount(owner.ravel(), minlength=len(figures) + 1)[1:]


def _expose(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Add noise and round to eight bits."""
    image += _NOISE * (rng.random(image.shape, dtype=np.float32) - 0.5)
    levels: NDArray[np.float32] = np.rint(np.clip(image, 0, 1) * 255)
    return levels / np.float32(255)


def _backdrop(world: World, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw sky, buildings and road. Coordinates are in picture heights, x from the middle of the street."""
    height, width = size
    edge = round(world.horizon * height)  # the first row of the road
    y = ((np.arange(height) + 0.5) / height)[:, None]
    x = ((np.arange(width) + 0.5) / height)[None, :] - world.aspect / 2 + world.yaw
    image = np.empty((height, width, 3), dtype=np.float32)
    semantic = np.full(size, SKY, dtype=np.int64)

    sky = world.sky[0] + (world.sky[1] - world.sky[0]) * (y[:edge, :, None] / world.horizon)
    along = (x[0] + 2.0) % world.houses[-1, 0]  # the row of houses repeats itself
    house = np.searchsorted(world.houses[:, 0], along, side="right")
    below_roof = y[:edge] - (world.horizon - world.houses[house, 1])
    wall = below_roof > 0
    pane_y, pane_x = (below_roof * 13) % 1, ((world.houses[house, 0] - along) * 15) % 1
    pane = (pane_y > 0.4) & (pane_y < 0.8) & (pane_x > 0.3) & (pane_x < 0.75)
    shade = np.where(pane, 0.55, np.where(below_roof < 0.012, 0.8, 1.0))[..., None]
    image[:edge] = np.where(wall[..., None], world.walls[house] * shade, sky)
    semantic[:edge][wall] = BUILDING

    scale = np.maximum((y[edge:] - world.horizon) / (1 - world.horizon), 1e-3)  # of what stands in this row
    aside = np.abs(x / (scale * (1 - world.horizon)))
    grey = world.asphalt * (0.85 + 0.3 * scale) + np.where(aside > world.street.kerb, 0.14, 0.0)
    dash = ((1 / scale + world.travelled) * 1.6) % 1 < 0.55
    grey = np.where((np.abs(aside - world.lane) < 0.035) & dash, 0.86, grey)
    image[edge:] = grey[..., None]
    semantic[edge:] = ROAD
    if world.street.pavement:
        semantic[edge:][aside > world.street.kerb] = PAVEMENT
    return image, semantic


def _cover(world: World, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return what hides the rim: 1 = frame, 2 = hood of the own car, 3 = its shine; 0 = nothing."""
    height, width = size
    cover = np.zeros(size, dtype=np.uint8)
    if world.hood:
        y = ((np.arange(height) + 0.5) / height)[:, None]
        x = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :]
        depth = world.hood * (1 - 0.6 * x * x * x * x) - (1 - y)
        cover[depth > 0] = 2
        cover[(depth > 0.012) & (depth < 0.03)] = 3
    if world.frame:
        rim = max(1, round(world.frame * height))
        cover[:rim] = cover[-rim:] = 1
        cover[:, :rim] = cover[:, -rim:] = 1
    return cover


def _project(world: World, thing: Thing, size: tuple[int, int]) -> _Figure:
    """Return the thing as the camera sees it; out of view its rectangle is empty."""
    rows, columns = size
    scale = (1 - world.horizon) * rows / thing.z  # pixels per eye height
    foot = world.horizon * rows + scale
    middle = columns / 2 + thing.x * scale - world.yaw * rows
    height = thing.height * scale
    width = thing.aspect * height
    where, u, v = _box(foot - height, middle - width / 2, height, width, size)
    parts = thing.outline(u if thing.facing > 0 else 1 - u, v)
    flat, cast = 0.1 * height, thing.shadow * width
    shadow, su, sv = _box(foot - 0.7 * flat, middle - cast / 2, flat, cast, size)
    dark = (2 * su - 1) * (2 * su - 1) + (2 * sv - 1) * (2 * sv - 1) < 1
    return _Figure(thing, where, parts, shadow, np.where(dark, 0.62, 1.0).astype(np.float32)[..., None])


def _box(top: float, left: float, height: float, width: float, size: tuple[int, int]) -> tuple[Window, Floats, Floats]:
    """Return the pixels whose centres lie in a box, and their coordinates there: u (1, w) and v (h, 1)."""
    y0, y1 = (min(max(math.ceil(edge - 0.5), 0), size[0]) for edge in (top, top + height))
    x0, x1 = (min(max(math.ceil(edge - 0.5), 0), size[1]) for edge in (left, left + width))
    v = (np.arange(y0, y1, dtype=np.float64) + 0.5 - top) / height
    u = (np.arange(x0, x1, dtype=np.float64) + 0.5 - left) / width
    return (slice(y0, y1), slice(x0, x1)), u[None, :], v[:, None]
