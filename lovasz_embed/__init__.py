"""Panoptic and instance segmentation from one pixel embedding."""

from __future__ import annotations

__version__ = "0.1.0"
