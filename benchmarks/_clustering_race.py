"""Every method on every problem, each in a process of its own and within a limit of time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _clustering_methods import METHODS, OURS
from _clustering_scenes import Problem, noisy, separated

_START_S = 120.0  # importing and compiling, outside the limit


@dataclass(frozen=True)
class Axes:
    """Where the problems lie: one axis at a time, the others at their default."""

    pixels: Sequence[int]
    dims: Sequence[int]
    instances: Sequence[int]
    default_pixels: int
    default_dims: int
    default_instances: int


FULL = Axes(
    pixels=[2**k for k in (16, 18, 19, 20, 21, 22, 23)],
    dims=(2, 8, 32),
    instances=(1, 10, 50, 200, 400),
    default_pixels=2**18,
    default_dims=8,
    default_instances=50,
)
SMOKE = Axes(
    pixels=[2**12],
    dims=(2,),
    instances=(),
    default_pixels=2**12,
    default_dims=4,
    default_instances=6,
)


@dataclass(frozen=True)
class Result:
    """One method on one problem.

    Attributes:
        data: Name of the data set.
        axis: What was varied: "pixels", "dimensions", "instances", or "" for a problem of its own.
        pixels: Pixels to cluster.
        dims: Dimensions of the embedding.
        instances: True instances, of all pictures.
        method: Name of the method.
        seconds: Of the repeats; empty where the first did not end within the limit.
        limit_s: The limit.
        peak_mb: Peak of extra memory; None where there was no time for it, or the system does not tell.
        ari: Adjusted Rand index, noise as one more cluster.
        pq: Panoptic quality, noise as void.
        found: Clusters in the picture that has most.
        failure: What went wrong, if something did.
    """

    data: str
    axis: str
    pixels: int
    dims: int
    instances: int
    method: str
    seconds: tuple[float, ...]
    limit_s: float
    peak_mb: float | None = None
    ari: float | None = None
    pq: float | None = None
    found: int | None = None
    failure: str = ""

    @property
    def median(self) -> float | None:
        """Median of the repeats in seconds, None where none was within the limit."""
        return statistics.median(self.seconds) if self.seconds else None

    def record(self) -> dict[str, Any]:
        """Return the result for the JSON."""
        return {**asdict(self), "median": self.median}


@dataclass(frozen=True)
class Race:
    """How patient the races are, and who takes part."""

    axes: Axes
    limit_s: float
    repeats: int
    methods: Sequence[str]
    peers: Path | None

    def sweep(self) -> Iterator[Result]:
        """Race along all axes. A method that was over the limit takes part in no larger problem of its kind."""
        axes = self.axes
        for data, make in (("margin-separated", separated), ("noisy", noisy)):
            yield from self.along(
                "pixels", data, [(p, axes.default_dims, axes.default_instances) for p in axes.pixels], make
            )
        size = axes.default_pixels
        for axis, places in (
            ("dimensions", [(size, dims, axes.default_instances) for dims in axes.dims]),
            ("instances", [(size, axes.default_dims, count) for count in axes.instances]),
        ):
            yield from self.along(axis, "noisy", places, noisy)

    def along(
        self,
        axis: str,
        data: str,
        places: Sequence[tuple[int, int, int]],
        make: Callable[[int, int, int], Problem],
    ) -> Iterator[Result]:
        """Race along one axis."""
        out: set[str] = set()
        print(f"\n{data}, by {axis}")
        for place in places:
            for result in self.at(make(*place), axis, out):
                yield result
                if not result.seconds:
                    out.add(result.method)

    def at(self, problem: Problem, axis: str = "", out: set[str] | None = None) -> Iterator[Result]:
        """Race on one problem."""
        with tempfile.TemporaryDirectory() as folder:
            problem.save(Path(folder))
            print(f"  {problem.pixels} pixels, D = {problem.embedding.shape[1]}, K = {sum(problem.instances)}")
            for name in self.methods:
                if (METHODS[name].seeded and problem.seeds is None) or name in (out or ()):
                    continue
                result = self._run(Path(folder), problem, name, axis)
                print(f"    {line(result)}", flush=True)
                yield result

    def _run(self, folder: Path, problem: Problem, name: str, axis: str) -> Result:
        here = Path(__file__).resolve().parent
        paths = [str(here.parent), str(here), os.environ.get("PYTHONPATH", ""), str(self.peers or "")]
        command = [sys.executable, str(here / "_clustering_child.py"), str(folder), name, str(self.repeats)]
        child = subprocess.Popen(
            [*command, str(self.limit_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
            start_new_session=True,  # with the workers that a library may start: they must stop with it
        )

        def stop() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

        said: list[dict[str, Any]] = []
        complaint: list[str] = []
        timer = threading.Timer(_START_S, stop)
        timer.start()
        reader = threading.Thread(target=lambda: complaint.append(child.stderr.read() if child.stderr else ""))
        reader.start()
        assert child.stdout is not None
        for text in child.stdout:
            said.append(json.loads(text))
            if "ready" in said[-1] or "seconds" in said[-1]:
                timer.cancel()  # a new limit: one more repeat, and scores and memory at the end
                timer = threading.Timer(self.limit_s * (1 if "ready" in said[-1] else 3), stop)
                timer.start()
        child.wait()
        timer.cancel()
        stop()
        reader.join()
        seconds = tuple(entry["seconds"] for entry in said if "seconds" in entry)
        last: Mapping[str, Any] = said[-1] if said and "ari" in said[-1] else {}
        stopped = child.returncode in (-9, 137)
        failure = "" if child.returncode == 0 or stopped else (complaint[0].strip().splitlines() or ["?"])[-1]
        return Result(
            data=problem.name,
            axis=axis,
            pixels=problem.pixels,
            dims=problem.embedding.shape[1],
            instances=sum(problem.instances),
            method=name,
            seconds=seconds,
            limit_s=self.limit_s,
            peak_mb=last.get("peak_mb"),
            ari=last.get("ari"),
            pq=last.get("pq"),
            found=int(last["found"]) if "found" in last else None,
            failure=failure,
        )


def line(result: Result) -> str:
    """Return a result in words."""
    if result.failure:
        return f"{result.method:20} failed: {result.failure}"
    if result.median is None:
        return f"{result.method:20} over the limit of {result.limit_s:g} s"
    spread = f"({1e3 * min(result.seconds):.1f} ... {1e3 * max(result.seconds):.1f}; {len(result.seconds)})"
    peak = "" if result.peak_mb is None else f"{result.peak_mb:7.0f} MB"
    quality = "not scored" if result.ari is None else f"ARI {result.ari:.4f}  PQ {result.pq:.3f}  K {result.found}"
    return f"{result.method:20} {1e3 * result.median:9.1f} ms {spread:30} {peak:>10}  {quality}"


def contestants(packages: Mapping[str, str]) -> list[str]:
    """Return the methods that can run: ours, and those whose package is there."""
    return [name for name, method in METHODS.items() if method.package is None or method.package in packages]


__all__ = ["FULL", "OURS", "SMOKE", "Axes", "Race", "Result", "contestants", "line"]
