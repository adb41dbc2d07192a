"""Margin clustering of one picture: sampled modes, exact nearest centres, rounds for what is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import mode_kernels, sweep_kernels
from .components import connected_components

Floats = NDArray[np.floating]
Map = Callable[[Callable[[int], Any], range], list[Any]]

SAMPLES = 16_384  # pixels among which modes are sought at a time
MAX_CENTRES = 4_096  # of one class in one picture; beyond, the embedding is noise and not instances
_CHUNK = 65_536  # pixels per task: a fixed size, so that the order of sums does not depend on the threads


@dataclass(frozen=True)
class PictureClusters:
    """The clusters of one picture; cluster k carries label k + 1."""

    labels: NDArray[np.int32]  # (P,)
    centres: NDArray[np.float64]  # (K, D)
    sizes: NDArray[np.int64]  # (K,)
    variances: NDArray[np.float64]  # (K,) mean squared distance to the centre
    classes: NDArray[np.int64]  # (K,) class of each cluster, without gaps
    separation: float  # smallest distance between two centres of one class, inf if there are none
    invalid: int = 0  # pixels to be clustered that hold NaN or Inf: they are noise
    scores: NDArray[np.float64] | None = None  # (K,) in [0, 1]; None: 1 - variance / radius²
    apart: bool | None = None  # the answer to `margin_ok`; None: separation > 2 radius


def cluster_picture(
    planar: Floats,
    classes: NDArray[np.int32],
    shape: tuple[int, ...],
    *,
    radius: float,
    reach: float,
    min_size: int,
    connected: bool,
    run: Map,
) -> PictureClusters:
    """Cluster the pixels of one picture, class by class; see `lovasz_embed.cluster_embeddings`.

    Args:
        planar: (D, P) float32 or float64 embedding.
        classes: (P,) class of each pixel, 0..C-1 without gaps; negative: not clustered.
        shape: The spatial shape, of P pixels.
        radius: Radius of an instance.
        reach: Farthest distance at which a pixel joins its nearest centre.
        min_size: Fewest pixels of a cluster.
        connected: Split clusters into connected parts.
        run: `map_threads`, or a serial stand-in.
    """
    sweep = _Sweep(planar, classes, int(classes.max(initial=-1)) + 1, run)
    centres = _search(sweep, shape, radius, min_size)
    sweep.assign(centres, reach)
    labels = sweep.labels
    if connected:
        labels = connected_components(labels.reshape(shape)).reshape(-1)
    cluster_of = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    cluster_of[labels] = sweep.labels
    sizes = np.bincount(labels, minlength=len(cluster_of)).astype(np.int64)
    kept = np.empty(len(cluster_of), np.int64)
    kept = kept[: sweep_kernels.renumber(labels, sizes >= min_size, kept)]
    origin, sizes = cluster_of[kept] - 1, sizes[kept]
    means, variances = sweep.measure(labels, centres.means[origin], sizes)
    separation = float(centres.to_nearest().min(initial=math.inf))
    return PictureClusters(labels, means, sizes, variances, centres.classes[origin], separation)


def _search(sweep: _Sweep, shape: tuple[int, ...], radius: float, min_size: int) -> _Centres:
    """Find the centres: among a lattice of pixels, then among what they leave unlabelled, and so on.

    It ends when nothing is left, or when new modes explain less than half of the pixels that were looked at: what is
    left then are the tails of known clusters. Where the guarantee holds they explain all of them.
    """
    sampled = _lattice(sweep.classes, shape)
    # The coordinate that tells most pixels apart tells most centres apart.
    axis = int(np.argmax(sweep.planar[:, sampled].var(1))) if len(sampled) else 0
    nothing = _Centres(np.empty((0, len(sweep.planar))), np.empty(0, np.int64), sweep.class_count, axis)
    centres, sizes, explained = _find(sweep, sampled, nothing, radius)
    later = np.zeros(len(sizes), np.bool_)
    unlabelled = sweep.unlabelled()
    rest = sweep.part(unlabelled)
    while len(rest.classes) and 2 * explained >= len(sampled):
        step = math.ceil(len(rest.classes) / SAMPLES)
        sampled = np.arange(step // 2, len(rest.classes), step)
        more, more_sizes, explained = _find(rest, sampled, centres, radius)
        centres, order = centres.join(more)
        sizes = np.append(sizes, more_sizes)[order]
        later = np.append(later, np.ones(len(more_sizes), np.bool_))[order]
        rest = rest.part(rest.unlabelled())
    large = sizes >= min_size
    centres, later = centres.select(large), later[large]
    if later.any():
        totals = sweep.assign(centres, radius)
        # A later cluster that mostly takes pixels from the first ones is a fragment of one of them.
        fresh = np.bincount(sweep.labels[unlabelled], minlength=len(later) + 1)[1:]
        centres = centres.select(~later | (2 * fresh >= totals.counts))
    return centres


def _find(
    sweep: _Sweep, sampled: NDArray[np.intp], known: _Centres, radius: float
) -> tuple[_Centres, NDArray[np.int64], int]:
    """Return new centres, each the mean of its pixels, and their sizes.

    Also return how many of the sampled pixels lie within `radius` of the mode where a centre began.
    """
    modes, explained = _propose(sweep, sampled, known, radius)
    totals = sweep.assign(modes, radius)
    found = totals.counts > 0
    sizes = totals.counts[found]
    means = totals.sums[found] / sizes[:, None]
    centres, order = known.like(means, modes.classes[found])
    return centres, sizes[order], explained


def _lattice(classes: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return at most SAMPLES of the pixels to be clustered: all of them, or those on a square lattice."""
    valid = np.flatnonzero(classes >= 0)
    if len(valid) <= SAMPLES:
        return valid
    budget = SAMPLES * len(classes) / len(valid)
    step = 1
    while math.prod(math.ceil(n / step) for n in shape) > budget:
        step += 1
    places: NDArray[np.intp] = np.zeros(1, np.intp)
    for n in shape:
        axis = np.arange(min(step // 2, (n - 1) // 2), n, step)
        places = (places[:, None] * n + axis).reshape(-1)
    sampled = places[classes[places] >= 0]
    surplus = math.ceil(len(sampled) / SAMPLES) or 1  # the mask may favour the rows of the lattice
    return sampled[::surplus]


def _propose(sweep: _Sweep, sampled: NDArray[np.intp], known: _Centres, radius: float) -> tuple[_Centres, int]:
    """Return modes of the sampled pixels that lie apart from the known centres of their class.

    Also return how many of the sampled pixels lie within `radius` of one.
    """
    classes = sweep.classes[sampled]
    order = np.argsort(classes, kind="stable")
    bounds = np.searchsorted(classes[order], np.arange(sweep.class_count + 1))
    found = [np.empty((0, len(sweep.planar)))]
    explained = 0
    for c, (begin, end) in enumerate(pairwise(bounds)):
        points = np.ascontiguousarray(sweep.planar[:, sampled[order[begin:end]]].T, dtype=np.float64)
        modes, count = _modes(points, known.of_class(c), radius)
        found.append(modes)
        explained += count
    owners = np.repeat(np.arange(sweep.class_count), [len(modes) for modes in found[1:]])
    return known.like(np.concatenate(found), owners)[0], explained


def _modes(points: NDArray[np.float64], known: NDArray[np.float64], radius: float) -> tuple[NDArray[np.float64], int]:
    """Return the new modes (k, D) of one class's points (n, D), and how many points they explain."""
    cover = 0.5 * radius
    owner = np.empty(len(points), np.int64)
    leaders = np.empty(points.shape[::-1])
    count = mode_kernels.choose_leaders(points, cover, owner, leaders)
    by_leader = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[by_leader], np.arange(count + 1))
    net = (points[by_leader], np.ascontiguousarray(leaders[:, :count]), first, cover)
    near = np.empty(count, np.int64)
    mode_kernels.density(*net, 0.5 * radius, near)
    densest_first = np.argsort(-near, kind="stable")  # ties go to the earlier leader
    modes = np.empty((points.shape[1], min(len(known) + count, MAX_CENTRES)))
    modes[:, : len(known)] = known.T
    total, explained = mode_kernels.find_modes(*net, radius, densest_first, modes, len(known))
    return modes[:, len(known) : total].T, explained


@dataclass(frozen=True)
class _Centres:
    """Centres sorted by class, then by coordinate `axis`."""

    means: NDArray[np.float64]  # (K, D)
    classes: NDArray[np.int64]  # (K,)
    class_count: int
    axis: int

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """Where the centres of each class begin, (C + 1,)."""
        return np.searchsorted(self.classes, np.arange(self.class_count + 1))

    def like(self, means: NDArray[np.float64], classes: NDArray[np.int64]) -> tuple[_Centres, NDArray[np.intp]]:
        """Return other centres in the same order as these, and where each came from."""
        order = np.lexsort((means[:, self.axis], classes))
        return replace(self, means=means[order], classes=classes[order]), order

    def join(self, other: _Centres) -> tuple[_Centres, NDArray[np.intp]]:
        """Return both, and where each came from: its index here, or the number of centres here plus that there."""
        return self.like(np.concatenate([self.means, other.means]), np.concatenate([self.classes, other.classes]))

    def select(self, keep: NDArray[np.bool_]) -> _Centres:
        return replace(self, means=self.means[keep], classes=self.classes[keep])

    def of_class(self, c: int) -> NDArray[np.float64]:
        return self.means[self.first[c] : self.first[c + 1]]

    def to_nearest(self) -> NDArray[np.float64]:
        """Distance from each centre to the nearest other one of its class."""
        distance = np.empty(len(self.means))
        mode_kernels.nearest_other(self.means, self.first, self.axis, distance)
        return distance


class _Totals(NamedTuple):
    """What a sweep adds up for each centre."""

    sums: NDArray[np.float64]  # (K, D) of the embeddings of its pixels
    counts: NDArray[np.int64]  # (K,) pixels


class _Sweep:
    """Passes over all pixels of a picture, in chunks of fixed size whose sums are added in their order."""

    def __init__(self, planar: Floats, classes: NDArray[np.int32], class_count: int, run: Map) -> None:
        self.planar = planar
        self.classes = classes
        self.class_count = class_count
        self.labels = np.zeros(len(classes), np.int32)
        self._run = run

    def unlabelled(self) -> NDArray[np.intp]:
        """Return the indices of the pixels to be clustered that have no label."""
        return np.flatnonzero((self.labels == 0) & (self.classes >= 0))

    def part(self, pixels: NDArray[np.intp]) -> _Sweep:
        """Return some of the pixels as a picture of their own, without labels."""
        return _Sweep(self.planar[:, pixels], self.classes[pixels], self.class_count, self._run)

    def assign(self, centres: _Centres, limit: float) -> _Totals:
        """Label every pixel with its nearest centre within `limit`."""
        rows = centres.means.astype(self.planar.dtype)
        columns = np.ascontiguousarray(rows.T)
        # A hair below half the distance: rounding must not skip a nearer centre.
        half = ((0.4999 * centres.to_nearest()) ** 2).astype(rows.dtype)

        def chunk(begin: int) -> _Totals:
            totals = self._totals(rows.shape)
            sweep_kernels.assign(
                self.planar, self.classes, begin, self._end(begin), rows, columns, centres.first, centres.axis,
                half, limit, self.labels, *totals,
            )  # fmt: skip
            return totals

        totals = self._totals(rows.shape)
        for part in self._run(chunk, self._chunks()):
            for total, addend in zip(totals, part, strict=True):
                total += addend
        return totals

    def measure(
        self, labels: NDArray[np.int32], origin: NDArray[np.float64], sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean and the variance (mean squared distance to it) of every cluster of `sizes` pixels.

        `origin` (K, D) lies near the means: offsets from it are small and lose no digits.
        """

        def chunk(begin: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            sums, squares = np.zeros(origin.shape), np.zeros(len(origin))
            sweep_kernels.measure(self.planar, labels, begin, self._end(begin), origin, sums, squares)
            return sums, squares

        sums, squares = np.zeros(origin.shape), np.zeros(len(origin))
        for chunk_sums, chunk_squares in self._run(chunk, self._chunks()):
            sums += chunk_sums
            squares += chunk_squares
        offset = sums / sizes[:, None]
        return origin + offset, np.maximum(squares / sizes - (offset * offset).sum(1), 0.0)

    def _chunks(self) -> range:
        return range(0, len(self.labels), _CHUNK)

    def _end(self, begin: int) -> int:
        return min(begin + _CHUNK, len(self.labels))

    @staticmethod
    def _totals(shape: tuple[int, ...]) -> _Totals:
        return _Totals(np.zeros(shape), np.zeros(shape[0], np.int64))
