"""Data sets on disk: what is written is what is read, and other tools read the same."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hotcoco.panoptic import pq_compute
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch.utils.data import DataLoader

import lovasz_embed
from lovasz_embed.formats import (
    Category,
    CocoPanoptic,
    ImageRecord,
    Sample,
    dataset_splits,
    open_dataset,
    open_pictures,
    read_coco_panoptic,
    read_instance_map,
    write_coco_panoptic,
    write_instance_map,
)
from lovasz_embed.panoptic import PanopticResult, Segment

CATEGORIES = (
    Category(3, "sky", False, "outdoor"),
    Category(7, "car", True, "vehicle"),
    Category(90, "cat", True),
)
THINGS = {1, 2}


@st.composite
def panoptic_results(draw: st.DrawFn) -> PanopticResult:
    """One picture of up to 6 × 6 pixels with void, stuff, things and crowds."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    semantic = draw(hnp.arrays(np.int64, shape, elements=st.sampled_from([0, 1, 2, 255])))
    instance = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3)))
    crowd = draw(hnp.arrays(np.bool_, shape))
    maps = (torch.from_numpy(m)[None] for m in (semantic, instance))
    return PanopticResult.from_maps(*maps, things=THINGS, crowd=torch.from_numpy(crowd)[None])


def one_picture(rows: list[list[int]], *segments: Segment) -> PanopticResult:
    return PanopticResult(torch.tensor([rows], dtype=torch.int32), (segments,))


def coco_folder(root: Path, split: str = "val2017") -> Path:
    """Write two pictures, 000000000005 and 000000000009, as a COCO panoptic data set."""
    results = [
        one_picture([[1, 1, 2], [1, 0, 2]], Segment(1, 0, False, 3), Segment(2, 1, True, 2)),
        one_picture([[300, 70000]], Segment(300, 1, True, 1), Segment(70000, 2, True, 1, is_crowd=True)),
    ]
    images = [ImageRecord(5, "000000000005.jpg", 2, 3), ImageRecord(9, "000000000009.jpg", 1, 2)]
    write_coco_panoptic(root / "annotations" / f"panoptic_{split}.json", results, images=images, categories=CATEGORIES)
    (root / split).mkdir()
    for image in images:
        Image.new("RGB", (image.width or 0, image.height or 0), "white").save(root / split / image.file_name)
    return root


def nuclei_folder(root: Path, names: tuple[str, ...] = ("a", "b", "c")) -> Path:
    """Write pictures of 2 × 3 pixels, the k-th with the instances 0 to 2 + k."""
    (root / "images").mkdir(parents=True)
    for k, name in enumerate(names):
        Image.new("L", (3, 2), 40 * k).save(root / "images" / f"{name}.png")
        write_instance_map(root / "labels" / f"{name}.png", np.array([[0, 1, 1], [0, 2, 2 + k]]))
    return root


def as_list(samples: list[Sample]) -> list[Sample]:
    return samples


# COCO panoptic: what is written is what is read.


@given(results=st.lists(panoptic_results(), min_size=1, max_size=3))
def test_coco_files_give_back_every_segment(results: list[PanopticResult]) -> None:
    images = [ImageRecord(10 * k, f"{k}.jpg", *result.segmentation.shape[1:]) for k, result in enumerate(results)]
    with tempfile.TemporaryDirectory() as folder:
        write_coco_panoptic(Path(folder, "x.json"), results, images=images, categories=CATEGORIES)
        data = read_coco_panoptic(Path(folder, "x.json"))
        assert data.categories == CATEGORIES
        assert data.images == tuple(images)
        for k, result in enumerate(results):
            labels = data.labels(k)
            crowd_ids = [segment.id for segment in result.segments[0] if segment.is_crowd]
            assert data.result(k) == result
            assert np.array_equal(labels.semantic, result.semantic()[0])
            assert np.array_equal(labels.instance, result.instance()[0])
            assert np.array_equal(labels.crowd, np.isin(result.segmentation[0], crowd_ids))


@given(ids=st.sets(st.integers(1, 2**24 - 1), min_size=1, max_size=8))
def test_ids_of_24_bits_survive_as_colours(ids: set[int]) -> None:
    ordered = sorted(ids)
    result = one_picture([ordered], *(Segment(i, 1, True, 1) for i in ordered))
    with tempfile.TemporaryDirectory() as folder:
        write_coco_panoptic(Path(folder, "x.json"), [result], images=[ImageRecord("a", "a.png")], categories=CATEGORIES)
        assert read_coco_panoptic(Path(folder, "x.json")).labels(0).instance.tolist() == [ordered]


