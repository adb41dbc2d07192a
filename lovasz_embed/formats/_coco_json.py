"""The three lists of a COCO panoptic JSON, each checked entry by entry before a picture is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lovasz_embed._check import message
from lovasz_embed._coco import MAX_ID
from lovasz_embed.formats._base import VOID, Category, DataError, ImageRecord
from lovasz_embed.formats._files import leads_outside

_LARGEST_SIDE = 2**31 - 1


def read_categories(path: Path, entries: Any) -> tuple[Category, ...]:
    """Return the categories by ascending id."""
    if not isinstance(entries, list) or not entries:
        remedy = "A prediction without its own list is read with categories= of the truth."
        raise DataError(message(str(path), "hold a list 'categories'", "none", remedy))
    categories: dict[int, Category] = {}
    for position, entry in enumerate(entries):
        where = f"categories[{position}] of {path}"
        identifier = _field(where, entry, "id", int)
        name = _field(where, entry, "name", str)
        if identifier in categories:
            raise DataError(message(where, "have an id of its own", f"{identifier} twice"))
        if entry.get("isthing") not in (0, 1):
            remedy = "COCO instances and keypoints files are not panoptic files."
            raise DataError(message(where, "say isthing 0 or 1", entry.get("isthing"), remedy))
        group = str(entry.get("supercategory") or "")
        categories[identifier] = Category(identifier, name, bool(entry["isthing"]), group)
    if len(categories) > VOID:
        rule = f"hold at most {VOID} categories, because {VOID} is void"
        raise DataError(message(str(path), rule, len(categories)))
    return tuple(categories[identifier] for identifier in sorted(categories))


def read_annotations(path: Path, entries: list[Any]) -> dict[int | str, dict[str, Any]]:
    """Return the annotations by image id, in order."""
    if not entries:
        raise DataError(message(str(path), "hold at least one annotation", "none"))
    annotations: dict[int | str, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        where = f"annotations[{position}] of {path}"
        identifier = _field(where, entry, "image_id", (int, str))
        _relative(where, _field(where, entry, "file_name", str))
        _field(where, entry, "segments_info", list)
        if identifier in annotations:
            raise DataError(message(where, "have an image of its own", f"image {identifier} twice"))
        annotations[identifier] = entry
    return annotations


def read_images(
    path: Path, entries: Any, annotations: Mapping[int | str, Mapping[str, Any]]
) -> tuple[ImageRecord, ...]:
    """Return one record per picture; predictions often list no images, so annotations speak for them."""
    if entries is None:
        return tuple(ImageRecord(identifier, entry["file_name"]) for identifier, entry in annotations.items())
    if not isinstance(entries, list):
        raise DataError(message(str(path), "hold a list 'images', or none", type(entries).__name__))
    images: dict[int | str, ImageRecord] = {}
    for position, entry in enumerate(entries):
        where = f"images[{position}] of {path}"
        identifier = _field(where, entry, "id", (int, str))
        file_name = _relative(where, _field(where, entry, "file_name", str))
        if identifier in images:
            raise DataError(message(where, "have an id of its own", f"image {identifier} twice"))
        if identifier not in annotations:
            raise DataError(message(str(path), f"hold an annotation of image {identifier}", "none"))
        known = "height" in entry and "width" in entry
        size = [_field(where, entry, side, int) for side in ("height", "width")] if known else []
        if any(not 1 <= side <= _LARGEST_SIDE for side in size):
            raise DataError(message(where, f"have a height and width from 1 to {_LARGEST_SIDE}", size))
        images[identifier] = ImageRecord(identifier, file_name, *size)
    for identifier in annotations:
        if identifier not in images:
            rule = f"list image {identifier} of its annotations in 'images'"
            raise DataError(message(str(path), rule, "none"))
    return tuple(images.values())


def check_segments(path: Path, annotation: Mapping[str, Any], known: Collection[int]) -> None:
    """Raise `DataError` where a segment has an id outside 24 bits, one id twice, or an unknown category."""
    seen: set[int] = set()
    for position, entry in enumerate(annotation["segments_info"]):
        where = f"segments_info[{position}] of image {annotation['image_id']} in {path}"
        identifier = _field(where, entry, "id", int)
        category = _field(where, entry, "category_id", int)
        if not 1 <= identifier <= MAX_ID:
            raise DataError(message(where, f"have an id from 1 to {MAX_ID}", identifier))
        if identifier in seen:
            raise DataError(message(where, "have an id of its own", f"{identifier} twice"))
        if entry.get("iscrowd", 0) not in (0, 1):
            raise DataError(message(where, "say iscrowd 0 or 1", repr(entry["iscrowd"])))
        if category not in known:
            got = f"category_id {category} (segment {identifier})"
            raise DataError(message(where, "have a category of 'categories'", got))
        seen.add(identifier)


def _field(where: str, entry: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join({int: "an integer", str: "a text", list: "a list"}[k] for k in kinds)
        raise DataError(message(where, f"have {expected} '{key}'", repr(value)))
    return value


def _relative(where: str, file_name: str) -> str:
    """Return `file_name`, refusing one that leads out of its folder."""
    if leads_outside(file_name):
        raise DataError(message(where, "name a file inside its folder", repr(file_name)))
    return file_name
