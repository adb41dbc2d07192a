"""Decode picture files into arrays; Pillow and tifffile are imported when the first file is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
LABEL_SUFFIXES = TIFF_SUFFIXES | {".png"}
PICTURE_SUFFIXES = LABEL_SUFFIXES | {".jpg", ".jpeg", ".bmp", ".webp"}

_INT32_MAX = np.iinfo(np.int32).max


def require(module: str, package: str) -> None:
    """Raise `ImportError` with the line that installs `package` unless `module` can be imported."""
    try:
        __import__(module)
    except ImportError as error:
        raise ImportError(f'{package} is needed for picture files: pip install "lovasz-embed[io]"') from error


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture as uint8 (H, W, 3), whatever its colour mode.

    Grey is repeated, palettes are looked up, alpha is dropped. Pixels wider than 8 bits are scaled by the
    smallest and largest value of this picture, min -> 0 and max -> 255, because microscopes fill only part of
    the range. Pillow itself reduces a 16-bit *colour* PNG to its high bytes. EXIF orientation is not applied:
    labels are drawn on the pixels as stored.
    """
    with _decoding(path):
        pixels = _read_tiff(path) if path.suffix.lower() in TIFF_SUFFIXES else None
        if pixels is None:
            pixels = _read_with_pillow(path, as_colour=True)
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        raise DataError(message(str(path), "be grey, RGB or RGBA", f"{pixels.shape[2]} channels"))
    if pixels.dtype.kind not in "buif" or (pixels.dtype.kind == "f" and not np.isfinite(pixels).all()):
        got = f"{pixels.dtype} with NaN, Inf or no real numbers"
        raise DataError(message(str(path), "hold finite numbers", got))
    grey = pixels.ndim == 2
    pixels = _to_uint8(pixels if grey else pixels[..., :3])
    return np.ascontiguousarray(np.repeat(pixels[..., None], 3, axis=2) if grey else pixels)


def read_label_map(path: Path) -> NDArray[np.int32]:
    """Read an instance map as int32 (H, W), 0 = background: one channel of integers or palette indices."""
    with _decoding(path):
        labels = _read_tiff(path) if path.suffix.lower() in TIFF_SUFFIXES else None
        if labels is None:
            labels = _read_with_pillow(path, as_colour=False)
    if labels.ndim != 2 or labels.dtype.kind not in "bui":
        got = f"{labels.dtype} of shape {labels.shape}"
        remedy = "Save the instance ids themselves, not a coloured picture of them."
        raise DataError(message(str(path), "hold one channel of integer labels", got, remedy))
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) > _INT32_MAX):
        got = f"{labels.min()} to {labels.max()}"
        raise DataError(message(str(path), f"hold labels from 0 to {_INT32_MAX}", got))
    return labels.astype(np.int32)


def read_coco_png(path: Path) -> NDArray[np.uint8]:
    """Read a COCO panoptic PNG as uint8 (H, W, 3)."""
    with _decoding(path):
        pixels = _read_with_pillow(path, as_colour=False)
    if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype != np.uint8:
        got = f"{pixels.dtype} of shape {pixels.shape}"
        rule = "be an 8-bit RGB picture of segment ids (R + 256 G + 65536 B)"
        raise DataError(message(str(path), rule, got))
    return np.ascontiguousarray(pixels[..., :3], dtype=np.uint8)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into a `DataError` that names the file."""
    require("PIL", "Pillow")
    if not path.is_file():
        raise DataError(message(str(path), "exist", "no such file"))
    try:
        yield
    except (DataError, ImportError):
        raise
    # Decoders meet arbitrary bytes and raise what their parsing happens to hit: OSError, SyntaxError,
    # struct.error, zlib.error, TiffFileError, IndexError ... none of which names the file.
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        remedy = "The file is damaged or not a picture: fetch or write it again."
        raise DataError(message(str(path), "be a readable picture", got, remedy)) from error


def _read_with_pillow(path: Path, *, as_colour: bool) -> NDArray[Any]:
    from PIL import Image

    with Image.open(path) as picture:
        picture.verify()  # checksums and the end of a PNG, which decoding alone passes over
    with Image.open(path) as picture:
        picture.load()
        pages = getattr(picture, "n_frames", 1)
        if pages > 1:
            raise DataError(message(str(path), "hold one picture", f"{pages} pages"))
        return np.asarray(_as_rgb(picture) if as_colour else picture)


def _as_rgb(picture: Image) -> Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        return picture  # grey beyond 8 bits: Pillow would clip it
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns where a palette loses transparency in one step
    return picture.convert("RGB")


def _read_tiff(path: Path) -> NDArray[Any] | None:
    """Return (H, W) or (H, W, channels) pixels, or None where Pillow is the better reader.

    tifffile knows every dtype and axis order, but without further packages only plain and zlib data; Pillow
    knows the other codecs and the palettes.
    """
    require("tifffile", "tifffile")
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        codec, colours = getattr(page.compression, "name", ""), getattr(page.photometric, "name", "")
        if codec not in {"NONE", "DEFLATE", "ADOBE_DEFLATE"} or colours not in {"MINISBLACK", "RGB"}:
            return None
        series = file.series[0]
        pixels, axes = series.asarray(), series.axes
    kept = tuple(i for i, axis in enumerate(axes) if axis in "YX" or pixels.shape[i] > 1)
    pixels = pixels.reshape([pixels.shape[i] for i in kept])
    axes = "".join(axes[i] for i in kept).replace("C", "S")
    if axes == "SYX":
        pixels = np.moveaxis(pixels, 0, 2)
    elif axes not in {"YX", "YXS"}:
        got = f"axes {axes} of shape {pixels.shape}"
        remedy = "Save one file per plane."
        raise DataError(message(str(path), "hold one two-dimensional picture", got, remedy))
    return np.asarray(pixels)


def _to_uint8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    values = pixels.astype(np.float64)
    low, high = values.min(), values.max()
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.asarray(np.rint((values - low) * scale), dtype=np.uint8)
