"""Margin clustering of one picture: sampled modes, exact nearest centres, a second look at what is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import mode_kernels, sweep_kernels
from .components import connected_components
from .margin_centres import Centres
from .margin_crowd import crowding, evenly, spread
from .margin_sweep import Sweep, Totals, Units

Floats = NDArray[np.floating]
Map = Callable[[Callable[[int], Any], range], list[Any]]

SAMPLES = 16_384  # pixels among which modes are sought first
MAX_CENTRES = 4_096  # of one class in one picture; beyond, the embedding is noise and not instances
# The second look takes all pixels that are left of a class, or of their pairs so many, whichever is more:
SECOND = 1 << 20, 1 << 26  # both hold 2 MAX_CENTRES pixels: at least half of them share an instance with another
_SECOND_SHARE = 1 / 4, 128  # per pixel of the picture: linear time for any picture
_SHARE = 8  # one in so many pixels of a large picture, to tell where the means are
_AT_REST = 0.1  # radii: a centre that was farther from the mean of its pixels is sought once more
_FEW = 512  # fewer than one in so many pixels of the lattice may be a mixture of two instances
_MANY = 16  # more than one pixel in so many is a matter of a sweep over all


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
    scores: Floats | None = None  # (K,) in [0, 1]; None: 1 - variance / radius²
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
    sweep = Sweep(planar, classes, int(classes.max(initial=-1)) + 1, run, shape[-1])
    found = _search(sweep, shape, radius, reach, min_size)
    labels, centres, lone = sweep.labels, found.centres, found.lone
    labels[lone] = np.arange(len(centres.means), len(centres.means) + len(lone), dtype=np.int32) + 1
    # Of every centre, then of every pixel that is a cluster by itself:
    origin = np.concatenate([centres.rounded(planar.dtype).means, planar[:, lone].T])
    classes_of = np.concatenate([centres.classes, classes[lone]])
    if connected:
        parts = connected_components(labels.reshape(shape)).reshape(-1)
        parent = np.zeros(int(parts.max(initial=0)) + 1, np.int64)
        parent[parts] = labels
        sizes = np.bincount(parts, minlength=len(parent))
        old = _renumber(parts, sizes[1:], min_size)
        labels, sizes = parts, sizes[old + 1]
        parent = parent[old + 1] - 1
        means, variances = sweep.measure(labels, origin[parent], sizes)
        classes_of = classes_of[parent]
    else:
        ones = np.ones(len(lone), np.int64)
        sizes = np.concatenate([found.totals.counts, ones])
        means = np.concatenate([found.totals.means(found.units), origin[len(centres.means) :]])
        variances = np.concatenate([found.totals.variances(found.units, origin[: len(centres.means)]), 0.0 * ones])
        old = _renumber(labels, sizes, min_size)
        means, variances, sizes, classes_of = means[old], variances[old], sizes[old], classes_of[old]
    alive = centres.select(found.totals.counts > 0).in_order()
    separation = float(alive.to_nearest().min(initial=math.inf))
    apart = separation > 2 * radius and _apart(sweep, lone, alive, radius)
    return PictureClusters(labels, means, sizes, variances, classes_of, separation, found.invalid, apart=apart)


def _renumber(labels: NDArray[np.int32], sizes: NDArray[np.int64], min_size: int) -> NDArray[np.int64]:
    """Number the clusters that are large enough by their first pixel; return what each was before, from 0."""
    old = np.empty(len(sizes), np.int64)
    return old[: sweep_kernels.renumber(labels, np.append(False, sizes >= min_size), old)] - 1


def _apart(sweep: Sweep, lone: NDArray[np.intp], centres: Centres, radius: float) -> bool:
    """Whether pixels that are clusters by themselves are more than 2 radius from each other and from all centres."""
    rest = sweep.part(lone)
    if rest.assign(centres, 2 * radius).counts.any():
        return False
    for c in range(sweep.class_count):
        points = rest.planar[:, rest.classes == c]
        if (crowding(points, 2 * radius, 2, math.inf, sweep.run)[1] > 1).any():
            return False
    return True


@dataclass(frozen=True)
class _Found:
    """The centres, what the last sweep added up for them, and the pixels that are clusters by themselves."""

    centres: Centres
    totals: Totals
    units: Units
    lone: NDArray[np.intp]
    invalid: int


def _search(sweep: Sweep, shape: tuple[int, ...], radius: float, reach: float, min_size: int) -> _Found:
    """Find the centres among a lattice of pixels, then among all that they leave, and label every pixel."""
    state = _first_centres(sweep, shape, radius, max(radius, reach))
    far = state.move(radius)
    if not state.drop(far | (state.totals.counts < min_size), radius):  # the former are found again
        state.again(radius)
    unlabelled = sweep.unlabelled()
    state.give(unlabelled, radius)  # centres have moved: most pixels on the rim of an instance find theirs now
    unlabelled = unlabelled[sweep.labels[unlabelled] == 0]
    rest = sweep.part(unlabelled)
    finite = np.logical_and.reduce(np.isfinite(rest.planar))
    invalid = len(unlabelled) - int(np.count_nonzero(finite))
    if invalid:
        rest, unlabelled = rest.part(np.flatnonzero(finite)), unlabelled[finite]
    late, sizes, lone = _look_again(rest, len(sweep.labels), state.living(), radius, min_size)
    sweep.labels[unlabelled[lone]] = rest.labels[lone] = -1  # taken: nobody looks at them again
    if (sizes >= min_size).any():
        later, stolen = state.join(late.select(sizes >= min_size), rest, unlabelled, radius)
        # A later cluster that mostly takes pixels from the first ones is a fragment of one of them.
        if not state.drop(later & (2 * stolen > state.totals.counts), radius):
            state.again(radius)
    if reach > radius:
        state.give(unlabelled[sweep.labels[unlabelled] == 0], reach)
    elif reach < radius:
        state.again(reach)
    return _Found(state.centres, state.totals, state.units, unlabelled[lone], invalid)


def _first_centres(sweep: Sweep, shape: tuple[int, ...], radius: float, limit: float) -> _State:
    """Find modes among a lattice of pixels, move them to the mean of their pixels, and label every pixel."""
    points, owners = _lattice(sweep, shape)
    # The coordinate that tells most pixels apart tells most centres apart.
    axis = int(np.argmax(spread(points))) if len(owners) else 0
    nothing = Centres(np.empty((0, len(sweep.planar))), np.empty(0, np.int64), sweep.class_count, axis)
    # What is refused here, if it is few, has another chance among all that is left.
    sure = points.shape[1] // _FEW
    modes = [_modes(points[:, owners == c], nothing.means, radius, 2, sure)[0] for c in range(sweep.class_count)]
    state = _State(sweep, _gather(modes, nothing), limit)
    state.again(radius, share=_SHARE)
    state.start_from_means()
    state.again(radius)
    return state


class _State:
    """Centres, the labels of all pixels, and what the centres hold; a centre that was dropped holds nothing."""

    def __init__(self, sweep: Sweep, centres: Centres, limit: float) -> None:
        self.sweep = sweep
        self.limit = limit  # the farthest that any pixel will be from its centre
        self._set(centres)

    def _set(self, centres: Centres) -> None:
        self.centres = centres
        self.units = self.sweep.units(centres, self.limit)
        self.totals = Totals.zero(*centres.means.shape)
        self.dropped = np.zeros(len(centres.means), np.bool_)

    def living(self) -> Centres:
        return self.centres.select(self.totals.counts > 0).in_order()

    def again(self, limit: float, share: int = 1) -> None:
        """Label all pixels, or a share of them, afresh."""
        centres = self.centres.select(~self.dropped)
        self._set(centres.like(centres.means, centres.classes)[0])
        self.totals = self.sweep.assign(self.centres, limit, self.units, share)

    def _means(self) -> NDArray[np.float64]:
        return np.where(self.totals.counts[:, None] > 0, self.totals.means(self.units), self.centres.means)

    def start_from_means(self) -> None:
        """Move the centres to the mean of their pixels and forget these; those that have none stay."""
        self._set(replace(self.centres, means=self._means()))

    def move(self, radius: float) -> NDArray[np.bool_]:
        """Move the centres to the mean of their pixels; return which moved so far that these may be others' (K,).

        If that is a matter of many pixels, all are labelled once more instead, and none is returned.
        """
        moved = replace(self.centres, means=self._means())
        way = moved.means - self.centres.means
        far: NDArray[np.bool_] = np.sqrt((way * way).sum(1)) > _AT_REST * radius
        if _MANY * int(self.totals.counts[far].sum()) > len(self.sweep.labels):
            self._set(moved)
            self.again(radius)
            return np.zeros(len(far), np.bool_)
        dtype = self.sweep.planar.dtype
        self.totals.shift(self.units, self.centres.rounded(dtype).means, moved.rounded(dtype).means)
        self.centres = moved  # numbered as before: no longer sorted, where two have passed each other
        return far

    def _release(self, chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Drop centres and return their pixels, which are without a label then."""
        pixels = self.sweep.labelled(chosen & (self.totals.counts > 0))
        self.sweep.labels[pixels] = 0
        for total in (self.totals.sums, self.totals.squares, self.totals.counts):
            total[chosen] = 0
        self.dropped |= chosen
        return pixels

    def drop(self, chosen: NDArray[np.bool_], limit: float) -> bool:
        """Drop centres and give their pixels to the others; False if that takes a sweep over all pixels.

        All other pixels keep their nearest centre: the labels are those of such a sweep.
        """
        if _MANY * int(self.totals.counts[chosen].sum()) > len(self.sweep.labels):
            self.dropped |= chosen
            return False
        self.give(self._release(chosen), limit)
        return True

    def give(self, pixels: NDArray[np.intp], limit: float) -> None:
        """Give some pixels that belong to no centre to the nearest within `limit`."""
        if not len(pixels):
            return
        kept = np.flatnonzero(~self.dropped)
        centres, order = self.centres.like(self.centres.means[kept], self.centres.classes[kept])
        kept = kept[order]
        part = self.sweep.part(pixels)
        units = Units(self.units.scale[kept], self.units.fine)
        self.totals.add(part.assign(centres, limit, units), kept)
        self.sweep.labels[pixels] = np.append(0, kept + 1)[part.labels]

    def join(
        self, late: Centres, rest: Sweep, pixels: NDArray[np.intp], radius: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Add centres that were found among the `rest`, the `pixels` that have none.

        All pixels have their nearest centre then. Return which of the centres are new (K,), and how many pixels each
        took from others (K,).
        """
        alive = ~self.dropped & (self.totals.counts > 0)
        centres, order = self.centres.select(alive).join(late)
        later = order >= alive.sum()
        new = np.zeros(len(alive), np.int64)
        new[np.flatnonzero(alive)[order[~later]]] = np.flatnonzero(~later)
        units = self.sweep.units(centres, self.limit)
        units.scale[~later] = self.units.scale[alive][order[~later]]  # what was added up before stays valid
        totals = self.totals.join(alive, order)
        stolen = self.sweep.take_over(centres, later, new, radius, units, totals)
        self._set(centres)
        self.units = units
        if stolen is None:
            self.again(radius)
            taken = np.maximum(self.sweep.labels[pixels], 0)
            stolen = self.totals.counts - np.bincount(taken, minlength=len(later) + 1)[1:]
        else:
            totals.add(rest.assign(centres, radius, units))
            self.sweep.labels[pixels] = rest.labels
            self.totals = totals
        return later, stolen


def _settle(sweep: Sweep, modes: Centres, radius: float) -> tuple[Centres, NDArray[np.int64]]:
    """Return the means of the pixels nearest to the modes, and how many those are."""
    units = sweep.units(modes, radius)
    totals = sweep.assign(modes, radius, units)
    found = totals.counts > 0
    centres, order = modes.like(totals.means(units)[found], modes.classes[found])
    return centres, totals.counts[found][order]


def _look_again(
    rest: Sweep, pixels: int, known: Centres, radius: float, min_size: int
) -> tuple[Centres, NDArray[np.int64], NDArray[np.intp]]:
    """Find centres among the pixels that the known ones leave: return them, their sizes, and the lone pixels.

    All pixels of a class are looked at unless they, or the pairs of close ones, are too many for the size of the
    picture. Then a part of them is, and again of what that leaves, while new modes explain at least half: where
    the guarantee holds they do, and what is left otherwise are the tails of known clusters.
    """
    where = np.arange(len(rest.labels))
    late, sizes = known.select(np.zeros(len(known.means), np.bool_)), np.empty(0, np.int64)
    lone = [np.empty(0, np.intp)]
    most, pairs = (max(least, int(share * pixels)) for least, share in zip(SECOND, _SECOND_SHARE, strict=True))
    while len(where):
        modes, alone, again = [], [], np.zeros(rest.class_count, np.bool_)
        around, _ = known.join(late)
        for c in range(rest.class_count):
            members = np.flatnonzero(rest.classes == c)
            looked = members[evenly(len(members), min(len(members), most))]
            chosen, company = crowding(rest.planar[:, looked], radius, max(2, min_size), pairs, rest.run)
            looked = looked[chosen]
            complete = len(looked) == len(members)
            # Of a part, so few that all instances below that number hold less than half of it.
            enough = max(2, min_size if complete else min(min_size, 1 + len(looked) // (2 * MAX_CENTRES)))
            points = rest.planar[:, looked[company >= enough]]
            new, explained = _modes(points, around.of_class(c), radius, enough, len(looked) + 1 if complete else 0)
            modes.append(new)
            if not complete:
                again[c] = len(new) > 0 and 2 * explained >= len(looked)
            elif min_size == 1:
                alone.append(looked[company == 1])
        new_late, new_sizes = _settle(rest, _gather(modes, known), radius)
        late, order = late.join(new_late)
        sizes = np.append(sizes, new_sizes)[order]
        lone += [where[pixel[rest.labels[pixel] == 0]] for pixel in alone]
        left = rest.unlabelled()
        left = left[again[rest.classes[left]]]
        rest, where = rest.part(left), where[left]
    return late, sizes, np.sort(np.concatenate(lone))


def _gather(modes: list[NDArray[np.float64]], like: Centres) -> Centres:
    """Return the modes of all classes as centres."""
    owners = np.repeat(np.arange(len(modes)), [len(found) for found in modes])
    return like.like(np.concatenate([like.means[:0], *modes]), owners)[0]


def _lattice(sweep: Sweep, shape: tuple[int, ...]) -> tuple[Floats, NDArray[np.int32]]:
    """Return pixels to be clustered (D, n), all or those on a lattice, at most SAMPLES; and their classes."""
    sampled = _places(sweep.classes, shape)
    points = sweep.planar[:, sampled]
    finite = np.logical_and.reduce(np.isfinite(points))
    return points[:, finite], sweep.classes[sampled[finite]]


def _places(classes: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.intp]:
    valid = int(np.count_nonzero(classes >= 0))
    if valid <= SAMPLES:
        return np.flatnonzero(classes >= 0)
    budget = SAMPLES * len(classes) / valid
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


def _modes(
    points: Floats, known: NDArray[np.float64], radius: float, enough: int, sure: int
) -> tuple[NDArray[np.float64], int]:
    """Return the new modes (k, D) of one class's points (D, n), and how many points they explain."""
    dimensions, n = points.shape
    if n == 0:
        return known[:0], 0
    axis = int(np.argmax(spread(points)))
    points = points[:, np.argsort(points[axis], kind="stable")]
    owner, leaders = np.empty(n, np.int64), np.empty_like(points)
    count = mode_kernels.choose_leaders(points, axis, radius, owner, leaders)
    by_leader = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[by_leader], np.arange(count + 1))
    net = (points[:, by_leader], np.ascontiguousarray(leaders[:, :count]), axis, first, radius)
    near = np.empty(count, np.int64)
    mode_kernels.density(*net, 0.5 * radius, near)
    densest_first = np.argsort(-near, kind="stable")  # ties go to the leader with the smaller coordinate
    start = min(len(known), MAX_CENTRES)
    modes = np.empty((dimensions, min(start + n, MAX_CENTRES)))
    modes[:, :start] = known.T[:, :start]
    total, explained = mode_kernels.find_modes(*net, radius, densest_first, enough, sure, modes, start)
    return modes[:, start:total].T, explained
