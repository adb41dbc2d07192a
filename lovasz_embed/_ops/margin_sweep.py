"""Passes over all pixels of a picture, in chunks side by side, whose sums are integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import margin_assign_kernels, sweep_kernels
from .margin_centres import Centres

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Map = Callable[[Callable[[int], Any], range], list[Any]]

CHUNK = 65_536  # pixels per task, at least; of scattered pixels, each of which is more work, an eighth
_RIVALS = 4  # neighbours of a centre that are compared with many pixels at once, at most
_ROOM = 1 << 20  # bytes of sums that all tasks together may always have; else an eighth of the embedding


@dataclass(frozen=True)
class Units:
    """The fixed point of sums: a power of two per centre, so that neither scaling nor adding rounds float32."""

    scale: NDArray[np.float64]  # (K,) units in 1, for coordinates
    fine: float  # units in 1, for squared distances

    @classmethod
    def of(cls, means: NDArray[np.float64], limit: float, pixels: int, dtype: np.dtype[np.floating]) -> Units:
        """Return units that hold the sum of so many pixels within `limit` of their mean: below 2^62."""
        bits = 61 - max(pixels, 1).bit_length()
        most = float(np.finfo(dtype).max) / 4
        bound = np.abs(means).max(1, initial=0.0) + limit
        scale = np.minimum(np.exp2(bits - np.ceil(np.log2(bound))), most)
        with np.errstate(over="ignore"):
            fine = min(2.0 ** (bits - np.ceil(2 * np.log2(limit))), most)
        return cls(scale, fine)


@dataclass
class Totals:
    """What a sweep adds up for each centre."""

    sums: Ints  # (K, D) coordinates of its pixels, in units
    squares: Ints  # (K,) squared distances of its pixels to it, in units
    counts: Ints  # (K,) pixels

    @classmethod
    def zero(cls, count: int, dimensions: int) -> Totals:
        return cls(np.zeros((count, dimensions), np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64))

    def add(self, other: Totals, to: NDArray[np.intp] | slice = slice(None)) -> None:
        """Add the totals of other pixels, those of the centres `to`."""
        self.sums[to] += other.sums
        self.squares[to] += other.squares
        self.counts[to] += other.counts

    def join(self, alive: NDArray[np.bool_], order: NDArray[np.intp]) -> Totals:
        """Return the totals of the living centres and of new ones that have none yet, in a new order."""
        wider = Totals.zero(len(order), self.sums.shape[1])
        to = np.flatnonzero(order < alive.sum())
        own = np.flatnonzero(alive)[order[to]]  # centres that moved may have passed each other
        wider.add(Totals(self.sums[own], self.squares[own], self.counts[own]), to)
        return wider

    def shift(self, units: Units, centres: NDArray[np.float64], moved: NDArray[np.float64]) -> None:
        """Take the squared distances to centres that have moved."""
        way = moved - centres
        along = (way * (self.sums / units.scale[:, None] - self.counts[:, None] * centres)).sum(1)
        change = (self.counts * (way * way).sum(1) - 2 * along) * units.fine
        self.squares += np.rint(change).astype(np.int64)

    def means(self, units: Units) -> NDArray[np.float64]:
        """Return the mean of every centre that has pixels, (K, D)."""
        means: NDArray[np.float64] = self.sums / (units.scale * np.maximum(self.counts, 1))[:, None]
        return means

    def variances(self, units: Units, centres: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean squared distance to the mean, (K,); `centres` are those of the sweep."""
        offset = self.means(units) - centres
        around_centre = self.squares / (units.fine * np.maximum(self.counts, 1))
        variances: NDArray[np.float64] = np.maximum(around_centre - (offset * offset).sum(1), 0.0)
        return variances


