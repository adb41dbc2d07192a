"""What every contestant is: a network, a loss on its output, and a way to read the output off."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contest.network import build_network, positions
from contest.tracks import Track
from lovasz_embed.hierarchy import Level, panoptic_levels
from lovasz_embed.model import PanopticEmbedder
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.training import View

Options = Mapping[str, Any]


class Contestant(nn.Module, ABC):
    """A method: the shared network with its own channels, its loss, its way to instances.

    Attributes:
        TRIALS: Options of training that are tried on the validation pictures, the default first; as many for every
            contestant. "learning_rate" is the loop's, the others are the contestant's own.
        READINGS: Options of reading off that each trial is scored with; as many for every contestant.
    """

    TRIALS: ClassVar[tuple[Options, ...]]
    READINGS: ClassVar[tuple[Options, ...]]

    network: PanopticEmbedder

    def forward(self, picture: Tensor) -> Tensor:
        """Return the network's output (B, N, H, W), float32."""
        output: Tensor = self.network(picture)
        return output

    @abstractmethod
    def loss(self, output: Tensor, views: View) -> Tensor:
        """Return the total loss of a batch, 0-d."""

    def after_training(self, views: Iterable[View], amp: bool) -> None:
        """Do what is left to do when the weights are final."""
        self.eval()

    @abstractmethod
    def read(self, output: Tensor, **reading: Any) -> PanopticResult:
        """Read the panoptic result off an output of one picture or more."""

    @abstractmethod
    def points(self, output: Tensor, at: tuple[int, int] = (0, 0)) -> Tensor:
        """Return where each pixel lies in the space in which instances are told apart, (B, D, H, W).

        `at` is the place of the window in the surface that the film shows, where that is known.
        """


class TwoHeaded(Contestant):
    """A contestant with a softmax over the categories beside what tells instances apart.

    Its first C channels are the logits, the others its own.
    """

    OWN: ClassVar[int]

    def __init__(self, track: Track, *, own: int | None = None, backbone: str | None = None) -> None:
        super().__init__()
        channels = len(track.classes) + (self.OWN if own is None else own)
        # One of these has positions: contestants add them to their own channels.
        model = {**track.model, "dims": channels, "coordinates": "none"}
        self.network = build_network(track, backbone=backbone, **model)
        self.things = frozenset(track.things)
        self.unit = self.network.config.unit

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the other channels."""
        classes = len(self.network.config.classes)
        return output[:, :classes], output[:, classes:]

    def cross_entropy(self, logits: Tensor, semantic: Tensor, hardest: float = 1.0) -> Tensor:
        """Return the mean cross-entropy over the share of pixels that are the hardest."""
        losses = F.cross_entropy(logits, semantic, ignore_index=255, reduction="none").flatten()
        valid = int((semantic != 255).sum())
        if hardest < 1:
            losses = losses.topk(max(int(hardest * valid), 1)).values
            return losses.mean()
        return losses.sum() / max(valid, 1)

    def instances(self, views: View) -> Tensor:
        """Return the instance of each pixel (B, H, W), as the library numbers them: see `panoptic_levels`."""
        level = panoptic_levels(views.semantic, views.instance, things=self.things, crowd=views.crowd)[1]
        return level.labels

    def categories(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most likely category of each pixel, and whether it is a thing."""
        semantic = logits.argmax(1)
        return semantic, torch.isin(semantic, torch.tensor(sorted(self.things)))

    def positions(self, like: Tensor, at: tuple[int, int] = (0, 0)) -> Tensor:
        """Return the positions of the pixels in units, (2, H, W)."""
        return positions(like, self.unit, at)

    @property
    def minima(self) -> dict[str, int]:
        """The smallest segments, the same for every contestant."""
        config = self.network.config
        return {"min_thing_area": config.min_thing_area, "min_stuff_area": config.min_stuff_area}


def members(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels of all instances of a picture, labels (P,): which pixels, whose row, and the rows' sizes."""
    pixels = (labels >= 0).nonzero()[:, 0]
    _, row, size = torch.unique(labels[pixels], return_inverse=True, return_counts=True)
    return pixels, row, size


def group_means(values: Tensor, row: Tensor, size: Tensor) -> Tensor:
    """Return the mean (K, D) of values (D, P) over the groups that `row` (P,) names."""
    sums = values.new_zeros(len(size), len(values)).index_add(0, row, values.T)
    return sums / size[:, None]


IGNORED = Level.IGNORED
