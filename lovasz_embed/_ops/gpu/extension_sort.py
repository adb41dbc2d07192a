"""The Lovász extension on a GPU by sorting: exact, one mask after the other, so that scratch is one mask's.

That is 33 bytes an entry, and whatever torch's sort takes. For the softmax 8 bytes a pixel are kept for all masks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lovasz_embed._ops.gpu import extension_sort_kernels as kernels
from lovasz_embed._ops.gpu.extension_call import Call, Options
from lovasz_embed._ops.ranking_kernels import SOFTMAX

_BLOCK = 1024  # sorted entries that a program looks at


def weigh_by_sorting(values: Tensor, labels: Tensor, options: Options, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses (rows,) and int64 (rows, 2), the entries that count and the foreground of each mask.

    Args:
        values: Logits (B, C, P).
        labels: Integers (B, C, P) or (B, P).
        options: See there.
        slopes: Like `values`, or empty: not wanted. The slopes along the hinge's logits, or along the probabilities,
            are written to it.
    """
    batch, channels, pixels = values.shape
    totals = values.new_zeros((options.rows(values), 2), dtype=torch.int64)
    losses = values.new_zeros(len(totals))
    softmax = values.new_empty(2, batch, pixels if options.kind == SOFTMAX else 0)
    with torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
        if options.kind == SOFTMAX:
            call = Call(values, labels, options)
            constants = {name: call.constants[name] for name in ("C", "CHUNK", "BLOCK")}
            strides = (*values.stride(), labels.stride(0), labels.stride(-1))
            if call.grid[0]:
                kernels.softmax_kernel[call.grid](
                    values, labels, *softmax, pixels, call.blocks, *strides, options.ignored, **constants
                )
        pictures = [slice(b, b + 1) for b in range(batch)] if options.per_image else [slice(0, batch)]
        for row, (own, c) in enumerate((own, c) for own in pictures for c in range(channels)):
            part = slopes[own, c] if options.wanted else slopes
            losses[row] = _weigh_row(values[own], labels[own], softmax[:, own], c, options, totals[row], part)
    return losses, totals


def _weigh_row(
    values: Tensor, labels: Tensor, softmax: Tensor, channel: int, options: Options, totals: Tensor, slopes: Tensor
) -> Tensor:
    """Return the loss of one channel of these pictures (), and write its slopes (B, P)."""
    batch, _, pixels = values.shape
    entries = batch * pixels
    call = Call(values, labels, options, chunk=1)
    if not call.grid[0]:
        return values.new_zeros(())
    errors = values.new_empty(entries)
    hits = torch.empty_like(errors, dtype=torch.uint8)
    kernels.errors_kernel[call.grid](
        values, labels, *softmax, errors, hits, totals, channel, *call.places, options.ignored,
        KIND=options.kind, BLOCK=call.constants["BLOCK"],
    )  # fmt: skip
    # NaN first, and ties in input order, as in the reference.
    errors, order = torch.sort(errors, descending=True, stable=True)
    seen = hits[order].cumsum(0, dtype=torch.int32)
    programs = -(-entries // _BLOCK)
    partial = values.new_empty(programs)
    kernels.weigh_sorted_kernel[(programs,)](
        errors, order, seen, totals, partial, slopes, entries, pixels,
        *(slopes.stride() if options.wanted else (0, 0)), WANTED=options.wanted, BLOCK=_BLOCK,
    )  # fmt: skip
    return partial.sum(dtype=torch.float64).to(values.dtype)
