"""The hierarchical hinge against its definition, its reference, and the cases that real data brings."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lovasz_embed as le
from lovasz_embed.hierarchy import (
    HierarchicalLovaszHinge,
    Level,
    hierarchical_lovasz_hinge,
    panoptic_levels,
)

ENGINES = ("reference", "numba")


def random_case(seed: int, *, dims: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Embedding (2, D, 6, 5), semantic with void, instance with gaps in its ids."""
    generator = torch.Generator().manual_seed(seed)
    embedding = 2 * torch.randn(2, dims, 6, 5, dtype=dtype, generator=generator)
    semantic = torch.randint(0, 3, (2, 6, 5), generator=generator)
    semantic[0, 0] = 255
    instance = 7 * torch.randint(0, 3, (2, 6, 5), generator=generator)
    return embedding, semantic, instance


def levels_of(semantic: Tensor, instance: Tensor, **options: Any) -> tuple[Level, Level]:
    return panoptic_levels(semantic, instance, things={1, 2}, radii=(3.0, 1.5), **options)


def by_hand(embedding: Tensor, level: Level, kernel: str = "margin") -> Tensor:
    """The definition, node by node, on pixels picked by boolean index; no code shared with the package."""
    losses = []
    columns = embedding.movedim(1, 0)
    for picture in range(len(embedding)) if level.per_picture else [slice(None)]:
        labels = level.labels[picture].flatten()
        pixels = columns[:, picture].flatten(1)[:, labels != Level.IGNORED]
        labels = labels[labels != Level.IGNORED]
        for label in labels[labels >= 0].unique():
            inside = labels == label
            distance2 = (pixels - pixels[:, inside].mean(1, keepdim=True)).square().sum(0)
            margin2 = level.outer_radius**2 - level.radius**2
            if kernel == "margin":
                logits = (level.radius**2 - distance2) / margin2
            else:
                logits = 2 * torch.exp(-distance2 * math.log(2) / level.radius**2) - 1
            errors = torch.where(inside, 1 - logits, 1 + logits)
            losses.append(layer_cake(errors, inside))
    return torch.stack(losses).mean()


def layer_cake(errors: Tensor, inside: Tensor) -> Tensor:
    """Integrate the Jaccard loss of {e >= t} over t from 0: the value without sorting weights."""
    levels = torch.cat([errors.new_zeros(1), errors[errors > 0].sort().values])
    total = errors.new_zeros(())
    for low, high in pairwise(levels):
        wrong = errors >= high
        union = inside.sum() + (wrong & ~inside).sum()
        total = total + (high - low) * (1 - (inside & ~wrong).sum() / union)
    return total


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("kernel", ["margin", "gaussian"])
@given(seed=st.integers(0, 10**6))
def test_every_level_is_the_mean_of_its_nodes_lovasz_extensions(impl: str, kernel: str, seed: int) -> None:
    embedding, semantic, instance = random_case(seed)
    levels = levels_of(semantic, instance)
    result = hierarchical_lovasz_hinge(embedding, levels, kernel=kernel, impl=impl)
    for level, value in zip(levels, result.per_level, strict=True):
        torch.testing.assert_close(value, by_hand(embedding, level, kernel))
    torch.testing.assert_close(result.loss, result.per_level.sum())


