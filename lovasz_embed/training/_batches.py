"""What every step trains on: a batch of random views that depends on the seed and the step's number alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lovasz_embed import _check
from lovasz_embed.training._ranks import Ranks
from lovasz_embed.training.config import TrainConfig
from lovasz_embed.training.views import VOID, Labelled, View, random_view, whole

_CACHE_BYTES = 2 << 30


class Pictures(Protocol):
    """A data set: a length, and labelled pictures by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Labelled: ...


class Batches(Dataset[View]):
    """Item s is the batch of step s, or a process's share of it.

    A view depends on the seed, the step and its position in the batch, on nothing else: not on how many processes
    share the batch.

    Args:
        pictures: The data set.
        config: The options.
        classes: Number of categories; labels beyond fail.
        ranks: The processes that share a batch.
    """

    def __init__(self, pictures: Pictures, config: TrainConfig, classes: int, ranks: Ranks | None = None) -> None:
        self.pictures = pictures
        self.config = config
        self.classes = classes
        self.positions = range(config.batch) if ranks is None else ranks.share(config.batch)
        self._cache: dict[int, View] = {}
        self._cached = 0
        self._pixels = self._pixels_so_far() if config.sampling == "pixels" else None

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> View:
        config = self.config
        views = [
            random_view(
                self.picture(self._draw(rng)),
                rng,
                size=config.crop,
                scale=config.scale,
                turn=config.turn,
                jitter=config.jitter,
            )
            for rng in (np.random.default_rng((config.seed, step, position)) for position in self.positions)
        ]
        return View(*(torch.stack(tensors) for tensors in zip(*views, strict=True)))

    def _draw(self, rng: np.random.Generator) -> int:
        """Return the number of a random picture."""
        if self._pixels is None:
            return int(rng.integers(len(self.pictures)))
        return int(np.searchsorted(self._pixels, rng.integers(self._pixels[-1]), side="right"))

    def _pixels_so_far(self) -> NDArray[np.int64]:
        """Return for every picture how many pixels it and those before it have."""
        size: Callable[[int], tuple[int, int]] | None = getattr(self.pictures, "size", None)
        numbers = range(len(self.pictures))
        sizes = map(size, numbers) if callable(size) else (self.picture(n).semantic.shape for n in numbers)
        return np.cumsum([height * width for height, width in sizes])

    def picture(self, index: int) -> View:
        """Return a whole picture; kept in memory while there is room, so that it is decoded once."""
        if index in self._cache:
            return self._cache[index]
        view = whole(self.pictures[index])
        labels = view.semantic[view.semantic != VOID]
        if labels.numel() and (int(labels.max()) >= self.classes or int(labels.min()) < 0):
            rule = f"have categories in 0 ... {self.classes - 1}, or {VOID} for void"
            got = f"{int(labels.min())} ... {int(labels.max())}"
            raise ValueError(_check.message(f"picture {index}", rule, got))
        size = sum(tensor.numel() * tensor.element_size() for tensor in view)
        if self._cached + size <= _CACHE_BYTES:
            self._cache[index] = view
            self._cached += size
        return view

    def start_at(self, step: int) -> Iterator[View]:
        """Yield the batches from a step on, loaded by as many processes as the configuration says."""
        steps = range(step, len(self))
        return iter(DataLoader(self, batch_size=None, sampler=steps, num_workers=self.config.workers))
