"""Predict one huge picture with the command line, tile by tile, and print minutes and memory.

The picture is a mosaic of nuclei (`shared/data/dsb2018_nuclei`; painted discs where that is absent), a TIFF that is
read by windows. The network is small and trained for two minutes. The command is a process of its own; what belongs
to it alone is told apart from pages of files, which the system takes back when somebody needs the room (Linux).

    python benchmarks/huge_picture.py --side 20000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from lovasz_embed.cli._run import DatasetRecord
from lovasz_embed.formats import Category, Sample, open_dataset
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.training import TrainConfig, fit

CATEGORIES = (Category(0, "background", is_thing=False), Category(1, "object", is_thing=True))


class Discs:
    """Painted pictures of round things, for where no real ones are."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        labels = np.zeros((256, 256), np.int32)
        rows, columns = np.mgrid[:256, :256]
        for number in range(1, 31):
            top, left, radius = *rng.integers(0, 256, 2), rng.integers(6, 13)
            disc = (rows - top) ** 2 + (columns - left) ** 2 <= radius**2
            labels[disc & (labels == 0)] = number
        image = np.where(labels[..., None] > 0, 120 + 3 * (labels[..., None] % 30), 20).repeat(3, 2)
        image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        return Sample(str(index), image, (labels > 0).astype(np.uint8), labels)


def pictures() -> Any:
    """Return nuclei, or discs."""
    folder = Path(os.environ.get("LOVASZ_EMBED_DATA", Path(__file__).parents[2] / "shared" / "data")) / "dsb2018_nuclei"
    if not folder.is_dir():
        return Discs()
    found = open_dataset(folder, format="instance-map", split="train")
    small = [sample for sample in (found[index] for index in range(60)) if sample.image.shape[:2] == (256, 256)]
    return [sample for sample in small if sample.image.mean() < 100][:24]  # dark ground, as most of them


def mosaic(data: Any, side: int, path: Path) -> None:
    """Lay pictures out beside each other in a TIFF."""
    image = tifffile.memmap(path, shape=(side, side, 3), dtype=np.uint8, photometric="rgb")
    stones = [data[index].image for index in range(len(data))]
    rng = np.random.default_rng(0)
    for top in range(0, side, 256):
        for left in range(0, side, 256):
            part = image[top : top + 256, left : left + 256]
            part[...] = stones[rng.integers(len(stones))][: part.shape[0], : part.shape[1]]
        image.flush()


def train(data: Any, minutes: float, folder: Path) -> PanopticEmbedder:
    """Write a run of a small network."""
    torch.manual_seed(0)
    model = PanopticEmbedder(
        ModelConfig(
            classes=("background", "object"), things=(1,), widths=(8, 16, 24), stride=2, dims=4, min_thing_area=20
        )
    )
    fit(model, data, TrainConfig(steps=2000, minutes=minutes, batch=4, crop=128, learning_rate=4e-3, turn=True))
    model.save_pretrained(folder)
    DatasetRecord("instance-map", CATEGORIES).save(folder)
    return model


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command, and look at its memory twice a second."""
    start, own, resident = time.perf_counter(), 0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            if status.is_file():
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
                own = max(own, int(fields.get("RssAnon", "0").split()[0]))
                resident = max(resident, int(fields.get("VmHWM", "0").split()[0]))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(process.returncode)
    minutes = (time.perf_counter() - start) / 60
    return {"minutes": round(minutes, 2), "own_peak_mb": own // 1024, "resident_peak_mb": resident // 1024}


def main() -> None:
    """Parse, train, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000, help="pixels")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--minutes", type=float, default=2.0, help="of training")
    parser.add_argument("--folder", type=Path, help="for the picture, the run and the predictions; they stay there")
    parser.add_argument("--smoke", action="store_true", help="seconds, for CI")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.side, options.tile, options.minutes = 400, 64, 0.05
    data = pictures()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = train(data, options.minutes, folder / "run")
        mosaic(data, options.side, folder / "picture.tif")
        verb = ["predict", folder / "run", folder / "picture.tif", "--tile", options.tile, "--overlays"]
        command = [sys.executable, "-m", "lovasz_embed", *map(str, verb), "--out", str(folder / "out")]
        record = {"side": options.side, "tile": options.tile, "context": model.context, **watched(command)}
        content = json.loads((folder / "out/predictions.json").read_text())
        record["segments"] = len(content["annotations"][0]["segments_info"])
    print(json.dumps(record) if options.json else "\n".join(f"{name:>16} {value}" for name, value in record.items()))


if __name__ == "__main__":
    main()
