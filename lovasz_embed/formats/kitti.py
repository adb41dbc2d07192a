"""KITTI's instance maps (256 × label + number) and MOTS maps (1000 × class + track): 16-bit grey PNGs.

Formats: http://www.cvlibs.net/datasets/kitti/eval_instance_seg.php, https://www.vision.rwth-aachen.de/page/mots
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed.formats._base import VOID, Category, DataError, ImageRecord, Labels, PanopticDataset
from lovasz_embed.formats._cityscapes_classes import CATEGORIES, CITYSCAPES_CLASSES, EVALUATED
from lovasz_embed.formats._clips import ID_RANGE, ClipDataset, frame_order
from lovasz_embed.formats._codes import Codes, decode, require_grey_png
from lovasz_embed.formats._files import existing_folder, read_text
from lovasz_embed.formats._folders import files_by_key, must_have_same_folders, must_pair, one_split, sub_folders
from lovasz_embed.formats._label_writer import (
    Files,
    count_things,
    kept_number,
    known_category,
    paint,
    png,
    write_label_folder,
)
from lovasz_embed.formats._pictures import PICTURE_SUFFIXES, read_label_map, read_picture
from lovasz_embed.formats._results import check_categories
from lovasz_embed.panoptic import PanopticResult, Segment

_KITTI, _MOTS, _IGNORED = 256, 1000, 10
_MOST_CLASSES = 9  # 10 is the class of ignored regions
_OBJECTS = ("car", "pedestrian")


class Kitti(PanopticDataset):
    """Street pictures of KITTI with the classes of Cityscapes: `SPLIT/image_2/*.png`, `SPLIT/instance/*.png`.

    The upper byte of a value is the label id of Cityscapes, the lower one the number of the instance, from 1. A thing
    without a number is crowd; numbers of classes without instances are ignored. Instances keep the values of the file.

    Args:
        folder: The folder that holds `training`.
        split: "training" for example; None takes the only one.

    Raises:
        DataError: No such folder or split, a picture without labels, or labels without a picture.
    """

    def __init__(self, folder: Path, split: str | None = None) -> None:
        split = one_split(folder, kitti_splits(folder), split)
        pictures, maps = folder / split / "image_2", folder / split / "instance"
        existing_folder(maps, f"the labels of split {split}")
        of_pictures = files_by_key(pictures, sorted(PICTURE_SUFFIXES))
        of_maps = files_by_key(maps, [".png"])
        must_pair(pictures, maps, of_pictures, of_maps)
        self.folder = folder
        self._pictures, self._maps = tuple(of_pictures.values()), tuple(of_maps.values())
        super().__init__(CATEGORIES, [ImageRecord(key, path.name) for key, path in of_pictures.items()])

    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read the picture alone, uint8 (H, W, 3)."""
        return read_picture(self.image_file(index))

    def image_file(self, index: SupportsIndex) -> Path:
        """Return the file of the picture."""
        return self._pictures[self._position(index)]

    def labels(self, index: SupportsIndex) -> Labels:
        """Read the truth alone."""
        path = self._maps[self._position(index)]
        require_grey_png(path, 16)
        return decode(path, read_label_map(path), _kitti_codes(), "A value is 256 times the label id plus a number.")


