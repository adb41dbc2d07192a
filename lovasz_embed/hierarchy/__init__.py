"""The hierarchical Lovász hinge: one loss over a tree of labels, read by distances to the means of its nodes."""

from __future__ import annotations

from lovasz_embed.hierarchy.levels import Level, panoptic_levels
from lovasz_embed.hierarchy.loss import (
    HierarchicalLoss,
    HierarchicalLovaszHinge,
    NodeLosses,
    hierarchical_lovasz_hinge,
)

__all__ = [
    "HierarchicalLoss",
    "HierarchicalLovaszHinge",
    "Level",
    "NodeLosses",
    "hierarchical_lovasz_hinge",
    "panoptic_levels",
]
