# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton gives kernels types of its own.
"""Count the errors of masks, add up their losses, and go back to the logits: two reads of the logits and one.

A program looks at one block of pixels of one picture, CHUNK channels at a time. Nothing but the logits and the labels
is read: errors, and the softmax, are computed again wherever they are needed, which costs less than keeping them.

The arguments that all share: `values` (B, C, P) and `labels` (B, P) or (B, C, P) with their strides, `vb, vc, vp` and
`lb, lc, lp`; `pixels` P; `blocks` of pixels a picture; `row_step` from a picture's tables to the next one's, C where
every picture has its own and 0 where all share; `ignored`, a label. Tables are (rows, CELLS), see counting_kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lovasz_embed._ops import ranking_kernels
from lovasz_embed._ops.gpu.counting_kernels import cell_of

_SOFTMAX = tl.constexpr(ranking_kernels.SOFTMAX)


@triton.jit
def count_kernel(
    values, labels, counts, pixels, blocks, vb, vc, vp, lb, lc, lp, row_step, ignored,
    KIND: tl.constexpr, C: tl.constexpr, SHIFT: tl.constexpr, CELLS: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add every entry that counts to its cell in `counts`, int32."""
    picture, _block, pixel, inside = place_of(pixels, blocks, BLOCK)
    values += picture * vb
    labels += picture * lb
    largest, total = softmax_of(values, labels, pixel, inside, vc, vp, lp, ignored, KIND, C, CHUNK, BLOCK)
    for first in range(0, C, CHUNK):
        errors, foreground, counted, _p = entries_of(
            values, labels, pixel, inside, largest, total, first, vc, vp, lc, lp, ignored, KIND, C, CHUNK
        )
        cell = cell_of(errors, foreground, SHIFT)
        channel = first + tl.arange(0, CHUNK)
        table = counts + (picture * row_step + channel) * CELLS
        tl.atomic_add(table[:, None] + cell, tl.full(cell.shape, 1, tl.int32), counted & (cell > 3), sem="relaxed")
        # What has no error or next to none, most of a trained network's pixels, would all wait for the same cells:
        # it is counted here, sixteen bits for each of the four, and added once.
        sixteens = tl.where(cell > 3, 0, cell).to(tl.int64) * 16
        few = tl.sum(tl.where(counted & (cell < 4), tl.full(cell.shape, 1, tl.int64) << sixteens, 0), 1)
        for n in tl.static_range(4):
            number = ((few >> (16 * n)) & 0xFFFF).to(tl.int32)
            tl.atomic_add(table + n, number, number > 0, sem="relaxed")


