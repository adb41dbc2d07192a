"""Clustering: the instances come back exactly where the geometry guarantees it, and sensibly where it does not."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn.functional import interpolate

from lovasz_embed._ops import margin, margin_sweep, mode_kernels
from lovasz_embed._ops.components import connected_components
from lovasz_embed._ops.margin_centres import Centres
from lovasz_embed._ops.margin_crowd import crowding
from lovasz_embed._ops.threads import map_threads
from lovasz_embed.clustering import Clusters, cluster_embeddings


def line(*values: float) -> Tensor:
    """One picture with one row of one-dimensional embeddings."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1)


def everywhere(embedding: Tensor) -> Tensor:
    """The mask that clusters every pixel."""
    return torch.ones(embedding.shape[0], *embedding.shape[2:], dtype=torch.bool)


def by_first_pixel(instance: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number the values of `instance` 1, 2, ... by their first pixel."""
    _, first, inverse = np.unique(instance, return_index=True, return_inverse=True)
    return (np.argsort(np.argsort(first)) + 1)[inverse.reshape(instance.shape)]


def equal(one: Clusters, other: Clusters) -> bool:
    """Whether two results agree in every bit."""
    fields = ("centres", "sizes", "scores", "classes")
    pairs = [pair for name in fields for pair in zip(getattr(one, name), getattr(other, name), strict=True)]
    return torch.equal(one.labels, other.labels) and all(torch.equal(*pair) for pair in pairs)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# The guarantee


@st.composite
def guaranteed(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """Return points (P, D) in any order, the instance of each, and a radius with 2 δ < radius < Δ - 2 δ."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dimensions = draw(st.integers(1, 16))
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    lumpy = draw(st.booleans())  # most pixels on one spot, far from the mean: no tidy ball
    means = [rng.normal(size=dimensions)]
    spread = 1.0
    while len(means) < len(sizes):
        mean = rng.normal(size=dimensions) * spread
        if min(np.linalg.norm(mean - other) for other in means) >= 1:
            means.append(mean)
        spread *= 1.05
    offsets = []
    for size in sizes:
        offset = rng.normal(size=(size, dimensions))
        if lumpy:
            offset[: size // 2 + 1] = offset[0]
        offsets.append(offset - offset.mean(0))
    gaps = [np.linalg.norm(one - other) for i, one in enumerate(means) for other in means[:i]]
    least_gap = min(gaps, default=1.0)
    longest = max(np.linalg.norm(offset, axis=1).max() for offset in offsets)
    delta = draw(st.floats(0, 0.2499)) * least_gap if longest > 1e-9 else 0.0
    points = np.concatenate([m + o * (delta / max(longest, 1e-9)) for m, o in zip(means, offsets, strict=True)])
    # Coordinates are below 100 Δ, so float32 rounds distances by less than 1e-5 Δ: a 1e-4 of room on both sides.
    low, high = 2 * delta + 1e-4 * least_gap, least_gap - 2 * delta - 1e-4 * least_gap
    radius = low + draw(st.floats(0, 1)) * (high - low)
    scale = 10.0 ** draw(st.integers(-3, 3))
    order = rng.permutation(len(points))
    return points[order] * scale, np.repeat(np.arange(len(sizes)), sizes)[order], radius * scale


@given(
    guaranteed(),
    st.sampled_from([1, 4, 16, 16_384]),
    st.sampled_from([(24, 24**2), (500, 24**2), (24, 10_000), (16_384, 1 << 26)]),  # at least for 2 × 12 instances
    st.sampled_from([7, 65_536]),
    st.integers(1, 3),
)
def test_instances_within_the_guarantee_are_recovered_exactly(
    problem: tuple[NDArray[np.float64], NDArray[np.int64], float],
    samples: int,
    second: tuple[int, int],
    chunk: int,
    count: int,
) -> None:
    points, instance, radius = problem
    embedding = torch.from_numpy(points.T.astype(np.float32))[None]
    with (
        threads(count),
        patch.object(margin, "SAMPLES", samples),
        patch.object(margin, "SECOND", second),
        patch.object(margin, "_SECOND_SHARE", (0, 0)),
        patch.object(margin_sweep, "CHUNK", chunk),
    ):
        clusters = cluster_embeddings(embedding, everywhere(embedding), radius=radius)
    expected = by_first_pixel(instance)
    assert np.array_equal(clusters.labels[0].numpy(), expected)
    assert clusters.sizes[0].tolist() == np.bincount(expected)[1:].tolist()
    for k, centre in enumerate(clusters.centres[0].double().numpy(), start=1):
        mean = embedding[0].double().numpy()[:, expected == k].mean(1)
        # The mean is computed in float64 and rounded once to float32, relative to its largest coordinate.
        assert np.abs(centre - mean).max() <= 1e-6 * np.abs(mean).max()


@given(guaranteed(), st.integers(2, 12))
def test_below_min_size_instances_are_noise_and_the_others_stay_exact(
    problem: tuple[NDArray[np.float64], NDArray[np.int64], float], min_size: int
) -> None:
    points, instance, radius = problem
    embedding = torch.from_numpy(points.T.copy())[None]
    with patch.object(margin, "SAMPLES", 8), patch.object(margin, "SECOND", (24, 24**2)):
        clusters = cluster_embeddings(embedding, everywhere(embedding), radius=radius, min_size=min_size)
    large = np.bincount(instance)[instance] >= min_size
    expected = np.zeros_like(instance)
    expected[large] = by_first_pixel(instance[large])
    assert np.array_equal(clusters.labels[0].numpy(), expected)


def test_one_pixel_among_a_million_is_found() -> None:
    embedding = torch.zeros(1, 2, 1000, 1000)
    embedding[:, :, 500:, 500:] = 3.0
    embedding[:, :, 123, 457] = -3.0
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0)
    assert clusters.sizes[0].tolist() == [749_999, 1, 250_000]
    assert clusters.labels[0, 123, 457] == 2


# Beyond the guarantee


def upsampled_scene() -> tuple[Tensor, NDArray[np.int64]]:
    """Return an embedding of 12 instances with noise, tails, outliers and mixed pixels along borders."""
    rng = np.random.default_rng(0)
    height, width, count, dimensions = 128, 160, 12, 8
    seeds = rng.uniform((0, 0), (height, width), (count, 2))
    pixels = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    instance = np.linalg.norm(pixels[:, :, None] - seeds, axis=-1).argmin(-1)
    means: list[NDArray[np.float64]] = []
    while len(means) < count:
        mean = rng.normal(scale=0.9, size=dimensions)
        if all(np.linalg.norm(mean - other) >= 2.5 for other in means):
            means.append(mean)
    coarse = torch.from_numpy(np.array(means)[instance[::2, ::2]]).permute(2, 0, 1)[None]
    embedding = interpolate(coarse, size=(height, width), mode="bilinear").numpy()
    tail = np.where(rng.uniform(size=(height, width)) < 0.05, 2.0, 1.0)
    embedding += rng.normal(scale=0.18, size=embedding.shape) * tail
    outlier = rng.uniform(size=(height, width)) < 0.002
    embedding[0, :, outlier] = rng.normal(scale=3.0, size=(outlier.sum(), dimensions))
    return torch.from_numpy(embedding).float(), instance


def test_noise_tails_and_mixed_pixels_cost_little() -> None:
    embedding, instance = upsampled_scene()
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.3, min_size=20, reach=2.6)
    found = clusters.labels[0].numpy()
    centres = np.stack([np.median(embedding[0].numpy()[:, instance == k], 1) for k in range(12)])
    pixels = embedding[0].permute(1, 2, 0).numpy()
    ideal = np.linalg.norm(pixels[:, :, None] - centres, axis=-1).argmin(-1)
    # A clustering that is told the instances reaches 0.959, because mixed pixels lie nearer to a third one; ours 0.958.
    known = adjusted_rand_score(instance.ravel(), ideal.ravel())
    assert adjusted_rand_score(instance.ravel(), found.ravel()) > known - 0.01
    for k in range(12):  # no instance is split: one cluster holds nine tenths of it
        assert np.bincount(found[instance == k]).max() > 0.9 * (instance == k).sum()


