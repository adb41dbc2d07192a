"""Every file that cannot be right is refused, by a text that names the file and says what to do."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from lovasz_embed.formats import (
    Category,
    DataError,
    ImageRecord,
    dataset_splits,
    open_dataset,
    open_pictures,
    read_coco_panoptic,
    read_instance_map,
    write_coco_panoptic,
    write_instance_map,
)
from lovasz_embed.panoptic import PanopticResult, Segment

CATEGORIES = (Category(3, "sky", False), Category(7, "car", True))
IMAGES = (ImageRecord(5, "five.jpg", 2, 3), ImageRecord(9, "nine.jpg", 2, 3))


def picture(thing: int = 2) -> PanopticResult:
    """Two rows of three pixels: sky with id 1, a car with id `thing`."""
    rows = torch.tensor([[[1, 1, thing], [1, 1, thing]]], dtype=torch.int32)
    return PanopticResult(rows, ((Segment(1, 0, False, 4), Segment(thing, 1, True, 2)),))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A data set of the pictures five and nine; returns its folder."""
    path = tmp_path / "annotations/panoptic_val2017.json"
    write_coco_panoptic(path, [picture(), picture()], images=IMAGES, categories=CATEGORIES)
    (tmp_path / "val2017").mkdir()
    for image in IMAGES:
        Image.new("RGB", (3, 2)).save(tmp_path / "val2017" / image.file_name)
    return tmp_path


@pytest.fixture
def nuclei(tmp_path: Path) -> Path:
    """A folder of instance maps of the pictures a and b; returns it."""
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.new("L", (3, 2)).save(tmp_path / "images" / f"{name}.png")
        write_instance_map(tmp_path / "labels" / f"{name}.png", np.array([[0, 1, 1], [0, 2, 2]]))
    return tmp_path


def edit(folder: Path, change: Callable[[Any], object]) -> Path:
    """Change the JSON of the data set and return its path."""
    path = folder / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def refuses(*parts: object) -> Any:
    """Expect a `DataError` whose text holds the parts in this order."""
    return pytest.raises(DataError, match=".*".join(re.escape(str(part)) for part in parts))


# What is asked for does not exist.


def test_an_unknown_format_fails_clearly(tmp_path: Path) -> None:
    with refuses("format must be one of coco-panoptic, instance-map", "got 'yolo'"):
        open_dataset(tmp_path, format="yolo")
    with refuses("format must be one of"):
        dataset_splits(tmp_path, format="yolo")


@pytest.mark.parametrize("format", ["coco-panoptic", "instance-map"])
def test_a_missing_folder_fails_clearly(tmp_path: Path, format: str) -> None:
    with refuses(tmp_path / "none", "must be a folder with", "got nothing there"):
        open_dataset(tmp_path / "none", format=format)
    (tmp_path / "file").touch()
    with refuses(tmp_path / "file", "must be a folder with", "got a file"):
        open_dataset(tmp_path / "file", format=format)


def test_an_empty_folder_fails_clearly(tmp_path: Path) -> None:
    with refuses(tmp_path, "must hold annotations/panoptic_SPLIT.json, got no such file"):
        open_dataset(tmp_path, format="coco-panoptic")
    with refuses(tmp_path, "must hold a folder labels/, got none. Open pictures without labels with open_pictures."):
        open_dataset(tmp_path, format="instance-map")
    (tmp_path / "labels").mkdir()
    with refuses(tmp_path / "images", "must be a folder of pictures, got nothing there"):
        open_dataset(tmp_path, format="instance-map")
    (tmp_path / "images").mkdir()
    with refuses(tmp_path / "images", "must hold files ending in .bmp, .jpeg,", "got none"):
        open_dataset(tmp_path, format="instance-map")
    with refuses(tmp_path / "images", "must hold files ending in .bmp, .jpeg,", "got none"):
        open_pictures(tmp_path / "images")


def test_a_split_that_coco_files_do_not_have_fails_clearly(coco: Path) -> None:
    with refuses("split must be one of val2017 of", coco / "annotations", "got 'test', which fits none"):
        open_dataset(coco, format="coco-panoptic", split="test")


