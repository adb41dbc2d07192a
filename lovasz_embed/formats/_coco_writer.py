"""Write COCO panoptic files; nothing is half written when something fails."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from lovasz_embed._check import message
from lovasz_embed.formats._base import Category, DataError, ImageRecord
from lovasz_embed.formats._files import writing
from lovasz_embed.formats._pictures import require
from lovasz_embed.panoptic import PanopticResult


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
            name, or a place that cannot be written or holds other files.

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
    require("PIL", "Pillow")
    path = Path(path)
    folder = path.with_suffix("")
    if path.suffix != ".json":
        remedy = "The PNG folder takes its name without ending."
        raise DataError(message("path", "end in .json", path.name, remedy))
    names = _png_names(images)
    with writing(path):
        _refuse_foreign_folder(folder, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{folder.name}-"))
    try:
        content = _write_pngs(work / "png", _each(results), images, names, categories)
        with writing(path):
            (work / "json").write_text(json.dumps(content), encoding="utf-8")
            _publish(work, folder, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _each(results: Iterable[PanopticResult]) -> Iterator[PanopticResult]:
    return (picture for result in results for picture in result)


def _png_names(images: Sequence[ImageRecord]) -> list[str]:
    if not images:
        raise DataError(message("images", "name at least one picture", "none"))
    names = [f"{image.name}.png" for image in images]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(message("images", "have names of their own", f"{twice} twice"))
    for name in names:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise DataError(message("images", "have file names inside their folder", name))
    return names


def _write_pngs(
    folder: Path,
    pictures: Iterator[PanopticResult],
    images: Sequence[ImageRecord],
    names: Sequence[str],
    categories: Sequence[Category],
) -> dict[str, Any]:
    """Write one PNG per picture and return the content of the JSON."""
    from PIL import Image

    category_ids = [category.id for category in categories]
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, name in zip(images, names, strict=True):
        picture = next(pictures, None)
        if picture is None:
            rule = f"hold a picture for each of the {len(images)} images"
            raise DataError(message("results", rule, len(listed)))
        height, width = picture.segmentation.shape[-2:]
        if (image.height or height, image.width or width) != (height, width):
            rule = f"have the size {image.height} x {image.width} of image {image.image_id}"
            raise DataError(message("results", rule, f"{height} x {width} (height x width)"))
        [(annotation, png)] = picture.to_coco([image.image_id], category_ids, [name])
        with writing(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(png).save(folder / name, format="PNG")
        annotations.append(annotation)
        listed.append({"id": image.image_id, "file_name": image.file_name, "height": height, "width": width})
    if next(pictures, None) is not None:
        raise DataError(message("results", f"hold a picture for each of the {len(images)} images", "more"))
    return {
        "images": listed,
        "annotations": annotations,
        "categories": [
            {"id": c.id, "name": c.name, "supercategory": c.supercategory, "isthing": int(c.is_thing)}
            for c in categories
        ],
    }


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
