"""What the fuzzer of files found, each case made again here, and the fuzzer itself (`benchmarks/fuzz_files.py`)."""

from __future__ import annotations

import importlib
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from lovasz_embed.cli._run import DatasetRecord
from lovasz_embed.formats import DataError, Vistas, _tiff_layout, open_dataset, read_coco_panoptic, read_instance_map
from lovasz_embed.formats._pictures import read_picture, read_size
from lovasz_embed.formats._vistas_config import read_vistas_config
from lovasz_embed.formats._windows import map_picture
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.report import read_run
from lovasz_embed.report._curves import chart
from lovasz_embed.training import TrainConfig
from lovasz_embed.training._checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
DEEP = "[" * 100_000


# --- JSON


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.json", lambda folder: read_coco_panoptic(folder / "a.json")),
        ("a.json", lambda folder: read_vistas_config(folder / "a.json")),
        ("index.json", lambda folder: open_dataset(folder, format="instance-map")),
        ("train.json", lambda folder: TrainConfig.load(folder / "train.json")),
        ("dataset.json", DatasetRecord.load),
        ("config.json", read_run),
        ("log.jsonl", read_run),
    ],
)
def test_json_nested_beyond_the_stack_fails_clearly(name: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / name).write_text(DEEP + "\n")
    with pytest.raises(ValueError, match=rf"{name} must be .*nested too deep"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["log.jsonl", "scores.jsonl", "history.jsonl", "train.json", "config.json"])
def test_a_file_of_a_run_that_is_no_text_fails_clearly(name: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b"")
    (tmp_path / name).write_bytes(b'{"step": 1, "command": "\xff"}\n')
    with pytest.raises(DataError, match=rf"{name} must be a readable JSON file, got .*utf-8"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"step": "1"}', "must hold steps from 0 to"),
        ('{"step": true}', "must hold steps from 0 to"),
        ('{"step": -1}', "must hold steps from 0 to"),
        (f'{{"step": {10**30}}}', "must hold steps from 0 to"),
        ('{"step": 1, "loss": "0.5"}', "must hold numbers as loss, got '0.5'"),
        ('{"step": 1, "loss": [1]}', r"must hold numbers as loss, got \[1\]"),
        (f'{{"step": 1, "loss": {10**400}}}', "must hold numbers up to"),
    ],
)
def test_a_log_of_other_things_than_numbers_fails_clearly(line: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=f"log.jsonl {text}"):
        read_run(tmp_path)


@pytest.mark.parametrize("values", [(0, 5e-324), (0, 0.5), (10**18, 1.7e308)])
def test_curves_of_any_steps_and_losses_are_drawn(values: tuple[int, float]) -> None:
    step, loss = values
    assert "<svg" in chart("Loss", [step, step], {"loss": [loss, -loss]}, smooth=True)


@pytest.mark.parametrize("values", [{"classes": 3}, {"classes": [3]}, {"things": {}}, {"things": ["a"]}])
def test_a_report_knows_classes_that_are_none(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=f"config.json must hold {next(iter(values))} as a list of"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"format": []}, {"format": "voc"}, {"categories": 3}, {"name": 3}, {"is_thing": "no"}, {"id": "0"}, {"id": True}],
)
def test_a_record_of_a_data_set_with_other_types_fails_clearly(change: dict[str, Any], tmp_path: Path) -> None:
    category = {"id": 0, "name": "a", "is_thing": True, "supercategory": ""}
    record: dict[str, Any] = {"format": "instance-map", "categories": [category]}
    (record if change.keys() & record.keys() else category).update(change)
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"dataset\.json must be what `train` wrote"):
        DatasetRecord.load(tmp_path)


