"""One picture as plain arrays: planar floats, compact classes, scores; and who shares its work."""

from __future__ import annotations

import warnings
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.margin import Floats, Map
from lovasz_embed._ops.threads import map_threads

_TABLE = 65_536  # class labels below are looked up in a table, larger ones are sorted


@overload
def as_tensor(argument: str, value: None) -> None: ...
@overload
def as_tensor(argument: str, value: Tensor | NDArray[Any]) -> Tensor: ...
def as_tensor(argument: str, value: Tensor | NDArray[Any] | None) -> Tensor | None:
    """Return a NumPy array as a tensor, on its own memory where torch can; leave anything else to the checks.

    Raises:
        TypeError: The array's dtype is none of torch's.
    """
    if not isinstance(value, np.ndarray):
        return value
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 for stride in native.strides):  # a flipped view
        native = native.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)  # nothing here writes
        try:
            return torch.from_numpy(native)
        except TypeError as error:
            rule = "hold numbers of a dtype that torch has"
            raise TypeError(_check.message(argument, rule, value.dtype, "Use .astype(np.float32).")) from error


def runner(pictures: int) -> Map:
    """Return what runs the chunks of a picture.

    Threads take whole pictures; a picture alone is cut into chunks. Either way the arithmetic is the same.
    """
    return map_threads if pictures == 1 else lambda function, items: [function(item) for item in items]


def compactness(variances: NDArray[np.float64], radius: float) -> NDArray[np.float32]:
    """Return 1 - mean squared distance to the centre / radius², at least 0: the score of a cluster of known radius."""
    return np.clip(1.0 - variances / radius**2, 0.0, 1.0).astype(np.float32)


def planar(picture: Tensor) -> Floats:
    """Return a picture as a contiguous (D, P) array of float32 or float64, copied only if it must be."""
    picture = picture.to("cpu", torch.promote_types(picture.dtype, torch.float32))
    array: Floats = picture.flatten(1).contiguous().numpy()
    return array


def compact(labels: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the class of every pixel without gaps (-1: not clustered), and the label of each class."""
    if labels.dtype == np.bool_:
        return labels.astype(np.int32) - 1, np.zeros(1, np.int64)
    labels = np.maximum(labels.astype(np.int64), -1)
    end = int(labels.max(initial=-1)) + 1
    if end > _TABLE:
        ids, classes = np.unique(labels, return_inverse=True)
        negative = int(ids[0] < 0)
        return (classes.reshape(-1) - negative).astype(np.int32), ids[negative:]
    present = np.zeros(end + 1, np.bool_)
    present[labels] = True  # -1 is the last place
    ids = np.flatnonzero(present[:end])
    table = np.full(end + 1, -1, np.int32)
    table[ids] = np.arange(len(ids))
    return table[labels], ids
