"""The Triton engine of the tree against the reference that counts as well; interpreted where there is no GPU."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lovasz_embed._ops.nodes import find_nodes
from lovasz_embed.hierarchy import HierarchicalLoss, Level, hierarchical_lovasz_hinge, panoptic_levels

pytest.importorskip("triton")

from lovasz_embed._ops.gpu import nodes as gpu_nodes
from lovasz_embed._ops.gpu import tree as gpu_tree
from lovasz_embed._ops.gpu import tree_operator

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for, to multiply in one fixed order

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BINS = 64
MOST = 64  # nodes of a level, in these tests

# Sums in another order, of up to 126 terms.
TIGHT = {"rtol": 1e-11, "atol": 1e-13}
# float32 rounds a distance by some 1e-7, which can move an entry into the next of 64 cells per doubling, and its
# weight by as much as the counts of the two cells differ.
LOOSE = {"rtol": 2e-3, "atol": 2e-4}


@pytest.fixture(autouse=True)
def _memory_that_nobody_wrote_is_not_a_number() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs a picture, two batches of nodes."""
    monkeypatch.setattr(gpu_nodes, "MAX_NODES", MOST)
    monkeypatch.setattr(gpu_nodes, "_BLOCK", 32)
    monkeypatch.setattr(gpu_tree, "NODES_AT_ONCE", 32)
    monkeypatch.setattr(gpu_tree, "_TILE", 128)


# --- The table

RANDOM = torch.Generator().manual_seed(0)
SHAPE = (2, 5, 8)


class Case(NamedTuple):
    embedding: Tensor
    levels: tuple[Level, ...]
    options: dict[str, Any]


def case(embedding: Tensor, *levels: Level, **options: Any) -> Case:
    return Case(embedding, levels, options)


def noise(*shape: int, scale: float = 1.2) -> Tensor:
    return scale * torch.randn(shape, generator=RANDOM, dtype=torch.float64)


def labels(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=RANDOM)


EMBEDDING = noise(2, 3, *SHAPE[1:])
MAP = labels(-2, 3, *SHAPE)
FINE = torch.where(MAP > 0, 2 * MAP + labels(0, 2, *SHAPE), MAP.clamp(max=-1))
CATEGORY = Level(MAP, 3.0, per_picture=False)
INSTANCE = Level(FINE, 1.0, weight=0.5)
WIDTH = 0.5 + torch.rand(SHAPE, generator=RANDOM, dtype=torch.float64)
LINE = torch.arange(40).view(1, 40)
HUGE = torch.tensor([7, 2**62, 2**33 + 1, 2**33, 0, 2**62 - 1, 5 * 2**40])

