"""Tar shards: what is written is what is read, by number and as a stream, and nothing else is opened or unpickled."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lovasz_embed.formats import (
    Category,
    CocoPanoptic,
    DataError,
    ImageRecord,
    Labels,
    PanopticDataset,
    Sample,
    open_dataset,
    open_pictures,
    stream_shards,
    write_coco_panoptic,
    write_instance_map,
    write_shards,
)
from lovasz_embed.training import TrainConfig
from lovasz_embed.training._batches import Batches
from tests.street_folders import STREET, scenes, write_dataset

wds = pytest.importorskip("webdataset")


def cells(folder: Path, count: int) -> PanopticDataset:
    """Pictures of a few pixels, each of its own size and colour."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        size = (4 + number % 3, 5)
        Image.fromarray(rng.integers(256, size=size, dtype=np.uint8)).save(folder / f"images/cell{number:02}.png")
        write_instance_map(folder / f"labels/cell{number:02}.png", rng.integers(0, 3, size))
    return open_dataset(folder, format="instance-map")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PanopticDataset:
    return cells(tmp_path_factory.mktemp("cells"), 23)


@pytest.fixture(scope="module")
def shards(data: PanopticDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(data, folder, pictures_per_shard=3)  # 8 shards, the last of 2
    return folder


def same(ours: Sample, theirs: Sample) -> bool:
    """Whether two samples are equal bit for bit."""
    for name in ("image", "semantic", "instance", "crowd"):
        left, right = getattr(ours, name), getattr(theirs, name)
        if (left is None) != (right is None) or (left is not None and not np.array_equal(left, right)):
            return False
        if left is not None and left.dtype != right.dtype:
            return False
    return ours.name == theirs.name


def as_list(samples: list[Sample]) -> list[Sample]:
    return samples


def loaded(stream: Any, workers: int, **options: Any) -> list[str]:
    loader = DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=as_list, **options)
    return [sample.name for batch in loader for sample in batch]


@pytest.mark.parametrize("format", STREET)
def test_shards_hold_what_every_format_holds(tmp_path: Path, format: str) -> None:
    pairs = list(scenes(format, 3))
    data = write_dataset(tmp_path / "data", format, [truth for _, truth in pairs], images=[image for image, _ in pairs])
    write_shards(data, tmp_path / "shards", split="some", pictures_per_shard=2)
    sharded = open_dataset(tmp_path / "shards", format="shards")
    assert sharded.categories == data.categories
    assert sharded.names == data.names
    assert [record.image_id for record in sharded.images] == [record.image_id for record in data.images]
    assert [sharded.size(k) for k in range(3)] == [data.size(k) for k in range(3)]
    assert all(same(ours, theirs) for ours, theirs in zip(sharded, data, strict=True))


def test_crowds_void_and_gaps_in_ids_come_back_as_they_were(tmp_path: Path) -> None:
    semantic = np.array([[0, 1, 1, 255], [1, 1, 0, 255]], np.uint8)
    instance = np.array([[0, 7, 0, 0], [90_000, 7, 0, 0]], np.int32)
    crowd = np.array([[0, 0, 1, 0], [0, 0, 0, 0]], bool)

    class One(PanopticDataset):
        def image(self, index: Any) -> Any:
            return np.full((2, 4, 3), 9, np.uint8)

        def labels(self, index: Any) -> Any:
            return Labels(semantic, instance, crowd)

    # Not by ascending id: the order is that of the indices, and must stay.
    data = One([Category(30, "floor", False), Category(4, "cup", True, "dishes")], [ImageRecord("x", "a/b.c/x.bmp")])
    write_shards(data, tmp_path)
    sharded = open_dataset(tmp_path, format="shards")
    assert sharded.categories == data.categories
    assert same(sharded[0], data[0])
    assert same(next(iter(stream_shards(tmp_path))), data[0])


def test_real_pictures_keep_their_own_bytes(shared_data: Path, tmp_path: Path) -> None:
    data = open_dataset(shared_data / "coco_panoptic_open", format="coco-panoptic", split="val")
    assert isinstance(data, CocoPanoptic)
    write_shards(data, tmp_path, pictures_per_shard=5)
    sharded = open_dataset(tmp_path, format="shards")
    assert all(same(ours, theirs) for ours, theirs in zip(sharded, data, strict=True))
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        kept = tar.extractfile("000000000.jpg")
        assert kept is not None
        assert kept.read() == data.image_file(0).read_bytes()


