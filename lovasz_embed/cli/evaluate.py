"""`lovasz-embed evaluate`: a run on a data set, or predictions against their truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from lovasz_embed import _check, training
from lovasz_embed.cli._console import print_json, quality_record, show_quality, tracked
from lovasz_embed.cli._distributed import gathered, processes, together
from lovasz_embed.cli._failures import Failure, Failures
from lovasz_embed.cli._options import Device, Json, Weights, complete_format, complete_split
from lovasz_embed.cli._run import check_categories, load_run, open_split, run_folder
from lovasz_embed.cli.predict import PREDICTIONS
from lovasz_embed.formats import CocoPanoptic, DataError, PanopticDataset, read_coco_panoptic
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.quality import PanopticQuality
from lovasz_embed.training._ranks import Ranks

ResultOf = Callable[[int], PanopticResult]
"""Makes the prediction of a picture, by its position in the data set."""


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
    with processes(device) as (ranks, own_device):
        _evaluate(run, weights, data, format, split, pred, truth, own_device, json, ranks)


def _evaluate(
    run: Path | None,
    weights: str | None,
    data: Path | None,
    format: str | None,
    split: str | None,
    pred: Path | None,
    truth: Path | None,
    device: str,
    json: bool,
    ranks: Ranks,
) -> None:
    """Score the pictures of this process, and print what all of them count."""
    start = time.perf_counter()
    given = {"RUN": run, "--weights": weights, "--data": data, "--pred": pred, "--truth": truth}
    names = [name for name, value in given.items() if value is not None]
    if (run is not None or weights is not None) and data is not None and len(names) == 2:
        dataset, result_of = _by_run(run_folder(run, weights), data, format, split, device)
        title = f"{run or weights} on {data}"
    elif pred is not None and truth is not None and len(names) == 2:
        dataset, result_of = _by_files(pred, truth, format, split)
        title = f"{pred} against {truth}"
    else:
        got = " ".join(names) or "none of them"
        raise ValueError(
            _check.message("evaluate", "be given RUN or --weights with --data, or --pred with --truth", got)
        )
    failures = Failures()
    own = ranks.share(len(dataset))
    quality = _score(dataset, result_of, tracked(own, len(own), "evaluating"), failures)
    quality.gather()
    failures.found = [Failure(*found) for found in gathered(ranks, failures.found)]
    scored = len(dataset) - len(failures)
    failures.must_leave_some(scored)
    classes = [category.name for category in dataset.categories]
    show_quality(quality.compute(), classes, f"{title}, {scored} pictures")
    if failures and ranks.first:
        failures.tell(len(dataset), "the scores are theirs")
    if json and ranks.first:
        record = quality_record(quality.compute(), classes, scored, time.perf_counter() - start)
        print_json({**record, "failed": failures.record()})
    together(ranks)
    if failures:
        raise typer.Exit(1)


def _score(
    dataset: PanopticDataset, result_of: ResultOf, indices: Iterable[int], failures: Failures
) -> PanopticQuality:
    """Count pictures, by their positions in the data set; one that cannot be read counts nothing and is noted."""
    quality = PanopticQuality(len(dataset.categories), dataset.things, local=True)
    for index in indices:
        with failures.noting(dataset.names[index]):
            truth = dataset.result(index)
            prediction = result_of(index)
            sizes = [tuple(result.segmentation.shape[-2:]) for result in (prediction, truth)]
            if sizes[0] != sizes[1]:
                rule = f"have the size {sizes[1][0]} x {sizes[1][1]} of its truth"
                got = f"{sizes[0][0]} x {sizes[0][1]} (height x width)"
                raise DataError(_check.message(f"the prediction of {dataset.names[index]}", rule, got))
            quality.update(prediction, truth)
    return quality


def _by_run(
    run: Path, data: Path, format: str | None, split: str | None, device: str
) -> tuple[PanopticDataset, ResultOf]:
    record, model = load_run(run, device)
    dataset = open_split(data, format or record.format, split, "val")
    check_categories(dataset, record)
    return dataset, lambda index: next(training.predict(model, [dataset.image(index)]))


def _by_files(pred: Path, truth: Path, format: str | None, split: str | None) -> tuple[PanopticDataset, ResultOf]:
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
    return dataset, lambda index: predicted.result(positions[index])


def _open_truth(path: Path, format: str | None, split: str | None) -> PanopticDataset:
    """Open a JSON, or the truth in a data set folder."""
    if path.is_dir():
        return open_split(path, format or "coco-panoptic", split, "val")
    if format is not None or split is not None:
        raise DataError(_check.message("--truth", "be a folder where --format or --split is given", path))
    return read_coco_panoptic(path)
