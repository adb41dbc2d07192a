"""Gradients of the Lovász losses: finite differences, subgradients at kinks, dtypes, edge cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from lovasz_embed._ops.reference import lovasz_extension
from lovasz_embed.lovasz import LovaszHinge, LovaszSoftmax, lovasz_hinge, lovasz_softmax, lovasz_weights
from tests.strategies import distinct_problems, label_maps, logit_maps, problems

ENGINES = ("reference", "numba")


def value_and_gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    at = at.detach().clone().requires_grad_()
    value = loss(at)
    (gradient,) = torch.autograd.grad(value, at)
    return value.detach(), gradient


def smallest_gap(values: Tensor) -> float:
    """The distance of a row from its nearest kink: between two values, or from a value to 0."""
    sorted_values = torch.cat([values.flatten(), values.new_zeros(1)]).sort().values
    return float(sorted_values.diff().min())


# --- Away from kinks the gradient is that of finite differences


@given(distinct_problems())
def test_extension_passes_gradcheck(problem: tuple[Tensor, Tensor]) -> None:
    errors, target = problem
    assert torch.autograd.gradcheck(lambda e: lovasz_extension(e, target), errors.requires_grad_())


@pytest.mark.parametrize("impl", ENGINES)
@given(problem=distinct_problems(), ignore_first=st.booleans())
def test_hinge_passes_gradcheck(impl: str, problem: tuple[Tensor, Tensor], ignore_first: bool) -> None:
    errors, mask = problem
    logits = torch.where(mask, 1 - errors, errors - 1)[None].requires_grad_()
    target = mask.long()[None]
    if ignore_first:
        target[0, 0] = 255
    assert torch.autograd.gradcheck(lambda x: lovasz_hinge(x, target, ignore_index=255, impl=impl), logits)


@pytest.mark.parametrize("impl", ENGINES)
@given(data=st.data(), per_image=st.booleans(), classes=st.sampled_from(["present", "all"]))
def test_softmax_passes_gradcheck(impl: str, data: st.DataObject, per_image: bool, classes: str) -> None:
    logits = data.draw(logit_maps((2, 3, 3)))
    target = data.draw(label_maps((2, 3), 3, ignore_index=255))
    probabilities = logits.softmax(1).movedim(1, 0)
    # Gradcheck moves a logit by 1e-6, hence a probability by less: no error passes another.
    errors = torch.stack([((target == c).double() - p).abs() for c, p in enumerate(probabilities)])
    assume(min(smallest_gap(row) for row in errors) > 1e-4)
    weight = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return lovasz_softmax(x, target, classes=classes, per_image=per_image, weight=weight, impl=impl)

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@given(distinct_problems())
def test_gradient_of_the_extension_is_the_weight_of_positive_errors(problem: tuple[Tensor, Tensor]) -> None:
    errors, target = problem
    _, gradient = value_and_gradient(lambda e: lovasz_extension(e, target), errors)
    assert torch.equal(gradient, lovasz_weights(errors, target) * (errors > 0))


# --- At kinks (ties, errors of 0) it is a subgradient


@given(problems(rows=2, low=-2))
def test_11_at_ties_the_gradient_is_a_subgradient(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    here, there, target = problem
    value, gradient = value_and_gradient(lambda e: lovasz_extension(e, target), here)
    # Sums of at most ten float64 products of size 1 round by less than 1e-12.
    assert float(lovasz_extension(there, target)) >= float(value + gradient @ (there - here)) - 1e-12


@pytest.mark.parametrize("impl", ENGINES)
@given(problem=problems(rows=2, low=-2))
def test_11_the_hinge_has_a_subgradient_everywhere(impl: str, problem: tuple[Tensor, Tensor, Tensor]) -> None:
    here, there, target = (row[None] for row in problem)
    value, gradient = value_and_gradient(lambda x: lovasz_hinge(x, target, impl=impl), here)
    tangent = float(value + (gradient * (there - here)).sum())
    assert float(lovasz_hinge(there, target, impl=impl)) >= tangent - 1e-12


# --- Dtypes and autocast


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradient_has_the_dtype_of_the_input(dtype: torch.dtype, impl: str) -> None:
    logits, target = torch.randn(2, 3, 40).to(dtype), torch.randint(0, 3, (2, 40))
    wide = torch.promote_types(dtype, torch.float32)
    for loss in (
        lambda x: lovasz_softmax(x, target, impl=impl),
        lambda x: lovasz_hinge(x[:, 0], target == 0, impl=impl),
    ):
        _, gradient = value_and_gradient(loss, logits)
        _, expected = value_and_gradient(loss, logits.to(wide))
        assert gradient.dtype == dtype
        assert torch.equal(gradient, expected.to(dtype))


@pytest.mark.parametrize("impl", ENGINES)
def test_autocast_on_equals_autocast_off(impl: str) -> None:
    logits, target = torch.randn(2, 3, 40), torch.randint(0, 3, (2, 40))
    for loss in (
        lambda x: lovasz_softmax(x, target, weight=torch.tensor([1.0, 2.0, 3.0]), impl=impl),
        lambda x: lovasz_hinge(x, x.detach() > 0.2, multilabel=True, impl=impl),
    ):
        value, gradient = value_and_gradient(loss, logits)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast_value, cast_gradient = value_and_gradient(loss, logits)
        assert torch.equal(cast_value, value)
        assert torch.equal(cast_gradient, gradient)


# --- Edges: always a 0-d tensor in the graph, with a finite gradient

IGNORED = 255
EDGES = {
    "everything ignored": torch.full((2, 5), IGNORED),
    "one picture ignored": torch.tensor([[IGNORED] * 5, [0, 1, 0, 1, 1]]),
    "no foreground": torch.zeros(2, 5, dtype=torch.int64),
    "only foreground": torch.ones(2, 5, dtype=torch.int64),
    "one valid pixel": torch.tensor([[IGNORED] * 5, [IGNORED, 1, IGNORED, IGNORED, IGNORED]]),
    "one pixel": torch.ones(1, 1, dtype=torch.int64),
    "empty batch": torch.zeros(0, 5, dtype=torch.int64),
    "no pixels": torch.zeros(2, 0, dtype=torch.int64),
}


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("case", EDGES)
def test_edge_cases_stay_in_the_graph(case: str, per_image: bool, reduction: str, impl: str) -> None:
    target = EDGES[case]
    options = {"per_image": per_image, "ignore_index": IGNORED, "reduction": reduction, "impl": impl}
    losses = {
        "hinge": lambda x: lovasz_hinge(x[:, 0], target, **options),
        "multilabel": lambda x: lovasz_hinge(x, target.unsqueeze(1).expand_as(x), multilabel=True, **options),
        "present": lambda x: lovasz_softmax(x, target, **options),
        "all": lambda x: lovasz_softmax(x, target, classes="all", **options),
        "list": lambda x: lovasz_softmax(x, target, classes=[2], **options),
        "weighted": lambda x: lovasz_softmax(x, target, weight=torch.tensor([0.0, 0.0, 1.0]), **options),
    }
    logits = torch.randn(target.shape[0], 3, *target.shape[1:])
    valid = (target != IGNORED).unsqueeze(1).expand_as(logits)
    for name, loss in losses.items():
        value, gradient = value_and_gradient(loss, logits)
        assert value.shape == (), name
        assert value.isfinite(), name
        assert gradient.isfinite().all(), name
        assert (gradient[~valid] == 0).all(), name
        if not valid.any():
            assert value == 0, name


@pytest.mark.parametrize("method", ["sort", "binned"])
@pytest.mark.parametrize("impl", ENGINES)
def test_nan_at_ignored_pixels_harms_nothing(impl: str, method: str) -> None:
    target = torch.tensor([[0, 1, IGNORED, 1, 0, IGNORED]])
    logits = torch.randn(1, 2, 6)
    broken = torch.where(target.unsqueeze(1) == IGNORED, math.nan, logits)
    for loss in (
        lambda x: lovasz_softmax(x, target, impl=impl, method=method),
        lambda x: lovasz_hinge(x[:, 0], target, ignore_index=IGNORED, impl=impl, method=method),
    ):
        value, gradient = value_and_gradient(loss, logits)
        broken_value, broken_gradient = value_and_gradient(loss, broken)
        assert torch.equal(broken_value, value)
        assert torch.equal(broken_gradient, gradient)


@pytest.mark.parametrize("impl", ENGINES)
def test_without_an_ignore_index_every_pixel_counts(impl: str) -> None:
    logits = torch.zeros(1, 4)
    mask = torch.ones_like(logits, dtype=torch.bool)
    _, gradient = value_and_gradient(lambda x: lovasz_hinge(x, mask, impl=impl), logits)
    assert torch.equal(gradient, torch.full((1, 4), -0.25))


@pytest.mark.parametrize("impl", ENGINES)
def test_gradient_descent_on_either_loss_reaches_the_mask(impl: str) -> None:
    target = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 0]])
    for loss, channels in ((LovaszHinge(impl=impl), 1), (LovaszSoftmax(impl=impl), 2)):
        logits = (0.1 * torch.randn(1, channels, 8)).requires_grad_()
        optimiser = torch.optim.SGD([logits], lr=0.5)
        for _ in range(100):
            optimiser.zero_grad()
            loss(logits if channels > 1 else logits[:, 0], target).backward()
            optimiser.step()
        prediction = logits.argmax(1) if channels > 1 else logits[:, 0] > 0
        assert torch.equal(prediction.long(), target)
