"""Every reader of files: valid files to begin with, how they are read, and what a valid result is."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lovasz_embed._json import read_json
from lovasz_embed.formats import (
    DataError,
    Labels,
    _pictures,
    open_dataset,
    read_cityscapes_map,
    read_coco_panoptic,
    read_instance_map,
    read_kitti_step_map,
)
from lovasz_embed.formats._files import leads_outside
from lovasz_embed.formats._vistas_config import read_vistas_config
from lovasz_embed.formats._windows import map_picture

Parts = tuple[bytes, ...]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        names: Files of an input, relative to its folder.
        kinds: How each is damaged, a key of `MUTATIONS`.
        seeds: Valid inputs, one content per file.
        read: Reads them in their folder and raises `AssertionError` where the result is not valid.
        weight: Share of the inputs; readers that build networks are slow and get few.
        fixed: Further files, which stay as they are.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    seeds: tuple[Parts, ...]
    read: Callable[[Path], object]
    weight: float = 1.0
    fixed: Mapping[str, bytes] = field(default_factory=dict)


def must_be_labels(labels: Labels, categories: int) -> None:
    """Check a truth: shapes, numbers and who has which."""
    semantic, instance, crowd = labels.semantic, labels.instance, labels.crowd
    assert semantic.dtype == np.uint8, semantic.dtype
    assert instance.dtype == np.int32, instance.dtype
    assert semantic.ndim == 2
    assert semantic.shape == instance.shape
    assert crowd is None or (crowd.dtype == bool and crowd.shape == semantic.shape)
    if semantic.size:
        assert int(instance.min()) >= 0
        known = semantic[semantic != 255]
        assert not known.size or int(known.max()) < categories


def must_be_picture(picture: Any) -> None:
    """Check a picture."""
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3


def image_bytes(values: Any, format: str = "PNG", **options: Any) -> bytes:
    """Return a picture file of an array."""
    buffer = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(buffer, format=format, **options)
    return buffer.getvalue()


def tiff_bytes(values: Any, **options: Any) -> bytes:
    """Return a TIFF of an array, as tifffile writes it."""
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def json_bytes(content: Any) -> bytes:
    """Return a JSON file."""
    return json.dumps(content).encode()


_RGB = np.zeros((4, 5, 3), np.uint8)
_RGB[:2, :, 0], _RGB[2:, :2, 0] = 1, 2
_STREET = np.array([[7, 26, 26001, 26002, 0], [11, 24000, 24000, 23, 33]], np.uint16)
_COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", "height": 4, "width": 5}],
    "annotations": [
        {
            "image_id": 7,
            "file_name": "a.png",
            "segments_info": [
                {"id": 1, "category_id": 3, "area": 10, "bbox": [0, 0, 5, 2], "iscrowd": 0},
                {"id": 2, "category_id": 90, "area": 4, "bbox": [0, 2, 2, 2], "iscrowd": 1},
            ],
        }
    ],
    "categories": [
        {"id": 3, "name": "floor", "isthing": 0, "supercategory": "inside"},
        {"id": 90, "name": "cup", "isthing": 1},
    ],
}
_PREDICTED = {"annotations": _COCO["annotations"], "categories": _COCO["categories"]}
_VISTAS_CONFIG = {
    "labels": [
        {"name": "a--road", "readable": "Road", "instances": False, "evaluate": True, "color": [1, 2, 3]},
        {"name": "a--car", "readable": "Car", "instances": True, "evaluate": True, "color": [4, 5, 6]},
        {"name": "void--x", "readable": "Void", "instances": False, "evaluate": False, "color": [0, 0, 0]},
    ]
}
_VISTAS_JSON = {
    "annotations": [
        {
            "image_id": "a",
            "file_name": "a.png",
            "segments_info": [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2, "iscrowd": 0}],
        }
    ],
    "categories": [
        {"id": 1, "name": "Road", "supercategory": "a--road", "isthing": 0},
        {"id": 2, "name": "Car", "supercategory": "a--car", "isthing": 1},
    ],
}
_PICTURE = image_bytes(_RGB)
_TREE_FILES = {
    "rgb": _PICTURE,
    "grey": image_bytes(_RGB[..., 0]),
    "street": image_bytes(_STREET),
    "kitti": image_bytes((_STREET // 1000 * 256).astype(np.uint16)),
    "config": json_bytes(_VISTAS_CONFIG),
    "coco": json_bytes(_COCO),
}
_TREES: tuple[dict[str, str], ...] = (
    {"leftImg8bit/val/a/x_leftImg8bit.png": "rgb", "gtFine/val/a/x_gtFine_instanceIds.png": "street"},
    {"training/image_2/a.png": "rgb", "training/instance/a.png": "kitti"},
    {"train/images/s/1.png": "rgb", "train/instances/s/1.png": "grey", "train/instances/labels.txt": "car"},
    {"images/val/0001/1.png": "rgb", "panoptic_maps/val/0001/1.png": "rgb"},
    {"val/images/a.jpg": "rgb", "val/v2.0/instances/a.png": "kitti", "config_v2.0.json": "config"},
    {"images/a.png": "rgb", "labels/a.png": "grey"},
    {"annotations/panoptic_val.json": "coco", "annotations/panoptic_val/a.png": "rgb", "val/a.jpg": "rgb"},
)


def _coco(folder: Path) -> None:
    data = read_coco_panoptic(folder / "a.json")
    for number in range(min(len(data), 3)):
        must_be_labels(data.labels(number), len(data.categories))
        result = data.result(number)
        assert result.segmentation.shape[0] == 1
        assert len(result.segments) == 1
        height, width = data.images[number].height, data.images[number].width
        assert height is None or result.segmentation.shape[1:] == (height, width)


def _label_map(folder: Path) -> None:
    [path] = folder.glob("a.*")
    labels = read_instance_map(path)
    assert labels.dtype == np.int32
    assert labels.ndim == 2
    assert not labels.size or int(labels.min()) >= 0


def _picture(folder: Path) -> None:
    [path] = folder.glob("a.*")
    size = _pictures.read_size(path)
    picture = _pictures.read_picture(path)
    must_be_picture(picture)
    assert picture.shape[:2] == size, (picture.shape, size)
    assert np.array_equal(map_picture(path, folder), picture)


def _street(format: str, **options: Any) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        data = open_dataset(folder, format=format, **options)
        for number in range(min(len(data), 3)):
            must_be_labels(data.labels(number), len(data.categories))

    return read


def _config(folder: Path) -> None:
    assert len(read_vistas_config(folder / "a.json")) >= 1


def _index(folder: Path) -> None:
    data = open_dataset(folder, format="instance-map")
    assert len(data) >= 1


def _model(folder: Path) -> None:
    import torch

    from lovasz_embed.model import PanopticEmbedder

    model = PanopticEmbedder.from_pretrained(folder)
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def _model_seed() -> Parts:
    import tempfile

    import torch

    from lovasz_embed.model import ModelConfig, PanopticEmbedder

    torch.manual_seed(0)
    config = ModelConfig(classes=("floor", "cup"), things=(1,), widths=(1, 2), dims=3)
    with tempfile.TemporaryDirectory() as place:
        PanopticEmbedder(config).save_pretrained(place)
        return Path(place, "config.json").read_bytes(), Path(place, "model.safetensors").read_bytes()


def _dataset_record(folder: Path) -> None:
    from lovasz_embed.cli._run import DatasetRecord
    from lovasz_embed.formats import Category

    record = DatasetRecord.load(folder)
    assert isinstance(record.format, str)
    assert all(isinstance(category, Category) and isinstance(category.name, str) for category in record.categories)
    assert all(isinstance(category.id, int) and isinstance(category.is_thing, bool) for category in record.categories)


def _train(folder: Path) -> None:
    from lovasz_embed.training import TrainConfig

    assert isinstance(TrainConfig.load(folder / "train.json"), TrainConfig)


def _report(folder: Path) -> None:
    from lovasz_embed.report import read_run, render

    assert render(read_run(folder), None, made={"command": "x", "date": "", "versions": {}})  # type: ignore[dict-item]


def _checkpoint(folder: Path) -> None:
    import warnings

    import torch

    from lovasz_embed.training._checkpoint import Checkpoints

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the newest was passed over is a warning
        found = Checkpoints(folder).load(torch.device("cpu"))
    assert found is None or isinstance(found[1], dict)


def _checkpoint_seed() -> Parts:
    import torch

    buffer = io.BytesIO()
    content = {"config": {"steps": 3}, "model_config": {"dims": 3}, "model": {"a": torch.ones(2)}, "optimiser": {}}
    torch.save({**content, "running": torch.zeros(2, 3), "step": 2, "seconds": 0.5}, buffer)
    return (buffer.getvalue(),)


def _shards_seed() -> dict[str, bytes]:
    """Return the files of a sharded data set by name: manifest, index, tar."""
    import tempfile

    from lovasz_embed.formats import write_shards

    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "source")
        for name, content in (("images/a.png", _PICTURE), ("labels/a.png", image_bytes(_RGB[..., 0]))):
            source.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
            source.joinpath(name).write_bytes(content)
        write_shards(open_dataset(source, format="instance-map"), Path(place, "out"), split="train")
        return {file.name: file.read_bytes() for file in sorted(Path(place, "out").iterdir())}


def _shards(folder: Path) -> None:
    data = open_dataset(folder, format="shards")
    for number in range(min(len(data), 3)):
        labels = data.labels(number)
        must_be_picture(data.image(number))
        if labels is not None:
            must_be_labels(labels, len(data.categories))


def _tree(folder: Path) -> None:
    """Make the folders that a JSON describes, then open them as a data set of every format."""
    import shutil

    from lovasz_embed.formats import FORMATS

    content, place = read_json(folder / "tree.json"), folder / "tree"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, kind in content.items() if isinstance(content, dict) else ():
        path = Path(str(name))
        if leads_outside(str(name)) or len(str(name)) > 400:
            continue
        with contextlib.suppress(OSError, ValueError):  # what no file can be called is no input
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(kind, list):
                target.mkdir()
            else:
                target.write_bytes(_TREE_FILES.get(str(kind), b""))
    faults = []
    for format in FORMATS:
        try:
            data = open_dataset(place, format=format)
            for number in range(min(len(data), 2)):
                labels = data.labels(number)
                assert labels is not None
                must_be_labels(labels, len(data.categories))
        except DataError as error:
            faults.append(error)
    if len(faults) == len(FORMATS):
        raise faults[0]


def _kept(folder: Path) -> None:
    from lovasz_embed.cli._kept import Kept, finish_publishing
    from lovasz_embed.formats import ImageRecord

    target = folder / "predictions.json"
    finish_publishing(target)
    kept = Kept(target, {"model": "x"}, True, {})
    kept.take_finished([ImageRecord(7, "a.png")])


def _kept_seed() -> Parts:
    command = {"model": "x", "beside": []}
    entry = b'{"height": 4, "width": 5}\n[]'
    return json.dumps(command, indent=2).encode(), json_bytes({**_COCO, "info": {"lovasz_embed": command}}), entry


def readers() -> dict[str, Reader]:
    """Return all readers by name."""
    train = {"steps": 5, "minutes": None, "batch": 2, "crop": 32, "learning_rate": 0.1, "spread": 2.0, "amp": True}
    log = (
        b'{"step": 20, "loss": 0.5, "category": 0.2, "instance": 0.1, "ncm": 0.1, "learning_rate": 0.1, "seconds": 1}\n'
    )
    scores = b'{"step": 20, "seconds": 1.5, "pq": 0.5, "miou": null}\n'
    history = b'{"command": "lovasz-embed train", "date": "x", "versions": {"torch": "2"}, "seconds": 3}\n'
    record = {
        "format": "coco-panoptic",
        "categories": [asdict_category(0, "floor", False), asdict_category(1, "cup", True)],
    }
    grey16, palette = image_bytes(_STREET), image_bytes(Image.fromarray(_RGB).quantize(4))
    pictures = {
        "png": (
            _PICTURE,
            palette,
            grey16,
            image_bytes(Image.fromarray(_RGB).convert("LA")),
            image_bytes(_RGB[..., 0] > 0),
        ),
        "jpeg": (image_bytes(_RGB, "JPEG"), image_bytes(_RGB, "JPEG", progressive=True)),
        "webp": (image_bytes(_RGB, "WEBP", lossless=True),),
        "bmp": (image_bytes(_RGB, "BMP"), image_bytes(_RGB[..., 0], "BMP")),
        "tiff": (
            *(
                tiff_bytes(_RGB),
                tiff_bytes(_STREET),
                tiff_bytes(_RGB, compression="zlib"),
                tiff_bytes(np.float32(_RGB)),
            ),
            *(
                image_bytes(_RGB, "TIFF", compression="tiff_lzw"),
                image_bytes(_RGB[..., 0], "TIFF", compression="packbits"),
            ),
        ),
    }
    maps_tiff = (tiff_bytes(_STREET), tiff_bytes(_STREET.astype(np.uint32), compression="zlib"))
    kitti16 = image_bytes((_STREET // 1000 * 256).astype(np.uint16))
    step = image_bytes(
        np.dstack([np.full((2, 3), 13, np.uint8), np.zeros((2, 3), np.uint8), np.ones((2, 3), np.uint8)])
    )
    found = {
        "COCO panoptic JSON + PNG": Reader(
            ("a.json", "a/a.png"),
            ("json", "png"),
            ((json_bytes(_COCO), _PICTURE), (json_bytes(_PREDICTED), _PICTURE)),
            _coco,
            2.0,
        ),
        "Cityscapes map": Reader(
            ("a.png",), ("png",), ((grey16,),), lambda f: must_be_labels(read_cityscapes_map(f / "a.png"), 19), 1.5
        ),
        "KITTI-STEP map": Reader(
            ("a.png",), ("png",), ((step,),), lambda f: must_be_labels(read_kitti_step_map(f / "a.png"), 19), 1.5
        ),
        "KITTI map": Reader(
            ("training/instance/a.png",),
            ("png",),
            ((kitti16,),),
            _street("kitti"),
            1.0,
            {"training/image_2/a.png": _PICTURE},
        ),
        "MOTS map + labels.txt": Reader(
            ("train/instances/s/a.png", "train/instances/labels.txt"),
            ("png", "bytes"),
            ((image_bytes(np.uint16([[1001, 0, 2003, 10000]])), b"car\npedestrian\n"),),
            _street("mots"),
            1.0,
            {"train/images/s/a.png": _PICTURE},
        ),
        "Vistas config": Reader(("a.json",), ("json",), ((json_bytes(_VISTAS_CONFIG),),), _config, 1.5),
        "Vistas panoptic": Reader(
            ("config_v1.2.json", "val/v1.2/panoptic/panoptic_2018.json", "val/v1.2/panoptic/a.png"),
            ("json", "json", "png"),
            ((json_bytes(_VISTAS_CONFIG), json_bytes(_VISTAS_JSON), _PICTURE),),
            _street("vistas"),
            1.0,
            {"val/images/a.jpg": _PICTURE},
        ),
        "Vistas instance map": Reader(
            ("config_v2.0.json", "val/v2.0/instances/a.png"),
            ("json", "png"),
            ((json_bytes(_VISTAS_CONFIG), image_bytes(np.uint16([[0, 256, 257, 512]]))),),
            _street("vistas"),
            1.0,
            {"val/images/a.jpg": _PICTURE},
        ),
        "instance map PNG": Reader(("a.png",), ("png",), ((grey16,), (palette,)), _label_map, 1.5),
        "instance map TIFF": Reader(("a.tif",), ("tiff",), tuple((m,) for m in maps_tiff), _label_map, 0.6),
        "instance map index.json": Reader(
            ("index.json",),
            ("json",),
            ((json_bytes([{"name": "a", "split": "train"}]),),),
            _index,
            1.0,
            {"images/a.png": _PICTURE, "labels/a.png": grey16},
        ),
        "config.json + model.safetensors": Reader(
            ("config.json", "model.safetensors"), ("json", "safetensors"), (_model_seed(),), _model, 0.3
        ),
        "dataset.json": Reader(("dataset.json",), ("json",), ((json_bytes(record),),), _dataset_record, 1.5),
        "train.json": Reader(("train.json",), ("json",), ((json_bytes(train),),), _train, 1.5),
        "a run's log, scores, history": Reader(
            ("log.jsonl", "scores.jsonl", "history.jsonl", "train.json", "dataset.json", "config.json"),
            ("lines", "lines", "lines", "json", "json", "json"),
            ((2 * log, scores, history, json_bytes(train), json_bytes(record), _model_seed()[0]),),
            _report,
            0.2,
        ),
        "folders of every format": Reader(
            ("tree.json",), ("json",), tuple((json_bytes(tree),) for tree in _TREES), _tree, 0.3
        ),
        "shards: manifest, index, tar": Reader(
            tuple(_shards_seed()), ("json", "flips", "json"), (tuple(_shards_seed().values()),), _shards, 0.7
        ),
        "checkpoint.pt": Reader(("checkpoint.pt",), ("zip",), (_checkpoint_seed(),), _checkpoint, 0.3),
        "command.json of --resume": Reader(
            (".predictions-partial/command.json", "predictions.json", ".predictions-partial/entries/a.json"),
            ("json", "json", "bytes"),
            (_kept_seed(),),
            _kept,
            0.7,
            {"predictions/a.png": _PICTURE},
        ),
    }
    for name, (ending, kind, weight) in {
        "png": (".png", "png", 1.0),
        "jpeg": (".jpg", "bytes", 0.7),
        "webp": (".webp", "bytes", 0.5),
        "bmp": (".bmp", "bytes", 0.7),
        "tiff": (".tif", "tiff", 0.4),
    }.items():
        seeds = tuple((content,) for content in pictures[name])
        found[f"picture {name.upper()}"] = Reader((f"a{ending}",), (kind,), seeds, _picture, weight)
    return found


def asdict_category(number: int, name: str, is_thing: bool) -> dict[str, Any]:
    """Return a category as `dataset.json` holds it."""
    from lovasz_embed.formats import Category

    return asdict(Category(number, name, is_thing))
