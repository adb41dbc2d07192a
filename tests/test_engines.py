"""Every engine gives the same value, gradient and error: one table of cases, then what only long rows reach."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from lovasz_embed._ops import binning, ranking, threads, tree_hinge_numba
from lovasz_embed._ops.engines import has_triton, interpreting
from lovasz_embed._ops.extension import HINGE, extension
from lovasz_embed._ops.tree_hinge import TreeLevel, tree_hinge
from lovasz_embed.hierarchy import Level, hierarchical_lovasz_hinge
from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax, lovasz_weights
from tests.strategies import problems

ENGINES = ("reference", "numba")

# Engines add and multiply in another order: sums of up to 1e5 terms in float64, which the reference takes in float32
# for float32. Half precision rounds the gradient once more, to one of two neighbours.
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

Result = tuple[Tensor, Tensor]


class Case(NamedTuple):
    """A loss and its arguments."""

    function: Callable[..., Tensor]
    input: Tensor
    target: Any
    options: dict[str, Any]


def run(case: Case, impl: str, **more: Any) -> Result:
    """Return value and gradient; the layout of the input in memory is kept."""
    leaf = case.input.detach().requires_grad_()
    leaf.grad = None
    value = case.function(leaf, case.target, **{**case.options, **more}, impl=impl)
    value.sum().backward()
    gradient, leaf.grad = leaf.grad, None
    assert gradient is not None
    return value.detach(), gradient


def assert_same(got: Result, expected: Result, *, times: float = 1) -> None:
    """Equal up to rounding, which is relative to the largest entry: gradients of softmax and means are sums."""
    for one, other in zip(got, expected, strict=True):
        largest = float(other.abs().nan_to_num(0, 0, 0).max()) if other.numel() else 0.0
        rounding = times * ROUNDING[other.dtype]
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding * largest, equal_nan=True)


@pytest.fixture(autouse=True)
def _memory_that_nobody_wrote_is_not_a_number() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# --- The table

RANDOM = torch.Generator().manual_seed(0)
VOID = 255


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=RANDOM, dtype=dtype)


def labels(classes: int, *shape: int, void: float = 0.0) -> Tensor:
    found = torch.randint(0, classes, shape, generator=RANDOM)
    return torch.where(torch.rand(shape, generator=RANDOM) < void, VOID, found)


def hinge(input: Tensor, target: Tensor, **options: Any) -> Case:
    return Case(lovasz_hinge, input, target, options)


def softmax(input: Tensor, target: Tensor, **options: Any) -> Case:
    return Case(lovasz_softmax, input, target, options)


def tree(embedding: Tensor, *levels: Level, **options: Any) -> Case:
    def total(leaf: Tensor, levels: Any, **options: Any) -> Tensor:
        return hierarchical_lovasz_hinge(leaf, levels, **options).loss

    return Case(total, embedding, levels, options)


def category(own: Tensor, radius: float = 3.0, **options: Any) -> Level:
    return Level(torch.where(own == VOID, Level.IGNORED, own), radius, per_picture=False, **options)


def inside(parent: Tensor, children: int, radius: float = 1.0, **options: Any) -> Level:
    """Nodes inside the parents' pixels; label 0 of the parent has none, as stuff has."""
    own = torch.where(parent == 0, Level.NO_NODE, parent * children + labels(children, *parent.shape))
    return Level(torch.where(parent == VOID, Level.IGNORED, own), radius, **options)


