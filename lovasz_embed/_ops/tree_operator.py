"""The tree hinge of the CPU engine as one operator, its gradient, and a cheap way in for eager code.

Forward leaves the gradients of the embedding and of the bandwidths, nothing else; backward scales them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lovasz_embed._ops import pages
from lovasz_embed._ops.handover import may_hand_over
from lovasz_embed._ops.numbered_level import NumberedLevel, number_level, parent_of_nodes
from lovasz_embed._ops.ranking import LARGEST
from lovasz_embed._ops.threads import crew_size
from lovasz_embed._ops.tree_counted_numba import counted_level_hinge
from lovasz_embed._ops.tree_hinge import TreeLevel, TreeLosses
from lovasz_embed._ops.tree_hinge_numba import HingeLevel, level_hinge

_Lists = tuple[list[float], list[float], list[float], list[bool], list[int], list[int]]
_Result = tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor, list[Tensor]]


def tree_hinge_numba(
    embedding: Tensor, levels: Sequence[TreeLevel], gaussian: bool, siblings: bool, cut: float, bins: int
) -> TreeLosses:
    """Return what `tree_hinge.tree_hinge` returns."""
    labels = [level.labels.long() for level in levels]
    # An operator takes no optional tensors in a list: an empty one stands for none.
    bandwidths = [embedding.new_empty(0) if x.bandwidth is None else x.bandwidth.to(embedding.dtype) for x in levels]
    every = range(embedding.shape[1])
    wanted = torch.is_grad_enabled() and any(values.requires_grad for values in (embedding, *bandwidths))
    options = (
        [level.radius for level in levels],
        [level.margin2 for level in levels],
        [level.weight for level in levels],
        [level.per_picture for level in levels],
        [d for level in levels for d in (every if level.dims is None else level.dims)],
        [len(every if level.dims is None else level.dims) for level in levels],
        gaussian,
        siblings,
        cut,
        bins,
        wanted,
    )
    if type(embedding) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling():
        result = _Eager.apply(embedding, labels, options, *bandwidths)  # type: ignore[no-untyped-call]
        total, per_level, nodes, losses = result
    else:
        total, per_level, nodes, losses, _, _ = _operator(embedding, labels, bandwidths, *options)
    return TreeLosses(total, per_level, tuple((n[0], n[1], loss) for n, loss in zip(nodes, losses, strict=True)))


def _run(
    embedding: Tensor,
    labels: Sequence[Tensor],
    bandwidths: Sequence[Tensor],
    radii: Sequence[float],
    margins2: Sequence[float],
    weights: Sequence[float],
    per_picture: Sequence[bool],
    dims: Sequence[int],
    dim_counts: Sequence[int],
    gaussian: bool,
    siblings: bool,
    cut: float,
    bins: int,
    wanted: bool,
) -> _Result:
    """Return the total, the levels' means, (picture, label) and loss of every level's nodes, and the gradients."""
    pixels = embedding.shape[0] * embedding.shape[2]
    if pixels >= LARGEST - 1:
        raise ValueError(
            f"embedding must have fewer than {LARGEST - 1} pixels for impl='numba', got {pixels}. "
            "Use impl='reference', or fewer pictures at a time."
        )
    planes = embedding.detach().contiguous()
    threads = crew_size(planes.numel())
    array = planes.numpy()
    grad = pages.zeros_like(planes) if wanted else planes.new_empty(0)
    per_level, nodes, losses, grad_bandwidths = [], [], [], []
    above: NumberedLevel | None = None
    ends = np.cumsum(dim_counts)
    for number, own in enumerate(labels):
        level = number_level(own.contiguous().numpy(), per_picture=per_picture[number], threads=threads)
        parents = (parent_of_nodes(level, above, threads), above) if siblings and above is not None else None
        bandwidth = bandwidths[number].detach()
        radius = _radii(level, bandwidth, radii[number])
        count = len(level.label)
        scale = weights[number] / max(count, 1)
        hinge = HingeLevel(
            planes=array,
            dims=np.asarray(dims[ends[number] - dim_counts[number] : ends[number]], np.int64),
            nodes=level,
            parents=parents,
            radius2=np.square(radius).astype(array.dtype),
            margin2=margins2[number],
            gaussian=gaussian,
            cut=cut,
            bandwidth=bandwidth.numel() > 0,
        )
        own_grad = grad.numpy() if weights[number] else array[:0]
        if bins:
            values, slopes = counted_level_hinge(hinge, scale, own_grad, threads, bins)
        else:
            values, slopes = level_hinge(hinge, scale, own_grad, threads)
        above = level
        per_level.append(float(values.mean()) if count else 0.0)
        nodes.append(torch.from_numpy(np.stack([level.picture, level.label])))
        losses.append(torch.from_numpy(values).to(planes.dtype))
        own_slope = _grad_of_bandwidth(level, bandwidth, slopes, radius) if wanted else bandwidth.new_empty(0)
        grad_bandwidths.append(own_slope)
    total = sum(weight * loss for weight, loss in zip(weights, per_level, strict=True))
    return planes.new_tensor(total), planes.new_tensor(per_level), nodes, losses, grad, grad_bandwidths


def _radii(level: NumberedLevel, bandwidth: Tensor, radius: float) -> Any:
    """Return the radius of every node, float64: the mean of the bandwidth over it, where there is one."""
    count = len(level.label)
    if not bandwidth.numel():
        return np.full(count, radius)
    bins = level.member.ravel().astype(np.int64) + 2
    return np.bincount(bins, bandwidth.double().numpy().ravel(), count + 2)[2:] / level.size


def _grad_of_bandwidth(level: NumberedLevel, bandwidth: Tensor, slopes: Any, radius: Any) -> Tensor:
    if not bandwidth.numel():
        return torch.empty_like(bandwidth)
    shares = np.concatenate([[0.0, 0.0], slopes * 2 * radius / level.size])
    return torch.from_numpy(shares[level.member + 2]).to(bandwidth.dtype)


class _Eager(torch.autograd.Function):
    """The operator without its dispatcher."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor, labels: list[Tensor], options: Any, *bandwidths: Tensor) -> Any:
        total, per_level, nodes, losses, grad, grad_bandwidths = _run(embedding, labels, bandwidths, *options)
        ctx.mark_non_differentiable(per_level)
        ctx.save_for_backward(grad, *grad_bandwidths)
        return total, per_level, nodes, losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad, *bandwidths = ctx.saved_tensors
        grad = grad if may_hand_over(total) else grad * total
        learnt = ctx.needs_input_grad[3:]
        return grad, None, None, *(g * total if need else None for g, need in zip(bandwidths, learnt, strict=True))


