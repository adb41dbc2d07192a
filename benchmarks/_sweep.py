"""Time and memory along one axis at a time: pixels, nodes, dimensions, and share of pixels past the margin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import _oracle
import _textbook
import torch
from _measure import Measurement, Step, take_turns
from _peers import Peer
from _rows import BINNED_TOLERANCE, PLAIN_TOLERANCE, TOLERANCE, Disagreement, must_agree
from _scenes import embed, hinge_logits, levels_of, random_mask, scene
from _targets import power

from lovasz_embed.hierarchy import hierarchical_lovasz_hinge
from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax

OURS = "lovasz_embed"
BINNED = "lovasz_embed, binned"
BASELINES = {
    "hinge": "textbook",
    "softmax": "textbook",
    "hierarchical, margin": "per-node loop",
    "hierarchical, gaussian": "Neven's loop",
}
CLASSES = 19
_LOOP_MB = 1500
"""Memory that a loop over nodes may keep for backward; it is run on as many nodes as that allows."""
_BUDGET_S = 10.0


@dataclass(frozen=True)
class Axes:
    """The points on each axis, and where the others stand meanwhile."""

    hinge_pixels: Sequence[int]
    softmax_pixels: Sequence[int]
    node_pixels: Sequence[int]
    past: Sequence[float]
    nodes: Sequence[int]
    dims: Sequence[int]
    default_hinge_pixels: int = 2**20
    default_node_pixels: int = 2**18
    default_past: float = 0.5
    default_nodes: int = 30
    default_dims: int = 8


FULL = Axes(
    hinge_pixels=[2**k for k in range(12, 23, 2)],
    softmax_pixels=[2**k for k in range(12, 21, 2)],
    node_pixels=[2**k for k in range(12, 23, 2)],
    past=(0.0, 0.5, 0.95),
    nodes=(1, 3, 10, 30, 100, 400),
    dims=(2, 8, 32),
)
SMOKE = Axes(
    hinge_pixels=[2**10],
    softmax_pixels=[2**10],
    node_pixels=[2**10],
    past=(0.0, 0.95),
    nodes=(1, 6),
    dims=(2,),
    default_hinge_pixels=2**10,
    default_node_pixels=2**10,
    default_nodes=6,
)


@dataclass(frozen=True)
class Point(Measurement):
    """A measurement at one place of one axis, with what stands meanwhile.

    Where `measured` is a number, so many of the `nodes` were run and the rest is extrapolated.
    """

    loss: str
    axis: str
    at: float
    standing: str
    measured: int | None = None
    nodes: int | None = None


@dataclass(frozen=True)
class Part:
    """What scales a loop over some nodes up to all of them: time is linear, memory starts at one node's."""

    measured: int
    nodes: int
    alone_mb: float | None

    def scale(self, point: Point) -> Point:
        """Return the point for all nodes."""
        peak = point.peak_mb
        if peak is not None and self.alone_mb is not None:
            peak = self.alone_mb + (peak - self.alone_mb) * (self.nodes - 1) / (self.measured - 1)
        seconds = tuple(s * self.nodes / self.measured for s in point.seconds)
        return replace(point, seconds=seconds, peak_mb=peak, measured=self.measured, nodes=self.nodes)