def test_a_diffuse_instance_with_long_tails_is_not_split() -> None:
    embedding = torch.randn(1, 8, 50, 50, generator=torch.Generator().manual_seed(1)) * 0.3
    # Distances to the mean: 0.8 radius on average, a fifth of the pixels beyond the radius.
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0)
    assert len(clusters.sizes[0]) == 1


def test_the_few_pixels_beyond_the_radius_of_a_wide_instance_are_no_clusters() -> None:
    side = torch.linspace(0.55, 1.0, 40)
    beyond = torch.full((5,), 1.05)
    embedding = line(*torch.cat([torch.zeros(100), side, -side, beyond, -beyond]).tolist())
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0)
    assert clusters.labels.tolist() == [[1] * 180 + [0] * 10]


@pytest.mark.parametrize("min_size", [1, 3])
def test_tiny_instances_close_together_are_all_found(min_size: int) -> None:
    """Close enough for every one to be surrounded: within the guarantee no cluster is taken for a mixture."""
    rows, columns = np.divmod(np.arange(100), 10)
    tiny = 5 + 0.8 * np.repeat(np.stack([rows, columns]), 3, axis=1) + 0.1 * np.tile([[0, 1, 0], [0, 0, 1]], 100)
    embedding = torch.zeros(1, 2, 90_000)
    places = np.random.default_rng(0).permutation(90_000)[:300]
    embedding[0, :, places] = torch.from_numpy(tiny).float()
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=0.4, min_size=min_size)
    instance = np.zeros(90_000, np.int64)
    instance[places] = 1 + np.repeat(np.arange(100), 3)
    assert (clusters.labels[0].numpy() == by_first_pixel(instance)).all()


