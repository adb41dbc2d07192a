"""What a prediction has done so far, kept beside its place until all of it is there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lovasz_embed import _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed.formats import DataError
from lovasz_embed.model import CONFIG, WEIGHTS
from lovasz_embed.panoptic import PanopticResult, Segment

Compute = Callable[[list[int]], Iterator[PanopticResult]]

_COMMAND = "command.json"
_COLUMNS = tuple(field.name for field in fields(Segment))


class Kept:
    """Results of single pictures in a hidden folder, one file each, whole or not at all.

    Args:
        target: The predictions that are being made; the folder lies beside them.
        command: What decides the results; only those of an equal one are taken up.
        resume: Whether to take up what is there; else it goes.

    Raises:
        DataError: If what is there comes from another command, or nothing can be written there.
    """

    def __init__(self, target: Path, command: dict[str, Any], resume: bool) -> None:
        self.folder = target.parent / f".{target.stem}-partial"
        text = json.dumps(command, indent=2)
        place = self.folder / _COMMAND
        if resume and place.is_file() and place.read_text(encoding="utf-8") != text:
            remedy = "Give the same RUN, --tile and --overlap, or leave --resume out to begin anew."
            rule = "be what the same command left"
            raise DataError(_check.message(str(self.folder), rule, "results of another one", remedy))
        if not resume or not place.is_file():
            shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(place, text.encode())
        except OSError as error:
            reason = error.strerror or str(error)
            remedy = "Choose another --out."
            raise DataError(_check.message(str(target), "be writable", reason, remedy)) from error

    def __len__(self) -> int:
        return sum(1 for file in self.folder.iterdir() if file.suffix == ".npz")

    def has(self, name: str) -> bool:
        """Return whether a picture of this name is done."""
        return self._file(name).is_file()

    def keep(self, name: str, result: PanopticResult) -> None:
        """Keep the result of one picture."""
        columns = zip(*map(astuple, result.segments[0]), strict=True) if result.segments[0] else [()] * len(_COLUMNS)
        content = BytesIO()
        table: dict[str, Any] = dict(zip(_COLUMNS, map(np.array, columns), strict=True))
        np.savez_compressed(content, ids=result.segmentation[0].numpy(), **table)
        write_atomically(self._file(name), content.getvalue())

    def result(self, name: str) -> PanopticResult:
        """Return what was kept of one picture."""
        with np.load(self._file(name), allow_pickle=False) as content:
            rows = zip(*(content[column].tolist() for column in _COLUMNS), strict=True)
            return PanopticResult(torch.from_numpy(content["ids"])[None], (tuple(Segment(*row) for row in rows),))

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz"


def command_of(run: Path, **options: object) -> dict[str, Any]:
    """Return what decides the results of a prediction: the model's files and the options."""
    content = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        content.update((run / name).read_bytes())
    return {"model": content.hexdigest(), **options}


def going_on(names: Sequence[str], kept: Kept, compute: Compute) -> Iterator[PanopticResult]:
    """Yield the result of every picture: what was kept, and what is computed, and kept, now."""
    done = [kept.has(name) for name in names]
    computed = compute([index for index, known in enumerate(done) if not known])
    for name, known in zip(names, done, strict=True):
        if known:
            yield kept.result(name)
            continue
        result = next(computed)
        kept.keep(name, result)
        yield result
