"""COCO's compressed run lengths of all segments of a picture, in one pass over its pixels.

Written by hand although pycocotools has `mask.encode`: that takes one full mask per segment, memory and time
of segments × pixels, and would be a compiled dependency for the sake of one string format. The tests decode
with pycocotools and with hotcoco.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_segments(index: NDArray[np.integer[Any]], count: int) -> list[str]:
    """Return the `counts` of labels 1..count of a map (H, W), as `pycocotools.mask.encode` writes them.

    Runs go down the columns, first of pixels outside, then inside, in turn. O(H W + runs log runs).

    >>> encode_segments(np.array([[0, 1], [1, 1]]), 1)
    ['13']
    """
    flat = index.T.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    ends = np.append(starts[1:], len(flat))[: len(starts)]
    labels = flat[starts]
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(1, count + 2))
    return [
        _compress(_counts(starts[runs], ends[runs], len(flat)))
        for runs in (order[begin:end] for begin, end in pairwise(bounds))
    ]


def _counts(starts: NDArray[np.intp], ends: NDArray[np.intp], pixels: int) -> NDArray[np.int64]:
    """Return the lengths of the runs outside and inside a segment, in turn, up to the last pixel."""
    borders = np.empty(2 * len(starts), np.int64)
    borders[0::2], borders[1::2] = starts, ends
    if not len(borders) or borders[-1] < pixels:
        borders = np.append(borders, pixels)
    return np.diff(borders, prepend=0)


def _compress(counts: NDArray[np.int64]) -> str:
    """Write each count, from the fourth on its difference to the last but one, in groups of five bits from the lowest.

    A group is a character from "0" on; its sixth bit says that another follows, and the fifth of the last
    group is the sign.
    """
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    groups, used = [], []
    following = np.ones(len(rest), bool)
    while following.any():
        bits = rest & 31
        rest >>= 5
        used.append(following)
        following = following & np.where(bits & 16, rest != -1, rest != 0)
        groups.append(bits + 32 * following + 48)
    characters = np.stack(groups, 1)[np.stack(used, 1)].astype(np.uint8)
    return bytes(characters).decode("ascii")