@pytest.mark.parametrize("kernel", ["margin", "gaussian"])
@pytest.mark.parametrize("negatives", ["all", "siblings"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numba_equals_the_reference_in_value_and_gradient(kernel: str, negatives: str, dtype: torch.dtype) -> None:
    embedding, semantic, instance = random_case(0, dims=8, dtype=dtype)
    results = []
    for impl in ENGINES:
        leaf = embedding.clone().requires_grad_()
        result = hierarchical_lovasz_hinge(
            leaf, levels_of(semantic, instance), kernel=kernel, negatives=negatives, impl=impl
        )
        result.loss.backward()
        results.append((result, leaf.grad))
    (one, one_grad), (other, other_grad) = results
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one_grad, other_grad)
    for a, b in zip(one.per_node, other.per_node, strict=True):
        torch.testing.assert_close(a.loss, b.loss)


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("kernel", ["margin", "gaussian"])
@pytest.mark.parametrize("negatives", ["all", "siblings"])
def test_gradient_is_that_of_the_value(impl: str, kernel: str, negatives: str) -> None:
    embedding, semantic, instance = random_case(1)
    levels = levels_of(semantic, instance)
    means = torch.randn(3, 3, dtype=torch.float64)

    def loss(leaf: Tensor) -> Tensor:
        return hierarchical_lovasz_hinge(
            leaf, levels, kernel=kernel, negatives=negatives, impl=impl,
            class_means=means, ncm_weight=0.5, pull_weight=0.2, norm_weight=0.1,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, embedding.requires_grad_())


def crowded(cut: float) -> tuple[Tensor, Level]:
    """Two pixels of a node with errors just below `cut`, and before them many others with just that error."""
    near, far = math.sqrt(-math.log2(1 - 0.499 * cut)), math.sqrt(math.log2(2 / cut)) + 1e-9
    embedding = torch.zeros(1, 2, 20_000, dtype=torch.float64)
    embedding[0, 1], embedding[0, :, :2] = far, torch.tensor([[near, -near], [0.0, 0.0]])
    return embedding, Level(torch.where(torch.arange(20_000) < 2, 0, Level.NO_NODE).view(1, -1), 1.0)


@pytest.mark.parametrize("cut", [1e-8, 1e-4, 0.01, 0.1, 0.5, 1.0])
def test_truncation_changes_value_and_gradient_within_its_bounds(cut: float) -> None:
    # The slopes that change by this much (docs/mathematics.md) arrive twice: at the pixel, and through the mean.
    bound = 2 * (2 * cut * math.sqrt(math.log(2) * math.log(2 / cut)) + 2 * math.sqrt(2 * cut * math.log(2)))
    for embedding, level in (
        crowded(cut),
        (torch.randn(1, 3, 500).double(), Level(torch.arange(500).view(1, -1) // 99, 1.0)),
    ):
        results = []
        for truncation in (0.0, cut):
            leaf = embedding.clone().requires_grad_()
            result = hierarchical_lovasz_hinge(leaf, (level,), kernel="gaussian", truncation=truncation)
            result.loss.backward()
            assert leaf.grad is not None
            results.append((result.per_node[0].loss, leaf.grad))
        (value, gradient), (cut_value, cut_gradient) = results
        assert (cut_value <= value).all()
        assert (value - cut_value <= cut).all()
        assert float((gradient - cut_gradient).norm(dim=1).sum()) <= bound


def test_the_default_truncation_is_below_what_float32_keeps() -> None:
    embedding, semantic, instance = random_case(13, dtype=torch.float32)
    results = []
    for truncation in (None, 0.0):
        leaf = (3 * embedding).requires_grad_()
        levels = levels_of(semantic, instance)
        result = hierarchical_lovasz_hinge(leaf, levels, kernel="gaussian", truncation=truncation)
        result.loss.backward()
        results.append((result.loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("impl", ENGINES)
def test_bandwidth_is_a_learnt_radius_per_node(impl: str) -> None:
    embedding, semantic, instance = random_case(2)
    category, inner = levels_of(semantic, instance)
    bandwidth = 1 + torch.rand(semantic.shape, dtype=torch.float64)

    def loss(leaf: Tensor, width: Tensor) -> Tensor:
        level = Level(inner.labels, inner.radius, bandwidth=width)
        return hierarchical_lovasz_hinge(leaf, (category, level), kernel="gaussian", impl=impl).loss

    assert torch.autograd.gradcheck(loss, (embedding.requires_grad_(), bandwidth.requires_grad_()))
    constant = torch.full_like(bandwidth, inner.radius)
    plain = hierarchical_lovasz_hinge(embedding, (category, inner), kernel="gaussian", impl=impl).loss
    torch.testing.assert_close(loss(embedding, constant), plain)


@pytest.mark.parametrize("impl", ENGINES)
def test_an_embedding_that_keeps_the_margins_costs_nothing(impl: str) -> None:
    semantic = torch.tensor([[0, 0, 1, 1, 1, 1]])
    instance = torch.tensor([[0, 0, 1, 1, 2, 2]])
    category, inner = panoptic_levels(semantic, instance, things={1}, radii=(4.0, 1.0))
    inside = 0.9 * inner.inner_radius
    positions = torch.tensor([[[-20.0, -20.0, -inside, inside, 2 - inside, 2 + inside]]])
    assert hierarchical_lovasz_hinge(positions, (category, inner), impl=impl).loss == 0
    # Each radius matters: with the instances closer than the outer radius the hinge is felt.
    assert hierarchical_lovasz_hinge(positions * 0.5, (category, inner), impl=impl).per_level[1] > 0


def test_default_margin_makes_the_outer_radius_three_times_the_inner_one() -> None:
    level = Level(torch.zeros(1, 1, dtype=torch.long), radius=2.0)
    assert level.outer_radius == pytest.approx(3 * level.inner_radius)


@pytest.mark.parametrize("impl", ENGINES)
def test_void_pixels_change_nothing(impl: str) -> None:
    embedding, semantic, instance = random_case(3)
    one = hierarchical_lovasz_hinge(embedding, levels_of(semantic, instance), impl=impl)
    moved = embedding.clone()
    moved[0, :, 0] += 100  # the void row
    leaf = moved.requires_grad_()
    other = hierarchical_lovasz_hinge(leaf, levels_of(semantic, instance), impl=impl)
    other.loss.backward()
    assert torch.equal(one.loss, other.loss)
    assert leaf.grad is not None
    assert leaf.grad[0, :, 0].abs().max() == 0
    assert leaf.grad.abs().max() > 0


def test_crowd_counts_for_its_category_and_is_ignored_among_instances() -> None:
    semantic = torch.tensor([[0, 1, 1, 1]])
    instance = torch.tensor([[0, 1, 1, 0]])
    crowd = torch.tensor([[False, False, False, True]])
    category, inner = panoptic_levels(semantic, instance, things={1}, crowd=crowd)
    assert category.labels.tolist() == [[0, 1, 1, 1]]
    assert inner.labels[0, 3] == Level.IGNORED
    assert inner.labels[0, 0] == Level.NO_NODE


@pytest.mark.parametrize("impl", ENGINES)
def test_siblings_are_blind_to_other_categories(impl: str) -> None:
    semantic = torch.tensor([[0, 1, 1, 2]])
    instance = torch.tensor([[0, 1, 2, 1]])
    levels = panoptic_levels(semantic, instance, things={1, 2})
    apart = torch.tensor([[[0.0, 10.0, 20.0, 10.0]]])  # instance 1 of category 2 lies on instance 1 of category 1
    everyone = hierarchical_lovasz_hinge(apart, levels, negatives="all", impl=impl).per_level[1]
    siblings = hierarchical_lovasz_hinge(apart, levels, negatives="siblings", impl=impl).per_level[1]
    assert siblings == 0
    assert everyone > 0


@pytest.mark.parametrize("impl", ENGINES)
def test_three_levels_are_the_same_call(impl: str) -> None:
    generator = torch.Generator().manual_seed(0)
    part = torch.arange(24).view(1, 4, 6)
    instance, category = part // 2, part // 8
    levels = (
        Level(category, 8.0, per_picture=False, name="category"),
        Level(instance, 2.0, weight=0.5, name="instance"),
        Level(part, 0.5, weight=0.25, name="part"),
    )
    embedding = torch.randn(1, 4, 4, 6, dtype=torch.float64, generator=generator).requires_grad_()
    result = hierarchical_lovasz_hinge(embedding, levels, negatives="siblings", impl=impl)
    torch.testing.assert_close(result.loss.detach(), result.per_level @ result.per_level.new_tensor([1, 0.5, 0.25]))
    assert [len(nodes.loss) for nodes in result.per_node] == [3, 12, 24]
    everyone = hierarchical_lovasz_hinge(embedding, levels, impl=impl)
    for value, level in zip(everyone.per_level, levels, strict=True):
        torch.testing.assert_close(value, by_hand(embedding.detach(), level))
    assert torch.autograd.gradcheck(
        lambda leaf: hierarchical_lovasz_hinge(leaf, levels, negatives="siblings", impl=impl).loss, embedding
    )


@pytest.mark.parametrize("impl", ENGINES)
def test_a_level_looks_at_its_own_dimensions_only(impl: str) -> None:
    embedding, semantic, instance = random_case(4, dims=4)
    levels = levels_of(semantic, instance, category_dims=(0, 2))
    before = hierarchical_lovasz_hinge(embedding, levels, impl=impl).per_level
    embedding[:, 1] += torch.randn(embedding[:, 1].shape)
    after = hierarchical_lovasz_hinge(embedding, levels, impl=impl).per_level
    assert before[0] == after[0]
    assert before[1] != after[1]
    levels = levels_of(semantic, instance, instance_dims=(3, 2))
    assert levels[0].dims is None
    before = hierarchical_lovasz_hinge(embedding, levels, impl=impl).per_level
    embedding[:, 1] += torch.randn(embedding[:, 1].shape)
    after = hierarchical_lovasz_hinge(embedding, levels, impl=impl).per_level
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_ncm_term_is_the_cross_entropy_of_distances_to_the_given_means() -> None:
    embedding, semantic, instance = random_case(5)
    means = torch.randn(4, 3, dtype=torch.float64)
    means[3] = torch.nan  # a class not met yet takes no part
    result = hierarchical_lovasz_hinge(
        embedding, levels_of(semantic, instance), class_means=means, ncm_weight=1.0, ncm_temperature=0.5
    )
    distance2 = (embedding[:, None] - means[None, :3, :, None, None]).square().sum(2)
    expected = torch.nn.functional.cross_entropy(-distance2 / (0.5 * 9), semantic, ignore_index=255)
    torch.testing.assert_close(result.ncm, expected)
    torch.testing.assert_close(result.loss, result.per_level.sum() + expected)


def test_before_any_class_is_met_the_ncm_term_is_zero_and_so_is_its_gradient() -> None:
    embedding, semantic, instance = random_case(5)
    levels = levels_of(semantic, instance)
    means = torch.full((3, 3), torch.nan, dtype=torch.float64)
    leaf = embedding.requires_grad_()
    (with_term,) = torch.autograd.grad(
        hierarchical_lovasz_hinge(leaf, levels, class_means=means, ncm_weight=1.0, pull_weight=1.0).loss, leaf
    )
    (without,) = torch.autograd.grad(hierarchical_lovasz_hinge(leaf, levels).loss, leaf)
    assert torch.equal(with_term, without)


def test_pull_draws_the_means_of_the_batch_to_the_running_ones() -> None:
    embedding = torch.tensor([[[1.0, 1.0, 5.0, 5.0]]], requires_grad=True)
    levels = panoptic_levels(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 2]]), things={1})
    means = torch.tensor([[0.0], [torch.nan]])
    with_pull = hierarchical_lovasz_hinge(embedding, levels, class_means=means, pull_weight=2.0).loss
    without = hierarchical_lovasz_hinge(embedding, levels).loss
    # One of two classes has a running mean, one unit away: 2 · (1² / 4²) / 2.
    torch.testing.assert_close(with_pull - without, torch.tensor(1 / 16))
    (gradient,) = torch.autograd.grad(with_pull - without, embedding)
    # d/dµ of 2 · µ² / 16 / 2 at µ = 1, shared by the two pixels; the class without a running mean is not pulled.
    torch.testing.assert_close(gradient, torch.tensor([[[1 / 16, 1 / 16, 0.0, 0.0]]]))


EDGE_CASES = {
    "everything void": (torch.full((2, 4), 255), torch.zeros(2, 4)),
    "no instance": (torch.zeros(2, 4), torch.zeros(2, 4)),
    "a picture that is one instance": (torch.ones(2, 4), torch.ones(2, 4)),
    "one pixel": (torch.ones(1, 1), torch.ones(1, 1)),
    "empty batch": (torch.ones(0, 4), torch.ones(0, 4)),
    "huge ids with gaps": (torch.ones(2, 4), torch.tensor([[1, 1, 2**62, 2**62], [5, 5, 2**40, 9]])),
}


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("case", EDGE_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_edge_cases_give_a_finite_loss_attached_to_the_graph(impl: str, case: str, dtype: torch.dtype) -> None:
    semantic, instance = (tensor.long() for tensor in EDGE_CASES[case])
    embedding = torch.randn(len(semantic), 3, *semantic.shape[1:]).to(dtype).requires_grad_()
    levels = panoptic_levels(semantic, instance, things={1})
    result = hierarchical_lovasz_hinge(embedding, levels, ncm_weight=1.0, norm_weight=1.0, impl=impl)
    result.loss.backward()
    assert result.loss.ndim == 0
    assert torch.isfinite(result.loss)
    assert embedding.grad is not None
    assert embedding.grad.dtype == dtype
    assert torch.isfinite(embedding.grad).all()


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_any_integer_labels_will_do(kind: torch.dtype, impl: str) -> None:
    embedding, _, _ = random_case(6)
    semantic = torch.randint(0, 2, (2, 6, 5))
    expected = hierarchical_lovasz_hinge(embedding, levels_of(semantic, semantic), impl=impl).loss
    same = hierarchical_lovasz_hinge(embedding, levels_of(semantic.to(kind), semantic.to(kind)), impl=impl).loss
    assert torch.equal(expected, same)


@pytest.mark.parametrize("impl", ENGINES)
def test_memory_layout_and_autocast_do_not_matter(impl: str) -> None:
    embedding, semantic, instance = random_case(7, dtype=torch.float32)
    levels = levels_of(semantic, instance)
    expected = hierarchical_lovasz_hinge(embedding, levels, impl=impl).loss
    strided = embedding.contiguous(memory_format=torch.channels_last)
    assert torch.equal(expected, hierarchical_lovasz_hinge(strided, levels, impl=impl).loss)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(expected, hierarchical_lovasz_hinge(embedding, levels, impl=impl).loss)


@pytest.mark.parametrize("impl", ENGINES)
def test_volumes_and_point_lists_are_pictures_too(impl: str) -> None:
    embedding, semantic, instance = random_case(8)
    expected = hierarchical_lovasz_hinge(embedding, levels_of(semantic, instance), impl=impl).loss
    for shape in ((30,), (2, 3, 5)):
        reshaped = levels_of(semantic.view(2, *shape), instance.view(2, *shape))
        assert torch.equal(expected, hierarchical_lovasz_hinge(embedding.view(2, 3, *shape), reshaped, impl=impl).loss)


def test_loss_does_not_depend_on_the_number_of_threads() -> None:
    embedding, semantic, instance = random_case(9, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = embedding.clone().requires_grad_()
            loss = hierarchical_lovasz_hinge(leaf, levels_of(semantic, instance)).loss
            loss.backward()
            results.append((loss.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("impl", ENGINES)
def test_per_node_says_which_node_cost_what(impl: str) -> None:
    embedding, semantic, instance = random_case(10)
    nodes = hierarchical_lovasz_hinge(embedding, levels_of(semantic, instance), impl=impl).per_node
    assert nodes[0].picture.tolist() == [-1, -1, -1]
    assert nodes[0].label.tolist() == [0, 1, 2]
    assert sorted(set(nodes[1].picture.tolist())) == [0, 1]
    torch.testing.assert_close(nodes[1].loss.mean(), by_hand(embedding, levels_of(semantic, instance)[1]))


def test_module_is_the_function_and_prints_its_arguments() -> None:
    embedding, semantic, instance = random_case(11)
    levels = levels_of(semantic, instance)
    module = HierarchicalLovaszHinge(kernel="gaussian", ncm_weight=0.5)
    expected = hierarchical_lovasz_hinge(embedding, levels, kernel="gaussian", ncm_weight=0.5)
    assert torch.equal(module(embedding, levels).loss, expected.loss)
    assert "kernel='gaussian'" in repr(module)
    assert le.HierarchicalLovaszHinge is HierarchicalLovaszHinge


def good() -> tuple[Tensor, tuple[Level, Level]]:
    embedding, semantic, instance = random_case(12)
    return embedding, levels_of(semantic, instance)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"kernel": "laplace"}, ValueError, "kernel must be one of 'margin', 'gaussian', got 'laplace'"),
        ({"negatives": "some"}, ValueError, "negatives must be one of 'all', 'siblings', got 'some'"),
        ({"impl": "cuda"}, ValueError, "impl must be one of 'auto', 'reference', 'numba', 'triton', got 'cuda'"),
        ({"method": "radix"}, ValueError, "method must be one of 'auto', 'sort', 'binned', got 'radix'"),
        ({"bins": 64}, ValueError, "bins must be None for method='auto', got 64. Use method='binned'"),
        ({"method": "sort", "bins": 64}, ValueError, "bins must be None for method='sort', got 64"),
        ({"method": "binned", "bins": 100}, ValueError, "bins must be a power of two from 8 to 65536, got 100"),
        ({"method": "binned", "bins": 64.0}, TypeError, "bins must be an int or None, got float"),
        (
            {"method": "sort", "impl": "triton"},
            ValueError,
            "method must be 'auto' or 'binned' for impl='triton', got 'sort'. Use impl='reference', which sorts",
        ),
        ({"levels": ()}, ValueError, "levels must hold at least one Level, got none"),
        ({"levels": (1,)}, TypeError, r"levels\[0\] must be a Level, got int"),
        ({"ncm_weight": -1.0}, ValueError, "ncm_weight must be a finite number, 0 or above, got -1.0"),
        ({"pull_weight": 1.0}, ValueError, "class_means must be given where pull_weight is above 0"),
        ({"embedding": torch.zeros(3, 4)}, ValueError, r"embedding must have shape \(B, D, \*spatial\)"),
        (
            {"embedding": torch.zeros(2, 3, 6, 5).long()},
            TypeError,
            "embedding must be a floating point tensor",
        ),
        (
            {"embedding": torch.zeros(2, 3, 9, 5)},
            ValueError,
            r"levels\[0\].labels must have shape \(2, 9, 5\)",
        ),
        (
            {"embedding": torch.full((2, 3, 6, 5), torch.nan)},
            ValueError,
            "embedding must be finite everywhere",
        ),
        (
            {"ncm_weight": 1.0, "class_means": torch.zeros(2, 3)},
            ValueError,
            r"class_means must have a row for every label of levels\[0\] \(up to 2\), got 2 rows",
        ),
        (
            {"ncm_weight": 1.0, "class_means": torch.zeros(3, 9)},
            ValueError,
            r"class_means must have shape \(C, 3\)",
        ),
    ],
)
def test_wrong_arguments_fail_clearly(change: dict[str, Any], error: type[Exception], text: str) -> None:
    embedding, levels = good()
    arguments: dict[str, Any] = {"embedding": embedding, "levels": levels, **change}
    with pytest.raises(error, match=text):
        hierarchical_lovasz_hinge(arguments.pop("embedding"), arguments.pop("levels"), **arguments)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"radius": -1.0}, ValueError, "radius must be a finite number above 0, got -1.0"),
        ({"radius": "1"}, TypeError, "radius must be a number, got str"),
        ({"margin": 2.0}, ValueError, r"margin must be at most the radius \(1.0\), got 2.0"),
        (
            {"labels": torch.zeros(1, 2)},
            TypeError,
            "labels must hold integer or boolean labels, got torch.float32",
        ),
        ({"bandwidth": torch.ones(3, 3)}, ValueError, r"bandwidth must have shape \(1, 2\) to match labels"),
        (
            {"bandwidth": torch.ones(1, 2, device="meta")},
            ValueError,
            r"bandwidth must be on the device of labels \(cpu\)",
        ),
        ({"dims": (1, 1)}, ValueError, r"dims must name at least one of the dimensions 0 and above, each once, got"),
        ({"dims": ()}, ValueError, r"dims must name at least one of the dimensions 0 and above, each once, got"),
    ],
)
def test_wrong_level_fails_clearly(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = {"labels": torch.zeros(1, 2, dtype=torch.long), "radius": 1.0, **change}
    with pytest.raises(error, match=text):
        Level(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"radii": (1.0, 4.0)}, ValueError, "radii must fall from the category to the instance level"),
        (
            {"instance": torch.zeros(2, 2).long()},
            ValueError,
            r"instance must have shape \(1, 3\) to match semantic",
        ),
        (
            {"instance": torch.tensor([[-1, 0, 0]])},
            ValueError,
            "instance must hold ids of 0 or above, got -1",
        ),
        ({"semantic": torch.tensor([[-1, 0, 0]])}, ValueError, "semantic must hold categories of 0 or above"),
        ({"semantic": torch.zeros(1, 3)}, TypeError, "semantic must hold integer or boolean labels"),
    ],
)
def test_wrong_maps_fail_clearly(change: dict[str, Any], error: type[Exception], text: str) -> None:
    maps = {
        "semantic": torch.zeros(1, 3).long(),
        "instance": torch.zeros(1, 3).long(),
        "things": {1},
        **change,
    }
    with pytest.raises(error, match=text):
        panoptic_levels(**maps)


