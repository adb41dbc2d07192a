"""Write COCO panoptic files; nothing is half written when something fails."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed import _check
from lovasz_embed._atomic import replacing
from lovasz_embed._check import message
from lovasz_embed._coco import Extents, check_ids, entries, ids_to_rgb
from lovasz_embed.formats._base import Category, DataError, ImageRecord
from lovasz_embed.formats._files import writing
from lovasz_embed.formats._lock import locked
from lovasz_embed.formats._png import write_png
from lovasz_embed.formats._results import check_categories, check_images, must_have_size, paired
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.panoptic._strips import index_strips


def write_coco_panoptic(
    path: str | PathLike[str],
    results: Iterable[PanopticResult],
    *,
    images: Sequence[ImageRecord],
    categories: Sequence[Category],
) -> None:
    """Write COCO panoptic files: a JSON, and a folder of PNGs of its name without ending.

    Both are written under temporary names and renamed when complete. Earlier results of the same name are
    replaced; a folder that holds anything else is not.

    Args:
        path: The JSON to write; missing parent folders are made.
        results: The pictures in the order of `images`, each result one picture or a batch; an iterator is
            consumed one result at a time, so that all of them need never be in memory.
        images: `images` of the data set that was predicted; by its ids a scorer finds the truth of a picture.
        categories: `categories` of the data set, in the order of the results' category indices.

    Raises:
        DataError: Not as many pictures as images, a size other than the record's, two pictures with one PNG
            name, or a place that cannot be written, holds other files or is being written by another process.

    >>> import tempfile, torch
    >>> one = torch.ones(1, 2, 3, dtype=torch.int32)
    >>> result = PanopticResult.from_maps(one - 1, one, things={0})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_coco_panoptic(
    ...         f"{folder}/out.json",
    ...         [result],
    ...         images=[ImageRecord(7, "x.jpg")],
    ...         categories=[Category(90, "person", is_thing=True)],
    ...     )
    ...     sorted(file.relative_to(folder).as_posix() for file in Path(folder).rglob("*"))
    ['out', 'out.json', 'out/x.png']
    """
    _check.is_path("path", path)
    check_categories(categories)
    path = Path(path)
    check_target(path, images)
    with locked(path):
        with writing(path):
            work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem}-"))
        try:
            parts = CocoParts(work)
            for image, picture in paired(results, images):
                with writing(path):
                    parts.add(image, picture, categories)
            with writing(path):
                parts.prepare(images, categories)
                _publish(work, path.with_suffix(""), path)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def check_target(path: Path, images: Sequence[ImageRecord]) -> None:
    """Raise `DataError` where COCO panoptic files of these pictures cannot be at `path`; nothing is written yet."""
    if path.suffix != ".json":
        remedy = "The PNG folder takes its name without ending."
        raise DataError(message("path", "end in .json", path.name, remedy))
    _check_names(images)
    with writing(path):
        if path.is_dir():
            raise DataError(message(str(path), "be free for a JSON", "a folder", "Choose another name."))
        _refuse_foreign_folder(path.with_suffix(""), path)


class CocoParts:
    """COCO panoptic files in the making: of each picture a PNG and its entry of the JSON, in a folder.

    Pictures may come in any order and from several processes one after the other. The memory is that of the segments
    of one picture and some of its rows.

    Args:
        folder: Holds the parts, and nothing else of the names `png`, `entries`, `json` and `old`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        """Return whether a picture of this name is there, as a whole."""
        return self.png(name).is_file() and self._entry(name).is_file()

    def __len__(self) -> int:
        return sum(1 for _ in (self.folder / "entries").rglob("*.json"))

    def add(self, image: ImageRecord, result: PanopticResult, categories: Sequence[Category]) -> None:
        """Write the parts of one picture, its entry last.

        Raises:
            DataError: The picture has another size than the record says.
            ValueError: As `PanopticResult.to_coco`.
            OSError: The files cannot be written.
        """
        must_have_size(image, result)
        height, width = result.segmentation.shape[-2:]
        segments = result.segments[0]
        check_ids(image.image_id, segments)
        extents = Extents(len(segments))
        ids = result.segmentation[0].cpu().numpy()

        def colours() -> Iterator[NDArray[np.uint8]]:
            for rows, index in index_strips(result):
                extents.add(index, rows.start)
                yield ids_to_rgb(ids[rows])

        png, entry = self.png(image.name), self._entry(image.name)
        for file in (png, entry):
            file.parent.mkdir(parents=True, exist_ok=True)
        # By another name first: the one that is there may be a second name of a finished file.
        with replacing(png) as temporary:
            write_png(temporary, (height, width), colours())
        found = entries(image.image_id, extents, segments, [category.id for category in categories])
        with replacing(entry) as temporary:
            _write_entry(temporary, (height, width), found)

    def take(self, image: ImageRecord, png: Path, size: tuple[int, int], info: Iterable[dict[str, Any]]) -> None:
        """Take a picture over from finished files, which stay as they are."""
        for file in (self.png(image.name), self._entry(image.name)):
            file.parent.mkdir(parents=True, exist_ok=True)
        link(png, self.png(image.name))
        with replacing(self._entry(image.name)) as temporary:
            _write_entry(temporary, size, iter(info))

    def prepare(
        self, images: Sequence[ImageRecord], categories: Sequence[Category], info: dict[str, Any] | None = None
    ) -> None:
        """Make the JSON, in the order of `images`; what belongs to none of them goes.

        Args:
            images: All must be there.
            categories: Of the JSON.
            info: Of the JSON.
        """
        keep_only(self.folder / "png", {self.png(image.name) for image in images})
        known = [
            {"id": c.id, "name": c.name, "supercategory": c.supercategory, "isthing": int(c.is_thing)}
            for c in categories
        ]
        listed = []
        # Entry by entry, because a picture may have a million segments.
        with (self.folder / "json").open("w", encoding="utf-8") as file:
            file.write("{" + (f'"info": {json.dumps(info)}, ' if info else "") + '"annotations": [')
            for number, image in enumerate(images):
                own = {"image_id": image.image_id, "file_name": f"{image.name}.png"}
                file.write((", " if number else "") + json.dumps(own)[:-1] + ', "segments_info": ')
                with self._entry(image.name).open(encoding="utf-8") as entry:
                    size = json.loads(entry.readline())
                    shutil.copyfileobj(entry, file)
                file.write("}")
                listed.append({"id": image.image_id, "file_name": image.file_name, **size})
            file.write(f'], "images": {json.dumps(listed)}, "categories": {json.dumps(known)}}}')

    def png(self, name: str) -> Path:
        """Return where the PNG of a picture lies."""
        return self.folder / "png" / f"{name}.png"

    def _entry(self, name: str) -> Path:
        return self.folder / "entries" / f"{name}.json"


