"""COCO panoptic files: one JSON, beside it a folder of PNGs whose colours are segment ids.

Format: https://cocodataset.org/#format-data, section 4; what a scorer needs is what panopticapi reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed._coco import read_annotation
from lovasz_embed.formats._base import (
    VOID,
    Category,
    DataError,
    ImageRecord,
    Labels,
    PanopticDataset,
)
from lovasz_embed.formats._coco_json import check_segments, read_annotations, read_categories, read_images
from lovasz_embed.formats._files import existing_folder, is_file, read_json
from lovasz_embed.formats._pictures import read_coco_png, read_picture
from lovasz_embed.panoptic import PanopticResult


class CocoPanoptic(PanopticDataset):
    """A COCO panoptic JSON with its PNG folder, and the pictures where they are known.

    Categories are indexed by ascending id, whatever their order in the file, so that files of one data set
    agree. Areas and boxes of the JSON are not used: the PNG is what counts. `labels` keeps the file's segment
    ids.

    Args:
        json_path: The JSON; its PNG folder has the same name without ending.
        images: Folder of the pictures, or None to read the truth alone.
        categories: Use these instead of the file's own, so that a prediction is read with the truth's
            indices.

    Raises:
        DataError: The JSON is inconsistent, or a file it names is missing.
    """

    def __init__(
        self, json_path: Path, images: Path | None = None, *, categories: Sequence[Category] | None = None
    ) -> None:
        content = read_json(json_path)
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
            raise DataError(message(str(json_path), "hold a list 'annotations'", "none"))
        if categories is None:
            categories = read_categories(json_path, content.get("categories"))
        annotations = read_annotations(json_path, content["annotations"])
        super().__init__(categories, read_images(json_path, content.get("images"), annotations))

        self.json_path = json_path
        self.image_folder = None if images is None else existing_folder(images, "the folder of pictures")
        self._png_folder = existing_folder(json_path.with_suffix(""), f"the PNG folder of {json_path.name}")
        self._annotations = tuple(annotations[record.image_id] for record in self.images)
        self._position_of = {record.image_id: position for position, record in enumerate(self.images)}
        known = {category.id for category in self.categories}
        for record, annotation in zip(self.images, self._annotations, strict=True):
            check_segments(json_path, annotation, known)
            _must_exist(self._png_folder / annotation["file_name"], record)
            if self.image_folder is not None:
                _must_exist(self.image_folder / record.file_name, record)

    def position_of(self, image_id: int | str) -> int:
        """Return the position of the picture with this id; `DataError` where there is none."""
        if image_id not in self._position_of:
            raise DataError(message(str(self.json_path), f"hold image {image_id}", "no such image_id"))
        return self._position_of[image_id]

    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read the picture alone, uint8 (H, W, 3); `DataError` where the data set has no pictures."""
        return read_picture(self.image_file(index))

    def image_file(self, index: SupportsIndex) -> Path:
        """Return the file of the picture; `DataError` where the data set has no pictures."""
        record = self.images[self._position(index)]
        if self.image_folder is None:
            remedy = "Give images= to read_coco_panoptic, or read labels(i) or result(i)."
            raise DataError(message("images", f"be a folder to read {record.file_name}", None, remedy))
        return self.image_folder / record.file_name

    def labels(self, index: SupportsIndex) -> Labels:
        """Read the truth alone; instances keep the ids of the file, crowds have instance 0."""
        position = self._position(index)
        png = self._png(position)
        with self._naming(position):
            ids, segments = read_annotation(self._annotations[position], png, self._category_ids)
        things = self.things
        slot = np.searchsorted([0, *(s.id for s in segments)], ids)
        instance = [s.id if s.category in things and not s.is_crowd else 0 for s in segments]
        return Labels(
            semantic=np.array([VOID, *(s.category for s in segments)], dtype=np.uint8)[slot],
            instance=np.array([0, *instance], dtype=np.int32)[slot],
            crowd=np.array([False, *(s.is_crowd for s in segments)])[slot],
        )

    def result(self, index: SupportsIndex) -> PanopticResult:
        """Read the truth as a `PanopticResult` of one picture, every segment as in the file."""
        position = self._position(index)
        png = self._png(position)
        with self._naming(position):
            annotations = [self._annotations[position]]
            return PanopticResult.from_coco(annotations, [png], self._category_ids, self.things)

    @property
    def _category_ids(self) -> list[int]:
        return [category.id for category in self.categories]

    @contextmanager
    def _naming(self, position: int) -> Iterator[None]:
        """Add the file to what `lovasz_embed.panoptic` finds wrong between PNG and JSON."""
        try:
            yield
        except ValueError as error:
            path = self._png_folder / self._annotations[position]["file_name"]
            raise DataError(f"{path}: {error}") from error

    def _png(self, position: int) -> NDArray[np.uint8]:
        path = self._png_folder / self._annotations[position]["file_name"]
        png, record = read_coco_png(path), self.images[position]
        if record.height is not None and png.shape[:2] != (record.height, record.width):
            rule = f"have the size {record.height} x {record.width} that {self.json_path.name} gives image"
            got = f"{png.shape[0]} x {png.shape[1]} (height x width)"
            raise DataError(message(str(path), f"{rule} {record.image_id}", got))
        return png


