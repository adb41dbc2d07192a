"""A panoptic result painted over its picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.labels import plain
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.panoptic._strips import index_strips
from lovasz_embed.panoptic.result import is_result
from lovasz_embed.visualise._palette import Palette

Picture = NDArray[np.uint8]
_Value = TypeVar("_Value", bound=np.generic)

_ALPHA, _VOID_LIGHT = 0.65, 0.35
_LARGEST = 1024  # a larger scale than this is a mistake, and fills the memory
_LINE, _EDGE = np.array([[255, 255, 255], [24, 24, 28]], dtype=np.uint8)  # around things; between anything else


def as_picture(image: Tensor | NDArray[np.generic]) -> Picture:
    """Return an image as uint8 (H, W, 3).

    Args:
        image: A uint8 array (H, W) or (H, W, 3), or a tensor (C, H, W) with C = 1 or 3: uint8, or floating
            point in [0, 1], clipped.

    Raises:
        TypeError: The image is neither.
        ValueError: The shape is another one.

    >>> as_picture(torch.tensor([[[0.0, 1.0]]])).tolist()
    [[[0, 0, 0], [255, 255, 255]]]
    """
    if isinstance(image, Tensor):
        _check.is_tensor("image", image)
        _check.has_values("image", image)
        if image.is_complex():
            raise TypeError(_check.message("image", "be a uint8 array or a floating point tensor", image.dtype))
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            remedy = "One picture of a batch is batch[i]."
            raise ValueError(_check.message("image", "have shape (1 or 3, H, W)", tuple(image.shape), remedy))
        levels = plain(image.detach())
        if levels.is_floating_point():
            levels = levels.float().clamp(0, 1).mul(255).round().to(torch.uint8)
        pixels: NDArray[np.generic] = levels.permute(1, 2, 0).cpu().numpy()
    else:
        if not hasattr(image, "__array__"):  # a picture of Pillow has it
            got = type(image).__name__
            raise TypeError(_check.message("image", "be a uint8 array or a floating point tensor", got))
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
    if pixels.dtype != np.uint8:
        remedy = "Pass a floating point picture as a tensor (3, H, W) in [0, 1]."
        raise TypeError(_check.message("image", "be a uint8 array or a floating point tensor", pixels.dtype, remedy))
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(_check.message("image", "have shape (H, W) or (H, W, 3)", pixels.shape))
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), dtype=np.uint8)


def overlay(
    image: Tensor | NDArray[np.generic],
    result: PanopticResult,
    *,
    palette: Palette | None = None,
    alpha: float = _ALPHA,
    contours: bool = True,
    scale: int = 1,
) -> Picture:
    """Paint a panoptic result over its picture.

    Stuff has the colour of its category, every thing one near it. Crowds are striped. Void is the picture
    itself, darkened and striped.

    Args:
        image: What `as_picture` takes, (H, W) pixels.
        result: Of this one picture: `results[i]` of a batch.
        palette: None makes one of the categories that occur; pass one where pictures are to be compared.
        alpha: Share of the colour in [0, 1]; the rest is the picture.
        contours: Whether to draw a line of one pixel between segments, white around things, else dark.
        scale: Whole number by which to enlarge first, so that contours stay thin on small pictures.

    Returns:
        uint8 (scale H, scale W, 3).

    Raises:
        ValueError: The result is not one picture of the image's size, `alpha` or `scale` is out of range, or
            the palette lacks a category.

    >>> semantic, instance = torch.tensor([[[0, 1, 255]]]), torch.tensor([[[0, 1, 0]]])
    >>> result = PanopticResult.from_maps(semantic, instance, things={1})
    >>> overlay(torch.zeros(3, 1, 3), result, scale=8).shape
    (8, 24, 3)
    """
    pixels = as_picture(image)
    is_result("result", result)
    if palette is not None:
        _check.is_a("palette", palette, Palette, "a Palette or None")
    shape = tuple(result.segmentation.shape)
    if shape != (1, *pixels.shape[:2]):
        rule = f"be one picture of the image's {pixels.shape[0]} x {pixels.shape[1]} pixels"
        raise ValueError(_check.message("result", rule, f"shape {shape}", "One picture of a batch is result[i]."))
    _check.between("alpha", alpha, 0, 1, "be in [0, 1]")
    _check.is_bool("contours", contours)
    _check.is_int("scale", scale, 1, _LARGEST)
    picture: Picture = np.empty((scale * pixels.shape[0], scale * pixels.shape[1], 3), np.uint8)
    for top, strip in _paint(pixels, result, palette or _own_palette(result), alpha, contours, scale):
        picture[top : top + len(strip)] = strip
    return picture


def overlay_strips(image: NDArray[np.uint8], result: PanopticResult, palette: Palette) -> Iterator[Picture]:
    """Yield the rows of an overlay (H, W, 3) from top to bottom, for pictures that are larger than memory."""
    return (strip for _, strip in _paint(image, result, palette, _ALPHA, True, 1))


def _paint(
    image: NDArray[np.uint8], result: PanopticResult, palette: Palette, alpha: float, contours: bool, scale: int
) -> Iterator[tuple[int, Picture]]:
    """Yield the first row of a strip of the overlay, and the strip."""
    rows, hatched, is_thing = _table(result, palette, alpha)
    thick = max(3, scale * image.shape[0] // 128)
    across = np.arange(scale * image.shape[1])
    above: NDArray[np.int32] | None = None
    for place, small in index_strips(result):
        index, top = enlarge(small, scale), scale * place.start
        stripe = np.add.outer(np.arange(top, top + len(index)), across) // thick % 2 == 0
        row = index + np.where(hatched[index] & stripe, len(hatched), 0)
        colour, weight = rows[row, :3], rows[row, 3:]
        mixed = enlarge(image[place], scale) * (256 - weight) + colour * weight
        strip: Picture = (mixed >> 8).astype(np.uint8)
        if contours:
            _draw_contours(strip, index, above, is_thing)
        above = index[-1:]
        yield top, strip


def enlarge(picture: NDArray[_Value], scale: int) -> NDArray[_Value]:
    """Repeat every pixel `scale` times in both directions."""
    return picture if scale == 1 else picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _table(
    result: PanopticResult, palette: Palette, alpha: float
) -> tuple[NDArray[np.uint16], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return colour and weight (of 256) per segment, void first, and again for stripes; striped? thing?"""
    segments = result.segments[0]
    plain = np.zeros((len(segments) + 1, 4), dtype=np.uint16)
    category = np.array([-1, *(segment.category for segment in segments)])
    ids = np.array([0, *(segment.id for segment in segments)])
    is_thing = np.array([False, *(segment.is_thing for segment in segments)])
    hatched = np.array([True, *(segment.is_crowd for segment in segments)])
    unknown = category[category >= len(palette.names)]
    if unknown.size:
        rule = f"hold every category of the result ({unknown[0]})"
        raise ValueError(_check.message("palette", rule, f"{len(palette.names)} categories"))
    plain[1:, :3] = palette.colours[category[1:]]
    own = is_thing & ~hatched
    for each in np.unique(category[own]).tolist():
        chosen = own & (category == each)
        plain[chosen, :3] = palette.instances(each, ids[chosen].tolist())
    plain[1:, 3] = round(256 * alpha)
    plain[0, 3] = round(256 * (1 - _VOID_LIGHT))
    striped = plain.copy()
    striped[:, :3] //= 2
    striped[0] = (150, 150, 150, round(256 * 0.45))
    return np.concatenate([plain, striped]), hatched, is_thing


def _draw_contours(
    picture: Picture, index: NDArray[np.int32], above: NDArray[np.int32] | None, is_thing: NDArray[np.bool_]
) -> None:
    """Mark the pixels that differ from the one above, which may be in the strip before, or to the left."""
    pairs = [(index[:-1], index[1:], picture[1:]), (index[:, :-1], index[:, 1:], picture[:, 1:])]
    if above is not None:
        pairs.insert(0, (above, index[:1], picture[:1]))
    for first, second, inner in pairs:
        border = first != second
        thing = is_thing[first[border]] | is_thing[second[border]]
        inner[border] = np.where(thing[:, None], _LINE, _EDGE)


def _own_palette(result: PanopticResult) -> Palette:
    segments = result.segments[0]
    count = max((segment.category for segment in segments), default=-1) + 1
    things = {segment.category for segment in segments if segment.is_thing}
    return Palette.of([str(category) for category in range(count)], things)
