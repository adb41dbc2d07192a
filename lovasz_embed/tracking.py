"""Tracking: instance ids from frame to frame by the mean embeddings of the instances alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.segment_sums import segment_sums
from lovasz_embed.panoptic import PanopticResult, Segment
from lovasz_embed.panoptic.result import is_result

Means = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """One frame of a film, its segments named by tracks.

    Attributes:
        result: One picture. The id of a thing is the number of its track; a stuff category keeps one id over the film,
            like a crowd region, which is not tracked. No id ever names two things.
        births: The tracks that begin here, ascending.
        deaths: The tracks that end here, unseen for more than `memory` frames, ascending.
        reentries: The tracks that are seen again after one or more frames without them, ascending.
    """

    result: PanopticResult
    births: tuple[int, ...]
    deaths: tuple[int, ...]
    reentries: tuple[int, ...]


@dataclass
class _Track:
    id: int
    category: int
    mean: Means  # (D,), where it was last seen
    seen: int  # the number of that frame


class Tracker:
    r"""Carries instance ids through a film, one frame at a time; it sees nothing but mean embeddings.

    Each frame, the things of a category are assigned to the known tracks of that category: of all assignments whose
    pairs lie within the gate, \|mean of the thing - last mean of the track\| <= gate, one with the most pairs, and
    among those one with the smallest sum of squared distances. A thing without a track begins one (a birth); a track
    without a thing waits where it was last seen, and ends when it is unseen for more than `memory` frames (a death).
    Seen again before that, it keeps its id (a re-entry); afterwards, the thing gets a new one. Ids are never reused.

    Where every instance moves by at most the gate from one frame to the next, and the tracks of one category lie more
    than twice the gate apart, ids are kept, always: no thing then lies within the gate of another one's track.

    Embeddings must be comparable between frames: the same thing, the same place. Dimensions that hold positions, as
    those of `PanopticEmbedder` may, move with the thing, and the gate must cover its motion.

    Args:
        gate: Farthest distance between a track's last mean and that of the thing that continues it, embedding units.
            The radius of an instance is a good start.
        memory: Frames that a track may be unseen and yet come back.

    Raises:
        TypeError: `gate` is no number or `memory` no int.
        ValueError: `gate` is not above 0 or `memory` is below 0.

    Example:
        >>> from lovasz_embed import assemble
        >>> things = torch.tensor([[[1, 1, 2, 2]]])
        >>> frame = assemble(torch.ones_like(things), things, things={1})
        >>> tracker = Tracker(gate=1.0)
        >>> tracker.update(frame, torch.tensor([[[[0.0, 0.2, 5.0, 5.0]]]])).result.segmentation
        tensor([[[1, 1, 2, 2]]], dtype=torch.int32)
        >>> later = tracker.update(frame, torch.tensor([[[[5.4, 5.6, 9.0, 9.0]]]]))
        >>> later.result.segmentation, later.births, later.deaths
        (tensor([[[2, 2, 3, 3]]], dtype=torch.int32), (3,), ())
        >>> tracker.tracks
        (1, 2, 3)
    """

    def __init__(self, *, gate: float, memory: int = 5) -> None:
        _check.positive("gate", gate)
        _check.is_int("memory", memory, rule="be an int, in frames")
        if memory < 0:
            raise ValueError(_check.message("memory", "be 0 or more frames", memory))
        self.gate, self.memory = gate, memory
        self.reset()

    def __repr__(self) -> str:
        return f"Tracker(gate={self.gate}, memory={self.memory})"

    def reset(self) -> None:
        """Forget all tracks and ids: a new film begins."""
        self._frame, self._last_id = 0, 0
        self._tracks: list[_Track] = []  # ascending by id
        self._others: dict[tuple[int, bool, int], int] = {}  # ids of stuff and crowd regions

    @property
    def tracks(self) -> tuple[int, ...]:
        """The ids of the tracks that a thing may continue, ascending; also those that wait unseen."""
        return tuple(track.id for track in self._tracks)

    def update(
        self, result: PanopticResult, embedding: Tensor | None = None, *, means: Tensor | None = None
    ) -> TrackedFrame:
        """Name the segments of the next frame.

        Args:
            result: One picture. Its ids say nothing but which pixels belong together.
            embedding: Floats (1, D, *spatial) of the result's size, any device; D is that of the frames before,
                sizes may differ. Where it is given, means are those of `segment_means`.
            means: (S, D), in place of the embedding: one row per segment of the picture, in their order. Rows of
                stuff and crowd are not looked at.

        Returns:
            The frame. A picture without things is a frame like any other: tracks wait.

        Raises:
            TypeError: The result is none, or embedding or means are not floating point.
            ValueError: The result is not one picture, shapes do not fit, D has changed, or not exactly one of
                embedding and means is given. The tracker is then as before.

        Note:
            A thing whose mean is not finite, as all of its pixels hold NaN, cannot be told from others: it begins a
            track that nothing continues. O(pixels D) time, and that of scipy's assignment, cubic in the things of a
            category at worst; deterministic.
        """
        if not isinstance(result, PanopticResult):
            raise TypeError(_check.message("result", "be a PanopticResult", type(result).__name__))
        if len(result) != 1:
            raise ValueError(_check.message("result", "hold one picture, one frame", len(result), "Use track(...)."))
        if (embedding is None) == (means is None):
            got = "none" if embedding is None else "both"
            raise ValueError(_check.message("embedding", "be given, or means in its place", got))
        segments = result.segments[0]
        index = result.segment_index()
        if embedding is not None:
            _check_embedding(result, embedding)
            points = _means(index[0], embedding[0], len(segments))
        else:
            points = _checked_means(means, len(segments))
        if self._tracks and points.shape[1] != len(self._tracks[0].mean):
            rule = f"have D = {len(self._tracks[0].mean)}, as in the frames before"
            got = f"D = {points.shape[1]}"
            raise ValueError(_check.message("embedding" if means is None else "means", rule, got))
        return self._advance(result, index, points)

    def _advance(self, result: PanopticResult, index: Tensor, points: Means) -> TrackedFrame:
        self._frame += 1
        segments = result.segments[0]
        continued = self._assign(segments, points)
        ids, births, reentries = [], [], []
        others: Counter[tuple[int, bool]] = Counter()
        for row, segment in enumerate(segments):
            if not segment.is_thing or segment.is_crowd:
                ids.append(self._other(segment, others))
                continue
            track = continued.get(row)
            if track is None:
                track = _Track(self._new_id(), segment.category, points[row], self._frame)
                self._tracks.append(track)
                births.append(track.id)
            elif track.seen < self._frame - 1:
                reentries.append(track.id)
            track.mean, track.seen = points[row], self._frame
            ids.append(track.id)
        deaths = tuple(track.id for track in self._tracks if self._frame - track.seen > self.memory)
        self._tracks = [track for track in self._tracks if self._frame - track.seen <= self.memory]
        return TrackedFrame(_renamed(result, index, ids), tuple(births), deaths, tuple(sorted(reentries)))

    def _assign(self, segments: Sequence[Segment], points: Means) -> dict[int, _Track]:
        """Return the track that each thing continues, by the place of its segment."""
        finite = [bool(np.isfinite(point).all()) for point in points]
        known = [track for track in self._tracks if bool(np.isfinite(track.mean).all())]
        things = [row for row, s in enumerate(segments) if s.is_thing and not s.is_crowd and finite[row]]
        found = {}
        for category in sorted({segments[row].category for row in things}):
            rows = [row for row in things if segments[row].category == category]
            tracks = [track for track in known if track.category == category]
            if tracks:
                pairs = match(points[rows], np.stack([track.mean for track in tracks]), self.gate)
                found.update({rows[one]: tracks[other] for one, other in pairs})
        return found

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _other(self, segment: Segment, others: Counter[tuple[int, bool]]) -> int:
        """Return the id of what is not tracked: of the n-th segment of its category and kind in the picture."""
        kind = segment.category, segment.is_crowd
        others[kind] += 1
        place = (*kind, others[kind])
        if place not in self._others:
            self._others[place] = self._new_id()
        return self._others[place]


def track(
    results: PanopticResult | Iterable[PanopticResult],
    embeddings: Tensor | Iterable[Tensor] | None = None,
    *,
    means: Iterable[Tensor] | None = None,
    gate: float,
    memory: int = 5,
) -> list[TrackedFrame]:
    """Name the segments of all frames of a film; see `Tracker`, which does it frame by frame.

    Args:
        results: The frames in their order: one picture each, or a batch of pictures.
        embeddings: Floats (T, D, *spatial), or one (1, D, *spatial) per frame, whose sizes may differ.
        means: In place of the embeddings, (S, D) per frame; see `Tracker.update`.
        gate: Farthest distance between a track's last mean and that of the thing that continues it.
        memory: Frames that a track may be unseen and yet come back.

    Returns:
        The frames, none for no frames.

    Raises:
        TypeError: As `Tracker` and `Tracker.update`.
        ValueError: Likewise, and if there is not one embedding per frame.

    Example:
        >>> semantic, instance = torch.ones(2, 1, 3, dtype=torch.int64), torch.tensor([[[1, 1, 2]], [[1, 2, 2]]])
        >>> clip = PanopticResult.from_maps(semantic, instance, things={1})
        >>> embeddings = torch.tensor([[[[0.0, 0.1, 7.0]]], [[[7.1, 0.0, 0.3]]]])  # they change places
        >>> frames = track(clip, embeddings, gate=1.0)
        >>> [frame.result.segmentation.tolist() for frame in frames]
        [[[[1, 1, 2]]], [[[2, 1, 1]]]]
    """
    if (embeddings is None) == (means is None):
        got = "none" if embeddings is None else "both"
        raise ValueError(_check.message("embeddings", "be given, or means in its place", got))
    tracker = Tracker(gate=gate, memory=memory)
    argument, given = ("embeddings", embeddings) if means is None else ("means", means)
    assert given is not None
    if isinstance(given, Tensor) and means is None:
        _check.is_embedding("embeddings", given)
        given = [given[frame : frame + 1] for frame in range(len(given))]
    frames = []
    for result, values in zip_longest(_each("results", results), _each(argument, given)):
        if result is None or values is None:
            got = "fewer" if values is None else "more"
            raise ValueError(_check.message(argument, "hold one entry per frame", got))
        frames.append(tracker.update(result, values) if means is None else tracker.update(result, means=values))
    return frames


def _each(argument: str, values: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(values)
    except TypeError:
        raise TypeError(_check.message(argument, "hold one entry per frame", type(values).__name__)) from None


def segment_means(result: PanopticResult, embedding: Tensor) -> tuple[Tensor, ...]:
    """Mean embedding of every segment, over its pixels that hold neither NaN nor Inf.

    Args:
        result: B pictures.
        embedding: Floats (B, D, *spatial), on any device: it is read on the CPU.

    Returns:
        Per picture float64 (S, D) on the CPU, a row per segment in their order; NaN without a finite pixel.

    Raises:
        TypeError: The embedding is not floating point.
        ValueError: Shapes do not fit, or the map holds an id that the segments do not.

    Note:
        Sums are float64, in an order that does not depend on the number of threads. O(pixels D).

    Example:
        >>> result = PanopticResult.from_maps(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 4, 4]]), things={1})
        >>> segment_means(result, torch.tensor([[[1.0, 3.0, 4.0]]]))
        (tensor([[1.0000], [3.5000]], dtype=torch.float64),)
    """
    _check_embedding(result, embedding)
    index = result.segment_index()
    counts = map(len, result.segments)
    return tuple(torch.from_numpy(_means(*picture)) for picture in zip(index, embedding, counts, strict=True))


def match(points: Means, tracks: Means, gate: float) -> list[tuple[int, int]]:
    """Return the pairs of points (n, D) and tracks (m, D) of the best assignment within the gate.

    The best has the most pairs, and among those the smallest sum of squared distances. Distances are in units of the
    gate: a pair inside costs at most 1, and one outside more than min(n, m) pairs inside, so that no sum of costs
    makes up for a pair.

    >>> match(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]]), 1.0)  # nearest first would find one pair
    [(0, 0), (1, 1)]
    """
    from scipy.optimize import linear_sum_assignment  # a third of a second, paid by the first film
    from scipy.spatial.distance import cdist

    distances: Means = cdist(points, tracks)
    inside: NDArray[np.bool_] = distances <= gate
    costs = np.full(distances.shape, min(distances.shape) + 1.0)
    costs[inside] = (distances[inside] / gate) ** 2
    rows, columns = linear_sum_assignment(costs)
    kept = inside[rows, columns]
    return list(zip(rows[kept].tolist(), columns[kept].tolist(), strict=True))


def _means(index: Tensor, picture: Tensor, segments: int) -> Means:
    sums, counts = segment_sums(picture.detach().cpu(), index.cpu().reshape(-1).numpy(), segments)
    with np.errstate(invalid="ignore"):
        return sums[1:] / counts[1:, None]  # 0 / 0 is NaN


def _renamed(result: PanopticResult, index: Tensor, ids: Sequence[int]) -> PanopticResult:
    table = torch.tensor([0, *ids], dtype=torch.int32, device=index.device)
    segments = (replace(segment, id=name) for segment, name in zip(result.segments[0], ids, strict=True))
    return PanopticResult(table[index], (tuple(sorted(segments, key=lambda segment: segment.id)),))


def _check_embedding(result: PanopticResult, embedding: Tensor) -> None:
    is_result("result", result)
    _check.is_embedding("embedding", embedding)
    _check.has_values("embedding", embedding)
    spatial = tuple(result.segmentation.shape[1:])
    shape = (len(result), embedding.shape[1], *spatial)
    _check.same_shape("embedding", embedding, shape, "result (B, *spatial)")


def _checked_means(means: Tensor | None, segments: int) -> Means:
    assert means is not None
    _check.is_floating("means", means)
    _check.has_values("means", means)
    if means.ndim != 2 or len(means) != segments or means.shape[1] < 1:
        rule = f"have shape ({segments}, D), a row per segment"
        raise ValueError(_check.message("means", rule, tuple(means.shape)))
    array: Means = means.detach().cpu().double().numpy()
    return array
