"""Numba kernels that sort the pixels of a picture into a tree of boxes of the embedding space.

Boxes halve the pixels, not the space: outliers, dense spots and the number of dimensions cost nothing extra. A forest
is five arrays over its nodes in preorder, so that whatever lies below node n is the nodes n + 1 ... skip[n] - 1 and
the points begin[n] ... end[n] - 1; a node with skip[n] = n + 1 is a leaf.

Arrays in, arrays out. The number of nodes is not known before: these alone come from a kernel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

_SAMPLE = 17  # points, or up to twice as many, among which a median is sought


@jit
def gather(planar: Floats, classes: Ints, places: Ints, points: Floats, index: Ints) -> None:
    """Copy the pixels of classes 0 and above side by side, class after class.

    Args:
        planar: (D, P) embedding.
        classes: (P,), negative where a pixel is left out.
        places: (C,), where the points of each class begin; moved to where they end.
        points: (D, n), written.
        index: (n,), written: the pixel of each point.
    """
    n = 0
    if places.shape[0] == 1:  # one after the other: loops that need no table
        for p in range(classes.shape[0]):
            index[n] = p
            n += classes[p] >= 0
            if n == index.shape[0]:
                break
        places[0] = n
    else:
        for p in range(classes.shape[0]):
            c = classes[p]
            if c >= 0:
                index[places[c]] = p
                places[c] += 1
    for d in range(planar.shape[0]):
        for i in range(index.shape[0]):
            points[d, i] = planar[d, index[i]]


@jit
def halve(points: Floats, index: Ints, begin: int, end: int, wrong: Ints) -> int:
    """Reorder the points begin ... end - 1 into two boxes; return where the second begins, or `end` if all are equal.

    They are split at about the median of the coordinate that varies most, by a sample of them; points that equal
    the smallest value stay together.

    Args:
        points: (D, n), reordered.
        index: (n,), reordered alike.
        begin: First point.
        end: One past the last.
        wrong: (n,), overwritten from `begin` to `end`.
    """
    size = end - begin
    step = max(size // _SAMPLE, 1)
    axis = -1
    widest = points.dtype.type(0)
    for d in range(points.shape[0]):
        least = most = points[d, begin]
        for i in range(begin, end, step):
            least = min(least, points[d, i])
            most = max(most, points[d, i])
        width = most / 2 - least / 2  # halves: the difference of two large floats may not be finite
        if width > widest:
            axis, widest = d, width
    if axis < 0:  # all that were looked at are equal
        for d in range(points.shape[0]):
            for i in range(begin, end):
                if points[d, i] != points[d, begin]:
                    axis = d
                    break
            if axis >= 0:
                break
    if axis < 0:
        return end
    row = points[axis]
    sample = row[begin:end:step].copy()
    sample.sort()
    split = sample[sample.shape[0] // 2]
    middle = begin
    for i in range(begin, end):
        middle += row[i] < split
    if middle == begin:  # the median is the smallest value: those that equal it are the first half
        following = row[begin:end].max()
        for i in range(begin, end):
            if split < row[i] < following:
                following = row[i]
        split = following
        for i in range(begin, end):
            middle += row[i] < split
    # What is on the wrong side, without branches that nobody can foretell.
    half = size // 2
    lower, upper = wrong[begin : begin + half], wrong[begin + half : end]
    count = 0
    for i in range(begin, middle):
        if count == half:
            break
        lower[count] = i
        count += row[i] >= split
    found = 0
    for i in range(middle, end):
        if found == count:
            break
        upper[found] = i
        found += row[i] < split
    for d in range(points.shape[0]):
        row = points[d]
        for j in range(count):
            row[lower[j]], row[upper[j]] = row[upper[j]], row[lower[j]]
    for j in range(count):
        index[lower[j]], index[upper[j]] = index[upper[j]], index[lower[j]]
    return middle


@jit
def build(
    points: Floats, index: Ints, firsts: Ints, lasts: Ints, leaf: int, wrong: Ints
) -> tuple[Ints, Ints, Ints, Ints, Floats, Floats, Ints]:
    """Build a tree over each range of points; reorder the points within it.

    Args:
        points: (D, n), reordered.
        index: (n,), reordered alike.
        firsts: (T,), where the ranges begin; none is empty.
        lasts: (T,), where they end.
        leaf: Most points of a leaf, unless they are all equal.
        wrong: (n,), overwritten within the ranges.

    Returns:
        begin, end, skip (see above), parent (-1: none), low and high (the corners of the boxes, (N, D)) of the N
        nodes, and the (T,) roots.
    """
    room = 64 + 4 * (points.shape[1] // leaf)
    begin, end = np.empty(room, np.int32), np.empty(room, np.int32)
    parent = np.empty(room, np.int32)
    roots = np.empty(firsts.shape[0], np.int32)
    waiting = np.empty((64, 3), np.int64)  # the larger half waits: sizes at least halve from one to the next
    nodes = 0
    for tree in range(firsts.shape[0]):
        roots[tree] = nodes
        waiting[0] = firsts[tree], lasts[tree], -1
        depth = 1
        while depth > 0:
            depth -= 1
            first, last, above = waiting[depth]
            if nodes == room:
                begin, end, parent = np.append(begin, begin), np.append(end, end), np.append(parent, parent)
                room *= 2
            begin[nodes], end[nodes], parent[nodes] = first, last, above
            middle = last
            if last - first > leaf:
                middle = halve(points, index, first, last, wrong)
            if middle < last:
                larger_is_second = last - middle > middle - first
                for second in (larger_is_second, not larger_is_second):
                    waiting[depth, 0] = middle if second else first
                    waiting[depth, 1] = last if second else middle
                    waiting[depth, 2] = nodes
                    depth += 1
            nodes += 1
    begin, end, parent = begin[:nodes].copy(), end[:nodes].copy(), parent[:nodes].copy()
    skip = np.zeros(nodes, np.int32)
    low = np.full((nodes, points.shape[0]), np.inf, points.dtype)
    high = np.full((nodes, points.shape[0]), -np.inf, points.dtype)
    for n in range(nodes - 1, -1, -1):  # what is below a node comes after it
        if skip[n] == 0:
            skip[n] = n + 1
            for d in range(points.shape[0]):
                for i in range(begin[n], end[n]):
                    low[n, d] = min(low[n, d], points[d, i])
                    high[n, d] = max(high[n, d], points[d, i])
        above = parent[n]
        if above >= 0:
            skip[above] = max(skip[above], skip[n])
            for d in range(points.shape[0]):
                low[above, d] = min(low[above, d], low[n, d])
                high[above, d] = max(high[above, d], high[n, d])
    return begin, end, skip, parent, low, high, roots
