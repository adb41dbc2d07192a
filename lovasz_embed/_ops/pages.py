"""New tensors on large pages, for what a kernel is about to fill.

The first write to every page is a trip into the system, and small pages of a gradient at picture size make thousands
of them: several times the cost of writing the values. numpy asks for large pages where the system has them, torch
does not.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def empty_like(values: Tensor) -> Tensor:
    """Return an uninitialised CPU tensor of the shape and dtype (float32 or float64) of `values`, contiguous.

    >>> empty_like(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """
    return torch.from_numpy(np.empty(values.shape, _DTYPES[values.dtype]))


def zeros_like(values: Tensor) -> Tensor:
    """Return zeros of the shape and dtype (float32 or float64) of `values`, contiguous, on the CPU.

    >>> zeros_like(torch.ones(2, dtype=torch.float64))
    tensor([0., 0.], dtype=torch.float64)
    """
    return torch.from_numpy(np.zeros(values.shape, _DTYPES[values.dtype]))
