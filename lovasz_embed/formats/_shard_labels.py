"""The truth of one picture in a shard: ids of segments as the colours of a PNG, and in a JSON what they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed._coco import ids_to_rgb
from lovasz_embed._json import parse_json
from lovasz_embed.formats._base import VOID, Category, DataError, ImageRecord, Labels
from lovasz_embed.formats._coco_json import check_segments
from lovasz_embed.formats._pictures import read_coco_png
from lovasz_embed.formats._segment_ids import SegmentLabel, decode_segments
from lovasz_embed.formats._shard_files import check_inside

_INT32_MAX = 2**31 - 1


def encode_labels(labels: Labels, categories: Sequence[Category]) -> tuple[NDArray[np.uint8], list[dict[str, int]]]:
    """Return colours (H, W, 3) and the segments that they name: one for all pixels that the labels do not tell apart.

    >>> labels = Labels(np.array([[0, 0, 255]], np.uint8), np.array([[7, 7, 0]], np.int32))
    >>> colours, segments = encode_labels(labels, [Category(90, "cup", is_thing=True)])
    >>> colours[..., 0].tolist(), segments
    ([[1, 1, 0]], [{'id': 1, 'category_id': 90, 'iscrowd': 0, 'instance': 7}])
    """
    crowd = np.zeros(labels.semantic.shape, bool) if labels.crowd is None else labels.crowd
    key = (labels.semantic.astype(np.int64) << 32) | (labels.instance.astype(np.int64) << 1) | crowd
    key[labels.semantic == VOID] = VOID << 32  # what is void is nothing else; no key is larger
    flat = key.reshape(-1)
    # By runs of one key, of which there are few: to sort all pixels would take ten times as long.
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    values, position = np.unique(flat[starts], return_inverse=True)
    numbers = np.where(values == VOID << 32, 0, np.arange(1, len(values) + 1))
    ids = np.repeat(numbers[position], np.diff(starts, append=flat.size)).reshape(key.shape)
    segments = [
        {
            "id": int(number),
            "category_id": categories[int(value >> 32)].id,
            "iscrowd": int(value & 1),
            "instance": int(value >> 1 & _INT32_MAX),
        }
        for value, number in zip(values, numbers, strict=True)
        if number
    ]
    return ids_to_rgb(ids), segments


def text_of(record: ImageRecord, segments: list[dict[str, int]] | None, has_crowd: bool) -> bytes:
    """Return the JSON of a picture; no segments where it has no labels."""
    content: dict[str, Any] = {"image_id": record.image_id, "file_name": record.file_name}
    content |= {"height": record.height, "width": record.width}
    if segments is not None:
        content |= {"has_crowd": has_crowd, "segments_info": segments}
    return json.dumps(content).encode()


def decode_labels(where: Path, png: bytes, text: bytes, index_of: Mapping[int, int]) -> Labels:
    """Return the labels that `encode_labels` was given.

    Args:
        where: Names the picture in the text of an error.
        png: The file of colours.
        text: The JSON.
        index_of: Index of each category by its id.

    Raises:
        DataError: A damaged PNG or JSON, or the two disagree.
    """
    content = parse_text(where, text)
    if not isinstance(content.get("segments_info"), list):
        raise DataError(message(f"segments of {where}", "be a list 'segments_info'", "none"))
    entries = content["segments_info"]
    check_segments(where, {"image_id": content["image_id"], "segments_info": entries}, index_of.keys())
    segments = []
    for entry in entries:
        instance = entry.get("instance")
        if not isinstance(instance, int) or isinstance(instance, bool) or not 0 <= instance <= _INT32_MAX:
            rule = f"have an instance from 0 to {_INT32_MAX}"
            raise DataError(message(f"segment {entry['id']} of {where}", rule, repr(instance)))
        crowd = bool(entry.get("iscrowd", 0))
        segments.append(SegmentLabel(entry["id"], index_of[entry["category_id"]], instance, crowd))
    labels = decode_segments(where, read_coco_png(where, png), segments)
    return labels if content.get("has_crowd") else Labels(labels.semantic, labels.instance)


def parse_text(where: Path, text: bytes) -> dict[str, Any]:
    """Return the JSON of a picture; `DataError` where it is none."""
    try:
        content = parse_json(f"segments of {where}", text)
    except ValueError as error:
        raise DataError(str(error)) from error
    name = content.get("file_name") if isinstance(content, dict) else None
    identifier = content.get("image_id") if isinstance(content, dict) else None
    if not isinstance(name, str) or not isinstance(identifier, int | str):
        raise DataError(message(f"segments of {where}", "name 'file_name' and 'image_id' of the picture", "neither"))
    check_inside(f"segments of {where}", name)
    return dict(content)
