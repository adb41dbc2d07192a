"""What a person sees: sentences, progress, tables, errors. All of it on stderr."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lovasz_embed import training
from lovasz_embed.quality import QualityResult

Item = TypeVar("Item")
Arguments = ParamSpec("Arguments")

console = Console(stderr=True)
_errors = Console(stderr=True)
_speaker = ""  # who says what is wrong, where several processes run one command

_FAULT = "This is a fault of lovasz-embed, not of yours: please report it with these lines and `lovasz-embed info`."


def say(text: str) -> None:
    """Print a sentence as it is: brackets in a path are no markup, and nobody copies half a path."""
    console.print(Text(text), soft_wrap=True)


def fail(text: str) -> None:
    """Print what went wrong, in one line."""
    _errors.print(Text.assemble(("error", "bold red"), f": {_speaker}", " ".join(text.split())), soft_wrap=True)


def let_one_speak(rank: int) -> None:
    """Let the first of several processes alone speak; errors are told by all, with their number."""
    global _speaker
    _speaker = f"process {rank}: "
    console.quiet = rank > 0


def failing_clearly(verb: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Let a wrong input end in one line on stderr and exit code 2; a fault of ours keeps its traceback, exit code 1."""

    @functools.wraps(verb)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except (BrokenPipeError, typer.Exit, typer.Abort, typer.BadParameter):
            raise  # of a broken pipe: whoever read our output has gone, and typer ends quietly
        except (ValueError, OSError, ImportError) as error:
            fail(_text_of(error))
            raise typer.Exit(2) from error
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            fail(f"out of memory ({error}). Use smaller pictures, or a smaller --batch or --crop.")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as stop:
            raise typer.Exit(130) from stop  # what a shell says of it
        except Exception as fault:
            fault.add_note(_FAULT)
            raise

    return checked


@contextmanager
def training_bar() -> Iterator[Callable[[training.Progress], None]]:
    """Show how far the schedule is, the loss and the time that is left; in a log file, a line per tenth."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  step {task.fields[step]}  loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=1.0, step=0, loss=math.nan)
        average, tenth = math.nan, 0

        def show(progress: training.Progress) -> None:
            nonlocal average, tenth
            # The loss of one step says little: crops differ more than steps do.
            average = progress.loss if math.isnan(average) else 0.98 * average + 0.02 * progress.loss
            bar.update(task, completed=progress.fraction, step=progress.step, loss=average)
            if bar.disable and int(10 * progress.fraction) > tenth:
                tenth = int(10 * progress.fraction)
                say(f"training {progress.fraction:4.0%}  step {progress.step}  loss {average:.3f}")

        yield show


def tracked(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the items under a progress bar, which only a terminal shows."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield from bar.track(items, total=total)


def show_quality(quality: QualityResult, names: Sequence[str], title: str) -> None:
    """Print panoptic quality as a table, in percent."""
    table = Table(title=Text(title), title_justify="left")
    for column in ("", "PQ", "SQ", "RQ", "TP", "FP", "FN"):
        table.add_column(column, justify="left" if not column else "right")
    counts = [quality.per_class.tp, quality.per_class.fp, quality.per_class.fn]
    for row, name in enumerate(names):
        tp, fp, fn = (int(count[row]) for count in counts)
        if tp + fp + fn:
            scores = (quality.per_class.pq, quality.per_class.sq, quality.per_class.rq)
            percents = (_percent(float(score[row])) for score in scores)
            table.add_row(Text(name), *percents, str(tp), str(fp), str(fn))
    table.add_section()
    for name, means in (
        ("all", (quality.pq, quality.sq, quality.rq)),
        ("things", (quality.pq_things, quality.sq_things, quality.rq_things)),
        ("stuff", (quality.pq_stuff, quality.sq_stuff, quality.rq_stuff)),
    ):
        table.add_row(name, *map(_percent, means), style="bold")
    console.print(table)
    say(f"AP50 (things, TP / (TP + FP + FN)) {_percent(quality.ap50)}   mIoU {_percent(quality.miou)}")


def show_record(record: dict[str, Any], title: str) -> None:
    """Print names and values as a table."""
    table = Table(show_header=False, title=Text(title), title_justify="left")
    for name, value in record.items():
        table.add_row(name, Text(str(value)))
    console.print(table)


def quality_record(quality: QualityResult, names: Sequence[str], pictures: int, seconds: float) -> dict[str, Any]:
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
    return {
        **scores_record(quality),
        "per_class": per_class,
        "pictures": pictures,
        "seconds": round(seconds, 3),
    }


def scores_record(quality: QualityResult) -> dict[str, float | None]:
    """The means of a score, fractions in [0, 1], null where there is nothing to average."""
    fields = ("pq", "sq", "rq", "pq_things", "pq_stuff", "ap50", "miou")
    return {field: _number(float(getattr(quality, field))) for field in fields}


def print_json(record: dict[str, Any]) -> None:
    """Print one JSON object as one line on stdout."""
    print(json.dumps(record, allow_nan=False), flush=True)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _text_of(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename} must be readable or writable, got {error.strerror}"
    elif text.startswith("Caught ") and "Original Traceback" in text:
        # A process that loads pictures sends its traceback along; its last line says what was wrong.
        text = text.rstrip().rpartition("\n")[2].partition(": ")[2]
    return text
