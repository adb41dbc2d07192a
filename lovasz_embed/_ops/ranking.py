"""The Lovász extension by ranking, on the CPU: exact, and the same for any number of threads.

Floor: one read of values and labels and one write of the weights; per positive error 16 bytes of words, each
written and read three times, in caches mostly. The rest is arithmetic, about 8 ns a positive error and core.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops import ranking_kernels as kernels
from lovasz_embed._ops.scratch import scratch
from lovasz_embed._ops.threads import share

Array = NDArray[Any]

LARGEST = 2**31  # places have 31 bits
LONG = 1 << 18  # entries from which on ranking is worth sharing among threads
_VERY_LONG = 1 << 22  # entries, of all rows, from which on looking for positive errors is


class Row(NamedTuple):
    """One mask: runs of neighbouring values, with the labels beside them.

    Attributes:
        runs: (start among the values, start among the labels, length) of each run, by ascending start.
        label: The label of its foreground.
    """

    runs: list[tuple[int, int, int]]
    label: int


class Weighed(NamedTuple):
    """What a row came to: its loss, its foreground entries, and its entries that count."""

    loss: float
    foreground: int
    counted: int


def weigh_rows(
    values: Array, labels: Array, rows: list[Row], ignored: int, kind: int, weights: Array, threads: int
) -> list[Weighed]:
    """Return the Lovász extension of every row and write its slope along every entry's logit.

    Args:
        values: float32 or float64, one axis, contiguous.
        labels: Integers, one axis, contiguous.
        rows: The masks.
        ignored: The label of what counts nowhere.
        kind: What the values are, see `ranking_kernels.error_of`.
        weights: Like `values`; where the rows are, minus the weight of foreground entries and plus that of others
            is written. Empty: not wanted.
        threads: How many share the work: the rows where they are short, each row where they are long.
    """
    entries = sum(length for row in rows for _, _, length in row.runs)

    def weigh(row: Row, threads: int) -> Weighed:
        size = sum(length for _, _, length in row.runs)
        with scratch((size, np.int64), (size, np.int64)) as (words, spare):
            runs = _cut(row.runs, 4 * threads if threads > 1 and entries >= _VERY_LONG else 1)
            starts = np.cumsum([0, *(length for _, _, length in runs[:-1])]).tolist()
            found = share(
                lambda n: kernels.compact(
                    values, labels, *runs[n], row.label, ignored, kind, words, starts[n], weights
                ),
                range(len(runs)),
                threads,
            )
            ends, lows, highs, foreground, out = zip(*found, strict=True)
            filled = list(zip(starts, ends, strict=True))
            loss = weigh_words(
                words, spare, filled, min(lows), max(highs), values, kind, sum(foreground), weights, threads
            )
        return Weighed(loss, sum(foreground), size - sum(out))

    if all(sum(run[2] for run in row.runs) < LONG for row in rows):
        return share(lambda row: weigh(row, 1), rows, threads)
    return [weigh(row, threads) for row in rows]


def weigh_words(
    words: Array,
    spare: Array,
    runs: list[tuple[int, int]],
    low: int,
    high: int,
    values: Array,
    kind: int,
    foreground: int,
    weights: Array,
    threads: int,
) -> float:
    """Weigh the words of one row, which lie in `runs` of an array; return the loss (see `ranking_kernels`)."""
    total = sum(stop - start for start, stop in runs)
    if total < LONG or threads == 1:
        end = 0
        for start, stop in runs:
            if start > end:
                words[end : end + stop - start] = words[start:stop]
            end += stop - start
        return kernels.weigh_row(words, spare, values, kind, total, low, high, foreground, weights)
    base, shift, buckets = kernels.grid(total, low, high)
    counts = np.zeros((len(runs), buckets), np.int64)
    share(lambda n: kernels.count(words, *runs[n], base, shift, counts[n]), range(len(runs)), threads)
    entries, hits = counts & 0xFFFFFFFF, counts >> 32
    starts, seen = np.zeros((2, buckets + 1), np.int64)
    np.cumsum(entries.sum(0), out=starts[1:])
    np.cumsum(hits.sum(0), out=seen[1:])
    # A run's part of a bucket lies behind those of the runs before it: the order of places is kept.
    places = starts[:-1] + entries.cumsum(0) - entries
    share(lambda n: kernels.scatter(words, *runs[n], base, shift, places[n], spare), range(len(runs)), threads)
    sums = np.zeros(buckets)

    def weigh(part: tuple[int, int]) -> None:
        kernels.weigh(spare, words, values, kind, starts, seen, *part, shift, foreground, weights, sums)

    # More parts than threads, of as many entries each: some take longer than others.
    edges = np.searchsorted(starts, np.linspace(0, total, 8 * threads + 1)[1:-1])
    share(weigh, list(zip([0, *edges.tolist()], [*edges.tolist(), buckets], strict=True)), threads)
    # One sum per bucket, added up in order: the loss does not depend on who weighed which.
    return float(np.cumsum(sums)[-1])


def _cut(runs: list[tuple[int, int, int]], parts: int) -> list[tuple[int, int, int]]:
    """Cut long runs so that each thread gets about the same."""
    longest = max(-(-sum(length for _, _, length in runs) // parts), 1)
    return [
        (value + start, label + start, min(longest, length - start))
        for value, label, length in runs
        for start in range(0, max(length, 1), longest)
    ]
