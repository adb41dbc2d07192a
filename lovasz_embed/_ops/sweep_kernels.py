"""Numba kernels over all pixels of a picture: assign them to centres, measure clusters, number them.

Arrays in, arrays out; the caller allocates what is returned. The embedding is planar (D, P), as networks
emit it: one small tile at a time is transposed, the picture is never copied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Flags = NDArray[np.bool_]

_TILE = 256  # pixels transposed at a time: 8 KiB at D = 8 in float32, well inside the first cache


@jit
def assign(
    planar: Floats,
    classes: Ints,
    begin: int,
    end: int,
    centres: Floats,
    columns: Floats,
    first: Ints,
    axis: int,
    half: Floats,
    limit: float,
    labels: Ints,
    sums: Floats,
    counts: Ints,
) -> None:
    """Label the pixels `begin` to `end` with the nearest centre of their class, plus one; 0 beyond the limit.

    The centre of the pixel before is tried first: within half the distance to its nearest other centre no
    centre is nearer, and nothing need be scanned. Otherwise those centres are compared that are not already
    too far along one axis, farther than the limit or the centre just tried; the first wins ties.

    Args:
        planar: (D, P) embedding.
        classes: (P,) class of each pixel, negative where it is not to be labelled.
        begin: First pixel of the range.
        end: One past its last pixel.
        centres: (K, D), sorted by class, then by their coordinate `axis`.
        columns: (D, K), the same transposed: the scan runs along K, which the compiler turns into vectors.
        first: (C + 1,), where the centres of each class begin.
        axis: The coordinate by which centres are sorted.
        half: (K,) squared half distance to the nearest other centre of the class.
        limit: Distance beyond which a pixel stays unlabelled.
        labels: (P,), written.
        sums: (K, D) float64, added to: the pixels of each centre.
        counts: (K,), added to: their number.
    """
    dimensions = planar.shape[0]
    zero = planar.dtype.type(0)
    squared_limit = planar.dtype.type(limit * limit)
    tile = np.empty((_TILE, dimensions), planar.dtype)
    distance = np.empty(centres.shape[0], planar.dtype)
    previous = -1
    for start in range(begin, end, _TILE):
        size = min(_TILE, end - start)
        for d in range(dimensions):
            for i in range(size):
                tile[i, d] = planar[d, start + i]
        for i in range(size):
            p = start + i
            c = classes[p]
            if c < 0 or first[c] == first[c + 1]:
                labels[p] = 0
                continue
            nearest = -1
            best = squared_limit
            if first[c] <= previous < first[c + 1]:
                tried = zero
                for d in range(dimensions):
                    difference = tile[i, d] - centres[previous, d]
                    tried += difference * difference
                if tried <= best:
                    nearest = previous
                    best = tried
            if nearest < 0 or best >= half[nearest]:
                window = 1.0001 * np.sqrt(np.float64(best))  # rounding must not cut a centre off
                low = _first_above(columns[axis], first[c], first[c + 1], tile[i, axis] - window)
                high = _first_above(columns[axis], low, first[c + 1], tile[i, axis] + window)
                for k in range(low, high):
                    distance[k] = zero
                for d in range(dimensions):
                    value = tile[i, d]
                    for k in range(low, high):
                        difference = value - columns[d, k]
                        distance[k] += difference * difference
                for k in range(low, high):
                    if distance[k] < best or (distance[k] == best and (nearest < 0 or k < nearest)):
                        nearest = k
                        best = distance[k]
            if nearest < 0:
                labels[p] = 0
                continue
            previous = nearest
            counts[nearest] += 1
            labels[p] = nearest + 1
            for d in range(dimensions):
                sums[nearest, d] += tile[i, d]


@jit
def _first_above(values: Floats, low: int, high: int, bound: float) -> int:
    """Return the first index in low..high - 1 of sorted `values` that is not below `bound`, or high."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def measure(planar: Floats, labels: Ints, begin: int, end: int, origin: Floats, sums: Floats, squares: Floats) -> None:
    """Sum the offsets of the pixels `begin` to `end` from their cluster's origin, and their squared lengths.

    Args:
        planar: (D, P) embedding.
        labels: (P,) cluster of each pixel, plus one; 0 is none.
        begin: First pixel of the range.
        end: One past its last pixel.
        origin: (K, D) float64, a point near the mean of each cluster: small offsets lose no digits.
        sums: (K, D) float64, added to.
        squares: (K,) float64, added to.
    """
    dimensions = planar.shape[0]
    tile = np.empty((_TILE, dimensions), planar.dtype)
    for start in range(begin, end, _TILE):
        size = min(_TILE, end - start)
        for d in range(dimensions):
            for i in range(size):
                tile[i, d] = planar[d, start + i]
        for i in range(size):
            k = labels[start + i] - 1
            if k < 0:
                continue
            for d in range(dimensions):
                offset = tile[i, d] - origin[k, d]
                sums[k, d] += offset
                squares[k] += offset * offset


@jit
def renumber(labels: Ints, keep: Flags, old: Ints) -> int:
    """Number the kept labels 1, 2, ... by their first pixel, in place; return how many.

    Args:
        labels: (P,) from 0 (none) to N, overwritten.
        keep: (N + 1,), False where a label becomes 0.
        old: (N,), written: the old label of each new one.
    """
    count = 0
    new = np.zeros(keep.shape[0], labels.dtype)
    for p in range(labels.shape[0]):
        label = labels[p]
        if label == 0 or not keep[label]:
            labels[p] = 0
            continue
        if new[label] == 0:
            old[count] = label
            count += 1
            new[label] = count
        labels[p] = new[label]
    return count
