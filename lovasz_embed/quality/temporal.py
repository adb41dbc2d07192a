"""How stable an embedding is from frame to frame: identities, drift of the means, flicker of categories."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.labels import as_labels


class Frame(NamedTuple):
    """One frame of a film: what a method says about its pixels, and the truth.

    Attributes:
        points: Floats (D, *spatial): where each pixel lies in the space in which the method tells instances apart,
            an embedding, say, or pixel position plus predicted offset. Any unit; the same space in all frames.
        categories: Integers (*spatial), the predicted category; void is a category like another.
        semantic: Integers (*spatial), the true category or void.
        instance: Integers (*spatial), the true instance, 0 = none. An id names one thing in all frames.
        segments: Integers (*spatial), the predicted instance, 0 = none, with ids of this frame alone; None leaves
            `StabilityResult.tracked` out.
    """

    points: Tensor
    categories: Tensor
    semantic: Tensor
    instance: Tensor
    segments: Tensor | None = None


@dataclass(frozen=True)
class StabilityResult:
    """What was counted over all pairs of successive frames; nan where there was nothing to count.

    Attributes:
        persistence: Share of an instance's pixels in the next frame that lie nearest to its own mean in this one,
            of the means of all instances of this one; averaged over instances and pairs.
        kept: Share of the instances whose mean in the next frame lies nearest to their own mean in this one.
        drift: Median over instances of the way that their mean goes from frame to frame, in units of half the
            distance to the nearest other mean. An instance whose drift is below 1 is kept.
        tracked: Share of the instances that a predicted segment covers with an IoU above 0.5 in both frames, so that
            the mean of the later segment lies nearest to that of the earlier, of all predicted segments there.
        flicker: Share of the surface points whose predicted category changes although the true one does not.
        instances: How many instances were seen in both frames of a pair, over all pairs.
        pixels: How many surface points were looked at for flicker.
    """

    persistence: float
    kept: float
    drift: float
    tracked: float
    flicker: float
    instances: int
    pixels: int


class TemporalStability:
    r"""Temporal stability over many pairs of frames, added pair by pair.

    Let :math:`e_i` and :math:`e'_i` be the points of two successive frames, :math:`S_k` and :math:`S'_k` the true
    pixels of instance k, :math:`\mu_k` and :math:`\mu'_k` the means over them, and
    :math:`h_k = \tfrac12 \min_{j \ne k} |\mu_k - \mu_j|`. For an instance that both frames show,

    .. math::

        \text{persistence}_k = \frac{\#\{i \in S'_k : |e'_i - \mu_k| < |e'_i - \mu_j| \; \forall j \ne k\}}{|S'_k|},
        \qquad \text{drift}_k = \frac{|\mu'_k - \mu_k|}{h_k}.

    The means are those of the true instances, so that persistence and drift tell about the space alone and not about
    how well instances are found in it; `tracked` tells about both. Persistence, kept and drift count where the first
    frame shows at least two instances: a single one cannot be confused. A tie is not "nearest". Flicker looks at the
    pixels at which both frames show the same true category and instance, void left out.

    Args:
        ignore_index: Void in `Frame.semantic`.

    Notes:
        Float64 sums; O(pixels × instances × D) per pair. Renumbering the instances changes nothing. Methods with
        different spaces can be compared: every figure is a share, or a ratio of lengths of one space.

    Example:
        >>> points = torch.tensor([[0.0, 1.0, 9.0, 10.0]])
        >>> true = torch.ones(4, dtype=torch.long), torch.tensor([1, 1, 2, 2])
        >>> stability = TemporalStability()
        >>> stability.update(Frame(points, true[0], *true), Frame(points + 2, torch.tensor([1, 1, 1, 0]), *true))
        >>> result = stability.compute()
        >>> result.persistence, round(result.drift, 3), result.flicker
        (1.0, 0.444, 0.25)
    """

    def __init__(self, *, ignore_index: int = 255) -> None:
        _check.is_label("ignore_index", ignore_index)
        self.ignore_index = ignore_index
        self.reset()

    def __repr__(self) -> str:
        return f"TemporalStability(ignore_index={self.ignore_index})"

    def reset(self) -> None:
        """Forget everything."""
        self._shares: list[float] = []
        self._kept: list[bool] = []
        self._drifts: list[float] = []
        self._tracked: list[bool] = []
        self._changed = self._compared = self._seen = 0

    def update(self, before: Frame, after: Frame, *, shift: Sequence[int] | None = None) -> None:
        """Add a pair of successive frames.

        Args:
            before: The earlier frame.
            after: The later frame, of the same size.
            shift: Where surface points go, pixels: pixel p of `after` shows what pixel p + shift of `before` shows,
                as for a window that moves over a picture. None is 0: flicker then looks at places that show the same
                instance or the same stuff in both frames.

        Raises:
            TypeError: Points are not floating point, or a map holds no integers.
            ValueError: Shapes differ, points are not finite, ids are negative, or the shift has not one number per
                axis.
        """
        before, after = (_checked(name, frame, before) for name, frame in (("before", before), ("after", after)))
        sides = tuple(before.semantic.shape)
        if shift is not None:
            rule = f"have one whole number per axis ({len(sides)})"
            _check.is_sequence("shift", shift, rule, len(sides))
            for step in shift:
                _check.is_int("shift", step, rule=rule)
        shift = (0,) * len(sides) if shift is None else tuple(shift)
        self._count_identities(before, after)
        if before.segments is not None and after.segments is not None:
            self._count_tracked(before, after)
        self._count_flicker(before, after, shift)

    def compute(self) -> StabilityResult:
        """Return the figures of all pairs added so far."""
        return StabilityResult(
            persistence=_mean(self._shares),
            kept=_mean(self._kept),
            drift=statistics.median(self._drifts) if self._drifts else float("nan"),
            tracked=_mean(self._tracked),
            flicker=self._changed / self._compared if self._compared else float("nan"),
            instances=self._seen,
            pixels=self._compared,
        )

    def _count_identities(self, before: Frame, after: Frame) -> None:
        ids, means = _means(before.points, before.instance)
        later_ids, later_means = _means(after.points, after.instance)
        both = torch.isin(later_ids, ids)
        self._seen += int(both.sum())
        if len(ids) < 2 or not bool(both.any()):
            return
        row = torch.searchsorted(ids, later_ids[both])
        between = torch.cdist(means, means).fill_diagonal_(torch.inf)
        way = (later_means[both] - means[row]).norm(dim=1)
        self._drifts += (way / (between.amin(1)[row] / 2)).nan_to_num(nan=torch.inf, posinf=torch.inf).tolist()
        self._kept += _nearest_is(later_means[both], means, row).tolist()
        pixels = torch.isin(after.instance, later_ids[both])
        own = torch.searchsorted(ids, after.instance[pixels].long())
        right = _nearest_is(after.points[:, pixels].T.double(), means, own).double()
        sums = torch.zeros(2, len(ids), dtype=torch.float64)
        sums[0].index_add_(0, own, right)
        sums[1].index_add_(0, own, torch.ones_like(right))
        self._shares += (sums[0] / sums[1])[row].tolist()

    def _count_tracked(self, before: Frame, after: Frame) -> None:
        seen = [_ids(frame.instance) for frame in (before, after)]
        both = seen[0][torch.isin(seen[0], seen[1])].tolist()
        covering = [_covering(frame, self.ignore_index) for frame in (before, after)]
        assert before.segments is not None
        assert after.segments is not None
        ids, means = _means(before.points, before.segments)
        later_ids, later_means = _means(after.points, after.segments)
        for instance in both:
            first, second = (found.get(instance) for found in covering)
            if first is None or second is None:
                self._tracked.append(False)
                continue
            point = later_means[torch.searchsorted(later_ids, second)][None]
            row = torch.searchsorted(ids, torch.tensor([first]))
            self._tracked.append(bool(_nearest_is(point, means, row)))

    def _count_flicker(self, before: Frame, after: Frame, shift: tuple[int, ...]) -> None:
        earlier, later = _overlap(tuple(before.semantic.shape), shift)
        same = before.semantic[earlier] == after.semantic[later]
        same &= before.instance[earlier] == after.instance[later]
        same &= after.semantic[later] != self.ignore_index
        self._compared += int(same.sum())
        self._changed += int((same & (before.categories[earlier] != after.categories[later])).sum())


def temporal_stability(
    frames: Iterable[Frame], *, shift: Sequence[int] | None = None, ignore_index: int = 255
) -> StabilityResult:
    """Return the temporal stability of one film; see `TemporalStability`, which adds up several.

    Args:
        frames: In their order, all of the same size.
        shift: As in `TemporalStability.update`, the same between any two frames.
        ignore_index: Void in `Frame.semantic`.

    Returns:
        Figures over all pairs of successive frames; nan for fewer than two frames.

    Raises:
        TypeError: As `TemporalStability.update`.
        ValueError: As `TemporalStability.update`.

    Example:
        >>> points = torch.tensor([[0.0, 1.0, 9.0, 10.0]])
        >>> category, instance = torch.ones(4, dtype=torch.long), torch.tensor([1, 1, 2, 2])
        >>> still = Frame(points, category, category, instance)
        >>> result = temporal_stability([still, still, still])
        >>> result.persistence, result.kept, result.drift, result.flicker, result.instances
        (1.0, 1.0, 0.0, 0.0, 4)
    """
    _check.is_iterable("frames", frames, "an iterable of Frame")
    stability = TemporalStability(ignore_index=ignore_index)
    for before, after in pairwise(frames):
        stability.update(before, after, shift=shift)
    return stability.compute()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _ids(instance: Tensor) -> Tensor:
    ids: Tensor = torch.unique(instance[instance > 0].long())
    return ids


def _means(points: Tensor, instance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids above 0, ascending, and the mean point of each, (K,) and (K, D)."""
    pixels = instance > 0
    ids, rows, counts = torch.unique(instance[pixels].long(), return_inverse=True, return_counts=True)
    sums = torch.zeros(len(ids), len(points), dtype=torch.float64)
    sums.index_add_(0, rows, points[:, pixels].T.double())
    return ids, sums / counts[:, None]


def _nearest_is(points: Tensor, means: Tensor, own: Tensor) -> Tensor:
    """Tell for every point (N, D) whether the mean `own` is nearer than all others."""
    distances = torch.cdist(points, means, compute_mode="donot_use_mm_for_euclid_dist")
    own_distance = distances.gather(1, own[:, None])
    others = distances.scatter(1, own[:, None], torch.inf)
    nearest: Tensor = own_distance[:, 0] < others.amin(1)
    return nearest


def _covering(frame: Frame, ignore_index: int) -> dict[int, int]:
    """Return the predicted segment that covers each true instance with an IoU above 0.5, where there is one."""
    assert frame.segments is not None
    counts = frame.semantic != ignore_index
    true, found = frame.instance[counts].tolist(), frame.segments[counts].tolist()
    areas, segment_areas, shared = Counter(true), Counter(found), Counter(zip(true, found, strict=True))
    covering = {}
    for (instance, segment), pixels in shared.items():
        union = areas[instance] + segment_areas[segment] - pixels
        if instance > 0 and segment > 0 and 2 * pixels > union:
            covering[instance] = segment
    return covering


def _overlap(sides: tuple[int, ...], shift: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the part of the earlier and of the later frame that show the same surface."""
    earlier = tuple(slice(max(step, 0), max(side + min(step, 0), 0)) for side, step in zip(sides, shift, strict=True))
    later = tuple(slice(max(-step, 0), max(side - max(step, 0), 0)) for side, step in zip(sides, shift, strict=True))
    return earlier, later


def _checked(name: str, frame: Frame, first: Frame) -> Frame:
    """Return a frame with maps of int64, which all operations know, or raise; `first` says what shape it must have."""
    for frame_name, each in (("before", first), (name, frame)):
        _check.is_a(frame_name, each, Frame, "a Frame")
        _check.is_floating(f"{frame_name}.points", each.points)
    shape = tuple(first.points.shape)
    if not shape:
        raise ValueError(_check.message("before.points", "have shape (D, *spatial)", shape))
    _check.same_shape(f"{name}.points", frame.points, shape, "before.points")
    _check.has_values(f"{name}.points", frame.points)
    _check.all_finite(f"{name}.points", frame.points)
    maps = {"categories": frame.categories, "semantic": frame.semantic, "instance": frame.instance}
    if frame.segments is not None:
        maps["segments"] = frame.segments
    for part, labels in maps.items():
        maps[part] = as_labels(f"{name}.{part}", labels).long()
        _check.has_values(f"{name}.{part}", labels)
        _check.same_shape(f"{name}.{part}", labels, shape[1:], "points (D, *spatial)")
        if part in ("instance", "segments") and labels.numel() and int(maps[part].min()) < 0:
            raise ValueError(_check.message(f"{name}.{part}", "hold ids of 0 or above", int(maps[part].min())))
    return frame._replace(**maps)
