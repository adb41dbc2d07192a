"""Panoptic PNGs of many megapixels: look up what each pixel's segment stands for, without sorting the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed.formats._base import VOID, DataError, Labels
from lovasz_embed.formats._codes import STRIP


class SegmentLabel(NamedTuple):
    """What the pixels of one segment are.

    Attributes:
        id: In the PNG, from 1 to 2^24 - 1.
        semantic: Index of the category, 255 = void.
        instance: Id of the thing, 0 = none.
        crowd: Whether it is a group that nobody counted.
    """

    id: int
    semantic: int
    instance: int
    crowd: bool


def decode_segments(path: Path, png: NDArray[np.uint8], segments: Sequence[SegmentLabel]) -> Labels:
    """Return the labels that a panoptic PNG and its segments stand for; id 0 is void.

    A table by id is filled at the segments only, so the system hands out a few pages of its 32 MB; the pixels are
    looked up in strips of rows, and take 6 bytes each besides the PNG.

    Args:
        path: For the text of the error.
        png: uint8 (H, W, 3), id = R + 256 G + 65536 B.
        segments: At most 65535 of them.

    Raises:
        DataError: A pixel has an id, other than 0, that no segment has.
    """
    if len(segments) > np.iinfo(np.uint16).max:
        raise DataError(message(str(path), "have at most 65535 segments", len(segments)))
    table = np.zeros(1 << 24, np.uint16)
    table[[segment.id for segment in segments]] = np.arange(1, len(segments) + 1)
    void = SegmentLabel(0, VOID, 0, False)
    _, of_semantic, of_instance, of_crowd = zip(void, *segments, strict=True)
    to_semantic, to_instance = np.array(of_semantic, np.uint8), np.array(of_instance, np.int32)
    to_crowd = np.array(of_crowd, bool)
    shape = png.shape[:2]
    labels = Labels(np.empty(shape, np.uint8), np.empty(shape, np.int32), crowd := np.empty(shape, bool))
    rows = max(1, STRIP // max(1, shape[1]))
    for top in range(0, shape[0], rows):
        strip = slice(top, top + rows)
        colours = png[strip].astype(np.intp)
        ids = colours[..., 0] | colours[..., 1] << 8 | colours[..., 2] << 16
        position = table[ids].astype(np.intp)
        stray = (position == 0) & (ids != 0)
        if stray.any():
            rule = "hold only ids of its entry in the JSON"
            raise DataError(message(str(path), rule, f"segment {int(ids[stray][0])}"))
        labels.semantic[strip] = to_semantic[position]
        labels.instance[strip] = to_instance[position]
        crowd[strip] = to_crowd[position]
    return labels
