"""The losses and the nearest class mean compile whole, export, and never make the host wait for values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lovasz_embed._ops.reference import lovasz_extension
from lovasz_embed.lovasz import LovaszSoftmax, lovasz_hinge, lovasz_softmax, lovasz_weights
from lovasz_embed.prototypes import NearestClassMean, class_means, nearest_class_mean


def scene(batch: int = 2, size: int = 6) -> tuple[Tensor, Tensor]:
    """Values (B, 3, size, size) and labels 0..2 with ignored pixels."""
    labels = torch.randint(0, 3, (batch, size, size))
    labels[:, 0] = 255
    return torch.randn(batch, 3, size, size), labels


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "lovasz_hinge": lambda x, y: lovasz_hinge(x[:, 0], torch.where(y > 1, y, y % 2), ignore_index=2),
    "lovasz_hinge, whole batch": lambda x, y: lovasz_hinge(x[:, 0], y == 1, per_image=False),
    "lovasz_hinge, multilabel": lambda x, y: lovasz_hinge(x, x.detach() > 1, multilabel=True),
    "lovasz_softmax": lambda x, y: lovasz_softmax(x, y),
    "lovasz_softmax, per image": lambda x, y: lovasz_softmax(x, y, per_image=True, classes="all"),
    "lovasz_softmax, some classes": lambda x, y: lovasz_softmax(x, y, classes=[2, 0], weight=x.new_ones(3)),
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


def test_a_dynamic_graph_is_built_once_for_all_sizes() -> None:
    torch.compiler.reset()
    graphs = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lovasz_softmax, fullgraph=True, dynamic=True, backend=graphs)
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
