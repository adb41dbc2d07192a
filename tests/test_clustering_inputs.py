"""Bad and borderline input: what every method of clustering makes of it, in one table."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lovasz_embed.clustering import Clusters, cluster_embeddings

METHODS = ["margin", "seeded", "seeded by bandwidth", "density"]
METHOD = pytest.mark.parametrize("method", METHODS)


def cluster(embedding: Any, mask: Any, method: str, **options: Any) -> Clusters:
    """Cluster by a method of the table; what it needs beside the embedding says the same everywhere."""
    if method.startswith("seeded"):
        options = {"seeds": torch.full(mask.shape, 0.75), **options}
    if method == "seeded by bandwidth":
        options = {"bandwidth": torch.ones(len(mask), 1, *mask.shape[1:]), **options}
    elif method != "density":
        options = {"radius": 1.0, **options}
    return cluster_embeddings(embedding, mask, method=method.split()[0], **options)


def everywhere(embedding: Tensor) -> Tensor:
    return torch.ones(embedding.shape[0], *embedding.shape[2:], dtype=torch.bool)


def same(one: Clusters, other: Clusters) -> bool:
    """Whether two results agree in every bit, but for what is invalid."""
    fields = ("centres", "sizes", "scores", "classes")
    pairs = [pair for name in fields for pair in zip(getattr(one, name), getattr(other, name), strict=True)]
    return (
        one.margin_ok == other.margin_ok
        and torch.equal(one.labels, other.labels)
        and all(torch.equal(*pair) for pair in pairs)
    )


def is_empty(clusters: Clusters) -> bool:
    """Whether a result is whole, and holds no cluster."""
    counts = {len(values) for name in ("centres", "sizes", "scores", "classes") for values in _each(clusters, name)}
    pictures = len(clusters.labels)
    complete = all(len(getattr(clusters, name)) == pictures for name in ("centres", "margin_ok", "invalid"))
    return not clusters.labels.any() and counts <= {0} and complete and all(clusters.margin_ok)


def _each(clusters: Clusters, name: str) -> tuple[Tensor, ...]:
    values: tuple[Tensor, ...] = getattr(clusters, name)
    return values


def scene(seed: int = 0) -> Tensor:
    """Three instances of 300 pixels, tight and far apart, and stray pixels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    pixels = centres.repeat_interleave(300, 0) + 0.1 * torch.randn(900, 2, generator=generator)
    return pixels[torch.randperm(900, generator=generator)].T.reshape(1, 2, 30, 30)


# Little or nothing to cluster


@METHOD
@pytest.mark.parametrize("connected", [False, True])
def test_an_empty_mask_has_no_clusters(method: str, connected: bool) -> None:
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    clusters = cluster(torch.randn(2, 3, 4, 5), mask, method, connected=connected)
    assert is_empty(clusters)
    assert [centres.shape for centres in clusters.centres] == [(0, 3), (0, 3)]
    assert clusters.invalid == (0, 0)


@METHOD
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0), (1, 3, 0, 5)])
def test_no_pixels_have_no_clusters(method: str, shape: tuple[int, ...]) -> None:
    clusters = cluster(torch.zeros(shape), everywhere(torch.zeros(shape)), method, connected=True)
    assert is_empty(clusters)
    assert clusters.labels.shape == (shape[0], *shape[2:])


@METHOD
def test_one_pixel_is_one_cluster_but_no_dense_region(method: str) -> None:
    clusters = cluster(torch.full((1, 1, 1), 3.0), torch.ones(1, 1).bool(), method)
    if method == "density":
        assert is_empty(clusters)
    else:
        assert clusters.labels.tolist() == [[1]]
        assert clusters.centres[0].tolist() == [[3.0]]
        assert clusters.margin_ok == (True,)


@METHOD
@pytest.mark.parametrize("dimensions", [1, 2, 9])
def test_pixels_that_are_all_equal_are_one_cluster(method: str, dimensions: int) -> None:
    embedding = torch.full((1, dimensions, 40, 50), 0.1)
    clusters = cluster(embedding, everywhere(embedding), method, connected=True)
    assert clusters.sizes[0].tolist() == [2000]
    assert torch.equal(clusters.centres[0], embedding[:, :, 0, 0])


