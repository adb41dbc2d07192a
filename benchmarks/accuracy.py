"""How far losses and gradients are off, by engine, dtype and size; and whether results depend on the threads.

    python benchmarks/accuracy.py --cases 8 --json accuracy.json    # the tables of the documentation
    python benchmarks/accuracy.py --smoke                           # seconds, small sizes
    TRITON_INTERPRET=1 python benchmarks/accuracy.py --triton       # kernels for GPUs, interpreted: minutes, tiny sizes

Everything is compared with the textbook definition in wider floats (`_exact.py`), on inputs that the dtype holds
exactly. The value's error is relative. A gradient's is its largest error over its largest entry. The second table calls
every function with compiled kernels with 1, 2 and 8 threads and in another process, and compares all bits. The kernels
for GPUs have the first table alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from _accuracy_cases import BINS, DTYPES, ENGINES, Off, hinges, softmaxes, trees
from _catalogue import CALLS, digest, problem
from _measure import describe, machine

from lovasz_embed._atomic import write_atomically

THREADS = (1, 2, 8)
SIZE = (190, 180)  # large enough for helpers to help


def measure(
    engines: Sequence[str], sizes: Sequence[int], tree_sizes: Sequence[int], cases: int, seed: int
) -> list[Off]:
    """Compare everything; `cases` draws of each."""
    found: list[Off] = []
    for dtype in DTYPES:
        for engine in engines:
            for size in sizes:
                for draw in range(cases if size < 14 else 1):
                    found += hinges(size, seed + draw, dtype, engine)
                    found += softmaxes(min(size, 18), seed + draw, dtype, engine)
            for size in tree_sizes:
                for draw in range(cases if size < 14 else 1):
                    for kernel in ("margin", "gaussian"):
                        found += trees(size, seed + draw, dtype, engine, kernel)
    return found


def broken_brackets(found: Sequence[Off]) -> list[Off]:
    """Return the binned values that are farther off than 1 / bins, and what rounding adds at most."""
    rounding = {"float64": 1e-12, "float32": 1e-4, "bfloat16": 1e-4, "float16": 1e-4}
    return [off for off in found if "binned" in off.engine and not off.value <= 1 / BINS + rounding[off.dtype]]


def digests(seed: int) -> dict[str, str]:
    """Return the bits of every function, with one thread."""
    torch.set_num_threads(1)
    street = problem(seed, SIZE)
    return {name: digest(call(street)).hex() for name, call in CALLS.items()}


def determinism(seed: int) -> dict[str, dict[str, bool]]:
    """Return for every function whether its bits are the same with more threads, again, and in another process."""
    before = torch.get_num_threads()
    alone = digests(seed)
    same: dict[str, dict[str, bool]] = {name: {} for name in CALLS}
    street = problem(seed, SIZE)
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            for name, call in CALLS.items():
                same[name][f"{threads} threads"] = digest(call(street)).hex() == alone[name]
    finally:
        torch.set_num_threads(before)
    call_again = [sys.executable, __file__, "--digests", "--seed", str(seed)]
    result = subprocess.run(call_again, capture_output=True, text=True, check=True)
    there = json.loads(result.stdout.splitlines()[-1])
    for name in CALLS:
        same[name]["another process"] = there[name] == alone[name]
    return same


def show(found: Sequence[Off]) -> None:
    """Print the worst value and gradient of each function, engine, dtype and size as a table of Markdown."""
    sizes = sorted({off.size for off in found})
    print(f"| function | engine | dtype | {' | '.join(f'2^{size}' for size in sizes)} |")
    print("|---" * (3 + len(sizes)) + "|")
    for key in sorted({(off.function, off.engine, off.dtype) for off in found}, key=_order):
        own = [off for off in found if (off.function, off.engine, off.dtype) == key]
        cells = [_worst([off for off in own if off.size == size]) for size in sizes]
        print(f"| {' | '.join((*key, *cells))} |")


def _order(key: tuple[str, str, str]) -> tuple[str, int, int]:
    function, engine, dtype = key
    return function, list(ENGINES).index(engine), list(DTYPES).index(dtype)


def _worst(here: Sequence[Off]) -> str:
    if not here:
        return ""
    return f"{max(off.value for off in here):.1e}, {max(off.gradient for off in here):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=8, help="draws of each distribution, one of the largest sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="small sizes, for CI")
    parser.add_argument("--triton", action="store_true", help="the kernels for GPUs, by the interpreter of Triton")
    parser.add_argument("--digests", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.digests:
        print(json.dumps(digests(options.seed)))
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    began = time.perf_counter()
    sizes, tree_sizes = [6, 10, 14, 17, 20], [6, 10, 14, 17]
    engines = [name for name in ENGINES if ("triton" in name) == options.triton]
    if options.triton and os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("--triton needs TRITON_INTERPRET=1 in the environment")
    if options.smoke or options.triton:  # the interpreter takes a minute for a tree
        sizes, tree_sizes, options.cases = [6, 10], [6, 9], 1
    found = measure(engines, sizes, tree_sizes, options.cases, options.seed)
    same = {} if options.triton else determinism(options.seed)
    where, date = machine("cpu"), datetime.now(UTC).date().isoformat()
    print(describe(where), f"{date}, seed {options.seed}, {time.perf_counter() - began:.0f} s", sep="; ")
    show(found)
    broken = broken_brackets(found)
    print(f"\n{len(found)} comparisons; {len(broken)} binned values outside their bracket of 1/{BINS}")
    varying = {name: [how for how, equal in hows.items() if not equal] for name, hows in same.items()}
    varying = {name: hows for name, hows in varying.items() if hows}
    print(f"{len(same)} functions with 1, 2 and 8 threads and in another process: {len(varying)} give other bits")
    for name, hows in varying.items():
        print(f"    {name}: {', '.join(hows)}")
    if options.json is not None:
        report = {"machine": where, "date": date, "seed": options.seed, "determinism": same}
        write_atomically(options.json, json.dumps({**report, "comparisons": [asdict(off) for off in found]}).encode())
    for off in broken:
        print(off)
    sys.exit(bool(broken or varying))


if __name__ == "__main__":
    main()
