"""The losses by their textbook definition in wider floats, one sort and integer counts: what others are compared with.

Written for this comparison alone, from the formulas in docs/mathematics.md; it shares no code with the package. Hinge
and softmax are computed in numpy's longdouble (64 bits of mantissa on x86), trees in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

Wide = NDArray[np.longdouble]


class Exact(NamedTuple):
    """Value and gradient of a loss of one row.

    Attributes:
        value: The loss.
        weights: Of every entry's error, in input order.
        errors: Of every entry.
    """

    value: np.longdouble
    weights: Wide
    errors: Wide


def extension(errors: Wide, foreground: NDArray[np.bool_]) -> Exact:
    """Return the Lovász extension of the Jaccard loss: 1 / U for foreground, I / (U (U - 1)) for background."""
    order = np.argsort(-errors, kind="stable")
    met = np.cumsum(foreground[order], dtype=np.int64)  # foreground so far
    total = int(foreground.sum())
    count = np.arange(1, len(errors) + 1, dtype=np.int64)
    union = (total + count - met).astype(np.longdouble)
    rest = (total - met).astype(np.longdouble)
    with np.errstate(divide="ignore", invalid="ignore"):
        sorted_weights = np.where(foreground[order], 1 / union, rest / (union * (union - 1)))
    if total == 0:
        sorted_weights = np.zeros(len(errors), np.longdouble)
        sorted_weights[:1] = 1
    weights = np.empty(len(errors), np.longdouble)
    weights[order] = sorted_weights
    weights[errors <= 0] = 0
    return Exact((weights * np.maximum(errors, 0)).sum(), weights, errors)


def hinge(logits: Wide, mask: NDArray[np.bool_]) -> Exact:
    """Return the Lovász hinge of one row."""
    return extension(1 - np.where(mask, 1, -1) * logits, mask)


def softmax(logits: Wide, labels: NDArray[np.int64]) -> tuple[np.longdouble, Wide]:
    """Return the Lovász softmax over the present classes, and its gradient, of logits (C, P)."""
    shifted = np.exp(logits - logits.max(0))
    shares = shifted / shifted.sum(0)
    present = [c for c in range(len(logits)) if (labels == c).any()]
    value, slope = np.longdouble(0), np.zeros_like(shares)
    for c in present:
        found = extension(np.abs((labels == c) - shares[c]), labels == c)
        value += found.value / len(present)
        slope[c] = found.weights * np.where(labels == c, -1, 1) / len(present)
    return value, shares * (slope - (shares * slope).sum(0))


def tree(
    embedding: Tensor,
    levels: Sequence[tuple[Tensor, float, float]],
    *,
    kernel: str,
    bandwidth: Tensor | None = None,
) -> Tensor:
    """Return the hierarchical hinge of one picture in float64, attached to the graph: all others are negatives.

    Args:
        embedding: float64 (D, P).
        levels: Labels (P,), -1 for no node; the radius; the squared margin.
        kernel: "margin" or "gaussian".
        bandwidth: float64 (P,), in place of the radius.
    """
    total = embedding.new_zeros(())
    for labels, radius, margin2 in levels:
        losses = []
        for node in np.unique(labels[labels >= 0].numpy()).tolist():
            inside = labels == node
            distance2 = (embedding - embedding[:, inside].mean(1, keepdim=True)).square().sum(0)
            own = torch.as_tensor(radius, dtype=torch.float64) if bandwidth is None else bandwidth[inside].mean()
            if kernel == "margin":
                errors = 1 - torch.where(inside, 1.0, -1.0) * (own**2 - distance2) / margin2
            else:
                near = torch.exp(-distance2 * np.log(2) / own**2)
                errors = 2 * torch.where(inside, -torch.expm1(-distance2 * np.log(2) / own**2), near)
            weights = extension(errors.detach().numpy().astype(np.longdouble), inside.numpy()).weights
            losses.append((torch.from_numpy(weights.astype(np.float64)) * errors.clamp(min=0)).sum())
        total = total + torch.stack(losses).mean()
    return total


class SlopeError(NamedTuple):
    """How far a gradient is off, over its largest entry.

    Attributes:
        worst: What it is off by at most.
        underflow: What it may be off by because the dtype has no smaller numbers.
    """

    worst: float
    underflow: float


def slope_error(found: Wide, exact: Exact, arithmetic: DTypeLike, step: float) -> SlopeError:
    """Return how far a gradient with respect to the errors is off.

    Among equal errors every order is right, and gives another subgradient; but the sum over all equal ones is the same.
    So entries count as one whose errors are the same in the dtype of the arithmetic.

    Args:
        found: The gradient (P,), up to signs.
        exact: What is right.
        arithmetic: The dtype in which errors are told apart.
        step: The smallest number above 0 of the gradient's dtype.
    """
    _, group, parts = np.unique(exact.errors.astype(arithmetic), return_inverse=True, return_counts=True)
    right, got = (np.zeros(len(parts), np.longdouble) for _ in range(2))
    np.add.at(right, group, exact.weights)
    np.add.at(got, group, np.abs(found))
    largest = max(right.max(), np.finfo(np.longdouble).tiny)
    return SlopeError(float(np.abs(got - right).max() / largest), float(parts.max() * step / 2 / largest))
