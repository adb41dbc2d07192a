"""Processes that make the calls of `fuzz_calls.py`, and the one that watches them: who dies or hangs is replaced."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from _hostile_oracle import REGISTRY, make_call, outcome, raising_line

_MEMORY = 3 << 30  # bytes of a process
_CHUNK = 2000  # calls of one function that a process is given at once
# Documented warnings; any other is an error.
_DOCUMENTED = (
    (RuntimeWarning, r"\d+ pixels to be clustered, .* hold NaN or Inf"),
    (UserWarning, r"overlap must be at least \d+ for the result of the whole picture"),
)


@dataclass(frozen=True)
class Campaign:
    """What is asked for."""

    names: list[str]
    calls: int
    seed: int
    jobs: int
    seconds: float | None
    limit: float


@dataclass
class Found:
    """What came of a campaign.

    Attributes:
        counts: Per function: calls, returned, refused, defects and seconds.
        defects: Per (function, kind, place): how often, and the first call that showed it.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    defects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    stopped: bool = False

    def add_defect(self, name: str, kind: str, place: str, text: str, replay: str) -> None:
        """Count one defect."""
        known = self.defects.setdefault((name, kind, place), {"times": 0, "text": text, "replay": replay})
        known["times"] += 1

    def table(self) -> str:
        """Return the counts, and below them every defect with a call that shows it."""
        wide = max(map(len, self.counts), default=8)
        lines = [f"{'function':{wide}} {'calls':>9} {'returned':>9} {'refused':>9} {'defects':>8} {'ms/call':>8}"]
        total: Counter[str] = Counter()
        for name, own in self.counts.items():
            total.update(own)
            lines.append(_row(name, own, wide))
        lines.append(_row(f"{len(self.counts)} functions", total, wide))
        for (name, kind, place), own in sorted(self.defects.items()):
            text = " ".join(own["text"].split())[:200]
            lines.append(f"DEFECT {name} | {kind} | {place} | {own['times']} times | {text} | --replay {own['replay']}")
        if self.stopped:
            lines.append("stopped: the time was up before all calls were made")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Return the same for a file."""
        names = ("function", "kind", "place")
        defects = [{**dict(zip(names, key, strict=True)), **own} for key, own in sorted(self.defects.items())]
        counts = {name: dict(own) for name, own in self.counts.items()}
        return {"functions": counts, "defects": defects, "stopped": self.stopped}


def _row(name: str, own: Counter[str], wide: int) -> str:
    each = 1000 * own["seconds"] / max(own["calls"], 1)
    return (
        f"{name:{wide}} {own['calls']:>9,} {own['returned']:>9,} {own['refused']:>9,} {own['defects']:>8,} {each:>8.2f}"
    )


def prepare_process() -> None:
    """One thread, and every warning that is not documented an error."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # What asks for more than this is a defect, and must not take the machine down.
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    warnings.resetwarnings()
    warnings.simplefilter("error")
    for kind, text in _DOCUMENTED:
        warnings.filterwarnings("ignore", text, kind)


@dataclass(frozen=True)
class Task:
    """Calls `start` ... `stop` - 1 of one function."""

    name: str
    start: int
    stop: int


class _State(ctypes.Structure):
    """What a worker says of itself in shared memory, where it survives the worker."""

    _fields_ = [("index", ctypes.c_long), ("began", ctypes.c_double), ("returned", ctypes.c_long), ("refused", ctypes.c_long), ("first", ctypes.c_bool)]  # noqa: E501  # fmt: skip


def run_calls(task: Task, seed: int, state: Any, report: Any) -> None:
    """Make the calls of a task one by one; `report` is told of defects."""
    known = REGISTRY[task.name]
    for index in range(task.start, task.stop):
        state.index, state.began = index, time.monotonic()
        try:
            call, hostile = make_call(known, seed, index)
            result = outcome(known, call, hostile)
            if result == "returned":
                state.returned += 1
            else:
                state.refused += 1
        except Exception as error:
            kind = type(error).__name__
            place = raising_line(error) if kind != "Broken" else f"{error}"
            report(("defect", kind, place, f"{kind}: {error}", f"{task.name}:{seed}:{index}"))
        state.first = False


