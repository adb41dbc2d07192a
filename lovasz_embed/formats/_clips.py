"""Pictures that follow each other: a data set whose pictures are the frames of sequences."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray

from lovasz_embed.formats._base import VOID, Category, ImageRecord, Labels, PanopticDataset
from lovasz_embed.panoptic import PanopticResult, Segment

ID_RANGE = 1 << 16
"""Instances of a sequence have ids below this; category c adds (c + 1) times it, so that no two things share an id."""


class ClipDataset(PanopticDataset):
    """Pictures sorted by sequence and frame; a thing has one id in all frames of its sequence.

    The id of an instance is 65536 × (index of its category + 1) + the data set's own number.

    Args:
        categories: As in `PanopticDataset`.
        images: As in `PanopticDataset`, sequence after sequence, frames in order.
        sequences: Name and number of frames of each sequence.
    """

    def __init__(
        self, categories: Sequence[Category], images: Sequence[ImageRecord], sequences: Sequence[tuple[str, int]]
    ) -> None:
        super().__init__(categories, images)
        self._sequences = tuple(sequences)

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The sequences, each a data set of its own with the frames in order."""
        clips, start = [], 0
        for name, frames in self._sequences:
            clips.append(Clip(self, name, range(start, start + frames)))
            start += frames
        return tuple(clips)

    def labels(self, index: SupportsIndex) -> Labels:
        """Read the truth of one picture; ids of instances are the same in every frame of a sequence."""
        return self._labels_of(self._position(index))

    def result(self, index: SupportsIndex) -> PanopticResult:
        """Read the truth as a `PanopticResult` of one picture; ids of segments are the same in every frame.

        Things have the ids of `labels`. Stuff, and the crowd of a category, has the first id of its category.
        """
        labels = self.labels(index)
        rest = (labels.semantic.astype(np.int32) + 1) * ID_RANGE
        rest[labels.semantic == VOID] = 0
        ids = np.where(labels.instance > 0, labels.instance, rest)
        things, segments = self.things, []
        for number, area in zip(*(column.tolist() for column in np.unique(ids, return_counts=True)), strict=True):
            if number:
                category, within = divmod(number, ID_RANGE)
                is_thing = category - 1 in things
                segments.append(Segment(number, category - 1, is_thing, area, is_crowd=is_thing and within == 0))
        return PanopticResult(torch.from_numpy(ids)[None], (tuple(segments),))

    @abstractmethod
    def _labels_of(self, position: int) -> Labels:
        """Read the truth of the picture at a position that exists."""


class Clip(PanopticDataset):
    """The frames of one sequence.

    Args:
        dataset: The data set that the frames belong to.
        name: Of the sequence.
        positions: Where the frames are in the data set.

    Attributes:
        name: Of the sequence.
    """

    def __init__(self, dataset: PanopticDataset, name: str, positions: range) -> None:
        super().__init__(dataset.categories, dataset.images[positions.start : positions.stop])
        self.dataset = dataset
        self.name = name
        self.positions = positions

    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read a frame alone, uint8 (H, W, 3)."""
        return self.dataset.image(self.positions[self._position(index)])

    def image_file(self, index: SupportsIndex) -> Path | None:
        """Return the file of a frame."""
        return self.dataset.image_file(self.positions[self._position(index)])

    def labels(self, index: SupportsIndex) -> Labels | None:
        """Read the truth of a frame alone."""
        return self.dataset.labels(self.positions[self._position(index)])

    def result(self, index: SupportsIndex) -> PanopticResult:
        """Read the truth of a frame as a `PanopticResult`."""
        return self.dataset.result(self.positions[self._position(index)])


def frame_order(name: str) -> tuple[int, str]:
    """Return what sorts frames in time: their number, whatever zeros stand before it; other names come after."""
    return (int(name), name) if name.isdecimal() else (1 << 62, name)
