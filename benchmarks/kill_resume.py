"""Kill a training again and again, let it go on each time, and compare its end with that of one left in peace.

    python benchmarks/kill_resume.py --kills 50    # about two minutes
    python benchmarks/kill_resume.py --smoke       # two kills

`kill -9` hits the process and its worker at random moments; every other one waits for a file that is just being
written, and hits then. The run goes on with `fit(..., resume=True)` until it is done, and all it leaves (weights,
checkpoints, log, scores) must be that of the run in peace, bit for bit; seconds are not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

# Before torch and numpy begin: a process with threads of its own must not be forked.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import torch
from _kill_job import Session, differences, options, train
from _measure import describe, machine

from lovasz_embed._atomic import write_atomically

POLL_S = 0.0002
TEMPORARY = re.compile(r"\.(.+)\.\d+-[0-9a-f]{8}")  # as `_atomic.replacing` names a file until it is whole
MOST_FAULTS = 10


@dataclass
class Tally:
    """What happened.

    Attributes:
        kills: Processes that were killed.
        while_writing: Of these, in the middle of writing a file: it was there under a temporary name.
        runs: That were resumed until they were done.
        sessions: Processes that trained, killed or not.
        lost: Steps that had to be done again, by kill.
        writing: Which files were being written, and how often.
        faults: What is wrong; must be empty.
    """

    kills: int = 0
    while_writing: int = 0
    runs: int = 0
    sessions: int = 0
    lost: list[int] = field(default_factory=list)
    writing: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def campaign(kills: int, *, steps: int, checkpoint_every: int, seed: int, folder: Path) -> Tally:
    """Kill and resume until so many kills have happened and the last run is done."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    tally = Tally()
    train(folder / "warm", options(2, 1, 0, seed))  # compiles, and finds what is wrong with everything
    peace, seconds = {}, {}
    for workers in (0, 1):
        peace[workers] = folder / f"peace-{workers}"
        config = options(steps, checkpoint_every, workers, seed)
        session = Session(peace[workers], config, folder / "said")
        while not session.ended():
            time.sleep(0.005)
        seconds[workers] = time.perf_counter() - session.began
        if session.code != 0 or session.steps()[-1:] != [steps]:
            raise RuntimeError(f"the run in peace failed:\n{(folder / 'said').read_text()}")
    while tally.kills < kills and len(tally.faults) < MOST_FAULTS:
        workers = tally.runs % 2
        place = folder / f"run-{tally.runs}"
        one_run(place, options(steps, checkpoint_every, workers, seed), seconds[workers], kills, rng, tally)
        found = differences(peace[workers], place)
        tally.faults += [f"run {tally.runs} ended differently: {what}" for what in found]
        tally.runs += 1
    return tally


def one_run(place: Path, config: Any, seconds: float, kills: int, rng: np.random.Generator, tally: Tally) -> None:
    """Train in this folder to the end, killed on the way until so many kills are reached."""
    place.mkdir()
    before: int | None = None  # the last step of the session before
    for _ in range(20 * config.steps):
        session = Session(place, config, said := place.parent / "said")
        tally.sessions += 1
        killed = False
        if tally.kills < kills:
            at = rng.uniform(0, seconds / 2)
            if tally.kills % 2 == 0:
                killed = _kill_at(session, at)
            else:
                killed = _kill_while_writing(session, place, int(rng.integers(1, 16)), rng.uniform(0, 0.002))
        while not session.ended():
            time.sleep(POLL_S)
        steps = session.steps()
        if before is not None and steps:
            # A step is told of after its checkpoint: killed in between, it was done, though nobody heard of it.
            saved = steps[0] - 1
            lost = max(before, saved) - saved
            tally.lost.append(lost)
            if saved > before + 1 or lost > config.checkpoint_every:
                tally.faults.append(
                    f"went on at step {steps[0]} after step {before}, with a checkpoint every {config.checkpoint_every}"
                )
        if steps:
            before = steps[-1]
        if not killed:
            if session.code != 0:
                tally.faults.append(f"a resumed run failed with {session.code}:\n{said.read_text()}")
            return
        tally.kills += 1
        for file in _half_written(place).values():
            tally.while_writing += 1
            tally.writing[file] = tally.writing.get(file, 0) + 1
    tally.faults.append("a run came to no end")


def _kill_at(session: Session, seconds: float) -> bool:
    while time.perf_counter() < session.began + seconds and not session.ended():
        time.sleep(POLL_S)
    return session.kill()


def _kill_while_writing(session: Session, folder: Path, which: int, later: float) -> bool:
    """Kill at the n-th file that appears under a temporary name, or so much later, in seconds."""
    seen = set(_half_written(folder))
    count = 0
    while not session.ended():
        fresh = set(_half_written(folder)) - seen
        seen |= fresh
        count += len(fresh)
        if count >= which:
            if which % 2:  # the others die as early as can be
                time.sleep(later)
            return session.kill()
    return False


def _half_written(folder: Path) -> dict[str, str]:
    """Return the temporary names in a folder, each with the name that the file is going to have."""
    return {name: match[1] for name in os.listdir(folder) if (match := TEMPORARY.fullmatch(name))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--checkpoint-every", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="two kills, for CI")
    asked = parser.parse_args()
    if not hasattr(os, "fork"):
        sys.exit("this benchmark forks")
    if asked.smoke:
        asked.kills, asked.steps = 2, 20
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        tally = campaign(
            asked.kills, steps=asked.steps, checkpoint_every=asked.checkpoint_every, seed=asked.seed,
            folder=Path(folder),
        )  # fmt: skip
    where, date = machine("cpu"), datetime.now(UTC).date().isoformat()
    print(describe(where), f"{date}, seed {asked.seed}", sep="; ")
    print(
        f"{tally.kills} kills, {tally.while_writing} of them while a file was being written {tally.writing}; "
        f"{tally.runs} runs in {tally.sessions} processes of {asked.steps} steps, a checkpoint every "
        f"{asked.checkpoint_every}; {time.perf_counter() - began:.0f} s"
    )
    if tally.lost:
        print(f"steps done again after a kill: median {median(tally.lost):g}, at most {max(tally.lost)}")
    print(f"{len(tally.faults)} faults, differences from the run in peace included")
    if asked.json is not None:
        write_atomically(asked.json, json.dumps({"machine": where, "date": date, **vars(tally)}).encode())
    for fault in tally.faults:
        print(fault)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
