"""Sums of the embedding over segments: one pass, in an order that no number of threads changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed._ops.jit import jit
from lovasz_embed._ops.threads import crew_size, share

Array = NDArray[Any]

_CHUNK = 1 << 16  # pixels of a task: a fixed size, so that the order of sums does not depend on the threads
_TILE = 256  # pixels transposed at a time


def segment_sums(picture: Tensor, labels: Array, segments: int) -> tuple[Array, Array]:
    """Return the float64 sum (S + 1, D) and the count (S + 1,) of the pixels of every label, 0 to S.

    Pixels that hold NaN or Inf do not count.

    Args:
        picture: floating point (D, *spatial), on the CPU.
        labels: (P,) from 0 to S; label 0 is left out.
        segments: S.
    """
    dim = len(picture)
    planes = picture.detach().reshape(dim, len(labels))
    work = torch.promote_types(picture.dtype, torch.float32)

    def chunk(begin: int) -> tuple[Array, Array]:
        own = slice(begin, begin + _CHUNK)
        sums, counts = np.zeros((segments + 1, dim)), np.zeros(segments + 1, np.int64)
        add_up(planes[:, own].to(work).contiguous().numpy(), labels[own], sums, counts)
        return sums, counts

    sums, counts = np.zeros((segments + 1, dim)), np.zeros(segments + 1, np.int64)
    for part in share(chunk, range(0, len(labels), _CHUNK), crew_size(picture.numel())):
        sums += part[0]
        counts += part[1]
    return sums, counts


@jit
def add_up(planar: Array, labels: Array, sums: Array, counts: Array) -> None:
    """Add the finite pixels of (D, P) to the `sums` (S + 1, D) and `counts` (S + 1,) of their labels above 0."""
    dimensions = planar.shape[0]
    tile = np.empty((_TILE, dimensions), np.float64)
    for start in range(0, labels.shape[0], _TILE):
        size = min(_TILE, labels.shape[0] - start)
        for d in range(dimensions):
            for i in range(size):
                tile[i, d] = planar[d, start + i]
        for i in range(size):
            label = labels[start + i]
            if label == 0:
                continue
            finite = True
            for d in range(dimensions):
                finite &= tile[i, d] - tile[i, d] == 0.0
            if finite:
                counts[label] += 1
                for d in range(dimensions):
                    sums[label, d] += tile[i, d]
