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
NOTHING = -(2**63)  # a label that no picture holds, as in ranking_kernels
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
    errors = np.zeros(_BLOCK, values.dtype)
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
            counts[np.uint32(cells[i])] += 1
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
    errors = np.zeros(_BLOCK, values.dtype)
    slopes = np.zeros(_BLOCK, values.dtype)
    cells = np.empty(_BLOCK, np.int32)
    loss = 0.0
    for first in range(0, length, _BLOCK):
        size = min(_BLOCK, length - first)
        start = value_start + first
        block = labels[label_start + first : label_start + first + size]
        cells_of(values[start : start + size], block, label, ignored, kind, shift, errors, cells)
        for i in range(size):
            slopes[i] = table[np.uint32(cells[i])]
        if weights.size:
            weights[start : start + size] = slopes[:size]
        for i in range(size):
            errors[i] *= abs(slopes[i])
        errors[size:] = 0
        loss += _sum(errors)
    return loss


@jit
def slopes_of_cells(counts: Array, slopes: Array) -> None:
    """Write the slope along the logit of an entry of every cell that holds any, (cells,), from their counts.

    That is minus the weight of foreground and plus that of background, as `binning.cell_weights` tells them.
    """
    total: Any = 0
    for cell in range(1, counts.size, 2):
        total += np.int64(counts[cell])
    passed: Any = 0  # foreground and background of the bins before, the largest errors first
    behind: Any = 0
    for cell in range(counts.size - 2, 1, -2):
        background, foreground = np.int64(counts[cell]), np.int64(counts[cell + 1])
        if background + foreground == 0:
            continue
        passed += foreground
        before = float(total + behind)
        behind += background
        if total > 0:
            slopes[cell] = float(total - passed) / (before * float(total + behind))
            slopes[cell + 1] = -1.0 / before
        else:  # without foreground the largest error costs everything: the first bin with an entry shares it out
            slopes[cell] = 1.0 / background if behind == background else 0.0


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
    one = values.dtype.type(1)
    zero = values.dtype.type(0)
    mask = np.empty(_BLOCK, np.uint8)
    foreground: Any = np.int32(0)
    out: Any = np.int32(0)
    for i in range(values.size):
        inside = labels[i] == label
        mask[i] = inside
        foreground += np.int32(inside)
    if kind == HINGE:
        for i in range(values.size):
            errors[i] = one - values[i] if mask[i] else one + values[i]
    elif kind == SOFTMAX:
        for i in range(values.size):
            errors[i] = one - values[i] if mask[i] else values[i]
    else:
        for i in range(values.size):
            errors[i] = values[i]
    if ignored != NOTHING:
        for i in range(values.size):
            away = labels[i] == ignored
            errors[i] = zero if away else errors[i]
            out += np.int32(away)
        if ignored == label:
            mask[:] = 0
            foreground = np.int32(0)
    for i in range(values.size):
        errors[i] = zero if errors[i] <= 0 else errors[i]
    if values.itemsize == 4:
        _key_cells(errors.view(np.int32), mask, values.size, shift, cells)
    else:
        _key_cells(errors.astype(np.float32).view(np.int32), mask, values.size, shift, cells)
    return foreground, out


@jit
def _key_cells(bits: Array, mask: Array, size: int, shift: int, cells: Array) -> None:
    """Write the cell of every error, given by its bits as a float32."""
    lowest = np.int32(LOWEST)
    highest = np.int32(LOWEST + (OCTAVES << 23) - 1)
    for i in range(size):
        key = bits[i] & np.int32(0x7FFFFFFF)
        kept = min(max(key, lowest), highest) - lowest  # NaN is above all numbers
        cell = np.int32(((kept >> shift) + 1) << 1)
        cells[i] = mask[i] + (cell if key > 0 else np.int32(0))


@jit
def _sum(values: Array) -> float:
    """Add up a block by halves, in place: every addition is vectorised, and rounding grows with the logarithm."""
    width = values.size
    while width > 8:
        width //= 2
        low, high = values[:width], values[width : 2 * width]
        for i in range(width):
            low[i] += high[i]
    total = 0.0
    for i in range(width):
        total += values[i]
    return total
