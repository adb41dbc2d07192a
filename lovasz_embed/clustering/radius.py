"""A radius for margin clustering, read off the embedding itself."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed.clustering._pictures import as_tensor
from lovasz_embed.clustering.call import cluster_embeddings
from lovasz_embed.clustering.result import Clusters

_EVERYWHERE = 1e30  # a reach that no embedding exceeds
_STRAY = 2.0  # a pixel so many typical spreads from its mean is a stray one
_CHUNK = 1 << 18


@dataclass(frozen=True)
class RadiusEstimate:
    """A radius for `cluster_embeddings(method="margin")`, and what it rests on.

    Attributes:
        radius: Embedding units.
        spread: δ, the distance of the farthest pixel from the mean of its cluster.
        separation: Δ, the smallest distance between the means of two clusters of one class in one picture; inf if
            there are none.
        clusters: Clusters in all pictures that the estimate rests on.
        guaranteed: Whether 2 δ < radius < Δ - 2 δ: margin clustering with this radius returns exactly the
            clusters that were found, whatever the order of the pixels.
    """

    radius: float
    spread: float
    separation: float
    clusters: int
    guaranteed: bool


def estimate_radius(embedding: Tensor | NDArray[Any], mask_or_labels: Tensor | NDArray[Any]) -> RadiusEstimate:
    r"""Estimate the radius of the instances of some pictures, for clustering these or others like them.

    The pictures are clustered by density, without a radius. If every pixel lies within δ of the mean of its cluster,
    and Δ > 4 δ is the smallest distance between two means of a class, the radius is Δ / 2, the middle of the interval
    (2 δ, Δ - 2 δ) in which margin clustering is exact.

    Otherwise some pixels are mixed or stray, or instances too close. The radius is then half the smallest distance
    between the means that the pixels in reach of the clusters have, but no less than 1.25 times the distance that nine
    tenths of the pixels keep from their mean in a typical cluster (the median); `guaranteed` is False.

    Args:
        embedding: Floats (B, D, *spatial), embedding units, a tensor or a NumPy array. One radius is estimated for
            all pictures.
        mask_or_labels: (B, *spatial), the pixels to look at, or the class of each; see `cluster_embeddings`.

    Returns:
        `RadiusEstimate`.

    Raises:
        TypeError: If the embedding is not floating point, or the labels are no integers.
        ValueError: If shapes or devices differ, or no cluster is found: fewer than 5 finite pixels of every
            class, or a few that are all apart.

    Notes:
        Deterministic, for any number of threads. If no class of a picture has two clusters, nothing bounds the radius
        from above, and it is 3 δ (stray pixels left out); if moreover all pixels are alike, any radius would do, and
        it is 1. What density takes for one instance is what the radius keeps
        together: two instances without a gap between them count as one. Time is that of one or
        two density clusterings and a sort of the pixels.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> noise = 0.2 * torch.rand(1, 2, 30, 40, generator=generator)
        >>> embedding = 3.0 * (torch.arange(40) >= 15) + noise
        >>> mask = torch.ones(1, 30, 40, dtype=torch.bool)
        >>> estimate = estimate_radius(embedding, mask)
        >>> f"{estimate.radius:.1f}", estimate.clusters, estimate.guaranteed
        ('2.1', 2, True)
        >>> cluster_embeddings(embedding, mask, radius=estimate.radius).sizes
        (tensor([450, 750]),)
    """
    embedding, mask_or_labels = as_tensor("embedding", embedding), as_tensor("mask_or_labels", mask_or_labels)
    found = cluster_embeddings(embedding, mask_or_labels, method="density", reach=_EVERYWHERE)
    clusters = sum(len(sizes) for sizes in found.sizes)
    if not clusters:
        rule = "select at least 5 pixels of some class that hold no NaN or Inf and lie together"
        raise ValueError(_check.message("mask_or_labels", rule, "no cluster"))
    spread, typical = _spreads(embedding, found)
    separation = _separation(found)
    if spread <= _rounding(found):
        radius = 1.0 if separation == math.inf else separation / 2
    elif separation == math.inf and spread <= _STRAY * typical:
        radius = 3 * spread
    elif 4 * spread < separation < math.inf:
        radius = separation / 2
    else:  # once more, without pixels that are far from every cluster
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those that hold NaN or Inf were counted above
            found = cluster_embeddings(embedding, mask_or_labels, method="density")
        near, typical = _spreads(embedding, found)
        apart = _separation(found)
        alone = 3 * near if near > _rounding(found) else 1.0  # what is left may be alike as well
        radius = alone if apart == math.inf else max(apart / 2, 1.25 * typical)
    guaranteed = 2 * spread < radius < separation - 2 * spread
    return RadiusEstimate(radius, spread, separation, clusters, guaranteed)


def _spreads(embedding: Tensor, found: Clusters) -> tuple[float, float]:
    """Return the largest distance from a pixel to its mean, and the median over clusters of what 9 in 10 keep."""
    largest = 0.0
    typical = []
    for picture, labels, centres in zip(embedding.detach(), found.labels, found.centres, strict=True):
        pixels, label = picture.flatten(1), labels.flatten().long()
        means = centres.T.contiguous().double()
        distance = torch.zeros(len(label), dtype=torch.float64)
        for begin in range(0, len(label), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            member = (label[part] - 1).clamp_(min=0)
            if len(centres):
                for plane, mean in zip(pixels[:, part], means, strict=True):
                    distance[part] += ((plane.double() - mean[member]) ** 2).cpu()
        own = (label > 0).cpu()
        distance, label = distance[own].sqrt_(), label.cpu()[own]
        order = distance.argsort(stable=True)
        order = order[label[order].argsort(stable=True)]
        sizes = label.bincount(minlength=len(centres) + 1)[1:]
        last = sizes.cumsum(0)
        place = last - sizes + (9 * sizes + 9) // 10 - 1
        if len(centres):
            largest = max(largest, float(distance.max()))
            typical.append(distance[order][place])
    return largest, float(torch.cat(typical).median())


def _separation(found: Clusters) -> float:
    """Return the smallest distance between the means of two clusters of one class and picture, inf without two."""
    least = math.inf
    for centres, classes in zip(found.centres, found.classes, strict=True):
        for c in classes.unique().tolist():  # type: ignore[no-untyped-call]
            means = centres[classes == c].double().cpu()
            if len(means) > 1:
                distance = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
                least = min(least, float(distance.fill_diagonal_(math.inf).min()))
    return least


def _rounding(found: Clusters) -> float:
    """Return the distance from a mean that the rounding of its coordinates explains."""
    largest = max(float(centres.abs().max()) for centres in found.centres if len(centres))
    return 8 * torch.finfo(found.centres[0].dtype).eps * largest
