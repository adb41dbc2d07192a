"""Numba kernels over all pixels of a picture: give each its nearest centre, and add up what each centre got.

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

_LONG = 128  # pixels compared with a centre at once; fewer after it changed, so that scattered pixels waste little


@jit
def _from_centre(planar: Floats, begin: int, end: int, centre: Floats, squared: Floats) -> None:
    """Write the squared distances from `centre` to the pixels `begin` to `end`; loops that vectorise."""
    base = np.uint64(begin)  # numba trusts that unsigned indices are not negative, and makes vectors
    count = np.uint64(end - begin)
    zero = planar.dtype.type(0)
    for i in range(count):
        squared[i] = zero
    whole = planar.shape[0] // 4 * 4
    for d in range(0, whole, 4):  # four coordinates at a time, in their order: sums stay in registers
        p, q, r, s = centre[d], centre[d + 1], centre[d + 2], centre[d + 3]
        for i in range(count):
            a = planar[d, base + i] - p
            b = planar[d + 1, base + i] - q
            c = planar[d + 2, base + i] - r
            e = planar[d + 3, base + i] - s
            squared[i] = squared[i] + a * a + b * b + c * c + e * e
    for d in range(whole, planar.shape[0]):
        value = centre[d]
        for i in range(count):
            difference = planar[d, base + i] - value
            squared[i] += difference * difference


@jit
def _add_up(
    planar: Floats,
    labels: Ints,
    squared: Floats,
    begin: int,
    end: int,
    centre: int,
    scale: float,
    fine: float,
    sums: Ints,
) -> tuple[int, int]:
    """Add those of the pixels `begin` to `end` that have a centre's label; return how many, and their squares.

    In units of 1 / scale and 1 / fine: integers, whose order the compiler may change. All loops make vectors.
    """
    base = np.uint64(begin)
    size = np.uint64(end - begin)
    zero = planar.dtype.type(0)
    factor = planar.dtype.type(fine)
    label = labels.dtype.type(centre + 1)
    count = 0
    squares = 0
    for i in range(size):
        count += labels[base + i] == label
        squares += int((squared[i] if labels[base + i] == label else zero) * factor)
    factor = planar.dtype.type(scale)
    for d in range(planar.shape[0]):
        total = 0
        for i in range(size):
            total += int((planar[d, base + i] if labels[base + i] == label else zero) * factor)
        sums[d] += total
    return count, squares


@jit
def _like(classes: Ints, begin: int, end: int) -> int:
    """Return the first index from `begin` on, or `end`, where the class is not that at `begin`."""
    count = 0
    for i in range(np.uint64(begin), np.uint64(end)):
        count += classes[i] == classes[begin]
    if count == end - begin:  # nearly always: counting has no branch and makes vectors
        return end
    while classes[begin + 1] == classes[begin]:
        begin += 1
    return begin + 1


@jit
def _sure(squared: Floats, labels: Ints, begin: int, end: int, bound: np.floating) -> bool:
    """Whether all pixels are closer than `bound` and none is to be passed over; a loop that vectorises."""
    base = np.uint64(begin)
    inside = 0
    for i in range(np.uint64(end - begin)):
        inside += (squared[i] < bound) & (labels[base + i] >= 0)
    return inside == end - begin


@jit
def _among_rivals(
    planar: Floats,
    begin: int,
    end: int,
    rivals: Ints,
    centres: Floats,
    sure: np.floating,
    wide: np.floating,
    squared: Floats,
    rival: Floats,
    test: Floats,
) -> None:
    """Write 0 for the pixels `begin` to `end` that surely belong to a centre at the `squared` distances, else `sure`.

    They do within `sure`; and within `wide` if they are nearer to it than to all `rivals`.
    """
    count = end - begin
    zero = planar.dtype.type(0)
    for i in range(count):
        test[i] = zero if squared[i] < wide else sure
    for m in range(rivals.shape[0]):
        _from_centre(planar, begin, end, centres[rivals[m]], rival)
        for i in range(count):
            test[i] = test[i] if squared[i] < rival[i] else sure
    for i in range(count):
        test[i] = zero if squared[i] < sure else test[i]


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

    `tried` is a centre at the squared distance `at`, or -1. A centre farther from it than that distance and the
    limit together, or than twice that distance, cannot be the one; its list of neighbours often holds all others.
    If not, the centres are compared that are not already too far along one axis. The first of equally near ones wins.
    """
    zero = pixel.dtype.type(0)
    nearest = -1
    best = limit
    if tried >= 0:
        if at <= limit:
            nearest = tried
            best = at
        # Rounding must not cut a centre off, here and below.
        window = 1.0001 * (np.sqrt(np.float64(at)) + np.sqrt(np.float64(best)))
        if gap[tried, near.shape[1]] >= window:
            m = 0
            while gap[tried, m] < window:
                k = near[tried, m]
                total = zero
                for d in range(pixel.shape[0]):
                    difference = pixel[d] - centres[k, d]
                    total += difference * difference
                if total <= best and (total < best or nearest < 0 or k < nearest):
                    nearest = k
                    best = total
                m += 1
            return nearest, best
    window = 1.0001 * np.sqrt(np.float64(best))
    low = _first_above(columns[axis], low, high, pixel[axis] - window)
    high = _first_above(columns[axis], low, high, pixel[axis] + window)
    base = np.uint64(low)
    count = np.uint64(high - low)
    for i in range(count):
        distance[i] = zero
    for d in range(pixel.shape[0]):
        value = pixel[d]
        for i in range(count):
            difference = value - columns[d, base + i]
            distance[i] += difference * difference
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
    rivals: Ints,
    wide: Floats,
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
        width: The pixel above is so many pixels before; 0 if pixels that follow one another have nothing in common:
            then each is compared with all centres that come into question.
        centres: (K, D), sorted by class, then by their coordinate `axis`.
        columns: (D, K), the same transposed.
        first: (C + 1,), where the centres of each class begin.
        axis: The coordinate by which centres are sorted.
        near: (K, M), the nearest other centres of the class, the nearest first.
        gap: (K, M + 1), their distances, then a bound below those of all others.
        sure: (K,) squared distance below which a centre is the nearest and within the limit.
        rivals: (K,) so many of the nearest neighbours are compared at once with a stretch of pixels.
        wide: (K,) squared distance below which a centre is the nearest unless one of those is, and within the limit.
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
    rival = np.empty(_LONG, planar.dtype)
    verdict = np.empty(_LONG, planar.dtype)
    test = squared  # below the bound of `current`: it is the centre
    all_own = False
    doubted = -1  # the last pixel that was compared one by one, ...
    won = -1  # ... and its centre
    distance = np.empty(centres.shape[0], planar.dtype)
    current = -1
    ahead = _LONG
    p = begin
    while p < end:
        base = p
        c = classes[p]
        top = _like(classes, p, min(p + ahead, end))
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
            all_own = _sure(squared, labels, base, top, sure[current])
            test = squared
            if not all_own and rivals[current] > 0:
                test = verdict
                _among_rivals(
                    planar, base, top, near[current, : rivals[current]], centres, sure[current], wide[current],
                    squared, rival, test,
                )  # fmt: skip
        following = current
        while p < top and following == current:
            if current >= 0:
                start = p
                if all_own:
                    p = top
                else:
                    bound = sure[current]
                    while p < top and test[p - base] < bound and labels[p] >= 0:
                        p += 1
                for i in range(np.uint64(start), np.uint64(p)):
                    labels[i] = current + 1
                if p == top:
                    break
            if labels[p] < 0:
                p += 1
                continue
            for d in range(dimensions):
                pixel[d] = planar[d, p]
            tried = current
            at = squared[p - base] if current >= 0 else limit
            reached = current >= 0 and at <= limit
            if not reached and width > 0 and p - width >= begin:
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
                nearest, best = _nearest(
                    pixel, tried, at, low, high, centres, columns, axis, near, gap, limit, distance
                )
            labels[p] = nearest + 1
            if nearest >= 0 and nearest != current:
                counts[nearest] += 1
                squares[nearest] += int(best * planar.dtype.type(fine))
                factor = planar.dtype.type(scale[nearest])
                for d in range(dimensions):
                    sums[nearest, d] += int(pixel[d] * factor)
                # Change over where the current centre is out of reach, or another one wins twice in a row.
                if width > 0 and (not reached or (won == nearest and doubted == p - 1)):
                    following = nearest
            won = nearest
            doubted = p
            p += 1
        if current >= 0:
            count, added = _add_up(planar, labels, squared, base, p, current, scale[current], fine, sums[current])
            counts[current] += count
            squares[current] += added
        ahead = min(2 * ahead, _LONG) if following == current else max(ahead // 4, 2)
        current = following


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
def take_over(
    planar: Floats,
    labels: Ints,
    begin: int,
    end: int,
    new: Ints,
    centres: Floats,
    rivals: Ints,
    rival_count: Ints,
    scale: Floats,
    fine: float,
    sums: Ints,
    squares: Ints,
    counts: Ints,
    stolen: Ints,
) -> None:
    """Number labels anew after centres joined, and give the pixels `begin` to `end` that lie nearer to one to it.

    Args:
        planar: (D, P) embedding.
        labels: (P,) nearest of the former centres, plus one, overwritten; 0 and below stay.
        begin: First pixel of the range.
        end: One past its last pixel.
        new: The new number of each former centre.
        centres: (K, D), by their new number; the lower one wins ties.
        rivals: (K, M), centres that joined and might be nearer to some pixel of a centre.
        rival_count: (K,), how many those are.
        scale: As of `assign`.
        fine: As of `assign`.
        sums: As of `assign`; what moves is taken from one centre and added to another.
        squares: As of `assign`.
        counts: As of `assign`.
        stolen: (K,), added to: how many pixels each centre took.
    """
    squared = np.empty(_LONG, planar.dtype)
    other = np.empty(_LONG, planar.dtype)
    best = np.empty(_LONG, planar.dtype)
    winner = np.empty(_LONG, np.int64)
    p = begin
    while p < end:
        top = _like(labels, p, min(p + _LONG, end))
        if labels[p] <= 0:
            p = top
            continue
        k = new[labels[p] - 1]
        size = top - p
        for i in range(p, top):
            labels[i] = k + 1
        if rival_count[k] > 0:
            _from_centre(planar, p, top, centres[k], squared)
            best[:size] = squared[:size]
            winner[:size] = k
            for m in range(rival_count[k]):
                rival = rivals[k, m]
                _from_centre(planar, p, top, centres[rival], other)
                for i in range(size):
                    if other[i] < best[i] or (other[i] == best[i] and rival < winner[i]):
                        best[i] = other[i]
                        winner[i] = rival
            for i in range(size):
                if winner[i] != k:
                    j = winner[i]
                    labels[p + i] = j + 1
                    counts[k] -= 1
                    counts[j] += 1
                    stolen[j] += 1
                    squares[k] -= int(squared[i] * planar.dtype.type(fine))
                    squares[j] += int(best[i] * planar.dtype.type(fine))
                    for d in range(planar.shape[0]):
                        sums[k, d] -= int(planar[d, p + i] * planar.dtype.type(scale[k]))
                        sums[j, d] += int(planar[d, p + i] * planar.dtype.type(scale[j]))
        p = top


@jit
def pixels_of(labels: Ints, begin: int, end: int, chosen: Flags, pixels: Ints) -> int:
    """Write the indices of the pixels `begin` to `end` whose label is `chosen` (K + 1,), from 0; return how many."""
    count = 0
    p = begin
    while p < end:
        top = _like(labels, p, min(p + _LONG, end))
        if labels[p] >= 0 and chosen[labels[p]]:
            for i in range(p, top):
                pixels[count] = i
                count += 1
        p = top
    return count
