"""Clusters of some thousand points by density: single linkage under mutual reachability, excess of mass.

The tree is that of HDBSCAN* (R. Campello, D. Moulavi, A. Zimek, J. Sander, "Hierarchical density estimates for data
clustering, visualization, and outlier detection", ACM TKDD 10(1), 2015). Two things differ, both because heights are
logarithms of distances here. Excess of mass does not depend on the unit, and five points on one spot do not outweigh
everything. And a branch counts only if it stands out from its surroundings by more than chance makes of an even
density; so a lone cluster needs no special case, and is not taken to pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import density_tree_kernels as kernels

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Map = Callable[[Callable[[int], Any], range], list[Any]]

NEIGHBOURS = 5  # of a point, whose distance says how dense it is there
LEAST = 5  # points of a branch
PROMINENCE = 1.0
"""Least mean logarithm of the density of a branch over that at its foot. Of 200 samples of 64 to 1024 points from a
ball or a Gaussian this divided none in two or more dimensions, and about one in fifty on a line (at 4096 points)."""

_CUTS = 6  # of a cluster into pieces, each doubling them
_BLOCK = 512  # points whose neighbours one task seeks


def select_clusters(points: Floats, run: Map, *, widest: float = math.inf, rounding: float = 0.0) -> Ints:
    """Return the cluster of each point, 0 ... K - 1 in the order of their first points; -1 is noise.

    Args:
        points: (n, D), finite.
        run: `map_threads`, or a serial stand-in.
        widest: A branch whose points have a larger root mean square distance to their mean is no cluster, unless it
            does not divide.
        rounding: Distances below it mean nothing.

    Notes:
        O(n² D) time, O(n D) memory. The result does not depend on the number of threads.
    """
    n = len(points)
    if n < LEAST:
        return np.full(n, -1, np.int64)
    scale = float(np.abs(points).max()) or 1.0
    columns = np.ascontiguousarray(points.T) / scale  # no square overflows
    columns -= columns.mean(1, keepdims=True)
    # On a line even densities fluctuate most: more neighbours, where there are enough points.
    neighbours = NEIGHBOURS if columns.shape[0] > 1 else min(max(n // 25, NEIGHBOURS), 2 * NEIGHBOURS)
    nearest = np.empty((n, min(neighbours, n - 1)))
    run(
        lambda begin: kernels.nearest_distances(columns, begin, min(begin + _BLOCK, n), nearest),
        range(0, n, _BLOCK),
    )
    source, target, weight = np.empty(n - 1, np.int64), np.empty(n - 1, np.int64), np.empty(n - 1)
    kernels.spanning_tree(columns, np.ascontiguousarray(nearest[:, -1]), source, target, weight)
    order = np.argsort(weight, kind="stable")
    children, sizes = np.empty((n - 1, 2), np.int64), np.empty(2 * n - 1, np.int64)
    kernels.merge(source, target, order, children, sizes)
    floor = max(rounding / scale, 1e-12) ** 2
    height = 0.5 * np.log(np.maximum(weight[order], floor))
    above, member = np.empty(n, np.int64), np.empty(n, np.int64)
    birth, excess = np.empty(n), np.empty(n)
    count = kernels.condense(children, height, sizes, LEAST, above, birth, excess, member)
    above, excess = above[:count], excess[:count]
    mass = np.bincount(member, minlength=count)
    for branch in range(count - 1, 0, -1):  # parts come after what they divide from
        mass[above[branch]] += mass[branch]
    needed = PROMINENCE / _dimension(nearest, floor)
    wide = _spread(columns.T, member, above, mass) * scale > widest if widest < math.inf else np.zeros(count, np.bool_)
    owner = _choose(above, excess, mass, needed, wide)[member]
    values, first = np.unique(owner, return_index=True)
    values = values[np.argsort(first, kind="stable")]
    values = values[values >= 0]
    number = np.full(count + 1, -1, np.int64)  # owner -1 reads the last place
    number[values] = np.arange(len(values))
    labels: Ints = number[owner]
    return labels


def _choose(above: Ints, excess: Floats, mass: Ints, needed: float, wide: NDArray[np.bool_]) -> Ints:
    """Return the chosen branch that each branch lies in, -1 where there is none.

    Upwards from the tips: a division counts if both sides stand out; otherwise they are one. Of a branch and
    the best choice of branches inside it the one with more excess of mass is taken.
    """
    count = len(above)
    parts: list[list[int]] = [[] for _ in range(count)]
    own = excess.copy()  # the excess of the branch as one cluster
    best = np.zeros(count)
    divided = np.zeros(count, np.bool_)  # whether something inside it was chosen
    dropped = np.zeros(count, np.bool_)
    for branch in range(count - 1, -1, -1):
        inside = parts[branch]
        weak = [not divided[part] and own[part] < needed * mass[part] for part in inside]
        if inside and any(weak) and not any(divided[part] for part in inside):
            own[branch] += sum(own[part] for part in inside)  # one cluster, as if it had not divided
            inside = []
        for part, is_weak in zip(inside, weak, strict=False):
            dropped[part] = is_weak  # a clump of noise beside clusters
        within = sum(best[part] for part in inside if not dropped[part])
        divided[branch] = bool(inside) and (within > own[branch] or bool(wide[branch]))
        best[branch] = within if divided[branch] else own[branch]
        if branch:
            parts[above[branch]].append(branch)
    owner = np.full(count, -1, np.int64)
    for branch in range(count):
        if branch and not divided[above[branch]]:
            owner[branch] = owner[above[branch]]
            divided[branch] = False
        elif not divided[branch] and not dropped[branch]:
            owner[branch] = branch
    return owner


def _dimension(nearest: Floats, floor: float) -> float:
    """Estimate the dimension that the points fill, from the ratios of their neighbours' distances.

    E. Levina, P. Bickel, "Maximum likelihood estimation of intrinsic dimension", NIPS 2004.
    """
    logs = 0.5 * np.log(np.maximum(nearest, floor))
    growth = (logs[:, -1:] - logs[:, :-1])[logs[:, -1] > logs[:, 0]]
    return max(1.0, 1.0 / float(growth.mean())) if growth.size else 1.0


def _spread(points: Floats, member: Ints, above: Ints, mass: Ints) -> Floats:
    """Return the root mean square distance of each branch's points to their mean."""
    sums = np.zeros((len(above), points.shape[1]))
    squares = np.zeros(len(above))
    np.add.at(sums, member, points)
    np.add.at(squares, member, (points * points).sum(1))
    for branch in range(len(above) - 1, 0, -1):
        sums[above[branch]] += sums[branch]
        squares[above[branch]] += squares[branch]
    means = sums / mass[:, None]
    spread: Floats = np.sqrt(np.maximum(squares / mass - (means * means).sum(1), 0.0))
    return spread


