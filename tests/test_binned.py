"""The binned method: its bracket around the exact loss, its options, and one loss over several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed import ProcessGroup

import lovasz_embed
from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax
from tests import binned_worker
from tests.strategies import layer_cake, masks

ENGINES = ("reference", "numba")
# Sums of at most forty float64 numbers round by less than this share of them.
ROUNDING = 1e-12


@st.composite
def rows(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Float64 hinge logits of errors of one scale from 1e-6 to 1e6, ties and negative errors too, and their mask."""
    size = draw(st.integers(1, 40))
    shares = st.sampled_from([-1.0, 0.0, 0.5, 1.0]) | st.floats(1e-3, 1)
    scale = 10.0 ** draw(st.integers(-6, 6))
    errors = scale * torch.tensor(draw(st.lists(shares, min_size=size, max_size=size)), dtype=torch.float64)
    mask = draw(masks(size))
    return torch.where(mask, 1 - errors, errors - 1)[None], mask[None]


@pytest.mark.parametrize("impl", ENGINES)
@given(row=rows(), bins=st.sampled_from([2**k for k in range(3, 13)]))
def test_the_exact_hinge_lies_in_the_bracket(impl: str, row: tuple[Tensor, Tensor], bins: int) -> None:
    logits, mask = row
    binned = float(lovasz_hinge(logits, mask, method="binned", bins=bins, impl=impl))
    exact = layer_cake(torch.where(mask, 1 - logits, 1 + logits)[0], mask[0])
    assert float(lovasz_hinge(logits, mask, impl=impl)) == pytest.approx(exact, rel=ROUNDING)
    assert binned * (1 - ROUNDING) <= exact
    assert exact <= (1 + 1 / bins) * binned * (1 + ROUNDING) + 2**-32


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("bins", [8, 64, 512, 4096])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 30.0])
def test_the_exact_softmax_of_every_class_lies_in_the_bracket(impl: str, bins: int, sharpness: float) -> None:
    logits, target = sharpness * torch.randn(2, 4, 300, dtype=torch.float64), torch.randint(0, 4, (2, 300))
    exact = lovasz_softmax(logits, target, reduction="none")
    binned = lovasz_softmax(logits, target, reduction="none", method="binned", bins=bins, impl=impl)
    assert (binned <= exact * (1 + ROUNDING)).all()
    assert (exact <= (1 + 1 / bins) * binned * (1 + ROUNDING) + 2**-32).all()
    assert (binned < exact).any(), "it is the binned method that ran"


@pytest.mark.parametrize("impl", ENGINES)
def test_the_finest_bins_equal_sorting(impl: str) -> None:
    logits, target = torch.randn(2, 5000), torch.rand(2, 5000) < 0.3
    exact = lovasz_hinge(logits, target, impl=impl)
    binned = lovasz_hinge(logits, target, impl=impl, method="binned", bins=65536)
    torch.testing.assert_close(binned, exact, rtol=2e-5, atol=0)  # 1 / 65536, and float32 rounding


@pytest.mark.parametrize("impl", ENGINES)
def test_weights_of_bins_share_what_the_bin_loses(impl: str) -> None:
    """One bin for all: with foreground taken first, 1/2 each; the background shares the rest of the union evenly."""
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    lovasz_hinge(logits, torch.tensor([[0, 1, 0, 1]]), method="binned", impl=impl).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0, -0.5, 0.0, -0.5]]


@pytest.mark.parametrize("impl", ENGINES)
@given(row=rows(), bins=st.sampled_from([8, 512]))
def test_the_binned_value_is_its_gradient_times_the_errors(impl: str, row: tuple[Tensor, Tensor], bins: int) -> None:
    logits, mask = row
    leaf = logits.clone().requires_grad_()
    value = lovasz_hinge(leaf, mask, method="binned", bins=bins, impl=impl)
    value.backward()
    assert leaf.grad is not None
    weights, errors = torch.where(mask, -leaf.grad, leaf.grad), torch.where(mask, 1 - logits, 1 + logits)
    assert (weights >= 0).all()
    assert float((weights * errors).sum()) == pytest.approx(float(value.detach()), rel=ROUNDING)


