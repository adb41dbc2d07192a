"""Tiny data sets in the layouts of Cityscapes, Vistas, KITTI-STEP, KITTI and MOTS, with answers that are known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from lovasz_embed.formats import (
    CITYSCAPES_CLASSES,
    FORMATS,
    Category,
    ImageRecord,
    PanopticDataset,
    open_dataset,
    write_cityscapes,
    write_kitti,
    write_kitti_step,
    write_mots,
    write_vistas,
)
from lovasz_embed.panoptic import PanopticResult

STREET = [format for format in FORMATS if format not in {"coco-panoptic", "instance-map", "shards"}]
VISTAS_LABELS = [  # values 0 ... 5; the third and the last are not evaluated
    ("construction--flat--road", "Road", False, True),
    ("object--vehicle--car", "Car", True, True),
    ("void--dynamic", "Dynamic", False, False),
    ("human--person", "Person", True, True),
    ("nature--sky", "Sky", False, True),
    ("void--unlabeled", "Unlabeled", False, False),
]
MOTS_CATEGORIES = (Category(0, "background", False), Category(1, "car", True), Category(2, "pedestrian", True))
_THINGS = {
    "cityscapes": frozenset(range(11, 19)),
    "vistas": frozenset({1, 2}),
    "kitti-step": frozenset({11, 13}),
    "kitti": frozenset(range(11, 19)),
    "mots": frozenset({1, 2}),
}
_CLASSES = {"cityscapes": 19, "vistas": 4, "kitti-step": 19, "kitti": 19, "mots": 3}


def family(format: str) -> str:
    """Return the format without its version."""
    return next(name for name in ("kitti-step", *_THINGS) if format.startswith(name))


def things_of(format: str) -> frozenset[int]:
    """Return the indices of the categories that are things by definition."""
    return _THINGS[family(format)]


def vistas_config(labels: Sequence[tuple[str, str, bool, bool]] = VISTAS_LABELS) -> dict[str, Any]:
    """Return the content of a config."""
    entries = [
        {"name": name, "readable": readable, "instances": things, "evaluate": counts, "color": [9 * k, 0, k]}
        for k, (name, readable, things, counts) in enumerate(labels)
    ]
    return {"labels": entries, "version": "2.0"}


@st.composite
def panoptic_results(draw: st.DrawFn, format: str, size: tuple[int, int] | None = None) -> PanopticResult:
    """One picture of a few pixels with void, stuff, things and crowds, as far as the format knows them."""
    shape = size or draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    categories = [*range(_CLASSES[family(format)]), 255]
    semantic = draw(hnp.arrays(np.int64, shape, elements=st.sampled_from(categories)))
    instance = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3)))
    crowd = draw(hnp.arrays(np.bool_, shape)) & np.isin(semantic, list(things_of(format)))
    if family(format) == "mots":
        crowd &= False
    maps = [torch.from_numpy(array)[None] for array in (semantic, instance, crowd)]
    return PanopticResult.from_maps(maps[0], maps[1], things=things_of(format), crowd=maps[2])


def numbered(result: PanopticResult, things: frozenset[int]) -> PanopticResult:
    """Return the same segments numbered by their first pixel, so that results of other numbers can be compared."""
    crowd_ids = torch.tensor([s.id for s in result.segments[0] if s.is_crowd], dtype=torch.int32)
    crowd = torch.isin(result.segmentation, crowd_ids)
    return PanopticResult.from_maps(result.semantic(), result.instance(), things=things, crowd=crowd)


def records(format: str, count: int) -> list[ImageRecord]:
    """Return records of pictures with the names that the format wants: two cities, or sequences of three frames."""
    kind = family(format)
    if kind == "cityscapes":
        names = [f"{'ab'[k % 2]}city/{'ab'[k % 2]}city_{k:06}_000019_leftImg8bit.png" for k in range(count)]
        return [ImageRecord(Path(name).name.removesuffix("_leftImg8bit.png"), name) for name in sorted(names)]
    if kind in {"kitti-step", "mots"}:
        return [ImageRecord(f"{k // 3:04}/{k % 3:06}", f"{k // 3:04}/{k % 3:06}.png") for k in range(count)]
    return [ImageRecord(f"p{k}", f"p{k}.png") for k in range(count)]


def write_labels(folder: Path, format: str, split: str, results: Sequence[PanopticResult]) -> None:
    """Write the half of a data set that holds the labels."""
    images, kind = records(format, len(results)), family(format)
    if kind == "cityscapes":
        write_cityscapes(folder / "gtFine" / split, results, images=images)
        if format == "cityscapes-coarse":
            (folder / "gtFine").rename(folder / "gtCoarse")
            for file in (folder / "gtCoarse").rglob("*.png"):
                file.rename(file.with_name(file.name.replace("_gtFine_", "_gtCoarse_")))
    elif kind == "vistas":
        version = "v1.2" if format.endswith("1.2") else "v2.0"
        config = folder / f"config_{version}.json"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(vistas_config()))
        write_vistas(folder / split / version, results, images=images, config=config, version=version)
    elif kind == "kitti-step":
        write_kitti_step(folder / "panoptic_maps" / split, results, images=images)
    elif kind == "kitti":
        write_kitti(folder / split / "instance", results, images=images)
    else:
        write_mots(folder / split / "instances", results, images=images, categories=MOTS_CATEGORIES)


def picture_folder(folder: Path, format: str, split: str) -> Path:
    """Return where the format keeps its pictures."""
    kind = family(format)
    if kind == "cityscapes":
        return folder / "leftImg8bit" / split
    if kind == "kitti-step":
        return folder / "images" / split
    return folder / split / ("image_2" if kind == "kitti" else "images")


def label_files(folder: Path, format: str) -> list[Path]:
    """Return the files that hold what the reader of the format reads, sorted."""
    part = {"cityscapes": "*_instanceIds.png", "vistas": "panoptic/*.png", "kitti": "instance/*.png"}
    pattern = part.get(family(format), "instances/*/*.png" if format == "mots" else "panoptic_maps/*/*/*.png")
    return sorted(folder.rglob(pattern))


def write_dataset(
    folder: Path, format: str, results: Sequence[PanopticResult], split: str = "train", images: Any = None
) -> PanopticDataset:
    """Write a whole data set, pictures of noise if none are given, and open it."""
    write_labels(folder, format, split, results)
    rng = np.random.default_rng(0)
    for k, (record, result) in enumerate(zip(records(format, len(results)), results, strict=True)):
        place = picture_folder(folder, format, split) / record.file_name
        place.parent.mkdir(parents=True, exist_ok=True)
        shape = (*result.segmentation.shape[1:], 3)
        pixels = rng.integers(256, size=shape, dtype=np.uint8) if images is None else images[k]
        Image.fromarray(pixels).save(place)
    return open_dataset(folder, format=format, split=split)


def scenes(format: str, count: int, size: tuple[int, int] = (32, 36)) -> Iterator[tuple[NDArray[Any], PanopticResult]]:
    """Yield pictures of two things on stuff, of colours that tell the categories apart, and their truth."""
    first, second = sorted(things_of(format))[:2]
    for number in range(count):
        rng = np.random.default_rng(number)
        image = np.full((*size, 3), 40, np.uint8)
        semantic, instance = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for identifier, category, left, height in ((1, first, 2, 9), (2, second, 20, 13)):
            top, width = rng.integers(2, 16), rng.integers(8, 12)
            part = (slice(top, top + height), slice(left, left + width))
            image[part] = (200, 120, 40) if identifier == 1 else (60, 220, 220)
            semantic[part], instance[part] = category, identifier
        maps = (torch.from_numpy(array)[None] for array in (semantic, instance))
        yield image, PanopticResult.from_maps(next(maps), next(maps), things=things_of(format))


assert [c.train_id for c in CITYSCAPES_CLASSES if c.train_id is not None] == list(range(19))