def prototypes(points: Floats, labels: Ints) -> tuple[Floats, Ints]:
    """Return means (Q, D), and the cluster of each, such that the nearest mean tells the clusters of the points apart.

    One mean per cluster is enough where clusters are round. One whose points lie nearer to another's mean in more
    than a case of twenty is cut in two, between two points far apart, until they do not or pieces get small.
    """
    count = int(labels.max(initial=-1)) + 1
    points, labels = points[labels >= 0], labels[labels >= 0]
    piece, cluster = labels.copy(), np.arange(count)
    members = np.bincount(labels, minlength=count)
    for _ in range(_CUTS):
        means = _means(points, piece, len(cluster))
        owner = nearest_means(points, means)
        wrong = np.bincount(labels[cluster[owner] != labels], minlength=count) > 0.05 * members
        sizes = np.bincount(piece, minlength=len(cluster))
        before = len(cluster)
        for q in np.flatnonzero(wrong[cluster] & (sizes >= 2 * LEAST)):
            own = np.flatnonzero(piece == q)
            one = points[own[((points[own] - means[q]) ** 2).sum(1).argmax()]]
            away = ((points[own] - one) ** 2).sum(1)
            nearer = ((points[own] - points[own[away.argmax()]]) ** 2).sum(1) < away
            if nearer.any():
                piece[own[nearer]] = len(cluster)
                cluster = np.append(cluster, cluster[q])
        if len(cluster) == before:
            break
    return _means(points, piece, len(cluster)), cluster


def nearest_means(points: Floats, means: Floats) -> Ints:
    """Return the index of the nearest of the means (Q, D) for each point (n, D); the first wins ties."""
    owner = np.zeros(len(points), np.int64)
    kernels.nearest_mean(points, means, owner)
    return owner


def _means(points: Floats, piece: Ints, count: int) -> Floats:
    sums = np.stack([np.bincount(piece, column, minlength=count) for column in points.T], 1)
    means: Floats = sums / np.maximum(np.bincount(piece, minlength=count), 1)[:, None]
    return means
