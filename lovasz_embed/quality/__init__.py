"""Scores: panoptic quality of pictures, and how stable embeddings and categories are from frame to frame."""

from __future__ import annotations

from lovasz_embed.quality.panoptic import ClassQuality, PanopticQuality, QualityResult, panoptic_quality
from lovasz_embed.quality.panoptic import _count as _count
from lovasz_embed.quality.panoptic import _quality as _quality
from lovasz_embed.quality.temporal import Frame, StabilityResult, TemporalStability, temporal_stability

__all__ = [
    "ClassQuality",
    "Frame",
    "PanopticQuality",
    "QualityResult",
    "StabilityResult",
    "TemporalStability",
    "panoptic_quality",
    "temporal_stability",
]