def test_an_iterator_of_batches_is_written_picture_by_picture(tmp_path: Path) -> None:
    batch = PanopticResult(
        torch.ones(2, 1, 2, dtype=torch.int32), ((Segment(1, 0, False, 2),), (Segment(1, 1, True, 2),))
    )

    def batches() -> Iterator[PanopticResult]:
        for done in (0, 2, 4):
            assert len(list(tmp_path.rglob("*.png"))) == done, "nothing is asked for before it can be written"
            yield batch

    images = [ImageRecord(k, f"{k}.jpg") for k in range(6)]
    write_coco_panoptic(tmp_path / "x.json", batches(), images=images, categories=CATEGORIES)
    assert [read_coco_panoptic(tmp_path / "x.json").result(k) for k in range(6)] == [batch[0], batch[1]] * 3


def test_writing_again_replaces_the_earlier_results(tmp_path: Path) -> None:
    result = one_picture([[1]], Segment(1, 0, False, 1))
    for name in ("old", "new"):
        write_coco_panoptic(
            tmp_path / "x.json", [result], images=[ImageRecord(1, f"{name}.jpg")], categories=CATEGORIES
        )
    left = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*"))
    assert left == ["x", "x.json", "x/new.png"]


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    coco_folder(tmp_path)
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    assert (tmp_path / "annotations/panoptic_val2017").stat().st_mode == ordinary.stat().st_mode


def test_hotcoco_scores_a_written_file_against_itself_as_perfect(tmp_path: Path) -> None:
    truth = str(coco_folder(tmp_path) / "annotations/panoptic_val2017.json")
    assert pq_compute(truth, truth)["All"] == {
        "pq": 1.0,
        "sq": 1.0,
        "rq": 1.0,
        "n": 2,
    }  # the crowd counts for none


def test_hotcoco_finds_in_written_files_the_overlap_they_have(tmp_path: Path) -> None:
    images = [ImageRecord(1, "a.jpg")]
    for name, row in {"truth": [1, 1, 1, 1], "prediction": [1, 1, 1, 0]}.items():
        result = one_picture([row], Segment(1, 1, True, sum(row)))
        write_coco_panoptic(tmp_path / f"{name}.json", [result], images=images, categories=CATEGORIES)
    scores = pq_compute(str(tmp_path / "truth.json"), str(tmp_path / "prediction.json"))
    assert scores["All"]["pq"] == 0.75


def test_a_prediction_is_read_with_the_categories_of_its_truth(tmp_path: Path) -> None:
    path = coco_folder(tmp_path) / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    del content["categories"], content["images"]  # as panopticapi accepts predictions
    path.write_text(json.dumps(content))
    more = (Category(1, "person", True), *CATEGORIES)
    data = read_coco_panoptic(path, categories=more)
    assert data.labels(0).semantic.tolist() == [[1, 1, 2], [1, 255, 2]]
    assert data.position_of(9) == 1
    assert data.names == ("000000000005", "000000000009")


# COCO panoptic: the folder.


def test_a_coco_folder_gives_pictures_and_truth(tmp_path: Path) -> None:
    data = open_dataset(coco_folder(tmp_path), format="coco-panoptic")
    assert (len(data), data.names, data.things) == (2, ("000000000005", "000000000009"), {1, 2})
    street, group = data
    assert street.image.tolist() == np.full((2, 3, 3), 255).tolist()
    assert street.semantic.tolist() == [[0, 0, 1], [0, 255, 1]]
    assert street.instance.tolist() == [[0, 0, 2], [0, 0, 2]]
    assert (group.name, group.crowd.tolist(), group.instance.tolist()) == (
        data.names[1],
        [[False, True]],
        [[300, 0]],
    )
    assert (street.image.dtype, street.semantic.dtype, street.instance.dtype) == (
        np.uint8,
        np.uint8,
        np.int32,
    )


@pytest.mark.parametrize(
    ("split", "folder"),
    [("val2017", "val2017"), ("val", "val"), ("val", "val2017"), ("val2017", "val"), ("val", "images/val")],
)
def test_pictures_are_found_with_and_without_the_year(tmp_path: Path, split: str, folder: str) -> None:
    coco_folder(tmp_path, split).joinpath(split).rename(tmp_path / "pictures")
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    (tmp_path / "pictures").rename(tmp_path / folder)
    assert open_dataset(tmp_path, format="coco-panoptic", split="val")[0].image.shape == (2, 3, 3)


