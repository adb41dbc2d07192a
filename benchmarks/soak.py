"""Training and prediction in a loop: do memory, files, threads and speed stay as they are?

    python benchmarks/soak.py --minutes 60 --json soak.json    # one hour; soak.json is written after every cycle
    python benchmarks/soak.py --smoke                          # three short cycles: does it still run?
    python benchmarks/soak.py --plot docs/soak.png --json soak.json    # draws what was measured

A cycle trains a small network on fresh scenes with a worker process, is interrupted, goes on from its checkpoint,
predicts, tracks, scores, writes COCO files and reads them back, clusters with every method and compares every loss with
the reference; a wrong result ends the soak. After each the process is looked at from outside, through Linux's /proc.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from _measure import describe, machine
from _process import Held, held, live_mb, peak_mb, restart_peak
from _soak_work import run_cycle

from lovasz_embed._atomic import write_atomically

Record = dict[str, Any]
FLAT_MB_PER_HOUR = 1.0
GROWING = {
    "live_mb": "allocated and not freed, MB",
    "rss_mb": "memory of the process, MB",
    "peak_mb": "its peak in a cycle, MB",
    "children_mb": "memory of its workers, at most, MB",
    "files": "open files",
    "threads": "threads",
    "disk_mb": "files of the run, MB",
}


def soak(minutes: float, *, cycles: int | None, steps: int, seed: int, json_path: Path | None) -> Record:
    """Run cycles until the time is over, or so many; return the report, which is on disk after every cycle."""
    began = time.perf_counter()
    report: Record = {
        "date": datetime.now(UTC).date().isoformat(), "minutes": minutes, "steps": steps, "seed": seed,
        "machine": machine("cpu"), "complete": False, "cycles": [],
    }  # fmt: skip
    _grow_names()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = Path(temporary)
        (folder / "tmp").mkdir()
        tempfile.tempdir = str(folder / "tmp")  # whatever is left behind is seen
        try:
            while len(report["cycles"]) < cycles if cycles else time.perf_counter() - began < 60 * minutes:
                record = one_cycle(len(report["cycles"]), folder, steps, seed)
                record["hours"] = (time.perf_counter() - began) / 3600
                report["cycles"].append(record)
                say(record)
                if json_path is not None:
                    write_atomically(json_path, json.dumps(report).encode())
        finally:
            tempfile.tempdir = None
    report["complete"] = True
    report["verdict"] = verdict(report["cycles"])
    if json_path is not None:
        write_atomically(json_path, json.dumps(report).encode())
    return report


def _grow_names() -> None:
    """Let Python's table of interned strings grow now: names that come and go fill it, and then it doubles, once."""
    for number in range(300_000):
        sys.intern(f"soak {number}")


def one_cycle(number: int, folder: Path, steps: int, seed: int) -> Record:
    """Run a cycle; return what it took and what the process holds after it."""
    seen: list[Held] = []
    restart_peak()
    began = time.perf_counter()
    cycle = run_cycle(number, folder, steps=steps, watch=lambda: seen.append(held()), seed=seed)
    seconds = time.perf_counter() - began
    gc.collect()
    after, live = held(), live_mb()
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "seconds": seconds,
        "step_s": median(cycle.step_s),
        "predict_s": median(cycle.predict_s),
        "losses": cycle.losses,
        "quality": cycle.quality,
        **after._asdict(),
        "live_mb": live,
        "peak_mb": peak_mb(),
        "children_mb": max(moment.children_mb for moment in seen),
        "most_files": max(moment.files for moment in seen),
        "most_threads": max(moment.threads for moment in seen),
        "most_children": max(moment.children for moment in seen),
        "disk_files": len(files),
        "disk_mb": sum(path.stat().st_size for path in files) / 1e6,
        "left_over": sorted(path.name for path in files if (folder / "tmp") in path.parents or path.name[0] == "."),
    }


def slope(hours: Sequence[float], values: Sequence[float]) -> Record:
    """Fit a line by least squares: its slope per hour, standard error and 95 % interval (Student's t)."""
    import numpy as np
    from scipy import stats

    fit = stats.linregress(np.asarray(hours), np.asarray(values))
    reach = float(stats.t.ppf(0.975, len(hours) - 2)) * float(fit.stderr)
    return {
        "per_hour": float(fit.slope),
        "standard_error": float(fit.stderr),
        "interval": [float(fit.slope) - reach, float(fit.slope) + reach],
        "first": values[0],
        "last": values[-1],
        "most": max(values),
    }


