"""Numba kernels of the nearest class mean: the nearest of a few means for every pixel of a planar picture.

Arrays in, arrays out; the caller allocates what is returned. Scores are computed tile by tile along the pixels, which
the compiler turns into vectors; the few pixels whose two best scores rounding may have swapped are decided in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops.jit import jit

Array = NDArray[Any]

HALF, BFLOAT16 = 1, 2
"""What the bits of a pixel are. Where there is no kind, numba compiles a kernel without that branch."""

STEP = 4  # dimensions added to a score in one go: weights are filled up to a multiple of it

_TILE = 512  # pixels at a time: 16 KiB at D = 8 in float32, inside the first cache


@jit
def classify(
    pixels: Array,
    kind: int | None,
    begin: int,
    end: int,
    centre: Array,
    looked_at: Array,
    weight: Array,
    bias: Array,
    offset: Array,
    slack: Array,
    limit: float,
    exact_weight: Array,
    exact_bias: Array,
    names: Array,
    void: int,
    out: Array,
) -> None:
    r"""Write the name of the class with the smallest |e - mu_c|² - o_c for the pixels `begin` to `end`.

    With x = e - m and nu_c = mu_c - m, m being the `centre`, it is the class with the smallest score b_c - 2 nu_c·x,
    b_c = |nu_c|² - o_c. A difference of two scores is off by no more than `slack[0] + slack[1] * sum_d |x_d|`: pixels
    whose two smallest scores are closer are decided in float64, so that the result is that of float64.

    Args:
        pixels: (D, P) float32 or float64, or the bits of 16-bit floats as uint16.
        kind: What the bits are, None for floats.
        begin: First pixel of the range.
        end: One past its last pixel.
        centre: (D,) m, in the dtype W of the arithmetic, float32 or float64.
        looked_at: (D,) W, 1 for a dimension that the distance looks at, else 0.
        weight: (C, E) W, 2 nu, 0 where not looked at; E is D filled up to a multiple of `STEP`.
        bias: (C,) W, b.
        offset: (C,) W, o.
        slack: (4,) W: the bound above; what |x|² adds to it, per unit, where distances are compared; and the largest
            finite score.
        limit: Squared distance to the mean of its class beyond which a pixel is void; inf for none.
        exact_weight: (C, D) float64, the weights once more.
        exact_bias: (C,) float64.
        names: (C,) what to write for each class.
        void: What to write for a pixel that is not finite or too far out, or of which the scores overflow.
        out: (P,), written.
    """
    dimensions, width, classes = pixels.shape[0], weight.shape[1], weight.shape[0]
    rejects = limit < np.inf
    bound = weight.dtype.type(limit)
    tile = np.zeros((width, _TILE), weight.dtype)
    score = np.empty(_TILE, weight.dtype)
    best = np.empty(_TILE, weight.dtype)
    second = np.empty(_TILE, weight.dtype)
    spread = np.empty(_TILE, weight.dtype)
    norm = np.empty(_TILE, weight.dtype)
    which = np.empty(_TILE, np.int32)
    doubt = np.empty(_TILE, np.int32)
    bits = np.empty(_TILE, np.uint32)
    widened = bits.view(np.float32)
    for start in range(begin, end, _TILE):
        size = min(_TILE, end - start)
        spread[:] = 0
        norm[:] = 0
        for d in range(dimensions):
            source, row = pixels[d, start : start + size], tile[d]
            middle, share = centre[d], looked_at[d]
            if kind is None:
                for i in range(size):
                    row[i] = (source[i] - middle) * share  # 0 * NaN is NaN: it shows where nobody looks, too
            else:
                _widen(source, kind, bits)
                for i in range(size):
                    row[i] = (widened[i] - middle) * share
            for i in range(size):
                spread[i] += abs(row[i])
            if rejects:
                for i in range(size):
                    norm[i] += row[i] * row[i]
        best[:] = np.inf
        second[:] = np.inf
        which[:] = 0
        for c in range(classes):
            score[:] = bias[c]
            for d in range(0, width, STEP):
                w0, w1, w2, w3 = weight[c, d], weight[c, d + 1], weight[c, d + 2], weight[c, d + 3]
                x0, x1, x2, x3 = tile[d], tile[d + 1], tile[d + 2], tile[d + 3]
                for i in range(size):
                    score[i] -= (w0 * x0[i] + w1 * x1[i]) + (w2 * x2[i] + w3 * x3[i])
            for i in range(size):
                new, old = score[i], best[i]
                lower = new < old
                second[i] = min(second[i], old if lower else new)
                best[i] = new if lower else old
                which[i] = c if lower else which[i]
        doubtful = 0
        for i in range(size):
            # Comparisons are false for NaN, as they must be; a score that overflowed is in doubt, too.
            apart = second[i] - best[i] > slack[0] + slack[1] * spread[i]
            doubt[i] = 0 if apart and best[i] >= -slack[3] else 1
            doubtful += doubt[i]
        for i in range(size):
            out[start + i] = names[which[i]]
        if rejects:
            doubtful = 0
            for i in range(size):
                beyond = best[i] + offset[which[i]] + norm[i] - bound
                if beyond > 0:
                    out[start + i] = void
                if not abs(beyond) > slack[0] + slack[1] * spread[i] + slack[2] * norm[i]:
                    doubt[i] = 1
                doubtful += doubt[i]
        if doubtful:
            for i in range(size):
                if doubt[i]:
                    c = _decide(pixels, kind, start + i, centre, looked_at, exact_weight, exact_bias, slack[3], limit)
                    out[start + i] = void if c < 0 else names[c]


@jit
def _decide(
    pixels: Array,
    kind: int | None,
    place: int,
    centre: Array,
    looked_at: Array,
    weight: Array,
    bias: Array,
    largest: float,
    limit: float,
) -> int:
    """Return the class of one pixel by float64 arithmetic, the lowest of equal ones, or -1; see `classify`."""
    dimensions, classes = pixels.shape[0], weight.shape[0]
    bits = np.empty(1, np.uint32)
    x = np.empty(dimensions, np.float64)
    for d in range(dimensions):
        if kind is None:
            x[d] = pixels[d, place]
        else:
            _widen(pixels[d, place : place + 1], kind, bits)
            x[d] = bits.view(np.float32)[0]
        if not np.isfinite(x[d]):
            return -1
        x[d] = (x[d] - centre[d]) * looked_at[d]
    nearest = -1
    best = np.inf
    for c in range(classes):
        score = bias[c]
        for d in range(dimensions):
            score -= weight[c, d] * x[d]
        if score < best:
            nearest = c
            best = score
    if not abs(best) <= largest:
        return -1
    if limit < np.inf:
        distance = 0.0
        for d in range(dimensions):
            away = x[d] - 0.5 * weight[nearest, d]
            distance += away * away
        if distance > limit:
            return -1
    return nearest


@jit
def _widen(source: Array, kind: int, bits: Array) -> None:
    """Write the bits of the float32 numbers that the 16-bit floats in `source` are."""
    if kind == BFLOAT16:
        for i in range(source.shape[0]):
            bits[i] = np.uint32(source[i]) << np.uint32(16)
        return
    floats = bits.view(np.float32)
    for i in range(source.shape[0]):
        # Exponent and digits where float32 has them; the product mends the exponent, of subnormal numbers too.
        bits[i] = np.uint32(source[i] & 0x7FFF) << np.uint32(13)
        floats[i] *= np.float32(2.0**112)
        if (source[i] & 0x7C00) == 0x7C00:  # Inf and NaN
            bits[i] |= np.uint32(0x7F800000)
        bits[i] |= np.uint32(source[i] & 0x8000) << np.uint32(16)
