"""The command line: the whole road on tiny data sets, one JSON line for programs, one clear line for mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hotcoco.panoptic import PanopticEval
from PIL import Image

from lovasz_embed.__main__ import main
from lovasz_embed.cli import app
from lovasz_embed.cli._run import open_split
from lovasz_embed.formats import (
    Category,
    ImageRecord,
    read_coco_panoptic,
    read_instance_map,
    write_coco_panoptic,
    write_instance_map,
)
from lovasz_embed.model import ModelConfig, PanopticEmbedder, prepare
from lovasz_embed.panoptic import PanopticResult

ROOT = Path(__file__).resolve().parents[1]
VERBS = ("demo", "train", "predict", "evaluate", "export", "info")
SCORES = ("pq", "sq", "rq", "pq_things", "pq_stuff", "ap50", "miou", "per_class", "pictures", "seconds")
CATEGORIES = (Category(3, "floor", False), Category(90, "square", True), Category(200, "bar [red]", True))
SHORT = ("--steps", "160", "--batch", "4", "--crop", "32", "--learning-rate", "0.01", "--minutes", "0")


class Example(NamedTuple):
    """A data set, its format, and a run that was trained on it."""

    data: Path
    format: str
    run: Path


class Answer(NamedTuple):
    """What a command leaves: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str


def lovasz_embed(*arguments: object) -> Answer:
    """Run the command in this process; a fault of ours, not of the user, raises."""
    code, stdout, stderr = 0, StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            app([str(argument) for argument in arguments], prog_name="lovasz-embed")
        except SystemExit as end:
            code = int(end.code or 0)
    return Answer(code, stdout.getvalue(), stderr.getvalue())


def succeed(*arguments: object) -> Answer:
    answer = lovasz_embed(*arguments)
    assert answer.code == 0, answer.stderr
    return answer


def record_of(*arguments: object) -> dict[str, Any]:
    """Return the JSON object of a successful command, which is all that stdout holds."""
    lines = succeed(*arguments, "--json").stdout.splitlines()
    assert len(lines) == 1
    record: dict[str, Any] = json.loads(lines[0])
    return record


def assert_refused(text: str, *arguments: object) -> None:
    """Run a command that must end in one line, in which `text` occurs, and exit code 2.

    Before it `train` and `demo` say what they are about to train.
    """
    answer = lovasz_embed(*arguments)
    assert (answer.code, answer.stdout) == (2, ""), answer.stderr
    *before, line = answer.stderr.splitlines()
    assert line.startswith("error: ")
    assert text in line
    assert len(before) <= (arguments[0] in {"train", "demo"}), answer.stderr


# --- tiny data sets


