"""Segmentation on a GPU equals that on the CPU where the geometry decides, and moves neither embedding nor maps.

Without a GPU the kernels run in Triton's interpreter, on CPU tensors; where there is one, on it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed.clustering import Clusters, cluster_embeddings
from lovasz_embed.panoptic import PanopticResult, assemble, segment
from lovasz_embed.panoptic import segmentation as segmentation_module
from lovasz_embed.prototypes import NearestClassMean, nearest_class_mean
from lovasz_embed.synthetic import THINGS, street_scene

pytest.importorskip("triton")

from lovasz_embed._ops.gpu import assembly as gpu_assembly
from lovasz_embed._ops.gpu import margin, margin_modes, margin_sweep
from lovasz_embed._ops.gpu import ncm as gpu_ncm
from lovasz_embed._ops.gpu.pixels import planes
from lovasz_embed.clustering._device import cluster_on_device

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# NumPy, behind the interpreter, warns of what overflows in lanes that are then left out.
pytestmark = [
    pytest.mark.slow,  # Triton interprets
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def _few_operations() -> Iterator[None]:
    """The interpreter takes long per operation and hardly longer for a large one."""
    if DEVICE.type == "cuda":
        yield
        return
    with (
        patch.multiple(margin_modes, BLOCK=128, _CHUNK=64, _PARTS=2, _TILE=1024, _ROUNDS=1),
        patch.multiple(margin_sweep, BLOCK=128, CHUNK=16),
    ):
        yield


def there(embedding: Tensor, labels: Tensor, *, radius: float, reach: float | None = None, min_size: int = 1) -> Any:
    """Cluster where the kernels run, and return the clusters on the CPU."""
    found = cluster_on_device(embedding.to(DEVICE), labels.to(DEVICE), radius=radius, reach=reach, min_size=min_size)
    columns = {name: tuple(t.cpu() for t in getattr(found, name)) for name in ("centres", "sizes", "scores", "classes")}
    return Clusters(found.labels.cpu(), **columns, margin_ok=found.margin_ok, invalid=found.invalid)


def segment_there(embedding: Tensor, means: Tensor, **options: Any) -> PanopticResult:
    """Segment where the kernels run, and return the result on the CPU."""
    with patch.object(segmentation_module, "_fused", segmentation_module._on_device):
        return segment(embedding.to(DEVICE), means.to(DEVICE), **options).to("cpu")


def everywhere(embedding: Tensor) -> Tensor:
    return torch.ones(embedding.shape[0], *embedding.shape[2:], dtype=torch.bool)


def same(one: Clusters, other: Clusters) -> None:
    """Check that two results are equal but for the rounding of centres and scores."""
    assert torch.equal(one.labels, other.labels)
    assert one.margin_ok == other.margin_ok
    assert one.invalid == other.invalid
    for name in ("sizes", "classes"):
        assert all(map(torch.equal, getattr(one, name), getattr(other, name)))
    for own, its in zip(one.centres, other.centres, strict=True):
        assert own.dtype == its.dtype
        # Both are means of the same float32 numbers, in a fixed point of about 2^-39, rounded to float32 once.
        torch.testing.assert_close(own, its, rtol=1e-6, atol=1e-6)
    for own, its in zip(one.scores, other.scores, strict=True):
        assert own.dtype == its.dtype == torch.float32
        # Squared distances are in units of the squared radius; a float32 distance is off by 1e-7 of the coordinates.
        torch.testing.assert_close(own, its, rtol=0, atol=1e-4)


@st.composite
def guaranteed(draw: st.DrawFn) -> tuple[Tensor, Tensor, NDArray[np.int64], float]:
    """Return pixels (1, D, P) in any order, the class and the instance of each, and a radius that is guaranteed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dimensions = draw(st.sampled_from([1, 2, 3, 5, 8]))
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 9, 40]), min_size=1, max_size=7))
    gap = 1.0
    means: list[NDArray[np.float64]] = []
    spread = 1.0
    while len(means) < len(sizes):
        mean = rng.normal(size=dimensions) * spread
        if all(np.linalg.norm(mean - other) >= gap for other in means):
            means.append(mean)
        spread *= 1.05
    delta = draw(st.sampled_from([0.0, 0.1, 0.2, 0.245])) * gap
    pixels = []
    for mean, size in zip(means, sizes, strict=True):
        offset = rng.normal(size=(size, dimensions))
        if draw(st.booleans()):
            offset[: size // 2 + 1] = offset[0]  # most pixels on one spot, far from the mean: no tidy ball
        offset -= offset.mean(0)
        longest = np.linalg.norm(offset, axis=1).max()
        pixels.append(mean + offset * (delta / longest if longest > 1e-9 else 0.0))
    # Coordinates are below 100, so float32 rounds distances by less than 1e-5: 1e-4 of room on both sides.
    low, high = 2 * delta + 1e-4, gap - 2 * delta - 1e-4
    radius = low + draw(st.sampled_from([0.0, 0.5, 1.0])) * (high - low)
    scale = 10.0 ** draw(st.integers(-2, 2))
    # The same points in two classes: clusters that crossed them would be twice as large.
    classes = np.repeat(rng.integers(0, draw(st.sampled_from([1, 3])), len(sizes)), sizes)
    order = rng.permutation(len(classes))
    instance = np.repeat(np.arange(len(sizes)), sizes)[order]
    points = torch.from_numpy((np.concatenate(pixels)[order] * scale).T.astype(np.float32))[None]
    return points, torch.from_numpy(classes[order])[None], instance, radius * scale


def by_first_pixel(instance: NDArray[np.integer]) -> NDArray[np.int64]:
    _, first, inverse = np.unique(instance, return_index=True, return_inverse=True)
    return (np.argsort(np.argsort(first)) + 1)[inverse]


@settings(max_examples=10)
@given(guaranteed(), st.sampled_from([1, 4, 64, 16_384]), st.sampled_from([16, 65_536]))
def test_instances_within_the_guarantee_are_recovered_exactly(
    problem: tuple[Tensor, Tensor, NDArray[np.int64], float], samples: int, second: int
) -> None:
    """A sample may miss instances, and what is left may be looked at in parts of at least twice their number."""
    embedding, classes, instance, radius = problem
    with patch.multiple(margin, SAMPLES=samples, SECOND=second):
        found = there(embedding, classes, radius=radius)
    expected = by_first_pixel(instance)
    assert np.array_equal(found.labels[0].numpy(), expected)
    same(found, cluster_embeddings(embedding, classes, radius=radius))
    for k, centre in enumerate(found.centres[0].double().numpy(), start=1):
        mean = embedding[0].double().numpy()[:, expected == k].mean(1)
        # In a fixed point of 2^-39 of the largest coordinate, and rounded once to float32.
        assert np.abs(centre - mean).max() <= 1e-6 * np.abs(mean).max()


def test_the_order_of_pixels_changes_nothing_but_the_numbers() -> None:
    embedding, labels = scene()
    shuffled = torch.randperm(embedding[0, 0].numel())
    one = there(embedding.flatten(2), labels.flatten(1), radius=1.0)
    other = there(embedding.flatten(2)[..., shuffled], labels.flatten(1)[:, shuffled], radius=1.0)
    order = by_first_pixel(one.labels[0, shuffled].numpy()[labels.flatten(1)[0, shuffled].numpy() >= 0])
    assert np.array_equal(other.labels[0][labels.flatten(1)[0, shuffled] >= 0].numpy(), order)
    # Sums are integers: not even the last bit of a centre depends on the order.
    assert sorted(one.centres[0].tolist()) == sorted(other.centres[0].tolist())


def scene(size: tuple[int, int] = (24, 30), dimensions: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Blocks of instances, two classes of which share their embeddings, and some pixels that are not clustered."""
    random = torch.Generator().manual_seed(seed)
    centres = 5.0 * torch.randn(6, dimensions, generator=random)
    blocks = torch.randint(0, 6, (size[0] // 6, size[1] // 5), generator=random)
    instance = blocks.repeat_interleave(6, 0).repeat_interleave(5, 1)
    embedding = (centres[instance] + 0.2 * torch.rand(*size, dimensions, generator=random)).movedim(-1, 0)[None]
    labels = torch.randint(-1, 2, (size[0] // 12, size[1] // 15), generator=random)
    return embedding.contiguous(), labels.repeat_interleave(12, 0).repeat_interleave(15, 1)[None]


def test_a_tiny_instance_among_many_pixels_is_found_as_surely_as_a_large_one() -> None:
    embedding = torch.rand(1, 2, 40, 50) * 0.3
    embedding[:, 0, :, 25:] += 4.0
    tiny = torch.zeros(40, 50, dtype=torch.bool)
    tiny.view(-1)[torch.randperm(2000)[:20]] = True
    embedding[0, 1][tiny] += 3.0  # two instances of about ten pixels, one over each half
    with patch.object(margin, "SAMPLES", 64):
        found = there(embedding, everywhere(embedding), radius=1.0)
    same(found, cluster_embeddings(embedding, everywhere(embedding), radius=1.0))
    assert len(found.sizes[0]) == 4
    assert int(found.sizes[0].sort().values[:2].sum()) == 20


def test_what_is_left_in_parts_is_found_whatever_part_of_an_instance_was_looked_at() -> None:
    """Three pixels of one instance in a part need not stand out: two of them are close, and their mean is not its."""
    sides = torch.tensor([[0.24, 0.0], [-0.12, 0.2], [-0.12, -0.2]])  # δ is below 0.49 of the radius
    means = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(3.0), indexing="ij"), -1).view(-1, 1, 2)
    embedding = (means + sides.repeat(4, 1)).view(-1, 2).T[None].contiguous()
    expected = torch.arange(12).repeat_interleave(12)
    shuffled = torch.randperm(144)
    with patch.multiple(margin, SAMPLES=1, SECOND=24):
        found = there(embedding[..., shuffled], everywhere(embedding), radius=0.49)
    assert np.array_equal(found.labels[0].numpy(), by_first_pixel(expected[shuffled].numpy()))


def test_clusters_never_cross_classes() -> None:
    embedding, labels = torch.zeros(1, 3, 40), torch.arange(40)[None] % 3 - 1
    found = there(embedding, 7 * labels, radius=1.0)
    assert found.classes[0].tolist() == [0, 7]
    assert found.sizes[0].tolist() == [13, 13]
    assert torch.equal(found.labels, (labels + 1).int())


@pytest.mark.parametrize("labels", [torch.uint8, torch.int16, torch.int64])
def test_labels_are_any_integers(labels: torch.dtype) -> None:
    far = torch.iinfo(labels).max
    embedding, of_class = torch.tensor([[[0.0, 5.0, 0.0, 5.0, 0.0]]]), torch.tensor([[far, 3, 3, far, far]])
    found = there(embedding, of_class.to(labels), radius=1.0)
    assert found.labels.tolist() == [[1, 2, 3, 4, 1]]
    assert found.classes[0].tolist() == [far, 3, 3, far]


OPTIONS: list[dict[str, Any]] = [{}, {"min_size": 30}, {"reach": 0.15}, {"reach": 1.5}, {"min_size": 30, "reach": 1.5}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_do_what_they_do_on_the_cpu(options: dict[str, Any]) -> None:
    embedding, labels = scene((12, 30))
    embedding[0, :, 3, 4] = math.nan
    embedding[0, 1, 5, 6] = math.inf
    with pytest.warns(RuntimeWarning, match="2 pixels to be clustered"):
        expected = cluster_embeddings(embedding, labels.clamp(min=0), radius=1.0, **options)
    assert expected.invalid == (2,)
    same(there(embedding, labels.clamp(min=0), radius=1.0, **options), expected)


def test_mixtures_of_two_instances_are_no_instance() -> None:
    """Beyond the guarantee: a thread of mixed pixels between two instances does not stand out."""
    share = torch.cat([torch.zeros(300), torch.ones(300), torch.linspace(0.02, 0.98, 60)])
    embedding = torch.stack([6.0 * share, torch.zeros(660)])[None] + 0.02 * torch.randn(1, 2, 660)
    with patch.object(margin, "SAMPLES", 600):
        found = there(embedding, everywhere(embedding), radius=1.0, min_size=5)
    assert len(found.sizes[0]) == 2


def line(*values: float) -> Tensor:
    """One picture with one row of one-dimensional embeddings."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1)


def test_what_mostly_takes_pixels_from_a_first_centre_is_a_fragment_of_it() -> None:
    side, beyond = torch.linspace(0.55, 1.0, 20), torch.full((5,), 1.05)
    embedding = line(*torch.cat([torch.zeros(60), side, -side, beyond, -beyond]).tolist())
    found = there(embedding, everywhere(embedding), radius=1.0)
    assert found.labels.tolist() == [[1] * 100 + [0] * 10]


@pytest.mark.parametrize("reach", [2.0, 0.2])
def test_a_pixel_that_is_a_cluster_by_itself_joins_no_other(reach: float) -> None:
    """Nor does it when all pixels are labelled once more, for an instance that the sample missed."""
    embedding = line(*[0, 0.1, -0.1] * 8, 1.5, 5, 5, 1.8)
    with patch.object(margin, "SAMPLES", 8):  # every fourth
        found = there(embedding, everywhere(embedding), radius=0.25, reach=reach)
    assert found.labels.tolist() == [[1] * 24 + [2, 3, 3, 4]]
    # In a fixed point of about 2^-50, and rounded to float32 once.
    torch.testing.assert_close(found.centres[0], torch.tensor([[0.0], [1.5], [5.0], [1.8]]), rtol=1e-6, atol=1e-8)


def test_modes_that_count_are_those_that_taking_them_in_turn_leaves() -> None:
    modes, classes = torch.rand(2, 150), torch.randint(0, 2, (150,))
    good = torch.rand(150) < 0.8
    known = margin_sweep.Centres(modes[:, :2].T.double(), classes[:2].int(), torch.zeros(1, dtype=torch.int64))
    kept = [0, 1]  # the known ones, whose own copies come first below
    for i in range(150):
        near = (modes[:, i : i + 1] - modes[:, kept]).square().sum(0) <= 0.15**2
        if good[i] and not bool((near & (classes[kept] == classes[i])).any()):
            kept.append(i)
    known = margin_sweep.Centres(*(t.to(DEVICE) for t in (known.means, known.classes, known.axis)))
    radius = torch.full((1,), 0.15, device=DEVICE)
    got = margin_modes._thin(modes.to(DEVICE), classes.int().to(DEVICE), good.to(DEVICE), known, radius)
    assert got.tolist() == kept[2:]


def test_close_instances_are_told_apart_even_from_a_pixel_between_them() -> None:
    one = torch.cat([torch.tensor([0.25]), torch.linspace(-0.1, 0.1, 50)])
    embedding = line(*torch.cat([one, 1.3 - one]).tolist())
    found = there(embedding, everywhere(embedding), radius=1.0)
    assert found.labels.tolist() == [[1] * 51 + [2] * 51]
    assert found.margin_ok == (False,)


def test_a_centre_far_from_the_mean_of_its_pixels_is_sought_once_more() -> None:
    """The sample sees two pixels half way between two instances: the centre there holds both."""
    values = torch.zeros(1088)
    values[[8, 25]] = 10.65  # on the lattice of every 17th pixel, which meets nothing else but the background
    places = 200 + torch.arange(64)
    places = places[(places - 8) % 17 > 0]
    values[places[:30]] = 10.0
    values[places[30:40]] = 11.3
    embedding = values.view(1, 1, -1)
    with patch.object(margin, "SAMPLES", 64):
        found = there(embedding, everywhere(embedding), radius=1.0)
    assert sorted(found.sizes[0].tolist())[-1] == 1046
    assert found.labels[0, places[0]] != found.labels[0, places[35]]


def test_the_strongest_clusters_are_kept_where_there_are_too_many() -> None:
    embedding = line(0, 0, 0, 10, 10, 20, 20, 20, 30, 40, 40, 40, 40)
    with patch.object(margin_modes, "MAX_CENTRES", 3):
        found = there(embedding, everywhere(embedding), radius=1.0, min_size=2)
    assert found.labels.tolist() == [[1, 1, 1, 0, 0, 2, 2, 2, 0, 3, 3, 3, 3]]


@pytest.mark.parametrize(
    "embedding",
    [
        torch.zeros(0, 2, 3, 4),
        torch.zeros(2, 2, 0, 4),
        torch.zeros(1, 3, 1),
        torch.full((1, 2, 3), math.nan),
        100.0 * torch.arange(40.0).view(1, 1, 40),  # no pixel has company
    ],
    ids=["no picture", "no pixel", "one pixel", "nothing finite", "lone pixels"],
)
@pytest.mark.parametrize("min_size", [1, 2])
@pytest.mark.filterwarnings("ignore:.*hold NaN or Inf")
def test_little_and_nothing_is_clustered_as_on_the_cpu(embedding: Tensor, min_size: int) -> None:
    for labels in (everywhere(embedding), everywhere(embedding).long() - 1):
        expected = cluster_embeddings(embedding, labels, radius=1.0, min_size=min_size)
        same(there(embedding, labels, radius=1.0, min_size=min_size), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_dtype_is_read_in_place(dtype: torch.dtype) -> None:
    embedding, labels = scene((12, 15))
    embedding = embedding.to(dtype)
    same(there(embedding, labels, radius=1.0), cluster_embeddings(embedding, labels, radius=1.0))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "cropped": lambda x: torch.nn.functional.pad(x, (3, 2, 1, 1))[..., 1:-1, 3:-2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:, :, :1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_in_memory_does_not_matter(layout: str) -> None:
    embedding, labels = scene((12, 30))
    view: Tensor = LAYOUTS[layout](torch.cat([embedding, embedding.flip(3)]).to(DEVICE))
    both = torch.cat([labels, labels.flip(2)])
    same(there(view, both, radius=1.0), cluster_embeddings(view.cpu().contiguous(), both, radius=1.0))
    if layout != "transposed":  # whose rows would be columns: two strides cannot tell
        assert planes(view).data.data_ptr() == view.data_ptr()


def test_more_pixels_than_kernels_can_number_fail_clearly() -> None:
    with pytest.raises(ValueError, match="embedding must have at most 2147418112 pixels per picture on a GPU"):
        planes(torch.zeros(1).expand(1, 1, 2**31))


def test_a_repetition_changes_no_bit() -> None:
    embedding, labels = scene((12, 15))
    embedding, labels = embedding[..., :9], labels[..., :9]
    embedding += 0.5 * torch.randn_like(embedding)  # beyond the guarantee
    torch.use_deterministic_algorithms(True)
    try:
        one, other = (there(embedding, labels, radius=1.0, reach=1.5) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.centres[0], other.centres[0])
    assert torch.equal(one.scores[0], other.scores[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 5, 19])
def test_the_nearest_class_mean_is_that_of_the_cpu(dtype: torch.dtype, classes: int) -> None:
    """Values and means are multiples of 1/8: there are many exact ties, and the lowest class wins them."""
    embedding = (torch.randint(-24, 25, (2, 5, 11, 19)) / 8).to(dtype)
    embedding[0, 1, 2, 3:5] = torch.tensor([math.nan, -math.inf])
    means = torch.randint(-8, 9, (classes, 5)) / 8
    means[classes // 2] = math.nan if classes > 1 else 0.0
    choices: list[dict[str, Any]] = [
        {},
        {"reject_radius": 2.5},
        {"dims": [0, 3], "offset": torch.linspace(0, 2, classes)},
    ]
    for options in choices:
        expected = nearest_class_mean(embedding, means, impl="numba", **options)
        options = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in options.items()}
        for layout in (embedding, embedding.to(memory_format=torch.channels_last), embedding[..., 2:]):
            got = nearest_class_mean(layout.to(DEVICE), means.to(DEVICE), impl="triton", **options)
            assert got.dtype == torch.int64
            assert torch.equal(got.cpu(), expected if layout.shape == embedding.shape else expected[..., 2:])


@pytest.mark.parametrize(("other", "middle", "reject_radius"), [(1.0, 0.5, None), (4.0, 1.0, 1.0)])
def test_what_float32_cannot_tell_is_as_float64_has_it(
    other: float, middle: float, reject_radius: float | None
) -> None:
    """Scores of about 10^6, whose float32 steps are 0.125, differ by 0.04: of two classes, or from the limit."""
    means = torch.tensor([[0.0, 1000.0], [other, 1000.0], [0.0, 0.0], [5.0, 0.0], [9.0, 0.0]])
    across = middle + 0.02 * torch.randn(100)
    embedding = torch.stack([across, 1000 + 0.01 * torch.randn(100)])[None]
    squared = (embedding[0].T.double()[:, None] - means.double()).square().sum(2)
    expected = squared.argmin(1) if reject_radius is None else torch.where(squared.amin(1) <= 1.0, 0, 255)
    assert len(set(expected.tolist())) == 2
    got = nearest_class_mean(embedding.to(DEVICE), means.to(DEVICE), impl="triton", reject_radius=reject_radius)
    assert torch.equal(got[0].cpu(), expected)


@pytest.mark.parametrize("means", [torch.full((3, 2), math.nan), torch.tensor([[1.0, 2.0]])])
def test_one_class_and_none_work(means: Tensor) -> None:
    embedding = torch.randn(1, 2, 9)
    got = nearest_class_mean(embedding.to(DEVICE), means.to(DEVICE), impl="triton", ignore_index=-7)
    assert torch.equal(got.cpu(), nearest_class_mean(embedding, means, ignore_index=-7))


def test_the_classifier_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    ncm = NearestClassMean(4, 3, dims=[0, 2], reject_radius=1.5, impl="triton").to(DEVICE)
    ncm.update(torch.randn(2, 3, 30, device=DEVICE), torch.randint(0, 4, (2, 30), device=DEVICE))
    compiled = torch.compile(ncm, fullgraph=True, dynamic=True, backend="aot_eager")
    values = torch.randn(2, 3, 5, device=DEVICE)
    assert torch.equal(compiled(values), ncm(values))


def street(size: tuple[int, int] = (32, 64)) -> tuple[Tensor, Tensor]:
    """An embedding painted over a street scene within the guarantee, and the class means."""
    drawn = street_scene(6, size=size, max_things=8)
    category = torch.where(drawn.semantic == 255, 0, drawn.semantic)
    means = 20.0 * torch.eye(6, 8)
    corners = torch.tensor([[s, t, u] for s in (-3.0, 3.0) for t in (-3.0, 3.0) for u in (-3.0, 0.0, 3.0)])
    shift = torch.zeros(*size, 8)
    shift[..., 5:] = torch.where((drawn.instance > 0)[..., None], corners[drawn.instance % len(corners)], 0.0)
    embedding = means[category] + shift + 0.2 * (2 * torch.rand(*size, 8) - 1) / math.sqrt(8)
    return embedding.movedim(-1, 0)[None].contiguous(), means


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_thing_area": 30, "min_stuff_area": 40, "reject_radius": 5.3},
        {"vote": True, "instance_dims": (5, 6, 7), "category_dims": range(5)},
        {"vote": True, "instance_dims": (7, 5, 6), "min_thing_area": 30},
    ],
    ids=str,
)
def test_a_street_is_segmented_as_on_the_cpu(options: dict[str, Any]) -> None:
    embedding, means = street()
    embedding = torch.cat([embedding, embedding.flip(3)])
    embedding[0, 2, 3, 4] = math.nan
    if "vote" in options:  # some pixels of things 3 and 4 read as the other, which instances do not look at
        astray = torch.rand(2, 1, *embedding.shape[2:]) < 0.2
        embedding[:, 3:5] = torch.where(astray, embedding[:, [4, 3]], embedding[:, 3:5])
    expected = segment(embedding, means, things=THINGS, radius=1.0, **options)
    assert sum(s.is_thing for s in expected.segments[0]) > 2
    got = segment_there(embedding, means, things=THINGS, radius=1.0, **options)
    assert torch.equal(got.segmentation, expected.segmentation)
    for own, its in zip(got.segments, expected.segments, strict=True):
        assert [(s.id, s.category, s.is_thing, s.area) for s in own] == [
            (s.id, s.category, s.is_thing, s.area) for s in its
        ]
        # Of squared distances below 0.04 in a radius of 1, in float32 at coordinates of about 20.
        assert [s.score for s in own] == pytest.approx([s.score for s in its], abs=1e-4)


@pytest.mark.parametrize("small", [0, 2**16], ids=["sorted", "table"])
def test_a_cluster_takes_what_most_of_its_pixels_are_and_the_lowest_of_equal_ones(small: int) -> None:
    codes = torch.tensor([2, 2, 0, 0, 1, -1, -3, 1, 2, 2, 1, 0], dtype=torch.int32, device=DEVICE)
    labels = torch.tensor([1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 0], dtype=torch.int32, device=DEVICE)
    with patch.object(gpu_assembly, "SMALL_TABLE", small):
        assert gpu_assembly.majority(codes, labels, clusters=4, things=30)[:3].tolist() == [0, 1, 2]


@settings(max_examples=6)
@given(st.data())
def test_segments_are_those_of_assembly(data: st.DataObject) -> None:
    """Whatever the clusters are: they are assembled as `assemble` does it."""
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    embedding = torch.randint(-6, 7, (1, 2, 40), generator=random) / 2 + 0.1 * torch.rand(1, 2, 40, generator=random)
    means = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [-3.0, 0.0]])
    things = data.draw(st.sampled_from([{0}, {1, 3}, {0, 1, 2, 3}, set()]))
    ignore_index = data.draw(st.sampled_from([255, 1, -1]))
    areas = {"min_thing_area": data.draw(st.sampled_from([0, 2.5])), "min_stuff_area": data.draw(st.integers(0, 15))}
    vote = data.draw(st.booleans())
    dims = data.draw(st.sampled_from([[0, 1], [1], [1, 0]]))
    reading = {"vote": vote, "instance_dims": dims}
    # Votes are counted in a table, unless it is larger than this and than the picture.
    with patch.object(gpu_assembly, "SMALL_TABLE", data.draw(st.sampled_from([0, 2**16]))):
        got = segment_there(embedding, means, things=things, radius=1.0, ignore_index=ignore_index, **reading, **areas)
    semantic = nearest_class_mean(embedding, means, ignore_index=ignore_index)
    is_thing = torch.isin(semantic, torch.tensor(sorted(things - {ignore_index}), dtype=torch.int64))
    clusters = there(
        embedding[:, dims],
        is_thing if vote else torch.where(is_thing, semantic, -1),
        radius=1.0,
        min_size=max(int(areas["min_thing_area"]), 1),
    )
    expected = assemble(
        semantic, clusters.labels, things=things, scores=clusters.scores, ignore_index=ignore_index, **areas
    )
    assert got == expected


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 3, 0), (1, 1, 1)])
def test_empty_batches_and_single_pixels_are_segmented(shape: tuple[int, ...]) -> None:
    for things in (set(), {0, 1}):
        arguments = torch.zeros(shape), torch.zeros(2, shape[1])
        for options in ({"radius": 1.0}, {"radius": 1.0, "vote": True}):
            assert segment_there(*arguments, things=things, **options) == segment(*arguments, things=things, **options)


