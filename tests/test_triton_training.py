"""Training with Triton's kernels: precision, memory formats, compilation, processes, tensors in the wrong place.

Without a GPU the kernels run in Triton's interpreter, on the CPU; with one, the same tests run on it, and those
that need it do not skip.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lovasz_embed
from lovasz_embed._ops import engines
from lovasz_embed.hierarchy import Level, hierarchical_lovasz_hinge
from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax
from tests import binned_worker, triton_worker

ON_GPU = torch.cuda.is_available() and not engines.interpreting()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
CUDA = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
# Few bins where kernels are interpreted: the walk over a mask's cells takes most of the time.
COUNTED = {"impl": "triton", "method": "binned", "bins": 512 if ON_GPU else 8}

pytestmark = pytest.mark.slow  # Triton interprets

Loss = Callable[..., Tensor]


@pytest.fixture
def kernels() -> None:
    """Triton, interpreted where there is no GPU; a test that asks for it skips where Triton is missing."""
    pytest.importorskip("triton")


def scene(size: tuple[int, ...] = (2, 6, 9), device: torch.device = DEVICE) -> tuple[Tensor, Tensor]:
    """Return a semantic and an instance map, with ignored pixels, pixels of no node and a gap in the ids."""
    random = torch.Generator().manual_seed(1)
    semantic = torch.randint(0, 3, size, generator=random)
    instance = torch.where(semantic == 2, 3 * torch.randint(1, 4, size, generator=random), Level.NO_NODE)
    semantic[:, 0] = Level.IGNORED
    instance[:, 0] = Level.IGNORED
    return semantic.to(device), instance.to(device)


def tree(embedding: Tensor, semantic: Tensor, instance: Tensor, *, ncm_weight: float = 0.5, **options: Any) -> Tensor:
    """Return the tree's loss with a cross-entropy, which holds what autocast would change: a product of matrices."""
    levels = (Level(semantic, 4.0, per_picture=False), Level(instance, 1.0, weight=0.5))
    means = 2 * torch.eye(3, embedding.shape[1], device=embedding.device)
    return hierarchical_lovasz_hinge(embedding, levels, class_means=means, ncm_weight=ncm_weight, **options).loss


def hinge(embedding: Tensor, semantic: Tensor, instance: Tensor, **options: Any) -> Tensor:
    mask = torch.where(semantic == Level.IGNORED, 255, (semantic == 1).long())
    return lovasz_hinge(embedding[:, 0], mask, ignore_index=255, **options)


def softmax(embedding: Tensor, semantic: Tensor, instance: Tensor, **options: Any) -> Tensor:
    return lovasz_softmax(embedding[:, :3], semantic, ignore_index=Level.IGNORED, **options)


LOSSES: dict[str, Loss] = {"tree": tree, "hinge": hinge, "softmax": softmax}


def whole(embedding: Tensor, semantic: Tensor, instance: Tensor, **options: Any) -> Tensor:
    """All three losses of one embedding."""
    return torch.stack([loss(embedding, semantic, instance, **options) for loss in LOSSES.values()]).sum()


def embedding(size: tuple[int, ...] = (2, 6, 9), dims: int = 5) -> Tensor:
    """Return random numbers (B, dims, *spatial)."""
    random = torch.Generator().manual_seed(2)
    return torch.randn(size[0], dims, *size[1:], generator=random).to(DEVICE)


def run(loss: Loss, x: Tensor, *maps: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient, by the counting kernels where no options say otherwise."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(leaf, *maps, **(options or COUNTED))
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


# --- Precision and layout


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    """The losses compute in float32 by themselves; autocast would make a product half as precise."""
    expected, gradient = run(LOSSES[name], embedding(), *scene())
    leaf = embedding().requires_grad_()
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        value = LOSSES[name](leaf, *scene(), **COUNTED)
    value.backward()  # outside, as torch wants it: inside it would be the products of backward that lose precision
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, gradient)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_a_half_precise_embedding_is_computed_on_in_float32(name: str, dtype: torch.dtype) -> None:
    half = embedding().to(dtype)
    value, gradient = run(LOSSES[name], half, *scene())
    expected, wide = run(LOSSES[name], half.float(), *scene())
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert torch.equal(gradient, wide.to(dtype))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", LOSSES)
def test_channels_last_equals_contiguous(name: str) -> None:
    x = embedding()
    last = x.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    for got, expected in zip(run(LOSSES[name], last, *scene()), run(LOSSES[name], x, *scene()), strict=True):
        assert torch.equal(got, expected)


