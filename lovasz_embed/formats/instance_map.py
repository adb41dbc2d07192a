"""Instance maps: one file read or written, folders of pictures with one each, and pictures without any."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._atomic import replacing
from lovasz_embed._check import message
from lovasz_embed.formats._base import Category, DataError, ImageRecord, Labels, PanopticDataset
from lovasz_embed.formats._files import existing_folder, read_json, writing
from lovasz_embed.formats._pictures import (
    LABEL_SUFFIXES,
    PICTURE_SUFFIXES,
    TIFF_SUFFIXES,
    read_label_map,
    read_picture,
    require,
)
from lovasz_embed.formats._png import write_png
from lovasz_embed.panoptic._strips import strip_rows

UINT16_MAX, _INT32_MAX = 65535, 2**31 - 1
_CATEGORIES = (Category(0, "background", is_thing=False), Category(1, "object", is_thing=True))


class InstanceMaps(PanopticDataset):
    """Pictures in `images/`, and for each an instance map of the same name in `labels/`.

    An instance map is a PNG or TIFF of one integer channel, 0 = background, any other value one object. The
    two categories are background (stuff, 0) and object (thing, 1). `index.json`, a list of records with
    `name` and `split`, divides the pictures into splits; without it they are one.

    Args:
        folder: The folder that holds `images` and `labels`.
        split: Name of a split; None takes the only one.

    Raises:
        DataError: No picture, a picture without labels or labels without a picture, or an unknown split.
    """

    def __init__(self, folder: Path, split: str | None = None) -> None:
        names = _names_of_split(folder, split)
        remedy = "Open pictures without labels with open_pictures."
        if not (folder / "labels").is_dir():
            raise DataError(message(str(folder), "hold a folder labels/", "none", remedy))
        pictures = _by_name(existing_folder(folder / "images", "a folder of pictures"), PICTURE_SUFFIXES)
        labels = _by_name(folder / "labels", LABEL_SUFFIXES)
        if names is None:
            names = sorted(pictures.keys() | labels.keys())
        for name in names:
            if name not in pictures:
                raise DataError(message(str(folder / "images"), f"hold a picture named {name}", "none"))
            if name not in labels:
                rule = f"hold a PNG or TIFF named {name}"
                raise DataError(message(str(folder / "labels"), rule, "none", remedy))
        self.folder = folder
        self._labels = tuple(labels[name] for name in names)
        super().__init__(_CATEGORIES, _records([pictures[name] for name in names]))

    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read the picture alone, uint8 (H, W, 3)."""
        return read_picture(self.image_file(index))

    def image_file(self, index: SupportsIndex) -> Path:
        """Return the file of the picture."""
        return self.folder / "images" / self.images[self._position(index)].file_name

    def labels(self, index: SupportsIndex) -> Labels:
        """Read the instance map; its values are the instance ids."""
        instance = read_label_map(self._labels[self._position(index)])
        return Labels((instance > 0).astype(np.uint8), instance)


class Pictures(PanopticDataset):
    """Pictures without labels, for prediction; `categories` is empty and the maps of each sample are None.

    Args:
        files: The picture files.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        super().__init__((), _records(self.files))

    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read the picture, uint8 (H, W, 3)."""
        return read_picture(self.image_file(index))

    def image_file(self, index: SupportsIndex) -> Path:
        """Return the file of the picture."""
        return self.files[self._position(index)]

    def labels(self, index: SupportsIndex) -> None:
        """There are none."""
        self._position(index)


def open_pictures(folder_or_files: str | PathLike[str] | Sequence[str | PathLike[str]]) -> Pictures:
    """Open pictures without labels: every picture of a folder, one file, or a list of files.

    Args:
        folder_or_files: A folder (its picture files, sorted by name, without sub-folders), a file, or files.

    Returns:
        The data set; its `images` number the pictures from 1.

    Raises:
        DataError: Nothing there, a folder without pictures, or two pictures of one name.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (4, 3)).save(f"{folder}/cell.png")
    ...     pictures = open_pictures(folder)
    ...     pictures.names, pictures[0].image.shape
    (('cell',), (3, 4, 3))
    """
    if isinstance(folder_or_files, str | PathLike):
        path = Path(folder_or_files)
        files = list(_by_name(path, PICTURE_SUFFIXES).values()) if path.is_dir() else [path]
    else:
        files = [Path(file) for file in folder_or_files]
    if not files:
        raise DataError(message("folder_or_files", "name at least one picture", "an empty list"))
    for file in files:
        if not file.is_file():
            raise DataError(message(str(file), "be a picture or a folder of pictures", "nothing there"))
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        remedy = "Results are named after their picture: rename one of them."
        raise DataError(message("folder_or_files", "hold every name once", f"{twice} twice", remedy))
    return Pictures(files)


def read_instance_map(path: str | PathLike[str]) -> NDArray[np.int32]:
    """Read an instance map, the inverse of `write_instance_map`.

    Args:
        path: A PNG or TIFF of one integer channel.

    Returns:
        int32 (H, W), 0 = background.

    Raises:
        DataError: No such file, a damaged one, or more than one channel.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (3, 1), 9).save(f"{folder}/cell.png")
    ...     read_instance_map(f"{folder}/cell.png")
    array([[9, 9, 9]], dtype=int32)
    """
    return read_label_map(Path(path))


