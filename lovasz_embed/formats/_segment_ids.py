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
        segments: At most 65533 of them.

    Raises:
        DataError: A pixel has an id, other than 0, that no segment has.
    """
    # Position 0 is what no segment has; void comes after the segments.
    kinds = [(VOID, 0, False), *(segment[1:] for segment in segments), (VOID, 0, False)]
    if len(kinds) > np.iinfo(np.uint16).max:
        raise DataError(message(str(path), "have at most 65533 segments", len(segments)))
    table = np.zeros(1 << 24, np.uint16)
    table[[segment.id for segment in segments]] = np.arange(1, len(segments) + 1)
    table[0] = len(segments) + 1
    of_semantic, of_instance, of_crowd = zip(*kinds, strict=True)
    to_semantic, to_instance = np.array(of_semantic, np.uint8), np.array(of_instance, np.int32)
    to_crowd = np.array(of_crowd, bool)
    height, width = png.shape[:2]
    semantic, instance = np.empty((height, width), np.uint8), np.empty((height, width), np.int32)
    crowd = np.empty((height, width), bool)
    rows = max(1, STRIP // max(1, width))
    colours = np.zeros((rows, width, 4), np.uint8)  # three bytes and a zero are a number of four bytes
    for top in range(0, height, rows):
        strip = slice(top, min(top + rows, height))
        part = colours[: strip.stop - top]
        part[..., :3] = png[strip]
        ids = part.view("<u4")[..., 0].astype(np.intp)
        position = table[ids].astype(np.intp)
        if not position.all():
            rule = "hold only ids of its entry in the JSON"
            raise DataError(message(str(path), rule, f"segment {int(ids[position == 0][0])}"))
        np.take(to_semantic, position, out=semantic[strip], mode="clip")
        np.take(to_instance, position, out=instance[strip], mode="clip")
        np.take(to_crowd, position, out=crowd[strip], mode="clip")
    return Labels(semantic, instance, crowd)