# --- A whole training step


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 1)).to(DEVICE)


def pictures() -> Tensor:
    return torch.rand(2, 3, 6, 9, generator=torch.Generator().manual_seed(3)).to(DEVICE)


def gradients(model: nn.Module) -> Tensor:
    """Return the gradients of all parameters, which are then dropped."""
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


@pytest.mark.usefixtures("kernels")
def test_a_step_equals_the_reference() -> None:
    model = network().double()
    steps = []
    for impl in ("triton", "reference"):
        loss = whole(model(pictures().double()), *scene(), **{**COUNTED, "impl": impl})
        loss.backward()
        steps.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(*steps, rtol=1e-10, atol=1e-12)  # float64: sums in another order


@pytest.mark.usefixtures("kernels")
def test_a_step_under_autocast_learns_from_what_the_network_put_out() -> None:
    """Inside the autocast region as outside: the loss takes the bfloat16 embedding as it is."""
    model, found = network(), []
    for inside in (True, False):
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            output = model(pictures())
            assert output.dtype == torch.bfloat16
            loss = whole(output, *scene(), **COUNTED) if inside else None
        loss = whole(output, *scene(), **COUNTED) if loss is None else loss
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    for got, expected in zip(*found, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.usefixtures("kernels")
def test_a_step_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    model = network()

    def step(images: Tensor, semantic: Tensor, instance: Tensor) -> Tensor:
        return whole(model(images), semantic, instance, **COUNTED)

    # aot_eager traces forward and backward as any backend does, without building C++ code for a minute.
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = []
    for function in (step, compiled):
        loss = function(pictures(), *scene())
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(found[1], found[0])


# --- Two processes


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes, each with its own pictures, came to."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("processes")
    root = Path(lovasz_embed.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, triton_worker.__file__, str(folder)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        for worker in workers:
            worker.wait(timeout=120)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", triton_worker.NAMES)
def test_two_processes_equal_one(both: list[dict[str, Any]], name: str) -> None:
    """In the loss, and in the gradient that DistributedDataParallel averages; the one process is the reference."""
    expected = binned_worker.step(name, "reference", binned_worker.network(), slice(None), None)
    for results in both:
        assert name in results, "the processes failed, or waited for each other"
        torch.testing.assert_close(results[name], expected, rtol=1e-10, atol=1e-12)  # float64: sums in another order
    assert expected[1].any()


def test_a_training_of_two_processes_equals_that_of_one(both: list[dict[str, Any]]) -> None:
    model = binned_worker.network()
    start = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    expected = triton_worker.train("reference", model, slice(None), None)
    assert (expected - start).abs().max() > 0.01, "it learns"
    for results in both:
        assert "train" in results, "the processes failed, or waited for each other"
        torch.testing.assert_close(results["train"], expected, rtol=1e-10, atol=1e-12)  # float64: sums reordered


# --- Tensors in the wrong place


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", LOSSES)
def test_tensors_on_the_cpu_fail_clearly_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    argument = "embedding" if name == "tree" else "input"
    with pytest.raises(ValueError, match=rf"{argument} must be on a CUDA device for impl='triton', got cpu\. Use"):
        LOSSES[name](embedding().cpu(), *scene(device=torch.device("cpu")), impl="triton")


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("name", LOSSES)
def test_labels_on_another_device_fail_clearly(name: str, impl: str) -> None:
    """The meta device stands in for a second one: values and labels may be anywhere, but together."""
    argument, of = (r"levels\[0\]\.labels", "embedding") if name == "tree" else ("target", "input")
    here, there = DEVICE, torch.device("meta")
    text = rf"{argument} must be on the device of {of} \({here}(:0)?\), got {there}\. Move it with \.to\('{here}"
    with pytest.raises(ValueError, match=text):
        LOSSES[name](embedding(), *scene(device=there), impl=impl)
    text = rf"{argument} must be on the device of {of} \({there}\), got {here}(:0)?\. Move it with \.to\('{there}'\)"
    with pytest.raises(ValueError, match=text):
        LOSSES[name](embedding().to(there), *scene(device=here), impl=impl)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", LOSSES)
def test_labels_on_another_device_than_the_kernels_fail_clearly(name: str) -> None:
    argument = r"levels\[0\]\.labels" if name == "tree" else "target"
    with pytest.raises(ValueError, match=rf"{argument} must be on the device of .*, got meta\. Move it with"):
        LOSSES[name](embedding(), *scene(device=torch.device("meta")), impl="triton")


# --- On a GPU only. Not run so far: docs/gpu.md says so.

LARGE = (1, 1024, 2048)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Let torch refuse, or warn of, what is not deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", LOSSES)
def test_deterministic_mode_gives_the_same_bits_twice(name: str) -> None:
    size = (1, 512, 512) if DEVICE.type == "cuda" else (2, 6, 9)  # many programs at once, where there are any
    with deterministic():
        results = [run(LOSSES[name], embedding(size), *scene(size)) for _ in range(2)]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@CUDA
@pytest.mark.parametrize("name", LOSSES)
def test_auto_takes_the_counting_kernels_on_a_gpu(name: str) -> None:
    got = run(LOSSES[name], embedding(), *scene(), impl="auto", method="auto")
    expected = run(LOSSES[name], embedding(), *scene())
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@CUDA
@pytest.mark.parametrize("name", LOSSES)
def test_the_host_never_waits_for_a_gpu(name: str) -> None:
    x, maps = embedding().requires_grad_(), scene()
    LOSSES[name](x, *maps).backward()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        LOSSES[name](x, *maps).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@CUDA
@pytest.mark.parametrize("name", LOSSES)
def test_a_captured_step_replays_on_other_numbers_and_labels(name: str) -> None:
    x, maps = embedding().requires_grad_(), scene()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            x.grad = None
            LOSSES[name](x, *maps).backward()
    torch.cuda.current_stream().wait_stream(side)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = LOSSES[name](x, *maps)
        loss.backward()
    with torch.no_grad():
        x.copy_(x.flip(-1) * 0.7)
        for labels in maps:
            labels.copy_(labels.roll(1, -1))
    graph.replay()
    value, gradient = run(LOSSES[name], x, *maps, impl="auto", method="auto")
    assert torch.equal(loss.detach(), value)
    assert x.grad is not None
    assert torch.equal(x.grad, gradient)


@CUDA
@pytest.mark.parametrize("name", LOSSES)
def test_a_large_picture_equals_the_exact_reference_in_float64(name: str) -> None:
    x, maps = embedding(LARGE, dims=8), scene(LARGE)
    expected, exact = run(LOSSES[name], x.double(), *maps, impl="reference", method="sort")
    value, gradient = run(LOSSES[name], x, *maps)
    # The certified bracket of 512 bins, and float32's rounding of sums of two million numbers.
    assert float(expected) * (1 - 1 / 512) * (1 - 1e-5) <= float(value) <= float(expected) * (1 + 1e-5)
    # Entries of one bin share their weight. On a CPU the counted gradient was off by 6e-4 here: a third of a bin.
    assert (gradient.double() - exact).norm() <= exact.norm() / 512


@CUDA
@pytest.mark.parametrize("name", LOSSES)
def test_a_large_picture_needs_two_and_a_half_times_its_embedding(name: str) -> None:
    x, maps = embedding(LARGE, dims=8).requires_grad_(), scene(LARGE)
    options = {"ncm_weight": 0.0} if name == "tree" else {}  # its logits are not the engine's
    LOSSES[name](x, *maps, **options).backward()
    x.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    LOSSES[name](x, *maps, **options).backward()
    assert torch.cuda.max_memory_allocated() - before <= 2.5 * x.nbytes


@CUDA
@pytest.mark.parametrize("name", LOSSES)
def test_tensors_on_the_cpu_and_a_gpu_fail_clearly(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be on the device of .* \(cuda:0\), got cpu\. Move it with"):
        LOSSES[name](embedding(), *scene(device=torch.device("cpu")))
    with pytest.raises(ValueError, match=r"must be on the device of .* \(cpu\), got cuda:0\. Move it with"):
        LOSSES[name](embedding().cpu(), *scene())
