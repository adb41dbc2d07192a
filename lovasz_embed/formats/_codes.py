"""Maps whose values say category and number at once, in at most 16 bits: look up what each pixel stands for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed.formats._base import VOID, DataError, Labels

VALUES = 1 << 16
STRIP = 1 << 16
"""Pixels that are looked up at once: their int64 indices stay in the cache, and a whole map of them never exists."""

_GREY, _RGB = 0, 2
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Codes(NamedTuple):
    """What each of the 65,536 values stands for.

    Attributes:
        known: Bool, whether the value may occur.
        semantic: uint8, index of the category, 255 = void.
        instance: Int32, id of the thing, 0 = none.
        crowd: Bool, whether it is a group that nobody counted.
    """

    known: NDArray[np.bool_]
    semantic: NDArray[np.uint8]
    instance: NDArray[np.int32]
    crowd: NDArray[np.bool_]

    @classmethod
    def empty(cls) -> Codes:
        """Return tables in which no value is known."""
        return cls(
            np.zeros(VALUES, bool),
            np.full(VALUES, VOID, np.uint8),
            np.zeros(VALUES, np.int32),
            np.zeros(VALUES, bool),
        )


def decode(path: Path, values: NDArray[np.int32], codes: Codes, remedy: str) -> Labels:
    """Return the labels that a map of values stands for; `values` itself becomes their instance map.

    Three look-ups per pixel, in strips: 2 bytes per pixel on top of `values`, which lie below 65,536.

    Raises:
        DataError: A value that is not known; the text names the file, the value and a pixel.
    """
    values = np.ascontiguousarray(values)
    flat = values.reshape(-1)
    semantic = np.empty(values.shape, np.uint8)
    has_crowds = bool(codes.crowd.any())
    crowd = np.empty(values.shape, bool) if has_crowds else None
    for start in range(0, flat.size, STRIP):
        part = slice(start, start + STRIP)
        index = flat[part].astype(np.intp)
        known = codes.known[index]
        if not known.all():
            first = int(known.argmin())
            row, column = divmod(start + first, values.shape[1])
            got = f"{int(index[first])} at row {row}, column {column}"
            raise DataError(message(str(path), "hold values of the class list", got, remedy))
        np.take(codes.semantic, index, out=semantic.reshape(-1)[part], mode="clip")
        if crowd is not None:
            np.take(codes.crowd, index, out=crowd.reshape(-1)[part], mode="clip")
        np.take(codes.instance, index, out=flat[part], mode="clip")
    return Labels(semantic, values, crowd)


def require_grey_png(path: Path, *depths: int) -> None:
    """Raise `DataError` unless `path` is a grey PNG of one of these depths in bits; reads its first bytes only."""
    kind = " or ".join(map(str, depths))
    _require_png(path, _GREY, depths, f"be a grey PNG of {kind} bits")


def require_rgb_png(path: Path) -> None:
    """Raise `DataError` unless `path` is an 8-bit RGB PNG: decoders cut 16 bits to 8 without a word."""
    _require_png(path, _RGB, (8,), "be an 8-bit RGB PNG")


def _require_png(path: Path, colour: int, depths: tuple[int, ...], rule: str) -> None:
    try:
        if not path.is_file() and path.exists():  # a pipe or a device may never end
            raise DataError(message(str(path), rule, "no file"))
        with path.open("rb") as file:
            header = file.read(26)
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise DataError(message(str(path), "exist" if got == "no such file" else "be readable", got)) from error
    if header[:8] != _SIGNATURE or len(header) < 26:
        raise DataError(message(str(path), rule, "no PNG"))
    depth, kind = header[24], header[25]
    if kind != colour or depth not in depths:
        names = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
        raise DataError(message(str(path), rule, f"{depth}-bit {names.get(kind, 'unknown colours')}"))
