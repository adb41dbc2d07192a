"""The hierarchical hinge on a GPU, level by level: what the kernels are given, and what comes of their sums.

The host does not wait to learn how many nodes K a level has. It loops over all batches of nodes that there can be,
three launches each, and those beyond K return at once: at the limit of 4096 nodes 31 of 32 batches are idle where
there are 100 nodes, some 100 launches without work. Where K happens to have arrived, the host stops there.

Memory, for 1024 x 2048 pixels, 8 dimensions and float32 (the embedding: 64 MiB): gradient 64 MiB, table of counts
32 MiB and of weights 32 MiB (128 nodes at 512 bins), nodes of the pixels 8 MiB a level, two levels at a time. That is
144 MiB, 2.25 times the embedding, for any number of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lovasz_embed._ops.binning import cells, shift_of
from lovasz_embed._ops.gpu import tree_kernels as kernels
from lovasz_embed._ops.gpu.nodes import DeviceNodes, number_nodes, parents_of
from lovasz_embed._ops.host_numbers import on_device

NODES_AT_ONCE = 128  # rows of the tables, a multiple of 32, at 512 bins

_TILE = 4096  # entries of the embedding that a program holds; half as many float64
_BINS_AT_ONCE = 2048  # of a row, when it is weighed


@dataclass(frozen=True)
class LevelOptions:
    """What is known of a level without looking at values; see `tree_hinge.TreeLevel`."""

    radius: float
    margin2: float
    weight: float
    per_picture: bool
    dims: tuple[int, ...]


@dataclass(frozen=True)
class LevelResult:
    """What comes of a level: its mean loss, 0-d float64, its nodes, (2, M) and (M,), and the bandwidth's gradient."""

    mean: Tensor
    nodes: Tensor
    losses: Tensor
    grad_bandwidth: Tensor


