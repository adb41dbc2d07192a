"""One line of the table of targets: what is judged, by which rule, and what was found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from _floor import Floor, Rates


class Disagreement(Exception):
    """Two implementations of one loss gave different values: there is nothing to time."""


TOLERANCE = 1e-4
"""Relative, for our exact values: sums of float32 errors with float32 weights."""

BINNED_TOLERANCE = 1e-3
"""For binned values; how close they promise to be is for the tests to judge."""

PLAIN_TOLERANCE = 5e-3
"""For the textbook and peers: `torch.dot` adds up plainly in float32, and was off by 9e-4 at 2^22 pixels."""


def must_agree(task: str, name: str, value: float, truth: float, tolerance: float) -> None:
    """Compare a value before anything is timed."""
    if not math.isclose(value, truth, rel_tol=tolerance, abs_tol=1e-6):
        raise Disagreement(f"{task}: expected {truth:.7g}, got {value:.7g} from {name}")


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        work: What was done.
        baseline: What it is compared with.
        rule: The target in words.
        value: What is judged; None where it is not available.
        reached: None where nothing is judged: another picture size, or no value.
        unit: Unit of the value.
        spread: Smallest and largest value of the repeats.
        details: Lines that stand below the row.
        data: Whatever else belongs into the JSON.
    """

    work: str
    baseline: str
    rule: str
    value: float | None
    reached: bool | None
    unit: str = " x"
    spread: tuple[float, float] | None = None
    details: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Return the judgement in words."""
        if self.value is None:
            return "not available"
        return {True: "reached", False: "NOT REACHED", None: "not judged"}[self.reached]

    def found(self) -> str:
        """Return value and spread in words."""
        if self.value is None:
            return "-"
        between = "" if self.spread is None else f" ({_short(self.spread[0])} ... {_short(self.spread[1])})"
        return f"{_short(self.value)}{self.unit}{between}"

    def print(self) -> None:
        """Print the row with its details."""
        print(f"{self.work}\n    {self.found()} against {self.baseline}; target {self.rule}: {self.verdict}")
        for line in self.details:
            print(f"    {line}")

    def record(self) -> dict[str, Any]:
        """Return the row for the JSON."""
        return {**asdict(self), "verdict": self.verdict}


def speed_row(
    work: str,
    baseline: tuple[str, Sequence[float]],
    ours: tuple[str, Sequence[float]],
    at_least: float,
    floor: Floor,
    rates: Rates,
    *,
    judged: bool,
    peaks: Mapping[str, float | None] | None = None,
    notes: Sequence[str] = (),
) -> Row:
    """Judge a ratio of medians; the spread is that of the ratios of single rounds."""
    medians = [statistics.median(seconds) for _, seconds in (baseline, ours)]
    ratio = medians[0] / medians[1]
    rounds = [slow / fast for slow, fast in zip(baseline[1], ours[1], strict=True)]
    times = [
        f"{name:27} {1e3 * median:9.2f} ms ({1e3 * min(s):.2f} ... {1e3 * max(s):.2f}; repeats: {len(s)})"
        + (f", peak {_megabytes(peaks[name])}" if peaks and name in peaks else "")
        for (name, s), median in zip((baseline, ours), medians, strict=True)
    ]
    return Row(
        work,
        baseline[0],
        f"at least {at_least:g} x",
        ratio,
        ratio >= at_least if judged else None,
        spread=(min(rounds), max(rounds)),
        details=(*times, f"floor {floor.describe(rates, medians[1])}", *notes),
        data={
            "baseline_seconds": list(baseline[1]),
            "our_seconds": list(ours[1]),
            "target": at_least,
            "floor_seconds": floor.seconds(rates),
            "floor": asdict(floor),
            "times_the_floor": medians[1] / floor.seconds(rates),
            "peak_mb": dict(peaks or {}),
        },
    )


def print_summary(rows: Sequence[Row]) -> None:
    """Print the table itself."""
    width = max(len(row.work) for row in rows)
    print(f"\n{'work, forward + backward':{width}}  {'found':26} {'target':30} verdict")
    for row in rows:
        print(f"{row.work:{width}}  {row.found():26} {row.rule:30} {row.verdict}")


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _megabytes(peak: float | None) -> str:
    return "unknown" if peak is None else f"{peak:.0f} MB"
