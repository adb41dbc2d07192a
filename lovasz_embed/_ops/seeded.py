"""Clustering of one picture by seeds: clusters grow from the most confident pixels, the first one keeps its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed import _check

from . import seeded_kernels, seeded_tree_kernels, sweep_kernels
from .components import connected_components
from .margin import Floats, Map, PictureClusters

_CHUNK = 65_536  # pixels per task: a fixed size, so that the order of sums does not depend on the threads
_SHARED = 1 << 17  # points of a class that are cut into two trees, and so on
_LEAF = 256  # points of a leaf: their distances are computed at once, vectorised, in the first-level cache
_MANY = 4_096  # clusters beyond which sums are not kept for every chunk


@dataclass(frozen=True)
class _Forest:
    """The pixels of a picture in boxes, see `seeded_tree_kernels`."""

    points: Floats  # (D, n)
    index: NDArray[np.int32]  # (n,) the pixel of each point
    begin: NDArray[np.int32]  # this and the others: (N,) or (N, D) of the nodes
    end: NDArray[np.int32]
    skip: NDArray[np.int32]
    parent: NDArray[np.int32]
    low: Floats
    high: Floats
    first: NDArray[np.int64]  # (C + 1,) where the nodes of each class begin


def cluster_picture_by_seeds(
    planar: Floats,
    classes: NDArray[np.int32],
    shape: tuple[int, ...],
    *,
    seeds: NDArray[np.float32],
    bandwidth: Floats,
    radius: float | None,
    min_seed: float,
    min_fresh: float,
    min_size: int,
    connected: bool,
    run: Map,
) -> PictureClusters:
    """Cluster the pixels of one picture, class by class; see `lovasz_embed.cluster_embeddings`.

    Args:
        planar: (D, P) float32 or float64 embedding.
        classes: (P,) class of each pixel, 0..C-1 without gaps; negative: not clustered. Overwritten with -1 where
            something is NaN or Inf.
        shape: The spatial shape, of P pixels.
        seeds: (P,) in [0, 1].
        bandwidth: (1, P) or (D, P) radius of the instance that each pixel belongs to; (0, P): `radius` it is.
        radius: Radius of every instance, where there is no bandwidth.
        min_seed: Smallest seed from which a cluster grows.
        min_fresh: Share of its proposal that a cluster must exceed.
        min_size: Fewest pixels of a cluster.
        connected: Split clusters into connected parts.
        run: `map_threads`, or a serial stand-in.
    """
    class_count = int(classes.max(initial=-1)) + 1
    invalid = _screen(planar, classes, seeds, bandwidth, run)
    # Neither needs the other.
    forest, order = run(
        lambda job: _forest(planar, classes, class_count, run) if job == 0 else _rank(seeds, classes, min_seed),
        range(2),
    )
    labels = np.zeros(len(classes), np.int32)
    grown_from = np.empty(len(order), np.int64)
    count = seeded_kernels.grow(
        forest.points, forest.index, forest.begin, forest.end, forest.skip, forest.parent, forest.low, forest.high,
        forest.first, planar, classes, order, bandwidth, 0.0 if radius is None else radius, min_size, min_fresh,
        _LEAF, labels, grown_from,
    )  # fmt: skip
    del forest, order
    grown_from = grown_from[:count].copy()
    owners = classes[grown_from].astype(np.int64)
    start = planar[:, grown_from].T.astype(np.float64)
    radii = np.full(count, radius or 0.0) if not len(bandwidth) else bandwidth[:, grown_from].max(0).astype(np.float64)
    parts = connected_components(labels.reshape(shape)).reshape(-1) if connected else labels.copy()
    parent = np.zeros(int(parts.max(initial=0)) + 1, np.int64)
    parent[parts] = labels
    sizes = np.bincount(parts, minlength=len(parent)).astype(np.int64)
    kept = np.empty(len(parent), np.int64)
    kept = kept[: sweep_kernels.renumber(parts, sizes >= min_size, kept)]
    origin, sizes = parent[kept] - 1, sizes[kept]
    means, variances = _measure(planar, parts, start[origin], sizes, run)
    if connected:
        together = np.bincount(labels, minlength=count + 1)[1:]
        centres = _measure(planar, labels, start, together, run)[0]
    else:
        centres, radii = means, radii[origin]
    return PictureClusters(
        parts,
        means,
        sizes,
        variances,
        owners[origin],
        separation=0.0,
        invalid=invalid,
        scores=seeds[grown_from[origin]].astype(np.float64),
        apart=_apart(centres, radii, owners if connected else owners[origin], class_count),
    )


def _screen(planar: Floats, classes: NDArray[np.int32], seeds: NDArray[np.float32], bandwidth: Floats, run: Map) -> int:
    """Take pixels that are not finite out of the classes; return how many. Raise where values make no sense."""

    def chunk(begin: int) -> NDArray[np.int64]:
        faults = np.zeros(3, np.int64)
        end = min(begin + _CHUNK, len(classes))
        seeded_kernels.screen(planar, seeds, bandwidth, begin, end, classes, faults)
        return faults

    invalid, beyond, negative = sum(run(chunk, range(0, len(classes), _CHUNK)), np.zeros(3, np.int64)).tolist()
    if beyond:
        remedy = "Apply a sigmoid to logits."
        raise ValueError(_check.message("seeds", "lie in [0, 1]", f"{beyond} pixels with others", remedy))
    if negative:
        remedy = "Networks learn its logarithm."
        raise ValueError(_check.message("bandwidth", "be above 0", f"{negative} pixels with others", remedy))
    return int(invalid)


def _rank(seeds: NDArray[np.float32], classes: NDArray[np.int32], least: float) -> NDArray[np.uint64]:
    words, spare = np.empty(len(seeds), np.uint64), np.empty(len(seeds), np.uint64)
    return words[: seeded_kernels.rank(seeds, classes, np.float32(least), words, spare)]


def _forest(planar: Floats, classes: NDArray[np.int32], class_count: int, run: Map) -> _Forest:
    """Sort the pixels into boxes: every class is cut into ranges of few points, with a tree over each."""
    sizes = np.bincount(classes[classes >= 0], minlength=class_count)
    bounds = np.append(0, np.cumsum(sizes))
    points, index = np.empty((len(planar), bounds[-1]), planar.dtype), np.empty(bounds[-1], np.int32)
    if len(index):
        seeded_tree_kernels.gather(planar, classes, bounds[:-1].copy(), points, index)
    wrong = np.empty(len(index), np.int32)
    ranges = _cut(points, index, bounds, wrong, run)
    jobs = np.array_split(ranges, max(len(index) // _SHARED, 1))

    def build(job: int) -> tuple[NDArray[Any], ...]:
        firsts, lasts = jobs[job].T.copy()
        return seeded_tree_kernels.build(points, index, firsts, lasts, _LEAF, wrong)

    trees = run(build, range(len(jobs)))
    offsets = np.append(0, np.cumsum([len(begin) for begin, *_ in trees]))
    for (_, _, skip, parent, *_), offset in zip(trees, offsets, strict=False):
        skip += offset
        parent[parent >= 0] += offset
    roots = np.concatenate([roots + offset for (*_, roots), offset in zip(trees, offsets, strict=False)])
    roots = np.append(roots, offsets[-1])
    begin, end, skip, parent, low, high = (np.concatenate(arrays) for arrays in list(zip(*trees, strict=True))[:-1])
    first = roots[np.searchsorted(ranges[:, 0], bounds)].astype(np.int64)
    return _Forest(points, index, begin, end, skip, parent, low, high, first)


def _cut(
    points: Floats, index: NDArray[np.int32], bounds: NDArray[np.int64], wrong: NDArray[np.int32], run: Map
) -> NDArray[np.int64]:
    """Halve the ranges between the bounds until none is large; return where each (R, 2) begins and ends."""
    done = [np.stack([bounds[:-1], bounds[1:]], 1)]
    while True:
        large = done[-1][:, 1] - done[-1][:, 0] > _SHARED
        halves = done.pop()
        done.append(halves[~large])
        if not large.any():
            break
        halves = halves[large]

        def halve(i: int, halves: NDArray[np.int64] = halves) -> NDArray[np.int64]:
            begin, end = halves[i]
            middle = seeded_tree_kernels.halve(points, index, begin, end, wrong)
            return np.array([[begin, middle], [middle, end]])

        cut = np.concatenate(run(halve, range(len(halves))))
        equal = cut[1::2, 0] == cut[1::2, 1]
        done.append(cut[::2][equal])
        done.append(cut.reshape(-1, 2, 2)[~equal].reshape(-1, 2))
    ranges = np.concatenate(done)
    ranges = ranges[ranges[:, 0] < ranges[:, 1]]
    return ranges[np.argsort(ranges[:, 0])]


def _measure(
    planar: Floats, labels: NDArray[np.int32], origin: NDArray[np.float64], sizes: NDArray[np.int64], run: Map
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean of every cluster of `sizes` pixels and the mean squared distance to it."""
    step = _CHUNK if len(sizes) <= _MANY else max(len(labels), 1)

    def chunk(begin: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sums, squares = np.zeros(origin.shape), np.zeros(len(origin))
        end = min(begin + step, len(labels))
        sweep_kernels.measure(planar, labels, begin, end, origin, sums, squares)
        return sums, squares

    sums, squares = np.zeros(origin.shape), np.zeros(len(origin))
    for chunk_sums, chunk_squares in run(chunk, range(0, len(labels), step)):
        sums += chunk_sums
        squares += chunk_squares
    offset = sums / sizes[:, None]
    return origin + offset, np.maximum(squares / sizes - (offset * offset).sum(1), 0.0)


def _apart(
    centres: NDArray[np.float64], radii: NDArray[np.float64], classes: NDArray[np.int64], class_count: int
) -> bool:
    """Return whether every two centres of one class are farther apart than their radii together."""
    axis = int(np.argmax(centres.var(0))) if len(centres) else 0
    order = np.lexsort((centres[:, axis], classes))
    first = np.searchsorted(classes[order], np.arange(class_count + 1))
    return seeded_kernels.apart(centres[order], radii[order], first, axis)
