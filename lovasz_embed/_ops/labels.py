"""Integer label maps: comparable dtypes, ignored pixels, the range of labels."""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
from torch import Tensor

from lovasz_embed._check import is_int, is_label, is_labels, message


def as_labels(argument: str, labels: Tensor) -> Tensor:
    """Return `labels` in a dtype that torch can compare: uint16, uint32 and uint64 become int64."""
    is_labels(argument, labels)
    labels = plain(labels)
    return labels.long() if labels.dtype in (torch.uint16, torch.uint32, torch.uint64) else labels


def plain(tensor: Tensor) -> Tensor:
    """Return a subclass that brings its own `__torch_function__`, as MONAI's MetaTensor, as the tensor that it is.

    Such a class may answer a tensor's methods in its own way, and it has no business inside an operator.
    Gradients flow back.
    """
    kind = type(tensor)
    if kind is Tensor or kind.__torch_function__ is torch._C._disabled_torch_function_impl:  # a Parameter, say
        return tensor
    return tensor.as_subclass(Tensor)


def thing_categories(things: Collection[int]) -> frozenset[int]:
    """Return `things` as a set of ints, or raise `TypeError`.

    >>> sorted(thing_categories([3, 1]))
    [1, 3]
    """
    rule, remedy = "be a collection of category ids", "For example {11, 12, 13}."
    if isinstance(things, (str, bytes)):
        raise TypeError(message("things", rule, repr(things), remedy))
    try:
        given = list(things)
        found = frozenset(operator.index(category) for category in given)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor without values
        raise TypeError(message("things", rule, repr(things), remedy)) from None
    if any(isinstance(category, bool) for category in given):  # an index of 0 or 1 to Python, a mask to numpy
        raise TypeError(message("things", rule, repr(things), remedy))
    for category in found:
        is_label("things", category)
    return found


def is_ignored(labels: Tensor, ignore_index: int | None) -> Tensor:
    """Return the bool mask of the pixels that hold `ignore_index`.

    A value that the dtype cannot hold is nowhere: torch would wrap it around, and find -100 at 156 in uint8.
    """
    if ignore_index is None or not can_hold(labels.dtype, ignore_index):
        return torch.zeros_like(labels, dtype=torch.bool)
    return labels == ignore_index


def can_hold(dtype: torch.dtype, label: int) -> bool:
    """Return True if a label map of `dtype` can hold `label`; no bool is ever ignored."""
    return dtype != torch.bool and torch.iinfo(dtype).min <= label <= torch.iinfo(dtype).max


def labels_in_range(argument: str, labels: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Raise `ValueError` where a label is neither in 0..num_classes-1 nor `ignore_index`.

    Looking at values makes the host wait for an accelerator and breaks a graph: only eager CPU tensors are
    looked at.
    """
    if ignore_index is not None:
        is_int("ignore_index", ignore_index, rule="be an int or None")
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or not labels.numel():
        return
    if labels.dtype == torch.bool and num_classes >= 2:
        return
    if _highest(labels) < num_classes:
        return
    outside = ((labels < 0) | (labels > num_classes - 1)) & ~is_ignored(labels, ignore_index)
    if outside.any():
        wrong = sorted(set(labels[outside].tolist()))
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        allowed = f"hold labels from 0 to {num_classes - 1}"
        if ignore_index is not None:
            allowed += f" or ignore_index={ignore_index}"
        remedy = "Map the labels to contiguous ids, and pixels without a label to ignore_index."
        raise ValueError(message(argument, allowed, f"{int(outside.sum())} pixels with {shown}", remedy))


def _highest(labels: Tensor) -> int:
    """Return the highest label, where negative ones are above all others: one look tells whether all are in range.

    Without torch, whose threads spin for a while after every operation, and the kernels that follow need the cores.
    """
    flat = labels.detach().reshape(-1).numpy()
    return int(flat.view(f"u{flat.itemsize}").max())
