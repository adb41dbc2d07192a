"""Errors of a node from distances to its mean, and the way of the gradient back to embeddings and mean.

Both go block by block over the active blocks of a node (see `node_kernels`), plane by plane inside a block, so that
every inner loop runs over neighbouring pixels and is vectorised.
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


@jit
def node_errors(
    planes: Array,
    dims: Array,
    member: Array,
    group: Array,
    own_group: int,
    node: int,
    mean: Array,
    radius2: float,
    margin2: float,
    gaussian: bool,
    cut: float,
    active: Array,
    first: int,
    last: int,
    errors: Array,
    mask: Array,
) -> None:
    """Write errors and membership of every pixel of the blocks active[first:last], `_BLOCK` a block, from 0 on.

    Pixels of no account get the error 0, and so does a negative whose error is at most `cut`. An empty `group`
    lets every pixel be a negative.
    """
    _, _, pixels = planes.shape
    blocks = (pixels + _BLOCK - 1) // _BLOCK
    one = planes.dtype.type(1)
    zero = planes.dtype.type(0)
    falloff = math.log(2.0) / radius2
    far = -math.log(0.5 * cut) / falloff if gaussian and cut > 0 else np.inf
    distances = np.empty(_BLOCK, planes.dtype)
    for number in range(first, last):
        picture = active[number] // blocks
        start = (active[number] - picture * blocks) * _BLOCK
        size = min(_BLOCK, pixels - start)
        at = (number - first) * _BLOCK
        distances[:] = 0
        for j in range(dims.size):
            plane = planes[picture, dims[j], start : start + size]
            centre = mean[j]
            for i in range(size):
                gap = plane[i] - centre
                distances[i] += gap * gap
        nodes = member[picture, start : start + size]
        for i in range(size):
            mask[at + i] = nodes[i] == node
        if gaussian:
            for i in range(size):
                if mask[at + i]:
                    errors[at + i] = 2 - 2 * math.exp(-distances[i] * falloff)
                else:
                    errors[at + i] = 2 * math.exp(-distances[i] * falloff) if distances[i] < far else 0.0
        else:
            for i in range(size):
                score = (radius2 - distances[i]) / margin2
                errors[at + i] = one - score if mask[at + i] else one + score
        for i in range(size):
            errors[at + i] = zero if nodes[i] == _IGNORED else errors[at + i]
        if group.size:
            groups = group[picture, start : start + size]
            for i in range(size):
                errors[at + i] = errors[at + i] if groups[i] == own_group else zero
        for i in range(size, _BLOCK):
            errors[at + i] = 0
            mask[at + i] = 0


@jit
def push(
    planes: Array,
    dims: Array,
    means: Array,
    radius2: Array,
    margin2: float,
    gaussian: bool,
    scale: float,
    first_node: int,
    active: Array,
    starts: Array,
    first_block: int,
    last_block: int,
    errors: Array,
    mask: Array,
    weights: Array,
    grad: Array,
    sums: Array,
) -> None:
    """Take the slopes along the logits back, for the nodes of one batch and the blocks [first_block, last_block).

    The n-th node of the batch owns active[starts[n] : starts[n + 1]], ascending. Adds to grad (B, D, P), and to
    sums (nodes, D + 1) the slopes along each node's mean and squared radius.
    """
    _, _, pixels = planes.shape
    blocks = (pixels + _BLOCK - 1) // _BLOCK
    steps = np.zeros(_BLOCK, planes.dtype)
    pushes = np.zeros(_BLOCK, planes.dtype)
    parts = np.empty(8)
    for n in range(starts.size - 1):
        own = active[starts[n] : starts[n + 1]]
        place = starts[n] + np.searchsorted(own, first_block)
        stop = starts[n] + np.searchsorted(own, last_block)
        node = first_node + n
        falloff = math.log(2.0) / radius2[node]
        for number in range(place, stop):
            slopes = weights[number * _BLOCK : (number + 1) * _BLOCK]
            found = np.int32(0)
            for i in range(_BLOCK):
                found += np.int32(slopes[i] != 0)
            if found == 0:
                continue
            picture = active[number] // blocks
            start = (active[number] - picture * blocks) * _BLOCK
            size = min(_BLOCK, pixels - start)
            if gaussian:
                at = number * _BLOCK
                for i in range(_BLOCK):
                    # The logit is 2 phi - 1 with phi = exp(-d² falloff).
                    half = 0.5 * errors[at + i]
                    phi = 1 - half if mask[at + i] else half
                    steps[i] = -4 * scale * falloff * phi * slopes[i]
                    if phi > 0:
                        sums[n, dims.size] -= 2 * scale / radius2[node] * phi * math.log(phi) * slopes[i]
            else:
                factor = planes.dtype.type(-2 * scale / margin2)
                for i in range(_BLOCK):
                    steps[i] = factor * slopes[i]
            for j in range(dims.size):
                plane = planes[picture, dims[j], start : start + size]
                target = grad[picture, dims[j], start : start + size]
                centre = means[node, j]
                for i in range(size):
                    pushes[i] = steps[i] * (plane[i] - centre)
                    target[i] += pushes[i]
                pushes[size:] = 0
                parts[:] = 0
                for i in range(0, _BLOCK, 8):
                    for lane in range(8):
                        parts[lane] += pushes[i + lane]
                sums[n, j] -= parts.sum()


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
                target[i] += row[nodes[i] + 2]
