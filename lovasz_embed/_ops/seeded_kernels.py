"""Numba kernels of the clustering by seeds: look at the pixels, rank the seeds, grow the clusters.

Arrays in, arrays out; the caller allocates what is returned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

_DIGIT = 12  # bits sorted at a time: as many places to write to as the second-level cache holds lines


@jit
def screen(planar: Floats, seeds: Floats, bandwidth: Floats, begin: int, end: int, classes: Ints, faults: Ints) -> None:
    """Take the pixels that hold NaN or Inf out of their class, among the pixels `begin` to `end`.

    Args:
        planar: (D, P) embedding.
        seeds: (P,).
        bandwidth: (W, P), W may be 0.
        begin: First pixel of the range.
        end: One past its last pixel.
        classes: (P,), negative for pixels that are not to be clustered; set to -1 for the others that are not finite.
        faults: (3,), added to: pixels that are not finite, those that are and whose seed is outside [0, 1], and
            those whose bandwidth is not above 0.
    """
    for p in range(begin, end):
        if classes[p] < 0:
            continue
        finite = np.isfinite(seeds[p])
        for d in range(planar.shape[0]):
            finite &= np.isfinite(planar[d, p])
        positive = True
        for d in range(bandwidth.shape[0]):
            finite &= np.isfinite(bandwidth[d, p])
            positive &= bandwidth[d, p] > 0
        if not finite:
            classes[p] = -1
            faults[0] += 1
        else:
            faults[1] += not 0 <= seeds[p] <= 1
            faults[2] += not positive


@jit
def rank(seeds: Floats, classes: Ints, least: np.float32, words: NDArray[np.uint64], spare: NDArray[np.uint64]) -> int:
    """Order the pixels of a class whose seed is at least `least`: highest seed first, ties by pixel; return how many.

    Args:
        seeds: (P,) float32 in [0, 1].
        classes: (P,), negative for pixels that are left out.
        least: The smallest seed that counts.
        words: (P,), written: a pixel each, in order.
        spare: (P,), written.
    """
    one = np.int64(0x3F800000)  # the bits of 1.0; those of positive floats grow with their value
    bits = np.empty(1, np.int32)
    narrow = bits.view(np.float32)
    count = 0
    largest = np.int64(0)
    for p in range(seeds.shape[0]):
        if classes[p] >= 0 and seeds[p] >= least:
            narrow[0] = seeds[p] + np.float32(0.0)  # -0 becomes 0
            key = one - bits[0]
            largest = max(largest, key)
            words[count] = np.uint64(key << 32 | p)
            count += 1
    passes = 0
    while largest >> (passes * _DIGIT):
        passes += 1
    places = np.empty(1 << _DIGIT, np.int64)
    mask = np.uint64((1 << _DIGIT) - 1)
    source, target = words, spare
    for number in range(passes):
        shift = np.uint64(32 + number * _DIGIT)
        places[:] = 0
        for i in range(count):
            places[source[i] >> shift & mask] += 1
        before = 0
        for digit in range(places.shape[0]):
            here = places[digit]
            places[digit] = before
            before += here
        for i in range(count):
            digit = source[i] >> shift & mask
            target[places[digit]] = source[i]
            places[digit] += 1
        source, target = target, source
    for i in range(count):
        words[i] = source[i] & np.uint64(0xFFFFFFFF)
    return count


@jit
def grow(
    points: Floats,
    index: Ints,
    begin: Ints,
    end: Ints,
    skip: Ints,
    parent: Ints,
    low: Floats,
    high: Floats,
    first: Ints,
    planar: Floats,
    classes: Ints,
    order: NDArray[np.uint64],
    bandwidth: Floats,
    radius: float,
    min_size: int,
    min_fresh: float,
    leaf: int,
    labels: Ints,
    grown_from: Ints,
) -> int:
    """Grow clusters from the seeds, one after the other; return how many.

    A proposal is counted by boxes where they lie inside or outside, and point by point where its border runs through
    a leaf. Points of a leaf that have a label lie before those that have none, and those are counted first: when they
    are too few the others need not be looked at. The pixels of a rejected proposal take no turn any more.

    Args:
        points: (D, n), reordered within leaves.
        index: (n,), the pixel of each point, reordered alike.
        begin: (N,) first point of each node; this and the next five: see `seeded_tree_kernels`.
        end: (N,) one past its last point.
        skip: (N,) one past the last node below it.
        parent: (N,).
        low: (N, D) smallest coordinates.
        high: (N, D) largest coordinates.
        first: (C + 1,), where the nodes of each class begin.
        planar: (D, P) embedding.
        classes: (P,).
        order: (S,) the pixels to grow from, in the order of their turns.
        bandwidth: (D, P) one for each dimension, (1, P) one for all, (0, P) none: `radius`.
        radius: See `bandwidth`.
        min_size: Fewest pixels without a label that a cluster takes.
        min_fresh: Share of the proposal's pixels that must be exceeded by those without a label.
        leaf: Most points of a leaf whose points are not all equal.
        labels: (P,), 0; written.
        grown_from: (S,), written: the pixel of each cluster.
    """
    dimensions = points.shape[0]
    fresh = end - begin  # points without a label below each node; in a leaf they are its last ones
    idle = np.ones(classes.shape[0], np.bool_)  # pixels that take no turn, or none any more
    for turn in range(order.shape[0]):
        idle[np.int64(order[turn])] = False
    busy = np.zeros(begin.shape[0], np.int32)  # points that may take one, below each node
    for node in range(begin.shape[0] - 1, -1, -1):
        if skip[node] == node + 1:
            for i in range(begin[node], end[node]):
                busy[node] += not idle[index[i]]
        if parent[node] >= 0:
            busy[parent[node]] += busy[node]
    centre, scale = np.empty(dimensions, np.float64), np.ones(dimensions, np.float64)
    distance = np.empty(leaf, np.float64)
    inside, border = np.empty(begin.shape[0], np.int32), np.empty(begin.shape[0], np.int32)
    taken = np.empty(begin.shape[0], np.int32)
    clusters = 0
    for turn in range(order.shape[0]):
        p = np.int64(order[turn])
        if idle[p]:
            continue
        limit = radius * radius
        if bandwidth.shape[0] == 1:
            limit = np.float64(bandwidth[0, p]) * np.float64(bandwidth[0, p])
        elif bandwidth.shape[0] > 1:
            limit = 1.0
            for d in range(dimensions):
                scale[d] = 1.0 / np.float64(bandwidth[d, p])
        for d in range(dimensions):
            centre[d] = planar[d, p]

        # Where the border runs.
        within, cut = 0, 0
        new, total = 0, 0  # pixels of the proposal without a label, and all, as far as known
        most_new = 0  # those without a label in leaves on the border
        node, stop = first[classes[p]], first[classes[p] + 1]
        while node < stop:
            nearest, farthest = 0.0, 0.0
            for d in range(dimensions):
                below = (np.float64(low[node, d]) - centre[d]) * scale[d]
                above = (np.float64(high[node, d]) - centre[d]) * scale[d]
                gap = max(below, -above, 0.0)
                reach = max(above, -below)
                nearest += gap * gap
                farthest += reach * reach
            # Rounding is monotone: no point's computed distance lies outside the two.
            if nearest > limit:
                node = skip[node]
            elif farthest <= limit:
                inside[within] = node
                within += 1
                new += fresh[node]
                total += end[node] - begin[node]
                node = skip[node]
            else:
                if skip[node] == node + 1:
                    border[cut] = node
                    cut += 1
                    most_new += fresh[node]
                node += 1
        rejected = new + most_new < min_size or new + most_new <= min_fresh * total

        # Pixels without a label, in the leaves on the border: those of the proposal move to the front.
        for j in range(cut):
            if rejected:
                break
            node = border[j]
            start = end[node] - fresh[node]
            most_new -= fresh[node]
            at = start
            _distances(points, start, end[node], centre, scale, distance)
            for i in range(start, end[node]):
                if distance[i - start] <= limit:
                    for d in range(dimensions):
                        points[d, i], points[d, at] = points[d, at], points[d, i]
                    index[i], index[at] = index[at], index[i]
                    at += 1
            taken[j] = at - start
            new += taken[j]
            total += taken[j]
            rejected = new + most_new < min_size or new + most_new <= min_fresh * total

        # The others: are there too many?
        others = 0
        for j in range(cut):
            others += end[border[j]] - begin[border[j]] - fresh[border[j]]
        for j in range(cut):
            if rejected or new > min_fresh * (total + others):
                break
            node = border[j]
            last = end[node] - fresh[node]
            others -= last - begin[node]
            _distances(points, begin[node], last, centre, scale, distance)
            for i in range(last - begin[node]):
                total += distance[i] <= limit
            rejected = new <= min_fresh * total

        if rejected:
            for j in range(cut):
                node = border[j]
                start = end[node] - fresh[node]
                if busy[node] > 0:
                    _distances(points, start, end[node], centre, scale, distance)
                    retired = 0
                    for i in range(start, end[node]):
                        if distance[i - start] <= limit and not idle[index[i]]:
                            idle[index[i]] = True
                            retired += 1
                    _take(busy, parent, node, retired)
            for j in range(within):
                node = inside[j]
                if busy[node] > 0:
                    _take(busy, parent, parent[node], busy[node])
                    for leaf_node in range(node, skip[node]):
                        if skip[leaf_node] == leaf_node + 1 and busy[leaf_node] > 0:
                            for i in range(end[leaf_node] - fresh[leaf_node], end[leaf_node]):
                                idle[index[i]] = True
                        busy[leaf_node] = 0
            continue

        grown_from[clusters] = p
        clusters += 1
        for j in range(cut):
            node = border[j]
            start = end[node] - fresh[node]
            retired = 0
            for i in range(start, start + taken[j]):
                labels[index[i]] = clusters
                retired += not idle[index[i]]
                idle[index[i]] = True
            _take(fresh, parent, node, taken[j])
            _take(busy, parent, node, retired)
        for j in range(within):
            node = inside[j]
            _take(fresh, parent, parent[node], fresh[node])
            _take(busy, parent, parent[node], busy[node])
            for leaf_node in range(node, skip[node]):
                if skip[leaf_node] == leaf_node + 1:
                    for i in range(end[leaf_node] - fresh[leaf_node], end[leaf_node]):
                        labels[index[i]] = clusters
                        idle[index[i]] = True
                fresh[leaf_node] = 0
                busy[leaf_node] = 0
    return clusters


@jit
def _distances(points: Floats, start: int, stop: int, centre: Floats, scale: Floats, distance: Floats) -> None:
    """Write the squared scaled distances of the points `start` to `stop` from the centre; loops that vectorise."""
    for i in range(stop - start):
        distance[i] = 0.0
    for d in range(points.shape[0]):
        row = points[d, start:stop]
        value, factor = centre[d], scale[d]
        for i in range(row.shape[0]):
            offset = (np.float64(row[i]) - value) * factor
            distance[i] += offset * offset


@jit
def _take(fresh: Ints, parent: Ints, node: int, count: int) -> None:
    """Take `count` points off a node and all above it."""
    while node >= 0:
        fresh[node] -= count
        node = parent[node]


@jit
def apart(centres: Floats, radii: Floats, first: Ints, axis: int) -> bool:
    """Return whether every two centres of one class are farther apart than their radii together.

    Args:
        centres: (K, D), sorted by class, then by their coordinate `axis`.
        radii: (K,).
        first: (C + 1,), where the centres of each class begin.
        axis: The coordinate by which centres are sorted.
    """
    for c in range(first.shape[0] - 1):
        widest = 0.0
        for k in range(first[c], first[c + 1]):
            widest = max(widest, radii[k])
        for k in range(first[c], first[c + 1]):
            for j in range(k + 1, first[c + 1]):
                if centres[j, axis] - centres[k, axis] > radii[k] + widest:
                    break
                squares = 0.0
                for d in range(centres.shape[1]):
                    difference = centres[j, d] - centres[k, d]
                    squares += difference * difference
                if np.sqrt(squares) <= radii[k] + radii[j]:
                    return False
    return True
