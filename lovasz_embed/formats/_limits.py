"""How large a picture may be: a file of a few hundred bytes can claim any size."""

from __future__ import annotations

import math
import os
from pathlib import Path

from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError

VARIABLE = "LOVASZ_EMBED_MAX_MEGAPIXELS"
WHOLE, MAPPED = 200.0, 4000.0  # megapixels: 0.6 GB of memory, 12 GB of disk


def check_size(path: Path, height: int, width: int, *, mapped: bool = False) -> None:
    """Raise `DataError` where a picture has no pixel or more than the limit, before any of them is decoded.

    Args:
        path: Of the file, for the message.
        height: In pixels.
        width: In pixels.
        mapped: Whether it is to be read into a file rather than into memory.
    """
    if height < 1 or width < 1:
        raise DataError(message(str(path), "have at least one pixel", f"{height} x {width} (height x width)"))
    limit = limit_megapixels(mapped=mapped)
    if height * width > limit * 1e6:
        rule = f"have at most {limit:g} megapixels to be read {'by parts' if mapped else 'as a whole'}"
        got = f"{height} x {width} (height x width), {height * width / 1e6:,.1f} megapixels"
        remedy = f"{'S' if mapped else 'Predict it with --tile, or s'}et {VARIABLE} to more for a file that you trust."
        raise DataError(message(str(path), rule, got, remedy))


def limit_megapixels(*, mapped: bool = False) -> float:
    """Return the limit: what the environment says, else 200, or 4000 for pictures that are read into a file."""
    text = os.environ.get(VARIABLE)
    if not text:
        return MAPPED if mapped else WHOLE
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise DataError(message(VARIABLE, "be a number of megapixels above 0", repr(text)))
    return limit
