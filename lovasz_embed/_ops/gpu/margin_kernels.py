"""Triton kernels over all pixels of a picture, or a list of them: the nearest centre, and what each centre holds.

Tiles are centres × pixels with the pixels along the threads: a thread looks for the nearest centre of its own pixels
and needs no other thread. Sums are integers in a fixed point, so that no order of additions changes a bit.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton gives kernels types of its own.

from __future__ import annotations

import triton
import triton.language as tl

from lovasz_embed._ops.gpu.pixel_kernels import place_of

_NOBODY = tl.constexpr(2**31 - 1)


@triton.jit
def _unit(bound, bits):
    """Return the largest power of two that keeps `bound` below 2^`bits`: scaling by it rounds nothing."""
    if bound.dtype == tl.float64:
        exponent = ((bound.to(tl.int64, bitcast=True) >> 52) & 2047).to(tl.int32) - 1022
        power = tl.minimum(tl.maximum(bits - exponent, -1000), 1000)
        return ((power + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = ((bound.to(tl.int32, bitcast=True) >> 23) & 255) - 126
        power = tl.minimum(tl.maximum(bits - exponent, -120), 125)
        return ((power + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _add_up(owner, at, dim_stride, centres, known, limit, bits, scale, sums, counts, D: tl.constexpr):
    """Add pixels to the sums (K, D) and counts (K,) of their owners; `_NOBODY` owns a pixel that counts nowhere.

    One turn per owner that has pixels here, mostly one or two: few atomic additions, and integers only. The fixed point
    depends on the centre alone, whichever program writes it to `scale`.
    """
    scalar: tl.constexpr = centres.dtype.element_ty
    current = tl.min(owner, axis=0)
    while current < _NOBODY:
        own = owner == current
        bound = tl.abs(tl.load(centres + current))
        column = centres + current
        for _ in range(D):
            bound = tl.maximum(bound, tl.abs(tl.load(column)))
            column += known
        unit = _unit(bound + limit, bits)
        tl.store(scale + current, unit)
        source = at
        total = sums + current.to(tl.int64) * D
        for _ in range(D):
            value = tl.load(source, mask=own, other=0.0).to(scalar)
            tl.atomic_add(total, tl.sum((value * unit).to(tl.int64), axis=0), sem="relaxed")
            source += dim_stride
            total += 1
        tl.atomic_add(counts + current, tl.sum(own.to(tl.int32), axis=0), sem="relaxed")
        owner = tl.where(own, _NOBODY, owner)
        current = tl.min(owner, axis=0)


@triton.jit(do_not_specialize=["count", "skip", "known", "bits"])
def assign_kernel(
    pixels, dim_stride, row_stride, col_stride, width, count, skip, index, classes, labels,
    centres, centre_classes, first, known, limit, farthest, bits, scale, sums, counts, late, stolen,
    D: tl.constexpr, INDEXED: tl.constexpr, LATE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Label every pixel with the nearest centre of its class, plus one; 0 beyond the limit. The first of equals wins.

    What it is told:
        pixels: Dimension 0 of pixel 0; see `Planes`, like the strides and the width.
        count: How many pixels there are, or how many are listed.
        skip: One block of pixels in so many is looked at.
        index: (count,) which pixels, if INDEXED.
        classes: (P,) int32; negative: not to be labelled.
        labels: (P,) int32, written; a pixel with a negative label is passed over. If INDEXED, (count,), only written.
        centres: (D, K) in the dtype of the arithmetic, sorted by class.
        centre_classes: (K,) int32; one that no pixel has: the centre is dropped.
        first: (C + 1,) int32, where the centres of each class begin.
        known: K.
        limit: (1,) squared distance beyond which a pixel gets no label.
        farthest: (1,) the farthest that any pixel will be from its centre.
        bits: What a pixel may take of a sum.
        scale: (K,) in the dtype of the arithmetic, written where there are pixels: units of a sum in 1.
        sums: (K, D) int64, added to.
        counts: (K,) int32, added to.
        late: (K,) int32, 1 where a centre is new, if LATE, like what follows.
        stolen: (K,) int32, added to: pixels that new centres take from others.
    """
    scalar: tl.constexpr = centres.dtype.element_ty
    place = tl.program_id(0) * skip * BLOCK + tl.arange(0, BLOCK)
    number = place
    listed = place < count
    if INDEXED:
        number = tl.load(index + place, mask=listed, other=0).to(tl.int32)
    own_class = tl.load(classes + number, mask=listed, other=-1)
    before = tl.zeros([BLOCK], tl.int32)
    if not INDEXED:
        before = tl.load(labels + number, mask=listed, other=-1)
    alive = listed & (own_class >= 0) & (before >= 0)
    at = place_of(pixels, number, width, row_stride, col_stride)

    highest = tl.max(tl.where(alive, own_class, -1), axis=0)
    lowest = tl.minimum(tl.min(tl.where(alive, own_class, _NOBODY), axis=0), highest + 1)
    turn = tl.load(first + lowest)
    end = tl.load(first + highest + 1)
    best = tl.full([BLOCK], float("inf"), scalar)
    nearest = tl.zeros([BLOCK], tl.int32)
    while turn < end:
        who = turn + tl.arange(0, CHUNK)
        exists = who < end
        squared = tl.zeros([CHUNK, BLOCK], scalar)
        source = at
        column = centres + who
        for _ in range(D):
            value = tl.load(source, mask=alive, other=0.0).to(scalar)
            away = value[None, :] - tl.load(column, mask=exists, other=0.0)[:, None]
            squared += away * away
            source += dim_stride
            column += known
        same = tl.load(centre_classes + who, mask=exists, other=-2)[:, None] == own_class[None, :]
        squared = tl.where(same & (squared < float("inf")), squared, float("inf"))  # NaN is far as well
        near = tl.min(squared, axis=0)
        winner = tl.min(tl.where(squared == near[None, :], who[:, None], _NOBODY), axis=0)
        nearest = tl.where(near < best, winner, nearest)
        best = tl.minimum(best, near)
        turn += CHUNK
    found = alive & (best <= tl.load(limit))
    label = tl.where(found, nearest + 1, 0)
    if INDEXED:
        tl.store(labels + place, label, mask=listed)
    else:
        tl.store(labels + place, label, mask=alive)
    owner = tl.where(found, nearest, _NOBODY)
    _add_up(owner, at, dim_stride, centres, known, tl.load(farthest), bits, scale, sums, counts, D)
    if LATE:
        new = found & (before > 0)
        new = new & (tl.load(late + nearest, mask=new, other=0) > 0)
        tl.atomic_add(stolen + nearest, 1, mask=new, sem="relaxed")


