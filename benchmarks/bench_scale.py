"""How cost grows: what a picture costs to store, read, train on and score, and what that means for many, on paper.

Pictures are the 26 of `shared/data/coco_panoptic_open`, painted streets where that is absent. Seconds are the
processor's, of one core: a busy machine does not count. Only the all-reduce is by the clock, between two processes of
this machine. The network is not trained: what a trained one is clustered in may differ.

    python benchmarks/bench_scale.py
    python benchmarks/bench_scale.py --gpus 64 --storage 20e9
    python benchmarks/bench_scale.py --smoke --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _scale_plan import SETS, Assumed, Measured, class_mean_bytes, plan
from torch.utils.flop_counter import FlopCounterMode

from lovasz_embed.cli._presets import preset
from lovasz_embed.formats import (
    Category,
    ImageRecord,
    Labels,
    PanopticDataset,
    open_dataset,
    stream_shards,
    write_shards,
)
from lovasz_embed.formats._shard_files import manifest_of, read_manifest
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.quality import PanopticQuality
from lovasz_embed.synthetic import CLASSES, THINGS, street_scene
from lovasz_embed.training import TrainConfig, View, predict, random_view, whole
from lovasz_embed.training._batches import Batches
from lovasz_embed.training._checkpoint import Checkpoints
from lovasz_embed.training._ranks import Ranks
from lovasz_embed.training._run import Run
from lovasz_embed.training.fit import fit_class_means

_REDUCE = """
import statistics, sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2)
values, seconds = torch.ones(int(sys.argv[3])), []
for _ in range(int(sys.argv[4])):
    began = time.perf_counter()
    dist.all_reduce(values)
    seconds.append(time.perf_counter() - began)
if sys.argv[2] == "0":
    print(statistics.median(seconds))
dist.destroy_process_group()
time.sleep(0.1)
"""


class Painted(PanopticDataset):
    """Painted streets, where there are no photographs."""

    def __init__(self, count: int) -> None:
        categories = [Category(k, name, k in THINGS) for k, name in enumerate(CLASSES)]
        super().__init__(categories, [ImageRecord(k, f"{k}.png", 480, 640) for k in range(count)])

    def image(self, index: Any) -> Any:
        """Return the picture, (480, 640, 3) bytes."""
        return street_scene(int(index), (480, 640)).image

    def labels(self, index: Any) -> Labels:
        """Return its truth."""
        scene = street_scene(int(index), (480, 640))
        return Labels(scene.semantic.astype(np.uint8), scene.instance.astype(np.int32))


def pictures() -> tuple[PanopticDataset, str]:
    """Return what is measured on, and what it is."""
    shared = Path(os.environ.get("LOVASZ_EMBED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    folder = shared / "coco_panoptic_open"
    if folder.is_dir():
        return open_dataset(folder, format="coco-panoptic", split="train"), "26 photographs of COCO"
    return Painted(4), "4 painted streets"


def measured(action: Callable[[], object], repeats: int) -> float:
    """Return the median of an action's processor seconds."""
    action()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def storing(data: PanopticDataset, folder: Path, repeats: int) -> dict[str, float]:
    """Measure writing and reading shards, a picture each."""
    count = len(data)
    numbers = iter(range(10**6))
    place = folder / "shards"
    write_shards(data, place)
    written = measured(lambda: write_shards(data, folder / f"w{next(numbers)}"), repeats) / count
    sharded = open_dataset(place, format="shards")
    size = sum(path.stat().st_size for path in place.glob("*.tar")) / count
    path = place / "train-000000.tar"
    return {
        "shard, bytes a picture": size,
        "index, bytes a picture": sum(path.stat().st_size for path in place.glob("*.index.json")) / count,
        "write, s a picture": written,
        "read from files, s a picture": measured(lambda: [data[k] for k in range(count)], repeats) / count,
        "read by number, s a picture": measured(lambda: [sharded[k] for k in range(count)], repeats) / count,
        "stream, s a picture": measured(lambda: list(stream_shards(place, buffer=8)), repeats) / count,
        "bytes of a shard, s a GB": measured(path.read_bytes, repeats) / path.stat().st_size * 1e9,
        "megapixels a picture": float(np.mean([height * width for height, width in map(data.size, range(count))]))
        / 1e6,
    }


def opening(data: PanopticDataset, folder: Path, count: int) -> dict[str, float]:
    """Measure opening a list of many pictures; the shard behind it is a hole."""
    place = folder / "many"
    place.mkdir()
    rows = [[k, f"{k:012d}.jpg", 480, 640, [k, 100], [k, 10], [k, 10]] for k in range(count)]
    (place / "train-000000.index.json").write_text(json.dumps(rows))
    with (place / "train-000000.tar").open("wb") as file:
        file.truncate(count + 100)
    shard = read_manifest(folder / "shards", "train")[1][0]._replace(pictures=count, bytes=count + 100)
    (place / "train.shards.json").write_text(json.dumps(manifest_of(data.categories, [shard])))
    began = time.process_time()
    open_dataset(place, format="shards")
    seconds = time.process_time() - began
    tracemalloc.start()
    opened = open_dataset(place, format="shards")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"open, s a million pictures": seconds / len(opened) * 1e6, "in memory, bytes a picture": held / len(opened)}


