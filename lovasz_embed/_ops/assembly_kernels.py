"""Numba kernels that turn a map of categories and a map of clusters into one of segments.

Arrays in, arrays out; the caller allocates what is returned. Neighbours mostly belong together: only where one of the
maps changes is anything looked up.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from lovasz_embed._ops.jit import jit

Array = NDArray[Any]


@jit
def extent(values: Array, skipped: int) -> tuple[int, int]:
    """Return the lowest and the highest of `values` (P,) that is not `skipped`; the highest is lower if none is."""
    low, high = 2**63 - 1, -(2**63)
    for value in values:
        counts = value != skipped
        low = min(low, value if counts else 2**63 - 1)
        high = max(high, value if counts else -(2**63))
    return low, high


@jit
def tally(
    values: Array,
    labels: Array,
    begin: int,
    end: int,
    void: int,
    base: int,
    slots: Array,
    votes: Array,
    thing_first: Array,
    areas: Array,
    stuff_first: Array,
) -> None:
    """Count the pixels `begin` to `end` of every cluster and stuff category, and note where each begins.

    Args:
        values: (P,) category of each pixel, in any code.
        labels: (P,) number of its cluster, 0 = noise; not looked at on stuff.
        begin: First pixel of the range.
        end: One past its last pixel.
        void: The value that is no category.
        base: The value that the first slot stands for.
        slots: (V,) what the values from `base` on mean: t for the thing category t, -1 - s for the stuff category s.
        votes: (K + 1, T) int64, added to: pixels of each cluster and thing category, or of each cluster if T is 1.
        thing_first: (K + 1,) int64, lowered to the first pixel of each cluster.
        areas: (S,) int64, added to: pixels of each stuff category.
        stuff_first: (S,) int64, lowered to the first pixel of each stuff category.
    """
    split = votes.shape[1] > 1
    p = begin
    while p < end:
        value, label, start = values[p], labels[p], p
        p += 1
        while p < end and values[p] == value and labels[p] == label:
            p += 1
        if value == void:
            continue
        slot = slots[value - base]
        if slot < 0:
            stuff_first[-1 - slot] = min(stuff_first[-1 - slot], start)
            areas[-1 - slot] += p - start
        elif label > 0:
            thing_first[label] = min(thing_first[label], start)
            votes[label, slot if split else 0] += p - start


@jit
def number(
    values: Array,
    labels: Array,
    begin: int,
    end: int,
    void: int,
    base: int,
    slots: Array,
    thing_ids: Array,
    stuff_ids: Array,
    out: Array,
) -> None:
    """Write the id of the segment of the pixels `begin` to `end`.

    Args:
        values: As for `tally`, like the labels.
        labels: (P,).
        begin: First pixel of the range.
        end: One past its last pixel.
        void: As for `tally`, like `base` and `slots`.
        base: The value that the first slot stands for.
        slots: (V,).
        thing_ids: (K + 1,) id of each cluster, 0 = none, as for noise.
        stuff_ids: (S,) id of each stuff category, 0 = none.
        out: (P,), written; it may be `labels`.
    """
    p = begin
    while p < end:
        value, label, start = values[p], labels[p], p
        p += 1
        while p < end and values[p] == value and labels[p] == label:
            p += 1
        segment = 0
        if value != void:
            slot = slots[value - base]
            segment = stuff_ids[-1 - slot] if slot < 0 else thing_ids[label]
        for q in range(start, p):
            out[q] = segment
