"""Kernels beside each other and in other processes: threads, forks, DataLoader workers, no cache, no compiler."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lovasz_embed
from lovasz_embed._ops import scratch as scratch_module
from lovasz_embed._ops import threads as threads_module
from lovasz_embed._ops.scratch import scratch
from lovasz_embed._ops.threads import share
from lovasz_embed.hierarchy import Level, hierarchical_lovasz_hinge
from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax

ROOT = Path(lovasz_embed.__file__).parents[1]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def losses(seed: int, pixels: int) -> list[Tensor]:
    """Value and gradient of every engine, at a problem of its own for every seed."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 3, pixels, generator=random)
    labels = torch.randint(0, 3, (1, pixels), generator=random)
    calls: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: lovasz_hinge(x[:, 0], labels == 1, impl="numba"),
        lambda x: lovasz_hinge(x[:, 0], labels == 1, impl="numba", method="binned"),
        lambda x: lovasz_softmax(x, labels, impl="numba"),
        lambda x: hierarchical_lovasz_hinge(x, (Level(labels, 1.0),), impl="numba").loss,
        lambda x: hierarchical_lovasz_hinge(x, (Level(labels, 1.0),), kernel="gaussian", impl="numba").loss,
    )
    results = []
    for call in calls:
        leaf = logits.clone().requires_grad_()
        loss = call(leaf)
        loss.backward()
        assert leaf.grad is not None
        results += [loss.detach(), leaf.grad]
    return results


# --- Many callers in one process


def test_eight_callers_at_once_get_what_each_gets_alone(two_threads: None) -> None:
    expected = [losses(seed, 70_000) for seed in range(8)]
    meeting = threading.Barrier(8, timeout=60)

    def call(seed: int) -> list[Tensor]:
        meeting.wait()
        return losses(seed, 70_000)

    with ThreadPoolExecutor(8) as callers:
        for got, want in zip(callers.map(call, range(8)), expected, strict=True):
            assert all(map(torch.equal, got, want))


def test_scratch_is_lent_again_and_never_to_two_at_a_time() -> None:
    scratch_module.clear()
    with scratch((10, np.float32), (3, np.int64)) as (floats, integers):
        assert (floats.size, floats.dtype, integers.size, integers.dtype) == (10, np.float32, 3, np.int64)
        assert not np.shares_memory(floats, integers)
        with scratch((10, np.float32)) as (inner,):
            assert not np.shares_memory(floats, inner)
            assert not np.shares_memory(integers, inner)
    with scratch((10, np.float32)) as (one,), scratch((10, np.float32)) as (other,):
        assert not np.shares_memory(one, other)
        assert np.shares_memory(one, inner) or np.shares_memory(one, floats), "kept memory is used again"


def test_scratch_that_is_too_large_is_not_kept() -> None:
    scratch_module.clear()
    with scratch((scratch_module.LARGEST_KEPT + 64, np.uint8)):
        pass
    assert not scratch_module._kept


def test_scratch_survives_an_error_inside() -> None:
    with pytest.raises(ZeroDivisionError), scratch((4, np.int64)):
        raise ZeroDivisionError
    with scratch((4, np.int64)) as (one,), scratch((4, np.int64)) as (other,):
        assert not np.shares_memory(one, other)


def test_concurrent_borrowers_of_scratch_never_share_memory() -> None:
    scratch_module.clear()
    meeting = threading.Barrier(8, timeout=60)

    def borrow(number: int) -> bool:
        kept = True
        for turn in range(200):
            with scratch((512 + 64 * (turn % 5), np.int64)) as (mine,):
                mine[:] = number
                if turn % 20 == 0:
                    meeting.wait()
                kept &= bool((mine == number).all())
        return kept

    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(borrow, range(8)))


# --- share()