@pytest.mark.parametrize("bins", [0, 1, 4, 7, 12, 100, 2**17, -8])
def test_other_numbers_of_bins_fail_clearly(bins: int) -> None:
    with pytest.raises(ValueError, match=f"bins must be a power of two from 8 to 65536, got {bins}"):
        lovasz_hinge(torch.zeros(1, 4), torch.zeros(1, 4).long(), method="binned", bins=bins)


@pytest.mark.parametrize("bins", [True, 8.0, "8"])
def test_bins_of_another_type_fail_clearly(bins: Any) -> None:
    with pytest.raises(TypeError, match=f"bins must be an int or None, got {type(bins).__name__}"):
        lovasz_softmax(torch.zeros(1, 2, 4), torch.zeros(1, 4).long(), method="binned", bins=bins)


@pytest.mark.parametrize("method", ["auto", "sort"])
def test_bins_for_a_method_that_may_sort_fail_clearly(method: str) -> None:
    with pytest.raises(ValueError, match=rf"bins must be None for method='{method}', got 64\. Use method='binned'"):
        lovasz_hinge(torch.zeros(1, 4), torch.zeros(1, 4).long(), method=method, bins=64)


# --- Several processes


@pytest.fixture
def alone() -> Iterator[ProcessGroup]:
    """A group of this process only."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    group = torch.distributed.group.WORLD
    assert group is not None
    yield group
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["auto", "sort"])
def test_a_group_for_a_method_that_may_sort_fails_clearly(alone: ProcessGroup, method: str) -> None:
    text = rf"group must be None for method='{method}', got a process group\. Use method='binned': counts add up"
    for loss, logits in ((lovasz_hinge, torch.zeros(1, 4)), (lovasz_softmax, torch.zeros(1, 2, 4))):
        with pytest.raises(ValueError, match=text):
            loss(logits, torch.zeros(1, 4).long(), per_image=False, method=method, group=alone)


def test_a_group_for_a_loss_per_picture_fails_clearly(alone: ProcessGroup) -> None:
    text = r"group must be None for per_image=True, got a process group\. Use per_image=False: a picture lies in one"
    with pytest.raises(ValueError, match=text):  # the hinge's default
        lovasz_hinge(torch.zeros(1, 4), torch.zeros(1, 4).long(), method="binned", group=alone)
    with pytest.raises(ValueError, match=text):
        lovasz_softmax(torch.zeros(1, 2, 4), torch.zeros(1, 4).long(), method="binned", per_image=True, group=alone)


@pytest.mark.parametrize("impl", ENGINES)
def test_a_group_of_one_is_no_group(alone: ProcessGroup, impl: str) -> None:
    logits, target = torch.randn(2, 3, 40), torch.randint(0, 3, (2, 40))
    results = []
    for group in (None, alone):
        leaf = logits.clone().requires_grad_()
        loss = lovasz_softmax(leaf, target, method="binned", impl=impl, group=group)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes, each with its own pictures, came to in every case of `binned_worker`."""
    folder = tmp_path_factory.mktemp("processes")
    root = Path(lovasz_embed.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, binned_worker.__file__, str(folder)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        for worker in workers:
            worker.wait(timeout=120)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("impl", ENGINES)
@pytest.mark.parametrize("name", binned_worker.CASES)
def test_two_processes_equal_one(both: list[dict[str, Any]], name: str, impl: str) -> None:
    """In the loss, and in the gradient that DistributedDataParallel averages."""
    expected, expected_gradient = binned_worker.step(name, impl, binned_worker.network(), slice(None), None)
    for rank in range(2):
        assert (name, impl) in both[rank], "the processes failed, or waited for each other"
        loss, gradient = both[rank][name, impl]
        # Float64: sums over pixels in another order.
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    assert expected_gradient.any() or name == "all void"
