"""Time, memory and quality of clustering pixel embeddings, beside other libraries.

    python benchmarks/bench_clustering.py            # some twenty minutes
    python benchmarks/bench_clustering.py --smoke    # within a minute: does it still run?

Three parts. "targets" is the table that clustering has to reach. "sweep" varies pixels, dimensions and instances, one
at a time, on margin-separated embeddings and on noisy ones with mixed pixels along borders. "trained" clusters the
embeddings of a trained model (of --run, or of one that trains for a minute). What the embeddings look like is said in
_clustering_scenes.py, who takes part and what each is told in _clustering_methods.py. Every method runs in a process
of its own; one that does not end within --limit seconds takes part in no larger problem.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _clustering_methods import METHODS, OURS, installed
from _clustering_plot import draw
from _clustering_race import FULL, SMOKE, Race, Result, contestants
from _clustering_scenes import MIN_SIZE, shape_of, trained
from _clustering_targets import (
    OFFICIAL,
    Setting,
    clustering_rows,
    growth_row,
    peer_rows,
    quality_row,
    reading_rate,
    segment_row,
)
from _measure import describe, machine
from _rows import Row

from lovasz_embed._atomic import write_atomically

PARTS = ("sweep", "trained", "targets")


def target_rows(setting: Setting, results: Sequence[Result], *, smoke: bool) -> Iterator[Row]:
    yield from clustering_rows(setting)
    yield from growth_row(setting, *((2**12, 2**14) if smoke else (2**19, 2**23)))
    yield from segment_row(setting)
    yield from quality_row(setting, *shape_of(setting.pixels))
    yield from peer_rows(results)


def print_summary(rows: Sequence[Row]) -> None:
    width = max(len(row.work) for row in rows)
    print(f"\n{'work':{width}}  {'found':26} {'target':22} verdict")
    for row in rows:
        print(f"{row.work:{width}}  {row.found():26} {row.rule:22} {row.verdict}")


def print_table(results: Sequence[Result]) -> None:
    """Print milliseconds, a row for each method and a column for each place of an axis."""
    for data, axis in dict.fromkeys((r.data, r.axis) for r in results):
        own = [r for r in results if (r.data, r.axis) == (data, axis)]
        places = list(dict.fromkeys((r.pixels, r.dims, r.instances) for r in own))
        which = {"pixels": 0, "dimensions": 1, "instances": 2}.get(axis, 0)
        print(f"\n{data}, by {axis or 'itself'}: ms / ARI ('-': over the limit, or over it at a smaller size)")
        print(f"{'':20}" + "".join(f"{place[which]:>18}" for place in places))
        for name in dict.fromkeys(r.method for r in own):
            cells = []
            for place in places:
                found = [r for r in own if r.method == name and (r.pixels, r.dims, r.instances) == place]
                median = found[0].median if found else None
                ari = "" if median is None or found[0].ari is None else f" / {found[0].ari:.3f}"
                cells.append("-" if median is None else f"{1e3 * median:.4g}{ari}")
            print(f"{name:20}" + "".join(f"{cell:>18}" for cell in cells))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), help="take part; all that are installed")
    parser.add_argument("--limit", type=float, default=10.0, metavar="SECONDS", help="of one call of one method")
    parser.add_argument("--repeats", type=int, default=7, help="at most; what is slow is repeated less often")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="where other packages are, beside the usual path")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a model trained on painted streets; else one is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the sweep over pixels; needs matplotlib")
    parser.add_argument("--replot", type=Path, metavar="FILE", help="measure nothing: draw what --json wrote")
    parser.add_argument("--smoke", action="store_true", help="tiny pictures, one repeat")
    options = parser.parse_args()
    if options.replot and not options.plot:
        parser.error("--replot needs --plot")
    if options.plot and not options.replot and "sweep" not in options.parts:
        parser.error("--plot draws the sweep, which --parts leaves out")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    if options.smoke:
        options.repeats = 1
    return options


def main() -> None:
    options = parse()
    if options.replot:
        found = json.loads(options.replot.read_text())
        draw(found["sweep"], found["floor"], options.plot, describe(found["machine"]))
        return
    if options.peers:
        sys.path.append(str(options.peers.resolve()))
    where = machine("cpu")
    rate = reading_rate(2**20 if options.smoke else 2**26)
    packages, missing = installed()
    methods = options.methods or (list(OURS) if options.smoke else contestants(packages))
    print(describe(where))
    print(f"measured here: reading {rate / 1e9:.1f} GB/s; smallest cluster that counts: {MIN_SIZE} pixels")
    for text in [*(f"{name} {version}" for name, version in packages.items()), *missing]:
        print(text)
    for name in methods:
        print(f"{name:20} is told {METHODS[name].told}")

    axes = SMOKE if options.smoke else FULL
    floor = {"seconds_per_byte": 1 / rate, "bytes_per_pixel": 4.0 * axes.default_dims}
    found: dict[str, Any] = {"machine": where, "read_bytes_per_s": rate, "floor": floor, "min_size": MIN_SIZE}
    found |= {"packages": packages, "missing": missing}
    race = Race(axes, options.limit, options.repeats, methods, options.peers)
    swept: list[Result] = []
    own: list[Result] = []
    if "sweep" in options.parts:
        print("\n== sweep")
        swept = list(race.sweep())
        found["sweep"] = [result.record() for result in swept]
    if "trained" in options.parts:
        print("\n== trained")
        problem = trained(options.run, 2 if options.smoke else 32, 0.02 if options.smoke else 1.0)
        own = list(race.at(problem))
        found["trained"] = [result.record() for result in own]
    if swept or own:
        print_table([*swept, *own])
    if "targets" in options.parts:
        print("\n== targets")
        setting = Setting(2**14 if options.smoke else OFFICIAL, options.repeats, rate)
        rows = []
        for row in target_rows(setting, swept, smoke=options.smoke):
            row.print()
            rows.append(row)
        print_summary(rows)
        if not setting.judged:
            print(f"targets are judged for {OFFICIAL} pixels only")
        found["targets"] = [row.record() for row in rows]
    if options.json:
        write_atomically(options.json, json.dumps(found, indent=1).encode())
    if options.plot:
        draw(found["sweep"], floor, options.plot, describe(where))


if __name__ == "__main__":
    main()
