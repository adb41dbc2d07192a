"""Fused CPU engine of the node hinge: one picture's worth of scratch, gradients known at the end of forward.

Floor: a node must read the embedding of its pictures once (4·D bytes a pixel) and sort the entries with a
positive error. Nothing of the size nodes × pixels is ever stored; what backward needs is the gradient itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed._ops.jit import jit
from lovasz_embed._ops.nodes import IGNORED, Nodes
from lovasz_embed._ops.threads import map_threads

Array = NDArray[Any]

_BLOCK = 1024  # pixels whose distances are computed at once: they stay in the first-level cache


def node_hinge_numba(
    embedding: Tensor, means: Tensor, radius2: Tensor, margin2: float, nodes: Nodes, kernel: str
) -> tuple[Tensor, Tensor]:
    """Return the mean of the nodes' losses and each of them; see `node_hinge.node_hinge`."""
    loss, per_node = _NodeHinge.apply(embedding, means, radius2, margin2, nodes, kernel)  # type: ignore[no-untyped-call]
    return loss, per_node


class _NodeHinge(torch.autograd.Function):
    """Compute loss and gradient in one sweep; backward only scales what forward left."""

    @staticmethod
    def forward(
        ctx: Any,
        embedding: Tensor,
        means: Tensor,
        radius2: Tensor,
        margin2: float,
        nodes: Nodes,
        kernel: str,
    ) -> tuple[Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad[:3])
        planes = embedding.detach().contiguous().numpy()
        centres = means.detach().contiguous().numpy()
        radii2 = radius2.detach().contiguous().numpy()
        losses = np.zeros_like(radii2)
        grad_planes = np.zeros_like(planes) if wanted else planes[:0]
        grad_means = np.zeros_like(centres)
        grad_radius2 = np.zeros_like(radii2)
        member, group = nodes.member.numpy(), nodes.group.numpy()
        node_group = nodes.node_group.numpy()

        def sweep(run: tuple[int, int, int]) -> None:
            first, last, picture = run
            # The nodes of one picture touch that picture's pixels only: pictures run side by side, and the
            # order of every sum is the same for any number of threads.
            pictures = slice(None) if picture < 0 else slice(picture, picture + 1)
            _sweep(
                planes[pictures],
                member[pictures],
                group[pictures],
                first,
                last,
                node_group,
                centres,
                radii2,
                planes.dtype.type(margin2),
                kernel == "gaussian",
                wanted,
                losses,
                grad_planes[pictures],
                grad_means,
                grad_radius2,
            )

        map_threads(sweep, _runs(nodes.picture.numpy()))
        per_node = torch.from_numpy(losses)
        ctx.mark_non_differentiable(per_node)
        ctx.save_for_backward(*(torch.from_numpy(grad) for grad in (grad_planes, grad_means, grad_radius2) if wanted))
        return per_node.mean(), per_node

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        scale = grad / grads[2].numel()
        scaled = (g * scale if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False))
        return (*scaled, None, None, None)


