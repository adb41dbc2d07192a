"""The Lovász extension of many masks at once: which engine, and the readable reference of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lovasz_embed._ops.binning import Reduce, binned_extension
from lovasz_embed._ops.engines import engine_for
from lovasz_embed._ops.labels import is_ignored
from lovasz_embed._ops.ranking_kernels import HINGE, SOFTMAX
from lovasz_embed._ops.reference import lovasz_extension

__all__ = ["HINGE", "SOFTMAX", "Extension", "extension"]


class Extension(NamedTuple):
    """What came of the masks: (B, K) pictures and channels, or (K,) where pictures count as one.

    Attributes:
        losses: Loss of each mask, in the dtype of the values.
        foreground: Foreground entries of each, int64.
        counted: Entries of each that count, int64.
    """

    losses: Tensor
    foreground: Tensor
    counted: Tensor


def extension(
    values: Tensor,
    labels: Tensor,
    *,
    kind: int,
    channels: Sequence[int] = (),
    skip_absent: bool = False,
    ignore_index: int | None,
    per_image: bool,
    impl: str,
    bins: int,
    reduce: Reduce | None,
) -> Extension:
    """Return the Lovász extension of the errors of every mask, differentiable with respect to the values.

    Args:
        values: Logits (B, C, P), float32 or float64.
        labels: bool or integers, (B, C, P) for a mask per channel, or (B, P) for a label map.
        kind: `HINGE`: errors 1 - F of foreground, 1 + F of background. `SOFTMAX`: errors |[foreground] - p|
            with p the softmax over the channels.
        channels: The K channels to look at; empty: all. Foreground is 1 for the hinge, the channel for the softmax.
        skip_absent: Nobody looks at the loss of a mask without foreground: it may be 0.
        ignore_index: The label of what counts nowhere; None: everything counts.
        per_image: One mask per picture and channel, or one per channel.
        impl: "auto", "reference", "numba" or "triton".
        bins: Bins per doubling of the error; 0 is the exact method.
        reduce: Adds counts over processes (with bins only). Counts are then those of all, losses this process's.
    """
    impl = engine_for(impl, values.device)
    if reduce is not None and torch.compiler.is_compiling():
        impl = "reference"
    if impl != "reference":
        engine: Callable[..., tuple[Tensor, Tensor, Tensor]]
        if impl == "numba":
            from lovasz_embed._ops.extension_numba import extension_numba as engine
        else:
            from lovasz_embed._ops.gpu.extension import extension_triton as engine

        return Extension(
            *engine(
                values,
                labels,
                kind=kind,
                channels=channels,
                skip_absent=skip_absent,
                ignore_index=ignore_index,
                per_image=per_image,
                bins=bins,
                reduce=reduce,
            )
        )
    if kind == HINGE:
        counted = ~is_ignored(labels, ignore_index)
        foreground = (labels == 1) & counted
        errors = 1 - torch.where(foreground, values, -values)
    else:
        labels = labels.unsqueeze(1)
        counted = ~is_ignored(labels, ignore_index)
        foreground = (labels == torch.arange(values.shape[1], device=labels.device).unsqueeze(-1)) & counted
        # Masked before the softmax as well: its backward would spread a NaN of an ignored pixel.
        probabilities = torch.where(counted, values, 0).softmax(1)
        errors = torch.where(foreground, 1 - probabilities, probabilities)
        counted = counted.expand_as(foreground)
    if channels:  # an index tensor would have to be copied to the device
        errors, foreground, counted = (
            torch.stack([of_all.select(1, c) for c in channels], 1) for of_all in (errors, foreground, counted)
        )
    # A background entry of error 0 changes nothing: that masks a pixel exactly (docs/mathematics.md).
    errors = _rows(torch.where(counted, errors, 0), per_image)
    foreground, counts = _rows(foreground, per_image), _rows(counted, per_image).sum(-1)
    if not bins:
        return Extension(lovasz_extension(errors, foreground), foreground.sum(-1), counts)
    shape = foreground.shape[:-1]
    losses, present = binned_extension(errors.flatten(0, -2), foreground.flatten(0, -2), bins, reduce)
    return Extension(losses.view(shape), present.view(shape), counts if reduce is None else reduce(counts))


def _rows(values: Tensor, per_image: bool) -> Tensor:
    """Return (B, C, P) with one mask per row: as it is, or (C, B * P) without `per_image`."""
    return values if per_image else values.transpose(0, 1).flatten(1)
