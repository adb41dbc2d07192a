"""The Triton engine of the hinge and the softmax against the reference, under the interpreter or on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lovasz_embed
from lovasz_embed._ops.binning import cells
from lovasz_embed._ops.engines import interpreting
from lovasz_embed._ops.extension import HINGE, SOFTMAX, Extension, extension
from lovasz_embed.lovasz import LovaszSoftmax, lovasz_hinge, lovasz_softmax
from tests import binned_worker
from tests.test_engines import CASES, Case, Result, assert_same, run, strange_logits

pytest.importorskip("triton")
if not (interpreting() or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device, or Triton's interpreter", allow_module_level=True)

from lovasz_embed._ops.gpu import counting, extension_call, extension_sort
from lovasz_embed._ops.gpu import extension as engine

DEVICE = "cpu" if interpreting() else "cuda"
# Few bins, for the interpreter walks through all of a mask's. Half-precision means that hundreds of entries share one.
METHODS: dict[str, dict[str, Any]] = {"binned": {"method": "binned", "bins": 16}, "sort": {"method": "sort"}}
PAIRS = [(name, method) for name in CASES if not name.startswith("tree") for method in METHODS]


@pytest.fixture(autouse=True)
def _memory_that_nobody_wrote_is_not_a_number() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs for the smallest picture, several chunks of channels, several steps along a table."""
    monkeypatch.setattr(extension_call, "_CHUNK", 2)
    monkeypatch.setattr(extension_call, "_TILE", 256)
    monkeypatch.setattr(extension_sort, "_BLOCK", 64)
    monkeypatch.setattr(counting, "_BLOCK", 512)


def there(case: Case) -> Case:
    """The case on the device; its layout in memory is kept."""
    options = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in case.options.items()}
    return Case(case.function, case.input.to(DEVICE), case.target.to(DEVICE), options)


def on_the_device(case: Case, impl: str = "triton", **more: Any) -> Result:
    value, gradient = run(there(case), impl, **more)
    return value.cpu(), gradient.cpu()


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_agrees_with_the_reference_in_value_and_gradient(name: str, method: str) -> None:
    case, options = CASES[name], METHODS[method]
    got = on_the_device(case, **options)
    assert_same(got, run(case, "reference", **options))
    assert got[0].isfinite().all()
    assert got[1].dtype == case.input.dtype
    with torch.no_grad():
        own = there(case)
        value = own.function(own.input, own.target, **own.options, **options, impl="triton")
    assert torch.equal(value.cpu(), got[0]), "the value does not depend on whether a gradient is wanted"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize(("kind", "channels"), [(HINGE, ()), (HINGE, (2, 0)), (SOFTMAX, ()), (SOFTMAX, (3, 1))])
def test_counts_every_mask_as_the_reference_does(
    kind: int, channels: tuple[int, ...], per_image: bool, method: str
) -> None:
    values = torch.randn(3, 4, 50, dtype=torch.float64)
    labels = torch.randint(0, 4, (3, 50) if kind == SOFTMAX else (3, 4, 50))
    labels = torch.where(torch.rand(labels.shape) < 0.2, 255, labels)
    results: list[Extension] = []
    for impl, device in (("reference", "cpu"), ("triton", DEVICE)):
        result = extension(
            values.to(device), labels.to(device), kind=kind, channels=channels, ignore_index=255, per_image=per_image,
            impl=impl, bins=METHODS[method].get("bins", 0), reduce=None,
        )  # fmt: skip
        results.append(result)
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-12, atol=0)  # sums in another order


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "times"), [(1, 1), (5, 2), (150, 1)])
def test_not_a_number_is_the_largest_error(size: int, times: int, method: str, dtype: torch.dtype) -> None:
    for _ in range(times):
        own = torch.randint(0, 3, (2, size))
        # Float64 where there are many: an exponential that rounds otherwise may swap float32 neighbours.
        logits = strange_logits(2, 3, size).to(dtype if size <= 5 else torch.float64)
        for case in (
            Case(lovasz_hinge, strange_logits(2, size).to(dtype), own, {"ignore_index": 2, "reduction": "none"}),
            Case(lovasz_softmax, logits, own, {"classes": "all", "reduction": "none"}),
            Case(lovasz_softmax, logits, own, {"ignore_index": 2}),
        ):
            options = METHODS[method]
            # Each engine has an exponential of its own.
            rounding = 100 if case.function is lovasz_softmax else 1
            assert_same(on_the_device(case, **options), run(case, "reference", **options), times=rounding)


