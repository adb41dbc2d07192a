"""The Lovász hinge and the Lovász softmax: losses that are the Jaccard loss where predictions are certain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lovasz_embed import _check
from lovasz_embed._ops import reference
from lovasz_embed._ops.labels import as_labels, is_ignored, labels_in_range

Reduction = Literal["mean", "sum", "none"]
Classes = Literal["present", "all"] | Sequence[int]

_REDUCTIONS = ("mean", "sum", "none")
_IMPLEMENTATIONS = ("auto", "reference")
_METHODS = ("sort",)


def lovasz_weights(errors: Tensor, target: Tensor) -> Tensor:
    r"""Gradient of the Lovász extension of the Jaccard loss: the weight of every error in the loss.

    With the entries of a row sorted by error, descending, G foreground entries in all, c_k among the first k,
    I_k = G - c_k and U_k = G + k - c_k, the k-th entry weighs

    .. math::
        w_k = \frac{1}{U_k} \text{ (foreground)}, \qquad
        w_k = \frac{I_k}{U_k (U_k - 1)} \text{ (background)},

    and without foreground the first entry weighs 1, all others 0. The loss is sum_i w_i relu(e_i).

    Args:
        errors: floating point (..., P), one row per mask.
        target: bool or integer (..., P), 1 = foreground, 0 = background.

    Returns:
        (..., P) in input order, without gradient; float64 for float64 errors, otherwise float32 (in half
        precision the weights of a large picture would vanish).

    Raises:
        TypeError: errors are not floating point, or target holds no integers.
        ValueError: shapes or devices differ, there is no axis, or target holds something other than 0 and 1
            (looked at on the CPU only, and not while compiling: it would make the host wait).

    Note:
        Weights are never negative and a row with P >= 1 sums to 1. Tied errors keep their input order: the
        loss does not depend on it, the weights do. O(P log P); counts are int64, hence exact for any P.

    Example:
        >>> lovasz_weights(torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0, 1, 0]))
        tensor([0.5000, 0.5000, 0.0000])

    Reference:
        Berman, Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018, algorithm 1, which subtracts
        neighbouring values of the Jaccard loss; the closed form is that difference taken on paper.
    """
    _check.is_floating("errors", errors)
    target = as_labels("target", target)
    if errors.ndim < 1:
        raise ValueError(_check.message("errors", "have shape (..., P)", tuple(errors.shape)))
    _check.same_shape("target", target, tuple(errors.shape), "errors")
    _check.same_device("target", target, errors.device, "errors")
    labels_in_range("target", target, 2, None)
    return reference.lovasz_weights(errors, target)


def lovasz_hinge(
    input: Tensor,
    target: Tensor,
    *,
    per_image: bool = True,
    multilabel: bool = False,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
    impl: str = "auto",
    method: str = "sort",
) -> Tensor:
    r"""Lovász hinge of raw logits (no sigmoid before it) against binary masks.

    With labels s_i = +1 in the mask and -1 outside, and w = `lovasz_weights` of the hinge errors e,

    .. math::
        e_i = 1 - s_i F_i, \qquad L = \sum_i w_i \max(e_i, 0) \;\ge\; 1 - \mathrm{IoU}(F > 0).

    Args:
        input: logits, floating point (B, *spatial): one mask per picture. With `multilabel` (B, C, *spatial).
        target: bool or integer of the same shape, 1 = mask, 0 = not, or `ignore_index`.
        per_image: True: one loss per picture (and channel). False: all pictures count as one large picture.
        multilabel: True: axis 1 holds C masks that may overlap, each with a loss of its own.
        ignore_index: target value of the pixels that do not count at all; None = all pixels count.
        reduction: "mean" over the masks that have a pixel that counts, "sum", or "none".
        impl: "auto" or "reference"; chooses speed, never the result.
        method: "sort", the exact loss.

    Returns:
        A 0-d tensor for "mean" and "sum". For "none" one loss per mask: (B,), or () without `per_image`; with
        `multilabel` (B, C), or (C,) without `per_image`. Float64 for float64 input, otherwise float32.

    Raises:
        TypeError: input is not floating point, target holds no integers, ignore_index is no int.
        ValueError: shapes or devices differ, an option is unknown, or target holds a value that is neither 0
            nor 1 nor `ignore_index` (looked at on the CPU only, and not while compiling: it would make the
            host wait).

    Note:
        A mask without foreground costs its largest error. One without any pixel that counts costs 0, stays in
        the graph and is left out of the mean. Where errors tie, or are 0, the gradient is one of the
        subgradients; it has the input's dtype, the arithmetic is float32 at least, under autocast too.
        O(P log P) per mask of P pixels. The loss is convex but not consistent for the IoU (it embeds a
        problem with an abstain option, arXiv 2203.08645): training from scratch often wants a cross-entropy
        first or beside it.

    Example:
        >>> logits = torch.tensor([[[2.0, -0.5], [-0.5, -3.0]]])
        >>> lovasz_hinge(logits, torch.tensor([[[1, 1], [0, 0]]]))
        tensor(0.8333)

    Reference:
        Yu, Blaschko, "Learning submodular losses with the Lovász hinge", ICML 2015; Berman, Triki, Blaschko,
        "The Lovász-Softmax loss", CVPR 2018.
    """
    _check_options(ignore_index, reduction, impl, method)
    layout = "(B, C, *spatial)" if multilabel else "(B, *spatial)"
    _check_input(input, 2 if multilabel else 1, layout)
    target = as_labels("target", target)
    _check.same_shape("target", target, tuple(input.shape), "input")
    _check.same_device("target", target, input.device, "input")
    labels_in_range("target", target, 2, ignore_index)

    if not multilabel:
        input, target = input.unsqueeze(1), target.unsqueeze(1)
    counted = ~is_ignored(target, ignore_index)
    foreground = (target == 1) & counted
    logits = reference.at_least_float32(input)
    errors = torch.where(counted, 1 - torch.where(foreground, logits, -logits), 0)

    losses = reference.lovasz_extension(_rows(errors, per_image), _rows(foreground, per_image))
    has_pixels = _rows(counted, per_image).any(-1)
    if reduction == "none":
        return losses if multilabel else losses.squeeze(-1)
    if reduction == "sum":
        return losses.sum()
    return _weighted_mean(losses.flatten(), has_pixels.flatten())


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
    method: str = "sort",
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
        impl: "auto" or "reference"; chooses speed, never the result.
        method: "sort", the exact loss.

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
    _check_options(ignore_index, reduction, impl, method)
    _check_input(input, 2, "(B, C, *spatial)")
    batch, num_classes, *spatial = input.shape
    target = as_labels("target", target)
    _check.same_shape("target", target, (batch, *spatial), "input without its class axis")
    _check.same_device("target", target, input.device, "input")
    _check_classes(classes, num_classes)
    if weight is not None:
        _check_weight(weight, num_classes, input.device)
    labels_in_range("target", target, num_classes, ignore_index)

    counted = ~is_ignored(target, ignore_index).unsqueeze(1)
    # Masked before the softmax as well: its backward would spread a NaN of an ignored pixel.
    logits = torch.where(counted, reference.at_least_float32(input), 0)
    ids = torch.arange(num_classes, device=input.device).view(-1, *[1] * len(spatial))
    foreground = (target.unsqueeze(1) == ids) & counted
    probabilities = logits.softmax(1)
    errors = torch.where(counted, torch.where(foreground, 1 - probabilities, probabilities), 0)
    weights = input.new_ones(num_classes, dtype=errors.dtype) if weight is None else weight.to(errors.dtype)
    if not isinstance(classes, str):
        errors, foreground = _pick(errors, classes, 1), _pick(foreground, classes, 1)
        weights = _pick(weights, classes, 0)

    errors, foreground = _rows(errors, per_image), _rows(foreground, per_image)
    counts = foreground if classes == "present" else _rows(counted, per_image)
    losses = reference.lovasz_extension(errors, foreground)
    weights = torch.where(counts.any(-1), weights, 0)
    if reduction == "none":
        return weights * losses
    if reduction == "sum":
        return (weights * losses).sum()
    loss = _weighted_mean(losses, weights)
    return _weighted_mean(loss, weights.sum(-1) > 0) if per_image else loss


class LovaszHinge(nn.Module):
    """`lovasz_hinge` as a module; the arguments are those of the function.

    Example:
        >>> LovaszHinge(ignore_index=255)(torch.tensor([[2.0, -2.0]]), torch.tensor([[1, 255]]))
        tensor(0.)
    """

    def __init__(
        self,
        *,
        per_image: bool = True,
        multilabel: bool = False,
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
        impl: str = "auto",
        method: str = "sort",
    ) -> None:
        super().__init__()
        _check_options(ignore_index, reduction, impl, method)
        self.per_image = per_image
        self.multilabel = multilabel
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.impl = impl
        self.method = method

    def extra_repr(self) -> str:
        """Return the arguments of the constructor call."""
        return (
            f"per_image={self.per_image}, multilabel={self.multilabel}, ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r}, impl={self.impl!r}, method={self.method!r}"
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return `lovasz_hinge` of `input` against `target`."""
        return lovasz_hinge(
            input,
            target,
            per_image=self.per_image,
            multilabel=self.multilabel,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            impl=self.impl,
            method=self.method,
        )


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
        method: str = "sort",
    ) -> None:
        super().__init__()
        _check_options(ignore_index, reduction, impl, method)
        _check_classes(classes)
        if weight is not None:
            _check_weight(weight)
        self.classes: Classes = classes if isinstance(classes, str) else tuple(classes)
        self.per_image = per_image
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.impl = impl
        self.method = method
        self.register_buffer("weight", weight)

    def extra_repr(self) -> str:
        """Return the arguments of the constructor call."""
        weight = None if self.weight is None else f"tensor({tuple(self.weight.shape)})"
        return (
            f"classes={self.classes!r}, per_image={self.per_image}, ignore_index={self.ignore_index}, "
            f"weight={weight}, reduction={self.reduction!r}, impl={self.impl!r}, method={self.method!r}"
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
        )


