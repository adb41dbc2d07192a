"""What every data set has: categories, records of its pictures, and samples that are read when asked for."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lovasz_embed._check import message
from lovasz_embed.panoptic import PanopticResult

VOID = 255
"""Value of a void pixel in a semantic map, and so the largest number of categories."""


class DataError(ValueError):
    """A file or folder that is missing, unreadable, inconsistent or unwritable; the text names it."""


@dataclass(frozen=True)
class Category:
    """One category as its data set defines it.

    Attributes:
        id: The data set's own id. Inside the package a category is its index in `PanopticDataset.categories`.
        name: What people call it.
        is_thing: Whether it is countable (True) or stuff (False).
        supercategory: The group it belongs to, empty for none.
    """

    id: int
    name: str
    is_thing: bool
    supercategory: str = ""


@dataclass(frozen=True)
class ImageRecord:
    """What a data set knows of a picture before reading it.

    Attributes:
        image_id: The data set's own id; predictions carry it, so that they can be matched with the truth.
        file_name: Path of the picture relative to the folder of pictures, with its ending.
        height: In pixels, None where only the picture itself knows.
        width: In pixels, None where only the picture itself knows.
    """

    image_id: int | str
    file_name: str
    height: int | None = None
    width: int | None = None

    @property
    def name(self) -> str:
        """The file name without its ending."""
        return str(PurePosixPath(self.file_name).with_suffix(""))


@dataclass(frozen=True, eq=False)
class Labels:
    """The truth of one picture.

    Attributes:
        semantic: uint8 (H, W), index of the category of each pixel, 255 = void.
        instance: Int32 (H, W), id of the thing a pixel belongs to, 0 = none (stuff, void, crowd).
        crowd: Bool (H, W), pixels of groups that nobody counted; None where the format has no crowds.
    """

    semantic: NDArray[np.uint8]
    instance: NDArray[np.int32]
    crowd: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture with its truth; the maps are those of `Labels`, or None where the data set has no labels.

    Attributes:
        name: Name of the picture, without ending.
        image: uint8 (H, W, 3), red, green, blue.
        semantic: uint8 (H, W) or None.
        instance: Int32 (H, W) or None.
        crowd: Bool (H, W) or None.
    """

    name: str
    image: NDArray[np.uint8]
    semantic: NDArray[np.uint8] | None = None
    instance: NDArray[np.int32] | None = None
    crowd: NDArray[np.bool_] | None = None


class PanopticDataset(Dataset[Sample], ABC):
    """Pictures and their truth, read from disk one by one as they are asked for.

    It holds paths and records only, never an open file, so it can be pickled, and forked into the workers of
    a `torch.utils.data.DataLoader`.

    Attributes:
        categories: In the order of their index inside the package.
        images: One record per picture.
    """

    categories: tuple[Category, ...]
    images: tuple[ImageRecord, ...]

    def __init__(self, categories: Sequence[Category], images: Sequence[ImageRecord]) -> None:
        self.categories = tuple(categories)
        self.images = tuple(images)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the pictures, without ending."""
        return tuple(record.name for record in self.images)

    @property
    def things(self) -> frozenset[int]:
        """Indices of the categories that are things."""
        return frozenset(index for index, category in enumerate(self.categories) if category.is_thing)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Read picture and truth; `DataError` where a file is unreadable or the two differ in size."""
        position = self._position(index)
        image = self.image(position)
        labels = self.labels(position)
        if labels is None:
            return Sample(self.images[position].name, image)
        if image.shape[:2] != labels.semantic.shape:
            picture = f"picture {self.images[position].file_name}"
            size = f"{_size(labels.semantic.shape)} of its labels"
            raise DataError(message(picture, f"have the size {size}", _size(image.shape)))
        return Sample(self.images[position].name, image, labels.semantic, labels.instance, labels.crowd)

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} pictures, {len(self.categories)} categories)"

    @abstractmethod
    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read the picture alone, uint8 (H, W, 3)."""

    def image_file(self, index: SupportsIndex) -> Path | None:
        """Return the file of the picture; None where the pictures of a data set are no files of their own."""
        self._position(index)
        return None

    def mapped_image(self, index: SupportsIndex, folder: str | PathLike[str] | None = None) -> NDArray[np.uint8]:
        """Read the picture by parts, so that one larger than memory is an array (H, W, 3) as well.

        Args:
            index: Of the picture.
            folder: For a temporary file, which is gone with the array; None is that of the system.

        Raises:
            DataError: As `image`, or for a picture beyond the limit of pictures that are read by parts.
            ImportError: For a picture that only pyvips (extra `large`) reads by parts.
        """
        from lovasz_embed.formats._windows import map_picture  # it raises our DataError

        file = self.image_file(index)
        return self.image(index) if file is None else map_picture(file, folder)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        """Return height and width of the picture, pixels; from its record or the head of its file where possible."""
        from lovasz_embed.formats._pictures import read_size  # it raises our DataError

        record, file = self.images[self._position(index)], self.image_file(index)
        if record.height is not None and record.width is not None:
            return record.height, record.width
        if file is not None:
            return read_size(file)
        height, width, _ = self.image(index).shape
        return height, width

    @abstractmethod
    def labels(self, index: SupportsIndex) -> Labels | None:
        """Read the truth alone; None where the data set has no labels."""

    def result(self, index: SupportsIndex) -> PanopticResult:
        """Read the truth as a `PanopticResult` of one picture."""
        labels = self.labels(index)
        if labels is None:
            raise DataError(message("the data set", "have labels to give a PanopticResult", repr(self)))
        crowd = None if labels.crowd is None else torch.from_numpy(labels.crowd)[None]
        return PanopticResult.from_maps(
            torch.from_numpy(labels.semantic)[None],
            torch.from_numpy(labels.instance)[None],
            things=self.things,
            ignore_index=VOID,
            crowd=crowd,
        )

    def _position(self, index: SupportsIndex) -> int:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(message("index", f"be below the {len(self)} pictures of the data set", position))
        return position % len(self)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} (height x width)"
