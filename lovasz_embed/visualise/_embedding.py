"""Embeddings as pictures: their principal components as colours, and the nearest class mean of each pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed.visualise._palette import Palette

Picture = NDArray[np.uint8]

_SAMPLE = 2**16  # pixels that are enough to see where an embedding varies
_CHUNK = 2**16  # pixels whose distances to all means are held at once
_DIMMEST = 0.15


class ColourBasis(NamedTuple):
    """Where the three colours lie in the embedding space.

    Attributes:
        axes: float64 (3, D): the directions of red, green and blue; a direction of zeros stays mid-grey.
        low: float64 (3,), the coordinate that becomes 0.
        high: float64 (3,), the coordinate that becomes 255.
    """

    axes: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def colour_basis(embedding: Tensor, *, percentile: float = 1.0) -> ColourBasis:
    """Return the three directions in which embeddings vary most, and their range.

    Args:
        embedding: Float (B, D, H, W); all pictures that are to share their colours, or some of them.
        percentile: Percent of the pixels that may be darker than the darkest colour, and as many brighter.

    Raises:
        TypeError: The embedding is not floating point.
        ValueError: It has another shape, no pixel, NaN or Inf, or `percentile` is not in [0, 50).

    Notes:
        Principal components of the covariance of at most 65,536 evenly spaced pixels, largest first. Each
        direction points to where its largest coefficient is positive: the same pixels give the same colours.

    >>> basis = colour_basis(torch.rand(2, 8, 16, 16))
    >>> basis.axes.shape
    (3, 8)
    """
    _check.is_embedding("embedding", embedding)
    _check.has_values("embedding", embedding)
    _check.non_negative("percentile", percentile)
    if percentile >= 50:
        raise ValueError(_check.message("percentile", "be in [0, 50)", percentile))
    pixels = embedding.detach().movedim(1, -1).flatten(0, -2)
    if not len(pixels):
        raise ValueError(_check.message("embedding", "hold at least one pixel", tuple(embedding.shape)))
    step = -(-len(pixels) // _SAMPLE)
    sample = pixels[::step].double()
    _check.all_finite("embedding", sample)
    points = sample.cpu().numpy()
    centred = points - points.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    found = vectors.T[::-1][:3]  # eigh sorts upwards
    found = found * np.where(np.take_along_axis(found, np.abs(found).argmax(1)[:, None], 1) < 0, -1.0, 1.0)
    axes = np.zeros((3, points.shape[1]))
    axes[: len(found)] = found
    low, high = np.percentile(points @ axes.T, [percentile, 100 - percentile], axis=0)
    return ColourBasis(axes, low, high)


def embedding_colours(embedding: Tensor, *, basis: ColourBasis | None = None) -> Picture:
    """Return an embedding as a picture: like colours, like embeddings.

    Args:
        embedding: Float (D, H, W), or (1, D, H, W).
        basis: What `colour_basis` returned for several pictures, such as the frames of a clip, so that they
            share their colours; None takes that of this picture.

    Returns:
        uint8 (H, W, 3). Beyond the range of the basis colours saturate.

    Raises:
        TypeError: The embedding is not floating point.
        ValueError: It has another shape, NaN or Inf, or not the dimensions of the basis.

    >>> embedding_colours(torch.rand(8, 4, 6)).shape
    (4, 6, 3)
    """
    embedding = _one_picture(embedding)
    if basis is not None:
        _check.is_a("basis", basis, ColourBasis, "a ColourBasis or None", "colour_basis makes one.")
    if basis is None:
        basis = colour_basis(embedding[None])
    if basis.axes.shape[1] != len(embedding):
        rule = f"have the embedding's {len(embedding)} dimensions"
        raise ValueError(_check.message("basis", rule, basis.axes.shape[1]))
    span = np.where(basis.high > basis.low, basis.high - basis.low, 1.0)
    offset = np.where(basis.high > basis.low, basis.low, basis.low - 0.5)  # what does not vary is mid-grey
    weight = torch.from_numpy(basis.axes / span[:, None]).to(embedding)
    bias = torch.from_numpy(-offset / span).to(embedding)
    colours = torch.einsum("kd,dhw->hwk", weight, embedding) + bias
    picture: Picture = colours.clamp_(0, 1).mul_(255).round_().to(torch.uint8).cpu().numpy()
    return picture


def class_mean_map(embedding: Tensor, class_means: Tensor, *, palette: Palette | None = None) -> Picture:
    """Return the nearest class mean of each pixel as its colour, how clear the choice is as brightness.

    With d1 and d2 the distances to the nearest and the second nearest mean, brightness grows with
    1 - d1 / d2: from dim half-way between two means to full on a mean, or where there is one class only.

    Args:
        embedding: Float (D, H, W), or (1, D, H, W).
        class_means: Float (C, D). A class whose mean holds NaN is absent.
        palette: Of C categories; None makes one.

    Returns:
        uint8 (H, W, 3); black where all classes are absent.

    Raises:
        TypeError: A tensor is not floating point.
        ValueError: Shapes do not fit, or the embedding holds NaN or Inf.

    >>> means = torch.tensor([[0.0], [4.0]])
    >>> palette = Palette.of(("a", "b"), things=(), colours=[(100, 0, 0), (0, 0, 200)])
    >>> class_mean_map(torch.tensor([[[0.0, 2.0, 4.0]]]), means, palette=palette).tolist()
    [[[100, 0, 0], [15, 0, 0], [0, 0, 200]]]
    """
    embedding = _one_picture(embedding)
    _check.is_floating("class_means", class_means)
    _check.has_values("class_means", class_means)
    if palette is not None:
        _check.is_a("palette", palette, Palette, "a Palette or None")
    if class_means.ndim != 2 or class_means.shape[1] != len(embedding):
        rule = f"have shape (C, {len(embedding)}) to match embedding"
        raise ValueError(_check.message("class_means", rule, tuple(class_means.shape)))
    classes = len(class_means)
    if palette is None:
        palette = Palette.of([str(category) for category in range(classes)], things=range(classes))
    if len(palette.names) != classes:
        raise ValueError(_check.message("palette", f"have {classes} categories, one per mean", len(palette.names)))

    present = torch.isfinite(class_means).all(dim=1).nonzero()[:, 0]
    height, width = embedding.shape[1:]
    if not len(present):
        return np.zeros((height, width, 3), dtype=np.uint8)
    means = class_means.detach()[present].to(embedding)
    colours = torch.from_numpy(palette.colours)[present.cpu()].to(embedding)
    picture = torch.empty(height * width, 3, dtype=torch.uint8)
    for start in range(0, height * width, _CHUNK):
        pixels = embedding.flatten(1)[:, start : start + _CHUNK].T
        distance = torch.cdist(pixels, means)
        first, nearest = distance.min(dim=1)
        second = distance.scatter_(1, nearest[:, None], torch.inf).amin(dim=1)
        clear = torch.where(second > 0, 1 - first / second, 0.0)
        light = _DIMMEST + (1 - _DIMMEST) * clear
        picture[start : start + _CHUNK] = (colours[nearest] * light[:, None]).round().to(torch.uint8).cpu()
    return picture.view(height, width, 3).numpy()


def _one_picture(embedding: Tensor) -> Tensor:
    """Return the embedding of one picture as finite (D, H, W), at least float32."""
    _check.is_floating("embedding", embedding)
    _check.has_values("embedding", embedding)
    single = embedding[0] if embedding.ndim == 4 and len(embedding) == 1 else embedding
    if single.ndim != 3 or len(single) < 1:
        remedy = "One picture of a batch is embedding[i]."
        raise ValueError(_check.message("embedding", "have shape (D, H, W)", tuple(embedding.shape), remedy))
    _check.all_finite("embedding", single)
    return single.detach().to(torch.promote_types(single.dtype, torch.float32))