def test_mixtures_of_two_instances_are_no_instance() -> None:
    share = torch.rand(400, generator=torch.Generator().manual_seed(0))
    sides = torch.linspace(-0.3, 0.3, 40_000)
    values = torch.cat([sides, 8 * share, 8 + sides])
    clusters = cluster_embeddings(values.view(1, 1, -1), everywhere(values.view(1, 1, -1)), radius=1.0, min_size=20)
    assert len(clusters.sizes[0]) == 2


def test_a_pixel_that_is_a_cluster_by_itself_joins_no_other() -> None:
    embedding = line(0, 0.1, -0.1, 1.5, 1.8)
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=0.25, reach=2.0)
    assert clusters.labels.tolist() == [[1, 1, 1, 2, 3]]
    assert torch.allclose(clusters.centres[0], torch.tensor([[0.0], [1.5], [1.8]]), atol=1e-6)
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=0.25, reach=2.0, min_size=2)
    assert clusters.labels.tolist() == [[1] * 5]


def test_close_instances_are_told_apart_even_from_a_pixel_between_them() -> None:
    # Δ = 1.3 radius. The first pixel of each lies towards the other: a window of one radius around it holds both.
    one = torch.cat([torch.tensor([0.25]), torch.linspace(-0.1, 0.1, 100)])
    embedding = line(*torch.cat([one, 1.3 - one]).tolist())
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0)
    assert clusters.labels.tolist() == [[1] * 101 + [2] * 101]
    assert clusters.margin_ok == (False,)


def test_pixels_belong_to_the_mean_of_all_pixels_and_not_of_the_sample() -> None:
    embedding = line(*[-0.3, 0.3] * 20)
    with patch.object(margin, "SAMPLES", 20):  # every second pixel: they are all alike
        clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0, reach=0.4)
    assert clusters.labels.tolist() == [[1] * 40]


def test_an_embedding_of_pure_noise_ends_with_the_strongest_clusters() -> None:
    embedding = line(0, 0, 0, 10, 10, 20, 20, 20, 30, 40, 40, 40, 40)
    with patch.object(margin, "MAX_CENTRES", 3):
        clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0, min_size=2)
    assert clusters.labels.tolist() == [[1, 1, 1, 0, 0, 2, 2, 2, 0, 3, 3, 3, 3]]


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_single_pixels_are_clusters_however_many(dimensions: int) -> None:
    side = round(70_000 ** (1 / dimensions)) + 1
    grid = np.stack(np.unravel_index(np.arange(70_000), (side,) * dimensions)).astype(np.float32)
    embedding = torch.from_numpy(grid)[None] * 2.5
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0)
    assert torch.equal(clusters.labels, torch.arange(1, 70_001, dtype=torch.int32)[None])
    assert torch.equal(clusters.centres[0], embedding[0].T)
    assert clusters.margin_ok == (True,)
    assert cluster_embeddings(embedding * 0.7, everywhere(embedding), radius=1.0).margin_ok == (False,)


