"""What a process holds: memory, files, threads and children, read from Linux's /proc and from the allocator."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Held(NamedTuple):
    """What a process holds at one moment.

    Attributes:
        rss_mb: Resident memory of the process itself, MB of 1e6 bytes.
        children_mb: The same of all processes below it, without the pages that they only share with others.
        files: Open file descriptors of the process itself.
        threads: Threads of the process itself.
        children: Processes below it.
    """

    rss_mb: float
    children_mb: float
    files: int
    threads: int
    children: int


def held(pid: int | None = None) -> Held:
    """Return what a process (this one) holds now."""
    own = os.getpid() if pid is None else pid
    below = list(descendants(own))
    status = _fields(Path(f"/proc/{own}/status"))
    return Held(
        rss_mb=_megabytes(status, "VmRSS"),
        children_mb=sum(_private_mb(child) for child in below),
        files=len(os.listdir(f"/proc/{own}/fd")) - (own == os.getpid()),  # listing opens one more
        threads=int(status["Threads"]),
        children=len(below),
    )


def live_mb() -> float:
    """Return what this process has allocated and not freed, MB; NaN without a glibc that tells (2.33 or newer).

    The resident memory also holds what was freed and lies between blocks in use: it follows the most that was ever
    needed at once. A leak shows here.
    """
    try:
        tell = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return math.nan
    tell.restype = _Heap
    heap = tell()
    return float(heap.uordblks + heap.hblkhd) / 1e6


class _Heap(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h: `uordblks` bytes in use on heaps, `hblkhd` in maps of their own."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks")
    ] + [("keepcost", ctypes.c_size_t)]


def peak_mb() -> float:
    """Return the most memory this process has held since it began, or since `restart_peak`, MB."""
    return _megabytes(_fields(Path("/proc/self/status")), "VmHWM")


def restart_peak() -> None:
    """Let the high-water mark start anew."""
    Path("/proc/self/clear_refs").write_text("5")


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes below a process: its children, theirs, and so on."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        lists = [Path(f"/proc/{pid}/task/{thread}/children").read_text() for thread in threads]
    except OSError:  # it has just ended
        return
    for child in " ".join(lists).split():
        yield int(child)
        yield from descendants(int(child))


def _private_mb(pid: int) -> float:
    try:
        fields = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    except OSError:
        return 0.0
    return sum(_megabytes(fields, name) for name in ("Private_Clean", "Private_Dirty"))


def _fields(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _megabytes(fields: dict[str, str], name: str) -> float:
    return int(fields.get(name, "0").split()[0]) * 1024 / 1e6