def _rows(values: Tensor, per_image: bool) -> Tensor:
    """Return (B, C, *spatial) with one mask per row: (B, C, P), or (C, B * P) without `per_image`."""
    values = values.unsqueeze(-1).flatten(2)
    return values if per_image else values.transpose(0, 1).flatten(1)


def _pick(values: Tensor, classes: Sequence[int], dim: int) -> Tensor:
    """Return the slices of `classes` along `dim`; an index tensor would have to be copied to the device."""
    return torch.stack([values.select(dim, c) for c in classes], dim)


def _weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over the last axis, 0 where all weights are 0."""
    total = weights.sum(-1)
    return (losses * weights).sum(-1) / torch.where(total > 0, total, 1)


def _check_options(ignore_index: int | None, reduction: str, impl: str, method: str) -> None:
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        raise TypeError(_check.message("ignore_index", "be an int or None", type(ignore_index).__name__))
    _check.one_of("reduction", reduction, _REDUCTIONS)
    _check.one_of("impl", impl, _IMPLEMENTATIONS)
    _check.one_of("method", method, _METHODS)


def _check_input(input: Tensor, axes: int, layout: str) -> None:
    _check.is_floating("input", input)
    if input.ndim < axes:
        remedy = "A single picture needs a batch axis: input[None]."
        raise ValueError(_check.message("input", f"have shape {layout}", tuple(input.shape), remedy))


def _check_classes(classes: Classes, num_classes: int | None = None) -> None:
    if isinstance(classes, str):
        _check.one_of("classes", classes, ("present", "all"))
        return
    if any(isinstance(c, bool) or not isinstance(c, int) for c in classes):
        rule = 'be "present", "all" or a sequence of class ids (int)'
        raise TypeError(_check.message("classes", rule, repr(classes)))
    if not classes or len(set(classes)) < len(classes) or min(classes) < 0:
        raise ValueError(_check.message("classes", "name at least one class, each once, 0 or above", classes))
    if num_classes is not None and max(classes) >= num_classes:
        raise ValueError(_check.message("classes", f"be below the {num_classes} channels of input", classes))


def _check_weight(weight: Tensor, num_classes: int | None = None, device: torch.device | None = None) -> None:
    _check.is_floating("weight", weight)
    if num_classes is not None:
        _check.same_shape("weight", weight, (num_classes,), "the channels of input")
    if device is not None:
        _check.same_device("weight", weight, device, "input")
    if weight.device.type == "cpu" and not torch.compiler.is_compiling():
        usable = weight.isfinite() & (weight >= 0)
        if not usable.all():
            raise ValueError(_check.message("weight", "be finite, 0 or above", weight[~usable].tolist()))
