"""The outlines of the things in synthetic streets: from coordinates inside a box to part numbers.

Every outline is a function of `u` (1, w), left to right, and `v` (h, 1), top to bottom, both in (0, 1), and
returns a (h, w) uint8 map of parts, 0 = outside. The thing's own row of colours turns parts into a picture.
Sums, products, quotients and comparisons alone make sure that every machine draws the same pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Parts = NDArray[np.uint8]
Floats = NDArray[np.float64]
Colours = NDArray[np.float32]

PERSON_PARTS = 4
_SKINS = ((0.93, 0.76, 0.64), (0.78, 0.58, 0.44), (0.52, 0.36, 0.27), (0.36, 0.25, 0.19))
_TROUSERS = ((0.16, 0.18, 0.30), (0.30, 0.27, 0.24), (0.10, 0.10, 0.12), (0.42, 0.40, 0.44))


def car_side(u: Floats, v: Floats) -> Parts:
    """Parts: 1 body, 2 windows, 3 wheels, 4 headlight, 5 rear light, 6 sill; drives right. Box 2.1 : 1."""
    parts = np.zeros((v.shape[0], u.shape[1]), dtype=np.uint8)
    cabin = 0.20 + 0.36 * v
    parts[(v < 0.5) & (np.abs(u - 0.45) < cabin)] = 1
    parts[_square(_square((u - 0.5) / 0.5)) + _square(_square((v - 0.64) / 0.25)) < 1] = 1
    parts[(v > 0.10) & (v < 0.42) & (np.abs(u - 0.45) < cabin - 0.07) & (np.abs(u - 0.45) > 0.022)] = 2
    parts[(v > 0.76) & (parts == 1)] = 6
    parts[(v > 0.50) & (v < 0.64) & (parts == 1) & (u > 0.92)] = 4
    parts[(v > 0.50) & (v < 0.64) & (parts == 1) & (u < 0.06)] = 5
    for middle in (0.22, 0.78):
        parts[_square((u - middle) * 2.1) + _square(v - 0.82) < 0.18 * 0.18] = 3
    return parts


def car_rear(u: Floats, v: Floats) -> Parts:
    """Parts as `car_side`, seen from behind. Box 1.15 : 1."""
    parts = np.zeros((v.shape[0], u.shape[1]), dtype=np.uint8)
    parts[(v > 0.7) & (np.abs(np.abs(u - 0.5) - 0.34) < 0.11)] = 3
    cabin = 0.24 + 0.36 * v
    parts[(v < 0.5) & (np.abs(u - 0.5) < cabin)] = 1
    parts[_square(_square((u - 0.5) / 0.5)) + _square(_square((v - 0.62) / 0.27)) < 1] = 1
    parts[(v > 0.09) & (v < 0.40) & (np.abs(u - 0.5) < cabin - 0.08)] = 2
    parts[(v > 0.76) & (parts == 1)] = 6
    parts[(v > 0.48) & (v < 0.62) & (parts == 1) & (np.abs(u - 0.5) > 0.36)] = 5
    return parts


def truck_side(u: Floats, v: Floats) -> Parts:
    """Parts: 1 to 6 as `car_side`, of the cab; 7 cargo box, 8 its ribs; drives right. Box 2.3 : 1."""
    parts = np.zeros((v.shape[0], u.shape[1]), dtype=np.uint8)
    parts[(v < 0.74) & (u < 0.70)] = 7
    parts[(v > 0.06) & (v < 0.68) & (u < 0.68) & ((u * 9) % 1 < 0.16)] = 8
    parts[(v > 0.72) & (v < 0.86) & (u > 0.02) & (u < 0.97)] = 6
    parts[(v > 0.22) & (v < 0.86) & (u > 0.73) & (u < 0.90 + 0.12 * v)] = 1
    parts[(v > 0.28) & (v < 0.50) & (u > 0.80) & (u < 0.88 + 0.12 * v)] = 2
    parts[(v > 0.64) & (v < 0.74) & (parts == 1) & (u > 0.95)] = 4
    parts[(v > 0.72) & (v < 0.80) & (u < 0.04)] = 5
    for middle in (0.14, 0.30, 0.82):
        parts[_square((u - middle) * 2.3) + _square(v - 0.86) < 0.14 * 0.14] = 3
    return parts


def truck_rear(u: Floats, v: Floats) -> Parts:
    """Parts as `truck_side`, seen from behind. Box 0.85 : 1."""
    parts = np.zeros((v.shape[0], u.shape[1]), dtype=np.uint8)
    parts[(v > 0.8) & (np.abs(np.abs(u - 0.5) - 0.34) < 0.12)] = 3
    parts[(v < 0.78) & (np.abs(u - 0.5) < 0.49)] = 7
    parts[(v > 0.05) & (v < 0.72) & (np.abs(u - 0.5) < 0.02)] = 8
    parts[(v > 0.76) & (v < 0.90) & (np.abs(u - 0.5) < 0.46)] = 6
    parts[(v > 0.78) & (v < 0.86) & (parts == 6) & (np.abs(u - 0.5) > 0.34)] = 5
    return parts


def person(u: Floats, v: Floats, stride: float) -> Parts:
    """Parts: 1 skin, 2 hair, 3 shirt, 4 trousers; `stride` in -1..1 spreads the legs. Box 0.42 : 1."""
    parts = np.zeros((v.shape[0], u.shape[1]), dtype=np.uint8)
    swing = 0.30 * abs(stride) * (v - 0.52)
    for side in (-1.0, 1.0):
        parts[(v > 0.52) & (np.abs(u - 0.5 - side * (0.12 + swing)) < 0.15)] = 4
    torso = _square((u - 0.5) / 0.42) + _square(_square((v - 0.39) / 0.21))
    parts[torso < 1] = 3
    head = _square((u - 0.5) * 0.42) + _square(v - 0.105)
    parts[head < 0.105 * 0.105] = 1
    parts[(head < 0.105 * 0.105) & (v < 0.085)] = 2
    return parts


def crowd(u: Floats, v: Floats, members: int) -> Parts:
    """Overlapping persons; parts of the m-th one are 4 m + 1 .. 4 m + 4. Box 0.21 (members + 1) : 1."""
    parts = np.zeros((v.shape[0], u.shape[1]), dtype=np.uint8)
    for m in range(members):
        first = m / (members + 1)  # everyone is two shares wide and stands one share beside the last one
        inner = (u - first) * (members + 1) / 2
        taller = 1.0 - 0.07 * (m * 2 % 3)
        one = person(inner, 1 - (1 - v) / taller, 0.5 * (m % 2))
        one[:, (inner[0] <= 0) | (inner[0] >= 1)] = 0
        parts = np.where(one > 0, one + np.uint8(PERSON_PARTS * m), parts)
    return parts


def sign(u: Floats, v: Floats, plate: int) -> Parts:
    """Parts: 1 rim, 2 face, 3 pole, 4 symbol; plate 0 disc, 1 diamond, 2 triangle, 3 square. Box 0.52 : 1."""
    parts = np.zeros((v.shape[0], u.shape[1]), dtype=np.uint8)
    parts[(v > 0.3) & (np.abs(u - 0.5) < 0.09)] = 3
    x, y = np.abs(u - 0.5) / 0.5, (v - 0.26) / 0.26
    if plate == 0:
        reach = x * x + y * y
    elif plate == 1:
        reach = x + np.abs(y)
    elif plate == 2:
        reach = np.maximum(1.05 * x + 0.55 * (1 - y) - 0.1, np.abs(y))
    else:
        reach = np.maximum(x / 0.9, np.abs(y) / 0.9)
    parts[reach < 1] = 1
    parts[reach < 0.62] = 2
    parts[(x < 0.16) & (np.abs(y) < 0.42) & (reach < 0.62)] = 4
    return parts


def heap(u: Floats, v: Floats, bumps: int) -> Parts:
    """Parts 1 and 2: a bumpy mound of something unclear. Box 1.6 : 1."""
    wave = (u * (3 + bumps)) % 1
    top = 4 * u * (1 - u) * (0.8 + 0.8 * wave * (1 - wave))
    parts = (1 - v < top).astype(np.uint8)
    parts[(parts > 0) & (((u * 5) % 1 < 0.5) ^ ((v * 3) % 1 < 0.5))] = 2
    return parts


def car_colours(paint: Colours) -> Colours:
    """Return the row of colours of a car's parts."""
    return _rows(paint, (0.24, 0.31, 0.38), (0.07, 0.07, 0.08), (0.98, 0.94, 0.72), (0.86, 0.12, 0.10), paint * 0.72)


def truck_colours(paint: Colours) -> Colours:
    """Return the row of colours of a truck's parts: the box pale, the cab in the paint."""
    pale = 0.45 * paint + 0.5
    return np.concatenate([car_colours(paint), _rows(pale, pale * 0.86)[1:]])


def person_colours(rng: np.random.Generator, shirt: Colours) -> Colours:
    """Return the row of colours of a person's parts."""
    skin, trousers = _SKINS[int(rng.integers(4))], _TROUSERS[int(rng.integers(4))]
    return _rows(skin, np.asarray(skin) * 0.4, shirt, trousers)


def sign_colours(paint: Colours) -> Colours:
    """Return the row of colours of a sign's parts."""
    return _rows(paint, (0.95, 0.95, 0.92), (0.46, 0.47, 0.50), paint * 0.5)


def heap_colours(paint: Colours) -> Colours:
    """Return the row of colours of a heap's parts."""
    dull = 0.35 * paint + 0.25
    return _rows(dull, dull * 0.8)


def _rows(*colours: object) -> Colours:
    return np.array([(0, 0, 0), *colours], dtype=np.float32)


def _square(x: Floats) -> Floats:
    return x * x
