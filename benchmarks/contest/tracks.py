"""The pictures of the contest: what is trained on, tuned on and tested on, and the films of the stability score."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contest.painted import Painted
from lovasz_embed import synthetic
from lovasz_embed.formats import Sample, open_dataset
from lovasz_embed.model import prepare
from lovasz_embed.training import Labelled

TRACKS = ("synthetic", "few", "nuclei", "coco")
_FEW = 40  # one scene in so many is left to train on
_SIZE, _MOST = (256, 256), 44  # of 44 things on the street 4 to 30 show enough of themselves, 15 on average
# Seeds of the scenes: two seeds have no scene in common. Those of 3 were looked at while our method was being changed.
_TRAIN, _VAL, _FILMS, _TEST = 1, 2, 4, 5


class FilmFrame(NamedTuple):
    """One frame with its truth; `at` is where its first pixel lies in the surface that the film shows."""

    picture: Tensor
    semantic: Tensor
    instance: Tensor
    at: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Amounts:
    """How many pictures are looked at."""

    train: int
    val: int
    test: int
    films: int
    frames: int


@dataclass(frozen=True)
class Track:
    """The data of one track.

    Attributes:
        name: One of `TRACKS`.
        classes: Names of the categories.
        things: Those that have instances.
        train, val, test: Pictures with labels. Nothing is chosen by looking at `test`.
        films: For the stability score.
        moving: Whether the place of a frame's window is known: sliding windows, in contrast to a film.
        model: Options of `ModelConfig` that differ from its defaults, for every contestant.
        training: Options of `TrainConfig`, likewise.
    """

    name: str
    classes: tuple[str, ...]
    things: frozenset[int]
    train: Sequence[Labelled]
    val: Sequence[Labelled]
    test: Sequence[Labelled]
    films: Sequence[Sequence[FilmFrame]]
    moving: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def open_track(name: str, amounts: Amounts, *, cache: Path, data: Path | None = None) -> Track:
    """Open a track; what has to be painted is painted once into `cache`."""
    if name == "synthetic":
        return _synthetic(amounts, cache)
    if name == "few":  # the same but for the number of examples
        return replace(_synthetic(replace(amounts, train=max(amounts.train // _FEW, 2)), cache), name=name)
    folder = data or data_folder()
    return _nuclei(amounts, folder) if name == "nuclei" else _coco(amounts, folder)


def data_folder() -> Path:
    """Return the folder of real pictures: that of LOVASZ_EMBED_DATA, or `shared/data` beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LOVASZ_EMBED_DATA", beside))
    if not folder.is_dir():
        raise SystemExit(f"the tracks nuclei and coco need real pictures: {folder} must exist; set LOVASZ_EMBED_DATA")
    return folder


def _synthetic(amounts: Amounts, cache: Path) -> Track:
    options: dict[str, Any] = {"size": _SIZE, "max_things": _MOST, "extended": True}

    def split(count: int, seed: int) -> Painted:
        return Painted(synthetic.StreetScenes(count, seed=seed, **options), cache)

    return Track(
        "synthetic",
        synthetic.EXTENDED_CLASSES,
        synthetic.EXTENDED_THINGS,
        split(amounts.train, _TRAIN),
        split(amounts.val, _VAL),
        split(amounts.test, _TEST),
        _Clips(amounts, options),
        model={"min_thing_area": 24},  # what shows less is not drawn
        training={"batch": 4, "crop": 160, "jitter": 0.0},  # scenes come in all exposures already
    )


def _nuclei(amounts: Amounts, data: Path) -> Track:
    folder = data / "dsb2018_nuclei"
    known, test = (open_dataset(folder, format="instance-map", split=split) for split in ("train", "val"))
    # Every tenth or so is held out for tuning; the order of the files says nothing about their content.
    held = set(range(0, len(known), -(-len(known) // 40)))
    train = [index for index in range(len(known)) if index not in held]
    return Track(
        "nuclei",
        ("background", "nucleus"),
        frozenset({1}),
        _Part(known, train[: amounts.train]),
        _Part(known, sorted(held)[: amounts.val]),
        _Part(test, range(min(amounts.test, len(test)))),
        _Windows(test, amounts),
        moving=True,
        training={"batch": 4, "crop": 192, "turn": True},
    )


def _coco(amounts: Amounts, data: Path) -> Track:
    folder = data / "coco_panoptic_open"
    known, test = (open_dataset(folder, format="coco-panoptic", split=split) for split in ("train", "val"))
    held = range(0, len(known), 5)  # 6 of the 26 pictures
    train = [index for index in range(len(known)) if index not in held]
    return Track(
        "coco",
        tuple(category.name for category in known.categories),
        frozenset(known.things),
        _Part(known, train[: amounts.train]),
        _Part(known, held[: amounts.val]),
        _Part(test, range(min(amounts.test, len(test)))),
        _Windows(test, amounts),
        moving=True,
        model={"dims": 16, "unit": 32.0},
        training={"batch": 4, "crop": 224, "scale": 1.6},
    )


class _Part(Sequence[Sample]):
    """Some pictures of a data set."""

    def __init__(self, pictures: Any, chosen: Sequence[int]) -> None:
        self.pictures, self.chosen = pictures, tuple(chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        return self.pictures[self.chosen[index]]


class _Clips(Sequence[Sequence[FilmFrame]]):
    """Clips of the painted street: things move, the camera drives and turns; ids are exact."""

    def __init__(self, amounts: Amounts, options: Mapping[str, Any]) -> None:
        self.amounts, self.options = amounts, options

    def __len__(self) -> int:
        return self.amounts.films

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        frames = []
        for scene in synthetic.street_clip((_FILMS, index), frames=self.amounts.frames, **self.options):
            image = (scene.image * 255).round().byte().permute(1, 2, 0).numpy()
            frames.append(FilmFrame(prepare(image), scene.semantic, scene.instance))
        return frames


class _Windows(Sequence[Sequence[FilmFrame]]):
    """A window that slides over a picture, 4 to 8 pixels a frame along each axis: the truth is exact."""

    def __init__(self, pictures: Any, amounts: Amounts) -> None:
        self.pictures, self.frames = pictures, amounts.frames
        self.count = min(amounts.films, len(pictures))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return list(self._slide(index))

    def _slide(self, index: int) -> Iterator[FilmFrame]:
        sample = self.pictures[index]
        rng = np.random.default_rng((_FILMS, index))
        picture = prepare(sample.image)  # of the whole picture: the exposure stays as it is
        instance = torch.from_numpy(sample.instance.astype(np.int64))
        semantic = torch.from_numpy(sample.semantic.astype(np.int64))
        steps = rng.integers(4, 9, (self.frames, 2))
        steps[0] = 0
        way = steps.cumsum(0)
        room = [side - int(way[-1, axis]) for axis, side in enumerate(semantic.shape)]
        height, width = (max(min(192, side), 32) for side in room)
        top, left = (int(rng.integers(max(side - own, 0) + 1)) for side, own in zip(room, (height, width), strict=True))
        flip = rng.integers(2, size=2)
        for step in way:
            row, column = (int(way[-1, a] - step[a] if flip[a] else step[a]) for a in (0, 1))
            part = (slice(top + row, top + row + height), slice(left + column, left + column + width))
            yield FilmFrame(picture[:, *part], semantic[part], instance[part], (top + row, left + column))