def test_categories_are_indexed_by_ascending_id_whatever_their_order_in_the_file(tmp_path: Path) -> None:
    path = coco_folder(tmp_path) / "annotations/panoptic_val2017.json"
    before = read_coco_panoptic(path).labels(0).semantic
    content = json.loads(path.read_text())
    content["categories"].reverse()
    path.write_text(json.dumps(content))
    assert read_coco_panoptic(path).categories == CATEGORIES
    assert np.array_equal(read_coco_panoptic(path).labels(0).semantic, before)


# Instance maps.


@given(
    labels=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        elements=st.integers(0, 255),
    ),
    top=st.sampled_from([0, 255, 256, 65535]),
    suffix=st.sampled_from([".png", ".tif", ".tiff", ".PNG"]),
)
def test_an_instance_map_gives_back_every_label(labels: np.ndarray, top: int, suffix: str) -> None:
    labels = labels.astype(np.int64)
    labels.flat[0] = top
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"deep/down{suffix}")
        write_instance_map(path, labels)
        assert np.array_equal(read_instance_map(path), labels)
        write_instance_map(path, torch.from_numpy(labels))
        assert np.array_equal(read_instance_map(path), labels)


def test_labels_of_other_programs_are_read_whatever_their_depth(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [0, 0, 200]])
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "eight.png")
    coloured = Image.fromarray(labels.astype(np.uint8)).convert("P")
    coloured.putpalette([255, 0, 0] * 256)
    coloured.save(tmp_path / "palette.png")
    tifffile.imwrite(tmp_path / "signed.tif", labels.astype(np.int32))
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    for file in tmp_path.iterdir():
        assert read_instance_map(file).tolist() == labels.tolist(), file.name


def test_instance_maps_are_background_and_objects(tmp_path: Path) -> None:
    data = open_dataset(nuclei_folder(tmp_path), format="instance-map")
    sample = data[-1]
    assert [category.name for category in data.categories] == ["background", "object"]
    assert (data.things, data.names, sample.name) == ({1}, ("a", "b", "c"), "c")
    assert sample.semantic.tolist() == [[0, 1, 1], [0, 1, 1]]
    assert sample.instance.tolist() == [[0, 1, 1], [0, 2, 4]]
    assert sample.crowd is None
    assert [segment.category for segment in data.result(2).segments[0]] == [0, 1, 1, 1]


def test_the_index_divides_pictures_into_splits(tmp_path: Path) -> None:
    nuclei_folder(tmp_path)
    records = [{"name": name, "split": split} for name, split in zip("abc", ["train", "val", "train"], strict=True)]
    (tmp_path / "index.json").write_text(json.dumps(records))
    assert dataset_splits(tmp_path, format="instance-map") == ("train", "val")
    assert open_dataset(tmp_path, format="instance-map", split="train").names == ("a", "c")
    assert open_dataset(tmp_path, format="instance-map", split="val").names == ("b",)


# Pictures.


def test_pictures_alone_open_from_a_folder_a_file_or_a_list(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.tif"):
        Image.new("L", (2, 1)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    assert open_pictures(tmp_path).names == ("a", "b", "c")
    assert open_pictures(tmp_path / "b.png").names == ("b",)
    pictures = open_pictures([tmp_path / "c.tif", str(tmp_path / "a.jpg")])
    assert [(image.image_id, image.file_name) for image in pictures.images] == [(1, "c.tif"), (2, "a.jpg")]
    assert (pictures[0].image.shape, pictures[0].semantic, pictures[0].instance) == ((1, 2, 3), None, None)


RED, HALF = (255, 0, 0), (128, 128, 128)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 128, HALF),
        ("LA", (128, 0), HALF),
        ("RGB", RED, RED),
        ("RGBA", (*RED, 0), RED),
        ("P", 1, RED),
    ],
)
def test_every_colour_mode_becomes_red_green_blue(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: tuple[int, ...]
) -> None:
    picture = Image.new(mode, (2, 1), colour)
    if mode == "P":
        picture.putpalette([0, 0, 0, *RED])
        picture.info["transparency"] = b"\x00\x10"
    picture.save(tmp_path / "x.png")
    assert open_pictures(tmp_path)[0].image.tolist() == [[list(expected)] * 2]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_the_range_of_the_picture(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[1000, 1100, 1255]], dtype=np.uint16)).save(tmp_path / f"x.{suffix}")
    assert open_pictures(tmp_path)[0].image[..., 0].tolist() == [[0, 100, 255]]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_size_is_read_from_the_head_of_a_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((5, 7, 3), np.uint8)
    if name.endswith("tif"):
        tifffile.imwrite(tmp_path / name, picture, photometric="rgb")
    else:
        Image.fromarray(picture).save(tmp_path / name)
    dataset = open_pictures(tmp_path / name)
    monkeypatch.setattr(dataset, "image", lambda index: pytest.fail("decoded"))
    assert dataset.size(0) == (5, 7)


