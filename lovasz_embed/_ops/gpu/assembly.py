"""From categories and clusters to numbered segments on a GPU: one table is read, and no map leaves the device."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lovasz_embed._ops.gpu.assembly_kernels import number_kernel, tally_kernel
from lovasz_embed._ops.grouping import SMALL_TABLE

_BLOCK = 1024  # pixels of a program
_NEVER = 2**31 - 1


class Table(NamedTuple):
    """The segments of one picture in the order of their first pixels: row s is stuff s, S + k - 1 is cluster k."""

    rows: Tensor  # (N,) int64, what each segment is
    areas: Tensor  # (N,) int64, pixels
    ids: Tensor  # (S + K,) int32, the number of each row's segment, 0 = none


def tabulate(codes: Tensor, labels: Tensor, stuff: int, clusters: int, minima: tuple[float, float]) -> Table:
    """Count the segments of one picture and number those that are large enough by their first pixel.

    Args:
        codes: (P,) int32: 0 and above a thing, -1 void, -2 - s the stuff category s.
        labels: (P,) int32: the cluster of a thing pixel, 1 and above; others are in none.
        stuff: How many stuff categories there are.
        clusters: K, the highest label.
        minima: Pixels that a thing and that a stuff segment must have.
    """
    areas = torch.zeros(stuff + clusters, dtype=torch.int32, device=codes.device)
    first = torch.full_like(areas, _NEVER)
    if len(codes) and len(areas):
        with torch.cuda.device_of(codes):  # type: ignore[no-untyped-call]
            tally_kernel[(-(-len(codes) // _BLOCK),)](codes, labels, len(codes), stuff, areas, first, BLOCK=_BLOCK)
    least = torch.full_like(areas, max(math.ceil(minima[0]), 1))
    least[:stuff] = max(math.ceil(minima[1]), 1)
    order = torch.where(areas >= least, first, _NEVER).sort(stable=True)
    rows = order.indices[: int((order.values < _NEVER).sum())]
    ids = torch.zeros_like(areas)
    ids[rows] = torch.arange(1, len(rows) + 1, dtype=torch.int32, device=codes.device)
    return Table(rows, areas[rows].long(), ids)


def majority(codes: Tensor, labels: Tensor, clusters: int, things: int) -> Tensor:
    """Return the code that most pixels of each cluster have, the lowest of equal ones, (K,) int64, without waiting.

    Args:
        codes: (P,) int32: 0 to `things` - 1, what is negative has no vote.
        labels: (P,) int32: the cluster of a pixel, 1 and above; others are in none.
        clusters: K, the highest label.
        things: T.

    Note:
        Where a table of clusters and things would be larger than the picture, it sorts instead, and waits.
    """
    voting = (codes >= 0) & (labels > 0)
    lowest_first = things - 1 - torch.arange(things, device=codes.device)
    # Votes and code in one number: of equal votes the lowest code is the largest, on any device.
    if clusters * things <= max(len(codes), SMALL_TABLE):
        pairs = torch.where(voting, (labels - 1) * things + codes + 1, 0)
        votes = torch.zeros(clusters * things, dtype=torch.int32, device=codes.device)
        if len(codes) and clusters:
            first = torch.full_like(votes, _NEVER)
            with torch.cuda.device_of(codes):  # type: ignore[no-untyped-call]
                # Pixels of equal pairs lie together, as those of segments do: the pairs stand for clusters here.
                tally_kernel[(-(-len(codes) // _BLOCK),)](
                    voting.int() - 1, pairs, len(codes), 0, votes, first, BLOCK=_BLOCK
                )
        best = (votes.view(clusters, things).long() * things + lowest_first).amax(1)
    else:
        keys = (labels.long() - 1) * things + codes
        distinct, counts = torch.unique(keys[voting], return_counts=True)
        best = torch.zeros(clusters, dtype=torch.int64, device=codes.device)
        best.scatter_reduce_(0, distinct // things, counts * things + lowest_first[distinct % things], "amax")
    return things - 1 - best % things


def number(codes: Tensor, labels: Tensor, stuff: int, ids: Tensor, out: Tensor) -> None:
    """Write the number of its segment into every pixel of `out` (P,) int32, which may be the labels."""
    if len(codes):
        with torch.cuda.device_of(codes):  # type: ignore[no-untyped-call]
            number_kernel[(-(-len(codes) // _BLOCK),)](codes, labels, len(codes), stuff, ids, out, BLOCK=_BLOCK)
