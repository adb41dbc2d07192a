"""Tables of counts on a GPU: their shape, and the weights that come of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lovasz_embed._ops.binning import cells
from lovasz_embed._ops.gpu.counting_kernels import weigh_cells_kernel

_BLOCK = 2048  # bins that a program looks at together


def table_shape(rows: int, bins: int) -> tuple[int, int]:
    """Return the shape of the table of counts, int32 and zero at first, of so many masks.

    >>> table_shape(19, 512)
    (19, 65538)
    """
    return rows, cells(bins)


def weigh_cells(counts: Tensor, bins: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the weight of an entry of every cell, and how much each row holds; waits for nothing.

    Args:
        counts: (R, cells), int32 or int64, contiguous; a row holds fewer than 2^31 entries if int32. **Overwritten**
            where it is int32 and the weights float32: the weights then lie in its memory.
        bins: Bins per doubling of the error.
        dtype: float32 or float64, of the weights.

    Returns:
        The weights (R, cells), and int64 (R, 2): entries and foreground entries of each row, cells 0 and 1 included.
    """
    in_place = counts.element_size() == dtype.itemsize
    weights = counts.view(dtype) if in_place else torch.empty_like(counts, dtype=dtype)
    totals = counts.new_empty((len(counts), 2), dtype=torch.int64)
    if len(counts):
        number = (counts.shape[1] - 2) // 2
        with torch.cuda.device_of(counts):  # type: ignore[no-untyped-call]
            weigh_cells_kernel[(len(counts),)](counts, weights, totals, number, min(number, _BLOCK), num_warps=8)
    return weights, totals
