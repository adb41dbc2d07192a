"""Softmax head, pull and push of embeddings, mean shift: De Brabandere, Neven and Van Gool, arXiv 1708.02551."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contest.contestant import TwoHeaded, group_means, members
from contest.mean_shift import mean_shift
from contest.tracks import Track
from lovasz_embed.clustering import cluster_embeddings
from lovasz_embed.panoptic import PanopticResult, assemble
from lovasz_embed.training import View

_SAMPLE = 3000  # pixels of a category that mean shift looks at
_TINY = 1e-12  # under the root: the gradient of a norm at 0 is not finite


class Discriminative(TwoHeaded):
    """Pixels are pulled to within `pull` of their instance's mean, means are pushed `2 push` apart.

    Args:
        track: The track.
        dims: Dimensions of the embedding.
        pull: Distance to the mean that costs nothing.
        push: Half the distance between means from which on they cost nothing.
        norm_weight: Of the means' length.
        coordinates: "added": the last two dimensions are offsets to the pixel's own position, as ours are; "none".
        backbone: See `build_network`.
    """

    TRIALS = ({}, {"coordinates": "none"}, {"learning_rate": 4e-3}, {"learning_rate": 1e-3})
    # With the margin clustering of the library as well: the contest is about the embedding, not about whose
    # search for modes is the better one.
    READINGS = ({}, {"bandwidth": 0.75}, {"bandwidth": 1.5}, {"search": "margin"})

    def __init__(
        self,
        track: Track,
        *,
        dims: int | None = None,
        pull: float = 0.5,
        push: float = 1.5,
        norm_weight: float = 1e-3,
        coordinates: str = "added",
        backbone: str | None = None,
    ) -> None:
        super().__init__(track, own=int(track.model.get("dims", 8)) if dims is None else dims, backbone=backbone)
        self.pull, self.push, self.norm_weight, self.coordinates = pull, push, norm_weight, coordinates

    def loss(self, output: Tensor, views: View) -> Tensor:
        """Return cross-entropy plus pull, push and length, mean over the pictures with instances."""
        logits, points = self.split(output)[0], self.points(output)
        terms = []
        for embedding, labels in zip(points.flatten(2), self.instances(views).flatten(1), strict=True):
            pixels, row, size = members(labels)
            if len(size):
                terms.append(self._terms(embedding[:, pixels], row, size))
        entropy = self.cross_entropy(logits, views.semantic)
        return entropy + torch.stack(terms).mean() if terms else entropy

    def _terms(self, embedding: Tensor, row: Tensor, size: Tensor) -> Tensor:
        means = group_means(embedding, row, size)
        distance = ((embedding.T - means[row]).square().sum(1) + _TINY).sqrt()
        pull = group_means((distance - self.pull).clamp(min=0).square()[None], row, size).mean()
        length = (means.square().sum(1) + _TINY).sqrt().mean()
        total = pull + self.norm_weight * length
        if len(size) > 1:
            first, second = torch.triu_indices(len(size), len(size), offset=1)
            apart = ((means[first] - means[second]).square().sum(1) + _TINY).sqrt()
            total = total + (2 * self.push - apart).clamp(min=0).square().mean()
        return total

    def read(self, output: Tensor, *, bandwidth: float = 1.0, search: str = "mean-shift", **_: Any) -> PanopticResult:
        """Cluster the pixels of each thing category.

        Args:
            output: Of the network.
            bandwidth: Radius of a mode, embedding units.
            search: "mean-shift": with a flat kernel on at most 3,000 pixels of a category, the others to the nearest
                mode within the bandwidth. "margin": the clustering of the library.
        """
        logits = self.split(output)[0]
        semantic, is_thing = self.categories(logits)
        points = self.points(output)
        if search == "margin":
            labels = torch.where(is_thing, semantic, -1)
            size = self.minima["min_thing_area"]
            clusters = cluster_embeddings(points, labels, radius=bandwidth, min_size=size).labels
        else:
            clusters = torch.zeros_like(semantic)
            for b in range(len(output)):
                for category in sorted(set(semantic[b][is_thing[b]].tolist())):
                    inside = semantic[b] == category
                    own = mean_shift(points[b][:, inside].T, bandwidth, sample=_SAMPLE)
                    known = clusters[b].max()
                    clusters[b][inside] = torch.where(own > 0, own + known, 0)
        return assemble(semantic, clusters, things=self.things, ignore_index=-1, **self.minima)

    def points(self, output: Tensor, at: tuple[int, int] = (0, 0)) -> Tensor:
        """Return the embedding, positions added where that is asked for."""
        own = self.split(output)[1]
        if self.coordinates == "none":
            return own
        return torch.cat([own[:, :-2], own[:, -2:] + self.positions(output, at)], dim=1)
