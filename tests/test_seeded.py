"""Clustering by seeds: pixel for pixel what its rule says, on whatever is drawn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed._ops import seeded, seeded_kernels, seeded_tree_kernels
from lovasz_embed.clustering import Clusters, cluster_embeddings

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


def by_the_rule(
    pixels: Floats, classes: Ints, seeds: Floats, widths: Floats, min_seed: float, min_size: int, min_fresh: float
) -> tuple[Ints, list[int]]:
    """Do what the documentation says, with all pixels for every proposal; return labels and where clusters grew from.

    `pixels` (D, P), `widths` (1, P) or (D, P).
    """
    labels = np.zeros(len(classes), np.int64)
    grown_from: list[int] = []
    retired = np.zeros(len(classes), bool)
    candidates = [p for p in range(len(classes)) if classes[p] >= 0 and seeds[p] >= min_seed]
    for p in sorted(candidates, key=lambda p: (-float(np.float32(seeds[p])), p)):
        if labels[p] or retired[p]:
            continue
        offset = pixels.astype(np.float64) - pixels[:, p : p + 1]
        width = widths[:, p : p + 1].astype(np.float64)
        # With one radius squares are compared, so that whole numbers are exact.
        inside = (offset**2).sum(0) <= width[0] ** 2 if len(width) == 1 else ((offset * (1 / width)) ** 2).sum(0) <= 1
        proposal = inside & (classes == classes[p])
        fresh = proposal & (labels == 0)
        if fresh.sum() >= min_size and fresh.sum() > min_fresh * proposal.sum():
            grown_from.append(p)
            labels[fresh] = len(grown_from)
        else:
            retired[proposal] = True
    return labels, grown_from


def by_first_pixel(labels: Ints) -> tuple[Ints, Ints]:
    """Number the labels above 0 by their first pixel; also return the old label of each new one."""
    old, first = np.unique(labels, return_index=True)
    first, old = first[old > 0], old[old > 0]
    old = old[np.argsort(first)]
    new = np.zeros(labels.max(initial=0) + 1, np.int64)
    new[old] = np.arange(1, len(old) + 1)
    return new[labels], old


def equal(one: Clusters, other: Clusters) -> bool:
    fields = ("centres", "sizes", "scores", "classes")
    pairs = [pair for name in fields for pair in zip(getattr(one, name), getattr(other, name), strict=True)]
    flags = one.margin_ok == other.margin_ok and one.invalid == other.invalid
    return flags and torch.equal(one.labels, other.labels) and all(torch.equal(*pair) for pair in pairs)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def line(*values: float) -> Tensor:
    """One picture with one row of values."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1)


def grow(embedding: Tensor, seeds: Tensor, **options: Any) -> Clusters:
    """Cluster every pixel of embeddings (B, D, *spatial), or (B, P) for one dimension."""
    embedding = embedding.unsqueeze(1) if embedding.ndim == 2 else embedding
    return cluster_embeddings(embedding, torch.ones_like(seeds).bool(), method="seeded", seeds=seeds, **options)


