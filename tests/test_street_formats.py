"""Cityscapes, Vistas, KITTI-STEP, KITTI and MOTS: what is written is what is read, and what others wrote too."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from lovasz_embed.formats import (
    CITYSCAPES_CLASSES,
    Cityscapes,
    DataError,
    KittiStep,
    Mots,
    Sample,
    Vistas,
    dataset_splits,
    open_dataset,
    read_cityscapes_map,
    read_coco_panoptic,
    read_kitti_step_map,
    write_coco_panoptic,
    write_mots,
)
from lovasz_embed.panoptic import PanopticResult, Segment
from lovasz_embed.training import evaluate
from tests.street_folders import (
    STREET,
    label_files,
    numbered,
    panoptic_results,
    picture_folder,
    scenes,
    things_of,
    write_dataset,
    write_labels,
)

every_format = pytest.mark.parametrize("format", STREET)


def save(path: Path, values: object, dtype: type = np.uint16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype)).save(path)
    return path


def as_list(samples: list[Sample]) -> list[Sample]:
    return samples


# What is written is what is read.


@pytest.mark.parametrize("format", ["cityscapes", "vistas", "kitti-step", "kitti", "mots"])
@settings(max_examples=10)
@given(data=st.data())
def test_random_maps_come_back_from_their_files(format: str, data: st.DataObject) -> None:
    results = data.draw(st.lists(panoptic_results(format), min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder), format, results)
        assert len(dataset) == len(results)
        assert dataset.things == things_of(format)
        for k, result in enumerate(results):
            assert numbered(dataset.result(k), dataset.things) == numbered(result, dataset.things)
            labels = dataset.labels(k)
            assert labels is not None
            assert (labels.semantic.dtype, labels.instance.dtype) == (np.uint8, np.int32)
            assert np.array_equal(labels.semantic, result.semantic()[0])


@settings(max_examples=10)
@given(data=st.data())
def test_random_maps_come_back_from_vistas_instance_maps(data: st.DataObject) -> None:
    """They know no crowds: a crowd comes back as one more instance."""
    result = data.draw(panoptic_results("vistas"))
    crowds = [segment.id for segment in result.segments[0] if segment.is_crowd]
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), "vistas", [result])
        dataset = Vistas(Path(folder), source="instances")
        instance = torch.where(torch.isin(result.segmentation, torch.tensor(crowds)), result.segmentation, 0)
        instance += result.instance()
        expected = PanopticResult.from_maps(result.semantic(), instance, things=dataset.things)
        assert numbered(dataset.result(0), dataset.things) == expected


@settings(max_examples=10)
@given(ids=st.lists(st.integers(1, 2**24 - 1), min_size=1, max_size=8, unique=True))
def test_segment_ids_of_24_bits_come_back_from_vistas(ids: list[int]) -> None:
    segments = tuple(Segment(number, 1, True, 1) for number in sorted(ids))
    result = PanopticResult(torch.tensor([[ids]], dtype=torch.int32), (segments,))
    with tempfile.TemporaryDirectory() as folder:
        labels = write_dataset(Path(folder), "vistas", [result]).labels(0)
        assert labels is not None
        assert labels.instance.tolist() == [ids]


@pytest.mark.parametrize("format", ["kitti-step", "mots"])
@given(ids=st.lists(st.integers(1, 999), min_size=2, max_size=6, unique=True))
@settings(max_examples=10)
def test_ids_of_a_clip_survive_writing_and_reading_again(format: str, ids: list[int]) -> None:
    """A person and a car may share a number in the files; the ids that are read differ."""
    one, two = sorted(things_of(format))
    segments = [Segment(number, (one, two)[k % 2], True, 1) for k, number in enumerate(sorted(ids))]
    frame = PanopticResult(torch.tensor([[sorted(ids)]], dtype=torch.int32), (tuple(segments),))
    with tempfile.TemporaryDirectory() as folder:
        first = write_dataset(Path(folder, "one"), format, [frame, frame])
        again = write_dataset(Path(folder, "two"), format, [first.result(0), first.result(1)])
        assert first.result(0) == first.result(1) == again.result(0) == again.result(1)
        read = [divmod(s.id, 65536) for s in first.result(0).segments[0]]
        assert sorted(read) == sorted((s.category + 1, s.id) for s in segments)


@every_format
def test_predictions_written_as_coco_files_are_read_with_the_same_categories(format: str, tmp_path: Path) -> None:
    truth = [result for _, result in scenes(format, 3)]
    data = write_dataset(tmp_path / "data", format, truth)
    written = tmp_path / "predictions.json"
    results = (data.result(k) for k in range(len(data)))
    write_coco_panoptic(written, results, images=data.images, categories=data.categories)
    read = read_coco_panoptic(written, categories=data.categories)
    assert read.names == data.names
    assert [read.result(k) for k in range(3)] == [data.result(k) for k in range(3)]


# What the values of the files mean, written down by hand.


def test_cityscapes_values_are_labels_or_a_thousand_labels_and_a_number(tmp_path: Path) -> None:
    values = [[7, 24, 24000, 24001], [26003, 29, 29001, 0], [4, 33, 33999, 11]]
    labels = read_cityscapes_map(save(tmp_path / "a.png", values))
    assert labels.semantic.tolist() == [[0, 11, 11, 11], [13, 255, 255, 255], [255, 18, 18, 2]]
    assert labels.instance.tolist() == [[0, 0, 24000, 24001], [26003, 0, 0, 0], [0, 0, 33999, 0]]
    assert labels.crowd is not None
    assert np.argwhere(labels.crowd).tolist() == [[0, 1], [2, 1]]


def test_cityscapes_files_hold_the_ids_of_its_definition(tmp_path: Path) -> None:
    """Road, two cars, a group of cars and void."""
    segments = (
        Segment(1, 0, False, 1),
        Segment(4, 13, True, 1),
        Segment(9, 13, True, 1),
        Segment(12, 13, True, 1, 1.0, True),
    )
    result = PanopticResult(torch.tensor([[[1, 4, 9, 12, 0]]], dtype=torch.int32), (segments,))
    write_labels(tmp_path, "cityscapes", "val", [result])
    stem = "gtFine/val/acity/acity_000000_000019_gtFine_"
    expected = {
        "instanceIds": [7, 26000, 26001, 26, 0],
        "labelIds": [7, 26, 26, 26, 0],
        "labelTrainIds": [0, 13, 13, 13, 255],
    }
    for kind, values in expected.items():
        assert np.asarray(Image.open(tmp_path / f"{stem}{kind}.png")).tolist() == [values]


def test_the_cityscapes_class_list_has_19_classes_that_count_and_8_things() -> None:
    counted = [c for c in CITYSCAPES_CLASSES if c.train_id is not None]
    assert [c.id for c in CITYSCAPES_CLASSES] == list(range(34))
    assert [c.train_id for c in counted] == list(range(19))
    assert [c.id for c in counted if c.has_instances] == [24, 25, 26, 27, 28, 31, 32, 33]


def test_the_class_list_is_that_of_the_data_sets_own_scripts() -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    theirs = {
        label.id: (label.name, label.category, label.hasInstances, label.ignoreInEval, tuple(label.color))
        for label in labels
        if label.id >= 0
    }
    ours = {c.id: (c.name, c.group, c.has_instances, c.train_id is None, c.color) for c in CITYSCAPES_CLASSES}
    assert ours == theirs
    assert {c.id: c.train_id for c in CITYSCAPES_CLASSES if c.train_id is not None} == {
        label.id: label.trainId for label in labels if not label.ignoreInEval
    }


def test_the_data_sets_own_scripts_read_what_was_written(tmp_path: Path) -> None:
    """Their conversion of our `instanceIds` gives the segments that we wrote."""
    scripts = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    truth = [result for _, result in scenes("cityscapes", 3)]
    data = write_dataset(tmp_path, "cityscapes", truth, split="val")
    scripts.convert2panoptic(str(tmp_path / "gtFine"), str(tmp_path), useTrainId=False, setNames=["val"])
    theirs = read_coco_panoptic(tmp_path / "cityscapes_panoptic_val.json", categories=data.categories)
    for k, record in enumerate(data.images):
        read = theirs.result(theirs.position_of(record.image_id))
        assert numbered(read, data.things) == numbered(data.result(k), data.things)


def test_the_data_sets_own_scripts_score_predictions_as_we_do(tmp_path: Path) -> None:
    """Shifted truth with a rider too many, as `predict` writes it."""
    scripts = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    scoring = pytest.importorskip("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")
    truth = [result for _, result in scenes("cityscapes", 4)]
    data = write_dataset(tmp_path, "cityscapes", truth, split="val")
    predictions = []
    for k in range(4):
        maps = [torch.roll(part, (k, 2), (1, 2)) for part in (data.result(k).semantic(), data.result(k).instance())]
        maps[0][:, :4, :5], maps[1][:, :4, :5] = 12, 9
        predictions.append(PanopticResult.from_maps(*maps, things=data.things))
    write_coco_panoptic(tmp_path / "pred.json", predictions, images=data.images, categories=data.categories)
    scripts.convert2panoptic(str(tmp_path / "gtFine"), str(tmp_path), useTrainId=False, setNames=["val"])
    files = [f"cityscapes_panoptic_val{end}" for end in (".json", "")] + ["pred.json", "pred", "out.json"]
    theirs = scoring.evaluatePanoptic(*(str(tmp_path / file) for file in files))
    ours = evaluate(predictions, (data.result(k) for k in range(4)), classes=19, things=data.things)
    assert 0.1 < ours.pq < 0.9
    # Sums of quotients in another order.
    for name, values in (("All", (ours.pq, ours.sq, ours.rq)), ("Things", (ours.pq_things, ours.sq_things))):
        assert values == pytest.approx([theirs[name][key] for key in ("pq", "sq", "rq")][: len(values)], abs=1e-9)


def test_kitti_step_colours_are_class_and_track(tmp_path: Path) -> None:
    colours = [[[0, 0, 0], [11, 0, 1], [13, 2, 3]], [[13, 0, 0], [12, 0, 7], [255, 0, 0]]]
    labels = read_kitti_step_map(save(tmp_path / "a.png", colours, np.uint8))
    assert labels.semantic.tolist() == [[0, 11, 13], [13, 12, 255]]
    assert labels.instance.tolist() == [[0, 12 * 65536 + 1, 14 * 65536 + 2 * 256 + 3], [0, 0, 0]]
    assert labels.crowd is not None
    assert labels.crowd.tolist() == [[False, False, False], [True, False, False]]


def test_mots_values_are_a_thousand_classes_and_a_number(tmp_path: Path) -> None:
    save(tmp_path / "train/instances/0001/000000.png", [[0, 1001, 2001, 2000, 10000]])
    save(tmp_path / "train/images/0001/000000.png", np.zeros((1, 5, 3)), np.uint8)
    data = open_dataset(tmp_path, format="mots")
    labels = data.labels(0)
    assert labels is not None
    assert [c.name for c in data.categories] == ["background", "car", "pedestrian"]
    assert labels.semantic.tolist() == [[0, 1, 2, 2, 255]]
    assert labels.instance.tolist() == [[0, 2 * 65536 + 1, 3 * 65536 + 1, 0, 0]]
    assert labels.crowd is not None
    assert labels.crowd.tolist() == [[False, False, False, True, False]]


def test_vistas_names_of_both_versions_are_understood(tmp_path: Path) -> None:
    """Version 1.2 writes what people call a label, and its full name as the group."""
    for format in ("vistas-v1.2", "vistas-v2.0"):
        folder = tmp_path / format
        data = write_dataset(folder, format, [result for _, result in scenes(format, 1)])
        [path] = folder.rglob("panoptic_20*.json")
        names = [entry["name"] for entry in json.loads(path.read_text())["categories"]]
        assert ("Car" in names, "object--vehicle--car" in names) == (format == "vistas-v1.2", format == "vistas-v2.0")
        assert [(c.id, c.name) for c in data.categories] == [
            (1, "construction--flat--road"),
            (2, "object--vehicle--car"),
            (4, "human--person"),
            (5, "nature--sky"),
        ]


# The folders.


def test_vistas_takes_the_newest_version_that_is_there(tmp_path: Path) -> None:
    truth = [result for _, result in scenes("vistas", 2)]
    for format in ("vistas-v1.2", "vistas-v2.0"):
        data = write_dataset(tmp_path, format, truth)
        assert isinstance(data, Vistas)
        assert data.version == format[-4:]
    newest = open_dataset(tmp_path, format="vistas")
    assert isinstance(newest, Vistas)
    assert newest.version == "v2.0"


def test_the_first_layout_of_vistas_is_read_as_well(tmp_path: Path) -> None:
    """`config.json`, and labels without a folder of their version."""
    truth = [result for _, result in scenes("vistas", 2)]
    before = write_dataset(tmp_path, "vistas-v1.2", truth, split="training")
    expected = [before.result(k) for k in range(2)]
    (tmp_path / "config_v1.2.json").rename(tmp_path / "config.json")
    for part in (tmp_path / "training/v1.2").iterdir():
        part.rename(tmp_path / "training" / part.name)
    (tmp_path / "training/v1.2").rmdir()
    data = open_dataset(tmp_path, format="vistas", split="training")
    assert [data.result(k) for k in range(2)] == expected


@pytest.mark.parametrize("place", ["image_02", "training/image_02"])
def test_kitti_step_finds_pictures_where_kitti_packs_them(tmp_path: Path, place: str) -> None:
    """There the sequences of all splits lie beside each other."""
    data = write_dataset(tmp_path, "kitti-step", [result for _, result in scenes("kitti-step", 4)], split="val")
    expected = [data.image(k) for k in range(4)]
    (tmp_path / place).parent.mkdir(exist_ok=True)
    picture_folder(tmp_path, "kitti-step", "val").rename(tmp_path / place)
    save(tmp_path / place / "0099/000000.png", np.zeros((2, 2, 3)), np.uint8)
    data = KittiStep(tmp_path, "val")
    assert len(data) == 4
    assert all(np.array_equal(data.image(k), picture) for k, picture in enumerate(expected))


@pytest.mark.parametrize("format", ["kitti-step", "mots"])
def test_sequences_are_clips_with_their_frames_in_order(tmp_path: Path, format: str) -> None:
    data = write_dataset(tmp_path, format, [result for _, result in scenes(format, 7)])
    assert isinstance(data, KittiStep | Mots)
    assert [(clip.name, len(clip)) for clip in data.clips] == [("0000", 3), ("0001", 3), ("0002", 1)]
    assert [name for clip in data.clips for name in clip.names] == list(data.names)
    position = 0
    for clip in data.clips:
        for k in range(len(clip)):
            assert clip.result(k) == data.result(position)
            assert np.array_equal(clip[k].image, data.image(position))
            assert clip.image_file(k) == data.image_file(position)
            position += 1


def test_frames_are_sorted_by_their_number_not_by_its_digits(tmp_path: Path) -> None:
    for number in (0, 2, 10, 100):
        save(tmp_path / f"panoptic_maps/val/0001/{number}.png", np.full((1, 1, 3), 13), np.uint8)
        save(tmp_path / f"images/val/0001/{number}.png", np.zeros((1, 1, 3)), np.uint8)
    assert KittiStep(tmp_path).names == ("0001/0", "0001/2", "0001/10", "0001/100")


@every_format
def test_splits_are_listed_and_the_only_one_is_taken(tmp_path: Path, format: str) -> None:
    truth = [result for _, result in scenes(format, 2)]
    for split in ("train", "val"):
        if split == "val" and format == "cityscapes-coarse":
            continue  # the helper renames the whole folder
        write_dataset(tmp_path, format, truth, split=split)
    splits = dataset_splits(tmp_path, format=format)
    assert splits == (("train",) if format == "cityscapes-coarse" else ("train", "val"))
    if len(splits) == 1:
        assert len(open_dataset(tmp_path, format=format)) == 2


def test_panoptic_folders_of_cityscapes_are_no_splits(tmp_path: Path) -> None:
    write_dataset(tmp_path, "cityscapes", [result for _, result in scenes("cityscapes", 1)])
    (tmp_path / "gtFine/cityscapes_panoptic_train").mkdir()
    assert dataset_splits(tmp_path, format="cityscapes") == ("train",)


def test_opening_a_folder_reads_no_picture(tmp_path: Path) -> None:
    """All of its files are empty: to look into one would be an error."""
    for part, ending in (("leftImg8bit", "leftImg8bit"), ("gtCoarse", "gtCoarse_instanceIds")):
        for city in "ab":
            folder = tmp_path / part / "train_extra" / city
            folder.mkdir(parents=True)
            for number in range(200):
                (folder / f"{city}_{number:06}_000000_{ending}.png").touch()
    data = open_dataset(tmp_path, format="cityscapes-coarse")
    assert len(data) == 400
    with pytest.raises(DataError, match="must be a readable picture"):
        data.image(0)


@every_format
def test_data_sets_can_be_pickled_and_loaded_by_other_processes(tmp_path: Path, format: str) -> None:
    data = write_dataset(tmp_path, format, [result for _, result in scenes(format, 4)])
    assert pickle.loads(pickle.dumps(data)).result(1) == data.result(1)
    if format != "cityscapes":
        return  # forking is slow, and the same for all
    loader = DataLoader(data, batch_size=2, num_workers=2, collate_fn=as_list)
    loaded = [sample for batch in loader for sample in batch]
    assert [sample.name for sample in loaded] == list(data.names)
    assert all(np.array_equal(a.instance, b.instance) for a, b in zip(loaded, data, strict=True))


def test_a_picture_of_twenty_megapixels_is_read_without_maps_of_wide_integers(tmp_path: Path) -> None:
    """What numpy allocates besides the picture: 4 bytes of the instance map, 2 of what is decoded, 2 of the result."""
    import tracemalloc

    pixels = 2_000_000
    path = save(tmp_path / "a.png", np.full((1000, 2000), 26001))
    read_cityscapes_map(path)  # tables and imports
    tracemalloc.start()
    labels = read_cityscapes_map(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert labels.instance.size == pixels
    # An int64 map alone would be 8 bytes; 2 MB are the strips and what Pillow holds.
    assert peak < 11 * pixels + 2_000_000


# Fixtures of another library.


@pytest.fixture
def fixtures(shared_data: Path) -> Path:
    folder = shared_data / "format_fixtures_datumaro" / "tests" / "assets"
    if not folder.is_dir():
        pytest.skip("format_fixtures_datumaro is absent from the folder of real pictures")
    return folder


def test_the_fixtures_of_cityscapes_are_read(fixtures: Path) -> None:
    folder = fixtures / "cityscapes_dataset/train_dataset"
    assert dataset_splits(folder, format="cityscapes") == ("test", "train", "val")
    test = Cityscapes(folder, "test")
    assert [image.image_id for image in test.images] == ["defaultcity_000001_000031", "defaultcity_000001_000032"]
    assert test[0].instance.tolist() == [[0, 0, 27001, 27002, 27002]]
    assert test[1].semantic.tolist() == [[16, 16, 3, 255, 255]]
    for split in ("test", "train", "val"):
        data = Cityscapes(folder, split)
        for k in range(len(data)):
            # Their maps of train ids, in which void is 19, agree.
            trained = folder / "gtFine" / split / "defaultcity" / f"{data.images[k].image_id}_gtFine_labelTrainIds.png"
            theirs = np.asarray(Image.open(trained))
            assert np.array_equal(data[k].semantic, np.where(theirs == 19, 255, theirs))


def test_a_fixture_of_8_bits_holds_groups_only(fixtures: Path) -> None:
    data = Cityscapes(fixtures / "cityscapes_dataset/dataset", "test")
    assert data[0].semantic.tolist() == [[255, 255, 14, 14, 14]]
    assert data[0].crowd.tolist() == [[False, False, True, True, True]]
    assert not data[0].instance.any()


@pytest.mark.parametrize("version", ["v1.2", "v2.0"])
def test_the_fixtures_of_vistas_are_read(fixtures: Path, version: str) -> None:
    folder = fixtures / "mapillary_vistas_dataset"
    data = open_dataset(folder, format=f"vistas-{version}", split="val")
    assert [(c.id, c.name, c.is_thing) for c in data.categories] == [
        (1, "animal--bird", True),
        (10, "construction--barrier--separator", True),
        (100, "object--vehicle--bicycle", True),
    ]
    group, two = data
    assert (group.semantic[0].tolist(), group.instance[0].tolist()) == ([0, 0, 0, 1, 1], [0, 0, 0, 2, 2])
    assert group.crowd[0].tolist() == [True, True, True, False, False]
    assert (two.semantic[0].tolist(), two.instance[0].tolist()) == ([2, 2, 1, 2, 2], [1, 1, 2, 0, 0])
    maps = Vistas(folder, "val", version=version, source="instances")
    assert np.array_equal(maps[1].semantic, two.semantic)
    assert maps[1].instance[0].tolist() == [513, 513, 257, 514, 514]
    for k, name in enumerate(data.names):
        theirs = np.asarray(Image.open(folder / "val" / version / "labels" / f"{name}.png"))
        assert np.array_equal(data[k].semantic, theirs)


def test_the_fixtures_of_kitti_are_read(fixtures: Path) -> None:
    data = open_dataset(fixtures / "kitti_dataset/kitti_segmentation", format="kitti")
    assert data.names == ("000030_10", "000030_11")
    assert data[0].semantic.tolist() == [[255, 255, 14, 14, 14]]
    assert data[0].instance.tolist() == [[0, 0, 27 * 256 + 1, 27 * 256 + 2, 27 * 256 + 2]]
    assert data[1].semantic.tolist() == [[16, 16, 3, 255, 255]]
    assert data[1].instance.tolist() == [[31 * 256 + 1, 31 * 256 + 1, 0, 0, 0]]  # the number of the wall means nothing


def test_the_fixtures_of_mots_are_read(fixtures: Path) -> None:
    data = open_dataset(fixtures / "mots_dataset", format="mots", split="train")
    assert [c.name for c in data.categories] == ["background", "a", "b", "c", "d"]
    labels = data.labels(0)
    assert labels is not None
    assert labels.semantic.tolist() == [[4, 4, 3, 4, 0]]
    assert (labels.instance % 65536).tolist() == [[3, 3, 2, 1, 0]]


def test_the_fixtures_of_coco_are_read(fixtures: Path) -> None:
    data = open_dataset(fixtures / "coco_dataset/coco_panoptic", format="coco-panoptic", split="val")
    assert data[0].semantic[0].tolist() == [0, 0, 1, 1, 255]
    assert data[0].crowd[0].tolist() == [False, False, True, True, False]


def test_fixtures_survive_a_round_trip(fixtures: Path, tmp_path: Path) -> None:
    """The values of the files themselves come back, where numbers began where ours begin."""
    data = open_dataset(fixtures / "kitti_dataset/kitti_segmentation", format="kitti")
    write_labels(tmp_path, "kitti", "training", [data.result(k) for k in range(2)])
    for name, written in zip(data.names, label_files(tmp_path, "kitti"), strict=True):
        theirs = np.asarray(Image.open(fixtures / f"kitti_dataset/kitti_segmentation/training/instance/{name}.png"))
        kept = np.isin(theirs >> 8, [27, 31])  # void is label 0 with us, and a wall has no number
        assert np.array_equal(np.asarray(Image.open(written))[kept], theirs[kept])
    clip = open_dataset(fixtures / "mots_dataset", format="mots", split="train")
    results = [clip.result(k) for k in range(2)]
    write_mots(tmp_path / "mots", results, images=clip.images, categories=clip.categories)
    for name in clip.names:
        theirs = np.asarray(Image.open(fixtures / f"mots_dataset/train/instances/{name}.png"))
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"mots/{name}.png")), theirs)