CASES: dict[str, Case] = {
    "two levels": case(EMBEDDING, CATEGORY, INSTANCE),
    "siblings": case(EMBEDDING, CATEGORY, INSTANCE, negatives="siblings"),
    "gaussian": case(EMBEDDING, CATEGORY, INSTANCE, kernel="gaussian"),
    "gaussian, siblings": case(EMBEDDING, CATEGORY, INSTANCE, kernel="gaussian", negatives="siblings"),
    "gaussian, cut": case(EMBEDDING, INSTANCE, kernel="gaussian", truncation=0.3),
    "gaussian, cut, near": case(0.4 * EMBEDDING, INSTANCE, kernel="gaussian", truncation=0.5),
    "gaussian, far": case(8 * EMBEDDING, INSTANCE, kernel="gaussian"),
    "bandwidth": case(EMBEDDING, CATEGORY, Level(FINE, 1.0, bandwidth=WIDTH), kernel="gaussian"),
    "some dimensions": case(EMBEDDING, Level(MAP, 3.0, per_picture=False, dims=(2, 0)), Level(FINE, 1.0, dims=(1,))),
    "one dimension of one": case(EMBEDDING[:, :1], INSTANCE),
    "over the batch": case(EMBEDDING, Level(FINE, 1.0, per_picture=False)),
    "weight 0": case(EMBEDDING, Level(MAP, 3.0, weight=0.0), INSTANCE),
    "margin": case(EMBEDDING, Level(MAP, 2.0, margin=0.5)),
    "huge labels with gaps": case(EMBEDDING, Level(HUGE[labels(0, 7, *SHAPE)], 1.5)),
    "uint8": case(EMBEDDING, Level(MAP.clamp(min=0).to(torch.uint8), 2.0)),
    "bool": case(EMBEDDING, Level(MAP > 0, 2.0)),
    "int16": case(EMBEDDING, Level(MAP.to(torch.int16), 2.0)),
    "many nodes": case(noise(1, 2, 40), Level(LINE // 2, 2.0, per_picture=False), Level(LINE, 1.0)),
    "several levels": case(noise(1, 2, 40), Level(LINE // 20, 2.0), Level(LINE // 5, 1.0), negatives="siblings"),
    "far from the origin": case(EMBEDDING + 300, CATEGORY),
    "one point": case(torch.full_like(EMBEDDING, 0.3), CATEGORY, INSTANCE),
    "at rest": case(1e3 * MAP[:, None].expand(2, 3, *SHAPE[1:]).double() + 0.01 * EMBEDDING, Level(MAP, 1.0)),
    "origin": case(torch.zeros_like(EMBEDDING), CATEGORY),
    "no node": case(EMBEDDING, Level(torch.full(SHAPE, -1), 1.0), INSTANCE),
    "all ignored": case(EMBEDDING, Level(torch.full(SHAPE, -2), 1.0)),
    "a picture ignored": case(EMBEDDING, Level(torch.where(torch.tensor([True, False]).view(2, 1, 1), -2, MAP), 2.0)),
    "only one node": case(EMBEDDING, Level(torch.zeros(SHAPE, dtype=torch.long), 1.0)),
    "one pixel": case(noise(1, 3, 1), Level(torch.zeros(1, 1, dtype=torch.long), 1.0)),
    "no picture": case(EMBEDDING[:0], Level(MAP[:0], 1.0), Level(MAP[:0], 1.0, per_picture=False)),
    "no pixel": case(EMBEDDING[..., :0], Level(MAP[..., :0], 1.0)),
    "transposed": case(noise(8, 5, 3, 2).permute(3, 2, 1, 0), Level(MAP.mT.contiguous().mT, 2.0)),
}  # fmt: skip


class Found(NamedTuple):
    """Totals and levels, then every level's (picture, label, loss), then the gradients."""

    result: HierarchicalLoss
    gradients: list[Tensor]


def run(case: Case, impl: str, dtype: torch.dtype = torch.float64, **more: Any) -> Found:
    leaf = case.embedding.to(DEVICE, dtype).clone().requires_grad_()
    widths = [
        None if x.bandwidth is None else x.bandwidth.to(DEVICE, dtype).clone().requires_grad_() for x in case.levels
    ]
    levels = [
        Level(x.labels.to(DEVICE), x.radius, x.margin, x.weight, x.per_picture, x.dims, width)
        for x, width in zip(case.levels, widths, strict=True)
    ]
    options = {"method": "binned", "bins": BINS, **case.options, **more}
    result = hierarchical_lovasz_hinge(leaf, levels, **options, impl=impl)
    result.loss.backward()
    learnt = [leaf, *(width for width in widths if width is not None)]
    gradients = [values.grad for values in learnt]
    assert all(gradient is not None for gradient in gradients)
    return Found(result, gradients)


def assert_same(got: Found, expected: Found, tolerance: dict[str, float]) -> None:
    torch.testing.assert_close(got.result.loss, expected.result.loss, **tolerance)
    torch.testing.assert_close(got.result.per_level, expected.result.per_level, **tolerance)
    for nodes, others in zip(got.result.per_node, expected.result.per_node, strict=True):
        count = len(others.label)
        assert torch.equal(nodes.label[:count], others.label)
        assert torch.equal(nodes.picture[:count], others.picture)
        torch.testing.assert_close(nodes.loss[:count], others.loss, **tolerance)
        for rest, nothing in ((nodes.label, -1), (nodes.picture, -1), (nodes.loss, 0)):
            assert (rest[count:] == nothing).all()
    for one, other in zip(got.gradients, expected.gradients, strict=True):
        largest = float(other.abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=tolerance["rtol"], atol=tolerance["rtol"] * largest + 1e-15)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str) -> None:
    assert_same(run(CASES[name], "triton"), run(CASES[name], "reference"), TIGHT)


def test_more_nodes_at_once_than_a_word_has_flags_equal_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tree, "NODES_AT_ONCE", 64)
    own = case(noise(1, 2, 40), Level(LINE, 1.0))
    assert_same(run(own, "triton"), run(own, "reference"), TIGHT)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["siblings", "bandwidth"])
def test_equals_the_reference_in_less_than_float64(name: str, dtype: torch.dtype) -> None:
    got, expected = run(CASES[name], "triton", dtype), run(CASES[name], "reference", dtype)
    # Half precision rounds the gradient once more.
    rounding = {torch.float32: LOOSE, torch.float16: LOOSE, torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2}}
    assert got.gradients[0].dtype == dtype
    assert_same(got, expected, rounding[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siblings", "bandwidth"])
def test_two_runs_are_the_same_bit_for_bit(name: str) -> None:
    one, other = run(CASES[name], "triton", torch.float32), run(CASES[name], "triton", torch.float32)
    assert torch.equal(one.result.loss, other.result.loss)
    for a, b in zip(one.gradients, other.gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bins", [8, 64])
def test_every_node_is_within_the_certified_bracket(bins: int) -> None:
    counted = run(CASES["two levels"], "triton", bins=bins).result.per_node
    exact = run(CASES["two levels"], "reference", method="sort", bins=None).result.per_node
    for nodes, others in zip(counted, exact, strict=True):
        below = nodes.loss[: len(others.loss)]
        assert (below <= others.loss * (1 + 1e-12)).all()  # rounding of float64
        assert (others.loss <= (1 + 1 / bins) * (below + 2.0**-32)).all()
        assert (others.loss - below).max() > 0, "nothing was counted"


def test_without_a_gradient_the_losses_are_the_same() -> None:
    case = CASES["two levels"]
    levels = [Level(x.labels.to(DEVICE), x.radius, weight=x.weight, per_picture=x.per_picture) for x in case.levels]
    got = hierarchical_lovasz_hinge(case.embedding.to(DEVICE), levels, impl="triton", method="binned", bins=BINS)
    assert not got.loss.requires_grad
    torch.testing.assert_close(got.loss, run(case, "reference").result.loss.detach(), **TIGHT)


def test_auto_is_counted_with_512_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    engine = tree_operator.tree_hinge_triton

    def look(*arguments: Any) -> Any:
        seen.append(arguments[-1])
        return engine(*arguments[:-1], 8)

    monkeypatch.setattr(tree_operator, "tree_hinge_triton", look)
    for method, bins in (("auto", None), ("binned", None), ("binned", 128)):
        run(CASES["one pixel"], "triton", method=method, bins=bins)
    assert seen == [512, 512, 128]


def test_batches_beyond_the_last_node_are_left_out_where_the_count_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the host knows it in time is chance on a GPU: it must not matter."""
    first = []
    batch = gpu_tree.Tree._batch

    def look(self: Any, *arguments: Any, **more: Any) -> None:
        first.append(arguments[-1])
        batch(self, *arguments, **more)

    monkeypatch.setattr(gpu_tree.Tree, "_batch", look)
    found = []
    for known in (None, 5):
        monkeypatch.setattr(gpu_nodes.Count, "peek", lambda _, known=known: known)
        found.append(run(case(EMBEDDING[:1].flatten(2), Level(LINE // 8, 1.0)), "triton"))
    assert first == [0, 32, 0]
    assert_same(found[1], found[0], {"rtol": 0.0, "atol": 0.0})


def test_the_gradient_arrives_times_what_comes_from_above() -> None:
    case = CASES["siblings"]
    leaf = case.embedding.to(DEVICE).clone().requires_grad_()
    levels = [Level(x.labels.to(DEVICE), x.radius, weight=x.weight, per_picture=x.per_picture) for x in case.levels]
    loss = hierarchical_lovasz_hinge(leaf, levels, **case.options, impl="triton", method="binned", bins=BINS).loss
    (once,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, leaf)
    torch.testing.assert_close(thrice, 3 * once)


@pytest.mark.parametrize(("pull", "norm", "per_picture"), [(0.5, 0.25, False), (0.5, 0.0, True), (0.0, 1.0, True)])
def test_terms_of_the_class_means_equal_the_reference(pull: float, norm: float, per_picture: bool) -> None:
    means = torch.tensor([[1.0, 0, 0], [torch.nan, torch.nan, torch.nan], [0, 1, 0]], dtype=torch.float64)
    options = {"class_means": means.to(DEVICE), "ncm_weight": 0.5, "pull_weight": pull, "norm_weight": norm}
    own = case(EMBEDDING, Level(MAP, 3.0, per_picture=per_picture), **options)
    assert_same(run(own, "triton"), run(own, "reference"), TIGHT)


def test_cross_entropy_against_the_means_of_the_batch_equals_the_reference() -> None:
    own = case(EMBEDDING, CATEGORY, ncm_weight=0.5, norm_weight=0.25)
    assert_same(run(own, "triton"), run(own, "reference"), TIGHT)


def test_terms_of_the_class_means_without_a_node_are_zero() -> None:
    own = case(EMBEDDING, Level(torch.full(SHAPE, -1), 1.0), norm_weight=1.0)
    assert run(own, "triton").result.loss == 0


# --- The nodes


@pytest.mark.parametrize("per_picture", [True, False])
@pytest.mark.parametrize("high", [1, 12, 2**62])
def test_nodes_are_numbered_as_by_sorting(high: int, per_picture: bool) -> None:
    few = torch.randint(0, high, (12,), generator=RANDOM)
    own = torch.where(torch.rand(3, 50, generator=RANDOM) < 0.2, -1, few[labels(0, 12, 3, 50)])
    own = torch.where(torch.rand(3, 50, generator=RANDOM) < 0.2, -2, own)
    expected = find_nodes(own, per_picture=per_picture)
    got = gpu_nodes.number_nodes(own.to(DEVICE), per_picture=per_picture)
    count = len(expected)
    assert int(got.count) == count
    assert torch.equal(got.member.cpu().long(), expected.member)
    assert torch.equal(got.label[:count].cpu(), expected.label)
    assert torch.equal(got.picture[:count].cpu(), expected.picture)
    for b in range(3):
        of_picture = expected.picture == (b if per_picture else -1)
        first = int(of_picture.nonzero()[0]) if of_picture.any() else int(got.starts[b])
        assert (int(got.starts[b]), int(got.stops[b])) == (first, first + int(of_picture.sum()))


@pytest.mark.skipif(DEVICE == "cuda", reason="an assertion on the device ends the process")
def test_labels_that_meet_in_a_slot_go_on_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a table with hardly more slots than labels all are found; in one with fewer, it says so."""
    monkeypatch.setattr(gpu_nodes, "LEAST_SLOTS", 64)
    own = LINE * 977
    assert torch.equal(gpu_nodes.number_nodes(own.to(DEVICE), per_picture=True).member.cpu(), LINE.int())
    monkeypatch.setattr(gpu_nodes, "LEAST_SLOTS", 1)
    monkeypatch.setattr(gpu_nodes, "MAX_NODES", 1)
    with pytest.raises(RuntimeError, match="levels must have at most 1 nodes"):
        gpu_nodes.number_nodes(own.to(DEVICE), per_picture=True)


# --- What does not fit; on a GPU the device would fail, and with it every test after this one


@pytest.mark.skipif(DEVICE == "cuda", reason="an assertion on the device ends the process")
@pytest.mark.parametrize("per_picture", [True, False])
def test_too_many_nodes_fail_clearly(per_picture: bool) -> None:
    own = case(noise(2, 2, MOST // 2 + 1), Level(torch.arange(MOST + 2).view(2, -1), 1.0, per_picture=per_picture))
    with pytest.raises(RuntimeError, match=f"levels must have at most {MOST} nodes each for impl='triton'.*got more"):
        run(own, "triton")


@pytest.mark.skipif(DEVICE == "cuda", reason="an assertion on the device ends the process")
@pytest.mark.parametrize("parent", [[0, 1], [0, -1], [-1, -1]])
def test_labels_that_are_no_tree_fail_clearly(parent: list[int]) -> None:
    own = case(torch.zeros(1, 2, 2), Level(torch.tensor([parent]), 4.0), Level(torch.tensor([[3, 3]]), 1.0))
    assert run(own, "triton").result.loss >= 0
    with pytest.raises(RuntimeError, match=r"levels must form a tree.*Ignore those pixels, or use negatives='all'"):
        run(own, "triton", negatives="siblings")


def test_more_pixels_than_a_count_holds_fail_clearly() -> None:
    embedding = torch.zeros(1, 1, 1, device=DEVICE).expand(1, 1, 2**31)
    own = [Level(torch.zeros(1, 1, dtype=torch.long, device=DEVICE).expand(1, 2**31), 1.0)]
    with pytest.raises(ValueError, match="embedding must have fewer than 2\\^31 pixels for impl='triton'"):
        tree_operator.tree_hinge_triton(embedding, levels_of(own), False, False, 0.0, BINS)


def levels_of(levels: list[Level]) -> list[Any]:
    from lovasz_embed._ops.tree_hinge import TreeLevel

    return [TreeLevel(x.labels, x.radius, x.margin2, x.weight, x.per_picture, x.dims, None) for x in levels]


@pytest.mark.parametrize("gaussian", [False, True])
def test_not_a_number_shows(gaussian: bool) -> None:
    embedding = EMBEDDING.to(DEVICE).clone()
    embedding[0, 0, 0, 0] = torch.nan
    found = tree_operator.tree_hinge_triton(embedding.flatten(2), flat([CATEGORY]), gaussian, False, 0.0, BINS)
    assert found.total.isnan()
    assert found.per_node[0][2][:3].isnan().all()


def flat(levels: list[Level]) -> list[Any]:
    return levels_of([Level(x.labels.flatten(1).to(DEVICE), x.radius, per_picture=x.per_picture) for x in levels])


# --- Operators, compilers, waiting


@pytest.mark.slow
@pytest.mark.parametrize(("gaussian", "wanted"), [(True, True), (False, False)])
def test_the_tree_is_a_proper_operator(gaussian: bool, wanted: bool) -> None:
    embedding = EMBEDDING.to(DEVICE).flatten(2)[..., :10].clone().requires_grad_(wanted)
    own = [MAP.to(DEVICE).flatten(1)[:, :10], FINE.to(DEVICE).flatten(1)[:, :10]]
    nothing = embedding.new_empty(0)
    width = WIDTH.to(DEVICE).flatten(1)[:, :10].clone().requires_grad_(wanted) if gaussian else nothing
    arguments = (
        embedding, own, [nothing, width], [3.0, 1.0], [7.2, 0.8], [1.0, 0.5], [False, True],
        [0, 1, 2, 0, 2], [3, 2], gaussian, False, 0.0, 8, wanted,
    )  # fmt: skip
    torch.library.opcheck(tree_operator._operator, arguments)


def test_the_numbering_is_a_proper_operator() -> None:
    torch.library.opcheck(gpu_nodes.named_nodes, (MAP.to(DEVICE).flatten(1), True))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool) -> None:
    torch.compiler.reset()
    embedding, upper = noise(1, 2, 12).to(DEVICE), (LINE[:, :12] // 6).to(DEVICE)

    def loss(leaf: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
        levels = Level(upper, 2.0, per_picture=False), Level(lower, 1.0)
        options = {"negatives": "siblings", "impl": "triton", "method": "binned", "bins": 8}
        return hierarchical_lovasz_hinge(leaf, levels, **options, norm_weight=0.5).loss

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found = []
    for function in (loss, compiled):
        leaf = embedding.clone().requires_grad_()
        value = function(leaf, upper, (LINE[:, :12] // 3).to(DEVICE))
        value.backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(found[1], found[0])


class NoWaiting(TorchDispatchMode):
    """Fails on what makes the host wait for a device: a value, a size that depends on one, a copy from the host."""

    WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero", "equal", "bincount", "lift")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.lstrip("_").startswith(tuple(w.lstrip("_") for w in self.WAITS)), f"{name} waits"
        assert name != "_to_copy" or (kwargs or {}).get("device") is None, "a copy to another device waits"
        if name == "index":
            assert all(i is None or i.dtype == torch.int64 for i in args[1]), "an index by bool waits for the device"
        return func(*args, **(kwargs or {}))


def whole_step(leaf: Tensor, semantic: Tensor, instance: Tensor, means: Tensor) -> Tensor:
    levels = panoptic_levels(semantic, instance, things={1, 2}, radii=(3.0, 1.0))
    options = {"class_means": means, "ncm_weight": 1.0, "pull_weight": 0.5, "norm_weight": 0.1, "impl": "triton"}
    loss = hierarchical_lovasz_hinge(leaf, levels, negatives="siblings", **options).loss
    loss.backward()
    return loss


def test_the_host_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    semantic = torch.where(MAP < 0, 255, MAP).to(DEVICE)
    instance = labels(0, 3, *SHAPE).to(DEVICE)
    leaf, means = EMBEDDING.to(DEVICE).clone().requires_grad_(), torch.randn(3, 3, dtype=torch.float64).to(DEVICE)
    if DEVICE == "cuda":
        whole_step(leaf, semantic, instance, means)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            whole_step(leaf, semantic, instance, means)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    # What is looked at on the CPU only, which is what the interpreter runs on.
    from lovasz_embed.hierarchy import class_terms, levels

    monkeypatch.setattr("lovasz_embed._check.all_finite", lambda *_: None)
    monkeypatch.setattr(class_terms, "_check_class_means", lambda *_: None)
    monkeypatch.setattr(levels, "_check_values", lambda *_: None)
    monkeypatch.setattr(levels, "_numbers", lambda semantic, instance, _: 3 * semantic + instance)
    for method in ("tolist", "numpy", "cpu", "item"):
        monkeypatch.setattr(Tensor, method, lambda *_, method=method: pytest.fail(f"{method} waits for the device"))
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    def unseen(self: Any, *arguments: Any, **more: Any) -> Any:
        """On a GPU there is nothing to be seen of a launch."""
        with monkeypatch.context() as patch, _disable_current_modes():
            patch.undo()
            return launch(self, *arguments, **more)

    monkeypatch.setattr(GridExecutor, "__call__", unseen)
    with NoWaiting():
        whole_step(leaf, semantic, instance, means)


def test_levels_on_a_cuda_device_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are not compacted there; nodes are the same, in the same order, and so is everything else."""
    from lovasz_embed.hierarchy.levels import _numbers

    semantic, instance = torch.tensor([[0, 1, 2, 2, 1]]), torch.tensor([[0, 7, 2**61, 5, 7]])
    things = semantic > 0
    here = find_nodes(torch.where(things, _numbers(semantic, instance, things), -1), per_picture=True)

    class There(Tensor):
        is_cuda = True

    there = _numbers(semantic.as_subclass(There), instance.as_subclass(There), things).as_subclass(Tensor)
    assert torch.equal(find_nodes(torch.where(things, there, -1), per_picture=True).member, here.member)
    with pytest.raises(RuntimeError, match=r"instance must hold ids below 2\^63 divided by the highest category"):
        _numbers(semantic.as_subclass(There), 2 * instance.as_subclass(There), things)


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["siblings", "bandwidth"])
def test_a_step_is_captured_into_a_graph(name: str) -> None:
    own = CASES[name]
    expected = run(own, "triton")
    leaf = own.embedding.to(DEVICE).clone().requires_grad_()
    levels = [
        Level(x.labels.to(DEVICE), x.radius, weight=x.weight, per_picture=x.per_picture,
              bandwidth=None if x.bandwidth is None else x.bandwidth.to(DEVICE))
        for x in own.levels
    ]  # fmt: skip

    def step() -> Tensor:
        leaf.grad = None
        options = {"method": "binned", "bins": BINS, **own.options}
        loss = hierarchical_lovasz_hinge(leaf, levels, **options, impl="triton").loss
        loss.backward()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()
    graph.replay()
    assert torch.equal(value, expected.result.loss.detach())
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, expected.gradients[0])


def test_every_combination_of_kernel_and_negatives_is_in_the_table() -> None:
    there = {(c.options.get("kernel", "margin"), c.options.get("negatives", "all")) for c in CASES.values()}
    assert there == set(itertools.product(("margin", "gaussian"), ("all", "siblings")))
