"""Pictures that a person can look at: results over their pictures, embeddings as colours, grids, PNG files.

Every function returns a uint8 array (H, W, 3). Only `panel` and `save_png` need Pillow, the extra `viz`.
"""

from __future__ import annotations

from lovasz_embed.visualise._embedding import ColourBasis, class_mean_map, colour_basis, embedding_colours
from lovasz_embed.visualise._overlay import as_picture, overlay
from lovasz_embed.visualise._palette import Palette
from lovasz_embed.visualise._panel import panel, save_png

__all__ = [
    "ColourBasis",
    "Palette",
    "as_picture",
    "class_mean_map",
    "colour_basis",
    "embedding_colours",
    "overlay",
    "panel",
    "save_png",
]
