"""Passes over the pixels of a picture on a GPU, and what centres are made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """Centres sorted by class, then by the coordinate `axis`: of equally near ones the first wins."""

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

    def drop(self, chosen: Tensor) -> Centres:
        """Return the same centres, of which the chosen ones (K,) get no pixel any more."""
        return replace(self, classes=torch.where(chosen, DROPPED, self.classes))


class Totals(NamedTuple):
    """What a pass adds up for every centre."""

    sums: Tensor  # (K, D) int64, in units
    counts: Tensor  # (K,) int32
    stolen: Tensor  # (K,) int32: pixels that a new centre took from others
    scale: Tensor  # (K,) units in 1

    def means(self, instead: Tensor) -> Tensor:
        """Return the mean (K, D) float64 of every centre's pixels; the row of `instead` where it has none."""
        means = self.sums / (self.scale.double() * self.counts.clamp(min=1))[:, None]
        return torch.where(self.counts[:, None] > 0, means, instead)


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
        self.class_count = class_count
        self.limit = limit
        self.dimensions = own.data.shape[1]
        self.labels = torch.zeros_like(classes)
        # Bits of a sum of squares or coordinates that one pixel may take: below 2^62 in all.
        self.bits = 61 - max(own.pixels, 1).bit_length()

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
        totals: bool = False,
        late: Tensor | None = None,
    ) -> tuple[Tensor, Totals]:
        """Give pixels to their nearest centre within `limit`.

        Args:
            centres: K of them.
            limit: Embedding units.
            pixels: Which ones (n,); None is all, whose labels are then written to `labels`.
            share: Look at one block of pixels in so many.
            totals: Add up what each centre gets.
            late: (K,) bool, centres that are new: count what they take from pixels that had a label.

        Returns:
            Labels, int32 (P,) or (n,), and the totals.
        """
        count = self.own.pixels if pixels is None else len(pixels)
        labels = self.labels if pixels is None else self.labels.new_zeros(count)
        known = len(centres)
        scale = self._scale(centres.means)
        device = self.classes.device
        added = Totals(
            torch.zeros(known, self.dimensions, dtype=torch.int64, device=device),
            torch.zeros(known, dtype=torch.int32, device=device),
            torch.zeros(known, dtype=torch.int32, device=device),
            scale,
        )
        if not known and pixels is None:
            labels.clamp_(max=0)
        elif known and count:
            steps = torch.arange(self.class_count + 1, dtype=torch.int32, device=device)
            # Dropped centres stay in their place: it is their former class that the ranges go by.
            first = torch.searchsorted(self._ranks(centres), steps).to(torch.int32)
            new = torch.zeros(1, dtype=torch.int32, device=device) if late is None else late.to(torch.int32)
            if late is None:
                new = new.expand(known).contiguous()
            with torch.cuda.device_of(self.own.data):  # type: ignore[no-untyped-call]
                assign_kernel[(-(-count // (BLOCK * share)),)](
                    self.own.data, self.own.dim_stride, self.own.row_stride, self.own.col_stride, self.own.width,
                    count, share, self.labels if pixels is None else pixels, self.classes, labels,
                    centres.means.T.to(self.own.dtype).contiguous(), centres.classes, first, known,
                    self.number(limit * limit), scale, added.sums, added.counts, new, added.stolen,
                    D=self.dimensions, INDEXED=pixels is not None, TOTALS=totals, CHUNK=CHUNK, BLOCK=BLOCK,
                )  # fmt: skip
        return labels, added

    def measure(self, centres: Centres) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean (K, D), mean squared distance to it (K,), both float64, and pixels (K,) of the labels 1 to K."""
        known, device = len(centres), self.classes.device
        scale = self._scale(centres.means)
        square = torch.full((1,), self.limit**2, dtype=torch.float64, device=device)
        fine = _power_of_two(square, self.bits, self.own.dtype)
        sums = torch.zeros(known, self.dimensions, dtype=torch.int64, device=device)
        squares = torch.zeros(known, dtype=torch.int64, device=device)
        counts = torch.zeros(known, dtype=torch.int32, device=device)
        columns = centres.means.T.to(self.own.dtype).contiguous()
        if known and self.own.pixels:
            with torch.cuda.device_of(self.own.data):  # type: ignore[no-untyped-call]
                measure_kernel[(-(-self.own.pixels // BLOCK),)](
                    self.own.data, self.own.dim_stride, self.own.row_stride, self.own.col_stride, self.own.width,
                    self.own.pixels, self.labels, columns, known, scale, fine.to(self.own.dtype), sums, squares, counts,
                    D=self.dimensions, BLOCK=BLOCK,
                )  # fmt: skip
        own = columns.T.double()
        means = Totals(sums, counts, counts, scale).means(own)
        around = squares / (fine * counts.clamp(min=1))
        return means, (around - (means - own).square().sum(1)).clamp(min=0.0), counts.long()

    def _scale(self, means: Tensor) -> Tensor:
        """Return the fixed point of each centre: a power of two, so that scaling rounds no float32."""
        bound = means.abs().amax(1) + self.limit if len(means) else means.new_zeros(0)
        return _power_of_two(bound, self.bits, self.own.dtype).to(self.own.dtype)

    @staticmethod
    def _ranks(centres: Centres) -> Tensor:
        """Return the classes, (K,) ascending; a dropped centre has that of the one before it."""
        return torch.cummax(centres.classes, 0).values if len(centres) else centres.classes


def _power_of_two(bound: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Return the largest power of two, float64 and within `dtype`, that keeps `bound` below 2^bits."""
    most = 125 if dtype == torch.float32 else 1000
    exponent = (bits - torch.frexp(bound).exponent.long()).clamp(-most, most)
    return ((exponent + 1023) << 52).view(torch.float64)
