"""What a GPU's engine must be besides fast: right, repeatable, never waiting for the device, capturable."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _gpu_measure import Pass
from _gpu_works import Work
from _rows import PLAIN_TOLERANCE, TOLERANCE, Disagreement, must_agree
from torch import Tensor

BINS = 512
"""What "binned" takes where it is told no number: the exact loss is at most 1/512 larger (docs/mathematics.md)."""

GRADIENT_TOLERANCE = 0.1
"""Relative L2 error beyond which a gradient is called wrong: one in the wrong place is off by more than itself. How
close gradients are is printed; how close they promise to be is for the tests to judge."""


@dataclass(frozen=True)
class Check:
    """A question about one piece of work, with its answer."""

    work: str
    question: str
    holds: bool
    words: str

    def print(self) -> None:
        """Print question and answer."""
        print(f"    {self.question}: {'yes' if self.holds else 'NO'}{self.words and ', '}{self.words}")

    def record(self) -> dict[str, Any]:
        """Return the check for the JSON."""
        return asdict(self)


def value_checks(work: Work, methods: tuple[str, ...]) -> Iterator[Check]:
    """Compare values and gradients with float64, and two runs with each other.

    Raises:
        Disagreement: Where a value or a gradient is wrong: there is nothing to time.
    """
    truth, slope = work.truth()
    must_agree(work.name, work.baseline, float(work.beside()), truth, PLAIN_TOLERANCE)
    for method in methods:
        ours = work.ours(method)
        value, gradient = _run(ours)
        if method == "binned":
            # The certified bracket: never above, and at most a bin's width below.
            ends = truth * (1 - 1 / BINS) * (1 - TOLERANCE), truth * (1 + TOLERANCE) + 1e-6
            if not ends[0] <= float(value) <= ends[1]:
                raise Disagreement(f"{work.name}: expected {ends[0]:.7g} to {ends[1]:.7g}, got {float(value):.7g}")
        else:
            must_agree(work.name, method, float(value), truth, TOLERANCE)
        slope = slope.to(gradient.device)
        # The leaf is float32 and everything in the gradient is summed in float64.
        off = float((gradient.double() - slope).norm() / slope.norm())
        if not off <= GRADIENT_TOLERANCE:
            raise Disagreement(f"{work.name}: the gradient of {method} is off by {off:.1%}")
        words = f"value off by {abs(float(value) / truth - 1):.1e}, gradient by {off:.1e} (L2, relative)"
        yield Check(work.name, f"{method} agrees with float64", True, words)
        again = _run(ours)
        yield Check(work.name, f"{method} twice, the same bits", _equal((value, gradient), again), "")


def device_checks(work: Work) -> Iterator[Check]:
    """Ask what only a GPU can answer, of the engine that "auto" takes there."""
    ours = work.ours()
    expected = _run(ours)
    yield _without_waiting(work, ours)
    yield _deterministic(work, ours, expected)
    yield _as_graph(work, ours)


def _without_waiting(work: Work, ours: Pass) -> Check:
    question = "never waits for the device, forward and backward"
    ours.reset()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours()
    except RuntimeError as error:
        return Check(work.name, question, False, str(error).splitlines()[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Check(work.name, question, True, "")


def _deterministic(work: Work, ours: Pass, expected: tuple[Tensor, Tensor]) -> Check:
    question = "runs under use_deterministic_algorithms(True), with the same bits"
    try:
        with deterministic():
            found = _run(ours)
    except RuntimeError as error:
        return Check(work.name, question, False, str(error).splitlines()[0])
    return Check(work.name, question, _equal(expected, found), "")


def _as_graph(work: Work, ours: Pass) -> Check:
    """Capture forward and backward, put other numbers where the leaf is, replay, and compare with eager."""
    question = "captured as a CUDA graph, replayed on other numbers it equals eager"
    leaf = work.leaf
    kept = leaf.detach().clone()
    try:
        replay, value, gradient = captured(ours)
        with torch.no_grad():
            leaf.mul_(0.75)
        replay()
        found = value.clone(), gradient.clone()
        expected = _run(ours)
    except RuntimeError as error:
        return Check(work.name, question, False, str(error).splitlines()[0])
    finally:
        with torch.no_grad():
            leaf.copy_(kept)
        ours.reset()
    return Check(work.name, question, _equal(expected, found), "")


def captured(ours: Pass) -> tuple[Callable[[], None], Tensor, Tensor]:
    """Capture forward and backward; return the replay, and where it leaves loss and gradient."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # capture wants everything allocated and compiled once, away from the main stream
        for _ in range(3):
            ours.reset()
            ours()
    torch.cuda.current_stream().wait_stream(side)
    ours.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = ours()
    gradient = ours.leaf.grad
    assert gradient is not None
    return graph.replay, value, gradient


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Let torch refuse what is not deterministic."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def _run(ours: Pass) -> tuple[Tensor, Tensor]:
    ours.reset()
    value, gradient = ours(), ours.leaf.grad
    assert gradient is not None
    return value, gradient.clone()


def _equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
