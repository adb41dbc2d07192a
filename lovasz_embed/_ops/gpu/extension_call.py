"""How the kernels of the Lovász extension are called: options, sizes of blocks, and the arguments that all share."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from lovasz_embed._ops.binning import cells, shift_of

_CHUNK = 4  # channels that a program looks at together, at most: more would lie idle behind the last channel
_TILE = 1024  # entries that a program looks at together


class Options(NamedTuple):
    """What the operators are told beside their tensors; `ignored` is `NOTHING` where all entries count."""

    kind: int
    ignored: int
    per_image: bool
    bins: int
    wanted: bool

    def rows(self, values: Tensor) -> int:
        """Return how many masks the values (B, C, P) are."""
        return values.shape[1] * (values.shape[0] if self.per_image else 1)


class Call:
    """The arguments that the kernels share, in their order, of values (B, C, P) and labels (B, P) or (B, C, P).

    Attributes:
        grid: As many programs as there are blocks of pixels of all pictures.
        blocks: Blocks of pixels of a picture.
        places: Sizes and strides.
        last: The arguments behind those that only some kernels have.
        constants: What kernels are compiled for.
    """

    def __init__(self, values: Tensor, labels: Tensor, options: Options, chunk: int | None = None) -> None:
        batch, channels, pixels = values.shape
        chunk = min(chunk or _CHUNK, 1 << max(channels - 1, 0).bit_length())
        block = _TILE // chunk
        self.blocks = -(-pixels // block)
        self.grid = (batch * self.blocks if channels else 0,)
        per_pixel = labels.ndim == 2
        self.labels_at = (labels.stride(0), 0 if per_pixel else labels.stride(1), labels.stride(-1))
        self.places = (pixels, self.blocks, *values.stride(), *self.labels_at)
        self.last = (channels if options.per_image else 0, options.ignored)
        self.constants: dict[str, Any] = {
            "KIND": options.kind,
            "C": channels,
            "SHIFT": shift_of(options.bins) if options.bins else 0,
            "CELLS": cells(options.bins) if options.bins else 0,
            "CHUNK": chunk,
            "BLOCK": block,
        }
