"""Lovász hinge of every node of a level against its distance kernel: the readable reference, and dispatch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lovasz_embed._ops.nodes import IGNORED, Nodes
from lovasz_embed._ops.reference import lovasz_extension

KERNELS = ("margin", "gaussian")


def node_hinge(
    embedding: Tensor, means: Tensor, radius2: Tensor, margin2: float, nodes: Nodes, kernel: str, impl: str
) -> tuple[Tensor, Tensor]:
    """Return the mean of the nodes' Lovász hinges, 0-d, and each of them, (K,), detached.

    Args:
        embedding: (B, D, P), float32 or float64.
        means: Centres of the nodes, (K, D).
        radius2: Squared radius of each node, (K,).
        margin2: Squared margin of the margin kernel.
        nodes: The K nodes; without any the loss is 0.
        kernel: "margin" or "gaussian".
        impl: "auto", "reference" or "numba".
    """
    if impl == "auto":
        impl = "numba" if embedding.device.type == "cpu" else "reference"
    if not len(nodes):
        return embedding.sum() * 0, means.detach().sum(1)
    if impl == "numba":
        from lovasz_embed._ops.node_hinge_numba import node_hinge_numba

        return node_hinge_numba(embedding, means, radius2, margin2, nodes, kernel)
    losses = torch.stack(
        [
            # Recomputed in backward: otherwise every node keeps several arrays of all pixels.
            checkpoint(_one_node, embedding, means, radius2, margin2, nodes, k, kernel, use_reentrant=False)
            for k in range(len(nodes))
        ]
    )
    return losses.mean(), losses.detach()


def logit(distance2: Tensor, radius2: Tensor, margin2: float, kernel: str) -> Tensor:
    """Map squared distances to logits that are positive inside the radius (docs/mathematics.md)."""
    if kernel == "margin":
        return (radius2 - distance2) / margin2
    return 2 * torch.exp(-distance2 * (math.log(2) / radius2)) - 1


def _one_node(
    embedding: Tensor, means: Tensor, radius2: Tensor, margin2: float, nodes: Nodes, k: int, kernel: str
) -> Tensor:
    picture = int(nodes.picture[k])
    pictures = slice(None) if picture < 0 else slice(picture, picture + 1)
    member = nodes.member[pictures].flatten()
    inside = member == k
    counts = (member != IGNORED) & (nodes.group[pictures].flatten() == nodes.node_group[k])
    distance2 = (embedding[pictures] - means[k][:, None]).square().sum(1).flatten()
    score = logit(distance2, radius2[k], margin2, kernel)
    errors = torch.where(inside, 1 - score, 1 + score)
    # A background entry of error 0 changes nothing: that masks a pixel exactly (docs/mathematics.md).
    return lovasz_extension(torch.where(counts, errors, 0), inside)
