"""Time on a GPU: by events, every call with a cold cache, after a stated warm-up."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from _floor import Rates
from _measure import take_turns
from torch import Tensor

WARM_UP = 3
"""Calls after the first, which compiles, and before anything is timed."""

_FLUSHED = 2**28
"""Bytes written before every timed call, more than any level-2 cache: in a training other layers' data lie there."""

_ROUNDS = 5


@dataclass(frozen=True)
class Pass:
    """Forward and backward of a loss with respect to one leaf; nothing in it waits for the device."""

    loss: Callable[[Tensor], Tensor]
    leaf: Tensor

    def __call__(self) -> Tensor:
        """Return the loss; the gradient is in the leaf."""
        value = self.loss(self.leaf)
        value.backward()
        return value.detach()

    def reset(self) -> None:
        """Drop the gradient, which belongs to no measurement: see `_measure.Step.reset`."""
        self.leaf.grad = None


@dataclass(frozen=True)
class Clock:
    """Times calls in seconds, by events on the current stream."""

    cache: Tensor = field(default_factory=lambda: torch.empty(_FLUSHED, dtype=torch.uint8, device="cuda"))

    def seconds(self, call: Callable[[], object]) -> float:
        """Time one call, the gaps between its kernels included."""
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cache.zero_()
        torch.cuda.synchronize()
        began.record()
        call()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3

    def first(self, call: Callable[[], object]) -> float:
        """Time the first call by the wall clock, then warm up: its kernels are compiled by the host."""
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        for _ in range(WARM_UP):
            call()
        torch.cuda.synchronize()
        return seconds

    def race(self, contestants: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, tuple[float, ...]]:
        """Time all in turns, so that whatever else the device does hits all of them. The gradient is dropped before."""

        def timer(call: Callable[[], object]) -> Callable[[], float]:
            def once() -> float:
                forget(call)
                return self.seconds(call)

            return once

        return take_turns({name: timer(call) for name, call in contestants.items()}, repeats=repeats)

    def rates(self, *, floats: int = 2**28, side: int = 8192) -> Rates:
        """Take the best of a few float32 copies and matrix products; the products as torch's settings have them."""
        source, target = (torch.ones(floats, device="cuda") for _ in range(2))
        matrix = torch.ones(side, side, device="cuda")
        copying = min(self.seconds(lambda: target.copy_(source)) for _ in range(_ROUNDS))
        multiplying = min(self.seconds(lambda: matrix @ matrix) for _ in range(_ROUNDS))
        return Rates(2 * source.nbytes / copying, 2 * side**3 / multiplying)


def forget(call: Callable[[], object]) -> None:
    """Drop the gradient that a call left behind, if it leaves one."""
    reset = getattr(call, "reset", None)
    if reset is not None:
        reset()


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Run Triton's kernels in its interpreter, on the CPU: for kernels that are defined from now on."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
