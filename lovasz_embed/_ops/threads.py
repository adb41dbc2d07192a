"""Serial kernels side by side: the calling thread and helpers that stay, as many as torch's threads."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH_SHARING = 1 << 15  # entries; with fewer, waking a helper takes longer than the work

_helpers: list[tuple[int, ThreadPoolExecutor]] = []
"""How many may help, and who; empty until somebody is needed."""


def crew_size(work: int | None = None) -> int:
    """Return how many threads should share a work of so many entries: all of torch's, or one."""
    return torch.get_num_threads() if work is None or work >= _WORTH_SHARING else 1


def share(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Return `[function(item) for item in items]`, run by at most so many threads.

    The calling thread is one of them: it waits for no helper that has not begun, so that a busy machine, or
    many callers at once, cost speed at most. Results come in the order of the items, and what is computed does
    not depend on the number of threads as long as every call writes only its own output. The error of the
    first failing item is raised.

    >>> share(abs, [-1, 2, -3], threads=2)
    [1, 2, 3]
    """
    if threads <= 1 or len(items) < 2:
        return [function(item) for item in items]
    results: dict[int, Result] = {}
    errors: dict[int, BaseException] = {}
    numbers = itertools.count()  # drawing a number is atomic: no item is done twice

    def work() -> None:
        while not errors and (number := next(numbers)) < len(items):
            try:
                results[number] = function(items[number])
            except BaseException as error:
                errors[number] = error

    needed = min(threads, len(items)) - 1
    pool = _pool(needed)
    helping: list[Future[None]] = []
    try:
        for _ in range(needed):
            helping.append(pool.submit(work))
        work()
        _wait(helping)
    except BaseException as error:  # Ctrl-C; what the function raises is in `errors`
        errors[len(items)] = error  # nobody begins another item
        _wait(helping)  # and nobody writes to the caller's arrays after this
        raise
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(items))]


def _wait(helping: Sequence[Future[None]]) -> None:
    for helper in helping:
        if not helper.cancel():
            helper.result()


def map_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return `[function(item) for item in items]`, run by at most `torch.get_num_threads()` threads."""
    return share(function, items, crew_size())


def _pool(needed: int) -> ThreadPoolExecutor:
    """Return the helpers, at least so many; fewer are replaced, and leave when their last call is done."""
    # Kept: a new thread must be scheduled before its starter may go on, which takes milliseconds while torch's
    # own threads still spin after their last operation. And no more than one call asks for, however many call at once:
    # an executor starts another thread whenever none is idle, which a helper that was woken and not needed is not yet,
    # so that a larger one fills up with threads over the hours, each with an arena of memory of its own.
    if not _helpers or _helpers[0][0] < needed:
        _helpers[:] = [(needed, ThreadPoolExecutor(needed, thread_name_prefix="lovasz-embed"))]
    return _helpers[0][1]


# A fork copies the executor and none of its threads: the child hires its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.clear)
