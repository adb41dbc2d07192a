"""The hinge of every node of a label tree against distances to its mean: which engine, and the readable reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lovasz_embed._ops.binning import binned_extension
from lovasz_embed._ops.engines import engine_for
from lovasz_embed._ops.nodes import IGNORED, Nodes, find_nodes, group_by_parent
from lovasz_embed._ops.reference import lovasz_extension

KERNELS = ("margin", "gaussian")


@dataclass(frozen=True)
class TreeLevel:
    """What an engine knows of a level.

    Attributes:
        labels: Integers (B, P); -1 is a pixel of no node, -2 one that counts nowhere.
        radius: Where the logit crosses zero.
        margin2: Squared margin of the margin kernel.
        weight: Factor in the total.
        per_picture: Whether equal labels in two pictures are two nodes.
        dims: The embedding dimensions looked at; None is all.
        bandwidth: Floats (B, P), whose mean over a node is its radius; None: `radius` is.
    """

    labels: Tensor
    radius: float
    margin2: float
    weight: float
    per_picture: bool
    dims: tuple[int, ...] | None
    bandwidth: Tensor | None


class TreeLosses(NamedTuple):
    """The total, 0-d; and without gradient each level's mean, (L,), and its nodes' picture, label and loss, (K,)."""

    total: Tensor
    per_level: Tensor
    per_node: tuple[tuple[Tensor, Tensor, Tensor], ...]


def tree_hinge(
    embedding: Tensor,
    levels: Sequence[TreeLevel],
    *,
    kernel: str,
    siblings: bool,
    cut: float,
    impl: str,
    bins: int = 0,
) -> TreeLosses:
    """Return the weighted sum over levels of the mean over nodes of the Lovász hinge.

    Args:
        embedding: (B, D, P), float32 or float64.
        levels: From the root to the leaves.
        kernel: "margin" or "gaussian".
        siblings: Only pixels of the same parent are negatives.
        cut: Negatives with an error up to this are left out (gaussian).
        impl: "auto", "reference", "numba" or "triton", which counts only (bins > 0).
        bins: Bins per doubling of the error; 0 is the exact method.
    """
    impl = engine_for(impl, embedding.device)
    if impl == "numba":
        from lovasz_embed._ops.tree_operator import tree_hinge_numba

        return tree_hinge_numba(embedding, levels, kernel == "gaussian", siblings, cut, bins)
    if impl == "triton":
        from lovasz_embed._ops.gpu.tree_operator import tree_hinge_triton

        return tree_hinge_triton(embedding, levels, kernel == "gaussian", siblings, cut, bins)
    # Attached to all that may have a gradient, also where there is no node.
    nothing = (embedding * 0).sum() + sum(x.bandwidth.sum() * 0 for x in levels if x.bandwidth is not None)
    total = nothing
    per_level, per_node = [], []
    parents: Nodes | None = None
    for level in levels:
        nodes = find_nodes(level.labels, per_picture=level.per_picture)
        seen = embedding if level.dims is None else embedding[:, list(level.dims)]
        means = nodes.means(seen)
        grouped = group_by_parent(nodes, parents) if parents is not None and siblings else nodes
        losses = [
            # Recomputed in backward: otherwise every node keeps several arrays of all pixels.
            checkpoint(
                _one_node, seen, means, squared_radius(level, nodes, means.dtype), level.margin2, grouped, k, kernel,
                cut, bins, use_reentrant=False,
            )
            for k in range(len(nodes))
        ]  # fmt: skip
        stacked = torch.stack(losses) if losses else seen.new_zeros(0)
        loss = stacked.mean() if losses else nothing
        total = total + level.weight * loss
        per_level.append(loss.detach())
        per_node.append((nodes.picture, nodes.label, stacked.detach()))
        parents = nodes
    return TreeLosses(total, torch.stack(per_level), tuple(per_node))


def squared_radius(level: TreeLevel, nodes: Nodes, dtype: torch.dtype) -> Tensor:
    """Return the squared radius of every node, (K,)."""
    if level.bandwidth is None:
        return torch.full((len(nodes),), level.radius, dtype=dtype, device=nodes.label.device).square()
    return nodes.means(level.bandwidth.unsqueeze(1).to(dtype)).squeeze(1).square()


def logit(distance2: Tensor, radius2: Tensor, margin2: float, kernel: str) -> Tensor:
    """Map squared distances to logits that are positive inside the radius (docs/mathematics.md)."""
    if kernel == "margin":
        return (radius2 - distance2) / margin2
    return 2 * torch.exp(-distance2 * (math.log(2) / radius2)) - 1


def _one_node(
    embedding: Tensor,
    means: Tensor,
    radius2: Tensor,
    margin2: float,
    nodes: Nodes,
    k: int,
    kernel: str,
    cut: float,
    bins: int,
) -> Tensor:
    picture = int(nodes.picture[k])
    pictures = slice(None) if picture < 0 else slice(picture, picture + 1)
    member = nodes.member[pictures].flatten()
    inside = member == k
    counts = (member != IGNORED) & (nodes.group[pictures].flatten() == nodes.node_group[k])
    distance2 = (embedding[pictures] - means[k][:, None]).square().sum(1).flatten()
    score = logit(distance2, radius2[k], margin2, kernel)
    errors = torch.where(inside, 1 - score, 1 + score)
    counts &= inside | (errors > cut)
    # A background entry of error 0 changes nothing: that masks a pixel exactly (docs/mathematics.md).
    errors = torch.where(counts, errors, 0)
    return binned_extension(errors[None], inside[None], bins)[0][0] if bins else lovasz_extension(errors, inside)
