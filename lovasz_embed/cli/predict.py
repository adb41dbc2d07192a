"""`lovasz-embed predict`: pictures in, COCO panoptic files (or instance maps) out."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from lovasz_embed import _check, training
from lovasz_embed.cli._console import print_json, say, tracked
from lovasz_embed.cli._kept import Kept, command_of, going_on
from lovasz_embed.cli._run import load_run, open_split
from lovasz_embed.formats import (
    DataError,
    PanopticDataset,
    open_pictures,
    read_coco_panoptic,
    write_coco_panoptic,
    write_instance_map,
)
from lovasz_embed.model import PanopticEmbedder
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.visualise import Palette, overlay, save_png

PREDICTIONS = "predictions.json"


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `train` wrote.")],
    pictures: Annotated[list[Path] | None, typer.Argument(help="Pictures, or folders of pictures.")] = None,
    data: Annotated[Path | None, typer.Option(help="A data set instead of pictures.")] = None,
    format: Annotated[str | None, typer.Option(help="Format of --data; that of the run if not given.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data; 'val' if there is one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the predictions, or a name ending in .json.")] = Path(
        "predictions"
    ),
    overlays: Annotated[bool, typer.Option(help="Also write every picture with its segments painted over.")] = False,
    tile: Annotated[int | None, typer.Option(help="Segment tile by tile: side of a tile, pixels.")] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Pixels around a tile that the network sees as well; enough if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from what an interrupted command kept.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="One JSON object as last line on stdout.")] = False,
) -> None:
    """Segment pictures and write COCO panoptic files; for a run on instance maps also 16-bit maps."""
    start = time.perf_counter()
    record, model = load_run(run, device)
    dataset = _open(pictures, data, format, split, record.format)
    target = out if out.suffix == ".json" else out / PREDICTIONS
    maps = target.parent / "labels" if record.format == "instance-map" else None
    painted = target.parent / "overlays" if overlays else None
    for folder in (maps, painted):
        if folder is not None:
            _refuse_foreign_folder(folder, target)

    def compute(indices: list[int]) -> Iterator[PanopticResult]:
        return training.predict(model, (dataset.image(index) for index in indices), tile=tile, overlap=overlap)

    _say_what_is_near(model, tile, overlap)
    kept = Kept(target, command_of(run, tile=tile, overlap=overlap), resume)
    taken_up = sum(map(kept.has, dataset.names))
    if taken_up:
        say(f"{taken_up} of {len(dataset)} pictures are there already")
    # The COCO files come first, whole or not at all. The rest is read off them.
    try:
        results = tracked(going_on(dataset.names, kept, compute), len(dataset), "predicting")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "overlap must be at least")  # was said above, once
            write_coco_panoptic(target, results, images=dataset.images, categories=record.categories)
    except BaseException as stop:
        if not len(kept):
            kept.remove()
        elif isinstance(stop, KeyboardInterrupt):
            say(f"interrupted; the same command with --resume goes on from the {len(kept)} pictures that are done")
        raise
    kept.remove()
    written = read_coco_panoptic(target)
    say(f"wrote {len(dataset)} pictures to {target} and {target.with_suffix('')}/")
    if maps is not None:

        def write_map(place: Path, index: int) -> None:
            write_instance_map(place, written.result(index).instance()[0])

        _write_folder(maps, dataset, write_map)
    if painted is not None:
        palette = Palette.of(model.config.classes, model.config.things)

        def write_overlay(place: Path, index: int) -> None:
            save_png(place, overlay(dataset.image(index), written.result(index), palette=palette))

        _write_folder(painted, dataset, write_overlay)
    if json:
        seconds = round(time.perf_counter() - start, 3)
        numbers = {"pictures": len(dataset), "resumed": taken_up, "seconds": seconds}
        print_json({"predictions": str(target), **numbers})


def _say_what_is_near(model: PanopticEmbedder, tile: int | None, overlap: int | None) -> None:
    """Tell of an overlap with which the result is not that of the whole picture."""
    if tile is not None and overlap is not None and model.context is not None and overlap < model.context:
        say(f"--overlap {overlap} is less than the {model.context} pixels that this network looks around itself:")
        say("segments near the edges of tiles may differ from those of the whole picture")


def _open(
    pictures: list[Path] | None, data: Path | None, format: str | None, split: str | None, usual: str
) -> PanopticDataset:
    if bool(pictures) == (data is not None):
        got = "both" if pictures else "neither"
        raise DataError(f"predict must be given either PICTURES or --data, got {got}")
    if data is not None:
        return open_split(data, format or usual, split, "val")
    if format is not None or split is not None:
        raise DataError("--format and --split must come with --data, got PICTURES")
    files: list[Path] = []
    for picture in pictures or []:
        files += open_pictures(picture).files if picture.is_dir() else [picture]
    return open_pictures(files)


def _refuse_foreign_folder(folder: Path, target: Path) -> None:
    """Raise where `folder` holds files that no earlier prediction wrote, such as the truth of a data set."""
    if folder.exists() and not target.is_file():
        remedy = "Choose another --out."
        raise DataError(_check.message(str(folder), f"be free for what belongs to {target.name}", "it exists", remedy))


def _write_folder(folder: Path, dataset: PanopticDataset, write: Callable[[Path, int], None]) -> None:
    """Write one PNG per picture into a temporary folder, then put it in the place of `folder`."""
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for index, name in enumerate(dataset.names):
            place = work / "new" / f"{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            write(place, index)
        if folder.exists():
            os.replace(folder, work / "old")
        os.replace(work / "new", folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"wrote {folder}/")
