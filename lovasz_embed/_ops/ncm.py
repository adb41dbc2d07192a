"""The nearest class mean of every pixel: which engine, and the readable reference of both."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.class_means import as_linear, linear_scores
from lovasz_embed._ops.engines import engine_for
from lovasz_embed._ops.reference import at_least_float32


def nearest_mean(
    embedding: Tensor,
    means: Tensor,
    offset: Tensor | None,
    looked_at: Tensor,
    *,
    reject_radius: float | None,
    ignore_index: int,
    impl: str,
) -> Tensor:
    """Return the class of every pixel, int64 (B, *spatial); see `lovasz_embed.nearest_class_mean`.

    Args:
        embedding: floating point (B, D, *spatial).
        means: floating point (C, D).
        offset: floating point (C,), or None.
        looked_at: bool (D,), what `check_classifier` returns.
        reject_radius: distance to its mean beyond which a pixel has no class, or None.
        ignore_index: what a pixel without a class gets.
        impl: "auto", "reference", "numba" or "triton".
    """
    _check.is_label("ignore_index", ignore_index)
    graph = torch.compiler.is_compiling() or type(embedding) not in (Tensor, torch.nn.Parameter)
    # In a graph, the matrix product, which a compiler can look into and every exporter knows.
    impl = "reference" if graph and impl == "auto" else engine_for(impl, embedding.device)
    if impl == "numba":
        from lovasz_embed._ops import ncm_numba

        classify = ncm_numba.operator if graph else ncm_numba.classes
        classes: Tensor = classify(embedding.detach(), means, offset, looked_at, reject_radius, ignore_index)
        return classes
    if impl == "triton":
        from lovasz_embed._ops.gpu import ncm as ncm_triton

        classify = ncm_triton.operator if graph else ncm_triton.classes
        on_device: Tensor = classify(embedding.detach(), means, offset, looked_at, reject_radius, ignore_index)
        return on_device
    # Scores are differences of squares: near the origin these are small, and rounding takes less of them.
    centre = middle(means, looked_at).to(torch.promote_types(embedding.dtype, torch.float32))
    pixels = at_least_float32(embedding) - _along_axis_1(centre, embedding)
    means = means.double() - centre
    best, ids = linear_scores(pixels, *as_linear(means, offset, looked_at)).max(1)
    known = best.isfinite()
    if reject_radius is not None:
        own = means.nan_to_num().to(best.dtype)[ids].movedim(-1, 1)
        away = (pixels - own) * _along_axis_1(looked_at, embedding)
        known &= away.square().sum(1) <= float(reject_radius) ** 2
    return torch.where(known, ids, ignore_index)


def middle(means: Tensor, looked_at: Tensor) -> Tensor:
    """Return the median of the present means in each dimension, (D,) float64, 0 where not looked at.

    A median is one of the numbers: where means and pixels are multiples of a step, so are the differences to it, and
    sums of them are exact where the others are; ties stay ties. Of two in the middle it is the lower one.
    """
    present = means.isfinite().all(1, keepdim=True)
    # `nanmedian` says the same, but not on a GPU that is asked to be deterministic.
    ranked = means.double().masked_fill(~present, torch.inf).sort(0).values
    middle = ranked.index_select(0, (present.sum(0) - 1).clamp(min=0) // 2)[0]
    return torch.where(middle.isfinite(), middle, 0.0) * looked_at


def check_classifier(
    embedding: Tensor,
    means: Tensor,
    offset: Tensor | None,
    dims: Sequence[int] | None,
    reject_radius: float | None,
) -> Tensor:
    """Return (D,) bool, True for the dimensions to look at, or raise where arguments do not fit each other."""
    _check.is_embedding("embedding", embedding)
    _check.is_floating("means", means)
    if means.ndim != 2 or means.shape[0] < 1 or means.shape[1] != embedding.shape[1]:
        rule = f"have shape (C, {embedding.shape[1]}) with C >= 1 to match embedding"
        raise ValueError(_check.message("means", rule, tuple(means.shape)))
    _check.same_device("means", means, embedding.device, "embedding")
    if offset is not None:
        _check.is_floating("offset", offset)
        _check.same_shape("offset", offset, (means.shape[0],), "means")
        _check.same_device("offset", offset, embedding.device, "embedding")
    if reject_radius is not None:
        _check.positive("reject_radius", reject_radius)
    return looked_at_of(dims, means)


def looked_at_of(dims: Sequence[int] | None, means: Tensor) -> Tensor:
    """Return (D,) bool, True for the dimensions that the distance to `means` (C, D) looks at."""
    width = means.shape[1]
    check_dims(dims, width)
    if dims is None:
        return torch.ones(width, dtype=torch.bool, device=means.device)
    return torch.tensor([d in dims for d in range(width)], device=means.device)


def check_dims(dims: Any, width: int | None, argument: str = "dims") -> None:
    """Raise unless `dims` names some of `width` dimensions, each once, or is None; a width of None is not known yet."""
    if dims is None:
        return
    if not isinstance(dims, (Sequence, Set)) or any(isinstance(d, bool) or not isinstance(d, int) for d in dims):
        raise TypeError(_check.message(argument, "be a sequence of int or None", repr(dims)))
    if not len(dims) or len(set(dims)) < len(dims) or min(dims) < 0 or (width is not None and max(dims) >= width):
        known = "" if width is None else f" to {width - 1}"
        rule = f"name at least one of the dimensions 0{known or ' and above'}, each once"
        raise ValueError(_check.message(argument, rule, dims))


def _along_axis_1(values: Tensor, embedding: Tensor) -> Tensor:
    return values.view(-1, *[1] * (embedding.ndim - 2))