def test_masked_classes_do_not_disturb_the_softmax() -> None:
    """Logits of -inf fill the first chunks of channels: their largest is no base to start from."""
    logits = torch.randn(1, 7, 40, dtype=torch.float64)
    logits[:, :5, ::2] = -torch.inf
    case = Case(lovasz_softmax, logits, torch.randint(5, 7, (1, 40)), {})
    got = on_the_device(case, **METHODS["binned"])
    assert_same(got, run(case, "reference", **METHODS["binned"]))
    assert got[1].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_far_errors_and_tiny_ones_are_counted_where_the_reference_counts_them(method: str) -> None:
    """Beyond 2^32 and below 2^-32, at the ends of bins, and at 0, for foreground and background."""
    ends = 2.0 ** torch.arange(-40, 41, dtype=torch.float64)
    errors = torch.cat([ends, ends * (1 + 1 / 16), ends * (1 - 2.0**-25), torch.zeros(9, dtype=torch.float64)])
    mask = torch.arange(len(errors)) % 3 == 0
    # float64: what float32 keeps of 1 - (1 - 2^-40) is nothing
    case = Case(lovasz_hinge, torch.where(mask, 1 - errors, errors - 1)[None], mask[None], {})
    assert_same(on_the_device(case, **METHODS[method]), run(case, "reference", **METHODS[method]))


CHANNELS_LAST = torch.randn(2, 5, 20, 15, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
LONG = {
    "hinge": Case(lovasz_hinge, torch.randn(2, 600), torch.randint(0, 2, (2, 600)), {}),
    "softmax": Case(lovasz_softmax, CHANNELS_LAST, torch.randint(0, 5, (2, 20, 15)), {"reduction": "none"}),
    "softmax, per image": Case(lovasz_softmax, CHANNELS_LAST, torch.randint(0, 5, (2, 20, 15)), {"per_image": True}),
}


@pytest.mark.parametrize("name", LONG)
def test_tables_and_slopes_lead_to_the_same_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for slopes in (False, True):
        monkeypatch.setattr(engine, "_keeps_slopes", lambda *_, slopes=slopes: slopes)
        results.append(on_the_device(LONG[name], method="binned", bins=8))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert results[0][1].any()


@pytest.mark.parametrize("pixels", [100, 1200])
def test_backward_keeps_the_smaller_of_tables_and_slopes(pixels: int) -> None:
    values = torch.randn(1, 1, pixels, device=DEVICE)
    labels = torch.zeros_like(values, dtype=torch.uint8)
    *_, kept = engine._weigh(values, labels, None, extension_call.Options(HINGE, 255, True, 8, True))
    assert kept.numel() == min(pixels, cells(8))


def test_pictures_are_counted_in_parts_where_tables_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(lovasz_softmax, torch.randn(5, 3, 70), torch.randint(0, 3, (5, 70)), {"per_image": True})
    whole = on_the_device(case, **METHODS["binned"])
    monkeypatch.setattr(engine, "_CELLS_AT_ONCE", 2 * 3 * cells(16))
    sizes: list[int] = []
    weigh = engine.weigh_cells
    monkeypatch.setattr(engine, "weigh_cells", lambda counts, *rest: sizes.append(len(counts)) or weigh(counts, *rest))
    parts = on_the_device(case, **METHODS["binned"])
    assert sizes == [6, 6, 3]
    for one, other in zip(parts, whole, strict=True):
        assert torch.equal(one, other)


def test_points_share_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """(N, C), one pixel a picture: the batch takes the pixels' place."""
    grids: list[int] = []
    call = engine.Call

    def spy(*arguments: Any) -> Any:
        made = call(*arguments)
        grids.append(made.grid[0])
        return made

    monkeypatch.setattr(engine, "Call", spy)
    case = Case(lovasz_softmax, torch.randn(300, 3), torch.randint(0, 3, (300,)), {})
    assert_same(on_the_device(case, **METHODS["binned"]), run(case, "reference", **METHODS["binned"]))
    assert grids == [3, 3]  # 300 points in blocks of 128, forward and backward


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["hinge, batch as one", "hinge, labels", "softmax, some", "softmax, per image"])
def test_backward_scales_and_may_be_run_again(method: str, name: str) -> None:
    case = there(CASES[name])
    _, gradient = run(case, "triton", **METHODS[method])
    leaf = case.input.clone().requires_grad_()
    loss = case.function(leaf, case.target, **case.options, **METHODS[method], impl="triton").sum()
    for _ in range(3):
        loss.backward(retain_graph=True)
    (-2 * loss).backward()
    torch.testing.assert_close(leaf.grad, gradient)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LONG)
