"""`lovasz-embed demo`: train on painted street scenes, score unseen ones, leave a picture to look at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from lovasz_embed import training
from lovasz_embed.cli._console import print_json, quality_record, say, show_quality, tracked, training_bar
from lovasz_embed.cli._history import remember
from lovasz_embed.cli._options import Json
from lovasz_embed.cli._run import DatasetRecord
from lovasz_embed.formats import Category, Sample
from lovasz_embed.model import ModelConfig, PanopticEmbedder, prepare
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.synthetic import CLASSES, COLOURS, THINGS, Scene, StreetScenes
from lovasz_embed.training import Progress, TrainConfig, fit
from lovasz_embed.visualise import (
    Palette,
    class_mean_map,
    colour_basis,
    embedding_colours,
    overlay,
    panel,
    save_png,
)

SIZE = (96, 96)
TRAINING_SCENES = 2000
MOST_THINGS = 10
UNSEEN_SEED = 1_000_000  # scenes depend on (seed, number): another seed shares none


class ScenePictures:
    """Painted scenes as labelled pictures of bytes, the form in which files are read."""

    def __init__(self, count: int, seed: int) -> None:
        self._scenes = StreetScenes(count, seed=seed, size=SIZE, max_things=MOST_THINGS)

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Sample:
        scene = self._scenes[index]
        image = (scene.image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        semantic = scene.semantic.numpy().astype(np.uint8)
        return Sample(f"scene{index}", image, semantic, scene.instance.numpy(), scene.crowd.numpy())

    def truth(self, index: int) -> PanopticResult:
        """Return the truth of a scene."""
        scene: Scene = self._scenes[index]
        return PanopticResult.from_maps(
            scene.semantic[None], scene.instance[None], things=THINGS, crowd=scene.crowd[None]
        )


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run and of demo.png.")] = Path("lovasz-embed-demo"),
    minutes: Annotated[float, typer.Option(help="Minutes of training.")] = 3.75,
    steps: Annotated[int, typer.Option(help="Steps at most.")] = 20_000,
    scenes: Annotated[int, typer.Option(help="Unseen scenes to score.", min=1)] = 40,
    seed: Annotated[int, typer.Option(help="Seed of weights and scenes.")] = 0,
    json: Json = False,
) -> None:
    """Train on synthetic street scenes for a few minutes, score unseen ones, write a picture."""
    torch.manual_seed(seed)
    model = PanopticEmbedder(
        ModelConfig(
            classes=CLASSES,
            things=tuple(sorted(THINGS)),
            widths=(24, 32, 48, 64, 64),
            unit=7.0,
            min_thing_area=24,  # what shows less is not drawn
        )
    )
    config = TrainConfig(
        steps=steps,
        minutes=minutes,
        batch=8,
        crop=SIZE[0],
        learning_rate=2.5e-3,
        warmup=100,
        jitter=0.0,  # scenes come in all exposures already
        seed=seed,
    )
    say(f"training on painted street scenes for at most {minutes:g} minutes")
    with training_bar() as show:

        def on_step(progress: Progress) -> None:
            if progress.step == 1:  # by now the folder is there, and nothing was wrong
                remember(out, resumed=False, data=f"{TRAINING_SCENES} painted scenes", device="cpu")
            show(progress)

        fit(model, ScenePictures(TRAINING_SCENES, seed), config, out=out, on_step=on_step)
    # With its categories the run is one like any other: `predict` paints other pictures with it.
    categories = (Category(number, name, number in THINGS) for number, name in enumerate(CLASSES))
    DatasetRecord("coco-panoptic", tuple(categories)).save(out)
    unseen = ScenePictures(scenes, UNSEEN_SEED + seed)
    start = time.perf_counter()
    predictions = list(training.predict(model, tracked((unseen[i].image for i in range(scenes)), scenes, "predicting")))
    truths = [unseen.truth(index) for index in range(scenes)]
    quality = training.evaluate(predictions, truths, classes=len(CLASSES), things=THINGS)
    seconds = time.perf_counter() - start
    shown = range(min(4, scenes))
    picture = gallery(model, [unseen[i] for i in shown], [truths[i] for i in shown], [predictions[i] for i in shown])
    save_png(out / "demo.png", picture)
    show_quality(quality, CLASSES, f"{scenes} unseen scenes")
    say(f"look at {out / 'demo.png'}")
    if json:
        print_json(quality_record(quality, CLASSES, scenes, seconds))


def gallery(
    model: PanopticEmbedder,
    samples: Sequence[Sample],
    truths: Sequence[PanopticResult],
    predictions: Sequence[PanopticResult],
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Lay input, truth, prediction, embedding and nearest class mean side by side, one row per picture."""
    palette = Palette(CLASSES, THINGS, np.array(COLOURS, dtype=np.uint8))
    config = model.config
    with torch.no_grad():
        pictures = torch.stack([prepare(sample.image) for sample in samples])
        embedding = model(pictures)
    basis = colour_basis(embedding)
    dims = list(config.category_dims)
    scale = max(1, 288 // samples[0].image.shape[0])
    columns = {
        "input": [sample.image for sample in samples],
        "truth": [overlay(s.image, t, palette=palette, scale=scale) for s, t in zip(samples, truths, strict=True)],
        "prediction": [
            overlay(s.image, p, palette=palette, scale=scale) for s, p in zip(samples, predictions, strict=True)
        ],
        "embedding": [embedding_colours(e, basis=basis) for e in embedding],
        "class means": [class_mean_map(e[dims], model.ncm.means[:, dims], palette=palette) for e in embedding],
    }
    return panel(columns, legend=palette.legend())
