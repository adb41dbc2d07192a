"""Errors of nodes from distances to their means, and the way of the gradient back to embeddings and means.

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
_IGNORED = -2
_TOP = 0x7FFFFFFF  # as in ranking_kernels


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
    counts: Array,
) -> None:
    """Replace every count that is not 0, [node, block], by the number of positive errors of the node there.

    Goes through the blocks [first_block, last_block) of one picture, for as many nodes from `first_node` on as
    there are rows of counts. An empty `group` lets every pixel be a negative; otherwise those of groups[node] are.
    """
    errors = np.zeros(_BLOCK, planes.dtype)
    for block in range(first_block, last_block):
        start = block * _BLOCK
        size = min(_BLOCK, pixels - start)
        own = member[start : start + size]
        for n in range(len(counts)):
            if counts[n, block]:
                node = first_node + n
                _errors(
                    planes,
                    pixels,
                    dims,
                    own,
                    start,
                    node,
                    means[node],
                    radius2[node],
                    margin2,
                    gaussian,
                    cut,
                    True,
                    errors,
                )
                if group.size:
                    _only_siblings(errors, group[start : start + size], groups[node])
                found = np.int32(0)
                for i in range(size):
                    found += np.int32(not errors[i] <= 0)  # NaN counts: it must not stay hidden
                counts[n, block] = found


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
    counts: Array,
    starts: Array,
    words: Array,
    places: Array,
    weights: Array,
    values: Array,
) -> None:
    """Write the words (see `ranking_kernels`) of the positive errors of every node, from starts[node, block] on.

    `places` gets the pixel within the block, `weights` 0, and `values`, unless it is empty, the error.
    """
    errors = np.zeros(_BLOCK, planes.dtype)
    narrow = errors.view(np.int32) if errors.itemsize == 4 else np.zeros(1, np.int32)
    wide = errors.view(np.int64) if errors.itemsize == 8 else np.zeros(1, np.int64)
    positive = np.zeros(_BLOCK, np.uint8)
    eight = positive.view(np.uint64)
    where = np.empty(_BLOCK + 1, np.int32)
    for block in range(first_block, last_block):
        start = block * _BLOCK
        size = min(_BLOCK, pixels - start)
        own = member[start : start + size]
        for n in range(len(counts)):
            if counts[n, block] == 0:
                continue
            node = first_node + n
            _errors(
                planes,
                pixels,
                dims,
                own,
                start,
                node,
                means[node],
                radius2[node],
                margin2,
                gaussian,
                cut,
                False,
                errors,
            )
            if group.size:
                _only_siblings(errors, group[start : start + size], groups[node])
            positive[size:] = 0
            for i in range(size):
                positive[i] = not errors[i] <= 0
            found: Any = 0
            for j in range(_BLOCK // 8):
                if eight[j]:
                    for i in range(8 * j, 8 * j + 8):
                        where[found] = i
                        found += np.int64(positive[i])
            at = np.int64(starts[n, block])
            for k in range(found):
                i = where[k]
                key = np.int64(narrow[i]) if errors.itemsize == 4 else max(wide[i] >> 32, 1)
                key = _TOP if errors[i] != errors[i] else key
                words[at + k] = ((key ^ _TOP) << 32) | ((at + k) << 1) | (own[i] == node)
                places[at + k] = i
            weights[at : at + found] = 0
            if values.size:
                for k in range(found):
                    values[at + k] = errors[where[k]]


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
    """Write the error of every pixel of a block; 0 where it is ignored, or a negative with an error up to `cut`.

    With `counting` only its sign is right.
    """
    size = member.size
    one = planes.dtype.type(1)
    zero = planes.dtype.type(0)
    errors[:] = 0
    j = 0
    while j + 4 <= dims.size:  # four planes at a time: the sums are stored a quarter as often
        first, second = dims[j] * pixels + start, dims[j + 1] * pixels + start
        third, fourth = dims[j + 2] * pixels + start, dims[j + 3] * pixels + start
        plane_a, plane_b = planes[first : first + size], planes[second : second + size]
        plane_c, plane_d = planes[third : third + size], planes[fourth : fourth + size]
        a, b, c, d = mean[j], mean[j + 1], mean[j + 2], mean[j + 3]
        for i in range(size):
            gap_a, gap_b, gap_c, gap_d = plane_a[i] - a, plane_b[i] - b, plane_c[i] - c, plane_d[i] - d
            errors[i] += (gap_a * gap_a + gap_b * gap_b) + (gap_c * gap_c + gap_d * gap_d)
        j += 4
    while j < dims.size:
        first = dims[j] * pixels + start
        plane_a = planes[first : first + size]
        a = mean[j]
        for i in range(size):
            gap_a = plane_a[i] - a
            errors[i] += gap_a * gap_a
        j += 1
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
        for i in range(size):
            score = (radius2 - errors[i]) * inverse
            error = one - score if member[i] == node else one + score
            errors[i] = zero if member[i] == _IGNORED else error


@jit
def _only_siblings(errors: Array, group: Array, own: int) -> None:
    """Clear the errors of the pixels of another group."""
    zero = errors.dtype.type(0)
    for i in range(group.size):
        errors[i] = errors[i] if group[i] == own else zero


@jit
def push(
    planes: Array,
    pixels: int,
    dims: Array,
    member: Array,
    first_block: int,
    last_block: int,
    first_node: int,
    means: Array,
    radius2: Array,
    margin2: float,
    gaussian: bool,
    bandwidth: bool,
    scale: float,
    counts: Array,
    starts: Array,
    places: Array,
    values: Array,
    weights: Array,
    grad: Array,
    sums: Array,
) -> None:
    """Take the slopes along the logits back to the embeddings of the blocks [first_block, last_block) of a picture.

    Adds to grad, laid out like planes, and to sums [node, D + 1] the slopes along each node's mean and, if there is a
    `bandwidth` to learn, its squared radius.
    """
    steps = np.zeros(_BLOCK, planes.dtype)
    pushes = np.zeros(_BLOCK, planes.dtype)
    for block in range(first_block, last_block):
        start = block * _BLOCK
        size = min(_BLOCK, pixels - start)
        for n in range(len(counts)):
            count = counts[n, block]
            if count == 0:
                continue
            node = first_node + n
            at = np.int64(starts[n, block])
            slopes = weights[at : at + count]
            pixel = places[at : at + count]
            if gaussian:
                falloff = math.log(2.0) / radius2[node]
                for k in range(slopes.size):
                    # The logit is 2 phi - 1 with phi = exp(-d² falloff).
                    half = 0.5 * values[at + k]
                    phi = half
                    if member[start + pixel[k]] == node:
                        # A far positive's error is 2, and has lost it.
                        phi = 1 - half
                        if phi < 0.25:
                            distance2 = _distance2(planes, pixels, dims, start + pixel[k], means[node])
                            phi = math.exp(-distance2 * falloff)
                    if bandwidth and phi > 0:
                        sums[n, dims.size] -= 2 * scale / radius2[node] * phi * math.log(phi) * slopes[k]
                    slopes[k] *= -4 * scale * falloff * phi
            else:
                factor = planes.dtype.type(-2 * scale / margin2)
                for k in range(slopes.size):
                    slopes[k] *= factor
            sparse = count * 4 < size
            if not sparse:
                steps[:] = 0
                for k in range(slopes.size):
                    steps[pixel[k]] = slopes[k]
            for j in range(dims.size):
                plane = planes[dims[j] * pixels + start : dims[j] * pixels + start + size]
                target = grad[dims[j] * pixels + start : dims[j] * pixels + start + size]
                centre = means[node, j]
                if sparse:
                    for k in range(slopes.size):
                        own = np.uint32(pixel[k])
                        step = slopes[k] * (plane[own] - centre)
                        target[own] += step
                        pushes[k] = step
                    pushes[slopes.size : _BLOCK // 4] = 0
                    sums[n, j] -= _sum(pushes, _BLOCK // 4)
                else:
                    pushes[size:] = 0
                    for i in range(size):
                        step = steps[i] * (plane[i] - centre)
                        target[i] += step
                        pushes[i] = step
                    sums[n, j] -= _sum(pushes, _BLOCK)


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


@jit
def spread(member: Array, dims: Array, shares: Array, grad: Array) -> None:
    """Add to the gradient (D, pixels) of every pixel its share of its node's mean: shares (D, K + 2).

    The first two columns are for pixels of no node.
    """
    for first in range(0, member.size, _BLOCK):
        nodes = member[first : first + _BLOCK]
        for j in range(dims.size):
            row = shares[j]
            target = grad[dims[j], first : first + _BLOCK]
            for i in range(nodes.size):
                target[i] += row[np.uint32(nodes[i] + 2)]