def test_two_runs_give_the_same_bits(name: str, method: str) -> None:
    one, other = (on_the_device(LONG[name], **METHODS[method]) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_auto_counts_with_512_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_BLOCK", 2**15)  # one step along a table, for the interpreter's sake
    case = CASES["softmax"]
    got = on_the_device(case)
    assert torch.equal(got[0], on_the_device(case, method="binned", bins=512)[0])
    assert not torch.equal(got[0], on_the_device(case, method="binned", bins=8)[0])
    module = LovaszSoftmax(impl="triton")
    assert torch.equal(module(*(tensor.to(DEVICE) for tensor in case[1:3])).cpu(), got[0])


# --- What the host must not do


class NoWaiting(TorchDispatchMode):
    """Fails on what makes the host wait for a device: a value, a size that depends on one, a copy from the host."""

    WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "is_nonzero", "equal", "bincount")
    COPIES = ("lift_fresh",)  # what torch.tensor does with a list

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITS + self.COPIES, f"{name} waits for the device"
        if name == "index":
            assert all(i is None or i.dtype == torch.int64 for i in args[1]), "an index by bool waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter's tensors pass for a device's."""
    for name in ("hinge.labels_in_range", "softmax.labels_in_range", "softmax._check_weight"):
        monkeypatch.setattr(f"lovasz_embed.lovasz.{name}", lambda *_: None)  # they look at tensors on the CPU only
    for name in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    launch = interpreter.GridExecutor.__call__

    def unseen(*arguments: Any, **more: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            return launch(*arguments, **more)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", unseen)  # what it does is no work of the host's


WAITING = ["hinge, void", "hinge, labels, batch as one", "softmax, weight of some", "softmax, per image"]


@pytest.mark.skipif(DEVICE == "cuda", reason="a device tells by itself")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WAITING)
def test_the_host_waits_for_nothing(name: str, method: str, as_on_a_device: None) -> None:
    case = CASES[name]
    leaf = case.input.detach().requires_grad_()
    with NoWaiting():
        case.function(leaf, case.target, **case.options, **METHODS[method], impl="triton").sum().backward()
    assert leaf.grad is not None
    leaf.grad = None


@pytest.mark.parametrize(
    "wait",
    [
        lambda values: values.sum().item(),
        lambda values: bool(values.any()),
        lambda values: values.nonzero(),
        lambda values: values[values > 0],
        lambda values: values.unique(),
        lambda values: values + torch.tensor([1.0]),
    ],
)
def test_a_wait_would_be_seen(wait: Any) -> None:
    values = torch.rand(3)
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        wait(values)


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WAITING)
def test_the_host_waits_for_no_device(name: str, method: str) -> None:
    run(there(CASES[name]), "triton", **METHODS[method])  # compiles
    case = there(CASES[name])
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(case, "triton", **METHODS[method])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["hinge, void", "softmax"])
def test_a_step_is_captured_into_a_graph(name: str, method: str) -> None:
    case, options = there(CASES[name]), METHODS[method]
    expected = run(case, "triton", **options)
    leaf = case.input.detach().clone().requires_grad_()

    def step() -> Tensor:
        leaf.grad = None
        value = case.function(leaf, case.target, **case.options, **options, impl="triton")
        value.sum().backward()
        return value.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()
    graph.replay()
    assert leaf.grad is not None
    assert torch.equal(value, expected[0])
    assert torch.equal(leaf.grad, expected[1])


