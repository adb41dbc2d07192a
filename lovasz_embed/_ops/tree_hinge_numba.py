"""CPU engine of the tree hinge: node by node, never nodes x pixels, with the gradient known at the end of forward.

Data on their way: a level's labels become `member`, the node of every pixel; pixels are looked at in blocks; a
batch is as many nodes as have room together, each with the blocks that can hold a positive error of it. A batch's
errors are computed, ranked (ranking.py) and pushed back into the embedding's gradient before the next one's.

Floor: reading the active blocks of every node once for the errors and once for the gradient, 4 D bytes a pixel, and
ranking the positive errors. Scratch is 25 bytes a pixel for float32, for any number of nodes and threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops import distance_kernels, node_kernels
from lovasz_embed._ops.node_kernels import BLOCK
from lovasz_embed._ops.numbered_level import NumberedLevel, node_means
from lovasz_embed._ops.ranking import weigh_words
from lovasz_embed._ops.ranking_kernels import ERROR, compact
from lovasz_embed._ops.scratch import scratch
from lovasz_embed._ops.threads import share

Array = NDArray[Any]

_NO_LABEL = -(2**63)
_RUN = 64  # blocks that one task computes the errors of
_CHUNKS = 32  # parts of the batch of pictures that are pushed side by side, and summed in order


def level_hinge(
    planes: Array,
    dims: Array,
    level: NumberedLevel,
    parents: tuple[Array, NumberedLevel] | None,
    radius2: Array,
    margin2: float,
    *,
    gaussian: bool,
    cut: float,
    scale: float,
    grad: Array,
    threads: int,
) -> tuple[Array, Array]:
    """Return the loss of every node, and its slope along the squared radius times `scale`; (K,) float64 each.

    Args:
        planes: The embedding (B, D, P).
        dims: The dimensions that the level looks at.
        level: Its nodes.
        parents: The parent of each node and the level above, if only siblings are negatives.
        radius2: (K,) in the embedding's dtype.
        margin2: Squared margin of the margin kernel.
        gaussian: Whether the kernel is the gaussian one.
        cut: Error up to which a negative is left out (gaussian).
        scale: Factor of the losses' gradient.
        grad: Added to: scale times the slope of the sum of the losses, (B, D, P). Empty: not wanted.
        threads: How many share the work.
    """
    batch, _, pixels = planes.shape
    blocks = -(-pixels // BLOCK)
    count = len(level.label)
    losses, slopes = np.zeros(count), np.zeros(count)
    means = node_means(planes, dims, level, threads)
    centres, reaches = np.empty((dims.size, batch * blocks), planes.dtype), np.empty(batch * blocks, planes.dtype)
    share(lambda b: node_kernels.balls(planes[b], dims, b * blocks, centres, reaches), range(batch), threads)
    inner, outer = _dead_zone(radius2.astype(np.float64), margin2, gaussian, cut)
    narrow = means.astype(planes.dtype)
    mean_slopes = np.zeros((count, dims.size))
    room = batch * blocks
    active = np.empty(2 * room, np.int32)
    dtype = planes.dtype

    def blocks_of(node: int, at: int) -> int:
        first = level.first_block(node, blocks)
        touched = level.touched[node]
        allowed = np.ones_like(touched)
        if parents is not None:
            parent, above = parents
            start = first - above.first_block(int(parent[node]), blocks)
            allowed = above.touched[parent[node], start : start + touched.size]
        return node_kernels.blocks_of(
            node, narrow[node], first, centres, reaches, level.kind, touched, allowed,
            inner[node], outer[node], active, at,
        )  # fmt: skip

    with scratch(
         (room * BLOCK, dtype), (room * BLOCK, np.uint8), (room * BLOCK, np.int64),
        (room * BLOCK, np.int64), (room * BLOCK, dtype),
    ) as (errors, mask, words, spare, weights):  # fmt: skip
        for nodes, starts in _batches(count, room, blocks_of, active):
            own = slice(nodes.start, nodes.stop)
            some = _Batch(
                planes, dims, level, parents, narrow, radius2, margin2, gaussian, cut, nodes, active, starts
            )  # fmt: skip
            weights[: starts[-1] * BLOCK] = 0
            losses[own] = some.losses(errors, mask, words, spare, weights, threads)
            if grad.size:
                sums = some.push(errors, mask, weights, scale, grad, threads)
                mean_slopes[own], slopes[own] = sums[:, :-1], sums[:, -1]
    if grad.size:
        shares = np.zeros((dims.size, count + 2), dtype)
        shares[:, 2:] = (mean_slopes / level.size[:, None]).T
        share(lambda b: distance_kernels.spread(level.member[b], dims, shares, grad[b]), range(batch), threads)
    return losses, slopes


def _batches(
    count: int, room: int, blocks_of: Callable[[int, int], int], active: Array
) -> Iterator[tuple[range, list[int]]]:
    """Yield as many nodes as have room together, and where each of them has its blocks in `active`."""
    first, starts = 0, [0]
    for node in range(count):
        end = blocks_of(node, starts[-1])
        if end > room:
            yield range(first, node), starts
            # The one that had no room begins the next batch.
            own = active[starts[-1] : end].copy()
            active[: own.size] = own
            first, starts, end = node, [0], own.size
        starts.append(end)
    if count:
        yield range(first, count), starts


def _dead_zone(radius2: Array, margin2: float, gaussian: bool, cut: float) -> tuple[Array, Array]:
    """Return up to where a positive, and from where on a negative costs nothing, for every node."""
    if gaussian:
        reach2 = radius2 * np.log2(2 / cut) if cut > 0 else np.full_like(radius2, np.inf)
        return np.zeros_like(radius2), np.sqrt(reach2)
    return np.sqrt(np.maximum(radius2 - margin2, 0)), np.sqrt(radius2 + margin2)


@dataclass(frozen=True)
class _Batch:
    """Some nodes of a level and their active blocks: the n-th has active[starts[n] : starts[n + 1]]."""

    planes: Array
    dims: Array
    level: NumberedLevel
    parents: tuple[Array, NumberedLevel] | None
    means: Array
    radius2: Array
    margin2: float
    gaussian: bool
    cut: float
    nodes: range
    active: Array
    starts: Sequence[int]

    def losses(
        self, errors: Array, mask: Array, words: Array, spare: Array, weights: Array, threads: int
    ) -> list[float]:
        """Compute and rank the errors; write the slopes along the logits to `weights`."""
        runs = [
            (n, first, min(first + _RUN, stop))
            for n, (start, stop) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True))
            for first in range(start, stop, _RUN)
        ]
        found = share(partial(self._compact, errors=errors, mask=mask, words=words), runs, threads)
        by_node: list[list[tuple[int, int, int, int]]] = [[] for _ in self.nodes]
        for (n, first, _), (end, low, high, *_) in zip(runs, found, strict=True):
            by_node[n].append((first * BLOCK, end, low, high))
        weigh = partial(self._weigh, errors=errors, words=words, spare=spare, weights=weights)
        if len(by_node) >= 4 * threads:
            return share(lambda n: weigh(n, by_node[n], threads=1), range(len(by_node)), threads)
        return [weigh(n, runs_of_node, threads=threads) for n, runs_of_node in enumerate(by_node)]

    def _compact(
        self, run: tuple[int, int, int], errors: Array, mask: Array, words: Array
    ) -> tuple[int, int, int, int, int]:
        n, first, last = run
        node = self.nodes[n]
        parent, above = self.parents or (None, None)
        place, length = first * BLOCK, (last - first) * BLOCK
        scalar = self.planes.dtype.type
        distance_kernels.node_errors(
            self.planes, self.dims, self.level.member,
            self.level.member[:0] if above is None else above.member,
            0 if parent is None else int(parent[node]),
            node, self.means[node], self.radius2[node], scalar(self.margin2), self.gaussian, self.cut,
            self.active, first, last, errors[place : place + length], mask[place : place + length],
        )  # fmt: skip
        return compact(errors, mask, place, place, length, 1, _NO_LABEL, ERROR, words, place)

    def _weigh(
        self,
        n: int,
        runs: list[tuple[int, int, int, int]],
        *,
        errors: Array,
        words: Array,
        spare: Array,
        weights: Array,
        threads: int,
    ) -> float:
        if not runs:
            return 0.0
        region = slice(runs[0][0], self.starts[n + 1] * BLOCK)
        filled = [(start - region.start, end - region.start) for start, end, _, _ in runs]
        low, high = min(run[2] for run in runs), max(run[3] for run in runs)
        size = int(self.level.size[self.nodes[n]])
        return weigh_words(words[region], spare[region], filled, low, high, errors, ERROR, size, weights, threads)

    def push(self, errors: Array, mask: Array, weights: Array, scale: float, grad: Array, threads: int) -> Array:
        """Add the gradient of the embeddings; return the slopes along means and squared radii, (nodes, D + 1)."""
        batch, _, pixels = self.planes.shape
        edges = np.linspace(0, batch * -(-pixels // BLOCK), _CHUNKS + 1).astype(np.int64)
        starts = np.asarray(self.starts)
        sums = np.zeros((_CHUNKS, len(self.nodes), self.dims.size + 1))

        def push(chunk: int) -> None:
            distance_kernels.push(
                self.planes, self.dims, self.means, self.radius2, self.margin2, self.gaussian, scale,
                self.nodes.start, self.active, starts, edges[chunk], edges[chunk + 1],
                errors, mask, weights, grad, sums[chunk],
            )  # fmt: skip

        share(push, range(_CHUNKS), threads)
        total: Array = sums.sum(0)
        return total
