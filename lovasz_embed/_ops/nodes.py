"""The nodes of one level of a label tree, as flat integer arrays that every engine reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_NODE = -1
IGNORED = -2


@dataclass(frozen=True)
class Nodes:
    """The K nodes of a level over a batch of B pictures with P pixels each.

    Attributes:
        member: Node of each pixel, (B, P) int64; `NO_NODE` or `IGNORED` where there is none.
        picture: Picture of each node, (K,) int64; -1 for a node that spans the batch.
        label: The label that the node had in the level, (K,) int64.
        group: Group of each pixel, (B, P) int64. A pixel can be a negative of a node of its own group only.
        node_group: Group of each node, (K,) int64.
        size: Pixels of each node, (K,) int64.
    """

    member: Tensor
    picture: Tensor
    label: Tensor
    group: Tensor
    node_group: Tensor
    size: Tensor

    def __len__(self) -> int:
        """Count the nodes."""
        return self.label.numel()

    def means(self, values: Tensor) -> Tensor:
        """Mean of (B, D, P) values over each node: (K, D), differentiable.

        Summed in float64: a class of a million pixels would lose four digits in float32.
        """
        columns = values.movedim(1, 0).flatten(1)
        # One bin more than nodes takes what belongs to no node: fixed shapes instead of boolean indexing.
        index = torch.where(self.member < 0, len(self), self.member).flatten()
        sums = columns.new_zeros(columns.shape[0], len(self) + 1, dtype=torch.float64)
        sums = sums.index_add(1, index, columns.double())[:, :-1]
        return (sums / self.size).t().to(values.dtype)


def find_nodes(labels: Tensor, *, per_picture: bool) -> Nodes:
    """Number the nodes of a (B, P) label map; negative labels are `NO_NODE` and `IGNORED`.

    Nodes are ordered by picture, then by label. Every pixel is in the same group.
    """
    labels = labels.long()
    pictures = len(labels)
    distinct, compact = torch.unique(labels, return_inverse=True)
    # Keys are built from compact numbers, so that ids of any size cannot overflow.
    key = compact
    if per_picture:
        key = key + distinct.numel() * torch.arange(pictures, device=labels.device).unsqueeze(1)
    key = torch.where(labels < 0, -1, key)
    found, index = torch.unique(key, return_inverse=True)
    nothing = int(found.numel() > 0 and bool(found[0] < 0))
    member = torch.where(labels < 0, labels, index - nothing)
    found = found[nothing:]
    size = torch.bincount(member.flatten().clamp(min=-1) + 1, minlength=found.numel() + 1)[1:]
    return Nodes(
        member=member,
        picture=found // max(distinct.numel(), 1) if per_picture else torch.full_like(found, -1),
        label=distinct[found % max(distinct.numel(), 1)],
        group=torch.zeros_like(labels),
        node_group=torch.zeros_like(found),
        size=size,
    )


def group_by_parent(nodes: Nodes, parents: Nodes) -> Nodes:
    """Let only pixels of the same parent be negatives of a node.

    Raises:
        ValueError: If the pixels of a node have more than one parent, or if one of them has none.
    """
    parent = parents.member.flatten()
    inside = torch.where(nodes.member < 0, len(nodes), nodes.member).flatten()
    first = parent.new_zeros(len(nodes) + 1)
    least = first.scatter_reduce(0, inside, parent, "amin", include_self=False)[:-1]
    most = first.scatter_reduce(0, inside, parent, "amax", include_self=False)[:-1]
    if bool(((least != most) | (least < 0)).any()):
        wrong = int(((least != most) | (least < 0)).nonzero()[0])
        raise not_a_tree(int(nodes.label[wrong]))
    return Nodes(nodes.member, nodes.picture, nodes.label, parents.member.long(), least, nodes.size)


def not_a_tree(label: int) -> ValueError:
    """Return the error for a node that is outside or across nodes of the level above."""
    return ValueError(
        "levels must form a tree: every node inside one node of the level above, got node "
        f"{label} outside or across nodes of the level above. "
        "Ignore those pixels, or use negatives='all'."
    )