# The rule


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Return an embedding with seeds and bandwidths, of any shape: blobs, noise, grids full of ties, outliers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dimensions = draw(st.integers(1, 8))
    count = draw(st.integers(1, 400))
    kind = draw(st.sampled_from(["blobs", "noise", "grid", "equal", "outliers"]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    centres = rng.normal(size=(draw(st.integers(1, 8)), dimensions)) * draw(st.sampled_from([1.0, 3.0]))
    if kind == "noise":
        pixels = rng.normal(size=(count, dimensions))
    elif kind == "grid":
        pixels = rng.integers(-2, 3, (count, dimensions)).astype(float)
    elif kind == "equal":
        pixels = np.full((count, dimensions), 0.1)
    else:
        pixels = centres[rng.integers(0, len(centres), count)] + 0.4 * rng.normal(size=(count, dimensions))
    if kind == "outliers":
        pixels[rng.uniform(size=count) < 0.1] *= 1e6
    seeds = rng.uniform(size=count)
    if draw(st.booleans()):
        seeds = np.round(seeds * 4) / 4  # ties
    shape = {"none": 0, "one": 1, "each": dimensions}[draw(st.sampled_from(["none", "one", "each"]))]
    scale = 10.0 ** draw(st.sampled_from([-15, 0, 0, 0, 15]))
    widths = np.exp(rng.normal(size=(shape, count)) * draw(st.sampled_from([0.1, 1.0])))
    radius = draw(st.sampled_from([0.5, 1.0, 2.0])) * np.sqrt(dimensions) * scale
    return {
        "pixels": (pixels * scale).T.astype(dtype).copy(),
        "classes": rng.integers(-1, draw(st.integers(1, 4)), count).astype(np.int64),
        "seeds": seeds.astype(np.float32),
        "widths": (widths * radius).astype(dtype) if shape else None,
        "radius": radius,
        "min_seed": draw(st.sampled_from([0.0, 0.25, 0.5, 0.9])),
        "min_size": draw(st.sampled_from([1, 2, 10])),
        "min_fresh": draw(st.sampled_from([0.0, 0.3, 0.5, 0.9])),
    }


def run(problem: dict[str, Any], **options: Any) -> Clusters:
    widths = problem["widths"]
    return cluster_embeddings(
        torch.from_numpy(problem["pixels"])[None],
        torch.from_numpy(problem["classes"])[None],
        method="seeded",
        seeds=torch.from_numpy(problem["seeds"])[None],
        radius=problem["radius"] if widths is None else None,
        bandwidth=None if widths is None else torch.from_numpy(widths)[None],
        **{name: problem[name] for name in ("min_seed", "min_size", "min_fresh")},
        **options,
    )


@given(problems(), st.sampled_from([16, 65_536]), st.sampled_from([1, 3, 20, 256]), st.integers(1, 3))
def test_labels_are_those_of_the_rule_pixel_for_pixel(
    problem: dict[str, Any], shared: int, leaf: int, count: int
) -> None:
    widths = problem["widths"]
    raw, grown_from = by_the_rule(
        *(problem[name] for name in ("pixels", "classes", "seeds")),
        np.full((1, len(problem["seeds"])), problem["radius"]) if widths is None else widths,
        *(problem[name] for name in ("min_seed", "min_size", "min_fresh")),
    )
    expected, old = by_first_pixel(raw)
    with (
        threads(count),
        patch.object(seeded, "_SHARED", shared),
        patch.object(seeded, "_LEAF", leaf),
        patch.object(seeded, "_CHUNK", 7 * shared),
        patch.object(seeded, "_MANY", leaf),
    ):
        found = run(problem)
    assert np.array_equal(found.labels[0].numpy(), expected)
    assert found.sizes[0].tolist() == np.bincount(expected, minlength=1)[1:].tolist()
    chosen = [grown_from[k - 1] for k in old]
    assert found.scores[0].tolist() == problem["seeds"][chosen].tolist()
    assert found.classes[0].tolist() == problem["classes"][chosen].tolist()
    for k, centre in enumerate(found.centres[0].double().numpy(), start=1):
        members = problem["pixels"][:, expected == k].astype(np.float64)
        # The mean is computed in float64 and rounded at most once to float32, relative to its largest coordinate.
        assert np.abs(centre - members.mean(1)).max() <= 1e-6 * np.abs(members).max()


@pytest.mark.parametrize("leaf", [1, 256])  # single points are inside or outside, larger leaves on the border
def test_the_most_confident_pixel_goes_first_and_equal_seeds_in_scan_order(
    leaf: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeded, "_LEAF", leaf)
    embedding = line(0, 1, 2, 3, 4)
    # The outer pixels' proposals come to 1 of 2: exactly half is not enough by default.
    clusters = grow(embedding, line(0.7, 0.6, 0.9, 0.6, 0.8), radius=1.0)
    assert clusters.labels.tolist() == [[0, 1, 1, 1, 0]]
    clusters = grow(embedding, line(0.7, 0.6, 0.9, 0.6, 0.8), radius=1.0, min_fresh=0.4)
    assert clusters.labels.tolist() == [[1, 2, 2, 2, 3]]
    ties = grow(embedding, line(0.6, 0.6, 0.6, 0.6, 0.6), radius=1.0, min_fresh=0.4)
    assert ties.labels.tolist() == [[1, 1, 2, 2, 3]]


def test_half_is_not_more_than_half_also_where_the_border_runs_around_all_points_of_a_box() -> None:
    # All four pixels are within 1 of the third, the corner (0.95, 0.5) of their box is not.
    embedding = torch.tensor([[[0.95, 0.8, 0.0, 0.0], [0.0, 0.5, 0.0, 0.3]]])
    bandwidth = torch.tensor([[[0.6, 0.6, 1.0, 1.0]]])
    clusters = grow(embedding, line(0.9, 0.1, 0.8, 0.1), bandwidth=bandwidth)
    assert clusters.labels.tolist() == [[1, 1, 0, 0]]
    assert grow(embedding, line(0.9, 0.1, 0.8, 0.1), bandwidth=bandwidth, min_fresh=0.49).labels.tolist() == [
        [1, 1, 2, 2]
    ]


def test_a_cluster_keeps_its_pixels() -> None:
    # The second proposal holds the pixel at 1.0 as well, which is nearer to it; the first cluster was surer.
    embedding = line(0, 0.2, 1.0, 1.9, 1.9)
    clusters = grow(embedding, line(0.9, 0.1, 0.1, 0.8, 0.1), radius=1.0)
    assert clusters.labels.tolist() == [[1, 1, 1, 2, 2]]
    assert torch.allclose(clusters.centres[0][:, 0], torch.tensor([0.4, 1.9]))


def test_a_rejected_proposal_leaves_its_pixels_to_later_ones_but_they_take_no_turn() -> None:
    # Three of the five pixels within 0.91 of 1.5 are taken: rejected. With it 2.0 takes no turn, or would have taken
    # all that is left; but the surer half of the next instance may still take 2.0. The published rule strikes it out.
    embedding = line(0.5, 0.6, 0.7, 0.8, 1.5, 2.0, 2.45)
    clusters = grow(embedding, line(0.9, 0.1, 0.1, 0.1, 0.8, 0.75, 0.7), radius=0.91)
    assert clusters.labels.tolist() == [[1, 1, 1, 1, 0, 2, 2]]


def test_what_counts_for_min_size_are_pixels_that_no_cluster_has() -> None:
    embedding = line(0, 0, 0, 1, 2, 2, 2, 2)
    seeds = line(0.9, 0, 0, 0, 0.8, 0, 0, 0)
    assert grow(embedding, seeds, radius=1.0, min_size=4).labels.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2]]
    assert grow(embedding, seeds, radius=1.0, min_size=5).labels.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]