def training(data: PanopticDataset, repeats: int, sizes: list[tuple[int, int]]) -> dict[str, float]:
    """Measure steps, class means and scores, and count what they hold."""
    names = tuple(category.name for category in data.categories)
    config = ModelConfig(classes=names, things=tuple(sorted(data.things)), **preset("coco-panoptic").model)
    rows: dict[str, float] = {}
    view = whole(data[0])
    sample = data[0]
    rows["to tensors, s a megapixel"] = measured(lambda: whole(sample), repeats) / (view.semantic.numel() / 1e6)
    rng = np.random.default_rng(0)
    rows["a crop of 320, s"] = measured(lambda: random_view(view, rng, size=320, scale=1.6, jitter=0.4), repeats)
    for crop, batch in sizes:
        options = TrainConfig(crop=crop, batch=batch, scale=1.6, loss_stride=4)
        model = PanopticEmbedder(config).train()
        run, ready = Run(model, options, Ranks()), Batches(data, options, len(names))[0]
        rows[f"step of {batch} crops of {crop}, s"] = measured(
            lambda run=run, ready=ready: run.advance(View(*ready), None), repeats
        )
    model = PanopticEmbedder(config)
    rows["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 320, 320))
    rows["forward pass, operations a pixel"] = counter.get_total_flops() / 320**2
    views = [whole(data[k]) for k in range(2)]
    rows["class means, s a picture"] = measured(lambda: fit_class_means(model, views, amp=True), repeats) / 2
    quality = PanopticQuality(len(names), data.things)
    images, truths = [data.image(k) for k in range(2)], [data.result(k) for k in range(2)]
    rows["predict, s a picture"] = measured(lambda: list(predict(model, images)), repeats) / 2
    results = list(predict(model, images))
    rows["count panoptic quality, s a picture"] = (
        measured(lambda: [quality.update(*pair) for pair in zip(results, truths, strict=True)], repeats) / 2
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        rows["model, bytes"] = sum(path.stat().st_size for path in Path(folder).iterdir())
        run.advance(View(*ready), None)
        Checkpoints(Path(folder)).save(run.content)
        rows["checkpoint, bytes"] = (Path(folder) / "checkpoint.pt").stat().st_size
    rows["class means, bytes of an all-reduce"] = class_mean_bytes(len(names), config.dims)
    return rows


def adding_up(parameters: int, repeats: int) -> dict[str, float]:
    """Measure adding up the gradients of two processes of this machine, by the clock."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder, "meet").as_uri()
        command = [sys.executable, "-c", _REDUCE, meeting]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        last = [str(parameters), str(repeats)]
        one, two = (
            subprocess.Popen([*command, rank, *last], stdout=subprocess.PIPE, text=True, env=environment)
            for rank in "01"
        )
        seconds = float(one.communicate(timeout=300)[0])
        two.communicate(timeout=300)
    return {"gradients, bytes a step": 4.0 * parameters, "all-reduce of them, two processes, s": seconds}


def rates(rows: dict[str, float], sizes: list[tuple[int, int]]) -> Measured:
    """Return what the plan needs of what was measured."""
    megapixels, (crop, batch) = rows["megapixels a picture"], sizes[-1]
    return Measured(
        load=rows["read by number, s a picture"] / megapixels + rows["to tensors, s a megapixel"],
        crop=rows["a crop of 320, s"],
        jpeg=rows["shard, bytes a picture"] / megapixels,
        step=rows[f"step of {batch} crops of {crop}, s"] / (batch * crop**2 / 1e6),
        flop=rows["forward pass, operations a pixel"],
        parameters=int(rows["parameters"]),
        record=rows["in memory, bytes a picture"],
    )


def planned(found: Measured, assumed: Assumed) -> list[str]:
    """Return the lines of the tables on paper."""
    given = ", ".join(f"{name} {value:g}" for name, value in asdict(assumed).items())
    lines = [f"on paper, not run, assuming {given}:"]
    for data in SETS:
        made = plan(data, found, assumed)
        cpu = data.pictures * assumed.rounds * data.crop**2 / 1e6 * found.step / 3600
        lines.append(
            f"{data.name:>22}: shards {made.storage / 1e9:,.1f} GB, records {made.index / 1e9:.2g} GB, "
            f"{assumed.rounds} rounds {made.hours:,.3g} h ({made.bottleneck}); on one core of a CPU {cpu:,.0f} h"
        )
    for data in SETS:
        for gpus in (1, 8, 64, 512):
            made = plan(data, found, replace(assumed, gpus=gpus))
            able = ", ".join(f"{part} {rate:,.0f}" for part, rate in made.rates.items())
            lines.append(f"{data.name:>22}, {gpus:>3} GPUs, crops a second: {able}: {made.bottleneck}")
    return lines


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="seconds, for CI")
    parser.add_argument("--json", action="store_true")
    for field in fields(Assumed):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = parser.parse_args()
    assumed = Assumed(**{field.name: getattr(options, field.name) for field in fields(Assumed)})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    repeats = 1 if options.smoke else options.repeats
    sizes = [(64, 2)] if options.smoke else [(192, 6), (320, 1), (320, 4), (512, 4)]
    data, what = pictures()
    with tempfile.TemporaryDirectory() as temporary:
        rows = storing(data, Path(temporary), repeats)
        rows |= opening(data, Path(temporary), 2_000 if options.smoke else 100_000)
    rows |= training(data, repeats, sizes)
    rows |= adding_up(int(rows["parameters"]), 5 if options.smoke else 50)
    found = rates(rows, sizes)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    about = f"{machine}, torch {torch.__version__}, 1 thread, {what}"
    if options.json:
        plans = {data.name: asdict(plan(data, found, assumed)) for data in SETS}
        print(
            json.dumps({"about": about, "repeats": repeats, "rows": rows, "assumed": asdict(assumed), "plans": plans})
        )
        return
    print(f"{about}; median of {repeats}")
    for name, value in rows.items():
        print(f"{name:>40} {value:14,.4g}")
    print("\n".join(planned(found, assumed)))


if __name__ == "__main__":
    main()
