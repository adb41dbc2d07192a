"""Calls of what makes pictures and pages, writes files of results, and draws synthetic streets."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _hostile import Call, Hostile
from _hostile_model import picture_of_bytes
from _hostile_oracle import entry, require
from _hostile_panoptic import a_result, result_like

from lovasz_embed import Segment
from lovasz_embed import formats as io
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.report import Evaluation, RunRecord, paint, render, score_pictures
from lovasz_embed.synthetic import StreetScenes, street_clip, street_scene
from lovasz_embed.visualise import (
    Palette,
    as_picture,
    class_mean_map,
    colour_basis,
    embedding_colours,
    overlay,
    panel,
    save_png,
)


def _palette(things: Any = (1,), classes: int = 3) -> Palette:
    return Palette.of([f"class {c}" for c in range(classes)], things)


def _check_picture(call: Call, result: Any, h: Hostile) -> None:
    require(result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3, "a picture is uint8 (H, W, 3)")


@entry("as_picture", _check_picture)
def _(h: Hostile) -> Call:
    if h.chance(0.5):
        return Call(as_picture, [h.pick((picture_of_bytes(h), picture_of_bytes(h)[..., 0]))])
    shape = (h.pick((1, 3)), h.whole(0, 5), h.whole(0, 5))
    return Call(as_picture, [h.floats(shape) if h.chance(0.7) else h.labels(shape, (0, 255), dtype=torch.uint8)])


@entry("overlay", _check_picture, names=("segmentation", "segments"))
def _(h: Hostile) -> Call:
    image = picture_of_bytes(h)
    result = a_result(h, (1, *image.shape[:2]))
    options = h.options(palette=(None, _palette()), alpha=(0, 0.5, 1.0), contours=(True, False), scale=(1, 3))
    return Call(overlay, [image, result], options)


@entry("colour_basis")
def _(h: Hostile) -> Call:
    shape = (h.whole(1, 2), h.whole(1, 5), h.whole(1, 4), h.whole(1, 4))
    return Call(colour_basis, [h.floats(shape)], h.options(percentile=(0, 1.0, 49.9)))


def _one_embedding(h: Hostile, width: int) -> Any:
    shape = (width, h.whole(1, 5), h.whole(1, 5))
    return h.floats((1, *shape) if h.chance(0.3) else shape)


@entry("embedding_colours", _check_picture)
def _(h: Hostile) -> Call:
    width = h.whole(1, 4)
    basis = colour_basis(h.floats((1, width, 3, 3)).detach()) if h.chance(0.3) else None
    return Call(embedding_colours, [_one_embedding(h, width)], {"basis": basis})


@entry("class_mean_map", _check_picture)
def _(h: Hostile) -> Call:
    width, classes = h.whole(1, 4), h.whole(1, 4)
    palette = _palette(classes=classes, things=()) if h.chance(0.3) else None
    return Call(class_mean_map, [_one_embedding(h, width), h.floats((classes, width))], {"palette": palette})


@entry("Palette", names=("category",))
def _(h: Hostile) -> Call:
    colours = h.numpy.integers(0, 256, (3, 3), np.uint8)
    return Call(_used, [("a", "b", "c"), frozenset(h.pick(({1}, (), {0, 2}))), colours])


def _used(names: Any, things: Any, colours: Any) -> Any:
    palette = Palette(names, things, colours)
    return palette.legend(), palette.instances(0, [1])


@entry("Palette.of")
def _(h: Hostile) -> Call:
    colours = h.pick((None, None, [(0, 0, 255), (1, 2, 3)], np.zeros((2, 3), np.int64)))
    return Call(Palette.of, [h.pick((["a", "b"], ("x", "y"))), h.pick(({1}, (), [0, 1]))], {"colours": colours})


@entry("Palette.legend")
def _(h: Hostile) -> Call:
    return Call(_palette().legend, [])


@entry("Palette.instances")
def _(h: Hostile) -> Call:
    return Call(_palette(things=(0, 1)).instances, [h.whole(0, 1), h.pick(([1], [], [7, 7], range(3), (2**40,)))])


@entry("panel", _check_picture, share=0.1)
def _(h: Hostile) -> Call:
    rows = h.whole(1, 2)
    columns = {f"column {n}": [picture_of_bytes(h) for _ in range(rows)] for n in range(h.whole(1, 3))}
    call = Call(panel, [columns], {"height": h.pick((8, 20)), **h.options(legend=(None, _palette().legend(), {}))})
    if h.chance(0.2):
        name = h.pick(sorted(columns))
        columns[name], how = h.spoilt(columns[name])
        call.spoilt.append(f"column {how}")
    return call


# Files are written below a temporary folder alone, whatever the path.

_PLACES = ((OSError, ""), (ValueError, "null byte"))


@functools.lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-")


def _below(write: Callable[..., Any], written: Callable[[str], Any] | None = None) -> Callable[..., Any]:
    """Return a writer whose paths, if they are texts, lie in a fresh folder; what is written can be read."""

    @functools.wraps(write)
    def inside(path: Any, *args: Any, **kwargs: Any) -> Any:
        with tempfile.TemporaryDirectory(dir=_folder().name) as folder:
            if isinstance(path, (str, os.PathLike)):
                path = os.path.join(folder, os.path.basename(os.fspath(path)) or "x.png")
            try:
                write(path, *args, **kwargs)
            except Exception:
                left = [own for own in Path(folder).rglob("*") if own.is_file()]
                require(not left, f"what fails leaves no file: {[own.name for own in left]}")
                raise
            return written(path) if written is not None else None

    return inside


@entry("save_png", allows=_PLACES, share=0.2)
def _(h: Hostile) -> Call:
    picture = picture_of_bytes(h)
    return Call(_below(save_png), ["a.png", h.pick((picture, picture[..., 0]))])


@entry("write_instance_map", allows=_PLACES, share=0.2)
def _(h: Hostile) -> Call:
    labels: Any = h.labels((h.whole(1, 5), h.whole(1, 5)), h.pick(((0, 1), (0, 65535), (0, 7))))
    labels = labels if h.chance(0.5) else h.array(labels)
    return Call(_below(io.write_instance_map, io.read_instance_map), [h.pick(("a.png", "a.tif")), labels])


def _results(h: Hostile, classes: int = 3) -> tuple[list[PanopticResult], list[io.ImageRecord]]:
    results, images = [], []
    for number in range(h.whole(1, 2)):
        size = (h.whole(1, 5), h.whole(1, 5))
        result = a_result(h, (1, *size), classes)
        results.append(result)
        known = size if h.chance(0.5) else (None, None)
        images.append(io.ImageRecord(h.pick((number, f"image {number}")), f"picture_{number}.png", *known))
    return results, images


def _categories(classes: int = 3) -> list[io.Category]:
    return [io.Category(10 * c, f"class {c}", bool(c % 2)) for c in range(classes)]


_RESULTS = ("path", "folder", "results", "images", "image", "segmentation", "segments", "category_ids", "picture")


def _writer(name: str, write: Callable[..., Any], place: str, *, categories: bool = False) -> None:
    """Register a writer of results."""

    @entry(name, names=_RESULTS, allows=_PLACES, share=0.1)
    def _(h: Hostile) -> Call:
        results, images = _results(h)
        options: dict[str, Any] = {"images": images}
        if categories:
            options["categories"] = _categories()
        call = Call(_below(write), [place, results], options)
        if h.chance(0.2):
            _spoil_record(h, call, images)
        return call


def _spoil_record(h: Hostile, call: Call, images: list[io.ImageRecord]) -> None:
    place = h.whole(0, len(images) - 1)
    values = {name: getattr(images[place], name) for name in ("image_id", "file_name", "height", "width")}
    name = h.pick(sorted(values))
    names = (
        "../out.png",
        "/abs.png",
        "",
        ".",
        "a/../../b.png",
        "x" * 300 + ".png",
        "nul\0.png",
        "picture_0.png",
        "é.png",
    )
    values[name], how = (
        (h.pick(names), "a bad name") if name == "file_name" and h.chance(0.7) else h.spoilt(values[name])
    )
    images[place] = io.ImageRecord(**values)
    call.spoilt.append(f"{name} {how}")


_writer("write_coco_panoptic", io.write_coco_panoptic, "out.json", categories=True)
_writer("write_cityscapes", io.write_cityscapes, "val")
_writer("write_kitti", io.write_kitti, "instance")


def _numbered(write: Callable[..., Any], *, categories: bool) -> Callable[[Hostile], Call]:
    """Return what makes calls of a writer of clips, whose things have small ids."""

    def make(h: Hostile) -> Call:
        size = (h.whole(1, 5), h.whole(1, 5))
        ids = h.labels(size, (1, 7, 900), dtype=torch.int32).detach()[None].contiguous()
        found = ids.unique(return_counts=True)
        segments = tuple(Segment(int(i), 1, True, int(n)) for i, n in zip(*found, strict=True))
        options: dict[str, Any] = {"images": [io.ImageRecord(0, "0000/000000.png")]}
        if categories:
            options["categories"] = [io.Category(0, "background", False), io.Category(1, "car", True)]
        return Call(_below(write), ["instances", [PanopticResult(ids, (segments,))]], options)

    return make


entry("write_kitti_step", names=_RESULTS, allows=_PLACES, share=0.1)(_numbered(io.write_kitti_step, categories=False))
entry("write_mots", names=_RESULTS, allows=_PLACES, share=0.1)(_numbered(io.write_mots, categories=True))


@functools.lru_cache(maxsize=1)
def _vistas_config() -> str:
    labels = [{"name": f"object--{c}", "instances": c % 2 == 1, "evaluate": True} for c in range(3)]
    labels.append({"name": "void--unlabeled", "instances": False, "evaluate": False})
    path = Path(_folder().name, "config.json")
    path.write_text(json.dumps({"labels": labels}))
    return str(path)


@entry("write_vistas", names=_RESULTS, allows=_PLACES, share=0.1)
def _(h: Hostile) -> Call:
    results, images = _results(h)
    return Call(
        _below(io.write_vistas), ["v2.0", results],
        {"images": images, "config": _vistas_config(), **h.options(version=("v1.2", "v2.0"))},
    )  # fmt: skip


class _Cells(io.PanopticDataset):
    """Two pictures in memory."""

    def __init__(self) -> None:
        super().__init__(_categories(2), [io.ImageRecord(n, f"{n}.png") for n in range(2)])

    def image(self, index: Any) -> Any:
        return np.full((2, 3, 3), int(index), np.uint8)

    def labels(self, index: Any) -> io.Labels:
        ones = np.ones((2, 3), np.uint8)
        return io.Labels(ones, ones.astype(np.int32))


# Not with several processes: they would be started anew for every call.
@entry("write_shards", names=("dataset", "folder"), allows=_PLACES, fixed=("processes",), share=0.02)
def _(h: Hostile) -> Call:
    options = h.options(split=("train", "val"), pictures_per_shard=(1, 5))
    return Call(_sharded, [_Cells(), "shards"], options)


def _sharded(dataset: Any, folder: Any, **options: Any) -> Any:
    """Write below a temporary folder alone."""
    with tempfile.TemporaryDirectory(dir=_folder().name) as place:
        inside = os.path.join(place, os.path.basename(folder) or "x") if isinstance(folder, str) else folder
        return io.write_shards(dataset, inside, **options)


_sharded.__signature__ = inspect.signature(io.write_shards)  # type: ignore[attr-defined]


# Reports


@entry("score_pictures", names=("prediction", "truth", "predictions", "truths", "num_classes"), share=0.5)
def _(h: Hostile) -> Call:
    truths = [a_result(h, (1, h.whole(1, 5), h.whole(1, 5))) for _ in range(h.whole(0, 3))]
    args = [[result_like(h, truth) for truth in truths], truths, [f"picture {n}" for n in range(len(truths))]]
    return Call(score_pictures, args, {"classes": 3, "things": {1}, **h.options(keep=(0, 1, 4))})


@entry("paint", names=("result", "segmentation", "segments"), share=0.005)
def _(h: Hostile) -> Call:
    image = picture_of_bytes(h)
    truth = a_result(h, (1, *image.shape[:2]))
    return Call(paint, [image, truth, result_like(h, truth), _palette()])


@functools.lru_cache(maxsize=1)
def _evaluation() -> Evaluation:
    maps = torch.tensor([[[0, 1]]])
    truth = PanopticResult.from_maps(maps, maps, things={1})
    scored = score_pictures([truth], [truth], ["a"], classes=2, things={1})
    palette = Palette.of(("floor", "<cup>"), {1})
    return Evaluation("there", scored, palette, {0: paint(np.zeros((1, 2, 3), np.uint8), truth, truth, palette)})


@entry("render", share=0.1)
def _(h: Hostile) -> Call:
    name = h.pick(("a run", "<script>", "", "\0", "é"))
    log = ({"step": 1, "loss": h.pick((0.5, float("nan"), float("inf"))), "seconds": 1.0},) if h.chance(0.5) else ()
    run = RunRecord(name, log=log)
    return Call(render, [run, h.maybe(_evaluation())], {"made": {"command": "lovasz-embed report"}})


# Synthetic streets


@entry("street_scene", share=0.05)
def _(h: Hostile) -> Call:
    options = {"size": h.pick(((32, 32), (33, 48))), **h.options(max_things=(0, 3), min_area=(1, 24), extended=(True,))}
    return Call(street_scene, [h.pick((h.whole(0, 2**40), (1, h.whole(0, 99)), [0]))], options)


@entry("street_clip", share=0.02)
def _(h: Hostile) -> Call:
    options = {"frames": h.whole(1, 2), "size": (32, 32), **h.options(max_things=(0, 3), min_area=(1, 24))}
    return Call(street_clip, [h.whole(0, 99)], options)


@entry("StreetScenes", share=0.5)
def _(h: Hostile) -> Call:
    options = h.options(seed=(0, 7), size=((32, 32), (64, 40)), max_things=(0, 12), extended=(True, False))
    return Call(StreetScenes, [h.whole(0, 9)], options)


@entry("StreetScenes.__getitem__", names=("index",), allows=((IndexError, "range"),), share=0.02)
def _(h: Hostile) -> Call:
    return Call(StreetScenes(4, size=(32, 32), max_things=2).__getitem__, [h.whole(-4, 3)])


# The metric for torchmetrics, where that is installed

if importlib.util.find_spec("torchmetrics") is not None:
    from lovasz_embed.integrations.torchmetrics import PanopticQuality

    @entry("torchmetrics.PanopticQuality", share=0.1)
    def _(h: Hostile) -> Call:
        return Call(PanopticQuality, [3, h.pick(({1}, ()))], h.options(per_class=(True, False)))

    @entry("torchmetrics.PanopticQuality.update", names=("prediction", "truth"), share=0.2)
    def _(h: Hostile) -> Call:
        truth = a_result(h)
        return Call(PanopticQuality(3, {1}).update, [result_like(h, truth), truth])

    @entry("torchmetrics.PanopticQuality.compute", share=0.1)
    def _(h: Hostile) -> Call:
        truth = a_result(h)
        metric = PanopticQuality(3, {1}, per_class=h.chance(0.5))
        metric.update(result_like(h, truth), truth)
        return Call(metric.compute, [])
