"""Checks of label maps, and small tables over their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.grouping import Groups
from lovasz_embed._ops.labels import as_labels, is_ignored
from lovasz_embed._ops.labels import thing_categories as thing_categories

# Categories index tables: a label beyond this is a data set's raw id, not a contiguous category.
MAX_CATEGORY = 2**16 - 1


def rows(groups: Groups) -> Iterator[tuple[int, int, int, int]]:
    """Yield picture, id, key and area of each group, as plain integers."""
    return zip(*(column.tolist() for column in groups), strict=True)


def label_bound(labels: Tensor) -> int:
    """Return one more than the largest label."""
    return int(labels.max()) + 1 if labels.numel() else 1


def membership(categories: frozenset[int], category: Tensor) -> Tensor:
    """Return the mask of the pixels whose category is one of `categories`."""
    table = torch.zeros(label_bound(category), dtype=torch.bool, device=category.device)
    table[[c for c in categories if 0 <= c < len(table)]] = True
    return table[category]


def categories_of(argument: str, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the categories as int64, 0 where void, and the mask of pixels that are not void."""
    labels = as_labels(argument, labels)
    _check.has_values(argument, labels)
    _check.is_int("ignore_index", ignore_index)
    if labels.ndim < 2:
        remedy = "A single picture needs a batch axis: [None]."
        raise ValueError(_check.message(argument, "have shape (B, *spatial)", tuple(labels.shape), remedy))
    valid = ~is_ignored(labels, ignore_index)
    category = torch.where(valid, labels.long(), 0)
    wrong = (category < 0) | (category > MAX_CATEGORY)
    if bool(wrong.any()):
        rule = f"hold categories from 0 to {MAX_CATEGORY} or ignore_index={ignore_index}"
        raise ValueError(_check.message(argument, rule, int(category[wrong][0])))
    return category, valid


def labels_like(argument: str, labels: Tensor, semantic: Tensor) -> Tensor:
    """Return `labels` as int64, or raise where they do not fit `semantic` or are negative."""
    _check.is_labels(argument, labels)
    _check.same_shape(argument, labels, tuple(semantic.shape), "semantic")
    _check.same_device(argument, labels, semantic.device, "semantic")
    _check.has_values(argument, labels)
    labels = labels.long()
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(_check.message(argument, "be 0 (none) or above", int(labels.min())))
    return labels


def one_per_picture(argument: str, values: Sequence[Any], pictures: int) -> None:
    """Raise `ValueError` unless `values` has one entry per picture."""
    try:
        count = len(values)
    except TypeError:
        raise TypeError(_check.message(argument, "be a sequence, one entry per picture", repr(values))) from None
    if count != pictures:
        raise ValueError(_check.message(argument, f"hold one entry per picture ({pictures})", len(values)))
