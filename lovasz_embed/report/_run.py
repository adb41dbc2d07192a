"""What a run on disk knows of itself: log, scores, options, model, data set and the commands that made it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lovasz_embed import _check
from lovasz_embed._json import parse_json
from lovasz_embed.formats import Category, DataError
from lovasz_embed.model import CONFIG, WEIGHTS
from lovasz_embed.training.fit import LOG, OPTIONS, SCORES

DATASET = "dataset.json"
HISTORY = "history.jsonl"
_MOST_STEPS = 10**15


@dataclass(frozen=True)
class RunRecord:
    """What a run on disk knows of itself; empty where it knows nothing.

    Attributes:
        name: Name of its folder.
        log: One record per logged step: step, loss, category, instance, ncm, learning_rate, seconds.
        scores: One record per scoring during training: step, seconds and scores in [0, 1].
        history: One record per command that trained: command, date, seconds, device, data, versions.
        options: Options of the training.
        model: Architecture, radii and class names.
        format: Format of the data set, "" if not known.
        categories: Categories of the data set, in the order of the model's classes.
        class_pixels: Pixels of each class under the class means.
        parameters: Weights of the network.
    """

    name: str
    log: tuple[Mapping[str, float], ...] = ()
    scores: tuple[Mapping[str, float], ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None
    format: str = ""
    categories: tuple[Category, ...] = ()
    class_pixels: tuple[int, ...] = ()
    parameters: int = 0


def read_run(folder: Path) -> RunRecord:
    """Read what a run knows of itself; one that still trains, or was interrupted, knows less.

    Args:
        folder: What `fit` and `lovasz-embed train` write.

    Raises:
        DataError: If there is neither a log nor a model, or a file is not what was written there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "log.jsonl").write_text('{"step": 20, "loss": 0.5}' + chr(10))
    ...     read_run(Path(folder)).log
    ({'step': 20, 'loss': 0.5},)
    """
    if not (folder / LOG).is_file() and not (folder / CONFIG).is_file():
        remedy = "Give the --out of a `lovasz-embed train`."
        raise DataError(_check.message("RUN", f"be a folder with {LOG} or {CONFIG}", str(folder), remedy))
    dataset = _object(folder / DATASET) or {}
    try:
        categories = tuple(Category(**category) for category in dataset.get("categories", ()))
    except TypeError as error:
        raise DataError(_check.message(str(folder / DATASET), "be what `train` wrote", repr(error))) from error
    for category in categories:
        if type(category.name) is not str or type(category.is_thing) is not bool:
            raise DataError(_check.message(str(folder / DATASET), "be what `train` wrote", category))
    pixels, parameters = _weights(folder / WEIGHTS)
    return RunRecord(
        name=folder.resolve().name,
        log=_numbers(folder / LOG),
        scores=_numbers(folder / SCORES),
        history=_lines(folder / HISTORY, needs="command"),
        options=_object(folder / OPTIONS),
        model=_model(folder / CONFIG),
        format=str(dataset.get("format", "")),
        categories=categories,
        class_pixels=pixels,
        parameters=parameters,
    )


def _lines(path: Path, *, needs: str) -> tuple[dict[str, Any], ...]:
    """Read one JSON object per line; the last line may be in the middle of being written."""
    if not path.is_file():
        return ()
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    records = tuple(_parsed(path, line) for line in lines)
    if any(needs not in record for record in records):
        raise DataError(_check.message(str(path), f"hold {needs} in every line", "a line without"))
    return records


def _numbers(path: Path) -> tuple[dict[str, Any], ...]:
    """Read a line per step, each of numbers or null."""
    records = _lines(path, needs="step")
    for record in records:
        step = record["step"]
        if type(step) is not int or not 0 <= step < _MOST_STEPS:
            raise DataError(_check.message(str(path), f"hold steps from 0 to {_MOST_STEPS}", repr(step)))
        for name, value in record.items():
            if isinstance(value, bool) or not (value is None or isinstance(value, (int, float))):
                raise DataError(_check.message(str(path), f"hold numbers as {name}", repr(value)))
            if isinstance(value, int) and abs(value) > _MOST_STEPS:
                rule = f"hold numbers up to {_MOST_STEPS} as {name}"
                raise DataError(_check.message(str(path), rule, "a larger one"))
    return records


def _model(path: Path) -> dict[str, Any] | None:
    """Read the configuration of a network, as far as a report looks at it."""
    values = _object(path)
    for name, kind in (("classes", str), ("things", int)):
        found = (values or {}).get(name, [])
        if not isinstance(found, list) or any(type(value) is not kind for value in found):
            raise DataError(_check.message(str(path), f"hold {name} as a list of {kind.__name__}", repr(found)))
    return values


def _object(path: Path) -> dict[str, Any] | None:
    return _parsed(path, path.read_bytes()) if path.is_file() else None


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        value = parse_json(str(path), content)
    except ValueError as error:
        raise DataError(str(error)) from error
    if not isinstance(value, dict):
        raise DataError(_check.message(str(path), "hold JSON objects", type(value).__name__))
    return value


def _weights(path: Path) -> tuple[tuple[int, ...], int]:
    """Return pixels per class and the number of weights, read off the file without building the network."""
    if not path.is_file():
        return (), 0
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            # Running averages and class means are no weights: nothing is trained in them.
            ours = [n for n in file.keys() if not n.startswith("ncm.") and ".running_" not in n]  # noqa: SIM118
            sizes = [math.prod(file.get_slice(n).get_shape()) for n in ours if not n.endswith("num_batches_tracked")]
            counts = file.get_tensor("ncm.counts").tolist() if "ncm.counts" in file.keys() else []  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(_check.message(str(path), "be what `fit` wrote", error)) from error
    return tuple(counts), sum(sizes)
