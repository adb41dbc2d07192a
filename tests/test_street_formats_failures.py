"""Street data sets with a missing half, mixed versions or foreign labels: refused by name, or of a defined meaning."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lovasz_embed.formats import (
    Category,
    DataError,
    ImageRecord,
    Vistas,
    dataset_splits,
    open_dataset,
    read_cityscapes_map,
    read_kitti_step_map,
    write_cityscapes,
    write_kitti,
    write_kitti_step,
    write_mots,
    write_vistas,
)
from lovasz_embed.panoptic import PanopticResult, Segment
from tests.street_folders import (
    MOTS_CATEGORIES,
    STREET,
    VISTAS_LABELS,
    family,
    label_files,
    picture_folder,
    records,
    scenes,
    vistas_config,
    write_dataset,
    write_labels,
)

every_format = pytest.mark.parametrize("format", STREET)
one_of_each = pytest.mark.parametrize("format", ["cityscapes", "vistas", "kitti-step", "kitti", "mots"])


def write(folder: Path, format: str, count: int = 4) -> Path:
    """Write a small data set and return its folder."""
    write_dataset(folder, format, [result for _, result in scenes(format, count)])
    return folder


def refuses(*parts: object) -> Any:
    """Expect a `DataError` whose text holds the parts in this order."""
    return pytest.raises(DataError, match=".*".join(re.escape(str(part)) for part in parts))


def save(path: Path, values: object, dtype: type = np.uint16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype)).save(path)
    return path


# What is asked for does not exist.


@every_format
def test_a_missing_folder_fails_clearly(tmp_path: Path, format: str) -> None:
    with refuses(tmp_path / "none", "must be a folder", "got nothing there"):
        open_dataset(tmp_path / "none", format=format)
    with refuses(tmp_path / "none", "must be a folder", "got nothing there"):
        dataset_splits(tmp_path / "none", format=format)


@every_format
def test_an_empty_folder_fails_clearly(tmp_path: Path, format: str) -> None:
    wanted = {
        "cityscapes": "a folder leftImg8bit/",
        "vistas": "SPLIT/images/",
        "kitti-step": "a folder panoptic_maps/",
        "kitti": "SPLIT/image_2/ and SPLIT/instance/",
        "mots": "SPLIT/images/ and SPLIT/instances/",
    }
    with refuses(tmp_path, f"must hold {wanted[family(format)]}", "got no"):
        open_dataset(tmp_path, format=format)


@one_of_each
def test_another_split_fails_clearly(tmp_path: Path, format: str) -> None:
    write(tmp_path, format)
    with refuses("split must be one of train of", tmp_path, "got 'val'"):
        open_dataset(tmp_path, format=format, split="val")
    write_dataset(tmp_path, format, [result for _, result in scenes(format, 1)], split="val")
    with refuses("split must be one of train, val of", tmp_path, "got None"):
        open_dataset(tmp_path, format=format)


# One half is missing.


@every_format
def test_pictures_without_their_labels_fail_clearly(tmp_path: Path, format: str) -> None:
    write(tmp_path, format)
    missing = label_files(tmp_path, format)[1]
    missing.unlink()
    with refuses(missing.parent, "must hold a file for", "got none. Open pictures without labels with open_pictures."):
        open_dataset(tmp_path, format=format)


@one_of_each
def test_many_pictures_without_labels_are_counted(tmp_path: Path, format: str) -> None:
    write(tmp_path, format, 6)
    folder = label_files(tmp_path, format)[0].parent
    files = [path for path in label_files(tmp_path, format) if path.parent == folder]
    for path in files[1:]:
        path.unlink()
    more = "" if len(files) == 2 else f", and {len(files) - 2} more lack theirs"
    with refuses(folder, f"got none{more}."):
        open_dataset(tmp_path, format=format)


@every_format
def test_labels_without_their_picture_fail_clearly(tmp_path: Path, format: str) -> None:
    write(tmp_path, format)
    pictures = picture_folder(tmp_path, format, "train")
    missing = sorted(pictures.rglob("*.png"))[0]
    missing.unlink()
    with refuses(missing.parent, "must hold a file for", "got none"):
        open_dataset(tmp_path, format=format)


@every_format
def test_a_folder_without_any_labels_fails_clearly(tmp_path: Path, format: str) -> None:
    write(tmp_path, format)
    half = {
        "cityscapes": "gtCoarse" if format.endswith("coarse") else "gtFine",
        "vistas": f"train/{'v1.2' if format.endswith('1.2') else 'v2.0'}",
        "kitti-step": "panoptic_maps",
        "kitti": "train/instance",
        "mots": "train/instances",
    }
    shutil.rmtree(tmp_path / half[family(format)])
    with refuses(tmp_path, "must", "got"):
        open_dataset(tmp_path, format=format)


@one_of_each
def test_a_folder_without_any_pictures_fails_clearly(tmp_path: Path, format: str) -> None:
    write(tmp_path, format)
    shutil.rmtree(picture_folder(tmp_path, format, "train"))
    with refuses(tmp_path, "must", "got"):
        open_dataset(tmp_path, format=format)


def test_a_split_of_cityscapes_that_has_pictures_only_fails_clearly(tmp_path: Path) -> None:
    write(tmp_path, "cityscapes")
    (tmp_path / "leftImg8bit/test").mkdir()
    with refuses(tmp_path / "gtFine/test", "must be the labels of split test, got nothing there. Open pictures"):
        open_dataset(tmp_path, format="cityscapes", split="test")


@pytest.mark.parametrize(("half", "other"), [("leftImg8bit", "gtFine"), ("gtFine", "leftImg8bit")])
def test_a_city_that_only_one_half_has_fails_clearly(tmp_path: Path, half: str, other: str) -> None:
    write(tmp_path, "cityscapes")
    shutil.rmtree(tmp_path / half / "train/bcity")
    there = tmp_path / other / "train"
    with refuses(tmp_path / half / "train", f"must hold a folder bcity as {there} does, got none of this name"):
        open_dataset(tmp_path, format="cityscapes")


@pytest.mark.parametrize("half", ["images/train", "panoptic_maps/train"])
def test_a_sequence_that_only_one_half_has_fails_clearly(tmp_path: Path, half: str) -> None:
    write(tmp_path, "kitti-step")
    shutil.rmtree(tmp_path / half / "0001")
    with refuses("panoptic_maps/train must have the same sequences as", "images/train, got 0001 in one of them only"):
        open_dataset(tmp_path, format="kitti-step")


def test_cityscapes_label_ids_alone_are_no_truth(tmp_path: Path) -> None:
    write(tmp_path, "cityscapes")
    for path in tmp_path.rglob("*_instanceIds.png"):
        path.unlink()
    with refuses("gtFine/train/acity", "must hold a file for acity_000000_000019"):
        open_dataset(tmp_path, format="cityscapes")


# Versions are mixed.


def test_a_config_of_the_other_version_fails_clearly(tmp_path: Path) -> None:
    write(tmp_path, "vistas-v2.0")
    (tmp_path / "config_v2.0.json").rename(tmp_path / "config_v1.2.json")
    text = "must hold config_v2.0.json for its v2.0 labels, got config_v1.2.json. Each version has a class list"
    with refuses(tmp_path, text):
        open_dataset(tmp_path, format="vistas")
    with refuses(tmp_path, "must hold labels in SPLIT/v1.2/", "got labels of v2.0"):
        open_dataset(tmp_path, format="vistas-v1.2")


def test_a_config_with_the_content_of_another_version_fails_clearly(tmp_path: Path) -> None:
    """Its first labels are the same: only the names in the JSON, and values beyond its end, tell."""
    write(tmp_path, "vistas-v2.0")
    (tmp_path / "config_v2.0.json").write_text(json.dumps(vistas_config(VISTAS_LABELS[:3])))
    remedy = "JSON and config are of different versions: fetch both of one."
    with refuses("categories[2] of", "must be a label of the config, got 'human--person'.", remedy):
        open_dataset(tmp_path, format="vistas")
    maps = Vistas(tmp_path, source="instances")
    with refuses("p0.png must hold values of the class list, got", "at row", "is the config of another version?"):
        maps.labels(0)


def test_a_config_that_calls_a_thing_stuff_fails_clearly(tmp_path: Path) -> None:
    write(tmp_path, "vistas")
    labels = [(name, readable, False, counts) for name, readable, _, counts in VISTAS_LABELS]
    (tmp_path / "config_v2.0.json").write_text(json.dumps(vistas_config(labels)))
    with refuses("categories[1] of", "must say isthing 0 as the config does for object--vehicle--car, got 1. JSON and"):
        open_dataset(tmp_path, format="vistas")


def test_a_panoptic_json_of_other_pictures_fails_clearly(tmp_path: Path) -> None:
    write(tmp_path, "vistas")
    [path] = tmp_path.rglob("panoptic_2020.json")
    content = json.loads(path.read_text())
    del content["annotations"][2]
    path.write_text(json.dumps(content))
    with refuses("panoptic_2020.json must hold a file for p2 of", "got none"):
        open_dataset(tmp_path, format="vistas")
    path.unlink()
    with refuses(path.parent, "must hold one JSON, panoptic_2020.json, got none"):
        open_dataset(tmp_path, format="vistas")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({}, "must hold a list 'labels', got none"),
        ({"labels": [{"name": "a"}]}, "must have a text 'name' and true or false 'instances'"),
        ({"labels": [{"name": "a", "instances": True, "color": [1]}]}, "must have a 'color' of three numbers"),
        ({"labels": [{"name": "a", "instances": True}] * 2}, "must name every label once, got a twice"),
        ({"labels": [{"name": "a", "instances": True, "evaluate": False}]}, "must hold 1 to 255 labels, at least one"),
    ],
)
def test_a_config_that_is_none_fails_clearly(tmp_path: Path, content: object, text: str) -> None:
    write(tmp_path, "vistas")
    (tmp_path / "config_v2.0.json").write_text(json.dumps(content))
    with refuses("config_v2.0.json", text):
        open_dataset(tmp_path, format="vistas")


def test_unknown_versions_and_sources_of_vistas_fail_clearly(tmp_path: Path) -> None:
    write(tmp_path, "vistas")
    with refuses("version must be one of v2.0, v1.2, got 'v3'"):
        Vistas(tmp_path, version="v3")
    with refuses("source must be one of panoptic, instances, got 'polygons'"):
        Vistas(tmp_path, source="polygons")


# Labels outside the class list.


@pytest.mark.parametrize("value", [34, 999, 34000, 65535])
def test_a_label_beyond_the_class_list_fails_clearly(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "a.png", [[7, 7, 7], [7, 7, value]])
    with refuses(path, f"must hold values of the class list, got {value} at row 1, column 2. Label ids end at 33"):
        read_cityscapes_map(path)


def test_a_label_beyond_the_class_list_is_found_far_down(tmp_path: Path) -> None:
    """Beyond the first strip of pixels that are looked up at once."""
    values = np.full((400, 500), 26001)
    values[301, 7] = 40000
    with refuses("got 40000 at row 301, column 7"):
        read_cityscapes_map(save(tmp_path / "a.png", values))


def test_labels_beyond_the_other_class_lists_fail_clearly(tmp_path: Path) -> None:
    colours = np.zeros((200, 500, 3))
    colours[150, 3] = (19, 0, 0)
    with refuses("must hold train ids from 0 to 18, or 255 for void, in its red channel, got 19 at row 150, column 3"):
        read_kitti_step_map(save(tmp_path / "a.png", colours, np.uint8))
    for format, value, text in (
        ("kitti", 34 * 256, "got 8704 at row 0, column 0. A value is 256 times"),
        ("mots", 3000, "got 3000 at row 0, column 0. Classes are car, pedestrian, from 1."),
    ):
        data = write_dataset(tmp_path / format, format, [result for _, result in scenes(format, 1)])
        save(label_files(tmp_path / format, format)[0], np.full((32, 36), value))
        with refuses("must hold values of the class list", text):
            data[0]


def test_a_segment_that_the_json_does_not_list_fails_clearly(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, "vistas", [result for _, result in scenes("vistas", 1)])
    [path] = label_files(tmp_path, "vistas")
    colours = np.array(Image.open(path))
    colours[31, 0] = (9, 1, 0)
    Image.fromarray(colours).save(path)
    with refuses(path, "must hold only ids of its entry in the JSON, got segment 265"):
        data[0]


def test_a_segment_of_an_unknown_category_fails_clearly(tmp_path: Path) -> None:
    write(tmp_path, "vistas")
    [path] = tmp_path.rglob("panoptic_2020.json")
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][1]["category_id"] = 77
    path.write_text(json.dumps(content))
    with refuses("segments_info[1] of image p0", "must have a category of 'categories', got category_id 77"):
        open_dataset(tmp_path, format="vistas")


# Files of another kind.


@one_of_each
def test_another_kind_of_png_fails_clearly(tmp_path: Path, format: str) -> None:
    data = write_dataset(tmp_path, format, [result for _, result in scenes(format, 1)])
    [path] = label_files(tmp_path, format)
    colour = format in {"vistas", "kitti-step"}
    wanted = {"cityscapes": "a grey PNG of 8 or 16 bits"}.get(format, "a grey PNG of 16 bits")
    wanted = "an 8-bit RGB PNG" if colour else wanted
    for mode, kind in (
        ("P", "1-bit palette"),
        ("RGBA", "8-bit RGBA"),
        ("I;16", "16-bit grey") if colour else ("RGB", "8-bit RGB"),
    ):
        Image.new(mode, (36, 32)).save(path)
        with refuses(path, f"must be {wanted}", f"got {kind}"):
            data[0]
    path.write_bytes(b"GIF89a")
    with refuses(path, f"must be {wanted}", "got no PNG"):
        data[0]
    path.unlink()
    with refuses(path, "must exist, got no such file"):
        data[0]


def test_16_bits_of_colour_are_not_cut_to_8(tmp_path: Path) -> None:
    """Pillow would, without a word: the header alone tells."""
    path = save(tmp_path / "a.png", np.zeros((2, 2, 3)), np.uint8)
    content = bytearray(path.read_bytes())
    content[24] = 16
    path.write_bytes(content)
    with refuses(path, "must be an 8-bit RGB PNG, got 16-bit RGB"):
        read_kitti_step_map(path)


def test_a_map_of_8_bits_in_the_place_of_16_fails_clearly(tmp_path: Path) -> None:
    """A Vistas or KITTI map of label ids would make one category of everything."""
    write(tmp_path, "vistas", 1)
    save(tmp_path / "train/v2.0/instances/p0.png", np.zeros((32, 36)), np.uint8)
    with refuses("p0.png must be a grey PNG of 16 bits, got 8-bit grey"):
        Vistas(tmp_path, source="instances").labels(0)


@one_of_each
def test_a_truncated_map_fails_clearly(tmp_path: Path, format: str) -> None:
    data = write_dataset(tmp_path, format, [result for _, result in scenes(format, 1)])
    [path] = label_files(tmp_path, format)
    path.write_bytes(path.read_bytes()[:-20])
    with refuses(path, "must be a readable picture"):
        data[0]


@every_format
def test_sizes_that_differ_fail_clearly(tmp_path: Path, format: str) -> None:
    data = write_dataset(tmp_path, format, [result for _, result in scenes(format, 1)])
    [path] = picture_folder(tmp_path, format, "train").rglob("*.png")
    Image.new("RGB", (36, 31)).save(path)
    with refuses("picture", path.name, "must have the size 32 x 36 (height x width) of its labels, got 31 x 36"):
        data[0]


# Pictures of which there is little to learn have a defined meaning.


@every_format
def test_a_picture_of_void_alone_has_no_segments(tmp_path: Path, format: str) -> None:
    void = PanopticResult(torch.zeros(1, 4, 5, dtype=torch.int32), ((),))
    data = write_dataset(tmp_path, format, [void])
    sample = data[0]
    assert sample.semantic is not None
    assert sample.instance is not None
    assert (sample.semantic == 255).all()
    assert not sample.instance.any()
    assert data.result(0) == void


@every_format
def test_a_picture_without_things_has_stuff_alone(tmp_path: Path, format: str) -> None:
    zeros = torch.zeros(1, 4, 5, dtype=torch.int32)
    data = write_dataset(tmp_path, format, [PanopticResult.from_maps(zeros, zeros, things={1})])
    [segment] = data.result(0).segments[0]
    assert (segment.category, segment.is_thing, segment.area) == (0, False, 20)
    instance = data[0].instance
    assert instance is not None
    assert not instance.any()


# What cannot be written.


IMAGE = [ImageRecord("a", "a.png")]


def result_of(*segments: Segment) -> PanopticResult:
    """One row of pixels, one of each segment."""
    return PanopticResult(torch.tensor([[[s.id for s in segments]]], dtype=torch.int32), (segments,))


def many(category: int, count: int) -> PanopticResult:
    return result_of(*(Segment(k + 1, category, True, 1) for k in range(count)))


def test_more_things_than_numbers_fail_clearly(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(vistas_config()))
    remedy = "Write COCO panoptic files with write_coco_panoptic."
    write_cityscapes(tmp_path / "fits", [many(13, 1000)], images=IMAGE)
    with refuses(
        "results must hold at most 1000 things of a category to fit instanceIds.png, got more of category 13."
    ):
        write_cityscapes(tmp_path / "x", [many(13, 1001)], images=IMAGE)
    with refuses("at most 256 things of a category to fit an instance map, got more of category 1.", remedy):
        write_vistas(tmp_path / "x", [many(1, 257)], images=IMAGE, config=tmp_path / "config.json")
    with refuses("at most 255 things of a category to fit an instance map, got more of category 13"):
        write_kitti(tmp_path / "x", [many(13, 256)], images=IMAGE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "fits"]


def test_ids_that_do_not_fit_fail_clearly(tmp_path: Path) -> None:
    text = "results must have ids from 1 to 65535, or from 917505 to 983039 in category 13, to fit 16 bits, got"
    for number in (65536, 917504, 983040):
        with refuses(text, number):
            write_kitti_step(tmp_path / "x", [result_of(Segment(number, 13, True, 1))], images=IMAGE)
    with refuses("must have ids from 1 to 999, or from 131073 to 132071 in category 1, to fit a MOTS map, got 1000"):
        write_mots(tmp_path / "x", [result_of(Segment(1000, 1, True, 1))], images=IMAGE, categories=MOTS_CATEGORIES)


def test_categories_that_a_format_does_not_have_fail_clearly(tmp_path: Path) -> None:
    foreign = [result_of(Segment(1, 19, False, 1))]
    for writer in (write_cityscapes, write_kitti, write_kitti_step):
        with refuses("results must have categories below 19, got 19"):
            writer(tmp_path / "x", foreign, images=IMAGE)
    (tmp_path / "config.json").write_text(json.dumps(vistas_config()))
    with refuses("results must have categories below 4, got 19"):
        write_vistas(tmp_path / "x", foreign, images=IMAGE, config=tmp_path / "config.json")
    with refuses("categories must be a background and 1 to 9 classes, got"):
        write_mots(tmp_path / "x", foreign, images=IMAGE, categories=[Category(k, "c", True) for k in range(11)])


def test_void_that_a_config_cannot_say_fails_clearly(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(vistas_config([label for label in VISTAS_LABELS if label[3]])))
    void = PanopticResult(torch.zeros(1, 1, 2, dtype=torch.int32), ((),))
    with refuses(config, "must hold a label that is not evaluated, for the void pixels of a.png, got none"):
        write_vistas(tmp_path / "x", [void], images=IMAGE, config=config)


@every_format
def test_the_truth_is_never_overwritten(tmp_path: Path, format: str) -> None:
    write(tmp_path, format)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    if format == "cityscapes-coarse":
        (tmp_path / "gtFine/train").mkdir(parents=True)
        (tmp_path / "gtFine/train/mine.txt").touch()
    with refuses("must be free for the label maps, got other files. Choose another name, or remove it."):
        write_labels(tmp_path, format, "train", [result for _, result in scenes(format, 2)])
    assert all(path.read_bytes() == content for path, content in before.items())


@one_of_each
@pytest.mark.parametrize(("count", "got"), [(1, "got 1"), (3, "got more")])
def test_another_number_of_results_than_images_leaves_nothing(
    tmp_path: Path, format: str, count: int, got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = records(format, 2)
    monkeypatch.setattr("tests.street_folders.records", lambda *_: two)
    with refuses("results must hold a picture for each of the 2 images", got):
        write_labels(tmp_path, format, "train", [result for _, result in scenes(format, count)])
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".png" or path.name.startswith(".")]


def test_results_that_do_not_fit_their_images_fail_clearly(tmp_path: Path) -> None:
    with refuses("images must name at least one picture, got none"):
        write_cityscapes(tmp_path / "x", [], images=[])
    with refuses("results must have the size 4 x 5 of image a, got 1 x 2 (height x width)"):
        write_cityscapes(tmp_path / "x", [many(13, 2)], images=[ImageRecord("a", "a.png", 4, 5)])
    with refuses("images must have file names inside their folder, got '../a.png'"):
        write_cityscapes(tmp_path / "x", [many(13, 2)], images=[ImageRecord("a", "../a.png")])
    assert not any(tmp_path.iterdir())
