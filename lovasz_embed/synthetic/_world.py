"""The street behind a synthetic picture: what stands on it, how things move, where the camera looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lovasz_embed.synthetic import _silhouettes as outlines

SKY, BUILDING, ROAD, CAR, PERSON, SIGN, PAVEMENT, TRUCK = range(8)
VOID = 255

_HOUSES = 24


@dataclass(frozen=True)
class Street:
    """What kinds of things a street has. Lengths are in eye heights, see `Thing`.

    Attributes:
        mix: Categories of new things, each as likely as it occurs here.
        heights: Mean height of each category.
        paces: Slowest and fastest pace of each category, per frame.
        far: Scale of the farthest new thing; the bottom edge of the picture has 1.
        near: Scale of the nearest new thing.
        spread: How far aside things may be, in half widths of what the camera sees.
        kerb: Distance from the middle of the street at which the lighter ground begins.
        pavement: Whether that lighter ground is a category of its own.
    """

    mix: tuple[int, ...]
    heights: dict[int, float]
    paces: dict[int, tuple[float, float]]
    far: float
    near: float
    spread: float
    kerb: float
    pavement: bool


PLAIN = Street(
    mix=(CAR, CAR, PERSON, PERSON, SIGN),
    heights={CAR: 0.58, PERSON: 0.74, SIGN: 0.95, VOID: 0.5},
    paces={CAR: (0.02, 0.07), PERSON: (0.005, 0.025), SIGN: (0.0, 0.0), VOID: (0.0, 0.0)},
    far=0.3,
    near=0.85,
    spread=1.5,
    kerb=2.6,
    pavement=False,
)
EXTENDED = Street(
    mix=(CAR, CAR, CAR, PERSON, PERSON, PERSON, SIGN, TRUCK),
    heights={**PLAIN.heights, TRUCK: 0.84},
    paces={**PLAIN.paces, TRUCK: (0.02, 0.05)},
    far=0.13,
    near=0.75,
    spread=1.1,
    kerb=1.3,
    pavement=True,
)

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


@dataclass
class Thing:
    """Something that stands on the road: a thing, a crowd (`members` above 1) or a heap (`category` VOID).

    Lengths are in eye heights: at depth z = 1, the bottom edge of the picture, one of them reaches up to the
    horizon.
    """

    ident: int  # 0 for crowd and heap
    category: int
    x: float  # lateral position of the foot point
    z: float  # depth
    height: float
    kind: int  # view of a car, plate of a sign, bumps of a heap
    facing: int  # 1 looks right, -1 left
    colours: NDArray[np.float32]  # (parts + 1, 3); row 0 is never seen
    vx: float  # per frame
    vz: float
    stride: float  # of a person's legs, -1..1
    members: int

    @property
    def aspect(self) -> float:
        """Width over height."""
        if self.category == CAR:
            return 1.15 if self.kind % 2 else 2.1
        if self.category == TRUCK:
            return 0.85 if self.kind % 2 else 2.3
        return {PERSON: 0.42 * (self.members + 1) / 2, SIGN: 0.52}.get(self.category, 1.6)

    @property
    def shadow(self) -> float:
        """Width of the shadow over the thing's own."""
        return 0.4 if self.category == SIGN else 1.2

    def outline(self, u: outlines.Floats, v: outlines.Floats) -> outlines.Parts:
        """Return the map of the thing's parts at the coordinates of its box."""
        if self.category == CAR:
            return outlines.car_rear(u, v) if self.kind % 2 else outlines.car_side(u, v)
        if self.category == TRUCK:
            return outlines.truck_rear(u, v) if self.kind % 2 else outlines.truck_side(u, v)
        if self.category == SIGN:
            return outlines.sign(u, v, self.kind)
        if self.category == VOID:
            return outlines.heap(u, v, self.kind)
        return outlines.crowd(u, v, self.members) if self.members > 1 else outlines.person(u, v, self.stride)


