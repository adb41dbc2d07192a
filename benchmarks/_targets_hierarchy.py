"""The rows of the table of targets that embed: the hierarchical loss beside a loop over the nodes, and its memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import _network
import _textbook
import torch
from _floor import hierarchical_floor
from _measure import Step, take_turns, timed
from _rows import PLAIN_TOLERANCE, TOLERANCE, Row, must_agree, speed_row
from _scenes import PHASES, Pressure, embed, levels_of, pressure, scene
from _targets import Setting
from torch import Tensor

from lovasz_embed.hierarchy import Level, hierarchical_lovasz_hinge

DIMS = 8
JUDGED_PHASE = "half-trained"
_SAMPLE = {"category": 3, "instance": 5}


@dataclass(frozen=True)
class Problem:
    """One embedding with its levels."""

    phase: str
    leaf: Tensor
    levels: tuple[Level, ...]
    asks: Pressure

    @classmethod
    def make(cls, setting: Setting, instances: int, phase: str) -> Problem:
        """Paint, embed and count."""
        maps = scene(setting.height, setting.width, instances)
        embedding = embed(*maps, DIMS, phase).to(setting.device)
        levels = levels_of(*(labels.to(setting.device) for labels in maps))
        return cls(phase, embedding.requires_grad_(), levels, pressure(embedding.detach(), levels))

    @classmethod
    def of_network(cls, setting: Setting) -> Problem:
        """Train our own network for a while, and embed a picture it has not seen; void counts as background."""
        embedding, levels = _network.mosaic(_network.train(setting.steps), setting.height, setting.width)
        levels = tuple(replace(level, labels=level.labels.clamp(min=Level.NO_NODE)) for level in levels)
        asks = pressure(embedding, levels)
        return cls(f"our own network after {setting.steps} steps", embedding.requires_grad_(), levels, asks)

    @property
    def nodes(self) -> str:
        """How many nodes each level has."""
        return " + ".join(str(len(level.labels[level.labels >= 0].unique())) for level in self.levels)

    @property
    def ours(self) -> Step:
        """The fused loss, exact."""
        return self.by("sort")

    def by(self, method: str) -> Step:
        """The fused loss by a method."""
        return Step(lambda x: hierarchical_lovasz_hinge(x, self.levels, method=method).loss, self.leaf)

    def describe(self) -> str:
        """Say what the embedding asks of an exact engine."""
        return (
            f"{self.phase}: {self.asks.own:.0%} of the pixels have a positive error for a node of their own, and each "
            f"for {self.asks.foreign:.1f} nodes of others on average"
        )


@dataclass(frozen=True)
class NodeLoop:
    """The loop over the nodes, run on some of each level's and scaled up: its cost is linear in the nodes.

    Forward and backward of one node after the other, each with a graph of its own: the complete loop would also
    pay for the memory that all graphs together keep for backward. Nodes are looked up beforehand.
    """

    problem: Problem
    leaves: tuple[Tensor, ...]
    picked: tuple[Tensor, ...]
    of: tuple[int, ...]

    @classmethod
    def make(cls, problem: Problem, *, full: bool = False) -> NodeLoop:
        """Pick the nodes, spread evenly over each level."""
        nodes = [level.labels[level.labels >= 0].unique() for level in problem.levels]
        picked = [
            _textbook.evenly(found, len(found) if full else _SAMPLE[level.name])
            for found, level in zip(nodes, problem.levels, strict=True)
        ]
        # A level that looks at some dimensions gets an embedding of those: picking them is no work of the loop's.
        leaves = [
            problem.leaf if level.dims is None else problem.leaf.detach()[:, list(level.dims)].requires_grad_()
            for level in problem.levels
        ]
        return cls(problem, tuple(leaves), tuple(picked), tuple(map(len, nodes)))

    def _node(self, level: int, node: Tensor) -> Step:
        looks = self.problem.levels[level]
        kernel = _textbook.margin_kernel(looks)
        return Step(lambda x: _textbook.node_loop(x, looks, node[None], kernel), self.leaves[level])

    def seconds(self) -> float:
        """Return the seconds of the complete loop, extrapolated from the picked nodes."""
        total = 0.0
        for level, (leaf, nodes, count) in enumerate(zip(self.leaves, self.picked, self.of, strict=True)):
            if level == 0 or leaf is not self.leaves[0]:
                leaf.grad = None
            steps = [self._node(level, node) for node in nodes]
            # Not `Step.seconds`, which drops the gradient: the loop adds up the gradients of its nodes.
            total += sum(timed(step, leaf.device.type) for step in steps) * count / len(nodes)
        return total

    @torch.no_grad()
    def must_agree(self, work: str) -> None:
        """Compare the picked nodes' losses, ours and the loop's, with the same loop in float64."""
        levels = self.problem.levels
        found = hierarchical_lovasz_hinge(self.problem.leaf, levels).per_node
        for number, (leaf, nodes, ours) in enumerate(zip(self.leaves, self.picked, found, strict=True)):
            exact = leaf.double()
            for node in nodes:
                task = f"{work}, {levels[number].name} {int(node)}"
                loss = self._node(number, node).loss
                truth = float(loss(exact))
                must_agree(task, "ours", float(ours.loss[ours.label == node]), truth, TOLERANCE)
                must_agree(task, "per-node loop", float(loss(leaf)), truth, PLAIN_TOLERANCE)

    def describe(self) -> str:
        """Say how many nodes were looked at."""
        parts = [
            f"{len(nodes)} of {count} nodes of level {level.name}"
            for level, nodes, count in zip(self.problem.levels, self.picked, self.of, strict=True)
        ]
        return f"per-node loop extrapolated from {' and '.join(parts)}, each with its own backward"


def hierarchy_rows(setting: Setting) -> Iterator[Row]:
    """Yield the rows of speed (three phases of training, a network), of 400 beside 100 instances, and of memory."""
    few, many = setting.instances
    peaks: dict[str, float | None] = {}
    for phase in sorted(PHASES, key=lambda name: name != JUDGED_PHASE):
        problem = Problem.make(setting, few, phase)
        yield _speed(setting, problem)
        if phase == JUDGED_PHASE:
            yield _speed(setting, problem, "binned")
            crowded = Problem.make(setting, many, phase)
            NodeLoop.make(crowded).must_agree(f"hierarchical, {many} instances")
            yield _growth(setting, problem, crowded)
            peaks[f"{many} instances, {phase}"] = crowded.ours.peak_mb()
            crowded.ours.reset()
        peaks[f"{few} instances, {phase}"] = problem.ours.peak_mb()
    yield _speed(setting, Problem.of_network(setting))
    yield _memory(setting, peaks, 4 * DIMS * setting.pixels / 1e6)


def _speed(setting: Setting, problem: Problem, method: str = "sort") -> Row:
    height, width = problem.leaf.shape[2:]
    work = f"hierarchical, {height} x {width}, D = {DIMS}, {problem.nodes} nodes, {problem.phase}"
    work += ", binned" if method == "binned" else ""
    loop, ours = NodeLoop.make(problem), problem.by(method)
    loop.must_agree(work)
    ours.value()
    seconds = take_turns({"per-node loop": loop.seconds, "ours": ours.seconds}, repeats=setting.repeats)
    notes = [loop.describe(), problem.describe()]
    if setting.full and problem.phase == JUDGED_PHASE:
        complete = NodeLoop.make(problem, full=True).seconds()
        ratio = complete / statistics.median(seconds["ours"])
        notes.append(f"the complete loop, once: {complete:.1f} s, {ratio:.0f} x ours")
    floor = hierarchical_floor(height * width, DIMS, len(problem.levels), problem.asks.entries)
    contestants = [(name, seconds[name]) for name in ("per-node loop", "ours")]
    judged = setting.judged and problem.phase == JUDGED_PHASE and method == "sort"
    peaks = {"ours": ours.peak_mb()}
    return speed_row(work, *contestants, 200, floor, setting.rates, judged=judged, peaks=peaks, notes=notes)


def _growth(setting: Setting, few: Problem, many: Problem) -> Row:
    many.ours.value()
    counts = setting.instances
    seconds = take_turns({"few": few.ours.seconds, "many": many.ours.seconds}, repeats=setting.repeats)
    medians = {name: statistics.median(of_one) for name, of_one in seconds.items()}
    ratio = medians["many"] / medians["few"]
    rounds = [b / a for a, b in zip(seconds["few"], seconds["many"], strict=True)]
    floors = [
        hierarchical_floor(setting.pixels, DIMS, len(p.levels), p.asks.entries).seconds(setting.rates)
        for p in (few, many)
    ]
    return Row(
        f"hierarchical, {counts[1]} instances relative to {counts[0]}, {few.phase}",
        "itself",
        "below 3 x",
        ratio,
        ratio < 3 if setting.judged else None,
        spread=(min(rounds), max(rounds)),
        details=(
            *(f"{n:4} instances {1e3 * medians[k]:9.2f} ms" for n, k in zip(counts, seconds, strict=True)),
            f"floor {floors[1] / floors[0]:.2f} x = {1e3 * floors[1]:.2f} ms / {1e3 * floors[0]:.2f} ms, as derived "
            f"above; with {counts[1]} instances we are {medians['many'] / floors[1]:.1f} x from it",
            many.describe(),
        ),
        data={"seconds": {str(n): list(seconds[k]) for n, k in zip(counts, seconds, strict=True)}, "floors": floors},
    )


def _memory(setting: Setting, peaks: dict[str, float | None], megabytes: float) -> Row:
    known = [peak for peak in peaks.values() if peak is not None]
    worst = max(known) / megabytes if len(known) == len(peaks) else None
    details = [
        f"{name}: {'unknown' if peak is None else f'{peak:.0f} MB = {peak / megabytes:.2f} x'}"
        for name, peak in peaks.items()
    ]
    return Row(
        f"peak extra memory of that, {setting.instances[0]} and {setting.instances[1]} instances",
        f"the embedding's {megabytes:.0f} MB",
        "at most 2.5 x",
        worst,
        worst <= 2.5 if setting.judged and worst is not None else None,
        details=(*details, "floor 1 x: the gradient of the embedding is as large as the embedding"),
        data={"peak_mb": peaks, "embedding_mb": megabytes},
    )
