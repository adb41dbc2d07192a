"""The Lovász extension of many masks on the CPU: one operator, its gradient, and a cheap way in for eager code.

The gradient is known when the loss is: forward leaves the weights, and backward only scales them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed._ops import pages
from lovasz_embed._ops.binning import Reduce, bin_rows
from lovasz_embed._ops.handover import may_hand_over
from lovasz_embed._ops.labels import can_hold, is_ignored
from lovasz_embed._ops.ranking import LARGEST, Row, Weighed, weigh_rows
from lovasz_embed._ops.ranking_kernels import NOTHING, SOFTMAX, mark
from lovasz_embed._ops.softmax_kernels import softmax_slope
from lovasz_embed._ops.threads import crew_size, share

Array = NDArray[Any]

_RUN = 1 << 14  # pixels that one task of the softmax goes through


def extension_numba(
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
    """Return losses, foreground and counted entries of every mask; see `extension.extension`."""
    ignored = NOTHING if ignore_index is None or not can_hold(labels.dtype, ignore_index) else ignore_index
    labels = labels if labels.dtype in (torch.uint8, torch.int64) else _as_uint8_or_int64(labels)
    wanted = values.requires_grad and torch.is_grad_enabled()
    options = (kind, list(channels), skip_absent, ignored, per_image, bins, wanted)
    plain = type(values) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    if plain or reduce is not None:  # the operator takes no processes
        result: tuple[Tensor, Tensor, Tensor] = _Eager.apply(values, labels, reduce, *options)  # type: ignore[no-untyped-call]
        return result
    losses, foreground, counted, _, _ = _operator(values, labels, *options)
    return losses, foreground, counted


def _as_uint8_or_int64(labels: Tensor) -> Tensor:
    return labels.view(torch.uint8) if labels.dtype == torch.bool else labels.long()


def _weigh(
    values: Tensor,
    labels: Tensor,
    reduce: Reduce | None,
    kind: int,
    channels: list[int],
    skip_absent: bool,
    ignored: int,
    per_image: bool,
    bins: int,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return losses, foreground and counted entries of every mask, and what backward needs.

    That is the slopes along the hinge's logits, or along the probabilities, and the probabilities.
    """
    batch, all_channels, pixels = values.shape
    channels = channels or list(range(all_channels))
    if values.numel() >= LARGEST:
        raise ValueError(
            f"input must hold fewer than {LARGEST} values for impl='numba', got {values.numel()}. "
            "Use impl='reference', or fewer pictures at a time."
        )
    planes = values.detach().contiguous()
    if kind == SOFTMAX:
        planes = _softmax(planes)
    flat, maps = planes.numpy().reshape(-1), labels.contiguous().numpy().reshape(-1)
    if not wanted:
        weights = planes.new_empty(0)
    elif kind == SOFTMAX:  # not every channel has a mask that counts
        weights = pages.zeros_like(planes)
    else:
        weights = pages.empty_like(planes)
    groups = [[b] for b in range(batch)] if per_image else [list(range(batch))]

    def label_start(b: int, c: int) -> int:
        return (b if kind == SOFTMAX else b * all_channels + c) * pixels

    rows = [
        Row(
            [((b * all_channels + c) * pixels, label_start(b, c), pixels) for b in pictures],
            c if kind == SOFTMAX else 1,
        )
        for pictures in groups
        for c in channels
    ]
    arguments = (ignored, kind, weights.numpy().reshape(-1), crew_size(planes.numel()))
    # Over processes all take part, one without pictures as well.
    asked = [n for n, row in enumerate(rows) if row.runs or reduce is not None]
    if skip_absent and reduce is None:  # over processes a class may be present elsewhere
        present = [_occurring(maps, pictures, pixels, all_channels) - {ignored} for pictures in groups]
        asked = [n for n in asked if rows[n].label in present[n // len(channels)]]
    masks = [rows[n] for n in asked]
    if bins:
        weighed = bin_rows(flat, maps, masks, *arguments, bins=bins, reduce=reduce)
    else:
        weighed = weigh_rows(flat, maps, masks, *arguments)
    found = [Weighed(0.0, 0, 0)] * len(rows)
    for n, result in zip(asked, weighed, strict=True):
        found[n] = result
    shape = (batch, len(channels)) if per_image else (len(channels),)
    losses = values.new_tensor([row.loss for row in found]).view(shape)
    foreground = torch.tensor([row.foreground for row in found], dtype=torch.int64).view(shape)
    counted = torch.tensor([row.counted for row in found], dtype=torch.int64).view(shape)
    return losses, foreground, counted, weights, planes if wanted and kind == SOFTMAX else values.new_empty(0)


def _softmax(logits: Tensor) -> Tensor:
    """Return the softmax over channels: torch's is not the same, bit for bit, for any number of threads."""
    probabilities = pages.empty_like(logits)
    source, target = logits.numpy(), probabilities.numpy()

    def softmax(run: tuple[int, slice]) -> None:
        b, own = run
        out = target[b, :, own]
        with np.errstate(all="ignore"):  # whatever ignored pixels hold
            np.exp(source[b, :, own] - source[b, :, own].max(0), out=out)
            out /= out.sum(0)

    batch, _, pixels = logits.shape
    runs = [(b, slice(first, first + _RUN)) for b in range(batch) for first in range(0, pixels, _RUN)]
    share(softmax, runs, crew_size(logits.numel()))
    return probabilities


def _occurring(maps: Array, pictures: list[int], pixels: int, classes: int) -> set[int]:
    occurs = np.zeros(classes, np.bool_)
    for b in pictures:
        mark(maps[b * pixels : (b + 1) * pixels], occurs)
    return set(np.flatnonzero(occurs).tolist())


class _Eager(torch.autograd.Function):
    """The operator without its dispatcher: a fraction of the cost of a call on small masks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, labels: Tensor, reduce: Reduce | None, *options: Any) -> tuple[Tensor, ...]:
        losses, foreground, counted, weights, probabilities = _weigh(values, labels, reduce, *options)
        ctx.mark_non_differentiable(foreground, counted)
        _keep(ctx, labels, options, weights, probabilities)
        return losses, foreground, counted

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (_slope(ctx, loss), *[None] * 9)


def _keep(ctx: Any, labels: Tensor, options: Sequence[Any], weights: Tensor, probabilities: Tensor) -> None:
    kind, ctx.channels, _, ctx.ignored, *_ = options
    ctx.save_for_backward(weights, *((probabilities, labels) if kind == SOFTMAX else ()))


def _slope(ctx: Any, loss: Tensor) -> Tensor:
    weights: Tensor
    weights, *softmax = ctx.saved_tensors
    if ctx.channels:
        loss = loss.new_zeros(*loss.shape[:-1], weights.shape[1]).index_add(-1, torch.tensor(ctx.channels), loss)
    if torch.compiler.is_compiling() or type(weights) is not Tensor:
        return _traceable_slope(weights, loss, softmax, ctx.ignored)
    if softmax:
        probabilities, labels = softmax
        return _slope_through_softmax(weights, loss, probabilities, labels, ctx.ignored)
    if may_hand_over(loss):  # one mask, or a sum of masks, and nothing behind it
        return weights
    return weights * loss.unsqueeze(-1)  # (B, C, 1), or (C, 1), against (B, C, P)


def _slope_through_softmax(
    weights: Tensor, loss: Tensor, probabilities: Tensor, labels: Tensor, ignored: int
) -> Tensor:
    slope = pages.empty_like(weights)
    scales = loss.expand(weights.shape[:2]).contiguous()
    arrays = [values.numpy() for values in (weights, scales, probabilities, labels.contiguous(), slope)]
    runs = [(b, first, first + _RUN) for b in range(len(weights)) for first in range(0, weights.shape[2], _RUN)]

    def back(run: tuple[int, int, int]) -> None:
        b, own = run[0], slice(*run[1:])
        w, s, p, y, target = (values[b] for values in arrays)
        softmax_slope(w[:, own], s, p[:, own], y[own], ignored, target[:, own])

    share(back, runs, crew_size(weights.numel()))
    return slope


def _traceable_slope(weights: Tensor, loss: Tensor, softmax: Sequence[Tensor], ignored: int) -> Tensor:
    """Do the same with what a compiler can look into."""
    slope = weights * loss.unsqueeze(-1)
    if softmax:
        probabilities, labels = softmax
        slope = torch.ops.aten._softmax_backward_data(slope, probabilities, 1, slope.dtype)
        if ignored != NOTHING:
            # Whatever the logits of an ignored pixel are, NaN even, nothing flows back to them.
            slope = slope.masked_fill(is_ignored(labels, ignored).unsqueeze(1), 0)
    return slope


@torch.library.custom_op("lovasz_embed::extension", mutates_args=(), device_types="cpu")
def _operator(
    values: Tensor,
    labels: Tensor,
    kind: int,
    channels: list[int],
    skip_absent: bool,
    ignored: int,
    per_image: bool,
    bins: int,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _weigh(values, labels, None, kind, channels, skip_absent, ignored, per_image, bins, wanted)


@_operator.register_fake
def _(
    values: Tensor,
    labels: Tensor,
    kind: int,
    channels: list[int],
    skip_absent: bool,
    ignored: int,
    per_image: bool,
    bins: int,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    masks = len(channels) or values.shape[1]
    losses = values.new_empty((values.shape[0], masks) if per_image else (masks,))
    foreground = torch.empty_like(losses, dtype=torch.int64)
    like_values = torch.empty_like(values, memory_format=torch.contiguous_format)
    weights = like_values if wanted else values.new_empty(0)
    probabilities = torch.empty_like(like_values) if wanted and kind == SOFTMAX else values.new_empty(0)
    return losses, foreground, torch.empty_like(foreground), weights, probabilities


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    _keep(ctx, inputs[1], inputs[2:], *output[3:])


def _operator_backward(ctx: Any, loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return (_slope(ctx, loss), *[None] * 8)


_operator.register_autograd(_operator_backward, setup_context=_setup_context)
