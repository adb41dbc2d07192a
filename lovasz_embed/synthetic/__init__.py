"""Seeded street scenes and clips with stuff, things, void and crowd: every label is known exactly.

A small world stands behind every picture. Things have a lateral position and a depth; a pinhole camera
projects them, and a painter draws them from far to near, so that they touch and hide each other. A clip moves
the things and the camera and projects again. Things queue beside things of their class and often share their
colours: telling instances apart takes more than their look.

The same seed gives the same bits on every machine: random numbers come from PCG64 through uniform floats and
integers only, and the drawing uses nothing but sums, products, quotients and comparisons, which IEEE 754
rounds exactly.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lovasz_embed import _check
from lovasz_embed.synthetic._painter import Painting, paint
from lovasz_embed.synthetic._world import CAR, EXTENDED, PERSON, PLAIN, SIGN, TRUCK, VOID, World

__all__ = [
    "CLASSES",
    "COLOURS",
    "EXTENDED_CLASSES",
    "EXTENDED_COLOURS",
    "EXTENDED_THINGS",
    "THINGS",
    "VOID",
    "Scene",
    "StreetScenes",
    "street_clip",
    "street_scene",
]

CLASSES: tuple[str, ...] = ("sky", "building", "road", "car", "person", "sign")
"""Names of the categories 0..5; the first three are stuff."""

THINGS: frozenset[int] = frozenset({CAR, PERSON, SIGN})
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

EXTENDED_CLASSES: tuple[str, ...] = (*CLASSES, "pavement", "truck")
"""Names of the categories 0..7 of an extended street; the first six are those of the plain one."""

EXTENDED_THINGS: frozenset[int] = THINGS | {TRUCK}
"""The categories of an extended street whose pixels belong to instances."""

EXTENDED_COLOURS: tuple[tuple[int, int, int], ...] = (*COLOURS, (158, 150, 166), (24, 140, 118))
"""One RGB colour per category of an extended street."""


# More than these is a mistake, and fills the memory or takes for ever.
_LARGEST, _MOST_THINGS, _MOST_FRAMES = 1 << 14, 10_000, 100_000


class Scene(NamedTuple):
    """One picture and its labels; torch's `default_collate` stacks scenes into one with a batch axis.

    Attributes:
        image: float32 (3, H, W) in [0, 1], in steps of 1/255: a picture of eight bits holds it exactly.
        semantic: int64 (H, W), categories or 255 = void.
        instance: int32 (H, W), 0 = none: on stuff, void and crowd.
        crowd: bool (H, W), true on groups of persons that are not told apart.
    """

    image: Tensor
    semantic: Tensor
    instance: Tensor
    crowd: Tensor


class StreetScenes(Dataset[Scene]):
    """A data set whose i-th item is `street_scene((seed, i))`, drawn when it is asked for.

    Args:
        length: Number of scenes.
        seed: 0 or above; two seeds have no scene in common.
        size: Height and width in pixels, at least 32 each.
        max_things: The most things in a scene.
        extended: As in `street_scene`.

    Raises:
        ValueError: A number is too small.
        IndexError: On indexing, at `length` and beyond; that ends a loop over the scenes.

    >>> scenes = StreetScenes(1000, seed=1, size=(64, 96))
    >>> len(scenes), tuple(scenes[999].image.shape)
    (1000, (3, 64, 96))
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        size: tuple[int, int] = (96, 96),
        max_things: int = 12,
        extended: bool = False,
    ) -> None:
        _at_least("length", length, 0)
        _check_options(seed, size, max_things, 1)
        _check.is_bool("extended", extended)
        self.length, self.seed, self.size, self.max_things = length, seed, size, max_things
        self.extended = extended

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        try:
            number = range(self.length)[operator.index(index)]
        except TypeError:
            raise TypeError(_check.message("index", "be an int", type(index).__name__)) from None
        return street_scene((self.seed, number), size=self.size, max_things=self.max_things, extended=self.extended)

    def __repr__(self) -> str:
        extended = ", extended=True" if self.extended else ""
        return (
            f"StreetScenes({self.length}, seed={self.seed}, size={self.size}, max_things={self.max_things}{extended})"
        )