class Mots(ClipDataset):
    """Films with the tracks of some classes: `SPLIT/images` and `SPLIT/instances`, with or without sequences in them.

    A value is 1000 × class + number, 0 is background, and 10000 a region to ignore, which is void. The categories are
    background (stuff) and the names in `instances/labels.txt`, line k for class k; without it car and pedestrian.

    Args:
        folder: The folder of the splits.
        split: Name of a split; None takes the only one.

    Raises:
        DataError: No such folder or split, or a sequence or frame that only one of pictures and maps has.
    """

    def __init__(self, folder: Path, split: str | None = None) -> None:
        split = one_split(folder, mots_splits(folder), split)
        pictures = existing_folder(folder / split / "images", f"the pictures of split {split}")
        maps = existing_folder(folder / split / "instances", f"the labels of split {split}")
        names = _class_names(maps / "labels.txt")
        records, self._pictures, self._maps = [], list[Path](), list[Path]()
        frames: list[tuple[str, int]] = []
        for name in must_have_same_folders(pictures, maps) or ("",):
            of_pictures = files_by_key(pictures / name, sorted(PICTURE_SUFFIXES))
            of_maps = files_by_key(maps / name, [".png"])
            must_pair(pictures / name, maps / name, of_pictures, of_maps)
            keys = sorted(of_pictures, key=frame_order)
            for key in keys:
                file = Path(name, of_pictures[key].name)
                records.append(ImageRecord(file.with_suffix("").as_posix(), file.as_posix()))
                self._pictures.append(of_pictures[key])
                self._maps.append(of_maps[key])
            frames.append((name or split, len(keys)))
        self.folder = folder
        things = [Category(number, name, is_thing=True) for number, name in enumerate(names, start=1)]
        super().__init__([Category(0, "background", is_thing=False), *things], records, frames)

    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read the picture alone, uint8 (H, W, 3)."""
        return read_picture(self.image_file(index))

    def image_file(self, index: SupportsIndex) -> Path:
        """Return the file of the picture."""
        return self._pictures[self._position(index)]

    def _labels_of(self, position: int) -> Labels:
        path = self._maps[position]
        require_grey_png(path, 16)
        remedy = f"Classes are {', '.join(category.name for category in self.categories[1:])}, from 1."
        return decode(path, read_label_map(path), _mots_codes(len(self.categories)), remedy)


def write_kitti(
    folder: str | PathLike[str], results: Iterable[PanopticResult], *, images: Sequence[ImageRecord]
) -> None:
    """Write results as the instance maps of KITTI, 256 × label id + number.

    Args:
        folder: In the place of `SPLIT/instance`; must not exist yet, or be empty.
        results: One picture or a batch each, in the order of `images`; categories are train ids of Cityscapes.
        images: `images` of the data set that was predicted.

    Raises:
        DataError: Not as many pictures as images, a size other than the record's, more than 255 things of a class, a
            category beyond 18, or a place that is taken or cannot be written.

    >>> import tempfile, torch
    >>> car = PanopticResult.from_maps(torch.tensor([[[0, 13]]]), torch.tensor([[[0, 5]]]), things={13})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_kitti(f"{folder}/instance", [car], images=[ImageRecord("a", "a.png")])
    ...     read_label_map(Path(folder, "instance", "a.png")).tolist()  # road is 7, car is 26
    [[1792, 6657]]
    """

    def files(image: ImageRecord, picture: PanopticResult) -> Files:
        numbers = count_things(picture, 1, _KITTI - 1, "an instance map")

        def value(segment: Segment) -> int:
            kind = EVALUATED[known_category(segment, len(EVALUATED))]
            return _KITTI * kind.id + numbers.get(segment.id, 0)

        return {f"{image.name}.png": png(paint(picture, value, 0, np.uint16))}

    write_label_folder(folder, results, images, files)


def write_mots(
    folder: str | PathLike[str],
    results: Iterable[PanopticResult],
    *,
    images: Sequence[ImageRecord],
    categories: Sequence[Category],
) -> None:
    """Write results as MOTS maps, 1000 × class + number, with the names of the classes in `labels.txt`.

    The number of a thing is its segment's id, from 1 to 999 as `track` gives it, or what `Mots` made of it while
    reading. Stuff is 0; void and crowds are 10000, regions to ignore.

    Args:
        folder: In the place of `SPLIT/instances`; must not exist yet, or be empty.
        results: One picture or a batch each, in the order of `images`.
        images: `images` of the data set that was predicted.
        categories: Its `categories`: the background, then the classes.

    Raises:
        DataError: Not as many pictures as images, a size other than the record's, an id that does not fit, more than
            nine classes, or a place that is taken or cannot be written.

    >>> import tempfile, torch
    >>> from lovasz_embed.panoptic import Segment
    >>> frame = PanopticResult(torch.tensor([[[0, 7]]], dtype=torch.int32), ((Segment(7, 1, True, 1),),))
    >>> categories = [Category(0, "background", False), Category(1, "car", True)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_mots(f"{folder}/instances", [frame], images=[ImageRecord("1", "1.png")], categories=categories)
    ...     read_label_map(Path(folder, "instances", "1.png")).tolist()
    [[10000, 1007]]
    """
    check_categories(categories)
    if not 2 <= len(categories) <= 1 + _MOST_CLASSES or categories[0].is_thing:
        rule = f"be a background and 1 to {_MOST_CLASSES} classes"
        raise DataError(message("categories", rule, [category.name for category in categories]))

    def files(image: ImageRecord, picture: PanopticResult) -> Files:
        def value(segment: Segment) -> int:
            category = known_category(segment, len(categories))
            if segment.is_crowd:
                return _IGNORED * _MOTS
            if category == 0:
                return 0
            return _MOTS * category + kept_number(segment, ID_RANGE * (category + 1), _MOTS - 1, "a MOTS map")

        return {f"{image.name}.png": png(paint(picture, value, _IGNORED * _MOTS, np.uint16))}

    names = "\n".join(category.name for category in categories[1:])
    write_label_folder(folder, results, images, files, lambda: {"labels.txt": (names + "\n").encode()})


def kitti_splits(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders that hold `image_2`, sorted."""
    return _splits(folder, "image_2", "instance")


def mots_splits(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders that hold `images`, sorted."""
    return _splits(folder, "images", "instances")


def _splits(folder: Path, pictures: str, labels: str) -> tuple[str, ...]:
    existing_folder(folder, f"a folder of splits, each with {pictures}/ and {labels}/")
    splits = tuple(name for name in sub_folders(folder) if (folder / name / pictures).is_dir())
    if not splits:
        raise DataError(message(str(folder), f"hold SPLIT/{pictures}/ and SPLIT/{labels}/", "no such folder"))
    return splits


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return _OBJECTS
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if not 1 <= len(names) <= _MOST_CLASSES or len(set(names)) < len(names):
        raise DataError(message(str(path), f"name 1 to {_MOST_CLASSES} classes, a line each", names))
    return names


@cache
def _kitti_codes() -> Codes:
    codes = Codes.empty()
    for kind in CITYSCAPES_CLASSES:
        values = np.arange(_KITTI * kind.id, _KITTI * (kind.id + 1))
        codes.known[values] = True
        if kind.train_id is None:
            continue
        codes.semantic[values] = kind.train_id
        if kind.has_instances:
            codes.crowd[values[0]] = True
            codes.instance[values[1:]] = values[1:]
    return codes


@cache
def _mots_codes(categories: int) -> Codes:
    codes = Codes.empty()
    codes.known[[0, _IGNORED * _MOTS]] = True
    codes.semantic[0] = 0
    codes.semantic[_IGNORED * _MOTS] = VOID
    for category in range(1, categories):
        values = np.arange(_MOTS * category, _MOTS * (category + 1))
        codes.known[values] = True
        codes.semantic[values] = category
        codes.crowd[values[0]] = True  # a thing without a number
        codes.instance[values[1:]] = ID_RANGE * (category + 1) + np.arange(1, _MOTS)
    return codes
