"""The training loop that all contestants share: same crops, same optimiser, same schedule, same number of steps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from contest.contestant import Contestant
from lovasz_embed.training import Labelled, TrainConfig, View
from lovasz_embed.training._batches import Batches
from lovasz_embed.training._parameters import learning_parameters


@dataclass
class Trained:
    """What a training took.

    Attributes:
        steps: Steps done.
        seconds: CPU seconds of the whole loop, cropping included; with one thread and a free core what a clock says.
        loss_seconds: Of the loss alone, forward and backward with respect to the network's output.
        losses: About twenty values of the loss, evenly spread.
    """

    steps: int = 0
    seconds: float = 0.0
    loss_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def train(contestant: Contestant, pictures: Sequence[Labelled], config: TrainConfig) -> Trained:
    """Train in place. Step s draws its crops from (seed, s) alone: they are the same for every contestant.

    It is the loop of `lovasz_embed.training.fit`, with the loss handed in.

    Args:
        contestant: Its loss is asked for in every step.
        pictures: The training pictures.
        config: Of these options those of batches and optimiser count; those of the loss are the contestant's own.
    """
    if config.loss_stride != 1:
        raise ValueError(f"loss_stride must be 1, for heat maps need every pixel, got {config.loss_stride}")
    batches = Batches(pictures, config, len(contestant.network.config.classes))
    groups = learning_parameters(contestant, contestant.network.backbone, config)
    optimiser = torch.optim.AdamW(
        [{"params": parameters} for parameters, _ in groups], lr=config.learning_rate, weight_decay=config.weight_decay
    )
    contestant.train()
    done = Trained()
    began = time.process_time()
    for step in range(config.steps):
        views = batches[step]
        warm = min(1.0, (step + 1) / max(config.warmup, 1))
        rate = config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
        for group, (_, factor) in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = rate * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=config.amp):
            output = contestant(views.picture.contiguous(memory_format=torch.channels_last))
        # The graph is cut at the output, so that the loss can be timed alone; the gradients are the same.
        cut = output.detach().requires_grad_()
        optimiser.zero_grad()
        before = time.process_time()
        loss = contestant.loss(cut, views)
        loss.backward()
        done.loss_seconds += time.process_time() - before
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RuntimeError(f"the loss of {type(contestant).__name__} is {value} in step {step}")
        output.backward(cut.grad)
        nn.utils.clip_grad_norm_(contestant.parameters(), config.clip)  # in the order of `fit`
        optimiser.step()
        if step % max(config.steps // 20, 1) == 0 or step == config.steps - 1:
            done.losses.append(round(value, 4))
    done.steps, done.seconds = config.steps, time.process_time() - began
    spread = range(0, len(pictures), -(-len(pictures) // config.mean_pictures))
    views_of_means = (batches.picture(index) for index in spread)
    contestant.after_training(views_of_means, config.amp)
    return done


def one_batch(pictures: Sequence[Labelled], config: TrainConfig, classes: int) -> View:
    """Return the batch of step 0."""
    return Batches(pictures, config, classes)[0]