def keep_only(folder: Path, wanted: Collection[Path | None]) -> None:
    """Remove the files below a folder that are not wanted: of other pictures, or cut off by `kill -9`."""
    for file in folder.rglob("*"):
        if file not in wanted and not file.is_dir():
            file.unlink()


def link(source: Path, target: Path) -> None:
    """Let a file have a second name, or where the system knows no such thing a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_entry(path: Path, size: tuple[int, int], found: Iterator[dict[str, Any]]) -> None:
    """Write a line with the size of a picture, then the list of its segments."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"height": size[0], "width": size[1]}) + "\n[")
        separator = ""
        while chunk := list(islice(found, 4096)):
            file.write(separator + json.dumps(chunk)[1:-1])
            separator = ", "
        file.write("]")


def _check_names(images: Sequence[ImageRecord]) -> None:
    check_images(images)
    names = [f"{image.name}.png" for image in images]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(message("images", "have names of their own", f"{twice} twice"))


def _refuse_foreign_folder(folder: Path, path: Path) -> None:
    """Raise unless `folder` is free or an earlier result: nobody must lose files of their own."""
    if not folder.exists():
        return
    files = [file for file in folder.rglob("*") if not file.is_dir()]
    if not folder.is_dir() or (files and not path.is_file()) or any(file.suffix != ".png" for file in files):
        remedy = "Choose another name, or remove that folder."
        raise DataError(message(str(folder), f"be free for the PNGs of {path.name}", "other files", remedy))


def _publish(work: Path, folder: Path, path: Path) -> None:
    """Rename `work/png` to `folder` and `work/json` to `path`; where one fails, both stay as they were."""
    if folder.exists():
        os.replace(folder, work / "old")
    try:
        os.replace(work / "png", folder)
        os.replace(work / "json", path)
    except BaseException:  # an interrupt too must not cost the earlier results
        if folder.exists():
            os.replace(folder, work / "png")
        if (work / "old").exists():
            os.replace(work / "old", folder)
        raise
