"""Segment one huge picture tile by tile, and print minutes and the peak of resident memory.

The picture is a mosaic of nuclei (`shared/data/dsb2018_nuclei`; painted discs where that is absent) in a file that is
read by windows, and the map of ids is another. The network is small and trained for a minute, so that there are
hundreds of thousands of instances to find.

    python benchmarks/huge_picture.py --side 20000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lovasz_embed.formats import Sample, open_dataset
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.training import TrainConfig, fit


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


def mosaic(data: Any, side: int, path: Path) -> np.memmap:
    """Lay pictures out beside each other in a file."""
    image = np.memmap(path, np.uint8, "w+", shape=(side, side, 3))
    stones = [data[index].image for index in range(len(data))]
    rng = np.random.default_rng(0)
    for top in range(0, side, 256):
        for left in range(0, side, 256):
            part = image[top : top + 256, left : left + 256]
            part[...] = stones[rng.integers(len(stones))][: part.shape[0], : part.shape[1]]
        image.flush()
    return np.memmap(path, np.uint8, "r", shape=(side, side, 3))


class Watch(threading.Thread):
    """Look at the memory that belongs to this process alone, every half second (Linux).

    Resident memory counts pages of the two files as well, as long as nobody else needs the room.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self.over = threading.Event()

    def run(self) -> None:
        """Keep the peak until it is over."""
        status = Path("/proc/self/status")
        while status.is_file() and not self.over.wait(0.5):
            own = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
            self.peak_mb = max(self.peak_mb, int(own.split()[1]) / 1024)


def resident() -> float:
    """Return the largest resident memory so far, MB."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Parse, train, segment, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000, help="pixels")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--minutes", type=float, default=1.0, help="of training")
    parser.add_argument("--smoke", action="store_true", help="seconds, for CI")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.side, options.tile, options.minutes = 400, 64, 0.05
    torch.manual_seed(0)
    data = pictures()
    config = ModelConfig(classes=("background", "object"), things=(1,), widths=(8, 16, 24), stride=2, dims=4)
    model = PanopticEmbedder(config)
    training = TrainConfig(steps=2000, minutes=options.minutes, batch=4, crop=128, learning_rate=4e-3, turn=True)
    fit(model, data, training)
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        image = mosaic(data, options.side, Path(folder, "picture"))
        out = np.memmap(Path(folder, "ids"), np.int32, "w+", shape=image.shape[:2])
        before, start, watch = resident(), time.perf_counter(), Watch()
        watch.start()
        result = model.segment_tiles(image, tile=options.tile, out=out, scratch=folder)
        seconds = time.perf_counter() - start
        watch.over.set()
        record = {
            "side": options.side,
            "tile": options.tile,
            "context": model.context,
            "threads": torch.get_num_threads(),
            "minutes": round(seconds / 60, 2),
            "peak_mb_before": round(before),
            "peak_mb": round(resident()),
            "own_peak_mb": round(watch.peak_mb),
            "segments": len(result.segments[0]),
        }
    print(json.dumps(record) if options.json else "\n".join(f"{name:>15} {value}" for name, value in record.items()))


if __name__ == "__main__":
    main()
