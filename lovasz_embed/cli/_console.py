"""What a person sees: progress, tables, errors. All of it on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from lovasz_embed import training
from lovasz_embed.quality import QualityResult

Item = TypeVar("Item")

console = Console(stderr=True)


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turn a wrong input into one line on stderr and exit code 2; what is not the user's doing keeps its traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        console.print(f"[bold red]error[/] {_escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; `train --resume` goes on from the last checkpoint")
        sys.exit(130)


@contextmanager
def training_bar() -> Iterator[Callable[[training.Progress], None]]:
    """Show how far the schedule is, the loss and the time that is left."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  step {task.fields[step]}  loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=1.0, step=0, loss=math.nan)
        average = math.nan

        def show(progress: training.Progress) -> None:
            nonlocal average
            # The loss of one step says little: crops differ more than steps do.
            average = progress.loss if math.isnan(average) else 0.98 * average + 0.02 * progress.loss
            bar.update(task, completed=progress.fraction, step=progress.step, loss=average)

        yield show


def tracked(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the items under a progress bar."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield from bar.track(items, total=total)


def show_quality(quality: QualityResult, names: Sequence[str], title: str) -> None:
    """Print panoptic quality as a table, in percent."""
    table = Table(title=title, title_justify="left")
    for column in ("", "PQ", "SQ", "RQ", "TP", "FP", "FN"):
        table.add_column(column, justify="left" if not column else "right")
    counts = [quality.per_class.tp, quality.per_class.fp, quality.per_class.fn]
    for row, name in enumerate(names):
        tp, fp, fn = (int(count[row]) for count in counts)
        if tp + fp + fn:
            scores = (quality.per_class.pq, quality.per_class.sq, quality.per_class.rq)
            table.add_row(name, *(_percent(float(score[row])) for score in scores), str(tp), str(fp), str(fn))
    table.add_section()
    for name, scores in (
        ("all", (quality.pq, quality.sq, quality.rq)),
        ("things", (quality.pq_things, quality.sq_things, quality.rq_things)),
        ("stuff", (quality.pq_stuff, quality.sq_stuff, quality.rq_stuff)),
    ):
        table.add_row(name, *map(_percent, scores), style="bold")
    console.print(table)
    console.print(
        f"AP50 (things, TP / (TP + FP + FN)) {_percent(quality.ap50)}   mIoU {_percent(quality.miou)}"
    )


def quality_record(
    quality: QualityResult, names: Sequence[str], pictures: int, seconds: float
) -> dict[str, Any]:
    """The JSON object of a score: fractions in [0, 1], null where there is nothing to average."""
    per_class = {
        name: {
            "pq": _number(float(quality.per_class.pq[row])),
            "sq": _number(float(quality.per_class.sq[row])),
            "rq": _number(float(quality.per_class.rq[row])),
            "tp": int(quality.per_class.tp[row]),
            "fp": int(quality.per_class.fp[row]),
            "fn": int(quality.per_class.fn[row]),
        }
        for row, name in enumerate(names)
    }
    fields = ("pq", "sq", "rq", "pq_things", "pq_stuff", "ap50", "miou")
    return {
        **{field: _number(float(getattr(quality, field))) for field in fields},
        "per_class": per_class,
        "pictures": pictures,
        "seconds": round(seconds, 3),
    }


def print_json(record: dict[str, Any]) -> None:
    """Print one JSON object as one line on stdout."""
    print(json.dumps(record), flush=True)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
