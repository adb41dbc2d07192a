"""KITTI-STEP: films of streets; each pixel's category in the red channel, its track in green and blue.

Format: http://www.cvlibs.net/datasets/kitti/eval_step.php. R is a Cityscapes train id, 255 = void; 256 G + B is the id
of a person or car over its whole sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._check import message
from lovasz_embed.formats._base import VOID, Category, DataError, ImageRecord, Labels
from lovasz_embed.formats._cityscapes_classes import EVALUATED
from lovasz_embed.formats._clips import ID_RANGE, ClipDataset, frame_order
from lovasz_embed.formats._codes import STRIP, require_rgb_png
from lovasz_embed.formats._files import existing_folder
from lovasz_embed.formats._folders import files_by_key, must_pair, one_split, sub_folders
from lovasz_embed.formats._label_writer import Files, kept_number, known_category, paint, png, write_label_folder
from lovasz_embed.formats._pictures import PICTURE_SUFFIXES, read_coco_png, read_picture
from lovasz_embed.panoptic import PanopticResult, Segment

MAPS = "panoptic_maps"
_TRACKED = frozenset({"person", "car"})
_CATEGORIES = tuple(Category(c.train_id or 0, c.name, c.name in _TRACKED, c.group) for c in EVALUATED)
_IS_THING = np.array([category.is_thing for category in _CATEGORIES] + [False] * (256 - len(_CATEGORIES)))


class KittiStep(ClipDataset):
    """A split of KITTI-STEP: `panoptic_maps/SPLIT/SEQUENCE/*.png` and the pictures of the same names.

    The pictures lie in `images/SPLIT/SEQUENCE`, or as KITTI packs them in `image_02/SEQUENCE`, at the top or below
    `training`, where the sequences of the other split are passed over. The categories are the 19 evaluated classes of
    Cityscapes; of these only person and car are things. A person or car without a number is crowd.

    Args:
        folder: The folder that holds `panoptic_maps`.
        split: "train" or "val" for example; None takes the only one.

    Raises:
        DataError: No such folder or split, or a sequence or frame that only one of pictures and maps has.
    """

    def __init__(self, folder: Path, split: str | None = None) -> None:
        split = one_split(folder / MAPS, kitti_step_splits(folder), split)
        maps = folder / MAPS / split
        pictures, shared = _picture_folder(folder, split)
        sequences = sub_folders(maps)
        missing = [name for name in sequences if not (pictures / name).is_dir()]
        if not shared:
            missing += [name for name in sub_folders(pictures) if name not in sequences]
        if missing or not sequences:
            rule = f"have the same sequences as {pictures}"
            got = f"{missing[0]} in one of them only" if missing else "none"
            raise DataError(message(str(maps), rule, got))
        records, self._pictures, self._maps = [], list[Path](), list[Path]()
        frames: list[tuple[str, int]] = []
        for name in sequences:
            of_pictures = files_by_key(pictures / name, sorted(PICTURE_SUFFIXES))
            of_maps = files_by_key(maps / name, [".png"])
            must_pair(pictures / name, maps / name, of_pictures, of_maps)
            keys = sorted(of_pictures, key=frame_order)
            for key in keys:
                records.append(ImageRecord(f"{name}/{key}", f"{name}/{of_pictures[key].name}"))
                self._pictures.append(of_pictures[key])
                self._maps.append(of_maps[key])
            frames.append((name, len(keys)))
        self.folder = folder
        super().__init__(_CATEGORIES, records, frames)

    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read the picture alone, uint8 (H, W, 3)."""
        return read_picture(self.image_file(index))

    def image_file(self, index: SupportsIndex) -> Path:
        """Return the file of the picture."""
        return self._pictures[self._position(index)]

    def _labels_of(self, position: int) -> Labels:
        return read_kitti_step_map(self._maps[position])


