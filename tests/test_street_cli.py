"""The command line on street data sets: train, evaluate, predict, evaluate the files; every format opens by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from lovasz_embed.cli import app
from lovasz_embed.cli._presets import PRESETS
from lovasz_embed.cli._run import open_split
from lovasz_embed.formats import FORMATS
from lovasz_embed.model import ModelConfig
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.training import TrainConfig
from tests.street_folders import STREET, scenes, things_of, write_dataset

SHORT = ("--steps", "6", "--crop", "32", "--batch", "2", "--minutes", "0")


@pytest.fixture(autouse=True)
def _tiny_models() -> Iterator[None]:
    """Let `train` build small networks: what is tested is the road, not how far a network gets."""

    def tiny(**options: Any) -> ModelConfig:
        return ModelConfig(**{**options, "widths": (4, 8), "stride": 1, "min_stuff_area": 8, "min_thing_area": 4})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["lovasz_embed.cli.train"], "ModelConfig", tiny)
        yield


def command(*arguments: object) -> dict[str, Any]:
    """Run a command that must succeed, and return its JSON object."""
    code, stdout, stderr = 0, StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            app([*map(str, arguments), "--json"], prog_name="lovasz-embed")
        except SystemExit as end:
            code = int(end.code or 0)
    assert code == 0, stderr.getvalue()
    record: dict[str, Any] = json.loads(stdout.getvalue())
    return record


def train(folder: Path, format: str, run: Path) -> dict[str, Any]:
    return command("train", "--data", folder, "--format", format, "--out", run, *SHORT)


@pytest.mark.parametrize("format", ["cityscapes", "vistas", "kitti-step", "kitti", "mots"])
def test_files_that_a_run_predicts_score_as_the_run_does(tmp_path: Path, format: str) -> None:
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    for split in ("train", "val"):
        pairs = list(scenes(format, 4))
        write_dataset(data, format, [truth for _, truth in pairs], split, [image for image, _ in pairs])
    trained = train(data, format, run)
    assert trained["pictures"] == 4
    direct = command("evaluate", run, "--data", data)
    assert command("predict", run, "--data", data, "--split", "val", "--out", out)["pictures"] == 4
    by_files = command("evaluate", "--pred", out, "--truth", data, "--format", format)
    assert direct.pop("seconds") > 0
    assert by_files.pop("seconds") > 0
    assert by_files == direct
    assert direct["pictures"] == 4
    assert 0 < direct["pq"] <= 1  # a road that carries nothing would agree with itself too


def test_void_alone_and_pictures_without_things_can_be_trained_on(tmp_path: Path) -> None:
    """They teach nothing about what they lack, and break nothing."""
    zeros = torch.zeros(1, 32, 36, dtype=torch.int32)
    void = PanopticResult(zeros, ((),))
    stuff = PanopticResult.from_maps(zeros, zeros, things=things_of("cityscapes"))
    write_dataset(tmp_path / "void", "cityscapes", [void, void])
    write_dataset(tmp_path / "both", "cityscapes", [void, stuff])
    for name in ("void", "both"):
        trained = train(tmp_path / name, "cityscapes", tmp_path / f"run-{name}")
        assert trained["loss"] == trained["loss"]
    scores = command("evaluate", tmp_path / "run-both", "--data", tmp_path / "both")
    assert scores["pq_things"] is None  # an average over nothing
    assert scores["per_class"]["road"]["tp"] + scores["per_class"]["road"]["fn"] == 1


def test_a_run_refuses_the_classes_of_another_data_set(tmp_path: Path) -> None:
    for format in ("cityscapes", "kitti-step"):
        write_dataset(tmp_path / format, format, [truth for _, truth in scenes(format, 2)])
    train(tmp_path / "cityscapes", "cityscapes", tmp_path / "run")
    with pytest.raises(AssertionError, match="must have the 19 categories of the run, got 19; of the run only: "):
        command("evaluate", tmp_path / "run", "--data", tmp_path / "kitti-step", "--format", "kitti-step")


@pytest.mark.parametrize("format", [name for name in STREET if name != "cityscapes-coarse"])
@pytest.mark.parametrize(("train_name", "val_name"), [("train", "val"), ("training", "validation")])
def test_the_preferred_split_is_known_by_both_its_names(
    tmp_path: Path, format: str, train_name: str, val_name: str
) -> None:
    for split, count in ((train_name, 3), (val_name, 2)):
        write_dataset(tmp_path, format, [truth for _, truth in scenes(format, count)], split)
    assert len(open_split(tmp_path, format, None, "train")) == 3
    assert len(open_split(tmp_path, format, None, "val")) == 2


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_a_preset_that_can_be_built(format: str) -> None:
    assert set(PRESETS) == set(FORMATS)
    chosen = PRESETS[format]
    assert TrainConfig(**chosen.training).crop >= 192
    assert ModelConfig(classes=("a", "b"), things=(1,), **chosen.model).unit > 0