def test_pictures_without_labels_are_shards_as_well(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 7).save(tmp_path / "a.tif")  # no file of a tif: its pixels are kept as a PNG
    write_shards(open_pictures(tmp_path / "a.tif"), tmp_path / "shards", split="all")
    sharded = open_dataset(tmp_path / "shards", format="shards")
    assert sharded.labels(0) is None
    assert sharded[0].image.tolist() == [[[7] * 3] * 3] * 2
    assert next(iter(stream_shards(tmp_path / "shards"))).semantic is None


def test_training_on_shards_sees_what_training_on_files_sees(data: PanopticDataset, shards: Path) -> None:
    """`fit` draws its batches by number: the same crops, and so the same weights."""
    config = TrainConfig(steps=3, batch=4, crop=16, sampling="pixels", turn=True)
    ours, theirs = (Batches(each, config, 2) for each in (open_dataset(shards, format="shards"), data))
    for step in range(config.steps):
        assert all(torch.equal(left, right) for left, right in zip(ours[step], theirs[step], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_and_loading_processes_share_the_pictures_without_overlap_or_loss(
    data: PanopticDataset, shards: Path, ranks: int, workers: int
) -> None:
    parts = [loaded(stream_shards(shards, rank=rank, ranks=ranks, buffer=4), workers) for rank in range(ranks)]
    assert sorted(name for part in parts for name in part) == sorted(data.names)


def test_more_processes_than_shards_lose_nothing(data: PanopticDataset, shards: Path) -> None:
    parts = [loaded(stream_shards(shards, rank=rank, ranks=11), 0) for rank in range(11)]
    assert sorted(name for part in parts for name in part) == sorted(data.names)
    assert min(map(len, parts)) == 0


def test_the_order_follows_from_seed_and_round(data: PanopticDataset, shards: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        stream = stream_shards(shards, seed=seed)
        stream.set_epoch(epoch)
        return [sample.name for sample in stream]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert [sample.name for sample in stream_shards(shards, shuffle=False)] == list(data.names)
    # Drawn from all shards, not from the first one alone. The seeds are fixed: it holds always or never.
    firsts = {order(seed, 0)[0] for seed in range(12)}
    assert len(firsts) > 6


def test_loading_processes_that_live_on_hear_of_the_next_round(shards: Path) -> None:
    stream = stream_shards(shards)
    loader = DataLoader(stream, batch_size=4, num_workers=1, collate_fn=as_list, persistent_workers=True)
    rounds = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        rounds.append([sample.name for batch in loader for sample in batch])
    assert rounds[0] == rounds[2] != rounds[1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset 1.0.2 leaves files open
def test_webdataset_reads_the_shards_by_itself(data: PanopticDataset, shards: Path) -> None:
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8", only=["png"]))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(len(data))]
    assert np.array_equal(samples[4]["png"], data[4].image)
    assert json.loads(samples[4]["segments.json"])["file_name"] == "cell04.png"


def test_the_same_bytes_are_written_again_and_by_several_processes(
    data: PanopticDataset, shards: Path, tmp_path: Path
) -> None:
    write_shards(data, tmp_path / "again", pictures_per_shard=3)
    assert contents(tmp_path / "again") == contents(shards)


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(data: PanopticDataset, shards: Path, tmp_path: Path) -> None:
    write_shards(data, tmp_path / "both", pictures_per_shard=3, processes=2)
    assert contents(tmp_path / "both") == contents(shards)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_split_is_written_once(data: PanopticDataset, shards: Path) -> None:
    with pytest.raises(DataError, match=r"must hold no split train yet, got train\.shards\.json\. Choose another"):
        write_shards(data, shards)


def test_a_picture_that_cannot_be_read_stops_the_writing_or_is_left_out(tmp_path: Path) -> None:
    data = cells(tmp_path / "cells", 5)
    (tmp_path / "cells/images/cell02.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cell02\.png must be a readable picture"):
        write_shards(data, tmp_path / "shards", pictures_per_shard=2)
    assert not list((tmp_path / "shards").glob("*.shards.json"))  # what was cut off is no data set
    with pytest.raises(DataError, match="split must be one of none"):
        open_dataset(tmp_path / "shards", format="shards")
    left_out: list[str] = []
    write_shards(data, tmp_path / "shards", pictures_per_shard=2, on_error=lambda name, error: left_out.append(name))
    assert left_out == ["cell02"]
    sharded = open_dataset(tmp_path / "shards", format="shards")
    assert sharded.names == ("cell00", "cell01", "cell03", "cell04")
    assert all(same(sharded[ours], data[theirs]) for ours, theirs in enumerate([0, 1, 3, 4]))


def changed(shards: Path, folder: Path, **values: Any) -> Path:
    """Copy the shards, the first entry of their list changed."""
    for file in shards.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "train.shards.json").read_text())
    manifest["shards"][0].update(values)
    (folder / "train.shards.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    "name", ["../x.tar", "/etc/passwd", "pipe:touch x", "https://example.org/x.tar", ".x", 3, None]
)
def test_a_list_of_shards_leads_nowhere_else(shards: Path, tmp_path: Path, name: Any) -> None:
    changed(shards, tmp_path, file=name)
    for call in (lambda: open_dataset(tmp_path, format="shards"), lambda: stream_shards(tmp_path)):
        with pytest.raises(DataError, match=r"file of shards\[0\] of .* must be of letters, digits, _, - and dots"):
            call()


def test_a_shard_that_was_cut_is_found_before_it_is_read(shards: Path, tmp_path: Path) -> None:
    changed(shards, tmp_path)
    first = tmp_path / "train-000000.tar"
    size = first.stat().st_size
    first.write_bytes(first.read_bytes()[:-700])
    with pytest.raises(DataError, match=f"must be the shard of {size} bytes that train.shards.json names"):
        open_dataset(tmp_path, format="shards")
    first.write_bytes(first.read_bytes()[:4000])  # and where the list has been made to agree
    changed_size(tmp_path, 4000)
    with pytest.raises(DataError, match=r"must lie in the 4000 bytes of train-000000\.tar"):
        open_dataset(tmp_path, format="shards")
    with pytest.raises(DataError, match=r"must be a whole tar|must hold 3 pictures"):
        list(stream_shards(tmp_path, shuffle=False))


def changed_size(folder: Path, size: int) -> None:
    manifest = json.loads((folder / "train.shards.json").read_text())
    manifest["shards"][0]["bytes"] = size
    (folder / "train.shards.json").write_text(json.dumps(manifest))


class Bomb:
    def __reduce__(self) -> Any:
        return (open, (str(BOMB), "w"))


BOMB = Path("unpickled-by-lovasz-embed")


def rewritten(shards: Path, folder: Path, entries: Sequence[tarfile.TarInfo | tuple[str, bytes]]) -> Path:
    """Copy the shards, the first with more members behind its own."""
    changed(shards, folder)
    path = folder / "train-000000.tar"
    with tarfile.open(path, "a") as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    changed_size(folder, path.stat().st_size)
    return folder


@pytest.mark.parametrize("ending", ["pyd", "pickle", "pkl", "pth", "pt"])
def test_what_could_be_unpickled_is_left_as_it_is(
    shards: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").mkdir()
    rewritten(shards, tmp_path / "s", [(f"000000002.{ending}", pickle.dumps(Bomb()))])
    assert len(list(stream_shards(tmp_path / "s"))) == 23
    assert open_dataset(tmp_path / "s", format="shards")[0].image.shape == (4, 5, 3)
    assert not BOMB.exists()


def link(kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("000000003.png")
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


def sparse() -> tarfile.TarInfo:
    """A file that says it has 2^40 bytes, none of which is there."""
    entry = tarfile.TarInfo("000000003.png")
    entry.type = tarfile.GNUTYPE_SPARSE
    return entry


@pytest.mark.parametrize(
    "entry", [link(tarfile.SYMTYPE), link(tarfile.LNKTYPE), sparse()], ids=["link", "hard", "sparse"]
)
def test_a_shard_with_anything_but_plain_files_is_refused(shards: Path, tmp_path: Path, entry: tarfile.TarInfo) -> None:
    rewritten(shards, tmp_path, [entry])
    with pytest.raises(DataError, match=r"must hold plain files alone, got 000000003\.png of another kind"):
        list(stream_shards(tmp_path, shuffle=False))


def test_a_compressed_shard_is_refused(shards: Path, tmp_path: Path) -> None:
    import gzip

    changed(shards, tmp_path)
    path = tmp_path / "train-000000.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    changed_size(tmp_path, path.stat().st_size)
    with pytest.raises(DataError, match="must be a whole tar"):
        list(stream_shards(tmp_path, shuffle=False))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows[:-1], "must list the 3 pictures of train-000000.tar, got 2"),
        (lambda rows: {}, "must list the 3 pictures of train-000000.tar, got dict"),
        (lambda rows: [rows[0][:-1], *rows[1:]], "must be id, file name, height and width of a picture and three"),
        (lambda rows: [[*rows[0][:4], [-1, 5], [0, 0], [0, 0]], *rows[1:]], "must be id, file name, height and"),
        (lambda rows: [[*rows[0][:4], [0, 10**15], [0, 0], [0, 0]], *rows[1:]], "must lie in the"),
        (lambda rows: [[*rows[0][:4], [10**30, 1], [0, 0], [0, 0]], *rows[1:]], "must be id, file name, height"),
        (lambda rows: [[0, "../../x.png", *rows[0][2:]], *rows[1:]], r"must name a file inside its folder, got '\.\./"),
        (lambda rows: [[*rows[0][:2], True, 5, *rows[0][4:]], *rows[1:]], "must be id, file name, height and width"),
    ],
)
def test_an_index_that_is_wrong_fails_clearly(shards: Path, tmp_path: Path, change: Any, text: str) -> None:
    changed(shards, tmp_path)
    path = tmp_path / "train-000000.index.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=text):
        open_dataset(tmp_path, format="shards")


def test_options_out_of_range_fail_clearly(data: PanopticDataset, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank must be from 0 to 1, got 2"):
        stream_shards(shards, rank=2, ranks=2)
    with pytest.raises(ValueError, match="buffer must be at least 1, got 0"):
        stream_shards(shards, buffer=0)
    with pytest.raises(ValueError, match="pictures_per_shard must be at least 1, got 0"):
        write_shards(data, tmp_path, pictures_per_shard=0)
    with pytest.raises(DataError, match=r"split must be of letters, digits, _, - and dots, .* got '\.\./x'"):
        write_shards(data, tmp_path, split="../x")


def test_predictions_of_shards_are_coco_files(data: PanopticDataset, shards: Path, tmp_path: Path) -> None:
    sharded = open_dataset(shards, format="shards")
    results = (sharded.result(k) for k in range(len(sharded)))
    write_coco_panoptic(tmp_path / "out.json", results, images=sharded.images, categories=sharded.categories)
    assert len(json.loads((tmp_path / "out.json").read_text())["annotations"]) == 23


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Return bytes with a few of them changed, lost, doubled, or taken for others that mean something."""
    changed = bytearray(content)
    in_place = rng.integers(2)  # a shard of another size is refused before anything else is looked at
    for _ in range(int(rng.integers(1, 4))):
        at, length = int(rng.integers(len(changed) + 1)), int(rng.integers(1, 30))
        kind = 0 if in_place else rng.integers(5)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] = int(rng.integers(256))
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            tokens = [
                b"-1",
                b"0",
                b"1e999",
                b"9" * 40,
                b"null",
                b"[]",
                b"{}",
                b"true",
                b'"../x"',
                b"[" * 2000,
                b"\\ud800",
            ]
            changed[at : at + int(rng.integers(3))] = tokens[int(rng.integers(len(tokens)))]
        else:
            del changed[at:]
    return bytes(changed)


def read_damaged(shards: Path, folder: Path, count: int, seed: int) -> int:
    """Read shards with one damaged file each, both ways; return how many were read without an error."""
    originals, whole_reads = contents(shards), 0
    folder.mkdir(exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        name = ["train-000000.tar", "train-000000.index.json", "train.shards.json"][int(rng.integers(3))]
        for file, content in originals.items():
            if not (folder / file).is_file():
                (folder / file).write_bytes(content)
        (folder / name).write_bytes(damaged(rng, originals[name]))
        try:
            data = open_dataset(folder, format="shards")
            for index in range(min(len(data), 4)):
                data[index]
                data.result(index)
            whole_reads += 1
        except DataError:
            pass
        try:
            for _, sample in zip(range(4), stream_shards(folder, shuffle=False), strict=False):
                assert sample.image.dtype == np.uint8
        except DataError:
            pass
        (folder / name).write_bytes(originals[name])
    return whole_reads


def test_damaged_shards_raise_our_own_error_alone(shards: Path, tmp_path: Path) -> None:
    assert read_damaged(shards, tmp_path / "s", 100, 0) < 100


@pytest.mark.reliability
def test_many_damaged_shards_raise_our_own_error_alone(shards: Path, tmp_path: Path) -> None:
    assert read_damaged(shards, tmp_path / "s", 50_000, 1) < 50_000