class Tree:
    """The levels of a tree over an embedding (B, channels, P), one after the other, from the root."""

    def __init__(
        self, embedding: Tensor, *, gaussian: bool, siblings: bool, cut: float, bins: int, wanted: bool
    ) -> None:
        self.embedding = embedding
        self.gaussian = gaussian
        self.siblings = siblings
        self.cut = cut
        self.bins = bins
        self.grad = torch.zeros_like(embedding) if wanted else embedding.new_empty(0)
        self.above: DeviceNodes | None = None
        self.rows = max(NODES_AT_ONCE * 512 // max(bins, 512) // 32 * 32, 32)
        self.tables: tuple[Tensor, ...] = ()
        # The largest number there is bounds all sums. NaN and infinity make every unit, and so every result, NaN.
        self.largest = _largest(embedding) if embedding.numel() else embedding.new_zeros((), dtype=torch.float64)

    def level(self, labels: Tensor, bandwidth: Tensor, options: LevelOptions) -> LevelResult:
        """Return the losses of a level, and add its gradient to `grad`; `bandwidth` is (B, P), or empty for none."""
        nodes = number_nodes(labels, per_picture=options.per_picture)
        group, parents = nodes.member, nodes.member
        if self.siblings and self.above is not None:
            group, parents = self.above.member, parents_of(nodes, self.above)
        self.above = nodes
        named = torch.stack([nodes.picture, nodes.label])
        wanted = self.grad.numel() > 0 and options.weight > 0
        learnt = bandwidth.numel() > 0
        grad_bandwidth = torch.zeros_like(bandwidth) if self.grad.numel() else bandwidth.new_empty(0)
        if not nodes.label.numel():
            nothing = self.embedding.new_zeros(0)
            return LevelResult(self.largest.new_zeros(()), named, nothing, grad_bandwidth)
        launch = _Launch.of(self.embedding, options.dims)
        size, radius, means = self._means(launch, nodes, bandwidth, options.radius)
        units = self._units(radius, options.margin2, launch.dims.numel())
        # One number for both kernels: the margin, or the cut.
        number = torch.full_like(units[:1, 0], self.cut if self.gaussian else options.margin2)
        scale = options.weight / nodes.count.double().clamp(min=1)
        sums = size.new_zeros(len(size), 2 + launch.padded)
        shape = (means, radius.square().to(means.dtype), number)
        for first in range(0, len(size), self.rows):
            known = nodes.early.peek()
            if known is not None and first >= known:
                break  # it would do nothing
            self._batch(
                launch, nodes, group, parents, shape, units, sums, scale, first, wanted=wanted, learnt=learnt
            )  # fmt: skip
        losses = torch.where(size > 0, sums[:, 0] * units[:, 0], 0)
        if wanted:
            along = torch.cat([(sums[:, 1] * units[:, 1] * 2 * radius)[:, None], sums[:, 2:] * units[:, 2:]], 1)
            shares = (along * (scale / size.clamp(min=1))[:, None]).to(means.dtype)
            launch(
                kernels.spread_kernel, nodes.member, launch.dims, shares, self.grad, grad_bandwidth,
                *launch.sizes, BANDWIDTH=learnt,
            )  # fmt: skip
        mean = losses.sum() / nodes.count[0].clamp(min=1)
        return LevelResult(mean, named, losses.to(means.dtype), grad_bandwidth)

    def _means(
        self, launch: _Launch, nodes: DeviceNodes, bandwidth: Tensor, radius: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return size (M,) int64, radius (M,) float64 and mean (M, D padded) of every node; 0 pixels from K on."""
        learnt = bandwidth.numel() > 0
        sums = nodes.label.new_zeros(len(nodes.label), 2 + launch.padded)
        widest = _largest(bandwidth) if learnt else self.largest
        units = torch.stack([widest, self.largest]) * (nodes.member.numel() * 2.0**-62)
        launch(
            kernels.sums_kernel, self.embedding, nodes.member, bandwidth, launch.dims, units, sums, *launch.sizes,
            BANDWIDTH=learnt,
        )  # fmt: skip
        size = sums[:, 0].clone()
        values = sums[:, 1:] / size.clamp(min=1).double()[:, None]
        means = (values[:, 1:] * units[1]).to(self.embedding.dtype).contiguous()
        # Nodes that are not there get a radius as well: nothing is divided by 0.
        own = values[:, 0] * units[0] if learnt else torch.full_like(values[:, 0], radius)
        return size, torch.where(size > 0, own, 1.0), means

    def _units(self, radius: Tensor, margin2: float, dims: int) -> Tensor:
        """Return the units of every node's loss and slopes along squared radius and mean, (M, 3) float64.

        The weights of a node sum to 1: no sum is above the largest error or slope that a pixel can have.
        """
        if self.gaussian:
            bounds = [torch.full_like(radius, 2.0), 1 / radius.square(), 2 / radius]
        else:
            farthest = 4 * dims * self.largest.square()
            slope = 4 * self.largest / margin2
            bounds = [1 + (radius.square() + farthest) / margin2, torch.ones_like(radius), slope.expand_as(radius)]
        # Whatever the bound is of, a number that is not finite spoils it.
        return torch.stack(bounds, 1) * 2.0**-60 + 0 * self.largest

    def _batch(
        self,
        launch: _Launch,
        nodes: DeviceNodes,
        group: Tensor,
        parents: Tensor,
        shape: tuple[Tensor, ...],
        units: Tensor,
        sums: Tensor,
        scale: Tensor,
        first: int,
        *,
        wanted: bool,
        learnt: bool,
    ) -> None:
        """Count, weigh and push the errors of the nodes from `first` on, as many as the tables have rows."""
        width = cells(self.bins)
        if not self.tables:
            counts = torch.zeros(self.rows, width, dtype=torch.int32, device=self.embedding.device)
            self.tables = counts, self.embedding.new_empty(counts.shape), sums.new_empty(self.rows, 2)
        counts, weights, totals = self.tables
        flags = counts.new_empty(launch.programs, self.rows // 32)
        seen = (self.embedding, nodes.member, group, parents, nodes.starts, nodes.stops, launch.dims, *shape)
        options = {
            "NODES": self.rows,
            "CELLS": width,
            "GAUSSIAN": self.gaussian,
            "SIBLINGS": group is not nodes.member,
        }
        shift = shift_of(self.bins)
        launch(kernels.count_kernel, *seen, counts, flags, first, *launch.sizes, shift, **options)
        number = (width - 2) // 2
        kernels.weigh_kernel[(self.rows,)](
            counts, weights, totals, nodes.count, first, BINS=number, BLOCK=min(number, _BINS_AT_ONCE), num_warps=8
        )
        launch(
            kernels.gradient_kernel, *seen, weights, flags, units, sums, scale, self.grad, first, *launch.sizes, shift,
            WANTED=wanted, BANDWIDTH=learnt, **options,
        )  # fmt: skip


@dataclass(frozen=True)
class _Launch:
    """How many programs walk the pixels, and the dimensions that they look at, (D,) int32."""

    dims: Tensor
    padded: int
    block: int
    programs: int
    sizes: tuple[int, int, int]

    @classmethod
    def of(cls, embedding: Tensor, dims: Sequence[int]) -> _Launch:
        batch, channels, pixels = embedding.shape
        padded = max(1 << (len(dims) - 1).bit_length(), 2) if dims else 2
        block = min(max(_TILE * 4 // embedding.element_size() // padded, 32), 1024)
        blocks = -(-pixels // block)
        return cls(on_device(dims, embedding.device), padded, block, batch * blocks, (pixels, blocks, channels))

    def __call__(self, kernel: Any, *arguments: Any, **options: Any) -> None:
        """Run a kernel over all pixels."""
        kernel[(self.programs,)](*arguments, D=self.dims.numel(), D_PAD=self.padded, BLOCK=self.block, **options)


def _largest(values: Tensor) -> Tensor:
    """Return the largest absolute value, 0-d float64, never 0."""
    largest: Tensor = torch.linalg.vector_norm(values, ord=torch.inf)
    return largest.double().clamp(min=1e-30)