class Sweep:
    """A picture whose pixels are compared with centres, and their labels: 0 is none."""

    def __init__(self, planar: Floats, classes: NDArray[np.int32], class_count: int, run: Map, width: int = 0) -> None:
        self.planar = planar
        self.classes = classes
        self.class_count = class_count
        self.labels = np.zeros(len(classes), np.int32)
        self.width = width  # of a row: the pixel above is so many pixels before; 0: neighbours mean nothing
        self.chunk = CHUNK if width else -(-CHUNK // 8)
        self.run = run

    def unlabelled(self) -> NDArray[np.intp]:
        """Return the indices of the pixels to be clustered that have no label."""
        found = self.run(self._unlabelled, range(0, len(self.labels), CHUNK))
        return np.concatenate([np.empty(0, np.intp), *found])

    def labelled(self, chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Return the indices of the pixels of some centres (K,)."""
        flags = np.append(False, chosen)

        def find(begin: int) -> NDArray[np.intp]:
            end = min(begin + CHUNK, len(self.labels))
            pixels = np.empty(end - begin, np.intp)
            return pixels[: margin_assign_kernels.pixels_of(self.labels, begin, end, flags, pixels)]

        return np.concatenate([np.empty(0, np.intp), *self.run(find, range(0, len(self.labels), CHUNK))])

    def part(self, pixels: NDArray[np.intp]) -> Sweep:
        """Return some of the pixels as a picture of their own, without labels."""
        planar = np.empty((len(self.planar), len(pixels)), self.planar.dtype)

        def copy(begin: int) -> None:
            end = begin + part.chunk
            np.take(self.planar, pixels[begin:end], axis=1, out=planar[:, begin:end])

        part = Sweep(planar, self.classes[pixels], self.class_count, self.run)
        self.run(copy, range(0, len(pixels), part.chunk))
        return part

    def units(self, centres: Centres, limit: float) -> Units:
        return Units.of(centres.means, limit, len(self.labels), self.planar.dtype)

    def assign(self, centres: Centres, limit: float, units: Units | None = None, share: int = 1) -> Totals:
        """Label every pixel with its nearest centre within `limit`; pixels with a negative label keep it.

        With a `share`, only one in so many pixels of a large picture: the first ones of every chunk.
        """
        units = units or self.units(centres, limit)
        dtype = self.planar.dtype.type
        centres = centres.rounded(self.planar.dtype)
        rows = centres.means.astype(dtype)
        columns = np.ascontiguousarray(rows.T)
        around = centres.neighbours(3 * limit)
        largest = float(np.finfo(dtype).max) / 2
        squared_limit = dtype(min(limit * limit, largest))
        within = np.nextafter(squared_limit, dtype(np.inf))

        def safe(gap: NDArray[np.float64]) -> NDArray[np.floating]:
            # A hair below half the distance to the next centre: rounding must not skip a nearer one.
            return np.minimum(np.minimum((0.4999 * gap) ** 2, largest), within).astype(dtype)

        rivals = (around.gap[:, : min(_RIVALS, around.near.shape[1])] < 2.001 * limit).sum(1)
        next_gap = np.take_along_axis(around.gap, rivals[:, None], 1)[:, 0]

        size = self._chunk(rows.size + 2 * len(rows))
        part = size if len(self.labels) <= 2 * CHUNK else -(-size // share)

        def chunk(begin: int) -> Totals:
            totals = Totals.zero(*rows.shape)
            margin_assign_kernels.assign(
                self.planar, self.classes, begin, min(begin + part, len(self.labels)), self.width, rows, columns,
                centres.first, centres.axis, around.near, around.gap, safe(around.nearest), rivals,
                safe(next_gap), squared_limit, units.scale, units.fine,
                self.labels, totals.sums, totals.squares, totals.counts,
            )  # fmt: skip
            return totals

        return self._sum(chunk, size, *rows.shape)

    def take_over(
        self,
        centres: Centres,
        joined: NDArray[np.bool_],
        new: NDArray[np.int64],
        limit: float,
        units: Units,
        totals: Totals,
    ) -> Ints | None:
        """Give pixels to centres that joined where these are nearer; number the labels anew.

        Args:
            centres: All centres, as they are now.
            joined: (K,), those that are new.
            new: The number of each former centre, as of the labels.
            limit: That of the `assign` which labelled the pixels.
            units: Units of the totals.
            totals: (K,) of all centres, changed.

        Returns:
            How many pixels each centre took; None if centres have too many neighbours, and nothing was done.
        """
        centres = centres.rounded(self.planar.dtype)
        around = centres.neighbours(2.001 * limit)
        room = around.near.shape[1]
        if (around.gap[:, room] < 2.001 * limit).any():
            return None
        chosen = (around.gap[:, :room] < 2.001 * limit) & joined[around.near] & ~joined[:, None]
        first = np.argsort(~chosen, axis=1, kind="stable")
        rivals = np.take_along_axis(around.near, first, 1)
        rival_count = chosen.sum(1)
        rows = centres.means.astype(self.planar.dtype)

        def chunk(begin: int) -> tuple[Totals, Ints]:
            part, stolen = Totals.zero(*rows.shape), np.zeros(len(rows), np.int64)
            margin_assign_kernels.take_over(
                self.planar, self.labels, begin, min(begin + size, len(self.labels)), new, rows, rivals, rival_count,
                units.scale, units.fine, part.sums, part.squares, part.counts, stolen,
            )  # fmt: skip
            return part, stolen

        size = self._chunk(rows.size + 3 * len(rows))
        taken = np.zeros(len(rows), np.int64)
        for part, stolen in self.run(chunk, range(0, len(self.labels), size)):
            totals.add(part)
            taken += stolen
        return taken

    def measure(
        self, labels: NDArray[np.int32], origin: NDArray[np.float64], sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean and the variance (mean squared distance to it) of every cluster of `sizes` pixels.

        `origin` (K, D) lies near the means: offsets from it are small and lose no digits.
        """

        def chunk(begin: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            sums, squares = np.zeros(origin.shape), np.zeros(len(origin))
            end = min(begin + size, len(labels))
            sweep_kernels.measure(self.planar, labels, begin, end, origin, sums, squares)
            return sums, squares

        sums, squares = np.zeros(origin.shape), np.zeros(len(origin))
        size = self._chunk(origin.size + len(origin))
        for chunk_sums, chunk_squares in self.run(chunk, range(0, len(labels), size)):
            sums += chunk_sums
            squares += chunk_squares
        offset = sums / sizes[:, None]
        return origin + offset, np.maximum(squares / sizes - (offset * offset).sum(1), 0.0)

    def _sum(self, chunk: Callable[[int], Totals], size: int, count: int, dimensions: int) -> Totals:
        totals = Totals.zero(count, dimensions)
        for part in self.run(chunk, range(0, len(self.labels), size)):
            totals.add(part)
        return totals

    def _chunk(self, sums: int) -> int:
        """Return how many pixels make a task, so that the sums of all tasks stay small beside the embedding."""
        tasks = max(_ROOM, self.planar.nbytes // 8) // (8 * max(sums, 1))
        return max(self.chunk, -(-len(self.labels) // max(tasks, 1)))

    def _unlabelled(self, begin: int) -> NDArray[np.intp]:
        end = begin + CHUNK
        return begin + np.flatnonzero((self.labels[begin:end] == 0) & (self.classes[begin:end] >= 0))
