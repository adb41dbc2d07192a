"""Write a data set as tar shards."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lovasz_embed import _check
from lovasz_embed._atomic import replacing, write_atomically
from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError, ImageRecord, Labels, PanopticDataset
from lovasz_embed.formats._files import writing
from lovasz_embed.formats._shard_files import (
    MANIFEST,
    Member,
    Shard,
    check_name,
    index_of,
    index_rows,
    manifest_of,
    members_of,
)
from lovasz_embed.formats._shard_labels import encode_labels, text_of

# Files of these endings are taken over byte by byte; others become PNGs, as `PanopticDataset.image` reads them.
_TAKEN_OVER = frozenset({".jpg", ".jpeg", ".png", ".webp"})

OnError = Callable[[str, DataError], None]
"""Is told the name of a picture that is left out, and why."""


def write_shards(
    dataset: PanopticDataset,
    folder: str | PathLike[str],
    *,
    split: str = "train",
    pictures_per_shard: int = 1000,
    processes: int = 1,
    on_error: OnError | None = None,
) -> tuple[Shard, ...]:
    """Write a data set as tar shards in webdataset's layout, with an index beside each.

    Pictures are taken over as the files that they are (JPEG, PNG, WebP), others as PNGs; the truth is written as
    `dataset.labels` gives it, and reads back the same. Each picture is decoded once, so that none that is damaged goes
    into a shard. Of the same data set the same bytes are written.

    Args:
        dataset: From `open_dataset`, or pictures without labels from `open_pictures`.
        folder: Where the shards go; made if it is not there.
        split: Name of what is written; its files begin with it. Several splits may share a folder.
        pictures_per_shard: At most; the last shard has the rest. 1000 pictures of 100 kB to 1 MB are what storage reads
            well; a stream wants at least as many shards as there are processes that read.
        processes: How many write at the same time, a shard each.
        on_error: Is called with the name of a picture that cannot be read, which is then left out; None raises instead.

    Returns:
        The shards, in their order.

    Raises:
        DataError: A picture that cannot be read, a split that is there already, or a folder that cannot be written.
            Shards appear whole or not at all, and the list of them (`SPLIT.shards.json`) last: what was cut off is no
            data set, and is written over next time.
        ValueError: pictures_per_shard or processes is below 1.

    Example:
        >>> import tempfile, numpy as np
        >>> from PIL import Image
        >>> from lovasz_embed.formats import open_dataset, stream_shards, write_instance_map
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "cells/images").mkdir(parents=True)
        ...     for name in ("a", "b", "c"):
        ...         Image.new("L", (3, 2)).save(f"{folder}/cells/images/{name}.png")
        ...         write_instance_map(f"{folder}/cells/labels/{name}.png", np.array([[0, 1, 1], [0, 2, 2]]))
        ...     cells = open_dataset(f"{folder}/cells", format="instance-map")
        ...     shards = write_shards(cells, f"{folder}/shards", pictures_per_shard=2)
        ...     data = open_dataset(f"{folder}/shards", format="shards")
        ...     [shard.file for shard in shards], data, data[2].instance.tolist()
        (['train-000000.tar', 'train-000001.tar'], Shards(3 pictures, 2 categories), [[0, 1, 1], [0, 2, 2]])
    """
    _check.is_a("dataset", dataset, PanopticDataset, "a data set", "open_dataset opens one.")
    _check.is_path("folder", folder)
    for name, value in (("pictures_per_shard", pictures_per_shard), ("processes", processes)):
        _check.is_int(name, value, 1)
    place, split = Path(folder), check_name("split", split)
    manifest = place / f"{split}{MANIFEST}"
    if manifest.exists():
        remedy = "Choose another folder or split, or remove it."
        raise DataError(message(str(place), f"hold no split {split} yet", manifest.name, remedy))
    if len(dataset) == 0:
        raise DataError(message("dataset", "hold at least one picture", "none"))
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    firsts, lasts = range(0, len(dataset), pictures_per_shard), len(dataset)
    jobs = [
        _Job(
            dataset,
            place / f"{split}-{number:06d}.tar",
            range(first, min(first + pictures_per_shard, lasts)),
            on_error is not None,
        )
        for number, first in enumerate(firsts)
    ]
    shards = []
    for shard, failures in _run(jobs, processes):
        for name, error in failures:
            if on_error is not None:
                on_error(name, error)
        if shard.pictures:
            shards.append(shard)
    if not shards:
        raise DataError(message("dataset", "hold at least one readable picture", "none"))
    with writing(manifest):
        write_atomically(manifest, json.dumps(manifest_of(dataset.categories, shards)).encode())
    return tuple(shards)


class _Job(NamedTuple):
    """A shard to write: some pictures of a data set, those that cannot be read left out or not."""

    dataset: PanopticDataset
    path: Path
    numbers: range
    pass_over: bool


_Done = tuple[Shard, list[tuple[str, DataError]]]


def _run(jobs: Sequence[_Job], processes: int) -> Iterator[_Done]:
    if processes == 1:
        yield from map(_write, jobs)
        return
    # Forked, a process would inherit the threads of torch as dead locks.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_write, jobs)


def _write(job: _Job) -> _Done:
    """Write one shard and its index."""
    dataset, records, failures = job.dataset, list[ImageRecord](), list[tuple[str, DataError]]()
    with writing(job.path), replacing(job.path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in job.numbers:
                try:
                    record, members = _members(dataset, number)
                except DataError as error:
                    if not job.pass_over:
                        raise
                    failures.append((dataset.images[number].name, error))
                    continue
                for ending, content in members:
                    entry = tarfile.TarInfo(f"{number:09d}.{ending}")  # of no date and no owner
                    entry.size = len(content)
                    tar.addfile(entry, BytesIO(content))
                records.append(record)
        rows = index_rows(records, _grouped(members_of(temporary)))
        size = temporary.stat().st_size
    index = job.path.with_name(index_of(job.path.name))
    if not records:
        job.path.unlink()
        return Shard(job.path.name, 0, size), failures
    with writing(index):
        write_atomically(index, json.dumps(rows).encode())
    return Shard(job.path.name, len(records), size), failures


def _members(dataset: PanopticDataset, number: int) -> tuple[ImageRecord, list[tuple[str, bytes]]]:
    """Return the record of a picture, its size included, and ending and content of its members."""
    sample, known = dataset[number], dataset.images[number]
    height, width = sample.image.shape[:2]
    record = ImageRecord(known.image_id, known.file_name, height, width)
    file = dataset.image_file(number)
    if file is not None and file.suffix.lower() in _TAKEN_OVER:
        members = [(file.suffix.lower()[1:], file.read_bytes())]
    else:
        members = [("png", _png(sample.image))]
    segments = None
    if sample.semantic is not None and sample.instance is not None:
        labels = Labels(sample.semantic, sample.instance, sample.crowd)
        colours, segments = encode_labels(labels, dataset.categories)
        members.append(("panoptic.png", _png(colours)))
    return record, [*members, ("segments.json", text_of(record, segments, sample.crowd is not None))]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _grouped(members: Sequence[Member]) -> list[dict[str, Member]]:
    """Return the members of each picture, by what they are."""
    pictures: dict[str, dict[str, Member]] = {}
    for member in members:
        key, _, ending = member.name.partition(".")
        what = {"panoptic.png": "labels", "segments.json": "text"}.get(ending, "picture")
        pictures.setdefault(key, {})[what] = member
    return list(pictures.values())
