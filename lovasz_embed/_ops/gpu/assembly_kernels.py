"""Triton kernels that turn a map of categories and one of clusters into segments, numbered by their first pixel."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton gives kernels types of its own.

from __future__ import annotations

import triton
import triton.language as tl

_NOTHING = tl.constexpr(2**31 - 1)


@triton.jit
def _row_of(codes, labels, number, alive, stuff):
    """Return the row of each pixel in the table of segments: stuff s is s, cluster k is stuff + k - 1."""
    code = tl.load(codes + number, mask=alive, other=-1)
    label = tl.load(labels + number, mask=alive, other=0)
    row = tl.where((code >= 0) & (label > 0), stuff + label - 1, _NOTHING)
    return tl.where(code < -1, -2 - code, row)


@triton.jit(do_not_specialize=["count", "stuff"])
def tally_kernel(codes, labels, count, stuff, areas, first, BLOCK: tl.constexpr):
    """Count the pixels of every segment and find its first one.

    `codes` (P,) int32: 0 and above a thing, -1 void, -2 - s the stuff category s; `labels` (P,) int32, the cluster of a
    thing pixel or 0; `stuff` is how many stuff categories there are; `areas` (N,) int32 are added to, `first` (N,)
    int32 lowered.
    """
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = _row_of(codes, labels, number, number < count, stuff)
    current = tl.min(row, axis=0)
    while current < _NOTHING:  # one turn per segment here, mostly one or two
        own = row == current
        tl.atomic_add(areas + current, tl.sum(own.to(tl.int32), axis=0), sem="relaxed")
        tl.atomic_min(first + current, tl.min(tl.where(own, number, _NOTHING), axis=0), sem="relaxed")
        row = tl.where(own, _NOTHING, row)
        current = tl.min(row, axis=0)


@triton.jit(do_not_specialize=["count", "stuff"])
def number_kernel(codes, labels, count, stuff, ids, out, BLOCK: tl.constexpr):
    """Write the id (N,) of its segment into every pixel of `out` (P,), 0 where there is none; it may be the labels."""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    alive = number < count
    row = _row_of(codes, labels, number, alive, stuff)
    some = alive & (row < _NOTHING)
    tl.store(out + number, tl.load(ids + row, mask=some, other=0), mask=alive)
