"""Where the values of a pixel lie: any layout of a network's output, read in place."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lovasz_embed import _check

MOST_PIXELS = 2**31 - 2**16  # of a picture: what kernels number by int32, with a block to spare


class Planes(NamedTuple):
    """Embeddings (B, D, P) as kernels read them: pixel p lies at row p // width, column p % width.

    Attributes:
        data: The tensor, whose first element is where all strides begin.
        pixels: P.
        width: Pixels of a row; P where all pixels follow one another at one stride.
        batch_stride: Elements from a picture to the next.
        dim_stride: Elements from a dimension to the next.
        row_stride: Elements from a row to the next.
        col_stride: Elements from a pixel to the next of its row.
    """

    data: Tensor
    pixels: int
    width: int
    batch_stride: int
    dim_stride: int
    row_stride: int
    col_stride: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic: float64 for float64, else float32."""
        return torch.promote_types(self.data.dtype, torch.float32)

    def picture(self, b: int) -> Planes:
        """Return one picture of the batch, as a batch of its own."""
        return self._replace(data=self.data[b : b + 1])

    def gather(self, index: Tensor) -> Tensor:
        """Return the pixels `index` (n,) of the first picture, (D, n) contiguous, in the dtype of the arithmetic."""
        if self.width == self.pixels:
            picked = self.data[0].flatten(1).index_select(1, index)
        else:
            rows = self.data[0].view(self.data.shape[1], -1, self.width)
            picked = rows[:, index // self.width, index % self.width]
        return picked.to(self.dtype).contiguous()


def planes(embedding: Tensor) -> Planes:
    """Return how to read an embedding (B, D, *spatial), without a copy if two strides tell where a pixel lies.

    They do for contiguous, channels-last, cropped and permuted pictures. What is stranger is copied.

    >>> planes(torch.zeros(2, 3, 4, 5)[..., 1:])[1:]
    (16, 4, 60, 20, 5, 1)
    """
    batch, dimensions, *spatial = embedding.shape
    count = math.prod(spatial)
    if count > MOST_PIXELS:
        remedy = "Cut it into parts, or move it to the CPU."
        rule = f"have at most {MOST_PIXELS} pixels per picture on a GPU"
        raise ValueError(_check.message("embedding", rule, count, remedy))
    try:
        flat = embedding.view(batch, dimensions, count)
        return Planes(embedding, count, max(count, 1), flat.stride(0), flat.stride(1), 0, flat.stride(2))
    except RuntimeError:  # rows do not follow one another
        width = spatial[-1]
    try:
        rows = embedding.view(batch, dimensions, -1, width)
    except RuntimeError:
        return planes(embedding.contiguous())
    return Planes(embedding, count, width, *rows.stride())
