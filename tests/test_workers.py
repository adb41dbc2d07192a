"""Compiled kernels as servers and data loaders use them: workers of every kind, killed ones, Ctrl-C, a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import Tensor
from torch.utils.data import Dataset

from tests.test_processes import ROOT, losses, run_program

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Losses(Dataset[list[Tensor]]):
    """A data set whose items are computed by kernels, in whichever process asks for them."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, seed: int) -> list[Tensor]:
        return losses(seed, 40_000)[::2]


LOADER = """
import torch
from torch.utils.data import DataLoader
from tests.test_processes import losses
from tests.test_workers import Losses

torch.set_num_threads(2)
losses(0, 70_000)  # helpers have helped
torch.set_num_threads(1)  # as torch does in a worker; its softmax rounds by the number of its threads
expected = [losses(seed, 40_000)[::2] for seed in range(2)]
for context in ("forkserver", "spawn"):
    loader = DataLoader(Losses(), batch_size=None, num_workers=1, multiprocessing_context=context, timeout=120)
    for got, want in zip(loader, expected, strict=True):
        assert all(map(torch.equal, got, want)), context
"""


@pytest.mark.slow
def test_workers_that_start_afresh_compute_what_the_parent_does() -> None:
    run_program(LOADER, timeout=300)


SERVER = """
import multiprocessing, os, signal, threading
from concurrent.futures import ThreadPoolExecutor
import torch
from tests.test_processes import losses

torch.set_num_threads(2)
losses(0, 70_000)
torch.set_num_threads(1)
expected = [losses(seed, 40_000) for seed in range(3)]
fork = multiprocessing.get_context("fork")

def serve(pipe):
    torch.set_num_threads(1)
    with ThreadPoolExecutor(4) as threads:
        while (asked := pipe.recv()) is not None:
            answers = threads.map(lambda seed: (seed, losses(seed, 40_000)), asked)
            pipe.send([all(map(torch.equal, answer, expected[seed])) for seed, answer in answers])

def hire():
    ours, theirs = fork.Pipe()
    worker = fork.Process(target=serve, args=(theirs,))
    worker.start()
    theirs.close()
    return worker, ours

def ask(workers):
    for _, pipe in workers:
        pipe.send([0, 1, 2, 0, 1, 2])
    for number, (_, pipe) in enumerate(workers):
        assert pipe.poll(60), f"worker {number} does not answer"
        assert pipe.recv() == [True] * 6, f"worker {number} answers otherwise"

workers = [hire() for _ in range(4)]
ask(workers)
workers[1][1].send([0, 1, 2] * 4)  # and in the middle of this
os.kill(workers[1][0].pid, signal.SIGKILL)
workers[1][0].join(20)
assert workers[1][0].exitcode == -signal.SIGKILL
workers[1] = hire()
ask(workers)
for worker, pipe in workers:
    pipe.send(None)
    worker.join(20)
assert [worker.exitcode for worker, _ in workers] == [0] * 4
assert all(map(torch.equal, losses(1, 40_000), expected[1])), "the master computes as before"
"""


@needs_fork
@pytest.mark.slow
def test_a_server_that_forks_its_workers_may_lose_one_and_hire_another() -> None:
    run_program(SERVER, timeout=180)


INTERRUPTED = """
import random, signal, sys, time, warnings
sys.path.insert(0, {benchmarks!r})
import torch
from _catalogue import CALLS, digest, problem

torch.set_num_threads(2)
signal.signal(signal.SIGALRM, signal.default_int_handler)  # a Ctrl-C with a clock
street, rng, never = problem(0, {size}), random.Random(0), []
for name, call in CALLS.items():
    expected = digest(call(street))
    began = time.perf_counter()
    digest(call(street))
    took = time.perf_counter() - began
    hits = 0
    for _ in range({times}):
        try:
            signal.setitimer(signal.ITIMER_REAL, max(rng.random() * took, 1e-5))
            call(street)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            hits += 1
        assert digest(call(street)) == expected, name
    if not hits:
        never.append(name)
print(len(CALLS), *never, sep=";")
"""


@needs_fork
@pytest.mark.parametrize(
    ("size", "times"),
    [
        pytest.param((130, 130), 1, marks=pytest.mark.slow),
        pytest.param((190, 180), 100, marks=pytest.mark.reliability),
    ],
)
def test_ctrl_c_in_the_middle_of_a_call_leaves_the_library_as_it_was(size: tuple[int, int], times: int) -> None:
    program = INTERRUPTED.format(benchmarks=str(ROOT / "benchmarks"), size=size, times=times)
    count, *never = run_program(program, timeout=3000).strip().split(";")
    # A call that ends before its clock rings is not interrupted; most are.
    assert len(never) <= int(count) // 2, never


