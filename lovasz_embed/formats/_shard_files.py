"""The files of a sharded data set: a list of its shards, of each shard a tar and where every picture lies in it.

SPLIT.shards.json          version, categories, and of each shard its file, pictures and bytes; written last
SPLIT-000000.tar           of each picture three members, in the layout of webdataset:
    000000000.jpg              the picture's own file
    000000000.panoptic.png     ids of segments as colours, as COCO writes them
    000000000.segments.json    what the ids stand for
SPLIT-000000.index.json    of each picture its record, and where its members begin and how long they are
"""

from __future__ import annotations

import re
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed.formats._base import Category, DataError, ImageRecord
from lovasz_embed.formats._coco_json import read_categories
from lovasz_embed.formats._files import existing_folder, is_file, leads_outside, read_json

MANIFEST = ".shards.json"
VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Shard(NamedTuple):
    """A tar of some pictures.

    Attributes:
        file: Its name in the folder of the data set.
        pictures: How many it holds.
        bytes: Its size.
    """

    file: str
    pictures: int
    bytes: int


class Member(NamedTuple):
    """A file in a tar: its name, where its bytes begin, and how many there are."""

    name: str
    start: int
    size: int


class Index(NamedTuple):
    """The pictures of a shard.

    Attributes:
        records: One per picture.
        places: int64 (pictures, 3, 2), where picture, panoptic PNG and segments begin, and how long they are, bytes;
            a PNG of 0 bytes is none.
    """

    records: list[ImageRecord]
    places: NDArray[np.int64]


def check_name(argument: str, name: object) -> str:
    """Return the name of a split or file; `DataError` where it could lead out of the folder or hide in it."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataError(message(argument, "be of letters, digits, _, - and dots, and begin with no dot", repr(name)))
    return name


def check_inside(where: str, file_name: str) -> None:
    """Raise `DataError` where the name of a picture leads elsewhere: what is predicted of it is named after it."""
    if leads_outside(file_name):
        raise DataError(message(where, "name a file inside its folder", repr(file_name)))


def shard_splits(folder: Path) -> tuple[str, ...]:
    """Return the names of the splits of a folder of shards, sorted."""
    existing_folder(folder, "a folder of shards")
    names = (file.name.removesuffix(MANIFEST) for file in folder.glob(f"*{MANIFEST}"))
    return tuple(sorted(name for name in names if _NAME.fullmatch(name)))


def index_of(shard: str) -> str:
    """Return the file that says where the pictures of a shard lie."""
    return f"{shard.removesuffix('.tar')}.index.json"


def members_of(path: Path) -> list[Member]:
    """Return the members of a tar in their order, by its headers alone.

    Raises:
        DataError: No tar, a compressed or a cut one, or one with a member that is no plain file: a link leads
            elsewhere, and a file with holes may claim any size.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            found = []
            for entry in tar:
                if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.issparse():
                    raise DataError(message(str(path), "hold plain files alone", f"{entry.name} of another kind"))
                found.append(Member(entry.name, entry.offset_data, entry.size))
            return found
    except (OSError, tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        remedy = "Write or copy the shard again."
        raise DataError(message(str(path), "be a whole tar", error, remedy)) from error


def manifest_of(categories: tuple[Category, ...], shards: list[Shard]) -> dict[str, Any]:
    """Return the content of a manifest."""
    known = [
        {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "supercategory": c.supercategory} for c in categories
    ]
    return {"version": VERSION, "categories": known, "shards": [shard._asdict() for shard in shards]}


def read_manifest(folder: Path, split: str) -> tuple[tuple[Category, ...], list[Shard]]:
    """Return categories and shards of a split.

    Raises:
        DataError: A manifest that is missing or wrong, or a shard that is missing or of another size.
    """
    path = folder / f"{split}{MANIFEST}"
    content = read_json(path)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        got = content.get("version") if isinstance(content, dict) else type(content).__name__
        raise DataError(message(str(path), f"be a list of shards of version {VERSION}", repr(got)))
    entries, shards = content.get("shards"), []
    if not isinstance(entries, list) or not entries:
        raise DataError(message(str(path), "hold a list 'shards'", "none"))
    for position, entry in enumerate(entries):
        where = f"shards[{position}] of {path}"
        name, pictures, size = (entry.get(key) for key in Shard._fields) if isinstance(entry, dict) else (None,) * 3
        if not _is_count(pictures) or not _is_count(size):
            raise DataError(message(where, "have counts 'pictures' and 'bytes'", repr(entry)[:200]))
        shard = Shard(check_name(f"file of {where}", name), int(pictures or 0), int(size or 0))
        file = folder / shard.file
        found = file.stat().st_size if is_file(file) else None
        if found != shard.bytes:
            got = "no such file" if found is None else f"{found} bytes"
            raise DataError(message(str(file), f"be the shard of {shard.bytes} bytes that {path.name} names", got))
        shards.append(shard)
    return _categories(path, content.get("categories")), shards


def index_rows(records: list[ImageRecord], members: list[dict[str, Member]]) -> list[list[Any]]:
    """Return the content of an index; the members of a picture are "picture", "labels" and "text"."""
    rows = []
    for record, own in zip(records, members, strict=True):
        places = [
            [own[name].start, own[name].size] if name in own else [0, 0] for name in ("picture", "labels", "text")
        ]
        rows.append([*asdict(record).values(), *places])
    return rows


def read_index(folder: Path, shard: Shard) -> Index:
    """Return what an index says of its shard.

    Raises:
        DataError: An index that is missing or wrong, or places outside of the shard.
    """
    path = folder / index_of(shard.file)
    rows = read_json(path)
    if not isinstance(rows, list) or len(rows) != shard.pictures:
        got = len(rows) if isinstance(rows, list) else type(rows).__name__
        raise DataError(message(str(path), f"list the {shard.pictures} pictures of {shard.file}", got))
    records, places = [], np.zeros((len(rows), 3, 2), np.int64)
    for position, row in enumerate(rows):
        if not _is_row(row):
            rule = "be id, file name, height and width of a picture and three places"
            raise DataError(message(f"entry {position} of {path}", rule, repr(row)[:200]))
        *record, picture, labels, text = row
        check_inside(f"entry {position} of {path}", record[1])
        for place in (picture, labels, text):
            if sum(place) > shard.bytes:
                rule = f"lie in the {shard.bytes} bytes of {shard.file}"
                raise DataError(message(f"entry {position} of {path}", rule, place))
        records.append(ImageRecord(*record))
        places[position] = picture, labels, text
    return Index(records, places)


def _is_row(row: Any) -> bool:
    """Whether a row of an index has the kinds that it should."""
    if not isinstance(row, list) or len(row) != 7:
        return False
    identifier, name, height, width, *places = row
    return (
        isinstance(identifier, int | str)
        and not isinstance(identifier, bool)
        and isinstance(name, str)
        and bool(name)
        and all(side is None or (_is_count(side) and side > 0) for side in (height, width))
        and all(isinstance(p, list) and len(p) == 2 and _is_count(p[0]) and _is_count(p[1]) for p in places)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _categories(path: Path, entries: Any) -> tuple[Category, ...]:
    """Return the categories in the order of the file, which is that of their indices."""
    if entries == []:  # pictures without labels
        return ()
    known = {category.id: category for category in read_categories(path, entries)}
    return tuple(known[entry["id"]] for entry in entries)
