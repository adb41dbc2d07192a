"""The processes that train one model together: who does what, and what all of them must agree on."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The default process group, if there is one; a process on its own agrees with itself.

    Attributes:
        number: Of this process, from 0.
        count: Of processes.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.number = dist.get_rank() if together else 0
        self.count = dist.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.number == 0

    def share(self, length: int) -> range:
        """Return which of `length` items are those of this process: every `count`-th."""
        return range(self.number, length, self.count)

    def add(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over all processes."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def all(self, value: bool, device: torch.device) -> bool:
        """Return whether all processes say so; waits for all of them."""
        return self.largest(float(not value), device) == 0

    def largest(self, value: float, device: torch.device) -> float:
        """Return the largest of what all processes give, so that all decide alike; waits for all of them.

        Args:
            value: Of this process.
            device: Where the process group's tensors lie.
        """
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return float(shared)