def coco(folder: Path, **change: Any) -> Path:
    """Write COCO panoptic files of one picture; changes are of the JSON, its image, or its segment."""
    image = {"id": 1, "file_name": "a.jpg", "height": 2, "width": 3}
    segment = {"id": 1, "category_id": 5}
    annotation = {"image_id": 1, "file_name": "a.png", "segments_info": [segment]}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 5, "name": "a", "isthing": 1}]}
    for name, value in change.items():
        next((part for part in (image, segment) if name in part), segment if name == "iscrowd" else content)[name] = (
            value
        )
    (folder / "a").mkdir()
    Image.new("RGB", (3, 2), (1, 0, 0)).save(folder / "a" / "a.png")
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"images": 3}, "must hold a list 'images', or none, got int"),
        ({"images": {"a": 1}}, "must hold a list 'images', or none, got dict"),
        ({"iscrowd": "false"}, "must say iscrowd 0 or 1, got 'false'"),
        ({"iscrowd": 2}, "must say iscrowd 0 or 1, got 2"),
        ({"height": -2}, r"must have a height and width from 1 to 2147483647, got \[-2, 3\]"),
        ({"width": 10**30}, "must have a height and width from 1 to"),
    ],
)
def test_coco_json_of_other_types_fails_clearly(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=text):
        read_coco_panoptic(coco(tmp_path, **change))


def test_a_file_name_that_no_system_takes_names_no_file(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 1}],
        "annotations": [{"image_id": 1, "file_name": "a" * 5000 + ".png", "segments_info": []}],
        "categories": [{"id": 1, "name": "a", "isthing": 0}],
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"\.png must exist for image 1, got no such file"):
        read_coco_panoptic(tmp_path / "a.json")


@pytest.mark.parametrize("values", [(-1.7e308, 1.7e308), (0.0, 5e-324), (1.0, 1.0 + 2**-52)])
def test_a_picture_of_any_finite_floats_is_stretched(values: tuple[float, float], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([values, values[::-1]]))
    assert read_picture(tmp_path / "a.tif")[..., 0].tolist() == [[0, 255], [255, 0]]


def test_a_checkpoint_that_claims_more_than_it_holds_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(ValueError, match="must be what `fit` wrote") as refusal:
        Checkpoints(tmp_path).load(torch.device("cpu"))
    assert "claim more bytes" in str(refusal.value.__cause__)


def test_the_helper_writes_what_can_be_read(tmp_path: Path) -> None:
    assert read_coco_panoptic(coco(tmp_path, iscrowd=1)).labels(0).crowd is not None


def test_names_of_classes_that_are_no_text_fail_clearly(tmp_path: Path) -> None:
    for folder in ("images", "instances"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        Image.fromarray(np.uint16([[1001]])).save(tmp_path / "train" / folder / "1.png")
    (tmp_path / "train" / "instances" / "labels.txt").write_bytes(b"c\xe4r\n")
    with pytest.raises(DataError, match=r"labels\.txt must be a text in UTF-8"):
        open_dataset(tmp_path, format="mots")


@pytest.mark.parametrize(
    "change",
    [
        {"classes": "ab"},
        {"classes": (1,)},
        {"things": (True,)},
        {"things": (0.0,)},
        {"widths": (4.0, 8.0)},
        {"connected": "no"},
        {"dims": 10**9},
        {"widths": (0, 4)},
        {"widths": (10**9, 4)},
        {"widths": (1,) * 1000},
        {"reduction": 10**9},
    ],
)
def test_a_network_of_other_types_or_absurd_sizes_fails_clearly(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(change))} must "):
        ModelConfig(**{"classes": ("a",), "things": (), **change})


def test_weights_that_are_no_numbers_fail_clearly(tmp_path: Path) -> None:
    model = PanopticEmbedder(ModelConfig(classes=("a",), things=(), widths=(2,)))
    model.head.bias.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors must fit config.json .*head.bias with NaN or Inf"):
        PanopticEmbedder.from_pretrained(tmp_path)


# --- TIFF

WIDTH, LENGTH, OFFSETS, SAMPLES, COUNTS, PLANAR = 256, 257, 273, 277, 279, 284


