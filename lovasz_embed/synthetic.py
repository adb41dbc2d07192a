"""Seeded street scenes and clips with stuff, things, void and crowd: labels of which every pixel is known.

A small world stands behind every picture. Things have a lateral position and a depth in units of the eye
height; a pinhole camera projects them, and a painter draws them from far to near. A clip moves the things and
the camera, and projects again. Things queue beside things of their class and often share their colour, so that
telling instances apart needs more than their look.

The same seed gives the same bits on every machine: random numbers come from PCG64 through uniform floats and
integers only, and the drawing uses nothing but +, -, x, / and comparisons, all of which IEEE 754 rounds exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lovasz_embed import _check
from lovasz_embed import _silhouettes as shapes

CLASSES: tuple[str, ...] = ("sky", "building", "road", "car", "person", "sign")
"""Names of the categories 0..5; the first three are stuff."""

THINGS: frozenset[int] = frozenset({3, 4, 5})
"""The categories whose pixels belong to instances."""

COLOURS: tuple[tuple[int, int, int], ...] = (
    (134, 180, 214),
    (150, 132, 118),
    (104, 100, 112),
    (46, 98, 196),
    (222, 78, 62),
    (236, 184, 40),
)
"""One RGB colour per category, for legends and overlays."""

VOID = 255
"""The category of pixels that nobody may be scored on."""

_BUILDING, _ROAD, _CAR, _PERSON, _SIGN = 1, 2, 3, 4, 5

_Window = tuple[slice, slice]

_FAR, _NEAR = 0.3, 0.85  # scales of the farthest and the nearest newly placed thing; 1 is the bottom edge
_VISIBLE_SHARE = 0.2  # a thing of which less can be seen is not drawn

_PAINTS = np.array(
    [
        [0.80, 0.16, 0.14],
        [0.14, 0.30, 0.66],
        [0.92, 0.92, 0.90],
        [0.20, 0.21, 0.24],
        [0.93, 0.72, 0.16],
        [0.16, 0.52, 0.36],
        [0.62, 0.65, 0.70],
        [0.86, 0.46, 0.18],
        [0.48, 0.26, 0.56],
    ],
    dtype=np.float32,
)
_WALLS = np.array(
    [[0.66, 0.50, 0.42], [0.72, 0.66, 0.56], [0.52, 0.50, 0.52], [0.60, 0.42, 0.36], [0.78, 0.74, 0.66]],
    dtype=np.float32,
)
_SKIES = np.array(  # zenith and horizon of a sunny, a hazy, an evening and a grey day
    [
        [[0.36, 0.60, 0.90], [0.80, 0.90, 0.97]],
        [[0.58, 0.72, 0.84], [0.88, 0.90, 0.90]],
        [[0.42, 0.44, 0.68], [0.97, 0.76, 0.58]],
        [[0.62, 0.65, 0.70], [0.80, 0.82, 0.84]],
    ],
    dtype=np.float32,
)


class Scene(NamedTuple):
    """One picture and its labels; `torch.utils.data.default_collate` stacks scenes into one with a batch axis.

    Attributes:
        image: (3, H, W) float32 in [0, 1], in steps of 1/255 so that an 8-bit file holds it exactly.
        semantic: (H, W) int64 categories, 255 = void.
        instance: (H, W) int32, 0 = none: stuff, void and crowd.
        crowd: (H, W) bool, true on groups of persons whose members are not told apart.
    """

    image: Tensor
    semantic: Tensor
    instance: Tensor
    crowd: Tensor


class StreetScenes(Dataset[Scene]):
    """A data set whose i-th item is `street_scene((seed, i))`, drawn when asked for.

    Args:
        length: number of scenes.
        seed: 0 or above; different seeds share no scene.
        size: height and width in pixels.
        max_things: the most things in a scene.

    Examples:
        >>> scenes = StreetScenes(1000, seed=1, size=(64, 96))
        >>> len(scenes), tuple(scenes[999].image.shape)
        (1000, (3, 64, 96))
    """

    def __init__(
        self, length: int, *, seed: int = 0, size: tuple[int, int] = (96, 96), max_things: int = 12
    ) -> None:
        _at_least("length", length, 0)
        _check_options((seed,), size, max_things)
        self.length, self.seed, self.size, self.max_things = length, seed, size, max_things

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if not -self.length <= index < self.length:
            raise IndexError(_check.message("index", f"be below {self.length}", index))
        key = (self.seed, index % self.length)
        return street_scene(key, size=self.size, max_things=self.max_things)

    def __repr__(self) -> str:
        options = f"seed={self.seed}, size={self.size}, max_things={self.max_things}"
        return f"{type(self).__name__}({self.length}, {options})"


def street_scene(
    seed: int | Sequence[int], *, size: tuple[int, int] = (96, 96), max_things: int = 12, min_area: int = 24
) -> Scene:
    """Draw a street with things that touch and hide each other.

    Args:
        seed: 0 or above, or several such numbers; `seed` alone means `(seed, 0)`.
        size: height and width in pixels, at least 32 each.
        max_things: the most things in the picture, 0 or above.
        min_area: a thing shows at least this many pixels, and a fifth of its outline inside the picture;
            a thing of which less can be seen is left out.

    Returns:
        The scene; its instances are numbered 1..K from far to near.

    Raises:
        ValueError: for a negative seed, a size below 32, a negative `max_things` or a `min_area` below 1.

    Notes:
        About half of the scenes hold void (the hood of the own car, a frame, an unclear heap), every fourth
        a crowd: `semantic` person, `instance` 0, `crowd` true. A thing seen on both sides of another one in
        front of it stays one instance.

    Examples:
        >>> scene = street_scene(7)
        >>> sorted(CLASSES[c] for c in scene.semantic.unique() if c != 255)
        ['building', 'car', 'person', 'road', 'sign', 'sky']
    """
    _check_options(seed, size, max_things, min_area)
    rng = _generator(seed)
    world = _World.draw(rng, size, max_things)
    return _paint(world, rng, size, min_area, renumber=True)


def street_clip(
    seed: int | Sequence[int],
    *,
    frames: int,
    size: tuple[int, int] = (96, 96),
    max_things: int = 12,
    min_area: int = 24,
) -> list[Scene]:
    """Film a street: the things move, the camera drives and looks around, ids stay with their things.

    Args:
        seed: 0 or above, or several such numbers.
        frames: number of pictures, 1 or above. Fewer frames of the same seed are the first ones of more.
        size: height and width in pixels, at least 32 each.
        max_things: the most things in a picture, 0 or above.
        min_area: as in `street_scene`, in every frame.

    Returns:
        One scene per frame. An id names one thing in all frames and is never given to another one. Things
        enter in the distance and at the sides; those that leave or are hidden may come back with their id.

    Raises:
        ValueError: as `street_scene`, and for `frames` below 1.

    Examples:
        >>> clip = street_clip(3, frames=2, size=(64, 128))
        >>> before, after = (set(frame.instance.unique().tolist()) for frame in clip)
        >>> len(before & after) > 3
        True
    """
    _check_options(seed, size, max_things, min_area)
    _at_least("frames", frames, 1)
    rng = _generator(seed)
    world = _World.draw(rng, size, max_things)
    clip = []
    for _ in range(frames):
        clip.append(_paint(world, rng, size, min_area))
        world.step(rng)
    return clip


# ---------------------------------------------------------------- the world: what there is and how it moves


@dataclass
class _Thing:
    """Something that stands on the road. `category` is VOID for a heap; `members` above 1 is a crowd."""

    ident: int
    category: int
    x: float  # lateral position of its foot point, in eye heights
    z: float  # depth; 1 is the bottom edge of the picture, its scale there is 1 / z
    height: float  # eye heights
    kind: int  # side or rear view of a car, plate of a sign
    facing: int  # +1 looks right, -1 left
    colours: NDArray[np.float32]  # (parts + 1, 3); row 0 is never drawn
    vx: float
    vz: float
    stride: float = 0.0
    members: int = 1

    @property
    def aspect(self) -> float:
        """Width over height."""
        if self.category == _CAR:
            return 1.15 if self.kind % 2 else 2.1
        return {_PERSON: 0.42 * (self.members + 1) / 2, _SIGN: 0.52}.get(self.category, 1.6)

    def outline(self, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return the map of the thing's parts."""
        if self.category == _CAR:
            return shapes.car_rear(u, v) if self.kind % 2 else shapes.car_side(u, v)
        if self.category == _SIGN:
            return shapes.sign(u, v, self.kind)
        if self.category == _PERSON:
            return shapes.crowd(u, v, self.members) if self.members > 1 else shapes.person(u, v, self.stride)
        return shapes.heap(u, v, self.kind)


