"""`lovasz-embed report`: a run as one HTML page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lovasz_embed import _check, training
from lovasz_embed._atomic import write_atomically
from lovasz_embed.cli._console import print_json, quality_record, say, show_quality, tracked
from lovasz_embed.cli._history import this_command
from lovasz_embed.cli._options import Device, Json, complete_format, complete_split
from lovasz_embed.cli._run import check_categories, load_run, open_split
from lovasz_embed.formats import DataError
from lovasz_embed.report import Evaluation, paint, read_run, render, score_pictures
from lovasz_embed.visualise import Palette

PAGE = "report.html"


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `train` wrote.")],
    data: Annotated[Path | None, typer.Option(help="Data set to predict and score.")] = None,
    format: Annotated[
        str | None, typer.Option(help="Format of --data; that of the run if not given.", autocompletion=complete_format)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to score; 'val' if there is one.", autocompletion=complete_split)
    ] = None,
    pictures: Annotated[int, typer.Option(help="Best pictures to show, and as many worst ones.", min=0)] = 4,
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html if not given.")] = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Write one HTML page about a run: curves, scores per class, best and worst pictures, configuration."""
    start = time.perf_counter()
    target = run / PAGE if out is None else out
    _check_target(target)
    if data is None and (format is not None or split is not None):
        raise DataError("--format and --split must come with --data, got neither a data set nor pictures")
    record = read_run(run)
    evaluation = None if data is None else _evaluate(run, data, format, split, device, pictures)
    page = render(record, evaluation, made={**this_command(), "device": device if data else ""})
    write_atomically(target, page.encode())
    result: dict[str, Any] = {"report": str(target), "bytes": len(page.encode())}
    if evaluation is not None:
        quality, names, count = evaluation.scored.quality, evaluation.palette.names, len(evaluation.scored.pictures)
        show_quality(quality, names, f"{run} on {evaluation.source}")
        result |= quality_record(quality, names, count, time.perf_counter() - start)
    say(f"wrote {target}, {len(page) / 1e6:.1f} MB: open it in a browser")
    if json:
        print_json(result)


def _evaluate(run: Path, data: Path, format: str | None, split: str | None, device: str, keep: int) -> Evaluation:
    record, model = load_run(run, device)
    dataset = open_split(data, format or record.format, split, "val")
    check_categories(dataset, record)
    count = len(dataset)
    predictions = training.predict(model, (dataset.image(index) for index in range(count)))
    scored = score_pictures(
        tracked(predictions, count, "evaluating"),
        (dataset.result(index) for index in range(count)),
        dataset.names,
        classes=len(dataset.categories),
        things=dataset.things,
        keep=keep,
    )
    palette = Palette.of([category.name for category in dataset.categories], dataset.things)
    painted = {
        picture.position: paint(dataset.image(picture.position), dataset.result(picture.position), prediction, palette)
        for picture, prediction in (*scored.worst, *scored.best)
    }
    source = f"{data.resolve().name}{f', split {split}' if split else ''}, {count} pictures"
    return Evaluation(source, scored, palette, painted)


def _check_target(target: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if target.suffix.lower() not in {".html", ".htm"}:
        raise ValueError(_check.message("--out", "end in .html", target))
    if not target.parent.is_dir():
        raise FileNotFoundError(_check.message("--out", "lie in a folder that exists", target))