def street_scene(
    seed: int | Sequence[int],
    *,
    size: tuple[int, int] = (96, 96),
    max_things: int = 12,
    min_area: int = 24,
    extended: bool = False,
) -> Scene:
    """Return a street with things that touch and hide each other.

    Args:
        seed: 0 or above, or several such numbers.
        size: Height and width in pixels, at least 32 each.
        max_things: The most things in the picture.
        min_area: A thing shows at least this many pixels, and a fifth of its outline inside the picture; one
            of which less is seen is left out.
        extended: Whether there are pavements and trucks as well, the eight categories `EXTENDED_CLASSES`, and
            things twice as far away. Suits pictures of 192 pixels and more with up to 30 things.

    Returns:
        The scene. Its instances are numbered 1..K from far to near.

    Raises:
        ValueError: A number is too small.

    Notes:
        In nine scenes of ten instances touch, in three of four two of one class do, and in every other one
        something in front splits an instance, which stays one. Two scenes in five hold void (the hood of the
        own car, a dark frame, a heap of something), one in five a crowd: `semantic` person, `instance` 0,
        `crowd` true. (Shares at the default size and number of things.)

    >>> scene = street_scene(7)
    >>> [CLASSES[category] for category in scene.semantic.unique() if category != VOID]
    ['sky', 'building', 'road', 'car', 'person', 'sign']
    """
    _check_options(seed, size, max_things, min_area)
    _check.is_bool("extended", extended)
    world = World(_generator(seed), size[1] / size[0], max_things, EXTENDED if extended else PLAIN)
    return _scene(paint(world, size, min_area, renumber=True))


def street_clip(
    seed: int | Sequence[int],
    *,
    frames: int,
    size: tuple[int, int] = (96, 96),
    max_things: int = 12,
    min_area: int = 24,
    extended: bool = False,
) -> list[Scene]:
    """Return a film of a street: things move, the camera drives and looks around, ids stay with their things.

    Args:
        seed: 0 or above, or several such numbers.
        frames: Number of pictures, at least 1. A shorter clip of the same seed begins a longer one.
        size: Height and width in pixels, at least 32 each.
        max_things: The most things in a picture.
        min_area: As in `street_scene`, in every frame.
        extended: As in `street_scene`.

    Returns:
        One scene per frame. An id names one thing in all frames and no other one. Things enter in the
        distance and from the sides; one that leaves, or that others hide, may come back, with its id.

    Raises:
        ValueError: A number is too small.

    >>> clip = street_clip(3, frames=2, size=(64, 128))
    >>> before, after = (set(frame.instance.unique().tolist()) for frame in clip)
    >>> len(before & after) > 3
    True
    """
    _check_options(seed, size, max_things, min_area)
    _at_least("frames", frames, 1, _MOST_FRAMES)
    _check.is_bool("extended", extended)
    world = World(_generator(seed), size[1] / size[0], max_things, EXTENDED if extended else PLAIN)
    clip = [_scene(paint(world, size, min_area, renumber=False))]
    while len(clip) < frames:
        world.step()
        clip.append(_scene(paint(world, size, min_area, renumber=False)))
    return clip


def _scene(painting: Painting) -> Scene:
    image = np.ascontiguousarray(painting.image.transpose(2, 0, 1))
    return Scene(torch.from_numpy(image), *map(torch.from_numpy, painting[1:]))


def _generator(seed: int | Sequence[int]) -> np.random.Generator:
    # A sequence of seeds is filled up with zeros, so that n and (n, 0) mean the same scene.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def _check_options(seed: int | Sequence[int], size: tuple[int, int], max_things: int, min_area: int) -> None:
    if not isinstance(seed, int):
        _check.is_sequence("seed", seed, "be an int or a sequence of them")
    for number in [seed] if isinstance(seed, int) else seed:
        _check.is_int("seed", number, 0)
    rule = "be a height and a width of at least 32 pixels"
    _check.is_sequence("size", size, rule)
    for side in size:
        _check.is_int("size", side, most=_LARGEST, rule=rule)
    if len(size) != 2 or min(size) < 32:
        raise ValueError(_check.message("size", rule, size))
    _at_least("max_things", max_things, 0, _MOST_THINGS)
    _at_least("min_area", min_area, 1)


def _at_least(argument: str, value: int, least: int, most: int = _check.MOST_PIXELS) -> None:
    _check.is_int(argument, value, least, most)
