"""The tree hinge of the GPU engine as one operator, its gradient, and a cheap way in for eager code.

As on the CPU (`_ops/tree_operator.py`), forward leaves the gradients of the embedding and of the bandwidths, nothing
else, and backward scales them, in place where no other backward can come. It never gives them away as they are: to know
that the factor is 1 the host would have to wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.gpu.nodes import capacity
from lovasz_embed._ops.gpu.tree import LevelOptions, Tree
from lovasz_embed._ops.handover import graph_is_kept
from lovasz_embed._ops.tree_hinge import TreeLevel, TreeLosses

_Result = tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor, list[Tensor]]


def tree_hinge_triton(
    embedding: Tensor, levels: Sequence[TreeLevel], gaussian: bool, siblings: bool, cut: float, bins: int
) -> TreeLosses:
    """Return what `tree_hinge.tree_hinge` returns, the nodes padded: label and picture -1, loss 0.

    Raises:
        ValueError: If there are 2^31 pixels or more.
    """
    pixels = embedding.shape[0] * embedding.shape[2]
    if pixels >= 2**31:
        remedy = "Use impl='reference', or fewer pictures at a time."
        raise ValueError(_check.message("embedding", "have fewer than 2^31 pixels for impl='triton'", pixels, remedy))
    every = tuple(range(embedding.shape[1]))
    dims = [every if level.dims is None else tuple(level.dims) for level in levels]
    labels = [level.labels for level in levels]
    # An operator takes no optional tensors in a list: an empty one stands for none.
    bandwidths = [embedding.new_empty(0) if x.bandwidth is None else x.bandwidth.to(embedding.dtype) for x in levels]
    wanted = torch.is_grad_enabled() and any(values.requires_grad for values in (embedding, *bandwidths))
    options = (
        [level.radius for level in levels],
        [level.margin2 for level in levels],
        [level.weight for level in levels],
        [level.per_picture for level in levels],
        [d for own in dims for d in own],
        [len(own) for own in dims],
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
    with torch.cuda.device_of(embedding):  # type: ignore[no-untyped-call]
        tree = Tree(
            embedding.detach().contiguous(), gaussian=gaussian, siblings=siblings, cut=cut, bins=bins, wanted=wanted
        )
        results, end = [], 0
        for number, own in enumerate(labels):
            start, end = end, end + dim_counts[number]
            level = LevelOptions(
                radii[number], margins2[number], weights[number], per_picture[number], tuple(dims[start:end])
            )
            results.append(tree.level(own, bandwidths[number].detach().contiguous(), level))
        means = torch.stack([result.mean for result in results])
        total = sum(weight * result.mean for weight, result in zip(weights, results, strict=True))
        return (
            torch.as_tensor(total).to(embedding.dtype),
            means.to(embedding.dtype),
            [result.nodes for result in results],
            [result.losses for result in results],
            tree.grad,
            [result.grad_bandwidth for result in results],
        )


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
        needed, _, _, *learnt = ctx.needs_input_grad
        scaled = torch.mul if graph_is_kept() else Tensor.mul_
        return (
            scaled(grad, total) if needed else None,
            None,
            None,
            *(scaled(g, total) if need else None for g, need in zip(bandwidths, learnt, strict=True)),
        )


@torch.library.custom_op("lovasz_embed::tree_hinge_triton", mutates_args=())
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
    most = [capacity(own) for own in labels]
    grad = torch.empty_like(embedding, memory_format=torch.contiguous_format) if wanted else embedding.new_empty(0)
    return (
        embedding.new_empty(()),
        embedding.new_empty(len(labels)),
        [own.new_empty(2, count, dtype=torch.long) for own, count in zip(labels, most, strict=True)],
        [embedding.new_empty(count) for count in most],
        grad,
        [torch.empty_like(x, memory_format=torch.contiguous_format) if wanted else x.new_empty(0) for x in bandwidths],
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, _, _, _, grad, grad_bandwidths = output
    ctx.levels = len(inputs[1])
    ctx.save_for_backward(grad, *grad_bandwidths)


def _backward(ctx: Any, total: Tensor, *_: Any) -> tuple[Any, ...]:
    grad, *bandwidths = ctx.saved_tensors
    return grad * total, [None] * ctx.levels, [g * total for g in bandwidths], *[None] * 11


_operator.register_autograd(_backward, setup_context=_setup_context)