@pytest.mark.parametrize("reading", [{}, {"vote": True, "instance_dims": (5, 6, 7)}], ids=str)
def test_neither_the_embedding_nor_a_map_comes_to_the_host(reading: dict[str, Any]) -> None:
    """What the host reads are counts and tables of segments, by far smaller than a map."""
    embedding, means = street()
    read: list[int] = []

    def counting(name: str) -> Any:
        original = getattr(Tensor, name)

        def method(self: Tensor, *args: Any, **options: Any) -> Any:
            own = "lovasz_embed" in sys._getframe(1).f_code.co_filename  # the interpreter copies, too
            to_host = name != "to" or "cpu" in map(str, (*args, *options.values()))
            if own and to_host:
                read.append(self.numel())
            return original(self, *args, **options)

        return patch.object(Tensor, name, method)

    chosen = patch.object(segmentation_module, "_fused", segmentation_module._on_device)
    with chosen, counting("cpu"), counting("to"), counting("numpy"), counting("tolist"), counting("item"):
        result = segment(embedding.to(DEVICE), means.to(DEVICE), things=THINGS, radius=1.0, **reading)
    assert len(result.segments[0]) > 5
    assert read
    assert max(read) <= 5 * len(result.segments[0])


def test_the_kernels_of_other_calls_are_not_asked_for_on_the_cpu() -> None:
    embedding, labels = scene((12, 15))
    with patch.object(margin, "cluster_picture", side_effect=AssertionError), patch.object(gpu_ncm, "name_pixels"):
        cluster_embeddings(embedding, labels, radius=1.0)
        segment(embedding, torch.zeros(1, 4), things={0}, radius=1.0)
