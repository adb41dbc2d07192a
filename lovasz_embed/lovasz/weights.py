"""The weights of the Lovász extension of the Jaccard loss."""

from __future__ import annotations

from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops import reference
from lovasz_embed._ops.labels import as_labels, labels_in_range


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
        >>> import torch
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
