"""Segments of categories and clusters on the CPU: counted in tables, numbered by their first pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops.assembly_kernels import extent, number, tally
from lovasz_embed._ops.threads import crew_size, share

Array = NDArray[Any]

_CHUNK = 1 << 17  # pixels of a task, at least; counts are integers, so that it does not matter to the result
_NEVER = np.iinfo(np.int64).max


class Code(NamedTuple):
    """What the values of a map of categories mean.

    Attributes:
        void: The value that is no category.
        base: The lowest value that is one.
        slots: (V,) for the values from `base` on: t for the thing category t, -1 - s for the stuff category s.
        things: (T,) the categories behind t, ascending.
        stuff: (S,) the categories behind s.
    """

    void: int
    base: int
    slots: Array
    things: Array
    stuff: Array


class Piece(NamedTuple):
    """One segment: its number, its category, its pixels, and its cluster (0: it is stuff)."""

    id: int
    category: int
    area: int
    cluster: int


def code_of(categories: int, things: Array, void: int) -> Code:
    """Return the code of plain categories 0 to `categories` - 1."""
    is_thing = np.isin(np.arange(categories), things)
    slots = np.empty(categories, np.int64)
    slots[is_thing] = np.arange(is_thing.sum())
    slots[~is_thing] = -1 - np.arange(categories - is_thing.sum())
    return Code(void, 0, slots, np.flatnonzero(is_thing), np.flatnonzero(~is_thing))


def extents(values: Array, skipped: int) -> list[tuple[int, int]]:
    """Return the lowest and the highest value of each picture (B, P) that is not `skipped`; (0, -1) if none is."""
    tasks = list(_chunks(values.shape, _CHUNK))
    found = share(lambda t: extent(values[t[0], t[1] : t[2]], skipped), tasks, crew_size(values.size))
    ends = [(0, -1)] * len(values)
    for (b, _, _), (low, high) in zip(tasks, found, strict=True):
        if low <= high:
            least, most = ends[b]
            ends[b] = (min(low, least), max(high, most)) if least <= most else (low, high)
    return ends


def pieces(
    values: Array,
    labels: Sequence[Array],
    code: Code,
    clusters: list[int],
    *,
    minima: tuple[float, float],
    winners: list[Array] | None,
    out: Array,
) -> list[list[Piece]]:
    """Write the map of segments and return the segments of every picture, ascending by number.

    Args:
        values: (B, P) the categories of the pixels, by `code`.
        labels: Per picture (P,) the clusters of the pixels, 0 = none.
        code: What the values mean.
        clusters: The highest label of each picture.
        minima: Pixels that a thing and that a stuff segment must have.
        winners: Per picture (K + 1,) the position in `code.things` of each cluster; None: the one most of its
            pixels have, the lowest of equal ones.
        out: int32 (B, P), written; it may be the labels.
    """
    columns = 1 if winners is not None else max(1, len(code.things))
    size = max(_CHUNK, max(clusters, default=0) * columns)  # no more counters than pixels
    tasks = list(_chunks(values.shape, size))

    def count(task: tuple[int, int, int]) -> tuple[Array, ...]:
        rows = clusters[task[0]] + 1
        tables = (
            np.zeros((rows, columns), np.int64),
            np.full(rows, _NEVER),
            np.zeros(len(code.stuff), np.int64),
            np.full(len(code.stuff), _NEVER),
        )
        b, begin, end = task
        tally(values[b], labels[b], begin, end, code.void, code.base, code.slots, *tables)
        return tables

    threads = crew_size(values.size)
    counted: list[list[tuple[Array, ...]]] = [[] for _ in values]
    for (b, _, _), tables in zip(tasks, share(count, tasks, threads), strict=True):
        counted[b].append(tables)
    found: list[list[Piece]] = []
    ids: list[tuple[Array, Array]] = []
    for b, parts in enumerate(counted):
        if not parts:  # a picture without pixels
            found.append([])
            ids.append((np.zeros(0, np.int32), np.zeros(0, np.int32)))
            continue
        votes, thing_first, areas, stuff_first = parts[0]
        for part in parts[1:]:
            votes += part[0]
            areas += part[2]
            np.minimum(thing_first, part[1], out=thing_first)
            np.minimum(stuff_first, part[3], out=stuff_first)
        winner = votes.argmax(1) if winners is None else winners[b]
        thing_areas = votes.sum(1)
        # Stuff and things in the order of their first pixels; what has none comes last, and is too small.
        area = np.concatenate([areas, thing_areas])
        minimum = np.repeat([math.ceil(minima[1]), math.ceil(minima[0])], [len(areas), len(thing_areas)])
        order = np.argsort(np.concatenate([stuff_first, thing_first]), kind="stable")
        order = order[(area >= np.maximum(minimum, 1))[order]]
        numbers = np.zeros(len(area), np.int32)
        numbers[order] = np.arange(1, len(order) + 1)
        cluster = np.maximum(order - len(areas), 0)  # noise, cluster 0, has no pixels here
        category = np.append(code.stuff, code.things[winner[1:]] if len(code.things) else winner[1:])
        kind = np.where(cluster > 0, len(areas) + cluster - 1, order)
        columns_of = (numbers[order], category[kind], area[order], cluster)
        found.append(list(map(Piece, *(column.tolist() for column in columns_of))))
        ids.append((numbers[len(areas) :], numbers[: len(areas)]))

    def write(task: tuple[int, int, int]) -> None:
        b, begin, end = task
        number(values[b], labels[b], begin, end, code.void, code.base, code.slots, *ids[b], out[b])

    share(write, list(_chunks(values.shape, _CHUNK)), threads)
    return found


def majority(values: Array, labels: Array, clusters: int, things: int) -> Array:
    """Return the value most pixels of each cluster have, the lowest of equal ones, by a sort instead of a table.

    Args:
        values: (P,) 0 to `things` - 1; what is negative has no vote.
        labels: (P,) the clusters of the pixels, 0 = none.
        clusters: K, the highest label.
        things: T.

    Returns:
        (K + 1,), 0 for what no pixel is in.

    >>> majority(np.array([0, 2, 2, 1, 0]), np.array([1, 1, 1, 2, 2]), 2, 3).tolist()
    [0, 2, 0]
    """
    voting = (labels > 0) & (values >= 0)
    pairs, votes = np.unique(labels[voting] * np.int64(things) + values[voting], return_counts=True)
    # Of all that is written to one place the last stays: the most votes, and of equal ones the lowest value.
    pairs = pairs[np.lexsort((-pairs, votes))]
    winners = np.zeros(clusters + 1, np.int64)
    winners[pairs // things] = pairs % things
    return winners


def _chunks(shape: tuple[int, ...], size: int) -> Iterator[tuple[int, int, int]]:
    """Yield picture, first pixel and one past the last of every task over maps (B, P)."""
    for b in range(shape[0]):
        for begin in range(0, shape[1], size):
            yield b, begin, min(begin + size, shape[1])
