# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton gives kernels types of its own.
"""The exact method around torch's sort: the errors of a mask before it, the weights in closed form after it.

Arguments are those of extension_kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lovasz_embed._ops import ranking_kernels
from lovasz_embed._ops.gpu.extension_kernels import entries_of, place_of, softmax_of

_SOFTMAX = tl.constexpr(ranking_kernels.SOFTMAX)


@triton.jit
def softmax_kernel(
    values, labels, largest, total, pixels, blocks, vb, vc, vp, lb, lp, ignored,
    C: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the largest logit and the sum of exp(logit - largest) of every pixel, (B, P) each, for all channels."""
    picture, _block, pixel, inside = place_of(pixels, blocks, BLOCK)
    top, sum_of = softmax_of(
        values + picture * vb, labels + picture * lb, pixel, inside, vc, vp, lp, ignored, _SOFTMAX, C, CHUNK, BLOCK
    )
    tl.store(largest + picture * pixels + pixel, top, inside)
    tl.store(total + picture * pixels + pixel, sum_of, inside)


@triton.jit
def errors_kernel(
    values, labels, largest, total, errors, hits, totals, channel, pixels, blocks, vb, vc, vp, lb, lc, lp, ignored,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the errors of one channel's entries, (B P,), 0 where none is positive, and uint8 which are foreground.

    `totals` (2,) int64 grow by the entries that count and the foreground.
    """
    picture, _block, pixel, inside = place_of(pixels, blocks, BLOCK)
    place = picture * pixels + pixel
    top = tl.zeros([BLOCK], values.dtype.element_ty)
    sum_of = tl.zeros([BLOCK], values.dtype.element_ty)
    if KIND == _SOFTMAX:
        top = tl.load(largest + place, inside, 0)
        sum_of = tl.load(total + place, inside, 1)
    error, foreground, counted, _p = entries_of(
        values + picture * vb, labels + picture * lb, pixel, inside, top, sum_of, channel,
        vc, vp, lc, lp, ignored, KIND, channel + 1, 1,
    )  # fmt: skip
    error = tl.where(error <= 0, 0, error)
    tl.store(errors + place[None, :], error, inside[None, :])
    tl.store(hits + place[None, :], foreground.to(tl.uint8), inside[None, :])
    tl.atomic_add(totals, tl.sum(tl.sum(counted.to(tl.int64), 1), 0), sem="relaxed")
    tl.atomic_add(totals + 1, tl.sum(tl.sum(foreground.to(tl.int64), 1), 0), sem="relaxed")


@triton.jit
def weigh_sorted_kernel(
    errors, order, seen, totals, partial, slopes, entries, pixels, sb, sp,
    WANTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weigh the entries of one channel, sorted by error, descending; write the loss of every block to `partial`.

    `order` says where each came from and `seen` how much foreground there is up to it. With WANTED its slope is
    written to where it came from in `slopes`, (B, P) of strides sb, sp.
    """
    program = tl.program_id(0)
    k = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < entries
    error = tl.load(errors + k, inside, 0)
    now = tl.load(seen + k, inside, 0).to(tl.int64)
    foreground = now > tl.load(seen + k - 1, inside & (k > 0), 0)
    foreground_of_all = tl.load(totals + 1)
    union = foreground_of_all + k + 1 - now
    u = tl.maximum(union, 1).to(error.dtype)
    v = tl.maximum(union - 1, 1).to(error.dtype)
    weight = tl.where(foreground, 1.0 / u, (foreground_of_all - now).to(error.dtype) / u / v)
    # Without foreground the largest error costs everything.
    alone = tl.where(k == 0, 1.0 / u, 0.0)
    weight = tl.where(foreground_of_all > 0, weight, alone)
    weight = tl.where(error <= 0, 0.0, weight)
    tl.store(partial + program, tl.sum(weight * error, 0))
    if WANTED:
        place = tl.load(order + k, inside, 0)
        slope = tl.where(foreground, -weight, weight)
        tl.store(slopes + (place // pixels) * sb + (place % pixels) * sp, slope, inside)
