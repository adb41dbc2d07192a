"""Pictures and embeddings to measure on: what they look like decides what a loss costs, so it is said here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lovasz_embed.hierarchy import Level, panoptic_levels

STUFF, THINGS = range(11), range(11, 19)
_CHUNK = 2**17  # pixels whose distances to all nodes are held at once


def scene(height: int, width: int, instances: int) -> tuple[Tensor, Tensor]:
    """Lay out one picture: 11 bands of stuff, and on them a grid of rectangular things of 8 categories in turn.

    Things cover 4/9 of the picture, whatever their number. There is no void: it would cost the baselines their
    boolean indexing.

    Returns:
        Semantic and instance map, int64 (1, height, width).
    """
    columns = max(round(math.sqrt(instances * width / height)), 1)
    rows = -(-instances // columns)
    if rows > height or columns > width:
        raise ValueError(f"a picture of {height} x {width} has no room for {instances} instances")
    semantic = (torch.arange(height) * len(STUFF) // height)[:, None].expand(height, width).clone()
    instance = torch.zeros(height, width, dtype=torch.int64)
    for k in range(instances):
        top, bottom = (height * (k // columns + shift) // rows for shift in (0, 1))
        left, right = (width * (k % columns + shift) // columns for shift in (0, 1))
        box = (
            slice(top, top + max((bottom - top) * 2 // 3, 1)),
            slice(left, left + max((right - left) * 2 // 3, 1)),
        )
        semantic[box], instance[box] = THINGS[k % len(THINGS)], k + 1
    return semantic[None], instance[None]


@dataclass(frozen=True)
class Phase:
    """How far a training has come: what an embedding looks like, in embedding units (the radii are 4 and 1).

    Attributes:
        categories: Standard deviation of the categories' centres along each dimension.
        instances: Distance of an instance's centre from its category's.
        noise: Median over the pixels of the noise's standard deviation along each dimension (at 8 dimensions).
        tail: How much that differs from pixel to pixel: standard deviation of its logarithm.
    """

    categories: float
    instances: float
    noise: float
    tail: float


PHASES = {
    # All pixels near one point: each lies in the outer ball of every node, so none can be skipped.
    "untrained": Phase(categories=0.0, instances=0.0, noise=0.15, tail=0.0),
    # Three pixels in ten still pay for a node of their own, and a pixel lies in eight foreign balls.
    "half-trained": Phase(categories=1.6, instances=0.9, noise=0.22, tail=0.8),
    # Means are farther apart than the outer radii, and one pixel in forty still pays.
    "trained": Phase(categories=6.0, instances=1.6, noise=0.06, tail=0.4),
}


def embed(semantic: Tensor, instance: Tensor, dims: int, phase: str) -> Tensor:
    """Return an embedding (1, dims, H, W) of the phase; the noise of neighbouring pixels is independent.

    The noise's length does not depend on `dims`: otherwise more dimensions would be a less trained embedding.
    """
    looks = PHASES[phase]
    generator = torch.Generator().manual_seed(1)
    categories = looks.categories * torch.randn(len(STUFF) + len(THINGS), dims, generator=generator)
    directions = torch.randn(int(instance.max()) + 1, dims, generator=generator)
    offsets = looks.instances * torch.nn.functional.normalize(directions, dim=1)
    offsets[0] = 0  # stuff lies at its category's centre
    scale = looks.noise * math.sqrt(8 / dims) * (looks.tail * torch.randn(semantic.shape, generator=generator)).exp()
    noise = torch.randn(dims, *semantic.shape, generator=generator)
    centres = (categories.t()[:, semantic], offsets.t()[:, instance])
    return noise.mul_(scale).add_(centres[0]).add_(centres[1]).movedim(0, 1).contiguous()


def levels_of(semantic: Tensor, instance: Tensor) -> tuple[Level, Level]:
    """Return category and instance level with the default radii and margins."""
    return panoptic_levels(semantic, instance, things=THINGS)


@dataclass(frozen=True)
class Pressure:
    """What an embedding asks of an exact engine.

    Attributes:
        own: Share of the pixels with a positive error for a node of their own.
        foreign: Nodes of other pixels that a pixel has a positive error for, on average.
        entries: Pairs of a pixel and a node with a positive error, that is, entries to be ordered.
    """

    own: float
    foreign: float
    entries: int


def pressure(embedding: Tensor, levels: Sequence[Level]) -> Pressure:
    """Count the positive errors of the margin kernel over all levels."""
    unhappy = torch.zeros(embedding[0, 0].numel(), dtype=torch.bool, device=embedding.device)
    own = foreign = 0
    for level in levels:
        pixels = (embedding[0] if level.dims is None else embedding[0, list(level.dims)]).flatten(1).t()
        labels = level.labels.flatten()
        nodes = labels[labels >= 0].unique()
        member = torch.searchsorted(nodes, labels).clamp_(max=len(nodes) - 1)
        belongs = labels >= 0
        sums = pixels.new_zeros(len(nodes), pixels.shape[1], dtype=torch.float64)
        sums.index_add_(0, member[belongs], pixels[belongs].double())
        means = (sums / member[belongs].bincount()[:, None]).to(pixels.dtype)
        for start in range(0, len(pixels), _CHUNK):
            part = slice(start, start + _CHUNK)
            distance2 = torch.cdist(pixels[part], means, compute_mode="use_mm_for_euclid_dist").square_()
            mine = distance2.gather(1, member[part, None])[:, 0]
            near = distance2 < level.outer_radius**2
            late = belongs[part] & (mine > level.inner_radius**2)
            unhappy[part] |= late
            own += int(late.sum())
            foreign += int(near.sum()) - int((belongs[part] & (mine < level.outer_radius**2)).sum())
    return Pressure(float(unhappy.double().mean()), foreign / len(unhappy), own + foreign)


def hinge_logits(mask: Tensor, past: float | None) -> Tensor:
    """Return float32 logits for a mask: gaussian ones for None, else with the share `past` beyond the margin."""
    generator = torch.Generator().manual_seed(2)
    gaussian = torch.randn(mask.shape, generator=generator)
    if past is None:
        return gaussian
    beyond = torch.rand(mask.shape, generator=generator) < past
    return (1 + torch.where(beyond, gaussian.abs(), -gaussian.abs())) * (2 * mask - 1)


def random_mask(shape: tuple[int, ...], foreground: float = 0.5) -> Tensor:
    """Return an int64 mask of independent pixels: nothing that a branch predictor could learn."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(3)) < foreground).long()
