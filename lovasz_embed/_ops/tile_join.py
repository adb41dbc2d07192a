"""Instances of tiles become instances of the picture: joined by their means, then given all pixels afresh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .margin_centres import Centres
from .margin_sweep import Floats, Map, Sweep, Units


@dataclass(frozen=True)
class Instances:
    """Instances by their means; what a tile found, or what all tiles together hold."""

    means: NDArray[np.float64]  # (K, D)
    classes: NDArray[np.int64]  # (K,)
    sizes: NDArray[np.int64]  # (K,) pixels

    @classmethod
    def of(cls, parts: list[Instances], dimensions: int) -> Instances:
        """Return the instances of all parts, one after the other."""
        none = cls(np.empty((0, dimensions)), np.empty(0, np.int64), np.empty(0, np.int64))
        columns = ([getattr(part, name) for part in [none, *parts]] for name in ("means", "classes", "sizes"))
        return cls(*map(np.concatenate, columns))

    def select(self, keep: NDArray[Any]) -> Instances:
        """Return some of them."""
        return Instances(self.means[keep], self.classes[keep], self.sizes[keep])


def join(tiles: list[Instances], radius: float, dimensions: int) -> Instances:
    """Join pieces of one class in different tiles whose means lie within `radius` of each other.

    The largest piece that is left takes the nearest one of every other tile, if that is left and near enough, and so
    on. Two pieces of one tile are never joined: whoever saw both took them for two. An instance has the mean of all
    pixels of its pieces.
    """
    pieces = Instances.of(tiles, dimensions)
    tile = np.repeat(np.arange(len(tiles)), [len(part.sizes) for part in tiles])
    joined = []
    for c in np.unique(pieces.classes):
        own = np.flatnonzero(pieces.classes == c)
        joined.append(_join_class(pieces.select(own), tile[own], radius))
    return Instances.of(joined, dimensions)


def _join_class(pieces: Instances, tile: NDArray[np.intp], radius: float) -> Instances:
    from scipy.spatial import cKDTree  # 0.2 s that `import lovasz_embed` need not take

    tree = cKDTree(pieces.means)
    owner = np.full(len(tile), -1)
    largest: list[np.intp] = []
    for piece in np.argsort(-pieces.sizes, kind="stable"):
        if owner[piece] >= 0:
            continue
        near = np.array(tree.query_ball_point(pieces.means[piece], radius))
        near = near[owner[near] < 0]
        distance = ((pieces.means[near] - pieces.means[piece]) ** 2).sum(1)
        near = near[np.argsort(distance, kind="stable")]
        near = near[np.unique(tile[near], return_index=True)[1]]  # the nearest of each tile; of its own, itself
        owner[near] = owner[piece] = len(largest)
        largest.append(piece)
    sizes = np.bincount(owner, pieces.sizes, len(largest)).astype(np.int64)
    # Around the largest piece, because coordinates far from the origin would cost digits.
    origin = pieces.means[largest]
    offset = (pieces.means - origin[owner]) * pieces.sizes[:, None]
    sums = np.stack([np.bincount(owner, column, len(largest)) for column in offset.T], 1)
    return Instances(origin + sums / sizes[:, None], pieces.classes[largest], sizes)


class Totals:
    """What passes over the pixels of all tiles add up for each instance."""

    def __init__(self, instances: Instances, dtype: np.dtype[np.floating]) -> None:
        self.instances = instances
        self.origin = instances.means.astype(dtype).astype(np.float64)  # what pixels are compared with
        self.counts = np.zeros(len(self.origin), np.int64)
        self._offsets = np.zeros(self.origin.shape)
        self._squares = np.zeros(len(self.origin))

    def assign(self, planar: Floats, classes: NDArray[np.int32], limit: float, run: Map) -> NDArray[np.int32]:
        """Label pixels (D, n) with the nearest instance of their class within `limit`, from 1; 0 is none."""
        near = self._within_reach(planar, limit)
        if not len(near):
            return np.zeros(len(classes), np.int32)
        axis = int(np.argmax(planar.var(1)))
        means, of = self.origin[near], self.instances.classes[near]
        class_count = max(int(of.max()), int(classes.max(initial=0))) + 1
        centres, order = Centres(means[:0], of[:0], class_count, axis).like(means, of)
        near = near[order]
        sweep = Sweep(planar, classes, class_count, run)
        units = Units.of(centres.means, limit, len(classes), planar.dtype)
        found = sweep.assign(centres, limit, units)
        self.counts[near] += found.counts
        self._offsets[near] += found.sums / units.scale[:, None] - found.counts[:, None] * self.origin[near]
        self._squares[near] += found.squares / units.fine
        return np.append(0, near + 1).astype(np.int32)[sweep.labels]

    def _within_reach(self, planar: Floats, limit: float) -> NDArray[np.intp]:
        """Return the instances in the box of the pixels, widened by the limit: all that a pixel may belong to."""
        if not planar.shape[1]:
            return np.empty(0, np.intp)
        slack = limit * (1 + 1e-6)  # rounding must not lose one on the edge
        with np.errstate(over="ignore"):  # a limit beyond the range of the pixels leaves nothing out
            low, high = planar.min(1) - slack, planar.max(1) + slack
        return np.flatnonzero(((self.origin >= low) & (self.origin <= high)).all(1))

    def settled(self, min_size: int) -> Instances:
        """Return the instances that have so many pixels, each at the mean of them."""
        moved = Instances(self.origin + self._mean_offsets(), self.instances.classes, self.counts)
        return moved.select(self.counts >= min_size)

    def variances(self) -> NDArray[np.float64]:
        """Return the mean squared distance of the pixels of each instance to their mean, (K,)."""
        around = self._squares / np.maximum(self.counts, 1)
        variances: NDArray[np.float64] = np.maximum(around - (self._mean_offsets() ** 2).sum(1), 0.0)
        return variances

    def _mean_offsets(self) -> NDArray[np.float64]:
        offsets: NDArray[np.float64] = self._offsets / np.maximum(self.counts, 1)[:, None]
        return offsets


class Spool:
    """Arrays (D, n) written one after the other to a file, and read again in that order."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.shapes: list[tuple[int, ...]] = []
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def write(self, array: Floats) -> None:
        """Append an array, of the same dtype as the others."""
        array = np.ascontiguousarray(array)
        self.shapes.append(array.shape)
        self.dtype = array.dtype
        self.file.write(array.data.cast("B") if array.size else b"")

    def rewind(self) -> None:
        """Let the next `read` begin with the first array."""
        self.file.seek(0)

    def read(self, index: int) -> Floats:
        """Return array number `index`; the one before must have been read before."""
        shape = self.shapes[index]
        content = self.file.read(math.prod(shape) * self.dtype.itemsize)
        array: Floats = np.frombuffer(content, self.dtype).reshape(shape)
        return array
