"""Density clustering: its tree is that of the definition, nothing small is missed, noise is no cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from lovasz_embed._ops import density, density_kernels, density_tree, density_tree_kernels
from lovasz_embed._ops.density_passes import Found, Picture
from lovasz_embed._ops.density_tree import select_clusters
from lovasz_embed.clustering import Clusters, cluster_embeddings, estimate_radius

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SEEDS = st.integers(0, 2**32 - 1)


def serial(function: Callable[[int], Any], items: range) -> list[Any]:
    return [function(item) for item in items]


def everywhere(embedding: Tensor) -> Tensor:
    return torch.ones(embedding.shape[0], *embedding.shape[2:], dtype=torch.bool)


def by_density(embedding: Tensor, mask: Tensor | None = None, **options: Any) -> Clusters:
    return cluster_embeddings(embedding, everywhere(embedding) if mask is None else mask, method="density", **options)


def by_first_pixel(instance: NDArray[np.integer]) -> Ints:
    """Number the values of `instance` 1, 2, ... by their first pixel."""
    _, first, inverse = np.unique(instance, return_index=True, return_inverse=True)
    return (np.argsort(np.argsort(first)) + 1)[inverse.reshape(instance.shape)]


def ball(rng: np.random.Generator, size: int, dimensions: int) -> Floats:
    """Return points (size, D) drawn evenly from the unit ball."""
    points = rng.normal(size=(size, dimensions))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points * rng.uniform(size=(size, 1)) ** (1 / dimensions)


def apart(rng: np.random.Generator, count: int, dimensions: int, gap: float) -> Floats:
    """Return means (count, D), the smallest distance between two of which is `gap`."""
    means = rng.normal(size=(count, dimensions))
    if count == 1:
        return means
    distance = cdist(means, means)
    while distance[~np.eye(count, dtype=bool)].min() < 0.2:  # no two much closer than all others
        means = rng.normal(size=(count, dimensions)) * count
        distance = cdist(means, means)
    return means * gap / distance[~np.eye(count, dtype=bool)].min()


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# The tree is that of the definition


def reachability(points: Floats, neighbours: int) -> Floats:
    """Return the matrix of squared mutual reachability distances, with zeros on its diagonal."""
    square = cdist(points, points, "sqeuclidean")
    core = np.sort(square, axis=1)[:, neighbours]
    square = np.maximum(square, np.maximum(core[:, None], core[None]))
    np.fill_diagonal(square, 0)
    return square


@given(SEEDS, st.integers(6, 60), st.integers(1, 9))
def test_the_spanning_tree_is_minimal(seed: int, n: int, dimensions: int) -> None:
    points = np.random.default_rng(seed).normal(size=(n, dimensions))
    columns = np.ascontiguousarray(points.T)
    nearest = np.empty((n, 5))
    density_tree_kernels.nearest_distances(columns, 0, n // 2, nearest)
    density_tree_kernels.nearest_distances(columns, n // 2, n, nearest)
    np.testing.assert_allclose(nearest, np.sort(cdist(points, points, "sqeuclidean"), axis=1)[:, 1:6], rtol=1e-9)
    source, target, weight = np.empty(n - 1, np.int64), np.empty(n - 1, np.int64), np.empty(n - 1)
    density_tree_kernels.spanning_tree(columns, np.ascontiguousarray(nearest[:, 4]), source, target, weight)
    matrix = reachability(points, 5)
    # Two ways to add up at most nine squares agree to 1e-14 or so.
    np.testing.assert_allclose(weight, matrix[source, target], rtol=1e-9)
    np.testing.assert_allclose(weight.sum(), minimum_spanning_tree(matrix).sum(), rtol=1e-9)


@given(SEEDS, st.integers(6, 60), st.integers(1, 4), st.integers(1, 4))
def test_points_below_a_merge_are_a_connected_part_at_its_height(
    seed: int, n: int, dimensions: int, lumps: int
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, dimensions)) + 5 * rng.integers(0, lumps, (n, 1))
    matrix = reachability(points, 5)
    tree = minimum_spanning_tree(matrix).tocoo()
    source, target = tree.row.astype(np.int64), tree.col.astype(np.int64)
    order = np.argsort(tree.data, kind="stable")
    children, sizes = np.empty((n - 1, 2), np.int64), np.empty(2 * n - 1, np.int64)
    density_tree_kernels.merge(source, target, order, children, sizes)
    below = [{i} for i in range(n)]
    for r, (one, other) in enumerate(children):
        assert not below[one] & below[other]
        below.append(below[one] | below[other])
        assert sizes[n + r] == len(below[-1])
        if r == n - 2 or tree.data[order[r + 1]] > tree.data[order[r]]:  # of merges at one height, the last
            part = connected_components(matrix <= tree.data[order[r]])[1]
            assert below[-1] == set(np.flatnonzero(part == part[source[order[r]]]))
    assert below[-1] == set(range(n))


def branches(children: Ints, height: Floats, least: int) -> dict[frozenset[int], float]:
    """Return the points and the excess of mass of every branch of a tree of merges, straight from its definition."""
    n = len(children) + 1
    found: dict[frozenset[int], float] = {}

    def points(node: int) -> frozenset[int]:
        return frozenset([node]) if node < n else points(children[node - n, 0]) | points(children[node - n, 1])

    def walk(node: int, birth: float) -> None:
        """Follow the branch that begins with `node`."""
        mine, excess = points(node), 0.0
        while True:
            parts = [int(part) for part in children[node - n]]
            large = [part for part in parts if len(points(part)) >= least]
            leaving = points(node) if len(large) != 1 else points(node) - points(large[0])
            excess += len(leaving) * (birth - height[node - n])
            if len(large) != 1:
                found[mine] = excess
                for part in large:
                    walk(part, height[node - n])
                return
            [node] = large

    walk(2 * n - 2, height[-1])
    return found


@given(SEEDS, st.integers(6, 80), st.integers(2, 6), st.integers(1, 4))
def test_branches_and_their_excess_are_those_of_the_definition(seed: int, n: int, dimensions: int, lumps: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, dimensions)) + 5 * rng.integers(0, lumps, (n, 1))
    seen: dict[frozenset[int], float] = {}
    expected: dict[frozenset[int], float] = {}
    condense = density_tree_kernels.condense

    def spy(
        children: Ints,
        height: Floats,
        sizes: Ints,
        least: int,
        above: Ints,
        birth: Floats,
        excess: Floats,
        member: Ints,
    ) -> int:
        count = condense(children, height, sizes, least, above, birth, excess, member)
        inside: list[set[int]] = [set() for _ in range(count)]
        for point, branch in enumerate(member):
            while branch >= 0:
                inside[branch].add(point)
                branch = above[branch]
        seen.update((frozenset(mine), float(value)) for mine, value in zip(inside, excess, strict=False))
        expected.update(branches(children, height, least))
        return count

    with patch.object(density_tree_kernels, "condense", spy):
        select_clusters(points, serial)
    assert seen == pytest.approx(expected, rel=1e-9, abs=1e-9)  # the same sums in another order


def choose(
    above: list[int], excess: list[float], mass: list[int], needed: float, wide: tuple[int, ...] = ()
) -> list[int]:
    flags = np.zeros(len(above), np.bool_)
    flags[list(wide)] = True
    return density_tree._choose(np.array(above), np.array(excess), np.array(mass), needed, flags).tolist()


def test_a_branch_is_one_cluster_or_its_parts_whichever_has_more_excess() -> None:
    assert choose([-1, 0, 0], [30.0, 10.0, 10.0], [20, 10, 10], 0.5) == [0, 0, 0]
    assert choose([-1, 0, 0], [15.0, 10.0, 10.0], [20, 10, 10], 0.5) == [-1, 1, 2]
    assert choose([-1, 0, 0, 1, 1], [0.0, 9.0, 10.0, 5.0, 5.0], [20, 10, 10, 5, 5], 0.5) == [-1, -1, 2, 3, 4]


def test_a_division_of_which_one_side_does_not_stand_out_is_none() -> None:
    # The right part has 0.3 a point: both belong to their branch, whose excess grows by theirs.
    assert choose([-1, 0, 0], [0.0, 10.0, 3.0], [20, 10, 10], 0.5) == [0, 0, 0]
    # Inside branch 1 nothing stands out; as one it does, beside branch 2.
    assert choose([-1, 0, 0, 1, 1], [0.0, 6.0, 10.0, 2.0, 2.0], [20, 10, 10, 5, 5], 0.5) == [-1, 1, 2, 1, 1]


def test_a_weak_clump_beside_clusters_is_noise() -> None:
    above, excess, mass = [-1, 0, 0, 1, 1], [0.0, 0.0, 1.0, 10.0, 10.0], [30, 20, 10, 10, 10]
    assert choose(above, excess, mass, 0.5) == [-1, -1, -1, 3, 4]


def test_a_branch_that_is_too_wide_gives_way_to_its_parts() -> None:
    assert choose([-1, 0, 0], [30.0, 10.0, 10.0], [20, 10, 10], 0.5, wide=(0,)) == [-1, 1, 2]
    assert choose([-1], [30.0], [20], 0.5, wide=(0,)) == [0]  # it does not divide


@pytest.mark.parametrize("dimensions", [2, 3, 8, 32])
@pytest.mark.parametrize("kind", ["ball", "gauss"])
def test_one_cloud_is_one_cluster(dimensions: int, kind: str) -> None:
    for seed, n in enumerate([5, 8, 16, 40, 100, 300, 600] * 3):
        rng = np.random.default_rng(seed)
        points = ball(rng, n, dimensions) if kind == "ball" else rng.normal(size=(n, dimensions))
        assert not select_clusters(points, serial).any()


def test_points_on_one_spot_do_not_outweigh_their_cluster() -> None:
    rng = np.random.default_rng(0)
    one, other = ball(rng, 200, 4), ball(rng, 200, 4) + 6
    one[:20] = one[0]
    labels = select_clusters(np.concatenate([one, other]), serial)
    assert labels.tolist() == [0] * 200 + [1] * 200


def test_clusters_that_are_not_round_get_several_centres() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi, (2, 500))
    one = np.stack([np.cos(angle[0]), np.sin(angle[0])], 1)
    other = np.stack([1 - np.cos(angle[1]), 0.5 - np.sin(angle[1])], 1)
    points = np.concatenate([one, other]) + rng.normal(scale=0.03, size=(1000, 2))
    labels = np.repeat([0, 1], 500)
    means, clusters = density_tree.prototypes(points, labels)
    assert len(means) > 2
    owner = density_tree.nearest_means(points, means)
    assert (clusters[owner] == labels).mean() > 0.95  # one mean each: 0.88
    assert len(density_tree.prototypes(points + np.c_[labels * 9, labels], labels)[0]) == 2  # far apart one is enough


# Passes over the picture


@given(SEEDS, st.integers(1, 9), st.integers(1, 50), st.sampled_from([np.float32, np.float64]), st.integers(1, 70))
def test_every_pixel_gets_its_nearest_centre_within_that_ones_extent(
    seed: int, dimensions: int, count: int, dtype: type[np.floating], width: int
) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.integers(-1, 3, 700).astype(np.int32)
    classes.sort()
    owners = np.sort(rng.integers(0, 3, count))
    means = rng.normal(size=(count, dimensions)) * rng.choice([0.3, 3.0])
    base = means[rng.integers(0, count, 700 // width + 1).repeat(width)[:700]]  # runs of pixels alike
    pixels = (base + 0.3 * rng.normal(size=(700, dimensions))).astype(dtype)
    extents = rng.uniform(0.1, 2.0, count)
    picture = Picture(np.ascontiguousarray(pixels.T), classes, 3, serial)
    before = rng.integers(0, 2, 700).astype(np.int32)
    picture.labels[:] = before
    found = Found(means, extents, np.arange(count), owners, np.zeros(count, np.bool_))
    with patch("lovasz_embed._ops.density_passes._NEIGHBOURS", 4):  # lists that are too short, too
        totals = picture.assign(found)
    distance = cdist(pixels.astype(np.float64), means)
    far = 1e6  # a centre of another class
    distance[classes[:, None] != owners] = far
    nearest, least = distance.argmin(1), distance.min(1)
    expected = np.where(least <= extents[nearest], nearest + 1, 0)
    # Where two distances, or one and the limit, agree to rounding either answer is right.
    second = np.partition(np.c_[distance, np.full(700, 2 * far)], 1, axis=1)[:, 1]
    clear = ((second - least > 1e-5) | (least == far)) & (np.abs(least - extents[nearest]) > 1e-5)
    assert np.array_equal(picture.labels[clear], expected[clear])
    assert np.array_equal(totals.counts, np.bincount(picture.labels, minlength=count + 1)[1:])
    fresh = np.bincount(picture.labels[before == 0], minlength=count + 1)[1:]
    assert np.array_equal(totals.fresh, fresh)
    for k in range(count):
        offset = pixels[picture.labels == k + 1].astype(np.float64) - means[k]
        np.testing.assert_allclose(totals.sums[k], offset.sum(0), atol=1e-9)  # float64 sums of some hundred numbers
        np.testing.assert_allclose(totals.squares[k], (offset**2).sum(), atol=1e-9)


@given(SEEDS, st.integers(1, 300), st.integers(0, 40))
def test_a_sample_takes_one_pixel_from_every_run(seed: int, pixels: int, quota: int) -> None:
    labels = np.random.default_rng(seed).integers(-1, 4, pixels).astype(np.int32)
    counts = np.bincount(labels + 1, minlength=5)[1:].astype(np.int64)
    picture = Picture(np.zeros((1, pixels), np.float32), labels, 4, serial)
    for k, taken in enumerate(picture.sample(labels, 0, counts, np.full(4, quota))):
        own = np.flatnonzero(labels == k)
        quota_k = min(quota, len(own))
        step = -(-len(own) // max(quota_k, 1))
        places = np.searchsorted(own, taken)
        assert np.array_equal(own[places], taken)
        assert np.array_equal(places // max(step, 1), np.arange(len(taken)))
        assert (quota_k > 0) * (len(own) // max(step, 1)) <= len(taken) <= quota_k


@pytest.mark.parametrize("width", [512, 1024, 2048])
def test_a_sample_does_not_walk_along_the_columns(width: int) -> None:
    labels = np.zeros(width * width, np.int32)
    picture = Picture(np.zeros((1, len(labels)), np.float32), labels, 1, serial)
    [taken] = picture.sample(labels, 0, np.array([len(labels)]), np.array([4096]))
    columns = np.bincount(taken % width // (width // 64), minlength=64)  # in stripes: 64 picks each, if evenly spread
    assert columns.min() > 24  # an even draw stays above this in all but one stripe of 10^8


def test_mixed_pixels_lie_between_two_clusters_in_the_picture_and_in_the_embedding() -> None:
    labels = np.array([[1, 1, 0, 2, 2, 2, 0, 1], [1, 1, 0, 2, 2, 0, 0, 0]], np.int32)
    planar = np.zeros((2, 2, 8), np.float32)
    planar[0] = [[0, 0, 2, 4, 4, 4, 2, 0], [0, 0, 2, 4, 4, 4, 4, 4]]
    planar[1, 1, 2] = 2.0  # between the clusters in the picture, but off the line between their means
    rest = np.flatnonzero(labels == 0)
    mixed = np.empty(len(rest), np.bool_)
    means = np.array([[0.0, 0.0], [4.0, 0.0]])
    shape = np.array(labels.shape)
    density_kernels.mark_mixed(
        planar.reshape(2, -1), labels.reshape(-1), shape, rest, means, np.array([1.0, 1.0]), mixed
    )
    assert dict(zip(rest.tolist(), mixed.tolist(), strict=True)) == {
        2: True, 6: True, 10: False, 13: False, 14: False, 15: False,
    }  # fmt: skip


# End to end


@st.composite
def separated(draw: st.DrawFn, gaps: tuple[float, float] = (6.0, 6.0), least: int = 1) -> tuple[Tensor, Ints]:
    """Return (1, D, P) instances of 20 to 400 pixels that fill balls of radius δ, means at least that many δ apart."""
    rng = np.random.default_rng(draw(SEEDS))
    dimensions = draw(st.integers(2, 12))
    sizes = draw(st.lists(st.integers(20, 400), min_size=least, max_size=9))
    means = apart(rng, len(sizes), dimensions, draw(st.floats(*gaps)))
    points = np.concatenate([ball(rng, size, dimensions) + mean for size, mean in zip(sizes, means, strict=True)])
    order = rng.permutation(len(points))
    scale = 10.0 ** draw(st.integers(-6, 6))
    instance = np.repeat(np.arange(len(sizes)), sizes)
    return torch.from_numpy((points[order] * scale).T.astype(np.float32))[None], instance[order]


@given(separated(), st.integers(1, 3))
def test_balls_well_apart_are_recovered_exactly(problem: tuple[Tensor, Ints], count: int) -> None:
    embedding, instance = problem
    with threads(count):
        clusters = by_density(embedding, reach=1e9)
    assert np.array_equal(clusters.labels[0].numpy(), by_first_pixel(instance))
    assert clusters.margin_ok == (True,)


def blurred(
    seed: int, count: int, dimensions: int, shape: tuple[int, int], gap: float = 3.0
) -> tuple[Tensor, NDArray[np.int64]]:
    """Return cells filled with balls of radius 1, one column of mixed pixels along their borders, and stray pixels."""
    rng = np.random.default_rng(seed)
    places = rng.uniform((0, 0), shape, (count, 2))
    rows, columns = np.indices(shape)
    instance = ((rows[..., None] - places[:, 0]) ** 2 + (columns[..., None] - places[:, 1]) ** 2).argmin(-1)
    means = apart(rng, count, dimensions, gap)
    pixels = ball(rng, instance.size, dimensions).reshape(*shape, dimensions) + means[instance]
    share = rng.uniform(size=shape)[..., None]
    border = np.zeros(shape, bool)
    border[:, 1:] = instance[:, 1:] != instance[:, :-1]
    pixels = np.where(border[..., None], share * pixels + (1 - share) * np.roll(pixels, 1, 1), pixels)
    stray = rng.uniform(size=shape) < 0.003
    pixels[stray] = rng.uniform(means.min() - 2, means.max() + 2, (int(stray.sum()), dimensions))
    return torch.from_numpy(np.moveaxis(pixels, -1, 0)[None].astype(np.float32)), instance


@pytest.mark.parametrize(("count", "dimensions"), [(1, 2), (1, 8), (2, 8), (12, 2), (40, 8), (40, 3), (8, 32)])
def test_borders_tails_and_stray_pixels_are_no_clusters(count: int, dimensions: int) -> None:
    embedding, instance = blurred(0, count, dimensions, (200, 300))
    clusters = by_density(embedding, min_size=20)
    assert len(clusters.sizes[0]) == count
    labels = clusters.labels[0].numpy()
    clustered = labels > 0
    assert clustered.mean() > 0.95
    # A mixed pixel may go to either side, or to a third cluster: two in a hundred pixels are mixed.
    assert count == 1 or adjusted_rand_score(instance[clustered], labels[clustered]) > 0.97


@pytest.mark.parametrize("dimensions", [1, 2, 8])
def test_the_tails_of_an_instance_are_no_clusters(dimensions: int) -> None:
    pixels = np.random.default_rng(dimensions).normal(size=(60_000, dimensions))
    pixels[:20_000, 0] += 30
    assert len(by_density(torch.from_numpy(pixels.T[None].copy()), min_size=10).sizes[0]) == 2


def test_mixed_pixels_along_many_borders_are_no_clusters() -> None:
    embedding, _ = blurred(0, 60, 32, (300, 500), gap=2.6)
    assert len(by_density(embedding, min_size=16).sizes[0]) == 60


def test_twenty_pixels_among_two_million_are_found() -> None:
    embedding, _ = blurred(1, 6, 4, (256, 512))
    embedding = embedding.repeat_interleave(4, 2).repeat_interleave(4, 3)  # 1024 x 2048
    embedding += 0.05 * torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
    far = embedding[0].flatten(1).mean(1) + 40.0
    embedding[0, :, 500:504, 900:905] = far[:, None, None] + 0.3 * torch.randn(4, 4, 5)
    clusters = by_density(embedding, min_size=16)
    tiny = clusters.labels[0, 500:504, 900:905]
    assert int(tiny.min()) == int(tiny.max()) > 0
    assert clusters.sizes[0][int(tiny[0, 0]) - 1] == 20


def test_tiny_instances_beside_many_that_the_tree_missed_are_found() -> None:
    """Sixty instances of 500 pixels, too few for the 4,096 core points of a million pixels, and five of twenty."""
    rng = np.random.default_rng(0)
    means = apart(rng, 66, 6, 6.0)
    pixels = np.repeat(means[:1], 2**20, 0) + 0.6 * ball(rng, 2**20, 6)
    order = rng.permutation(2**20)
    for k in range(1, 66):
        begin = 500 * (k - 1) if k <= 60 else 30_000 + 20 * (k - 61)
        size = 500 if k <= 60 else 20
        pixels[order[begin : begin + size]] = means[k] + 0.6 * ball(rng, size, 6)
    clusters = by_density(torch.from_numpy(pixels.T[None].astype(np.float32)), min_size=16)
    assert sorted(clusters.sizes[0].tolist()) == [20] * 5 + [500] * 60 + [2**20 - 30_100]


def test_a_tiny_instance_close_to_others_is_found() -> None:
    """Twenty pixels 2.8 δ from the nearest mean, of the same spread as the large instances."""
    rng = np.random.default_rng(3)
    means = np.array([[0.0, 0, 0], [4, 0, 0], [0, 4, 0]])
    pixels = ball(rng, 40_000, 3).reshape(200, 200, 3) + means[np.arange(200) // 67][:, None]
    pixels[90:94, 100:105] = (ball(rng, 20, 3) + np.array([0, 0, 2.8])).reshape(4, 5, 3)
    clusters = by_density(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert len(clusters.sizes[0]) == 4
    assert clusters.sizes[0].min() == 20


def test_neither_threads_nor_a_repetition_change_a_bit() -> None:
    embedding, instance = blurred(5, 30, 4, (300, 400))
    labels = torch.from_numpy(instance % 2)[None]
    with threads(1):
        expected = by_density(embedding, labels, min_size=9)
    for count in (2, 3, 3):
        with threads(count):
            found = by_density(embedding, labels, min_size=9)
        for name in ("centres", "sizes", "scores", "classes"):
            assert torch.equal(getattr(found, name)[0], getattr(expected, name)[0])
        assert torch.equal(found.labels, expected.labels)
    batch = by_density(torch.cat([embedding, embedding]), torch.cat([labels, labels]), min_size=9)
    assert all(torch.equal(batch.labels[b], expected.labels[0]) for b in range(2))
    assert all(torch.equal(batch.centres[b], expected.centres[0]) for b in range(2))


def test_clusters_never_cross_classes_and_each_class_has_its_own_scale() -> None:
    rng = np.random.default_rng(0)
    pixels = np.concatenate([ball(rng, 300, 3), 0.01 * ball(rng, 300, 3), 0.01 * ball(rng, 300, 3) + 0.06])
    classes = np.repeat([7, 3, 3], 300)
    order = rng.permutation(900)
    clusters = by_density(torch.from_numpy(pixels[order].T[None]), torch.from_numpy(classes[order])[None], reach=9.0)
    assert np.array_equal(clusters.labels[0].numpy(), by_first_pixel(np.repeat([0, 1, 2], 300)[order]))
    assert sorted(clusters.classes[0].tolist()) == [3, 3, 7]


def test_values_that_are_not_finite_are_noise_and_change_nothing_else() -> None:
    embedding, _ = blurred(2, 4, 3, (40, 60))
    mask = everywhere(embedding)
    mask[0, ::7, ::5] = False
    expected = by_density(embedding, mask, min_size=9)
    for value in (float("nan"), float("inf"), -float("inf")):
        embedding[0, 1, ::7, ::5] = value
        with pytest.warns(match="NaN or Inf"):
            found = by_density(embedding, min_size=9)
        assert torch.equal(found.labels, expected.labels)
        assert found.invalid == (int((~mask).sum()),)


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_the_unit_of_the_embedding_does_not_matter(scale: float) -> None:
    embedding, _ = blurred(4, 9, 5, (80, 90))
    assert torch.equal(by_density(embedding * scale).labels, by_density(embedding).labels)


def test_a_radius_limits_how_wide_a_cluster_may_be() -> None:
    """Three groups of three: without a limit the groups stand out, with one their members do."""
    rng = np.random.default_rng(0)
    coarse = np.array([[0.0, 0], [60, 0], [0, 60]])
    fine = np.array([[0.0, 0], [4, 0], [0, 4]])
    instance = rng.integers(0, 9, 4000)
    pixels = coarse[instance // 3] + fine[instance % 3] + ball(rng, 4000, 2)
    embedding = torch.from_numpy(pixels.T[None])
    members = by_density(embedding, radius=1.5)
    assert np.array_equal(members.labels[0].numpy(), by_first_pixel(instance))
    with patch.object(density, "_LOOKS", 0):  # a second look would find the members, too
        groups = by_density(embedding, reach=20.0)
        assert len(groups.sizes[0]) in (3, 9)
        assert len(by_density(embedding, radius=1.5).sizes[0]) == 9


def test_reach_decides_which_pixels_join() -> None:
    rng = np.random.default_rng(0)
    pixels = ball(rng, 500, 2)
    pixels[::100] += 30.0
    embedding = torch.from_numpy(pixels.T[None])
    assert int((by_density(embedding).labels == 0).sum()) == 5 - 5 * (len(by_density(embedding).sizes[0]) - 1)
    assert bool((by_density(embedding, reach=100.0, min_size=6).labels == 1).all())
    assert bool((by_density(embedding, reach=1e-3).labels == 0).any())


def test_connected_parts_and_small_ones() -> None:
    embedding = torch.zeros(1, 2, 20, 20)
    embedding[0, 0] = 9.0
    embedding[0, 0, :8, :8] = 0.0
    embedding[0, 0, 12:15, 12:15] = 0.0
    embedding += 0.1 * torch.rand(embedding.shape, generator=torch.Generator().manual_seed(0))
    assert by_density(embedding).sizes[0].tolist() == [73, 327]
    assert by_density(embedding, connected=True).sizes[0].tolist() == [64, 327, 9]
    assert by_density(embedding, connected=True, min_size=10).sizes[0].tolist() == [64, 327]


def test_fewer_than_five_pixels_are_no_cluster() -> None:
    embedding = torch.zeros(1, 2, 9)
    assert by_density(embedding).sizes[0].tolist() == [9]
    mask = torch.arange(9)[None] < 4
    assert not by_density(embedding, mask).labels.any()


@pytest.mark.parametrize("spatial", [(2400,), (40, 60), (10, 12, 20), (4, 5, 6, 20)])
def test_any_number_of_spatial_dimensions(spatial: tuple[int, ...]) -> None:
    embedding, _ = blurred(2, 4, 3, (40, 60))
    found = by_density(embedding.reshape(1, 3, *spatial), min_size=30)
    assert found.labels.shape == (1, *spatial)
    assert len(found.sizes[0]) == 4


def test_isolated_noise_beside_one_instance_stays_noise() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-50, 50, (10_000, 3))
    pixels[2000:] = ball(rng, 8000, 3)
    clusters = by_density(torch.from_numpy(rng.permutation(pixels).T[None]))
    assert clusters.sizes[0].max() == pytest.approx(8000, abs=10)
    assert len(clusters.sizes[0]) == 1


# A radius from the embedding


@given(separated(gaps=(4.2, 30.0), least=2))
def test_where_margins_hold_the_radius_lies_between_them_and_recovers_the_instances(
    problem: tuple[Tensor, Ints],
) -> None:
    embedding, instance = problem
    estimate = estimate_radius(embedding, everywhere(embedding))
    pixels = embedding[0].T.double().numpy()
    means = np.stack([pixels[instance == k].mean(0) for k in range(instance.max() + 1)])
    delta = np.linalg.norm(pixels - means[instance], axis=1).max()
    gap = (cdist(means, means) + np.diag(np.full(len(means), np.inf))).min()
    assume(gap > 4.001 * delta)  # δ is measured from the mean of the pixels, not from the middle of their ball
    assert 2 * delta < estimate.radius < gap - 2 * delta
    assert estimate.guaranteed
    assert estimate.clusters == len(means)
    # Means are rounded to float32 once, with coordinates of some hundred δ.
    assert (estimate.spread, estimate.separation) == (pytest.approx(delta, rel=1e-4), pytest.approx(gap, rel=1e-4))
    found = cluster_embeddings(embedding, everywhere(embedding), radius=estimate.radius)
    assert np.array_equal(found.labels[0].numpy(), by_first_pixel(instance))


@pytest.mark.parametrize("dimensions", [2, 8])
def test_the_radius_of_a_noisy_embedding_lies_between_spread_and_gap(dimensions: int) -> None:
    embedding, instance = blurred(3, 20, dimensions, (200, 300), gap=2.6)
    estimate = estimate_radius(embedding, everywhere(embedding))
    assert not estimate.guaranteed
    assert 1.0 < estimate.radius < 1.6  # the pixels of an instance fill a ball of radius 1; means are 2.6 apart
    found = cluster_embeddings(embedding, everywhere(embedding), radius=estimate.radius, min_size=50)
    labels = found.labels[0].numpy()
    assert adjusted_rand_score(instance[labels > 0], labels[labels > 0]) > 0.95  # two in a hundred pixels are mixed


def test_one_radius_serves_all_pictures_and_classes() -> None:
    rng = np.random.default_rng(0)
    wide, tight = ball(rng, 300, 3), 0.1 * ball(rng, 300, 3)
    means = np.array([[0.0, 0, 0], [10, 0, 0]])[np.arange(300) % 2]
    embedding = torch.from_numpy(np.stack([(wide + means).T, (tight + 0.7 * means).T]))
    estimate = estimate_radius(embedding, everywhere(embedding))
    assert estimate.clusters == 4
    assert estimate.spread == pytest.approx(1.0, abs=0.1)
    assert estimate.separation == pytest.approx(7.0, abs=0.1)
    assert estimate.radius == estimate.separation / 2
    classes = torch.arange(300).remainder(2).expand(2, 300)  # each instance a class of its own
    assert estimate_radius(embedding, classes).separation == float("inf")


def test_one_instance_alone_gets_a_radius_that_holds_it() -> None:
    embedding = torch.from_numpy(ball(np.random.default_rng(0), 500, 4).T[None])
    estimate = estimate_radius(embedding, everywhere(embedding))
    assert (estimate.clusters, estimate.separation, estimate.guaranteed) == (1, float("inf"), True)
    assert estimate.radius == pytest.approx(3.0, abs=0.2)
    embedding[0, :, 0] = 1e4  # a stray pixel does not stretch it
    estimate = estimate_radius(embedding, everywhere(embedding))
    assert estimate.radius == pytest.approx(3.0, abs=0.3)
    assert not estimate.guaranteed


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30])
def test_pixels_all_alike_get_a_radius_of_one(value: float) -> None:
    embedding = torch.full((1, 3, 40), value)
    estimate = estimate_radius(embedding, everywhere(embedding))
    assert estimate.radius == 1.0
    assert estimate.clusters == 1


def test_without_a_cluster_there_is_no_radius() -> None:
    embedding = torch.zeros(1, 2, 9)
    text = "mask_or_labels must select at least 5 pixels .* that hold no NaN or Inf and lie together, got no cluster"
    with pytest.raises(ValueError, match=text):
        estimate_radius(embedding, torch.zeros(1, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match=text):
        estimate_radius(embedding, torch.arange(9)[None])
    with pytest.raises(ValueError, match=text):
        estimate_radius(torch.zeros(0, 2, 9), torch.zeros(0, 9, dtype=torch.bool))
    with pytest.raises(TypeError, match="embedding must be a floating point tensor"):
        estimate_radius(embedding.long(), torch.ones(1, 9, dtype=torch.bool))