@dataclass(frozen=True)
class Sweep:
    """One loss along one axis."""

    loss: str
    axis: str
    points: Sequence[float]
    peers: Sequence[Peer]
    axes: Axes
    repeats: int
    device: str

    def title(self) -> str:
        """Say what moves and what stands."""
        return f"{self.loss} by {self.axis} ({self.standing()})"

    def standing(self) -> str:
        """Say what stands."""
        axes = self.axes
        if self.loss == "softmax":
            return f"{CLASSES} classes"
        if self.loss == "hinge":
            standing = {
                "pixels": f"{power(axes.default_hinge_pixels)} pixels",
                "past the margin": f"{axes.default_past:.0%} past the margin",
            }
        else:
            standing = {
                "pixels": f"{power(axes.default_node_pixels)} pixels",
                "nodes": f"{axes.default_nodes} nodes",
                "dimensions": f"{axes.default_dims} dimensions",
                "": "half-trained",
            }
        return ", ".join(value for name, value in standing.items() if name != self.axis)

    def run(self) -> Iterator[list[Point]]:
        """Yield the measurements of one place after the other."""
        for at in self.points:
            yield self._one(at)

    def _one(self, at: float) -> list[Point]:
        if self.loss == "hinge":
            steps, scales = self._hinge(at), {}
        elif self.loss == "softmax":
            steps, scales = self._softmax(at), {}
        else:
            steps, scales = self._nodes(at)
        label = power(int(at)) if self.axis == "pixels" else f"{at:.0%}" if at < 1 else f"{at:g}"
        task = f"{self.loss}, {self.axis} {label}"
        seconds = take_turns({n: s.seconds for n, s in steps.items()}, repeats=self.repeats, budget_s=_BUDGET_S)
        found = []
        for name, step in steps.items():
            point = Point(task, name, seconds[name], step.peak_mb(), self.loss, self.axis, at, self.standing())
            found.append(scales[name].scale(point) if name in scales else point)
            step.reset()
        return found

    def _hinge(self, at: float) -> dict[str, Step]:
        pixels = int(at) if self.axis == "pixels" else self.axes.default_hinge_pixels
        past = at if self.axis == "past the margin" else self.axes.default_past
        mask = random_mask((1, *shape_of(pixels)))
        leaf = hinge_logits(mask, past).to(self.device).requires_grad_()
        target = mask.to(self.device)
        steps = {
            "textbook": Step(lambda x: _textbook.hinge(x, target), leaf),
            OURS: Step(lambda x: lovasz_hinge(x, target), leaf),
            BINNED: Step(lambda x: lovasz_hinge(x, target, method="binned"), leaf),
        }
        for peer in self.peers:
            steps[peer.name] = Step(lambda x, p=peer: p.hinge(x, target, None), leaf)
        return self._agreeing(steps, _oracle.hinge(leaf.detach(), target))

    def _softmax(self, at: float) -> dict[str, Step]:
        generator = torch.Generator().manual_seed(0)
        height, width = shape_of(int(at))
        target = torch.randint(CLASSES, (1, height, width), generator=generator).to(self.device)
        leaf = torch.randn(1, CLASSES, height, width, generator=generator).to(self.device).requires_grad_()
        steps = {
            "textbook": Step(lambda x: _textbook.softmax(x, target), leaf),
            OURS: Step(lambda x: lovasz_softmax(x, target), leaf),
            BINNED: Step(lambda x: lovasz_softmax(x, target, method="binned"), leaf),
        }
        for peer in self.peers:
            steps[peer.name] = Step(lambda x, p=peer: p.softmax(x, target, None), leaf)
        return self._agreeing(steps, _oracle.softmax(leaf.detach(), target))

    def _agreeing(self, steps: dict[str, Step], truth: float) -> dict[str, Step]:
        """Return the steps that may be timed: ours and the textbook must be right, a peer is left out."""
        for name, tolerance in (("textbook", PLAIN_TOLERANCE), (OURS, TOLERANCE), (BINNED, BINNED_TOLERANCE)):
            must_agree(self.title(), name, steps[name].value(), truth, tolerance)
        for peer in self.peers:
            try:
                must_agree(self.title(), peer.name, steps[peer.name].value(), truth, PLAIN_TOLERANCE)
            except Disagreement as error:
                print(f"not timed: {error}")
                del steps[peer.name]
        return steps

    def _nodes(self, at: float) -> tuple[dict[str, Step], Mapping[str, Part]]:
        axes = self.axes
        pixels = int(at) if self.axis == "pixels" else axes.default_node_pixels
        count = int(at) if self.axis == "nodes" else axes.default_nodes
        dims = int(at) if self.axis == "dimensions" else axes.default_dims
        maps = scene(*shape_of(pixels), count)
        leaf = embed(*maps, dims, "half-trained").to(self.device).requires_grad_()
        _, level = levels_of(*(labels.to(self.device) for labels in maps))
        kernel = "margin" if self.loss.endswith("margin") else "gaussian"
        nodes = level.labels[level.labels >= 0].unique()
        affordable = max(int(_LOOP_MB * 1e6 / (pixels * (45 + 4 * dims))), 2)
        picked = _textbook.evenly(nodes, affordable)
        logit = _textbook.margin_kernel(level) if kernel == "margin" else _textbook.neven_kernel(level)
        baseline = BASELINES[self.loss]
        steps = {
            baseline: Step(lambda x: _textbook.node_loop(x, level, picked, logit), leaf),
            OURS: Step(lambda x: hierarchical_lovasz_hinge(x, [level], kernel=kernel).loss, leaf),
        }
        # All nodes' losses, of which the loop may have seen some only.
        [ours] = hierarchical_lovasz_hinge(leaf.detach(), [level], kernel=kernel).per_node
        expected = float(ours.loss[torch.isin(ours.label, picked)].mean())
        must_agree(self.title(), baseline, steps[baseline].value(), expected, PLAIN_TOLERANCE)
        must_agree(self.title(), OURS, steps[OURS].value(), float(ours.loss.mean()), TOLERANCE)
        if len(picked) == len(nodes):
            return steps, {}
        alone = Step(lambda x: _textbook.node_loop(x, level, picked[:1], logit), leaf)
        return steps, {baseline: Part(len(picked), len(nodes), alone.peak_mb())}


def sweeps(axes: Axes, peers: Sequence[Peer], repeats: int, device: str) -> list[Sweep]:
    """Return all sweeps, one axis of one loss each."""
    plan: list[tuple[str, str, Sequence[float]]] = [
        ("hinge", "pixels", axes.hinge_pixels),
        ("hinge", "past the margin", axes.past),
        ("softmax", "pixels", axes.softmax_pixels),
    ]
    for loss in ("hierarchical, margin", "hierarchical, gaussian"):
        plan += [(loss, "pixels", axes.node_pixels), (loss, "nodes", axes.nodes), (loss, "dimensions", axes.dims)]
    return [Sweep(*line, peers, axes, repeats, device) for line in plan]


def shape_of(pixels: int) -> tuple[int, int]:
    """Return height and width of a picture of that many pixels, a power of two."""
    height = 2 ** (int(math.log2(pixels)) // 2)
    return height, pixels // height
