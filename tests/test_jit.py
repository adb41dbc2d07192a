"""How kernels run: compiled late, cached where possible, side by side in threads that no fork inherits."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

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
