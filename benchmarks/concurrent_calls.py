"""Call every function with compiled kernels from many threads at once: the bits must be those of the call alone.

    python benchmarks/concurrent_calls.py --calls 10000    # some minutes
    python benchmarks/concurrent_calls.py --smoke          # 400 calls

Half of the calls run while torch has one thread, half while it has as many as the machine has cores, so that helpers
of many callers run beside each other. Inputs are shared by all callers, and must not have changed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _catalogue import CALLS, Problem, digest, problem
from _measure import describe, machine
from _process import held

from lovasz_embed._atomic import write_atomically

# The second is large enough to be shared among helpers, see `_ops.threads`.
SIZES = ((48, 64), (136, 128), (190, 180))


def campaign(calls: int, *, threads: int, seed: int, cores: int, names: Sequence[str] = tuple(CALLS)) -> dict[str, Any]:
    """Make so many calls from so many threads; return what was called and what came out otherwise than alone."""
    problems = [problem(seed + k, size) for k, size in enumerate(SIZES)]
    before = [digest(p) for p in problems]
    crowd = Crowd(problems)
    try:
        for part, torch_threads in enumerate((1, max(cores, 2))):
            torch.set_num_threads(torch_threads)
            # Every name equally often; of the problems the small ones most, for they collide most.
            rng = np.random.default_rng((seed, part))
            count = calls // 2 + (part == 0) * (calls % 2)
            shuffled = rng.permutation(np.resize(np.array(names, dtype=object), count))
            crowd.call([(name, int(rng.choice(len(problems), p=(0.8, 0.15, 0.05)))) for name in shuffled], threads)
    finally:
        torch.set_num_threads(cores)
    wrong = crowd.wrong + [f"input {k} was changed" for k, p in enumerate(problems) if digest(p) != before[k]]
    return {
        "calls": sum(crowd.called.values()),
        "per_function": dict(crowd.called),
        "most_at_once": crowd.most_at_once,
        "wrong": wrong,
        "threads_left": held().threads if Path("/proc/self").exists() else None,
    }


class Crowd:
    """Many callers at once.

    Attributes:
        called: How often each function was.
        most_at_once: Calls that ran at the same moment, at most.
        wrong: Calls that gave other bits than alone.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = problems
        self.called: Counter[str] = Counter()
        self.most_at_once = self._at_once = 0
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def call(self, order: Sequence[tuple[str, int]], threads: int) -> None:
        """Make these calls, names with numbers of problems, dealt out to so many threads that begin together."""
        alone = {pair: digest(CALLS[pair[0]](self.problems[pair[1]])) for pair in set(order)}
        meeting = threading.Barrier(threads)

        def work(number: int) -> None:
            meeting.wait()
            for pair in order[number::threads]:
                self._call(pair, alone[pair])

        with ThreadPoolExecutor(threads) as callers:
            list(callers.map(work, range(threads)))

    def _call(self, pair: tuple[str, int], want: bytes) -> None:
        name, number = pair
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        fault = None
        try:
            if digest(CALLS[name](self.problems[number])) != want:
                fault = "other bits"
        except Exception as error:
            fault = repr(error)
        with self._lock:
            self._at_once -= 1
            self.called[name] += 1
            if fault is not None:
                self.wrong.append(f"{name}, problem {number}, {torch.get_num_threads()} threads of torch: {fault}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="400 calls, for CI")
    options = parser.parse_args()
    if options.smoke:
        options.calls = 400
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    began = time.perf_counter()
    report = campaign(options.calls, threads=options.threads, seed=options.seed, cores=cores)
    report |= {"machine": machine("cpu"), "date": datetime.now(UTC).date().isoformat(), "seed": options.seed}
    print(describe(report["machine"]), f"{report['date']}, seed {options.seed}", sep="; ")
    print(
        f"{report['calls']} calls of {len(report['per_function'])} functions from {options.threads} threads, at most "
        f"{report['most_at_once']} at once, in {time.perf_counter() - began:.0f} s; {len(report['wrong'])} differ from "
        f"the call alone; {report['threads_left']} threads are left"
    )
    if options.json is not None:
        write_atomically(options.json, json.dumps(report).encode())
    for what in report["wrong"][:20]:
        print(what)
    sys.exit(bool(report["wrong"]))


if __name__ == "__main__":
    main()
