"""The rows of the table of targets on a GPU: ours in turns with its baseline, and with its own other engines."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _floor import Rates
from _gpu_checks import captured
from _gpu_measure import Clock, Pass, forget
from _gpu_works import Work
from _measure import peak_mb, timed
from _rows import Row, speed_row

_ON_CPU = 3  # repeats
_GRAPH = "ours, replayed as a CUDA graph"
_SORTED = "ours, method='sort'"


@dataclass(frozen=True)
class Bench:
    """What all rows share.

    Attributes:
        clock: Times calls.
        rates: Of the device.
        repeats: At most; what is slow is repeated three times.
        judged: Whether the problems have the size that the targets are for.
    """

    clock: Clock
    rates: Rates
    repeats: int
    judged: bool

    def time(self, work: Work) -> Iterator[Row]:
        """Time one piece of work: against its baseline, in milliseconds, and beside other engines."""
        ours = work.ours()
        contestants: dict[str, Callable[[], object]] = {work.baseline: work.beside, "ours": ours}
        if work.sorts:
            contestants[_SORTED] = work.ours("sort", work.sorts)
        first = {name: self.clock.first(call) for name, call in contestants.items()}
        seconds = self.clock.race(contestants, repeats=self.repeats)
        peaks = {name: extra_mb(call) for name, call in contestants.items()}
        # After the peaks: the graph keeps memory of its own.
        replayed = self._replayed(ours)
        yield speed_row(
            work.name,
            (work.baseline, seconds[work.baseline]),
            ("ours", seconds["ours"]),
            work.at_least,
            work.floor,
            self.rates,
            judged=self.judged,
            peaks=peaks,
            notes=(
                f"first calls, which compile: {', '.join(f'{name} {s:.2f} s' for name, s in first.items())}",
                words(_GRAPH, replayed) if isinstance(replayed, tuple) else f"no CUDA graph: {replayed}",
                *work.notes,
            ),
        )
        if work.at_most_ms is not None:
            yield milliseconds(work.name, seconds["ours"], work.at_most_ms, judged=self.judged)
        if work.sorts:
            engine = "Triton" if work.sorts == "triton" else "the reference"
            yield beside(f"{work.name}, sorted by {engine}", "ours, counted", seconds["ours"], seconds[_SORTED])
        if work.on_cpu:
            yield beside(f"{work.name}, exact, by numba on the CPU", "ours", seconds["ours"], on_cpu(work.on_cpu))

    def _replayed(self, ours: Pass) -> tuple[float, ...] | str:
        """Time the replay of a graph: the same work without the host's share."""
        try:
            replay, *_ = captured(ours)
            return tuple(self.clock.seconds(replay) for _ in range(self.repeats))
        except RuntimeError as error:
            return str(error).splitlines()[0]
        finally:
            ours.reset()


def extra_mb(call: Callable[[], object]) -> float | None:
    """Return the peak of extra memory of one call, its gradient included and nothing that was cached."""
    forget(call)
    return peak_mb(call, "cuda")


def memory_row(work: str, of: str, bytes_of: int, peaks: dict[str, float], at_most: float, *, judged: bool) -> Row:
    """Judge the worst peak in multiples of the input."""
    worst = max(peaks.values()) * 1e6 / bytes_of
    return Row(
        f"peak extra memory, {work}",
        f"the bytes of {of}, {bytes_of / 1e6:.0f} MB",
        f"at most {at_most:g} x",
        worst,
        worst <= at_most if judged else None,
        details=tuple(f"{name}: {peak:.0f} MB = {peak * 1e6 / bytes_of:.2f} x" for name, peak in peaks.items()),
        data={"peak_mb": peaks, "input_bytes": bytes_of, "target": at_most},
    )


def milliseconds(
    work: str, seconds: Sequence[float], at_most: float, *, judged: bool, details: Sequence[str] = (), **data: Any
) -> Row:
    """Judge a median by the clock."""
    value = 1e3 * statistics.median(seconds)
    return Row(
        f"{work}, absolute",
        "the clock",
        f"at most {at_most:g} ms",
        value,
        value <= at_most if judged else None,
        unit=" ms",
        spread=(1e3 * min(seconds), 1e3 * max(seconds)),
        details=tuple(details),
        data={"our_seconds": list(seconds), "target_ms": at_most, **data},
    )


def beside(work: str, name: str, ours: Sequence[float], other: Sequence[float]) -> Row:
    """Put another engine of our own beside what "auto" takes; nothing is judged."""
    ratio = statistics.median(other) / statistics.median(ours)
    return Row(
        work,
        name,
        "for orientation",
        ratio,
        None,
        unit=" times the time",
        details=(words("the other", other), words(name, ours)),
        data={"seconds": list(other), "our_seconds": list(ours)},
    )


def on_cpu(call: Callable[[], object]) -> tuple[float, ...]:
    """Time a call on the CPU, after one that compiles."""
    call()
    seconds = []
    for _ in range(_ON_CPU):
        forget(call)
        seconds.append(timed(call, "cpu"))
    return tuple(seconds)


def words(name: str, seconds: Sequence[float]) -> str:
    """Return median and spread in a line."""
    low, median, high = (1e3 * s for s in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"{name:27} {median:9.2f} ms ({low:.2f} ... {high:.2f}; repeats: {len(seconds)})"


def empty_cache() -> None:
    """Give back what the last problem held: the next one's peak is asked for by itself."""
    torch.cuda.empty_cache()
