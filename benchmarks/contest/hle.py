"""Ours: hierarchical Lovász embeddings, nearest class mean, margin clustering, with the library's own defaults."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from contest.contestant import Contestant
from contest.network import build_network
from contest.tracks import Track
from lovasz_embed.model import ModelConfig
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.training import TrainConfig, View, fit_class_means
from lovasz_embed.training._loss import followed, hinge_of

_MODEL = {field.name for field in fields(ModelConfig)}
_TRAIN = {field.name for field in fields(TrainConfig)}


class Hle(Contestant):
    """The method of the library, by its defaults; every option of `ModelConfig` and `TrainConfig` can be changed.

    Args:
        track: The track.
        backbone: See `build_network`.
        options: Of `ModelConfig`, on top of those of the track, and of the loss in `TrainConfig`.
    """

    TRIALS = ({}, {"ncm_weight": 3.0}, {"learning_rate": 4e-3}, {"learning_rate": 1e-3})
    READINGS = ({}, {"reach": 1.0}, {"connected": True}, {"reach": 2.5})

    def __init__(self, track: Track, *, backbone: str | None = None, **options: Any) -> None:
        super().__init__()
        unknown = set(options) - _MODEL - _TRAIN
        if unknown:
            raise ValueError(f"options must be of ModelConfig or TrainConfig, got {sorted(unknown)}")
        model = {name: value for name, value in options.items() if name in _MODEL}
        config = TrainConfig(**{name: value for name, value in options.items() if name in _TRAIN})
        if config.spread is not None:
            raise ValueError("the contest trains towards running class means, got spread")
        self.config = config
        dims = int(model.pop("dims", track.model.get("dims", ModelConfig.dims)))
        self.network = build_network(track, backbone=backbone, dims=dims, **model)
        self.hinge = hinge_of(config)
        self.running = torch.full_like(self.network.ncm.means, torch.nan, dtype=torch.float32)

    def loss(self, output: Tensor, views: View) -> Tensor:
        """Return the hierarchical hinge with the terms that `TrainConfig` asks for."""
        self.follow(output, views)
        levels = self.network.levels(views.semantic, views.instance, views.crowd)
        loss: Tensor = self.hinge(output, levels, self.running).loss
        return loss

    def follow(self, output: Tensor, views: View) -> None:
        """Move the running class means towards those of this batch, as `fit` does."""
        self.running = followed(self.running, output.detach(), views.semantic, self.config.momentum)

    def after_training(self, views: Iterable[View], amp: bool) -> None:
        """Take the class means over whole pictures, as `fit` does."""
        fit_class_means(self.network, iter(views), amp=amp)

    def read(self, output: Tensor, **reading: Any) -> PanopticResult:
        """Read off what `PanopticEmbedder.read_off` does; fields of `ModelConfig` may be others than in training."""
        before = self.network.config
        self.network.config = replace(before, **reading)
        try:
            return self.network.read_off(output)
        finally:
            self.network.config = before

    def points(self, output: Tensor, at: tuple[int, int] = (0, 0)) -> Tensor:
        """Return the embedding; added coordinates count from `at`."""
        config = self.network.config
        if config.coordinates != "added" or at == (0, 0):
            return output
        moved = output.clone()
        moved[:, -2:] += torch.tensor(at, dtype=output.dtype).view(2, 1, 1) / config.unit
        return moved
