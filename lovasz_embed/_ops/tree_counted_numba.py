"""CPU engine of the tree hinge by counting: O(pixels) for a node, no entry is stored and none is ranked.

Data on their way: the nodes' positive errors are counted into cells (binning.py), some nodes at a time; the counts
become the slope of an entry of every cell; then every error is computed once more, looks its slope up, and goes into
the gradient while its block is in the first-level cache.

Floor: as that of tree_hinge_numba.py without ranking: every pair of a node and a part that is near it costs D
subtractions and multiplications a pixel, twice, and every positive error two random accesses to a table in the
second-level cache. The tables take at most as much memory as the embedding, or those of 8 nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops import distance_kernels
from lovasz_embed._ops.binning import cells, shift_of
from lovasz_embed._ops.binning_kernels import slopes_of_cells
from lovasz_embed._ops.numbered_level import node_means
from lovasz_embed._ops.threads import share
from lovasz_embed._ops.tree_hinge_numba import HingeLevel, Sweep

Array = NDArray[Any]

_FEWEST = 8  # nodes at a time


def counted_level_hinge(level: HingeLevel, scale: float, grad: Array, threads: int, bins: int) -> tuple[Array, Array]:
    """Do what `tree_hinge_numba.level_hinge` does, by counting into `bins` bins per doubling of the error."""
    dtype = level.planes.dtype
    count = len(level.nodes.label)
    losses, slopes = np.zeros(count), np.zeros((count, level.dims.size + 1))
    sweep = Sweep(level, node_means(level.planes, level.dims, level.nodes, threads).astype(dtype), threads)
    near = sweep.near()
    together = max(level.planes.nbytes // (cells(bins) * (4 + dtype.itemsize)), _FEWEST)
    for first in range(0, count, together):
        nodes = range(first, min(first + together, count))
        own = slice(nodes.start, nodes.stop)
        table = _slopes(sweep, nodes, near[own], bins)
        losses[own], slopes[own] = _look_up(sweep, nodes, near[own], table, bins, scale, grad)
    if grad.size:
        sweep.spread(slopes[:, :-1], grad)
    return losses, slopes[:, -1]


def _slopes(sweep: Sweep, nodes: range, near: Array, bins: int) -> Array:
    """Count the errors of some nodes, and return the slope of an entry of every cell, (nodes, cells)."""
    level = sweep.level
    counts = np.zeros((len(nodes), cells(bins)), np.int32)
    slopes = np.empty(counts.shape, level.planes.dtype)
    # A task has nodes of its own, and no other writes to their cells. Few tasks read the embedding few times.
    size = -(-len(nodes) // (2 * sweep.threads))

    def count(begin: int) -> None:
        chosen = nodes[begin : begin + size]
        for b in range(len(level.planes)):
            found, columns = sweep.of_picture(b, chosen)
            rows = slice(found.start - nodes.start, found.stop - nodes.start)
            distance_kernels.count_cells(
                *sweep.pixels(b), sweep.group(b), 0, sweep.blocks, found.start, sweep.groups(), *sweep.shape,
                level.cut, near[rows, columns], shift_of(bins), counts[rows],
            )  # fmt: skip
        for node in chosen:
            row = counts[node - nodes.start]
            row[1] = level.nodes.size[node] - row[3::2].sum(dtype=np.int64)  # foreground without a positive error
            slopes_of_cells(row, slopes[node - nodes.start])

    share(count, range(0, len(nodes), size), sweep.threads)
    return slopes


def _look_up(
    sweep: Sweep, nodes: range, near: Array, table: Array, bins: int, scale: float, grad: Array
) -> tuple[Array, Array]:
    """Add to the gradient; return the losses, (nodes,), and the slopes along means and squared radii, (nodes, D + 1).

    Sums are summed in the order of the runs.
    """
    level = sweep.level
    sums = np.zeros((len(sweep.runs), len(nodes), level.dims.size + 1))
    losses = np.zeros((len(sweep.runs), len(nodes)))
    flat = grad.reshape(sweep.planes.shape) if grad.size else grad.reshape(len(sweep.planes), 0)

    def look_up(number: int) -> None:
        b, first, last = sweep.runs[number]
        found, columns = sweep.of_picture(b, nodes)
        rows = slice(found.start - nodes.start, found.stop - nodes.start)
        distance_kernels.look_up(
            *sweep.pixels(b), sweep.group(b), first, last, found.start, sweep.groups(), *sweep.shape, level.cut,
            near[rows, columns], shift_of(bins), table[rows], level.bandwidth, scale, flat[b], sums[number, rows],
            losses[number, rows],
        )  # fmt: skip

    share(look_up, range(len(sweep.runs)), sweep.threads)
    return losses.sum(0), sums.sum(0)