def scene(number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return a picture of two things on a floor, its categories and its instances, 32 × 36 pixels."""
    rng = np.random.default_rng(number)
    image = np.full((32, 36, 3), 40, np.uint8)
    semantic, instance = np.zeros((32, 36), np.uint8), np.zeros((32, 36), np.int32)
    for identifier, category, left, height in ((1, 1, 2, 9), (2, 2, 20, 13)):
        top, width = rng.integers(2, 16), rng.integers(8, 12)
        part = (slice(top, top + height), slice(left, left + width))
        image[part] = (200, 120, 40) if category == 1 else (60, 220, 220)
        semantic[part], instance[part] = category, identifier
    return image, semantic, instance


def write_instance_maps(folder: Path, splits: dict[str, int]) -> Path:
    """Write pictures with 16-bit maps; both kinds of things are the one object of this format."""
    (folder / "images").mkdir(parents=True)
    index: list[dict[str, str]] = []
    for split, count in splits.items():
        for number in range(count):
            image, _, instance = scene(len(index))
            name = f"{split}{number}"
            Image.fromarray(image).save(folder / "images" / f"{name}.png")
            write_instance_map(folder / "labels" / f"{name}.png", instance)
            index.append({"name": name, "split": split})
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def write_coco(folder: Path, splits: dict[str, int], categories: tuple[Category, ...] = CATEGORIES) -> Path:
    """Write a COCO panoptic data set whose truth has void and crowd as well."""
    first = 0
    for split, count in splits.items():
        (folder / split).mkdir(parents=True)
        records, results = [], []
        for number in range(first, first + count):
            image, semantic, instance = scene(number)
            Image.fromarray(image).save(folder / split / f"{number:012}.png")
            semantic[:3], instance[:3] = 255, 0
            crowd = np.zeros(semantic.shape, bool)
            if number % 3 == 2:
                crowd = semantic == 2
            records.append(ImageRecord(1000 + number, f"{number:012}.png", 32, 36))
            maps = (torch.from_numpy(array)[None] for array in (semantic, instance, crowd))
            results.append(PanopticResult.from_maps(*(next(maps), next(maps)), things={1, 2}, crowd=next(maps)))
        path = folder / "annotations" / f"panoptic_{split}.json"
        write_coco_panoptic(path, results, images=records, categories=categories)
        first += count
    return folder


@pytest.fixture(scope="module", autouse=True)
def _tiny_models() -> Iterator[None]:
    """Let `train` and `demo` build small networks: what is tested is the road, not how far a network gets."""

    def tiny(**options: Any) -> ModelConfig:
        return ModelConfig(**{**options, "widths": (4, 8)})

    with pytest.MonkeyPatch.context() as patch:
        for verb in ("train", "demo"):
            patch.setattr(sys.modules[f"lovasz_embed.cli.{verb}"], "ModelConfig", tiny)
        yield


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("nuclei")
    data = write_instance_maps(folder / "data", {"train": 4, "val": 3})
    succeed("train", "--data", data, "--format", "instance-map", "--out", folder / "run", *SHORT)
    return Example(data, "instance-map", folder / "run")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("coco")
    data = write_coco(folder / "data", {"train2017": 4, "val2017": 3})
    succeed("train", "--data", data, "--out", folder / "run", *SHORT)
    return Example(data, "coco-panoptic", folder / "run")


@pytest.fixture(params=["coco", "nuclei"])
def example(request: pytest.FixtureRequest) -> Example:
    chosen: Example = request.getfixturevalue(request.param)
    return chosen


def copy_of(example: Example, place: Path) -> Example:
    """Copy data and run, to be damaged."""
    shutil.copytree(example.data, place / "data")
    shutil.copytree(example.run, place / "run")
    return Example(place / "data", example.format, place / "run")


# --- the whole road


def test_scores_of_a_run_are_those_of_the_files_it_writes(example: Example, tmp_path: Path) -> None:
    direct = record_of("evaluate", example.run, "--data", example.data)
    succeed("predict", example.run, "--data", example.data, "--out", tmp_path)
    options = ["--format", example.format] if example.format != "coco-panoptic" else []
    by_files = record_of("evaluate", "--pred", tmp_path, "--truth", example.data, *options)
    assert tuple(direct) == tuple(by_files) == (*SCORES, "failed")
    assert direct.pop("failed") == by_files.pop("failed") == []
    assert direct.pop("seconds") > 0
    assert by_files.pop("seconds") > 0
    classes, classes_by_files = direct.pop("per_class"), by_files.pop("per_class")
    assert by_files == pytest.approx(direct, abs=1e-9)
    assert classes_by_files.keys() == classes.keys()
    for name, scores in classes.items():
        assert set(scores) == {"pq", "sq", "rq", "tp", "fp", "fn"}
        assert classes_by_files[name] == pytest.approx(scores, abs=1e-9)
    assert direct["pictures"] == 3
    # A road that carries nothing would agree with itself too. The floor alone gives 0.31; 16 seeds gave that and more.
    assert direct["pq"] > 0.25


def assert_hotcoco_agrees(truth: Path, predictions: Path, ours: dict[str, Any]) -> None:
    """Compare the means over all, things and stuff, and the counts of every class."""
    evaluation = PanopticEval(truth, predictions)
    evaluation.evaluate()
    theirs = evaluation.results()
    for name in ("pq", "sq", "rq"):
        assert ours[name] == pytest.approx(theirs["All"][name], abs=1e-6)
    assert ours["pq_things"] == pytest.approx(theirs["Things"]["pq"], abs=1e-6)
    assert ours["pq_stuff"] == pytest.approx(theirs["Stuff"]["pq"], abs=1e-6)
    for category in read_coco_panoptic(truth).categories:
        counts, expected = ours["per_class"][category.name], theirs["per_class"].get(category.id)
        for name in ("tp", "fp", "fn"):
            assert counts[name] == (expected[name] if expected else 0)


def test_hotcoco_scores_the_written_files_the_same(coco: Example, tmp_path: Path) -> None:
    succeed("predict", coco.run, "--data", coco.data, "--out", tmp_path)
    truth = coco.data / "annotations" / "panoptic_val2017.json"
    ours = record_of("evaluate", "--pred", tmp_path / "predictions.json", "--truth", truth)
    assert_hotcoco_agrees(truth, tmp_path / "predictions.json", ours)


@pytest.mark.slow
def test_hotcoco_scores_predictions_of_photographs_the_same(shared_data: Path, tmp_path: Path) -> None:
    data = shared_data / "coco_panoptic_open"
    run, truth = tmp_path / "run", data / "annotations" / "panoptic_val2017.json"
    succeed("train", "--data", data, "--out", run, "--steps", 30, "--crop", 128, "--learning-rate", 0.01)
    succeed("predict", run, "--data", data, "--out", tmp_path / "p", "--overlays")
    ours = record_of("evaluate", "--pred", tmp_path / "p", "--truth", truth)
    assert ours["pictures"] == len(list((tmp_path / "p" / "overlays").glob("*.png"))) == 14
    assert sum(counts["fp"] for counts in ours["per_class"].values()) > 0
    assert_hotcoco_agrees(truth, tmp_path / "p" / "predictions.json", ours)


def test_train_reports_what_it_did_and_leaves_a_whole_run(example: Example, tmp_path: Path) -> None:
    options = ["--format", example.format, "--out", tmp_path / "run", "--steps", 20, "--crop", 16]
    record = record_of("train", "--data", example.data, *options)
    parameters = sum(p.numel() for p in PanopticEmbedder.from_pretrained(tmp_path / "run").parameters())
    assert record.pop("seconds") > 0
    assert record.pop("loss") > 0
    assert record == {"run": str(tmp_path / "run"), "pictures": 4, "parameters": parameters, "steps": 20}
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        *("checkpoint.pt", "config.json", "dataset.json", "history.jsonl", "log.jsonl"),
        *("model.safetensors", "train.json"),
    }


def test_a_resumed_run_is_the_uninterrupted_one(
    nuclei: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["lovasz_embed.cli.train"]
    monkeypatch.setitem(module.PRESETS["instance-map"].training, "checkpoint_every", 2)
    options = ["--data", nuclei.data, "--format", "instance-map", "--steps", 6, "--crop", 16, "--minutes", 0]
    succeed("train", *options, "--out", tmp_path / "whole")

    @contextmanager
    def interrupted() -> Iterator[Callable[[Any], None]]:
        def show(progress: Any) -> None:
            if progress.step == 5:
                raise KeyboardInterrupt

        yield show

    with monkeypatch.context() as patch:
        patch.setattr(module, "training_bar", interrupted)
        result = lovasz_embed("train", *options, "--out", tmp_path / "cut")
    assert result.code == 130
    assert "--resume goes on from the last checkpoint" in result.stderr
    assert_refused("RUN must be a folder with dataset.json", "evaluate", tmp_path / "cut", "--data", nuclei.data)
    assert record_of("train", *options, "--out", tmp_path / "cut", "--resume")["steps"] == 6
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert record_of("train", *options, "--out", tmp_path / "cut", "--resume")["steps"] is None  # nothing was left


def test_tensorboard_files_are_written_into_the_run(nuclei: Example, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    options = ["--format", "instance-map", "--out", tmp_path, "--steps", 20, "--crop", 16, "--tensorboard"]
    succeed("train", "--data", nuclei.data, *options)
    [events] = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()


def test_the_demo_scores_and_paints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["lovasz_embed.cli.demo"], "TRAINING_SCENES", 2)
    record = record_of("demo", "--steps", 2, "--scenes", 2, "--out", tmp_path / "demo")
    assert tuple(record) == SCORES
    assert record["pictures"] == 2
    with Image.open(tmp_path / "demo" / "demo.png") as picture:
        assert picture.width > picture.height > 2 * 96
    # The demo's run is one like any other.
    succeed("predict", tmp_path / "demo", tmp_path / "demo" / "demo.png", "--out", tmp_path / "p")


def test_info_tells_versions_and_runs(coco: Example) -> None:
    versions = record_of("info")
    assert {"lovasz-embed", "python", "torch", "numba", "typer"} <= versions.keys()
    run = record_of("info", coco.run)
    assert run["classes"] == ["floor", "square", "bar [red]"]
    assert run["things"] == ["square", "bar [red]"]
    assert len(run["class_pixels"]) == 3


# --- predictions


def test_predictions_of_instance_maps_come_as_maps_too(nuclei: Example, tmp_path: Path) -> None:
    succeed("predict", nuclei.run, "--data", nuclei.data, "--split", "val", "--out", tmp_path)
    written = read_coco_panoptic(tmp_path / "predictions.json")
    assert sorted(file.stem for file in (tmp_path / "labels").iterdir()) == ["val0", "val1", "val2"]
    for index, name in enumerate(written.names):
        labels = read_instance_map(tmp_path / "labels" / f"{name}.png")
        assert np.array_equal(labels, written.result(index).instance()[0].numpy())
        assert labels.max() > 0


def test_pictures_and_folders_of_pictures_are_predicted(coco: Example, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, size in (("folder/a.jpg", (50, 20)), ("folder/b.png", (33, 47)), ("c.png", (5, 1))):
        Image.new("RGB", size, (200, 120, 40)).save(tmp_path / name)
    pictures = [tmp_path / "c.png", tmp_path / "folder"]
    record = record_of("predict", coco.run, *pictures, "--out", tmp_path / "out", "--overlays")
    assert record.pop("seconds") > 0
    predictions = str(tmp_path / "out" / "predictions.json")
    assert record == {"predictions": predictions, "pictures": 3, "resumed": 0, "failed": []}
    assert sorted(file.name for file in (tmp_path / "out" / "overlays").iterdir()) == ["a.png", "b.png", "c.png"]
    written = read_coco_panoptic(tmp_path / "out" / "predictions.json")
    assert written.names == ("c", "a", "b")
    assert written.categories == CATEGORIES
    assert [tuple(written.labels(i).semantic.shape) for i in range(3)] == [(1, 5), (20, 50), (47, 33)]


def test_predicting_again_replaces_what_was_there(nuclei: Example, tmp_path: Path) -> None:
    for split, names in (("train", 4), ("val", 3)):
        succeed("predict", nuclei.run, "--data", nuclei.data, "--split", split, "--out", tmp_path, "--overlays")
        for folder in ("predictions", "labels", "overlays"):
            assert len(list((tmp_path / folder).iterdir())) == names
    assert sorted(file.name for file in tmp_path.iterdir()) == ["labels", "overlays", "predictions", "predictions.json"]


def test_the_truth_of_a_data_set_is_never_overwritten(nuclei: Example, tmp_path: Path) -> None:
    data = copy_of(nuclei, tmp_path).data
    before = {file: file.read_bytes() for file in data.rglob("*") if file.is_file()}
    text = "labels must be free for what belongs to predictions.json, got it exists. Choose another --out."
    assert_refused(text, "predict", nuclei.run, "--data", data, "--out", data)
    assert {file: file.read_bytes() for file in data.rglob("*") if file.is_file()} == before


def test_a_resumed_prediction_is_the_uninterrupted_one(
    nuclei: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["predict", nuclei.run, "--data", nuclei.data, "--split", "train", "--overlays"]
    succeed(*arguments, "--out", tmp_path / "whole")
    module = sys.modules["lovasz_embed.training.evaluate"]
    seen: list[tuple[int, ...]] = []

    def counting(image: Any) -> torch.Tensor:
        seen.append(image.shape)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return prepare(image)

    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare", counting)
        result = lovasz_embed(*arguments, "--out", tmp_path / "cut")
        assert result.code == 130
        assert "--resume goes on from the 2 pictures that are done" in result.stderr
        assert [path.name for path in (tmp_path / "cut").iterdir()] == [".predictions-partial"]
        refused = [*arguments, "--out", tmp_path / "cut", "--resume", "--tile", 64]
        assert_refused("must be what the same command left, got results of another one", *refused)
        assert record_of(*arguments, "--out", tmp_path / "cut", "--resume")["resumed"] == 2
        assert len(seen) == 3 + 2  # of four pictures, two were there
    files = [
        {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("whole", "cut")
    ]
    assert files[0] == files[1]


def test_finished_predictions_are_taken_up_when_pictures_come_along(nuclei: Example, tmp_path: Path) -> None:
    folder, out = copy_of(nuclei, tmp_path).data / "images", tmp_path / "out"
    later = (folder / "val1.png").read_bytes()
    (folder / "val1.png").unlink()
    arguments = ["predict", nuclei.run, folder, "--out", out, "--resume"]
    first = record_of(*arguments)["pictures"]
    (folder / "val1.png").write_bytes(later)
    assert record_of(*arguments) | {"seconds": 0} == {
        "predictions": str(out / "predictions.json"),
        "pictures": first + 1,
        "resumed": first,
        "seconds": 0,
        "failed": [],
    }
    succeed(*arguments[:-2], tmp_path / "whole")
    one, other = (read_coco_panoptic(place / "predictions.json") for place in (out, tmp_path / "whole"))
    assert one.images == other.images
    assert [one.result(i) for i in range(len(one))] == [other.result(i) for i in range(len(one))]
    maps = [
        {file.name: file.read_bytes() for file in (place / "labels").iterdir()} for place in (out, out.parent / "whole")
    ]
    assert maps[0] == maps[1]
    # Other options: nothing of it is theirs. With overlays, which are not there yet, nothing is whole.
    assert record_of(*arguments, "--tile", 16)["resumed"] == 0
    assert record_of(*arguments, "--tile", 16, "--overlays")["resumed"] == 0
    assert record_of(*arguments, "--tile", 16, "--overlays")["resumed"] == first + 1


def test_without_resume_a_prediction_begins_anew(nuclei: Example, tmp_path: Path) -> None:
    data = copy_of(nuclei, tmp_path).data
    content = (data / "images" / "val1.png").read_bytes()
    (data / "images" / "val1.png").write_bytes(content[:60])
    arguments = ["predict", nuclei.run, "--data", data, "--split", "val", "--out", tmp_path / "p"]
    for _ in range(2):
        assert lovasz_embed(*arguments).code == 1
    (data / "images" / "val1.png").write_bytes(content)
    assert record_of(*arguments)["resumed"] == 0


def test_tiles_are_segmented_as_the_whole(nuclei: Example, tmp_path: Path) -> None:
    arguments = ["predict", nuclei.run, "--data", nuclei.data]
    succeed(*arguments, "--out", tmp_path / "whole")
    succeed(*arguments, "--out", tmp_path / "tiles", "--tile", 16)
    maps = [sorted((tmp_path / name / "labels").iterdir()) for name in ("whole", "tiles")]
    assert len(maps[0]) == 3
    for whole, tiles in zip(*maps, strict=True):
        assert np.array_equal(read_instance_map(whole), read_instance_map(tiles))
    near = succeed(*arguments, "--out", tmp_path / "near", "--tile", 16, "--overlap", 2)
    assert "--overlap 2 is less than the 11 pixels" in near.stderr
    assert "Warning" not in near.stderr


# --- splits


def test_without_a_split_train_takes_train_and_the_others_val(example: Example, tmp_path: Path) -> None:
    options = ["--format", example.format, "--out", tmp_path / "run", "--steps", 1, "--crop", 16]
    assert record_of("train", "--data", example.data, *options)["pictures"] == 4
    assert record_of("predict", example.run, "--data", example.data, "--out", tmp_path / "p")["pictures"] == 3
    assert record_of("evaluate", example.run, "--data", example.data, "--split", "train")["pictures"] == 4


@pytest.mark.parametrize(
    ("splits", "size"),
    [
        ({"test": 1, "val": 2}, 2),
        ({"test": 1, "validation": 2}, 2),
        ({"val": 2, "val_hard": 1}, 2),
        ({"stage1": 3}, 3),
    ],
)
def test_a_split_is_preferred_by_name_or_beginning(tmp_path: Path, splits: dict[str, int], size: int) -> None:
    data = write_instance_maps(tmp_path, splits)
    assert len(open_split(data, "instance-map", None, "val")) == size


@pytest.mark.parametrize("splits", [{"val1": 1, "val2": 1}, {"a": 1, "b": 1}])
def test_a_split_that_is_not_clear_fails_clearly(nuclei: Example, tmp_path: Path, splits: dict[str, int]) -> None:
    data = write_instance_maps(tmp_path, splits)
    assert_refused(f"split must be one of {', '.join(splits)}", "evaluate", nuclei.run, "--data", data)


def test_pictures_without_splits_are_one(nuclei: Example, tmp_path: Path) -> None:
    data = write_instance_maps(tmp_path, {"a": 1, "b": 1})
    (data / "index.json").unlink()
    assert record_of("evaluate", nuclei.run, "--data", data)["pictures"] == 2


# --- what a person reads


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_there(verb: str) -> None:
    result = succeed(*verb.split(), "--help")
    assert f"Usage: lovasz-embed {verb or '[OPTIONS]'}" in result.stdout
    assert verb or all(name in result.stdout for name in VERBS)


def test_people_read_stderr_and_without_a_terminal_little_of_it(coco: Example, tmp_path: Path) -> None:
    result = succeed("train", "--data", coco.data, "--out", tmp_path / "run", "--steps", 40, "--crop", 16)
    assert result.stdout == ""
    assert "\x1b" not in result.stderr
    assert "\r" not in result.stderr
    assert len(result.stderr.splitlines()) == 12  # what is trained, ten tenths, where it lies
    assert f"evaluate {tmp_path / 'run'} --data {coco.data}" in result.stderr
    result = succeed("evaluate", coco.run, "--data", coco.data)
    assert result.stdout == ""
    assert "bar [red]" in result.stderr
    assert "\x1b" not in result.stderr


def test_the_module_is_the_command() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "lovasz_embed", "evaluate"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    text = "error: evaluate must be given RUN or --weights with --data, or --pred with --truth, got none of them\n"
    assert (answer.returncode, answer.stdout, answer.stderr) == (2, "", text)


@pytest.mark.parametrize("missing", ["typer", "rich", "PIL", "safetensors"])
def test_without_the_extra_the_command_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    text = f'lovasz-embed needs {missing} on the command line: pip install "lovasz-embed[cli]"\n'
    assert capsys.readouterr() == ("", text)


def test_a_bare_install_reaches_that_line_with_nothing_else_imported() -> None:
    blocked = ["typer", "click", "rich", "PIL", "tifffile", "safetensors", "tensorboard"]
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({blocked})); "
    code += "runpy.run_module('lovasz_embed', run_name='__main__')"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.splitlines() == ['lovasz-embed needs PIL on the command line: pip install "lovasz-embed[cli]"']


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("train --data {tmp}/nope --out {tmp}/r", "nope must be a folder with annotations/, got nothing there"),
        ("train --data {tmp}/nope --out {tmp}/r --format instance-map", "nope must be a folder with images/"),
        ("train --data {empty} --out {tmp}/r", "empty must hold annotations/panoptic_SPLIT.json, got no such file"),
        ("train --data {empty} --out {tmp}/r --format instance-map", "empty must hold a folder labels/, got none"),
        ("train --data {data} --out {tmp}/r --format voc", "format must be one of coco-panoptic, instance-map"),
        ("train --data {data} --out {tmp}/r --split test", "split must be one of train2017, val2017"),
        ("train --data {data} --out {tmp}/r --steps 0", "steps must be at least 1, got 0"),
        ("train --data {data} --out {tmp}/r --minutes -1", "minutes must be a finite number above 0, got -1"),
        ("train --data {data} --out {tmp}/r --device moon", "--device must be a device that torch can use here, got"),
        ("train --data {data} --out {file}/r", "file/r/checkpoint.pt must be writable, got Not a directory"),
        ("train --data {data} --out {file}", "file/checkpoint.pt must be writable, got File exists"),
        ("evaluate {run} --data {tmp}/nope", "nope must be a folder with annotations/"),
        ("evaluate {run} --data {data} --split test", "split must be one of train2017, val2017"),
        ("evaluate {run} --data {data} --format voc", "format must be one of coco-panoptic, instance-map"),
        ("evaluate {run} --data {data} --device moon", "--device must be a device that torch can use here, got"),
        ("evaluate {empty} --data {data}", "RUN must be a folder with dataset.json"),
        ("evaluate {run} --data {nuclei} --format instance-map", "must have the 3 categories of the run, got 2"),
        ("evaluate {run}", "must be given RUN or --weights with --data, or --pred with --truth, got RUN"),
        ("evaluate {run} --data {data} --truth {data}", "got RUN --data --truth"),
        ("evaluate --pred {tmp}/p.json --truth {data}", "p.json must exist, got no such file"),
        ("evaluate --pred {empty} --truth {data}", "predictions.json must exist, got no such file"),
        ("evaluate --pred {truth} --truth {tmp}/t.json", "t.json must exist, got no such file"),
        ("evaluate --pred {truth} --truth {truth} --split val", "--truth must be a folder where --format or --split"),
        ("evaluate --pred {truth} --truth {data} --split train", "panoptic_val2017.json must hold image 1000"),
        ("predict {run}", "predict must be given either PICTURES or --data, got neither"),
        ("predict {run} {file} --data {data}", "predict must be given either PICTURES or --data, got both"),
        ("predict {run} {file} --split val", "--format and --split must come with --data, got PICTURES"),
        ("predict {run} {tmp}/nope.png", "nope.png must be a picture or a folder of pictures, got nothing there"),
        ("predict {run} {empty}", "empty must hold files ending in"),
        ("predict {run} {file} --out {tmp}/p", "file must be a readable picture"),
        ("predict {run} --data {data} --out {file}/p", "p/predictions.json must be writable, got Not a directory"),
        ("predict {run} --data {data} --tile 0 --out {tmp}/p", "tile must be at least 1, got 0"),
        ("predict {run} --data {data} --tile 33 --out {tmp}/p", "tile must be a multiple of 4, the network's stride"),
        ("predict {run} --data {data} --overlap 8 --out {tmp}/p", "overlap must come with a tile, got 8"),
        ("export {empty}", "RUN must be a folder with dataset.json"),
        ("export {run} --format tensorrt", "--format must be one of onnx, torch-export, got 'tensorrt'"),
        ("export {run} --out {tmp}/model.pt", "--out must end in .onnx for --format onnx, got model.pt"),
        ("predict {empty} {file}", "RUN must be a folder with dataset.json"),
        ("info {empty}", "empty must hold config.json, got no such file"),
        ("demo --out {file}/r", "file/r/checkpoint.pt must be writable, got Not a directory"),
        ("demo --minutes 0 --out {tmp}/r", "minutes must be a finite number above 0, got 0"),
    ],
)
def test_a_mistake_is_refused_in_one_clear_line(
    coco: Example, nuclei: Example, tmp_path: Path, arguments: str, text: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no picture")
    places = {
        "tmp": tmp_path,
        "empty": tmp_path / "empty",
        "file": tmp_path / "file",
        "data": coco.data,
        "run": coco.run,
        "nuclei": nuclei.data,
        "truth": coco.data / "annotations" / "panoptic_val2017.json",
    }
    assert_refused(text, *(word.format(**places) for word in arguments.split()))
    assert {path.name for path in tmp_path.iterdir()} <= {"empty", "file", "p"}
    assert list(tmp_path.rglob("*.*")) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(coco: Example) -> None:
    text = "--device must be a device that torch can use here, got 'cuda'"
    assert_refused(text, "evaluate", coco.run, "--data", coco.data, "--device", "cuda")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "dataset.json"])
def test_a_run_without_one_of_its_files_is_refused(nuclei: Example, tmp_path: Path, name: str) -> None:
    run = copy_of(nuclei, tmp_path).run
    (run / name).unlink()
    for verb in ("evaluate", "predict"):
        assert_refused(name, verb, run, "--data", nuclei.data, *(["--out", tmp_path / "p"] * (verb == "predict")))


def test_a_run_put_together_from_two_is_refused(coco: Example, nuclei: Example, tmp_path: Path) -> None:
    run = copy_of(nuclei, tmp_path).run
    shutil.copy(coco.run / "dataset.json", run)
    text = "dataset.json must list the 2 classes of config.json beside it, got 3 other ones"
    assert_refused(text, "predict", run, "--data", coco.data, "--out", tmp_path / "p")


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "instance-map", "categories": [{"id": 0}]}'])
def test_a_broken_record_of_the_data_set_is_refused(nuclei: Example, tmp_path: Path, content: str) -> None:
    run = copy_of(nuclei, tmp_path).run
    (run / "dataset.json").write_text(content)
    assert_refused("dataset.json must be what `train` wrote", "evaluate", run, "--data", nuclei.data)


@pytest.mark.parametrize(
    ("categories", "text"),
    [
        ((*CATEGORIES[:2], Category(201, "pole", True)), "of the run only: bar [red]; of the data set only: pole"),
        ((*CATEGORIES[:2], replace(CATEGORIES[2], is_thing=False)), "must have the 3 categories of the run, got 3"),
    ],
)
def test_other_categories_than_those_of_the_run_are_refused(
    coco: Example, tmp_path: Path, categories: tuple[Category, ...], text: str
) -> None:
    data = write_coco(tmp_path, {"val2017": 1}, categories)
    assert_refused(text, "evaluate", coco.run, "--data", data)


def test_a_prediction_of_an_unknown_category_is_refused(coco: Example, tmp_path: Path) -> None:
    succeed("predict", coco.run, "--data", coco.data, "--out", tmp_path)
    content = json.loads((tmp_path / "predictions.json").read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 77
    (tmp_path / "predictions.json").write_text(json.dumps(content))
    text = "must have a category of 'categories', got category_id 77"
    assert_refused(text, "evaluate", "--pred", tmp_path, "--truth", coco.data)


def test_predictions_of_other_pictures_are_refused(nuclei: Example, tmp_path: Path) -> None:
    succeed("predict", nuclei.run, "--data", nuclei.data, "--split", "train", "--out", tmp_path)
    options = ["--truth", nuclei.data, "--format", "instance-map", "--split", "val"]
    assert_refused("predictions.json must hold a prediction of val0", "evaluate", "--pred", tmp_path, *options)


# Newer Pythons warn wherever a process with threads forks, as every DataLoader with workers does.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_ends_training_in_one_line(nuclei: Example, tmp_path: Path, workers: int) -> None:
    data = copy_of(nuclei, tmp_path).data
    for picture in (data / "images").iterdir():
        picture.write_bytes(b"\x89PNG")
    options = ["--format", "instance-map", "--out", tmp_path / "new", "--workers", workers]
    assert_refused("png must be a readable picture", "train", "--data", data, *options)
    assert not (tmp_path / "new" / "model.safetensors").exists()


@pytest.mark.parametrize("option", [("--seed", 9), ("--learning-rate", 0.5), ("--steps", 81)])
def test_a_checkpoint_of_other_options_is_refused(nuclei: Example, tmp_path: Path, option: tuple[str, object]) -> None:
    run = copy_of(nuclei, tmp_path).run
    before = {file: file.read_bytes() for file in run.iterdir()}
    options = ["--data", nuclei.data, "--format", "instance-map", "--out", run, *SHORT]
    assert_refused("must be a checkpoint of the same configuration", "train", *options, *option, "--resume")
    assert {file: file.read_bytes() for file in run.iterdir()} == before