def test_a_choice_between_coco_splits_fails_clearly(coco: Path) -> None:
    (coco / "annotations/panoptic_train2017.json").touch()
    with refuses("split must be one of train2017, val2017 of", "got None, which fits train2017, val2017"):
        open_dataset(coco, format="coco-panoptic")


def test_a_split_of_undivided_instance_maps_fails_clearly(nuclei: Path) -> None:
    with refuses("split must be None, because all pictures of", nuclei, "without an index.json, got 'val'"):
        open_dataset(nuclei, format="instance-map", split="val")


@pytest.mark.parametrize("split", [None, "test"])
def test_a_split_that_the_index_does_not_have_fails_clearly(nuclei: Path, split: str | None) -> None:
    (nuclei / "index.json").write_text('[{"name": "a", "split": "train"}, {"name": "b", "split": "val"}]')
    with refuses("split must be one of train, val of", nuclei / "index.json", f"got {split!r}"):
        open_dataset(nuclei, format="instance-map", split=split)


def test_coco_annotations_without_pictures_fail_clearly(coco: Path) -> None:
    (coco / "val2017").rename(coco / "elsewhere")
    tried = "none of val2017, val, images/val2017, images/val"
    with refuses(coco, "must hold the pictures of split val2017, got", tried, "read_coco_panoptic"):
        open_dataset(coco, format="coco-panoptic")
    data = read_coco_panoptic(coco / "annotations/panoptic_val2017.json")
    with refuses("images must be a folder to read five.jpg, got None. Give images= to read_coco_panoptic"):
        data[0]


def test_an_unknown_image_id_fails_clearly(coco: Path) -> None:
    data = read_coco_panoptic(coco / "annotations/panoptic_val2017.json")
    with refuses("panoptic_val2017.json must hold image 6, got no such image_id"):
        data.position_of(6)


@pytest.mark.parametrize("index", [2, -3])
def test_a_picture_beyond_the_last_fails_clearly(nuclei: Path, index: int) -> None:
    with pytest.raises(IndexError, match=f"index must be below the 2 pictures of the data set, got {index}"):
        open_dataset(nuclei, format="instance-map")[index]


def test_pictures_that_do_not_exist_fail_clearly(tmp_path: Path) -> None:
    with refuses(tmp_path / "x.png", "must be a picture or a folder of pictures, got nothing there"):
        open_pictures(tmp_path / "x.png")
    with refuses("folder_or_files must name at least one picture, got an empty list"):
        open_pictures([])


def test_the_truth_of_pictures_without_labels_fails_clearly(nuclei: Path) -> None:
    with refuses("the data set must have labels to give a PanopticResult, got Pictures(2 pictures"):
        open_pictures(nuclei / "images").result(0)


# Files that belong together and do not fit.


def test_a_missing_coco_file_fails_clearly(coco: Path) -> None:
    for file in (coco / "val2017/nine.jpg", coco / "annotations/panoptic_val2017/nine.png"):
        file.rename(coco / "aside")
        with refuses(file, "must exist for image 9, got no such file"):
            open_dataset(coco, format="coco-panoptic")
        (coco / "aside").rename(file)
    (coco / "annotations/panoptic_val2017").rename(coco / "aside")
    with refuses("panoptic_val2017 must be the PNG folder of panoptic_val2017.json, got nothing there"):
        open_dataset(coco, format="coco-panoptic")


def test_a_coco_json_that_does_not_exist_fails_clearly(tmp_path: Path) -> None:
    with refuses(tmp_path / "x.json", "must exist, got no such file"):
        read_coco_panoptic(tmp_path / "x.json")


def test_a_picture_without_labels_fails_clearly(nuclei: Path) -> None:
    (nuclei / "labels/b.png").unlink()
    with refuses(nuclei / "labels", "must hold a PNG or TIFF named b, got none", "open_pictures"):
        open_dataset(nuclei, format="instance-map")


