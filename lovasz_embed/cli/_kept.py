"""What a prediction has done so far, kept beside its place until all of it is there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed import _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed.formats import Category, DataError, ImageRecord, read_coco_panoptic
from lovasz_embed.formats._coco_writer import CocoParts, keep_only, link
from lovasz_embed.formats._files import read_json, writing
from lovasz_embed.model import CONFIG, WEIGHTS
from lovasz_embed.panoptic import PanopticResult

Write = Callable[[Path, NDArray[np.uint8], PanopticResult], None]
"""Writes a file of one picture; gets a path to which it may add an ending."""

_COMMAND = "command.json"
_PUBLISHING = "publishing.json"  # is there from when all files are whole until all are in their place
_TOOL = "lovasz_embed"


class Kept:
    """The files of single pictures in a hidden folder, whole or not at all, until they are published together.

    Args:
        target: The JSON of the predictions that are being made; the folder lies beside it.
        command: What decides the results; only those of an equal one are taken up.
        resume: Whether to take up what is there; else what is unfinished goes.
        beside: What to write of each picture beside the COCO files, by the name of its folder.

    Raises:
        DataError: If what is unfinished comes from another command, or nothing can be written there.
    """

    def __init__(self, target: Path, command: dict[str, Any], resume: bool, beside: Mapping[str, Write]) -> None:
        self.target, self.folder, self.beside = target, _partial(target), dict(beside)
        self.command = {**command, "beside": sorted(beside)}
        self.parts = CocoParts(self.folder)
        text = json.dumps(self.command, indent=2)
        place = self.folder / _COMMAND
        if resume and place.is_file() and place.read_bytes() != text.encode():
            remedy = "Give the same RUN, --tile, --overlap and --overlays, or leave --resume out to begin anew."
            rule = "be what the same command left"
            raise DataError(_check.message(str(self.folder), rule, "results of another one", remedy))
        if not resume or not place.is_file():
            shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(place, text.encode())
        except OSError as error:
            reason = error.strerror or str(error)
            remedy = "Choose another --out."
            raise DataError(_check.message(str(target), "be writable", reason, remedy)) from error

    def __len__(self) -> int:
        return len(self.parts)

    def has(self, name: str) -> bool:
        """Return whether a picture of this name is done."""
        return self.parts.has(name) and all(_file_of(self.folder / each, name) for each in self.beside)

    def keep(
        self, image: ImageRecord, picture: NDArray[np.uint8], result: PanopticResult, categories: Sequence[Category]
    ) -> None:
        """Write what belongs to one picture."""
        with writing(self.target):
            for name, write in self.beside.items():
                place = self.folder / name / image.name
                place.parent.mkdir(parents=True, exist_ok=True)
                write(place, picture, result)
            self.parts.add(image, result, categories)

    def take_finished(self, images: Sequence[ImageRecord]) -> None:
        """Take up the pictures of finished predictions, if those come from the same command."""
        try:
            finished = read_coco_panoptic(self.target)  # checks that every file is there
        except DataError:
            return
        content = read_json(self.target)
        if not isinstance(content.get("info"), dict) or content["info"].get(_TOOL) != self.command:
            return
        info = {entry["file_name"]: entry["segments_info"] for entry in content["annotations"]}
        sizes = {record.name: (record.height, record.width) for record in finished.images}
        for image in images:
            height, width = sizes.get(image.name, (None, None))
            files = {name: _file_of(self.target.parent / name, image.name) for name in self.beside}
            if self.has(image.name) or height is None or width is None or None in files.values():
                continue
            for name, source in files.items():
                if source is not None:
                    place = (self.folder / name / image.name).with_name(source.name)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    link(source, place)
            png = f"{image.name}.png"
            self.parts.take(image, self.target.with_suffix("") / png, (height, width), info[png])

    def publish(self, images: Sequence[ImageRecord], categories: Sequence[Category]) -> list[Path]:
        """Put everything in its place, the COCO files first, and return the folders; then forget it here.

        What is there is replaced. From the moment on at which all files are whole, whatever cuts this off is made up
        for by `finish_publishing`.
        """
        with writing(self.target):
            self.parts.prepare(images, categories, {_TOOL: self.command})
            for name in self.beside:
                keep_only(self.folder / name, {_file_of(self.folder / name, image.name) for image in images})
            write_atomically(self.folder / _PUBLISHING, json.dumps(list(self.beside)).encode())
        return finish_publishing(self.target)

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def finish_publishing(target: Path) -> list[Path]:
    """Do what is left to do where predictions were whole and being put in their places; return the folders beside.

    Every step can be done again, so `kill -9` between two of them costs nothing: the next command begins here. The
    earlier results lie in the hidden folder until all of the new ones are in their place.

    Raises:
        DataError: A file cannot be renamed.
    """
    folder, places = _partial(target), list[Path]()
    if not (folder / _PUBLISHING).is_file():
        return places
    with writing(target):
        _swap(folder / "png", target.with_suffix(""), folder / "old")
        if (folder / "json").is_file():
            os.replace(folder / "json", target)
        for name in read_json(folder / _PUBLISHING):
            places.append(target.parent / name)
            _swap(folder / name, places[-1], folder / f"old {name}")
    shutil.rmtree(folder, ignore_errors=True)
    return places


def _swap(new: Path, place: Path, old: Path) -> None:
    """Rename `new` to `place`, and what is there to `old`, unless that was done before."""
    if new.exists():
        if place.exists() and not old.exists():
            os.replace(place, old)
        os.replace(new, place)


def _partial(target: Path) -> Path:
    return target.parent / f".{target.stem}-partial"


def _file_of(folder: Path, name: str) -> Path | None:
    """Return the file of a picture in a folder, whatever its ending; None where there is none."""
    files = (folder / f"{name}{ending}" for ending in (".png", ".tif"))
    return next((file for file in files if file.is_file()), None)


def command_of(run: Path, **options: object) -> dict[str, Any]:
    """Return what decides the results of a prediction: the model's files and the options."""
    content = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        content.update((run / name).read_bytes())
    return {"model": content.hexdigest(), **options}
