"""The segmentation of a picture of any size, tile by tile."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.margin import Floats
from lovasz_embed._ops.threads import map_threads
from lovasz_embed._ops.tile_join import Instances, Spool, Totals, join
from lovasz_embed.clustering._classified import check_options, cluster_classified
from lovasz_embed.clustering._pictures import compactness, planar
from lovasz_embed.panoptic._dims import checked_dims, look_at
from lovasz_embed.panoptic._grid import Window, tiles
from lovasz_embed.panoptic._maps import thing_categories
from lovasz_embed.panoptic.result import PanopticResult, Segment
from lovasz_embed.panoptic.segmentation import segment
from lovasz_embed.prototypes import nearest_class_mean

Embed = Callable[[Window], Tensor]

_IN_MEMORY = 1 << 26  # bytes of embeddings that wait in memory; more of them wait in a file
_MOST_TILES = 1 << 22
_AT_ONCE = 8  # windows of full size
_ROWS = 1 << 22  # pixels that are numbered at once
_NEVER = np.iinfo(np.int64).max


def segment_tiles(
    embed: Embed,
    size: tuple[int, int],
    class_means: Tensor,
    *,
    things: Collection[int],
    radius: float,
    reach: float | None = None,
    category_dims: Sequence[int] | None = None,
    instance_dims: Sequence[int] | None = None,
    offset: Tensor | None = None,
    reject_radius: float | None = None,
    vote: bool = False,
    min_thing_area: int = 0,
    min_stuff_area: int = 0,
    ignore_index: int = 255,
    tile: int = 1024,
    overlap: int = 128,
    context: int | None = None,
    step: int = 1,
    at_once: int | None = None,
    out: NDArray[np.int32] | None = None,
    scratch: str | os.PathLike[str] | None = None,
) -> PanopticResult:
    r"""Read categories and instances off an embedding that is computed tile by tile: `segment` for huge pictures.

    Every tile is embedded with `overlap` pixels around it. The embedding of a picture of up to `at_once` pixels is put
    together, and the result is that of `segment`. In a larger picture each tile is clustered. The clusters of all
    tiles are joined by their means, the largest first: one takes the nearest of every other tile, if its class is the
    same and the distance at most `radius`. Each joined instance moves to the mean of the pixels nearest to it within
    `radius`, and then every pixel takes the nearest one within `reach`. With `vote` all things are of one class in
    this, and the pixels that an instance has in the end, in all tiles, decide on its category.

    Let every pixel of the whole picture's embedding lie within δ of the mean of its instance, and the means of two
    instances of one class (with `vote`, of any two things) at least Δ apart. If 2 δ < radius < Δ - 2 δ and the overlap
    covers the network's context, the result of joining is that of `segment` as well, whatever the tiles.

    Args:
        embed: Maps a `Window` of the picture to its embedding, floats (1, D, h, w). Coordinates in it, if any, are
            those in the picture, not those in the window.
        size: Height and width of the picture, pixels.
        class_means: Floats (C, D), as in `segment`, like the options up to `ignore_index`.
        things: The categories that have instances.
        radius: Radius of an instance, embedding units.
        reach: Farthest distance at which a pixel joins its nearest instance; None is the radius.
        category_dims: The dimensions that tell categories apart; None is all.
        instance_dims: The dimensions that tell instances apart; None is all.
        offset: Per category, (C,), squared embedding units.
        reject_radius: Pixels farther than this from every class mean are void; None rejects nothing.
        vote: Cluster the pixels of all things together, and give every instance the category that most of its pixels
            have, the lowest of equal ones. False clusters each category by itself.
        min_thing_area: Pixels that a thing must have, in all tiles together.
        min_stuff_area: Pixels that a stuff segment must have, in all tiles together.
        ignore_index: The category of void inside.
        tile: Largest side of a tile, pixels. Tiles have about one size; windows are larger by twice the overlap.
        overlap: Pixels that are embedded around a tile, on every side, as far as the picture goes.
        context: How many pixels from an inner edge of a window the embedding may differ from that of the whole
            picture; what is farther inside helps to find instances. None is the overlap.
        step: Windows begin at multiples of it: the stride of the network's coarsest map.
        at_once: Pixels of the largest picture that is clustered as a whole; None is eight windows of full size, whose
            embedding takes no more memory than many a network does for one. 0 always joins.
        out: int32 (H, W), written and returned in the result; `numpy.memmap` keeps it out of memory. None makes one.
        scratch: Folder of a temporary file, that of the system if None. It holds the instance dimensions of all thing
            pixels, 4 bytes for each of both (8 for float64), and is gone when the call returns. Up to 64 MiB stay in
            memory.

    Returns:
        The result of one picture, on the CPU. Scores are those of `segment` but for rounding.

    Raises:
        TypeError: If `embed` returns no floating point tensor, or a number of pixels is no int.
        ValueError: If `tile` or `overlap` is no multiple of `step`, `context` is larger than `overlap`, `out` or an
            embedding has another shape, or an option is out of range.

    Note:
        Besides the result: one window's embedding with what `embed` needs for it, that of `at_once` pixels or
        O(instances), and the file; `vote` adds a table of 8 bytes for every instance and thing category. Time is that
        of `embed` and of `segment`; more than 4096 instances of a class are fine as long as no tile has more.
        Deterministic, for any number of threads.

    Example:
        >>> row = torch.tensor([0.0, 0.1, 5.0, 5.1, 8.0, 8.2, 0.0]).view(1, 1, 1, 7)
        >>> means = torch.tensor([[0.0], [6.0]])
        >>> options = dict(things={1}, radius=1.0)
        >>> tiled = segment_tiles(lambda w: row[..., w.rows, w.columns], (1, 7), means, **options, tile=3, at_once=0)
        >>> tiled.segmentation.tolist()
        [[[1, 1, 2, 2, 3, 3, 1]]]
    """
    if not callable(embed):
        raise TypeError(_check.message("embed", "be a function of a Window", type(embed).__name__))
    _check.is_floating("class_means", class_means)
    _check.has_values("class_means", class_means)
    if class_means.ndim != 2 or min(class_means.shape) < 1:
        rule = "have shape (C, D) with C >= 1 and D >= 1"
        raise ValueError(_check.message("class_means", rule, tuple(class_means.shape)))
    if offset is not None:
        _check.is_floating("offset", offset)
    _check.is_label("ignore_index", ignore_index)
    thing_set = thing_categories(things)
    _check.is_area("min_thing_area", min_thing_area)
    _check.is_area("min_stuff_area", min_stuff_area)
    check_options(radius, reach, connected=False)
    check_tiles(tile, overlap, step)
    context = overlap if context is None else context
    pixels("context", context, 0)
    if context > overlap:
        raise ValueError(_check.message("context", f"be at most the overlap, {overlap}", context))
    _check.is_sequence("size", size, "be a height and a width, in pixels", 2)
    height, width = size
    pixels("size", height, 0)
    pixels("size", width, 0)
    if at_once is None:
        at_once = min(_AT_ONCE * (tile + 2 * overlap) ** 2, _check.MOST_PIXELS)
    pixels("at_once", at_once, 0)
    count = -(-height // tile) * -(-width // tile)
    if count > _MOST_TILES:
        raise ValueError(
            _check.message("tile", f"divide the picture into at most {_MOST_TILES} tiles", f"{count} tiles")
        )
    ids = _checked_out(out, (height, width))
    grid = tiles((height, width), tile, step)
    class_means, offset = class_means.detach().cpu(), None if offset is None else offset.detach().cpu()
    dims = checked_dims("category_dims", category_dims, class_means.shape[1])
    _check.is_bool("vote", vote)
    own_dims = checked_dims("instance_dims", instance_dims, class_means.shape[-1])
    nearest: dict[str, Any] = {"offset": offset, "dims": dims, "reject_radius": reject_radius}
    reader = _Reader(embed, class_means, thing_set, nearest, ignore_index, own_dims, vote)
    if height * width <= at_once:
        whole = segment(
            reader.whole(grid, (height, width), overlap),
            class_means,
            things=thing_set,
            radius=radius,
            reach=reach,
            category_dims=dims,
            instance_dims=own_dims,
            offset=offset,
            reject_radius=reject_radius,
            vote=vote,
            min_thing_area=min_thing_area,
            min_stuff_area=min_stuff_area,
            ignore_index=ignore_index,
        )
        ids[...] = whole.segmentation[0].numpy()
        return PanopticResult(torch.from_numpy(ids)[None], whole.segments)
    min_size = max(int(min_thing_area), 1)
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=None if scratch is None else os.fspath(scratch)) as file:
        picture = _Picture(ids, grid, reader, Spool(file))
        pieces = [picture.look(place, float(radius), min_size, overlap, context) for place in grid]
        found = join(pieces, float(radius), class_means.shape[1] if own_dims is None else len(own_dims))
        found = found.select(found.sizes >= min_size)
        found = picture.settle(found, float(radius), min_size)
        totals, found = picture.label(found, float(radius if reach is None else reach))
    scores = compactness(totals.variances(), radius)
    return picture.number(found, scores, (math.ceil(min_thing_area), math.ceil(min_stuff_area)))


def check_tiles(tile: int, overlap: int, step: int) -> None:
    """Raise where tiles of this size do not fit the network's grid."""
    pixels("step", step, 1)
    pixels("tile", tile, 1)
    pixels("overlap", overlap, 0)
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value % step:
            remedy = f"For example {-(-value // step) * step}."
            raise ValueError(_check.message(name, f"be a multiple of {step}, the network's stride", value, remedy))


