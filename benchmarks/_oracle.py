"""The truth in float64 and numpy: values by the layer cake, with neither ranks nor weights; slopes in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def layer_cake(errors: Array, foreground: Array) -> float:
    """Integrate the Jaccard loss of {errors >= t} over t > 0: the definition of the Lovász extension.

    With c foreground and n background entries at or above t, and G foreground entries in all, that loss is
    1 - (G - c) / (G + n), and 0 where nothing is foreground or wrong.
    """
    levels = np.unique(errors[errors > 0])
    inside, outside = np.sort(errors[foreground]), np.sort(errors[~foreground])
    wrong = inside.size - np.searchsorted(inside, levels)
    union = inside.size + outside.size - np.searchsorted(outside, levels)
    jaccard = 1 - (inside.size - wrong) / union
    return float(np.dot(np.diff(levels, prepend=0.0), jaccard))


def weights(errors: Array, foreground: Array) -> Array:
    """Return the weight of every entry, in input order; ties keep it."""
    order = np.argsort(-errors, kind="stable")
    inside = foreground[order]
    seen, rank, total = np.cumsum(inside), np.arange(1, errors.size + 1), np.count_nonzero(foreground)
    if total == 0:
        of_rank = (rank == 1).astype(np.float64)
    else:
        union = (total + rank - seen).astype(np.float64)
        # A background entry has union >= 2; what the maximum replaces is foreground.
        of_rank = np.where(inside, 1 / union, (total - seen) / (union * np.maximum(union - 1, 1)))
    result = np.empty(errors.size)
    result[order] = of_rank
    return result


def hinge_errors(logits: Array, foreground: Array) -> Array:
    """Return 1 - s F in float64."""
    return 1 - np.where(foreground, 1, -1) * logits.astype(np.float64)


def hinge(logits: Tensor, target: Tensor, ignore_index: int | None = None) -> float:
    """Return the Lovász hinge of one picture."""
    scores, labels = logits.cpu().numpy().ravel(), target.cpu().numpy().ravel()
    if ignore_index is not None:
        scores, labels = scores[labels != ignore_index], labels[labels != ignore_index]
    return layer_cake(hinge_errors(scores, labels == 1), labels == 1)


def hinge_slope(logits: Tensor, target: Tensor) -> Array:
    """Return the gradient of the Lovász hinge of one picture with respect to its logits, flat."""
    scores, foreground = logits.cpu().numpy().ravel(), target.cpu().numpy().ravel() == 1
    errors = hinge_errors(scores, foreground)
    return np.where(errors > 0, np.where(foreground, -1, 1) * weights(errors, foreground), 0.0)


def softmax(logits: Tensor, target: Tensor, ignore_index: int | None = None) -> float:
    """Return the mean over the present classes of the Lovász softmax of one picture."""
    scores, labels = logits[0].flatten(1).cpu().numpy().astype(np.float64), target.cpu().numpy().ravel()
    if ignore_index is not None:
        scores, labels = scores[:, labels != ignore_index], labels[labels != ignore_index]
    powers = np.exp(scores - scores.max(0))
    probabilities = powers / powers.sum(0)
    present = np.unique(labels)
    return float(np.mean([layer_cake(abs((labels == c) - probabilities[c]), labels == c) for c in present]))
