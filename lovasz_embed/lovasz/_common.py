"""What the two Lovász losses share: options, shapes, means, processes."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from lovasz_embed import _check
from lovasz_embed._ops.binning import Reduce
from lovasz_embed._ops.engines import IMPLEMENTATIONS, check_engine
from lovasz_embed._ops.methods import check_method

Reduction = Literal["mean", "sum", "none"]

_REDUCTIONS = ("mean", "sum", "none")


def flat(values: Tensor) -> Tensor:
    """Return (B, C, *spatial) as (B, C, P)."""
    return values.unsqueeze(-1).flatten(2)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over the last axis, 0 where all weights are 0."""
    if weights.is_floating_point():
        # Relative to the largest: the inverse of a subnormal weight is Inf, and so is the sum of huge ones.
        largest = weights.amax(-1, keepdim=True)
        weights = weights / torch.where(largest > 0, largest, 1)
    total = weights.sum(-1)
    return (losses * weights).sum(-1) / torch.where(total > 0, total, 1)


def sum_over(group: ProcessGroup | None) -> Reduce | None:
    """Return a function that adds a tensor up over the processes of `group`."""
    if group is None:
        return None

    def reduce(values: Tensor) -> Tensor:
        values = values.clone()
        torch.distributed.all_reduce(values, group=group)
        return values

    return reduce


def loss_of_all(losses: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return the sum over processes of their parts of the losses."""
    return losses if group is None else _SumOver.apply(losses, group)  # type: ignore[no-untyped-call]


class _SumOver(torch.autograd.Function):
    """Add up forward; backward each process gets its own part, as many times as there are processes.

    DistributedDataParallel divides the sum of the processes' gradients by their number.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: ProcessGroup) -> Tensor:
        ctx.processes = group.size()
        total = values.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.processes, None


def check_input(input: Tensor, axes: int, layout: str, impl: str) -> None:
    """Raise unless `input` has at least so many axes, and lives where `impl` runs."""
    _check.is_floating("input", input)
    if input.ndim < axes:
        remedy = "A single picture needs a batch axis: input[None]."
        raise ValueError(_check.message("input", f"have shape {layout}", tuple(input.shape), remedy))
    check_engine(impl, input.device, "input")


def check_options(
    ignore_index: int | None,
    reduction: str,
    per_image: bool,
    impl: str,
    method: str,
    bins: int | None,
    group: ProcessGroup | None,
) -> None:
    """Raise on an option that does not exist, or does not go with the others."""
    if ignore_index is not None:
        _check.is_int("ignore_index", ignore_index, rule="be an int or None")
    _check.one_of("reduction", reduction, _REDUCTIONS)
    _check.is_bool("per_image", per_image)
    _check.one_of("impl", impl, IMPLEMENTATIONS)
    check_method(method, bins)
    if group is not None:
        if not isinstance(group, ProcessGroup):
            raise TypeError(_check.message("group", "be a process group or None", type(group).__name__))
        if method != "binned":
            remedy = "Use method='binned': counts add up over processes, orders do not."
            raise ValueError(_check.message("group", f"be None for method={method!r}", "a process group", remedy))
        if per_image:
            remedy = "Use per_image=False: a picture lies in one process."
            raise ValueError(_check.message("group", "be None for per_image=True", "a process group", remedy))
