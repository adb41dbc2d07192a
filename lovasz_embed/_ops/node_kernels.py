"""Number the nodes of a label map, sum embeddings over nodes, and tell which blocks of pixels a node can skip.

A block is `BLOCK` neighbouring pixels of a picture, small enough for the first-level cache and, in pictures, mostly
of one or two nodes: its embeddings lie in a small ball.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops.jit import jit

Array = NDArray[Any]

BLOCK = 512
IGNORED = -2
MIXED = -3  # a block of more than one kind of pixel


@jit
def number(labels: Array, member: Array, distinct: Array) -> int:
    """Write each pixel's place among the distinct labels, in order of appearance; return how many there are.

    Labels below 0 are kept (-2) or become -1. Returns -1 where `distinct` is too short.
    """
    size = 4
    while size < 4 * distinct.size:
        size *= 2
    keys = np.full(size, -1, np.int64)  # open addressing
    places = np.empty(size, np.int32)
    found = 0
    last = np.int64(-1)
    place = np.int32(-1)
    for i in range(labels.size):
        label = labels[i]
        if label < 0:
            member[i] = IGNORED if label == IGNORED else -1
            continue
        if label != last:  # neighbours mostly agree
            slot = (label ^ (label >> 11) ^ (label >> 23)) & (size - 1)
            while keys[slot] >= 0 and keys[slot] != label:
                slot = (slot + 1) & (size - 1)
            if keys[slot] < 0:
                if found == distinct.size:
                    return -1
                keys[slot] = label
                places[slot] = found
                distinct[found] = label
                found += 1
            last = label
            place = places[slot]
        member[i] = place
    return found


@jit
def renumber(member: Array, lookup: Array, sizes: Array, first_block: int, touched: Array, kind: Array) -> None:
    """Turn places into nodes, count pixels of nodes, and note which blocks hold which nodes.

    `touched[node, block - first_block]` becomes True where a block has pixels of the node; `kind[block]` is the
    one value that all pixels of the block have, or `MIXED`.
    """
    for first in range(0, member.size, BLOCK):
        block = first // BLOCK
        last = np.int32(MIXED)
        runs = 0
        start = first
        stop = min(first + BLOCK, member.size)
        for i in range(first, stop):
            place = member[i]
            node = lookup[place] if place >= 0 else place
            member[i] = node
            if node != last:
                if last >= 0:
                    sizes[last] += i - start
                start = i
                last = node
                runs += 1
                if node >= 0:
                    touched[node, block - first_block] = True
        if last >= 0:
            sizes[last] += stop - start
        kind[block] = last if runs == 1 else MIXED


@jit
def parents(member: Array, parent_member: Array, least: Array, most: Array) -> None:
    """Find the smallest and the largest parent node of the pixels of every node."""
    for i in range(member.size):
        node = member[i]
        if node >= 0:
            parent = parent_member[i]
            least[node] = min(least[node], parent)
            most[node] = max(most[node], parent)


@jit
def add_up(planes: Array, dims: Array, member: Array, sums: Array) -> None:
    """Add the embeddings (D, pixels) of every node's pixels to sums (K, D), float64."""
    pixels = member.size
    start = 0
    while start < pixels:
        node = member[start]
        stop = start + 1
        while stop < pixels and member[stop] == node:
            stop += 1
        if node >= 0:
            for j in range(dims.size):
                plane = planes[dims[j]]
                # Four sums side by side: one would wait for itself at every pixel.
                one = 0.0
                two = 0.0
                three = 0.0
                four = 0.0
                i = start
                while i + 4 <= stop:
                    one += plane[i]
                    two += plane[i + 1]
                    three += plane[i + 2]
                    four += plane[i + 3]
                    i += 4
                while i < stop:
                    one += plane[i]
                    i += 1
                sums[node, j] += (one + two) + (three + four)
        start = stop


@jit
def balls(
    planes: Array, dims: Array, first_block: int, last_block: int, offset: int, centres: Array, reaches: Array
) -> None:
    """Write balls around the embeddings of the blocks [first_block, last_block) of a picture (D, pixels).

    Their centres (D, blocks) and radii are written from `offset` on.
    """
    pixels = planes.shape[1]
    distances = np.empty(BLOCK, planes.dtype)
    for number in range(first_block, last_block):
        first = number * BLOCK
        size = min(BLOCK, pixels - first)
        block = offset + number
        distances[:] = 0
        for j in range(dims.size):
            plane = planes[dims[j], first : first + size]
            total = 0.0
            for i in range(0, size, 8):  # any point will do for a centre: every eighth pixel's mean
                total += plane[i]
            centre = planes.dtype.type(total / ((size + 7) // 8))
            centres[j, block] = centre
            for i in range(size):
                gap = plane[i] - centre
                distances[i] += gap * gap
        farthest = distances[0]
        for i in range(size):
            # NaN stays once it is there: such a block must be looked at.
            if farthest == farthest and not distances[i] <= farthest:
                farthest = distances[i]
        reaches[block] = np.sqrt(farthest)


@jit
def near_blocks(
    node: int,
    mean: Array,
    first_block: int,
    centres: Array,
    reaches: Array,
    kind: Array,
    touched: Array,
    allowed: Array,
    inner: float,
    outer: float,
    near: Array,
) -> None:
    """Set near[block] to 1 where a block can hold a positive error of a node, to 0 elsewhere.

    A negative costs nothing from the distance `outer` on, a positive nothing up to `inner`. `near`, `touched` and
    `allowed` begin at first_block; the latter two tell which blocks have pixels of the node, and possible negatives.
    """
    blocks = touched.size
    distances = np.zeros(blocks)
    norm = 0.0
    for j in range(mean.size):
        row = centres[j, first_block : first_block + blocks]
        centre = np.float64(mean[j])
        norm += centre * centre
        for i in range(blocks):
            gap = row[i] - centre
            distances[i] += gap * gap
    slack = 1e-6 * (np.sqrt(norm) + outer)  # what float32 may have rounded
    for i in range(blocks):
        block = first_block + i
        reach = reaches[block] * (1 + 1e-6) + slack
        if touched[i]:
            rest = inner - reach
            near[i] = not (kind[block] == node and rest > 0 and distances[i] <= rest * rest)
        else:
            bound = outer + reach
            near[i] = allowed[i] and not distances[i] > bound * bound  # NaN is looked at
