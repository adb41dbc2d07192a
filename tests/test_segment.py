"""From an embedding to segments: the fused way equals its three parts, on whatever comes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lovasz_embed._ops.assembly import majority
from lovasz_embed.clustering import cluster_embeddings
from lovasz_embed.panoptic import PanopticResult, assemble, segment
from lovasz_embed.panoptic import segmentation as segmentation_module
from lovasz_embed.panoptic._dims import look_at
from lovasz_embed.prototypes import nearest_class_mean

SHAPES = [(1, 1, 30), (1, 3, 5, 8), (2, 2, 6, 7), (3, 4, 20), (1, 2, 3, 4, 5)]


def by_parts(embedding: Tensor, means: Tensor, *, things: Any, ignore_index: int = 255, **options: Any) -> Any:
    """Nearest class mean, clustering and assembly as three calls: what `segment` stands for."""
    areas = {name: options.pop(name, 0) for name in ("min_thing_area", "min_stuff_area")}
    clustering = {name: options.pop(name) for name in ("radius", "reach", "connected") if name in options}
    instance_dims, vote = options.pop("instance_dims", None), options.pop("vote", False)
    semantic = nearest_class_mean(
        embedding, means, dims=options.pop("category_dims", None), ignore_index=ignore_index, **options
    )
    is_thing = torch.isin(semantic, torch.tensor(sorted(set(things) - {ignore_index}), dtype=torch.int64))
    clusters = cluster_embeddings(
        embedding if instance_dims is None else embedding[:, list(instance_dims)],
        is_thing if vote else torch.where(is_thing, semantic, -1),
        min_size=max(int(areas["min_thing_area"]), 1),
        **clustering,
    )
    return assemble(
        semantic, clusters.labels, things=things, scores=clusters.scores, ignore_index=ignore_index, **areas
    )


@settings(max_examples=max(250, settings().max_examples))  # many options, which take effect together
@given(st.data())
def test_the_fused_way_equals_its_parts(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(SHAPES))
    batch, dim, *spatial = shape
    categories = data.draw(st.integers(1, 6))
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    means = torch.from_numpy(random.integers(-40, 41, (categories, dim)) / 8)
    # Instances around the means of categories, and pixels around those.
    owner = random.integers(0, 12, (batch, *spatial))
    centres = means.numpy()[random.integers(0, categories, 12)] + random.normal(0, 1.5, (12, dim))
    values = np.moveaxis(centres[owner], -1, 1) + random.normal(0, data.draw(st.sampled_from([0.05, 0.4])), shape)
    embedding = torch.from_numpy(values)
    if data.draw(st.booleans()):
        broken = torch.from_numpy(random.random(shape) < 0.03)
        embedding = torch.where(broken, data.draw(st.sampled_from([math.nan, math.inf, -math.inf])), embedding)
    means[sorted(data.draw(st.sets(st.integers(0, categories - 1), max_size=2)))] = math.nan
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    embedding = embedding.to(dtype)
    if data.draw(st.booleans()):
        embedding = embedding.movedim(1, -1).contiguous().movedim(-1, 1)
    dims = data.draw(st.none() | st.sets(st.integers(0, dim - 1), min_size=1).map(sorted))
    options: dict[str, Any] = {
        "things": data.draw(st.sets(st.integers(0, categories + 1))),
        "radius": data.draw(st.sampled_from([0.5, 1.0, 2.0])),
        "reach": data.draw(st.sampled_from([None, 0.4, 2.5])),
        "category_dims": dims,
        "instance_dims": data.draw(st.none() | st.lists(st.integers(0, dim - 1), min_size=1, unique=True)),
        "offset": data.draw(st.sampled_from([None, torch.linspace(0, 3, categories)])),
        "reject_radius": data.draw(st.sampled_from([None, 2.5])),
        "connected": data.draw(st.booleans()),
        "vote": data.draw(st.booleans()),
        "min_thing_area": data.draw(st.sampled_from([0, 1, 2.5, 6])),
        "min_stuff_area": data.draw(st.sampled_from([0, 3])),
        "ignore_index": data.draw(st.sampled_from([255, -1, -100, 0])),
    }
    # Votes are counted in a table, unless it is larger than this and than the picture.
    with patch.object(segmentation_module, "SMALL_TABLE", data.draw(st.sampled_from([0, 2**16]))):
        got = segment(embedding, means, **options)
    assert got == by_parts(embedding, means, **options)
    assert got.segmentation.shape == (batch, *spatial)
    for ids, segments in zip(got.segmentation, got.segments, strict=True):
        assert ids.unique().tolist() == sorted({*([0] if (ids == 0).any() else []), *(s.id for s in segments)})
        assert all(s.area == int((ids == s.id).sum()) for s in segments)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 3, 0), (2, 3, 0, 4), (1, 1, 1)])
def test_empty_batches_and_single_pixels_work(shape: tuple[int, ...]) -> None:
    for things in (set(), {0}, {0, 1}):
        got = segment(torch.zeros(shape), torch.zeros(2, shape[1]), things=things, radius=1.0)
        assert got == by_parts(torch.zeros(shape), torch.zeros(2, shape[1]), things=things, radius=1.0)
        assert got.segmentation.shape == (shape[0], *shape[2:])
        assert got == segment(torch.zeros(shape), torch.zeros(2, shape[1]), things=things, radius=1.0, vote=True)


def test_a_category_numbered_as_void_is_void() -> None:
    embedding, means = torch.tensor([[[0.0, 0.0, 5.0, 5.0]]]), torch.tensor([[0.0], [5.0]])
    for things in ({0}, {1}, {0, 1}):
        result = segment(embedding, means, things=things, radius=1.0, ignore_index=0)
        assert result.segmentation.tolist() == [[0, 0, 1, 1]]


# The first dimension tells categories apart, the second instances.
CAR_AND_TRUCK = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
APART: dict[str, Any] = {"things": {0, 1}, "radius": 1.0, "category_dims": [0], "instance_dims": [1]}


def test_votes_that_no_table_holds_are_sorted() -> None:
    codes = np.array([2, 2, 0, 0, 1, -1, -3, 1, 2, 2, 1, 0], np.int32)
    labels = np.array([1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 0], np.int32)
    assert majority(codes, labels, 4, 3).tolist() == [0, 0, 1, 2, 0]


@pytest.mark.parametrize(("trucks", "category"), [(4, 0), (5, 0), (6, 1)])
def test_a_thing_of_two_categories_is_one_with_a_vote_of_its_pixels(trucks: int, category: int) -> None:
    """Of ten pixels; of equal numbers of votes the lowest category wins."""
    embedding = torch.full((1, 2, 10), 7.0)
    embedding[0, 0] = torch.where(torch.arange(10) % 10 < 10 - trucks, 0.0, 4.0)
    apart = segment(embedding, CAR_AND_TRUCK, **APART)
    assert [(s.category, s.area) for s in apart.segments[0]] == [(0, 10 - trucks), (1, trucks)]
    together = segment(embedding, CAR_AND_TRUCK, **APART, vote=True)
    assert [(s.category, s.area, s.is_thing) for s in together.segments[0]] == [(category, 10, True)]
    # What is smaller than asked for is so before the vote, and not after it.
    assert len(segment(embedding, CAR_AND_TRUCK, **APART, min_thing_area=10).segments[0]) == 0
    assert len(segment(embedding, CAR_AND_TRUCK, **APART, min_thing_area=10, vote=True).segments[0]) == 1


def test_stuff_has_no_vote() -> None:
    embedding = torch.tensor([[[0.0, 0.0, 4.0], [7.0, 7.0, 7.0]]])
    result = segment(embedding, CAR_AND_TRUCK, **{**APART, "things": {1}}, vote=True)
    assert result.segmentation.tolist() == [[1, 1, 2]]
    assert [s.category for s in result.segments[0]] == [0, 1]


def test_instances_are_told_apart_by_their_own_dimensions_alone() -> None:
    embedding = torch.tensor([[[0.0, 1.9, 0.0, 0.0], [7.0, 7.0, 9.9, 9.9]]])
    assert segment(embedding, CAR_AND_TRUCK, **APART).segmentation.tolist() == [[1, 1, 2, 2]]
    everything = {**APART, "instance_dims": None}
    assert segment(embedding, CAR_AND_TRUCK, **everything).segmentation.tolist() == [[1, 2, 3, 3]]


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_a_pixel_that_is_not_finite_is_void_in_whichever_dimension(dimension: int) -> None:
    """Even where neither categories nor instances look at that dimension."""
    embedding = torch.tensor([[[0.0, 0.0, 0.0], [7.0, 7.0, 7.0], [5.0, 6.0, 7.0]]])
    embedding[0, dimension, 1] = math.nan
    means = torch.nn.functional.pad(CAR_AND_TRUCK, (0, 1))
    assert segment(embedding, means, **APART).segmentation.tolist() == [[1, 0, 1]]
    assert segment(embedding, means, **APART, vote=True).segmentation.tolist() == [[1, 0, 1]]


def street(batch: int = 1, size: int = 300) -> tuple[Tensor, Tensor]:
    """A picture larger than one task, with stuff 0 and 1, things 2 and 3 and absent class 4, and its means."""
    means = torch.tensor([[0.0, 0.0, 0.0], [12.0, 0.0, 0.0], [0.0, 12.0, 0.0], [0.0, 0.0, 12.0], [math.nan] * 3])
    blocks = torch.randint(0, 4, (batch, size // 30 + 1, size // 20 + 1))
    category = blocks.repeat_interleave(30, 1).repeat_interleave(20, 2)[:, :size, :size]
    shift = torch.randn(batch, *blocks.shape[1:], 3).repeat_interleave(30, 1).repeat_interleave(20, 2)
    embedding = means[category] + shift[:, :size, :size] + 0.1 * torch.randn(batch, size, size, 3)
    return embedding.movedim(-1, 1).contiguous(), means


@pytest.mark.parametrize(
    "reading", [{}, {"vote": True, "instance_dims": [1, 2]}, {"vote": True, "instance_dims": [2, 0]}], ids=str
)
def test_threads_and_layouts_change_nothing(reading: dict[str, Any]) -> None:
    embedding, means = street(2, 400)
    options: dict[str, Any] = {"things": {2, 3, 4}, "radius": 1.0, "min_thing_area": 20, **reading}
    expected = by_parts(embedding, means, **options)
    assert sum(map(len, expected.segments)) > 30
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found += [
                segment(x, means, **options) for x in (embedding, embedding.to(memory_format=torch.channels_last))
            ]
            found += [PanopticResult.from_pictures([segment(x[None], means, **options) for x in embedding])]
    finally:
        torch.set_num_threads(before)
    assert all(result == expected for result in found)


def test_pixels_that_are_not_finite_are_void_without_a_warning() -> None:
    embedding = torch.tensor([[[0.0, math.nan, 5.0, math.inf, 5.1]]])
    result = segment(embedding, torch.tensor([[0.0], [5.0]]), things={1}, radius=1.0)
    assert result.segmentation.tolist() == [[1, 0, 2, 0, 2]]
    assert segment(embedding.fill_(math.nan), torch.zeros(1, 1), things={0}, radius=1.0).segments == ((),)


def test_an_embedding_with_gradients_is_read_without() -> None:
    embedding, means = street(1, 40)
    expected = segment(embedding, means, things={2, 3}, radius=1.0)
    assert segment(torch.nn.Parameter(embedding), means.requires_grad_(), things=[3, 2], radius=1.0) == expected


def test_a_subclass_of_tensor_gives_the_same() -> None:
    class Named(Tensor):
        """A tensor that comes with more than its numbers."""

    embedding, means = street(1, 40)
    # Every third pixel of a thing reads as the other one, which the first dimension does not look at.
    embedding[..., ::3] = embedding[:, [0, 2, 1], :, ::3]
    for reading in ({}, {"vote": True, "instance_dims": (2, 0)}, {"vote": True, "instance_dims": (0,)}):
        options: dict[str, Any] = {"things": {2, 3}, "radius": 1.0, **reading}
        named, expected = (segment(x, means, **options) for x in (embedding.as_subclass(Named), embedding))
        assert named.segments == expected.segments
        assert torch.equal(named.segmentation.as_subclass(Tensor), expected.segmentation)


def peak_of(call: Callable[[], object]) -> int:
    """The most bytes that numpy, which holds all maps on the CPU, had allocated at once."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_that_of_the_clustering_and_one_map() -> None:
    embedding, means = street(1, 600)
    things = nearest_class_mean(embedding, means)
    things[things < 2] = -1
    clustering = peak_of(lambda: cluster_embeddings(embedding, things, radius=1.0, min_size=20))
    whole = peak_of(lambda: segment(embedding, means, things={2, 3}, radius=1.0, min_thing_area=20))
    one_map = 4 * 600 * 600  # of int32
    assert whole < clustering + 1.1 * one_map  # and small things
    seen, of_things = embedding[:, 1:], things >= 0
    clustering = peak_of(lambda: cluster_embeddings(seen, of_things, radius=1.0, min_size=20))
    reading: dict[str, Any] = {"vote": True, "instance_dims": (1, 2), "min_thing_area": 20}
    whole = peak_of(lambda: segment(embedding, means, things={2, 3}, radius=1.0, **reading))
    assert whole < clustering + 1.1 * one_map  # the codes: a mask is made int32 there as well


