"""One picture as plain arrays: planar floats, compact classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed._ops.margin import Floats

_TABLE = 65_536  # class labels below are looked up in a table, larger ones are sorted


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
