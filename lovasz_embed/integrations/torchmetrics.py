"""Panoptic quality as a `torchmetrics.Metric`, for a `MetricCollection` or a Lightning module.

Needs torchmetrics: `pip install torchmetrics`. In a loop of your own `lovasz_embed.PanopticQuality` does
without.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lovasz_embed import quality
from lovasz_embed.panoptic import PanopticResult

__all__ = ["PanopticQuality"]


class PanopticQuality(Metric):
    """Panoptic quality by panopticapi's rules; what is counted is what `lovasz_embed.PanopticQuality` counts.

    Args:
        num_classes: C; categories are 0..C-1.
        things: Category ids that are things; the segments' own `is_thing` is not looked at.
        per_class: Add the scores of each class, tensors (C,), to what `compute` returns.
        **kwargs: Those of `torchmetrics.Metric`, as `sync_on_compute` or `process_group`.

    Raises:
        ValueError: `num_classes` is below 1, or a thing is outside 0..C-1.
        TypeError: `things` is no collection of integers.

    Notes:
        The state is one int64 tensor of counts. As torchmetrics has it, each process counts its own pictures
        and `compute` sums over processes: call it on all of them. `lovasz_embed.PanopticQuality` sums at each
        `update` instead. A sampler that repeats pictures to fill the last batch has them counted twice.
        `torchmetrics.detection.PanopticQuality` has other rules, and takes maps of (category, instance): see
        "Panoptic quality, to the letter" in the documentation.

    >>> from torchmetrics import MetricCollection
    >>> semantic, instance = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]])
    >>> truth = PanopticResult.from_maps(semantic, instance, things={1})
    >>> metrics = MetricCollection({"panoptic": PanopticQuality(2, things={1})}, prefix="val_")
    >>> metrics.update(truth, truth)
    >>> metrics.compute()["val_pq_things"]
    tensor(1.)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False  # forward counts a batch alone, then adds: no second pass over the pixels
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    counts: Tensor

    def __init__(self, num_classes: int, things: Collection[int], *, per_class: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        counter = quality.PanopticQuality(num_classes, things)  # its checks, and the shape of its counts
        self.num_classes = num_classes
        self.things = counter.things
        self.per_class = per_class
        self.add_state("counts", counter.counts, dist_reduce_fx="sum", persistent=True)

    def update(self, prediction: PanopticResult, truth: PanopticResult) -> None:
        """Add a batch of this process.

        Raises:
            ValueError: As `panoptic_quality`.
        """
        self.counts += quality._count(prediction, truth, self.num_classes).to(self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores as 0-d float32 tensors, by the names of `QualityResult`; nan for a mean of nothing.

        With `per_class` also "pq_per_class", "sq_per_class", "rq_per_class" and "iou_per_class", (C,) each.
        """
        result = quality._quality(self.counts, self.things)
        scores = {name: value for name, value in vars(result).items() if isinstance(value, float)}
        answer = {name: torch.tensor(value, device=self.counts.device) for name, value in scores.items()}
        if self.per_class:
            for name in ("pq", "sq", "rq", "iou"):
                answer[f"{name}_per_class"] = getattr(result.per_class, name).to(self.counts.device, torch.float32)
        return answer

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"num_classes={self.num_classes}, things={sorted(self.things)}, per_class={self.per_class}"