class World:
    """A street that `step` moves on by one frame.

    Attributes:
        things: All that stands on the road, in view or not.
        horizon: Share of the picture's height that lies above the road.
        houses: (N, 2): right edge and height of each house, as shares of the picture's height.
        street: The kinds of things on it.
        hood, frame: What hides the rim of the picture, as shares of its height; 0 = nothing.
    """

    def __init__(self, rng: np.random.Generator, aspect: float, max_things: int, street: Street = PLAIN) -> None:
        self.rng, self.aspect, self.street = rng, aspect, street
        self.things: list[Thing] = []
        self.horizon = self._pick(0.30, 0.44)
        self.liveries = {category: _PAINTS[rng.integers(len(_PAINTS), size=2)] for category in street.heights}
        self.houses = np.stack([self._picks(0.12, 0.42, _HOUSES), self._picks(0.10, 0.34, _HOUSES)], axis=1)
        self.houses[:, 0] = np.cumsum(self.houses[:, 0])
        self.houses[rng.random(_HOUSES) < 0.12, 1] = 0.0  # a gap: the sky reaches down to the road
        walls = _WALLS[rng.integers(len(_WALLS), size=_HOUSES)]
        self.walls = (walls * self._picks(0.75, 1.1, (_HOUSES, 1))).astype(np.float32)
        self.sky = _SKIES[int(rng.integers(len(_SKIES)))]
        self.light = (self._pick(0.85, 1.06) * self._picks(0.96, 1.04, 3)).astype(np.float32)
        self.asphalt = self._pick(0.30, 0.46)
        self.lane = self._pick(0.5, 1.1)
        self.hood = self._pick(0.06, 0.13) if rng.random() < 0.2 else 0.0
        self.frame = self._pick(0.01, 0.035) if rng.random() < 0.12 else 0.0
        self.speed = self._pick(0.0, 0.05)
        self.sway = self._pick(-0.4, 0.4)
        self.frames = 0
        self._idents = 0
        for _ in range(int(rng.integers(max_things // 3, max_things + 1))):
            self._place()
        if rng.random() < 0.25:
            self._appear(PERSON, members=int(rng.integers(5, 10)))
        if rng.random() < 0.25:
            self._place(VOID)

    @property
    def travelled(self) -> float:
        """Return how far the camera has driven, in eye heights."""
        return self.frames * self.speed

    @property
    def yaw(self) -> float:
        """Return how far the camera looks aside, as a share of the picture's height."""
        return self.sway * self.aspect * _wave(self.frames / 24)

    def step(self) -> None:
        """Move on by one frame: things turn round out of sight; those passed make room for others."""
        self.frames += 1
        for thing in list(self.things):
            thing.x += thing.vx
            thing.z += thing.vz - self.speed
            if thing.vx:
                thing.stride = (thing.stride + 1.25 + 8 * abs(thing.vx)) % 2 - 1
            if thing.x * thing.vx > 0 and abs(thing.x) > self._reach(thing.z):
                thing.vx, thing.facing = -thing.vx, -thing.facing
            if not 0.95 < thing.z < 1.25 / self.street.far:
                self.things.remove(thing)
                self._appear(self._category() if thing.ident else thing.category, thing.members)

    def _place(self, category: int | None = None) -> None:
        """Put a thing anywhere on the road, or in a queue beside one that is there."""
        far, near = self.street.far, self.street.near
        scale = min(self._pick(far, near), self._pick(far, near))
        x = self._pick(-0.75, 0.75) * self._reach(1 / scale)
        if category is None:
            category = self._category()
        if self.things and self.rng.random() < 0.55:
            beside = self.things[int(self.rng.integers(len(self.things)))]
            if category != VOID and self.rng.random() < 0.7:
                category = beside.category
            x = beside.x + self._sign() * beside.height * self._pick(0.35, 1.0)
            scale = min(max(far, self._pick(0.88, 1.12) / beside.z), near)
        self._add(category, x, 1 / scale)

    def _appear(self, category: int, members: int = 1) -> None:
        """Put a thing into the distance."""
        z = self._pick(0.95, 1.1) / self.street.far
        self._add(category, self._pick(-0.75, 0.75) * self._reach(z), z, members)

    def _add(self, category: int, x: float, z: float, members: int = 1) -> None:
        rng, kind, facing = self.rng, int(self.rng.integers(4)), self._sign()
        pace = 0.0 if members > 1 or rng.random() < 0.25 else self._pick(*self.street.paces[category])
        away = category in (CAR, TRUCK) and kind % 2 == 1  # who shows its rear drives along the road
        counted = category != VOID and members == 1
        self._idents += counted
        self.things.append(
            Thing(
                ident=self._idents if counted else 0,
                category=category,
                x=x,
                z=z,
                height=self.street.heights[category] * self._pick(0.88, 1.12),
                kind=kind,
                facing=facing,
                colours=self._colours(category, members),
                vx=0.0 if away else facing * pace,
                vz=0.5 * pace if away else 0.0,
                stride=self._pick(-1.0, 1.0),
                members=members,
            )
        )

    def _colours(self, category: int, members: int) -> NDArray[np.float32]:
        """Choose the colours of a thing's parts; more often than not those of others of its class."""
        if members > 1:
            shirts = _PAINTS[self.rng.integers(len(_PAINTS), size=members)]
            people = [outlines.person_colours(self.rng, shirt)[1:] for shirt in shirts]
            return np.concatenate([np.zeros((1, 3), np.float32), *people])
        paints = self.liveries[category] if self.rng.random() < 0.6 else _PAINTS
        paint = paints[int(self.rng.integers(len(paints)))]
        if category == PERSON:
            return outlines.person_colours(self.rng, paint)
        if category == CAR:
            return outlines.car_colours(paint)
        if category == TRUCK:
            return outlines.truck_colours(paint)
        return outlines.sign_colours(paint) if category == SIGN else outlines.heap_colours(paint)

    def _category(self) -> int:
        return self.street.mix[int(self.rng.integers(len(self.street.mix)))]

    def _reach(self, z: float) -> float:
        """Return how far aside the things of depth z may be."""
        return self.street.spread / 2 * self.aspect / (1 - self.horizon) * z

    def _pick(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def _picks(self, low: float, high: float, shape: int | tuple[int, ...]) -> NDArray[np.float64]:
        return low + (high - low) * self.rng.random(shape)

    def _sign(self) -> int:
        return 1 if self.rng.random() < 0.5 else -1


def _wave(t: float) -> float:
    """Swing between -1 and 1 with period 2: a sine made of parabolas, the same on every machine."""
    t = t % 2
    return 4 * t * (1 - t) if t < 1 else -4 * (t - 1) * (2 - t)
