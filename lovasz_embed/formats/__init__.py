"""Read and write the files of panoptic and instance segmentation.

`open_dataset` opens a folder in one of the `FORMATS`; for each format there is a function that writes results.
Pillow and tifffile come with the extra `io` and are imported when the first picture is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lovasz_embed._check import message
from lovasz_embed.formats._base import Category, DataError, ImageRecord, Labels, PanopticDataset, Sample
from lovasz_embed.formats._cityscapes_classes import CITYSCAPES_CLASSES, CityscapesClass
from lovasz_embed.formats._clips import Clip, ClipDataset
from lovasz_embed.formats._coco_writer import write_coco_panoptic
from lovasz_embed.formats._shard_files import Shard, shard_splits
from lovasz_embed.formats._shard_writer import write_shards
from lovasz_embed.formats._vistas_config import VistasLabel
from lovasz_embed.formats.cityscapes import Cityscapes, cityscapes_splits, read_cityscapes_map, write_cityscapes
from lovasz_embed.formats.coco import CocoPanoptic, coco_splits, open_coco_folder, read_coco_panoptic
from lovasz_embed.formats.instance_map import (
    InstanceMaps,
    Pictures,
    instance_map_splits,
    open_pictures,
    read_instance_map,
    write_instance_map,
)
from lovasz_embed.formats.kitti import Kitti, Mots, kitti_splits, mots_splits, write_kitti, write_mots
from lovasz_embed.formats.kitti_step import KittiStep, kitti_step_splits, read_kitti_step_map, write_kitti_step
from lovasz_embed.formats.shards import Shards, ShardStream, stream_shards
from lovasz_embed.formats.vistas import Vistas, vistas_splits, write_vistas

__all__ = [
    "CITYSCAPES_CLASSES",
    "FORMATS",
    "Category",
    "Cityscapes",
    "CityscapesClass",
    "Clip",
    "ClipDataset",
    "CocoPanoptic",
    "DataError",
    "Format",
    "ImageRecord",
    "InstanceMaps",
    "Kitti",
    "KittiStep",
    "Labels",
    "Mots",
    "PanopticDataset",
    "Pictures",
    "Sample",
    "Shard",
    "ShardStream",
    "Shards",
    "Vistas",
    "VistasLabel",
    "dataset_splits",
    "open_dataset",
    "open_pictures",
    "read_cityscapes_map",
    "read_coco_panoptic",
    "read_instance_map",
    "read_kitti_step_map",
    "stream_shards",
    "write_cityscapes",
    "write_coco_panoptic",
    "write_instance_map",
    "write_kitti",
    "write_kitti_step",
    "write_mots",
    "write_shards",
    "write_vistas",
]


class Format(NamedTuple):
    """How a format opens a split of a folder, and how it lists the splits."""

    open: Callable[[Path, str | None], PanopticDataset]
    splits: Callable[[Path], tuple[str, ...]]


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "coco-panoptic": Format(open_coco_folder, coco_splits),
        "instance-map": Format(InstanceMaps, instance_map_splits),
        "cityscapes": Format(Cityscapes, cityscapes_splits),
        "cityscapes-coarse": Format(
            partial(Cityscapes, annotations="gtCoarse"), partial(cityscapes_splits, annotations="gtCoarse")
        ),
        "vistas": Format(Vistas, vistas_splits),
        "vistas-v1.2": Format(partial(Vistas, version="v1.2"), vistas_splits),
        "vistas-v2.0": Format(partial(Vistas, version="v2.0"), vistas_splits),
        "kitti-step": Format(KittiStep, kitti_step_splits),
        "kitti": Format(Kitti, kitti_splits),
        "mots": Format(Mots, mots_splits),
        "shards": Format(Shards, shard_splits),
    }
)
"""The known formats by name; a new one is one line here."""


def open_dataset(folder: str | PathLike[str], *, format: str, split: str | None = None) -> PanopticDataset:
    """Open a folder of pictures and their truth.

    Args:
        folder: The data set.
        format: "coco-panoptic" (`annotations/panoptic_SPLIT*.json`, its PNG folder beside it, pictures in
            `SPLIT2017/` or `SPLIT/`), "instance-map" (`images/`, `labels/`, and `index.json` where it has
            splits), "cityscapes", "cityscapes-coarse", "vistas" (the newest version that is there), "vistas-v1.2",
            "vistas-v2.0", "kitti-step", "kitti", "mots" or "shards"; the class of each describes its folders.
        split: Name of a split, for COCO with or without its year; None takes the only one.

    Returns:
        The data set; pictures are read from disk as they are asked for.

    Raises:
        DataError: An unknown format, a missing folder or split (the text lists those that exist), or files
            that disagree.

    >>> import tempfile, numpy as np
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "images").mkdir()
    ...     Image.new("L", (3, 2)).save(f"{folder}/images/cell.png")
    ...     write_instance_map(f"{folder}/labels/cell.png", np.array([[0, 1, 1], [0, 2, 2]]))
    ...     data = open_dataset(folder, format="instance-map")
    ...     data, data.things, data[0].instance.tolist()
    (InstanceMaps(1 pictures, 2 categories), frozenset({1}), [[0, 1, 1], [0, 2, 2]])
    """
    return _format(format).open(Path(folder), split)


def dataset_splits(folder: str | PathLike[str], *, format: str) -> tuple[str, ...]:
    """Return the names of a folder's splits; () where its pictures are undivided.

    Args:
        folder: The data set.
        format: As in `open_dataset`.

    Raises:
        DataError: An unknown format, or a folder that is not of this format.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     records = '[{"name": "a", "split": "train"}, {"name": "b", "split": "val"}]'
    ...     _ = Path(folder, "index.json").write_text(records)
    ...     dataset_splits(folder, format="instance-map")
    ('train', 'val')
    """
    return _format(format).splits(Path(folder))


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise DataError(message("format", f"be one of {', '.join(FORMATS)}", repr(name)))
    return FORMATS[name]