def test_the_search_among_isolated_pixels_ends() -> None:
    embedding = 100 * torch.randn(1, 4, 2000, generator=torch.Generator().manual_seed(6))
    with patch.object(margin, "SAMPLES", 16), patch.object(margin, "MAX_CENTRES", 100):
        clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0, min_size=2)
    assert not clusters.labels.any()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.integers(1, 40),
    st.floats(0.05, 3.0),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([0, 1, 30]),
)
def test_every_pixel_gets_its_nearest_centre(
    seed: int, dimensions: int, count: int, limit: float, dtype: type[np.floating], width: int
) -> None:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(count, dimensions))
    owners = rng.integers(0, 3, count)
    pixels = rng.normal(size=(dimensions, 600)).astype(dtype)
    pixels[:, 1::2] = pixels[:, ::2] + dtype(0.01)  # neighbours alike: the shortcut is taken
    classes = rng.integers(-1, 3, 600).astype(np.int32)
    centres, order = Centres(means[:0], owners[:0], 3, axis=0).like(means, owners)
    sweep = margin_sweep.Sweep(pixels, classes, 3, map_threads, width)
    totals = sweep.assign(centres, limit)
    far = 1e6  # a centre of another class
    distance = np.linalg.norm(pixels.T[:, None] - means[order], axis=-1)
    distance[classes[:, None] != owners[order]] = far
    nearest = distance.argmin(1)
    least = distance.min(1)
    expected = np.where(least <= limit, nearest + 1, 0)
    # Where two distances, or one and the limit, agree to rounding either answer is right.
    second = np.partition(np.c_[distance, np.full(600, 2 * far)], 1, axis=1)[:, 1]
    clear = ((second - least > 1e-5) | (least == far)) & (np.abs(least - limit) > 1e-5)
    assert np.array_equal(sweep.labels[clear], expected[clear])
    assert np.array_equal(totals.counts, np.bincount(sweep.labels, minlength=count + 1)[1:])


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.floats(0.05, 3.0), st.floats(0.05, 3.0))
def test_the_density_counts_every_pixel_of_the_window(seed: int, dimensions: int, cover: float, radius: float) -> None:
    points = np.random.default_rng(seed).normal(size=(dimensions, 200))
    axis = seed % dimensions
    points = points[:, np.argsort(points[axis])]
    owner = np.empty(200, np.int64)
    leaders = np.empty((dimensions, 200))
    count = mode_kernels.choose_leaders(points, axis, cover, owner, leaders)
    assert np.linalg.norm(points - leaders[:, owner], axis=0).max() <= cover
    order = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[order], np.arange(count + 1))
    leaders = leaders[:, :count].copy()
    found = np.empty(count, np.int64)
    mode_kernels.density(points[:, order], leaders, axis, first, cover, radius, found)
    expected = (np.linalg.norm(points[:, :, None] - leaders[:, None], axis=0) <= radius).sum(0)
    assert found.tolist() == expected.tolist()


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 60), st.floats(0.1, 40.0), st.integers(1, 3))
def test_crowding_counts_the_points_within_the_radius(
    seed: int, dimensions: int, enough: int, spread: float, count: int
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(dimensions, 300)) * spread
    points[:, 200:] = points[:, :100] + rng.normal(size=(dimensions, 100)) * 0.2
    points[:, 0] = 1e30
    distance = np.linalg.norm(points[:, :, None] - points[:, None], axis=0)
    with threads(count):
        chosen, found = crowding(points, 1.0, enough, np.inf, map_threads)
    expected = (distance <= 1.0).sum(1)
    clear = (np.abs(distance - 1.0) > 1e-9).all(1)  # at the radius itself rounding decides
    assert chosen.tolist() == list(range(300))
    assert np.array_equal(np.minimum(found, enough)[clear], np.minimum(expected, enough)[clear])


def test_modes_are_means_of_the_pixels_within_the_radius() -> None:
    points = np.random.default_rng(3).uniform(-2, 2, size=(2, 2000)) ** 3  # no tidy balls: climbs take many steps
    modes, explained = margin._modes(points, np.empty((0, 2)), 1.0, 2, 0)
    distance = np.linalg.norm(points[:, :, None] - modes.T[:, None], axis=0)
    means = np.stack([points[:, inside].mean(1) for inside in (distance <= 1.0).T])
    # A climb ends with a step below 1e-4 radii, as `_REST` says, or where no pixel enters or leaves.
    assert np.linalg.norm(means - modes, axis=1).max() <= 1e-4
    assert explained == (distance <= 1.0).any(1).sum()
    apart = np.linalg.norm(modes[:, None] - modes, axis=2) + 9 * np.eye(len(modes))
    assert len(modes) > 5
    assert apart.min() > 1.0


def test_too_many_pairs_are_thinned_out() -> None:
    points = np.zeros((2, 1000))
    chosen, found = crowding(points, 1.0, 10_000, 100.0**2, map_threads)
    assert chosen.tolist() == list(range(5, 1000, 10))
    assert found.tolist() == [100] * 100


@pytest.mark.parametrize("connected", [False, True])
def test_pixels_that_are_not_finite_influence_nothing(connected: bool) -> None:
    embedding, _ = upsampled_scene()
    planar, shape = embedding[0].flatten(1).numpy(), embedding.shape[2:]
    rng = np.random.default_rng(5)
    broken = rng.choice(planar.shape[1], 500, replace=False)
    classes = np.zeros(planar.shape[1], np.int32)
    classes[broken] = -1
    options = {"radius": 1.3, "reach": 2.6, "min_size": 1, "connected": connected, "run": map_threads}
    places = margin._places
    expected = margin.cluster_picture(planar, classes, shape, **options)  # type: ignore[arg-type]
    planar[rng.integers(0, 8, 500), broken] = rng.choice([np.nan, np.inf, -np.inf], 500)
    with patch.object(margin, "_places", lambda _, shape: places(classes, shape)):  # the same lattice
        found = margin.cluster_picture(planar, np.zeros_like(classes), shape, **options)  # type: ignore[arg-type]
    assert found.invalid == 500
    assert expected.invalid == 0
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.centres, expected.centres)


