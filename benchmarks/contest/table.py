"""Tables from the records alone: mean ± sample standard deviation over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from contest.contestants import TITLES
from contest.records import Record, read_all, spread

SCORES = (
    ("PQ", "pq"),
    ("SQ", "sq"),
    ("RQ", "rq"),
    ("PQ things", "pq_things"),
    ("PQ stuff", "pq_stuff"),
    ("AP50", "ap50"),
    ("mIoU", "miou"),
)
STABILITY = (("persistence", "persistence"), ("kept", "kept"), ("tracked", "tracked"), ("flicker", "flicker"))


def table(folder: Path) -> str:
    """Return three tables in Markdown: quality, cost, stability; one row per method, in the order of their PQ."""
    methods: dict[str, list[Record]] = {}
    for record in read_all(folder, "test"):
        methods.setdefault(record["method"], []).append(record)
    if not methods:
        raise SystemExit(f"{folder} must hold results of tests, got none. Run the contest first.")
    order = sorted(methods, key=lambda name: -_mean(methods[name], "pq"))
    parts = [
        _heading(folder, [record for records in methods.values() for record in records]),
        _rows([title for title, _ in SCORES], {_title(m): _quality(methods[m]) for m in order}),
        _rows(
            ["parameters", "ms per step", "of these the loss", "ms network", "ms reading off", "trial"],
            {_title(m): _cost(methods[m]) for m in order},
        ),
        _rows(
            [*(title for title, _ in STABILITY), "drift (median)"],
            {_title(m): _stability(methods[m]) for m in order},
        ),
    ]
    return "\n\n".join(parts) + "\n"


def trials_table(folder: Path) -> str:
    """Return the trials on the validation pictures in Markdown."""
    rows = {}
    for record in read_all(folder, "tune"):
        options = ", ".join(f"{name} {value}" for name, value in record["settings"]["options"].items()) or "default"
        reading = record["settings"]["readings"][record["reading"]]
        best = ", ".join(f"{name} {value}" for name, value in reading.items()) or "default"
        cells = [options, best, _percent([record["scores"]["pq"]]), _percent([record["scores"]["pq_things"]])]
        rows[f"{_title(record['method'])} {record['trial']}"] = cells
    return _rows(["trained with", "best read off with", "PQ", "PQ things"], rows) + "\n"


def ablation_table(folder: Path, names: Sequence[str]) -> str:
    """Return the ablations in Markdown, with the difference to the default of the same seeds."""
    found: dict[str, dict[int, Record]] = {}
    for record in read_all(folder, "ablate"):
        found.setdefault(record["method"], {})[record["seed"]] = record
    if "default" not in found:
        raise SystemExit(f"{folder} must hold the ablation named default, got none. Run ablate.py first.")
    rows = {}
    for name in names:
        if name not in found:
            continue
        records = found[name]
        common = [seed for seed in records if seed in found["default"]]
        ways = [records[seed]["scores"]["pq"] - found["default"][seed]["scores"]["pq"] for seed in common]
        step = spread([1e3 * record["train_seconds"] / record["steps"] for record in records.values()])[0]
        cells = [_percent([r["scores"][score] for r in records.values()]) for _, score in SCORES]
        drift = _number(*spread([r["stability"]["drift"] for r in records.values()]), "{:.3f}")
        rows[name] = [_percent(list(ways)), *cells, drift, f"{step:.0f}", str(len(records))]
    head = ["PQ - default", *(title for title, _ in SCORES), "drift", "ms per step", "seeds"]
    every = [record for records in found.values() for record in records.values()]
    return _heading(folder, every).replace("test pictures", "validation pictures") + "\n\n" + _rows(head, rows) + "\n"


def _heading(folder: Path, records: Sequence[Record]) -> str:
    first = records[0]
    dates = sorted({record["date"] for record in records})
    seeds = sorted({record["seed"] for record in records})
    where = sorted({record["machine"] for record in records})
    return (
        f"{folder.name}: {first['steps']} steps of {first['batch']} crops of {first['crop']} pixels, seeds "
        f"{', '.join(map(str, seeds))}, {first['pictures']} test pictures; {'; '.join(where)}; torch {first['torch']}; "
        f"{' to '.join(dict.fromkeys([dates[0], dates[-1]]))}. Percent, mean ± sample standard deviation over seeds."
    )


def _rows(head: Sequence[str], rows: dict[str, list[str]]) -> str:
    lines = ["| method | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()])


def _title(method: str) -> str:
    return TITLES.get(method, method)


def _mean(records: Sequence[Record], name: str) -> float:
    return spread([record["scores"][name] for record in records])[0]


def _quality(records: Sequence[Record]) -> list[str]:
    return [_percent([record["scores"][name] for record in records]) for _, name in SCORES]


def _cost(records: Sequence[Record]) -> list[str]:
    step = spread([1e3 * record["train_seconds"] / record["steps"] for record in records])[0]
    loss = spread([1e3 * record["loss_seconds"] / record["steps"] for record in records])[0]
    network, reading = (
        spread([1e3 * record[name] for record in records])[0] for name in ("network_seconds", "reading_seconds")
    )
    trial = records[0]["settings"]["options"]
    tuned = {**trial, **records[0]["settings"]["readings"][0]}
    named = ", ".join(f"{name} {value}" for name, value in tuned.items()) or "default"
    return [f"{records[0]['parameters']:,}", f"{step:.0f}", f"{loss:.0f}", f"{network:.0f}", f"{reading:.0f}", named]


def _stability(records: Sequence[Record]) -> list[str]:
    cells = [_percent([record["stability"][name] for record in records]) for _, name in STABILITY]
    mean, deviation = spread([record["stability"]["drift"] for record in records])
    return [*cells, _number(mean, deviation, "{:.3f}")]


def _percent(values: Sequence[float | None]) -> str:
    mean, deviation = spread([None if value is None else 100 * value for value in values])
    return _number(mean, deviation, "{:.1f}")


def _number(mean: float, deviation: float, form: str) -> str:
    if math.isnan(mean):
        return "n/a"
    return form.format(mean) + ("" if math.isnan(deviation) else " ± " + form.format(deviation))
