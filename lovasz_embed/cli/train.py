"""`lovasz-embed train`: pictures and labels in, a run out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from lovasz_embed import _check, training
from lovasz_embed.cli._console import print_json, say, scores_record, training_bar
from lovasz_embed.cli._distributed import processes
from lovasz_embed.cli._history import remember
from lovasz_embed.cli._options import (
    RUNNING,
    SCORING,
    TRAINING,
    Device,
    Json,
    complete_format,
    complete_split,
)
from lovasz_embed.cli._presets import PRESETS as PRESETS
from lovasz_embed.cli._presets import preset
from lovasz_embed.cli._run import DatasetRecord, open_split, usable_device
from lovasz_embed.formats import FORMATS, PanopticDataset
from lovasz_embed.model import BACKBONES, ModelConfig, PanopticEmbedder
from lovasz_embed.quality import PanopticQuality
from lovasz_embed.training import Progress, TrainConfig, Writer, fit
from lovasz_embed.training._ranks import Ranks


def complete_backbone(incomplete: str) -> list[str]:
    """Return the backbones that begin as what was typed."""
    return [name for name in BACKBONES if name.startswith(incomplete)]


def train(
    data: Annotated[Path, typer.Option(help="Folder of the data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; made if it is not there.")],
    format: Annotated[
        str, typer.Option(help=f"One of {', '.join(FORMATS)}.", autocompletion=complete_format)
    ] = "coco-panoptic",
    split: Annotated[
        str | None, typer.Option(help="Split to train on; 'train' if there is one.", autocompletion=complete_split)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint.")] = False,
    steps: Annotated[int | None, typer.Option(help="Steps at most.", rich_help_panel=TRAINING)] = None,
    minutes: Annotated[
        float, typer.Option(help="Minutes of training at most; 0 is no limit.", rich_help_panel=TRAINING)
    ] = 15.0,
    batch: Annotated[int | None, typer.Option(help="Crops a step.", rich_help_panel=TRAINING)] = None,
    crop: Annotated[int | None, typer.Option(help="Side of a crop, pixels.", rich_help_panel=TRAINING)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=TRAINING)] = None,
    backbone: Annotated[
        str,
        typer.Option(
            help="conv, from scratch, or efficientnet-lite0, pretrained on ImageNet.",
            autocompletion=complete_backbone,
            rich_help_panel=TRAINING,
        ),
    ] = "conv",
    backbone_rate: Annotated[
        float | None,
        typer.Option(help="Factor of the learning rate for the backbone; 0 freezes it.", rich_help_panel=TRAINING),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and crops.", rich_help_panel=TRAINING)] = 0,
    score_every: Annotated[
        int, typer.Option(help="Steps between two scorings; 0 scores never.", min=0, rich_help_panel=SCORING)
    ] = 0,
    score_split: Annotated[
        str | None,
        typer.Option(
            help="Split to score; 'val' if there is one.", autocompletion=complete_split, rich_help_panel=SCORING
        ),
    ] = None,
    score_pictures: Annotated[
        int, typer.Option(help="Pictures at most, evenly spread.", min=1, rich_help_panel=SCORING)
    ] = 20,
    workers: Annotated[
        int, typer.Option(help="Processes that load pictures; 0 loads in this one.", rich_help_panel=RUNNING)
    ] = 0,
    device: Device = "cpu",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard files into the run.", rich_help_panel=RUNNING)
    ] = False,
    json: Json = False,
) -> None:
    """Train the reference model on a folder of labelled pictures."""
    with processes(device) as (ranks, own_device):
        _train(
            data,
            out,
            format,
            split,
            resume=resume,
            given={
                "steps": steps,
                "batch": batch,
                "crop": crop,
                "learning_rate": learning_rate,
                "backbone_rate": backbone_rate,
            },
            minutes=minutes,
            backbone=backbone,
            seed=seed,
            score_every=score_every,
            score_split=score_split,
            score_pictures=score_pictures,
            workers=workers,
            device=own_device,
            tensorboard=tensorboard,
            json=json,
            ranks=ranks,
        )


def _train(
    data: Path,
    out: Path,
    format: str,
    split: str | None,
    *,
    resume: bool,
    given: dict[str, float | None],
    minutes: float,
    backbone: str,
    seed: int,
    score_every: int,
    score_split: str | None,
    score_pictures: int,
    workers: int,
    device: str,
    tensorboard: bool,
    json: bool,
    ranks: Ranks,
) -> None:
    """Train with the other processes, if there are any; the first of them writes and tells."""
    dataset = open_split(data, format, split, "train")
    score = _score(data, format, score_split, dataset, score_pictures, ranks) if score_every else None
    if score_split is not None and score is None:
        raise ValueError(_check.message("--score-split", "come with --score-every", "none"))
    _check.one_of("--backbone", backbone, BACKBONES)
    options: dict[str, Any] = {
        "steps": 20_000,
        **preset(format, backbone).training,
        **{name: value for name, value in given.items() if value is not None},
        "minutes": minutes or None,
        "seed": seed,
        "workers": workers,
    }
    config = TrainConfig(**options)
    torch.manual_seed(seed)
    model = PanopticEmbedder(model_config(dataset, format, backbone), pretrained=backbone != "conv")
    model.to(usable_device(device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    where = f"; {ranks.count} processes" if ranks.count > 1 else ""
    say(f"{dataset!r}; {parameters / 1e6:.2f} M parameters; run {out}{where}")
    # Where a finished run is resumed, no step is left to be told about.
    last: dict[str, Any] = {"steps": None, "seconds": None, "loss": None}

    with training_bar() as show, _tensorboard(out if tensorboard and ranks.first else None) as writer:

        def on_step(progress: Progress) -> None:
            if last["steps"] is None and ranks.first:  # by now the folder is there, and nothing was wrong
                remember(out, resumed=resume, data=f"{data}, {len(dataset)} pictures", device=device)
            last.update(steps=progress.step, seconds=round(progress.seconds, 1), loss=progress.loss)
            show(progress)

        try:
            fit(
                model,
                dataset,
                config,
                out=out,
                resume=resume,
                writer=writer,
                on_step=on_step,
                score=score,
                score_every=score_every or 1,
            )
        except KeyboardInterrupt:
            say("interrupted; the same command with --resume goes on from the last checkpoint")
            raise
    if ranks.first:
        DatasetRecord(format, dataset.categories).save(out)
    say(f"wrote {out}; next: lovasz-embed evaluate {out} --data {data}")
    if json and ranks.first:
        print_json({"run": str(out), "pictures": len(dataset), "parameters": parameters, **last})


def _score(
    data: Path, format: str, split: str | None, trained: PanopticDataset, most: int, ranks: Ranks
) -> Callable[[PanopticEmbedder], dict[str, float | None]]:
    """Return what scores a model on a split that it is not trained on."""
    dataset = open_split(data, format, split, "val")
    if dataset.names == trained.names:
        raise ValueError(_check.message("--score-split", "be another split than the one trained on", "the same"))
    chosen = range(0, len(dataset), -(-len(dataset) // most))

    def score(model: PanopticEmbedder) -> dict[str, float | None]:
        quality = PanopticQuality(len(dataset.categories), dataset.things, local=True)
        own = chosen[ranks.number :: ranks.count]
        predictions = training.predict(model, (dataset.image(index) for index in own))
        for index, prediction in zip(own, predictions, strict=True):
            quality.update(prediction, dataset.result(index))
        quality.gather()
        return scores_record(quality.compute())

    return score


def model_config(dataset: PanopticDataset, format: str, backbone: str = "conv") -> ModelConfig:
    """Return the reference model's configuration for a data set."""
    names = tuple(category.name for category in dataset.categories)
    return ModelConfig(classes=names, things=tuple(sorted(dataset.things)), **preset(format, backbone).model)


@contextmanager
def _tensorboard(folder: Path | None) -> Iterator[Writer | None]:
    """Open TensorBoard files in a folder; None opens none."""
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as missing:
        needed = 'pip install "lovasz-embed[tensorboard]"'
        raise ModuleNotFoundError(f"--tensorboard needs {missing.name}: {needed}") from missing
    with SummaryWriter(str(folder)) as writer:
        yield writer
