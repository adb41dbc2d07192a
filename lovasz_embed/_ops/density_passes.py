"""Centres of a density clustering, and its passes over all pixels of a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import density_kernels as kernels

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Map = Callable[[Callable[[int], Any], range], list[Any]]

_NEIGHBOURS = 32  # of each centre, among which the nearest centre of a pixel is sought before all are
_LEAST = 1e-150  # distances below have squares that float64 does not tell from 0
_CHUNK = 65_536  # pixels per task: a fixed size, so that the order of sums does not depend on the threads


@dataclass(frozen=True)
class Found:
    """Centres sorted by class; a cluster that is not round has several."""

    means: NDArray[np.float64]  # (Q, D)
    extents: NDArray[np.float64]  # (Q,) how far the pixels of each reach
    clusters: Ints  # (Q,) the cluster of each, 0 ... K - 1
    classes: Ints  # (Q,)
    settled: NDArray[np.bool_]  # (Q,) whether the cluster need not be sampled again for itself

    @classmethod
    def none(cls, dimensions: int) -> Found:
        ints = np.empty(0, np.int64)
        return cls(np.empty((0, dimensions)), np.empty(0), ints, ints, np.empty(0, np.bool_))

    def select(self, keep: NDArray[np.bool_]) -> Found:
        """Return some of the centres, the clusters numbered without gaps."""
        part = self._each(lambda column: column[keep])
        return replace(part, clusters=np.unique(part.clusters, return_inverse=True)[1].reshape(-1))

    def join(self, others: Sequence[Found]) -> Found:
        """Return all together, sorted by class again; clusters are numbered one part after the other."""
        shifts = np.cumsum([0, self.count, *(other.count for other in others)])
        parts = [
            replace(part, clusters=part.clusters + shift) for part, shift in zip([self, *others], shifts, strict=False)
        ]
        classes = np.concatenate([part.classes for part in parts])
        order = np.argsort(classes, kind="stable")
        return Found(
            np.concatenate([part.means for part in parts])[order],
            np.concatenate([part.extents for part in parts])[order],
            np.concatenate([part.clusters for part in parts])[order],
            classes[order],
            np.concatenate([part.settled for part in parts])[order],
        )

    def _each(self, change: Callable[[Any], Any]) -> Found:
        return Found(*map(change, (self.means, self.extents, self.clusters, self.classes, self.settled)))

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max(initial=-1)) + 1

    def sizes(self, counts: Ints) -> Ints:
        """Return the pixels of each cluster from those of each centre."""
        return np.bincount(self.clusters, counts, minlength=self.count).astype(np.int64)

    def whole(self) -> Found:
        """Return one centre for each cluster, in the order of the clusters: the first, with the widest extent."""
        _, first = np.unique(self.clusters, return_index=True)
        extents = np.zeros(self.count)
        np.maximum.at(extents, self.clusters, self.extents)
        return replace(self._each(lambda column: column[first]), extents=extents)

    def first(self, class_count: int) -> Ints:
        """Return where the centres of each class begin, (C + 1,)."""
        return np.searchsorted(self.classes, np.arange(class_count + 1)).astype(np.int64)

    def neighbours(self, class_count: int) -> tuple[Ints, NDArray[np.float64]]:
        """Return the nearest other centres of the class of each, (Q, M), and their distances; -1 and inf for none."""
        shape = (len(self.means), _NEIGHBOURS)
        near, gap = np.empty(shape, np.int64), np.empty(shape)
        kernels.neighbours(np.ascontiguousarray(self.means), self.first(class_count), near, gap)
        return near, gap

    def separation(self, class_count: int) -> float:
        """Return the smallest distance between the means of two clusters of one class, inf if there are none."""
        whole = self.whole()
        order = np.argsort(whole.classes, kind="stable")
        gaps = whole._each(lambda column: column[order]).neighbours(class_count)[1]
        return float(gaps.min(initial=math.inf))


class Totals(NamedTuple):
    """What an assignment adds up for each centre."""

    sums: NDArray[np.float64]  # (Q, D) of the offsets of its pixels from it
    squares: NDArray[np.float64]  # (Q,) of the squared lengths of these
    counts: Ints  # (Q,) pixels
    fresh: Ints  # (Q,) of them without a label before


class Picture:
    """Passes over all pixels, in chunks of fixed size whose sums are added in their order."""

    def __init__(self, planar: Floats, classes: NDArray[np.int32], class_count: int, run: Map) -> None:
        self.planar = planar
        self.class_count = class_count
        self.run = run
        self.labels = np.zeros(len(classes), np.int32)
        self.classes = classes.copy()
        invalid = run(lambda begin: kernels.drop_invalid(planar, begin, self._end(begin), self.classes), self._chunks())
        self.invalid = int(sum(invalid))

    def part(self, most: int) -> Picture:
        """Return some pixels, spread over all of them, as a picture of their own; or this one if it has no more."""
        counts = np.array([np.count_nonzero(self.classes >= 0)])
        if counts[0] <= most:
            return self
        everything = np.minimum(self.classes, 0)
        [pixels] = self.sample(everything, 0, counts, np.array([most]))
        return Picture(np.ascontiguousarray(self.planar[:, pixels]), self.classes[pixels], self.class_count, self.run)

    def rounding(self, points: NDArray[np.float64]) -> float:
        """Return the distance below which two points are equal but for the rounding of the embedding."""
        kind = np.finfo(self.planar.dtype)
        # Among subnormal numbers the product is 0; the square of a distance must not be.
        least = max(float(kind.tiny), _LEAST)
        return max(4 * float(kind.eps) * float(np.abs(points).max(initial=0.0)), least)

    def points(self, pixels: Ints) -> NDArray[np.float64]:
        """Return the embeddings of some pixels, (n, D)."""
        return np.ascontiguousarray(self.planar[:, pixels].T, np.float64)

    def sample(self, labels: NDArray[np.int32], shift: int, counts: Ints, quota: Ints) -> list[Ints]:
        """Return for each label + shift up to `quota` of its pixels, ascending."""
        quota = np.minimum(quota, counts)
        first = np.append(0, np.cumsum(quota))
        pixels, taken = np.empty(first[-1], np.int64), np.empty(len(counts), np.int64)
        kernels.sample(labels, shift, counts, quota, first, pixels, taken)
        return [pixels[begin : begin + count] for begin, count in zip(first, taken, strict=False)]

    def assign(self, found: Found) -> Totals:
        """Label every pixel with its nearest centre plus one, 0 beyond that centre's extent."""
        dtype = self.planar.dtype
        rows = np.ascontiguousarray(found.means, dtype)
        columns = np.ascontiguousarray(rows.T)
        near, gap = found.neighbours(self.class_count)
        with np.errstate(over="ignore"):
            limit = np.minimum(found.extents**2, np.finfo(dtype).max).astype(dtype)
        first = found.first(self.class_count)

        def empty() -> Totals:
            floats, ints = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
            return Totals(np.zeros(rows.shape), floats, ints, ints.copy())

        def chunk(begin: int) -> Totals:
            totals = empty()
            kernels.assign(
                self.planar, self.classes, begin, self._end(begin), rows, columns, first, near, gap, limit,
                found.classes, self.labels, found.means, *totals,
            )  # fmt: skip
            return totals

        totals = empty()
        for part in self.run(chunk, self._chunks()):
            for total, addend in zip(totals, part, strict=True):
                total += addend
        return totals

    def measure(
        self, labels: NDArray[np.int32], origin: NDArray[np.float64], sizes: Ints
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and variance (mean squared distance to it) of every cluster of `sizes` pixels."""

        def chunk(begin: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            sums, squares = np.zeros(origin.shape), np.zeros(len(origin))
            kernels.measure(self.planar, labels, begin, self._end(begin), origin, sums, squares)
            return sums, squares

        sums, squares = np.zeros(origin.shape), np.zeros(len(origin))
        for chunk_sums, chunk_squares in self.run(chunk, self._chunks()):
            sums += chunk_sums
            squares += chunk_squares
        offset = sums / sizes[:, None]
        return origin + offset, np.maximum(squares / sizes - (offset * offset).sum(1), 0.0)

    def _chunks(self) -> range:
        return range(0, len(self.labels), _CHUNK)

    def _end(self, begin: int) -> int:
        return min(begin + _CHUNK, len(self.labels))
