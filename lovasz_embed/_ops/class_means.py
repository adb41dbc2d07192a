"""Class means in plain torch: sums per class at fixed shape, and the nearest mean as one matrix product."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from lovasz_embed._ops.labels import is_ignored
from lovasz_embed._ops.reference import at_least_float32


def class_sums(
    embedding: Tensor, semantic: Tensor, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Return the float64 sum (C, D) and the int64 count (C,) of the embeddings of every class.

    Labels out of range do not count, and the values of pixels that do not count are never looked at.
    """
    batch, dim = embedding.shape[:2]
    ignored = is_ignored(semantic, ignore_index)
    semantic = semantic.long()
    ignored |= (semantic < 0) | (semantic >= num_classes)
    # One row more than there are classes takes what does not count, so that shapes do not depend on labels.
    row = torch.where(ignored, num_classes, semantic).flatten(1)
    counts = row.new_zeros(num_classes + 1).scatter_add(0, row.flatten(), torch.ones_like(row).flatten())
    sums = embedding.new_zeros(batch, dim, num_classes + 1, dtype=torch.float64)
    sums = sums.scatter_add(2, row.unsqueeze(1).expand(-1, dim, -1), embedding.flatten(2).double())
    return sums[:, :, :-1].sum(0).T.contiguous(), counts[:-1]


def means_of(sums: Tensor, counts: Tensor) -> Tensor:
    """Return sums / counts, NaN where the count is 0 (without a NaN in the gradient)."""
    counts = counts.unsqueeze(-1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan)


def as_linear(means: Tensor, offset: Tensor | None, looked_at: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (C, D) and bias (C,), float64, with weight @ e + bias = |e|² - d² + offset.

    `looked_at` (D,) bool holds the dimensions of the distance. A class is absent, weight 0 and bias -inf, whose row of
    `means` is not finite, or whose offset is NaN.
    """
    present = means.isfinite().all(1)
    if offset is not None:
        present = present & ~offset.isnan()
    means = means.double().nan_to_num() * looked_at * present.unsqueeze(1)
    bias = -means.square().sum(1)
    if offset is not None:
        bias = bias + offset
    return 2 * means, torch.where(present, bias, -torch.inf)


def linear_scores(embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return weight @ e + bias for every pixel, (B, C, *spatial), in float32 at least, under autocast too."""
    batch, _, *spatial = embedding.shape
    pixels = at_least_float32(embedding).flatten(2)
    with _without_autocast(embedding.device.type):
        scores = weight.to(pixels.dtype) @ pixels + bias.to(pixels.dtype).unsqueeze(1)
    return scores.reshape(batch, len(bias), *spatial)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Switch autocast off where it is on; otherwise do nothing, which leaves no trace in exported graphs."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
