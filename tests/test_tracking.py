"""Tracking: ids on films whose things are known, the gate, births, deaths and re-entries, and what is no film."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lovasz_embed.panoptic import PanopticResult, Segment, assemble
from lovasz_embed.synthetic import THINGS, street_clip
from lovasz_embed.tracking import TrackedFrame, Tracker, match, segment_means, track

CAR, PERSON, ROAD = 3, 4, 2


def frame(**things: float) -> tuple[PanopticResult, Tensor]:
    """One row of pixels, two of each thing (named by its kind and a letter), and their means, one number each.

    The things come in the order of their means, so that numbers in the frame say nothing about the film.
    """
    ordered = sorted(things.items(), key=lambda item: (not math.isfinite(item[1]), item[1]))
    categories = [CAR if name.startswith("car") else PERSON for name, _ in ordered]
    semantic = torch.tensor(categories, dtype=torch.int64).repeat_interleave(2).view(1, 1, -1)
    clusters = torch.arange(1, len(ordered) + 1).repeat_interleave(2).view(1, 1, -1)
    result = assemble(semantic, clusters, things={CAR, PERSON})
    return result, torch.tensor([value for _, value in ordered], dtype=torch.float64).view(-1, 1)


def film(*frames: dict[str, float], gate: float = 1.0, memory: int = 0) -> list[dict[str, Any]]:
    """Track the frames; say for each which id every thing got, and what began, ended and came back."""
    told = []
    tracker = Tracker(gate=gate, memory=memory)
    for things in frames:
        result, means = frame(**things)
        tracked = tracker.update(result, means=means)
        order = sorted(things, key=lambda name: (not math.isfinite(things[name]), things[name]))
        ids = tracked.result.segmentation.flatten()[::2].tolist()
        told.append(
            {
                "ids": dict(zip(order, ids, strict=True)),
                "births": tracked.births,
                "deaths": tracked.deaths,
                "reentries": tracked.reentries,
            }
        )
    return told


def ids_of(told: list[dict[str, Any]], name: str) -> list[int | None]:
    return [frame["ids"].get(name) for frame in told]


# --- Films with known ids


@cache
def filmed(seed: int, frames: int, dim: int = 4) -> tuple[list[PanopticResult], list[Tensor], list[Tensor]]:
    """A street with things that move, hide each other and leave; an embedding around one point per thing."""
    random = torch.Generator().manual_seed(seed)
    codes = 400 * torch.rand(256, dim, generator=random)
    results, embeddings, instances = [], [], []
    for scene in street_clip(seed, frames=frames, size=(48, 64)):
        semantic, instance = scene.semantic[None], scene.instance[None]
        results.append(PanopticResult.from_maps(semantic, instance, things=THINGS, crowd=scene.crowd[None]))
        pixels = codes[instance.long()] + 0.05 * torch.randn(*instance.shape, dim, generator=random)
        embeddings.append(pixels.movedim(-1, 1).float())
        instances.append(instance)
    assert torch.pdist(codes).min() > 3
    return results, embeddings, instances


def expected_ids(visible: list[set[int]], memory: int) -> tuple[list[dict[int, tuple[int, int]]], list[int]]:
    """What a thing is called, by its name and how often it died before; and how many deaths each frame sees.

    By definition: a thing that was not to be seen in more than `memory` frames in a row is another one afterwards.
    """
    last: dict[int, int] = {}
    lives: dict[int, int] = {}
    names, deaths = [], []
    for now, things in enumerate(visible):
        for thing in things:
            if now - last.get(thing, now) > memory + 1:
                lives[thing] += 1
            lives.setdefault(thing, 0)
            last[thing] = now
        names.append({thing: (thing, lives[thing]) for thing in things})
        deaths.append(sum(now - seen == memory + 1 for seen in last.values()))
    return names, deaths


@pytest.mark.parametrize("memory", [0, 2, 30])
@pytest.mark.parametrize("seed", [2, 3])
def test_a_street_keeps_its_ids(seed: int, memory: int) -> None:
    results, embeddings, instances = filmed(seed, frames=16)
    frames = track(results, embeddings, gate=1.0, memory=memory)
    names, deaths = expected_ids([set(i.unique().tolist()) - {0} for i in instances], memory)
    called: dict[tuple[int, int], int] = {}
    seen_before: set[int] = set()
    for now, (tracked, instance, expected) in enumerate(zip(frames, instances, names, strict=True)):
        ids = tracked.result.instance()
        assert torch.equal(ids > 0, instance > 0)
        born, back = set(), set()
        for thing, name in expected.items():
            (own,) = ids[instance == thing].unique().tolist()
            if name not in called:
                born.add(own)
            elif thing not in names[now - 1]:
                back.add(own)
            assert called.setdefault(name, own) == own
        assert set(tracked.births) == born
        assert not born & seen_before, "an id came up again"
        assert set(tracked.reentries) == back
        assert len(tracked.deaths) == deaths[now]
        seen_before |= born
    assert len(set(called.values())) == len(called)
    # The films have all of it: more lives than things where memory is short, and things that come back where not.
    if memory == 0:
        assert sum(deaths) > 0
        assert len(called) > len({thing for thing, _ in called})
    else:
        assert any(tracked.reentries for tracked in frames)


def test_stuff_and_crowds_keep_one_id_each_that_no_thing_has() -> None:
    results, embeddings, _ = filmed(6, frames=12)  # with a crowd
    frames = track(results, embeddings, gate=1.0)
    found: dict[tuple[int, bool], set[int]] = {}
    things = set()
    for tracked in frames:
        for segment in tracked.result.segments[0]:
            if segment.is_thing and not segment.is_crowd:
                things.add(segment.id)
            else:
                found.setdefault((segment.category, segment.is_crowd), set()).add(segment.id)
    assert {(ROAD, False), (PERSON, True)} <= found.keys()
    assert all(len(ids) == 1 for ids in found.values())
    assert not things & set().union(*found.values())


def test_only_ids_change() -> None:
    results, embeddings, _ = filmed(5, frames=6)
    for result, tracked in zip(results, track(results, embeddings, gate=1.0), strict=True):
        new = tracked.result
        assert torch.equal(new.semantic(), result.semantic())
        assert sorted(s.area for s in new.segments[0]) == sorted(s.area for s in result.segments[0])
        pairs = torch.stack([new.segmentation, result.segmentation]).flatten(1).unique(dim=1)
        assert pairs.shape[1] == len(set(pairs[0].tolist())) == len(set(pairs[1].tolist()))
    scored = PanopticResult(torch.ones(1, 1, 1, dtype=torch.int32), ((Segment(1, CAR, True, 1, 0.25),),))
    ((segment,),) = track([scored], [torch.zeros(1, 1, 1, 1)], gate=1.0)[0].result.segments
    assert segment == Segment(1, CAR, True, 1, 0.25)


def test_several_regions_of_one_crowd_or_stuff_category_stay_apart() -> None:
    segments = (Segment(4, CAR, True, 1, 1.0, True), Segment(7, CAR, True, 1, 1.0, True), Segment(9, ROAD, False, 1))
    result = PanopticResult(torch.tensor([[[4, 7, 9]]], dtype=torch.int32), (segments,))
    frames = track([result, result], means=[torch.zeros(3, 1)] * 2, gate=1.0)
    assert [tracked.result.segmentation.tolist() for tracked in frames] == [[[[1, 2, 3]]]] * 2
    assert frames[0].births == ()


# --- Births, deaths, re-entries


def test_a_birth_a_death_and_a_re_entry() -> None:
    told = film(
        {"car_a": 0.0, "car_b": 5.0},
        {"car_a": 0.5, "car_c": 9.0},
        {"car_a": 1.0},
        {"car_a": 1.5, "car_b": 5.0},  # unseen for two frames
        {"car_c": 9.0},  # unseen for two frames
        memory=2,
    )
    assert [frame["births"] for frame in told] == [(1, 2), (3,), (), (), ()]
    assert [frame["reentries"] for frame in told] == [(), (), (), (2,), (3,)]
    assert [frame["deaths"] for frame in told] == [()] * 5
    assert ids_of(told, "car_b") == [2, None, None, 2, None]


def test_after_the_memory_a_thing_is_another_one() -> None:
    told = film({"car_a": 0.0}, {}, {}, {"car_a": 0.0}, {"car_a": 0.0}, memory=1)
    assert ids_of(told, "car_a") == [1, None, None, 2, 2]
    assert [frame["deaths"] for frame in told] == [(), (), (1,), (), ()]
    told = film({"car_a": 0.0}, {}, {}, {"car_a": 0.0}, memory=2)
    assert ids_of(told, "car_a") == [1, None, None, 1]


def test_without_memory_a_track_ends_in_the_first_frame_without_it() -> None:
    told = film({"car_a": 0.0}, {}, {"car_a": 0.0})
    assert [frame["deaths"] for frame in told] == [(), (1,), ()]
    assert ids_of(told, "car_a") == [1, None, 2]


def test_a_thing_that_comes_back_elsewhere_is_another_one() -> None:
    told = film({"car_a": 0.0}, {}, {"car_a": 1.25}, {"car_a": 0.5}, memory=9)
    assert ids_of(told, "car_a") == [1, None, 2, 1], "where the first one waits"
    assert told[3]["reentries"] == (1,)


def test_a_track_is_sought_where_it_was_last_seen() -> None:
    told = film(*({"car_a": 0.75 * step, "person_a": -0.75 * step} for step in range(12)))
    assert ids_of(told, "car_a") == [ids_of(told, "car_a")[0]] * 12
    assert sum(len(frame["births"]) for frame in told) == 2


def test_things_may_cross_each_other_in_the_picture() -> None:
    """What is left of the other changes; where they lie in the embedding does not."""
    codes = torch.tensor([0.0, 10.0])
    clip, embeddings = [], []
    for step in range(9):
        instance = torch.zeros(1, 1, 12, dtype=torch.int64)
        instance[0, 0, 1 + step] = 1
        instance[0, 0, 10 - step] = 2  # they never share a pixel: their distance is odd
        clip.append(PanopticResult.from_maps(torch.full_like(instance, CAR), instance, things={CAR}))
        embeddings.append(codes[instance.clamp(min=1) - 1][:, None])
    frames = track(clip, embeddings, gate=1.0)
    assert [int(t.result.segmentation[0, 0, 1 + step]) for step, t in enumerate(frames)] == [1] * 9
    assert [int(t.result.segmentation[0, 0, 10 - step]) for step, t in enumerate(frames)] == [2] * 9


def test_a_track_never_changes_its_category() -> None:
    told = film({"car_a": 0.0}, {"person_a": 0.0}, {"car_a": 0.0, "person_a": 0.0}, memory=1)
    assert ids_of(told, "car_a") == [1, None, 1]
    assert ids_of(told, "person_a") == [None, 2, 2]


# --- The gate


def test_a_pair_at_the_gate_is_inside_and_one_beyond_is_out() -> None:
    assert match(np.array([[0.0, 3.0]]), np.array([[4.0, 0.0]]), 5.0) == [(0, 0)]
    assert match(np.array([[0.0, 3.0]]), np.array([[4.0, 0.0]]), math.nextafter(5.0, 0.0) - 1e-9) == []


def test_more_pairs_go_before_a_smaller_sum() -> None:
    """The nearest pair alone, at distance 0, would leave the two others beyond the gate."""
    told = film({"car_a": 1.0, "car_b": 2.0}, {"car_a": 0.0, "car_b": 1.0})
    assert ids_of(told, "car_a") == [1, 1]
    assert ids_of(told, "car_b") == [2, 2]


def test_distances_are_summed_squared() -> None:
    """Two pairs at about 3, of sum 6.1, against one at 0 and one at 5.4."""
    things, tracks = np.array([[0.0, 0.0], [-1.75, 2.5]]), np.array([[3.0, 0.0], [0.0, 0.0]])
    assert match(things, tracks, 9.0) == [(0, 0), (1, 1)]


@st.composite
def points(draw: st.DrawFn) -> np.ndarray:
    count, values = draw(st.integers(1, 4)), st.integers(-10, 10)
    rows = draw(st.lists(st.tuples(values, values), min_size=count, max_size=count))
    return np.array(rows, dtype=np.float64) / 4


@given(points(), points(), st.integers(1, 16).map(lambda n: n / 4))
def test_the_assignment_is_the_best_of_all(one: np.ndarray, other: np.ndarray, gate: float) -> None:
    """Against every assignment there is; multiples of 1/4, whose squares are exact."""
    squares = ((one[:, None] - other[None]) ** 2).sum(2)
    best = (0, 0.0)
    for k in range(1, min(squares.shape) + 1):
        for rows in itertools.combinations(range(len(one)), k):
            for columns in itertools.permutations(range(len(other)), k):
                chosen = squares[rows, columns]
                if (chosen <= gate**2).all():
                    best = max(best, (k, -float(chosen.sum())))
    pairs = match(one, other, gate)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(squares[pair] <= gate**2 for pair in pairs)
    assert (len(pairs), -sum(float(squares[pair]) for pair in pairs)) == best


@given(st.data())
def test_walks_below_the_gate_and_two_gates_apart_keep_their_ids(data: st.DataObject) -> None:
    """Any number of things and dimensions: exactly, for every frame."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    things, dim = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    gate = data.draw(st.sampled_from([0.01, 1.0, 300.0]))
    where = 6 * gate * random.uniform(-1, 1, (things, dim))
    frames = []
    for _ in range(12):
        frames.append(where)
        step = random.normal(size=where.shape)
        step *= gate * random.uniform(0, 0.999, (things, 1)) / np.linalg.norm(step, axis=1, keepdims=True)
        moved = where + step
        # Only films that meet the condition: who would come too near to another stays where it is.
        for row in range(things):
            others = np.delete(np.concatenate([where, moved]), [row, things + row], 0)
            if things > 1 and np.linalg.norm(others - moved[row], axis=1).min() <= 2 * gate:
                moved[row] = where[row]
        where = moved
    apart = np.inf if things == 1 else min(np.linalg.norm(a - b) for a, b in itertools.combinations(frames[0], 2))
    if apart <= 2 * gate:
        return
    tracker = Tracker(gate=gate, memory=0)
    for positions in frames:
        order = random.permutation(things)  # the numbers in a frame say nothing
        ids = torch.from_numpy(1 + np.argsort(order)).int().view(1, -1)
        segments = tuple(Segment(n + 1, CAR, True, 1) for n in range(things))
        tracked = tracker.update(PanopticResult(ids, (segments,)), means=torch.from_numpy(positions[order]))
        names = tracked.result.segmentation[0].tolist()
        if positions is frames[0]:
            first = names
            assert sorted(tracked.births) == sorted(names)
        else:
            assert tracked.births == tracked.deaths == ()
        assert names == first