TINY = """
from lovasz_embed._ops.jit import jit

@jit
def square(value):
    return value * value

@jit
def sum_of_squares(values):
    total = 0.0
    for value in values:
        total += square(value)
    return total
"""
SEEN_BY = "; print([sum_of_squares(np.arange(10, dtype=kind)) for kind in {kinds}])"


def tiny(folder: Path, before: str = "", kinds: str = "('f4', 'i4')", **environment: str) -> list[float]:
    """Compute 0 + 1 + 4 ... + 81 for each type of array by kernels that compile fast, in a process of its own."""
    if not (folder / "tiny.py").exists():
        (folder / "tiny.py").write_text(TINY)
    program = "import numba, numpy as np\n" + before + "\nfrom tiny import sum_of_squares" + SEEN_BY.format(kinds=kinds)
    return [float(value) for value in run_program(program, folder, timeout=300, **environment).strip("[]\n").split(",")]


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))  # as a disk that is full: no file grows beyond it
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits files as Linux does")
@pytest.mark.parametrize("limit", [0, 1000], ids=["no byte", "some bytes"])
def test_kernels_work_where_the_disk_is_full(tmp_path: Path, limit: int) -> None:
    """Also kernels that call others, whose code is written in the middle of compiling the outer one."""
    cache = tmp_path / "cache"
    cache.mkdir()
    assert tiny(tmp_path, FULL.format(limit=limit), NUMBA_CACHE_DIR=str(cache)) == [285.0, 285.0]
    assert not [*cache.rglob("*.nbc"), *cache.rglob("*.tmp.*")]


UNPRIVILEGED = """
import os
os.setuid(65534)
try:
    open({cache!r} + "/probe", "w")
    raise SystemExit("the cache can be written")
except OSError:
    pass
"""


def open_to_all(folder: Path) -> bool:
    """Return whether whoever is not its owner reaches a folder."""
    return all(place.stat().st_mode & 0o001 for place in (folder, *folder.parents))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="gives up the rights of root")
@pytest.mark.skipif(not (open_to_all(Path(sys.prefix)) and open_to_all(ROOT)), reason="others see no libraries here")
@pytest.mark.parametrize("warm", [False, True], ids=["empty", "warm"])
def test_kernels_work_with_a_cache_that_they_may_only_read(warm: bool) -> None:
    # Not below pytest's own folder, into which nobody but its owner may look.
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / "cache"
        cache.mkdir()
        if warm:
            tiny(folder, NUMBA_CACHE_DIR=str(cache))
        before = sorted(cache.rglob("*"))
        (folder / "tiny.py").write_text(TINY)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        rights = "import lovasz_embed._ops.jit" + UNPRIVILEGED.format(cache=str(cache))
        seen = tiny(folder, rights, NUMBA_CACHE_DIR=str(cache), HOME="/nowhere", PYTHONDONTWRITEBYTECODE="1")
        assert seen == [285.0, 285.0]
        assert sorted(cache.rglob("*")) == before


@pytest.mark.slow
def test_two_processes_may_compile_at_the_same_moment(tmp_path: Path) -> None:
    """From an empty cache, each for another type of array; a third reads what they left."""
    (tmp_path / "tiny.py").write_text(TINY)
    cache = str(tmp_path / "cache")
    wait = f"import time\nwhile time.time() < {time.time() + 5}: pass"  # both have imported all by then
    with ThreadPoolExecutor(2) as two:
        calls = [two.submit(tiny, tmp_path, wait, kinds, NUMBA_CACHE_DIR=cache) for kinds in ("('f4',)", "('i4',)")]
        assert [call.result() for call in calls] == [[285.0], [285.0]]
    assert tiny(tmp_path, NUMBA_CACHE_DIR=cache) == [285.0, 285.0]


# --- The campaigns of docs/reliability.md at their full counts


@pytest.mark.reliability
@pytest.mark.parametrize(
    "campaign",
    ["concurrent_calls.py --calls 10000", "kill_resume.py --kills 50", "accuracy.py --cases 8", "soak.py --minutes 60"],
)
def test_a_campaign_ends_without_a_fault(campaign: str) -> None:
    script, *options = campaign.split()
    call = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
