"""The network that all contestants share; only its last convolution differs, by its number of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contest.tracks import Track
from lovasz_embed.model import ModelConfig, PanopticEmbedder


def build_network(track: Track, *, backbone: str | None = None, **options: Any) -> PanopticEmbedder:
    """Return the library's reference network for a track; the caller seeds torch before.

    Args:
        track: Its categories, and what is the same for every contestant.
        backbone: Name of a pretrained backbone of the library; None is the built-in encoder, from scratch.
        options: Of `ModelConfig`, on top of those of the track.
    """
    named = {} if backbone is None else {"backbone": backbone}
    config = ModelConfig(
        classes=track.classes, things=tuple(sorted(track.things)), **{**track.model, **named, **options}
    )
    return PanopticEmbedder(config) if backbone is None else PanopticEmbedder(config, pretrained=True)


def positions(like: Tensor, unit: float, at: tuple[int, int] = (0, 0)) -> Tensor:
    """Return row and column of every pixel of (B, C, H, W), counted from `at`, in units of `unit` pixels: (2, H, W)."""
    rows, columns = (torch.arange(side) + start for side, start in zip(like.shape[-2:], at, strict=True))
    return torch.stack(torch.meshgrid(rows / unit, columns / unit, indexing="ij"))
