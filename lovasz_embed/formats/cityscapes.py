"""Cityscapes: a folder per city, and a map of label ids and instance numbers for each picture.

Format: https://github.com/mcordts/cityscapesScripts. A value below 1000 in `instanceIds.png` is a label id: stuff, or
a group of things that nobody told apart. Any other value is 1000 × label id + number of the instance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed.formats._base import VOID, DataError, ImageRecord, Labels, PanopticDataset
from lovasz_embed.formats._cityscapes_classes import CATEGORIES, CITYSCAPES_CLASSES, EVALUATED
from lovasz_embed.formats._codes import Codes, decode, require_grey_png
from lovasz_embed.formats._files import existing_folder
from lovasz_embed.formats._folders import (
    PREDICT_ALONE,
    files_by_key,
    must_have_same_folders,
    must_pair,
    one_split,
    sub_folders,
)
from lovasz_embed.formats._label_writer import Files, count_things, known_category, paint, png, write_label_folder
from lovasz_embed.formats._pictures import read_label_map, read_picture
from lovasz_embed.panoptic import PanopticResult, Segment

PICTURES = "leftImg8bit"
_PER_LABEL = 1000
_REMEDY = f"Label ids end at {CITYSCAPES_CLASSES[-1].id}; instances are 1000 times their label id and more."


class Cityscapes(PanopticDataset):
    """A split of Cityscapes: `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and its `*_instanceIds.png`.

    The categories are the 19 evaluated classes, indices = train ids; all others are void. Opening lists the folders
    and reads no picture.

    Args:
        folder: The folder that holds `leftImg8bit` and `gtFine`.
        split: "train", "val", "test", or any other folder there; None takes the only one.
        annotations: "gtFine" or "gtCoarse", the folder of the label maps and the middle of their names.

    Raises:
        DataError: No such folder or split, a city or picture without labels, or labels without a picture.
    """

    def __init__(self, folder: Path, split: str | None = None, *, annotations: str = "gtFine") -> None:
        split = one_split(folder, cityscapes_splits(folder, annotations), split)
        pictures, labels = folder / PICTURES / split, folder / annotations / split
        existing_folder(pictures, f"the pictures of split {split}")
        if not labels.is_dir():
            raise DataError(message(str(labels), f"be the labels of split {split}", "nothing there", PREDICT_ALONE))
        ending = f"_{annotations}_instanceIds.png"
        files: list[tuple[str, Path, Path]] = []
        for city in must_have_same_folders(pictures, labels):
            of_pictures = files_by_key(pictures / city, [f"_{PICTURES}.png"])
            of_labels = files_by_key(labels / city, [ending])
            must_pair(pictures / city, labels / city, of_pictures, of_labels)
            files += [(key, path, of_labels[key]) for key, path in of_pictures.items()]
        if not files:
            rule = f"hold folders of cities with files ending in _{PICTURES}.png"
            raise DataError(message(str(pictures), rule, "none"))
        self.folder = folder
        self._pictures = pictures
        self._labels = tuple(path for _, _, path in files)
        records = [ImageRecord(key, path.relative_to(pictures).as_posix()) for key, path, _ in files]
        super().__init__(CATEGORIES, records)

    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read the picture alone, uint8 (H, W, 3)."""
        return read_picture(self.image_file(index))

    def image_file(self, index: SupportsIndex) -> Path:
        """Return the file of the picture."""
        return self._pictures / self.images[self._position(index)].file_name

    def labels(self, index: SupportsIndex) -> Labels:
        """Read the truth alone; instances keep the values of the file, groups are crowd."""
        return read_cityscapes_map(self._labels[self._position(index)])


def read_cityscapes_map(path: str | PathLike[str]) -> Labels:
    """Read an `instanceIds.png`.

    Args:
        path: A grey PNG of 16 bits, or of 8, which can hold groups only.

    Returns:
        Semantic, uint8 (H, W), is the train id, 255 for classes that are not evaluated. Instance keeps the values of
        the file, 26003 for example, and is 0 for stuff, void and groups. Groups of things are crowd. A number behind
        a class without instances means nothing and is ignored.

    Raises:
        DataError: No such file, a damaged one, another kind of PNG, or a label id beyond 33.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     values = np.array([[7, 26000, 26001, 26]], np.uint16)  # road, two cars, a group of cars
    ...     Image.fromarray(values).save(f"{folder}/a.png")
    ...     labels = read_cityscapes_map(f"{folder}/a.png")
    >>> labels.semantic.tolist(), labels.instance.tolist(), labels.crowd.tolist()
    ([[0, 13, 13, 13]], [[0, 26000, 26001, 0]], [[False, False, False, True]])
    """
    path = Path(path)
    require_grey_png(path, 8, 16)
    return decode(path, read_label_map(path), _codes(), _REMEDY)


def write_cityscapes(
    folder: str | PathLike[str], results: Iterable[PanopticResult], *, images: Sequence[ImageRecord]
) -> None:
    """Write results as Cityscapes writes its truth: `instanceIds`, `labelIds` and `labelTrainIds` of each picture.

    Void becomes label id 0 and train id 255. Things are numbered from 0 in each class; crowds become groups.

    Args:
        folder: In the place of `gtFine/SPLIT`; must not exist yet, or be empty. A picture
            `CITY/NAME_leftImg8bit.png` gets `CITY/NAME_gtFine_instanceIds.png` and the like.
        results: One picture or a batch each, in the order of `images`; categories are train ids. An iterator is
            consumed one result at a time.
        images: `images` of the data set that was predicted.

    Raises:
        DataError: Not as many pictures as images, a size other than the record's, more than 1000 things of a class,
            a category beyond 18, or a place that is taken or cannot be written.

    >>> import tempfile, torch
    >>> car = PanopticResult.from_maps(torch.tensor([[[0, 13]]]), torch.tensor([[[0, 1]]]), things={13})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images = [ImageRecord("bonn_000000_000019", "bonn/bonn_000000_000019_leftImg8bit.png")]
    ...     write_cityscapes(f"{folder}/val", [car], images=images)
    ...     read_cityscapes_map(f"{folder}/val/bonn/bonn_000000_000019_gtFine_instanceIds.png").instance.tolist()
    [[0, 26000]]
    """

    def files(image: ImageRecord, picture: PanopticResult) -> Files:
        numbers = count_things(picture, 0, _PER_LABEL - 1, "instanceIds.png")

        def label(segment: Segment) -> int:
            return EVALUATED[known_category(segment, len(EVALUATED))].id

        def value(segment: Segment) -> int:
            if segment.id in numbers:
                return _PER_LABEL * label(segment) + numbers[segment.id]
            return label(segment)

        stem = str(PurePosixPath(image.file_name).with_suffix("")).removesuffix(f"_{PICTURES}") + "_gtFine"
        return {
            f"{stem}_instanceIds.png": png(paint(picture, value, 0, np.uint16)),
            f"{stem}_labelIds.png": png(paint(picture, label, 0, np.uint8)),
            f"{stem}_labelTrainIds.png": png(paint(picture, lambda segment: segment.category, VOID, np.uint8)),
        }

    write_label_folder(folder, results, images, files)


def cityscapes_splits(folder: Path, annotations: str = "gtFine") -> tuple[str, ...]:
    """Return the names of the folders in `leftImg8bit` and `gtFine` (or `gtCoarse`), sorted."""
    existing_folder(folder, f"a folder with {PICTURES}/ and {annotations}/")
    for half, remedy in ((PICTURES, ""), (annotations, PREDICT_ALONE)):
        if not (folder / half).is_dir():
            raise DataError(message(str(folder), f"hold a folder {half}/", "none", remedy))
    # Cityscapes keeps panoptic PNGs in folders of their own beside the splits of gtFine.
    labels = (name for name in sub_folders(folder / annotations) if not name.startswith("cityscapes_panoptic_"))
    return tuple(sorted({*sub_folders(folder / PICTURES), *labels}))


@cache
def _codes() -> Codes:
    codes = Codes.empty()
    for kind in CITYSCAPES_CLASSES:
        first = _PER_LABEL * kind.id
        # 0 ... 999 would be instances of label id 0, which has none: they are label ids.
        values = [kind.id, *(range(first, first + _PER_LABEL) if first else ())]
        codes.known[values] = True
        if kind.train_id is None:
            continue
        codes.semantic[values] = kind.train_id
        if kind.has_instances:
            codes.crowd[kind.id] = True
            codes.instance[values[1:]] = values[1:]
    return codes
