"""`lovasz-embed evaluate`: a run on a data set, or predictions against their truth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from lovasz_embed import _check, training
from lovasz_embed.cli._console import print_json, quality_record, show_quality, tracked
from lovasz_embed.cli._options import Device, Json, Weights, complete_format, complete_split
from lovasz_embed.cli._run import check_categories, load_run, open_split, run_folder
from lovasz_embed.cli.predict import PREDICTIONS
from lovasz_embed.formats import CocoPanoptic, DataError, PanopticDataset, read_coco_panoptic
from lovasz_embed.panoptic import PanopticResult


def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Folder that `train` wrote.")] = None,
    weights: Weights = None,
    data: Annotated[Path | None, typer.Option(help="Data set to predict and score.")] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Format of --data, that of the run if not given; or of a folder --truth.",
            autocompletion=complete_format,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to score; 'val' if there is one.", autocompletion=complete_split)
    ] = None,
    pred: Annotated[Path | None, typer.Option(help="COCO panoptic predictions: JSON, or its folder.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Truth: a COCO panoptic JSON, or a data set folder.")] = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Score a model on a data set (RUN --data, --weights --data), or COCO panoptic files (--pred --truth)."""
    start = time.perf_counter()
    given = {"RUN": run, "--weights": weights, "--data": data, "--pred": pred, "--truth": truth}
    names = [name for name, value in given.items() if value is not None]
    if (run is not None or weights is not None) and data is not None and len(names) == 2:
        dataset, predictions = _by_run(run_folder(run, weights), data, format, split, device)
        title = f"{run or weights} on {data}"
    elif pred is not None and truth is not None and len(names) == 2:
        dataset, predictions = _by_files(pred, truth, format, split)
        title = f"{pred} against {truth}"
    else:
        got = " ".join(names) or "none of them"
        raise ValueError(
            _check.message("evaluate", "be given RUN or --weights with --data, or --pred with --truth", got)
        )
    quality = training.evaluate(
        tracked(predictions, len(dataset), "evaluating"),
        (dataset.result(index) for index in range(len(dataset))),
        classes=len(dataset.categories),
        things=dataset.things,
    )
    classes = [category.name for category in dataset.categories]
    show_quality(quality, classes, f"{title}, {len(dataset)} pictures")
    if json:
        print_json(quality_record(quality, classes, len(dataset), time.perf_counter() - start))


def _by_run(
    run: Path, data: Path, format: str | None, split: str | None, device: str
) -> tuple[PanopticDataset, Iterator[PanopticResult]]:
    record, model = load_run(run, device)
    dataset = open_split(data, format or record.format, split, "val")
    check_categories(dataset, record)
    return dataset, training.predict(model, (dataset.image(index) for index in range(len(dataset))))


def _by_files(
    pred: Path, truth: Path, format: str | None, split: str | None
) -> tuple[PanopticDataset, Iterator[PanopticResult]]:
    dataset = _open_truth(truth, format, split)
    path = pred / PREDICTIONS if pred.is_dir() else pred
    predicted = read_coco_panoptic(path, categories=dataset.categories)
    if isinstance(dataset, CocoPanoptic):
        positions = [predicted.position_of(record.image_id) for record in dataset.images]
    else:  # only COCO files have ids of their own; elsewhere a picture is known by its name
        found = {name: position for position, name in enumerate(predicted.names)}
        absent = [name for name in dataset.names if name not in found]
        if absent:
            raise DataError(_check.message(str(path), f"hold a prediction of {absent[0]}", "none of this name"))
        positions = [found[name] for name in dataset.names]
    return dataset, (predicted.result(position) for position in positions)


def _open_truth(path: Path, format: str | None, split: str | None) -> PanopticDataset:
    """Open a JSON, or the truth in a data set folder."""
    if path.is_dir():
        return open_split(path, format or "coco-panoptic", split, "val")
    if format is not None or split is not None:
        raise DataError(_check.message("--truth", "be a folder where --format or --split is given", path))
    return read_coco_panoptic(path)
