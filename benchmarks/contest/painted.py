"""Painted scenes in one file that all processes share: drawing five hundred takes half a minute, reading them none."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lovasz_embed._atomic import write_atomically
from lovasz_embed.formats import Sample
from lovasz_embed.synthetic import StreetScenes


class Painted(Sequence[Sample]):
    """The scenes of a data set as labelled pictures of bytes, the form in which files are read.

    Args:
        scenes: At most 255 things each.
        folder: Where the file is, or is written.
    """

    def __init__(self, scenes: StreetScenes, folder: Path) -> None:
        height, width = scenes.size
        name = f"street-{scenes.seed}-{len(scenes)}-{height}x{width}-{scenes.max_things}"
        self.file = folder / f"{name}.npy"
        if not self.file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            self._paint(scenes)
        self._pixels: Any = np.load(self.file, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: Any) -> Any:
        pixels = np.array(self._pixels[index])
        return Sample(
            f"scene{index}",
            pixels[..., :3].copy(),
            pixels[..., 3].copy(),
            pixels[..., 4].astype(np.int32),
            pixels[..., 5].astype(bool),
        )

    def _paint(self, scenes: StreetScenes) -> None:
        pixels = np.empty((len(scenes), *scenes.size, 6), np.uint8)
        for index, scene in enumerate(scenes):
            pixels[index, ..., :3] = (scene.image * 255).round().byte().permute(1, 2, 0).numpy()
            pixels[index, ..., 3], pixels[index, ..., 4] = scene.semantic.numpy(), scene.instance.numpy()
            pixels[index, ..., 5] = scene.crowd.numpy()
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        write_atomically(self.file, buffer.getbuffer().tobytes())
