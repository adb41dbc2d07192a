"""Numba kernels over the core points of a density clustering: neighbours, spanning tree, condensed tree.

Arrays in, arrays out; the caller allocates what is returned. Points are columns (D, n) of float64: the loops run
along the points, which the compiler turns into vectors. Distances are squared unless a name says otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@jit
def nearest_distances(columns: Floats, begin: int, end: int, nearest: Floats) -> None:
    """Write the smallest distances from the points `begin` to `end` to all others, ascending.

    Args:
        columns: (D, n).
        begin: First point of the range.
        end: One past its last point.
        nearest: (n, k) rows written; k is below n.
    """
    dimensions, n = columns.shape
    k = nearest.shape[1]
    distance = np.empty(n, np.float64)
    for i in range(begin, end):
        for j in range(n):
            distance[j] = 0.0
        for d in range(dimensions):
            value = columns[d, i]
            for j in range(n):
                difference = columns[d, j] - value
                distance[j] += difference * difference
        distance[i] = np.inf  # not its own neighbour
        for place in range(k):
            nearest[i, place] = np.inf
        for j in range(n):
            if distance[j] < nearest[i, k - 1]:
                place = k - 1
                while place > 0 and nearest[i, place - 1] > distance[j]:
                    nearest[i, place] = nearest[i, place - 1]
                    place -= 1
                nearest[i, place] = distance[j]


@jit
def spanning_tree(columns: Floats, core: Floats, source: Ints, target: Ints, weight: Floats) -> None:
    """Write a minimum spanning tree under mutual reachability, max(|x - y|², core_x, core_y); Prim's algorithm.

    Args:
        columns: (D, n).
        core: (n,) distance of each point to its k-th neighbour.
        source: (n - 1,), written: the end of each edge that was in the tree before.
        target: (n - 1,), written: the other end.
        weight: (n - 1,), written.
    """
    dimensions, n = columns.shape
    outside = columns.copy()  # the points outside the tree stay packed in front: the loops get shorter
    names = np.arange(n)
    cores = core.copy()
    best = np.full(n, np.inf)
    link = np.zeros(n, np.int64)
    distance = np.empty(n, np.float64)
    point = np.empty(dimensions, np.float64)
    pick = 0
    for step in range(n):
        name = names[pick]
        own_core = cores[pick]
        point[:] = outside[:, pick]
        if step > 0:
            source[step - 1] = link[pick]
            target[step - 1] = name
            weight[step - 1] = best[pick]
        last = n - 1 - step
        outside[:, pick] = outside[:, last]
        names[pick] = names[last]
        cores[pick] = cores[last]
        best[pick] = best[last]
        link[pick] = link[last]
        for j in range(last):
            distance[j] = 0.0
        for d in range(dimensions):
            value = point[d]
            for j in range(last):
                difference = outside[d, j] - value
                distance[j] += difference * difference
        pick = 0
        least = np.inf
        for j in range(last):
            reach = max(distance[j], cores[j], own_core)
            if reach < best[j]:
                best[j] = reach
                link[j] = name
            if best[j] < least:
                least = best[j]
                pick = j


@jit
def _top(parent: Ints, i: int) -> int:
    """Return the representative of i, halving the path to it."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@jit
def merge(source: Ints, target: Ints, order: Ints, children: Ints, sizes: Ints) -> None:
    """Turn a spanning tree into a tree of merges: nodes 0 ... n - 1 are points, n + r is the r-th merge.

    Args:
        source: (n - 1,) one end of each edge.
        target: (n - 1,) the other.
        order: (n - 1,), the edges by ascending weight.
        children: (n - 1, 2), written: the two nodes of each merge.
        sizes: (2 n - 1,), written: points below each node.
    """
    n = len(source) + 1
    parent = np.arange(n)
    node = np.arange(n)  # the merge that each representative stands for
    sizes[:n] = 1
    for r in range(n - 1):
        one = _top(parent, source[order[r]])
        other = _top(parent, target[order[r]])
        children[r, 0] = node[one]
        children[r, 1] = node[other]
        sizes[n + r] = sizes[node[one]] + sizes[node[other]]
        if sizes[node[one]] < sizes[node[other]]:
            one, other = other, one
        parent[other] = one
        node[one] = n + r


@jit
def condense(
    children: Ints, height: Floats, sizes: Ints, least: int, above: Ints, birth: Floats, excess: Floats, member: Ints
) -> int:
    """Condense the tree of merges; return the number of its branches. Branch 0 is the root.

    Walking down, a branch divides where both parts hold at least `least` points; a smaller part falls out of it.

    Args:
        children: (n - 1, 2), see `merge`.
        height: (n - 1,) height of each merge, ascending.
        sizes: (2 n - 1,) points below each node.
        least: Fewest points of a branch.
        above: (n,), written: the branch that each one divides from, -1 for the root. It comes before its parts.
        birth: (n,), written: the height at which each branch begins; of the root, that of the last merge.
        excess: (n,), written: over the points of the branch, how far they follow it down before they fall out of it
            or it divides: the sum of birth minus that height.
        member: (n,), written: the lowest branch that holds each point.
    """
    n = len(children) + 1
    branch = np.zeros(2 * n - 1, np.int64)
    fallen = np.zeros(2 * n - 1, np.bool_)
    above[0] = -1
    birth[0] = height[n - 2]
    excess[0] = 0.0
    count = 1
    for node in range(2 * n - 2, n - 1, -1):
        here = branch[node]
        r = node - n
        divides = min(sizes[children[r, 0]], sizes[children[r, 1]]) >= least
        for part in children[r]:
            branch[part] = here
            fallen[part] = fallen[node]
            if fallen[node]:
                continue
            if divides:
                excess[here] += sizes[part] * (birth[here] - height[r])
                branch[part] = count
                above[count] = here
                birth[count] = height[r]
                excess[count] = 0.0
                count += 1
            elif sizes[part] < least:
                excess[here] += sizes[part] * (birth[here] - height[r])
                fallen[part] = True
    member[:] = branch[:n]
    return count


@jit
def nearest_mean(points: Floats, means: Floats, owner: Ints) -> None:
    """Write the index of the nearest row of `means` (Q, D) for each of the `points` (n, D); the first wins ties."""
    for i in range(points.shape[0]):
        least = np.inf
        for q in range(means.shape[0]):
            distance = 0.0
            for d in range(points.shape[1]):
                difference = points[i, d] - means[q, d]
                distance += difference * difference
            if distance < least:
                least = distance
                owner[i] = q
