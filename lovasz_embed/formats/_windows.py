"""Pictures that are larger than memory: decoded once, from top to bottom, into a file that is read by windows.

A tile asks for a window, tiles overlap, and most codecs only go forward. The bytes of an uncompressed TIFF are mapped
as they lie; everything else goes through a temporary file, 3 bytes a pixel, so that windows cost nothing after.
"""

from __future__ import annotations

from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError
from lovasz_embed.formats._limits import limit_megapixels
from lovasz_embed.formats._mapped import mapped
from lovasz_embed.formats._pictures import (
    TIFF_SUFFIXES,
    New,
    colours,
    decoding,
    is_scaled,
    one_page,
    opened,
    read_tiff,
    read_with_pillow,
)
from lovasz_embed.panoptic._strips import strip_rows

_PILLOW_PIXELS = 1 << 26  # what Pillow may hold in memory, 0.5 GB with its own copy, where pyvips is there as well
_BUFFER = 1 << 26  # bytes of a compressed TIFF that are read ahead
_DTYPES = {
    "uchar": np.uint8,
    "char": np.int8,
    "ushort": np.uint16,
    "short": np.int16,
    "uint": np.uint32,
    "int": np.int32,
    "float": np.float32,
    "double": np.float64,
}
_COLOUR_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"})


def map_picture(path: Path, folder: str | PathLike[str] | None = None) -> NDArray[np.uint8]:
    """Read a picture as `read_picture` does, without ever holding it in memory as a whole.

    Args:
        path: TIFF, plain or zlib, of any size; PNG, JPEG and other TIFFs, beyond 67 megapixels through pyvips
            where it is installed, up to the limit of whole pictures through Pillow where not; other formats
            that Pillow knows up to that limit.
        folder: For a temporary file without a name, which is gone with the array; None is the system's.

    Returns:
        uint8 (H, W, 3), backed by a file or, for a small picture, by memory; read-only.

    Raises:
        DataError: As `read_picture`, and for a picture beyond the limit of pictures that are read by parts.
        ImportError: For a picture that only pyvips (extra `large`) reads by parts.

    Notes:
        Held in memory as a whole are: one segment of a zlib TIFF, which is all of it where the writer chose so,
        and what no decoder can read from top to bottom: interlaced PNG, progressive JPEG.
    """
    new = partial(mapped, folder=folder)
    with decoding(path):
        pixels = read_tiff(path, partial(_map_tiff, path, new)) if path.suffix.lower() in TIFF_SUFFIXES else None
        if pixels is None:
            pixels = _map_other(path, new)
    picture = colours(path, pixels, new)
    picture.flags.writeable = False
    return picture


def _map_tiff(path: Path, new: New, series: Any) -> NDArray[Any]:
    import tifffile

    if series.dataoffset is not None:  # the pixels lie in the file one after the other
        plain: NDArray[Any] = tifffile.memmap(path, series=0, mode="r")
        return plain
    decoded: NDArray[Any] = series.asarray(out=new(series.shape, series.dtype), buffersize=_BUFFER)
    return decoded


def _map_other(path: Path, new: New) -> NDArray[Any]:
    with opened(path, mapped=True) as picture:
        size, mode = (picture.height, picture.width), picture.mode
        one_page(path, picture)
        if size[0] * size[1] <= _PILLOW_PIXELS:
            return read_with_pillow(path, as_colour=True)
        if not _has_pyvips():
            if size[0] * size[1] <= limit_megapixels() * 1e6:
                return read_with_pillow(path, as_colour=True)
            needed = 'pip install "lovasz-embed[large]"'
            raise ImportError(f"pyvips is needed to read {path} of {size[0]} x {size[1]} pixels by parts: {needed}")
        if not is_scaled(mode) and mode not in _COLOUR_MODES:
            raise DataError(message(str(path), "be grey, RGB or RGBA to be read by parts", mode))
        picture.verify()
    return _map_with_vips(path, new, scaled=is_scaled(mode))


def _has_pyvips() -> bool:
    try:
        import pyvips  # noqa: F401
    except (ImportError, OSError):  # OSError: Python's part is there and the library is not
        return False
    return True


def _map_with_vips(path: Path, new: New, *, scaled: bool) -> NDArray[Any]:
    """Decode from top to bottom; to 8 bits as Pillow does, unless the numbers are to be scaled."""
    import pyvips

    source = pyvips.Image.new_from_file(str(path), access="sequential", fail_on="truncated")
    dtype = np.dtype(_DTYPES[source.format])
    bands = 3 if source.bands > 2 else 1  # the last one of two or four is alpha
    high_bytes = dtype == np.uint16 and not scaled
    shape = (source.height, source.width) if bands == 1 else (source.height, source.width, 3)
    pixels = new(shape, np.uint8 if high_bytes else dtype)
    region = pyvips.Region.new(source)
    for rows in strip_rows(source.height, source.width):
        content = region.fetch(0, rows.start, source.width, rows.stop - rows.start)
        strip = np.frombuffer(content, dtype).reshape(-1, source.width, source.bands)[..., :bands]
        pixels[rows] = (strip >> 8 if high_bytes else strip).reshape(-1, *shape[1:])
    return pixels
