"""Embeddings of our own network in the middle of its training: what a loss really meets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lovasz_embed.formats import Sample
from lovasz_embed.hierarchy import Level
from lovasz_embed.model import ModelConfig, PanopticEmbedder, prepare
from lovasz_embed.synthetic import CLASSES, THINGS, Scene, StreetScenes
from lovasz_embed.training import TrainConfig, fit

SIDE = 96  # of a painted scene, pixels


class Painted:
    """Painted streets, as pictures to train on."""

    def __init__(self, count: int, seed: int, *, side: int = SIDE, most_things: int = 10) -> None:
        self.scenes = StreetScenes(count, seed=seed, size=(side, side), max_things=most_things)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        scene = self.scenes[index]
        return Sample(str(index), picture(scene), scene.semantic.numpy().astype(np.uint8), scene.instance.numpy())


def picture(scene: Scene) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the scene's picture as bytes, (H, W, 3)."""
    return (scene.image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def train(steps: int) -> PanopticEmbedder:
    """Train the demo's network for some steps of eight scenes."""
    torch.manual_seed(0)
    config = ModelConfig(classes=CLASSES, things=tuple(sorted(THINGS)), widths=(24, 32, 48, 64, 64), unit=7.0)
    schedule = TrainConfig(
        steps=steps, batch=8, crop=SIDE, learning_rate=2.5e-3, warmup=min(100, steps), mean_pictures=1
    )
    return fit(PanopticEmbedder(config), Painted(1000, 0), schedule).eval()


def mosaic(model: PanopticEmbedder, height: int, width: int) -> tuple[Tensor, tuple[Level, ...]]:
    """Embed unseen scenes of one or two things each, laid side by side as far as they fit into a picture.

    Returns:
        The embedding, (1, D, up to height, up to width), and the levels that the model is trained with.
    """
    rows, columns = max(height // SIDE, 1), max(width // SIDE, 1)
    painted = Painted(rows * columns, seed=1_000_000, most_things=2)
    image = torch.empty(3, rows * SIDE, columns * SIDE)
    semantic, instance = torch.empty((2, *image.shape[1:]), dtype=torch.int64)
    count = 0
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        tile = (slice(row * SIDE, (row + 1) * SIDE), slice(column * SIDE, (column + 1) * SIDE))
        scene = painted.scenes[number]
        image[(slice(None), *tile)] = prepare(picture(scene))
        semantic[tile] = scene.semantic
        instance[tile] = torch.where(scene.instance > 0, scene.instance + count, 0)
        count += int(scene.instance.max())
    with torch.no_grad():
        embedding = model(image[None])
    return embedding, model.levels(semantic[None], instance[None])
