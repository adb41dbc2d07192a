"""Time, memory and correctness of the Lovász losses, forward and backward.

    python benchmarks/bench_lovasz.py            # a quarter of an hour
    python benchmarks/bench_lovasz.py --smoke    # seconds: does it still run, and do the values agree?

Three parts. "targets" is the table that the fast engine has to reach, each row beside its baseline and its floor.
"sweep" varies pixels, nodes, dimensions and the share of pixels past the margin, one at a time. "peers" asks
other libraries, where they are installed, and us for values and gradients that are known. Values must agree
before anything is timed; the exit status says whether they did, not whether targets were reached.

Baselines are written in _textbook.py; what the pictures and embeddings look like is said in _scenes.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _correctness import check
from _floor import Rates
from _measure import describe, machine, table
from _peers import Peer, installed
from _plot import draw
from _rows import Disagreement, Row, print_summary
from _sweep import BASELINES, FULL, SMOKE, sweeps
from _targets import OFFICIAL_SIZE, Setting, hinge_rows, softmax_rows, weight_rows
from _targets_hierarchy import hierarchy_rows

from lovasz_embed._atomic import write_atomically

PARTS = ("targets", "sweep", "peers")


def run_targets(setting: Setting) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure and print the table; return its records, and a line for every disagreement."""
    rows: list[Row] = []
    wrong: list[str] = []
    producers: tuple[Callable[[Setting], Iterator[Row]], ...] = (hinge_rows, softmax_rows, hierarchy_rows, weight_rows)
    for producer in producers:
        try:
            for row in producer(setting):
                row.print()
                rows.append(row)
        except Disagreement as error:
            print(f"VALUES DISAGREE, not timed: {error}")
            wrong.append(str(error))
    if rows:
        print_summary(rows)
    if not setting.judged:
        print(f"targets are judged for {OFFICIAL_SIZE[0]} x {OFFICIAL_SIZE[1]} pixels on the CPU only")
    return [row.record() for row in rows], wrong


def run_sweep(options: argparse.Namespace, peers: Sequence[Peer]) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure and print all sweeps; return their points, and a line for every disagreement."""
    records: list[dict[str, Any]] = []
    wrong: list[str] = []
    for sweep in sweeps(SMOKE if options.smoke else FULL, peers, options.repeats, options.device):
        print(f"\n{sweep.title()}")
        try:
            points = [point for place in sweep.run() for point in place]
        except Disagreement as error:
            print(f"VALUES DISAGREE, not timed: {error}")
            wrong.append(str(error))
            continue
        records += table(points, baseline=BASELINES[sweep.loss])
        if any(point.measured is not None for point in points):
            measured = ", ".join(f"{p.measured} of {p.nodes}" for p in points if p.measured is not None)
            print(f"the loop was run on as many nodes as memory allows and scaled up: {measured}")
    return records, wrong


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--size", type=int, nargs=2, default=OFFICIAL_SIZE, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=7, help="at most; what is slow is repeated three times")
    parser.add_argument("--full", action="store_true", help="run the complete loop over 119 nodes once, too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the sweep; needs matplotlib")
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
        options.size, options.repeats = (32, 64), 1
    return options


def main() -> None:
    options = parse()
    if options.replot:
        found = json.loads(options.replot.read_text())
        draw(found["sweep"], options.plot, describe(found["machine"]))
        return

    where = machine(options.device)
    rates = Rates.measure(options.device, **({"floats": 2**20, "side": 256} if options.smoke else {}))
    peers, missing = installed()
    print(describe(where))
    print(f"measured here: {rates}")
    for line in [*(f"{peer.name} {peer.version}" for peer in peers), *missing]:
        print(line)

    found: dict[str, Any] = {"machine": where, "copy_bytes_per_s": rates.copy, "flop_per_s": rates.arithmetic}
    found["peers_installed"] = {peer.name: peer.version for peer in peers}
    found["peers_missing"] = missing
    wrong: list[str] = []
    if "targets" in options.parts:
        print("\n== targets")
        instances = (9, 20) if options.smoke else (100, 400)
        steps = 3 if options.smoke else 300
        setting = Setting(
            *options.size, rates, options.repeats, options.device, instances, steps=steps, full=options.full
        )
        found["targets"], disagreements = run_targets(setting)
        wrong += disagreements
    if "sweep" in options.parts:
        print("\n== sweep")
        found["sweep"], disagreements = run_sweep(options, peers)
        wrong += disagreements
    if "peers" in options.parts:
        print("\n== peers")
        found["peers"], disagreements = check(peers, options.device, smoke=options.smoke)
        wrong += disagreements

    found["disagreements"] = wrong
    if options.json:
        write_atomically(options.json, json.dumps(found, indent=1).encode())
    if options.plot:
        draw(found["sweep"], options.plot, describe(where))
    if wrong:
        raise SystemExit("\n".join(["values disagree:", *wrong]))


if __name__ == "__main__":
    main()
