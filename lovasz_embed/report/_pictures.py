"""Pictures of modest size inside a page: picture, truth and prediction as PNG data URIs."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lovasz_embed import _check
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.panoptic.result import is_result
from lovasz_embed.visualise import Palette, overlay

Picture = NDArray[np.uint8]

_SIDE = 480  # pixels of the longer side: what a column of the page shows, and a phone
_COLOURS = 256  # a palette holds what the eye sees at this size, in a third of the bytes


class Painted(NamedTuple):
    """One picture of a page.

    Attributes:
        uri: `data:image/png;base64,...`.
        width: Pixels.
        height: Pixels.
    """

    uri: str
    width: int
    height: int


def paint(
    image: Picture, truth: PanopticResult, prediction: PanopticResult, palette: Palette
) -> tuple[Painted, Painted, Painted]:
    """Return a picture, its truth and its prediction, each as a PNG of at most 480 pixels a side.

    Segments are painted after the picture has its new size, so that contours stay one pixel wide.

    Args:
        image: uint8 (H, W, 3).
        truth: Of this one picture.
        prediction: Of this one picture.
        palette: Colours of the categories.

    Raises:
        ImportError: Pillow is not installed (extra `viz`).

    >>> maps = torch.tensor([[[0, 1]]])
    >>> truth = PanopticResult.from_maps(maps, maps, things={1})
    >>> palette = Palette.of(("floor", "cup"), things={1})
    >>> [painted.width for painted in paint(np.zeros((1, 2, 3), np.uint8), truth, truth, palette)]
    [480, 480, 480]
    """
    from PIL import Image

    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(_check.message("image", "be a uint8 array (H, W, 3)", got))
    if not image.size:
        raise ValueError(_check.message("image", "have at least one pixel", image.shape))
    _check.is_a("palette", palette, Palette, "a Palette")
    for name, result in (("truth", truth), ("prediction", prediction)):
        is_result(name, result)
        _check.same_shape(name, result.segmentation, (1, *image.shape[:2]), "one picture of the image's size")
    longer = max(image.shape[:2])
    scale = max(1, _SIDE // longer)
    height, width = (max(1, round(side * min(1.0, _SIDE / longer))) for side in image.shape[:2])
    small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    results = [_shrunk(result, height, width) for result in (truth, prediction)]
    shown = [small.repeat(scale, axis=0).repeat(scale, axis=1)]
    shown += [overlay(small, result, palette=palette, scale=scale) for result in results]
    return _encode(shown[0]), _encode(shown[1], painted=True), _encode(shown[2], painted=True)


def _shrunk(result: PanopticResult, height: int, width: int) -> PanopticResult:
    """Return the nearest pixels; a segment too small to be hit is not seen. Areas stay those of the full size."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long()
        for new, old in zip((height, width), result.segmentation.shape[1:], strict=True)
    )
    return PanopticResult(result.segmentation[:, rows[:, None], columns], result.segments)


def _encode(picture: Picture, *, painted: bool = False) -> Painted:
    from PIL import Image

    content = io.BytesIO()
    # A median cut is smoother; the octree keeps a colour that few pixels have, such as that of a small instance.
    method = Image.Quantize.FASTOCTREE if painted else Image.Quantize.MEDIANCUT
    reduced = Image.fromarray(picture).quantize(_COLOURS, method, dither=Image.Dither.NONE)
    reduced.save(content, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    return Painted(uri, picture.shape[1], picture.shape[0])
