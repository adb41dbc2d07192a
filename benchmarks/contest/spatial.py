"""Softmax head, spatial embedding, bandwidth and seed map: the family of Neven et al., CVPR 2019."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from contest.contestant import IGNORED, TwoHeaded, group_means, members
from contest.tracks import Track
from lovasz_embed.clustering import cluster_embeddings
from lovasz_embed.hierarchy import Level, hierarchical_lovasz_hinge
from lovasz_embed.panoptic import PanopticResult, assemble
from lovasz_embed.training import View

_RANGE = 3.0  # the logarithm of the bandwidth stays within ± this


class Spatial(TwoHeaded):
    """Pixels point to their instance's mean; a gaussian of a predicted bandwidth says how far it reaches.

    Args:
        track: The track.
        smooth_weight: Of the variance of the bandwidth's logarithm within an instance.
        seed_weight: Of the regression of the seed map on the gaussian.
        foreground: Weight of an instance's pixel beside one of the background in that regression.
        backbone: See `build_network`.
    """

    OWN = 4  # two offsets, bandwidth, seed
    TRIALS = ({}, {"foreground": 10.0}, {"learning_rate": 4e-3}, {"learning_rate": 1e-3})
    READINGS = ({}, {"min_seed": 0.3}, {"min_seed": 0.7}, {"min_fresh": 0.3})

    def __init__(
        self,
        track: Track,
        *,
        smooth_weight: float = 1.0,
        seed_weight: float = 1.0,
        foreground: float = 1.0,
        backbone: str | None = None,
    ) -> None:
        super().__init__(track, backbone=backbone)
        self.smooth_weight, self.seed_weight, self.foreground = smooth_weight, seed_weight, foreground

    def loss(self, output: Tensor, views: View) -> Tensor:
        """Return cross-entropy, the instances' Lovász hinges, smoothness of bandwidths, regression of seeds."""
        logits, own = self.split(output)
        labels = self.instances(views)
        points, bandwidth, seed = self.points(output), self._bandwidth(own), own[:, 3].sigmoid()
        level = Level(labels, 1.0, bandwidth=bandwidth)
        hinge = hierarchical_lovasz_hinge(points, [level], kernel="gaussian").loss
        smooth, phi = self._within(points.flatten(2), bandwidth.flatten(1), labels.flatten(1))
        weight = torch.where(labels >= 0, self.foreground, 1.0) * (labels != IGNORED)
        seeds = (weight * (seed - phi.view_as(seed)).square()).sum() / (labels != IGNORED).sum().clamp(min=1)
        entropy = self.cross_entropy(logits, views.semantic)
        return entropy + hinge + self.smooth_weight * smooth + self.seed_weight * seeds

    def _within(self, points: Tensor, bandwidth: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean variance of log-bandwidths within instances, and each pixel's own gaussian (B, P)."""
        phi = torch.zeros_like(bandwidth)
        variances = []
        for b, picture in enumerate(labels):
            pixels, row, size = members(picture)
            if len(size) == 0:
                continue
            log = bandwidth[b, pixels].log()[None]
            variances.append(group_means((log - group_means(log, row, size)[row].T).square(), row, size)[:, 0])
            with torch.no_grad():
                here = points[b][:, pixels]
                distance2 = (here - group_means(here, row, size)[row].T).square().sum(0)
                radius = group_means(bandwidth[b, pixels][None], row, size)[row, 0]
                phi[b, pixels] = torch.exp(-math.log(2) * distance2 / radius.square())
        return torch.cat(variances).mean() if variances else points.new_zeros(()), phi.detach()

    def _bandwidth(self, own: Tensor) -> Tensor:
        """Return the bandwidth (B, H, W) in units, bounded: an exponential without bounds ends in NaN."""
        return torch.exp(_RANGE * torch.tanh(own[:, 2] / _RANGE))

    def read(self, output: Tensor, *, min_seed: float = 0.5, min_fresh: float = 0.5, **_: Any) -> PanopticResult:
        """Grow instances from seeds (`method="seeded"`); each takes the category that most of its pixels have.

        Args:
            output: Of the network.
            min_seed: Smallest seed from which an instance grows.
            min_fresh: Share of its pixels that an instance must have to itself.
        """
        logits, own = self.split(output)
        semantic, is_thing = self.categories(logits)
        clusters = cluster_embeddings(
            self.points(output),
            is_thing,
            method="seeded",
            seeds=own[:, 3].sigmoid(),
            bandwidth=self._bandwidth(own)[:, None],
            min_seed=min_seed,
            min_fresh=min_fresh,
            min_size=self.minima["min_thing_area"],
        )
        return assemble(
            semantic, clusters.labels, things=self.things, scores=clusters.scores, ignore_index=-1, **self.minima
        )

    def points(self, output: Tensor, at: tuple[int, int] = (0, 0)) -> Tensor:
        """Return where each pixel points to: its position plus its offset."""
        return self.split(output)[1][:, :2] + self.positions(output, at)