def test_labels_without_a_picture_fail_clearly(nuclei: Path) -> None:
    (nuclei / "images/b.png").unlink()
    with refuses(nuclei / "images", "must hold a picture named b, got none"):
        open_dataset(nuclei, format="instance-map")


def test_two_pictures_of_one_name_fail_clearly(nuclei: Path) -> None:
    Image.new("L", (3, 2)).save(nuclei / "images/a.jpg")
    with refuses(nuclei / "images", "must hold one file per name, got a.jpg and a.png"):
        open_dataset(nuclei, format="instance-map")
    with refuses("folder_or_files must hold every name once, got a twice", "rename one of them"):
        open_pictures([nuclei / "images/a.png", nuclei / "images/a.jpg"])


def test_labels_of_another_size_than_the_picture_fail_clearly(coco: Path, nuclei: Path) -> None:
    Image.new("RGB", (4, 2)).save(coco / "val2017/five.jpg")
    Image.new("L", (4, 2)).save(nuclei / "images/a.png")
    text = "must have the size 2 x 3 (height x width) of its labels, got 2 x 4 (height x width)"
    with refuses("picture five.jpg", text):
        open_dataset(coco, format="coco-panoptic")[0]
    with refuses("picture a.png", text):
        open_dataset(nuclei, format="instance-map")[0]


def test_a_coco_png_of_another_size_than_the_json_says_fails_clearly(coco: Path) -> None:
    path = edit(coco, lambda content: content["images"][0].update(height=4))
    with refuses("five.png must have the size 4 x 3 that panoptic_val2017.json gives image 5, got 2 x 3"):
        read_coco_panoptic(path).labels(0)


@pytest.mark.parametrize("reader", ["labels", "result"])
def test_a_segment_in_the_png_alone_fails_clearly(coco: Path, reader: str) -> None:
    path = edit(coco, lambda content: content["annotations"][1]["segments_info"].pop())
    with refuses("panoptic_val2017/nine.png: ", "(image 9, segment 2), got no such entry in segments_info"):
        getattr(read_coco_panoptic(path), reader)(1)


@pytest.mark.parametrize("reader", ["labels", "result"])
def test_a_segment_in_the_json_alone_fails_clearly(coco: Path, reader: str) -> None:
    more = {"id": 77, "category_id": 7}
    path = edit(coco, lambda content: content["annotations"][1]["segments_info"].append(more))
    with refuses("panoptic_val2017/nine.png: ", "(image 9, segment 77), got no such pixel"):
        getattr(read_coco_panoptic(path), reader)(1)


# A COCO JSON that is wrong in itself.