# --- Means, sizes, order


def test_means_are_those_of_the_pixels() -> None:
    results, embeddings, _ = filmed(6, frames=2, dim=3)
    batch = PanopticResult.from_pictures(results)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        embedding = torch.cat(embeddings).to(dtype)
        for strided in (embedding, embedding.to(memory_format=torch.channels_last)):
            found = segment_means(batch, strided)
            for result, values, means in zip(batch, embedding, found, strict=True):
                expected = [values.double()[:, result.segmentation[0] == s.id].mean(1) for s in result.segments[0]]
                torch.testing.assert_close(means, torch.stack(expected), rtol=1e-12, atol=1e-12)  # another order


def test_the_number_of_threads_changes_no_bit_of_a_mean() -> None:
    instance = torch.randint(1, 6, (1, 300, 1000))
    result = PanopticResult.from_maps(torch.full_like(instance, CAR), instance, things={CAR})
    embedding = torch.randn(1, 3, 300, 1000)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(segment_means(result, embedding)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_means_may_come_in_place_of_the_embedding() -> None:
    results, embeddings, _ = filmed(7, frames=5)
    expected = track(results, embeddings, gate=1.0)
    means = [segment_means(result, embedding)[0] for result, embedding in zip(results, embeddings, strict=True)]
    assert same(track(results, means=means, gate=1.0), expected)
    assert same(track(PanopticResult.from_pictures(results), torch.cat(embeddings), gate=1.0), expected)


def same(one: list[TrackedFrame], other: list[TrackedFrame]) -> bool:
    return all(
        a.result == b.result and (a.births, a.deaths, a.reentries) == (b.births, b.deaths, b.reentries)
        for a, b in zip(one, other, strict=True)
    )


def test_pixels_in_another_order_give_the_same_tracks() -> None:
    """Numbers of births follow the order of segments; who is who does not."""
    results, embeddings, _ = filmed(9, frames=8)
    order = torch.randperm(48 * 64)
    shuffled, moved = [], []
    for result, embedding in zip(results, embeddings, strict=True):
        semantic, instance = result.semantic().flatten(1)[:, order], result.instance().flatten(1)[:, order]
        shuffled.append(PanopticResult.from_maps(semantic, instance, things=THINGS))
        moved.append(embedding.flatten(2)[:, :, order])
    one = torch.cat([t.result.instance().flatten(1)[:, order] for t in track(results, embeddings, gate=1.0)])
    other = torch.cat([t.result.instance() for t in track(shuffled, moved, gate=1.0)])
    pairs = torch.stack([one.flatten(), other.flatten()]).unique(dim=1)
    assert pairs.shape[1] == len(set(pairs[0].tolist())) == len(set(pairs[1].tolist()))


def test_frames_may_have_any_size_and_hold_nothing() -> None:
    tracker = Tracker(gate=1.0, memory=3)
    expected = {}
    for size in ((3, 4), (6, 8), (0, 5), (5, 2), (3, 3)):
        instance = torch.ones(1, *size, dtype=torch.int64)
        result = PanopticResult.from_maps(instance * CAR, instance, things={CAR})
        tracked = tracker.update(result, torch.zeros(1, 2, *size))
        expected[size] = tracked.result.segmentation.flatten().tolist()
    assert expected == {(3, 4): [1] * 12, (6, 8): [1] * 48, (0, 5): [], (5, 2): [1] * 10, (3, 3): [1] * 9}
    assert track([], [], gate=1.0) == []
    assert track(PanopticResult(torch.zeros(0, 2, 2, dtype=torch.int32), ()), torch.zeros(0, 1, 2, 2), gate=1.0) == []
    void = PanopticResult(torch.zeros(1, 2, 2, dtype=torch.int32), ((),))
    assert track([void], [torch.zeros(1, 1, 2, 2)], gate=1.0)[0].result == void


def test_pixels_that_are_not_finite_do_not_count() -> None:
    instance = torch.tensor([[1, 1, 1, 2, 2]])
    result = PanopticResult.from_maps(torch.full_like(instance, CAR), instance, things={CAR})
    clean = torch.tensor([[[0.0, 0.0, 0.0, 7.0, 7.0], [1.0, 1.0, 1.0, 1.0, 1.0]]])
    broken = clean.clone()
    broken[0, 0, 0], broken[0, 1, 1], broken[0, 1, 4] = math.inf, math.nan, -math.inf
    assert torch.equal(segment_means(result, broken)[0], segment_means(result, clean)[0])
    assert [t.births for t in track([result, result], [clean, broken], gate=1.0)] == [(1, 2), ()]


def test_a_thing_without_a_mean_is_another_one_in_every_frame() -> None:
    told = film({"car_a": 0.0, "car_b": math.nan}, {"car_a": 0.0, "car_b": math.nan}, {"car_a": math.inf}, memory=1)
    assert ids_of(told, "car_b") == [2, 3, None]
    assert ids_of(told, "car_a") == [1, 1, 4]
    assert [frame["deaths"] for frame in told] == [(), (), (2,)]


def test_means_of_any_size_are_no_trouble() -> None:
    told = film({"car_a": 1e300, "car_b": -1e300, "car_c": 0.0}, {"car_a": 1e300, "car_c": 1e-300}, gate=1e-3)
    assert ids_of(told, "car_a") == [3, 3]
    assert ids_of(told, "car_c") == [2, 2]


def test_a_tracker_forgets_when_told_to() -> None:
    tracker = Tracker(gate=0.5, memory=2)
    result, means = frame(car_a=0.0)
    assert tracker.update(result, means=means).births == (1,)
    tracker.reset()
    assert tracker.tracks == ()
    assert tracker.update(result, means=means).births == (1,)
    assert repr(tracker) == "Tracker(gate=0.5, memory=2)"


# --- Errors

RESULT, MEANS = frame(car_a=0.0, car_b=4.0)
EMBEDDING = torch.zeros(1, 2, 1, 4)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: Tracker(gate=0.0), ValueError, r"gate must be a finite number above 0, got 0\.0"),
        (lambda: Tracker(gate="1"), TypeError, r"gate must be a number, got str"),  # type: ignore[arg-type]
        (lambda: Tracker(gate=1.0, memory=-1), ValueError, r"memory must be 0 or more frames, got -1"),
        (lambda: Tracker(gate=1.0, memory=1.5), TypeError, r"memory must be an int, in frames, got float"),  # type: ignore[arg-type]
        (
            lambda: Tracker(gate=1.0).update(RESULT),
            ValueError,
            r"embedding must be given, or means in its place, got none",
        ),
        (
            lambda: Tracker(gate=1.0).update(RESULT, EMBEDDING, means=MEANS),
            ValueError,
            r"embedding must be given, or means in its place, got both",
        ),
        (
            lambda: Tracker(gate=1.0).update(PanopticResult.from_pictures([RESULT] * 2), EMBEDDING),
            ValueError,
            r"result must hold one picture, one frame, got 2\. Use track\(\.\.\.\)",
        ),
        (
            lambda: Tracker(gate=1.0).update(EMBEDDING, EMBEDDING),  # type: ignore[arg-type]
            TypeError,
            r"result must be a PanopticResult, got Tensor",
        ),
        (
            lambda: Tracker(gate=1.0).update(RESULT, EMBEDDING[..., 1:]),
            ValueError,
            r"embedding must have shape \(1, 2, 1, 4\) to match result \(B, \*spatial\), got \(1, 2, 1, 3\)",
        ),
        (
            lambda: Tracker(gate=1.0).update(RESULT, means=MEANS[1:]),
            ValueError,
            r"means must have shape \(2, D\), a row per segment, got \(1, 1\)",
        ),
        (
            lambda: Tracker(gate=1.0).update(RESULT, means=MEANS.long()),
            TypeError,
            r"means must be a floating point tensor, got torch\.int64",
        ),
        (
            lambda: track([RESULT], gate=1.0),
            ValueError,
            r"embeddings must be given, or means in its place, got none",
        ),
        (
            lambda: track([RESULT, RESULT], [EMBEDDING], gate=1.0),
            ValueError,
            r"embeddings must hold one entry per frame, got fewer",
        ),
        (
            lambda: track([RESULT], means=[MEANS, MEANS], gate=1.0),
            ValueError,
            r"means must hold one entry per frame, got more",
        ),
        (
            lambda: segment_means(RESULT, EMBEDDING.long()),
            TypeError,
            r"embedding must be a floating point tensor, got torch\.int64",
        ),
    ],
)
def test_bad_arguments_fail_clearly(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_another_width_of_the_embedding_fails_clearly_and_changes_nothing() -> None:
    tracker = Tracker(gate=1.0, memory=0)
    tracker.update(RESULT, means=MEANS)
    with pytest.raises(ValueError, match=r"embedding must have D = 1, as in the frames before, got D = 2"):
        tracker.update(RESULT, EMBEDDING)
    again = tracker.update(RESULT, means=MEANS)
    assert again.births == again.deaths == again.reentries == ()
