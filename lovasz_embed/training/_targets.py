"""Fixed places for the means of categories: spread evenly before there is anything to learn from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lovasz_embed.model import PanopticEmbedder
from lovasz_embed.training.config import TrainConfig

_STEPS = 300


def category_targets(model: PanopticEmbedder, config: TrainConfig) -> Tensor:
    """Return fixed places of the categories, (C, D); 0 in dimensions that categories do not look at."""
    seen = list(model.config.category_dims)
    targets = torch.zeros_like(model.ncm.means)
    distance = (config.spread or 0.0) * model.config.category_radius
    targets[:, seen] = spread_targets(len(targets), len(seen), distance, config.seed).to(targets)
    return targets


def spread_targets(classes: int, dims: int, distance: float, seed: int) -> Tensor:
    """Return points (C, D) around the origin, as far apart as a short descent finds, the nearest two `distance` apart.

    Points on a sphere repel each other: for up to D + 1 categories they end near a regular simplex. Running means of
    many categories start on one heap instead, and part slowly.

    Args:
        classes: C.
        dims: D.
        distance: Between the nearest two, embedding units.
        seed: Of the start, and so of which category lies where.

    Note:
        O(C² D) a step: a fifth of a second for 133 categories in 30 dimensions. Deterministic on one machine.

    Example:
        >>> points = spread_targets(3, 2, 4.0, seed=0)
        >>> torch.pdist(points).min().item()
        4.0

    References:
        Fixed, evenly spread prototypes instead of learnt ones: Mettes et al., Hyperspherical prototype networks, 2019.
    """
    if dims == 1:  # a sphere of one dimension has two points
        return (torch.arange(classes, dtype=torch.float64)[:, None] - (classes - 1) / 2) * distance
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(classes, dims, dtype=torch.float64, generator=generator)
    points = nn.functional.normalize(points, dim=1)
    for step in range(_STEPS):
        squared = (2 - 2 * points @ points.T).fill_diagonal_(torch.inf)
        # The nearest count most; the descent ends with steps of nothing.
        weights = (-20 * squared).softmax(1) if classes > 1 else torch.zeros_like(squared)
        push = points * weights.sum(1, keepdim=True) - weights @ points
        points = nn.functional.normalize(points + 0.3 * (1 - step / _STEPS) * push, dim=1)
    nearest = torch.pdist(points).min() if classes > 1 else points.new_ones(())
    return points * (distance / nearest.clamp(min=1e-6))
