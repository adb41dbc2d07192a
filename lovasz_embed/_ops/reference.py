"""The Lovász extension of the Jaccard loss in plain torch: what every fast path is tested against.

Fixed shapes and masks only: no host wait, so it compiles with `fullgraph=True` and runs on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lovasz_embed._ops.labels import plain


def at_least_float32(values: Tensor) -> Tensor:
    """Return `values` in float32, or unchanged where they are float64; gradients flow back in their dtype."""
    values = plain(values)
    return values if values.dtype == torch.float64 else values.float()


def lovasz_weights(errors: Tensor, target: Tensor) -> Tensor:
    r"""Return the gradient of the Lovász extension of the Jaccard loss for every entry of the last axis.

    Sort by error, descending. With G foreground entries in all and c_k among the first k, let
    I_k = G - c_k and U_k = G + k - c_k. The k-th entry weighs

    - 1 / U_k if it is foreground,
    - I_k / (U_k (U_k - 1)) if it is background,
    - 1 for k = 1 and 0 afterwards where there is no foreground at all.

    This is the difference Δ_k - Δ_{k-1} of Δ_k = 1 - I_k / U_k (Berman et al. 2018, algorithm 1), subtracted
    on paper: subtracting the two nearly equal numbers in float32 loses the digits on pictures of a few
    million pixels. Counts are int64, hence exact for any number of entries.

    Args:
        errors: floating point (..., P); ties keep their input order.
        target: bool or integer (..., P), non-zero = foreground.

    Returns:
        (..., P) in input order, without gradient, float64 for float64 errors and float32 otherwise. Never
        below 0; every row with P >= 1 sums to 1.
    """
    errors = at_least_float32(errors.detach())
    order = errors.sort(dim=-1, descending=True, stable=True).indices
    foreground = (target != 0).gather(-1, order)

    seen = foreground.cumsum(-1, dtype=torch.int64)
    total = foreground.sum(-1, keepdim=True, dtype=torch.int64)
    rank = torch.arange(1, errors.shape[-1] + 1, device=errors.device)
    intersection = (total - seen).to(errors.dtype)
    union = (total + rank - seen).to(errors.dtype)
    # A background entry has union >= 2 if there is foreground; `where` drops what divides by zero.
    weights = torch.where(foreground, 1 / union, intersection / union / (union - 1))
    weights = torch.where(total > 0, weights, (rank == 1).to(errors.dtype))
    return torch.empty_like(weights).scatter(-1, order, weights)


def lovasz_extension(errors: Tensor, target: Tensor, dim: int = -1) -> Tensor:
    """Return sum_i w_i relu(e_i) along `dim`, w being `lovasz_weights`: the Lovász extension of relu(errors).

    An entry that must not count is masked exactly, at fixed shape, by error 0 and target 0.

    Args:
        errors: floating point, any shape.
        target: bool or integer of the same shape, non-zero = foreground.
        dim: the axis of the entries.

    Returns:
        The shape of `errors` without `dim`, differentiable with respect to `errors` (a subgradient at ties
        and at errors of 0), float64 for float64 errors and float32 otherwise. Without entries: 0.
    """
    errors = at_least_float32(errors.movedim(dim, -1))
    weights = lovasz_weights(errors, target.movedim(dim, -1))
    return (weights * errors.relu()).sum(-1)
