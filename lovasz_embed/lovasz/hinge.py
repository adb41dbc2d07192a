"""The Lovász hinge: raw logits against binary masks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from lovasz_embed import _check
from lovasz_embed._ops.engines import engine_for
from lovasz_embed._ops.extension import HINGE, extension
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


def lovasz_hinge(
    input: Tensor,
    target: Tensor,
    *,
    per_image: bool = True,
    multilabel: bool = False,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
    impl: str = "auto",
    method: str = "auto",
    bins: int | None = None,
    group: ProcessGroup | None = None,
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
        impl: "auto" (numba on the CPU, Triton on CUDA where it is installed, else the reference), "reference",
            "numba" or "triton": speed, and never the result of a method.
        method: "sort", the exact loss; "binned": errors are counted into bins, O(P), and the loss comes out at
            most 1/bins too small, relatively, in practice less than 1e-5, as long as no error exceeds 2^32
            (docs/mathematics.md); or "auto": "binned" for the engine "triton", because a sort costs many times the
            rest there, else "sort".
        bins: Bins per doubling of the error, a power of two; for "binned" only, None is 512.
        group: Processes whose batches count as one batch, for "binned" only and without `per_image`; None is
            this process alone. Every process gets the loss of all, and a gradient that
            DistributedDataParallel, which averages over processes, turns into that of the whole.

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
        >>> import torch
        >>> logits = torch.tensor([[[2.0, -0.5], [-0.5, -3.0]]])
        >>> lovasz_hinge(logits, torch.tensor([[[1, 1], [0, 0]]]))
        tensor(0.8333)

    Reference:
        Yu, Blaschko, "Learning submodular losses with the Lovász hinge", ICML 2015; Berman, Triki, Blaschko,
        "The Lovász-Softmax loss", CVPR 2018.
    """
    check_options(ignore_index, reduction, per_image, impl, method, bins, group)
    _check.is_bool("multilabel", multilabel)
    layout = "(B, C, *spatial)" if multilabel else "(B, *spatial)"
    check_input(input, 2 if multilabel else 1, layout, impl)
    target = as_labels("target", target)
    _check.same_shape("target", target, tuple(input.shape), "input")
    _check.same_device("target", target, input.device, "input")
    labels_in_range("target", target, 2, ignore_index)

    if not multilabel:
        input, target = input.unsqueeze(1), target.unsqueeze(1)
    losses, _, counted = extension(
        flat(at_least_float32(input)),
        flat(target),
        kind=HINGE,
        ignore_index=ignore_index,
        per_image=per_image,
        impl=impl,
        bins=bins_of(method, bins, engine_for(impl, input.device)),
        reduce=sum_over(group),
    )
    losses = loss_of_all(losses, group)
    if reduction == "none":
        return losses if multilabel else losses.squeeze(-1)
    if reduction == "sum":
        return losses.sum()
    return weighted_mean(losses.flatten(), (counted > 0).flatten())


class LovaszHinge(nn.Module):
    """`lovasz_hinge` as a module; the arguments are those of the function.

    Example:
        >>> import torch
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
        method: str = "auto",
        bins: int | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_options(ignore_index, reduction, per_image, impl, method, bins, group)
        _check.is_bool("multilabel", multilabel)
        self.per_image = per_image
        self.multilabel = multilabel
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.impl = impl
        self.method = method
        self.bins = bins
        self.group = group

    def extra_repr(self) -> str:
        """Return the arguments of the constructor call."""
        return (
            f"per_image={self.per_image}, multilabel={self.multilabel}, ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r}, impl={self.impl!r}, method={self.method!r}, "
            f"bins={self.bins}, group={self.group}"
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
            bins=self.bins,
            group=self.group,
        )
