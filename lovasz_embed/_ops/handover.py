"""Whether backward may give away what forward saved, instead of a copy."""

from __future__ import annotations

import torch
from torch import Tensor


def may_hand_over(grad: Tensor) -> bool:
    """Return True where all of `grad` is 1 and the graph is not kept for another backward; waits for the device.

    A saved gradient is then the gradient, and nobody looks at it again: it need not be copied. With
    `retain_graph=True` it must be, for the user may change `.grad` in place before the next backward.
    """
    return not graph_is_kept() and bool((grad == 1).all())


def graph_is_kept() -> bool:
    """Return whether another backward may come through the graph that one goes through now."""
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)  # not in every torch
    return keeps_graph is None or bool(keeps_graph())
