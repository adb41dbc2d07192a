"""A few numbers from the host on a device, without the copy that would make the host wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def runs(numbers: Sequence[int]) -> list[range]:
    """Return the numbers as runs of successors, in their order.

    >>> runs([4, 5, 6, 1, 9, 10])
    [range(4, 7), range(1, 2), range(9, 11)]
    """
    found: list[range] = []
    for number in numbers:
        if found and number == found[-1].stop:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Return the numbers as an int32 tensor."""
    parts = [torch.arange(run.start, run.stop, dtype=torch.int32, device=device) for run in runs(numbers)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32, device=device)


def among(values: Tensor, numbers: Sequence[int]) -> Tensor:
    """Return which values are among the numbers: two comparisons per run of successors."""
    found = torch.zeros_like(values, dtype=torch.bool)
    for run in runs(numbers):
        found = found | ((values >= run.start) & (values < run.stop))
    return found
