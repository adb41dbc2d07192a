"""The baselines: the losses as textbooks and public code write them, in plain torch.

Errors are sorted as a whole, the Jaccard curve is differenced in float32, and classes and instances are looped
over. Where there are several ways to write a step, this is the fastest that we found, not the most common: the
rows of an `unbind` (`probabilities[:, c]` of a pixels-by-classes matrix costs half as much again), a node's mean
by a product with its mask (boolean indexing is slower), and no boolean indexing where there is no void.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lovasz_embed.hierarchy import Level

Kernel = Callable[[Tensor], Tensor]


def differenced_weights(foreground: Tensor) -> Tensor:
    """Return the weights of entries in falling order of errors, by subtracting neighbours in the mask's dtype."""
    total = foreground.sum()
    jaccard = 1 - (total - foreground.cumsum(0)) / (total + (1 - foreground).cumsum(0))
    return torch.diff(jaccard, prepend=jaccard.new_zeros(1))


def weights(errors: Tensor, target: Tensor) -> Tensor:
    """Return the weights of `errors` (P,) in input order."""
    order = errors.argsort(descending=True)
    return torch.empty_like(errors).scatter(0, order, differenced_weights(target.to(errors.dtype)[order]))


def extension(errors: Tensor, foreground: Tensor) -> Tensor:
    """Return the Lovász extension of the Jaccard loss for one row of errors and a floating point mask."""
    errors, order = errors.sort(descending=True)
    return torch.dot(errors.relu(), differenced_weights(foreground[order]))


def hinge_row(logits: Tensor, foreground: Tensor) -> Tensor:
    """Return the Lovász hinge of one row."""
    return extension(1 - logits * (2 * foreground - 1), foreground)


def hinge(logits: Tensor, target: Tensor, ignore_index: int | None = None) -> Tensor:
    """Return the mean over pictures of the Lovász hinge."""
    losses = []
    for picture, mask in zip(logits.flatten(1), target.flatten(1), strict=True):
        if ignore_index is not None:
            valid = mask != ignore_index
            picture, mask = picture[valid], mask[valid]
        losses.append(hinge_row(picture, mask.to(logits.dtype)))
    return torch.stack(losses).mean()


def softmax(logits: Tensor, target: Tensor, ignore_index: int | None = None) -> Tensor:
    """Return the mean over present classes of the Lovász softmax."""
    probabilities, labels = logits.softmax(1).transpose(0, 1).flatten(1), target.flatten()
    if ignore_index is not None:
        valid = labels != ignore_index
        probabilities, labels = probabilities[:, valid], labels[valid]
    losses = []
    for category, of_class in enumerate(probabilities.unbind(0)):
        foreground = (labels == category).to(logits.dtype)
        if foreground.sum() > 0:
            losses.append(extension((foreground - of_class).abs(), foreground))
    return torch.stack(losses).mean()


def margin_kernel(level: Level) -> Kernel:
    """Return the margin kernel, from squared distance to logit."""
    return lambda distance2: (level.radius**2 - distance2) / level.margin2


def neven_kernel(level: Level) -> Kernel:
    """Return 2 exp(-d² / 2σ²) - 1 with σ such that it is zero at the radius, as in Neven et al., CVPR 2019."""
    sigma = level.radius / math.sqrt(2 * math.log(2))
    return lambda distance2: 2 * torch.exp(-distance2 / (2 * sigma**2)) - 1


def node_hinge(planes: Tensor, labels: Tensor, node: Tensor, kernel: Kernel) -> Tensor:
    """Return the Lovász hinge of one node: planes (D, P), labels (P,); all other pixels are its negatives."""
    foreground = (labels == node).to(planes.dtype)
    mean = planes @ foreground / foreground.sum()
    return hinge_row(kernel((planes - mean[:, None]).square().sum(0)), foreground)


def node_loop(embedding: Tensor, level: Level, nodes: Tensor, kernel: Kernel) -> Tensor:
    """Return the mean over `nodes` of one picture, one pass over all pixels for each: the loop of Neven's type."""
    planes, labels = embedding[0].flatten(1), level.labels.flatten()
    return torch.stack([node_hinge(planes, labels, node, kernel) for node in nodes]).mean()


def evenly(nodes: Tensor, count: int) -> Tensor:
    """Pick `count` nodes, spread evenly over all of them; all, if there are fewer."""
    count = min(count, len(nodes))
    return nodes[torch.linspace(0, len(nodes) - 1, count, device=nodes.device).round().long()]
