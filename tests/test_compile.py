"""The losses and the nearest class mean compile whole, export, and never make the host wait for values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lovasz_embed._ops import extension_numba, tree_operator
from lovasz_embed._ops.extension import HINGE, SOFTMAX, extension
from lovasz_embed._ops.reference import lovasz_extension
from lovasz_embed._ops.tree_hinge import TreeLevel, tree_hinge
from lovasz_embed.hierarchy import HierarchicalLovaszHinge, Level, hierarchical_lovasz_hinge
from lovasz_embed.lovasz import LovaszSoftmax, lovasz_hinge, lovasz_softmax, lovasz_weights
from lovasz_embed.prototypes import NearestClassMean, class_means, nearest_class_mean


def scene(batch: int = 2, size: int = 6) -> tuple[Tensor, Tensor]:
    """Values (B, 3, size, size) and labels 0..2 with ignored pixels."""
    labels = torch.randint(0, 3, (batch, size, size))
    labels[:, 0] = 255
    return torch.randn(batch, 3, size, size), labels


# "auto" would sort here and count on a CUDA device.
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "lovasz_hinge": lambda x, y: lovasz_hinge(x[:, 0], torch.where(y > 1, y, y % 2), ignore_index=2, method="sort"),
    "lovasz_hinge, whole batch": lambda x, y: lovasz_hinge(x[:, 0], y == 1, per_image=False, method="sort"),
    "lovasz_hinge, multilabel": lambda x, y: lovasz_hinge(x, x.detach() > 1, multilabel=True, method="sort"),
    "lovasz_softmax": lambda x, y: lovasz_softmax(x, y, method="sort"),
    "lovasz_softmax, per image": lambda x, y: lovasz_softmax(x, y, per_image=True, classes="all", method="sort"),
    "lovasz_softmax, some classes": lambda x, y: lovasz_softmax(
        x, y, classes=[2, 0], weight=x.new_ones(3), method="sort"
    ),
    "lovasz_weights": lambda x, y: (lovasz_weights(x[:, 0], y == 1) * x[:, 0]).sum(),
    "class_means": lambda x, y: class_means(x, y, num_classes=3).means.sum(),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiles_as_one_graph(name: str, dynamic: bool) -> None:
    torch.compiler.reset()
    function = FUNCTIONS[name]
    # aot_eager traces forward and backward as any backend does, without building C++ code for a minute.
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, size in [(2, 6), (3, 5)]:
        values, labels = scene(batch, size)
        labels = labels.clamp(max=2) if name == "lovasz_hinge" else labels
        one, other = values.clone().requires_grad_(), values.clone().requires_grad_()
        expected, got = function(one, labels), compiled(other, labels)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(got, other), torch.autograd.grad(expected, one))


def tree(embedding: Tensor, labels: Tensor, bandwidth: Tensor | None = None, **options: Any) -> Tensor:
    levels = (
        Level(torch.where(labels == 255, Level.IGNORED, labels), 3.0, per_picture=False),
        Level(torch.where(labels == 255, Level.IGNORED, 2 * labels + 1), 1.0, bandwidth=bandwidth, weight=0.5),
    )
    return hierarchical_lovasz_hinge(embedding, levels, **options).loss


CLASS_MEANS = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, -1.0], [math.nan, math.nan, math.nan]])
TREES: dict[str, Callable[..., Tensor]] = {
    "margin": tree,
    "numba": partial(tree, impl="numba"),  # elsewhere "auto"
    "counted": partial(tree, method="binned"),
    "gaussian": partial(tree, kernel="gaussian", truncation=0.1),
    "siblings": partial(tree, negatives="siblings"),
    "class means": lambda x, y: tree(x, y, class_means=CLASS_MEANS, ncm_weight=0.5),
    "bandwidth": lambda x, y: tree(x, y, 1 + x[:, 0].square(), kernel="gaussian"),  # with a gradient of its own
    "half": lambda x, y: tree(x.half(), y),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", TREES)
def test_the_tree_compiles_as_one_graph(name: str, dynamic: bool) -> None:
    torch.compiler.reset()
    function = TREES[name]
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, size in [(2, 6), (3, 5)]:
        values, labels = scene(batch, size)
        one, other = values.clone().requires_grad_(), values.clone().requires_grad_()
        expected, got = function(one, labels), compiled(other, labels)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(3 * got, other), torch.autograd.grad(3 * expected, one))


def test_a_tree_built_outside_the_graph_may_be_an_argument() -> None:
    torch.compiler.reset()
    values, labels = scene()
    levels = (Level(labels, 2.0, margin=1.5), Level(labels * 3, 1.0, weight=0.3, dims=(0, 2)))
    module = HierarchicalLovaszHinge()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(values, levels), module(values, levels))


@pytest.mark.parametrize("method", ["sort", "binned"])
@pytest.mark.parametrize("impl", ["reference", "numba"])
@pytest.mark.parametrize("name", ["hinge", "softmax"])
def test_every_engine_and_method_compiles_as_one_graph(name: str, impl: str, method: str) -> None:
    torch.compiler.reset()
    options = {"impl": impl, "method": method}

    def function(x: Tensor, y: Tensor) -> Tensor:
        return lovasz_softmax(x, y, **options) if name == "softmax" else lovasz_hinge(x[:, 0], y == 1, **options)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    values, labels = scene()
    one, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    expected, got = function(one, labels), compiled(other, labels)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, other), torch.autograd.grad(expected, one))


def of_two_processes(values: Tensor) -> Tensor:
    """The loss where another process counted the same."""
    labels = torch.arange(values.shape[-1]).view(1, 1, -1) % 3 == 0
    options: dict[str, Any] = {"kind": HINGE, "ignore_index": None, "per_image": False, "impl": "auto", "bins": 64}
    return extension(values, labels, **options, reduce=lambda counts: 2 * counts).losses


def test_a_compiled_loss_adds_counts_up_over_processes() -> None:
    torch.compiler.reset()
    values = torch.randn(1, 1, 20)
    compiled = torch.compile(of_two_processes, backend="aot_eager")
    torch.testing.assert_close(compiled(values), of_two_processes(values))


class Named(Tensor):
    """A tensor that comes with more than its numbers."""


def test_a_subclass_of_tensor_adds_counts_up_over_processes() -> None:
    values = torch.randn(1, 1, 20)
    torch.testing.assert_close(
        of_two_processes(values.as_subclass(Named)).as_subclass(Tensor), of_two_processes(values)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("impl", ["reference", "numba"])
@pytest.mark.parametrize("kernel", ["margin", "gaussian"])
@pytest.mark.parametrize("where", ["in a node", "far from all nodes"])
def test_not_a_number_shows_where_nobody_looks_at_the_embedding_first(
    where: str, kernel: str, impl: str, dtype: torch.dtype
) -> None:
    """As in a compiled graph: the total tells, of whatever pixel, and the loss of the node that it is in."""
    labels = (torch.arange(1200) // 300).view(1, 1200)
    embedding = 100 * (labels // 2).to(dtype) + torch.randn(1, 3, 1200, dtype=dtype)
    embedding[0, 0, 1100] = math.nan
    labels = labels if where == "in a node" else torch.where(labels < 2, labels, Level.NO_NODE)
    level = TreeLevel(labels, 1.0, 0.8, 1.0, True, None, None)
    losses = tree_hinge(embedding, [level], kernel=kernel, siblings=False, cut=0.0, impl=impl)
    assert losses.total.isnan()
    assert losses.per_node[0][2][3:].isnan().all()


# All four tests of opcheck apply. The tree's outputs have as many entries as there are nodes, which only the labels
# tell: the fake kernel says so with sizes of its own, and opcheck compares those too.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "channels", "per_image", "bins", "wanted"),
    [
        (HINGE, [], True, 0, True),
        (HINGE, [], False, 64, True),
        (HINGE, [], True, 0, False),
        (SOFTMAX, [], False, 0, True),
        (SOFTMAX, [2, 0], True, 64, True),
        (SOFTMAX, [2, 0], False, 0, False),
    ],
)
def test_the_extension_is_a_proper_operator(
    kind: int, channels: list[int], per_image: bool, bins: int, wanted: bool, dtype: torch.dtype
) -> None:
    values = torch.randn(2, 3, 7, dtype=dtype, requires_grad=wanted)
    labels = torch.randint(0, 2, (2, 3, 7), dtype=torch.uint8) if kind == HINGE else torch.randint(0, 3, (2, 7))
    arguments = (values, labels, kind, channels, False, 255, per_image, bins, wanted)
    torch.library.opcheck(extension_numba._operator, arguments)


@pytest.mark.parametrize(("dtype", "bins"), [(torch.float32, 0), (torch.float64, 0), (torch.float64, 32)])
@pytest.mark.parametrize(("gaussian", "wanted"), [(False, True), (True, True), (False, False)])
def test_the_tree_is_a_proper_operator(gaussian: bool, wanted: bool, dtype: torch.dtype, bins: int) -> None:
    embedding = torch.randn(2, 3, 40, dtype=dtype, requires_grad=wanted)
    labels = [torch.randint(0, 3, (2, 40)), torch.randint(-2, 5, (2, 40))]
    width = (0.5 + torch.rand(2, 40, dtype=dtype)).requires_grad_(wanted) if gaussian else torch.empty(0, dtype=dtype)
    arguments = (
        embedding, labels, [torch.empty(0, dtype=dtype), width], [3.0, 1.0], [7.2, 0.8], [1.0, 0.5], [False, True],
        [0, 1, 2, 0, 2], [3, 2], gaussian, False, 0.0, bins, wanted,
    )  # fmt: skip
    torch.library.opcheck(tree_operator._operator, arguments)


def test_a_dynamic_graph_is_built_once_for_all_sizes() -> None:
    torch.compiler.reset()
    for function in (lovasz_softmax, tree):
        graphs = torch._dynamo.testing.CompileCounter()
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=graphs)
        for size in (4, 5, 9):
            compiled(*scene(size=size))
        assert graphs.frame_count == 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_value_is_looked_at_on_an_accelerator(name: str) -> None:
    """Tensors on the meta device have no values: a host that waits for one fails here."""
    values, labels = scene()
    values, labels = values.to("meta").requires_grad_(), labels.to("meta")
    loss = FUNCTIONS[name](values, labels)
    loss.backward()
    assert loss.shape == ()
    assert values.grad is not None


def test_labels_out_of_range_do_not_count_where_they_are_not_looked_at() -> None:
    """In a compiled graph and on an accelerator; an index out of range would be undefined there."""
    torch.compiler.reset()
    values, labels = scene()
    wrong = torch.where(labels == 1, -7, torch.where(labels == 2, 1000, labels))
    compiled = torch.compile(class_means, fullgraph=True, backend="aot_eager")
    expected = class_means(values, torch.where(labels > 0, 255, labels), num_classes=3)
    torch.testing.assert_close(compiled(values, wrong, num_classes=3), expected, equal_nan=True)


def test_the_extension_runs_under_vmap() -> None:
    errors, target = torch.rand(4, 3, 7), torch.rand(4, 3, 7) > 0.5
    got = torch.func.vmap(lovasz_extension)(errors, target)
    torch.testing.assert_close(got, lovasz_extension(errors, target))


def test_the_loss_module_exports() -> None:
    values, labels = scene()
    module = LovaszSoftmax(weight=torch.tensor([1.0, 2.0, 3.0]))
    exported = torch.export.export(module, (values, labels)).module()
    torch.testing.assert_close(exported(values, labels), module(values, labels))


def test_the_nearest_class_mean_exports_with_one_matrix_product() -> None:
    values, labels = scene()
    ncm = NearestClassMean(4, 3, reject_radius=1.5).update(values, labels)
    batch = torch.export.Dim("batch")
    program = torch.export.export(ncm, (values,), dynamic_shapes=({0: batch},))
    products = [node for node in program.graph.nodes if node.target == torch.ops.aten.matmul.default]
    more, _ = scene(batch=3)
    assert torch.equal(program.module()(more), ncm(more))
    assert len(products) == 1


def test_the_nearest_class_mean_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    values, labels = scene()
    ncm = NearestClassMean(4, 3, dims=[0, 2], reject_radius=1.5).update(values, labels)
    compiled = torch.compile(ncm, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values), ncm(values))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestCuda:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_equals_the_cpu_without_a_host_wait(self, name: str) -> None:
        values, labels = scene()
        labels = labels.clamp(max=2) if name == "lovasz_hinge" else labels
        here = values.clone().requires_grad_()
        there, there_labels = values.cuda().requires_grad_(), labels.cuda()
        expected = FUNCTIONS[name](here, labels)
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = FUNCTIONS[name](there, there_labels)
            got.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected.backward()
        torch.testing.assert_close(got.cpu(), expected)
        assert there.grad is not None
        torch.testing.assert_close(there.grad.cpu(), here.grad)

    def test_autocast_on_equals_autocast_off(self) -> None:
        values, labels = (tensor.cuda() for tensor in scene())
        ncm = NearestClassMean(3, 3).cuda().update(values, labels)
        expected = lovasz_softmax(values, labels), ncm.logits(values), ncm(values)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            got = lovasz_softmax(values, labels), ncm.logits(values), ncm(values)
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)

    def test_nearest_class_mean_equals_the_cpu(self) -> None:
        values, labels = scene()
        here = NearestClassMean(4, 3, dims=[0, 1], reject_radius=1.5).update(values, labels)
        there = NearestClassMean(4, 3, dims=[0, 1], reject_radius=1.5).cuda().update(values.cuda(), labels.cuda())
        torch.testing.assert_close(there.means.cpu(), here.means, equal_nan=True)
        assert torch.equal(there(values.cuda()).cpu(), here(values))
        means = there.means
        assert torch.equal(nearest_class_mean(values.cuda(), means).cpu(), nearest_class_mean(values, here.means))
