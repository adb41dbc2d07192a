"""The way of the gradient back from the slopes along logits to embeddings and means, for errors that were ranked.

Block by block, and within a block node by node. The planes of a picture are one flat array: dimension d of pixel p
lies at d * pixels + p.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops.jit import jit

Array = NDArray[Any]

_BLOCK = 512  # as in node_kernels


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
            if count * 4 < size:
                _push_some(planes, pixels, dims, start, slopes, pixel, means[node], grad, sums[n])
                continue
            steps[:] = 0
            for k in range(slopes.size):
                steps[pixel[k]] = slopes[k]
            for j in range(dims.size):
                plane = planes[dims[j] * pixels + start : dims[j] * pixels + start + size]
                target = grad[dims[j] * pixels + start : dims[j] * pixels + start + size]
                centre = means[node, j]
                pushes[size:] = 0
                for i in range(size):
                    step = steps[i] * (plane[i] - centre)
                    target[i] += step
                    pushes[i] = step
                sums[n, j] -= _sum(pushes, _BLOCK)


@jit
def _push_some(
    planes: Array,
    pixels: int,
    dims: Array,
    start: int,
    slopes: Array,
    pixel: Array,
    mean: Array,
    grad: Array,
    sums: Array,
) -> None:
    """Do `push` entry by entry, where few pixels of the block have one."""
    j = 0
    while j + 4 <= dims.size:  # four planes at a time: places and slopes are read a quarter as often
        first, second = np.uint64(dims[j] * pixels + start), np.uint64(dims[j + 1] * pixels + start)
        third, fourth = np.uint64(dims[j + 2] * pixels + start), np.uint64(dims[j + 3] * pixels + start)
        a, b, c, d = mean[j], mean[j + 1], mean[j + 2], mean[j + 3]
        sum_a, sum_b, sum_c, sum_d = 0.0, 0.0, 0.0, 0.0
        for k in range(slopes.size):
            i = np.uint64(pixel[k])
            slope = slopes[k]
            step_a = slope * (planes[first + i] - a)
            step_b = slope * (planes[second + i] - b)
            step_c = slope * (planes[third + i] - c)
            step_d = slope * (planes[fourth + i] - d)
            grad[first + i] += step_a
            grad[second + i] += step_b
            grad[third + i] += step_c
            grad[fourth + i] += step_d
            sum_a += step_a
            sum_b += step_b
            sum_c += step_c
            sum_d += step_d
        sums[j] -= sum_a
        sums[j + 1] -= sum_b
        sums[j + 2] -= sum_c
        sums[j + 3] -= sum_d
        j += 4
    while j < dims.size:
        first = np.uint64(dims[j] * pixels + start)
        a = mean[j]
        sum_a = 0.0
        for k in range(slopes.size):
            i = np.uint64(pixel[k])
            step_a = slopes[k] * (planes[first + i] - a)
            grad[first + i] += step_a
            sum_a += step_a
        sums[j] -= sum_a
        j += 1


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
