"""One process that reads damaged files, counts what comes of them, and keeps what must not happen."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import resource
import signal
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from _files_mutate import mutated, pack, unpack
from _files_readers import Parts, Reader

from lovasz_embed.formats import DataError

SECONDS = 5.0  # of the processor, for one input below 20 kB
MEMORY = 1 << 30  # bytes beyond what the process holds when it begins
_OURS = (DataError, ValueError, TypeError, FileNotFoundError)
_NOT_THE_INPUT = ("no space left", "too many open files")


class TooLong(BaseException):
    """An input took longer than `SECONDS`; no reader may catch this."""


@dataclass
class Counts:
    """What came of the inputs of one reader.

    Attributes:
        inputs: Read.
        accepted: Read into something valid.
        refused: Refused by an error of ours.
        outcomes: Different places where something was refused, and 1 for what was accepted.
        slowest: Seconds of the slowest.
        seconds: Of all.
        covered: Branches and features that atheris saw, 0 without it.
        defects: By what they are: how often, and the file with the first input.
    """

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    outcomes: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    covered: int = 0
    defects: dict[str, list[Any]] = field(default_factory=dict)


class Work:
    """Reads inputs of one reader in a folder.

    Args:
        reader: Of the inputs.
        folder: On a file system in memory.
        keep: Folder where the inputs of defects are written.
        report: File of the counts, written twice a second.
    """

    def __init__(self, reader: Reader, folder: Path, keep: Path, report: Path) -> None:
        self.reader, self.folder, self.keep, self.report = reader, folder, keep, report
        self.counts, self._told, self._seen = Counts(), time.monotonic(), set[str]()
        self.pool, self._accepted = list[Parts](reader.seeds), list[Parts]()
        for name, content in reader.fixed.items():
            _write(folder / name, content)

    def one(self, parts: Parts) -> None:
        """Read one input."""
        counts, began = self.counts, time.perf_counter()
        for name, content in zip(self.reader.names, parts, strict=True):
            _write(self.folder / name, content)
        fault, outcome = None, "accepted"
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            self.reader.read(self.folder)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except (Exception, TooLong) as error:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            outcome, fault = _place(error), _fault(error)
        counts.inputs += 1
        counts.accepted += outcome == "accepted"
        counts.refused += outcome != "accepted" and fault is None
        if outcome not in self._seen:
            self._seen.add(outcome)
            counts.outcomes = len(self._seen)
            self.pool.append(parts)
        elif outcome == "accepted" and counts.inputs % 8 == 0:  # what is still valid can be damaged further
            self._accepted = [*self._accepted[-49:], parts]
        if fault is not None:
            self._defect(f"{fault} at {outcome}", parts)
        took = time.perf_counter() - began
        counts.seconds += took
        counts.slowest = max(counts.slowest, took)
        if time.monotonic() > self._told + 0.5:
            self.tell()

    def choose(self, rng: Random) -> Parts:
        """Return an input to damage: half of the time one that is valid."""
        chance = rng.random()
        if chance < 0.4:
            return rng.choice(self.reader.seeds)
        return rng.choice(self._accepted if chance < 0.7 and self._accepted else self.pool)

    def tell(self) -> None:
        """Write the counts so far."""
        self._told = time.monotonic()
        beside = self.report.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self.counts)))
        os.replace(beside, self.report)

    def _defect(self, what: str, parts: Parts) -> None:
        if what not in self.counts.defects:
            self.keep.mkdir(parents=True, exist_ok=True)
            place = self.keep / f"defect-{hashlib.sha256(what.encode()).hexdigest()[:10]}"
            place.write_bytes(pack(parts))
            self.counts.defects[what] = [0, str(place)]
        self.counts.defects[what][0] += 1


def limit() -> None:
    """Let this process run out of memory and time rather than the machine, and say nothing meanwhile."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGVTALRM, _too_long)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", category=RuntimeWarning, module="lovasz_embed")


def run_plain(work: Work, inputs: int, seed: int) -> None:
    """Read damaged seeds, and damaged inputs that were refused where nothing was before."""
    rng = Random(seed)
    for parts in work.pool[:]:
        work.one(parts)
        assert work.counts.accepted, f"a valid file of {work.reader.names} is refused"
    while work.counts.inputs < inputs:
        work.one(mutated(work.choose(rng), work.reader.kinds, rng))
    work.tell()


def run_atheris(work: Work, inputs: int, seed: int, corpus: Path, log: Path) -> None:
    """Let atheris choose what is damaged further, by the branches it reaches; does not return."""
    import atheris

    like, kinds = work.reader.seeds[0], work.reader.kinds
    corpus.mkdir(parents=True, exist_ok=True)
    for number, parts in enumerate(work.reader.seeds):
        (corpus / f"seed-{number}").write_bytes(pack(parts))

    def change(data: bytes, most: int, number: int) -> bytes:
        rng, parts = Random(number), unpack(data, like)
        if rng.random() < 0.2:
            place = rng.randrange(len(parts))
            other = bytes(atheris.Mutate(parts[place], max(1, min(20_000, most))))
            parts = (*parts[:place], other, *parts[place + 1 :])
        else:
            parts = mutated(parts, kinds, rng)
        return pack(parts)[:most]

    def read(data: bytes) -> None:
        work.one(unpack(data, like))
        if work.counts.inputs >= inputs:
            found = re.findall(r"ft: (\d+)", log.read_text(errors="replace"))
            work.counts.covered = int(found[-1]) if found else 0
            work.tell()
            os._exit(0)

    options = [
        f"-artifact_prefix={work.report.parent}/",
        f"-seed={seed % (1 << 31) + 1}",
        "-max_len=60000",
        "-rss_limit_mb=0",
        "-timeout=600",
        "-len_control=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], read, custom_mutator=change)
    atheris.Fuzz()


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _too_long(_: int, __: FrameType | None) -> None:
    raise TooLong


def _fault(error: BaseException) -> str | None:
    """Return what is wrong with an error; None where it is one of ours."""
    text, cause = str(error), error
    while cause is not None:
        if isinstance(cause, MemoryError) or "DefaultCPUAllocator" in str(cause):
            return "out of memory"
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    if isinstance(error, TooLong):
        return f"more than {SECONDS:g} s"
    if type(error) in _OURS and " must " in text and ", got " in text:
        return "error of the machine" if any(word in text.lower() for word in _NOT_THE_INPUT) else None
    return f"{type(error).__name__}: {text[:80]!r}" if isinstance(error, AssertionError) else type(error).__name__


def _place(error: BaseException) -> str:
    """Return the last line of ours that an error passed through, and the kind of its cause."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "lovasz_embed" in name:
            place = f"{name.rpartition('lovasz_embed/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{place} {type(error.__cause__).__name__}" if error.__cause__ is not None else place
