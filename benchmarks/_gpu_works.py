"""What is measured on a GPU: the losses with their baselines and their truth in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import _oracle
import _textbook
import torch
from _floor import Floor, Rates, hierarchical_floor, hinge_floor, softmax_floor
from _gpu_measure import Pass
from _scenes import PHASES, hinge_logits, random_mask, scene
from _targets import Setting, power
from _targets_hierarchy import DIMS, JUDGED_PHASE, NodeLoop, Problem
from torch import Tensor

from lovasz_embed.hierarchy import hierarchical_lovasz_hinge
from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Sizes:
    """How large the problems are.

    Attributes:
        picture: Height and width of the hinge's and the tree's only picture, and of the one that is segmented.
        batch: Pictures, height and width for the softmax.
        instances: Instances of the tree's picture.
        clusters: Instances of the picture that is segmented.
        classes: Of the softmax.
    """

    picture: tuple[int, int]
    batch: tuple[int, int, int]
    instances: int
    clusters: int
    classes: int = 19


FULL = Sizes((1024, 2048), (8, 512, 1024), 100, 50)
SMOKE = Sizes((16, 32), (2, 8, 16), 9, 5)


@dataclass(frozen=True)
class Work:
    """One line of the table, before it is measured.

    Attributes:
        name: What is done.
        leaf: What the gradient is taken of.
        loss: The loss of a tensor like the leaf; takes `impl` and `method`.
        baseline: Name of what is run beside it.
        beside: Forward and backward of the baseline, returning its loss.
        truth: Value and gradient of the exact loss in float64.
        floor: Of the counted method, which orders nothing.
        at_least: Times faster than the baseline.
        at_most_ms: Milliseconds; None where only the ratio is asked for.
        sorts: Engine of the exact method on a GPU; None: it is not run beside the counted one.
        on_cpu: The same problem with numba on the CPU, as "auto" takes it there: exact. None: not run.
        notes: Lines that stand below the row.
    """

    name: str
    leaf: Tensor
    loss: Loss
    baseline: str
    beside: Callable[[], Tensor]
    truth: Callable[[], tuple[float, Tensor]]
    floor: Floor
    at_least: float
    at_most_ms: float | None = None
    sorts: str | None = None
    on_cpu: Callable[[], Tensor] | None = None
    notes: tuple[str, ...] = ()

    def ours(self, method: str = "binned", impl: str = "triton") -> Pass:
        """Return forward and backward of our own."""
        return Pass(lambda x: self.loss(x, impl=impl, method=method), self.leaf)


def hinge_works(sizes: Sizes, device: str) -> Iterator[Work]:
    """Yield the hinge of one mask, every pixel still paying and most of them at rest."""
    target = random_mask((1, *sizes.picture))
    for title, past in (("random logits", None), ("95 % past the margin", 0.95)):
        logits = hinge_logits(target, past)
        leaf, on_device = logits.to(device).requires_grad_(), target.to(device)
        positive = int((logits * (2 * target - 1) < 1).sum())

        def truth(x: Tensor = logits, y: Tensor = target) -> tuple[float, Tensor]:
            x = x.detach()
            return _oracle.hinge(x, y), torch.from_numpy(_oracle.hinge_slope(x, y)).view(x.shape)

        def loss(x: Tensor, y: Tensor = on_device, **options: Any) -> Tensor:
            return lovasz_hinge(x, y, **options)

        yield Work(
            f"lovasz_hinge, {power(target.numel())} pixels, {title}",
            leaf,
            loss,
            "textbook torch",
            Pass(lambda x, y=on_device: _textbook.hinge(x, y), leaf),
            truth,
            hinge_floor(target.numel(), positive, ordered=False),
            5,
            sorts="triton",
            on_cpu=Pass(lambda x, y=target: lovasz_hinge(x, y, impl="numba"), logits.requires_grad_()),
        )


def softmax_works(sizes: Sizes, device: str) -> Iterator[Work]:
    """Yield the softmax of a batch of label maps."""
    pictures, height, width = sizes.batch
    semantic = scene(height, width, sizes.instances)[0].expand(pictures, -1, -1).contiguous()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(pictures, sizes.classes, height, width, generator=generator)
    leaf, labels = logits.to(device).requires_grad_(), semantic.to(device)

    def loss(x: Tensor, y: Tensor = labels, **options: Any) -> Tensor:
        return lovasz_softmax(x, y, **options)

    yield Work(
        f"lovasz_softmax, {sizes.classes} classes, {pictures} x {height} x {width}",
        leaf,
        loss,
        "textbook torch",
        Pass(lambda x: _textbook.softmax(x, labels), leaf),
        lambda: in_float64(loss, leaf),
        _unordered(softmax_floor(semantic.numel(), sizes.classes)),
        10,
        sorts="triton",
        on_cpu=Pass(lambda x: lovasz_softmax(x, semantic, impl="numba"), logits.requires_grad_()),
    )


def tree_works(sizes: Sizes, device: str) -> Iterator[Work]:
    """Yield the hierarchical hinge at three stages of a training."""
    setting = Setting(*sizes.picture, Rates(0, 0), 0, device, (sizes.instances, sizes.instances))
    for phase in sorted(PHASES, key=lambda name: name != JUDGED_PHASE):
        problem = Problem.make(setting, sizes.instances, phase)
        # The engine that sorts is the reference, and the CPU is there for orientation: once is enough.
        once = phase == JUDGED_PHASE

        def loss(x: Tensor, p: Problem = problem, **options: Any) -> Tensor:
            return hierarchical_lovasz_hinge(x, p.levels, **options).loss

        yield Work(
            f"hierarchical, {sizes.picture[0]} x {sizes.picture[1]}, D = {DIMS}, {problem.nodes} nodes, {phase}",
            problem.leaf,
            loss,
            "per-node loop",
            Loop(NodeLoop.make(problem, full=True)),
            lambda x=problem.leaf, of=loss: in_float64(of, x),
            _unordered(hierarchical_floor(setting.pixels, DIMS, len(problem.levels), problem.asks.entries)),
            100,
            6,
            sorts="reference" if once else None,
            on_cpu=_tree_on_cpu(problem) if once else None,
            notes=(problem.describe(),),
        )


@dataclass(frozen=True)
class Loop:
    """The complete loop over the nodes, forward and backward of one after the other; nothing is extrapolated."""

    of: NodeLoop

    def __call__(self) -> Tensor:
        """Return the weighted sum over levels of the mean over nodes, as the loss has it."""
        total = torch.zeros((), device=self.of.leaves[0].device)
        for level, leaf, nodes in zip(self.of.problem.levels, self.of.leaves, self.of.picked, strict=True):
            kernel = _textbook.margin_kernel(level)
            for node in nodes.unbind():
                loss = _textbook.node_loop(leaf, level, node[None], kernel)
                part = loss * (level.weight / len(nodes))
                part.backward()
                total += part.detach()
        return total

    def reset(self) -> None:
        """Drop the gradients."""
        for leaf in self.of.leaves:
            leaf.grad = None


def in_float64(loss: Loss, leaf: Tensor) -> tuple[float, Tensor]:
    """Return value and gradient of the readable reference, exact and in float64, on the leaf's device."""
    exact = leaf.detach().double().requires_grad_()
    value = loss(exact, impl="reference", method="sort")
    value.backward()
    assert exact.grad is not None
    return float(value.detach()), exact.grad


def _unordered(floor: Floor) -> Floor:
    return replace(floor, ordering=0)


def _tree_on_cpu(problem: Problem) -> Pass:
    levels = [replace(level, labels=level.labels.cpu()) for level in problem.levels]
    leaf = problem.leaf.detach().cpu().clone().requires_grad_()
    return Pass(lambda x: hierarchical_lovasz_hinge(x, levels, impl="numba").loss, leaf)
