"""CPU engine of the tree hinge: never nodes x pixels, and the gradient is known at the end of forward.

Data on their way: a level's labels become `member`, the node of every pixel. Pixels are looked at in blocks of eight
parts. A first pass counts the positive errors of every node in every block, in the parts that can hold any; now it is
known which nodes have room together. Their errors are written, ranked (ranking.py) and pushed back into the
embedding's gradient, then those of the next.

Floor: every pair of a node and a part that is near it costs D subtractions and multiplications a pixel, twice; every
positive error is ranked and pushed into D dimensions. Scratch is 22 to 28 bytes a pixel for float32, more only beside
larger embeddings, for any number of nodes and threads, and at most 12 bytes a pair of node and block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops import distance_kernels, node_kernels, push_kernels
from lovasz_embed._ops.node_kernels import BLOCK
from lovasz_embed._ops.numbered_level import NumberedLevel, node_means
from lovasz_embed._ops.ranking import LARGEST, weigh_words
from lovasz_embed._ops.ranking_kernels import ERROR
from lovasz_embed._ops.scratch import scratch
from lovasz_embed._ops.threads import share

Array = NDArray[Any]

_RUN = 64  # blocks that one task goes through


@dataclass(frozen=True)
class HingeLevel:
    """A level and everything that its errors depend on.

    Attributes:
        planes: The embedding (B, D, P), contiguous.
        dims: The dimensions that the level looks at.
        nodes: The level's nodes.
        parents: The parent of each node and the level above, if only siblings are negatives.
        radius2: Squared radius of each node, (K,), in the embedding's dtype.
        margin2: Squared margin of the margin kernel.
        gaussian: Whether the kernel is the gaussian one.
        cut: Error up to which a negative is left out (gaussian).
        bandwidth: Whether the radii are learnt.
    """

    planes: Array
    dims: Array
    nodes: NumberedLevel
    parents: tuple[Array, NumberedLevel] | None
    radius2: Array
    margin2: float
    gaussian: bool
    cut: float
    bandwidth: bool


def level_hinge(level: HingeLevel, scale: float, grad: Array, threads: int) -> tuple[Array, Array]:
    """Return the loss of every node, and its slope along the squared radius, times `scale`; (K,) float64 each.

    Without a bandwidth to learn the slopes are 0.

    Args:
        level: The level.
        scale: Factor of the gradient.
        grad: Added to: `scale` times the gradient of the sum of the losses, (B, D, P). Empty: not wanted.
        threads: How many share the work.
    """
    dtype = level.planes.dtype
    count = len(level.nodes.label)
    losses, slopes = np.zeros(count), np.zeros((count, level.dims.size + 1))
    sweep = Sweep(level, node_means(level.planes, level.dims, level.nodes, threads).astype(dtype), threads)
    near, counts = sweep.count()
    room = _room(level)
    # Without them a positive float32 error is read from its word.
    errors_kept = room if level.gaussian or dtype == np.float64 else 0
    parts = ((room, np.int64), (room, np.int64), (room, np.uint16), (room, dtype), (errors_kept, dtype))
    with scratch(*parts) as (words, spare, places, weights, errors):
        for nodes in _together(counts.sum(1, dtype=np.int64), room):
            own = slice(nodes.start, nodes.stop)
            entries = _Entries.of(nodes, near[own], counts[own], words, spare, places, weights, errors)
            sweep.write(entries)
            losses[own] = sweep.weigh(entries)
            if grad.size:
                slopes[own] = sweep.push(entries, scale, grad)
    if grad.size:
        sweep.spread(slopes[:, :-1], grad)
    return losses, slopes[:, -1]


def _room(level: HingeLevel) -> int:
    """Return how many entries are held at once.

    A node may have as many as there are pixels. More nodes at once save time, for every further batch goes through
    all pixels again: as many as leave the whole, with the gradient, within two and a half times the embedding.
    """
    batch, dims, pixels = level.planes.shape
    spare = 1.5 * dims * level.planes.itemsize - 20  # bytes a pixel
    return min(int(batch * pixels * min(max(spare / 22, 1), 4)) + 1, LARGEST - 1)


def _together(totals: Array, room: int) -> Iterator[range]:
    """Yield ranges of nodes whose entries have room together; no node has more than `room`."""
    first, held = 0, 0
    for node, total in enumerate(totals.tolist()):
        if held + total > room:
            yield range(first, node)
            first, held = node, 0
        held += total
    if totals.size:
        yield range(first, totals.size)


@dataclass(frozen=True)
class _Entries:
    """The positive errors of some nodes, by node, then by block, then by pixel.

    Attributes:
        nodes: The nodes.
        near: The parts of each block that have any, bit by bit, (nodes, N).
        counts: Entries of each node in each block of its pictures, (nodes, N).
        starts: Where they begin, (nodes, N).
        words: A word per entry (`ranking_kernels`), and as much room again in `spare`.
        places: The pixel of each entry, within its block.
        weights: Slopes along the logits, zero until they are ranked.
        errors: The errors, where words do not tell.
    """

    nodes: range
    near: Array
    counts: Array
    starts: Array
    words: Array
    spare: Array
    places: Array
    weights: Array
    errors: Array

    @classmethod
    def of(cls, nodes: range, near: Array, counts: Array, words: Array, spare: Array, *others: Array) -> _Entries:
        """Lay out the entries, as many as `counts` tells, in arrays of enough room."""
        ends = np.cumsum(counts, dtype=np.int32).reshape(counts.shape)  # words have 31 bits for a place as well
        return cls(nodes, near, counts, ends - counts, words, spare, *others)

    def of_node(self, n: int) -> slice:
        """Return where the n-th node's entries lie."""
        start = int(self.starts[n, 0])
        return slice(start, start + int(self.counts[n].sum(dtype=np.int64)))