@torch.library.custom_op("lovasz_embed::tree_hinge", mutates_args=(), device_types="cpu")
def _operator(
    embedding: Tensor,
    labels: list[Tensor],
    bandwidths: list[Tensor],
    radii: list[float],
    margins2: list[float],
    weights: list[float],
    per_picture: list[bool],
    dims: list[int],
    dim_counts: list[int],
    gaussian: bool,
    siblings: bool,
    cut: float,
    bins: int,
    wanted: bool,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    return _run(
        embedding, labels, bandwidths, radii, margins2, weights, per_picture, dims, dim_counts, gaussian, siblings,
        cut, bins, wanted,
    )  # fmt: skip


@_operator.register_fake
def _(
    embedding: Tensor,
    labels: list[Tensor],
    bandwidths: list[Tensor],
    radii: list[float],
    margins2: list[float],
    weights: list[float],
    per_picture: list[bool],
    dims: list[int],
    dim_counts: list[int],
    gaussian: bool,
    siblings: bool,
    cut: float,
    bins: int,
    wanted: bool,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    counts = [torch.library.get_ctx().new_dynamic_size() for _ in labels]
    grad = torch.empty_like(embedding, memory_format=torch.contiguous_format) if wanted else embedding.new_empty(0)
    return (
        embedding.new_empty(()),
        embedding.new_empty(len(labels)),
        [own.new_empty(2, count) for own, count in zip(labels, counts, strict=True)],
        [embedding.new_empty(count) for count in counts],
        grad,
        [torch.empty_like(bandwidth) if wanted else bandwidth.new_empty(0) for bandwidth in bandwidths],
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, _, _, _, grad, grad_bandwidths = output
    ctx.levels = len(inputs[1])
    ctx.save_for_backward(grad, *grad_bandwidths)


def _backward(ctx: Any, total: Tensor, *_: Any) -> tuple[Any, ...]:
    grad, *bandwidths = ctx.saved_tensors
    return grad * total, [None] * ctx.levels, [g * total for g in bandwidths], *[None] * 11


_operator.register_autograd(_backward, setup_context=_setup_context)
