"""From categories and clusters to numbered segments on a GPU: one table is read, and no map leaves the device."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lovasz_embed._ops.gpu.assembly_kernels import number_kernel, tally_kernel

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


def number(codes: Tensor, labels: Tensor, stuff: int, ids: Tensor, out: Tensor) -> None:
    """Write the number of its segment into every pixel of `out` (P,) int32, which may be the labels."""
    if len(codes):
        with torch.cuda.device_of(codes):  # type: ignore[no-untyped-call]
            number_kernel[(-(-len(codes) // _BLOCK),)](codes, labels, len(codes), stuff, ids, out, BLOCK=_BLOCK)
