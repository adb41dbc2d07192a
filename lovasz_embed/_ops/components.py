"""Connected parts of equal label, in any number of dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit


def connected_components(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Split every label into its spatially connected parts.

    Two pixels are connected if they share a face (differ by one along one axis) and a nonzero label; a part
    is a class of the equivalence that this generates.

    Args:
        labels: Integers (*spatial) of any number of dimensions; 0 belongs to no part.

    Returns:
        int32 array of the same shape: 0 where `labels` is 0, else the number of the part, from 1, in the scan
        order of the parts' first pixels.

    Notes:
        Union by the smaller index with path halving: linear in practice, 4 bytes of memory per pixel beside
        the result.

    >>> connected_components(np.array([[7, 7, 0, 7], [0, 3, 3, 7]], dtype=np.int32))
    array([[1, 1, 0, 2],
           [0, 3, 3, 2]], dtype=int32)
    """
    shape = np.array(labels.shape, dtype=np.int64)
    flat = np.ascontiguousarray(labels).reshape(-1)
    parts = np.empty(flat.shape, np.int32)
    _label_parts(flat, shape, parts)
    return parts.reshape(labels.shape)


@jit
def _root(parent: NDArray[np.int32], p: int) -> int:
    """Return the smallest pixel known to be connected with p, halving the path to it."""
    while parent[p] != p:
        parent[p] = parent[parent[p]]
        p = parent[p]
    return p


@jit
def _label_parts(labels: NDArray[np.int32], shape: NDArray[np.int64], parts: NDArray[np.int32]) -> None:
    """Write the number of every pixel's part; `labels` and `parts` are flat, in C order of `shape`."""
    dimensions = shape.shape[0]
    stride = np.ones(dimensions, np.int64)
    for axis in range(dimensions - 2, -1, -1):
        stride[axis] = stride[axis + 1] * shape[axis + 1]
    place = np.zeros(dimensions, np.int64)
    parent = np.empty(labels.shape[0], np.int32)
    for p in range(labels.shape[0]):
        parent[p] = p
        if labels[p] != 0:
            for axis in range(dimensions):
                before = p - stride[axis]
                if place[axis] > 0 and labels[before] == labels[p]:
                    one = _root(parent, before)
                    other = _root(parent, p)
                    parent[max(one, other)] = min(one, other)
        axis = dimensions - 1  # move `place` on to the next pixel
        while axis >= 0:
            place[axis] += 1
            if place[axis] < shape[axis]:
                break
            place[axis] = 0
            axis -= 1
    count = 0
    for p in range(labels.shape[0]):  # a parent is never after its child: its number is known
        if labels[p] == 0:
            parts[p] = 0
        elif parent[p] == p:
            count += 1
            parts[p] = count
        else:
            parts[p] = parts[parent[p]]
