"""Passes over the pixels of a picture on a GPU, and what centres are made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lovasz_embed._ops.gpu.margin_kernels import assign_kernel, measure_kernel
from lovasz_embed._ops.gpu.pixels import Planes

BLOCK = 256  # pixels of a program, two per thread
CHUNK = 16  # centres that a thread compares its pixels with at once
DROPPED = -3  # the class of a centre that no pixel may have any more


@dataclass(frozen=True)
class Centres:
    """Centres sorted by class, and at first by the coordinate `axis`: of equally near ones the first wins."""

    means: Tensor  # (K, D) float64
    classes: Tensor  # (K,) int32
    axis: Tensor  # (1,) int64

    @classmethod
    def none(cls, dimensions: int, axis: Tensor) -> Centres:
        means = torch.zeros(0, dimensions, dtype=torch.float64, device=axis.device)
        return cls(means, means.new_zeros(0, dtype=torch.int32), axis)

    def __len__(self) -> int:
        return len(self.means)

    def like(self, means: Tensor, classes: Tensor) -> tuple[Centres, Tensor]:
        """Return other centres, sorted like these, and where each came from."""
        order = means.index_select(1, self.axis)[:, 0].sort(stable=True).indices
        order = order[classes[order].sort(stable=True).indices]
        return Centres(means[order], classes[order], self.axis), order

    def join(self, other: Centres) -> tuple[Centres, Tensor]:
        """Return both, and where each came from: its place here, or the number of centres here plus that there."""
        return self.like(torch.cat([self.means, other.means]), torch.cat([self.classes, other.classes]))

    def moved(self, means: Tensor) -> Centres:
        """Return the same centres elsewhere, in the same order."""
        return Centres(means, self.classes, self.axis)

    def drop(self, chosen: Tensor) -> Centres:
        """Return the same centres, of which the chosen ones (K,) get no pixel any more."""
        return Centres(self.means, self.classes.masked_fill(chosen, DROPPED), self.axis)

    def columns(self, dtype: torch.dtype) -> Tensor:
        """Return the centres as kernels want them, (D, K)."""
        return self.means.T.to(dtype).contiguous()


class Totals(NamedTuple):
    """What a pass adds up for every centre."""

    sums: Tensor  # (K, D) int64, in units
    scale: Tensor  # (K,) units in 1
    counts: Tensor  # (K,) int32
    stolen: Tensor  # (K,) int32: pixels that a new centre took from others

    def means(self, instead: Tensor) -> Tensor:
        """Return the mean (K, D) float64 of every centre's pixels; the row of `instead` where it has none."""
        return torch.where(self.counts[:, None] > 0, self.sums / (self.scale.double() * self.counts)[:, None], instead)


class Sweep:
    """A picture on a GPU: its embedding in place, the class of every pixel, and labels, 0 being none.

    Args:
        own: The picture; only the first of a batch is looked at.
        classes: (P,) int32; negative: not to be clustered.
        class_count: One more than the highest class.
        limit: The farthest that any pixel will be from its centre.
    """

    def __init__(self, own: Planes, classes: Tensor, class_count: int, limit: float) -> None:
        self.own = own
        self.classes = classes
        self.limit = limit
        self.dimensions = own.data.shape[1]
        self.labels = torch.zeros_like(classes)
        self.bits = 61 - max(own.pixels, 1).bit_length()  # that a pixel may take of a sum: below 2^62 in all
        self._farthest = self.number(limit)
        self._steps = torch.arange(class_count + 1, dtype=torch.int32, device=classes.device)

    def number(self, value: float) -> Tensor:
        """Return a number as kernels want it, (1,) in the dtype of the arithmetic, without waiting."""
        largest = torch.finfo(self.own.dtype).max / 2
        return torch.full((1,), min(value, largest), dtype=self.own.dtype, device=self.classes.device)

    def assign(
        self,
        centres: Centres,
        limit: float,
        *,
        pixels: Tensor | None = None,
        share: int = 1,
        late: Tensor | None = None,
    ) -> tuple[Tensor, Totals]:
        """Give pixels to their nearest centre within `limit`, and add up what each centre gets.

        Args:
            centres: K of them.
            limit: Embedding units.
            pixels: Which ones (n,); None is all, whose labels are then written to `labels`.
            share: Look at one block of pixels in so many.
            late: (K,) bool, centres that are new: count what they take from pixels that had a label.

        Returns:
            Labels, int32 (P,) or (n,), and the totals.
        """
        count = self.own.pixels if pixels is None else len(pixels)
        labels = self.labels if pixels is None else self.labels.new_zeros(count)
        known, totals = len(centres), self._nothing(len(centres))
        if not known:
            labels.clamp_(max=0)
        elif count:
            # A dropped centre counts as of the class before it, which costs a comparison: classes must ascend.
            ranks = centres.classes.cummax(0).values
            first = torch.searchsorted(ranks, self._steps, out_int32=True)
            new = totals.counts if late is None else late.to(torch.int32)
            with torch.cuda.device_of(self.own.data):  # type: ignore[no-untyped-call]
                assign_kernel[(-(-count // (BLOCK * share)),)](
                    self.own.data, self.own.dim_stride, self.own.row_stride, self.own.col_stride, self.own.width,
                    count, share, self.labels if pixels is None else pixels, self.classes, labels,
                    centres.columns(self.own.dtype), centres.classes, first, known,
                    self.number(limit * limit), self._farthest, self.bits, totals.scale, totals.sums, totals.counts,
                    new, totals.stolen, D=self.dimensions, INDEXED=pixels is not None,
                    LATE=late is not None, CHUNK=CHUNK, BLOCK=BLOCK,
                )  # fmt: skip
        return labels, totals

    def measure(self, centres: Centres) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean (K, D), mean squared distance to it (K,), both float64, and pixels (K,) of the labels 1 to K."""
        known, totals = len(centres), self._nothing(len(centres))
        squares = totals.counts.new_zeros(known, dtype=torch.int64)
        columns = centres.columns(self.own.dtype)
        most = 125 if self.own.dtype == torch.float32 else 1000
        # Centres have moved since pixels came within the limit: by no more than that, where squares are four times it.
        fine = 2.0 ** min(max(self.bits - 2 - math.ceil(2 * math.log2(self.limit)), -most), most)
        if known and self.own.pixels:
            with torch.cuda.device_of(self.own.data):  # type: ignore[no-untyped-call]
                measure_kernel[(-(-self.own.pixels // BLOCK),)](
                    self.own.data, self.own.dim_stride, self.own.row_stride, self.own.col_stride, self.own.width,
                    self.own.pixels, self.labels, columns, known, self._farthest, self.number(fine), self.bits,
                    totals.scale, totals.sums, squares, totals.counts, D=self.dimensions, BLOCK=BLOCK,
                )  # fmt: skip
        own = columns.T.double()
        means = totals.means(own)
        around = squares / (fine * totals.counts.clamp(min=1))
        return means, (around - (means - own).square().sum(1)).clamp(min=0.0), totals.counts.long()

    def _nothing(self, known: int) -> Totals:
        device = self.classes.device
        counts = torch.zeros(2, known, dtype=torch.int32, device=device)
        sums = torch.zeros(known, self.dimensions, dtype=torch.int64, device=device)
        return Totals(sums, torch.ones(known, dtype=self.own.dtype, device=device), counts[0], counts[1])
