"""`lovasz-embed evaluate`: a run on a data set, or predictions against their truth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lovasz_embed import training
from lovasz_embed.cli._console import print_json, quality_record, show_quality, tracked
from lovasz_embed.cli._run import DatasetRecord, check_categories, open_split
from lovasz_embed.cli.predict import PREDICTIONS
from lovasz_embed.formats import CocoPanoptic, DataError, open_dataset, read_coco_panoptic
from lovasz_embed.model import PanopticEmbedder


def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Folder that `train` wrote.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set to predict and score.")] = None,
    format: Annotated[
        str | None, typer.Option(help="Format of --data; that of the run if not given.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to score; 'val' if there is one.")] = None,
    pred: Annotated[Path | None, typer.Option(help="COCO panoptic predictions: JSON, or its folder.")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="COCO panoptic truth: JSON, or a data set folder.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="One JSON object as last line on stdout.")] = False,
) -> None:
    """Score a run on a data set (RUN --data), or COCO panoptic files (--pred --truth)."""
    start = time.perf_counter()
    if run is not None and data is not None and pred is None and truth is None:
        record = DatasetRecord.load(run)
        dataset = open_split(data, format or record.format, split, "val")
        check_categories(dataset, record)
        model = PanopticEmbedder.from_pretrained(run).to(device)
        predictions = training.predict(model, (dataset.image(index) for index in range(len(dataset))))
        title = f"{run} on {data}"
    elif pred is not None and truth is not None and run is None and data is None:
        dataset = _open_truth(truth, split)
        predicted = read_coco_panoptic(_predictions_file(pred), categories=dataset.categories)
        positions = [predicted.position_of(record.image_id) for record in dataset.images]
        predictions = (predicted.result(position) for position in positions)
        title = f"{pred} against {truth}"
    else:
        raise DataError(
            "evaluate must be given RUN with --data, or --pred with --truth, got another combination"
        )
    truths = (dataset.result(index) for index in range(len(dataset)))
    quality = training.evaluate(
        tracked(predictions, len(dataset), "evaluating"),
        truths,
        classes=len(dataset.categories),
        things=dataset.things,
    )
    names = [category.name for category in dataset.categories]
    show_quality(quality, names, f"{title}, {len(dataset)} pictures")
    if json:
        print_json(quality_record(quality, names, len(dataset), time.perf_counter() - start))


def _predictions_file(path: Path) -> Path:
    return path / PREDICTIONS if path.is_dir() else path


def _open_truth(path: Path, split: str | None) -> CocoPanoptic:
    """Open a JSON, or the annotations of a data set folder."""
    if not path.is_dir():
        return read_coco_panoptic(path)
    opened = (
        open_split(path, "coco-panoptic", split, "val")
        if split is None
        else open_dataset(path, format="coco-panoptic", split=split)
    )
    assert isinstance(opened, CocoPanoptic)
    return opened
