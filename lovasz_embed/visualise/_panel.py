"""Pictures side by side under titles, and written to a file. Only this needs Pillow, on first use."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lovasz_embed import _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed.visualise._overlay import enlarge

Picture = NDArray[np.uint8]

_LARGEST = 1 << 14  # pixels; a taller row than this is a mistake, and fills the memory
_PAPER, _INK = (255, 255, 255), (40, 40, 46)


def panel(
    columns: Mapping[str, Picture | Sequence[Picture]],
    *,
    legend: Mapping[str, tuple[int, int, int]] | None = None,
    height: int = 288,
) -> Picture:
    """Return pictures side by side, each column under its title.

    Args:
        columns: Title of a column -> its picture, or its pictures from top to bottom; uint8 (H, W, 3).
        legend: Name -> RGB colour, written below: `Palette.legend`.
        height: Pixels; every picture is enlarged by the largest whole number that keeps it below, larger ones
            stay as they are. Enlarge overlays with their own `scale`, so that contours stay thin.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ImportError: Pillow is not installed.
        ValueError: There is no column, columns differ in length, or a picture is no uint8 (H, W, 3).

    >>> picture = np.zeros((96, 128, 3), dtype=np.uint8)
    >>> panel({"input": picture, "truth": picture}).shape
    (335, 801, 3)
    """
    pillow = _pillow()
    _check.is_a("columns", columns, Mapping, "a mapping from titles to pictures")
    if legend is not None:
        _check.is_a("legend", legend, Mapping, "a mapping from names to colours, or None")
    for title, column in columns.items():
        _check.is_a("columns", title, str, "a mapping from titles to pictures")
        _check.is_a("columns", column, (np.ndarray, list, tuple), "a mapping from titles to pictures or lists of them")
    grid = [[column] if isinstance(column, np.ndarray) else list(column) for column in columns.values()]
    _check_grid(grid)
    _check.is_int("height", height, most=_LARGEST)
    _check.positive("height", height)
    grid = [[enlarge(p, max(1, height // p.shape[0])) for p in column] for column in grid]
    widths = [max(p.shape[1] for p in column) for column in grid]
    heights = [max(p.shape[0] for p in row) for row in zip(*grid, strict=True)]
    size = min(max(max(heights) // 16, 14), 36)  # of the letters, in pixels
    gap, line = size // 2 + 2, 2 * size
    # Left edges of the columns and top edges of the rows; the last ones are where the grid ends.
    lefts = np.cumsum([gap, *(width + gap for width in widths)])
    tops = np.cumsum([line, *(tall + gap for tall in heights)])
    entries = _arrange(pillow, legend or {}, int(lefts[-1]), gap, size)
    rows = 1 + max((row for _, _, row, _ in entries), default=-1)
    canvas = np.full((tops[-1] + rows * line, lefts[-1], 3), _PAPER, dtype=np.uint8)
    for column, left, width in zip(grid, lefts, widths, strict=False):
        for picture, top, tall in zip(column, tops, heights, strict=False):
            y, x = top + (tall - picture.shape[0]) // 2, left + (width - picture.shape[1]) // 2
            canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture

    sheet = pillow.Image.fromarray(canvas)
    draw = pillow.ImageDraw.Draw(sheet)
    for title, left, width in zip(columns, lefts, widths, strict=False):
        text, font = _fit(pillow, title, size, width)
        draw.text((int(left) + width / 2, line / 2), text, fill=_INK, font=font, anchor="mm")
    for name, left, row, colour in entries:
        middle = int(tops[-1]) + (row + 0.5) * line - gap / 2
        draw.rectangle((left, middle - size / 2, left + size, middle + size / 2), fill=colour)
        font = pillow.ImageFont.load_default(size)
        draw.text((left + 1.4 * size, middle), name, fill=_INK, font=font, anchor="lm")
    return np.array(sheet)


def save_png(path: str | Path, picture: Picture) -> None:
    """Write a picture as a PNG file, whole or not at all.

    Args:
        path: Ends in .png; an existing file is replaced.
        picture: uint8 (H, W, 3) or (H, W).

    Raises:
        ImportError: Pillow is not installed.
        ValueError: The path has another ending, or the picture another shape or dtype.
        OSError: The file cannot be written, such as for a folder that does not exist.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_png(Path(folder) / "black.png", np.zeros((8, 8, 3), dtype=np.uint8))
    """
    _check.is_path("path", path)
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(_check.message("path", "end in .png", path.name))
    _check.is_a("picture", picture, np.ndarray, "an array")
    if picture.dtype != np.uint8 or not picture.size or not (picture.ndim == 2 or picture.shape[2:] == (3,)):
        got = f"{picture.dtype} of shape {picture.shape}"
        raise ValueError(_check.message("picture", "be uint8 (H, W, 3) or (H, W)", got))
    if not path.parent.is_dir():
        raise FileNotFoundError(_check.message("path", "lie in a folder that exists", path, "Create it first."))
    content = io.BytesIO()
    _pillow().Image.fromarray(picture).save(content, format="PNG")
    write_atomically(path, content.getvalue())


class _Pillow(NamedTuple):
    Image: Any
    ImageDraw: Any
    ImageFont: Any


def _pillow() -> _Pillow:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError('Pillow is needed for pictures: pip install "lovasz-embed[viz]"') from error
    return _Pillow(Image, ImageDraw, ImageFont)


def _fit(pillow: _Pillow, text: str, size: int, width: int) -> tuple[str, Any]:
    """Return the text, and its font, no wider than `width`: smaller where that suffices, else cut short."""
    font = pillow.ImageFont.load_default(size)
    needed = font.getlength(text)
    if needed > width:
        font = pillow.ImageFont.load_default(max(10, int(size * width / needed)))
    while text and font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…" if len(text) > 1 else ""
    return text, font


def _arrange(
    pillow: _Pillow, legend: Mapping[str, tuple[int, int, int]], width: int, gap: int, size: int
) -> list[tuple[str, float, int, tuple[int, int, int]]]:
    """Return name, left edge, row and colour of each entry, in rows that are filled one after another."""
    font, entries, left, row = pillow.ImageFont.load_default(size), [], float(gap), 0
    for name, colour in legend.items():
        needed = 2.8 * size + font.getlength(name)
        if left > gap and left + needed > width:
            left, row = float(gap), row + 1
        entries.append((name, left, row, colour))
        left += needed
    return entries


def _check_grid(grid: list[list[Picture]]) -> None:
    if not grid or not grid[0]:
        raise ValueError(_check.message("columns", "hold at least one picture", "none"))
    lengths = [len(column) for column in grid]
    if len(set(lengths)) > 1:
        raise ValueError(_check.message("columns", "hold as many pictures each", lengths))
    for picture in (picture for column in grid for picture in column):
        _check.is_a("columns", picture, np.ndarray, "a mapping from titles to arrays or lists of them")
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            got = f"{picture.dtype} of shape {picture.shape}"
            raise ValueError(_check.message("columns", "hold uint8 pictures (H, W, 3)", got))
