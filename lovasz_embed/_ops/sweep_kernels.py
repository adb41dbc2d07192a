"""Numba kernels over all pixels of a picture: measure clusters and number them.

Arrays in, arrays out; the caller allocates what is returned. The embedding is planar (D, P), as networks
emit it: one small tile at a time is transposed, the picture is never copied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Flags = NDArray[np.bool_]

_TILE = 256  # pixels transposed at a time: 8 KiB at D = 8 in float32, well inside the first cache


@jit
def measure(planar: Floats, labels: Ints, begin: int, end: int, origin: Floats, sums: Floats, squares: Floats) -> None:
    """Sum the offsets of the pixels `begin` to `end` from their cluster's origin, and their squared lengths.

    Args:
        planar: (D, P) embedding.
        labels: (P,) cluster of each pixel, plus one; 0 is none.
        begin: First pixel of the range.
        end: One past its last pixel.
        origin: (K, D) float64, a point near the mean of each cluster: small offsets lose no digits.
        sums: (K, D) float64, added to.
        squares: (K,) float64, added to.
    """
    dimensions = planar.shape[0]
    tile = np.empty((_TILE, dimensions), planar.dtype)
    for start in range(begin, end, _TILE):
        size = min(_TILE, end - start)
        for d in range(dimensions):
            for i in range(size):
                tile[i, d] = planar[d, start + i]
        for i in range(size):
            k = labels[start + i] - 1
            if k < 0:
                continue
            for d in range(dimensions):
                offset = tile[i, d] - origin[k, d]
                sums[k, d] += offset
                squares[k] += offset * offset


@jit
def renumber(labels: Ints, keep: Flags, old: Ints) -> int:
    """Number the kept labels 1, 2, ... by their first pixel, in place; return how many.

    Args:
        labels: (P,) from 0 (none) to N, overwritten.
        keep: (N + 1,), False where a label becomes 0.
        old: (N,), written: the old label of each new one.
    """
    count = 0
    new = np.zeros(keep.shape[0], labels.dtype)
    for p in range(labels.shape[0]):
        label = labels[p]
        if label == 0 or not keep[label]:
            labels[p] = 0
            continue
        if new[label] == 0:
            old[count] = label
            count += 1
            new[label] = count
        labels[p] = new[label]
    return count