@triton.jit(do_not_specialize=["count", "known", "bits"])
def measure_kernel(
    pixels, dim_stride, row_stride, col_stride, width, count, labels, centres, known, farthest, fine, bits, scale,
    sums, squares, counts, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the pixels of every centre, and their squared distances to it in units of 1 / `fine` (1,).

    `labels` (P,) 1 to K count, others do not; `centres` (D, K); `sums` (K, D) and `squares` (K,) are int64, `counts`
    (K,) int32: added to. The rest is as of `assign_kernel`.
    """
    scalar: tl.constexpr = centres.dtype.element_ty
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels + number, mask=number < count, other=0)
    own = (label > 0) & (label <= known)
    owner = tl.where(own, label - 1, 0)
    at = place_of(pixels, number, width, row_stride, col_stride)
    squared = tl.zeros([BLOCK], scalar)
    source = at
    column = centres + owner
    for _ in range(D):
        away = tl.load(source, mask=own, other=0.0).to(scalar) - tl.load(column, mask=own, other=0.0)
        squared += away * away
        source += dim_stride
        column += known
    units = (squared * tl.load(fine)).to(tl.int64)
    left = tl.where(own, owner, _NOBODY)
    current = tl.min(left, axis=0)
    while current < _NOBODY:
        turn = left == current
        tl.atomic_add(squares + current, tl.sum(tl.where(turn, units, 0), axis=0), sem="relaxed")
        left = tl.where(turn, _NOBODY, left)
        current = tl.min(left, axis=0)
    owner = tl.where(own, owner, _NOBODY)
    _add_up(owner, at, dim_stride, centres, known, tl.load(farthest), bits, scale, sums, counts, D)