def test_a_category_that_the_json_does_not_list_fails_clearly(coco: Path) -> None:
    path = edit(coco, lambda content: content["annotations"][1]["segments_info"][0].update(category_id=4))
    where = f"segments_info[0] of image 9 in {path}"
    with refuses(where, "must have a category of 'categories', got category_id 4 (segment 1)"):
        read_coco_panoptic(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.pop("annotations"), "must hold a list 'annotations', got none"),
        (lambda c: c["annotations"].clear(), "must hold at least one annotation, got none"),
        (lambda c: c.pop("categories"), "must hold a list 'categories', got none. A prediction without"),
        (lambda c: c["categories"][1].update(id="7"), "must have an integer 'id', got '7'"),
        (lambda c: c["categories"][1].pop("name"), "must have a text 'name', got None"),
        (lambda c: c["categories"][1].update(id=3), "must have an id of its own, got 3 twice"),
        (lambda c: c["categories"][1].pop("isthing"), "must say isthing 0 or 1, got None. COCO instances"),
        (
            lambda c: c.update(categories=[{"id": k, "name": "x", "isthing": 0} for k in range(256)]),
            "must hold at most 255 categories, because 255 is void, got 256",
        ),
        (lambda c: c["images"].pop(), "must list image 9 of its annotations in 'images', got none"),
        (lambda c: c["images"][1].update(id=5), "must have an id of its own, got image 5 twice"),
        (lambda c: c["images"][1].update(id=[5]), "must have an integer or a text 'id', got [5]"),
        (
            lambda c: c["images"][1].update(file_name="../x.jpg"),
            "must name a file inside its folder, got '../x.jpg'",
        ),
        (lambda c: c["images"][1].update(height="2"), "must have an integer 'height', got '2'"),
        (lambda c: c["annotations"].pop(), "must hold an annotation of image 9, got none"),
        (
            lambda c: c["annotations"][1].update(image_id=5),
            "must have an image of its own, got image 5 twice",
        ),
        (
            lambda c: c["annotations"][1].update(file_name="/x.png"),
            "must name a file inside its folder, got '/x.png'",
        ),
        (lambda c: c["annotations"][1].pop("segments_info"), "must have a list 'segments_info', got None"),
        (
            lambda c: c["annotations"][1]["segments_info"][0].update(id=0),
            "must have an id from 1 to 16777215, got 0",
        ),
        (
            lambda c: c["annotations"][1]["segments_info"][0].update(id=2),
            "must have an id of its own, got 2 twice",
        ),
        (
            lambda c: c["annotations"][1]["segments_info"][0].update(id=True),
            "must have an integer 'id', got True",
        ),
    ],
)
def test_an_inconsistent_coco_json_fails_clearly(coco: Path, change: Callable[[Any], object], text: str) -> None:
    path = edit(coco, change)
    with pytest.raises(DataError, match=re.escape(text)) as caught:
        read_coco_panoptic(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_a_damaged_json_fails_clearly(nuclei: Path, content: bytes) -> None:
    for path in (nuclei / "x.json", nuclei / "index.json"):
        path.write_bytes(content)
    with refuses(nuclei / "x.json", "must be a readable JSON file, got"):
        read_coco_panoptic(nuclei / "x.json")
    with refuses(nuclei / "index.json", "must be a readable JSON file, got"):
        open_dataset(nuclei, format="instance-map", split="val")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{}", "must be a list of records, got dict"),
        (
            '[{"name": "a"}]',
            "must hold records with the texts 'name' and 'split', got {'name': 'a'} at position 0",
        ),
        (
            '[{"name": "a", "split": "x"}, {"name": "a", "split": "y"}]',
            "must name every picture once, got a twice",
        ),
    ],
)
def test_an_index_of_another_kind_fails_clearly(nuclei: Path, content: str, text: str) -> None:
    (nuclei / "index.json").write_text(content)
    with refuses(nuclei / "index.json", text):
        open_dataset(nuclei, format="instance-map", split="x")


# Pictures that cannot be read.


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_a_truncated_picture_fails_clearly(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"x{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with refuses(path, "must be a readable picture, got", "The file is damaged or not a picture"):
        open_pictures(path)[0]


def test_a_truncated_label_file_fails_clearly(coco: Path, nuclei: Path) -> None:
    coco_png = coco / "annotations/panoptic_val2017/five.png"
    label = nuclei / "labels/a.png"
    for path in (coco_png, label):
        path.write_bytes(path.read_bytes()[:-10])  # all pixels are still there, only the end is not
    with refuses(coco_png, "must be a readable picture"):
        open_dataset(coco, format="coco-panoptic")[0]
    with refuses(label, "must be a readable picture"):
        open_dataset(nuclei, format="instance-map")[0]


def test_a_picture_that_vanishes_after_opening_fails_clearly(nuclei: Path) -> None:
    data = open_dataset(nuclei, format="instance-map")
    (nuclei / "images/a.png").unlink()
    with refuses(nuclei / "images/a.png", "must exist, got no such file"):
        data[0]


def test_a_flipped_bit_in_a_png_fails_clearly(nuclei: Path) -> None:
    path = nuclei / "labels/a.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    path.write_bytes(content)
    with refuses(path, "must be a readable picture"):
        read_instance_map(path)


def test_several_planes_in_one_file_fail_clearly(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 4, 3), np.uint16), photometric="minisblack")
    with refuses("stack.tif must hold one two-dimensional picture, got axes", "(5, 4, 3). Save one file per plane."):
        open_pictures(tmp_path / "stack.tif")[0]
    frames = [Image.new("L", (3, 2)), Image.new("L", (3, 2), 1)]
    frames[0].save(tmp_path / "lzw.tif", save_all=True, append_images=frames[1:], compression="tiff_lzw")
    with refuses("lzw.tif must hold one picture, got 2 pages"):
        open_pictures(tmp_path / "lzw.tif")[0]


