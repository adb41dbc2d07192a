"""Scratch memory that outlives a call: fresh pages cost more than what is done with them.

A training step asks for the same few dozen megabytes every time. Given back to the system they would come
back page by page, zeroed, and that takes longer than ranking what is written to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_KEPT = 1 << 25  # bytes; with more, the work outweighs the pages, and it would be missed elsewhere

_kept: list[NDArray[Any]] = []


@contextmanager
def scratch(*parts: tuple[int, Any]) -> Iterator[list[NDArray[Any]]]:
    """Lend uninitialised arrays, one for each (length, dtype); they must not be used after the `with` block.

    The memory of the last caller is used again where it is large enough. Callers at the same time, threads or
    nested calls, get memory of their own.

    >>> with scratch((3, np.float32), (2, np.int64)) as (floats, integers):
    ...     floats.size, integers.dtype
    (3, dtype('int64'))
    """
    sizes = [-(-length * np.dtype(dtype).itemsize // 64) * 64 for length, dtype in parts]  # cache lines
    buffer = _borrow(sum(sizes))
    ends = np.cumsum(sizes).tolist()
    yield [
        buffer[end - size : end].view(dtype)[:length]
        for (length, dtype), size, end in zip(parts, sizes, ends, strict=True)
    ]
    if not _kept and buffer.nbytes <= LARGEST_KEPT:
        _kept.append(buffer)


def clear() -> None:
    """Give back what is kept."""
    _kept.clear()


def _borrow(size: int) -> NDArray[Any]:
    try:
        buffer = _kept.pop()  # atomic: no two threads get the same
    except IndexError:
        return np.empty(size, np.uint8)
    return buffer if buffer.nbytes >= size else np.empty(size, np.uint8)
