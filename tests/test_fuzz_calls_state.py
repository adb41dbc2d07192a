"""Objects that add up or follow: their methods in any order, against models of a few lines; and laws of the losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from lovasz_embed import NearestClassMean, PanopticQuality, PanopticResult, Tracker, lovasz_hinge, panoptic_quality
from lovasz_embed.quality import Frame, TemporalStability, temporal_stability

CLASSES, WIDTH, PIXELS = 3, 2, 6
seeds = st.integers(0, 2**16)


def maps(seed: int, values: tuple[int, ...]) -> Tensor:
    """One row of labels out of `values`, (1, P) int64."""
    place = torch.randint(len(values), (1, PIXELS), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(values)[place]


def points(seed: int) -> Tensor:
    """Multiples of 1/4, so that sums are exact in any order: (1, D, P)."""
    return torch.randint(-8, 9, (1, WIDTH, PIXELS), generator=torch.Generator().manual_seed(seed)) / 4


def result(seed: int) -> PanopticResult:
    return PanopticResult.from_maps(maps(seed, (0, 1, 2, 255)), maps(seed + 1, (0, 1, 2)), things={1, 2})


class CountsAndMeans(RuleBasedStateMachine):
    """Metric and class means, updated, reset, saved and loaded: they hold what was given since the last reset."""

    def __init__(self) -> None:
        super().__init__()
        self.metric, self.ncm = PanopticQuality(CLASSES, {1, 2}), NearestClassMean(CLASSES, WIDTH)
        self.pairs: list[tuple[PanopticResult, PanopticResult]] = []
        self.pixels: list[tuple[Tensor, Tensor]] = []

    @rule(seed=seeds)
    def update(self, seed: int) -> None:
        pair = result(seed), result(seed + 7)
        self.metric.update(*pair)
        self.pairs.append(pair)
        batch = points(seed), maps(seed, (0, 1, 255))
        self.ncm.update(*batch)
        self.pixels.append(batch)

    @rule(seed=seeds)
    def merge(self, seed: int) -> None:
        other, pair = PanopticQuality(CLASSES, {1, 2}), (result(seed), result(seed + 3))
        other.update(*pair)
        self.metric.merge(other)
        self.pairs.append(pair)

    @rule()
    def refuse(self) -> None:
        """What is refused leaves everything as it was; the invariants look."""
        with pytest.raises(ValueError, match="embedding must be finite"):
            self.ncm.update(torch.full((1, WIDTH, PIXELS), torch.nan), maps(0, (0,)))
        with pytest.raises(ValueError, match="semantic must hold labels"):
            self.ncm.update(points(0), maps(0, (CLASSES,)))
        with pytest.raises(ValueError, match="prediction must have shape"):
            self.metric.update(PanopticResult(torch.zeros(1, 1, dtype=torch.int32), ((),)), result(0))

    @rule()
    def reset(self) -> None:
        self.metric.reset()
        self.ncm.reset()
        self.pairs.clear()
        self.pixels.clear()

    @rule()
    def save_and_load(self) -> None:
        metric, ncm = PanopticQuality(CLASSES, {1, 2}), NearestClassMean(CLASSES, WIDTH)
        metric.load_state_dict(self.metric.state_dict())
        ncm.load_state_dict(self.ncm.state_dict())
        self.metric, self.ncm = metric, ncm

    @invariant()
    def the_metric_is_that_of_one_batch(self) -> None:
        if not self.pairs:
            assert not bool(self.metric.counts.any())
            return
        predictions, truths = (PanopticResult.from_pictures(own) for own in zip(*self.pairs, strict=True))
        expected = panoptic_quality(predictions, truths, num_classes=CLASSES, things={1, 2})
        found = self.metric.compute()
        for one, other in zip(expected.per_class, found.per_class, strict=True):
            assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))

    @invariant()
    def the_means_are_those_of_all_pixels(self) -> None:
        if not self.pixels:
            assert bool(self.ncm.means.isnan().all())
            return
        values = torch.cat([own.flatten(2)[0] for own, _ in self.pixels], 1).double()
        labels = torch.cat([own.flatten() for _, own in self.pixels])
        for c in range(CLASSES):
            mine = values[:, labels == c]
            expected = mine.mean(1).float() if mine.shape[1] else torch.full((WIDTH,), torch.nan)
            assert torch.allclose(self.ncm.means[c], expected, equal_nan=True)


class Films(RuleBasedStateMachine):
    """A tracker and the temporal stability, frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.start()

    def start(self) -> None:
        self.tracker, self.stability = Tracker(gate=1.0, memory=1), TemporalStability()
        self.alive: set[int] = set()
        self.named: dict[int, tuple[int, bool]] = {}  # what an id stands for, for ever
        self.frames: list[Frame] = []

    @rule(seed=seeds)
    def update(self, seed: int) -> None:
        picture, embedding = result(seed), points(seed)
        found = self.tracker.update(picture, embedding)
        seen = {s.id for s in found.result.segments[0] if s.is_thing and not s.is_crowd}
        for own in found.result.segments[0]:
            kind = own.category, own.is_thing
            assert self.named.setdefault(own.id, kind) == kind
        assert set(found.births) == seen - self.alive
        assert set(found.deaths) <= self.alive | seen
        self.alive = (self.alive | seen) - set(found.deaths)
        assert set(self.tracker.tracks) == self.alive
        frame = Frame(embedding[0], *(maps(seed + n, (0, 1, 255))[0] for n in range(2)), maps(seed, (0, 1, 2))[0])
        if self.frames:
            self.stability.update(self.frames[-1], frame)
        self.frames.append(frame)

    @precondition(lambda self: bool(self.alive))
    @rule()
    def refuse(self) -> None:
        with pytest.raises(ValueError, match="embedding must have D = 2"):
            self.tracker.update(result(0), points(0)[:, :1])
        assert set(self.tracker.tracks) == self.alive

    @rule()
    def reset(self) -> None:
        self.tracker.reset()
        self.stability.reset()
        tracker, stability = self.tracker, self.stability
        self.start()
        self.tracker, self.stability = tracker, stability

    @invariant()
    def the_stability_is_that_of_the_film(self) -> None:
        expected, found = temporal_stability(self.frames), self.stability.compute()
        for name, value in vars(expected).items():
            other: Any = getattr(found, name)
            assert value == other or (value != value and other != other)


few = settings(max_examples=15, stateful_step_count=8)
TestCountsAndMeans = pytest.mark.slow(CountsAndMeans.TestCase)
TestFilms = pytest.mark.slow(Films.TestCase)
TestCountsAndMeans.settings = TestFilms.settings = few


@given(seed=seeds, rows=st.integers(0, 3), size=st.integers(0, 9))
@settings(max_examples=25)
def test_the_hinge_does_not_see_the_order_of_pictures_and_pixels(seed: int, rows: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Multiples of 1/8 with many ties; sums of few of them are exact in float64, in any order.
    logits = torch.randint(-24, 25, (rows, size), generator=generator).double() / 8
    target = torch.randint(2, (rows, size), generator=generator)
    order, places = torch.randperm(rows, generator=generator), torch.randperm(size, generator=generator)
    one = lovasz_hinge(logits, target, reduction="none")
    other = lovasz_hinge(logits[order][:, places], target[order][:, places], reduction="none")
    assert torch.allclose(one[order], other, rtol=1e-14)  # weights are quotients: a rounding each
