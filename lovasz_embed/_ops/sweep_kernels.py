"""Numba kernels over all pixels of a picture: assign them to centres, measure clusters, number them.

Arrays in, arrays out; the caller allocates what is returned. The embedding is planar (D, P), as networks
emit it: the loops run along the pixels, where it is contiguous, and the picture is never copied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Flags = NDArray[np.bool_]

_SHORT = 16  # pixels compared with a centre at once just after a change of centre, ...
_LONG = 64  # ... doubled up to this many while it lasts: what is wasted at a change stays small


@jit
def _from_centre(planar: Floats, begin: int, end: int, centre: Floats, squared: Floats) -> None:
    """Write the squared distances from `centre` to the pixels `begin` to `end`; loops that vectorise."""
    count = end - begin
    for i in range(count):
        squared[i] = 0.0
    for d in range(planar.shape[0]):
        value = centre[d]
        plane = planar[d, begin:end]
        for i in range(count):
            difference = plane[i] - value
            squared[i] += difference * difference


@jit
def _total(values: Floats, scale: float) -> int:
    """Return the sum in units of 1 / scale: integers may be added in any order, so the compiler makes vectors."""
    factor = values.dtype.type(scale)
    total = 0
    for i in range(values.shape[0]):
        total += int(values[i] * factor)
    return total


@jit
def _like(classes: Ints) -> int:
    """Return how many of the classes, from the first on, are equal to it."""
    count = 0
    for i in range(classes.shape[0]):
        count += classes[i] == classes[0]
    if count == classes.shape[0]:  # nearly always: counting has no branch and makes vectors
        return count
    count = 0
    while classes[count] == classes[0]:
        count += 1
    return count


@jit
def _below(squared: Floats, bound: float, labels: Ints) -> int:
    """Return how many of the distances, from the first on, are below `bound` where no label is negative."""
    size = squared.shape[0]
    count = 0
    for i in range(size):
        count += (squared[i] < bound) & (labels[i] >= 0)
    if count == size:
        return count
    count = 0
    while squared[count] < bound and labels[count] >= 0:
        count += 1
    return count


@jit
def _nearest(
    pixel: Floats,
    tried: int,
    at: np.floating,
    low: int,
    high: int,
    centres: Floats,
    columns: Floats,
    axis: int,
    near: Ints,
    gap: Floats,
    limit: np.floating,
    distance: Floats,
) -> tuple[int, np.floating]:
    """Return the nearest centre among low..high - 1 within the squared `limit`, or -1, and its squared distance.

    `tried` is a centre at the squared distance `at`, or -1. If it is within the limit, none farther from it than
    twice that distance can be nearer, and its list of neighbours usually holds all others. If not, the centres are
    compared that are not already too far along one axis. The first of equally near ones wins.
    """
    zero = pixel.dtype.type(0)
    nearest = -1
    best = limit
    if tried >= 0 and at <= limit:
        nearest = tried
        best = at
        window = 2.0002 * np.sqrt(np.float64(at))  # rounding must not cut a centre off
        m = 0
        while m < near.shape[1] and gap[tried, m] < window:
            k = near[tried, m]
            total = zero
            for d in range(pixel.shape[0]):
                difference = pixel[d] - centres[k, d]
                total += difference * difference
            if total < best or (total == best and k < nearest):
                nearest = k
                best = total
            m += 1
        if gap[tried, m] >= window:
            return nearest, best
    window = 1.0001 * np.sqrt(np.float64(best))
    low = _first_above(columns[axis], low, high, pixel[axis] - window)
    high = _first_above(columns[axis], low, high, pixel[axis] + window)
    for k in range(high - low):
        distance[k] = zero
    for d in range(pixel.shape[0]):
        value = pixel[d]
        column = columns[d, low:high]
        for k in range(high - low):
            difference = value - column[k]
            distance[k] += difference * difference
    for k in range(high - low):
        if distance[k] <= best and (distance[k] < best or nearest < 0 or low + k < nearest):
            nearest = low + k
            best = distance[k]
    return nearest, best


@jit
def assign(
    planar: Floats,
    classes: Ints,
    begin: int,
    end: int,
    width: int,
    centres: Floats,
    columns: Floats,
    first: Ints,
    axis: int,
    near: Ints,
    gap: Floats,
    sure: Floats,
    limit: np.floating,
    scale: Floats,
    fine: float,
    labels: Ints,
    sums: Ints,
    squares: Ints,
    counts: Ints,
) -> None:
    """Label the pixels `begin` to `end` with the nearest centre of their class, plus one; 0 beyond the limit.

    The centre of the pixel before is tried first, for a stretch of pixels at once: within half the distance to its
    nearest other centre no centre is nearer, and nothing need be searched. Then that of the pixel above.

    Args:
        planar: (D, P) embedding.
        classes: (P,) class of each pixel, negative where it is not to be labelled.
        begin: First pixel of the range.
        end: One past its last pixel.
        width: The pixel above is so many pixels before; 0 if there is none.
        centres: (K, D), sorted by class, then by their coordinate `axis`.
        columns: (D, K), the same transposed.
        first: (C + 1,), where the centres of each class begin.
        axis: The coordinate by which centres are sorted.
        near: (K, M), the nearest other centres of the class, the nearest first.
        gap: (K, M + 1), their distances, then a bound below those of all others.
        sure: (K,) squared distance below which a centre is the nearest and within the limit.
        limit: Squared distance beyond which a pixel stays unlabelled.
        scale: (K,) units of a sum in 1: integers, so that no order of additions changes a bit.
        fine: Units of a sum of squares in 1.
        labels: (P,), written. Pixels with a negative label are passed over.
        sums: (K, D) int64, added to: the pixels of each centre.
        squares: (K,) int64, added to: their squared distances to the centre.
        counts: (K,), added to: their number.
    """
    dimensions = planar.shape[0]
    pixel = np.empty(dimensions, planar.dtype)
    squared = np.empty(_LONG, planar.dtype)  # from centre `current` to the pixels base..top - 1
    distance = np.empty(centres.shape[0], planar.dtype)
    current = -1
    base = top = begin
    ahead = _SHORT
    p = begin
    while p < end:
        if p >= top:
            base = p
            c = classes[p]
            top = p + _like(classes[p : min(p + ahead, end)])
            if c < 0 or first[c] == first[c + 1]:
                for i in range(base, top):
                    labels[i] = min(labels[i], 0)
                p = top
                continue
            low, high = first[c], first[c + 1]
            if current < low or current >= high:
                current = -1
            else:
                _from_centre(planar, base, top, centres[current], squared)
        if current >= 0:
            bound = sure[current]
            start = p
            p += _below(squared[p - base : top - base], bound, labels[p:top])
            labels[start:p] = current + 1
            if p > start:
                counts[current] += p - start
                squares[current] += _total(squared[start - base : p - base], fine)
                for d in range(dimensions):
                    sums[current, d] += _total(planar[d, start:p], scale[current])
            if p == top:
                ahead = min(2 * ahead, _LONG)
                continue
        if labels[p] < 0:
            p += 1
            continue
        for d in range(dimensions):
            pixel[d] = planar[d, p]
        tried = current
        at = squared[p - base] if current >= 0 else limit
        if (current < 0 or not at <= limit) and width > 0 and p - width >= begin:
            above = labels[p - width] - 1
            if above != current and low <= above < high:
                tried = above
                at = planar.dtype.type(0)
                for d in range(dimensions):
                    difference = pixel[d] - centres[above, d]
                    at += difference * difference
        if tried >= 0 and at < sure[tried]:
            nearest, best = tried, at
        else:
            nearest, best = _nearest(pixel, tried, at, low, high, centres, columns, axis, near, gap, limit, distance)
        if nearest >= 0:
            labels[p] = nearest + 1
            counts[nearest] += 1
            squares[nearest] += int(best * planar.dtype.type(fine))
            factor = planar.dtype.type(scale[nearest])
            for d in range(dimensions):
                sums[nearest, d] += int(pixel[d] * factor)
        else:
            labels[p] = 0
        if (
            nearest >= 0
            and nearest != current
            and (best < sure[nearest] or current < 0 or not squared[p - base] <= limit)
        ):
            current = nearest
            ahead = _SHORT
            top = p + 1
        p += 1


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
def total_up(
    planar: Floats,
    labels: Ints,
    begin: int,
    end: int,
    centres: Floats,
    scale: Floats,
    fine: float,
    sums: Ints,
    squares: Ints,
    counts: Ints,
) -> None:
    """Add up the pixels `begin` to `end` of every cluster, and their squared distances to its centre.

    Args:
        planar: (D, P) embedding.
        labels: (P,) cluster of each pixel, plus one; 0 is none.
        begin: First pixel of the range.
        end: One past its last pixel.
        centres: (K, D), a point near the mean of each cluster.
        scale: (K,) as of `assign`.
        fine: As of `assign`.
        sums: (K, D) int64, added to.
        squares: (K,) int64, added to.
        counts: (K,), added to.
    """
    squared = np.empty(_LONG, planar.dtype)
    p = begin
    while p < end:
        top = p + _like(labels[p : min(p + _LONG, end)])
        k = labels[p] - 1
        if k >= 0:
            counts[k] += top - p
            _from_centre(planar, p, top, centres[k], squared)
            squares[k] += _total(squared[: top - p], fine)
            for d in range(planar.shape[0]):
                sums[k, d] += _total(planar[d, p:top], scale[k])
        p = top


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
    tile = np.empty((_LONG, dimensions), planar.dtype)
    for start in range(begin, end, _LONG):
        size = min(_LONG, end - start)
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
