"""Decode picture files into arrays; Pillow and tifffile are imported when the first file is read."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError
from lovasz_embed.formats._limits import check_size
from lovasz_embed.formats._tiff_layout import check_directories, check_pages, check_segments
from lovasz_embed.panoptic._strips import strip_rows

if TYPE_CHECKING:
    from PIL.Image import Image

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
LABEL_SUFFIXES = TIFF_SUFFIXES | {".png"}
PICTURE_SUFFIXES = LABEL_SUFFIXES | {".jpg", ".jpeg", ".bmp", ".webp"}

New = Callable[[tuple[int, ...], Any], NDArray[Any]]
"""Makes an array of a shape and a dtype, in memory or in a file."""

_FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP", "DIB", "GIF", "PPM", "TGA", "JPEG2000", "AVIF")
_INT32_MAX = np.iinfo(np.int32).max
_NOT_OF_THE_FILE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})  # every other one fails as well
_MOST_CHANNELS = 4
_opening = Lock()


def require(module: str, package: str) -> None:
    """Raise `ImportError` with the line that installs `package` unless `module` can be imported."""
    try:
        __import__(module)
    except ImportError as error:
        raise ImportError(f'{package} is needed for picture files: pip install "lovasz-embed[io]"') from error


def read_picture(path: Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read a picture as uint8 (H, W, 3), whatever its colour mode.

    Grey is repeated, palettes are looked up, alpha is dropped. Pixels wider than 8 bits are scaled by the
    smallest and largest value of this picture, min -> 0 and max -> 255, because microscopes fill only part of
    the range. Pillow itself reduces a 16-bit *colour* PNG to its high bytes. EXIF orientation is not applied:
    labels are drawn on the pixels as stored.

    Args:
        path: Of the file.
        content: Bytes of a file that lies in an archive, no TIFF; `path` is then its name in the texts of errors.
    """
    with decoding(path, content):
        pixels = read_tiff(path) if content is None and path.suffix.lower() in TIFF_SUFFIXES else None
        if pixels is None:
            pixels = read_with_pillow(path, as_colour=True, content=content)
    return np.ascontiguousarray(colours(path, pixels, np.empty))


def colours(path: Path, pixels: NDArray[Any], new: New) -> NDArray[np.uint8]:
    """Return pixels (H, W) or (H, W, channels) of any numbers as uint8 (H, W, 3), a view where they are bytes."""
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        raise DataError(message(str(path), "be grey, RGB or RGBA", f"{pixels.shape[2]} channels"))
    parts = list(strip_rows(*pixels.shape[:2]))
    if pixels.dtype.kind not in "buif" or (
        pixels.dtype.kind == "f" and not all(np.isfinite(pixels[rows]).all() for rows in parts)
    ):
        got = f"{pixels.dtype} with NaN, Inf or no real numbers"
        raise DataError(message(str(path), "hold finite numbers", got))
    shown = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
    if shown.dtype != np.uint8:
        low, high = min(float(shown[rows].min()) for rows in parts), max(float(shown[rows].max()) for rows in parts)
        # Times a power of two, which changes no digit: differences of the largest floats are Inf, of the smallest 0.
        exponent = math.frexp(max(abs(low), abs(high)))[1]
        low, high = (float(np.ldexp(bound, -exponent)) for bound in (low, high))
        scale = 255.0 / (high - low) if high > low else 0.0
        scaled = new(shown.shape, np.uint8)
        for rows in parts:
            scaled[rows] = np.rint((np.ldexp(shown[rows].astype(np.float64), -exponent) - low) * scale)
        shown = scaled
    return np.broadcast_to(shown, (*shown.shape[:2], 3))


def read_size(path: Path) -> tuple[int, int]:
    """Return height and width of a picture; no pixel is decoded."""
    with decoding(path):
        if path.suffix.lower() in TIFF_SUFFIXES:
            require("tifffile", "tifffile")
            import tifffile

            with tifffile.TiffFile(path) as file:
                page: Any = file.pages[0]
                size = int(page.imagelength), int(page.imagewidth)
            check_size(path, *size, mapped=True)
            return size
        with opened(path, mapped=True) as picture:
            return picture.height, picture.width


def read_label_map(path: Path) -> NDArray[np.int32]:
    """Read an instance map as int32 (H, W), 0 = background: one channel of integers or palette indices."""
    with decoding(path):
        labels = read_tiff(path) if path.suffix.lower() in TIFF_SUFFIXES else None
        if labels is None:
            labels = read_with_pillow(path, as_colour=False)
    if labels.ndim != 2 or labels.dtype.kind not in "bui":
        got = f"{labels.dtype} of shape {labels.shape}"
        remedy = "Save the instance ids themselves, not a coloured picture of them."
        raise DataError(message(str(path), "hold one channel of integer labels", got, remedy))
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) > _INT32_MAX):
        got = f"{labels.min()} to {labels.max()}"
        raise DataError(message(str(path), f"hold labels from 0 to {_INT32_MAX}", got))
    return labels.astype(np.int32)


