"""Numba kernels over all pixels for the density clustering: sample them, assign them, measure and number clusters.

Arrays in, arrays out; the caller allocates what is returned. The embedding is planar (D, P), as networks emit it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Flags = NDArray[np.bool_]

_TILE = 128  # pixels that are looked at together: their distances to one centre make a loop of vectors
_OPEN = -2  # a pixel whose nearest centre is not known yet
_THIN = 2  # steps to each side within which a mixed pixel has both of its sources


@jit
def drop_invalid(planar: Floats, begin: int, end: int, classes: Ints) -> int:
    """Set the class of the pixels `begin` to `end` that hold NaN or Inf to -1, in place; return how many had one."""
    zero = planar.dtype.type(0)
    total = np.empty(_TILE, planar.dtype)
    count = 0
    for start in range(begin, end, _TILE):
        size = min(_TILE, end - start)
        for i in range(size):
            total[i] = zero
        for d in range(planar.shape[0]):
            for i in range(size):
                total[i] += planar[d, start + i] * zero  # 0, or NaN
        for i in range(size):
            if classes[start + i] >= 0 and total[i] != zero:
                classes[start + i] = -1
                count += 1
    return count


@jit
def sample(labels: Ints, shift: int, counts: Ints, quota: Ints, first: Ints, pixels: Ints, taken: Ints) -> None:
    """Pick up to `quota[k]` of the pixels whose label plus `shift` is k, spread over all of them.

    They are cut into runs of equal length in scan order, and one is taken from each, at a place that a fixed hash
    names: a regular step could walk along the rows or columns of the picture.

    Args:
        labels: (P,).
        shift: Added to every label; what is negative then is not sampled.
        counts: (K,) pixels of each label.
        quota: (K,) at most this many are taken.
        first: (K,), where the picks of each label begin in `pixels`.
        pixels: Written, ascending for each label.
        taken: (K,), written: how many were taken.
    """
    seen = np.zeros(counts.shape[0], np.int64)
    step = np.ones(counts.shape[0], np.int64)
    place = np.zeros(counts.shape[0], np.int64)
    for k in range(counts.shape[0]):
        taken[k] = 0
        if quota[k] > 0:
            step[k] = max(1, (counts[k] + quota[k] - 1) // quota[k])
            place[k] = _hash(0) % step[k]
    for p in range(labels.shape[0]):
        k = labels[p] + shift
        if k < 0 or quota[k] == 0:
            continue
        if seen[k] == place[k]:
            pixels[first[k] + taken[k]] = p
            taken[k] += 1
            place[k] = taken[k] * step[k] + _hash(taken[k]) % step[k]
        seen[k] += 1


@jit
def _hash(i: int) -> int:
    """Mix the bits of a small number, with 31-bit arithmetic that overflows nowhere."""
    value = (i * 40503 + 12345) & 0x7FFFFFFF
    value = ((value ^ (value >> 15)) * 73244475 // 64) & 0x7FFFFFFF
    return (value ^ (value >> 13)) & 0x7FFFFFFF


@jit
def assign(
    planar: Floats,
    classes: Ints,
    begin: int,
    end: int,
    centres: Floats,
    columns: Floats,
    first: Ints,
    near: Ints,
    gap: Floats,
    limit: Floats,
    owner: Ints,
    labels: Ints,
    origin: Floats,
    sums: Floats,
    squares: Floats,
    counts: Ints,
    fresh: Ints,
) -> None:
    """Label the pixels `begin` to `end` with their nearest centre, plus one; 0 beyond that centre's own limit.

    Tile by tile. The centre of the pixel before is tried on all pixels of the tile at once: those within half the
    distance to its nearest other centre have none nearer. The first pixel that is left, r away from the centre tried
    last, looks at the centres within 2 r of that one (no other can be nearer), and the winner is tried on the tile.

    Args:
        planar: (D, P) embedding.
        classes: (P,) class of each pixel, negative where it is not to be labelled.
        begin: First pixel of the range.
        end: One past its last pixel.
        centres: (Q, D), sorted by class.
        columns: (D, Q), the same transposed.
        first: (C + 1,), where the centres of each class begin.
        near: (Q, M) other centres of the class, the nearest ones of each first; see `neighbours`.
        gap: (Q, M) their distances.
        limit: (Q,) squared distance beyond which the pixels of a centre stay unlabelled.
        owner: (Q,) class of each centre.
        labels: (P,), read for `fresh`, then written.
        origin: (Q, D) float64, near the centres.
        sums: (Q, D) float64, added to: the offsets of each centre's pixels from its origin.
        squares: (Q,) float64, added to: the squared lengths of these offsets.
        counts: (Q,), added to: their number.
        fresh: (Q,), added to: how many of them had no label before.
    """
    dimensions = planar.shape[0]
    zero = planar.dtype.type(0)
    distance = np.empty(_TILE, planar.dtype)
    scan = np.empty(centres.shape[0], planar.dtype)
    nearest = np.empty(_TILE, np.int64)
    previous = -1
    for start in range(begin, end, _TILE):
        size = min(_TILE, end - start)
        for i in range(size):
            c = classes[start + i]
            nearest[i] = _OPEN if c >= 0 and first[c] < first[c + 1] else -1
        tried = previous  # the centre to which `distance` holds the distances of the tile
        news = tried >= 0
        done = 0
        while True:
            if news:
                for i in range(size):
                    distance[i] = zero
                for d in range(dimensions):
                    value = centres[tried, d]
                    for i in range(size):
                        difference = planar[d, start + i] - value
                        distance[i] += difference * difference
                # A hair below half the distance: rounding must not skip a nearer centre.
                half = np.inf if near[tried, 0] < 0 else 0.4999 * gap[tried, 0]
                bound = half * half
                cut = limit[tried]
                for i in range(size):
                    if nearest[i] == _OPEN and distance[i] <= bound and classes[start + i] == owner[tried]:
                        nearest[i] = tried if distance[i] <= cut else -1
            while done < size and nearest[done] != _OPEN:
                done += 1
            if done == size:
                break
            c = classes[start + done]
            best = -1
            if tried >= 0 and owner[tried] == c:
                window = 2.0002 * np.sqrt(np.float64(distance[done]))
                least = distance[done]
                most = near.shape[1] - 1
                # Unless the list is too short, or the pixel holds NaN:
                if near[tried, most] < 0 or gap[tried, most] > window:
                    best = tried
                    for m in range(near.shape[1]):
                        k = near[tried, m]
                        if k < 0 or gap[tried, m] > window:
                            break
                        square = zero
                        for d in range(dimensions):
                            difference = planar[d, start + done] - centres[k, d]
                            square += difference * difference
                        if square < least or (square == least and k < best):
                            least = square
                            best = k
            if best < 0:
                for k in range(first[c], first[c + 1]):
                    scan[k] = zero
                for d in range(dimensions):
                    value = planar[d, start + done]
                    for k in range(first[c], first[c + 1]):
                        difference = columns[d, k] - value
                        scan[k] += difference * difference
                best = first[c]
                for k in range(first[c] + 1, first[c + 1]):
                    if scan[k] < scan[best]:
                        best = k
                least = scan[best]
            nearest[done] = best if least <= limit[best] else -1
            # A pixel far out says little about its neighbours.
            half = np.inf if near[best, 0] < 0 else 0.4999 * gap[best, 0]
            news = best != tried and least <= half * half
            if news:
                tried = best
        i = 0
        while i < size:  # run by run of one centre
            k = nearest[i]
            j = i
            while j < size and nearest[j] == k:
                if k >= 0 and labels[start + j] == 0:
                    fresh[k] += 1
                labels[start + j] = k + 1
                j += 1
            if k >= 0:
                previous = k
                counts[k] += j - i
                _add(planar, start + i, start + j, origin, k, sums, squares)
            i = j


@jit
def _add(planar: Floats, begin: int, end: int, origin: Floats, k: int, sums: Floats, squares: Floats) -> None:
    """Add the offsets of the pixels `begin` to `end` from row k of `origin` to row k of `sums`, and their squares.

    Four sums side by side, in a fixed order: the additions need not wait for each other.
    """
    whole = begin + (end - begin) // 4 * 4
    square = 0.0
    for d in range(planar.shape[0]):
        middle = origin[k, d]
        s0 = s1 = s2 = s3 = 0.0
        q0 = q1 = q2 = q3 = 0.0
        for p in range(begin, whole, 4):
            a0 = planar[d, p] - middle
            a1 = planar[d, p + 1] - middle
            a2 = planar[d, p + 2] - middle
            a3 = planar[d, p + 3] - middle
            s0 += a0
            s1 += a1
            s2 += a2
            s3 += a3
            q0 += a0 * a0
            q1 += a1 * a1
            q2 += a2 * a2
            q3 += a3 * a3
        for p in range(whole, end):
            a0 = planar[d, p] - middle
            s0 += a0
            q0 += a0 * a0
        sums[k, d] += (s0 + s1) + (s2 + s3)
        square += (q0 + q1) + (q2 + q3)
    squares[k] += square


@jit
def neighbours(centres: Floats, first: Ints, near: Ints, gap: Floats) -> None:
    """Write for each centre the nearest other centres of its class, the nearest first; the first wins ties.

    Args:
        centres: (Q, D) float64, sorted by class.
        first: (C + 1,), where the centres of each class begin.
        near: (Q, M), written: indices, -1 where there are no more.
        gap: (Q, M), written: distances, inf where there are no more.
    """
    most = near.shape[1]
    for c in range(first.shape[0] - 1):
        for k in range(first[c], first[c + 1]):
            for m in range(most):
                near[k, m] = -1
                gap[k, m] = np.inf
            for j in range(first[c], first[c + 1]):
                square = 0.0
                for d in range(centres.shape[1]):
                    difference = centres[k, d] - centres[j, d]
                    square += difference * difference
                distance = np.sqrt(square)
                if j == k or not distance < gap[k, most - 1]:
                    continue
                m = most - 1
                while m > 0 and gap[k, m - 1] > distance:
                    gap[k, m] = gap[k, m - 1]
                    near[k, m] = near[k, m - 1]
                    m -= 1
                gap[k, m] = distance
                near[k, m] = j


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
    p = begin
    while p < end:  # run by run of one cluster
        k = labels[p] - 1
        after = p + 1
        while after < end and labels[after] == k + 1:
            after += 1
        if k >= 0:
            _add(planar, p, after, origin, k, sums, squares)
        p = after


@jit
def renumber(labels: Ints, new: Ints, old: Ints) -> int:
    """Number labels 1, 2, ... by their first pixel, in place; return how many.

    Args:
        labels: (P,), 0 is none.
        new: (N + 1,) zeros, or -1 where a label becomes 0; overwritten.
        old: (N,), written: the old label of each new one.
    """
    count = 0
    new[0] = -1
    for p in range(labels.shape[0]):
        label = labels[p]
        if new[label] == 0:
            old[count] = label
            count += 1
            new[label] = count
        labels[p] = max(new[label], 0)
    return count


@jit
def mark_mixed(
    planar: Floats, labels: Ints, shape: Ints, pixels: Ints, means: Floats, limit: Floats, mixed: Flags
) -> None:
    """Mark the unlabelled pixels that are mixtures of two clusters beside them.

    Such a pixel has, along some axis, two different labels within two steps on either side, and lies no farther
    from the straight line between their means than the pixels of the wider cluster do from their mean.

    Args:
        planar: (D, P) embedding.
        labels: (P,) cluster of each pixel, plus one; 0 is none.
        shape: The spatial shape, of P pixels.
        pixels: (n,) the pixels to look at.
        means: (K, D) float64 means of the clusters.
        limit: (K,) squared distance that the pixels of each keep from its mean.
        mixed: (n,), written.
    """
    dimensions = planar.shape[0]
    for i in range(pixels.shape[0]):
        mixed[i] = False
        p = pixels[i]
        stride = 1
        for axis in range(shape.shape[0] - 1, -1, -1):
            place = (p // stride) % shape[axis]
            one = 0
            for step in range(1, min(_THIN, place) + 1):
                if one == 0:
                    one = labels[p - step * stride]
            other = 0
            for step in range(1, min(_THIN, shape[axis] - 1 - place) + 1):
                if other == 0:
                    other = labels[p + step * stride]
            stride *= shape[axis]
            if one == 0 or other == 0 or one == other:
                continue
            length = 0.0
            along = 0.0
            for d in range(dimensions):
                side = means[other - 1, d] - means[one - 1, d]
                length += side * side
                along += side * (planar[d, p] - means[one - 1, d])
            share = min(max(along / length, 0.0), 1.0) if length > 0.0 else 0.0
            away = 0.0
            for d in range(dimensions):
                side = means[other - 1, d] - means[one - 1, d]
                offset = planar[d, p] - means[one - 1, d] - share * side
                away += offset * offset
            if away <= max(limit[one - 1], limit[other - 1]):
                mixed[i] = True


@jit
def count_around(planar: Floats, means: Floats, scale: float, inside: Ints, around: Ints) -> None:
    """Count the pixels (D, n) within `scale`, and within twice that, of each row of `means` (K, D)."""
    dimensions, n = planar.shape
    near = scale * scale
    far = 4.0 * near
    for k in range(means.shape[0]):
        inside[k] = 0
        around[k] = 0
        for p in range(n):
            square = 0.0
            for d in range(dimensions):
                offset = planar[d, p] - means[k, d]
                square += offset * offset
                if square > far:
                    break
            if square <= far:
                around[k] += 1
                if square <= near:
                    inside[k] += 1