MAP = labels(3, 2, 23, 31, void=0.1)  # 713 pixels a picture: two blocks of 512 places
EMBEDDING = noise(2, 5, 23, 31, dtype=torch.float64)
LINES = torch.arange(1400).view(1, 1400) // 100  # nodes that fill whole blocks, and some that no block touches
FINE = inside(MAP, 3)
# Two nodes of 700 pixels, each a point but for one pixel in fifty, which lies outside the inner or the outer radius.
OUTLIERS = 3.0 * (LINES.double() // 7).unsqueeze(1) * torch.ones(1, 2, 1) + 0.01 * noise(1, 2, 1400)
OUTLIERS[:, 0, ::50] += torch.linspace(0.5, 3, 28)
# One node, and around it tight groups of 64 pixels, each a bit farther away than the one before, in all directions.
RINGS = torch.linspace(0, 4, 40).repeat_interleave(64) * torch.nn.functional.normalize(
    torch.randn(40, 3, generator=RANDOM), dim=1
).repeat_interleave(64, 0).t().unsqueeze(0) + 0.01 * noise(1, 3, 2560)
RING = Level(torch.where(torch.arange(2560) < 64, 0, Level.NO_NODE).view(1, -1), 1.0)
ALL_VOID = torch.full((2, 6), VOID)

CASES: dict[str, Case] = {
    "hinge": hinge(noise(2, 6, 7), labels(2, 2, 6, 7)),
    "hinge, batch as one": hinge(noise(2, 6, 7), labels(2, 2, 6, 7), per_image=False),
    "hinge, labels": hinge(noise(2, 3, 6, 7), labels(2, 2, 3, 6, 7), multilabel=True),
    "hinge, labels, batch as one": hinge(noise(2, 3, 50), labels(2, 2, 3, 50), multilabel=True, per_image=False),
    "hinge, none": hinge(noise(3, 40), labels(2, 3, 40), reduction="none"),
    "hinge, sum": hinge(noise(3, 2, 40), labels(2, 3, 2, 40), reduction="sum", multilabel=True),
    "hinge, void": hinge(noise(3, 40), labels(2, 3, 40, void=0.3), ignore_index=VOID),
    "hinge, void, batch as one": hinge(noise(3, 40), labels(2, 3, 40, void=0.3), ignore_index=VOID, per_image=False),
    "hinge, void, uint8": hinge(noise(3, 40), labels(2, 3, 40, void=0.3).to(torch.uint8), ignore_index=VOID),
    "hinge, foreground is void": hinge(noise(3, 40), labels(2, 3, 40), ignore_index=1),
    "hinge, background is void": hinge(noise(3, 40), labels(2, 3, 40), ignore_index=0),
    "hinge, bool is never void": hinge(noise(3, 40), labels(2, 3, 40).bool(), ignore_index=1),
    "hinge, void beyond uint8": hinge(noise(3, 40), labels(2, 3, 40).to(torch.uint8), ignore_index=257),
    "hinge, void beyond int64": hinge(noise(3, 40), labels(2, 3, 40), ignore_index=2**63),
    "hinge, bool": hinge(noise(2, 40), labels(2, 2, 40).bool()),
    "hinge, uint8": hinge(noise(2, 40), labels(2, 2, 40).to(torch.uint8)),
    "hinge, int8": hinge(noise(2, 40), labels(2, 2, 40).to(torch.int8)),
    "hinge, uint16": hinge(noise(2, 40), labels(2, 2, 40).to(torch.uint16)),
    "hinge, int32": hinge(noise(2, 40), labels(2, 2, 40).to(torch.int32)),
    "hinge, transposed": hinge(noise(7, 6, 2).permute(2, 1, 0), labels(2, 2, 7, 6).mT),
    "hinge, channels last": hinge(
        noise(2, 3, 6, 7).contiguous(memory_format=torch.channels_last), labels(2, 2, 3, 6, 7), multilabel=True
    ),
    "hinge, every second column": hinge(noise(2, 6, 14)[..., ::2], labels(2, 2, 6, 14)[..., ::2]),
    "hinge, one mask for all": hinge(noise(3, 40), labels(2, 1, 40).expand(3, 40)),
    "hinge, half": hinge(noise(2, 40).half(), labels(2, 2, 40)),
    "hinge, bfloat16": hinge(noise(2, 40).bfloat16(), labels(2, 2, 40)),
    "hinge, float64": hinge(noise(2, 40, dtype=torch.float64), labels(2, 2, 40)),
    "hinge, no foreground": hinge(noise(2, 40), labels(1, 2, 40)),
    "hinge, no foreground, void": hinge(noise(2, 40), 255 * labels(2, 2, 40), ignore_index=VOID),
    "hinge, only foreground": hinge(noise(2, 40), 1 + labels(1, 2, 40)),
    "hinge, nothing wrong": hinge(10 * (2.0 * LINES - 1) % 3 + 2, labels(1, 1, 1400) + 1),
    "hinge, all void": hinge(noise(2, 6), ALL_VOID, ignore_index=VOID),
    "hinge, one picture void": hinge(noise(2, 6), torch.cat([ALL_VOID[:1], labels(2, 1, 6)]), ignore_index=VOID),
    "hinge, one pixel": hinge(noise(1, 1), labels(2, 1, 1)),
    "hinge, a pixel a picture": hinge(noise(5), labels(2, 5)),
    "hinge, no picture": hinge(noise(0, 6), labels(2, 0, 6)),
    "hinge, no picture, batch as one": hinge(noise(0, 6), labels(2, 0, 6), per_image=False),
    "hinge, no pixel": hinge(noise(2, 0), labels(2, 2, 0)),
    "hinge, no label": hinge(noise(2, 0, 6), labels(2, 2, 0, 6), multilabel=True),
    "softmax": softmax(noise(2, 4, 6, 7), labels(4, 2, 6, 7)),
    "softmax, per image": softmax(noise(3, 4, 40), labels(4, 3, 40, void=0.2), per_image=True),
    "softmax, absent classes": softmax(noise(2, 5, 40), 2 * labels(2, 2, 40)),
    "softmax, absent classes, none": softmax(noise(2, 5, 40), 2 * labels(2, 2, 40), reduction="none"),
    "softmax, absent per image": softmax(
        noise(2, 4, 40), torch.stack([labels(2, 40), labels(2, 40) + 2]), per_image=True, reduction="none"
    ),
    "softmax, all": softmax(noise(2, 5, 40), labels(3, 2, 40, void=0.2), classes="all"),
    "softmax, all, per image": softmax(noise(2, 5, 40), labels(3, 2, 40), classes="all", per_image=True),
    "softmax, some": softmax(noise(2, 5, 40), labels(3, 2, 40, void=0.2), classes=[4, 0, 2]),
    "softmax, some, per image": softmax(
        noise(2, 5, 40), labels(3, 2, 40), classes=(1, 4), per_image=True, reduction="none"
    ),
    "softmax, weight": softmax(noise(2, 4, 40), labels(4, 2, 40), weight=torch.tensor([1.0, 0.0, 2.5, 0.5])),
    "softmax, weight of some": softmax(
        noise(2, 4, 40), labels(3, 2, 40), weight=noise(4).abs(), classes=[3, 1], per_image=True, reduction="sum"
    ),
    "softmax, a class is void": softmax(noise(2, 3, 40), labels(3, 2, 40), ignore_index=0, classes="all"),
    "softmax, nothing is void": softmax(noise(2, 3, 40), labels(3, 2, 40), ignore_index=None),
    "softmax, void below 0": softmax(noise(2, 3, 40), labels(4, 2, 40) - 1, ignore_index=-1),
    "softmax, bool": softmax(noise(2, 2, 40), labels(2, 2, 40).bool()),
    "softmax, uint8": softmax(noise(2, 3, 40), labels(3, 2, 40, void=0.2).to(torch.uint8)),
    "softmax, int32": softmax(noise(2, 3, 40), labels(3, 2, 40, void=0.2).to(torch.int32)),
    "softmax, channels last": softmax(
        noise(2, 3, 6, 7).contiguous(memory_format=torch.channels_last), labels(3, 2, 7, 6).mT
    ),
    "softmax, half": softmax(noise(2, 3, 40).half(), labels(3, 2, 40)),
    "softmax, bfloat16": softmax(noise(2, 3, 40).bfloat16(), labels(3, 2, 40)),
    "softmax, float64": softmax(noise(2, 3, 40, dtype=torch.float64), labels(3, 2, 40)),
    "softmax, one class": softmax(noise(2, 1, 40), labels(1, 2, 40)),
    "softmax, sure": softmax(100 * noise(2, 3, 40), labels(3, 2, 40)),
    "softmax, all void": softmax(noise(2, 3, 6), ALL_VOID),
    "softmax, all void, all": softmax(noise(2, 3, 6), ALL_VOID, classes="all", per_image=True),
    "softmax, one pixel": softmax(noise(1, 3, 1), labels(3, 1, 1)),
    "softmax, points": softmax(noise(30, 3), labels(3, 30)),
    "softmax, volume": softmax(noise(2, 3, 2, 4, 5), labels(3, 2, 2, 4, 5)),
    "softmax, no picture": softmax(noise(0, 3, 6), labels(3, 0, 6)),
    "softmax, no picture, per image": softmax(noise(0, 3, 6), labels(3, 0, 6), per_image=True),
    "softmax, no pixel": softmax(noise(2, 3, 0), labels(3, 2, 0), classes="all"),
    "tree": tree(EMBEDDING, category(MAP), FINE),
    "tree, gaussian": tree(EMBEDDING, category(MAP), FINE, kernel="gaussian"),
    "tree, siblings": tree(EMBEDDING, category(MAP), FINE, negatives="siblings"),
    "tree, gaussian siblings": tree(EMBEDDING, category(MAP), FINE, kernel="gaussian", negatives="siblings"),
    "tree, bandwidth": tree(
        EMBEDDING,
        category(MAP),
        inside(MAP, 3, bandwidth=0.5 + torch.rand(MAP.shape, generator=RANDOM)),
        kernel="gaussian",
    ),
    "tree, dims": tree(EMBEDDING, category(MAP, dims=(4, 1)), inside(MAP, 3, dims=(0, 2, 3, 4))),
    "tree, dims, gaussian": tree(EMBEDDING, category(MAP, dims=(0,)), inside(MAP, 2), kernel="gaussian"),
    "tree, three levels": tree(
        0.3 * noise(1, 8, 1400, dtype=torch.float64) + LINES.unsqueeze(1),
        Level(LINES // 6, 8.0, per_picture=False),
        Level(LINES, 2.0, weight=0.5),
        Level(torch.arange(1400).view(1, 1400) // 10, 0.5, weight=0.25, margin=0.3),
        negatives="siblings",
    ),
    "tree, far apart": tree(0.2 * noise(1, 3, 1400, dtype=torch.float64) + 50 * LINES.unsqueeze(1), Level(LINES, 1.0)),
    "tree, far apart, gaussian": tree(
        0.2 * noise(1, 3, 1400, dtype=torch.float64) + 50 * LINES.unsqueeze(1), Level(LINES, 1.0), kernel="gaussian"
    ),
    "tree, far from the origin": tree(
        noise(1, 3, 1400, dtype=torch.float64) + 1e3 + LINES.unsqueeze(1), Level(LINES, 1.0)
    ),
    "tree, rings": tree(RINGS, RING),
    "tree, rings, gaussian": tree(RINGS, RING, kernel="gaussian", truncation=0.1),
    "tree, outliers": tree(OUTLIERS, Level(LINES // 7, 1.0)),
    "tree, outliers, siblings": tree(
        OUTLIERS, Level(LINES // 14, 4.0), Level(LINES // 7, 1.0, margin=0.5), negatives="siblings"
    ),
    "tree, per picture": tree(EMBEDDING, Level(MAP, 2.0)),
    "tree, over the batch": tree(EMBEDDING, Level(MAP, 2.0, per_picture=False)),
    "tree, truncation 0": tree(EMBEDDING, category(MAP), FINE, kernel="gaussian", truncation=0.0),
    "tree, truncation 0.1": tree(EMBEDDING, category(MAP), FINE, kernel="gaussian", truncation=0.1),
    "tree, truncation 2": tree(EMBEDDING, FINE, kernel="gaussian", truncation=2.0, negatives="siblings"),
    "tree, weight 0": tree(EMBEDDING, category(MAP, weight=0.0), FINE),
    "tree, huge ids with gaps": tree(EMBEDDING, Level(MAP * 2**54 + 5, 2.0), Level((MAP + 1) * 2**40, 1.0)),
    "tree, many nodes": tree(EMBEDDING, Level(torch.arange(2 * 713).view(2, 23, 31) * 7, 1.0)),
    "tree, every label negative": tree(EMBEDDING, Level(-1 - labels(2, 2, 23, 31), 1.0)),
    "tree, all void": tree(noise(2, 3, 6, dtype=torch.float64), category(ALL_VOID), inside(ALL_VOID, 2)),
    "tree, one picture void": tree(noise(2, 3, 6), category(torch.cat([ALL_VOID[:1], labels(2, 1, 6)]))),
    "tree, categories without instances": tree(EMBEDDING, category(MAP), Level(0 * MAP + Level.NO_NODE, 1.0)),
    "tree, an instance fills a picture": tree(EMBEDDING, category(0 * MAP + 1), Level(0 * MAP, 1.0)),
    "tree, an instance fills a picture, gaussian": tree(EMBEDDING, Level(0 * MAP, 1.0), kernel="gaussian"),
    "tree, one pixel": tree(noise(1, 2, 1), Level(torch.zeros(1, 1, dtype=torch.long), 1.0)),
    "tree, no picture": tree(noise(0, 2, 6), Level(labels(2, 0, 6), 1.0)),
    "tree, no pixel": tree(noise(2, 2, 0), category(labels(2, 2, 0)), Level(labels(2, 2, 0), 1.0)),
    "tree, one point": tree(torch.zeros(2, 3, 600), Level(labels(3, 2, 600), 1.0)),
    "tree, channels last": tree(
        noise(2, 3, 6, 7).contiguous(memory_format=torch.channels_last), Level(labels(3, 2, 7, 6).mT, 1.0)
    ),
    "tree, uint8": tree(noise(2, 3, 40), Level(labels(3, 2, 40).to(torch.uint8), 1.0)),
    "tree, bool": tree(noise(2, 3, 40), Level(labels(2, 2, 40).bool(), 1.0)),
    "tree, int32": tree(noise(2, 3, 40), category(labels(2, 2, 40).int()), Level(labels(2, 2, 40).int(), 1.0)),
    "tree, float32": tree(noise(2, 3, 40), category(labels(3, 2, 40)), Level(labels(5, 2, 40), 1.0)),
    "tree, half": tree(noise(2, 3, 40).half(), category(labels(3, 2, 40)), Level(labels(5, 2, 40), 1.0)),
    "tree, bfloat16": tree(noise(2, 3, 40).bfloat16(), Level(labels(5, 2, 40), 1.0), kernel="gaussian"),
    "tree, class terms": tree(
        EMBEDDING, category(MAP), FINE, class_means=noise(3, 5), ncm_weight=0.5, pull_weight=0.2, norm_weight=0.1
    ),
}  # fmt: skip
METHODS = [(name, method) for name in CASES for method in ("sort", "binned")]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_engines_agree_in_value_and_gradient(name: str, method: str) -> None:
    case = CASES[name]
    # Few bins: the reference looks at every cell of every node.
    options = {"method": method, **({"bins": 32} if name.startswith("tree") and method == "binned" else {})}
    expected, got = (run(case, impl, **options) for impl in ENGINES)
    assert_same(got, expected)
    assert got[0].isfinite().all()
    assert got[1].dtype == case.input.dtype
    for one, other in zip(run(case, "auto", **options), got, strict=True):
        assert torch.equal(one, other), "'auto' is numba on the CPU"
    with torch.no_grad():
        assert torch.equal(case.function(case.input, case.target, **case.options, **options, impl="numba"), got[0])


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("name", ["hinge, batch as one", "hinge, labels", "softmax, some", "tree", "tree, bandwidth"])
def test_backward_scales_and_may_be_run_again(impl: str, name: str) -> None:
    case = CASES[name]
    _, gradient = run(case, impl)
    leaf = case.input.clone().requires_grad_()
    loss = case.function(leaf, case.target, **case.options, impl=impl)
    for _ in range(3):
        loss.backward(retain_graph=True)
    (-2 * loss).backward()
    torch.testing.assert_close(leaf.grad, gradient)


@pytest.mark.parametrize("negatives", ["all", "siblings"])
@pytest.mark.parametrize("kernel", ["margin", "gaussian"])
def test_engines_agree_about_every_level_and_node(kernel: str, negatives: str) -> None:
    levels = (category(MAP), FINE)
    one, other = (
        hierarchical_lovasz_hinge(EMBEDDING, levels, kernel=kernel, negatives=negatives, impl=impl) for impl in ENGINES
    )
    torch.testing.assert_close(other.per_level, one.per_level)
    for expected, got in zip(one.per_node, other.per_node, strict=True):
        torch.testing.assert_close(tuple(got), tuple(expected))


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("nodes", ["some", "none", "no picture"])
def test_a_bandwidth_has_a_gradient_of_its_own(impl: str, nodes: str) -> None:
    """Where nothing else has one; and a zero where there is no node, since DDP waits for every gradient."""
    batch = 0 if nodes == "no picture" else 2
    own = torch.full((batch, 40), Level.IGNORED) if nodes == "none" else labels(3, batch, 40)
    bandwidth = (1 + torch.rand(batch, 40)).requires_grad_()
    level = Level(own, 1.0, bandwidth=bandwidth)
    hierarchical_lovasz_hinge(noise(batch, 3, 40), (level,), kernel="gaussian", impl=impl).loss.backward()
    assert bandwidth.grad is not None
    assert bool(bandwidth.grad.any()) == (nodes == "some")


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_positives_keep_their_gaussian_gradient(impl: str, dtype: torch.dtype) -> None:
    """An error is 2 to the last bit there: the gradient must not be read from it."""
    far = 5.0 if dtype == torch.float32 else 8.0
    embedding = torch.tensor([[[-far, far]]], dtype=dtype, requires_grad=True)
    level = Level(torch.zeros(1, 2, dtype=torch.int64), 1.0)
    hierarchical_lovasz_hinge(embedding, (level,), kernel="gaussian", impl=impl).loss.backward()
    # Both pixels weigh a half; the slope of 2 - 2 exp(-d² ln 2) is 4 d ln 2 exp(-d² ln 2). The mean does not move.
    slope = 2 * far * math.log(2) * 2.0 ** -(far**2)
    assert embedding.grad is not None
    torch.testing.assert_close(embedding.grad, torch.tensor([[[-slope, slope]]], dtype=dtype), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("impl", ENGINES)
def test_finite_values_whose_sum_is_not_give_a_finite_loss(impl: str) -> None:
    embedding = torch.full((1, 1, 8), 3e38, requires_grad=True)
    level = Level(torch.full((1, 8), Level.NO_NODE), 1.0)
    loss = hierarchical_lovasz_hinge(embedding, (level,), impl=impl).loss
    loss.backward()
    assert loss.item() == 0.0
    assert embedding.grad is not None
    assert not embedding.grad.any()


# --- Bad arguments

LOGITS, MASK = torch.zeros(1, 3, 4), torch.zeros(1, 4, dtype=torch.int64)
ONE_LEVEL = (Level(MASK, 1.0),)
NO_TREE = (Level(torch.tensor([[0, 0, 1, 1]]), 4.0), Level(torch.tensor([[3, 5, 5, 4]]), 1.0))

BAD: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "hinge, shape": (
        lambda **o: lovasz_hinge(LOGITS, MASK, **o), ValueError, "target must have shape (1, 3, 4) to match input",
    ),
    "hinge, no axis": (
        lambda **o: lovasz_hinge(torch.tensor(1.0), MASK, **o), ValueError, "input must have shape (B, *spatial)",
    ),
    "hinge, integers": (
        lambda **o: lovasz_hinge(MASK, MASK, **o), TypeError, "input must be a floating point tensor",
    ),
    "hinge, no tensor": (
        lambda **o: lovasz_hinge([0.0], MASK, **o), TypeError, "input must be a torch.Tensor, got list",
    ),
    "hinge, soft target": (
        lambda **o: lovasz_hinge(LOGITS[:, 0], MASK.float(), **o), TypeError, "target must hold integer or boolean",
    ),
    "hinge, a third label": (
        lambda **o: lovasz_hinge(LOGITS[:, 0], MASK + 2, **o), ValueError,
        "target must hold labels from 0 to 1, got 4 pixels with 2",
    ),
    "hinge, another device": (
        lambda **o: lovasz_hinge(LOGITS[:, 0], MASK.to("meta"), **o), ValueError, "target must be on the device of",
    ),
    "hinge, reduction": (
        lambda **o: lovasz_hinge(LOGITS[:, 0], MASK, reduction="max", **o), ValueError, "reduction must be one of",
    ),
    "hinge, method": (
        lambda **o: lovasz_hinge(LOGITS[:, 0], MASK, method="bins", **o), ValueError, "method must be one of",
    ),
    "hinge, bins": (
        lambda **o: lovasz_hinge(LOGITS[:, 0], MASK, method="binned", bins=100, **o), ValueError,
        "bins must be a power of two from 8 to 65536, got 100",
    ),
    "softmax, shape": (
        lambda **o: lovasz_softmax(LOGITS, MASK[:, :3], **o), ValueError, "target must have shape (1, 4) to match",
    ),
    "softmax, label": (
        lambda **o: lovasz_softmax(LOGITS, MASK + 3, **o), ValueError,
        "target must hold labels from 0 to 2 or ignore_index=255, got 4 pixels with 3",
    ),
    "softmax, class": (
        lambda **o: lovasz_softmax(LOGITS, MASK, classes=[3], **o), ValueError, "classes must be below the 3 channels",
    ),
    "softmax, weight": (
        lambda **o: lovasz_softmax(LOGITS, MASK, weight=-torch.ones(3), **o), ValueError, "weight must be finite",
    ),
    "softmax, ignore_index": (
        lambda **o: lovasz_softmax(LOGITS, MASK, ignore_index=1.0, **o), TypeError, "ignore_index must be an int",
    ),
    "tree, shape": (
        lambda **o: hierarchical_lovasz_hinge(LOGITS[..., :3], ONE_LEVEL, **o), ValueError,
        "levels[0].labels must have shape (1, 3) to match embedding",
    ),
    "tree, integers": (
        lambda **o: hierarchical_lovasz_hinge(LOGITS.long(), ONE_LEVEL, **o), TypeError,
        "embedding must be a floating point tensor",
    ),
    "tree, NaN": (
        lambda **o: hierarchical_lovasz_hinge(LOGITS * math.nan, ONE_LEVEL, **o), ValueError,
        "embedding must be finite everywhere, got 12 NaN or Inf values",
    ),
    "tree, Inf": (
        lambda **o: hierarchical_lovasz_hinge(LOGITS - math.inf, ONE_LEVEL, **o), ValueError,
        "embedding must be finite everywhere, got 12 NaN or Inf values",
    ),
    "tree, no level": (
        lambda **o: hierarchical_lovasz_hinge(LOGITS, (), **o), ValueError, "levels must hold at least one Level",
    ),
    "tree, dims": (
        lambda **o: hierarchical_lovasz_hinge(LOGITS, (Level(MASK, 1.0, dims=(0, 3)),), **o), ValueError,
        "levels[0].dims must name at least one of the dimensions 0 to 2, each once, got (0, 3)",
    ),
    "tree, bandwidth": (
        lambda **o: hierarchical_lovasz_hinge(LOGITS, (Level(MASK, 1.0, bandwidth=MASK.float()),), **o), ValueError,
        "levels[0].bandwidth must be None for kernel='margin'",
    ),
    "tree, no tree": (
        lambda **o: hierarchical_lovasz_hinge(LOGITS, NO_TREE, negatives="siblings", **o), ValueError,
        "levels must form a tree: every node inside one node of the level above, got node 5 outside or across",
    ),
    "tree, outside": (
        lambda **o: hierarchical_lovasz_hinge(
            LOGITS, (Level(MASK - 1, 4.0), Level(MASK, 1.0)), negatives="siblings", **o
        ), ValueError, "levels must form a tree: every node inside one node of the level above, got node 0 outside",
    ),
    "tree, truncation": (
        lambda **o: hierarchical_lovasz_hinge(LOGITS, ONE_LEVEL, kernel="gaussian", truncation=-0.1, **o), ValueError,
        "truncation must be a finite number, 0 or above, got -0.1",
    ),
    "tree, kernel": (
        lambda **o: hierarchical_lovasz_hinge(LOGITS, ONE_LEVEL, kernel="laplace", **o), ValueError,
        "kernel must be one of 'margin', 'gaussian', got 'laplace'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_engines_fail_with_the_same_words(name: str) -> None:
    call, kind, text = BAD[name]
    engines = [*ENGINES, "auto"]
    # Whether levels form a tree is asserted on the device, where nobody waits to learn which node it is.
    if has_triton() and interpreting() and name not in ("tree, no tree", "tree, outside"):
        engines.append("triton")
    words = []
    for impl in engines:
        with pytest.raises(kind) as caught:
            call(impl=impl)
        words.append(str(caught.value))
    assert words[0].startswith(text)
    assert words == [words[0]] * len(engines)


def test_more_than_31_bits_of_places_fail_clearly() -> None:
    many = torch.zeros(1).expand(1, 1, 2**31)
    marks = torch.zeros(1, dtype=torch.uint8).expand(1, 1, 2**31)
    with pytest.raises(ValueError, match=r"input must hold fewer than 2147483648 values for impl='numba'"):
        extension(many, marks, kind=HINGE, ignore_index=None, per_image=True, impl="numba", bins=0, reduce=None)
    level = TreeLevel(torch.zeros(1, dtype=torch.int64).expand(1, 2**31), 1.0, 0.8, 1.0, True, None, None)
    with pytest.raises(ValueError, match=r"embedding must have fewer than 214748364\d pixels for impl='numba'"):
        tree_hinge(many, [level], kernel="margin", siblings=False, cut=0.0, impl="numba")


# --- NaN and Inf among the logits

STRANGE = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 0.0, -0.0, 1.0])


def strange_logits(*shape: int) -> Tensor:
    picks = STRANGE[torch.randint(0, len(STRANGE), shape)]
    return torch.where(torch.rand(shape) < 0.5, picks, torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["sort", "binned"])
@pytest.mark.parametrize("size", [1, 5, 600])
def test_not_a_number_is_the_largest_error_for_every_engine(size: int, method: str, dtype: torch.dtype) -> None:
    """It ranks first, as in torch.sort; the loss is NaN, and the gradient that of its rank."""
    for _ in range(20):
        own = torch.randint(0, 3, (2, size))
        logits = strange_logits(2, 3, size).to(dtype)
        if size > 5:  # the engines' own softmax rounds otherwise, and may swap the ranks of float32 neighbours
            logits = logits.double()
        for case in (
            hinge(strange_logits(2, size).to(dtype), own, ignore_index=2, reduction="none"),
            softmax(logits, own, classes="all", reduction="none"),
            softmax(logits, own, ignore_index=2),
        ):
            expected, got, again = (run(case, impl, method=method) for impl in (*ENGINES, "numba"))
            # Each engine has an exponential of its own: probabilities that nearly tie may change places.
            assert_same(got, expected, times=100 if case.function is lovasz_softmax else 1)
            for one, other in zip(got, again, strict=True):
                assert torch.equal(one.nan_to_num(-7), other.nan_to_num(-7))


@pytest.mark.parametrize("impl", ENGINES)
def test_the_gradient_of_not_a_number_is_that_of_the_first_rank(impl: str) -> None:
    logits = torch.tensor([[0.5, math.nan, -3.0, math.nan]])
    value, gradient = run(hinge(logits, torch.tensor([[1, 0, 1, 1]])), impl)
    # Ranks: pixel 1, pixel 3 (NaN in input order), pixel 2 (error 4), pixel 0. U = 4 once the background is in.
    torch.testing.assert_close(gradient, torch.tensor([[-1 / 4, 3 / (4 * 3), -1 / 4, -1 / 4]]))
    assert value.isnan()


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("method", ["sort", "binned"])
def test_a_class_that_does_not_count_holds_0_whatever_the_logits(impl: str, method: str) -> None:
    logits = torch.tensor([[[0.0, math.nan], [1.0, 0.0]]])
    case = softmax(logits, torch.tensor([[0, 0]]), reduction="none")
    assert run(case, impl, method=method)[0].tolist()[1] == 0


# --- Weights: closed form, ties, and the sizes at which the engine changes its way


def exact_weights(errors: Tensor, target: Tensor) -> list[float]:
    """The closed form in rational arithmetic; equal errors in input order."""
    weights = [0.0] * len(errors)
    intersection = union = int(target.sum())
    for i in sorted(range(len(errors)), key=lambda i: -float(errors[i])):
        if target[i]:
            weights[i] = float(Fraction(1, union))
            intersection -= 1
        else:
            union += 1
            weights[i] = float(Fraction(intersection, union * (union - 1))) if union > 1 else 1.0
    if not target.any():  # the first loses everything, the others nothing
        first = max(range(len(errors)), key=lambda i: (float(errors[i]), -i))
        weights = [float(i == first) for i in range(len(errors))]
    return weights


def hinge_of(errors: Tensor, target: Tensor, **options: Any) -> Case:
    """The hinge whose errors are these."""
    return hinge(torch.where(target, 1 - errors, errors - 1)[None], target[None], **options)


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(problem=problems(low=-1, max_size=60))
def test_weights_of_ties_are_the_closed_form_in_input_order(
    impl: str, dtype: torch.dtype, problem: tuple[Tensor, Tensor]
) -> None:
    errors, target = problem
    expected = torch.tensor(exact_weights(errors, target), dtype=dtype) * (errors > 0)
    value, gradient = run(hinge_of(errors.to(dtype), target), impl)
    # Three divisions or products round, each by half a unit of the last place; sums of 60 of them by 30 at most.
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient[0], torch.where(target, -expected, expected), rtol=2 * epsilon, atol=0)
    torch.testing.assert_close(value, (expected * errors.to(dtype)).sum(), rtol=60 * epsilon, atol=0)


def falling(size: int) -> Tensor:
    return torch.linspace(2, 1e-3, size, dtype=torch.float64)


PATTERNS: dict[str, Callable[[int], Tensor]] = {
    "random": lambda size: 2 * torch.rand(size, dtype=torch.float64),
    "all equal": lambda size: torch.ones(size, dtype=torch.float64),
    "mostly negative": lambda size: torch.rand(size, dtype=torch.float64) - 0.99,
    "all negative": lambda size: -torch.rand(size, dtype=torch.float64),
    "falling": falling,
    "rising": lambda size: falling(size).flip(0),
    "60 powers of ten": lambda size: 10 ** (60 * torch.rand(size, dtype=torch.float64) - 30),
    # Float64 errors whose upper 32 bits agree, with ties among them.
    "equal upper bits": lambda size: 2 + 1e-9 * torch.randint(0, 1500, (size,)),
}


@pytest.fixture
def share_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short rows go the way of long ones: cut among threads, ranked in parts, put together again."""
    monkeypatch.setattr(ranking, "LONG", 100)
    monkeypatch.setattr(ranking, "_VERY_LONG", 100)
    monkeypatch.setattr(binning, "LONG", 100)
    monkeypatch.setattr(binning, "_RUN", 300)
    monkeypatch.setattr(tree_hinge_numba, "_RUN", 1)
    monkeypatch.setattr(threads, "_WORTH_SHARING", 0)
    # Only the engine's own threads: torch's, woken for every small operation, take seconds on a busy machine.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_engines_agree_where_threads_share_the_work(name: str, method: str, share_everything: None) -> None:
    options = {} if name.startswith("tree") else {"method": method}
    expected, got = (run(CASES[name], impl, **options) for impl in ENGINES)
    assert_same(got, expected)


# 24: sorting by insertion ends; 512: a block; 8192 * 512: the number of buckets is at its largest.
@pytest.mark.parametrize("size", [1, 24, 25, 511, 512, 513, 1024, 70_000])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_engines_agree_at_every_size(pattern: str, size: int) -> None:
    for share, dtype in itertools.product((0.0, 0.01, 0.5, 1.0), (torch.float32, torch.float64)):
        agree_in_every_weight(pattern, size, share, dtype)


@pytest.mark.parametrize("size", [1, 24, 101, 513, 1024, 4000])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_engines_agree_at_every_size_where_threads_share_the_work(
    pattern: str, size: int, share_everything: None
) -> None:
    for share, dtype in itertools.product((0.0, 0.01, 0.5, 1.0), (torch.float32, torch.float64)):
        agree_in_every_weight(pattern, size, share, dtype)


def agree_in_every_weight(pattern: str, size: int, share: float, dtype: torch.dtype) -> None:
    errors, target = PATTERNS[pattern](size), torch.rand(size) < share
    case = hinge_of(errors.to(dtype), target)
    for method in ("sort", "binned"):
        expected, got = (run(case, impl, method=method) for impl in ENGINES)
        assert_same(got, expected)
        # Relative to each weight, not only to the largest: weights differ by many powers of ten.
        torch.testing.assert_close(got[1], expected[1], rtol=ROUNDING[dtype], atol=0)


def test_weights_at_four_million_pixels_are_right_to_1e_6_and_none_is_lost() -> None:
    pixels = 2**22
    target = torch.arange(pixels) % 100 == 0
    errors = torch.rand(pixels) + 0.5
    logits = torch.where(target, 1 - errors, errors - 1)
    errors = torch.where(target, 1 - logits, 1 + logits)  # as the loss sees them: ties included
    order = np.argsort(-errors.numpy(), kind="stable")
    hit = target.numpy()[order]
    before = np.cumsum(hit) - hit
    union = hit.sum() + np.arange(pixels) - before
    expected = np.empty(pixels)
    expected[order] = np.where(hit, 1 / union, (hit.sum() - before) / (union * (union + 1.0)))
    _, gradient = run(hinge(logits[None], target[None]), "numba")
    for got in (torch.where(target, -gradient[0], gradient[0]), lovasz_weights(errors, target)):
        got = got.double().numpy()
        assert ((got == 0) == (expected == 0)).all()
        some = expected > 0
        assert some.mean() > 0.99
        assert np.abs(got[some] / expected[some] - 1).max() <= 1e-6


# --- Any number of threads gives the same bits


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def long_case(name: str) -> Case:
    """Rows long enough to be shared among threads."""
    own, side = labels(3, 1, 600, 600), 600
    rows = torch.arange(side).view(1, side, 1)
    small = (rows // 120 * 5 + rows.mT // 120).expand(1, side, side)
    levels = (Level(own, 4.0, per_picture=False), Level(small, 1.5))
    return {
        "hinge": lambda: hinge(
            noise(2, 300_000, dtype=torch.float64), labels(2, 2, 300_000, void=0.1), ignore_index=VOID
        ),
        "hinge, very long": lambda: hinge(noise(1, 2**22 + 1), labels(2, 1, 2**22 + 1)),
        "softmax": lambda: softmax(noise(1, 3, 300_007), labels(3, 1, 300_007, void=0.1), classes="all"),
        "tree, margin": lambda: tree(2 * noise(1, 4, side, side), *levels),
        "tree, gaussian": lambda: tree(2 * noise(1, 4, side, side, dtype=torch.float64), *levels, kernel="gaussian"),
    }[name]()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hinge", {"method": "sort"}),
        ("hinge", {"method": "sort", "per_image": False}),
        ("hinge", {"method": "binned"}),
        ("hinge", {"method": "binned", "per_image": False}),
        ("hinge, very long", {"method": "sort"}),
        ("softmax", {"method": "sort"}),
        ("softmax", {"method": "binned"}),
        ("tree, margin", {}),
        ("tree, gaussian", {}),
        ("tree, margin", {"method": "binned"}),
        ("tree, gaussian", {"method": "binned"}),
    ],
)
def test_any_number_of_threads_gives_the_same_bits(
    name: str, options: dict[str, Any], set_threads: Callable[[int], None]
) -> None:
    case, results = long_case(name), []
    for count in (1, 2, 3, 5):
        set_threads(count)
        results.append(run(case, "numba", **options))
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one, other)
    assert results[0][1].any()
