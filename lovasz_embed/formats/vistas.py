"""Mapillary Vistas 1.2 and 2.0: panoptic PNGs with a JSON, or instance maps of 256 × label + number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from lovasz_embed import _check
from lovasz_embed._check import message
from lovasz_embed.formats._base import VOID, Category, DataError, ImageRecord, Labels, PanopticDataset
from lovasz_embed.formats._coco_json import check_segments, read_annotations
from lovasz_embed.formats._codes import Codes, decode, require_grey_png, require_rgb_png
from lovasz_embed.formats._files import existing_folder, read_json
from lovasz_embed.formats._folders import PREDICT_ALONE, files_by_key, must_pair, one_split, sub_folders
from lovasz_embed.formats._label_writer import Files, count_things, known_category, paint, png, write_label_folder
from lovasz_embed.formats._pictures import PICTURE_SUFFIXES, read_coco_png, read_label_map, read_picture
from lovasz_embed.formats._segment_ids import SegmentLabel, decode_segments
from lovasz_embed.formats._vistas_config import VistasLabel, match_categories, read_vistas_config
from lovasz_embed.panoptic import PanopticResult, Segment

VERSIONS = ("v2.0", "v1.2")
SOURCES = ("panoptic", "instances")
_PER_LABEL = 256
_JSON = {"v1.2": "panoptic_2018.json", "v2.0": "panoptic_2020.json"}
_REMEDY = "A value is 256 times the label's position in the config, plus a number: is the config of another version?"


class Vistas(PanopticDataset):
    """A split of Mapillary Vistas.

    The categories are the labels that the config evaluates, in its order; the others are void. Pictures lie in
    `SPLIT/images`, labels in `SPLIT/VERSION/{panoptic,instances}`, or in `SPLIT/{panoptic,instances}` as in the first
    releases of 1.2.

    Args:
        folder: The folder that holds the splits and the config.
        split: "training" or "validation" for example; None takes the only one.
        version: "v1.2" or "v2.0"; None takes the newest that the folder has.
        source: "panoptic" (PNG and JSON: knows crowds) or "instances" (16-bit maps: do not); None takes the first
            that is there.

    Raises:
        DataError: No such split, version or source, a config that does not fit the labels, or pictures and labels
            that are not of the same names.
    """

    def __init__(
        self, folder: Path, split: str | None = None, *, version: str | None = None, source: str | None = None
    ) -> None:
        split = one_split(folder, vistas_splits(folder), split)
        version, config = _config(folder, version)
        pictures = existing_folder(folder / split / "images", f"the pictures of split {split}")
        labels = _label_folder(folder / split, version)
        self.folder, self.version = folder, version
        self.source = _source(labels, source)
        self.config = read_vistas_config(config)
        found = files_by_key(pictures, sorted(PICTURE_SUFFIXES))
        maps = files_by_key(labels / self.source, [".png"])
        must_pair(pictures, labels / self.source, found, maps)
        self._pictures, self._labels = tuple(found.values()), tuple(maps.values())
        self._label_of_id = {label.category_id: label for label in self.config}
        self._segments: tuple[list[dict[str, Any]], ...] = ()
        if self.source == "panoptic":
            self._read_json(labels / "panoptic", list(found))
        records = [ImageRecord(key, path.name) for key, path in found.items()]
        super().__init__(self._categories(config), records)

    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read the picture alone, uint8 (H, W, 3)."""
        return read_picture(self.image_file(index))

    def image_file(self, index: SupportsIndex) -> Path:
        """Return the file of the picture."""
        return self._pictures[self._position(index)]

    def labels(self, index: SupportsIndex) -> Labels:
        """Read the truth alone.

        Instances have the segment ids of the panoptic PNG, or 1 + the value in an instance map, where a number
        counts from 0. Crowds are known from the panoptic JSON only.
        """
        position = self._position(index)
        path = self._labels[position]
        if self.source == "instances":
            return _read_map(path, self.config)
        require_rgb_png(path)
        indices = {label: number for number, label in enumerate(evaluated(self.config))}
        segments = []
        for entry in self._segments[position]:
            label = self._label_of_id[entry["category_id"]]
            crowd = label.evaluate and bool(entry.get("iscrowd", 0))
            counted = label.evaluate and label.has_instances and not crowd
            instance = entry["id"] if counted else 0
            segments.append(SegmentLabel(entry["id"], indices.get(label, VOID), instance, crowd))
        return decode_segments(path, read_coco_png(path), segments)

    def _categories(self, config: Path) -> list[Category]:
        """Return the evaluated labels with the ids of the JSON; one that it leaves out has those of its place."""
        id_of = {label: number for number, label in self._label_of_id.items()}
        categories = []
        for label in evaluated(self.config):
            number = id_of.get(label, label.category_id)
            if label not in id_of and number in self._label_of_id:
                rule = f"leave id {number} to {label.name}, which the panoptic JSON does not list"
                raise DataError(message(str(config), rule, self._label_of_id[number].name))
            categories.append(Category(number, label.name, label.has_instances, label.name.partition("--")[0]))
        return categories

    def _read_json(self, folder: Path, keys: list[str]) -> None:
        """Read the panoptic JSON of a folder: what its category ids mean, and the segments of each picture."""
        files = sorted(folder.glob("*.json"))
        if len(files) != 1:
            got = ", ".join(file.name for file in files) or "none"
            raise DataError(message(str(folder), f"hold one JSON, {_JSON[self.version]}", got))
        [path] = files
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
            raise DataError(message(str(path), "hold a list 'annotations'", "none"))
        self._label_of_id = match_categories(path, content.get("categories"), self.config)
        annotations = read_annotations(path, content["annotations"])
        by_key = {Path(entry["file_name"]).stem: entry for entry in annotations.values()}
        must_pair(folder, path, dict.fromkeys(keys), by_key)
        for entry in by_key.values():
            check_segments(path, entry, self._label_of_id)
        self._segments = tuple(by_key[key]["segments_info"] for key in keys)


