"""Measure calls fairly: warm, repeated, in turns, with their peak of extra memory, and say on what machine."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import torch
from torch import Tensor

from lovasz_embed._ops import scratch


@dataclass(frozen=True)
class Measurement:
    """Seconds of the repeats of one call, and the most memory it held beyond what was held before."""

    task: str
    implementation: str
    seconds: tuple[float, ...]
    peak_mb: float | None

    @property
    def median(self) -> float:
        """Median of the repeats, in seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Step:
    """A training step's share of a loss: forward and backward with respect to one leaf."""

    loss: Callable[[Tensor], Tensor]
    leaf: Tensor

    def __call__(self) -> float:
        """Run forward and backward; return the loss."""
        value = self.loss(self.leaf)
        value.backward()
        return float(value.detach())

    def reset(self) -> None:
        """Drop the gradient. It belongs to no measurement, or the next one would find its memory already there."""
        self.leaf.grad = None

    def value(self) -> float:
        """Return the loss, and warm the step up: the first call compiles."""
        self.reset()
        return self()

    def seconds(self) -> float:
        """Time one call."""
        self.reset()
        return timed(self, self.leaf.device.type)

    def peak_mb(self) -> float | None:
        """Return the peak of extra memory of one call in MB, its gradient included."""
        self.reset()
        return peak_mb(self, self.leaf.device.type)


def timed(call: Callable[[], object], device: str) -> float:
    """Return the seconds of one call."""
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def take_turns(
    timers: Mapping[str, Callable[[], float]], *, repeats: int, budget_s: float = 60.0
) -> dict[str, tuple[float, ...]]:
    """Run timers in turns, a b a b ..., so that whatever else the machine does hits all of them.

    Each timer returns its seconds. What is slow is repeated less often: after the budget nothing starts anew,
    but three rounds (or `repeats`, if fewer) are always made.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    began = time.perf_counter()
    for turn in range(repeats):
        if turn >= 3 and time.perf_counter() - began > budget_s:
            break
        for name, timer in timers.items():
            seconds[name].append(timer())
    return {name: tuple(of_one) for name, of_one in seconds.items()}


def measure(task: str, implementation: str, call: Callable[[], object], *, repeats: int, device: str) -> Measurement:
    """Time `repeats` calls after one that compiles and warms up; a further call shows its memory."""
    call()
    seconds = tuple(timed(call, device) for _ in range(repeats))
    return Measurement(task, implementation, seconds, peak_mb(call, device))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mb(call: Callable[[], object], device: str) -> float | None:
    """Return the peak of extra memory of one call in MB, None where the system does not tell."""
    gc.collect()
    scratch.clear()  # what our own engines keep between calls is theirs as well
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed blocks that the allocator keeps would hide new ones
    try:
        Path("/proc/self/clear_refs").write_text("5")  # lets the high-water mark start anew
    except OSError:
        return None
    before = _status_mb("VmRSS")
    call()
    return max(_status_mb("VmHWM") - before, 0.0)


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6


def machine(device: str) -> dict[str, str | int]:
    """Describe what the figures depend on; never who owns the machine or what it is called."""
    processor = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    description: dict[str, str | int] = {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
    }
    if device == "cuda":
        description["gpu"] = torch.cuda.get_device_name()
    return description


def describe(where: Mapping[str, str | int]) -> str:
    """Return the machine in one line."""
    return ", ".join(f"{name} {value}" for name, value in where.items())


def table(measurements: Sequence[Measurement], *, baseline: str) -> list[dict[str, Any]]:
    """Print every task's implementations beside the baseline; return the lines as records."""
    print(f"{'task':38} {'implementation':27} {'median':>10} {'min':>10} {'max':>10} {'peak':>10} {'faster':>8}")
    rows = []
    for m in measurements:
        beside = next((b for b in measurements if (b.task, b.implementation) == (m.task, baseline)), None)
        ratio = beside.median / m.median if beside and beside is not m else None
        times = " ".join(f"{1e3 * s:7.1f} ms" for s in (m.median, min(m.seconds), max(m.seconds)))
        peak = "unknown" if m.peak_mb is None else f"{m.peak_mb:7.1f} MB"
        print(f"{m.task:38} {m.implementation:27} {times} {peak:>10} {f'{ratio:.2f} x' if ratio else '':>8}")
        rows.append({**asdict(m), "median": m.median, "times_faster_than_baseline": ratio})
    return rows


def report(measurements: Sequence[Measurement], *, baseline: str, device: str, as_json: bool) -> None:
    """Print the machine and the table; with `as_json` a JSON line follows."""
    where = machine(device)
    print(describe(where))
    rows = table(measurements, baseline=baseline)
    if as_json:
        print(json.dumps({"machine": where, "baseline": baseline, "measurements": rows}))