def test_pixels_below_min_seed_are_members_and_no_seeds() -> None:
    embedding, seeds = line(0, 0, 5, 5, 9), line(0.5, 0.1, 0.49, 0.3, 0.2)
    # 0.3 in float32 is above 0.3 in float64, 0.49 is below: seeds and bound are compared in one precision.
    assert grow(embedding, seeds, radius=1.0, min_seed=0.49).labels.tolist() == [[1, 1, 2, 2, 0]]
    assert grow(embedding, seeds, radius=1.0).labels.tolist() == [[1, 1, 0, 0, 0]]
    assert grow(embedding, seeds, radius=1.0, min_seed=0.3).labels.tolist() == [[1, 1, 2, 2, 0]]
    assert grow(embedding, seeds, radius=1.0, min_seed=0.0).labels.tolist() == [[1, 1, 2, 2, 3]]
    assert grow(embedding, seeds, radius=1.0, min_seed=1.0).labels.tolist() == [[0, 0, 0, 0, 0]]


def test_a_bandwidth_everywhere_is_a_radius() -> None:
    generator = torch.Generator().manual_seed(5)
    embedding = torch.randint(-3, 4, (1, 2, 20, 20), generator=generator).float()  # squares of whole numbers: exact
    seeds = torch.rand(1, 20, 20, generator=generator)
    expected = grow(embedding, seeds, radius=2.0)
    for channels in (1, 2):
        bandwidth = torch.full((1, channels, 20, 20), 2.0)
        assert equal(grow(embedding, seeds, bandwidth=bandwidth), expected)


def test_the_gaussian_kernel_is_one_half_at_the_bandwidth() -> None:
    embedding = torch.linspace(-3, 3, 601).reshape(1, 1, -1)
    seeds = torch.zeros(1, 601)
    seeds[0, 300] = 1.0
    sigma = 0.8
    clusters = grow(embedding, seeds, bandwidth=torch.full((1, 1, 601), sigma * np.sqrt(2 * np.log(2))))
    gaussian = torch.exp(-(embedding[:, 0] ** 2) / (2 * sigma**2))
    assert torch.equal(clusters.labels == 1, gaussian >= 0.5)


