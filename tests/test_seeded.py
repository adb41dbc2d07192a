"""Clustering by seeds: pixel for pixel what its rule says, on whatever is drawn."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lovasz_embed._ops import seeded
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
    candidates = [p for p in range(len(classes)) if classes[p] >= 0 and seeds[p] >= min_seed]
    for p in sorted(candidates, key=lambda p: (-float(np.float32(seeds[p])), p)):
        if labels[p]:
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
    widths = np.exp(rng.normal(size=(shape, count)) * draw(st.sampled_from([0.1, 1.0])))
    radius = draw(st.sampled_from([0.5, 1.0, 2.0])) * np.sqrt(dimensions)
    return {
        "pixels": pixels.T.astype(dtype).copy(),
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
    problem: dict[str, Any], shared: int, leaf: int, threads: int
) -> None:
    widths = problem["widths"]
    raw, grown_from = by_the_rule(
        *(problem[name] for name in ("pixels", "classes", "seeds")),
        np.full((1, len(problem["seeds"])), problem["radius"]) if widths is None else widths,
        *(problem[name] for name in ("min_seed", "min_size", "min_fresh")),
    )
    expected, old = by_first_pixel(raw)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with (
            patch.object(seeded, "_SHARED", shared),
            patch.object(seeded, "_LEAF", leaf),
            patch.object(seeded, "_CHUNK", 7 * shared),
        ):
            found = run(problem)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found.labels[0].numpy(), expected)
    assert found.sizes[0].tolist() == np.bincount(expected, minlength=1)[1:].tolist()
    chosen = [grown_from[k - 1] for k in old]
    assert found.scores[0].tolist() == problem["seeds"][chosen].tolist()
    assert found.classes[0].tolist() == problem["classes"][chosen].tolist()
    for k, centre in enumerate(found.centres[0].double().numpy(), start=1):
        members = problem["pixels"][:, expected == k].astype(np.float64)
        # The mean is computed in float64 and rounded at most once to float32, relative to its largest coordinate.
        assert np.abs(centre - members.mean(1)).max() <= 1e-6 * np.abs(members).max()
