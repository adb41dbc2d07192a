"""What a training run is made of, in one frozen record that is saved beside its results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lovasz_embed import _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed._json import read_json

SAMPLINGS = ("pictures", "pixels")


@dataclass(frozen=True)
class TrainConfig:
    """Options of `fit`.

    Attributes:
        steps: Optimiser steps at most.
        minutes: Minutes of training at most; the schedule ends with whichever of the two comes first. None is no
            limit: only then is a run repeatable bit for bit.
        batch: Crops a step.
        crop: Side of a crop, pixels.
        sampling: What is drawn evenly. "pictures": all alike. "pixels": a picture of twice the pixels twice as often,
            so that what a large picture shows is seen as often as what a small one does; it wants pictures with a
            `size`, or decodes all of them once.
        learning_rate: Peak of the schedule: linear warm-up, then a cosine to zero.
        backbone_rate: Factor of the learning rate for the backbone's own weights; 0 leaves them as they are. Of an
            `AdaptedBackbone` these are its body's: what adapts it learns at the full rate.
        frozen_stages: First stages of the backbone that stay as they are; the rest learns at `backbone_rate`. Fine maps
            are the dearest to learn and the most general: of efficientnet-lite0, three stages hold 2 % of the weights
            and cost two fifths of the network's backward pass.
        warmup: Steps of warm-up.
        weight_decay: Of AdamW.
        clip: Largest norm of the gradient.
        max_skipped: Steps in a row at most whose loss or gradient is not finite. Such a step changes no weight and is
            counted; one more ends the run.
        amp: Whether the network computes in bfloat16; the loss never does.
        seed: Seed of weights, crops and augmentation.
        loss_stride: Pixels between two that the loss looks at, along both axes; the lattice moves at random from step
            to step. Above 1 the loss is cheaper and its view coarser, which suits pictures of large things.
        scale: Crops are resized by a factor of 1/scale ... scale.
        turn: Whether pictures have no up and down: quarter turns are then allowed.
        jitter: Strength of changes of exposure, 0 ... 1.
        kernel: Kernel of the hinge.
        negatives: Negatives of the hinge.
        ncm_weight: Weight of the nearest-class-mean cross-entropy.
        ncm_temperature: Its temperature.
        pull_weight: Weight of the pull of a batch's class means to the running ones.
        norm_weight: Weight of the regulariser that keeps the class means near the origin.
        spread: Distance between the nearest two of fixed, evenly spread places, one per category, category radii: the
            cross-entropy and the pull then look at these instead of the running class means. Those of many categories
            start on one heap and part slowly. None looks at the running means. The final class means are measured
            either way.
        momentum: Momentum of the running class means.
        mean_pictures: Pictures at most, evenly spread, over which the final class means are taken.
        log_every: Steps between two lines of the log.
        checkpoint_every: Steps between two checkpoints.
        workers: Processes that load and crop; 0 does it in the training process.
    """

    steps: int = 4000
    minutes: float | None = None
    batch: int = 6
    crop: int = 192
    sampling: str = "pictures"
    learning_rate: float = 2e-3
    backbone_rate: float = 1.0
    frozen_stages: int = 0
    warmup: int = 50
    weight_decay: float = 1e-2
    clip: float = 1.0
    max_skipped: int = 5
    amp: bool = True
    seed: int = 0
    loss_stride: int = 1
    scale: float = 1.0
    turn: bool = False
    jitter: float = 0.4
    kernel: str = "margin"
    negatives: str = "all"
    ncm_weight: float = 1.0
    ncm_temperature: float = 0.25
    pull_weight: float = 0.0
    norm_weight: float = 0.01
    spread: float | None = None
    momentum: float = 0.95
    mean_pictures: int = 500
    log_every: int = 20
    checkpoint_every: int = 500
    workers: int = 0

    def __post_init__(self) -> None:
        """Check every value, so that a run fails before it starts."""
        for name in ("steps", "batch", "crop", "loss_stride", "mean_pictures", "log_every", "checkpoint_every"):
            _check.is_int(name, getattr(self, name), 1, rule="be a whole number")
        for name in ("frozen_stages", "warmup", "max_skipped", "workers", "seed"):
            _check.is_int(name, getattr(self, name), 0, rule="be a whole number")
        for name in ("amp", "turn"):
            _check.is_bool(name, getattr(self, name))
        for name in ("minutes", "spread"):
            if getattr(self, name) is not None:
                _check.positive(name, getattr(self, name))
        for name in ("learning_rate", "clip", "ncm_temperature"):
            _check.positive(name, getattr(self, name))
        for name in ("backbone_rate", "weight_decay", "ncm_weight", "pull_weight", "norm_weight"):
            _check.non_negative(name, getattr(self, name))
        _check.one_of("sampling", self.sampling, SAMPLINGS)
        _check.between("scale", self.scale, 1, 1000, "lie in 1 ... 1000")
        _check.between("jitter", self.jitter, 0, 1, "lie in 0 ... 1")
        _check.between("momentum", self.momentum, 0, 1, "lie in [0, 1)")
        if self.momentum == 1:
            raise ValueError(_check.message("momentum", "lie in [0, 1)", self.momentum))
        # kernel and negatives are checked by the loss, which is built before the first step.

    def save(self, path: Path) -> None:
        """Write the options as JSON."""
        write_atomically(path, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is no JSON object or has an unknown option.
        """
        values: Any = read_json(path)
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            got = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
            raise ValueError(_check.message(str(path), "hold options of TrainConfig", got))
        return cls(**values)