def _work(connection: Connection, state: Any, seed: int) -> None:
    import _hostile_calls  # noqa: F401  (fills the registry)

    prepare_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (task := connection.recv()) is not None:
        run_calls(task, seed, state, connection.send)
        state.began = 0.0
        connection.send(("done",))


class _Worker:
    """A process, its task, and what it has reported of it."""

    def __init__(self, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.state = context.Value(_State, lock=False)
        self.state.first = True
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.state, seed), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.started = 0.0

    def give(self, task: Task) -> None:
        """Hand a task over."""
        self.task, self.started = task, time.monotonic()
        self.state.index, self.state.began = task.start, 0.0
        self.state.returned = self.state.refused = 0
        self.connection.send(task)

    def kill(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_campaign(campaign: Campaign) -> Found:
    """Make all calls of a campaign and return what came of them; what they leave on disk goes with them."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:  # workers are killed and clean up nothing
        os.environ["TMPDIR"] = place
        try:
            return _run(campaign)
        finally:
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before


def _run(campaign: Campaign) -> Found:
    found = Found({name: Counter() for name in campaign.names})
    tasks = [task for name in campaign.names for task in _tasks(name, campaign.calls)]
    # In turns: where the time is up early, every function had its share. Taken from the end.
    tasks.sort(key=lambda task: task.start, reverse=True)
    workers = [_Worker(campaign.seed) for _ in range(min(campaign.jobs, max(len(tasks), 1)))]
    end = None if campaign.seconds is None else time.monotonic() + campaign.seconds
    try:
        for worker in workers:
            worker.give(tasks.pop())
        while busy := [worker for worker in workers if worker.task is not None]:
            ready = wait([worker.connection for worker in busy], timeout=0.5)
            for worker in busy:
                if worker.connection in ready:
                    _listen(worker, found, campaign)
                elif _hangs(worker, campaign.limit):
                    _bury(worker, found, campaign, "hang", f"longer than {campaign.limit:g} s")
                if worker.task is not None:
                    continue
                if not worker.process.is_alive():
                    worker.__init__(campaign.seed)  # type: ignore[misc]
                if end is not None and time.monotonic() > end:
                    found.stopped |= bool(tasks)
                    tasks.clear()
                if tasks:
                    worker.give(tasks.pop())
    finally:
        for worker in workers:
            worker.kill()
    return found


def _tasks(name: str, calls: int) -> list[Task]:
    own = max(1, round(calls * REGISTRY[name].share))
    return [Task(name, start, min(start + _CHUNK, own)) for start in range(0, own, _CHUNK)]


def _listen(worker: _Worker, found: Found, campaign: Campaign) -> None:
    try:
        what, *rest = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        kind = signal.Signals(-code).name if code < 0 else f"exit {code}"
        _bury(worker, found, campaign, kind, f"the process ended: {kind}")
        return
    task = worker.task
    assert task is not None
    if what == "defect":
        found.add_defect(task.name, *rest)
        return
    _count(worker, found, task.stop - task.start)
    worker.task = None


def _count(worker: _Worker, found: Found, calls: int) -> None:
    assert worker.task is not None
    own = found.counts[worker.task.name]
    own["calls"] += calls
    own["returned"] += worker.state.returned
    own["refused"] += worker.state.refused
    own["defects"] += calls - worker.state.returned - worker.state.refused
    own["seconds"] += time.monotonic() - worker.started  # type: ignore[assignment]


def _hangs(worker: _Worker, limit: float) -> bool:
    began = worker.state.began
    # The first call of a process may have kernels to compile.
    return began > 0 and time.monotonic() - began > limit * (4 if worker.state.first else 1)


def _bury(worker: _Worker, found: Found, campaign: Campaign, kind: str, text: str) -> None:
    """Count the call that a process died of or hangs in, and go on behind it with another process."""
    task, index = worker.task, worker.state.index
    assert task is not None
    found.add_defect(task.name, kind, "the process", text, f"{task.name}:{campaign.seed}:{index}")
    _count(worker, found, index + 1 - task.start)
    worker.kill()
    worker.__init__(campaign.seed)  # type: ignore[misc]
    if index + 1 < task.stop:
        worker.give(Task(task.name, index + 1, task.stop))
