"""`lovasz-embed predict`: pictures in, COCO panoptic files (or instance maps) out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from lovasz_embed import training
from lovasz_embed.cli._console import console, print_json, tracked
from lovasz_embed.cli._run import DatasetRecord, open_split
from lovasz_embed.formats import (
    DataError,
    PanopticDataset,
    open_pictures,
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
    format: Annotated[
        str | None, typer.Option(help="Format of --data; that of the run if not given.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data; 'val' if there is one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the predictions, or a name ending in .json.")] = Path(
        "predictions"
    ),
    overlays: Annotated[
        bool, typer.Option(help="Also write every picture with its segments painted over.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="One JSON object as last line on stdout.")] = False,
) -> None:
    """Segment pictures and write COCO panoptic files; for a run on instance maps also 16-bit maps."""
    record = DatasetRecord.load(run)
    dataset = _open(pictures, data, format or record.format, split)
    model = PanopticEmbedder.from_pretrained(run).to(device)
    target = out if out.suffix == ".json" else out / PREDICTIONS
    start = time.perf_counter()
    results = training.predict(model, (dataset.image(index) for index in range(len(dataset))))
    results = tracked(results, len(dataset), "predicting")
    if record.format == "instance-map":
        results = _with_maps(results, dataset, target.parent / "labels")
    if overlays:
        palette = Palette.of(model.config.classes, model.config.things)
        results = _with_overlays(results, dataset, target.parent / "overlays", palette)
    write_coco_panoptic(target, results, images=dataset.images, categories=record.categories)
    seconds = time.perf_counter() - start
    console.print(f"wrote {len(dataset)} pictures to {target} and {target.with_suffix('')}/")
    if json:
        print_json({"predictions": str(target), "pictures": len(dataset), "seconds": round(seconds, 3)})


def _open(pictures: list[Path] | None, data: Path | None, format: str, split: str | None) -> PanopticDataset:
    if bool(pictures) == (data is not None):
        got = "both" if pictures else "neither"
        raise DataError(f"predict must be given either PICTURES or --data, got {got}")
    if data is not None:
        return open_split(data, format, split, "val")
    files: list[Path] = []
    for picture in pictures or []:
        files += [Path(p) for p in open_pictures(picture).files] if picture.is_dir() else [picture]
    return open_pictures(files)


def _with_maps(
    results: Iterable[PanopticResult], dataset: PanopticDataset, folder: Path
) -> Iterator[PanopticResult]:
    for name, result in zip(dataset.names, results, strict=True):
        write_instance_map(folder / f"{name}.png", result.instance()[0])
        yield result


def _with_overlays(
    results: Iterable[PanopticResult], dataset: PanopticDataset, folder: Path, palette: Palette
) -> Iterator[PanopticResult]:
    for index, result in enumerate(results):
        save_png(
            folder / f"{dataset.names[index]}.png", overlay(dataset.image(index), result, palette=palette)
        )
        yield result
