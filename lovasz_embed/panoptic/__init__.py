"""Panoptic results: one object for the map and its segments, and what makes one.

`PanopticResult` is a batch of pictures (or volumes) in which each pixel belongs to one segment or to void.
Truth becomes one by `PanopticResult.from_maps`, a prediction by `assemble`; it converts to COCO panoptic and
back, and to the dictionary of transformers.
"""

from __future__ import annotations

from lovasz_embed.panoptic._grid import Window
from lovasz_embed.panoptic.assembly import assemble
from lovasz_embed.panoptic.result import PanopticResult, Segment
from lovasz_embed.panoptic.segmentation import segment
from lovasz_embed.panoptic.tiles import segment_tiles

__all__ = ["PanopticResult", "Segment", "Window", "assemble", "segment", "segment_tiles"]
