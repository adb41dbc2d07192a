"""`lovasz-embed predict`: pictures in, COCO panoptic files (or instance maps) out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from lovasz_embed import _check, training
from lovasz_embed._atomic import replacing
from lovasz_embed.cli._console import print_json, say, tracked
from lovasz_embed.cli._failures import Failures
from lovasz_embed.cli._kept import Kept, Write, command_of, finish_publishing
from lovasz_embed.cli._options import Device, Json, Weights, complete_format, complete_split
from lovasz_embed.cli._run import load_run, open_split, run_folder
from lovasz_embed.formats import Category, DataError, PanopticDataset, open_pictures
from lovasz_embed.formats._coco_writer import check_target
from lovasz_embed.formats._lock import locked
from lovasz_embed.formats._png import write_png
from lovasz_embed.formats._results import must_have_size
from lovasz_embed.formats.instance_map import UINT16_MAX, write_labels
from lovasz_embed.model import PanopticEmbedder
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.panoptic._strips import index_strips
from lovasz_embed.visualise import Palette
from lovasz_embed.visualise._overlay import overlay_strips

PREDICTIONS = "predictions.json"


def predict(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN] [PICTURES]...",
            help="Folder that `train` wrote, unless there is --weights; then pictures, or folders of pictures.",
        ),
    ] = None,
    weights: Weights = None,
    data: Annotated[Path | None, typer.Option(help="A data set instead of pictures.")] = None,
    format: Annotated[
        str | None, typer.Option(help="Format of --data; that of the run if not given.", autocompletion=complete_format)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of --data; 'val' if there is one.", autocompletion=complete_split)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the predictions, or a name ending in .json.")] = Path(
        "predictions"
    ),
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write every picture with its segments painted over.")
    ] = False,
    tile: Annotated[
        int | None, typer.Option(help="Segment tile by tile, in the memory of one: its side, pixels.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Pixels around a tile that the network sees as well; enough if not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from what is done, unfinished or with fewer pictures.")
    ] = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Segment pictures and write COCO panoptic files; for a run on instance maps also 16-bit maps."""
    start = time.perf_counter()
    pictures = list(paths or ())
    run = run_folder(pictures.pop(0) if pictures and weights is None else None, weights)
    record, model = load_run(run, device)
    dataset = _open(pictures, data, format, split, record.format)
    target = out if out.suffix == ".json" else out / PREDICTIONS
    beside: dict[str, Write] = {}
    if record.format == "instance-map":
        beside["labels"] = _write_labels
    if overlays:
        beside["overlays"] = partial(_write_overlay, Palette.of(model.config.classes, model.config.things))
    _say_what_is_near(model, tile, overlap)
    failures, taken_up, folders = Failures(), 0, list[Path]()
    with locked(target, *(target.parent / name for name in beside)):
        finish_publishing(target)
        check_target(target, dataset.images)
        for name in beside:
            _refuse_foreign_folder(target.parent / name, target)
        kept = Kept(target, command_of(run, tile=tile, overlap=overlap), resume, beside)
        if resume:
            kept.take_finished(dataset.images)
        missing = [index for index, name in enumerate(dataset.names) if not kept.has(name)]
        taken_up = len(dataset) - len(missing)
        if taken_up:
            say(f"{taken_up} of {len(dataset)} pictures are there already")
        try:
            for index in tracked(missing, len(missing), "predicting"):
                _predict_one(model, dataset, index, kept, tile, overlap, record.categories, failures)
            failures.must_leave_some(len(kept))
            done = [image for image in dataset.images if kept.has(image.name)]
            folders = kept.publish(done, record.categories)
        except BaseException as stop:
            if not len(kept):
                kept.remove()
            else:
                why = "interrupted; " if isinstance(stop, KeyboardInterrupt) else ""
                say(f"{why}the same command with --resume goes on from the {len(kept)} pictures that are done")
            raise
    say(f"wrote {len(done)} pictures to {target} and {target.with_suffix('')}/")
    for folder in folders:
        say(f"wrote {folder}/")
    if failures:
        failures.tell(len(dataset), "the same command with --resume tries them again")
    if json:
        seconds = round(time.perf_counter() - start, 3)
        numbers = {"pictures": len(done), "resumed": taken_up, "seconds": seconds}
        print_json({"predictions": str(target), **numbers, "failed": failures.record()})
    if failures:
        raise typer.Exit(1)


def _predict_one(
    model: PanopticEmbedder,
    dataset: PanopticDataset,
    index: int,
    kept: Kept,
    tile: int | None,
    overlap: int | None,
    categories: Sequence[Category],
    failures: Failures,
) -> None:
    """Segment a picture and keep what is written of it; with tiles, its pixels and ids lie in files beside that."""
    image, result = dataset.images[index], None
    scratch = None if tile is None else kept.folder
    with failures.noting(image.name), warnings.catch_warnings():
        picture = dataset.image(index) if scratch is None else dataset.mapped_image(index, scratch)
        warnings.filterwarnings("ignore", "overlap must be at least")  # was said above, once
        [found] = training.predict(model, [picture], tile=tile, overlap=overlap, scratch=scratch)
        must_have_size(image, found)
        result = found
    if result is not None:  # what cannot be written is no fault of the picture, and ends the work
        kept.keep(image, picture, result, categories)


def _write_labels(place: Path, _: NDArray[np.uint8], result: PanopticResult) -> None:
    """Write the ids of things, in 32 bits where 16 are too few."""
    table = np.array([0, *(s.id if s.is_thing and not s.is_crowd else 0 for s in result.segments[0])], np.int32)
    size = (result.segmentation.shape[-2], result.segmentation.shape[-1])
    largest = int(table.max())
    file = place.with_name(f"{place.name}.png" if largest <= UINT16_MAX else f"{place.name}.tif")
    write_labels(file, size, largest, (table[index] for _, index in index_strips(result)))


def _write_overlay(palette: Palette, place: Path, picture: NDArray[np.uint8], result: PanopticResult) -> None:
    size = (picture.shape[0], picture.shape[1])
    with replacing(place.with_name(f"{place.name}.png")) as temporary:
        write_png(temporary, size, overlay_strips(picture, result, palette))


def _say_what_is_near(model: PanopticEmbedder, tile: int | None, overlap: int | None) -> None:
    """Tell of an overlap with which the result is not that of the whole picture."""
    if tile is not None and overlap is not None and model.context is not None and overlap < model.context:
        say(f"--overlap {overlap} is less than the {model.context} pixels that this network looks around itself:")
        say("segments near the edges of tiles may differ from those of the whole picture")


def _open(
    pictures: list[Path], data: Path | None, format: str | None, split: str | None, usual: str
) -> PanopticDataset:
    if bool(pictures) == (data is not None):
        got = "both" if pictures else "neither"
        raise DataError(f"predict must be given either PICTURES or --data, got {got}")
    if data is not None:
        return open_split(data, format or usual, split, "val")
    if format is not None or split is not None:
        raise DataError("--format and --split must come with --data, got PICTURES")
    files: list[Path] = []
    for picture in pictures:
        files += open_pictures(picture).files if picture.is_dir() else [picture]
    return open_pictures(files)


def _refuse_foreign_folder(folder: Path, target: Path) -> None:
    """Raise where `folder` holds files that no earlier prediction wrote, such as the truth of a data set."""
    if folder.exists() and not target.is_file():
        remedy = "Choose another --out."
        raise DataError(_check.message(str(folder), f"be free for what belongs to {target.name}", "it exists", remedy))
