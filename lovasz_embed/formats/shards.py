"""Data sets of many pictures in few files: tar shards in webdataset's layout, read by index or as a stream.

A file system that holds a million files of 100 kB serves them one by one; a tar of a thousand is read in one go.
webdataset reads such tars from their beginning to their end; to draw a picture at random, as `training.fit` does, one
must know where it begins. So an index lies beside each tar. Reading by it is ours: webdataset 1.0 has nothing for it
(its `wids` went), and a tar's members are plain bytes at an offset. Nothing is ever unpacked onto the disk.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from lovasz_embed._check import is_bool, message
from lovasz_embed.formats._base import DataError, Labels, PanopticDataset, Sample
from lovasz_embed.formats._folders import one_split
from lovasz_embed.formats._pictures import read_picture
from lovasz_embed.formats._shard_files import Shard, members_of, read_index, read_manifest, shard_splits
from lovasz_embed.formats._shard_labels import decode_labels, parse_text

_PICTURE, _LABELS, _TEXT = range(3)


class Shards(PanopticDataset):
    """A split of what `write_shards` wrote, any picture of it by its number.

    Each read opens the tar, reads one member and closes it: nothing is kept open, so it works in the processes of a
    `torch.utils.data.DataLoader`, however they are started. A record of about half a kilobyte per picture is kept in
    memory; for tens of millions of pictures `stream_shards` keeps none.

    Args:
        folder: The folder of shards.
        split: Name of a split; None takes the only one.

    Raises:
        DataError: No such split, or a shard or an index that is missing, of another size or wrong.
    """

    def __init__(self, folder: Path, split: str | None = None) -> None:
        self.folder = folder
        self.split = one_split(folder, shard_splits(folder), split)
        categories, self.shards = read_manifest(folder, self.split)
        indices = [read_index(folder, shard) for shard in self.shards]
        super().__init__(categories, [record for index in indices for record in index.records])
        self._places = np.concatenate([index.places for index in indices])
        self._shard = np.repeat(np.arange(len(indices)), [len(index.records) for index in indices])
        self._index_of = {category.id: index for index, category in enumerate(self.categories)}

    def image(self, index: SupportsIndex) -> NDArray[np.uint8]:
        """Read the picture alone, uint8 (H, W, 3)."""
        position = self._position(index)
        return read_picture(self._where(position), self._read(position, _PICTURE))

    def labels(self, index: SupportsIndex) -> Labels | None:
        """Read the truth alone; None where the pictures have none."""
        position = self._position(index)
        if not self._places[position, _LABELS, 1]:
            return None
        png, text = self._read(position, _LABELS), self._read(position, _TEXT)
        return decode_labels(self._where(position), png, text, self._index_of)

    def _read(self, position: int, what: int) -> bytes:
        start, size = self._places[position, what].tolist()
        path = self.folder / self.shards[self._shard[position]].file
        try:
            with path.open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, start)
        except OSError as error:
            raise DataError(message(str(path), "be readable", error.strerror or str(error))) from error
        if len(content) < size:
            got = f"{len(content)} for {self.images[position].file_name}"
            raise DataError(message(str(path), f"hold {size} bytes at {start}", got, "Copy the shard again."))
        return content

    def _where(self, position: int) -> Path:
        """Name a picture in the text of an error."""
        shard = self.shards[int(self._shard[position])]
        return self.folder / shard.file / self.images[position].file_name


class ShardStream(IterableDataset[Sample]):
    """The pictures of some shards one after the other, shuffled by seed and round; made by `stream_shards`.

    The shards are dealt out to the ranks, and those of a rank to the processes of its `DataLoader`: every picture comes
    once, in one of them. Cut at least as many shards as there are processes in all, or some get none.

    Attributes:
        categories: As in `PanopticDataset`.
        shards: Of all ranks.
        pictures: Of all ranks.
    """

    def __init__(
        self, folder: Path, split: str, *, shuffle: bool, buffer: int, seed: int, rank: int, ranks: int
    ) -> None:
        self.folder = folder
        self.categories, self.shards = read_manifest(folder, split)
        self.pictures = sum(shard.pictures for shard in self.shards)
        self.shuffle, self.buffer, self.seed, self.rank, self.ranks = shuffle, buffer, seed, rank, ranks
        # In shared memory, so that loading processes that live on (`persistent_workers`) hear of the next round.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def things(self) -> frozenset[int]:
        """Indices of the categories that are things."""
        return frozenset(index for index, category in enumerate(self.categories) if category.is_thing)

    def set_epoch(self, epoch: int) -> None:
        """Take another order from the next iteration on: that of this round."""
        self._epoch.fill_(epoch)

    def __repr__(self) -> str:
        return f"ShardStream({self.pictures} pictures in {len(self.shards)} shards, rank {self.rank} of {self.ranks})"

    def __iter__(self) -> Iterator[Sample]:
        wds = _webdataset()
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        seed = (self.seed, int(self._epoch))
        order = np.arange(len(self.shards))
        if self.shuffle:
            np.random.default_rng(seed).shuffle(order)
        own = [self.shards[shard] for shard in order[self.rank :: self.ranks][number::workers]]
        # webdataset groups the members of a stream; it opens none itself, for it would run what a name of
        # "pipe:" says and fetch what one of "https:" does. It decodes none either: it would unpickle some.
        files = wds.tariterators.tar_file_expander(self._streams(own))
        samples = wds.tariterators.group_by_keys(files)
        if self.shuffle:
            draws = np.random.default_rng((*seed, self.rank, number)).integers(1 << 62)
            samples = wds.shuffle(self.buffer, initial=self.buffer, rng=random.Random(int(draws)))(samples)
        index_of = {category.id: index for index, category in enumerate(self.categories)}
        return (_sample(sample, index_of) for sample in samples)

    def _streams(self, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
        """Open one shard after the other, each looked over before any of it is decoded."""
        for shard in shards:
            path = self.folder / shard.file
            pictures = len({member.name.partition(".")[0] for member in members_of(path)})
            if pictures != shard.pictures:
                raise DataError(
                    message(str(path), f"hold {shard.pictures} pictures", pictures, "Copy the shard again.")
                )
            with path.open("rb") as stream:
                yield {"url": str(path), "stream": stream}


def stream_shards(
    folder: str | PathLike[str],
    *,
    split: str | None = None,
    shuffle: bool = True,
    buffer: int = 1000,
    seed: int = 0,
    rank: int | None = None,
    ranks: int | None = None,
) -> ShardStream:
    """Stream what `write_shards` wrote, through webdataset: every shard is read once, from its beginning to its end.

    For data sets whose index would fill the memory, and for storage that is slow to seek. A round cannot be taken up in
    its middle; `open_dataset(folder, format="shards")` gives any picture at any time, and is what `fit` resumes with.

    Args:
        folder: The folder of shards.
        split: Name of a split; None takes the only one.
        shuffle: Whether to shuffle: the shards, and what comes from them in a buffer. The order follows from seed,
            round (`set_epoch`), ranks and loading processes alone.
        buffer: Pictures among which the next one is drawn; they wait undecoded.
        seed: Of the order.
        rank: Of this process; None is that of the default process group, 0 without one.
        ranks: Number of processes; None likewise.

    Returns:
        An iterable data set for `torch.utils.data.DataLoader`.

    Raises:
        DataError: As `Shards`.
        ImportError: webdataset is missing (extra `shards`).
        ValueError: buffer or ranks is below 1, or rank is not below ranks.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from lovasz_embed.formats import open_pictures, write_shards
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a", "b", "c"):
        ...         Image.new("L", (3, 2)).save(f"{folder}/{name}.png")
        ...     _ = write_shards(open_pictures(folder), f"{folder}/shards", pictures_per_shard=1)
        ...     parts = [stream_shards(f"{folder}/shards", rank=rank, ranks=2) for rank in range(2)]
        ...     sorted(sample.name for part in parts for sample in part)
        ['a', 'b', 'c']
    """
    is_bool("shuffle", shuffle)
    if buffer < 1:
        raise ValueError(message("buffer", "be at least 1", buffer))
    together = dist.is_available() and dist.is_initialized()
    ranks = (dist.get_world_size() if together else 1) if ranks is None else ranks
    rank = (dist.get_rank() if together else 0) if rank is None else rank
    if not 0 <= rank < ranks:
        raise ValueError(message("rank", f"be from 0 to {ranks - 1}", rank))
    _webdataset()
    place = Path(folder)
    chosen = one_split(place, shard_splits(place), split)
    return ShardStream(place, chosen, shuffle=shuffle, buffer=buffer, seed=seed, rank=rank, ranks=ranks)


def _sample(members: dict[str, Any], index_of: dict[int, int]) -> Sample:
    """Decode the members of one picture: one picture, and of what else there is our own two formats alone."""
    where = Path(members["__url__"], members["__key__"])
    text = members.get("segments.json")
    content = [name for name in members if name in {"jpg", "jpeg", "png", "webp"}]
    if text is None or len(content) != 1:
        rule = "have one picture and its segments.json"
        raise DataError(
            message(str(where), rule, ", ".join(sorted(set(members) - {"__key__", "__url__"})) or "nothing")
        )
    picture = where.parent / parse_text(where, text)["file_name"]
    image = read_picture(picture, members[content[0]])
    name = str(Path(parse_text(where, text)["file_name"]).with_suffix(""))
    if "panoptic.png" not in members:
        return Sample(name, image)
    labels = decode_labels(picture, members["panoptic.png"], text, index_of)
    if image.shape[:2] != labels.semantic.shape:
        raise DataError(message(str(picture), f"have the size {labels.semantic.shape} of its labels", image.shape[:2]))
    return Sample(name, image, labels.semantic, labels.instance, labels.crowd)


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        needed = 'pip install "lovasz-embed[shards]"'
        raise ImportError(f"webdataset is needed to stream shards: {needed}") from error
    return webdataset
