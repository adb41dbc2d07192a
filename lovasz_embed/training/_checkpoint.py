"""The last two checkpoints of a run, so that there is always a whole one to go on from."""

from __future__ import annotations

import io
import os
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from lovasz_embed import _check
from lovasz_embed._atomic import remove_leftovers, write_atomically

NEWEST = "checkpoint.pt"
BEFORE = "checkpoint-before.pt"


class Checkpoints:
    """What `fit` goes on from, in the folder of a run.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.newest, self.before = folder / NEWEST, folder / BEFORE

    def save(self, content: dict[str, Any]) -> None:
        """Write a checkpoint; the last one steps back and the one before that goes.

        Wherever this is cut off, by a kill or by a failing machine, one whole checkpoint is there: the new one lies on
        the disk under another name before the others are moved.

        Raises:
            OSError: If the system refuses; the checkpoints that were there still are.
        """
        buffer = io.BytesIO()
        torch.save(content, buffer)
        try:
            write_atomically(self.newest, buffer.getvalue(), durable=True, keep_as=self.before)
        except OSError as error:
            reason = error.strerror or str(error)
            left = ", ".join(path.name for path in (self.newest, self.before) if path.is_file())
            remedy = f"Make room and resume from {left}." if left else "Make room, or choose another folder."
            raise OSError(_check.message(str(self.newest), "be writable", reason, remedy)) from error

    def load(self, device: torch.device) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest whole checkpoint with its path, None where there is none at all.

        Every byte is compared with the checksums that the file holds; only tensors and plain values are unpickled. A
        damaged checkpoint is passed over with a warning.

        Args:
            device: Where its tensors shall lie.

        Raises:
            ValueError: If there are checkpoints, and all of them are damaged.
        """
        faults: list[tuple[Path, Exception]] = []
        for path in (self.newest, self.before):
            if not path.is_file():
                continue
            try:
                content = _read(path, device)
            # Reading arbitrary bytes raises what it happens to hit: RuntimeError, EOFError, UnpicklingError ...
            except Exception as error:
                faults.append((path, error))
                continue
            if faults:
                step = content.get("step")
                text = f"{self.newest} is damaged ({faults[0][1]}): going on from step {step} in {path.name}"
                warnings.warn(text, stacklevel=3)
            return path, content
        if faults:
            path, fault = faults[0]
            got, remedy = type(fault).__name__, "Remove it to start again."
            raise ValueError(_check.message(str(path), "be what `fit` wrote", got, remedy)) from fault
        return None

    def remove(self) -> None:
        """Forget all of them, and what a killed process left half-written."""
        for path in (self.before, self.newest):
            path.unlink(missing_ok=True)
            remove_leftovers(path)

    def must_have_room(self, size: int) -> None:
        """Raise `OSError` where the disk has no room for the checkpoints of a run: two, and one that is being written.

        Args:
            size: Of one, bytes.
        """
        folder = self.newest.parent
        there = sum(path.stat().st_size for path in (self.newest, self.before) if path.is_file())
        free = shutil.disk_usage(folder).free + there
        if free < 3 * size:
            rule = f"have room for three checkpoints of {size / 1e6:,.0f} MB"
            raise OSError(_check.message(str(folder), rule, f"{free / 1e6:,.0f} MB", "Choose another folder."))


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint of whose bytes not one has changed."""
    with zipfile.ZipFile(path) as parts:
        # Nothing in it is compressed; a damaged size could ask for any memory.
        if sum(part.file_size for part in parts.infolist()) > path.stat().st_size:
            raise ValueError("its parts claim more bytes than it has")
        broken = parts.testzip()
    if broken is not None:
        raise ValueError(f"{os.path.basename(broken)} has another checksum than when it was written")
    content = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(content, dict) or not {"config", "model_config", "model", "optimiser", "step"} <= content.keys():
        raise ValueError("it holds something else")
    return content