def evaluated(labels: Sequence[VistasLabel]) -> tuple[VistasLabel, ...]:
    """Return the labels that count, in the order of the categories."""
    return tuple(label for label in labels if label.evaluate)


def write_vistas(
    folder: str | PathLike[str],
    results: Iterable[PanopticResult],
    *,
    images: Sequence[ImageRecord],
    config: str | PathLike[str],
    version: str = "v2.0",
) -> None:
    """Write results as Mapillary Vistas writes its truth: `instances`, `labels` and `panoptic` of each picture.

    Instance maps know no crowds: there, each is one more instance. Void needs a label that the config does not
    evaluate, such as "void--unlabeled".

    Args:
        folder: In the place of `SPLIT/VERSION`; must not exist yet, or be empty.
        results: One picture or a batch each, in the order of `images`; categories are those that the config
            evaluates, in its order. An iterator is consumed one result at a time.
        images: `images` of the data set that was predicted.
        config: The config with the class list.
        version: "v1.2" or "v2.0", decides the name of the JSON and how its categories are named.

    Raises:
        DataError: Not as many pictures as images, a size other than the record's, more than 256 things of a label, a
            category or void that the config cannot say, or a place that is taken or cannot be written.

    >>> import json, tempfile, torch
    >>> car = {"name": "object--vehicle--car", "instances": True, "evaluate": True}
    >>> result = PanopticResult.from_maps(torch.tensor([[[0, 0]]]), torch.tensor([[[1, 2]]]), things={0})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "config.json").write_text(json.dumps({"labels": [car]}))
    ...     images, config = [ImageRecord("a", "a.jpg")], f"{folder}/config.json"
    ...     write_vistas(f"{folder}/v2.0", [result], images=images, config=config)
    ...     sorted(file.relative_to(folder).as_posix() for file in Path(folder, "v2.0").rglob("*.*"))
    ['v2.0/instances/a.png', 'v2.0/labels/a.png', 'v2.0/panoptic/a.png', 'v2.0/panoptic/panoptic_2020.json']
    """
    if not isinstance(version, str) or version not in VERSIONS:
        raise DataError(message("version", f"be one of {', '.join(VERSIONS)}", repr(version)))
    _check.is_path("config", config)
    labels = read_vistas_config(Path(config))
    counted = evaluated(labels)
    void = next((label.value for label in reversed(labels) if not label.evaluate), None)
    palette = [channel for label in labels for channel in label.color]
    nothing = void or 0  # without a label for void there is no void pixel: that is checked
    annotations: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []

    def label_of(segment: Segment) -> int:
        return counted[known_category(segment, len(counted))].value

    def files(image: ImageRecord, picture: PanopticResult) -> Files:
        if void is None and bool((picture.segmentation == 0).any()):
            rule = f"hold a label that is not evaluated, for the void pixels of {image.file_name}"
            raise DataError(message(str(config), rule, "none"))
        # Crowds get numbers as well: nothing else would tell them from the instance 0.
        everything = PanopticResult(
            picture.segmentation,
            (tuple(Segment(s.id, s.category, s.is_thing, s.area) for s in picture.segments[0]),),
        )
        numbers = count_things(everything, 0, _PER_LABEL - 1, "an instance map")

        def value(segment: Segment) -> int:
            return _PER_LABEL * label_of(segment) + numbers.get(segment.id, 0)

        maps = {
            f"instances/{image.name}.png": png(paint(picture, value, _PER_LABEL * nothing, np.uint16)),
            f"labels/{image.name}.png": png(paint(picture, label_of, nothing, np.uint8), palette),
        }
        ids = [label.category_id for label in counted]
        [(annotation, colours)] = picture.to_coco([image.image_id], ids, [f"{image.name}.png"])
        height, width = picture.segmentation.shape[-2:]
        annotations.append(annotation)
        listed.append({"id": image.image_id, "file_name": image.file_name, "height": height, "width": width})
        return {**maps, f"panoptic/{image.name}.png": png(colours)}

    def last() -> Files:
        content = {
            "images": listed,
            "annotations": annotations,
            "categories": [_category_entry(label, version) for label in counted],
        }
        return {f"panoptic/{_JSON[version]}": json.dumps(content).encode()}

    write_label_folder(folder, results, images, files, last)