def test_a_bandwidth_for_each_dimension_tells_long_instances_apart() -> None:
    along = torch.linspace(-4, 4, 41)
    embedding = torch.stack([along.repeat(2), torch.cat([torch.zeros(41), torch.ones(41)])])[None]
    seeds = torch.zeros(1, 82)
    seeds[0, [20, 61]] = 0.9
    bandwidth = torch.tensor([4.1, 0.5]).reshape(1, 2, 1).expand(1, 2, 82)
    assert grow(embedding, seeds, bandwidth=bandwidth).labels.tolist() == [[1] * 41 + [2] * 41]
    assert len(grow(embedding, seeds, radius=4.1).sizes[0]) == 1


# The guarantee


@st.composite
def guaranteed(draw: st.DrawFn) -> tuple[Floats, Ints, Floats, float]:
    """Return points (P, D) in any order, the instance of each, seeds, and a radius δ + s < radius < Δ - δ - s."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dimensions = draw(st.integers(1, 8))
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    means = [rng.normal(size=dimensions)]
    spread = 1.0
    while len(means) < len(sizes):
        mean = rng.normal(size=dimensions) * spread
        if min(np.linalg.norm(mean - other) for other in means) >= 1:
            means.append(mean)
        spread *= 1.05
    offsets = [rng.normal(size=(size, dimensions)) for size in sizes]
    offsets = [offset - offset.mean(0) for offset in offsets]
    lengths = [np.linalg.norm(offset, axis=1) for offset in offsets]
    longest = max(length.max() for length in lengths)
    nearest = draw(st.booleans())  # the surest pixel: nearest to the mean, or any
    best = [int(length.argmin()) if nearest else int(rng.integers(len(length))) for length in lengths]
    away = max(length[i] for length, i in zip(lengths, best, strict=True))
    gaps = [np.linalg.norm(one - other) for i, one in enumerate(means) for other in means[:i]]
    least_gap = min(gaps, default=1.0)
    share = draw(st.floats(0, 0.499))  # of Δ, for δ + s
    shrink = share * least_gap / (longest + away) if longest > 1e-9 else 0.0
    seeds = [rng.uniform(0, 0.5 + 0.49 * rng.uniform(), len(length)) for length in lengths]
    for own, i in zip(seeds, best, strict=True):
        own[i] = max(own.max(), 0.5) + 0.01
    points = np.concatenate([mean + shrink * offset for mean, offset in zip(means, offsets, strict=True)])
    # float32 rounds distances by less than 1e-5 Δ: a 1e-4 of room on both sides.
    low, high = (share + 1e-4) * least_gap, (1 - share - 1e-4) * least_gap
    order = rng.permutation(len(points))
    instance = np.repeat(np.arange(len(sizes)), sizes)
    radius = low + draw(st.floats(0, 1)) * (high - low)
    return points[order], instance[order], np.concatenate(seeds)[order], radius


@given(guaranteed(), st.sampled_from([2, 256]))
def test_instances_with_a_central_seed_are_recovered_exactly(
    problem: tuple[Floats, Ints, Floats, float], leaf: int
) -> None:
    points, instance, seeds, radius = problem
    with patch.object(seeded, "_LEAF", leaf):
        clusters = grow(
            torch.from_numpy(points.T.astype(np.float32))[None], torch.from_numpy(seeds)[None], radius=radius
        )
    assert np.array_equal(clusters.labels[0].numpy(), by_first_pixel(instance + 1)[0])


# Options that all methods have


def test_connected_splits_clusters_and_parts_keep_the_score() -> None:
    embedding = line(0, 0, 5, 0.4, 0.8, 0.4)
    seeds = line(0.9, 0.1, 0.7, 0.2, 0.2, 0.2)
    together = grow(embedding, seeds, radius=1.0)
    assert together.labels.tolist() == [[1, 1, 2, 1, 1, 1]]
    parts = grow(embedding, seeds, radius=1.0, connected=True)
    assert parts.labels.tolist() == [[1, 1, 2, 3, 3, 3]]
    assert torch.allclose(parts.scores[0], torch.tensor([0.9, 0.7, 0.9]))
    assert parts.margin_ok == together.margin_ok == (True,)
    large = grow(embedding, seeds, radius=1.0, connected=True, min_size=3)
    assert large.labels.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert torch.allclose(large.centres[0], torch.tensor([[1.6 / 3]]))


@pytest.mark.parametrize(("gap", "ok"), [(1.9, False), (2.1, True)])
def test_margin_ok_says_whether_radii_do_not_touch(gap: float, ok: bool) -> None:
    embedding, seeds = line(0, gap, 50), line(1, 1, 1)
    assert grow(embedding, seeds, radius=1.0).margin_ok == (ok,)
    bandwidth = torch.tensor([[[1.5, 0.5, 9.0], [0.1, 0.1, 9.0]]])
    flat = torch.stack([embedding, torch.zeros_like(embedding)], 1)
    assert grow(flat, seeds, bandwidth=bandwidth).margin_ok == (ok,)
    classes = torch.tensor([[0, 1, 1]])
    apart = cluster_embeddings(embedding[:, None], classes, method="seeded", seeds=seeds, radius=1.0)
    assert apart.margin_ok == (True,)


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize(("values", "ok"), [((0, 0.9, 3.3, 2.4), True), ((0, 0.9, 2.8, 1.95), False)])
def test_margin_ok_looks_at_means_of_whole_clusters(values: tuple[float, ...], ok: bool, connected: bool) -> None:
    # Means are 2.4 apart, then 1.925; what they grew from is farther apart, their nearest pixels are closer.
    embedding, seeds = line(*values), line(0.9, 0.1, 0.9, 0.1)
    clusters = grow(embedding, seeds, radius=1.0, connected=connected)
    assert clusters.labels.tolist() == [[1, 1, 2, 2]]
    assert clusters.margin_ok == (ok,)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 30))
def test_margin_ok_is_what_all_pairs_say(seed: int, dimensions: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    centres, radii = rng.normal(size=(count, dimensions)), rng.uniform(0, 0.3, count)
    classes = rng.integers(0, 2, count)
    close = [
        np.linalg.norm(centres[i] - centres[j]) <= radii[i] + radii[j]
        for i in range(count)
        for j in range(i)
        if classes[i] == classes[j]
    ]
    assert seeded._apart(centres, radii, classes, 2) == (not any(close))


def test_threads_and_batches_change_no_bit() -> None:
    generator = torch.Generator().manual_seed(7)
    batch = torch.randn(3, 2, 60, 70, generator=generator).cumsum(-1)
    seeds = torch.rand(3, 60, 70, generator=generator)
    bandwidth = 1 + torch.rand(3, 1, 60, 70, generator=generator)
    labels = torch.randint(-1, 3, (3, 60, 70), generator=generator)
    results = []
    for count in (1, 2, 5):
        with threads(count), patch.object(seeded, "_CHUNK", 1000), patch.object(seeded, "_SHARED", 500):
            options = [{"seeds": seeds[b], "bandwidth": bandwidth[b]} for b in ([0, 1, 2], [0], [1], [2])]
            pictures = [(batch[b], labels[b]) for b in ([0, 1, 2], [0], [1], [2])]
            together, *alone = [
                cluster_embeddings(*picture, method="seeded", **option)
                for picture, option in zip(pictures, options, strict=True)
            ]
        results.append(together)
        assert all(torch.equal(together.labels[b], alone[b].labels[0]) for b in range(3))
        assert all(torch.equal(together.centres[b], alone[b].centres[0]) for b in range(3))
        assert together.margin_ok == tuple(one.margin_ok[0] for one in alone)
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


def test_the_order_of_pixels_does_not_matter_where_seeds_differ() -> None:
    generator = torch.Generator().manual_seed(8)
    embedding = torch.randn(1, 3, 2000, generator=generator)
    seeds = torch.rand(1, 2000, generator=generator)
    order = torch.randperm(2000, generator=generator)
    expected = grow(embedding, seeds, radius=1.0).labels[0, order].numpy()
    found = grow(embedding[:, :, order], seeds[:, order], radius=1.0).labels[0].numpy()
    assert np.array_equal(found, by_first_pixel(expected)[0])


@pytest.mark.parametrize("spatial", [(240,), (12, 20), (6, 4, 10), (2, 3, 4, 10)])
def test_any_number_of_spatial_dimensions_works(spatial: tuple[int, ...]) -> None:
    embedding = torch.zeros(1, 3, 240)
    embedding[:, :, 100:170] = 4.0
    clusters = grow(embedding.reshape(1, 3, *spatial), torch.ones(1, *spatial), radius=1.0)
    assert clusters.labels.shape == (1, *spatial)
    assert clusters.sizes[0].tolist() == [170, 70]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_and_layout_works(dtype: torch.dtype) -> None:
    embedding = torch.tensor([[[0.0, 0.25, 4.0, 0.0, 4.25]]], dtype=dtype)
    seeds = torch.tensor([[0.75, 0.5, 1.0, 0.5, 0.5]], dtype=dtype)
    bandwidth = torch.ones_like(embedding)
    expected = grow(embedding, seeds, bandwidth=bandwidth)
    assert expected.labels.tolist() == [[1, 1, 2, 1, 2]]
    assert expected.scores[0].tolist() == [0.75, 1.0]
    twice = [torch.stack([x, -x], -1).flatten(-2)[..., ::2].requires_grad_() for x in (embedding, seeds, bandwidth)]
    found = grow(twice[0], twice[1], bandwidth=twice[2])
    assert equal(found, expected)
    assert not found.centres[0].requires_grad


def test_it_works_without_compilation() -> None:
    program = (
        "import torch; from lovasz_embed.clustering import cluster_embeddings\n"
        "embedding = torch.tensor([[[0.0, 0.1, 5.0, 0.0, 0.0, 5.2]]])\n"
        "mask, seeds = torch.ones(1, 6, dtype=torch.bool), torch.full((1, 6), 0.6)\n"
        "print(cluster_embeddings(embedding, mask, method='seeded', seeds=seeds, radius=1.0).labels.tolist())\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[[1, 1, 2, 1, 1, 2]]"


# The parts


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 300),
    st.integers(1, 20),
    st.sampled_from(["normal", "equal", "few", "steep", "mostly"]),
)
def test_a_tree_holds_every_point_once_in_the_tightest_boxes(
    seed: int, dimensions: int, count: int, leaf: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(dimensions, count)).astype(np.float32)
    if kind == "equal":
        points[:] = 3.0
    elif kind == "few":
        points = np.round(points)
    elif kind == "steep":
        points = np.float32(2.0) ** np.arange(-120, 120, 240 / count, np.float32)[None, :count].repeat(dimensions, 0)
    elif kind == "mostly":
        points[:, rng.uniform(size=count) < 0.95] = 0.0
    before = points.copy()
    index = np.arange(count, dtype=np.int32)
    firsts, lasts = np.array([0, count // 3]), np.array([count // 3, count])
    firsts, lasts = firsts[firsts < lasts], lasts[firsts < lasts]
    tree = seeded_tree_kernels.build(points, index, firsts, lasts, leaf, np.empty(count, np.int32))
    begin, end, skip, parent, low, high, roots = tree
    assert np.array_equal(np.sort(index), np.arange(count))
    assert np.array_equal(points, before[:, index])
    assert np.array_equal(begin[roots], firsts)
    assert np.array_equal(end[roots], lasts)
    for n in range(len(begin)):
        own = points[:, begin[n] : end[n]]
        assert np.array_equal(own.min(1), low[n])
        assert np.array_equal(own.max(1), high[n])
        below = [m for m in range(len(begin)) if parent[m] == n]
        if below:
            assert below[0] == n + 1
            assert skip[below[0]] == below[1]
            assert skip[n] == skip[below[1]]
            assert sorted((begin[m], end[m]) for m in below) == [
                (begin[n], end[min(below, key=lambda m: begin[m])]),
                (begin[max(below, key=lambda m: begin[m])], end[n]),
            ]
        else:
            assert skip[n] == n + 1
            assert own.shape[1] <= leaf or (own == own[:, :1]).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 500), st.floats(0, 1), st.booleans())
def test_seeds_are_ranked_as_by_a_stable_sort(seed: int, count: int, least: float, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    seeds = rng.choice([rng.uniform(size=count), 10.0 ** -rng.uniform(0, 44, count)]).astype(np.float32)
    if coarse:
        seeds = np.round(seeds * 3) / np.float32(3)
    seeds[rng.uniform(size=count) < 0.1] = -0.0
    classes = rng.integers(-1, 2, count).astype(np.int32)
    words = np.empty((2, count), np.uint64)
    found = words[0, : seeded_kernels.rank(seeds, classes, np.float32(least), *words)]
    chosen = np.flatnonzero((classes >= 0) & (seeds >= least))
    expected = chosen[np.argsort(-seeds[chosen], kind="stable")]
    assert found.tolist() == expected.tolist()
