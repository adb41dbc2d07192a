"""Number the nodes of a label map, sum embeddings over nodes, and tell which pixels a node can skip.

A block is `BLOCK` neighbouring pixels of a picture, small enough for the first-level cache. It has eight parts of
`PART` pixels, mostly of one node: their embeddings lie in a small box. What a node must look at is one bit a part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops.jit import jit

Array = NDArray[Any]

BLOCK = 512
PART = BLOCK // 8
IGNORED = -2
MIXED = -3  # a part of more than one kind of pixel


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

    `touched[node, block - first_block]` becomes True where a block has pixels of the node; `kind[part]` is the
    one value that all pixels of the part have, or `MIXED`.
    """
    for first in range(0, member.size, PART):
        block = first // BLOCK
        last = np.int32(MIXED)
        runs = 0
        start = first
        stop = min(first + PART, member.size)
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
        kind[first // PART] = last if runs == 1 else MIXED


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
def boxes(
    planes: Array, dims: Array, first_block: int, last_block: int, infinity: int, lows: Array, highs: Array
) -> None:
    """Write boxes around the embeddings of the parts of the blocks [first_block, last_block) of a picture (D, pixels).

    All are the bits of floats, as integers of their size; `infinity` is that of the largest. The boxes' corners are
    (D, parts). A part with NaN has a box around everything, for it must be looked at, and one without pixels a box
    around nothing.
    """
    pixels = planes.shape[1]
    top = planes.dtype.type((1 << (8 * planes.itemsize - 1)) - 1)
    down = planes.dtype.type(8 * planes.itemsize - 1)
    for part in range(first_block * 8, last_block * 8):
        first = part * PART
        size = min(PART, pixels - first)
        largest = planes.dtype.type(0)
        for j in range(dims.size if size > 0 else 0):
            plane = planes[dims[j], first : first + size]
            # With the bits of negative ones turned over, floats keep their order as integers; and those are compared
            # side by side, where floats would be one after the other.
            low = plane[0] ^ ((plane[0] >> down) & top)
            high = low
            for i in range(size):
                key = plane[i] ^ ((plane[i] >> down) & top)
                low = min(low, key)
                high = max(high, key)
                largest = max(largest, plane[i] & top)
            lows[j, part] = low ^ ((low >> down) & top)
            highs[j, part] = high ^ ((high >> down) & top)
        if size <= 0 or largest > infinity:
            inside = size > 0
            lows[:, part] = ~top | infinity if inside else infinity
            highs[:, part] = infinity if inside else ~top | infinity


@jit
def near_parts(
    node: int,
    mean: Array,
    first_block: int,
    lows: Array,
    highs: Array,
    block_lows: Array,
    block_highs: Array,
    kind: Array,
    touched: Array,
    allowed: Array,
    outer: float,
    near: Array,
) -> None:
    """Write which parts of every block, bit by bit, can hold a positive error of a node.

    A negative costs nothing from the distance `outer` on. `near`, `touched` and `allowed` begin at first_block; the
    latter two tell which blocks have pixels of the node, and possible negatives. Boxes are those of `boxes`, around
    parts and around blocks.
    """
    # What rounding may do to a sum of squares.
    bound = lows.dtype.type(min(outer * outer * (1 + 1e-6 * (mean.size + 1)), 1e38))
    blocks = touched.size
    distances = np.empty(blocks, lows.dtype)
    _to_boxes(mean, block_lows, block_highs, first_block, distances)
    parts = np.empty(8, lows.dtype)
    for i in range(blocks):
        near[i] = 0
        is_near = allowed[i] and not distances[i] > bound
        if not (is_near or touched[i]):
            continue
        first = 8 * (first_block + i)
        _to_boxes(mean, lows, highs, first, parts)
        found: Any = 0
        for k in range(8):
            own = touched[i] and kind[first + k] in (node, MIXED)
            found |= np.int64(own or (is_near and not parts[k] > bound)) << k
        near[i] = found


@jit
def _to_boxes(point: Array, lows: Array, highs: Array, first: int, distances: Array) -> None:
    """Write the squared distances from a point to some boxes, one after the other from `first` on."""
    zero = lows.dtype.type(0)
    distances[:] = 0
    for j in range(point.size):
        low = lows[j, first : first + distances.size]
        high = highs[j, first : first + distances.size]
        centre = point[j]
        for i in range(distances.size):
            below = low[i] - centre
            above = centre - high[i]
            gap = below if below > above else above
            gap = gap if gap > zero else zero
            distances[i] += gap * gap