def test_share_keeps_the_order_and_does_everything_once() -> None:
    done: list[int] = []

    def task(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        done.append(item)
        return -item

    assert share(task, range(50), 4) == [-item for item in range(50)]
    assert sorted(done) == list(range(50))


@pytest.mark.parametrize("items", [[], [3]])
def test_share_of_nothing_and_of_one_item(items: list[int]) -> None:
    assert share(abs, items, 4) == items


def test_a_helpers_error_is_raised_the_first_item_first() -> None:
    caller, failed = threading.current_thread(), threading.Event()

    def task(item: int) -> int:
        if threading.current_thread() is caller:
            failed.wait(20)
            return item
        time.sleep(0.01 * (4 - item))  # of several failing items the first is not the fastest
        failed.set()
        raise ValueError(f"item {item}")

    for _ in range(5):
        failed.clear()
        with pytest.raises(ValueError, match=r"item [01]$"):
            share(task, range(4), 4)


def test_share_waits_for_no_helper_that_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every helper is busy for as long as the call lasts: the calling thread does all of it."""
    done = threading.Event()
    with ThreadPoolExecutor(1) as helper:
        monkeypatch.setattr(threads_module, "_helpers", [(9, helper)])
        busy = helper.submit(done.wait, 10)
        names = share(lambda _: threading.current_thread(), range(5), 3)
        done.set()
        assert busy.result(), "the helper was still busy"
    assert set(names) == {threading.current_thread()}


def test_share_may_be_called_by_a_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    helper, results = ThreadPoolExecutor(1), []
    monkeypatch.setattr(threads_module, "_helpers", [(9, helper)])

    def inner(item: int) -> list[int]:
        return share(lambda part: 10 * item + part, range(3), 2)

    caller = threading.Thread(target=lambda: results.extend(share(inner, range(4), 2)), daemon=True)
    caller.start()
    caller.join(20)
    helper.shutdown(wait=False, cancel_futures=True)  # frees who waits for ever
    assert results == [[10 * item + part for part in range(3)] for item in range(4)]


def test_an_interrupted_call_leaves_nobody_at_work_behind_it() -> None:
    """Ctrl-C while the caller waits for a helper: the helper ends its item, and nobody begins another."""
    begun, done, caller = [], [], threading.current_thread()
    for _ in range(3):
        begun.clear(), done.clear()
        helps = threading.Event()

        def task(item: int, helps: threading.Event = helps) -> None:
            begun.append(item)
            if threading.current_thread() is caller:
                helps.wait(20)
                return
            helps.set()
            time.sleep(0.1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.2)
            done.append(item)

        with pytest.raises(KeyboardInterrupt):
            share(task, range(2), 2)
        assert len(done) == 1
        assert len(begun) == 2
    assert share(abs, [-1, -2, -3], 2) == [1, 2, 3]


def test_one_caller_hires_no_more_than_its_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that was woken too late is not idle yet when the next call asks: over the hours that made dozens."""
    monkeypatch.setattr(threads_module, "_helpers", [])
    before = set(threading.enumerate())

    def hired() -> int:
        return len(set(threading.enumerate()) - before)

    for _ in range(500):
        share(abs, [-1, -2], 2)
    assert hired() == 1
    meeting = threading.Barrier(4, timeout=20)
    share(lambda _: meeting.wait(), range(4), 4)
    until = time.monotonic() + 20
    while hired() != 3 and time.monotonic() < until:  # who was replaced leaves when idle
        time.sleep(0.01)
    assert hired() == 3


# --- Other processes. A program each: what a fork copies must not depend on the tests that ran before.

FORK = """
import os, signal, sys
import numpy as np, torch
from lovasz_embed._ops import ranking, threads
from lovasz_embed._ops.ranking import Row, weigh_rows
from lovasz_embed._ops.ranking_kernels import HINGE
from tests.test_processes import losses

torch.set_num_threads(2)
ranking.LONG = ranking._VERY_LONG = threads._WORTH_SHARING = 1000  # let helpers help
values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
labels = (values > 0.3).astype(np.uint8)

def by_two_threads():
    weights = np.zeros_like(values)
    weighed = weigh_rows(values, labels, [Row([(0, 0, values.size)], 1)], 255, HINGE, weights, 2)
    return weighed, weights.tobytes()

losses(0, 70_000)
torch.set_num_threads(1)  # torch's softmax rounds by the number of its threads
expected = losses(0, 70_000), by_two_threads()
assert threads._helpers, "helpers ran before the fork"
child = os.fork()
if child == 0:
    code = 1
    try:
        signal.alarm(60)
        assert not threads._helpers
        # One thread: torch's own OpenMP threads do not survive a fork. DataLoader workers do the same.
        same = all(map(torch.equal, losses(0, 70_000), expected[0])) and by_two_threads() == expected[1]
        assert threads._helpers, "the child hires helpers of its own"
        code = 0 if same else 2
    finally:
        os._exit(code)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
again = losses(0, 70_000), by_two_threads()
assert all(map(torch.equal, again[0], expected[0])) and again[1] == expected[1]
sys.exit(status)
"""

EXIT = """
import multiprocessing, sys
import torch
from tests.test_processes import losses

def compare(expected):
    sys.exit(not all(map(torch.equal, losses(1, 70_000), expected)))

torch.set_num_threads(2)
losses(1, 70_000)
torch.set_num_threads(1)
expected = losses(1, 70_000)
children = [multiprocessing.get_context("fork").Process(target=compare, args=(expected,)) for _ in range(2)]
for child in children:
    child.start()
for child in children:
    child.join(60)
sys.exit([child.exitcode for child in children] != [0, 0])
"""

LOADER = """
import sys, torch
from torch.utils.data import DataLoader, Dataset
from tests.test_processes import losses

class Losses(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, seed):
        return losses(seed, 40_000)[::2]

torch.set_num_threads(2)
losses(0, 70_000)
torch.set_num_threads(1)
expected = [losses(seed, 40_000)[::2] for seed in range(6)]
loader = DataLoader(Losses(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
for _ in range(2):
    for got, want in zip(loader, expected, strict=True):
        assert all(map(torch.equal, got, want))
"""


def run_program(program: str, folder: Path = ROOT, timeout: float = 120, **environment: str) -> str:
    """Run it in a process of its own; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **environment},
        cwd=folder, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("program", [FORK, EXIT, LOADER], ids=["fork", "multiprocessing", "DataLoader"])
def test_a_forked_child_computes_the_same_and_ends(program: str) -> None:
    run_program(program)


SMALL = """
import torch
from tests.test_processes import losses
torch.save(losses(3, 700), {path!r})
"""


def test_without_the_compiler_the_values_are_the_same(tmp_path: Path) -> None:
    """Where kernels run as Python, warnings are errors: integers that overflow would tell."""
    program = "import warnings; warnings.simplefilter('error')\n" + SMALL.format(path=str(tmp_path / "python.pt"))
    run_program(program, NUMBA_DISABLE_JIT="1")
    for got, want in zip(torch.load(tmp_path / "python.pt"), losses(3, 700), strict=True):
        # Float32 operations that the compiler fuses round once instead of twice.
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6 * float(want.abs().max()))


def copy_of_the_package(folder: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lovasz_embed", folder / "lovasz_embed", ignore=ignore)
    return folder


SEE = """
import torch, lovasz_embed
from lovasz_embed.lovasz import lovasz_hinge
assert lovasz_embed.__file__.startswith({folder!r}), lovasz_embed.__file__
print(lovasz_hinge(torch.tensor([[0.5, -2.0, 3.0, 0.25]]), torch.tensor([[1, 1, 0, 0]]), impl="numba").item())
"""
# Errors 4, 3, 1.25, 0.5 of background, foreground, background, foreground: 4/3 + 1 + 1.25/12 + 0.5/4.
SEEN = 4 / 3 + 1 + 1.25 / 12 + 0.5 / 4


# Each compiles for seconds; where the package's own folder takes the cache is much like where a new one does.
@pytest.mark.slow
@pytest.mark.parametrize("where", ["below a file", "missing", "nowhere at all"])
def test_kernels_work_wherever_the_cache_may_not_be(tmp_path: Path, where: str) -> None:
    """Root may write anywhere: only a path below a regular file is sure to be refused."""
    folder = copy_of_the_package(tmp_path)
    (tmp_path / "file").write_text("")
    refused = str(tmp_path / "file" / "cache")
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "new" / "cache") if where == "missing" else refused}
    if where == "nowhere at all":
        environment |= {"HOME": refused, "XDG_CACHE_HOME": refused, "PYTHONDONTWRITEBYTECODE": "1"}
        (folder / "lovasz_embed" / "_ops" / "__pycache__").write_text("")
    seen = run_program(SEE.format(folder=str(folder)), folder, **environment)
    assert float(seen) == pytest.approx(SEEN, rel=1e-6)
    cached = list(folder.rglob("*.nbc"))
    assert bool(cached) == (where != "nowhere at all")
    if where == "missing":
        assert all(path.is_relative_to(tmp_path / "new") for path in cached)


def test_importing_the_package_imports_no_numba() -> None:
    names = "lovasz_embed, lovasz_embed.lovasz, lovasz_embed.hierarchy, lovasz_embed.clustering"
    run_program(f"import sys, {names}\nassert 'numba' not in sys.modules")
