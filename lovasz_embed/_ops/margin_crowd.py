"""How many pixels lie close to each of the pixels that are left."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from . import margin_crowd_kernels
from .margin_sweep import Floats, Map

_AXES = 3  # of the grid, at most: more cells are empty, fewer full ones
_BITS = (14, 7, 5)  # it repeats after 2^bits radii, for 1, 2, 3 axes
_TASKS = 128  # the full lines lie side by side: few tasks would hold them all


def crowding(
    points: Floats, radius: float, enough: int, pairs: float, run: Map
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Count how many points lie within `radius` of each, itself included; counting may stop at `enough`.

    Args:
        points: (D, n).
        radius: Distance that counts as close.
        enough: Counts from here on are lower bounds.
        pairs: How many pairs of points may be compared. If there are more in neighbouring cells of a grid,
            fewer points are looked at, and the others do not count.
        run: `map_threads`, or a serial stand-in.

    Returns:
        The indices of the points looked at, and their counts.
    """
    chosen = np.arange(points.shape[1])
    if not len(chosen):
        return chosen, np.zeros(0, np.int32)
    points = points[np.argsort(-spread(points), kind="stable")]  # the grid sees the widest coordinates
    axes = min(len(points), _AXES)
    bits = _BITS[axes - 1]
    while True:
        cells = np.empty(len(chosen), np.int32)
        order = np.empty(len(chosen), np.int32)
        first = np.empty((1 << axes * bits + margin_crowd_kernels.FINE) + 1, np.int32)
        close = margin_crowd_kernels.place(points[:axes, chosen], radius, bits, cells, first, order)
        if close <= pairs:
            break
        chosen = evenly(points.shape[1], int(len(chosen) * math.sqrt(pairs / close)))
    ordered = points[:, chosen[order]]
    counts = np.empty(len(chosen), np.int32)
    lines = 1 << (axes - 1) * bits
    size = -(-lines // _TASKS)

    def count(begin: int) -> None:
        margin_crowd_kernels.crowd(
            ordered, radius, axes, bits, first, order, begin, min(begin + size, lines), enough, counts
        )

    run(count, range(0, lines, size))
    return chosen, counts


def spread(points: Floats) -> Floats:
    """Return how widely the points (D, n) lie along each axis, (D,); Inf or NaN where that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        along: Floats = points.var(1)
    return along


def evenly(count: int, chosen: int) -> NDArray[np.intp]:
    """Return so many of the indices 0..count - 1, evenly spaced."""
    return (2 * np.arange(chosen) + 1) * count // (2 * max(chosen, 1))
