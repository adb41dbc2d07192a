"""The Lovász softmax: raw logits against class labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lovasz_embed import _check
from lovasz_embed._ops.engines import engine_for
from lovasz_embed._ops.extension import SOFTMAX, extension
from lovasz_embed._ops.labels import as_labels, labels_in_range
from lovasz_embed._ops.methods import bins_of
from lovasz_embed._ops.reference import at_least_float32
from lovasz_embed.lovasz._common import (
    Reduction,
    check_input,
    check_options,
    flat,
    loss_of_all,
    sum_over,
    weighted_mean,
)

Classes = Literal["present", "all"] | Sequence[int]


def lovasz_softmax(
    input: Tensor,
    target: Tensor,
    *,
    classes: Classes = "present",
    per_image: bool = False,
    ignore_index: int | None = 255,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    impl: str = "auto",
    method: str = "auto",
    bins: int | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    r"""Lovász softmax of raw logits (the softmax over the classes is taken inside) against class labels.

    With p = softmax of the logits over the C classes and w_c = `lovasz_weights` of the errors of class c,

    .. math::
        e_{ic} = |[y_i = c] - p_{ic}|, \qquad L_c = \sum_i w_{ic} e_{ic},

    and L is the mean of L_c over the classes that count. C L_c is at least 1 - IoU_c of the argmax.

    Args:
        input: logits, floating point (B, C, *spatial).
        target: integer (B, *spatial) with labels 0..C-1 or `ignore_index`.
        classes: "present": classes with a pixel in the target (of the picture, with `per_image`); "all"; or a
            sequence of class ids, which count whether present or not.
        per_image: False: all pictures count as one large picture. True: one loss per picture and class.
        ignore_index: label of the pixels that do not count at all; None = all pixels count.
        weight: (C,) floating point, weight of each class, 0 or above; None = all equal.
        reduction: "mean": the mean over classes, weighted by `weight`, then over pictures with `per_image`;
            "sum" of weight times loss; or "none".
        impl: "auto" (numba on the CPU, Triton on CUDA where it is installed, else the reference), "reference",
            "numba" or "triton": speed, and never the result of a method.
        method: "sort", the exact loss; "binned": errors are counted into bins, O(P), and the loss comes out at
            most 1/bins too small, relatively, in practice less than 1e-5 (docs/mathematics.md); or "auto":
            "binned" for the engine "triton", because a sort costs many times the rest there, else "sort".
        bins: Bins per doubling of the error, a power of two; for "binned" only, None is 512.
        group: Processes whose batches count as one batch, for "binned" only and without `per_image`; None is
            this process alone. Every process gets the loss of all, and a gradient that
            DistributedDataParallel, which averages over processes, turns into that of the whole.

    Returns:
        A 0-d tensor for "mean" and "sum". For "none" weight times loss of every class, (K,), or (B, K) with
        `per_image`: K = C, or the length of a `classes` sequence, in its order. A class that does not count
        ("present" only) holds 0 there. Float64 for float64 input, otherwise float32.

    Raises:
        TypeError: input or weight is not floating point, target holds no integers, a class or ignore_index is
            no int.
        ValueError: shapes or devices do not match, an option is unknown, a class of `classes` does not exist
            or comes twice, or a label or a weight is out of range (values are looked at on the CPU only, and
            not while compiling: it would make the host wait. Elsewhere a pixel with such a label is
            background of every class).

    Note:
        A counted class that is absent costs its largest probability. Pictures without a class that counts are
        left out of the mean; if nothing counts at all the loss is 0 and stays in the graph. Ignored pixels
        have a gradient of exactly 0, even where their logits are NaN. The gradient has the input's dtype; the
        arithmetic is float32 at least, under autocast too. O(C P log P) time, O(C P) memory. Like the hinge
        it is not consistent for the IoU: from scratch, a cross-entropy first or beside it often helps.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
        >>> lovasz_softmax(logits, torch.tensor([0, 1, 2]))
        tensor(0.5355)

    Reference:
        Berman, Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018.
    """
    check_options(ignore_index, reduction, per_image, impl, method, bins, group)
    check_input(input, 2, "(B, C, *spatial)", impl)
    batch, num_classes, *spatial = input.shape
    if num_classes < 1:
        raise ValueError(_check.message("input", "have at least one channel on axis 1", tuple(input.shape)))
    target = as_labels("target", target)
    _check.same_shape("target", target, (batch, *spatial), "input without its class axis")
    _check.same_device("target", target, input.device, "input")
    _check_classes(classes, num_classes)
    if weight is not None:
        _check_weight(weight, num_classes, input.device)
    labels_in_range("target", target, num_classes, ignore_index)

    channels = () if isinstance(classes, str) else tuple(classes)
    losses, foreground, counted = extension(
        flat(at_least_float32(input)),
        target.unsqueeze(-1).flatten(1),
        kind=SOFTMAX,
        channels=channels,
        skip_absent=classes == "present",
        ignore_index=ignore_index,
        per_image=per_image,
        impl=impl,
        bins=bins_of(method, bins, engine_for(impl, input.device)),
        reduce=sum_over(group),
    )
    losses = loss_of_all(losses, group)
    weights = losses.new_ones(num_classes) if weight is None else weight.to(losses.dtype)
    if channels:
        weights = torch.stack([weights[c] for c in channels])
    weights = torch.where((foreground if classes == "present" else counted) > 0, weights, 0)
    losses = torch.where(weights > 0, losses, 0)  # of what does not count, NaN even
    if reduction == "none":
        return weights * losses
    if reduction == "sum":
        return (weights * losses).sum()
    loss = weighted_mean(losses, weights)
    return weighted_mean(loss, weights.sum(-1) > 0) if per_image else loss


class LovaszSoftmax(nn.Module):
    """`lovasz_softmax` as a module; the arguments are those of the function, `weight` is a buffer.

    Example:
        >>> LovaszSoftmax(classes="all")(torch.zeros(1, 2, 4), torch.tensor([[0, 0, 1, 1]]))
        tensor(0.5000)
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        classes: Classes = "present",
        per_image: bool = False,
        ignore_index: int | None = 255,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        impl: str = "auto",
        method: str = "auto",
        bins: int | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_options(ignore_index, reduction, per_image, impl, method, bins, group)
        _check_classes(classes)
        if weight is not None:
            _check_weight(weight)
        self.classes: Classes = classes if isinstance(classes, str) else tuple(classes)
        self.per_image = per_image
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.impl = impl
        self.method = method
        self.bins = bins
        self.group = group
        self.register_buffer("weight", weight)

    def extra_repr(self) -> str:
        """Return the arguments of the constructor call."""
        weight = None if self.weight is None else f"tensor({tuple(self.weight.shape)})"
        return (
            f"classes={self.classes!r}, per_image={self.per_image}, ignore_index={self.ignore_index}, "
            f"weight={weight}, reduction={self.reduction!r}, impl={self.impl!r}, method={self.method!r}, "
            f"bins={self.bins}, group={self.group}"
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return `lovasz_softmax` of `input` against `target`."""
        return lovasz_softmax(
            input,
            target,
            classes=self.classes,
            per_image=self.per_image,
            ignore_index=self.ignore_index,
            weight=self.weight,
            reduction=self.reduction,
            impl=self.impl,
            method=self.method,
            bins=self.bins,
            group=self.group,
        )


def _check_classes(classes: Classes, num_classes: int | None = None) -> None:
    if isinstance(classes, str):
        _check.one_of("classes", classes, ("present", "all"))
        return
    rule = 'be "present", "all" or a sequence of class ids (int)'
    _check.is_sequence("classes", classes, rule)
    if any(isinstance(c, bool) or not isinstance(c, int) for c in classes):
        raise TypeError(_check.message("classes", rule, repr(classes)))
    if not classes or len(set(classes)) < len(classes) or min(classes) < 0:
        raise ValueError(_check.message("classes", "name at least one class, each once, 0 or above", classes))
    if num_classes is not None and max(classes) >= num_classes:
        raise ValueError(_check.message("classes", f"be below the {num_classes} channels of input", classes))


def _check_weight(weight: Tensor, num_classes: int | None = None, device: torch.device | None = None) -> None:
    _check.is_floating("weight", weight)
    if weight.ndim != 1:
        raise ValueError(_check.message("weight", "have shape (C,)", tuple(weight.shape)))
    if num_classes is not None:
        _check.same_shape("weight", weight, (num_classes,), "the channels of input")
    if device is not None:
        _check.same_device("weight", weight, device, "input")
    if weight.device.type == "cpu" and not torch.compiler.is_compiling():
        usable = weight.isfinite() & (weight >= 0)
        if not usable.all():
            raise ValueError(_check.message("weight", "be finite, 0 or above", weight[~usable].tolist()))
