"""Numba kernels that tell crowded points from lone ones: a grid over a few coordinates, then exact distances.

Arrays in, arrays out; the caller allocates what is returned. Cells are as wide as the radius, so that the points
within the radius of a point lie in its cell and those beside it. The grid is periodic: cells a period apart share a
place, which costs comparisons and never an answer, and no outlier stretches it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

_BLOCK = 256  # points compared at once
FINE = 2  # along the last axis a radius is 2^this cells wide: fewer points are compared in vain
_FAR = 2.0**52  # in radii: beyond, a float64 no longer tells one cell from the next


@jit
def place(points: Floats, radius: float, bits: int, cells: Ints, first: Ints, order: Ints) -> float:
    """Sort points into the cells of a grid; return how many pairs are in the same or in neighbouring cells.

    Args:
        points: (A, n), the coordinates that the grid is over.
        radius: Width of a cell; along the last axis there are four in it.
        bits: It repeats after 2^bits radii along each.
        cells: (n,), written: the cell of each point.
        first: (2^(A bits + 2) + 1,), written: where the points of each cell begin in `order`.
        order: (n,), written: the points, cell by cell.
    """
    axes = points.shape[0]
    mask = (1 << bits) - 1
    fine_mask = (1 << (bits + FINE)) - 1
    width = radius * (1.0 + 1e-9)  # rounding must not put close points two cells apart
    first[:] = 0
    for i in range(points.shape[1]):
        cell = 0
        for a in range(axes - 1):
            step = np.floor(min(max(points[a, i] / width, -_FAR), _FAR))
            cell = (cell << bits) | (int(step) & mask)
        step = np.floor(min(max(points[axes - 1, i] / width * (1 << FINE), -_FAR), _FAR))
        cell = (cell << (bits + FINE)) | (int(step) & fine_mask)
        cells[i] = cell
        first[cell + 1] += 1
    for cell in range(first.shape[0] - 1):
        first[cell + 1] += first[cell]
    for i in range(points.shape[1] - 1, -1, -1):  # from the back: what `first` loses is where the cell begins
        first[cells[i] + 1] -= 1
        order[first[cells[i] + 1]] = i
    for cell in range(first.shape[0] - 1):
        first[cell] = first[cell + 1]
    first[first.shape[0] - 1] = points.shape[1]
    pairs = 0.0
    rows = 3 ** (axes - 1)
    for cell in range(first.shape[0] - 1):
        members = first[cell + 1] - first[cell]
        if members > 0:
            for row in range(rows):
                base = _beside(cell, row, axes, bits)
                for step in range(-(1 << FINE), (1 << FINE) + 1):
                    other = base | ((cell + step) & fine_mask)
                    pairs += members * (first[other + 1] - first[other])
    return pairs


@jit
def _beside(cell: int, row: int, axes: int, bits: int) -> int:
    """Return the first cell of a row of cells along the last axis, the row'th of those around `cell`, its own first."""
    mask = (1 << bits) - 1
    result = 0
    for a in range(axes - 2, -1, -1):
        shift = bits * (axes - 1 - a) + FINE
        step = (row % 3 + 1) % 3 - 1  # 0, 1, -1
        row //= 3
        result |= (((cell >> shift) + step) & mask) << shift
    return result


@jit
def crowd(
    sorted_points: Floats,
    radius: float,
    axes: int,
    bits: int,
    first: Ints,
    order: Ints,
    begin: int,
    end: int,
    enough: int,
    counts: Ints,
) -> None:
    """Count the points within `radius` of every point in some cells, itself included; at `enough` it may stop.

    The cells of a row along the last axis share their surroundings, which are copied side by side: the points
    within the radius along that axis are then one stretch, and the loops along it make vectors.

    Args:
        sorted_points: (D, n), cell by cell.
        radius: As of `place`.
        axes: How many coordinates the grid is over.
        bits: As of `place`.
        first: As of `place`.
        order: As of `place`.
        begin: First row of cells.
        end: One past the last.
        enough: Where counting may stop.
        counts: (n,), written for the points in these cells.
    """
    limit = sorted_points.dtype.type(radius * radius)
    length = 1 << (bits + FINE)
    wide = 1 << FINE  # cells on either side that a radius reaches
    rows = 3 ** (axes - 1)
    dimensions = sorted_points.shape[0]
    start = np.empty(length + 2 * wide + 1, np.int64)  # where cell -4, -3, ... of the last axis begins in `around`
    squared = np.empty(_BLOCK, sorted_points.dtype)
    around = np.empty((dimensions, 1024), sorted_points.dtype)
    for line in range(begin, end):
        own = line << (bits + FINE)
        if first[own] == first[own + length]:
            continue
        size = 0
        for b in range(-wide, length + wide):
            start[b + wide] = size
            for row in range(rows):
                cell = _beside(own, row, axes, bits) | (b & (length - 1))
                low, members = first[cell], first[cell + 1] - first[cell]
                if members == 0:
                    continue
                if size + members > around.shape[1]:
                    larger = np.empty((dimensions, 2 * (size + members)), sorted_points.dtype)
                    larger[:, :size] = around[:, :size]
                    around = larger
                for d in range(dimensions):
                    for j in range(members):
                        around[d, size + j] = sorted_points[d, low + j]
                size += members
        start[length + 2 * wide] = size
        for b in range(length):
            for place in range(first[own + b], first[own + b + 1]):
                count = 0
                for low in range(start[b], start[b + 2 * wide + 1], _BLOCK):
                    high = min(low + _BLOCK, start[b + 2 * wide + 1])
                    _from_point(around, low, high, sorted_points[:, place], squared)
                    for j in range(high - low):
                        count += squared[j] <= limit
                    if count >= enough:
                        break
                counts[order[place]] = count


@jit
def _from_point(columns: Floats, begin: int, end: int, point: Floats, squared: Floats) -> None:
    """Write the squared distances from `point` to the columns `begin` to `end`; loops that vectorise.

    Four coordinates at a time, in their order, so that sums stay in registers.
    """
    base = np.uint64(begin)  # numba trusts that unsigned indices are not negative, and makes vectors
    count = np.uint64(end - begin)
    zero = columns.dtype.type(0)
    for j in range(count):
        squared[j] = zero
    whole = columns.shape[0] // 4 * 4
    for d in range(0, whole, 4):
        p, q, r, s = point[d], point[d + 1], point[d + 2], point[d + 3]
        for j in range(count):
            a = columns[d, base + j] - p
            b = columns[d + 1, base + j] - q
            c = columns[d + 2, base + j] - r
            e = columns[d + 3, base + j] - s
            squared[j] = squared[j] + a * a + b * b + c * c + e * e
    for d in range(whole, columns.shape[0]):
        value = point[d]
        for j in range(count):
            difference = columns[d, base + j] - value
            squared[j] += difference * difference