@METHOD
def test_where_no_cluster_is_large_enough_all_is_noise(method: str) -> None:
    embedding = 100 * torch.randn(1, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    assert is_empty(cluster(embedding, everywhere(embedding), method, min_size=401))
    if method != "density":  # density knows no scale: something is always densest
        assert is_empty(cluster(embedding, everywhere(embedding), method, min_size=50))


@METHOD
def test_one_dimension_is_enough(method: str) -> None:
    embedding = torch.cat([torch.linspace(-0.1, 0.1, 50), torch.linspace(4.9, 5.1, 50)]).reshape(1, 1, 100)
    clusters = cluster(embedding, everywhere(embedding), method)
    assert clusters.labels.tolist() == [[1] * 50 + [2] * 50]
    assert torch.allclose(clusters.centres[0], torch.tensor([[0.0], [5.0]]), atol=1e-6)  # of numbers around 5


# NaN and Inf


@METHOD
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_pixels_that_are_not_finite_are_noise_and_influence_nothing(
    method: str, value: float, dtype: torch.dtype
) -> None:
    embedding = torch.cat([scene(), scene(1)]).to(dtype)
    mask = everywhere(embedding)
    broken = embedding.clone()
    where = torch.zeros_like(mask)
    where[1, ::7, 3::5] = True
    broken[:, 1][where] = value
    with pytest.warns(RuntimeWarning, match=rf"{int(where.sum())} pixels to be clustered, in 1 of 2 pictures, hold"):
        clusters = cluster(broken, mask, method)
    assert clusters.invalid == (0, int(where.sum()))
    assert not clusters.labels[where].any()
    assert same(clusters, cluster(embedding, mask & ~where, method))
    assert [len(sizes) for sizes in clusters.sizes] == [3, 3]


@METHOD
def test_pixels_that_are_not_to_be_clustered_may_hold_anything(method: str) -> None:
    embedding, mask = scene(), everywhere(scene())
    mask[:, 10:20] = False
    expected = cluster(embedding, mask, method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(cluster(embedding.where(mask[:, None], torch.nan), mask, method), expected)
        assert same(cluster(embedding.where(mask[:, None], 1e30), mask, method), expected)
    assert expected.invalid == (0,)


@METHOD
def test_nothing_but_nan_is_noise(method: str) -> None:
    embedding = torch.full((1, 2, 30, 40), torch.nan)
    with pytest.warns(RuntimeWarning, match="1200 pixels to be clustered, in 1 of 1 pictures"):
        clusters = cluster(embedding, everywhere(embedding), method, connected=True)
    assert is_empty(clusters)
    assert clusters.invalid == (1200,)


@METHOD
def test_the_default_filter_shows_the_warning_once(method: str) -> None:
    embedding = scene()
    embedding[0, 0, 0, 0] = torch.nan
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            cluster(embedding, everywhere(embedding), method)
    assert [str(warning.message).split(",")[0] for warning in shown] == ["1 pixels to be clustered"]


@pytest.mark.parametrize("name", ["seeds", "bandwidth"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_seeds_and_bandwidths_that_are_not_finite_count_as_well(name: str, value: float) -> None:
    embedding, mask = scene(), everywhere(scene())
    maps = {"seeds": torch.full((1, 30, 30), 0.75), "bandwidth": torch.ones(1, 1, 30, 30)}
    broken = {**maps, name: maps[name].clone()}
    broken[name][..., 4, 5] = value
    with pytest.warns(RuntimeWarning, match="1 pixels to be clustered"):
        clusters = cluster_embeddings(embedding, mask, method="seeded", **broken)  # type: ignore[arg-type]
    assert clusters.invalid == (1,)
    mask[0, 4, 5] = False
    assert same(clusters, cluster_embeddings(embedding, mask, method="seeded", **maps))  # type: ignore[arg-type]


# Many clusters


def test_more_instances_than_uint16_holds_grow_from_seeds() -> None:
    count = 70_000
    embedding = 3 * torch.randperm(count, generator=torch.Generator().manual_seed(0)).float().reshape(1, 1, 250, 280)
    clusters = cluster(embedding, everywhere(embedding), "seeded")
    assert torch.equal(clusters.labels.flatten(), torch.arange(1, count + 1, dtype=torch.int32))
    assert torch.equal(clusters.centres[0].flatten(), embedding.flatten())
    assert clusters.margin_ok == (True,)


@METHOD
def test_more_parts_than_uint16_holds(method: str) -> None:
    chessboard = (torch.arange(400)[:, None] + torch.arange(400)) % 2 == 0
    clusters = cluster(torch.zeros(1, 2, 400, 400), chessboard[None], method, connected=True)
    assert torch.equal(clusters.labels[0][chessboard], torch.arange(1, 80_001, dtype=torch.int32))
    assert clusters.sizes[0].tolist() == [1] * 80_000


# One pixel is no dense region for "density"; "margin" looks at one class after the other.
@pytest.mark.parametrize("method", [pytest.param("margin", marks=pytest.mark.slow), "seeded"])
def test_more_classes_than_uint16_holds(method: str) -> None:
    labels = torch.randperm(70_000, generator=torch.Generator().manual_seed(0)).reshape(1, 250, 280)
    clusters = cluster(torch.zeros(1, 2, 250, 280), labels, method)
    assert torch.equal(clusters.labels.flatten(), torch.arange(1, 70_001, dtype=torch.int32))
    assert torch.equal(clusters.classes[0], labels.flatten())


# Wrong options


@METHOD
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_that_is_not_above_zero_fails_clearly(method: str, value: float) -> None:
    options = {"bandwidth": None} if method == "seeded by bandwidth" else {}
    with pytest.raises(ValueError, match=f"radius must be a finite number above 0, got {value}"):
        cluster(scene(), everywhere(scene()), method, radius=value, **options)


def test_a_missing_radius_fails_clearly() -> None:
    embedding, mask, seeds = scene(), everywhere(scene()), torch.ones(1, 30, 30)
    with pytest.raises(ValueError, match=r"radius must be given for method='margin', got None\. It is the radius of"):
        cluster_embeddings(embedding, mask)
    with pytest.raises(ValueError, match=r"radius or bandwidth must be given for method='seeded', one .*, got neither"):
        cluster_embeddings(embedding, mask, method="seeded", seeds=seeds)
    with pytest.raises(ValueError, match=r"radius or bandwidth must be given for method='seeded', one .*, got both"):
        cluster_embeddings(embedding, mask, method="seeded", seeds=seeds, radius=1.0, bandwidth=seeds[:, None])
    with pytest.raises(ValueError, match="seeds must be given for method='seeded', got None"):
        cluster_embeddings(embedding, mask, method="seeded", radius=1.0)


@pytest.mark.parametrize(
    ("method", "name", "value", "got", "meant"),
    [
        ("margin", "seeds", torch.ones(1, 30, 30), "a tensor", "method='seeded'"),
        ("margin", "bandwidth", torch.ones(1, 1, 30, 30), "a tensor", "method='seeded'"),
        ("margin", "min_seed", 0.5, "0.5", "method='seeded'"),
        ("margin", "min_fresh", 0.5, "0.5", "method='seeded'"),
        ("density", "seeds", torch.ones(1, 30, 30), "a tensor", "method='seeded'"),
        ("density", "bandwidth", torch.ones(1, 1, 30, 30), "a tensor", "method='seeded'"),
        ("density", "min_seed", 0.5, "0.5", "method='seeded'"),
        ("density", "min_fresh", 0.5, "0.5", "method='seeded'"),
        ("seeded", "reach", 2.0, "2.0", "method='margin' or method='density'"),
    ],
)
def test_an_option_of_another_method_fails_clearly(method: str, name: str, value: Any, got: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be None for method='{method}', got {got}. It is for {meant}."):
        cluster(scene(), everywhere(scene()), method, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("min_seed", -0.1, r"min_seed must be a finite number, 0 or above, got -0\.1"),
        ("min_seed", 1.5, r"min_seed must be at most 1, got 1\.5"),
        ("min_fresh", -0.1, r"min_fresh must be a finite number, 0 or above, got -0\.1"),
        ("min_fresh", 1, r"min_fresh must be below 1, got 1"),
        ("seeds", torch.ones(1, 30), r"seeds must have shape \(1, 30, 30\) to match embedding \(B, \*spatial\)"),
        ("seeds", torch.ones(1, 30, 30, device="meta"), "seeds must be on the device of embedding"),
        (
            "seeds",
            torch.full((1, 30, 30), 1.5),
            r"seeds must lie in \[0, 1\], got 900 pixels with others\. Apply a sig",
        ),
        ("seeds", torch.full((1, 30, 30), -2.0), r"seeds must lie in \[0, 1\], got 900 pixels"),
        ("bandwidth", torch.ones(1, 3, 30, 30), r"bandwidth must have shape \(1, 1, 30, 30\) to match embedding"),
        ("bandwidth", torch.ones(1, 30, 30), r"bandwidth must have shape \(1, 1, 30, 30\) to match embedding"),
        ("bandwidth", torch.ones(1, 2, 30, 9), r"bandwidth must have shape \(1, 30, 30\) to match embedding"),
        ("bandwidth", torch.ones(1, 1, 30, 30, device="meta"), "bandwidth must be on the device of embedding"),
        ("bandwidth", torch.zeros(1, 1, 30, 30), "bandwidth must be above 0, got 900 pixels with others"),
        ("bandwidth", -torch.ones(1, 2, 30, 30), "bandwidth must be above 0, got 900 pixels with others"),
    ],
)
def test_wrong_maps_fail_clearly(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster(scene(), everywhere(scene()), "seeded by bandwidth", **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seeds", torch.ones(1, 30, 30).long(), r"seeds must be a floating point tensor, got torch\.int64"),
        ("seeds", [[1.0]], r"seeds must be a torch\.Tensor, got list"),
        ("seeds", np.full((1, 30, 30), "1"), "seeds must hold numbers of a dtype that torch has, got <U1"),
        ("bandwidth", torch.ones(1, 1, 30, 30).long(), "bandwidth must be a floating point tensor"),
        ("bandwidth", 1.0, r"bandwidth must be a torch\.Tensor, got float"),
        ("min_seed", "a half", "min_seed must be a number, got str"),
        ("min_fresh", True, "min_fresh must be a number, got bool"),
        ("min_size", 2.5, "min_size must be an int, in pixels, got float"),
        ("connected", 1, "connected must be True or False, got 1"),
    ],
)
def test_wrong_types_fail_clearly(name: str, value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        cluster(scene(), everywhere(scene()), "seeded by bandwidth", **{name: value})


def test_seeds_and_bandwidths_are_not_looked_at_where_nothing_is_clustered() -> None:
    mask = everywhere(scene())
    mask[:, :5] = False
    seeds, bandwidth = torch.full((1, 30, 30), 0.75), torch.ones(1, 2, 30, 30)
    expected = cluster_embeddings(scene(), mask, method="seeded", seeds=seeds, bandwidth=bandwidth)
    seeds[:, :3], seeds[:, 3:5], bandwidth[:, :, :5] = 7.0, torch.nan, -1.0
    assert same(cluster_embeddings(scene(), mask, method="seeded", seeds=seeds, bandwidth=bandwidth), expected)


# NumPy arrays


@METHOD
def test_arrays_give_what_tensors_give(method: str) -> None:
    embedding, mask = scene(), everywhere(scene())
    options = {"seeds": torch.full(mask.shape, 0.75)} if method.startswith("seeded") else {}
    expected = cluster(embedding, mask, method, **options).numpy()
    arrays = {name: value.numpy() for name, value in options.items()}
    found = cluster(embedding.numpy(), mask.numpy(), method, **arrays).numpy()
    assert found.labels.max() == 3
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.centres[0], expected.centres[0])


@pytest.mark.parametrize("view", ["read-only", "big-endian", "flipped", "channels last", "half"])
def test_any_array_will_do(view: str) -> None:
    array = scene().numpy()
    mask = np.ones((1, 30, 30), dtype=np.uint16)  # classes: all of one
    expected = cluster_embeddings(array, mask, radius=1.0).numpy()
    if view == "read-only":
        array.flags.writeable = False
    elif view == "big-endian":
        array = array.astype(">f4")
    elif view == "flipped":
        array = array[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1]
    elif view == "channels last":
        array = np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1)
    elif view == "half":
        array = array.astype(np.float16)
    found = cluster_embeddings(array, mask, radius=1.0).numpy()
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.labels.flags.writeable
    assert all(type(values[0]) is np.ndarray for values in (found.centres, found.sizes, found.scores, found.classes))
