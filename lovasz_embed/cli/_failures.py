"""Pictures that fail by themselves: told at the end, when all others are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from lovasz_embed.cli._console import fail, say
from lovasz_embed.formats import DataError

_SHOWN = 20


class Failure(NamedTuple):
    """A picture and what was wrong with it."""

    picture: str
    reason: str


class Failures:
    """What was wrong with which picture.

    Attributes:
        found: In the order of the work.
    """

    def __init__(self) -> None:
        self.found: list[Failure] = []

    def __len__(self) -> int:
        return len(self.found)

    @contextmanager
    def noting(self, picture: str) -> Iterator[None]:
        """Note what is wrong with a picture, and go on after the block; any other error is not the picture's."""
        try:
            yield
        except DataError as error:
            self.found.append(Failure(picture, " ".join(str(error).split())))
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            reason = f"out of memory ({' '.join(str(error).split())})"
            self.found.append(Failure(picture, reason))

    def must_leave_some(self, done: int) -> None:
        """Raise `DataError`, with what was wrong first, where no picture was done."""
        if not done and self.found:
            more = len(self) - 1
            after = f" {more} more {'pictures' if more > 1 else 'picture'} failed too." if more else ""
            raise DataError(self.found[0].reason + after)

    def tell(self, of: int, remedy: str) -> None:
        """Print which of so many pictures failed."""
        fail(f"{len(self)} of {of} pictures failed, the others are done; {remedy}")
        for failure in self.found[:_SHOWN]:
            say(f"  {failure.picture}: {failure.reason}")
        if len(self) > _SHOWN:
            say(f"  and {len(self) - _SHOWN} more, which --json lists")

    def record(self) -> list[dict[str, str]]:
        """Return what JSON says of them."""
        return [failure._asdict() for failure in self.found]
