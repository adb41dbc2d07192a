"""The centres of margin clustering: sorted for the search, with their neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from . import mode_kernels

_NEIGHBOURS = 16  # that a centre knows at most; a pixel that might lie nearer to others is compared with all


@dataclass(frozen=True)
class Neighbours:
    """The nearest other centres of the same class."""

    near: NDArray[np.int32]  # (K, M), the nearest first
    gap: NDArray[np.float64]  # (K, M + 1), their distances, then one not above that of all others
    nearest: NDArray[np.float64]  # (K,) distance to the nearest; inf if there is none


@dataclass(frozen=True)
class Centres:
    """Centres sorted by class, then by coordinate `axis`."""

    means: NDArray[np.float64]  # (K, D)
    classes: NDArray[np.int64]  # (K,)
    class_count: int
    axis: int

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """Where the centres of each class begin, (C + 1,)."""
        return np.searchsorted(self.classes, np.arange(self.class_count + 1))

    def like(self, means: NDArray[np.float64], classes: NDArray[np.int64]) -> tuple[Centres, NDArray[np.intp]]:
        """Return other centres in the same order as these, and where each came from."""
        order = np.lexsort((means[:, self.axis], classes))
        return replace(self, means=means[order], classes=classes[order]), order

    def in_order(self) -> Centres:
        """Return the same centres, sorted again after they have moved."""
        return self.like(self.means, self.classes)[0]

    def join(self, other: Centres) -> tuple[Centres, NDArray[np.intp]]:
        """Return both, and where each came from: its index here, or the number of centres here plus that there."""
        return self.like(np.concatenate([self.means, other.means]), np.concatenate([self.classes, other.classes]))

    def select(self, keep: NDArray[np.bool_]) -> Centres:
        return replace(self, means=self.means[keep], classes=self.classes[keep])

    def of_class(self, c: int) -> NDArray[np.float64]:
        return self.means[self.first[c] : self.first[c + 1]]

    def rounded(self, dtype: np.dtype[np.floating]) -> Centres:
        """Return the centres as they are in `dtype`."""
        return replace(self, means=self.means.astype(dtype).astype(np.float64))

    def neighbours(self, within: float) -> Neighbours:
        """Find the nearest other centres within a distance of each."""
        count = len(self.means)
        room = min(_NEIGHBOURS, max(count - 1, 0))
        near = np.empty((count, room), np.int32)
        gap = np.empty((count, room + 1))
        nearest = np.empty(count)
        mode_kernels.neighbours(np.ascontiguousarray(self.means.T), self.first, within, near, gap, nearest)
        return Neighbours(near, gap, nearest)

    def to_nearest(self) -> NDArray[np.float64]:
        """Distance from each centre to the nearest other one of its class."""
        return self.neighbours(0.0).nearest
