"""Time to read a picture of a street with its labels, and to open a folder of many, beside decoding the files alone.

The pictures are real photographs drawn large (`shared/data/coco_panoptic_open`; smooth noise where that is absent),
with the grain of a camera; the labels are painted: 80 things on six bands of stuff. Baseline: Pillow decodes the same
files, as uint8 and uint16, and nothing else is done. Seconds are the processor's: files lie in the system's memory, and
a busy machine does not count.

    python benchmarks/bench_reading.py
    python benchmarks/bench_reading.py --smoke --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from lovasz_embed.formats import Vistas, open_dataset, write_cityscapes, write_vistas
from lovasz_embed.formats._base import ImageRecord, PanopticDataset
from lovasz_embed.panoptic import PanopticResult

SIZES = {"cityscapes": (1024, 2048), "vistas": (3840, 5120)}  # 2.1 megapixels, and 19.7


def photograph(height: int, width: int) -> Image.Image:
    """Return a picture that compresses about as photographs do."""
    rng = np.random.default_rng(0)
    folder = Path(os.environ.get("LOVASZ_EMBED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    found = sorted((folder / "coco_panoptic_open").rglob("*.jpg"))
    if found:
        with Image.open(found[0]) as stored:
            picture = stored.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    else:
        small = rng.integers(256, size=(height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 2, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def truth(height: int, width: int, stuff: list[int], things: list[int]) -> PanopticResult:
    """Return bands of stuff with 80 boxes of things on them."""
    rng = np.random.default_rng(0)
    semantic = np.repeat(np.array(stuff)[np.arange(height) * len(stuff) // height], width).reshape(height, width)
    instance = np.zeros((height, width), np.int32)
    for number in range(1, 81):
        top, left = rng.integers(height), rng.integers(width)
        part = np.s_[top : top + int(rng.integers(8, height // 4)), left : left + int(rng.integers(8, width // 6))]
        semantic[part], instance[part] = things[number % len(things)], number
    maps = (torch.from_numpy(np.ascontiguousarray(array))[None] for array in (semantic, instance))
    return PanopticResult.from_maps(next(maps), next(maps), things=things)


def cityscapes(folder: Path, height: int, width: int) -> PanopticDataset:
    """Write one picture of Cityscapes."""
    image = ImageRecord("a_000000_000019", "a/a_000000_000019_leftImg8bit.png")
    (folder / "leftImg8bit/val/a").mkdir(parents=True)
    photograph(height, width).save(folder / "leftImg8bit/val" / image.file_name)
    write_cityscapes(folder / "gtFine/val", [truth(height, width, [10, 2, 8, 1, 0, 0], [11, 13])], images=[image])
    return open_dataset(folder, format="cityscapes")


def vistas(folder: Path, height: int, width: int, source: str) -> PanopticDataset:
    """Write one picture of Mapillary Vistas."""
    names = ["sky", "building", "vegetation", "sidewalk", "road", "car", "person", "unlabeled"]
    labels = [{"name": name, "instances": name in {"car", "person"}, "evaluate": k < 7} for k, name in enumerate(names)]
    if not folder.is_dir():
        (folder / "val/images").mkdir(parents=True)
        (folder / "config_v2.0.json").write_text(json.dumps({"labels": labels}))
        photograph(height, width).save(folder / "val/images/a.jpg", quality=90)
        image, result = ImageRecord("a", "a.jpg"), truth(height, width, [0, 1, 2, 3, 4, 4], [5, 6])
        write_vistas(folder / "val/v2.0", [result], images=[image], config=folder / "config_v2.0.json")
    return Vistas(folder, source=source)


def many(folder: Path, count: int) -> Path:
    """Make the empty files of `count` pictures in 20 cities: opening looks at names alone."""
    for city in range(20):
        for part, ending in (("leftImg8bit", "leftImg8bit"), ("gtCoarse", "gtCoarse_instanceIds")):
            place = folder / part / "train_extra" / f"c{city}"
            place.mkdir(parents=True)
            for number in range(count // 20):
                (place / f"c{city}_{number:06}_000000_{ending}.png").touch()
    return folder


def measured(action: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return median and spread of an action's seconds, and the peak of what numpy allocates for it."""
    action()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    middle = statistics.median(seconds)
    return {"seconds": middle, "spread": (max(seconds) - min(seconds)) / middle, "peak_mb": peak / 1e6}


def decoded(*paths: Path) -> None:
    """Decode files, and nothing else."""
    for path in paths:
        with Image.open(path) as picture:
            np.asarray(picture)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--smoke", action="store_true", help="seconds, for CI")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats, shrink, pictures = (1, 16, 200) if options.smoke else (options.repeats, 1, 20_000)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        height, width = (side // shrink for side in SIZES["cityscapes"])
        street = cityscapes(folder / "c", height, width)
        files = [*(folder / "c").rglob("*_leftImg8bit.png"), *(folder / "c").rglob("*_instanceIds.png")]
        rows["cityscapes, decoded alone"] = measured(lambda: decoded(*files), repeats)
        rows["cityscapes, picture and labels"] = measured(lambda: street[0], repeats)
        rows["cityscapes, labels"] = measured(lambda: street.labels(0), repeats)
        height, width = (side // shrink for side in SIZES["vistas"])
        for source in ("panoptic", "instances"):
            large = vistas(folder / "v", height, width, source)
            files = [folder / "v/val/images/a.jpg", folder / f"v/val/v2.0/{source}/a.png"]
            rows[f"vistas {source}, decoded alone"] = measured(lambda files=files: decoded(*files), repeats)
            rows[f"vistas {source}, picture and labels"] = measured(lambda large=large: large[0], repeats)
        place = many(folder / "m", pictures)
        rows[f"open {pictures:,} pictures"] = measured(lambda: open_dataset(place, format="cityscapes-coarse"), repeats)
    about = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Pillow {PIL.__version__}, 1 thread"
    if options.json:
        print(json.dumps({"about": about, "repeats": repeats, "rows": rows}))
        return
    print(f"{about}; median of {repeats}")
    for name, row in rows.items():
        print(f"{name:>36} {row['seconds']:8.3f} s ± {row['spread'] / 2:4.0%} {row['peak_mb']:8.1f} MB")


if __name__ == "__main__":
    main()
