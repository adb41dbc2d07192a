"""`predict` and `evaluate` over folders: what one bad file, a full disk, a second process or `kill -9` may cost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lovasz_embed.cli import _kept, app
from lovasz_embed.cli._run import DatasetRecord
from lovasz_embed.formats import (
    Category,
    DataError,
    ImageRecord,
    read_coco_panoptic,
    write_cityscapes,
    write_coco_panoptic,
    write_instance_map,
)
from lovasz_embed.formats._lock import locked
from lovasz_embed.model import ModelConfig, PanopticEmbedder

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = (Category(0, "background", is_thing=False), Category(1, "object", is_thing=True))
RECORD = ImageRecord(1, "a.png")
COUNT = 3


def command(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """Run the command in this process: exit code, JSON object, stderr."""
    code, stdout, stderr = 0, StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            app([str(argument) for argument in arguments] + ["--json"], prog_name="lovasz-embed")
        except SystemExit as end:
            code = int(end.code or 0)
    lines = stdout.getvalue().splitlines()
    return code, json.loads(lines[-1]) if lines else {}, stderr.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a random network, whose class means are embeddings of its own."""
    folder = tmp_path_factory.mktemp("folders") / "RUN"
    torch.manual_seed(0)
    config = {"widths": (4, 6), "dims": 5, "min_thing_area": 4, "min_stuff_area": 4}
    model = PanopticEmbedder(ModelConfig(classes=("background", "object"), things=(1,), **config)).eval()
    with torch.no_grad():
        embedding = model(2 * torch.rand(1, 3, 32, 32) - 1)
        model.ncm.update(embedding, torch.arange(1024).view(1, 32, 32) % 2)
    model.save_pretrained(folder)
    DatasetRecord("instance-map", CATEGORIES).save(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance-map data set of a few small pictures."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("source")
    (folder / "images").mkdir(parents=True)
    for number in range(COUNT):
        image = rng.integers(0, 255, (24, 20, 3), np.uint8)
        Image.fromarray(image).save(folder / "images" / f"p{number}.png")
        write_instance_map(folder / "labels" / f"p{number}.png", np.arange(480).reshape(24, 20) // 240)
    return folder


@pytest.fixture
def data(source: Path, tmp_path: Path) -> Path:
    """That data set, to be damaged."""
    return Path(shutil.copytree(source, tmp_path / "data"))


@pytest.fixture(scope="module")
def whole(run: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions of all pictures, with overlays, that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert command("predict", run, source / "images", "--overlays", "--out", folder)[0] == 0
    return folder


def damage(file: Path) -> bytes:
    content = file.read_bytes()
    file.write_bytes(content[:60])
    return content


# --- one bad file


def test_one_bad_picture_is_told_at_the_end_and_the_rest_is_done(
    run: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    arguments = ["predict", run, data / "images", "--overlays"]
    bad = data / "images" / "p1.png"
    good = damage(bad)
    code, record, stderr = command(*arguments, "--out", tmp_path / "out")
    assert code == 1
    assert (record["pictures"], [failure["picture"] for failure in record["failed"]]) == (COUNT - 1, ["p1"])
    assert record["failed"][0]["reason"].startswith(f"{bad} must be a readable picture, got ")
    *_, told, named = stderr.splitlines()
    wanted = (
        f"error: 1 of {COUNT} pictures failed, the others are done; the same command with --resume tries them again"
    )
    assert told == wanted
    assert named == f"  p1: {record['failed'][0]['reason']}"
    assert read_coco_panoptic(tmp_path / "out" / "predictions.json").names == ("p0", "p2")
    assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == [f"p{n}.png" for n in (0, 2)]
    # Still bad: nothing is lost by trying. Mended: that picture alone is computed.
    assert command(*arguments, "--out", tmp_path / "out", "--resume")[:2] == (
        1,
        {**record, "resumed": COUNT - 1, "seconds": pytest.approx(0, abs=60)},
    )
    bad.write_bytes(good)
    code, record, _ = command(*arguments, "--out", tmp_path / "out", "--resume")
    assert (code, record["pictures"], record["resumed"], record["failed"]) == (0, COUNT, COUNT - 1, [])
    assert files_of(tmp_path / "out") == files_of(whole)


def test_a_picture_of_another_size_than_its_record_is_one_bad_picture(run: Path, data: Path, tmp_path: Path) -> None:
    command("predict", run, data / "images", "--out", tmp_path / "first")
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    shutil.copytree(data / "images", coco / "val")
    shutil.move(tmp_path / "first" / "predictions", coco / "annotations" / "panoptic_val")
    shutil.move(tmp_path / "first" / "predictions.json", coco / "annotations" / "panoptic_val.json")
    Image.new("RGB", (9, 9)).save(coco / "val" / "p1.png")
    arguments = ["--data", coco, "--format", "coco-panoptic"]
    code, record, _ = command("predict", run, *arguments, "--out", tmp_path / "out")
    assert (code, record["pictures"]) == (1, COUNT - 1)
    assert record["failed"] == [
        {"picture": "p1", "reason": "results must have the size 24 x 20 of image 2, got 9 x 9 (height x width)"}
    ]
    code, record, _ = command("evaluate", run, *arguments)
    assert (code, record["pictures"]) == (1, COUNT - 1)
    reason = "the prediction of p1 must have the size 24 x 20 of its truth, got 9 x 9 (height x width)"
    assert record["failed"] == [{"picture": "p1", "reason": reason}]


@pytest.mark.parametrize("half", ["images", "labels"])
def test_scores_are_those_of_the_pictures_that_can_be_read(run: Path, data: Path, half: str, tmp_path: Path) -> None:
    arguments = ["evaluate", run, "--data", data, "--format", "instance-map"]
    damage(data / half / "p1.png")
    code, record, stderr = command(*arguments)
    assert (code, record["pictures"], [failure["picture"] for failure in record["failed"]]) == (1, COUNT - 1, ["p1"])
    assert f"error: 1 of {COUNT} pictures failed, the others are done; the scores are theirs" in stderr
    for folder in ("images", "labels"):
        (data / folder / "p1.png").unlink()
    code, without, _ = command(*arguments)
    assert code == 0
    assert without | {"seconds": 0} == record | {"seconds": 0, "failed": []}


def test_a_bad_prediction_is_one_bad_picture(run: Path, data: Path, tmp_path: Path) -> None:
    command("predict", run, "--data", data, "--out", tmp_path / "out")
    damage(tmp_path / "out" / "predictions" / "p0.png")
    options = ["--pred", tmp_path / "out", "--truth", data, "--format", "instance-map"]
    code, record, _ = command("evaluate", *options)
    assert (code, record["pictures"], [failure["picture"] for failure in record["failed"]]) == (1, COUNT - 1, ["p0"])


def test_where_no_picture_can_be_read_nothing_is_written(run: Path, data: Path, tmp_path: Path) -> None:
    command("predict", run, data / "images", "--out", tmp_path / "out")
    before = files_of(tmp_path / "out")
    for picture in (data / "images").iterdir():
        damage(picture)
    for arguments in (["predict", run, data / "images", "--out", tmp_path / "out"], ["evaluate", run, "--data", data]):
        code, record, stderr = command(*arguments)
        assert (code, record) == (2, {})
        [line] = stderr.splitlines()
        assert line.startswith(f"error: {data / 'images' / 'p0.png'} must be a readable picture, got ")
        assert line.endswith(f"{COUNT - 1} more pictures failed too.")
    assert files_of(tmp_path / "out") == before


def test_no_memory_for_one_picture_is_the_fault_of_that_picture(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (20, 99)).save(data / "images" / "p1.png")
    segment = PanopticEmbedder.segment

    def small_only(self: PanopticEmbedder, picture: torch.Tensor) -> Any:
        if picture.shape[-2] > 24:
            raise MemoryError("99 rows")
        return segment(self, picture)

    monkeypatch.setattr(PanopticEmbedder, "segment", small_only)
    code, record, _ = command("predict", run, data / "images", "--out", tmp_path / "out")
    assert (code, record["failed"]) == (1, [{"picture": "p1", "reason": "out of memory (99 rows)"}])


# --- places that cannot be written


def test_a_full_disk_ends_the_work_and_costs_nothing_of_it(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["predict", run, data / "images", "--out", tmp_path / "out"]
    keep, kept = _kept.CocoParts.add, list[str]()

    def full(self: Any, image: Any, *rest: Any) -> None:
        if len(kept) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        kept.append(image.name)
        keep(self, image, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(_kept.CocoParts, "add", full)
        code, record, stderr = command(*arguments)
    assert (code, record) == (2, {})
    assert "the same command with --resume goes on from the 2 pictures that are done" in stderr
    text = "predictions.json must be writable, got No space left on device. Choose another place for it."
    assert stderr.splitlines()[-1] == f"error: {tmp_path / 'out'}/{text}"
    code, record, _ = command(*arguments, "--resume")
    assert (code, record["resumed"], record["pictures"]) == (0, 2, COUNT)


def test_no_room_for_a_picture_that_is_read_by_parts_is_no_fault_of_the_picture(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Image.fromarray(np.zeros((24, 20), np.uint16)).save(data / "images" / "p0.png")  # takes an array of its own
    monkeypatch.setattr(os, "posix_fallocate", full)
    code, _, stderr = command("predict", run, data / "images", "--out", tmp_path / "out", "--tile", 16)
    assert code == 2
    assert "No space left on device" in stderr.splitlines()[-1]
    assert "readable" not in stderr


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: root may")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(run: Path, data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(COUNT):  # noise, so that maps and overlays take their room
        Image.fromarray(rng.integers(0, 255, (80, 80, 3), np.uint8)).save(data / "images" / f"p{number}.png")
    with small_disk(tmp_path / "disk"):
        code, _, stderr = command("predict", run, data / "images", "--out", tmp_path / "disk", "--overlays")
        assert code == 2
        assert "No space left on device" in stderr.splitlines()[-1]
        assert not (tmp_path / "disk" / "predictions.json").exists()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_place_that_is_taken_is_refused_before_the_work(
    run: Path, data: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PanopticEmbedder, "segment", None)  # any work would be a fault
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    else:
        (out / "predictions.json").mkdir(parents=True)
    code, _, stderr = command("predict", run, data / "images", "--out", out)
    assert code == 2
    assert "predictions.json must be " in stderr


# --- two processes on one place


def test_a_second_process_on_one_place_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out / "predictions.json"):
        code, _, stderr = command("predict", run, data / "images", "--out", out)
        assert code == 2
        text = "must be written by one process at a time, got another. Wait for it, or choose another place."
        assert stderr == f"error: {out / 'predictions.json'} {text}\n"
        with pytest.raises(DataError, match="one process at a time"):
            write_coco_panoptic(out / "predictions.json", [None], images=[RECORD], categories=[])  # type: ignore[list-item]
    with locked(out / "labels"):  # which predictions of another name in the same folder would replace
        assert command("predict", run, data / "images", "--out", out / "other.json")[0] == 2
    with locked(tmp_path / "maps"), pytest.raises(DataError, match="one process at a time"):
        write_cityscapes(tmp_path / "maps", [None], images=[RECORD])  # type: ignore[list-item]
    assert command("predict", run, data / "images", "--out", out)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["labels", "predictions", "predictions.json"]


def test_a_lock_does_not_outlive_its_process(tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    code = "import fcntl, os, sys, time; f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(f, 2);"
    code += "print('held', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".a.json.lock")], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(DataError, match="one process at a time"), locked(place):
        pass
    child.kill()
    child.communicate()
    assert (tmp_path / ".a.json.lock").exists()
    with locked(place):
        assert (tmp_path / ".a.json.lock").exists()
    assert list(tmp_path.iterdir()) == []


# --- cut off in the middle


@pytest.mark.parametrize(("renames", "earlier"), [(1, False), (3, False), (2, True), (5, True), (7, True)])
def test_publishing_that_was_cut_off_is_finished_by_the_next_command(
    run: Path, data: Path, whole: Path, tmp_path: Path, renames: int, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["predict", run, data / "images", "--overlays"]
    out = tmp_path / "out"
    if earlier:  # with other tiles and pictures
        command("predict", run, data / "images" / "p0.png", "--overlays", "--tile", 16, "--out", out)
    done, replace = list[str](), os.replace

    def cut_off(source: Any, target: Any) -> None:
        if (out / ".predictions-partial" / "publishing.json").exists():
            if len(done) == renames:
                raise KeyboardInterrupt
            done.append(str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cut_off)
        code, _, _ = command(*arguments, "--out", out)
    assert code == (130 if renames < 4 + 3 * earlier else 0)  # png, json, labels, overlays; and the old folders
    code, record, _ = command(*arguments, "--out", out, "--resume")
    assert (code, record["resumed"]) == (0, COUNT)
    assert files_of(out) == files_of(whole)


def test_what_a_cut_off_left_is_not_published(run: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["predict", run, data / "images", "--out", tmp_path / "out"]
    png = tmp_path / "out" / ".predictions-partial" / "png"
    code, _, _ = command(*arguments)
    before = files_of(tmp_path / "out")
    bad = data / "images" / "p2.png"
    bad.write_bytes(b"")
    command(*arguments, "--resume")
    png.mkdir(parents=True)
    (png / ".p2.png.123-abcd").write_bytes(b"half")  # as kill -9 leaves it
    shutil.copy(data / "images" / "p0.png", bad)
    code, record, _ = command(*arguments, "--resume")
    assert (code, record["failed"]) == (0, [])
    assert files_of(tmp_path / "out").keys() == before.keys()


_KILLS = """
import json, os, shutil, signal, sys
import numpy, torch, PIL.PngImagePlugin, tifffile, safetensors.torch
torch.set_num_threads(1)
from pathlib import Path
from lovasz_embed.cli import app

run, pictures, out, reference, kills, seed = sys.argv[1:]
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"}

def child(*options, die_at=None):
    count = [0]
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return status
    def watch(event, arguments):
        if event in EVENTS and any(out in str(part) for part in arguments):
            count[0] += 1
            if count[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    code = 1
    try:
        app(["predict", run, pictures, "--out", out, *options])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        with open(reference + ".count", "w") as file:
            file.write(str(count[0]))
        os._exit(code)

def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}

assert child() == 0
events = int(Path(reference + ".count").read_text())
whole = files(out)
rng, killed = numpy.random.default_rng(int(seed)), 0
for number in range(int(kills)):
    if number % 2:
        shutil.rmtree(out)  # else over the finished results
    resume = ["--resume"] if number % 4 > 1 else []
    status = child(*resume, die_at=int(rng.integers(1, events + 1)))
    killed += os.WIFSIGNALED(status)
    while rng.random() < 0.3:  # killed once more, while going on
        status = child("--resume", die_at=int(rng.integers(1, events + 1)))
        killed += os.WIFSIGNALED(status)
    status = child("--resume")
    assert status == 0, (number, status)
    assert files(out) == whole, (number, sorted(files(out)), sorted(whole))
print(json.dumps({"events": events, "killed": killed}))
"""


def kill_at_random(run: Path, pictures: Path, place: Path, kills: int) -> dict[str, int]:
    """Kill `predict` before random operations on files, go on with --resume, and compare what is there then."""
    arguments = [str(each) for each in (run, pictures, place / "out", place / "reference", kills, 0)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _KILLS, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    counts: dict[str, int] = json.loads(answer.stdout.splitlines()[-1])
    return counts


@pytest.mark.slow
def test_a_killed_prediction_is_finished_by_resume(run: Path, data: Path, tmp_path: Path) -> None:
    assert kill_at_random(run, data / "images", tmp_path, kills=12)["killed"] >= 8


@pytest.mark.reliability
def test_hundreds_of_killed_predictions_are_finished_by_resume(run: Path, data: Path, tmp_path: Path) -> None:
    assert kill_at_random(run, data / "images", tmp_path, kills=300)["killed"] >= 200