def read_kitti_step_map(path: str | PathLike[str]) -> Labels:
    """Read a panoptic map of KITTI-STEP.

    Args:
        path: An 8-bit RGB PNG.

    Returns:
        Semantic, uint8 (H, W), is the train id, 255 = void. Instance, int32, is 65536 × (train id + 1) + number, the
        same in all frames of a sequence. Persons and cars without a number are crowd; numbers of other classes mean
        nothing and are ignored.

    Raises:
        DataError: No such file, a damaged one, another kind of PNG, or a red value that is neither 0 ... 18 nor 255.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.fromarray(np.array([[[0, 0, 0], [13, 1, 2]]], np.uint8)).save(f"{folder}/a.png")
    ...     labels = read_kitti_step_map(f"{folder}/a.png")
    >>> labels.semantic.tolist(), labels.instance.tolist()
    ([[0, 13]], [[0, 917762]])
    >>> divmod(917762, 65536)  # car 258: 256 × 1 + 2
    (14, 258)
    """
    path = Path(path)
    require_rgb_png(path)
    colours = read_coco_png(path)
    semantic = np.ascontiguousarray(colours[..., 0])
    instance = np.empty(semantic.shape, np.int32)
    crowd = np.empty(semantic.shape, bool)
    rows = max(1, STRIP // max(1, semantic.shape[1]))
    for top in range(0, len(colours), rows):
        part = slice(top, top + rows)
        red, green, blue = (colours[part, :, channel].astype(np.int32) for channel in range(3))
        stray = (red >= len(_CATEGORIES)) & (red != VOID)
        if stray.any():
            row, column = np.argwhere(stray)[0].tolist()
            rule = f"hold train ids from 0 to {len(_CATEGORIES) - 1}, or {VOID} for void, in its red channel"
            got = f"{red[row, column]} at row {top + row}, column {column}"
            raise DataError(message(str(path), rule, got))
        number = green << 8 | blue
        is_thing = _IS_THING[red]
        crowd[part] = is_thing & (number == 0)
        instance[part] = np.where(is_thing & (number > 0), (red + 1) * ID_RANGE + number, 0)
    return Labels(semantic, instance, crowd)


def write_kitti_step(
    folder: str | PathLike[str], results: Iterable[PanopticResult], *, images: Sequence[ImageRecord]
) -> None:
    """Write results as the panoptic maps of KITTI-STEP.

    The number of a person or car is its segment's id, from 1 to 65535 as `track` gives it, or what `KittiStep` made
    of it while reading. Truck, bus and all else have none; crowds have the number 0.

    Args:
        folder: In the place of `panoptic_maps/SPLIT`; must not exist yet, or be empty.
        results: One picture or a batch each, in the order of `images`; categories are train ids. An iterator is
            consumed one result at a time.
        images: `images` of the data set that was predicted: `SEQUENCE/FRAME.png` keeps its name.

    Raises:
        DataError: Not as many pictures as images, a size other than the record's, an id that does not fit, a
            category beyond 18, or a place that is taken or cannot be written.

    >>> import tempfile, torch
    >>> from lovasz_embed.panoptic import Segment
    >>> frame = PanopticResult(torch.tensor([[[7, 7]]], dtype=torch.int32), ((Segment(7, 13, True, 2),),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_kitti_step(f"{folder}/val", [frame], images=[ImageRecord("0002/000000", "0002/000000.png")])
    ...     read_kitti_step_map(f"{folder}/val/0002/000000.png").instance.tolist()
    [[917511, 917511]]
    """

    def files(image: ImageRecord, picture: PanopticResult) -> Files:
        def number(segment: Segment) -> int:
            category = known_category(segment, len(_CATEGORIES))
            if segment.is_crowd or not _CATEGORIES[category].is_thing:
                return 0
            return kept_number(segment, ID_RANGE * (category + 1), ID_RANGE - 1, "16 bits")

        numbers = paint(picture, number, 0, np.uint16)
        red = paint(picture, lambda segment: segment.category, VOID, np.uint8)
        colours = np.stack([red, (numbers >> 8).astype(np.uint8), (numbers & 255).astype(np.uint8)], axis=-1)
        return {f"{image.name}.png": png(colours)}

    write_label_folder(folder, results, images, files)


def kitti_step_splits(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in `panoptic_maps`, sorted."""
    existing_folder(folder, f"a folder with {MAPS}/ and images/")
    if not (folder / MAPS).is_dir():
        raise DataError(message(str(folder), f"hold a folder {MAPS}/", "none"))
    return sub_folders(folder / MAPS)


def _picture_folder(folder: Path, split: str) -> tuple[Path, bool]:
    """Return the folder of sequences, and whether it holds those of other splits as well."""
    if (folder / "images" / split).is_dir():
        return folder / "images" / split, False
    tried = [folder / "image_02", folder / "training" / "image_02"]
    for path in tried:
        if path.is_dir():
            return path, True
    names = ", ".join(path.relative_to(folder).as_posix() for path in tried)
    raise DataError(message(str(folder), f"hold the pictures in images/{split}, {names}", "none of them"))
