"""One process at a time writes to a place; two would take each other's files away."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError
from lovasz_embed.formats._files import writing

try:
    import fcntl
except ImportError:  # not on Windows, where nothing of this has been tried
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(*places: Path, patience: float = 0.0) -> Iterator[None]:
    """Keep `places` to this process while the block runs.

    The lock is one of the system (flock) on a hidden file beside each place. It ends with the process however that
    ends, so `kill -9` leaves a file that locks nothing, and that the next one removes. Where a file system knows no
    locks there is none.

    Args:
        places: Files or folders, which need not exist; missing parents are made.
        patience: Seconds to wait for another process. The lock of a killed one lives on in its children, and those of a
            DataLoader notice within five seconds that they are alone.

    Raises:
        DataError: Another process holds one of them, or nothing can be written beside it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder, "a.json")):
    ...     with locked(Path(folder, "a.json")):
    ...         pass
    Traceback (most recent call last):
    lovasz_embed.formats._base.DataError: .../a.json must be written by one process at a time, got ...
    """
    with ExitStack() as held:
        for place in places:
            held.enter_context(_locked(place, patience))
        yield


@contextmanager
def _locked(place: Path, patience: float) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    lock = place.with_name(f".{place.name}.lock")
    with writing(place):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquired(lock, place, patience)
    try:
        yield
    finally:
        # Removed before it is let go: whoever opened it meanwhile finds that it is no longer the one beside the place.
        with suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def _acquired(lock: Path, place: Path, patience: float) -> int:
    late = time.monotonic() + patience
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            if time.monotonic() < late:
                time.sleep(0.1)
                continue
            remedy = "Wait for it, or choose another place."
            raise DataError(message(str(place), "be written by one process at a time", "another", remedy)) from error
        except OSError:
            return descriptor  # no locks on this file system
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        os.close(descriptor)  # the one who held it has removed it
