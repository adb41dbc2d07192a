"""One random view of a labelled picture: scale, crop, mirror, turn, exposure. Pictures and labels move together."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lovasz_embed import _check
from lovasz_embed.model import prepare

VOID = 255
_LARGEST = 2**15  # side of a crop, pixels: a billion of them


class Labelled(Protocol):
    """What training needs of a picture; `lovasz_embed.formats.Sample` is one."""

    @property
    def image(self) -> NDArray[np.uint8]:
        """Picture, (H, W, 3) bytes."""

    @property
    def semantic(self) -> NDArray[np.integer] | None:
        """Category of each pixel, (H, W); 255 is void."""

    @property
    def instance(self) -> NDArray[np.integer] | None:
        """Instance of each pixel, (H, W); 0 is none."""

    @property
    def crowd(self) -> NDArray[np.bool_] | None:
        """True where things are not told apart, (H, W)."""


class View(NamedTuple):
    """A training example; a batch of them has one more axis in front.

    Attributes:
        picture: Input of the network, (3, S, S).
        semantic: (S, S) int64; 255 is void.
        instance: (S, S) int64; 0 is none.
        crowd: (S, S) bool.
    """

    picture: Tensor
    semantic: Tensor
    instance: Tensor
    crowd: Tensor


def whole(sample: Labelled) -> View:
    """Return a picture as it is, ready for the network.

    Raises:
        TypeError: If the sample is no labelled picture, or labels are not integers.
        ValueError: If the picture has no labels, or labels of another size.

    Example:
        >>> from lovasz_embed.formats import Sample
        >>> labels = np.zeros((4, 5), np.uint8)
        >>> whole(Sample("grey", np.zeros((4, 5, 3), np.uint8), labels, labels)).picture.shape
        torch.Size([3, 4, 5])
    """
    fields = ("image", "semantic", "instance", "crowd")
    _check.has_fields("sample", sample, fields, "a labelled picture, such as lovasz_embed.formats.Sample")
    if sample.semantic is None or sample.instance is None:
        raise ValueError(_check.message("sample", "have semantic and instance labels", "none"))
    picture = prepare(sample.image)
    size = tuple(picture.shape[1:])
    crowd = np.zeros(size, bool) if sample.crowd is None else sample.crowd
    for name, labels in (("semantic", sample.semantic), ("instance", sample.instance), ("crowd", crowd)):
        if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "biu":
            got = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
            raise TypeError(_check.message(f"sample.{name}", "be a numpy array of integers", got))
        if labels.shape != size:
            raise ValueError(_check.message(f"sample.{name}", f"have the picture's shape {size}", labels.shape))
    return View(
        picture,
        torch.from_numpy(sample.semantic.astype(np.int64)),
        torch.from_numpy(sample.instance.astype(np.int64)),
        torch.from_numpy(crowd.astype(bool)),
    )


def random_view(
    view: View,
    rng: np.random.Generator,
    *,
    size: int,
    scale: float = 1.0,
    turn: bool = False,
    jitter: float = 0.0,
) -> View:
    """Return a random square crop; what lies outside the picture is void.

    Args:
        view: A whole picture.
        rng: The only source of randomness.
        size: Side S of the crop, pixels.
        scale: Pictures are resized by a factor of 1/scale ... scale, log-uniform.
        turn: Whether quarter turns and upside-down mirrors are allowed, besides left-right mirrors.
        jitter: Strength of changes of exposure (gamma, gain, offset, noise), 0 ... 1.

    Returns:
        The view, (S, S). Instances cut by the border keep what is inside.

    Raises:
        TypeError: If `view` is no `View` of tensors, `rng` no generator, or an option of another type.
        ValueError: If the view's parts have other sizes or no pixel, or an option is out of its range.

    Example:
        >>> picture = View(torch.zeros(3, 8, 8), *(torch.zeros(8, 8, dtype=torch.long),) * 2, torch.zeros(8, 8) > 0)
        >>> random_view(picture, np.random.default_rng(0), size=10).semantic.shape
        torch.Size([10, 10])
    """
    _check_view(view)
    _check.is_a("rng", rng, np.random.Generator, "numpy.random.Generator", "Make one with numpy.random.default_rng.")
    _check.is_int("size", size, 1, _LARGEST)
    _check.between("scale", scale, 1, 1000, "lie in 1 ... 1000")
    _check.is_bool("turn", turn)
    _check.between("jitter", jitter, 0, 1, "lie in 0 ... 1")
    factor = float(scale ** rng.uniform(-1, 1)) if scale > 1 else 1.0
    height, width = view.semantic.shape
    rows, columns = (min(max(round(size / factor), 1), side) for side in (height, width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    window = (slice(top, top + rows), slice(left, left + columns))
    picture = view.picture[:, *window]
    labels = torch.stack([view.semantic[window], view.instance[window], view.crowd[window].long()])
    if factor != 1:
        target = (min(size, max(round(rows * factor), 1)), min(size, max(round(columns * factor), 1)))
        # Torch's antialiasing repeats the first row where the result is one column wide (seen in 2.13 on the CPU).
        antialias = factor < 1 and target[1] > 1
        picture = F.interpolate(picture[None], size=target, mode="bilinear", antialias=antialias)[0]
        labels = _nearest(labels, target)
    if rng.integers(2):
        picture, labels = picture.flip(-1), labels.flip(-1)
    if turn:
        quarters = int(rng.integers(4))
        picture, labels = picture.rot90(quarters, (1, 2)), labels.rot90(quarters, (1, 2))
    if jitter > 0:
        picture = _expose(picture, rng, jitter)
    below, right = size - labels.shape[1], size - labels.shape[2]
    semantic, instance, crowd = labels
    return View(
        F.pad(picture, (0, right, 0, below)),
        F.pad(semantic, (0, right, 0, below), value=VOID),
        F.pad(instance, (0, right, 0, below)),
        F.pad(crowd.bool(), (0, right, 0, below)),
    )


def _check_view(view: View) -> None:
    _check.is_a("view", view, View, "lovasz_embed.training.View")
    _check.is_floating("view.picture", view.picture)
    size = tuple(view.picture.shape[-2:])
    if view.picture.ndim != 3 or len(view.picture) != 3 or 0 in size:
        rule = "have shape (3, H, W), with at least one pixel"
        raise ValueError(_check.message("view.picture", rule, tuple(view.picture.shape)))
    for name in ("semantic", "instance", "crowd"):
        labels = getattr(view, name)
        _check.is_labels(f"view.{name}", labels)
        _check.has_values(f"view.{name}", labels)
        _check.same_shape(f"view.{name}", labels, size, "view.picture")
    _check.has_values("view.picture", view.picture)


def _nearest(labels: Tensor, target: tuple[int, int]) -> Tensor:
    """Resize integer maps by index: interpolation in floating point would corrupt large ids."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for new, old in zip(target, labels.shape[1:], strict=True)
    )
    return labels[:, rows[:, None], columns]


def _expose(picture: Tensor, rng: np.random.Generator, jitter: float) -> Tensor:
    """Another exposure of the same scene: gamma, gain, offset, noise of a random strength."""
    gamma = float(np.exp(jitter * rng.uniform(-1, 1)))
    gain, offset = 1 + 0.5 * jitter * rng.uniform(-1, 1), 0.25 * jitter * rng.uniform(-1, 1)
    light = ((picture + 1) / 2).clamp(min=0) ** gamma
    noise = torch.from_numpy(rng.standard_normal(picture.shape, dtype=np.float32))
    return (light * 2 - 1) * gain + offset + noise * (0.2 * jitter * rng.uniform())
