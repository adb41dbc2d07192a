"""What no implementation can go below: the bytes it must move and the arithmetic it must do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from _measure import timed

_ROUNDS = 5
_ORDERING = 3 * 2 * 8
"""Bytes per ordered entry: three radix passes (11 bits each) read and write 4 bytes of key and 4 of position."""


@dataclass(frozen=True)
class Rates:
    """What the machine can do, measured in the same run: bytes per second, read and written; operations per second."""

    copy: float
    arithmetic: float

    @classmethod
    def measure(cls, device: str, *, floats: int = 2**26, side: int = 2048) -> Rates:
        """Take the best of a few float32 copies and matrix products with torch's threads."""
        source, target = (torch.ones(floats, device=device) for _ in range(2))
        copying = min(timed(lambda: target.copy_(source), device) for _ in range(_ROUNDS))
        matrix = torch.ones(side, side, device=device)
        multiplying = min(timed(lambda: matrix @ matrix, device) for _ in range(_ROUNDS))
        return cls(2 * source.nbytes / copying, 2 * side**3 / multiplying)

    def __str__(self) -> str:
        """Say the rates in a line."""
        return f"copy {self.copy / 1e9:.1f} GB/s (read + written), matrix product {self.arithmetic / 1e9:.0f} GFLOP/s"


@dataclass(frozen=True)
class Floor:
    """A bound that is derived, not measured: memory at the rate of a copy, arithmetic at that of a matrix product.

    Attributes:
        once: Bytes of every input, read once, and of every gradient, written once.
        ordering: Bytes that a radix sort of the entries with a positive error moves. An engine may stay below
            this part, for scratch that fits a cache moves faster than main memory copies.
        operations: Floating point operations that cannot be avoided.
    """

    once: float
    ordering: float
    operations: float

    def seconds(self, rates: Rates) -> float:
        """Return the floor: memory and arithmetic may overlap, so the larger of the two."""
        return max((self.once + self.ordering) / rates.copy, self.operations / rates.arithmetic)

    def describe(self, rates: Rates, seconds: float) -> str:
        """Say where the floor comes from and how far `seconds` is from it."""
        floor = self.seconds(rates)
        return (
            f"{1e3 * floor:.2f} ms = the larger of {1e3 * self.once / rates.copy:.2f} ms in and out "
            f"({self.once / 1e6:.0f} MB) + {1e3 * self.ordering / rates.copy:.2f} ms ordering "
            f"({self.ordering / 1e6:.0f} MB) and {1e3 * self.operations / rates.arithmetic:.2f} ms arithmetic "
            f"({self.operations / 1e9:.2f} GFLOP); we are {seconds / floor:.1f} x from it"
        )


def hinge_floor(pixels: int, positive: int, *, ordered: bool = True) -> Floor:
    """Logit (4 bytes) and int64 label in, gradient out; some ten operations a pixel."""
    return Floor(pixels * (4 + 8 + 4), positive * _ORDERING * ordered, 10.0 * pixels)


def softmax_floor(pixels: int, classes: int) -> Floor:
    """Logits and int64 label in, gradients out; every error is positive; an exponential and both chain rules."""
    return Floor(pixels * (8 * classes + 8), pixels * classes * _ORDERING, 20.0 * pixels * classes)


def hierarchical_floor(pixels: int, dims: int, levels: int, entries: int) -> Floor:
    """Embedding and int64 labels in, gradient out; distance and push of the entries with a positive error.

    Distances of pairs without one are left out: an engine may skip whole regions of the picture.
    """
    return Floor(pixels * (8 * dims + 8 * levels), entries * _ORDERING, 5.0 * dims * entries)
