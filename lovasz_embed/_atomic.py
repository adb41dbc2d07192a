"""Files appear whole or not at all."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend the name of a temporary file beside `path`, and rename it when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, *, durable: bool = False, keep_as: Path | None = None) -> None:
    """Write a temporary file beside `path`, then rename it: readers see the old content or the new.

    Args:
        path: Of the file.
        content: Of the file.
        durable: Whether to wait until the bytes are on the disk, so that not even a power failure leaves a file of
            the right name and other content.
        keep_as: Where the old content goes; None forgets it.
    """
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            os.replace(path, keep_as)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left half-written beside `path`; nobody may be writing it now."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*-????????"):
        temporary.unlink(missing_ok=True)
