"""Write a PNG row by row.

Pillow wants the whole picture in memory, several times over for 20,000 × 20,000 pixels, and whoever writes predictions
needs no library of codecs otherwise: a PNG is a few numbers and one zlib stream. Source: the PNG specification (third
edition), sections 5 (chunks), 9 (filter type 2, "up") and 11 (IHDR, IDAT, IEND).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message

_GREY, _COLOUR = 0, 2
_UP = 2  # a row is written as its difference to the one above: mostly zeros in maps of ids


def write_png(path: Path, size: tuple[int, int], strips: Iterable[NDArray[Any]]) -> None:
    r"""Write a PNG of strips of rows, from top to bottom.

    Args:
        path: The file, written as the strips come.
        size: Height and width of the picture, pixels.
        strips: uint8 (h, W, 3), or uint8 or uint16 (h, W); all of one kind.

    Raises:
        ValueError: If the strips do not add up to the picture.
        OSError: If the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_png(Path(folder, "x.png"), (2, 3), [np.zeros((1, 3), np.uint16), np.ones((1, 3), np.uint16)])
    ...     Path(folder, "x.png").read_bytes()[:4]
    b'\x89PNG'
    """
    height, width = size
    pack, above, top = zlib.compressobj(), np.zeros((1, 1), np.uint8), 0
    with path.open("wb") as file:
        for strip in strips:
            if top == 0:
                file.write(b"\x89PNG\r\n\x1a\n")
                colour = _COLOUR if strip.ndim == 3 else _GREY
                _chunk(file, b"IHDR", struct.pack(">2I5B", width, height, 8 * strip.itemsize, colour, 0, 0, 0))
            # Numbers of 16 bits are stored with the high byte first.
            raw = np.ascontiguousarray(strip, strip.dtype.newbyteorder(">")).view(np.uint8).reshape(len(strip), -1)
            filtered = np.empty((len(raw), raw.shape[1] + 1), np.uint8)
            filtered[:, 0] = _UP
            np.subtract(raw[:1], above, out=filtered[:1, 1:])
            np.subtract(raw[1:], raw[:-1], out=filtered[1:, 1:])
            above, top = raw[-1:], top + len(raw)
            _must_fit("strips", strip.shape[1], width)
            _chunk(file, b"IDAT", pack.compress(filtered.data))
        _must_fit("rows of all strips", top, height)
        _chunk(file, b"IDAT", pack.flush())
        _chunk(file, b"IEND", b"", empty=True)


def _must_fit(what: str, found: int, side: int) -> None:
    if found != side or not side:
        raise ValueError(message(what, f"add up to the picture's {side} pixels", found))


def _chunk(file: IO[bytes], kind: bytes, content: bytes, *, empty: bool = False) -> None:
    if content or empty:  # zlib keeps what is little to itself
        file.write(struct.pack(">I", len(content)) + kind + content)
        file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
