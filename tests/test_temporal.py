"""Temporal stability: cases worked out by hand, and what must hold for any film."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lovasz_embed.quality import Frame, StabilityResult, TemporalStability, temporal_stability

Row = list[float]


def frame(points: Row, instance: list[int], **others: list[int]) -> Frame:
    """Return a frame of one row with one-dimensional points; everything is category 1, truly and by prediction."""
    maps = {name: torch.tensor(values) for name, values in others.items()}
    ones = torch.ones(len(points), dtype=torch.long)
    return Frame(
        torch.tensor([points], dtype=torch.float32),
        maps.get("categories", ones),
        maps.get("semantic", ones),
        torch.tensor(instance),
        maps.get("segments"),
    )


def test_a_film_that_stands_still_is_perfect() -> None:
    still = frame([0, 1, 9, 10], [1, 1, 2, 2], segments=[5, 5, 6, 6])
    result = temporal_stability([still, still, still])
    assert result == StabilityResult(1.0, 1.0, 0.0, 1.0, 0.0, 4, 8)


def test_drift_is_the_way_over_half_the_distance_to_the_nearest_other_mean() -> None:
    # Means 0, 10 and 40: half distances 5, 5 and 15; the ways are 2, 1 and 3.
    before = frame([0, 10, 40], [1, 2, 3])
    after = frame([2, 11, 43], [1, 2, 3])
    assert temporal_stability([before, after]).drift == pytest.approx(0.2)  # of 0.4, 0.2 and 0.2


def test_persistence_is_the_share_of_pixels_nearest_to_their_own_old_mean() -> None:
    # Old means 0 and 10. Of the first instance one pixel of four lies beyond 5; of the second none of two.
    before = frame([0, 0, 0, 0, 10, 10], [1, 1, 1, 1, 2, 2])
    after = frame([1, 1, 1, 8, 9, 12], [1, 1, 1, 1, 2, 2])
    result = temporal_stability([before, after])
    assert result.persistence == pytest.approx((0.75 + 1) / 2)
    assert result.kept == 1.0


def test_things_that_change_places_keep_nothing() -> None:
    result = temporal_stability([frame([0, 10], [1, 2]), frame([10, 0], [1, 2])])
    assert (result.persistence, result.kept, result.drift) == (0.0, 0.0, 2.0)


def test_a_tie_is_not_nearest() -> None:
    result = temporal_stability([frame([0, 10], [1, 2]), frame([5, 10], [1, 2])])
    assert (result.persistence, result.kept) == (0.5, 0.5)


def test_an_instance_that_has_gone_still_confuses_and_a_new_one_does_not_count() -> None:
    # Instance 2 is gone; what is left of 1 lies nearer to where it was. Instance 3 has no past.
    result = temporal_stability([frame([0, 10], [1, 2]), frame([7, 30], [1, 3])])
    assert (result.kept, result.persistence, result.instances) == (0.0, 0.0, 1)
    assert result.drift == pytest.approx(7 / 5)


def test_a_single_instance_cannot_be_confused_and_counts_for_nothing_but_itself() -> None:
    result = temporal_stability([frame([0, 0], [1, 0]), frame([3, 0], [1, 0])])
    assert math.isnan(result.persistence)
    assert math.isnan(result.kept)
    assert math.isnan(result.drift)
    assert result.instances == 1


def test_means_that_coincide_drift_without_end() -> None:
    still = frame([4, 4], [1, 2])
    result = temporal_stability([still, still])
    assert (result.drift, result.kept) == (math.inf, 0.0)


def test_nothing_to_count_is_nan() -> None:
    empty = frame([0, 0], [0, 0], semantic=[255, 255])
    for result in (temporal_stability([]), temporal_stability([empty, empty])):
        assert all(math.isnan(v) for n, v in asdict(result).items() if n not in ("instances", "pixels"))
        assert (result.instances, result.pixels) == (0, 0)


def test_flicker_counts_changes_that_the_truth_does_not_make() -> None:
    before = frame([0.0] * 5, [0, 0, 0, 0, 1], semantic=[0, 0, 0, 255, 1], categories=[0, 0, 0, 0, 1])
    after = frame([0.0] * 5, [0, 0, 0, 0, 2], semantic=[0, 0, 1, 255, 1], categories=[0, 1, 1, 1, 0])
    # Compared are the first two: the third truly changes, the fourth is void, the fifth is another instance.
    result = temporal_stability([before, after])
    assert (result.flicker, result.pixels) == (0.5, 2)


def test_a_shift_compares_the_same_surface() -> None:
    # The window moves by two pixels; the surface is 0 1 2 3 4 5, its categories stay.
    def window(start: int) -> Frame:
        values = list(range(start, start + 4))
        return frame([0.0] * 4, [0] * 4, semantic=values, categories=values)

    moved = temporal_stability([window(0), window(2)], shift=[2])
    assert (moved.flicker, moved.pixels) == (0.0, 2)
    back = temporal_stability([window(2), window(0)], shift=[-2])
    assert (back.flicker, back.pixels) == (0.0, 2)
    assert temporal_stability([window(0), window(2)], shift=[9]).pixels == 0
    assert temporal_stability([window(0), window(2)]).pixels == 0  # no category is twice at one place


def test_tracked_needs_a_segment_in_both_frames_and_the_nearest_old_one() -> None:
    def film(first: list[int], second: list[int], later: Row) -> float:
        before = frame([0, 0, 10, 10], [1, 1, 2, 2], segments=first)
        after = frame(later, [1, 1, 2, 2], segments=second)
        return temporal_stability([before, after]).tracked

    assert film([1, 1, 2, 2], [8, 8, 3, 3], [1, 1, 9, 9]) == 1.0  # the ids of a frame are its own
    assert film([1, 1, 2, 2], [1, 1, 2, 2], [9, 9, 1, 1]) == 0.0  # swapped
    assert film([1, 1, 2, 2], [1, 1, 0, 0], [0, 0, 9, 9]) == 0.5  # one is missed
    assert film([1, 1, 1, 1], [1, 1, 2, 2], [0, 0, 9, 9]) == 0.0  # both lie half in a merged one: IoU 0.5 is not above
    assert film([1, 1, 2, 3], [1, 1, 2, 2], [0, 0, 9, 9]) == 0.5  # cut in two halves


def test_tracked_is_nan_without_segments() -> None:
    still = frame([0, 10], [1, 2])
    assert math.isnan(temporal_stability([still, still]).tracked)


def test_pairs_of_several_films_add_up() -> None:
    a, b = frame([0, 10], [1, 2]), frame([2, 10], [1, 2])
    stability = TemporalStability()
    stability.update(a, b)
    stability.update(a, a)
    result = stability.compute()
    assert (result.instances, result.kept) == (4, 1.0)
    assert result.drift == 0.0  # of 0.4, 0, 0, 0
    stability.reset()
    assert stability.compute().instances == 0
    assert repr(stability) == "TemporalStability(ignore_index=255)"


@st.composite
def films(draw: st.DrawFn) -> list[Frame]:
    """Draw two random frames with up to four instances, some of them in one frame only."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sides = (draw(st.integers(1, 6)), draw(st.integers(2, 6)))

    def labels(most: int) -> Tensor:
        return torch.randint(0, most + 1, sides, generator=generator)

    return [
        Frame(torch.randn(3, *sides, generator=generator), labels(2), labels(2), labels(4), labels(3)) for _ in range(2)
    ]