@dataclass
class _World:
    """The street, its things and the camera."""

    aspect: float  # width over height of the picture
    horizon: float  # share of the picture's height
    things: list[_Thing]
    liveries: dict[int, NDArray[np.float32]]  # the few colours per category that look-alikes share
    houses: NDArray[np.float64]  # (N, 2): right edge, and height as a share of the picture's height
    walls: NDArray[np.float32]  # (N, 3)
    sky: NDArray[np.float32]  # (2, 3)
    asphalt: float
    light: NDArray[np.float32]  # (3,)
    lane: float
    hood: float  # height of the own car's hood as a share of the picture's; 0 = none
    frame: float  # width of a dark frame as a share of the picture's height; 0 = none
    speed: float
    sway: float
    time: int = 0
    travelled: float = 0.0
    next_ident: int = 1

    @classmethod
    def draw(cls, rng: np.random.Generator, size: tuple[int, int], max_things: int) -> _World:
        houses = np.stack([0.12 + 0.3 * rng.random(24), 0.10 + 0.24 * rng.random(24)], axis=1)
        houses[rng.random(24) < 0.12, 1] = 0.0  # a gap through which the sky reaches down to the road
        houses[:, 0] = np.cumsum(houses[:, 0])
        world = cls(
            aspect=size[1] / size[0],
            horizon=0.30 + 0.14 * rng.random(),
            things=[],
            liveries={c: _PAINTS[rng.integers(len(_PAINTS), size=2)] for c in sorted(THINGS)},
            houses=houses,
            walls=_WALLS[rng.integers(len(_WALLS), size=24)] * _between(rng, 0.75, 1.1, (24, 1)),
            sky=_SKIES[rng.integers(len(_SKIES))],
            asphalt=0.30 + 0.16 * rng.random(),
            light=_between(rng, 0.82, 1.08, 1) * _between(rng, 0.95, 1.05, 3),
            lane=_pick(rng, 0.5, 1.1),
            hood=_pick(rng, 0.06, 0.13) if rng.random() < 0.2 else 0.0,
            frame=_pick(rng, 0.01, 0.035) if rng.random() < 0.12 else 0.0,
            speed=_pick(rng, 0.0, 0.05),
            sway=_pick(rng, -0.4, 0.4),
        )
        for _ in range(int(rng.integers(max_things // 3, max_things + 1))):
            world._place(rng)
        if rng.random() < 0.25:
            world._place(rng, category=_PERSON, members=int(rng.integers(5, 10)))
        if rng.random() < 0.25:
            world._place(rng, category=VOID)
        return world

    def _place(self, rng: np.random.Generator, category: int | None = None, members: int = 1) -> None:
        """Put a new thing on the road: somewhere, or in a queue beside one that is there already."""
        queue = [thing for thing in self.things if thing.category != VOID and thing.members == 1]
        scale = _FAR + (_NEAR - _FAR) * rng.random() * rng.random()
        x = _pick(rng, -0.55, 0.55) * self.aspect / (scale * (1 - self.horizon))
        if category is None and queue and rng.random() < 0.55:
            beside = queue[int(rng.integers(len(queue)))]
            category = beside.category if rng.random() < 0.7 else None
            side = 1 if rng.random() < 0.5 else -1
            x = beside.x + side * beside.height * _pick(rng, 0.35, 1.0)
            scale = min(max(_FAR, (1 / beside.z) * _pick(rng, 0.88, 1.12)), _NEAR)
        if members > 1:
            scale = _FAR
        self._add(rng, category, x, 1 / scale, members)

    def _add(
        self, rng: np.random.Generator, category: int | None, x: float, z: float, members: int = 1
    ) -> None:
        if category is None:
            category = int((_CAR, _CAR, _PERSON, _PERSON, _SIGN)[rng.integers(5)])
        facing = 1 if rng.random() < 0.5 else -1
        kind = int(rng.integers(4))
        slow, fast = {_CAR: (0.02, 0.07), _PERSON: (0.005, 0.025)}.get(category, (0.0, 0.0))
        pace = 0.0 if members > 1 or rng.random() < 0.25 else _pick(rng, slow, fast)
        along = category == _CAR and kind % 2 == 1  # a car seen from behind drives along the road
        thing = _Thing(
            ident=0 if category == VOID or members > 1 else self.next_ident,
            category=category,
            x=x,
            z=z,
            height={_CAR: 0.58, _PERSON: 0.74, _SIGN: 0.95}.get(category, 0.5) * _pick(rng, 0.88, 1.12),
            kind=kind,
            facing=facing,
            colours=_colours(rng, category, self.liveries.get(category, _PAINTS), members),
            vx=0.0 if along else facing * pace,
            vz=pace * 0.5 if along else 0.0,
            stride=_pick(rng, -1.0, 1.0),
            members=members,
        )
        self.next_ident += thing.ident > 0
        self.things.append(thing)

    def step(self, rng: np.random.Generator) -> None:
        """Let one frame's time pass."""
        self.time += 1
        self.travelled += self.speed
        limit = 0.75 * self.aspect / (1 - self.horizon)
        for thing in list(self.things):
            thing.x += thing.vx
            thing.z += thing.vz - self.speed
            thing.stride = (thing.stride + 1.25 + 8 * abs(thing.vx)) % 2 - 1 if thing.vx else thing.stride
            if thing.x * thing.vx > 0 and abs(thing.x) > limit * thing.z:
                thing.vx, thing.facing = -thing.vx, -thing.facing  # out of sight it turns round
            if (
                not 0.95 < thing.z < 1.25 / _FAR
            ):  # passed by, or lost in the distance: another one appears there
                self.things.remove(thing)
                category = thing.category if thing.members > 1 or thing.category == VOID else None
                z = _pick(rng, 1.0, 1.1) / _FAR
                self._add(rng, category, _pick(rng, -0.6, 0.6) * limit * z, z, thing.members)

    def look(self) -> float:
        """Return how far the camera looks aside, as a share of the picture's height."""
        return self.sway * self.aspect * _wave(self.time / 24)


# ---------------------------------------------------------------- the painter: from the world to pixels


def _paint(
    world: _World, rng: np.random.Generator, size: tuple[int, int], min_area: int, *, renumber: bool = False
) -> Scene:
    image, semantic = _backdrop(world, size)
    cover = _own_car(world, size)
    patches = [_patch(world, thing, size) for thing in sorted(world.things, key=_depth)]
    owner = np.zeros(size, dtype=np.int16)
    for k, patch in enumerate(patches, start=1):
        owner[patch.where][patch.parts > 0] = k
    owner[cover > 0] = 0
    seen = np.bincount(owner.ravel(), minlength=len(patches) + 1)
    instance = np.zeros(size, dtype=np.int32)
    crowd = np.zeros(size, dtype=bool)
    drawn = 0
    for k, patch in enumerate(patches, start=1):
        inside = patch.parts > 0
        if seen[k] < max(min_area, _VISIBLE_SHARE * np.count_nonzero(inside)):
            continue
        thing = patch.thing
        drawn += thing.ident > 0
        image[patch.shadow] *= patch.shade
        image[patch.where][inside] = thing.colours[patch.parts[inside]]
        semantic[patch.where][inside] = thing.category
        instance[patch.where][inside] = (drawn if renumber else thing.ident) if thing.ident else 0
        crowd[patch.where][inside] = thing.members > 1
    if world.hood or world.frame:
        hidden = cover > 0
        image[hidden] = _COVERS[cover[hidden]]
        semantic[hidden], instance[hidden], crowd[hidden] = VOID, 0, False
    return _expose(image * world.light, semantic, instance, crowd, rng)


def _expose(
    image: NDArray[np.float32],
    semantic: NDArray[np.int64],
    instance: NDArray[np.int32],
    crowd: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Scene:
    """Add the noise of a sensor and round to eight bits."""
    image += 0.08 * (rng.random(image.shape, dtype=np.float32) - 0.5)
    levels = np.rint(np.clip(image, 0, 1) * 255) / np.float32(255)
    planes = np.ascontiguousarray(levels.transpose(2, 0, 1))
    return Scene(
        torch.from_numpy(planes),
        torch.from_numpy(semantic),
        torch.from_numpy(instance),
        torch.from_numpy(crowd),
    )


def _depth(thing: _Thing) -> tuple[float, int]:
    return -thing.z, thing.ident


def _backdrop(world: _World, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw sky, buildings and road."""
    height, width = size
    edge = round(world.horizon * height)  # the first row of the road
    y = ((np.arange(height) + 0.5) / height)[:, None]
    x = ((np.arange(width) + 0.5) / height)[None, :] - world.aspect / 2 + world.look()
    image = np.empty((height, width, 3), dtype=np.float32)
    semantic = np.zeros(size, dtype=np.int64)

    image[:edge] = world.sky[0] + (world.sky[1] - world.sky[0]) * (y[:edge, :, None] / world.horizon)
    along = (x[0] + 2.0) % world.houses[-1, 0]  # the row of houses repeats itself
    house = np.searchsorted(world.houses[:, 0], along, side="right")
    roof = world.horizon - world.houses[house, 1]
    above = y[:edge] - roof
    wall = above > 0
    pane_y, pane_x = (above * 13) % 1, ((world.houses[house, 0] - along) * 15) % 1
    pane = wall & (pane_y > 0.4) & (pane_y < 0.8) & (pane_x > 0.3) & (pane_x < 0.75)
    shade = np.where(pane, 0.55, np.where(above < 0.012, 0.8, 1.0)).astype(np.float32)
    image[:edge] = np.where(wall[..., None], world.walls[house] * shade[..., None], image[:edge])
    semantic[:edge][wall] = _BUILDING

    near = (y[edge:] - world.horizon) / (1 - world.horizon)  # the scale of what stands in this row
    near = np.maximum(near, 1e-3)
    lateral = np.abs(x / (near * (1 - world.horizon)))
    grey = world.asphalt * (0.85 + 0.3 * near) + np.where(lateral > 2.6, 0.14, 0.0)
    dash = ((1 / near + world.travelled) * 1.6) % 1 < 0.55
    grey = np.where((np.abs(lateral - world.lane) < 0.035) & dash, 0.86, grey)
    image[edge:] = grey[..., None]
    semantic[edge:] = _ROAD
    return image, semantic


def _own_car(world: _World, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return what hides the picture's rim: 1 = frame, 2 = the hood of the own car, 3 = its shine; 0 = nothing."""
    height, width = size
    cover = np.zeros(size, dtype=np.uint8)
    if world.hood:
        y = ((np.arange(height) + 0.5) / height)[:, None]
        x = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :]
        rise = world.hood * (1 - 0.6 * x * x * x * x) - (1 - y)
        cover[rise > 0] = 2
        cover[(rise > 0.012) & (rise < 0.03)] = 3
    if world.frame:
        rim = max(1, round(world.frame * height))
        cover[:rim] = cover[-rim:] = 1
        cover[:, :rim] = cover[:, -rim:] = 1
    return cover


_COVERS = np.array([[0, 0, 0], [0.03, 0.03, 0.04], [0.12, 0.13, 0.16], [0.45, 0.47, 0.52]], dtype=np.float32)


@dataclass
class _Patch:
    """What one thing covers: a rectangle of the picture, its part numbers (0 = nothing), and its shadow."""

    thing: _Thing
    where: _Window
    parts: NDArray[np.uint8]
    shadow: _Window
    shade: NDArray[np.float32]


def _patch(world: _World, thing: _Thing, size: tuple[int, int]) -> _Patch:
    """Project a thing into the picture; outside of it nothing is left."""
    rows, columns = size
    ground = (1 - world.horizon) * rows  # pixels from the horizon to the bottom edge
    scale = ground / thing.z
    foot = world.horizon * rows + scale
    middle = columns / 2 + thing.x * scale - world.look() * rows
    height = thing.height * scale
    width = thing.aspect * height
    where, u, v = _box(foot - height, middle - width / 2, height, width, size)
    parts = thing.outline(u if thing.facing > 0 else 1 - u, v)
    depth = 0.1 * height
    shadow, su, sv = _box(foot - 0.7 * depth, middle - 0.6 * width, depth, 1.2 * width, size)
    dark = (2 * su - 1) * (2 * su - 1) + (2 * sv - 1) * (2 * sv - 1) < 1
    return _Patch(thing, where, parts, shadow, np.where(dark, 0.62, 1.0).astype(np.float32)[..., None])


def _box(
    top: float, left: float, height: float, width: float, size: tuple[int, int]
) -> tuple[_Window, NDArray[np.float64], NDArray[np.float64]]:
    """Return the pixels whose centres a box holds, and their coordinates in it: u (1, w) and v (h, 1)."""
    y0, y1 = (min(max(math.ceil(edge - 0.5), 0), size[0]) for edge in (top, top + height))
    x0, x1 = (min(max(math.ceil(edge - 0.5), 0), size[1]) for edge in (left, left + width))
    v = ((np.arange(y0, y1) + 0.5 - top) / height)[:, None]
    u = ((np.arange(x0, x1) + 0.5 - left) / width)[None, :]
    return (slice(y0, y1), slice(x0, x1)), u, v


# ---------------------------------------------------------------- small helpers


def _colours(
    rng: np.random.Generator, category: int, liveries: NDArray[np.float32], members: int
) -> NDArray[np.float32]:
    """Choose the colours of a thing's parts: every other thing looks like others of its class."""
    paints = liveries if rng.random() < 0.6 else _PAINTS
    paint = paints[int(rng.integers(len(paints)))]
    if members > 1:
        shirts = _PAINTS[rng.integers(len(_PAINTS), size=members)]
        people = [shapes.person_colours(rng, shirt)[1:] for shirt in shirts]
        return np.concatenate([np.zeros((1, 3), np.float32), *people])
    if category == _PERSON:
        return shapes.person_colours(rng, paint)
    return {_CAR: shapes.car_colours, _SIGN: shapes.sign_colours}.get(category, shapes.heap_colours)(paint)


def _generator(seed: int | Sequence[int]) -> np.random.Generator:
    key = [seed, 0] if isinstance(seed, int) else list(seed)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _pick(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _between(
    rng: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...]
) -> NDArray[np.float32]:
    return (low + (high - low) * rng.random(shape)).astype(np.float32)


def _wave(t: float) -> float:
    """Swing between -1 and 1 with period 2, like a sine but of parabolas."""
    t = t % 2
    return 4 * t * (1 - t) if t < 1 else -4 * (t - 1) * (2 - t)


def _check_options(
    seed: int | Sequence[int], size: tuple[int, int], max_things: int, min_area: int = 24
) -> None:
    for number in [seed] if isinstance(seed, int) else seed:
        _at_least("seed", number, 0)
    if len(size) != 2 or min(size) < 32:
        raise ValueError(_check.message("size", "be a height and a width of 32 pixels or more", size))
    _at_least("max_things", max_things, 0)
    _at_least("min_area", min_area, 1)


def _at_least(argument: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(_check.message(argument, f"be {least} or above", value))