def test_pixels_that_are_no_colours_fail_clearly(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "nan.tif", np.array([[0.0, np.nan]], np.float32))
    with refuses("nan.tif must hold finite numbers, got float32 with NaN"):
        open_pictures(tmp_path / "nan.tif")[0]
    tifffile.imwrite(
        tmp_path / "two.tif",
        np.zeros((2, 8, 8), np.uint8),
        photometric="minisblack",
        metadata={"axes": "CYX"},
    )
    with refuses("two.tif must be grey, RGB or RGBA, got 2 channels"):
        open_pictures(tmp_path / "two.tif")[0]


def test_labels_that_are_no_integers_fail_clearly(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "colours.png")
    with refuses("colours.png must hold one channel of integer labels, got uint8 of shape (2, 3, 3). Save the"):
        read_instance_map(tmp_path / "colours.png")
    tifffile.imwrite(tmp_path / "float.tif", np.ones((2, 3), np.float32))
    with refuses("float.tif must hold one channel of integer labels, got float32"):
        read_instance_map(tmp_path / "float.tif")
    for name, value, dtype in (("negative", -1, np.int32), ("huge", 2**31, np.uint32)):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.full((2, 3), value, dtype))
        with refuses(f"{name}.tif must hold labels from 0 to 2147483647, got {value} to {value}"):
            read_instance_map(tmp_path / f"{name}.tif")


def test_a_coco_png_that_is_not_rgb_fails_clearly(coco: Path) -> None:
    Image.new("L", (3, 2)).save(coco / "annotations/panoptic_val2017/five.png")
    text = "must be an 8-bit RGB picture of segment ids (R + 256 G + 65536 B), got uint8 of shape (2, 3)"
    with refuses(coco, "five.png", text):
        open_dataset(coco, format="coco-panoptic")[0]


@pytest.mark.parametrize(("module", "package", "file"), [("PIL", "Pillow", "x.png"), ("tifffile", "tifffile", "x.tif")])
def test_a_missing_extra_fails_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str, file: str
) -> None:
    write_instance_map(tmp_path / file, np.ones((2, 3), np.uint16))
    monkeypatch.setitem(sys.modules, module, None)
    text = re.escape(f'{package} is needed for picture files: pip install "lovasz-embed[io]"')
    with pytest.raises(ImportError, match=text):
        read_instance_map(tmp_path / file)
    if module != "PIL":  # a PNG is written without any library
        with pytest.raises(ImportError, match=text):
            write_instance_map(tmp_path / file, np.ones((2, 3), np.uint16))


# What cannot be written, and what is left then.