def renumbered(one: Frame) -> Frame:
    table = torch.tensor([0, 70, 3, 41, 12])
    other = torch.tensor([0, 9, 2, 5])
    assert one.segments is not None
    return one._replace(instance=table[one.instance], segments=other[one.segments])


def same(a: StabilityResult, b: StabilityResult) -> None:
    for name, value in asdict(a).items():
        # The mean over instances is taken in another order.
        assert getattr(b, name) == pytest.approx(value, rel=1e-9, nan_ok=True), name


@given(film=films())
def test_renumbering_changes_nothing(film: list[Frame]) -> None:
    same(temporal_stability(film), temporal_stability([renumbered(one) for one in film]))


@given(film=films())
def test_units_change_nothing(film: list[Frame]) -> None:
    # A power of two and sums of float32 in float64: exact, but for the distances' roots.
    same(temporal_stability(film), temporal_stability([one._replace(points=one.points * 4) for one in film]))


@given(film=films())
def test_a_film_beside_itself_is_perfect_where_means_differ(film: list[Frame]) -> None:
    still = film[0]._replace(categories=film[0].semantic)
    ids = still.instance
    # Every pixel at its instance's number: means are the numbers, all different.
    result = temporal_stability([still._replace(points=ids[None].float())] * 2)
    assert result.flicker == 0.0
    if len(set(ids.unique().tolist()) - {0}) > 1:
        assert (result.persistence, result.kept, result.drift) == (1.0, 1.0, 0.0)


@given(film=films())
def test_a_drift_below_one_keeps_the_identity(film: list[Frame]) -> None:
    result = temporal_stability(film)
    stability = TemporalStability()
    stability.update(*film)
    for drift, kept in zip(stability._drifts, stability._kept, strict=True):
        assert kept or drift > 1 - 1e-9
    assert all(math.isnan(v) or v >= 0 for v in asdict(result).values())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"points": torch.zeros(1, 5)}, r"after.points must have shape \(1, 2\) to match before.points"),
        ({"points": torch.tensor([[0.0, math.nan]])}, "after.points must be finite everywhere"),
        ({"instance": torch.tensor([0, -1])}, "after.instance must hold ids of 0 or above, got -1"),
        ({"segments": torch.tensor([-3, 1])}, "after.segments must hold ids of 0 or above, got -3"),
        ({"categories": torch.zeros(3).long()}, r"after.categories must have shape \(2,\)"),
    ],
)
def test_wrong_frames_fail_clearly(change: dict[str, Any], text: str) -> None:
    good = frame([0, 1], [1, 2])
    with pytest.raises(ValueError, match=text):
        temporal_stability([good, good._replace(**change)])


def test_points_that_are_no_floats_fail_clearly() -> None:
    good = frame([0, 1], [1, 2])
    with pytest.raises(TypeError, match=r"before\.points must be a floating point tensor"):
        TemporalStability().update(good._replace(points=torch.zeros(1, 2).long()), good)


def test_a_shift_of_other_axes_fails_clearly() -> None:
    good = frame([0, 1], [1, 2])
    with pytest.raises(ValueError, match=r"shift must have one whole number per axis \(1\), got 2"):
        TemporalStability().update(good, good, shift=(1, 2))
