"""The Lovász extension of many masks on a GPU: two operators, and a cheap way in for eager code.

Counting reads the logits twice, once to count and once to weigh, and backward reads them once more: the softmax, the
errors and their cells are computed again each time. So all that is kept for backward is the tables of weights, 256 KiB
a mask at 512 bins, or the slopes (B, C, P) where they are smaller, and after sorting; and the one new array of the
logits' size is their gradient. Slopes would cost another such array, and another write and read of it.

Nothing here waits for the device, and every sum has an order of its own: counts are integers, and losses are added up
block by block. With kernels that have run before, all of it can be captured into a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.binning import Reduce, cells
from lovasz_embed._ops.gpu import extension_kernels as kernels
from lovasz_embed._ops.gpu.counting import table_shape, weigh_cells
from lovasz_embed._ops.gpu.extension_call import Call, Options
from lovasz_embed._ops.gpu.extension_sort import weigh_by_sorting
from lovasz_embed._ops.labels import can_hold
from lovasz_embed._ops.ranking_kernels import HINGE, NOTHING

_LARGEST = 2**31  # entries of a mask: counts have 31 bits
_CELLS_AT_ONCE = 2**24  # of tables that are not kept for backward: 64 MiB of counts


def extension_triton(
    values: Tensor,
    labels: Tensor,
    *,
    kind: int,
    channels: Sequence[int],
    skip_absent: bool,
    ignore_index: int | None,
    per_image: bool,
    bins: int,
    reduce: Reduce | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, foreground and counted entries of every mask; see `extension.extension`.

    `skip_absent` saves nothing here: that a class is absent is known on the device only.
    """
    entries = values.shape[2] * (1 if per_image else values.shape[0])
    if entries >= _LARGEST:
        rule = f"hold fewer than {_LARGEST} values a mask for impl='triton'"
        remedy = "Use impl='reference', or fewer pictures at a time."
        raise ValueError(_check.message("input", rule, entries, remedy))
    ignored = NOTHING if ignore_index is None or not can_hold(labels.dtype, ignore_index) else ignore_index
    labels = labels.view(torch.uint8) if labels.dtype == torch.bool else labels
    if values.shape[2] == 1 and not per_image:  # points in one place each: a block shall hold more than one of them
        values, labels = values.transpose(0, 2), labels.transpose(0, labels.ndim - 1)
    wanted = values.requires_grad and torch.is_grad_enabled()
    options = Options(kind, ignored, per_image, bins, wanted)
    plain = type(values) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    if plain or reduce is not None:  # the operator takes no processes
        losses, foreground, counted = _Eager.apply(values, labels, reduce, options)  # type: ignore[no-untyped-call]
    else:
        losses, foreground, counted, _ = _operator(values, labels, *options)
    if not channels:
        return losses, foreground, counted
    # Views one by one: an index tensor would have to be copied to the device.
    chosen = [torch.stack([of_all[..., c] for c in channels], -1) for of_all in (losses, foreground, counted)]
    return chosen[0], chosen[1], chosen[2]


