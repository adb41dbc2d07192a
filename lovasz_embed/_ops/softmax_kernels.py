"""The way of the gradient back through the softmax over channels, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops.jit import jit

Array = NDArray[Any]

_BLOCK = 512


@jit
def softmax_slope(
    weights: Array, scales: Array, probabilities: Array, labels: Array, ignored: int, slope: Array
) -> None:
    """Write the slope along the logits of a picture, all (C, P): p_c (s_c w_c - sum_k s_k w_k p_k).

    `weights` w are the slopes along the probabilities p for a slope `scales` s of 1, (C,). Where `labels` (P,) are
    ignored the slope is 0, whatever p is.
    """
    channels, pixels = weights.shape
    sums = np.empty(_BLOCK, weights.dtype)
    zero = weights.dtype.type(0)
    for first in range(0, pixels, _BLOCK):
        size = min(_BLOCK, pixels - first)
        own = labels[first : first + size]
        sums[:] = 0
        for c in range(channels):
            scale = scales[c]
            if scale != 0:  # a class that does not count
                weight = weights[c, first : first + size]
                p = probabilities[c, first : first + size]
                for i in range(size):
                    sums[i] += scale * weight[i] * p[i]
        for c in range(channels):
            scale = scales[c]
            weight = weights[c, first : first + size]
            p = probabilities[c, first : first + size]
            target = slope[c, first : first + size]
            for i in range(size):
                step = p[i] * (scale * weight[i] - sums[i])
                target[i] = zero if own[i] == ignored else step
