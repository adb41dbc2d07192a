"""Time, memory and correctness of the losses and of `segment` on one GPU, in Triton's kernels.

    python benchmarks/bench_gpu.py --json FILE      # on a machine with one GPU; some minutes
    python benchmarks/bench_gpu.py --smoke          # anywhere: does it run, and do the values agree?

Every part first compares values and gradients with float64, then asks whether the kernels wait for the device,
are deterministic and can be captured as a CUDA graph, then times forward and backward by events in turns with the
baseline, every call with a cold level-2 cache. The floor in each row is what must be moved, each input once in and
each gradient once out, at the rate of a copy measured in the same run. Kernels are compiled into a fresh folder
(unless TRITON_CACHE_DIR names one), so that the first call says what compiling costs.

`--smoke` without a GPU runs the same problems with a few hundred pixels in Triton's interpreter, and times nothing.
The exit status says whether values agreed and all checks held, not whether targets were reached. Baselines are
written in _textbook.py, what the pictures and embeddings look like is said in _scenes.py and _clustering_scenes.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from _gpu_checks import Check, device_checks, value_checks
from _gpu_measure import WARM_UP, Clock, interpreted
from _gpu_rows import Bench, empty_cache, memory_row
from _gpu_segment import must_equal, segment_rows
from _gpu_works import FULL, SMOKE, Sizes, Work, hinge_works, softmax_works, tree_works
from _measure import describe, machine
from _rows import Disagreement, Row, print_summary

from lovasz_embed._atomic import write_atomically
from lovasz_embed._ops.engines import has_triton

LOSSES: dict[str, Callable[[Sizes, str], Iterator[Work]]] = {
    "hinge": hinge_works,
    "softmax": softmax_works,
    "tree": tree_works,
}
PARTS = (*LOSSES, "segment")


@dataclass
class Findings:
    """What came out, as it is printed and as it is written."""

    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, found: Row | Check) -> None:
        """Print a row or a check, and keep it."""
        found.print()
        if isinstance(found, Row):
            self.rows.append(found)
        else:
            self.checks.append(found)

    @contextlib.contextmanager
    def going_on(self, work: str) -> Iterator[None]:
        """Go on with the next piece of work whatever happens to this one, and remember."""
        try:
            yield
        except Disagreement as error:
            print(f"VALUES DISAGREE, not timed: {error}")
            self.wrong.append(str(error))
        except Exception as error:  # a kernel that does not compile here, no memory
            traceback.print_exc()
            self.wrong.append(f"{work}: {type(error).__name__}: {error}")

    def record(self) -> dict[str, Any]:
        """Return everything for the JSON."""
        return {
            "rows": [row.record() for row in self.rows],
            "checks": [check.record() for check in self.checks],
            "wrong": self.wrong,
        }


def run_losses(part: str, sizes: Sizes, bench: Bench | None, findings: Findings) -> None:
    """Check, and with a bench time, one loss in all its problems."""
    peaks: dict[str, float] = {}
    embedding = 0
    for work in LOSSES[part](sizes, "cuda" if bench else "cpu"):
        print(f"\n{work.name}")
        with findings.going_on(work.name):
            methods = ("binned", "sort") if work.sorts == "triton" else ("binned",)
            for check in value_checks(work, methods):
                findings.add(check)
            if bench is None:
                continue
            for check in device_checks(work):
                findings.add(check)
            empty_cache()
            for row in bench.time(work):
                findings.add(row)
                if row.data.get("peak_mb"):
                    peaks[work.name], embedding = row.data["peak_mb"]["ours"], work.leaf.nbytes
            empty_cache()
    if peaks:
        of, judged = ("the embedding", bench is not None and bench.judged) if part == "tree" else ("the logits", False)
        findings.add(memory_row(part, of, embedding, peaks, 2.5, judged=judged))


def run_segment(sizes: Sizes, bench: Bench | None, findings: Findings) -> None:
    """Check, and with a bench time, `segment`."""
    pixels = sizes.picture[0] * sizes.picture[1]
    print(f"\nsegment, {pixels} pixels")
    with findings.going_on("segment"):
        words = must_equal(pixels, sizes.clusters, "cuda" if bench else "cpu")
        findings.add(Check("segment", "equals the CPU's where instances are found for certain", True, words))
        if bench is not None:
            for row in segment_rows(bench, pixels, sizes.clusters):
                findings.add(row)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=15, help="at most; what is slow is repeated three times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    parser.add_argument("--smoke", action="store_true", help="tiny pictures, in Triton's interpreter without a GPU")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if not options.smoke and not (torch.cuda.is_available() and has_triton()):
        missing = "Triton (pip install triton)" if torch.cuda.is_available() else "a CUDA GPU"
        parser.error(f"{missing} is missing. --smoke runs tiny pictures in Triton's interpreter, without figures.")
    return options


def prepare(options: argparse.Namespace) -> tuple[Bench | None, dict[str, Any]]:
    """Say where we are; return the bench, None where there is no GPU, and what belongs into the JSON."""
    on_gpu = torch.cuda.is_available()
    where: dict[str, Any] = machine("cuda" if on_gpu else "cpu")
    where["triton"] = importlib.metadata.version("triton")
    print(describe(where))
    if not on_gpu:
        print("no CUDA GPU here: a few hundred pixels in Triton's interpreter, values only; nothing is timed")
        return None, {"machine": where, "mode": "interpreter"}
    clock = Clock()
    rates = clock.rates(**({"floats": 2**20, "side": 256} if options.smoke else {}))
    print(f"measured here: {rates}; {WARM_UP} calls warm up after the first, caches are cold before every timed call")
    return Bench(clock, rates, 1 if options.smoke else options.repeats, judged=not options.smoke), {
        "machine": where,
        "mode": "gpu",
        "rates": asdict(rates),
        "warm_up": WARM_UP,
    }


def run(options: argparse.Namespace) -> None:
    bench, found = prepare(options)
    sizes, findings = SMOKE if options.smoke else FULL, Findings()
    for part in options.parts:
        print(f"\n== {part}")
        if part == "segment":
            run_segment(sizes, bench, findings)
        else:
            run_losses(part, sizes, bench, findings)
        if options.json:  # at once: a later part may take the process down
            write_atomically(options.json, json.dumps(found | findings.record(), indent=1).encode())
    if findings.rows:
        print_summary(findings.rows)
    failed = [check for check in findings.checks if not check.holds]
    print(f"\n{len(findings.checks) - len(failed)} of {len(findings.checks)} checks hold")
    wrong = [*findings.wrong, *(f"{check.work}: not so: {check.question}, {check.words}" for check in failed)]
    if wrong:
        raise SystemExit("\n".join(["not as it should be:", *wrong]))


def main() -> None:
    options = parse()
    if not has_triton():
        missing = "Triton" if torch.cuda.is_available() else "a CUDA GPU and Triton"
        print(f"nothing is run: {missing} (pip install triton) missing here")
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        os.environ.setdefault("TRITON_CACHE_DIR", folder)
        if not torch.cuda.is_available():
            stack.enter_context(interpreted())
        run(options)


if __name__ == "__main__":
    main()
