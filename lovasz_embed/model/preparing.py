"""From the bytes of a picture to the network's input."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check

PERCENTILES = (1.0, 99.8)
RANGE = (-0.5, 1.5)  # what lies farther outside the stretched range is cut, in units of it
_ROWS = 1 << 22  # pixels that are counted at once


class Picture(Protocol):
    """Bytes (H, W, 3) that are read where they are asked for: an array, `numpy.memmap`, a zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width, 3."""

    @property
    def dtype(self) -> Any:
        """Of uint8."""

    def __getitem__(self, part: Any, /) -> Any: ...


class Stretch(NamedTuple):
    """The values of a picture that become -1 and 1.

    Attributes:
        low: The 1st percentile.
        high: The 99.8th percentile.
    """

    low: float
    high: float

    @classmethod
    def of(cls, image: Picture) -> Stretch:
        """Find the percentiles of a whole picture, all channels together, rows by rows.

        Raises:
            ValueError: If the picture is not uint8 (H, W, 3).
        """
        if isinstance(image, torch.Tensor) or not hasattr(image, "dtype") or not hasattr(image, "shape"):
            raise TypeError(_check.message("image", "be an array of bytes (H, W, 3)", type(image).__name__))
        if image.dtype != np.uint8 or len(image.shape) != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {tuple(image.shape)}"
            raise ValueError(_check.message("image", "be bytes of shape (H, W, 3)", got))
        counts = np.zeros(256, np.int64)
        each = max(_ROWS // max(image.shape[1], 1), 1)
        for top in range(0, image.shape[0], each):
            counts += np.bincount(np.asarray(image[top : top + each]).reshape(-1), minlength=256)
        if not counts.any():
            raise ValueError(_check.message("image", "have at least one pixel", tuple(image.shape)))
        return cls(*(_percentile(counts, percentile) for percentile in PERCENTILES))

    def apply(self, image: NDArray[np.uint8]) -> Tensor:
        """Return a picture, or a part of one, as the network's input (3, H, W)."""
        if any(stride < 0 for stride in image.strides):  # a mirrored view, which torch cannot read
            image = image.copy()
        pixels = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)
        return ((pixels - self.low) / max(self.high - self.low, 1.0)).clamp(*RANGE) * 2 - 1


def prepare(image: NDArray[np.uint8]) -> Tensor:
    """Turn a picture (H, W, 3) of bytes into the network's input (3, H, W), about -1 ... 1.

    The range between the 1st and the 99.8th percentile of the whole picture is stretched, one range for all
    channels: exposure, which says nothing about the content, goes; colour stays.

    Raises:
        ValueError: If the picture is not uint8 (H, W, 3), or has no pixel.

    Example:
        >>> prepare(np.zeros((4, 4, 3), np.uint8)).shape
        torch.Size([3, 4, 4])
    """
    return Stretch.of(image).apply(image)


def _percentile(counts: NDArray[np.int64], percentile: float) -> float:
    """Return a percentile of bytes by how often each occurs: `numpy.percentile`, bit for bit."""
    place = percentile / 100 * (int(counts.sum()) - 1)
    below = math.floor(place)
    reached = counts.cumsum()
    low, high = (float(np.searchsorted(reached, min(rank, reached[-1] - 1), "right")) for rank in (below, below + 1))
    share = place - below
    # As numpy does it: from the nearer end, so that it never leaves the interval.
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)