def pixels(argument: str, value: int, least: int) -> None:
    """Raise unless `value` is a whole number of pixels, at least `least`."""
    _check.is_int(argument, value, least, _check.MOST_PIXELS, rule="be an int, in pixels")


def _checked_out(out: NDArray[np.int32] | None, size: tuple[int, int]) -> NDArray[np.int32]:
    if out is None:
        return np.empty(size, np.int32)
    if not isinstance(out, np.ndarray) or out.dtype != np.int32:
        got = str(out.dtype) if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(_check.message("out", "be an int32 array", got))
    if out.shape != size or not out.flags.writeable:
        found = f"{out.shape}, {'writeable' if out.flags.writeable else 'read-only'}"
        raise ValueError(_check.message("out", f"be writeable and of shape {size}, that of the picture", found))
    return out


@dataclass(frozen=True)
class _Reader:
    """From a window to its embedding, and from that to categories."""

    embed: Embed
    class_means: Tensor
    things: frozenset[int]
    nearest: dict[str, Any]
    void: int
    instance_dims: tuple[int, ...] | None
    vote: bool

    @property
    def is_thing(self) -> NDArray[np.bool_]:
        """Whether a category is a thing, (C,)."""
        return np.isin(np.arange(len(self.class_means)), sorted(self.things))

    def classes(self, categories: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return what instances may not cross: the categories of things, or 0 for all of them; -1 for all else."""
        own = np.append(np.where(self.is_thing, 0 if self.vote else np.arange(len(self.is_thing)), -1), -1)
        return own.astype(np.int32)[categories]

    def embedding(self, window: Window) -> Tensor:
        embedding = self.embed(window)
        _check.is_floating("embed(window)", embedding)
        dimensions = self.class_means.shape[-1]
        _check.same_shape("embed(window)", embedding, (1, dimensions, *window.shape), "class_means and the window")
        return embedding.detach().cpu()

    def whole(self, grid: list[Window], size: tuple[int, int], overlap: int) -> Tensor:
        """Put the embedding of a whole picture together, (1, D, H, W)."""
        whole = torch.empty(1, self.class_means.shape[1], *size, dtype=self.class_means.dtype)
        for place in grid:
            window = place.widened(overlap, size)
            own = place.inside(window)
            embedding = self.embedding(window)
            whole = whole.to(embedding.dtype)  # the first time, if ever
            whole[..., place.rows, place.columns] = embedding[..., own.rows, own.columns]
        return whole

    def categories(self, embedding: Tensor) -> NDArray[np.int32]:
        """Return the category of every pixel, (h, w), -1 where void."""
        semantic = nearest_class_mean(embedding, self.class_means, **self.nearest, ignore_index=self.void)[0]
        return torch.where(semantic == self.void, -1, semantic).int().numpy()


@dataclass(frozen=True)
class _Picture:
    """The map that becomes the result. Until it is numbered: 0 is void, k instance k, -1 - c the category c."""

    ids: NDArray[np.int32]
    grid: list[Window]
    reader: _Reader
    spool: Spool

    def look(self, place: Window, radius: float, min_size: int, overlap: int, context: int) -> Instances:
        """Write the categories of a tile, keep the embedding of its things, and return its pieces of instances."""
        size = (self.ids.shape[0], self.ids.shape[1])
        window, seen = place.widened(overlap, size), place.widened(overlap - context, size)
        part, own = seen.inside(window), place.inside(seen)
        embedding = self.reader.embedding(window)[..., part.rows, part.columns]
        categories = self.reader.categories(embedding)
        classes = self.reader.classes(categories)
        points = look_at(embedding, self.reader.instance_dims)
        self.ids[place.rows, place.columns] = -1 - categories[own.rows, own.columns]
        mine = classes[own.rows, own.columns] >= 0
        self.spool.write(planar(points[0, :, own.rows, own.columns])[:, mine.reshape(-1)])
        return self._pieces(points, classes, own, radius, min_size)

    def _pieces(
        self, points: Tensor, classes: NDArray[np.int32], own: Window, radius: float, min_size: int
    ) -> Instances:
        """Cluster what a tile sees, and return what has pixels in the tile itself."""
        found = []
        # Pieces that are large enough as they are, then, of the pixels that these leave, those that are not.
        for least in sorted({min_size, 1}, reverse=True):
            options: dict[str, Any] = {"radius": radius, "reach": radius, "min_size": least, "connected": False}
            [clusters] = cluster_classified(points, classes.reshape(1, -1), **options)
            labels = clusters.labels.reshape(classes.shape)
            sizes = np.bincount(labels[own.rows, own.columns].reshape(-1), minlength=len(clusters.centres) + 1)[1:]
            # What is large enough now and was not before did not stand out: it is a mixture and no instance.
            keep = (sizes > 0) & ((clusters.sizes < min_size) | (least == min_size))
            found.append(Instances(clusters.centres, clusters.classes, sizes).select(keep))
            classes = np.where(labels > 0, -1, classes)
        return Instances.of(found, points.shape[1])

    def settle(self, found: Instances, radius: float, min_size: int) -> Instances:
        """Move instances to the mean of the pixels nearest to them within a radius; small ones go."""
        totals = Totals(found, self.spool.dtype)
        for place, mine, embedding in self._things():
            totals.assign(embedding, self.reader.classes(self._categories(place)[mine]), radius, map_threads)
        return totals.settled(min_size)

    def label(self, found: Instances, limit: float) -> tuple[Totals, Instances]:
        """Write the nearest instance within a limit of every thing pixel.

        Returns:
            What each instance holds then, and the instances with their categories.
        """
        totals = Totals(found, self.spool.dtype)
        things = np.flatnonzero(self.reader.is_thing)
        votes = np.zeros((len(found.sizes), len(things)) if self.reader.vote else 0, np.int64)
        for place, mine, embedding in self._things():
            categories = self._categories(place)[mine]
            labels = totals.assign(embedding, self.reader.classes(categories), limit, map_threads)
            if self.reader.vote:
                own = labels > 0
                ballots = (labels[own] - np.int64(1)) * len(things) + np.searchsorted(things, categories[own])
                np.add.at(votes.reshape(-1), ballots, 1)
            self.ids[place.rows, place.columns][mine] = labels
        if votes.size:
            found = replace(found, classes=things[votes.argmax(1)])  # of equal ones the first, which is the lowest
        return totals, found

    def _categories(self, place: Window) -> NDArray[np.int32]:
        return -1 - self.ids[place.rows, place.columns]

    def _things(self) -> Iterator[tuple[Window, NDArray[np.bool_], Floats]]:
        """Yield every tile, the mask of its thing pixels (h, w), and their embedding (D, n)."""
        self.spool.rewind()
        is_thing = np.append(self.reader.is_thing, False)
        for number, place in enumerate(self.grid):
            yield place, is_thing[self._categories(place)], self.spool.read(number)

    def number(self, found: Instances, scores: NDArray[np.float32], minima: tuple[int, int]) -> PanopticResult:
        """Number the segments that are large enough by their first pixel in scan order."""
        stuff = len(self.reader.class_means)  # a table begins with the categories, the last one first; then void
        area, first = self._tally(stuff + 1 + len(found.sizes))
        minimum = np.repeat([minima[1], minima[0]], [stuff + 1, len(found.sizes)])
        minimum[stuff] = _NEVER  # void is no segment
        order = np.argsort(first, kind="stable")
        order = order[(area >= np.maximum(minimum, 1))[order]]
        numbers = np.zeros(len(area), np.int32)
        numbers[order] = np.arange(1, len(order) + 1)
        for rows in self._strips():
            self.ids[rows] = numbers[self.ids[rows] + stuff]
        category = np.concatenate([np.arange(stuff)[::-1], [0], found.classes])[order].tolist()
        score = np.concatenate([np.ones(stuff + 1, np.float32), scores])[order].tolist()
        columns = zip(
            numbers[order].tolist(), category, (order > stuff).tolist(), area[order].tolist(), score, strict=True
        )
        segments = tuple(Segment(*values) for values in columns)
        return PanopticResult(torch.from_numpy(self.ids)[None], (segments,))

    def _tally(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many pixels each entry of a table has, and its first one in scan order."""
        area, first = np.zeros(length, np.int64), np.full(length, _NEVER)
        stuff = len(self.reader.class_means)
        for rows in self._strips():
            entry = self.ids[rows].reshape(-1) + stuff
            area += np.bincount(entry, minlength=length)
            begin = rows.start * self.ids.shape[1]
            here = np.full(length, _NEVER)
            here[entry[::-1]] = np.arange(begin + len(entry), begin, -1) - 1  # of equal entries the last one is kept
            np.minimum(first, here, out=first)
        return area, first

    def _strips(self) -> Iterator[slice]:
        """Yield the rows of the picture, some at a time."""
        height, width = self.ids.shape
        each = max(_ROWS // max(width, 1), 1)
        return (slice(top, min(top + each, height)) for top in range(0, height, each))
