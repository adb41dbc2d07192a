"""Softmax head, centre heat map and offsets: the family of Panoptic-DeepLab (Cheng et al., CVPR 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contest.contestant import IGNORED, TwoHeaded, group_means, members
from contest.tracks import Track
from lovasz_embed.panoptic import PanopticResult, assemble
from lovasz_embed.training import View

_MOST_CENTRES = 1000
_EXACT = "donot_use_mm_for_euclid_dist"


class Centre(TwoHeaded):
    """A heat map with a gaussian at each instance's centre of mass, and from each pixel the way to that centre.

    Args:
        track: The track.
        sigma: Of the gaussians, pixels.
        heat_weight: Of the mean squared error of the heat map.
        offset_weight: Of the L1 error of the offsets, which are in units of the network's `unit` pixels.
        hardest: Share of the pixels that the cross-entropy looks at, the hardest ones.
        backbone: See `build_network`.
    """

    OWN = 3
    TRIALS = (
        {},
        {"heat_weight": 20.0},
        {"heat_weight": 20.0, "learning_rate": 4e-3},
        {"heat_weight": 20.0, "learning_rate": 1e-3},
    )
    READINGS = (
        {},
        {"threshold": 0.3},
        {"threshold": 0.1, "nms": 13},
        {"threshold": 0.3, "nms": 13},
    )

    def __init__(
        self,
        track: Track,
        *,
        sigma: float = 4.0,
        heat_weight: float = 200.0,
        offset_weight: float = 0.1,
        hardest: float = 1.0,
        backbone: str | None = None,
    ) -> None:
        super().__init__(track, backbone=backbone)
        own = len(track.classes) * self.network.strides[0] ** 2  # the head lays its channels out as pixels
        with torch.no_grad():  # or the heat map's error, times its weight, is at first all that the network learns from
            self.network.head.weight[own:] *= 0.01
            self.network.head.bias[own:] = 0
        self.sigma, self.hardest = sigma, hardest
        self.heat_weight, self.offset_weight = heat_weight, offset_weight

    def loss(self, output: Tensor, views: View) -> Tensor:
        """Return cross-entropy, squared error of the heat map and L1 error of the offsets, weighted."""
        logits, own = self.split(output)
        labels = self.instances(views)
        position = self.positions(output)
        heat, way, inside = torch.zeros_like(own[:, 0]), torch.zeros_like(own[:, 1:]), labels >= 0
        for b, picture in enumerate(labels.flatten(1)):
            pixels, row, size = members(picture)
            if len(size) == 0:
                continue
            centres = group_means(position.flatten(1)[:, pixels], row, size)
            heat[b] = self._gaussians(centres, position)
            way[b].view(2, -1)[:, pixels] = (centres[row] - position.flatten(1)[:, pixels].T).T
        counted = labels != IGNORED
        heat_loss = ((own[:, 0] - heat).square() * counted).sum() / counted.sum().clamp(min=1)
        offset_loss = ((own[:, 1:] - way).abs().sum(1) * inside).sum() / inside.sum().clamp(min=1)
        entropy = self.cross_entropy(logits, views.semantic, self.hardest)
        return entropy + self.heat_weight * heat_loss + self.offset_weight * offset_loss

    def _gaussians(self, centres: Tensor, position: Tensor) -> Tensor:
        """Return the largest of the gaussians around the centres (K, 2) at each pixel, (H, W)."""
        scale = -0.5 * (self.unit / self.sigma) ** 2
        # A gaussian of two coordinates is a product: two small exponentials in the place of a large one.
        rows = torch.exp(scale * (centres[:, :1] - position[0, :, 0]).square())
        columns = torch.exp(scale * (centres[:, 1:] - position[1, 0]).square())
        return (rows[:, :, None] * columns[:, None, :]).amax(0)

    def read(self, output: Tensor, *, threshold: float = 0.1, nms: int = 7, **_: Any) -> PanopticResult:
        """Group thing pixels to the nearest centre; a group takes the category that most of its pixels have.

        Args:
            output: Of the network.
            threshold: Smallest value of a centre.
            nms: Side of the window, pixels, in which a centre is the largest.
        """
        logits, own = self.split(output)
        semantic, is_thing = self.categories(logits)
        heat = own[:, :1]
        peaks = (heat == F.max_pool2d(heat, nms, stride=1, padding=nms // 2)) & (heat > threshold)
        clusters = torch.zeros_like(semantic)
        position, points = self.positions(output).flatten(1), self.points(output)
        for b in range(len(output)):
            found = peaks[b].flatten().nonzero()[:, 0]
            if len(found) == 0:
                continue
            strongest = heat[b].flatten()[found].argsort(descending=True, stable=True)[:_MOST_CENTRES]
            centres = position[:, found[strongest]].T.contiguous()
            here = points[b][:, is_thing[b]].T
            parts = [torch.cdist(part, centres, compute_mode=_EXACT).argmin(1) + 1 for part in here.split(1 << 16)]
            clusters[b][is_thing[b]] = torch.cat(parts) if parts else clusters.new_zeros(0)
        return assemble(semantic, clusters, things=self.things, ignore_index=-1, **self.minima)

    def points(self, output: Tensor, at: tuple[int, int] = (0, 0)) -> Tensor:
        """Return where each pixel points to: its position plus its offset."""
        return self.split(output)[1][:, 1:] + self.positions(output, at)
