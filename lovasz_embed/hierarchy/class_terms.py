"""Terms of the loss that look at class means: the nearest-class-mean cross-entropy, the pull, the regulariser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lovasz_embed import _check
from lovasz_embed._ops.nodes import Nodes, find_nodes
from lovasz_embed._ops.tree_hinge import TreeLevel

_ROW = 4096


def class_terms(
    embedding: Tensor,
    level: TreeLevel,
    class_means: Tensor | None,
    *,
    pull_weight: float,
    ncm_weight: float,
    ncm_temperature: float,
    norm_weight: float,
    engine: str,
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the terms, and the cross-entropy alone, both 0-d.

    Args:
        embedding: (B, D, P).
        level: The tree's first level; its radius is the unit of length.
        class_means: Running means (C, D) of the level's labels; rows of NaN are classes not met yet.
        pull_weight: Weight of the pull of the batch's means towards the running ones.
        ncm_weight: Weight of the cross-entropy.
        ncm_temperature: Its temperature, in squared radii.
        norm_weight: Weight of the batch's means' squared length.
        engine: What computes the tree; with "triton" nothing waits for the device, except for the cross-entropy
            without `class_means`: it has as many logits a pixel as there are nodes.
    """
    nothing = embedding.new_zeros(())
    if class_means is not None:
        _check_class_means(class_means, embedding, level.labels)
        class_means = class_means.detach().to(embedding)
        class_means = class_means if level.dims is None else class_means[:, list(level.dims)]
    if not (pull_weight or ncm_weight or norm_weight):
        return nothing, nothing
    seen = embedding if level.dims is None else embedding[:, list(level.dims)]
    scale = level.radius**2
    total = ncm = nothing
    if ncm_weight and class_means is not None:
        target = torch.where(level.labels < 0, -1, level.labels.long())
        ncm = _cross_entropy(seen, class_means, target, ncm_temperature * scale)
        total = total + ncm_weight * ncm
        if not (pull_weight or norm_weight):
            return total, ncm
    if engine == "triton" and not (ncm_weight and class_means is None):
        means, label, there = _means_on_device(seen, level)
    else:
        # How many nodes there are depends on the labels: from here on a compiled graph would break.
        nodes = find_nodes(level.labels, per_picture=level.per_picture)
        if not len(nodes):
            return total, ncm
        means, label = nodes.means(seen), nodes.label
        there = torch.ones_like(label, dtype=torch.bool)
        if ncm_weight and class_means is None:
            ncm = _cross_entropy(seen, means, _targets(nodes), ncm_temperature * scale)
            total = total + ncm_weight * ncm
    if pull_weight and class_means is not None:
        # A class not met yet pulls nowhere; masked after the square, its NaN would stay in the gradient.
        aim = class_means[label.clamp(0, len(class_means) - 1)]
        gap = means - torch.where(aim.isnan() | (label >= len(class_means))[:, None], means.detach(), aim)
        total = total + pull_weight * _mean(gap.square().sum(1), there) / scale
    if norm_weight:
        total = total + norm_weight * _mean(means.square().sum(1), there) / scale
    return total, ncm


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """Return the mean over the nodes that are there, 0 without any."""
    return torch.where(there, values, 0).sum() / there.sum().clamp(min=1)


def _means_on_device(embedding: Tensor, level: TreeLevel) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and label of every node, padded, and which of them are there."""
    from lovasz_embed._ops.gpu.nodes import named_nodes

    member, label = named_nodes(level.labels, level.per_picture)
    there = label >= 0
    size = torch.zeros_like(label).scatter_add(0, member.flatten().clamp(min=0).long(), (member >= 0).flatten().long())
    nodes = Nodes(member, label, label, member, label, size.clamp(min=1))
    return nodes.means(embedding), label, there


def _targets(nodes: Nodes) -> Tensor:
    return torch.where(nodes.member < 0, -1, nodes.member)


def _cross_entropy(embedding: Tensor, centres: Tensor, target: Tensor, scale: float) -> Tensor:
    """Cross-entropy of softmax(-|e - µ_c|² / scale) over the pixels that have a label and a known mean."""
    known = ~centres.isnan().any(1)
    if not len(known):
        return (embedding * 0.0).sum()
    usable = (target >= 0) & (target < len(known))
    target = torch.where(usable & known[torch.where(usable, target, 0)], target, -1)
    # |e|² is the same for every class and drops out of the softmax: one matrix product is left.
    near = torch.where(known[:, None], centres, 0)
    # Where no class is known yet all logits are equal: minus infinity throughout would make the gradient NaN.
    absent = ~known & known.any()
    bias = torch.where(absent, -torch.inf, -near.square().sum(1)) / scale
    logits = bias[:, None] + (2 / scale * near) @ embedding
    # Summed here: the sum that is built in has no order of its own on a CUDA device.
    losses = nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="none")
    return _sum(losses.flatten()) / (target >= 0).sum().clamp(min=1)


def _sum(values: Tensor) -> Tensor:
    """Return the sum of (n,) in an order of its own: torch cuts a long sum by its threads, but not that of a row."""
    return nn.functional.pad(values, (0, -len(values) % _ROW)).view(-1, _ROW).sum(1).sum()


def _check_class_means(class_means: Tensor, embedding: Tensor, labels: Tensor) -> None:
    _check.is_floating("class_means", class_means)
    _check.same_device("class_means", class_means, embedding.device, "embedding")
    dims = embedding.shape[1]
    if class_means.ndim != 2 or class_means.shape[1] != dims:
        raise ValueError(_check.message("class_means", f"have shape (C, {dims})", tuple(class_means.shape)))
    if torch.compiler.is_compiling() or not labels.numel() or labels.device.type != "cpu":
        return
    highest = int(labels.max())
    if highest >= class_means.shape[0]:
        rule = f"have a row for every label of levels[0] (up to {highest})"
        raise ValueError(_check.message("class_means", rule, f"{class_means.shape[0]} rows"))