class Sweep:
    """Passes over the blocks of all pictures, shared among threads; sums are summed in the order of blocks."""

    def __init__(self, level: HingeLevel, means: Array, threads: int) -> None:
        self.level = level
        self.means = means
        self.threads = threads
        batch, dims, pixels = level.planes.shape
        self.planes = level.planes.reshape(batch, dims * pixels)
        self.blocks = -(-pixels // BLOCK)
        self.runs = [
            (b, first, min(first + _RUN, self.blocks)) for b in range(batch) for first in range(0, self.blocks, _RUN)
        ]
        margin2 = level.planes.dtype.type(level.margin2)
        self.shape = (means, level.radius2, margin2, level.gaussian)

    def count(self) -> tuple[Array, Array]:
        """Return the number of positive errors of every node in every block of its pictures, (K, N).

        Before it, the parts that they are in, bit by bit, (K, N).
        """
        near = self.near()
        counts = np.zeros(near.shape, np.uint16)

        def count(run: tuple[int, int, int]) -> None:
            b, first, last = run
            nodes, columns = self.of_picture(b, range(len(counts)))
            distance_kernels.count_errors(
                *self.pixels(b), self.group(b), first, last, nodes.start, self.groups(), *self.shape, self.level.cut,
                near[nodes.start : nodes.stop, columns], counts[nodes.start : nodes.stop, columns],
            )  # fmt: skip

        share(count, self.runs, self.threads)
        return near, counts

    def write(self, entries: _Entries) -> None:
        """Write words, places and errors of the entries."""

        def write(run: tuple[int, int, int]) -> None:
            b, first, last = run
            nodes, columns = self.of_picture(b, entries.nodes)
            rows = slice(nodes.start - entries.nodes.start, nodes.stop - entries.nodes.start)
            distance_kernels.write_errors(
                *self.pixels(b), self.group(b), first, last, nodes.start, self.groups(), *self.shape, self.level.cut,
                entries.near[rows, columns], entries.starts[rows, columns], entries.words, entries.places,
                entries.weights, entries.errors,
            )  # fmt: skip

        share(write, self.runs, self.threads)

    def weigh(self, entries: _Entries) -> list[float]:
        """Rank the entries of each node and write their weights; return the nodes' losses."""
        values = entries.errors if entries.errors.size else entries.weights  # float32 is not looked at

        def weigh(n: int, threads: int) -> float:
            own = entries.of_node(n)
            words = entries.words[own]
            if not words.size:
                return 0.0
            edges = np.linspace(0, words.size, 4 * threads + 1).astype(np.int64).tolist()
            runs = [run for run in pairwise(edges) if run[0] < run[1]]
            ranges = share(lambda run: (words[slice(*run)].min(), words[slice(*run)].max()), runs, threads)
            low, high = (
                int(word >> 32) ^ 0x7FFFFFFF for word in (max(r[1] for r in ranges), min(r[0] for r in ranges))
            )
            size = int(self.level.nodes.size[entries.nodes[n]])
            return weigh_words(
                words, entries.spare[own], runs, low, high, values, ERROR, size, entries.weights, threads
            )

        if len(entries.nodes) >= 4 * self.threads:
            return share(lambda n: weigh(n, 1), range(len(entries.nodes)), self.threads)
        return [weigh(n, self.threads) for n in range(len(entries.nodes))]

    def push(self, entries: _Entries, scale: float, grad: Array) -> Array:
        """Add to the gradient; return the slopes along each node's mean and squared radius, (nodes, D + 1)."""
        sums = np.zeros((len(self.runs), len(entries.nodes), self.level.dims.size + 1))
        flat = grad.reshape(self.planes.shape)

        def push(number: int) -> None:
            b, first, last = self.runs[number]
            nodes, columns = self.of_picture(b, entries.nodes)
            rows = slice(nodes.start - entries.nodes.start, nodes.stop - entries.nodes.start)
            push_kernels.push(
                *self.pixels(b), first, last, nodes.start, *self.shape, self.level.bandwidth, scale,
                entries.counts[rows, columns], entries.starts[rows, columns], entries.places, entries.errors,
                entries.weights, flat[b], sums[number, rows],
            )  # fmt: skip

        share(push, range(len(self.runs)), self.threads)
        total: Array = sums.sum(0)
        return total

    def spread(self, slopes: Array, grad: Array) -> None:
        """Pass the slopes along the means on to the pixels that the means are of."""
        level = self.level
        shares = np.zeros((level.dims.size, len(slopes) + 2), level.planes.dtype)
        shares[:, 2:] = (slopes / level.nodes.size[:, None]).T

        def spread(run: tuple[int, int, int]) -> None:
            b, *blocks = run
            own = slice(*(block * BLOCK for block in blocks))
            push_kernels.spread(level.nodes.member[b, own], level.dims, shares, grad[b, :, own])

        share(spread, self.runs, self.threads)

    def near(self) -> Array:
        """Return the parts of every block that can hold a positive error of a node, bit by bit, (K, N) uint8."""
        level = self.level
        batch, dtype = len(self.planes), level.planes.dtype
        lows, highs = np.empty((2, level.dims.size, batch, self.blocks * 8), dtype)
        integer = np.dtype(f"i{dtype.itemsize}")
        infinity = int(np.array(np.inf, dtype).view(integer))
        planes, low, high = (values.view(integer) for values in (level.planes, lows, highs))
        share(
            lambda run: node_kernels.boxes(
                planes[run[0]], level.dims, *run[1:], infinity, low[:, run[0]], high[:, run[0]]
            ),
            self.runs,
            self.threads,
        )
        lows, highs = lows.reshape(level.dims.size, -1), highs.reshape(level.dims.size, -1)
        corners = (
            lows,
            highs,
            functools.reduce(np.minimum, (lows[:, k::8] for k in range(8))),
            functools.reduce(np.maximum, (highs[:, k::8] for k in range(8))),
        )
        outer = _outer_radius(level)
        near = np.empty(level.nodes.touched.shape, np.uint8)

        def look(node: int) -> None:
            first = level.nodes.first_block(node, self.blocks)
            node_kernels.near_parts(
                node, self.means[node], first, *corners, level.nodes.kind, level.nodes.touched[node],
                self._allowed(node, first), outer[node], near[node],
            )  # fmt: skip

        share(look, range(len(near)), self.threads)
        return near

    def _allowed(self, node: int, first: int) -> Array:
        """Return which blocks of a node's pictures can hold negatives of it."""
        if self.level.parents is None:
            return np.ones_like(self.level.nodes.touched[node])
        parent, above = self.level.parents
        start = first - above.first_block(int(parent[node]), self.blocks)
        touched: Array = above.touched[parent[node], start : start + self.level.nodes.touched.shape[1]]
        return touched

    def pixels(self, b: int) -> tuple[Array, int, Array, Array]:
        return self.planes[b], self.level.planes.shape[2], self.level.dims, self.level.nodes.member[b]

    def group(self, b: int) -> Array:
        parents = self.level.parents
        return self.level.nodes.member[b, :0] if parents is None else parents[1].member[b]

    def groups(self) -> Array:
        return self.level.nodes.label if self.level.parents is None else self.level.parents[0]

    def of_picture(self, b: int, nodes: range) -> tuple[range, slice]:
        """Return those of some nodes that have pixels in a picture, and the picture's columns in their rows."""
        picture = self.level.nodes.picture
        if picture.size and picture[0] < 0:
            return nodes, slice(b * self.blocks, (b + 1) * self.blocks)
        first, last = np.searchsorted(picture, [b, b + 1]).tolist()
        start = min(max(first, nodes.start), nodes.stop)
        return range(start, min(max(last, start), nodes.stop)), slice(0, self.blocks)


def _outer_radius(level: HingeLevel) -> Array:
    """Return the distance from which on a negative costs nothing, for every node."""
    radius2 = level.radius2.astype(np.float64)
    if level.gaussian:
        outer: Array = np.sqrt(radius2 * max(np.log2(2 / max(level.cut, 2e-37)), 0.0))
    else:
        outer = np.sqrt(radius2 + level.margin2)
    return outer
