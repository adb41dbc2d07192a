"""Groups of pixels by an integer key, found by counting: what `torch.unique` does, without its sort."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A table with this many entries costs less than sorting even a small picture.
SMALL_TABLE = 2**16


def count_distinct(key: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Return the distinct values of `key`, ascending, and how often each occurs.

    Args:
        key: int64, any shape, values in [0, bound).
        bound: Upper bound of the values; only speed depends on how tight it is.

    Returns:
        values (n,) and counts (n,), both int64.

    Notes:
        O(pixels + bound) while the table is no larger than the picture, else a sort.
    """
    key = key.flatten()
    if not _table_fits(key, bound):
        values, counts = torch.unique(key, return_counts=True)
        return values, counts
    table = torch.bincount(key, minlength=bound)
    values = table.nonzero().flatten()
    return values, table[values]


def group_pixels(key: Tensor, bound: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct values of `key`, the position of each pixel's value among them, and the counts.

    Args and notes as for `count_distinct`; the positions (pixels,) are int64.
    """
    key = key.flatten()
    if not _table_fits(key, bound):
        values, position, counts = torch.unique(key, return_inverse=True, return_counts=True)
        return values, position, counts
    values, counts = count_distinct(key, bound)
    table = torch.zeros(bound, dtype=torch.int64, device=key.device)
    table[values] = torch.arange(len(values), device=key.device)
    return values, table[key], counts


class Groups(NamedTuple):
    """The groups of a batch, picture after picture, ascending by id; all int64 (groups,)."""

    picture: Tensor
    id: Tensor
    key: Tensor
    area: Tensor


def number_groups(key: Tensor, valid: Tensor, bound: int, minimum_area: Tensor | None = None) -> tuple[Tensor, Groups]:
    """Number the groups of equal keys of each picture from 1, by their first pixel in scan order.

    Args:
        key: int64 (B, *spatial), values in [0, bound) where valid.
        valid: bool (B, *spatial); other pixels belong to no group.
        bound: Upper bound of the keys.
        minimum_area: Pixels (bound,) that a group of each key needs, or None; smaller groups are dissolved.

    Returns:
        The map int32 (B, *spatial), 0 = no group, and the groups.

    Notes:
        Deterministic on every device: counts and minima of integers.
    """
    batch = torch.arange(len(key), device=key.device).view(-1, *[1] * (key.ndim - 1))
    shifted = torch.where(valid, batch * bound + key + 1, 0)  # 0 = no group, in any picture
    values, position, area = group_pixels(shifted, len(key) * bound + 1)
    scan = torch.arange(position.numel(), device=key.device)
    first = torch.full_like(values, position.numel()).scatter_reduce_(0, position, scan, "amin")
    picture, local = (values - 1) // bound, (values - 1) % bound
    keep = values > 0
    if minimum_area is not None:
        keep &= area >= minimum_area[local]
    kept = keep.nonzero().flatten()
    kept = kept[first[kept].argsort()]  # scan order is picture after picture
    picture, local, area = picture[kept], local[kept], area[kept]
    rank = torch.arange(len(kept), device=key.device)
    start = torch.searchsorted(picture, picture)  # the first group of the same picture
    number = rank - start + 1
    table = torch.zeros_like(values, dtype=torch.int32)
    table[kept] = number.int()
    return table[position].view(key.shape), Groups(picture, number, local, area)


def _table_fits(key: Tensor, bound: int) -> bool:
    return bound <= max(key.numel(), SMALL_TABLE)