def write_instance_map(path: str | PathLike[str], labels: NDArray[Any] | Tensor) -> None:
    """Write an instance map as a 16-bit PNG or TIFF, whichever the ending says; a TIFF has 32 bits where it must.

    Args:
        path: Ends in .png, .tif or .tiff; missing parent folders are made.
        labels: Integers (H, W), 0 = background; instances up to 65535 in a PNG, to 2147483647 in a TIFF. A
            `numpy.memmap` is read by rows.

    Raises:
        DataError: An instance beyond that, another ending, or a place that cannot be written.
        ValueError: Not one channel, or negative labels.
        TypeError: Labels are not integers.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_instance_map(f"{folder}/cells.png", np.array([[0, 1], [2, 2]]))
    ...     read_instance_map(f"{folder}/cells.png").tolist()
    [[0, 1], [2, 2]]
    """
    _check.is_path("path", path)
    path = Path(path)
    if path.suffix.lower() not in LABEL_SUFFIXES:
        raise DataError(message("path", f"end in {', '.join(sorted(LABEL_SUFFIXES))}", path.name))
    if isinstance(labels, Tensor):
        _check.is_labels("labels", labels)
        _check.has_values("labels", labels)
    elif not isinstance(labels, np.ndarray):
        raise TypeError(message("labels", "be an array or a tensor of integers", type(labels).__name__))
    values = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
    if values.dtype.kind not in "bui":
        raise TypeError(message("labels", "be integers", values.dtype))
    if values.ndim != 2 or values.size == 0:
        raise ValueError(message("labels", "have shape (H, W)", values.shape, "Write one file per picture."))
    if int(values.min()) < 0:
        raise ValueError(message("labels", "be 0 or above", values.min()))
    largest, is_tiff = int(values.max()), path.suffix.lower() in TIFF_SUFFIXES
    if largest > (_INT32_MAX if is_tiff else UINT16_MAX):
        count = len(np.unique(values[values > 0]))
        fits = is_tiff or count <= UINT16_MAX
        remedy = "Renumber them from 1." if fits else "End the name in .tif, which holds 32 bits."
        rule = f"be at most {_INT32_MAX}" if is_tiff else f"be at most {UINT16_MAX} to fit 16 bits"
        raise DataError(message("labels", rule, f"{count} instances up to id {largest}", remedy))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_labels(path, (values.shape[0], values.shape[1]), largest, (values[r] for r in strip_rows(*values.shape)))


def write_labels(path: Path, size: tuple[int, int], largest: int, strips: Iterator[NDArray[Any]]) -> None:
    """Write an instance map of any size by its rows, as `strip_rows` divides them; see `write_instance_map`."""
    dtype = np.dtype("<u2" if largest <= UINT16_MAX else "<u4")
    converted = (strip.astype(dtype) for strip in strips)
    with replacing(path) as temporary:
        if path.suffix.lower() not in TIFF_SUFFIXES:
            write_png(temporary, size, converted)
            return
        require("tifffile", "tifffile")
        import tifffile

        packed = (zlib.compress(strip.tobytes()) for strip in converted)  # tifffile takes single strips only so
        rows = next(strip_rows(*size)).stop
        layout: dict[str, Any] = {"shape": size, "dtype": dtype, "rowsperstrip": rows, "photometric": "minisblack"}
        tifffile.imwrite(temporary, packed, byteorder="<", compression="zlib", **layout)


def instance_map_splits(folder: Path) -> tuple[str, ...]:
    """Return the names of the splits in `index.json`, in order of appearance; () without that file."""
    index = existing_folder(folder, "a folder with images/ and labels/") / "index.json"
    if not index.is_file():
        return ()
    return tuple(dict.fromkeys(split for _, split in _read_index(index)))


def _names_of_split(folder: Path, split: str | None) -> list[str] | None:
    """Return the names that belong to `split`, or None for all pictures."""
    splits, index = instance_map_splits(folder), folder / "index.json"
    if not splits:
        if split is not None:
            rule = f"be None, because all pictures of {folder} are one split without an index.json"
            raise DataError(message("split", rule, repr(split)))
        return None
    chosen = splits[0] if split is None and len(splits) == 1 else split
    if chosen not in splits:
        raise DataError(message("split", f"be one of {', '.join(splits)} of {index}", repr(split)))
    return [name for name, of in _read_index(index) if of == chosen]


def _read_index(path: Path) -> list[tuple[str, str]]:
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise DataError(message(str(path), "be a list of records", type(records).__name__))
    pairs: dict[str, str] = {}
    for position, record in enumerate(records):
        name = record.get("name") if isinstance(record, dict) else None
        split = record.get("split") if isinstance(record, dict) else None
        if not isinstance(name, str) or not isinstance(split, str):
            rule = "hold records with the texts 'name' and 'split'"
            raise DataError(message(str(path), rule, f"{record!r} at position {position}"))
        if name in pairs:
            raise DataError(message(str(path), "name every picture once", f"{name} twice"))
        pairs[name] = split
    return list(pairs.items())


def _by_name(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Return the files of a folder by their name without ending, without hidden files and other endings."""
    shown = (file for file in folder.iterdir() if not file.name.startswith("."))
    files = sorted(file for file in shown if file.suffix.lower() in suffixes)
    if not files:
        raise DataError(message(str(folder), f"hold files ending in {', '.join(sorted(suffixes))}", "none"))
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            got = f"{found[file.stem].name} and {file.name}"
            raise DataError(message(str(folder), "hold one file per name", got))
        found[file.stem] = file
    return found


def _records(files: Sequence[Path]) -> list[ImageRecord]:
    """Number pictures from 1, because COCO files want integer ids."""
    return [ImageRecord(number, file.name) for number, file in enumerate(files, start=1)]