def _weigh(
    values: Tensor, labels: Tensor, reduce: Reduce | None, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return losses, foreground and counted entries of every mask, and what backward needs.

    That is the tables of weights (rows, cells), or the slopes (B, C, P) along the hinge's logits or along the
    probabilities.
    """
    values = values.detach()
    tables = bool(options.bins) and (reduce is not None or not _keeps_slopes(values, options))
    kept = torch.empty_like(values) if options.wanted and not tables else values.new_empty(0)
    if not options.bins:
        losses, totals = weigh_by_sorting(values, labels, options, kept)
    elif tables:
        losses, totals, weights = _count(values, labels, reduce, options, kept)
        kept = weights if options.wanted else kept
    else:
        losses, totals = _count_in_parts(values, labels, options, kept)
    shape = values.shape[:2] if options.per_image else values.shape[1:2]
    counted, foreground = (column.clone().view(shape) for column in totals.unbind(1))
    return losses.view(shape), foreground, counted, kept


def _keeps_slopes(values: Tensor, options: Options) -> bool:
    """Return whether slopes are kept for backward: where they are smaller than tables, and for the exact method."""
    return not options.bins or options.rows(values) * cells(options.bins) > values.numel()


def _count_in_parts(values: Tensor, labels: Tensor, options: Options, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Count as many pictures together as tables have room; return losses (rows,) and totals (rows, 2)."""
    batch, channels, _ = values.shape
    at_once = max(batch, 1)
    if options.per_image:
        at_once = max(_CELLS_AT_ONCE // max(channels * cells(options.bins), 1), 1)
    parts = [slice(first, first + at_once) for first in range(0, max(batch, 1), at_once)]
    found = [_count(values[own], labels[own], None, options, slopes[own])[:2] for own in parts]
    losses, totals = zip(*found, strict=True)
    return torch.cat(losses), torch.cat(totals)


def _count(
    values: Tensor, labels: Tensor, reduce: Reduce | None, options: Options, slopes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, weigh the cells, weigh the entries: return losses (rows,), totals (rows, 2) and the tables of weights."""
    call = Call(values, labels, options)
    rows = options.rows(values)
    counts = torch.zeros(table_shape(rows, options.bins), dtype=torch.int32, device=values.device)
    partial = values.new_empty(*values.shape[:2], call.blocks)
    with torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
        if call.grid[0]:
            kernels.count_kernel[call.grid](values, labels, counts, *call.places, *call.last, **call.constants)
        weights, totals = weigh_cells(counts if reduce is None else reduce(counts.long()), options.bins, values.dtype)
        if call.grid[0]:
            strides = slopes.stride() if slopes.numel() else (0, 0, 0)
            kernels.loss_kernel[call.grid](
                values, labels, weights, partial, slopes, *call.places, *strides, *call.last,
                WANTED=slopes.numel() > 0, **call.constants,
            )  # fmt: skip
    # In float64: there may be thousands of blocks.
    losses = partial.sum(2 if options.per_image else (0, 2), dtype=torch.float64).to(values.dtype)
    return losses.flatten(), totals, weights


def _slope(values: Tensor, labels: Tensor, kept: Tensor, loss: Tensor, options: Options) -> Tensor:
    """Return the gradient of the logits for what comes in for every loss."""
    values = values.detach()
    tables = kept.ndim == 2
    if options.kind == HINGE and not tables:
        return kept * loss.unsqueeze(-1)  # (B, C, 1), or (C, 1), against (B, C, P)
    gradient = torch.empty_like(values if tables else kept)
    call = Call(values, labels, options)
    if call.grid[0]:
        with torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
            kernels.slope_kernel[call.grid](
                values, labels, kept, loss.contiguous(), gradient, *call.places, *gradient.stride(), *call.last,
                TABLE=tables, **call.constants,
            )  # fmt: skip
    return gradient


class _Eager(torch.autograd.Function):
    """The operator without its dispatcher: a fraction of the cost of a call."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, labels: Tensor, reduce: Reduce | None, options: Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses, foreground, counted, kept = _weigh(values, labels, reduce, options)
        ctx.mark_non_differentiable(foreground, counted)
        ctx.save_for_backward(values, labels, kept)
        ctx.options = options
        return losses, foreground, counted

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        values, labels, kept = ctx.saved_tensors
        return _slope(values, labels, kept, loss, ctx.options), None, None, None


@torch.library.custom_op("lovasz_embed::extension_triton", mutates_args=())
def _operator(
    values: Tensor, labels: Tensor, kind: int, ignored: int, per_image: bool, bins: int, wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _weigh(values, labels, None, Options(kind, ignored, per_image, bins, wanted))


@_operator.register_fake
def _(
    values: Tensor, labels: Tensor, kind: int, ignored: int, per_image: bool, bins: int, wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = Options(kind, ignored, per_image, bins, wanted)
    losses = values.new_empty(values.shape[:2] if per_image else values.shape[1:2])
    foreground = torch.empty_like(losses, dtype=torch.int64)
    if not wanted:
        kept = values.new_empty(0)
    elif _keeps_slopes(values, options):
        kept = torch.empty_like(values)
    else:
        kept = values.new_empty(table_shape(options.rows(values), bins))
    return losses, foreground, torch.empty_like(foreground), kept


@torch.library.custom_op("lovasz_embed::extension_triton_slope", mutates_args=())
def _slope_operator(
    values: Tensor, labels: Tensor, kept: Tensor, loss: Tensor, kind: int, ignored: int, per_image: bool, bins: int
) -> Tensor:
    return _slope(values, labels, kept, loss, Options(kind, ignored, per_image, bins, True))


@_slope_operator.register_fake
def _(
    values: Tensor, labels: Tensor, kept: Tensor, loss: Tensor, kind: int, ignored: int, per_image: bool, bins: int
) -> Tensor:
    return torch.empty_like(values)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    values, labels, *options = inputs
    ctx.options = options[:-1]
    ctx.save_for_backward(values, labels, output[3])


def _operator_backward(ctx: Any, loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return (_slope_operator(*ctx.saved_tensors, loss, *ctx.options), *[None] * 6)


_operator.register_autograd(_operator_backward, setup_context=_setup_context)