def test_a_size_in_the_records_needs_no_file(tmp_path: Path) -> None:
    dataset = open_dataset(coco_folder(tmp_path), format="coco-panoptic")
    sizes = [dataset.size(index) for index in range(len(dataset))]
    assert sizes == [dataset.image(index).shape[:2] for index in range(len(dataset))]


def test_a_picture_of_one_value_is_black_when_scaled(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.full((1, 2), 0.5, dtype=np.float32))
    assert not open_pictures(tmp_path)[0].image.any()


@pytest.mark.parametrize("planar", [False, True])
def test_tiffs_are_read_with_channels_last_or_first(tmp_path: Path, planar: bool) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    stored = np.moveaxis(pixels, 2, 0) if planar else pixels
    layout = "separate" if planar else "contig"
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="rgb", planarconfig=layout)
    assert np.array_equal(open_pictures(tmp_path)[0].image, pixels)


# As torch uses them.


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_a_data_loader_read_what_the_parent_reads(tmp_path: Path) -> None:
    for data in (
        open_dataset(coco_folder(tmp_path / "coco"), format="coco-panoptic"),
        open_dataset(nuclei_folder(tmp_path / "nuclei"), format="instance-map"),
        open_pictures(tmp_path / "nuclei/images"),
    ):
        copy = pickle.loads(pickle.dumps(data))
        loader = DataLoader(copy, batch_size=1, num_workers=2, collate_fn=as_list, multiprocessing_context="fork")
        for here, (there,) in zip(data, loader, strict=True):
            assert here.name == there.name
            assert np.array_equal(here.image, there.image)
            assert np.array_equal(here.instance, there.instance)


def test_importing_formats_imports_no_decoder() -> None:
    code = "import sys, lovasz_embed.formats; print([m for m in ('PIL', 'tifffile') if m in sys.modules])"
    root = Path(lovasz_embed.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


# Real pictures.


@pytest.mark.parametrize(("split", "count"), [("train", 26), ("val", 14)])
def test_real_coco_files_agree_with_their_own_ids_and_areas(shared_data: Path, split: str, count: int) -> None:
    data = open_dataset(shared_data / "coco_panoptic_open", format="coco-panoptic", split=split)
    assert isinstance(data, CocoPanoptic)
    assert (len(data), len(data.categories), len(data.things)) == (count, 133, 80)
    content = json.loads((shared_data / f"coco_panoptic_open/annotations/panoptic_{split}2017.json").read_text())
    for annotation in content["annotations"]:
        [segments] = data.result(data.position_of(annotation["image_id"])).segments
        read = {(s.id, data.categories[s.category].id, s.area, int(s.is_crowd)) for s in segments}
        info = annotation["segments_info"]
        assert read == {(s["id"], s["category_id"], s["area"], s["iscrowd"]) for s in info}
    assert all(sample.image.shape[:2] == sample.semantic.shape for sample in data)


def test_real_coco_truth_written_again_is_perfect_for_hotcoco(shared_data: Path, tmp_path: Path) -> None:
    data = open_dataset(shared_data / "coco_panoptic_open", format="coco-panoptic", split="val")
    results = (data.result(k) for k in range(len(data)))
    write_coco_panoptic(tmp_path / "out.json", results, images=data.images, categories=data.categories)
    truth = shared_data / "coco_panoptic_open/annotations/panoptic_val2017.json"
    assert pq_compute(str(truth), str(tmp_path / "out.json"))["All"]["pq"] == 1.0
    before, after = (json.loads(path.read_text())["annotations"] for path in (truth, tmp_path / "out.json"))
    for annotation in (*before, *after):
        annotation["segments_info"].sort(key=lambda segment: segment["id"])
    assert after == before  # boxes and areas included


@pytest.mark.parametrize(("split", "count"), [("train", 431), ("val", 50)])
def test_real_nuclei_agree_with_their_index(shared_data: Path, split: str, count: int) -> None:
    folder = shared_data / "dsb2018_nuclei"
    data = open_dataset(folder, format="instance-map", split=split)
    assert len(data) == count
    records = {record["name"]: record for record in json.loads((folder / "index.json").read_text())}
    for k in range(0, count, count // 10):
        sample, record = data[k], records[data.names[k]]
        assert sample.image.shape == (record["height"], record["width"], 3)
        assert len(np.unique(sample.instance)) - 1 == record["instances"]
        assert sample.semantic.mean() == pytest.approx(record["foreground"], abs=5e-5)  # printed to 4 digits
