"""Our method with what the library does not offer as an option, for ablations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contest.hle import Hle
from contest.tracks import Track
from lovasz_embed.clustering import cluster_embeddings
from lovasz_embed.hierarchy import Level, hierarchical_lovasz_hinge
from lovasz_embed.panoptic import PanopticResult, assemble
from lovasz_embed.training import View

_PIXELS = 200_000  # that the linear classifier is fitted to


class Variant(Hle):
    """HLE with one thing changed.

    Args:
        track: The track.
        level_weights: Of the category and the instance level.
        window: Side of the windows, pixels, to which the negatives of an instance, and its mean, are limited; it
            divides the crop. None is no limit.
        ncm_steps: Steps after which the nearest-class-mean cross-entropy ends: a warm-up. None is never.
        groups: Group of each category: a level above that of categories, of twice their radius.
        bandwidth: Whether the radius of an instance is predicted, by a linear function of the embedding (gaussian
            kernel; read it off with clustering="density", which needs no radius).
        means: "pass": class means over the training pictures, as the library does; "running": those of the training.
        linear: Whether a linear softmax is fitted to the finished embedding, for classifier="linear".
        options: See `Hle`.
    """

    def __init__(
        self,
        track: Track,
        *,
        level_weights: tuple[float, float] = (1.0, 1.0),
        window: int | None = None,
        ncm_steps: int | None = None,
        groups: Sequence[int] | None = None,
        bandwidth: bool = False,
        means: str = "pass",
        linear: bool = False,
        **options: Any,
    ) -> None:
        if bandwidth:
            options["kernel"] = "gaussian"
        super().__init__(track, **options)
        self.level_weights, self.window, self.ncm_steps = level_weights, window, ncm_steps
        self.groups = None if groups is None else torch.tensor(groups)
        seen = len(self.network.config.category_dims)
        self.bandwidth = nn.Conv2d(seen, 1, 1) if bandwidth else None
        self.means, self.linear = means, nn.Linear(seen, len(track.classes)) if linear else None
        if self.linear is not None:
            self.linear.requires_grad_(False)
        self.steps = 0

    def loss(self, output: Tensor, views: View) -> Tensor:
        """Return the loss of `Hle` with what is changed."""
        self.follow(output, views)
        category, instance = (
            replace(level, weight=weight)
            for level, weight in zip(
                self.network.levels(views.semantic, views.instance, views.crowd), self.level_weights, strict=True
            )
        )
        if self.ncm_steps is not None and self.steps >= self.ncm_steps:
            self.hinge.ncm_weight = 0.0
        self.steps += 1
        total = output.new_zeros(())
        if self.groups is not None:
            labels = torch.where(category.labels < 0, category.labels, self.groups[category.labels.clamp(min=0)])
            above = replace(category, labels=labels, radius=2 * category.radius, margin=_doubled(category.margin))
            total = total + self._hinge_of(output, above)
        if self.bandwidth is not None:
            logarithm = self.bandwidth(output[:, list(self.network.config.category_dims)])[:, 0]
            instance = replace(instance, bandwidth=torch.exp(2 * torch.tanh(logarithm / 2)))
        if self.window is None:
            total = total + self.hinge(output, (category, instance), self.running).loss
        else:
            total = total + self.hinge(output, (category,), self.running).loss
            parts = replace(instance, labels=_windows(instance.labels[:, None], self.window)[:, 0])
            total = total + self._hinge_of(_windows(output, self.window), parts)
        return total

    def after_training(self, views: Iterable[View], amp: bool) -> None:
        """Take the class means that are asked for, and fit the linear classifier."""
        kept = list(views) if self.linear is not None else views
        super().after_training(kept, amp)
        if self.means == "running":
            known = ~self.running.isnan().any(1)
            self.network.ncm.sums.copy_(self.running.nan_to_num(0.0))
            self.network.ncm.counts.copy_(known)
        if self.linear is not None:
            self._fit_linear(list(kept))

    def read(
        self, output: Tensor, *, classifier: str = "ncm", clustering: str = "margin", **reading: Any
    ) -> PanopticResult:
        """Read off with another classifier ("ncm", "linear") or another method of clustering."""
        if classifier == "ncm" and clustering == "margin":
            return super().read(output, **reading)
        config = replace(self.network.config, **reading)
        seen = output[:, list(config.category_dims)]
        if classifier == "linear":
            assert self.linear is not None, "trained with linear=True"
            semantic = self.linear(seen.movedim(1, -1)).argmax(-1)
        else:
            semantic = self.network.ncm(output)
        things = frozenset(config.things)
        is_thing = torch.isin(semantic, torch.tensor(sorted(things)))
        reach = config.reach * config.instance_radius
        limits = {"radius": config.instance_radius, "reach": reach} if clustering == "margin" else {}
        minima = {"min_thing_area": config.min_thing_area, "min_stuff_area": config.min_stuff_area}
        clusters = cluster_embeddings(
            output[:, list(config.instance_dims)],
            is_thing if config.vote else torch.where(is_thing, semantic, -1),
            method=clustering,
            connected=config.connected,
            min_size=max(config.min_thing_area, 1),
            **limits,
        )
        return assemble(semantic, clusters.labels, things=things, scores=clusters.scores, ignore_index=-1, **minima)

    def _hinge_of(self, output: Tensor, level: Level) -> Tensor:
        hinge = self.hinge
        return hierarchical_lovasz_hinge(output, [level], kernel=hinge.kernel, negatives=hinge.negatives).loss

    def _fit_linear(self, views: Sequence[View]) -> None:
        """Fit a softmax of a linear function of the category dimensions to the pixels of the training pictures."""
        assert self.linear is not None
        generator = torch.Generator().manual_seed(0)
        points, labels = [], []
        for view in views:
            with torch.no_grad():
                seen = self(view.picture[None])[0, list(self.network.config.category_dims)].flatten(1)
            known = (view.semantic.flatten() != 255).nonzero()[:, 0]
            chosen = known[torch.randint(len(known), (-(-_PIXELS // len(views)),), generator=generator)]
            points.append(seen[:, chosen].T)
            labels.append(view.semantic.flatten()[chosen])
        x, y = torch.cat(points), torch.cat(labels)
        self.linear.requires_grad_(True)
        optimiser = torch.optim.LBFGS(self.linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(self.linear(x), y)  # type: ignore[misc]
            loss.backward()
            return loss

        optimiser.step(closure)
        self.linear.requires_grad_(False)


def _doubled(margin: float | None) -> float | None:
    return None if margin is None else 2 * margin


def _windows(maps: Tensor, side: int) -> Tensor:
    """Cut maps (B, C, H, W) into windows (B n, C, side, side)."""
    batch, channels, height, width = maps.shape
    if height % side or width % side:
        raise ValueError(f"window must divide the crop {(height, width)}, got {side}")
    parts = maps.reshape(batch, channels, height // side, side, width // side, side)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, side, side)
