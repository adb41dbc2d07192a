"""Density clustering of one picture: a tree over core points, exact assignment, second looks.

For embeddings whose instances have no known radius. The clusters of a deterministic sample of each class are those of
a density tree (`density_tree`). Two second looks find what a sample misses: every cluster is sampled again for
itself, and the pixels that no cluster explains are searched for compact groups of the scale that is known by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import density_kernels as kernels
from .components import connected_components
from .density_passes import Floats, Found, Ints, Map, Picture
from .density_tree import LEAST, nearest_means, prototypes, select_clusters
from .margin import PictureClusters, cluster_picture
from .margin_crowd import crowding

POINTS = 4096  # core points of a picture with one class; the tree costs their square
_FEWEST, _MOST = 64, 1024  # core points when a cluster is sampled again
_FEWEST_OF_CLASS = 1024
_PIXELS = 65_536  # from which these are taken
_LEFT = 8_192  # pixels left, of more a sample is looked at first
_LOOKS = 4  # at the inside of clusters: one that divides is looked at again
_STRAY, _TRIMS = 3.0, 3  # a point so many median distances away does not count; rounds
_TAILS = 1.5  # extent of a cluster, in distances that nine tenths of its points keep


def cluster_picture_by_density(
    planar: Floats,
    classes: NDArray[np.int32],
    shape: tuple[int, ...],
    *,
    radius: float | None,
    reach: float | None,
    min_size: int,
    connected: bool,
    run: Map,
) -> PictureClusters:
    """Cluster the pixels of one picture, class by class, by density; see `lovasz_embed.cluster_embeddings`.

    Args:
        planar: (D, P) float32 or float64 embedding. Pixels that hold NaN or Inf become noise.
        classes: (P,) class of each pixel, 0..C-1 without gaps; negative: not clustered.
        shape: The spatial shape, of P pixels.
        radius: Upper limit, None for none: no pixel is farther than that from its cluster's mean, and of the tree only
            those branches are taken whose points have at most this root mean square distance to their mean.
        reach: Farthest distance at which a pixel joins its nearest cluster; None: the extent of that cluster.
        min_size: Fewest pixels of a cluster; fewer than 5 are never one.
        connected: Split clusters into connected parts.
        run: `map_threads`, or a serial stand-in.
    """
    picture = Picture(planar, classes, int(classes.max(initial=-1)) + 1, run)
    smallest = max(min_size, LEAST)
    widest = math.inf if radius is None else radius
    found = _rest(picture, _refined(picture, _core(picture, widest), widest), shape, smallest)
    limits = found.extents if reach is None else np.full(len(found.extents), reach)
    picture.assign(replace(found, extents=limits))
    labels = np.append(0, found.clusters + 1).astype(np.int32)[picture.labels]
    parts = connected_components(labels.reshape(shape)).reshape(-1) if connected else labels.copy()
    cluster_of = np.zeros(int(parts.max(initial=0)) + 1, np.int64)
    cluster_of[parts] = labels
    sizes = np.bincount(parts, minlength=len(cluster_of)).astype(np.int64)
    old = np.empty(len(sizes), np.int64)
    old = old[: kernels.renumber(parts, np.where(sizes >= min_size, 0, -1), old)]
    origin, sizes = cluster_of[old] - 1, sizes[old]
    whole = found.whole()
    centres, variances = picture.measure(parts, whole.means[origin], sizes)
    separation = found.separation(picture.class_count)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        compact = np.nan_to_num(variances / whole.extents[origin] ** 2, posinf=1.0)  # 0 / 0: all pixels are alike
    return PictureClusters(
        labels=parts,
        centres=centres,
        sizes=sizes,
        variances=variances,
        classes=whole.classes[origin],
        separation=separation,
        invalid=picture.invalid,
        scores=np.clip(1.0 - compact, 0.0, 1.0),
        apart=separation > 2 * float(found.extents.max(initial=0.0)),
    )


def _core(picture: Picture, widest: float) -> Found:
    """Return the clusters of a sample of each class."""
    counts = np.bincount(picture.classes + 1, minlength=picture.class_count + 1)[1:].astype(np.int64)
    share = np.sqrt(counts / max(counts.sum(), 1))  # the tree costs the square: all classes together cost one
    quota = np.maximum((POINTS * share).astype(np.int64), min(_FEWEST_OF_CLASS, POINTS))
    parts = []
    for c, pixels in enumerate(picture.sample(picture.classes, 0, counts, quota)):
        points = picture.points(pixels)
        labels = select_clusters(points, picture.run, widest=widest, rounding=picture.rounding(points))
        parts.append(_described(picture, points, labels, c, widest, settled=False))
    return Found.none(len(picture.planar)).join(parts)


def _refined(picture: Picture, found: Found, widest: float) -> Found:
    """Sample each cluster again for itself: some divide, the others get a better mean and extent."""
    part = picture.part(_PIXELS)
    for _ in range(_LOOKS):
        counts = part.assign(found).counts
        looked = np.flatnonzero(~found.settled)
        if not len(looked):
            break
        each = min(max(int(POINTS / math.sqrt(len(looked))), _FEWEST), _MOST)
        samples = part.sample(part.labels, -1, counts, np.where(found.settled, 0, each))
        look = partial(_look, part, samples, found, widest, looked)
        found = found.select(found.settled).join(picture.run(look, range(len(looked))))
    return found


def _look(picture: Picture, samples: list[Ints], found: Found, widest: float, looked: Ints, i: int) -> Found:
    """Return what a sample of the pixels of centre looked[i], the only one of its cluster, shows."""
    q = int(looked[i])
    points = picture.points(samples[q])
    labels = select_clusters(points, _serial, widest=widest, rounding=picture.rounding(points))
    if labels.max(initial=-1) < 0:  # too few to tell
        return replace(found.select(np.arange(len(found.means)) == q), settled=np.ones(1, np.bool_))
    return _described(picture, points, labels, int(found.classes[q]), widest, settled=labels.max() == 0)


def _described(
    picture: Picture,
    points: NDArray[np.float64],
    labels: Ints,
    of_class: int,
    widest: float,
    *,
    settled: bool,
) -> Found:
    """Return centres for clusters of points of one class, with their extents.

    The extent of a centre is a multiple of the distance that nine tenths of its points keep from it. Stray points,
    three times as far away as most, count neither for it nor for the mean.
    """
    means, clusters = prototypes(points, labels)
    count = len(means)
    owner = nearest_means(points, means)
    own = (labels >= 0) & (clusters[owner] == labels) if count else np.zeros(len(points), np.bool_)
    points, owner = points[own], owner[own]
    for _ in range(_TRIMS):
        distance = np.sqrt(((points - means[owner]) ** 2).sum(1))
        middle = _quantile(distance, owner, count, 0.5)
        close = (distance <= _STRAY * middle[owner]) | (middle[owner] == 0)
        sums = np.stack([np.bincount(owner[close], column[close], minlength=count) for column in points.T], 1)
        sizes = np.bincount(owner[close], minlength=count)[:, None]
        means = np.where(sizes > 0, sums / np.maximum(sizes, 1), means)
    distance = np.sqrt(((points - means[owner]) ** 2).sum(1))
    middle = _quantile(distance, owner, count, 0.5)
    close = (distance <= _STRAY * middle[owner]) | (middle[owner] == 0)
    extents = _TAILS * _quantile(distance[close], owner[close], count, 0.9)
    extents = np.minimum(np.maximum(extents, picture.rounding(points)), widest)
    several = np.bincount(clusters)[clusters] > 1 if count else np.empty(0, np.bool_)
    return Found(means, extents, clusters, np.full(count, of_class), several | settled)


def _quantile(values: NDArray[np.float64], owner: Ints, count: int, share: float) -> NDArray[np.float64]:
    """Return for each owner the least of its values that this share does not exceed, 0 where there are none."""
    sizes = np.bincount(owner, minlength=count)
    result = np.zeros(count)
    place = np.cumsum(sizes) - sizes + np.maximum(np.ceil(share * sizes).astype(np.int64) - 1, 0)
    result[sizes > 0] = values[np.lexsort((values, owner))][place[sizes > 0]]
    return result


def _rest(picture: Picture, found: Found, shape: tuple[int, ...], smallest: int) -> Found:
    """Search the pixels that no cluster explains for compact groups of the scale of the clusters of their class.

    Mixed pixels between two clusters are explained by them. A group that mostly takes pixels from the clusters that
    are known is a tail of one of them.
    """
    totals = picture.assign(found)
    rest = np.flatnonzero((picture.labels == 0) & (picture.classes >= 0))
    mixed = np.empty(len(rest), np.bool_)
    squares = found.extents**2
    kernels.mark_mixed(picture.planar, picture.labels, np.array(shape, np.int64), rest, found.means, squares, mixed)
    rest = rest[~mixed]
    more = []
    for c in range(picture.class_count):
        pixels = rest[picture.classes[rest] == c]
        extents = found.extents[found.classes == c]
        if len(pixels) >= smallest and len(extents):
            scale = float(np.median(extents))
            means = _groups(picture.planar[:, pixels], scale, smallest, picture.run)
            n = len(means)
            more.append(Found(means, np.full(n, scale), np.arange(n), np.full(n, c), np.ones(n, np.bool_)))
    known = found.count
    if more:
        found = found.join(more)
        totals = picture.assign(found)
    keep = found.sizes(totals.counts)[found.clusters] >= smallest
    keep &= (found.clusters < known) | (2 * totals.fresh >= totals.counts)
    if not keep.all():
        found = found.select(keep)
        totals = picture.assign(found)
    return replace(found, means=found.means + totals.sums / np.maximum(totals.counts, 1)[:, None])


def _groups(planar: Floats, scale: float, smallest: int, run: Map) -> NDArray[np.float64]:
    """Return the means of compact groups among the pixels (D, n) that are left.

    A sample shows the large ones; all pixels that these do not explain are then looked at.
    """
    step = planar.shape[1] // _LEFT
    means = np.empty((0, len(planar)))
    if step > 1:
        means = _compact(planar[:, step // 2 :: step], planar, scale, smallest, run)
        rest = Picture(planar, np.zeros(planar.shape[1], np.int32), 1, run)
        n = len(means)
        rest.assign(Found(means, np.full(n, scale), np.arange(n), np.zeros(n, np.int64), np.ones(n, np.bool_)))
        planar = np.ascontiguousarray(planar[:, rest.labels == 0])
    # Those of a group all lie within twice the scale of each other: pixels without so many around them are in none.
    looked, company = crowding(planar, 2 * scale, smallest, math.inf, run)
    return np.concatenate([means, _compact(planar[:, looked[company >= smallest]], planar, scale, smallest, run)])


def _compact(sample: Floats, planar: Floats, scale: float, smallest: int, run: Map) -> NDArray[np.float64]:
    """Return the means of groups in a sample: of the pixels within twice the scale two thirds lie within the scale.

    An even background, of any density, has half of them there in one dimension and fewer in more; so has a thread
    of mixed pixels.
    """
    classes = np.zeros(sample.shape[1], np.int32)
    least = max(LEAST, smallest * sample.shape[1] // max(planar.shape[1], 1))
    groups = cluster_picture(
        np.ascontiguousarray(sample), classes, classes.shape,
        radius=scale, reach=scale, min_size=min(least, smallest), connected=False, run=run,
    )  # fmt: skip
    inside, around = np.empty(len(groups.sizes), np.int64), np.empty(len(groups.sizes), np.int64)
    kernels.count_around(planar, groups.centres, scale, inside, around)
    return groups.centres[(inside >= smallest) & (3 * inside >= 2 * around)]


def _serial(function: Callable[[int], Any], items: range) -> list[Any]:
    return [function(item) for item in items]
