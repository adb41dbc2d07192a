"""Panoptic and instance segmentation from one pixel embedding.

Losses (`lovasz_hinge`, `lovasz_softmax`, `hierarchical_lovasz_hinge`), the nearest class mean, clustering and
panoptic results; each usable alone. Files, pictures, the reference model and training live in the modules
`formats`, `visualise`, `model` and `training`.
"""

from __future__ import annotations

from lovasz_embed.clustering import Clusters, RadiusEstimate, cluster_embeddings, estimate_radius
from lovasz_embed.hierarchy import (
    HierarchicalLoss,
    HierarchicalLovaszHinge,
    Level,
    NodeLosses,
    hierarchical_lovasz_hinge,
    panoptic_levels,
)
from lovasz_embed.lovasz import LovaszHinge, LovaszSoftmax, lovasz_hinge, lovasz_softmax, lovasz_weights
from lovasz_embed.panoptic import PanopticResult, Segment, assemble, segment, segment_tiles
from lovasz_embed.prototypes import NearestClassMean, class_means, nearest_class_mean
from lovasz_embed.quality import PanopticQuality, QualityResult, panoptic_quality
from lovasz_embed.tracking import TrackedFrame, Tracker, segment_means, track

__version__ = "0.1.0"

__all__ = [
    "Clusters",
    "HierarchicalLoss",
    "HierarchicalLovaszHinge",
    "Level",
    "LovaszHinge",
    "LovaszSoftmax",
    "NearestClassMean",
    "NodeLosses",
    "PanopticQuality",
    "PanopticResult",
    "QualityResult",
    "RadiusEstimate",
    "Segment",
    "TrackedFrame",
    "Tracker",
    "assemble",
    "class_means",
    "cluster_embeddings",
    "estimate_radius",
    "hierarchical_lovasz_hinge",
    "lovasz_hinge",
    "lovasz_softmax",
    "lovasz_weights",
    "nearest_class_mean",
    "panoptic_levels",
    "panoptic_quality",
    "segment",
    "segment_means",
    "segment_tiles",
    "track",
]