def listing(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_more_instances_than_16_bits_hold_fail_clearly(tmp_path: Path) -> None:
    many = np.arange(70_000).reshape(700, 100)
    text = "labels must be at most 65535 to fit 16 bits, got 69999 instances up to id 69999. End the name in .tif"
    with refuses(text, "which holds 32 bits."):
        write_instance_map(tmp_path / "x.png", many)
    with refuses("to fit 16 bits, got 1 instances up to id 65536. Renumber them from 1."):
        write_instance_map(tmp_path / "x.png", np.array([[0, 65536]]))
    with refuses("labels must be at most 2147483647, got 1 instances up to id 2147483648. Renumber them from 1."):
        write_instance_map(tmp_path / "x.tif", np.array([[0, 2**31]]))
    assert not any(tmp_path.iterdir())


def test_labels_that_are_no_instance_map_fail_clearly(tmp_path: Path) -> None:
    with refuses("path must end in .png, .tif, .tiff, got x.jpg"):
        write_instance_map(tmp_path / "x.jpg", np.ones((2, 3), np.int64))
    with pytest.raises(TypeError, match="labels must be integers, got float64"):
        write_instance_map(tmp_path / "x.png", np.ones((2, 3)))
    with pytest.raises(ValueError, match=re.escape("labels must have shape (H, W), got (1, 2, 3). Write one file per")):
        write_instance_map(tmp_path / "x.png", np.ones((1, 2, 3), np.int64))
    with pytest.raises(ValueError, match="labels must be 0 or above, got -1"):
        write_instance_map(tmp_path / "x.png", -np.ones((2, 3), np.int64))


def test_a_folder_that_cannot_be_written_fails_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refuses(tmp_path / "file/out.json", "must be writable, got", "Choose another place"):
        write_coco_panoptic(tmp_path / "file/out.json", [picture()] * 2, images=IMAGES, categories=CATEGORIES)
    with refuses(tmp_path / "file/out.png", "must be writable, got", "Choose another place"):
        write_instance_map(tmp_path / "file/out.png", np.ones((2, 3), np.int64))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "results must hold a picture for each of the 2 images, got 1"),
        (3, "results must hold a picture for each of the 2 images, got more"),
    ],
)
def test_another_number_of_results_than_images_fails_clearly(coco: Path, count: int, text: str) -> None:
    before = listing(coco)
    with refuses(text):
        write_coco_panoptic(
            coco / "annotations/panoptic_val2017.json",
            [picture(9)] * count,
            images=IMAGES,
            categories=CATEGORIES,
        )
    assert listing(coco) == before


def test_results_that_do_not_fit_their_images_fail_clearly(tmp_path: Path) -> None:
    def write(path: str, *images: ImageRecord) -> None:
        write_coco_panoptic(tmp_path / path, [picture()] * len(images), images=images, categories=CATEGORIES)

    with refuses("path must end in .json, got out. The PNG folder takes its name without ending."):
        write("out", *IMAGES)
    with refuses("images must name at least one picture, got none"):
        write("out.json")
    with refuses("images must have names of their own, got five.png twice"):
        write("out.json", ImageRecord(1, "five.jpg"), ImageRecord(2, "five.tif"))
    with refuses("images must have file names inside their folder, got '../five.jpg'"):
        write("out.json", ImageRecord(1, "../five.jpg"))
    with refuses("results must have the size 4 x 3 of image 1, got 2 x 3 (height x width)"):
        write("out.json", ImageRecord(1, "five.jpg", 4, 3))
    assert not any(tmp_path.iterdir())


def test_a_folder_of_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for keep in ("holiday.png", "notes.txt"):
        (tmp_path / "out" / keep).touch()
        with refuses(tmp_path / "out", "must be free for the PNGs of out.json, got other files. Choose another"):
            write_coco_panoptic(tmp_path / "out.json", [picture()] * 2, images=IMAGES, categories=CATEGORIES)
        assert (tmp_path / "out" / keep).exists()
        (tmp_path / "out.json").touch()  # PNGs beside a JSON are earlier results, a text file is not


def failing_results() -> Iterator[PanopticResult]:
    yield picture(9)
    raise OSError("the network is gone")


def test_an_error_while_predicting_leaves_the_earlier_files(coco: Path) -> None:
    before = listing(coco)
    with pytest.raises(OSError, match=r"^the network is gone$"):
        write_coco_panoptic(
            coco / "annotations/panoptic_val2017.json",
            failing_results(),
            images=IMAGES,
            categories=CATEGORIES,
        )
    assert listing(coco) == before


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5])  # two pictures and three names
def test_an_error_while_renaming_leaves_the_earlier_files(
    coco: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before, rename, calls = listing(coco), os.replace, 0

    def replace(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with refuses("panoptic_val2017.json must be writable, got No space left on device"):
        write_coco_panoptic(
            coco / "annotations/panoptic_val2017.json", [picture(9)] * 2, images=IMAGES, categories=CATEGORIES
        )
    assert listing(coco) == before
