"""One JSON file per training: what it was, what it took, what it scored. A contest that stopped goes on from these."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

import lovasz_embed
from lovasz_embed._atomic import write_atomically

Record = dict[str, Any]


class Key(NamedTuple):
    """What tells the trainings of a contest apart.

    Attributes:
        stage: "tune" and "ablate": scored on the validation pictures; "test": on the test pictures.
        method: Name of the contestant, or of an ablation.
        trial: Which of the method's trials.
        seed: Of weights and crops.
    """

    stage: str
    method: str
    trial: int
    seed: int

    def path(self, folder: Path) -> Path:
        """Return its file."""
        name = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in self.method)
        return folder / name / f"{self.stage}-trial{self.trial}-seed{self.seed}.json"


def folder_of(out: Path, track: str, budget: str) -> Path:
    """Return the folder of the records of one table."""
    return out / f"{track}-{budget}"


def write_record(folder: Path, key: Key, record: Record) -> None:
    """Write a record whole or not at all."""
    path = key.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps({**key._asdict(), **record}, indent=1) + "\n").encode())


def read_record(folder: Path, key: Key, settings: Record | None = None) -> Record | None:
    """Return a record, None where there is none.

    Raises:
        SystemExit: If it was made with other settings.
    """
    path = key.path(folder)
    if not path.is_file():
        return None
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    plain = None if settings is None else json.loads(json.dumps(settings))
    if plain is not None and record["settings"] != plain:
        differ = sorted(
            name for name in {*plain, *record["settings"]} if plain.get(name) != record["settings"].get(name)
        )
        raise SystemExit(f"{path} must be of the same contest, got other {', '.join(differ)}. Use another --out.")
    return record


def read_all(folder: Path, stage: str) -> Iterator[Record]:
    """Yield the records of a stage, in the order of their names."""
    for path in sorted(folder.glob(f"*/{stage}-*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def surroundings() -> Record:
    """Say where and when a training ran, as far as a reader needs it."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, CPU; this run used {torch.get_num_threads()}",
        "torch": torch.__version__,
        "lovasz_embed": lovasz_embed.__version__,
    }


def spread(values: list[float | None]) -> tuple[float, float]:
    """Return mean and sample standard deviation; NaN where there is nothing, or nothing to spread.

    >>> spread([1.0, 3.0, None])
    (2.0, 1.4142135623730951)
    """
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else math.nan
    if len(known) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))
