"""Errors of nodes from distances to their means: counted, written to be ranked, or looked up in a table of cells.

All go block by block, and within a block node by node, so that a block's embeddings stay in the first-level cache
for all nodes; and plane by plane inside, so that every inner loop runs over neighbouring pixels and is vectorised.

The planes of a picture are one flat array: dimension d of pixel p lies at d * pixels + p.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops.jit import jit

Array = NDArray[Any]

_BLOCK = 512  # as in node_kernels
_PART = 64
_IGNORED = -2
_TOP = 0x7FFFFFFF  # as in ranking_kernels
_OCTAVES = 64  # as in binning_kernels
_LOWEST = (127 - 32) << 23


@jit
def count_errors(
    planes: Array,
    pixels: int,
    dims: Array,
    member: Array,
    group: Array,
    first_block: int,
    last_block: int,
    first_node: int,
    groups: Array,
    means: Array,
    radius2: Array,
    margin2: float,
    gaussian: bool,
    cut: float,
    near: Array,
    counts: Array,
) -> None:
    """Write the number of positive errors of every node in every block, counts[node, block].

    Goes through the blocks [first_block, last_block) of one picture, for as many nodes from `first_node` on as
    there are rows of counts, and through those parts of them that are set in near[node, block]; clears the bits of
    parts without a positive error. An empty `group` lets every pixel be a negative; otherwise those of groups[node]
    are.
    """
    errors = np.zeros(_BLOCK, planes.dtype)
    for block in range(first_block, last_block):
        for n in range(len(near)):
            bits: Any = np.int64(near[n, block])
            if bits == 0:
                continue
            node = first_node + n
            total = np.int64(0)
            kept = np.int64(0)
            part = 0
            while bits >> part:
                part, stop = _run(bits, part)
                start = block * _BLOCK + part * _PART
                size = min(stop * _PART, pixels - block * _BLOCK) - part * _PART
                own = member[start : start + size]
                _errors(
                    planes, pixels, dims, own, start, node, means[node], radius2[node], margin2, gaussian, cut, True,
                    errors,
                )  # fmt: skip
                if group.size:
                    _only_siblings(errors, group[start : start + size], groups[node])
                if size % _PART:
                    errors[size:] = 0
                for first in range(stop - part):
                    found = np.int32(0)
                    for i in range(_PART):
                        found += np.int32(not errors[np.uint64(first * _PART) + np.uint64(i)] <= 0)
                    total += found
                    kept |= np.int64(found > 0) << (part + first)
                part = stop
            counts[n, block] = total
            near[n, block] = kept


@jit
def write_errors(
    planes: Array,
    pixels: int,
    dims: Array,
    member: Array,
    group: Array,
    first_block: int,
    last_block: int,
    first_node: int,
    groups: Array,
    means: Array,
    radius2: Array,
    margin2: float,
    gaussian: bool,
    cut: float,
    near: Array,
    starts: Array,
    words: Array,
    places: Array,
    weights: Array,
    values: Array,
) -> None:
    """Write the words (see `ranking_kernels`) of the positive errors of every node, from starts[node, block] on.

    They are in the parts that near[node, block] tells. `places` gets the pixel within the block, `weights` 0, and
    `values`, unless it is empty, the error.
    """
    errors = np.zeros(_BLOCK, planes.dtype)
    narrow = errors.view(np.int32) if errors.itemsize == 4 else np.zeros(1, np.int32)
    wide = errors.view(np.int64) if errors.itemsize == 8 else np.zeros(1, np.int64)
    positive = np.zeros(_BLOCK, np.uint8)
    eight = positive.view(np.uint64)
    where = np.empty(_BLOCK + 1, np.int32)
    for block in range(first_block, last_block):
        for n in range(len(near)):
            bits: Any = np.int64(near[n, block])
            if bits == 0:
                continue
            node = first_node + n
            at = np.int64(starts[n, block])
            part = 0
            while bits >> part:
                part, stop = _run(bits, part)
                offset = part * _PART
                start = block * _BLOCK + offset
                size = min(stop * _PART, pixels - block * _BLOCK) - offset
                own = member[start : start + size]
                _errors(
                    planes, pixels, dims, own, start, node, means[node], radius2[node], margin2, gaussian, cut, False,
                    errors,
                )  # fmt: skip
                if group.size:
                    _only_siblings(errors, group[start : start + size], groups[node])
                if size % 8:
                    positive[size:] = 0
                for i in range(size):
                    positive[i] = not errors[i] <= 0
                found: Any = 0
                for j in range((size + 7) // 8):
                    if eight[j]:
                        for i in range(8 * j, 8 * j + 8):
                            where[found] = i
                            found += np.int64(positive[i])
                for k in range(found):
                    pixel: Any = np.uint64(where[k])
                    key = np.int64(narrow[pixel]) if errors.itemsize == 4 else max(wide[pixel] >> 32, 1)
                    key = _TOP if errors[pixel] != errors[pixel] else key
                    words[at + k] = ((key ^ _TOP) << 32) | ((at + k) << 1) | (own[pixel] == node)
                    places[at + k] = np.uint64(offset) + pixel
                weights[at : at + found] = 0
                if values.size:
                    for k in range(found):
                        values[at + k] = errors[where[k]]
                at += found
                part = stop


@jit
def _run(bits: int, part: int) -> tuple[int, int]:
    """Return the first run of set bits from bit `part` on, where there is one."""
    while not (bits >> part) & 1:
        part += 1
    stop = part + 1
    while (bits >> stop) & 1:
        stop += 1
    return part, stop


@jit
def _errors(
    planes: Array,
    pixels: int,
    dims: Array,
    member: Array,
    start: int,
    node: int,
    mean: Array,
    radius2: float,
    margin2: float,
    gaussian: bool,
    cut: float,
    counting: bool,
    errors: Array,
) -> None:
    """Write the error of every pixel of some parts; 0 where it is ignored, or a negative with an error up to `cut`.

    With `counting` only its sign is right.
    """
    size = member.size
    one = planes.dtype.type(1)
    zero = planes.dtype.type(0)
    rest = dims.size % 4
    for j in range(rest):
        first = np.uint64(dims[j] * pixels + start)
        a = mean[j]
        for i in range(np.uint64(size)):
            gap = planes[first + i] - a
            errors[i] = gap * gap if j == 0 else errors[i] + gap * gap
    for j in range(rest, dims.size, 4):  # four planes at a time: the sums are stored a quarter as often
        first, second = np.uint64(dims[j] * pixels + start), np.uint64(dims[j + 1] * pixels + start)
        third, fourth = np.uint64(dims[j + 2] * pixels + start), np.uint64(dims[j + 3] * pixels + start)
        a, b, c, d = mean[j], mean[j + 1], mean[j + 2], mean[j + 3]
        for i in range(np.uint64(size)):
            gap_a, gap_b = planes[first + i] - a, planes[second + i] - b
            gap_c, gap_d = planes[third + i] - c, planes[fourth + i] - d
            four = (gap_a * gap_a + gap_b * gap_b) + (gap_c * gap_c + gap_d * gap_d)
            errors[i] = four if j == 0 else errors[i] + four
    if gaussian:
        falloff = math.log(2.0) / radius2
        # What is farther is left out, or too small for a float.
        far = -math.log(max(0.5 * cut, 1e-37)) / falloff
        for i in range(size):
            if member[i] == node:
                errors[i] = 2 - 2 * math.exp(-errors[i] * falloff)
            elif member[i] == _IGNORED or errors[i] >= far:
                errors[i] = 0
            else:
                # Counting asks only whether it is positive.
                errors[i] = 1 if counting else 2 * math.exp(-errors[i] * falloff)
    else:
        inverse = one / margin2
        mine = np.int32(node)
        for i in range(np.uint64(size)):
            score = (radius2 - errors[i]) * inverse
            error = one - score if member[i] == mine else one + score
            errors[i] = zero if member[i] == np.int32(_IGNORED) else error


@jit
def _only_siblings(errors: Array, group: Array, own: int) -> None:
    """Clear the errors of the pixels of another group."""
    zero = errors.dtype.type(0)
    for i in range(group.size):
        errors[i] = errors[i] if group[i] == own else zero


@jit
def count_cells(
    planes: Array,
    pixels: int,
    dims: Array,
    member: Array,
    group: Array,
    first_block: int,
    last_block: int,
    first_node: int,
    groups: Array,
    means: Array,
    radius2: Array,
    margin2: float,
    gaussian: bool,
    cut: float,
    near: Array,
    shift: int,
    counts: Array,
) -> None:
    """Add the positive errors of every node to its cells (see `binning_kernels`), counts[node, cell].

    Goes where `count_errors` goes, and clears the same bits.
    """
    errors = np.zeros(_BLOCK, planes.dtype)
    cells = np.empty(_BLOCK, np.int32)
    positive = np.zeros(_BLOCK, np.uint8)
    where = np.empty(_BLOCK + 1, np.int32)
    for block in range(first_block, last_block):
        for n in range(len(near)):
            bits: Any = np.int64(near[n, block])
            if bits == 0:
                continue
            node = first_node + n
            kept = np.int64(0)
            part = 0
            while bits >> part:
                part, stop = _run(bits, part)
                start = block * _BLOCK + part * _PART
                size = min(stop * _PART, pixels - block * _BLOCK) - part * _PART
                own = member[start : start + size]
                _errors(
                    planes, pixels, dims, own, start, node, means[node], radius2[node], margin2, gaussian, cut, False,
                    errors,
                )  # fmt: skip
                if group.size:
                    _only_siblings(errors, group[start : start + size], groups[node])
                found = _positive(errors, size, positive, where)
                if found:
                    _cells(errors, own, node, size, shift, cells)
                    for k in range(found):
                        i = np.uint64(where[k])
                        counts[n, np.uint32(cells[i])] += 1
                        kept |= np.int64(1) << (part + np.int64(i) // _PART)
                part = stop
            near[n, block] = kept


@jit
def look_up(
    planes: Array,
    pixels: int,
    dims: Array,
    member: Array,
    group: Array,
    first_block: int,
    last_block: int,
    first_node: int,
    groups: Array,
    means: Array,
    radius2: Array,
    margin2: float,
    gaussian: bool,
    cut: float,
    near: Array,
    shift: int,
    slopes: Array,
    bandwidth: bool,
    scale: float,
    grad: Array,
    sums: Array,
    losses: Array,
) -> None:
    """Add up the losses of the nodes, and the gradient, from the slope along the logit of every cell.

    Goes where `count_cells` went. `slopes` [node, cell] is minus the weight of foreground and plus that of background;
    adds to losses[node], to grad, laid out like planes (empty: not wanted) and scaled by `scale`, and to sums
    [node, D + 1] the slopes along each node's mean and, if there is a `bandwidth` to learn, its squared radius.
    """
    errors = np.zeros(_BLOCK, planes.dtype)
    cells = np.empty(_BLOCK, np.int32)
    positive = np.zeros(_BLOCK, np.uint8)
    where = np.empty(_BLOCK + 1, np.int32)
    steps = np.zeros(_BLOCK, planes.dtype)
    pushes = np.zeros(_BLOCK, planes.dtype)
    for block in range(first_block, last_block):
        for n in range(len(near)):
            bits: Any = np.int64(near[n, block])
            if bits == 0:
                continue
            node = first_node + n
            falloff = math.log(2.0) / radius2[node]
            part = 0
            while bits >> part:
                part, stop = _run(bits, part)
                start = block * _BLOCK + part * _PART
                size = min(stop * _PART, pixels - block * _BLOCK) - part * _PART
                own = member[start : start + size]
                _errors(
                    planes, pixels, dims, own, start, node, means[node], radius2[node], margin2, gaussian, cut, False,
                    errors,
                )  # fmt: skip
                part = stop
                if group.size:
                    _only_siblings(errors, group[start : start + size], groups[node])
                found = _positive(errors, size, positive, where)
                if found == 0:
                    continue
                _cells(errors, own, node, size, shift, cells)
                steps[:size] = 0
                loss = 0.0
                for k in range(found):
                    i = np.uint64(where[k])
                    steps[i] = slopes[n, np.uint32(cells[i])]
                    loss += abs(steps[i]) * errors[i]
                losses[n] += loss
                if grad.size == 0:
                    continue
                if gaussian:
                    for k in range(found):
                        i = np.uint64(where[k])
                        # The logit is 2 phi - 1 with phi = exp(-d² falloff).
                        distance2 = _distance2(planes, pixels, dims, start + where[k], means[node])
                        phi = math.exp(-distance2 * falloff)
                        if bandwidth:
                            sums[n, dims.size] += 2 * scale * falloff / radius2[node] * distance2 * phi * steps[i]
                        steps[i] *= -4 * scale * falloff * phi
                else:
                    factor = planes.dtype.type(-2 * scale / margin2)
                    for j in range(size):
                        steps[j] *= factor
                width = _PART  # a power of two of whole parts
                while width < size:
                    width *= 2
                for j in range(dims.size):
                    at = np.uint64(dims[j] * pixels + start)
                    centre = means[node, j]
                    pushes[size:width] = 0
                    for p in range(np.uint64(size)):
                        step = steps[p] * (planes[at + p] - centre)
                        grad[at + p] += step
                        pushes[p] = step
                    sums[n, j] -= _sum(pushes, width)


@jit
def _positive(errors: Array, size: int, positive: Array, where: Array) -> int:
    """Write the indices of the first `size` errors that are positive, or NaN, into `where`; return how many."""
    eight = positive.view(np.uint64)
    positive[size : size + 8] = 0  # the last eight may not be full
    for i in range(size):
        positive[i] = not errors[i] <= 0
    found: Any = 0
    for j in range((size + 7) // 8):
        if eight[j]:
            for i in range(8 * j, 8 * j + 8):
                where[found] = i
                found += np.int64(positive[i])
    return int(found)


@jit
def _cells(errors: Array, member: Array, node: int, size: int, shift: int, cells: Array) -> None:
    """Write the cells of errors that are positive: as `binning_kernels` cuts them."""
    lowest = np.int32(_LOWEST)
    highest = np.int32(_LOWEST + (_OCTAVES << 23) - 1)
    mine = np.int32(node)
    bits = errors.view(np.int32) if errors.itemsize == 4 else errors.astype(np.float32).view(np.int32)
    for i in range(size):
        key = bits[i] & np.int32(0x7FFFFFFF)
        kept = min(max(key, lowest), highest) - lowest  # NaN is above all numbers
        cells[i] = np.int32(((kept >> shift) + 1) << 1) | np.int32(member[i] == mine)


@jit
def _distance2(planes: Array, pixels: int, dims: Array, pixel: int, mean: Array) -> float:
    """Return the squared distance of one pixel."""
    total = 0.0
    for j in range(dims.size):
        gap = planes[dims[j] * pixels + pixel] - mean[j]
        total += gap * gap
    return total


@jit
def _sum(values: Array, width: int) -> float:
    """Add up the first `width` values, a power of two, by halves, in place: every addition is vectorised."""
    while width > 8:
        width //= 2
        low, high = values[:width], values[width : 2 * width]
        for i in range(width):
            low[i] += high[i]
    total = 0.0
    for i in range(width):
        total += values[i]
    return total
