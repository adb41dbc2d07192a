"""What the loss of a step is made of: the hinge that the options ask for, and the running class means it looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from lovasz_embed.hierarchy import HierarchicalLovaszHinge
from lovasz_embed.prototypes import class_means
from lovasz_embed.training._ranks import Ranks
from lovasz_embed.training.config import TrainConfig


def hinge_of(config: TrainConfig) -> HierarchicalLovaszHinge:
    """Return the loss with the terms that a configuration asks for.

    >>> hinge_of(TrainConfig(kernel="gaussian")).kernel
    'gaussian'
    """
    return HierarchicalLovaszHinge(
        kernel=config.kernel,
        negatives=config.negatives,
        ncm_weight=config.ncm_weight,
        ncm_temperature=config.ncm_temperature,
        pull_weight=config.pull_weight,
        norm_weight=config.norm_weight,
    )


def followed(
    running: Tensor, embedding: Tensor, semantic: Tensor, momentum: float, ranks: Ranks | None = None
) -> Tensor:
    """Return running class means (C, D) moved towards those of a batch; a class met for the first time takes its mean.

    The batch is that of all `ranks`, each of which gives its share.

    >>> running = torch.tensor([[0.0], [torch.nan]])
    >>> followed(running, torch.tensor([[[4.0, 2.0]]]), torch.tensor([[0, 1]]), 0.75).tolist()
    [[1.0], [2.0]]
    """
    means, counts = class_means(embedding, semantic, num_classes=len(running))
    if ranks is not None and ranks.count > 1:
        sums = torch.where((counts > 0).unsqueeze(1), means.double() * counts.unsqueeze(1), 0.0)
        ranks.add(sums, counts)
        means = sums / counts.unsqueeze(1)
    known = (counts > 0).unsqueeze(1)
    blended = torch.lerp(means.to(running), running, momentum)
    blended = torch.where(running.isnan(), means.to(running), blended)
    return torch.where(known, blended, running)