def _runs(picture: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Cut nodes, ordered by picture, into (first, last, picture)."""
    starts = np.flatnonzero(np.diff(picture, prepend=picture[0] - 1))
    ends = np.append(starts[1:], picture.size)
    return [(int(a), int(b), int(picture[a])) for a, b in zip(starts, ends, strict=True)]


@jit
def _sweep(
    planes: Array,
    member: Array,
    group: Array,
    first: int,
    last: int,
    node_group: Array,
    means: Array,
    radius2: Array,
    margin2: float,
    gaussian: bool,
    wanted: bool,
    losses: Array,
    grad_planes: Array,
    grad_means: Array,
    grad_radius2: Array,
) -> None:
    """Add the losses and gradients of the nodes first ... last - 1 over the pictures in `planes` (B, D, P)."""
    pictures, _, pixels = planes.shape
    scratch = pictures * pixels
    errors = np.empty(scratch, planes.dtype)
    entries = np.empty(scratch, np.int64)
    steps = np.empty(scratch, planes.dtype)
    spare = np.empty(scratch, np.uint64)
    keys = np.empty(scratch, np.uint64)
    distances = np.empty(_BLOCK, planes.dtype)
    for k in range(first, last):
        count, inside = _positive_errors(
            planes, member, group, k, node_group[k], means[k], radius2[k], margin2, gaussian,
            distances, errors, entries,
        )  # fmt: skip
        order = _descending(errors[:count], keys, spare)
        losses[k], grad_radius2[k] = _weigh(
            member, k, radius2[k], margin2, gaussian, errors, entries, order, inside, steps
        )
        if wanted:
            _push(planes, means[k], entries[:count], steps, grad_planes, grad_means[k])


@jit
def _positive_errors(
    planes: Array,
    member: Array,
    group: Array,
    k: int,
    own_group: int,
    mean: Array,
    radius2: float,
    margin2: float,
    gaussian: bool,
    distances: Array,
    errors: Array,
    entries: Array,
) -> tuple[int, int]:
    """Store error and pixel of every entry with a positive error; return their number and the node's size."""
    pictures, dims, pixels = planes.shape
    falloff = math.log(2.0) / radius2
    one = planes.dtype.type(1)
    count = 0
    inside = 0
    for b in range(pictures):
        for start in range(0, pixels, _BLOCK):
            length = min(_BLOCK, pixels - start)
            # Plane by plane, so that the inner loop runs over neighbouring pixels and is vectorised.
            for i in range(length):
                distances[i] = 0
            for d in range(dims):
                plane = planes[b, d, start : start + length]
                centre = mean[d]
                for i in range(length):
                    difference = plane[i] - centre
                    distances[i] += difference * difference
            for i in range(length):
                node = member[b, start + i]
                if node == IGNORED or group[b, start + i] != own_group:
                    continue
                distance2 = distances[i]
                score = 2 * math.exp(-distance2 * falloff) - 1 if gaussian else (radius2 - distance2) / margin2
                if node == k:
                    inside += 1
                    score = -score
                error = one + planes.dtype.type(score)
                if error > 0:
                    errors[count] = error
                    entries[count] = b * pixels + start + i
                    count += 1
    return count, inside


@jit
def _weigh(
    member: Array,
    k: int,
    radius2: float,
    margin2: float,
    gaussian: bool,
    errors: Array,
    entries: Array,
    order: Array,
    inside: int,
    steps: Array,
) -> tuple[float, float]:
    """Walk the entries by falling error, with closed-form weights (docs/mathematics.md).

    Return the loss and its slope along the squared radius; write its slope along every entry's squared distance.
    """
    pixels = member.shape[1]
    falloff = math.log(2.0) / radius2
    loss = 0.0
    slope_radius = 0.0
    seen = 0  # foreground entries so far
    for rank in range(order.size):
        place = order[rank]
        entry = entries[place]
        foreground = member[entry // pixels, entry % pixels] == k
        seen += foreground
        union = float(inside + rank + 1 - seen)
        if foreground:
            weight = 1.0 / union
        elif inside == 0:
            weight = 1.0 if rank == 0 else 0.0
        else:
            weight = (inside - seen) / (union * (union - 1))
        error = errors[place]
        loss += weight * error
        signed = weight if foreground else -weight
        if gaussian:
            phi = 1 - 0.5 * error if foreground else 0.5 * error
            slope = 2 * phi * falloff
            distance2 = -math.log(phi) / falloff if phi > 0 else 0.0
            slope_radius -= signed * slope * distance2 / radius2
        else:
            slope = 1 / margin2
            slope_radius -= signed * slope
        steps[place] = signed * slope
    return loss, slope_radius


@jit
def _push(planes: Array, mean: Array, entries: Array, steps: Array, grad_planes: Array, grad_mean: Array) -> None:
    """Add the slopes along the squared distances to the gradients of the embedding and of the node's mean.

    Plane by plane and in the order of the pixels, not of the errors: neighbours in memory follow each other.
    """
    _, dims, pixels = planes.shape
    for d in range(dims):
        centre = mean[d]
        total = 0.0
        for place in range(entries.size):
            b = entries[place] // pixels
            i = entries[place] - b * pixels
            push = 2 * steps[place] * (planes[b, d, i] - centre)
            grad_planes[b, d, i] += push
            total += push
        grad_mean[d] -= total


@jit
def _descending(errors: Array, keys: Array, spare: Array) -> Array:
    """Order positive errors from large to small, ties by position: a stable radix sort on the floats' bits."""
    count = errors.size
    if errors.itemsize != 4:
        return np.argsort(-errors, kind="mergesort")
    # The bits of positive floats grow with their value; inverted, an ascending sort is a falling one.
    # Key in the upper, position in the lower 32 bits: one word moves per entry and pass.
    bits = errors.view(np.uint32)
    for i in range(count):
        keys[i] = (np.uint64(~bits[i]) << np.uint64(32)) | np.uint64(i)
    source, target = keys, spare
    histogram = np.empty(2048, np.int64)
    for shift in (32, 43, 54):
        histogram[:] = 0
        for i in range(count):
            histogram[(source[i] >> np.uint64(shift)) & np.uint64(2047)] += 1
        total = 0
        for digit in range(2048):
            here = histogram[digit]
            histogram[digit] = total
            total += here
        for i in range(count):
            digit = (source[i] >> np.uint64(shift)) & np.uint64(2047)
            target[histogram[digit]] = source[i]
            histogram[digit] += 1
        source, target = target, source
    order = np.empty(count, np.int64)
    for i in range(count):
        order[i] = source[i] & np.uint64(0xFFFFFFFF)
    return order
