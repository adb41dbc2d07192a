"""What a TIFF claims of its segments (strips or tiles), compared with what is in the file before any is decoded."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError
from lovasz_embed.formats._limits import check_size

_HEADER = 8
_BEYOND = 1 << 27  # bytes that a segment may grow to beyond the picture before it is looked at: inflating takes time
_RATIO = 1032  # of deflate at most, by its definition
_CHUNK = 1 << 20
_REMEDY = "The file is damaged or not a picture: fetch or write it again."
_BIG = 43  # the number in the head of a BigTIFF, whose offsets have 8 bytes
_SUB_DIRECTORIES, _MOST_DIRECTORIES, _MOST_TAGS = 330, 65_536, 4096  # tifffile reads as many tags
_OFFSET_TYPES = {3: 2, 4: 4, 13: 4, 16: 8, 18: 8}  # code of a type in a TIFF: its bytes
_LETTERS = {2: "H", 4: "I", 8: "Q"}


def check_segments(path: Path, file: Any, series: Any, *, mapped: bool) -> None:
    """Raise `DataError` where segments are missing, lie outside the file, are too large or inflate to too much.

    tifffile leaves what a missing segment would fill as it finds the memory, and inflates all that there is.

    Args:
        path: Of the file, for the text.
        file: Open `TiffFile`.
        series: What is to be read of it.
        mapped: Whether it is read into a file rather than into memory.
    """
    end, size = file.filehandle.size, math.prod(series.shape) * series.dtype.itemsize
    if series.dataoffset is not None:
        _must_lie_in(path, series.dataoffset, size, end)
        return
    for page in series.pages:
        frame = page if page is None or hasattr(page, "chunks") else page.keyframe
        # A page may have planes that its number of strips leaves out: what counts is what all of them fill.
        if page is None or len(page.dataoffsets) * math.prod(frame.chunks) < math.prod(frame.shape):
            raise DataError(message(str(path), "be a readable picture", "less than all strips or tiles", _REMEDY))
        if frame.is_tiled:
            check_size(path, frame.tilelength, frame.tilewidth, mapped=mapped)
        for start, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            _must_lie_in(path, start, count, end)
            if getattr(frame.compression, "name", "") != "NONE" and count * _RATIO > size + _BEYOND:
                file.filehandle.seek(start)
                _must_not_swell(path, file.filehandle.read(count), size + _BEYOND)


def _must_lie_in(path: Path, start: int, count: int, end: int) -> None:
    if start < _HEADER or count < 1 or start + count > end:
        got = f"a strip or tile of {count} bytes at byte {start} of {end}"
        raise DataError(message(str(path), "be a readable picture", got, _REMEDY))


def _must_not_swell(path: Path, packed: bytes, most: int) -> None:
    inflate, total, rest = zlib.decompressobj(), 0, packed
    while rest and not inflate.eof:
        total += len(inflate.decompress(rest, _CHUNK))
        rest = inflate.unconsumed_tail
        if total > most:
            rule = f"inflate to at most {most / 1e6:,.0f} MB, its size and some more"
            raise DataError(message(str(path), rule, "a strip or tile of more"))


def check_directories(path: Path, file: Any) -> None:
    """Raise `DataError` where the directories of a TIFF lead back to one another: tifffile would follow them for ever.

    Args:
        path: Of the file, for the text.
        file: Open `TiffFile`, of which nothing but its head has been looked at.
    """
    kind, handle, end = file.tiff, file.filehandle, file.filehandle.size
    handle.seek(kind.offsetsize if kind.version == _BIG else 4)
    first = _number(handle, kind.offsetformat, kind.offsetsize)
    # Depth first: `within` are those that lead to the one at hand. A pyramid names a level twice, as what follows the
    # level before and as a part of the picture; more often, or within itself, no writer does.
    within, named, left = set[int](), set[tuple[bool, int]](), [(False, first)]
    ways: list[tuple[int, list[tuple[bool, int]]]] = [(0, left)]
    while ways:
        place, left = ways[-1]
        if not left:
            within.discard(place)
            ways.pop()
            continue
        way = left.pop()
        if not 0 < way[1] < end:
            continue  # no directory is there: a matter for those who look for one
        if way in named or way[1] in within or len(named) == _MOST_DIRECTORIES:
            again = way in named or way[1] in within
            rule = f"hold at most {_MOST_DIRECTORIES} directories, none of them within itself"
            raise DataError(message(str(path), rule, f"one at byte {way[1]} again" if again else "more", _REMEDY))
        if not any((other, way[1]) in named for other in (False, True)):
            within.add(way[1])
            ways.append((way[1], _leads_to(handle, kind, way[1])))
        named.add(way)


def check_pages(path: Path, file: Any) -> None:
    """Raise `DataError` where a page has no pixel: of one with -1 columns tifffile makes series without end."""
    for page in file.pages:
        if not page.shape or min(page.shape) < 1:
            raise DataError(message(str(path), "have at least one pixel on each page", tuple(page.shape), _REMEDY))


def _leads_to(handle: Any, kind: Any, place: int) -> list[tuple[bool, int]]:
    """Return the directories that follow one, (False, place), and are parts of it, (True, place)."""
    handle.seek(place)
    tags = _number(handle, kind.tagnoformat, kind.tagnosize)
    entries = handle.read(min(tags, _MOST_TAGS) * kind.tagsize)
    found = [(False, _number(handle, kind.offsetformat, kind.offsetsize))]
    for at in range(0, len(entries) - kind.tagsize + 1, kind.tagsize):
        entry = entries[at : at + kind.tagsize]
        code, type_ = struct.unpack_from(f"{kind.byteorder}HH", entry)
        size = _OFFSET_TYPES.get(type_)
        if code == _SUB_DIRECTORIES and size is not None:
            found += [(True, number) for number in _offsets(handle, kind, entry, size)]
    return found


def _offsets(handle: Any, kind: Any, entry: bytes, size: int) -> list[int]:
    """Return the values of an entry, which are in it or, where they do not fit, where it says."""
    (count,) = struct.unpack_from(kind.offsetformat, entry, 4)
    count, values = min(count, _MOST_DIRECTORIES), entry[-kind.offsetsize :]
    if count * size > kind.offsetsize:
        handle.seek(struct.unpack(kind.offsetformat, values)[0])
        values = handle.read(count * size)
    count = min(count, len(values) // size)
    return list(struct.unpack_from(f"{kind.byteorder}{count}{_LETTERS[size]}", values))


def _number(handle: Any, form: str, size: int) -> int:
    content = handle.read(size)
    return int(struct.unpack(form, content)[0]) if len(content) == size else 0