def scattered(seed: int) -> tuple[NDArray[np.float64], Centres]:
    """Return pixels (3, 4000) of two classes and 12 centres among them, with too little room for all."""
    rng = np.random.default_rng(seed)
    nothing = Centres(np.empty((0, 3)), np.empty(0, np.int64), 2, axis=1)
    return rng.normal(size=(3, 4000)), nothing.like(rng.normal(size=(12, 3)), np.arange(12) // 6)[0]


def state_of(pixels: NDArray[np.float64], centres: Centres) -> margin._State:
    classes = np.arange(4000, dtype=np.int32) // 37 % 3 - 1
    state = margin._State(margin_sweep.Sweep(pixels, classes, 2, map_threads), centres, 1.0)
    state.again(1.0)
    return state


def agree(state: margin._State, expected: margin._State, chosen: NDArray[np.intp]) -> None:
    """Check that `state` is `expected`, whose centres are those `chosen` of it."""
    assert np.array_equal(state.sweep.labels, np.append(0, chosen + 1)[expected.sweep.labels])
    assert np.array_equal(state.totals.counts[chosen], expected.totals.counts)
    assert state.totals.counts.sum() == expected.totals.counts.sum()
    unit = 1e-9  # the centres' fixed points may differ: 2^48 units and 4000 pixels here
    assert np.abs(state.totals.means(state.units)[chosen] - expected.totals.means(expected.units)).max() < unit
    variances = state.totals.variances(state.units, state.centres.means)[chosen]
    assert np.abs(variances - expected.totals.variances(expected.units, expected.centres.means)).max() < unit


@pytest.mark.parametrize("seed", range(5))
def test_dropping_centres_is_as_if_they_had_never_been(seed: int) -> None:
    pixels, centres = scattered(seed)
    state = state_of(pixels, centres)
    dropped = np.zeros(12, np.bool_)
    dropped[np.argsort(state.totals.counts)[:2]] = True
    assert state.drop(dropped, 1.0)
    agree(state, state_of(pixels, centres.select(~dropped)), np.flatnonzero(~dropped))
    assert not state.drop(~dropped, 1.0)  # so many pixels take a sweep


@pytest.mark.parametrize("seed", range(5))
def test_joining_centres_is_as_if_they_had_always_been(seed: int) -> None:
    pixels, centres = scattered(seed)
    later = np.arange(12) % 3 == 1
    state = state_of(pixels, centres.select(~later))
    before = state.sweep.labels.copy()
    open_pixels = state.sweep.unlabelled()
    state.units.scale[:] /= 2  # whatever the units of what was added up before
    state.totals.sums //= 2
    found, stolen = state.join(centres.select(later), state.sweep.part(open_pixels), open_pixels, 1.0)
    assert np.array_equal(found, later)
    taken = state.sweep.labels[before > 0]
    assert np.array_equal(stolen[later], np.bincount(taken, minlength=13)[1:][later])
    assert not stolen[~later].any()
    agree(state, state_of(pixels, centres), np.arange(12))
    assert ((before > 0) & (state.sweep.labels != before)).any()


@pytest.mark.parametrize("seed", range(5))
def test_moved_centres_hold_the_same_pixels_around_another_point(seed: int) -> None:
    pixels, centres = scattered(seed)
    state = state_of(pixels, centres)
    means = state.totals.means(state.units)
    variances = state.totals.variances(state.units, centres.means)
    state.totals.shift(state.units, centres.means, means)
    held = state.totals.counts > 0
    # Around the mean, the sum of squares alone is the variance.
    alone = state.totals.squares[held] / state.units.fine / state.totals.counts[held]
    assert np.abs(alone - variances[held]).max() < 1e-9


# Determinism


def test_threads_and_repetition_change_no_bit() -> None:
    scene, _ = upsampled_scene()
    batch = torch.cat([scene, scene.flip(-1), scene[:, :, :, torch.randperm(scene.shape[-1])]])
    results = []
    for count in (1, 2, 5):
        with threads(count), patch.object(margin_sweep, "CHUNK", 1000):
            together = cluster_embeddings(batch, everywhere(batch), radius=1.3)
            alone = [cluster_embeddings(batch[b : b + 1], everywhere(batch[b : b + 1]), radius=1.3) for b in range(3)]
        results.append(together)
        assert all(torch.equal(together.labels[b], alone[b].labels[0]) for b in range(3))
        assert all(torch.equal(together.centres[b], alone[b].centres[0]) for b in range(3))
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


def test_many_threads_may_cluster_at_once() -> None:
    batch = torch.randn(8, 4, 30, 30, generator=torch.Generator().manual_seed(3)).cumsum(-1)
    pictures = [batch[b : b + 1] for b in range(8)]
    expected = [cluster_embeddings(picture, everywhere(picture), radius=2.0) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda p: cluster_embeddings(p, everywhere(p), radius=2.0), pictures))
    assert all(equal(one, other) for one, other in zip(found, expected, strict=True))


