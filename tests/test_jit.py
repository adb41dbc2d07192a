"""How kernels run: compiled late, cached where possible, side by side in threads that no fork inherits."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from lovasz_embed._ops import jit as jit_module
from lovasz_embed._ops.jit import jit
from lovasz_embed._ops.threads import map_threads


@jit
def _square(value: float) -> float:
    return value * value


@jit
def _sum_of_squares(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += _square(value)
    return total


def test_importing_the_package_leaves_numba_alone() -> None:
    program = "import sys, lovasz_embed.clustering; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_kernel_may_call_another_one() -> None:
    assert _sum_of_squares(np.array([1.0, 2.0, 3.0])) == 14.0


def test_a_kernel_works_where_no_cache_can_be_written() -> None:
    names: dict[str, Any] = {}
    exec("def double(value):\n    return value + value\n", names)  # no file: numba finds no place for a cache
    assert jit(names["double"])(21) == 42


def test_a_kernel_works_where_writing_the_cache_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    def njit(function: Any, *, cache: bool) -> Any:
        return full_disk if cache else function

    monkeypatch.setattr(jit_module, "_njit", njit)
    assert jit(lambda value: value + 1)(41) == 42


def test_threads_keep_the_order_and_are_as_many_as_those_of_torch() -> None:
    before = torch.get_num_threads()
    meeting = threading.Barrier(3, timeout=30)  # breaks unless three tasks run at the same time
    names = set()

    def task(item: int) -> int:
        names.add(threading.current_thread().name)
        meeting.wait()
        return -item

    torch.set_num_threads(3)
    try:
        assert map_threads(task, range(6)) == [0, -1, -2, -3, -4, -5]
    finally:
        torch.set_num_threads(before)
    assert len(names) == 3


def test_one_thread_is_the_calling_one() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert set(map_threads(lambda _: threading.current_thread(), range(3))) == {threading.current_thread()}
    finally:
        torch.set_num_threads(before)


def test_the_error_of_the_first_failing_item_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        map_threads(lambda item: 1 // item, [2, 1, 0, 1])


# --- Files of compiled code


def _total(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


FLOATS, INTEGERS = np.arange(10, dtype=np.float32), np.arange(10, dtype=np.int32)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Path]]:
    """An empty cache with the code of `_total` for two signatures; lists its files of one ending."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    total = jit(_total)
    assert total(FLOATS) == total(INTEGERS) == 45
    return lambda ending: sorted(tmp_path.rglob(f"*.{ending}"))


def hits(kernel: Any) -> int:
    return sum(kernel._compiled.stats.cache_hits.values())


def test_compiled_code_is_read_again(cached: Callable[[str], list[Path]]) -> None:
    assert len(cached("nbc")) == 2
    total = jit(_total)
    assert total(FLOATS) == total(INTEGERS) == 45
    assert hits(total) == 2


def test_code_of_another_signature_is_not_believed(cached: Callable[[str], list[Path]]) -> None:
    """What two processes that compile at the same moment can leave; numba alone then reads floats as integers."""
    one, other = cached("nbc")
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    total = jit(_total)
    assert total(FLOATS) == total(INTEGERS) == 45
    assert hits(total) == 0
    again = jit(_total)
    assert again(FLOATS) == again(INTEGERS) == 45
    assert hits(again) == 2, "what was compiled anew replaced it"


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("size", [0, 40])
def test_a_file_that_was_cut_off_is_written_anew(cached: Callable[[str], list[Path]], ending: str, size: int) -> None:
    for path in cached(ending):
        path.write_bytes(path.read_bytes()[:size])
    total = jit(_total)
    assert total(FLOATS) == total(INTEGERS) == 45
    assert hits(total) == 0
    again = jit(_total)
    assert again(FLOATS) == again(INTEGERS) == 45
    assert hits(again) == 2