@triton.jit
def loss_kernel(
    values, labels, weights, partial, slopes, pixels, blocks, vb, vc, vp, lb, lc, lp, sb, sc, sp, row_step, ignored,
    KIND: tl.constexpr, C: tl.constexpr, SHIFT: tl.constexpr, CELLS: tl.constexpr, WANTED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write this block's part of every loss to `partial` (B, C, blocks).

    With WANTED also the slopes along the hinge's logits, or along the probabilities, (B, C, P) of strides sb, sc, sp.
    """
    picture, block, pixel, inside = place_of(pixels, blocks, BLOCK)
    values += picture * vb
    labels += picture * lb
    largest, total = softmax_of(values, labels, pixel, inside, vc, vp, lp, ignored, KIND, C, CHUNK, BLOCK)
    for first in range(0, C, CHUNK):
        errors, foreground, counted, _p = entries_of(
            values, labels, pixel, inside, largest, total, first, vc, vp, lc, lp, ignored, KIND, C, CHUNK
        )
        cell = cell_of(errors, foreground, SHIFT)
        channel = first + tl.arange(0, CHUNK)
        table = weights + (picture * row_step + channel) * CELLS
        weight = tl.load(table[:, None] + cell, counted & (cell > 1), 0)
        loss = tl.sum(weight * tl.where(errors <= 0, 0, errors), 1)  # not a maximum: NaN must stay
        tl.store(partial + (picture * C + channel) * blocks + block, loss, channel < C)
        if WANTED:
            place = picture * sb + channel.to(tl.int64)[:, None] * sc + (pixel * sp)[None, :]
            slope = tl.where(foreground, -weight, weight)
            tl.store(slopes + place, slope, (channel < C)[:, None] & inside[None, :])


@triton.jit
def slope_kernel(
    values, labels, kept, scales, gradient, pixels, blocks, vb, vc, vp, lb, lc, lp, gb, gc, gp, row_step, ignored,
    KIND: tl.constexpr, C: tl.constexpr, SHIFT: tl.constexpr, CELLS: tl.constexpr, TABLE: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the logits, (B, C, P) of strides gb, gc, gp, from what comes in for every loss, `scales`.

    `kept` are the tables of weights, or, without TABLE, slopes that lie as the gradient does. Through the softmax with
    probabilities p and scaled slopes s it is p_c (s_c - sum_k s_k p_k).
    """
    picture, _block, pixel, inside = place_of(pixels, blocks, BLOCK)
    values += picture * vb
    labels += picture * lb
    gradient += picture * gb
    largest, total = softmax_of(values, labels, pixel, inside, vc, vp, lp, ignored, KIND, C, CHUNK, BLOCK)
    mean = tl.zeros([BLOCK], values.dtype.element_ty)
    for first in range(0, C, CHUNK):
        errors, foreground, counted, p = entries_of(
            values, labels, pixel, inside, largest, total, first, vc, vp, lc, lp, ignored, KIND, C, CHUNK
        )
        channel = first + tl.arange(0, CHUNK)
        place = channel.to(tl.int64)[:, None] * gc + (pixel * gp)[None, :]
        if TABLE:
            cell = cell_of(errors, foreground, SHIFT)
            table = kept + (picture * row_step + channel) * CELLS
            weight = tl.load(table[:, None] + cell, counted & (cell > 1), 0)
            slope = tl.where(foreground, -weight, weight)
        else:
            slope = tl.load(kept + picture * gb + place, counted, 0)
        scale = tl.load(scales + picture * row_step + channel, channel < C, 0)
        slope = slope * scale[:, None]
        # For the softmax these are not the gradient yet: they are read again below, from the cache.
        tl.store(gradient + place, slope, (channel < C)[:, None] & inside[None, :])
        if KIND == _SOFTMAX:
            mean += tl.sum(tl.where(counted, slope * p, 0), 0)
    if KIND == _SOFTMAX:
        tl.debug_barrier()  # what one thread wrote another may read
        for first in range(0, C, CHUNK):
            _errors, _foreground, counted, p = entries_of(
                values, labels, pixel, inside, largest, total, first, vc, vp, lc, lp, ignored, KIND, C, CHUNK
            )
            channel = first + tl.arange(0, CHUNK)
            place = channel.to(tl.int64)[:, None] * gc + (pixel * gp)[None, :]
            slope = tl.load(gradient + place, counted, 0)
            # Whatever the logits of an ignored pixel are, NaN even, nothing flows back to them.
            slope = tl.where(counted, p * (slope - mean[None, :]), 0)
            tl.store(gradient + place, slope, (channel < C)[:, None] & inside[None, :])


@triton.jit
def place_of(pixels, blocks, BLOCK: tl.constexpr):
    """Return the program's picture, block, pixels (BLOCK,), and which of these there are; offsets are int64."""
    program = tl.program_id(0)
    picture = (program // blocks).to(tl.int64)
    block = program % blocks
    pixel = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return picture, block, pixel, pixel < pixels


@triton.jit
def softmax_of(
    values, labels, pixel, inside, vc, vp, lp, ignored,
    KIND: tl.constexpr, C: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return, for every pixel, its largest logit and the sum of exp(logit - largest); for the hinge nothing useful."""
    largest = tl.full([BLOCK], float("-inf"), values.dtype.element_ty)
    total = tl.zeros([BLOCK], values.dtype.element_ty)
    if KIND == _SOFTMAX:
        own = tl.load(labels + pixel * lp, inside, 0).to(tl.int64)
        counted = inside & (own != ignored)
        for first in range(0, C, CHUNK):
            channel = first + tl.arange(0, CHUNK)
            place = channel.to(tl.int64)[:, None] * vc + (pixel * vp)[None, :]
            x = tl.load(values + place, (channel < C)[:, None] & counted[None, :], float("-inf"))
            top = tl.maximum(largest, tl.max(x, 0))
            base = tl.where(top == float("-inf"), 0, top)  # channels of -inf may come before the others
            total = total * tl.exp(largest - base) + tl.sum(tl.exp(x - base[None, :]), 0)
            largest = top
        largest = tl.where(counted, largest, 0)
        total = tl.where(counted, total, 1)
    return largest, total


@triton.jit
def entries_of(
    values, labels, pixel, inside, largest, total, first, vc, vp, lc, lp, ignored,
    KIND: tl.constexpr, C: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Return errors, whether foreground, whether it counts, and the probability of (CHUNK, BLOCK) entries.

    What does not count is background of error 0 (docs/mathematics.md, masks are exact).
    """
    channel = (first + tl.arange(0, CHUNK)).to(tl.int64)[:, None]
    there = (channel < C) & inside[None, :]
    if KIND == _SOFTMAX:
        own = tl.load(labels + pixel * lp, inside, 0).to(tl.int64)[None, :]
        counted = there & (own != ignored)
        foreground = counted & (own == channel)
    else:
        own = tl.load(labels + channel * lc + (pixel * lp)[None, :], there, 0).to(tl.int64)
        counted = there & (own != ignored)
        foreground = counted & (own == 1)
    place = channel * vc + (pixel * vp)[None, :]
    if KIND == _SOFTMAX:
        p = tl.exp(tl.load(values + place, counted, float("-inf")) - largest[None, :]) / total[None, :]
        errors = tl.where(foreground, 1 - p, p)
    else:
        p = tl.load(values + place, counted, 0)
        errors = tl.where(foreground, 1 - p, 1 + p)
    return tl.where(counted, errors, 0), foreground, counted, p