def _cluster_in_child(embedding: Tensor, expected: Tensor) -> None:
    with threads(2):
        clusters = cluster_embeddings(embedding, everywhere(embedding), radius=2.0)
    sys.exit(0 if torch.equal(clusters.labels, expected) else 3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_clusters_after_its_parent_did() -> None:
    embedding = torch.randn(2, 4, 30, 30, generator=torch.Generator().manual_seed(4)).cumsum(-1)
    with threads(2):
        expected = cluster_embeddings(embedding, everywhere(embedding), radius=2.0).labels
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_cluster_in_child, args=(embedding, expected)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=60)
    assert [child.exitcode for child in children] == [0, 0]


def test_it_works_without_compilation() -> None:
    program = (
        "import torch; from lovasz_embed.clustering import cluster_embeddings\n"
        "embedding = torch.tensor([[[[0.0, 0.1], [5.0, 0.0]], [[0.0, 0.0], [5.0, 0.2]]]])\n"
        "mask = torch.ones(1, 2, 2, dtype=torch.bool)\n"
        "print(cluster_embeddings(embedding, mask, radius=1.0, connected=True).labels.tolist())\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[[[1, 1], [2, 1]]]"


# Options


def test_min_size_turns_small_clusters_into_noise_beyond_reach_and_into_neighbours_within() -> None:
    embedding = line(0, 0, 0, 1.5, 9)
    everything = everywhere(embedding)
    assert cluster_embeddings(embedding, everything, radius=1.0).labels.tolist() == [[1, 1, 1, 2, 3]]
    assert cluster_embeddings(embedding, everything, radius=1.0, min_size=2).labels.tolist() == [[1, 1, 1, 0, 0]]
    wide = cluster_embeddings(embedding, everything, radius=1.0, min_size=2, reach=2.0)
    assert wide.labels.tolist() == [[1, 1, 1, 1, 0]]


def test_reach_below_the_radius_leaves_the_rim_as_noise() -> None:
    embedding = line(0, 0, 0, 0, 0, 0, 0, 0, 0, 0.9)
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0, reach=0.5)
    assert clusters.labels.tolist() == [[1] * 9 + [0]]


def test_connected_splits_what_the_embedding_cannot() -> None:
    embedding = torch.zeros(1, 2, 3, 7)
    mask = torch.tensor([[[1, 1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 1]]]).bool()
    together = cluster_embeddings(embedding, mask, radius=1.0)
    assert torch.equal(together.labels, mask.int())
    parts = cluster_embeddings(embedding, mask, radius=1.0, connected=True)
    assert parts.labels.tolist() == [[[1, 1, 0, 2, 2, 0, 3], [1, 1, 0, 2, 0, 0, 0], [0, 0, 4, 0, 0, 0, 5]]]
    assert parts.sizes[0].tolist() == [4, 3, 1, 1, 1]
    assert parts.margin_ok == (True,)
    large = cluster_embeddings(embedding, mask, radius=1.0, connected=True, min_size=3)
    assert large.labels.tolist() == [[[1, 1, 0, 2, 2, 0, 0], [1, 1, 0, 2, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]]]


def test_parts_have_centres_and_scores_of_their_own() -> None:
    embedding = line(0, 0, 5, 0.4, 0.8)
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0, connected=True)
    assert clusters.labels.tolist() == [[1, 1, 2, 3, 3]]
    assert torch.allclose(clusters.centres[0][:, 0], torch.tensor([0.0, 5.0, 0.6]))
    # Mean squared distances 0, 0 and 0.04 in squared radii.
    assert torch.allclose(clusters.scores[0], torch.tensor([1.0, 1.0, 0.96]))


def test_clusters_never_cross_classes() -> None:
    embedding = line(0, 0, 0, 0, 7, 7)
    labels = torch.tensor([[4, 2, 4, -1, 2, 2]])
    clusters = cluster_embeddings(embedding, labels, radius=1.0)
    assert clusters.labels.tolist() == [[1, 2, 1, 0, 3, 3]]
    assert clusters.classes[0].tolist() == [4, 2, 2]


