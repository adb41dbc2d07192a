"""The nodes of a level as the CPU engine sees them: numbers of pixels, sums over nodes, parents, blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops import node_kernels
from lovasz_embed._ops.node_kernels import BLOCK
from lovasz_embed._ops.nodes import not_a_tree
from lovasz_embed._ops.threads import share

Array = NDArray[Any]

_RUN = 512 * BLOCK  # pixels that one task goes through


@dataclass(frozen=True)
class NumberedLevel:
    """The nodes of a level over B pictures of P pixels, each of N blocks.

    Attributes:
        member: Node of each pixel, (B, P) int32; -1 for none, -2 for ignored.
        picture: Picture of each node, (K,) int64; -1 for all.
        label: Label of each node, (K,) int64.
        size: Pixels of each node, (K,) int64.
        touched: Which blocks, of the node's pictures, have pixels of the node: (K, N) or (K, B N) bool.
        kind: The one node that all pixels of a part have, (B N 8,) int32, or `node_kernels.MIXED`.
    """

    member: Array
    picture: Array
    label: Array
    size: Array
    touched: Array
    kind: Array

    def first_block(self, node: int, blocks: int) -> int:
        """Return the first block of the node's pictures, which have `blocks` blocks each."""
        return max(int(self.picture[node]), 0) * blocks


def number_level(labels: Array, *, per_picture: bool, threads: int) -> NumberedLevel:
    """Number the nodes of int64 labels (B, P) by picture, then by label."""
    batch, pixels = labels.shape
    blocks = -(-pixels // BLOCK)
    member = np.empty((batch, pixels), np.int32)
    runs = _runs(batch, pixels)

    def number(run: tuple[int, int, int]) -> Array:
        b, start, stop = run
        room = 1024
        while True:
            distinct = np.empty(room, np.int64)
            found = node_kernels.number(labels[b, start:stop], member[b, start:stop], distinct)
            if found >= 0:
                return distinct[:found]
            room *= 16

    distinct = share(number, runs, threads)
    groups = range(batch) if per_picture else range(min(batch, 1))
    label_lists = []
    for group in groups:
        lists = [d for d, (b, *_) in zip(distinct, runs, strict=True) if not per_picture or b == group]
        label_lists.append(np.unique(np.concatenate(lists)) if lists else np.empty(0, np.int64))
    offsets = np.cumsum([0, *(part.size for part in label_lists)])
    count = int(offsets[-1])
    touched = np.zeros((count, blocks if per_picture else batch * blocks), np.bool_)
    kind = np.full(batch * blocks * 8, node_kernels.IGNORED, np.int32)
    sizes = np.zeros((len(runs), count), np.int64)

    def renumber(n: int) -> None:
        b, start, stop = runs[n]
        group = b if per_picture else 0
        lookup = (np.searchsorted(label_lists[group], distinct[n]) + offsets[group]).astype(np.int32)
        block = b * blocks + start // BLOCK
        first = b * blocks - block if per_picture else -block
        node_kernels.renumber(member[b, start:stop], lookup, sizes[n], first, touched, kind[8 * block :])

    share(renumber, range(len(runs)), threads)
    picture = [
        np.full(part.size, group if per_picture else -1) for group, part in zip(groups, label_lists, strict=True)
    ]
    nothing = np.empty(0, np.int64)
    return NumberedLevel(
        member=member,
        picture=np.concatenate([nothing, *picture]),
        label=np.concatenate([nothing, *label_lists]),
        size=sizes.sum(0),
        touched=touched,
        kind=kind,
    )


def node_means(planes: Array, dims: Array, level: NumberedLevel, threads: int) -> Array:
    """Return the mean of every node, (K, D) float64."""
    batch, _, pixels = planes.shape
    runs = _runs(batch, pixels)
    sums = np.zeros((len(runs), len(level.label), dims.size))

    def add_up(n: int) -> None:
        b, start, stop = runs[n]
        node_kernels.add_up(planes[b, :, start:stop], dims, level.member[b, start:stop], sums[n])

    share(add_up, range(len(runs)), threads)
    means: Array = sums.sum(0) / level.size[:, None]
    return means


def parent_of_nodes(level: NumberedLevel, parents: NumberedLevel, threads: int) -> Array:
    """Return the parent of every node, (K,) int64; a node outside or across parents is an error."""
    count = len(level.label)
    least = np.full((len(level.member), count), np.iinfo(np.int32).max, np.int32)
    most = np.full((len(level.member), count), np.iinfo(np.int32).min, np.int32)
    share(
        lambda b: node_kernels.parents(level.member[b], parents.member[b], least[b], most[b]),
        range(len(level.member)),
        threads,
    )
    first, last = least.min(0, initial=2**31 - 1), most.max(0, initial=-(2**31))
    wrong = (first != last) | (first < 0)
    if wrong.any():
        raise not_a_tree(int(level.label[wrong.argmax()]))
    parent: Array = first.astype(np.int64)
    return parent


def _runs(batch: int, pixels: int) -> list[tuple[int, int, int]]:
    """Cut pictures into runs of whole blocks, the same for any number of threads: (picture, start, stop)."""
    return [(b, start, min(start + _RUN, pixels)) for b in range(batch) for start in range(0, pixels, _RUN)]
