"""Cells of errors on a GPU, and what an entry of each weighs: the device's side of `_ops/binning.py`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton gives kernels types of its own.

from __future__ import annotations

import triton
import triton.language as tl

from lovasz_embed._ops import binning_kernels

_LOWEST = tl.constexpr(binning_kernels.LOWEST)
_HIGHEST = tl.constexpr(binning_kernels.LOWEST + (binning_kernels.OCTAVES << 23) - 1)


@triton.jit
def cell_of(errors, foreground, shift):
    """Return the cell of every entry, int32: two per bin and, for what has no positive error, 0 and 1.

    `errors` are float32 or float64 of any shape, NaN being above all numbers; `foreground` is bool or 0 and 1;
    `shift` is how many bits of a float32 lie below its bin (`binning.shift_of`).
    """
    bits = errors.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    key = tl.minimum(tl.maximum(bits, _LOWEST), _HIGHEST) - _LOWEST
    return tl.where(errors <= 0, 0, ((key >> shift) + 1) * 2) + foreground.to(tl.int32)


@triton.jit
def weigh_cells_kernel(counts, weights, totals, BINS: tl.constexpr, BLOCK: tl.constexpr):
    """Write the weight of an entry of each cell of a row, one program per row, from the largest errors downwards.

    A bin's foreground weighs 1 / U_b each and its background I_a / (U_b U_a), as `binning.cell_weights` says. All
    counts are integers up to the division: nothing cancels, and a float32 weight is right to a few 1e-7.

    `counts` (rows, 2 BINS + 2), int32 or int64, may be the same memory as `weights` where their sizes agree: a cell is
    read for the last time before it is written. `totals` (rows, 2) int64 get the entries and the foreground.
    BINS are all bins of a row, a multiple of BLOCK.
    """
    row = tl.program_id(0).to(tl.int64)
    counts += row * (2 * BINS + 2)
    weights += row * (2 * BINS + 2)
    lane = tl.arange(0, BLOCK)
    behind_sums = tl.zeros([BLOCK], counts.dtype.element_ty)
    hits = tl.zeros([BLOCK], counts.dtype.element_ty)
    for start in range(0, BINS, BLOCK):
        cell = 2 * (start + lane) + 2
        behind_sums += tl.load(counts + cell)
        hits += tl.load(counts + cell + 1)
    total = tl.sum(hits, 0) + tl.load(counts + 1)
    everything = tl.sum(behind_sums, 0) + total + tl.load(counts)
    tl.store(totals + 2 * row, everything.to(tl.int64))
    tl.store(totals + 2 * row + 1, total.to(tl.int64))

    seen = total - total  # foreground of larger errors
    union = total  # with their background
    for start in range(0, BINS, BLOCK):
        cell = 2 * (BINS - 1 - start - lane) + 2
        background = tl.load(counts + cell)
        foreground = tl.load(counts + cell + 1)
        after = union + tl.cumsum(background, 0)
        before = after - background
        left = (total - seen - tl.cumsum(foreground, 0)).to(weights.dtype.element_ty)
        u = tl.maximum(before, 1).to(weights.dtype.element_ty)
        v = tl.maximum(after, 1).to(weights.dtype.element_ty)
        # Without foreground the largest error costs everything: the first bin with an entry shares it out.
        alone = tl.where((before == 0) & (after > 0), 1.0 / v, 0.0)
        tl.store(weights + cell, tl.where(total > 0, left / u / v, alone))
        tl.store(weights + cell + 1, 1.0 / u)
        seen += tl.sum(foreground, 0)
        union += tl.sum(background, 0)
    nothing = (total - total).to(weights.dtype.element_ty)
    tl.store(weights, nothing)
    tl.store(weights + 1, nothing)
