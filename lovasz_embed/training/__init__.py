"""Training of the reference model: options, random views, the loop."""

from __future__ import annotations

from lovasz_embed.training._batches import Pictures
from lovasz_embed.training.config import TrainConfig
from lovasz_embed.training.evaluate import evaluate, predict
from lovasz_embed.training.fit import Progress, Writer, fit, fit_class_means
from lovasz_embed.training.views import Labelled, View, random_view, whole

__all__ = [
    "Labelled",
    "Pictures",
    "Progress",
    "TrainConfig",
    "View",
    "Writer",
    "evaluate",
    "fit",
    "fit_class_means",
    "predict",
    "random_view",
    "whole",
]
