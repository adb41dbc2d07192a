"""Write a folder of label maps, one or several files per picture; it appears when all of them are there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed import _check
from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError, ImageRecord
from lovasz_embed.formats._files import leads_outside, writing
from lovasz_embed.formats._lock import locked
from lovasz_embed.formats._pictures import require
from lovasz_embed.formats._results import check_images, must_have_size, paired
from lovasz_embed.panoptic import PanopticResult, Segment

Files = Mapping[str, bytes]


def write_label_folder(
    folder: str | PathLike[str],
    results: Iterable[PanopticResult],
    images: Sequence[ImageRecord],
    files: Callable[[ImageRecord, PanopticResult], Files],
    last: Callable[[], Files] = dict,
) -> None:
    """Write what `files` makes of each picture, and what `last` returns, below `folder`.

    All is written beside its place and renamed at the end, so a truth that is there is never mixed with predictions.

    Args:
        folder: Must not exist yet, or be empty.
        results: The pictures in the order of `images`, each result one picture or a batch; consumed one by one.
        images: Records of the pictures.
        files: Contents by path relative to `folder`.
        last: Called after the last picture.

    Raises:
        DataError: Not as many pictures as images, a size other than the record's, or a place that is taken or
            being written by another process.
    """
    _check.is_path("folder", folder)
    folder = Path(folder)
    require("PIL", "Pillow")
    check_images(images)
    with locked(folder):
        with writing(folder):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                remedy = "Choose another name, or remove it."
                raise DataError(message(str(folder), "be free for the label maps", "other files", remedy))
            work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            for image, picture in paired(results, images):
                must_have_size(image, picture)
                _write(work / "new", files(image, picture))
            _write(work / "new", last())
            with writing(folder):
                os.replace(work / "new", folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def paint(
    picture: PanopticResult, value: Callable[[Segment], int], void: int, dtype: type[np.integer[Any]]
) -> NDArray[Any]:
    """Return the map (H, W) that holds `value` of each pixel's segment, `void` where there is none."""
    table = np.array([void, *map(value, picture.segments[0])], dtype)
    return np.asarray(table[picture.segment_index()[0].cpu().numpy()])


def count_things(picture: PanopticResult, first: int, last: int, what: str) -> dict[int, int]:
    """Return a number for each thing that is no crowd, by segment id: first, first + 1, ... in each category.

    Raises:
        DataError: A category has more things than numbers.
    """
    numbers: dict[int, int] = {}
    following: dict[int, int] = {}
    for segment in picture.segments[0]:
        if segment.is_thing and not segment.is_crowd:
            number = following.get(segment.category, first)
            if number > last:
                rule = f"hold at most {last - first + 1} things of a category to fit {what}"
                got = f"more of category {segment.category}"
                raise DataError(message("results", rule, got, "Write COCO panoptic files with write_coco_panoptic."))
            numbers[segment.id] = number
            following[segment.category] = number + 1
    return numbers


def kept_number(segment: Segment, base: int, last: int, what: str) -> int:
    """Return the number of a thing that is followed over frames: its id, or its id without `base`.

    Raises:
        DataError: Neither lies in 1 ... last.
    """
    for number in (segment.id, segment.id - base):
        if 1 <= number <= last:
            return number
    rule = (
        f"have ids from 1 to {last}, or from {base + 1} to {base + last} in category {segment.category}, to fit {what}"
    )
    raise DataError(message("results", rule, segment.id))


def known_category(segment: Segment, count: int) -> int:
    """Return the category of a segment; `DataError` where the class list has none."""
    if segment.category >= count:
        raise DataError(message("results", f"have categories below {count}", segment.category))
    return segment.category


def png(values: NDArray[Any], palette: Sequence[int] | None = None) -> bytes:
    """Return a PNG of uint8 or uint16 values (H, W) or uint8 colours (H, W, 3); a palette makes values visible."""
    from PIL import Image

    picture = Image.fromarray(values)
    if palette is not None:
        picture.putpalette(list(palette))
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        place = folder / name
        if leads_outside(name):
            raise DataError(message("images", "have file names inside their folder", name))
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