@pytest.mark.parametrize("far", [5, 255, 65_535, 65_536, 10**12])
def test_class_labels_may_be_any_integers(far: int) -> None:
    labels = torch.tensor([[far, 0, far, -3, -(10**12)]])
    clusters = cluster_embeddings(line(0, 0, 0, 0, 0), labels, radius=1.0)
    assert clusters.labels.tolist() == [[1, 2, 1, 0, 0]]
    assert clusters.classes[0].tolist() == [far, 0]


def test_the_score_is_one_minus_the_mean_squared_distance_in_squared_radii() -> None:
    clusters = cluster_embeddings(line(-0.5, 0.5, 9, 9), everywhere(line(0, 0, 0, 0)), radius=1.0)
    assert clusters.scores[0].tolist() == [0.75, 1.0]
    assert clusters.centres[0].tolist() == [[0.0], [9.0]]


@pytest.mark.parametrize(("gap", "ok"), [(1.9, False), (2.1, True)])
def test_margin_ok_says_whether_centres_are_two_radii_apart(gap: float, ok: bool) -> None:
    embedding = line(0, gap, 50)
    assert cluster_embeddings(embedding, everywhere(embedding), radius=1.0).margin_ok == (ok,)
    classes = torch.tensor([[0, 1, 1]])  # centres of different classes may be as close as they like
    assert cluster_embeddings(embedding, classes, radius=1.0).margin_ok == (True,)


# Inputs of every kind


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_works(dtype: torch.dtype) -> None:
    embedding = torch.tensor([[[0.0, 0.25, 4.0, 0.0, 4.25]]], dtype=dtype)
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0)
    assert clusters.labels.tolist() == [[1, 1, 2, 1, 2]]
    assert clusters.labels.dtype == torch.int32
    assert clusters.centres[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert clusters.sizes[0].dtype == clusters.classes[0].dtype == torch.int64
    assert clusters.scores[0].dtype == torch.float32


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]
)
def test_every_label_dtype_works(dtype: torch.dtype) -> None:
    labels = torch.tensor([[1, 1, 1]]).to(dtype)
    clusters = cluster_embeddings(line(0, 5, 0), labels, radius=1.0)
    assert clusters.labels.tolist() == [[1, 2, 1]]
    assert clusters.classes[0].tolist() == ([0, 0] if dtype == torch.bool else [1, 1])


@pytest.mark.parametrize("spatial", [(240,), (12, 20), (6, 4, 10), (2, 3, 4, 10)])
def test_any_number_of_spatial_dimensions_works(spatial: tuple[int, ...]) -> None:
    embedding = torch.zeros(1, 3, 240)
    embedding[:, :, 100:170] = 4.0
    clusters = cluster_embeddings(
        embedding.reshape(1, 3, *spatial), torch.ones(1, *spatial, dtype=torch.bool), radius=1.0
    )
    assert clusters.labels.shape == (1, *spatial)
    assert clusters.sizes[0].tolist() == [170, 70]


def test_memory_layout_does_not_matter() -> None:
    scene, _ = upsampled_scene()
    expected = cluster_embeddings(scene, everywhere(scene), radius=1.3)
    channels_last = scene.to(memory_format=torch.channels_last)
    assert equal(cluster_embeddings(channels_last, everywhere(scene), radius=1.3), expected)
    every_other = torch.stack([scene, scene + 1], -1).flatten(-2)[..., ::2]
    assert equal(cluster_embeddings(every_other, everywhere(scene), radius=1.3), expected)


def test_gradients_are_left_out() -> None:
    embedding = line(0, 5).requires_grad_()
    assert not cluster_embeddings(embedding, everywhere(embedding), radius=1.0).centres[0].requires_grad


def test_an_empty_mask_has_no_clusters() -> None:
    clusters = cluster_embeddings(torch.randn(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.bool), radius=1.0)
    assert torch.equal(clusters.labels, torch.zeros(2, 4, 5, dtype=torch.int32))
    assert [centres.shape for centres in clusters.centres] == [(0, 3), (0, 3)]
    assert clusters.margin_ok == (True, True)


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0), (1, 3, 0, 5)])
def test_no_pixels_give_no_clusters(shape: tuple[int, ...], connected: bool) -> None:
    embedding = torch.zeros(shape)
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1.0, connected=connected)
    assert clusters.labels.shape == (shape[0], *shape[2:])
    assert len(clusters.centres) == len(clusters.margin_ok) == shape[0]


