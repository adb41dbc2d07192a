"""COCO panoptic pictures and annotations: ids as colours, boxes, and the checks of what is read.

A COCO panoptic picture is a PNG whose colour is the segment id, id = R + 256 G + 65536 B, 0 = void. Beside
it stands a JSON record {image_id, file_name, segments_info}, segments_info a list of {id, category_id, area,
bbox, iscrowd}.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lovasz_embed import _check

MAX_ID = 256**3 - 1


class SegmentRecord(NamedTuple):
    """One entry of segments_info, its category already contiguous and its area counted in the picture."""

    id: int
    category: int
    area: int
    is_crowd: bool


def ids_to_rgb(ids: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Return the colours (H, W, 3) of segment ids (H, W) in [0, 2^24)."""
    return np.stack([ids & 255, (ids >> 8) & 255, ids >> 16], axis=-1).astype(np.uint8)


def rgb_to_ids(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the segment ids (H, W) of colours (H, W, 3).

    The colours are widened before they are multiplied: 256 × uint8 is 0.
    """
    wide = rgb.astype(np.int32)
    return wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]


class Extents:
    """Area and box of each label 1..count of a map (H, W), added up some rows at a time.

    >>> extents = Extents(2)
    >>> extents.add(np.array([[0, 1, 1], [2, 2, 1]]), top=0)
    >>> extents.areas.tolist(), extents.boxes()
    ([3, 2], [[1, 0, 2, 2], [0, 1, 2, 1]])
    """

    def __init__(self, count: int) -> None:
        self._areas = np.zeros(count + 1, np.int64)
        self._low = np.full((2, count + 1), np.iinfo(np.int64).max)  # of x and y
        self._high = np.zeros((2, count + 1), np.int64)

    def add(self, index: NDArray[np.integer[Any]], top: int) -> None:
        """Add rows (h, W) of the map, of which `top` is the first."""
        if not index.size:
            return
        # By runs of one label in a row, of which there are few.
        begins = np.ones(index.shape, bool)
        begins[:, 1:] = index[:, 1:] != index[:, :-1]
        start = np.flatnonzero(begins)
        length = np.diff(start, append=index.size)
        label, (y, x) = index.reshape(-1)[start], np.divmod(start, index.shape[1])
        np.add.at(self._areas, label, length)
        for axis, (first, last) in enumerate(((x, x + length), (top + y, top + y + 1))):
            np.minimum.at(self._low[axis], label, first)
            np.maximum.at(self._high[axis], label, last)

    @property
    def areas(self) -> NDArray[np.int64]:
        """Pixels of each label, (count,)."""
        return self._areas[1:]

    def boxes(self) -> list[list[int]]:
        """Return the box [x, y, width, height] of each label, in pixels; meaningless where it has no pixel."""
        return np.concatenate([self._low, self._high - self._low])[:, 1:].T.tolist()  # type: ignore[no-any-return]


def image_id(value: Any) -> int | str:
    """Return the id of a picture as JSON has it, which knows no numpy integers; `TypeError` for anything else."""
    if isinstance(value, str):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(_check.message("image_ids", "be ints or texts", repr(value))) from None


def distinct_ids(category_ids: Sequence[int]) -> list[int]:
    """Return the ids; `TypeError` where one is no int, `ValueError` where two categories share one."""
    try:
        found = [operator.index(own) for own in category_ids]
    except TypeError:
        raise TypeError(_check.message("category_ids", "be a sequence of int", repr(category_ids))) from None
    if len(set(found)) < len(found):
        raise ValueError(_check.message("category_ids", "be distinct", found))
    return found


def read_annotation(
    annotation: Mapping[str, Any], png: NDArray[np.uint8], category_ids: Sequence[int]
) -> tuple[NDArray[np.int32], list[SegmentRecord]]:
    """Return the id map (H, W) and the segments, sorted by id, of one COCO panoptic record.

    Raises:
        ValueError: The record and the picture disagree, or a category is unknown or ambiguous; the text names
            image and segment.
        TypeError: `png` is not a uint8 array.
    """
    if not isinstance(annotation, Mapping):
        raise TypeError(_check.message("annotations", "hold records", type(annotation).__name__))
    image = annotation.get("image_id", "without image_id")
    if not isinstance(png, np.ndarray) or png.dtype != np.uint8:
        kind = png.dtype if isinstance(png, np.ndarray) else type(png).__name__
        raise TypeError(_check.message("pngs", f"be uint8 arrays (image {image})", kind))
    if png.ndim != 3 or png.shape[2] != 3:
        remedy = "Open the picture with .convert('RGB')."
        raise ValueError(_check.message("pngs", f"have shape (H, W, 3) (image {image})", png.shape, remedy))
    if "segments_info" not in annotation:
        raise ValueError(_check.message("annotations", f"hold segments_info (image {image})", sorted(annotation)))

    ids = rgb_to_ids(png)
    present, counts = np.unique(ids, return_counts=True)
    area_of = {int(i): int(n) for i, n in zip(present, counts, strict=True) if i != 0}
    contiguous = {c: k for k, c in enumerate(distinct_ids(category_ids))}
    records: dict[int, SegmentRecord] = {}
    if not isinstance(annotation["segments_info"], (list, tuple)):
        got = type(annotation["segments_info"]).__name__
        raise ValueError(_check.message("annotations", f"hold segments_info as a list (image {image})", got))
    for entry in annotation["segments_info"]:
        rule = f"give each segment an id and a category_id (image {image})"
        try:
            segment, category = int(entry["id"]), int(entry["category_id"])
            crowd = bool(entry.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError, RuntimeError):
            raise ValueError(_check.message("annotations", rule, repr(entry)[:100])) from None
        where = f"(image {image}, segment {segment})"
        if category not in contiguous:
            raise ValueError(_check.message("annotations", f"use categories of category_ids {where}", category))
        if segment in records:
            raise ValueError(_check.message("annotations", f"name each segment once {where}", "two entries"))
        if segment not in area_of:
            raise ValueError(_check.message("pngs", f"hold each segment of the JSON {where}", "no such pixel"))
        records[segment] = SegmentRecord(segment, contiguous[category], area_of[segment], crowd)
    for segment in area_of.keys() - records.keys():
        where = f"(image {image}, segment {segment})"
        raise ValueError(
            _check.message("annotations", f"hold each segment of the PNG {where}", "no such entry in segments_info")
        )
    return ids, [records[i] for i in sorted(records)]


def write_annotation(
    image_id: int | str,
    file_name: str,
    ids: NDArray[np.int32],
    index: NDArray[np.int64],
    segments: Sequence[Any],
    category_ids: Sequence[int] | None,
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Return the COCO panoptic record and the colours of one picture.

    Args:
        image_id: Of the record.
        file_name: Of the record.
        ids: Segment ids (H, W).
        index: Position (H, W) of the pixel's segment in `segments`, counted from 1.
        segments: Things with id, category, is_crowd, ascending by id.
        category_ids: The data set's id of each contiguous category; None keeps the contiguous ids.
    """
    check_ids(image_id, segments)
    info = segments_info(image_id, index, segments, category_ids)
    return {"image_id": image_id, "file_name": file_name, "segments_info": info}, ids_to_rgb(ids)


def check_ids(image_id: int | str, segments: Sequence[Any]) -> None:
    """Raise `ValueError` where an id does not fit a colour."""
    for segment in segments:
        if segment.id > MAX_ID:
            where = f"(image {image_id}, segment {segment.id})"
            raise ValueError(_check.message("segments", f"have ids of 24 bits {where}", segment.id))


def segments_info(
    image_id: int | str, index: NDArray[np.int64], segments: Sequence[Any], category_ids: Sequence[int] | None
) -> list[dict[str, Any]]:
    """Return {id, category_id, area, bbox, iscrowd} of each segment of one picture; `Args` as `write_annotation`.

    Raises:
        ValueError: Two categories share an id or one has none, or a segment has no pixel.
    """
    extents = Extents(len(segments))
    extents.add(index, 0)
    return list(entries(image_id, extents, segments, category_ids))


def entries(
    image_id: int | str, extents: Extents, segments: Sequence[Any], category_ids: Sequence[int] | None
) -> Iterator[dict[str, Any]]:
    """Yield what `segments_info` lists, of areas and boxes that are known."""
    if category_ids is not None:
        category_ids = distinct_ids(category_ids)
    for segment, area, box in zip(segments, extents.areas.tolist(), extents.boxes(), strict=True):
        where = f"(image {image_id}, segment {segment.id})"
        if area == 0:
            raise ValueError(_check.message("segmentation", f"hold each of its segments {where}", "no such pixel"))
        if category_ids is not None and segment.category >= len(category_ids):
            rule = f"have an entry for each category {where}"
            raise ValueError(_check.message("category_ids", rule, f"none for category {segment.category}"))
        category = segment.category if category_ids is None else category_ids[segment.category]
        yield {
            "id": segment.id,
            "category_id": category,
            "area": area,
            "bbox": box,
            "iscrowd": int(segment.is_crowd),
        }
