"""Count errors into bins cut from the floats' own bits, and weigh every entry by its bin.

A bin holds the floats that agree in exponent and in the first bits of the mantissa: with n bins per doubling of
the error it is at most one n-th of its lower end wide, and no range has to be known before. Bins cover errors
from 2^-32 to 2^32; the first and the last also take what lies outside. Each has two cells, for background and
foreground; cells 0 and 1 are for what has no positive error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops.jit import jit

Array = NDArray[Any]

OCTAVES = 64
LOWEST = (127 - 32) << 23  # the bits of 2^-32 in float32

_BLOCK = 512  # entries that are gone through loop by loop, vectorised, in the first-level cache
HINGE, SOFTMAX = 1, 2  # what the values are; anything else: errors (as in ranking_kernels)


@jit
def count_cells(
    values: Array,
    labels: Array,
    value_start: int,
    label_start: int,
    length: int,
    label: int,
    ignored: int,
    kind: int,
    shift: int,
    counts: Array,
) -> tuple[int, int]:
    """Add the entries of a run to the counts of their cells.

    Return how many of the entries are foreground, and ignored.
    """
    errors = np.zeros(_BLOCK, np.float64)
    cells = np.empty(_BLOCK, np.int32)
    foreground = 0
    out = 0
    for first in range(0, length, _BLOCK):
        size = min(_BLOCK, length - first)
        start = value_start + first
        block = labels[label_start + first : label_start + first + size]
        found, dropped = cells_of(values[start : start + size], block, label, ignored, kind, shift, errors, cells)
        foreground += found
        out += dropped
        for i in range(size):
            counts[cells[i]] += 1
    return foreground, out


@jit
def weigh_cells(
    values: Array,
    labels: Array,
    value_start: int,
    label_start: int,
    length: int,
    label: int,
    ignored: int,
    kind: int,
    shift: int,
    table: Array,
    weights: Array,
) -> float:
    """Write the slope along every logit of a run, its cell's in `table`; return the run's share of the loss."""
    errors = np.zeros(_BLOCK, np.float64)
    slopes = np.zeros(_BLOCK, np.float64)
    cells = np.empty(_BLOCK, np.int32)
    sums = np.zeros(8, np.float64)  # side by side: one sum would wait for itself at every entry
    for first in range(0, length, _BLOCK):
        size = min(_BLOCK, length - first)
        start = value_start + first
        block = labels[label_start + first : label_start + first + size]
        cells_of(values[start : start + size], block, label, ignored, kind, shift, errors, cells)
        slopes[size:] = 0
        for i in range(size):
            slopes[i] = table[cells[i]]
        if weights.size:
            target = weights[start : start + size]
            for i in range(size):
                target[i] = slopes[i]
        for i in range(0, _BLOCK, 8):
            for j in range(8):
                sums[j] += abs(slopes[i + j]) * errors[i + j]
    return sums.sum()


@jit
def cells_of(
    values: Array,
    labels: Array,
    label: int,
    ignored: int,
    kind: int,
    shift: int,
    errors: Array,
    cells: Array,
) -> tuple[int, int]:
    """Write error, 0 where it is not positive, and cell of every entry of a block.

    Return how many entries are foreground, and ignored.
    """
    narrow = np.empty(_BLOCK, np.float32)
    bits = narrow.view(np.int32)
    one = values.dtype.type(1)
    zero = values.dtype.type(0)
    mask = np.empty(_BLOCK, np.uint8)
    foreground = np.int32(0)
    out = np.int32(0)
    for i in range(values.size):
        inside = (labels[i] == label) & (labels[i] != ignored)
        mask[i] = inside
        foreground += np.int32(inside)
        out += np.int32(labels[i] == ignored)
    if kind == HINGE:
        for i in range(values.size):
            errors[i] = one - values[i] if mask[i] else one + values[i]
    elif kind == SOFTMAX:
        for i in range(values.size):
            errors[i] = one - values[i] if mask[i] else values[i]
    else:
        for i in range(values.size):
            errors[i] = values[i]
    if out:
        for i in range(values.size):
            errors[i] = zero if labels[i] == ignored else errors[i]
    for i in range(values.size):
        errors[i] = 0.0 if errors[i] <= 0 else errors[i]
        narrow[i] = np.float32(errors[i])
    highest = np.int32(LOWEST + (OCTAVES << 23) - 1)
    for i in range(values.size):
        key = bits[i] & np.int32(0x7FFFFFFF)
        inside_range = min(max(key, np.int32(LOWEST)), highest)  # NaN is above all numbers
        cells[i] = mask[i] + ((((inside_range - np.int32(LOWEST)) >> shift) + 1) << 1 if key > 0 else 0)
    return foreground, out
