"""Trained models that come with the package: folders as `lovasz-embed train` writes them, in half precision.

Each has a card, README.md, with its data, licence, figures and limits.
"""

from __future__ import annotations

from pathlib import Path

from lovasz_embed import _check

__all__ = ["NAMES", "weights_folder"]

NAMES = ("nuclei", "streets")
"""What there is: nuclei in fluorescence microscopy, and painted street scenes."""


def weights_folder(name: str) -> Path:
    """Return the folder of a model that comes with the package.

    Args:
        name: One of `NAMES`.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> from lovasz_embed.model import PanopticEmbedder
        >>> PanopticEmbedder.from_pretrained(weights_folder("nuclei")).config.classes
        ('background', 'object')
    """
    _check.one_of("weights", name, NAMES)
    return Path(__file__).parent / name
