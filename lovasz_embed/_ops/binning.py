"""The Lovász extension by counting: O(entries), with a certified bracket, and with counts that add up over processes.

Inside a bin entries are taken in no order: foreground of a bin first, and every entry of its background for the
average of its background. So a bin of n_b background entries, with U_b pixels in the union before it, U_a behind
it and I_a in the intersection behind it, weighs

    1 / U_b              every foreground entry,
    I_a / (U_b U_a)      every background entry.

The loss, with exact errors under these weights, is below the exact one by at most a bin's width: with n bins per
doubling, L_binned <= L <= (1 + 1/n) (L_binned + 2^-32) as long as no error exceeds 2^32 (docs/mathematics.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed._ops import binning_kernels as kernels
from lovasz_embed._ops.ranking import LONG, Row, Weighed
from lovasz_embed._ops.threads import share

Array = NDArray[Any]
Reduce = Callable[[Tensor], Tensor]

_RUN = 1 << 19  # entries; runs are cut the same for any number of threads, so that sums are


def cells(bins: int) -> int:
    """Return the number of cells of a row: two per bin, and two for what has no positive error.

    >>> cells(8)
    1026
    """
    return 2 * (kernels.OCTAVES * bins + 1)


def shift_of(bins: int) -> int:
    """Return how many bits of a float32 lie below its bin.

    >>> shift_of(1 << 16), shift_of(8)
    (7, 20)
    """
    return 24 - bins.bit_length()


def cell_weights(counts: Tensor) -> Tensor:
    """Return the weight of an entry of every cell, (..., cells) float64, from the cells' counts, int64."""
    background, foreground = counts[..., 2::2].flip(-1), counts[..., 3::2].flip(-1)  # largest errors first
    total = counts[..., 1::2].sum(-1, keepdim=True)
    behind = background.cumsum(-1)
    left = (total - foreground.cumsum(-1)).double()
    before = (total + behind - background).double()
    after = (total + behind).double()
    inner = torch.stack([left / (before * after).clamp(min=1), 1 / before.clamp(min=1)], -1)
    # Without foreground the largest error costs everything: the first bin with an entry shares it out.
    first = (behind > 0) & (behind == background)
    alone = torch.stack([first / background.clamp(min=1).double(), torch.zeros_like(left)], -1)
    weights = torch.where((total > 0).unsqueeze(-1), inner, alone).flip(-2).flatten(-2)
    return torch.cat([torch.zeros_like(weights[..., :2]), weights], -1)


def bin_rows(
    values: Array,
    labels: Array,
    rows: list[Row],
    ignored: int,
    kind: int,
    weights: Array,
    threads: int,
    *,
    bins: int,
    reduce: Reduce | None,
) -> list[Weighed]:
    """Do what `ranking.weigh_rows` does, by counting; `reduce` adds the counts, (R, cells), of all processes.

    With `reduce` the counts returned are those of all processes; the losses and weights are this process's part.
    """
    options = (values, labels, ignored, kind, weights, bins, reduce)
    if reduce is not None:
        return _bin(rows, threads, *options)
    if all(sum(run[2] for run in row.runs) < LONG for row in rows):
        return share(lambda row: _bin([row], 1, *options)[0], rows, threads)
    return [_bin([row], threads, *options)[0] for row in rows]


def _bin(
    rows: list[Row],
    threads: int,
    values: Array,
    labels: Array,
    ignored: int,
    kind: int,
    weights: Array,
    bins: int,
    reduce: Reduce | None,
) -> list[Weighed]:
    """Count, weigh the cells, weigh the entries."""
    shift = shift_of(bins)
    runs = [(number, run) for number, row in enumerate(rows) for run in _cut(row)]
    counts = np.zeros((len(rows), cells(bins)), np.int64)
    partial = counts if len(runs) == len(rows) else np.zeros((len(runs), cells(bins)), np.int64)

    def count(place: int) -> tuple[int, int]:
        row, run = runs[place]
        return kernels.count_cells(values, labels, *run, rows[row].label, ignored, kind, shift, partial[place])

    dropped = [out for _, out in share(count, range(len(runs)), threads)]
    for place, (row, _) in enumerate(runs):
        if partial is not counts:
            counts[row] += partial[place]
        counts[row, 0] -= dropped[place]
    everywhere = counts if reduce is None else reduce(torch.from_numpy(counts)).numpy()
    table = _signed_table(everywhere).astype(values.dtype)

    def weigh(place: int) -> float:
        row, run = runs[place]
        return kernels.weigh_cells(values, labels, *run, rows[row].label, ignored, kind, shift, table[row], weights)

    losses = np.zeros(len(rows))
    for (row, _), loss in zip(runs, share(weigh, range(len(runs)), threads), strict=True):
        losses[row] += loss
    foreground, counted = everywhere[:, 1::2].sum(1).tolist(), everywhere.sum(1).tolist()
    return [Weighed(*row) for row in zip(losses.tolist(), foreground, counted, strict=True)]


def _signed_table(counts: Array) -> Array:
    """Return each cell's slope along the logit, from the cells that hold anything."""
    table = np.zeros(counts.shape)
    held = np.flatnonzero(counts[:, 2:].any(0))
    if held.size:
        # Most of the 64 doublings are empty.
        first, last = held[0] // 2 * 2 + 2, held[-1] // 2 * 2 + 4
        part = np.concatenate([counts[:, :2], counts[:, first:last]], 1)
        table[:, first:last] = cell_weights(torch.from_numpy(part)).numpy()[:, 2:]
        table[:, 1::2] *= -1
    return table


def _cut(row: Row) -> list[tuple[int, int, int]]:
    return [
        (value + start, label + start, min(_RUN, length - start))
        for value, label, length in row.runs
        for start in range(0, max(length, 1), _RUN)
    ]


def binned_extension(errors: Tensor, target: Tensor, bins: int, reduce: Reduce | None = None) -> tuple[Tensor, Tensor]:
    """Do the same in plain torch, at fixed shape and on any device: the reference of the kernels.

    Args:
        errors: floating point (R, P); an entry of error 0 and target 0 does not count.
        target: bool (R, P), True = foreground.
        bins: Bins per doubling of the error.
        reduce: Adds the counts of all processes.

    Returns:
        The losses (R,), differentiable with respect to the errors, and the foreground of each row (R,).
    """
    with torch.no_grad():
        positive = ~(errors <= 0)
        key = torch.where(positive, errors, 0).float().view(torch.int32) & 0x7FFFFFFF
        key = key.clamp(kernels.LOWEST, kernels.LOWEST + (kernels.OCTAVES << 23) - 1) - kernels.LOWEST
        cell = torch.where(positive, ((key >> shift_of(bins)) + 1) * 2, 0).long() + target
        counts = cell.new_zeros(len(errors), cells(bins)).scatter_add(1, cell, torch.ones_like(cell))
        counts = counts if reduce is None else reduce(counts)
        weights = cell_weights(counts).gather(1, cell).to(errors.dtype)
    return (weights * errors.relu()).sum(-1), counts[:, 1::2].sum(1)