# --- Compilers


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "dynamic"), [("hinge", False), ("hinge", True), ("softmax", False), ("softmax, some classes", True)]
)
def test_compiles_as_one_graph(name: str, dynamic: bool, method: str) -> None:
    torch.compiler.reset()
    options = {**METHODS[method], "impl": "triton"}

    def function(x: Tensor, y: Tensor) -> Tensor:
        if name == "hinge":
            return lovasz_hinge(x[:, 0], y == 1, **options)
        return lovasz_softmax(x, y, **({"classes": [2, 0]} if "some" in name else {}), **options)

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, size in ((2, 6), (3, 5)):
        labels = torch.randint(0, 3, (batch, size, size), device=DEVICE)
        one = torch.randn(batch, 3, size, size, device=DEVICE, requires_grad=True)
        other = one.detach().clone().requires_grad_()
        expected, got = function(one, labels), compiled(other, labels)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(3 * got, other), torch.autograd.grad(3 * expected, one))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "per_image", "bins", "wanted", "pixels", "dtype"),
    [
        (HINGE, True, 0, True, 7, torch.float32),
        (HINGE, False, 8, True, 7, torch.float32),
        (HINGE, False, 8, True, 600, torch.float64),  # tables are kept
        (SOFTMAX, False, 0, True, 7, torch.float64),
        (SOFTMAX, True, 8, True, 7, torch.float32),
        (SOFTMAX, False, 8, True, 600, torch.float32),
        (SOFTMAX, False, 8, False, 7, torch.float32),
    ],
)
def test_is_a_proper_operator(
    kind: int, per_image: bool, bins: int, wanted: bool, pixels: int, dtype: torch.dtype
) -> None:
    values = torch.randn(2, 3, pixels, dtype=dtype, device=DEVICE, requires_grad=wanted)
    shape = (2, 3, pixels) if kind == HINGE else (2, pixels)
    labels = torch.randint(0, 3, shape, dtype=torch.uint8, device=DEVICE)
    torch.library.opcheck(engine._operator, (values, labels, kind, 255, per_image, bins, wanted))


# --- Sizes, and several processes


def test_too_many_entries_of_a_mask_fail_clearly() -> None:
    many = torch.zeros(1, device=DEVICE).expand(1, 2, 2**31)
    labels = torch.zeros(1, dtype=torch.uint8, device=DEVICE).expand(1, 2, 2**31)
    options: dict[str, Any] = {"kind": HINGE, "ignore_index": None, "impl": "triton", "bins": 64, "reduce": None}
    text = (
        r"input must hold fewer than 2147483648 values a mask for impl='triton', got 2147483648\. "
        r"Use impl='reference', or fewer pictures at a time"
    )
    with pytest.raises(ValueError, match=text):
        extension(many, labels, per_image=True, **options)
    with pytest.raises(ValueError, match=text):
        extension(many[..., : 2**30].expand(2, 2, 2**30), labels[..., : 2**30], per_image=False, **options)


@pytest.mark.skipif(DEVICE == "cuda", reason="memory that nobody writes costs nothing on the CPU alone")
@pytest.mark.parametrize("method", METHODS)
def test_offsets_beyond_31_bits_are_right(method: str) -> None:
    """Channels of labels that lie 2^32 bytes apart."""
    far = torch.from_numpy(np.zeros(2**32 + 100, np.uint8)).as_strided((1, 2, 100), (1, 2**32, 1))
    far[0, 0, ::3], far[0, 1, ::7] = 1, 1
    case = Case(lovasz_hinge, torch.randn(1, 2, 100), far, {"multilabel": True, "reduction": "none"})
    near = case._replace(target=far.contiguous())
    assert_same(on_the_device(case, **METHODS[method]), run(near, "reference", **METHODS[method]))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes, each with its own pictures, came to in every case of `binned_worker`."""
    folder = tmp_path_factory.mktemp("processes")
    root = Path(lovasz_embed.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, binned_worker.__file__, str(folder)]
    workers = [subprocess.Popen([*command, str(rank), "triton"], env=environment) for rank in range(2)]
    try:
        for worker in workers:
            worker.wait(timeout=120)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.skipif(DEVICE == "cuda", reason="its two processes run on the CPU")
@pytest.mark.parametrize("name", binned_worker.CASES)
def test_two_processes_equal_one(both: list[dict[str, Any]], name: str) -> None:
    """In the loss, and in the gradient that DistributedDataParallel averages."""
    expected, expected_gradient = binned_worker.step(name, "reference", binned_worker.network(), slice(None), None)
    for rank in range(2):
        assert (name, "triton") in both[rank], "the processes failed, or waited for each other"
        loss, gradient = both[rank][name, "triton"]
        # Float64: sums over pixels in another order.
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