def test_one_pixel_is_one_cluster() -> None:
    clusters = cluster_embeddings(line(3), everywhere(line(3)), radius=1.0)
    assert clusters.labels.tolist() == [[1]]
    assert clusters.scores[0].tolist() == [1.0]


def test_equal_pixels_are_one_cluster() -> None:
    embedding = torch.full((1, 5, 40, 50), 0.1)
    clusters = cluster_embeddings(embedding, everywhere(embedding), radius=1e-3)
    assert clusters.sizes[0].tolist() == [2000]


# Errors


def test_a_wrong_embedding_fails_clearly() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"embedding must be a floating point tensor, got torch\.int64"):
        cluster_embeddings(torch.zeros(1, 2, 3, dtype=torch.long), mask, radius=1.0)
    with pytest.raises(TypeError, match=r"embedding must be a torch\.Tensor, got list"):
        cluster_embeddings([[[0.0] * 3] * 2], mask, radius=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"embedding must have shape \(B, D, \*spatial\) with D >= 1, got \(2, 3\)"):
        cluster_embeddings(torch.zeros(2, 3), mask, radius=1.0)


def test_wrong_labels_fail_clearly() -> None:
    embedding = torch.zeros(1, 2, 3)
    with pytest.raises(TypeError, match=r"mask_or_labels must hold integer or boolean labels, got torch\.float32"):
        cluster_embeddings(embedding, torch.ones(1, 3), radius=1.0)
    with pytest.raises(ValueError, match=r"mask_or_labels must have shape \(1, 3\) to match embedding"):
        cluster_embeddings(embedding, torch.ones(1, 4, dtype=torch.bool), radius=1.0)
    with pytest.raises(ValueError, match="mask_or_labels must be on the device of embedding"):
        cluster_embeddings(embedding, torch.ones(1, 3, dtype=torch.bool, device="meta"), radius=1.0)


@pytest.mark.parametrize("name", ["radius", "reach"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_that_is_not_above_zero_fails_clearly(name: str, value: float) -> None:
    embedding = torch.zeros(1, 2, 3)
    options = {"radius": 1.0, name: value}
    with pytest.raises(ValueError, match=f"{name} must be a finite number above 0, got {value}"):
        cluster_embeddings(embedding, everywhere(embedding), **options)  # type: ignore[arg-type]


def test_wrong_options_fail_clearly() -> None:
    embedding = torch.zeros(1, 2, 3)
    mask = everywhere(embedding)
    with pytest.raises(ValueError, match=r"method must be one of 'margin', .*got 'kmeans'"):
        cluster_embeddings(embedding, mask, radius=1.0, method="kmeans")
    with pytest.raises(ValueError, match="min_size must be at least 1 pixel, got 0"):
        cluster_embeddings(embedding, mask, radius=1.0, min_size=0)
    with pytest.raises(TypeError, match="min_size must be an int, in pixels, got float"):
        cluster_embeddings(embedding, mask, radius=1.0, min_size=2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="connected must be True or False, got 'yes'"):
        cluster_embeddings(embedding, mask, radius=1.0, connected="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="radius must be a number, got str"):
        cluster_embeddings(embedding, mask, radius="1")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_pixel_that_is_not_finite_is_noise_and_counted_if_it_is_to_be_clustered(
    value: float, dtype: torch.dtype
) -> None:
    embedding = torch.zeros(2, 3, 4, dtype=dtype)
    embedding[1, 2, 3] = value
    mask = everywhere(embedding)
    with pytest.warns(RuntimeWarning, match="1 pixels to be clustered, in 1 of 2 pictures, hold NaN or Inf"):
        clusters = cluster_embeddings(embedding, mask, radius=1.0)
    assert clusters.labels.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert clusters.invalid == (0, 1)
    mask[1, 3] = False
    assert cluster_embeddings(embedding, mask, radius=1.0).invalid == (0, 0)


# Connected components


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_components_are_those_of_scipy(shape: list[int], values: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, values + 1, shape, dtype=np.int32)
    separate = np.zeros(shape, np.int64)
    for value in range(1, values + 1):
        parts, _ = ndimage.label(labels == value)
        separate[parts > 0] = parts[parts > 0] + (separate.max() + 1)
    expected = np.zeros(shape, np.int64)
    expected[labels > 0] = by_first_pixel(separate[labels > 0])
    found = connected_components(labels)
    assert found.dtype == np.int32
    assert np.array_equal(found, expected)


def test_a_long_winding_part_is_one() -> None:
    spiral = np.zeros((101, 101), np.int32)
    spiral[::2] = 1
    spiral[1::4, -1] = 1
    spiral[3::4, 0] = 1
    assert connected_components(spiral).max() == 1