def read_coco_png(path: Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read a COCO panoptic PNG as uint8 (H, W, 3); `content` as in `read_picture`."""
    with decoding(path, content):
        pixels = read_with_pillow(path, as_colour=False, content=content)
    if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
        got = f"{pixels.dtype} of shape {pixels.shape}"
        rule = "be an 8-bit RGB picture of segment ids (R + 256 G + 65536 B)"
        raise DataError(message(str(path), rule, got))
    return np.ascontiguousarray(pixels[..., :3], dtype=np.uint8)


@contextmanager
def decoding(path: Path, content: bytes | None = None) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into a `DataError` that names the file."""
    require("PIL", "Pillow")
    if content is None and not path.is_file():
        raise DataError(message(str(path), "exist", "no such file"))
    try:
        yield
    except (DataError, ImportError):
        raise
    # Decoders meet arbitrary bytes and raise what their parsing happens to hit: OSError, SyntaxError,
    # struct.error, zlib.error, TiffFileError, IndexError ... none of which names the file.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_OF_THE_FILE:
            raise
        got = f"{type(error).__name__}: {error}"
        remedy = "The file is damaged or not a picture: fetch or write it again."
        raise DataError(message(str(path), "be a readable picture", got, remedy)) from error


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that are decoded, whatever a file is called.

    Pillow looks into a file for what it is, and knows formats that are programs: for an EPS it calls Ghostscript.
    """
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def opened(path: Path, *, mapped: bool = False, content: bytes | None = None) -> Iterator[Image]:
    """Open a picture with Pillow, which reads size and mode and no pixel, and check its size by our own limit."""
    from PIL import Image

    # Pillow's limit is a global number that warns at one size and refuses at another. Ours counts here.
    with _opening:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(path if content is None else BytesIO(content), formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    with picture:
        check_size(path, picture.height, picture.width, mapped=mapped)
        yield picture


def read_with_pillow(path: Path, *, as_colour: bool, content: bytes | None = None) -> NDArray[Any]:
    """Return the pixels of a picture, RGB or grey beyond 8 bits, or without `as_colour` as they are stored."""
    with opened(path, content=content) as picture:
        picture.verify()  # checksums and the end of a PNG, which decoding alone passes over
    with opened(path, content=content) as picture:
        picture.load()
        one_page(path, picture)
        return np.asarray(_as_rgb(picture) if as_colour else picture)


def one_page(path: Path, picture: Image) -> None:
    """Raise `DataError` where a file holds several pictures."""
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise DataError(message(str(path), "hold one picture", f"{pages} pages"))


def is_scaled(mode: str) -> bool:
    """Return whether a picture of this mode of Pillow is grey beyond 8 bits, which Pillow would clip."""
    return mode == "F" or mode.startswith("I")


def _as_rgb(picture: Image) -> Image:
    if is_scaled(picture.mode):
        return picture
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns where a palette loses transparency in one step
    return picture.convert("RGB")


def read_tiff(path: Path, decode: Callable[[Any], NDArray[Any]] | None = None) -> NDArray[Any] | None:
    """Return (H, W) or (H, W, channels) pixels, or None where Pillow is the better reader.

    tifffile knows every dtype and axis order, but without further packages only plain and zlib data; Pillow
    knows the other codecs and the palettes.

    Args:
        path: Of the file.
        decode: Gets a series of tifffile and returns its pixels; None reads them into memory.
    """
    require("tifffile", "tifffile")
    import tifffile

    with tifffile.TiffFile(path) as file:
        check_directories(path, file)
        page: Any = file.pages[0]
        codec, photometric = getattr(page.compression, "name", ""), getattr(page.photometric, "name", "")
        if codec not in {"NONE", "DEFLATE", "ADOBE_DEFLATE"} or photometric not in {"MINISBLACK", "RGB"}:
            return None
        check_pages(path, file)
        series = file.series[0]
        kept = tuple(i for i, axis in enumerate(series.axes) if axis in "YX" or series.shape[i] > 1)
        shape = tuple(series.shape[i] for i in kept)
        axes = "".join(series.axes[i] for i in kept).replace("C", "S")
        if axes not in {"YX", "YXS", "SYX"}:
            got = f"axes {axes} of shape {shape}"
            remedy = "Save one file per plane."
            raise DataError(message(str(path), "hold one two-dimensional picture", got, remedy))
        check_size(path, shape[axes.index("Y")], shape[axes.index("X")], mapped=decode is not None)
        channels = shape[axes.index("S")] if "S" in axes else 1
        if channels > _MOST_CHANNELS:  # a header can claim 65,535 of them, and all would be decoded
            raise DataError(message(str(path), "be grey, RGB or RGBA", f"{channels} channels"))
        check_segments(path, file, series, mapped=decode is not None)
        pixels = (series.asarray() if decode is None else decode(series)).reshape(shape)
    return np.moveaxis(pixels, 0, 2) if axes == "SYX" else pixels
