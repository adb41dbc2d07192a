"""Scores: panoptic quality of pictures, and how stable embeddings and categories are from frame to frame."""

from __future__ import annotations

from lovasz_embed.quality.panoptic import ClassQuality, PanopticQuality, QualityResult, panoptic_quality
from lovasz_embed.quality.panoptic import _count as _count
from lovasz_embed.quality.panoptic import _quality as _quality

__all__ = ["ClassQuality", "PanopticQuality", "QualityResult", "panoptic_quality"]
