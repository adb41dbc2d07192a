"""`lovasz-embed train`: pictures and labels in, a run out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from lovasz_embed.cli._console import print_json, say, training_bar
from lovasz_embed.cli._run import DatasetRecord, open_split, usable_device
from lovasz_embed.formats import PanopticDataset
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.training import Progress, TrainConfig, Writer, fit


class Preset(NamedTuple):
    """What suits one kind of pictures; the command line's options come on top."""

    training: dict[str, Any]
    model: dict[str, Any]


# Microscopy knows no up and down. Photographs show things of a few pixels and things as large as the picture: a
# wider view, a coarser unit and lattice, more dimensions for more categories.
PRESETS = {
    "instance-map": Preset({"turn": True}, {}),
    "coco-panoptic": Preset(
        {"crop": 320, "batch": 4, "scale": 1.6, "loss_stride": 4},
        {
            "widths": (32, 64, 96, 128, 160),
            "stride": 2,
            "dims": 16,
            "unit": 32.0,
        },
    ),
}


def preset(format: str) -> Preset:
    """Return the preset of a format; one without has the defaults."""
    return PRESETS.get(format, Preset({}, {}))


def train(
    data: Annotated[Path, typer.Option(help="Folder of the data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; made if it is not there.")],
    format: Annotated[str, typer.Option(help="coco-panoptic or instance-map.")] = "coco-panoptic",
    split: Annotated[str | None, typer.Option(help="Split to train on; 'train' if there is one.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps at most.")] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training at most; 0 is no limit.")] = 15.0,
    batch: Annotated[int | None, typer.Option(help="Crops a step.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of a crop, pixels.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and crops.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that load pictures; 0 loads in this one.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard files into the run.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the run's checkpoint.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object as last line on stdout.")] = False,
) -> None:
    """Train the reference model on a folder of labelled pictures."""
    dataset = open_split(data, format, split, "train")
    given = {"steps": steps, "batch": batch, "crop": crop, "learning_rate": learning_rate}
    options: dict[str, Any] = {
        "steps": 20_000,
        **preset(format).training,
        **{name: value for name, value in given.items() if value is not None},
        "minutes": minutes or None,
        "seed": seed,
        "workers": workers,
    }
    config = TrainConfig(**options)
    torch.manual_seed(seed)
    model = PanopticEmbedder(model_config(dataset, format)).to(usable_device(device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{dataset!r}; {parameters / 1e6:.2f} M parameters; run {out}")
    # Where a finished run is resumed, no step is left to be told about.
    last: dict[str, Any] = {"steps": None, "seconds": None, "loss": None}

    with training_bar() as show, _tensorboard(out if tensorboard else None) as writer:

        def on_step(progress: Progress) -> None:
            last.update(steps=progress.step, seconds=round(progress.seconds, 1), loss=progress.loss)
            show(progress)

        try:
            fit(model, dataset, config, out=out, resume=resume, writer=writer, on_step=on_step)
        except KeyboardInterrupt:
            say("interrupted; the same command with --resume goes on from the last checkpoint")
            raise
    DatasetRecord(format, dataset.categories).save(out)
    say(f"wrote {out}; next: lovasz-embed evaluate {out} --data {data}")
    if json:
        print_json({"run": str(out), "pictures": len(dataset), "parameters": parameters, **last})


def model_config(dataset: PanopticDataset, format: str) -> ModelConfig:
    """Return the reference model's configuration for a data set."""
    names = tuple(category.name for category in dataset.categories)
    return ModelConfig(classes=names, things=tuple(sorted(dataset.things)), **preset(format).model)


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