def tiff(path: Path, values: Any, change: dict[int, tuple[int, int, int]], **options: Any) -> Path:
    """Write a TIFF, then put (tag, type, value) in the place of some tags of its first directory."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, byteorder="<", metadata=None, **options)
    out = bytearray(buffer.getvalue())
    (start,) = struct.unpack_from("<I", out, 4)
    (count,) = struct.unpack_from("<H", out, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", out, place)
        if tag in change:
            new, kind, value = change[tag]
            struct.pack_into("<HHII", out, place, new, kind, 1, value)
    path.write_bytes(out)
    return path


GREY = np.arange(6, dtype=np.uint8).reshape(2, 3)


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        # tifffile left what a strip at 0 would fill as it found the memory, or read the head of the file as pixels
        ({OFFSETS: (OFFSETS, 4, 0)}, {}, "got a strip or tile of 6 bytes at byte 0 of"),
        ({OFFSETS: (OFFSETS, 4, 0)}, {"compression": "zlib"}, "at byte 0 of"),
        ({OFFSETS: (OFFSETS, 4, 10**6)}, {}, "at byte 1000000 of"),
        # ... and asked for four gigabytes
        ({COUNTS: (COUNTS, 4, 2**32 - 1)}, {"compression": "zlib"}, "of 4294967295 bytes"),
        # a directory that is its own sub-directory: tifffile went round for ever
        (
            {305: (330, 4, 8)},
            {},
            "directories, none of them within itself, got one at byte 8 again",
        ),
    ],
)
def test_what_a_tiff_claims_of_itself_is_looked_at_first(
    change: dict[int, tuple[int, int, int]], options: dict[str, Any], text: str, tmp_path: Path
) -> None:
    path = tiff(tmp_path / "a.tif", GREY, change, **options)
    for read in (read_picture, read_instance_map, map_picture):
        with pytest.raises(DataError, match=text):
            read(path)


def test_a_tiff_without_its_planes_fails_clearly(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    planes = np.zeros((3, 4, 5), np.uint8)
    tiff(path, planes, {LENGTH: (LENGTH, 4, 40)}, photometric="rgb", planarconfig="separate", compression="zlib")
    with pytest.raises(DataError, match=r"a\.tif must "):
        read_picture(path)


@pytest.mark.parametrize("side", [WIDTH, LENGTH])
def test_a_picture_of_minus_one_column_fails_clearly(side: int, tmp_path: Path) -> None:
    # as a signed byte; with metadata of a shape, tifffile made series without end of it
    tifffile.imwrite(tmp_path / "whole.tif", GREY, byteorder="<")
    out = bytearray((tmp_path / "whole.tif").read_bytes())
    (start,) = struct.unpack_from("<I", out, 4)
    (count,) = struct.unpack_from("<H", out, start)
    places = [start + 2 + 12 * number for number in range(count)]
    [place] = [place for place in places if struct.unpack_from("<H", out, place)[0] == side]
    struct.pack_into("<HHII", out, place, side, 6, 1, 255)
    (tmp_path / "a.tif").write_bytes(out)
    with pytest.raises(DataError, match=r"a\.tif must have at least one pixel on each page"):
        read_picture(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif must have at least one pixel, got"):
        read_size(tmp_path / "a.tif")


@pytest.mark.parametrize("side", [WIDTH, LENGTH])
def test_a_picture_without_a_pixel_fails_clearly(side: int, tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", GREY, {side: (side, 4, 0)})
    with pytest.raises(DataError, match=r"a\.tif must "):
        read_picture(path)


def test_a_tiff_of_thousands_of_channels_fails_clearly(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((4, 5, 300), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(DataError, match="must be grey, RGB or RGBA, got 300 channels"):
        read_picture(tmp_path / "a.tif")


def test_a_strip_that_inflates_to_more_than_the_picture_fails_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tiff_layout, "_BEYOND", 1 << 20)
    path = tmp_path / "a.tif"
    packed = zlib.compress(bytes(8 << 20))  # 8 MB in 8 kB; 100 MB inflate to 100 GB
    layout: dict[str, Any] = {"shape": (2, 3), "dtype": np.uint8, "compression": "zlib", "rowsperstrip": 2}
    tifffile.imwrite(path, iter([packed]), photometric="minisblack", metadata=None, **layout)
    with pytest.raises(DataError, match="must inflate to at most 1 MB, its size and some more"):
        read_picture(path)


def test_directories_of_a_pyramid_are_no_circle(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((64, 64), np.uint8), subifds=2)
        for side in (32, 16):
            file.write(np.zeros((side, side), np.uint8), subfiletype=1)
    assert read_picture(tmp_path / "a.tif").shape == (64, 64, 3)
    assert read_size(tmp_path / "a.tif") == (64, 64)


def test_vistas_names_a_config_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "val" / "images").mkdir(parents=True)
    (tmp_path / "val" / "v2.0" / "instances").mkdir(parents=True)
    (tmp_path / "config_v2.0.json").write_text('{"labels": ' + DEEP)
    with pytest.raises(DataError, match=r"config_v2\.0\.json must be a readable JSON file"):
        Vistas(tmp_path)


# --- the fuzzer


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a file of benchmarks/."""
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks/ is absent: run the tests from a checkout")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_damaged_pngs_keep_their_checksums(bench: Callable[[str], ModuleType]) -> None:
    mutate = bench("_files_mutate")
    buffer, rng, whole = io.BytesIO(), Random(0), 0
    Image.new("RGB", (5, 4), (1, 2, 3)).save(buffer, format="PNG")
    for _ in range(200):
        out = mutate.mutate_png(buffer.getvalue(), rng)
        place = 8
        while place + 12 <= len(out):
            (size,) = struct.unpack_from(">I", out, place)
            end = place + 8 + size
            if end + 4 > len(out) or zlib.crc32(out[place + 4 : end]) != struct.unpack_from(">I", out, end)[0]:
                break
            place = end + 4
        whole += place == len(out)
    assert whole > 160  # all but those damaged bit by bit