@pytest.mark.parametrize("impl", ENGINES)
def test_labels_that_are_no_tree_fail_clearly(impl: str) -> None:
    across = (
        Level(torch.tensor([[0, 1]]), 4.0, per_picture=False),
        Level(torch.tensor([[3, 3]]), 1.0),
    )
    embedding = torch.zeros(1, 2, 2)
    assert hierarchical_lovasz_hinge(embedding, across, impl=impl).loss >= 0
    with pytest.raises(ValueError, match=r"levels must form a tree.*got node 3 outside or across"):
        hierarchical_lovasz_hinge(embedding, across, negatives="siblings", impl=impl)


def test_bandwidth_with_the_margin_kernel_fails_clearly() -> None:
    level = Level(torch.zeros(1, 2).long(), 1.0, bandwidth=torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"levels\[0\].bandwidth must be None for kernel='margin'"):
        hierarchical_lovasz_hinge(torch.zeros(1, 1, 2), (level,))


def test_real_size_runs() -> None:
    size = (1, 8, 256, 512)
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(512), indexing="ij")
    semantic = (rows // 64 % 2)[None]
    instance = (rows // 16 * 32 + columns // 16 + 1)[None]
    embedding = torch.randn(size).requires_grad_()
    loss = hierarchical_lovasz_hinge(embedding, panoptic_levels(semantic, instance, things={1})).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert embedding.grad is not None


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("kernel", ["margin", "gaussian"])
@pytest.mark.parametrize("bins", [8, 64, None])
def test_counted_losses_of_every_node_are_within_the_certified_bracket(
    bins: int | None, kernel: str, impl: str
) -> None:
    embedding, semantic, instance = random_case(3)
    levels = levels_of(semantic, instance)
    exact = hierarchical_lovasz_hinge(embedding, levels, kernel=kernel, impl=impl).per_node
    binned = hierarchical_lovasz_hinge(embedding, levels, kernel=kernel, impl=impl, method="binned", bins=bins).per_node
    for one, other in zip(exact, binned, strict=True):
        assert (other.loss <= one.loss * (1 + 1e-12)).all()  # rounding of float64
        assert (one.loss <= (1 + 1 / (bins or 512)) * (other.loss + 2.0**-32)).all()


@pytest.mark.parametrize("kernel", ["margin", "gaussian"])
def test_the_gradient_of_counted_losses_is_that_of_the_value(kernel: str) -> None:
    embedding, semantic, instance = random_case(1)
    levels = levels_of(semantic, instance)

    def loss(leaf: Tensor) -> Tensor:
        return hierarchical_lovasz_hinge(leaf, levels, kernel=kernel, method="binned", bins=64).loss

    # Steps of 1e-6 do not leave a bin: as long as none does, the weights are constants.
    assert torch.autograd.gradcheck(loss, embedding.requires_grad_())


@pytest.mark.parametrize("things", [{4, 1, 2}, {0, 2, 4}, set(), {7}, {0, 1, 2, 3, 4}])
def test_only_things_have_instances(things: set[int]) -> None:
    semantic = torch.arange(6).view(1, 6) % 6
    _, instances = panoptic_levels(semantic, torch.ones_like(semantic), things=things, ignore_index=5)
    expected = [Level.IGNORED if c == 5 else 2 * c + 1 if c in things else Level.NO_NODE for c in range(6)]
    assert instances.labels.tolist() == [expected]
