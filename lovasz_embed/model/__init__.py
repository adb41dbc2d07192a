"""The reference network: a picture in, one embedding per pixel out, and everything read off it."""

from __future__ import annotations

from lovasz_embed.model.backbones import AdaptedBackbone, build_backbone
from lovasz_embed.model.config import BACKBONES as BACKBONES
from lovasz_embed.model.config import COORDINATES as COORDINATES
from lovasz_embed.model.config import ModelConfig
from lovasz_embed.model.embedder import CONFIG as CONFIG
from lovasz_embed.model.embedder import WEIGHTS as WEIGHTS
from lovasz_embed.model.embedder import PanopticEmbedder
from lovasz_embed.model.layers import ConvEncoder, StandardisedConv2d
from lovasz_embed.model.preparing import prepare

__all__ = [
    "AdaptedBackbone",
    "ConvEncoder",
    "ModelConfig",
    "PanopticEmbedder",
    "StandardisedConv2d",
    "build_backbone",
    "prepare",
]