def test_inputs_are_packed_and_unpacked(bench: Callable[[str], ModuleType]) -> None:
    mutate = bench("_files_mutate")
    parts = (b"", b"abc", b"\0" * 9)
    assert mutate.unpack(mutate.pack(parts), parts) == parts
    assert mutate.unpack(b"xyz", parts) == (b"xyz", b"abc", b"\0" * 9)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (KeyError("a"), "KeyError"),
        (ValueError("not in our words"), "ValueError"),
        (AssertionError("shape"), "AssertionError"),
        (MemoryError(), "out of memory"),
        (DataError("a must b, got c"), None),
    ],
)
def test_the_fuzzer_tells_a_defect_from_a_refusal(
    fault: Exception, name: str | None, bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    bench("_files_mutate")
    readers, work = bench("_files_readers"), bench("_files_work")

    def read(folder: Path) -> None:
        assert (folder / "a").read_bytes() == b"content"
        raise fault

    reader = readers.Reader(("a",), ("bytes",), ((b"content",),), read)
    running = work.Work(reader, tmp_path / "files", tmp_path / "kept", tmp_path / "counts.json")
    running.one((b"content",))
    [*defects] = running.counts.defects
    assert (running.counts.inputs, running.counts.accepted, running.counts.refused) == (1, 0, int(name is None))
    assert [defect.startswith(name or "?") for defect in defects] == ([] if name is None else [True])


def fuzz(*options: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / "fuzz_files.py"), "--json", *options]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.stdout, answer.stderr
    record: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    assert answer.returncode == 0, {name: row["defects"] for name, row in record["readers"].items() if row["defects"]}
    return record


@pytest.mark.slow
def test_every_reader_accepts_what_is_valid_and_refuses_the_rest() -> None:
    record = fuzz("--smoke")
    for name, row in record["readers"].items():
        assert row["accepted"] > 0, name
        assert row["refused"] > row["inputs"] / 4, name


@pytest.mark.reliability
def test_a_million_damaged_files_find_no_defect() -> None:
    record = fuzz("--inputs", "1000000")
    assert record["inputs"] >= 1_000_000
    assert record["defects"] == 0