def vistas_splits(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders that hold `images`, sorted."""
    existing_folder(folder, "a folder of splits, each with images/")
    splits = tuple(name for name in sub_folders(folder) if (folder / name / "images").is_dir())
    if not splits:
        raise DataError(message(str(folder), "hold SPLIT/images/", "no such folder"))
    return splits


def _config(folder: Path, version: str | None) -> tuple[str, Path]:
    """Return version and config of a data set: what was asked for, or the newest that has labels or a config."""
    if version is not None and version not in VERSIONS:
        raise DataError(message("version", f"be one of {', '.join(VERSIONS)}", repr(version)))
    flat = any((folder / split / source).is_dir() for split in vistas_splits(folder) for source in SOURCES)
    there = [name for name in VERSIONS if any((folder / split / name).is_dir() for split in vistas_splits(folder))] or (
        ["v1.2"] if flat else []
    )
    chosen = version or next(iter(there), None)
    if chosen is None or chosen not in there:
        rule = f"hold labels in SPLIT/{chosen or 'VERSION'}/, or in SPLIT/panoptic/ and SPLIT/instances/ (v1.2)"
        raise DataError(message(str(folder), rule, f"labels of {', '.join(there) or 'no version'}", PREDICT_ALONE))
    names = [f"config_{chosen}.json", *(["config.json"] if chosen == "v1.2" else [])]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        others = ", ".join(sorted(file.name for file in folder.glob("config*.json"))) or "none"
        remedy = "Each version has a class list of its own."
        raise DataError(message(str(folder), f"hold {names[0]} for its {chosen} labels", others, remedy))
    return chosen, path


def _label_folder(split: Path, version: str) -> Path:
    folder = split / version
    if not folder.is_dir() and version == "v1.2":
        folder = split
    if not any((folder / source).is_dir() for source in SOURCES):
        raise DataError(message(str(folder), "hold panoptic/ or instances/", "neither", PREDICT_ALONE))
    return folder


def _source(folder: Path, source: str | None) -> str:
    if source is not None and source not in SOURCES:
        raise DataError(message("source", f"be one of {', '.join(SOURCES)}", repr(source)))
    chosen = source or next(name for name in SOURCES if (folder / name).is_dir())
    existing_folder(folder / chosen, f"the {chosen} labels")
    return chosen


def _read_map(path: Path, labels: tuple[VistasLabel, ...]) -> Labels:
    require_grey_png(path, 16)
    return decode(path, read_label_map(path), _codes(labels), _REMEDY)


@cache
def _codes(labels: tuple[VistasLabel, ...]) -> Codes:
    codes = Codes.empty()
    indices = {label: number for number, label in enumerate(evaluated(labels))}
    for label in labels:
        first = _PER_LABEL * label.value
        values = np.arange(first, first + _PER_LABEL)
        codes.known[values] = True
        codes.semantic[values] = indices.get(label, VOID)
        if label.evaluate and label.has_instances:
            codes.instance[values] = values + 1
    return codes


def _category_entry(label: VistasLabel, version: str) -> dict[str, Any]:
    old = version == "v1.2"
    return {
        "id": label.category_id,
        "name": label.readable if old else label.name,
        "supercategory": label.name if old else label.name.partition("--")[0],
        "isthing": int(label.has_instances),
        "color": list(label.color),
    }