def read_coco_panoptic(
    json_path: str | PathLike[str],
    images: str | PathLike[str] | None = None,
    *,
    categories: Sequence[Category] | None = None,
) -> CocoPanoptic:
    """Open a COCO panoptic JSON and the PNG folder beside it, without a data set folder around them.

    Args:
        json_path: The JSON; its PNG folder has the same name without ending.
        images: Folder of the pictures; None reads the truth alone, by `labels(i)` and `result(i)`.
        categories: Use these instead of the file's own, so that a prediction is read with the truth's
            indices; the file may then lack its list.

    Returns:
        The data set, pictures in the order of the file's images, or of its annotations where it lists none.

    Raises:
        DataError: The JSON is inconsistent, or a file it names is missing; reading a picture raises it where
            PNG and JSON disagree.

    >>> import tempfile, torch
    >>> from lovasz_embed.formats import ImageRecord, write_coco_panoptic
    >>> images, categories = [ImageRecord(7, "x.jpg")], [Category(90, "person", is_thing=True)]
    >>> one = torch.ones(1, 2, 3, dtype=torch.int32)
    >>> result = PanopticResult.from_maps(one - 1, one, things={0})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_coco_panoptic(f"{folder}/a.json", [result], images=images, categories=categories)
    ...     data = read_coco_panoptic(f"{folder}/a.json")
    ...     data.names, data.categories[0].id, data.result(0) == result
    (('x',), 90, True)
    """
    folder = None if images is None else Path(images)
    return CocoPanoptic(Path(json_path), folder, categories=categories)


def open_coco_folder(folder: Path, split: str | None = None) -> CocoPanoptic:
    """Open `annotations/panoptic_SPLIT*.json` of a data set folder with its pictures.

    The pictures lie in a folder named like the JSON (`val2017`), or `SPLIT2017`, or `SPLIT`, at the top or
    under `images`.
    """
    splits = coco_splits(folder)
    exact = [name for name in splits if name == split]
    fitting = exact or [name for name in splits if split is None or name.startswith(split)]
    if len(fitting) != 1:
        got = f"{split!r}, which fits {', '.join(fitting) or 'none'}"
        raise DataError(message("split", f"be one of {', '.join(splits)} of {folder / 'annotations'}", got))
    [name] = fitting
    short = name.rstrip("0123456789") or name
    choices = dict.fromkeys((name, f"{short}2017", short))
    tried = [top / choice for top in (folder, folder / "images") for choice in choices]
    images = next((path for path in tried if path.is_dir()), None)
    if images is None:
        got = "none of " + ", ".join(path.relative_to(folder).as_posix() for path in tried)
        remedy = "Read a truth without pictures with read_coco_panoptic."
        raise DataError(message(str(folder), f"hold the pictures of split {name}", got, remedy))
    return CocoPanoptic(folder / "annotations" / f"panoptic_{name}.json", images)


def coco_splits(folder: Path) -> tuple[str, ...]:
    """Return the names X of the files `annotations/panoptic_X.json`, sorted."""
    existing_folder(folder, "a folder with annotations/")
    files = sorted((folder / "annotations").glob("panoptic_*.json"))
    if not files:
        raise DataError(message(str(folder), "hold annotations/panoptic_SPLIT.json", "no such file"))
    return tuple(file.stem.removeprefix("panoptic_") for file in files)


def _must_exist(path: Path, record: ImageRecord) -> None:
    if not is_file(path):
        raise DataError(message(str(path), f"exist for image {record.image_id}", "no such file"))
