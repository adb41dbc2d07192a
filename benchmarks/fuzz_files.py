"""Damage files of every kind that the package reads, and count what its readers make of them.

A reader may return something valid or raise an error of ours that names what is wrong. Anything else is a defect: a
crash, another exception, more than 5 s of the processor, more than 1 GiB of memory for an input below 20 kB. Inputs are
valid files damaged by what they are made of (`_files_mutate.py`), and what was refused in a new place damaged further.
Where atheris is installed (`pip install "lovasz-embed[fuzz]"`), half of the inputs are those that it chooses, by the
branches of our readers that they reach.

    python benchmarks/fuzz_files.py --inputs 1000000
    python benchmarks/fuzz_files.py --smoke
    python benchmarks/fuzz_files.py --only "picture TIFF" --replay CORPUS/picture-tiff/defect-0123456789
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

INSTRUMENTED = ["lovasz_embed.formats", "lovasz_embed.model.config", "lovasz_embed._coco", "lovasz_embed._rle"]
SILENT = 120.0  # seconds without a word from a process: it hangs where no signal of Python reaches


def main() -> int:
    """Run the command line; the exit code is 1 where there is a defect."""
    options = _options()
    atheris = options.engine == "atheris" or (options.engine == "auto" and find_spec("atheris") is not None)
    with _instrumented() if atheris else contextlib.nullcontext():
        from _files_readers import readers
        from _files_work import Counts
    import torch

    torch.set_num_threads(1)
    os.environ["LOVASZ_EMBED_MAX_MEGAPIXELS"] = "1"  # what may be decoded at all; the default limit has its own tests
    chosen = {name: reader for name, reader in readers().items() if options.only in (None, name)}
    if not chosen:
        sys.exit(f"--only must be one of {', '.join(readers())}, got {options.only}")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        place = Path(folder)
        corpus = options.corpus or place / "corpus"
        if options.replay is not None:
            return _replay(chosen, options.replay, place)
        shares = _shares({name: reader.weight for name, reader in chosen.items()}, options.inputs)
        began = time.perf_counter()
        found: dict[str, Counts] = _run(chosen, shares, options, place, corpus, atheris)
        seconds = time.perf_counter() - began
        defects = {name: counts.defects for name, counts in found.items() if counts.defects}
        if options.corpus is None and defects:
            kept = Path(tempfile.mkdtemp(prefix="fuzz-files-"))
            shutil.copytree(corpus, kept, dirs_exist_ok=True)
            print(f"inputs of the defects are in {kept}", file=sys.stderr)
    _show(found, seconds, options, "atheris" if atheris else "mutations alone")
    return 1 if defects else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="over all readers")
    parser.add_argument("--only", help="one reader by its name in the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--engine", choices=("auto", "atheris", "mutations"), default="auto")
    parser.add_argument("--corpus", type=Path, help="folder that keeps interesting inputs and those of defects")
    parser.add_argument("--replay", type=Path, help="read one kept input, with --only, and show what comes of it")
    parser.add_argument("--smoke", action="store_true", help="8,000 inputs: seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args()
    if options.smoke:
        options.inputs = min(options.inputs, 8000)
    return options


@contextlib.contextmanager
def _instrumented() -> Iterator[None]:
    """Let atheris see the branches of our readers; torch and what it needs come before, without."""
    import atheris
    import torch  # noqa: F401

    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        yield


def _shares(weights: Mapping[str, float], inputs: int) -> dict[str, int]:
    """Divide the inputs among the readers, at least one each."""
    total = sum(weights.values())
    return {name: max(1, round(inputs * weight / total)) for name, weight in weights.items()}


def _run(
    chosen: Mapping[str, Any],
    shares: Mapping[str, int],
    options: argparse.Namespace,
    place: Path,
    corpus: Path,
    atheris: bool,
) -> dict[str, Any]:
    """Read all shares, so many at once; a process that dies or hangs is a defect, and another goes on."""
    from _files_work import Counts

    found = {name: Counts() for name in chosen}
    # With atheris half of the inputs are its own: the other half begins at valid files again and again.
    halves = {False: 0.5, True: 0.5} if atheris else {False: 1.0}
    waiting = [(n, math.ceil(part * s), options.seed, by) for n, s in shares.items() for by, part in halves.items()]
    running: dict[int, tuple[str, int, int, bool, Path, float]] = {}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name, share, seed, by_atheris = waiting.pop(0)
            own = place / f"{_slug(name)}-{seed}-{by_atheris}"
            own.mkdir()
            pid = os.fork()
            if not pid:
                _child(chosen[name], share, seed, own, corpus / _slug(name), by_atheris)
            running[pid] = (name, share, seed, by_atheris, own, time.monotonic())
        time.sleep(0.02)
        for pid, (name, share, seed, by_atheris, own, started) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            report = own / "counts.json"
            heard = report.stat().st_mtime if report.exists() else time.time() - (time.monotonic() - started)
            hangs = not ended and time.time() - heard > SILENT
            if hangs:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            if not (ended or hangs):
                continue
            del running[pid]
            counts = Counts(**json.loads(report.read_text())) if report.exists() else Counts()
            if status:
                how = "hangs" if hangs else f"ends the process ({os.waitstatus_to_exitcode(status)})"
                kept = corpus / _slug(name) / f"died-{seed}"
                shutil.copytree(own / "files", kept, dirs_exist_ok=True)
                shutil.copy(own / "log", kept / "log")
                counts.defects[f"{how}: {_last_line(own / 'log')}"] = [1, str(kept)]
                counts.inputs += 1
                if seed < options.seed + 20 and counts.inputs < share:
                    waiting.append((name, share - counts.inputs, seed + 1, by_atheris))
            _add(found[name], counts)
            shutil.rmtree(own)
            print(f"{name}: {found[name].inputs:,} inputs", file=sys.stderr)
    return found


def _child(reader: Any, inputs: int, seed: int, own: Path, corpus: Path, atheris: bool) -> None:
    """Read a share in this process, a copy of the one that imported everything; does not return."""
    from _files_work import Work, limit, run_atheris, run_plain

    try:
        log = os.open(own / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work = Work(reader, own / "files", corpus, own / "counts.json")
        limit()
        if atheris:
            run_atheris(work, inputs, seed, own / "corpus" if corpus is None else corpus / "inputs", own / "log")
        else:
            run_plain(work, inputs, seed)
        os._exit(0)
    except BaseException as error:
        os.write(2, f"\n{type(error).__name__}: {error}\n".encode(errors="replace"))
        os._exit(1)


def _replay(chosen: Mapping[str, Any], file: Path, place: Path) -> int:
    """Read one kept input and let its error be seen."""
    from _files_mutate import unpack
    from _files_work import Work

    if len(chosen) != 1:
        sys.exit("--replay must come with --only, got none")
    [reader] = chosen.values()
    work = Work(reader, place / "files", place / "kept", place / "counts.json")
    parts = unpack(file.read_bytes(), reader.seeds[0])
    for name, part in zip(reader.names, parts, strict=True):
        print(f"{name}: {part[:400]!r}{' ...' if len(part) > 400 else ''}")
    work.one(parts)
    print(work.counts)
    reader.read(place / "files")
    return 0


def _add(total: Any, counts: Any) -> None:
    for name in ("inputs", "accepted", "refused", "seconds"):
        setattr(total, name, getattr(total, name) + getattr(counts, name))
    for name in ("outcomes", "slowest", "covered"):
        setattr(total, name, max(getattr(total, name), getattr(counts, name)))
    for what, (times, place) in counts.defects.items():
        known = total.defects.setdefault(what, [0, place])
        known[0] += times


def _show(found: Mapping[str, Any], seconds: float, options: argparse.Namespace, engine: str) -> None:
    inputs, defects = sum(c.inputs for c in found.values()), sum(len(c.defects) for c in found.values())
    if options.json:
        from dataclasses import asdict

        rows = {name: asdict(counts) for name, counts in found.items()}
        head = {"engine": engine, "seed": options.seed, "inputs": inputs, "seconds": round(seconds, 1)}
        print(json.dumps({**head, "defects": defects, "readers": rows}))
        return
    columns = ("inputs", "accepted", "refused", "outcomes", "features", "a second", "slowest", "defects")
    print(f"{'reader':>34}" + "".join(f"{column:>10}" for column in columns))
    for name, c in found.items():
        rate = c.inputs / max(c.seconds, 1e-9)
        numbers = (c.inputs, c.accepted, c.refused, c.outcomes, c.covered or "-", round(rate))
        row = "".join(f"{n:>10,}" if isinstance(n, int) else f"{n:>10}" for n in numbers)
        print(f"{name:>34}{row}{c.slowest:>8.2f} s{len(c.defects):>10}")
    print(f"{inputs:,} inputs in {seconds:,.0f} s, engine {engine}, seed {options.seed}: {defects} defects")
    for name, counts in found.items():
        for what, (times, place) in counts.defects.items():
            print(f"  {name}: {what}, {times} times, first in {place}")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    mark = next((number for number, line in enumerate(lines) if "Uncaught Python exception" in line), len(lines) - 2)
    return " ".join(lines[mark + 1 : mark + 2])[:120]


if __name__ == "__main__":
    sys.exit(main())
