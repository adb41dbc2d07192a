"""Pictures larger than memory: read by windows, predicted tile by tile, written by rows; and those that are refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from lovasz_embed import PanopticResult, Segment, training
from lovasz_embed._coco import Extents
from lovasz_embed.cli import app
from lovasz_embed.cli._run import DatasetRecord
from lovasz_embed.formats import (
    Category,
    DataError,
    ImageRecord,
    PanopticDataset,
    open_pictures,
    read_coco_panoptic,
    read_instance_map,
    write_coco_panoptic,
    write_instance_map,
)
from lovasz_embed.formats._mapped import mapped
from lovasz_embed.formats._png import write_png
from lovasz_embed.formats._windows import map_picture
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.panoptic._strips import index_strips
from lovasz_embed.visualise import Palette, overlay
from lovasz_embed.visualise._overlay import overlay_strips

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = (Category(0, "background", is_thing=False), Category(1, "object", is_thing=True))


@pytest.fixture
def _small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide pictures into strips of a few rows, as 20,000 columns would."""
    monkeypatch.setattr("lovasz_embed.panoptic._strips._PIXELS", 200)


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(shape)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 3, shape).astype(dtype)
    limit = np.iinfo(dtype)
    return rng.integers(limit.min // 3, limit.max // 2, shape, dtype=dtype)


# --- read by windows


def save_tiff(**options: Any) -> Callable[[Path, np.ndarray[Any, Any]], None]:
    return lambda path, pixels: tifffile.imwrite(path, pixels, **options)


def save_with_pillow(mode: str | None = None, **options: Any) -> Callable[[Path, np.ndarray[Any, Any]], None]:
    def save(path: Path, pixels: np.ndarray[Any, Any]) -> None:
        picture = Image.fromarray(pixels)
        (picture.convert(mode) if mode else picture).save(path, **options)

    return save


RGB, GREY = {"photometric": "rgb"}, {"photometric": "minisblack"}
BOTH_READERS = {
    # tifffile's own
    "plain.tif": (save_tiff(**RGB), noise(53, 47, 3)),
    "tiled.tif": (save_tiff(tile=(16, 32), compression="zlib", **RGB), noise(53, 47, 3)),
    "uncompressed tiles.tif": (save_tiff(tile=(16, 32), **RGB), noise(53, 47, 3)),
    "strips.tif": (save_tiff(rowsperstrip=5, compression="zlib", predictor=True, **GREY), noise(53, 47)),
    "planes.tif": (save_tiff(planarconfig="separate", compression="zlib", **RGB), noise(3, 53, 47)),
    "alpha.tif": (save_tiff(extrasamples=("unassalpha",), **RGB), noise(53, 47, 4)),
    "grey.tif": (save_tiff(**GREY), noise(53, 47)),
    "sixteen.tif": (save_tiff(**GREY), noise(53, 47, dtype=np.uint16)),
    "big-endian.tif": (save_tiff(byteorder=">", **RGB), noise(53, 47, 3, dtype=np.uint16)),
    "real.tif": (save_tiff(tile=(16, 16), compression="zlib", **GREY), noise(53, 47, dtype=np.float32)),
    "signed.tif": (save_tiff(**GREY), noise(53, 47, dtype=np.int16)),
    # Pillow's or pyvips's
    "lzw.tif": (save_with_pillow(compression="tiff_lzw"), noise(53, 47, 3)),
    "lzw16.tif": (save_with_pillow(compression="tiff_lzw"), noise(53, 47, dtype=np.uint16)),
    "palette.tif": (save_with_pillow("P", compression="packbits"), noise(53, 47, 3)),
    "rgb.png": (save_with_pillow(), noise(53, 47, 3)),
    "rgba.png": (save_with_pillow(), noise(53, 47, 4)),
    "grey.png": (save_with_pillow(), noise(53, 47)),
    "grey alpha.png": (save_with_pillow("LA"), noise(53, 47, 4)),
    "palette.png": (save_with_pillow("P"), noise(53, 47, 3)),
    "transparent.png": (save_with_pillow("P", transparency=3), noise(53, 47, 3)),
    "sixteen.png": (save_with_pillow(), noise(53, 47, dtype=np.uint16)),
    "one bit.png": (save_with_pillow("1"), noise(53, 47)),
    "four bits.png": (save_with_pillow("P", bits=4), noise(53, 47) // 16),
    "rgb.jpg": (save_with_pillow(quality=90), noise(53, 47, 3)),
    "grey.jpg": (save_with_pillow(quality=80), noise(53, 47)),
}


@pytest.mark.usefixtures("_small_strips")
@pytest.mark.parametrize("pillow", [True, False], ids=["below the limit", "by parts"])
@pytest.mark.parametrize("name", BOTH_READERS)
def test_a_picture_read_by_parts_is_the_picture(
    name: str, pillow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, pixels = BOTH_READERS[name]
    save(tmp_path / name, pixels)
    data = open_pictures(tmp_path / name)
    whole = data.image(0)
    if pixels.dtype.itemsize > 1 and pixels.ndim == 2:  # scaled by the range of all its rows
        values = pixels.astype(np.float64)
        scaled = np.rint((values - values.min()) * (255 / (values.max() - values.min())))
        assert np.array_equal(whole, np.repeat(scaled[..., None], 3, 2))
    if not pillow:
        pytest.importorskip("pyvips", reason="pyvips is absent: the extra large")
        monkeypatch.setattr("lovasz_embed.formats._windows._PILLOW_PIXELS", 0)
        monkeypatch.setattr("lovasz_embed.formats._windows.read_with_pillow", None)
    parts = data.mapped_image(0, tmp_path)
    assert (parts.dtype, parts.shape) == (np.uint8, (53, 47, 3))
    assert np.array_equal(parts, whole)
    assert np.array_equal(parts[40:50, 7:31], whole[40:50, 7:31])
    assert [file.name for file in tmp_path.iterdir()] == [name]  # a file that has no name cannot stay behind


def test_sixteen_bits_of_colour_are_reduced_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow takes the high bytes, and cannot write such a file."""
    pyvips = pytest.importorskip("pyvips", reason="pyvips is absent: the extra large")
    pixels = noise(20, 30, 3, dtype=np.uint16)
    pyvips.Image.new_from_array(pixels).pngsave(str(tmp_path / "x.png"), bitdepth=16)
    whole = open_pictures(tmp_path / "x.png").image(0)
    monkeypatch.setattr("lovasz_embed.formats._windows._PILLOW_PIXELS", 0)
    assert np.array_equal(map_picture(tmp_path / "x.png"), whole)
    assert np.array_equal(whole, pixels >> 8)


def test_the_bytes_of_a_plain_tiff_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "x.tif", noise(20, 30, 4), photometric="rgb", extrasamples=("unassalpha",))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no temporary file is needed")

    monkeypatch.setattr("lovasz_embed.formats._windows.mapped", refuse)
    assert np.array_equal(map_picture(tmp_path / "x.tif"), noise(20, 30, 4)[..., :3])


def test_a_data_set_whose_pictures_are_no_files_is_read_as_ever() -> None:
    class Own(PanopticDataset):
        def image(self, index: Any) -> np.ndarray[Any, Any]:
            return noise(5, 4, 3)

        def labels(self, index: Any) -> None:
            return None

    data = Own((), [ImageRecord(1, "x")])
    assert np.array_equal(data.mapped_image(0), noise(5, 4, 3))
    with pytest.raises(IndexError, match="index must be below the 1 pictures"):
        data.mapped_image(1)


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "lzw.tif", "tiled.tif", "plain.tif"])
def test_a_truncated_picture_read_by_parts_fails_clearly(
    name: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyvips", reason="pyvips is absent: the extra large")
    monkeypatch.setattr("lovasz_embed.formats._windows._PILLOW_PIXELS", 0)
    path, (save, pixels) = tmp_path / name, BOTH_READERS[name]
    save(path, pixels)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))} must be a readable picture, got"):
        map_picture(path)


def test_what_only_pillow_can_convert_is_refused_by_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyvips", reason="pyvips is absent: the extra large")
    monkeypatch.setattr("lovasz_embed.formats._windows._PILLOW_PIXELS", 0)
    Image.fromarray(noise(20, 30, 4), "CMYK").save(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=r"x.jpg must be grey, RGB or RGBA to be read by parts, got CMYK"):
        map_picture(tmp_path / "x.jpg")


def test_without_pyvips_pillow_reads_up_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(50, 40)).save(tmp_path / "x.png")
    monkeypatch.setattr("lovasz_embed.formats._windows._PILLOW_PIXELS", 0)
    monkeypatch.setitem(sys.modules, "pyvips", None)
    assert map_picture(tmp_path / "x.png").shape == (50, 40, 3)
    monkeypatch.setattr("lovasz_embed.formats._limits.WHOLE", 0.001)
    text = (
        f'pyvips is needed to read {tmp_path / "x.png"} of 50 x 40 pixels by parts: pip install "lovasz-embed[large]"'
    )
    with pytest.raises(ImportError, match=re.escape(text)):
        map_picture(tmp_path / "x.png")


def test_a_file_that_is_mapped_takes_its_room_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full later would end the process, not raise an error."""
    array = mapped((1000, 1000), np.int32, tmp_path)
    assert not array.any()
    assert list(tmp_path.iterdir()) == []
    assert mapped((0, 3), np.int32).shape == (0, 3)
    with pytest.raises(FileNotFoundError):
        mapped((3,), np.int32, tmp_path / "nowhere")

    def full(_: int, offset: int, size: int) -> None:
        assert (offset, size) == (0, 4 * 7 * 11)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        mapped((7, 11), np.int32, tmp_path)


# --- the limit of sizes


def bomb(path: Path, height: int, width: int) -> Path:
    """Write a PNG of a few bytes that claims to be large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(bytes(1000))
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_a_picture_of_absurd_size_fails_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "x.png", 20_000, 10_001)
    text = (
        "must have at most 200 megapixels to be read as a whole, got 20000 x 10001 (height x width), 200.0 megapixels. "
    )
    remedy = "Predict it with --tile, or set LOVASZ_EMBED_MAX_MEGAPIXELS to more for a file that you trust."
    with pytest.raises(DataError, match=re.escape(f"{path} {text}{remedy}")):
        open_pictures(path).image(0)
    with pytest.raises(DataError, match=re.escape(text)):
        read_instance_map(path)
    large = bomb(tmp_path / "y.png", 200_000, 20_001)
    text = "must have at most 4000 megapixels to be read by parts, got 200000 x 20001"
    with pytest.raises(DataError, match=rf"{re.escape(text)}.* Set LOVASZ_EMBED_MAX_MEGAPIXELS to more"):
        map_picture(large)
    # A user may say so, in both directions, for both.
    monkeypatch.setenv("LOVASZ_EMBED_MAX_MEGAPIXELS", "0.0005")
    Image.fromarray(noise(20, 30)).save(tmp_path / "z.png")
    tifffile.imwrite(tmp_path / "z.tif", noise(20, 30), photometric="minisblack")
    for read in (lambda p: open_pictures(p).image(0), map_picture):
        for name in ("z.png", "z.tif"):
            with pytest.raises(DataError, match=r"at most 0.0005 megapixels .* got 20 x 30"):
                read(tmp_path / name)
    monkeypatch.setenv("LOVASZ_EMBED_MAX_MEGAPIXELS", "5000")
    with pytest.raises(DataError, match=r"x.png must be a readable picture"):  # which it is not, but now it was tried
        map_picture(bomb(path, 20_000, 10_001))
    for wrong in ("many", "0", "-3", "nan"):
        monkeypatch.setenv("LOVASZ_EMBED_MAX_MEGAPIXELS", wrong)
        with pytest.raises(DataError, match=f"MAX_MEGAPIXELS must be a number of megapixels above 0, got '{wrong}'"):
            map_picture(tmp_path / "z.png")


def test_the_limit_of_pillow_stays_as_it_was(tmp_path: Path) -> None:
    usual = Image.MAX_IMAGE_PIXELS
    assert usual is not None
    # Between Pillow's two limits, where it warns: our tests turn warnings into errors.
    path = bomb(tmp_path / "x.png", 10_000, 10_000)
    with pytest.raises(DataError, match=r"x.png must be a readable picture") as error:
        open_pictures(path).image(0)
    assert "Bomb" not in str(error.value)
    assert usual == Image.MAX_IMAGE_PIXELS


# --- written by rows


@given(
    pixels=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
    | arrays.arrays(st.sampled_from([np.uint8, np.uint16]), st.tuples(st.integers(1, 9), st.integers(1, 9))),
    each=st.integers(1, 9),
)
def test_a_png_written_by_rows_is_read_by_others(
    tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray[Any, Any], each: int
) -> None:
    path = tmp_path_factory.mktemp("png") / "x.png"
    strips = (pixels[top : top + each] for top in range(0, len(pixels), each))
    write_png(path, (pixels.shape[0], pixels.shape[1]), strips)
    with Image.open(path) as picture:
        picture.verify()
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize("size", [(5, 4), (3, 4), (4, 5), (4, 3)])
def test_rows_that_do_not_add_up_fail_clearly(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must add up to the picture's \d pixels, got 4"):
        write_png(tmp_path / "x.png", size, [np.zeros((2, 4), np.uint8)] * 2)


@given(index=arrays.arrays(np.int32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 4)))
def test_areas_and_boxes_are_those_of_the_pixels(index: np.ndarray[Any, Any]) -> None:
    extents = Extents(4)
    for top in range(0, len(index), 3):
        extents.add(index[top : top + 3], top)
    for label, area, box in zip(range(1, 5), extents.areas, extents.boxes(), strict=True):
        y, x = np.nonzero(index == label)
        assert area == len(y)
        if area:
            assert box == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]


def some_result(numbers: list[int]) -> PanopticResult:
    """Return a result with stuff, things, a crowd and void in many strips."""
    semantic = torch.from_numpy(np.repeat(np.repeat(noise(12, 9) % 4, 5, 0), 5, 1).astype(np.int64))[None]
    semantic[semantic == 3] = 255
    instance = torch.from_numpy(np.repeat(np.repeat(noise(6, 5) % 3, 10, 0), 9, 1).astype(np.int64))[None]
    crowd = torch.zeros_like(semantic, dtype=torch.bool)
    crowd[:, 20:40, :20] = True
    result = PanopticResult.from_maps(semantic, instance, things={1, 2}, crowd=crowd)
    if not numbers:
        return result
    table = torch.tensor([0, *numbers[: len(result.segments[0])]], dtype=torch.int32)
    segments = [Segment(**{**vars(s), "id": int(table[s.id])}) for s in result.segments[0]]
    return PanopticResult(table[result.segmentation.long()], (tuple(segments),))


@pytest.mark.parametrize("numbers", [[], [7, 9, 200, 300, 7000, 7001, 10**6, 10**7]], ids=["1..n", "any"])
def test_strips_are_rows_of_the_whole(numbers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = some_result(numbers)
    assert len(result.segments[0]) > 4
    palette = Palette.of(("a", "b", "c"), {1, 2})
    image = noise(60, 45, 3)
    whole = overlay(image, result, palette=palette)
    large = overlay(image, result, palette=palette, scale=3)
    monkeypatch.setattr("lovasz_embed.panoptic._strips._PIXELS", 45 * 7)
    strips = list(index_strips(result))
    assert [rows.start for rows, _ in strips] == list(range(0, 60, 7))
    assert np.array_equal(np.concatenate([strip for _, strip in strips]), result.segment_index()[0])
    painted = list(overlay_strips(image, result, palette))
    assert [len(strip) for strip in painted] == [7] * 8 + [4]
    assert np.array_equal(np.concatenate(painted), whole)
    assert np.array_equal(overlay(image, result, palette=palette, scale=3), large)

    categories = [Category(10 * k, name, is_thing=k > 0) for k, name in enumerate("abc")]
    write_coco_panoptic(tmp_path / "p.json", [result], images=[ImageRecord(7, "x.png")], categories=categories)
    assert read_coco_panoptic(tmp_path / "p.json").result(0) == result
    [(record, png)] = result.to_coco([7], [0, 10, 20], ["x.png"])
    assert json.loads((tmp_path / "p.json").read_text())["annotations"] == [record]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p" / "x.png")), png)


@pytest.mark.usefixtures("_small_strips")
def test_a_map_with_an_id_of_no_segment_is_not_written(tmp_path: Path) -> None:
    ids = torch.ones(1, 30, 30, dtype=torch.int32)
    for stray, segment in ((5, 1), (4, 7)):
        ids[:] = segment
        ids[0, 29, 3] = stray
        result = PanopticResult(ids, ((Segment(segment, 0, False, 899),),))
        with pytest.raises(ValueError, match=rf"segmentation must hold only ids of its segments .*, got {stray}"):
            write_coco_panoptic(tmp_path / "p.json", [result], images=[ImageRecord(1, "x")], categories=CATEGORIES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_small_strips")
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_an_instance_map_is_written_by_rows(ending: str, tmp_path: Path) -> None:
    labels = noise(33, 21, dtype=np.uint16).astype(np.int64)
    write_instance_map(tmp_path / f"x{ending}", labels)
    assert np.array_equal(read_instance_map(tmp_path / f"x{ending}"), labels)
    if ending == ".tif":
        labels[31, 5] = 70_000  # more than 16 bits hold
        write_instance_map(tmp_path / "x.tif", labels)
        assert np.array_equal(read_instance_map(tmp_path / "x.tif"), labels)


# --- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a random network, whose class means are embeddings of its own."""
    folder = tmp_path_factory.mktemp("large") / "RUN"
    torch.manual_seed(0)
    config = {"widths": (4, 6), "dims": 5, "min_thing_area": 4, "min_stuff_area": 4}
    model = PanopticEmbedder(ModelConfig(classes=("background", "object"), things=(1,), **config)).eval()
    with torch.no_grad():
        embedding = model(2 * torch.rand(1, 3, 32, 32) - 1)
        model.ncm.update(embedding, torch.arange(1024).view(1, 32, 32) % 2)
    model.save_pretrained(folder)
    DatasetRecord("instance-map", CATEGORIES).save(folder)
    return folder


def predict(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        app(["predict", *map(str, arguments)])
    assert not end.value.code


@pytest.mark.usefixtures("_small_strips")
@pytest.mark.parametrize("name", ["plain.tif", "tiled.tif", "rgb.png", "rgb.jpg"])
def test_tiles_of_a_file_are_predicted_as_the_whole(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, _ = BOTH_READERS[name]
    save(tmp_path / name, noise(80, 112, 3))
    predict(run, tmp_path / name, "--out", tmp_path / "whole", "--overlays")
    pytest.importorskip("pyvips", reason="pyvips is absent: the extra large")
    monkeypatch.setattr("lovasz_embed.formats._windows._PILLOW_PIXELS", 0)
    monkeypatch.setattr("lovasz_embed.formats._windows.read_with_pillow", None)  # nothing is read as a whole
    monkeypatch.setattr("lovasz_embed.formats.instance_map.read_picture", None)
    predict(run, tmp_path / name, "--out", tmp_path / "tiles", "--overlays", "--tile", 48)
    assert len(read_coco_panoptic(tmp_path / "whole/predictions.json").result(0).segments[0]) > 3
    for file in ("predictions", "labels", "overlays"):
        place = f"{file}/{Path(name).stem}.png"
        assert (tmp_path / "whole" / place).read_bytes() == (tmp_path / "tiles" / place).read_bytes()
    contents = [json.loads((tmp_path / one / "predictions.json").read_text()) for one in ("whole", "tiles")]
    assert [content.pop("info")["lovasz_embed"]["tile"] for content in contents] == [None, 48]
    assert contents[0] == contents[1]
    # Neither what was decoded nor the map of ids stays.
    assert {file.name for file in (tmp_path / "tiles").iterdir()} == {
        "predictions",
        "predictions.json",
        "labels",
        "overlays",
    }


def test_more_things_than_16_bits_hold_are_written_with_32(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(1, 70_001, dtype=torch.int32).view(1, 700, 100)
    segments = (Segment(1, 0, False, 1), *(Segment(k, 1, True, 1) for k in range(2, 70_001)))
    monkeypatch.setattr(training, "predict", lambda *_, **__: [PanopticResult(ids, (segments,))])
    Image.fromarray(noise(700, 100)).save(tmp_path / "x.png")
    for options in ([], ["--resume"]):
        predict(run, tmp_path / "x.png", "--out", tmp_path / "out", *options)
        assert [file.name for file in (tmp_path / "out/labels").iterdir()] == ["x.tif"]
        labels = read_instance_map(tmp_path / "out/labels/x.tif")
        assert np.array_equal(labels, np.where(ids[0] == 1, 0, ids[0]))


def test_a_picture_beyond_the_limit_is_refused_before_it_is_read(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bomb(tmp_path / "x.png", 20_000, 20_000)
    with pytest.raises(SystemExit) as end:
        app(["predict", str(run), str(path), "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "x.png must have at most 200 megapixels to be read as a whole" in error
    assert "Predict it with --tile" in error
    assert list((tmp_path / "out").iterdir()) == []


_MEASURE = """
import sys, threading, time
from pathlib import Path
from lovasz_embed.cli import app

peak, over = 0, threading.Event()

def watch():
    global peak
    while not over.wait(0.02):
        text = Path("/proc/self/status").read_text()
        peak = max(peak, int(text.split("RssAnon:")[1].split()[0]))

thread = threading.Thread(target=watch)
thread.start()
try:
    app(sys.argv[1:])
finally:
    over.set()
    thread.join()
    print(peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read where Linux tells it")
@pytest.mark.parametrize("ending", ["tif", "png"])
def test_memory_of_the_command_is_that_of_a_tile(ending: str, run: Path, tmp_path: Path) -> None:
    if ending == "png":
        pytest.importorskip("pyvips", reason="pyvips is absent: the extra large")

    def peak(side: int) -> float:
        """Return the largest memory of the process's own, MB: no pages of files, which the system takes back."""
        path = tmp_path / f"{side}.{ending}"
        # Things of some pixels at every 64 pixels on black, so that there are few thousand segments.
        tile = np.zeros((64, 64, 3), np.uint8)
        tile[20:32, 20:32] = 255
        pixels = np.tile(tile, (side // 64 + 1, side // 64 + 1, 1))[:side, :side]
        tifffile.imwrite(path, pixels, photometric="rgb") if ending == "tif" else Image.fromarray(pixels).save(path)
        patch = "from lovasz_embed.formats import _windows; _windows._PILLOW_PIXELS = 1 << 20\n"
        patch += "from lovasz_embed.panoptic import tiles; tiles._IN_MEMORY = 1 << 20\n"
        command = ["predict", run, path, "--out", tmp_path / f"out{side}", "--overlays", "--tile", "512"]
        answer = subprocess.run(
            [sys.executable, "-c", patch + _MEASURE, *map(str, command)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
            check=True,
        )
        return int(answer.stdout.split()[-1]) / 1024

    small, large = peak(3000), peak(6000)
    # 27 megapixels more would be 108 MB of ids, as many or twice as many of indices, 81 of colours, 81 of the picture.
    # Of right are: what is known of 11,000 segments more, and of pieces of them in tiles; and what the allocator does.
    assert large - small < 60, (small, large)