def verdict(cycles: Sequence[Record]) -> Record:
    """Say what grew and what did not, after a warm-up of a tenth of the time."""
    warm = [c for c in cycles if c["hours"] >= cycles[-1]["hours"] / 10]
    if len(warm) < 3:
        return {"flat": None, "why": "too few cycles to fit a line"}
    hours = [c["hours"] for c in warm]
    slopes = {name: slope(hours, [c[name] for c in warm]) for name in GROWING}
    # Resident memory moves in steps of the largest blocks that were ever freed; what is allocated does not.
    memory = slopes["live_mb"] if math.isfinite(slopes["live_mb"]["per_hour"]) else slopes["rss_mb"]
    flat = memory["interval"][0] <= 0 <= memory["interval"][1] or memory["per_hour"] < FLAT_MB_PER_HOUR
    third = max(len(warm) // 3, 1)
    speed = {
        name: {
            "first_third": _spread([c[name] for c in warm[:third]]),
            "last_third": _spread([c[name] for c in warm[-third:]]),
        }
        for name in ("step_s", "predict_s", "seconds")
    }
    return {
        "flat": flat,
        "slopes": slopes,
        "speed": speed,
        "most_files": max(c["most_files"] for c in cycles),
        "most_threads": max(c["most_threads"] for c in cycles),
        "children_left": max(c["children"] for c in cycles),
        "left_over": sorted({name for c in cycles for name in c["left_over"]}),
    }


def _spread(values: Sequence[float]) -> Record:
    quarters = quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": median(values), "quarter": quarters[0], "three_quarters": quarters[2]}


def say(record: Record) -> None:
    """Print a cycle in a line."""
    print(
        f"{60 * record['hours']:7.1f} min {record['seconds']:6.1f} s {1e3 * record['step_s']:6.0f} ms/step "
        f"{record['predict_s']:6.2f} s/MP {record['rss_mb']:7.1f} MB (peak {record['peak_mb']:7.1f}, "
        f"allocated {record['live_mb']:6.1f}, workers {record['children_mb']:6.1f}) {record['files']:3} files "
        f"{record['threads']:3} threads {record['children']} children, {record['disk_files']} on disk",
        flush=True,
    )


def show(report: Record) -> None:
    """Print the verdict."""
    found, cycles = report["verdict"], report["cycles"]
    print(describe(report["machine"]), f"{report['date']}, seed {report['seed']}", sep="; ")
    print(f"{len(cycles)} cycles in {60 * cycles[-1]['hours']:.1f} minutes")
    if found["flat"] is None:
        print(found["why"])
        return
    print(f"{'':36} {'per hour':>10} {'95 % interval':>20} {'first':>8} {'last':>8} {'most':>8}")
    for name, what in GROWING.items():
        line = found["slopes"][name]
        low, high = line["interval"]
        print(
            f"{what:36} {line['per_hour']:+10.2f} {low:+9.2f} ...{high:+8.2f} {line['first']:8.1f} "
            f"{line['last']:8.1f} {line['most']:8.1f}"
        )
    for name, what, factor in (
        ("step_s", "ms a training step", 1e3),
        ("predict_s", "s a predicted megapixel", 1),
        ("seconds", "s a cycle", 1),
    ):
        first, last = found["speed"][name]["first_third"], found["speed"][name]["last_third"]
        parts = (
            f"{factor * part['median']:.3g} ({factor * part['quarter']:.3g} ... {factor * part['three_quarters']:.3g})"
            for part in (first, last)
        )
        print(f"{what:36} first third, last third (quartiles): {', '.join(parts)}")
    print(
        f"open files at most {found['most_files']}, threads at most {found['most_threads']}, workers left behind "
        f"{found['children_left']}, temporary files left behind {len(found['left_over'])}"
    )
    print(f"allocated memory is {'flat' if found['flat'] else 'NOT flat'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=48, help="steps of training in a cycle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the report, written after every cycle")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw --json and measure nothing")
    parser.add_argument("--smoke", action="store_true", help="three short cycles, for CI")
    options = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("this benchmark reads /proc, which only Linux has")
    if options.plot is not None:
        from _soak_plot import draw

        if options.json is None:
            parser.error("--plot needs the --json of an earlier run")
        draw(json.loads(options.json.read_text()), options.plot)
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    steps, cycles = (8, 3) if options.smoke else (options.steps, None)
    report = soak(options.minutes, cycles=cycles, steps=steps, seed=options.seed, json_path=options.json)
    show(report)
    found = report["verdict"]
    if found["flat"] is not None and (found["children_left"] or found["left_over"]):
        sys.exit("something was left behind")


if __name__ == "__main__":
    main()