def test_dimensions_that_follow_one_another_are_no_copy() -> None:
    embedding = torch.arange(24.0).view(1, 4, 6)
    assert look_at(embedding, None) is embedding
    assert look_at(embedding, (2, 3)).data_ptr() == embedding[:, 2:].data_ptr()
    for dims in ((0, 2), (3, 2), (1, 0, 2)):
        assert torch.equal(look_at(embedding, dims), torch.stack([embedding[:, d] for d in dims], 1))


UNCOMPILED = """
import torch
from lovasz_embed import segment, segment_means
embedding = torch.tensor([[[0.0, 0.1, 5.0, 5.1, 5.2, 8.0, float("nan"), 8.5]]])
means = torch.tensor([[0.0], [6.0]])
result = segment(embedding, means, things={1}, radius=1.0)
assert result.segmentation.tolist() == [[1, 1, 2, 2, 2, 3, 0, 3]], result.segmentation
assert segment_means(result, embedding)[0].shape == (3, 1)
"""


def test_uncompiled_kernels_give_the_same_without_a_warning() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", UNCOMPILED], env=environment, check=True, timeout=120)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"radius": 0}, ValueError, "radius must be a finite number above 0, got 0"),
        ({"reach": -1.0}, ValueError, "reach must be a finite number above 0, got -1.0"),
        ({"connected": 1}, TypeError, "connected must be True or False, got 1"),
        ({"min_thing_area": -1}, ValueError, "min_thing_area must be a finite number, 0 or above, got -1"),
        ({"min_stuff_area": math.nan}, ValueError, "min_stuff_area must be a finite number, 0 or above, got nan"),
        ({"things": 3}, TypeError, r"things must be a collection of category ids, got 3"),
        ({"reject_radius": 0}, ValueError, "reject_radius must be a finite number above 0, got 0"),
        ({"category_dims": [3]}, ValueError, "dims must name at least one of the dimensions 0 to 2"),
        (
            {"instance_dims": [3]},
            ValueError,
            "instance_dims must name at least one of the dimensions 0 to 2",
        ),
        ({"instance_dims": [-1]}, ValueError, "instance_dims must name at least one of the dimensions 0 to 2"),
        ({"instance_dims": []}, ValueError, "instance_dims must name at least one of the dimensions 0 to 2"),
        ({"instance_dims": [1, 1]}, ValueError, "instance_dims must name at least one of the dimensions 0 to 2"),
        ({"instance_dims": [1.0]}, TypeError, r"instance_dims must be a sequence of int or None, got \[1.0\]"),
        ({"instance_dims": 1}, TypeError, "instance_dims must be a sequence of int or None, got 1"),
        ({"vote": 1}, TypeError, "vote must be True or False, got 1"),
    ],
)
def test_bad_options_fail_clearly(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        segment(torch.zeros(1, 3, 4), torch.zeros(2, 3), **{"things": {1}, "radius": 1.0, **options})


def test_bad_tensors_fail_clearly() -> None:
    with pytest.raises(TypeError, match=r"embedding must be a floating point tensor, got torch.int64"):
        segment(torch.zeros(1, 3, 4).long(), torch.zeros(2, 3), things={1}, radius=1.0)
    with pytest.raises(ValueError, match=r"means must have shape \(C, 3\) with C >= 1 to match embedding"):
        segment(torch.zeros(1, 3, 4), torch.zeros(2, 4), things={1}, radius=1.0)
