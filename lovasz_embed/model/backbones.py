"""Backbones: the built-in one by name, pretrained ones, and an adapter for whatever returns feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from lovasz_embed import _check
from lovasz_embed.model.config import BACKBONES, EFFICIENTNET
from lovasz_embed.model.efficientnet import EfficientNetLite0, load_imagenet
from lovasz_embed.model.layers import ConvEncoder, check_picture, check_widths

_GREY = (0.5, 0.5, 0.5)
_DRY_RUN = 128  # side of the picture that finds channels and strides; beyond the coarsest stride of usual networks


class AdaptedBackbone(nn.Module):
    """Make a backbone of any module that returns feature maps.

    The module may return a list or tuple of maps (timm with `features_only=True`), a mapping (torchvision's
    `create_feature_extractor`), or an object with `feature_maps` (transformers' `AutoBackbone`). Channels and strides
    are found by a dry run. The module stays in evaluation mode while the rest trains: statistics of batch
    normalisation stay those of its pretraining, so that a crop embeds as the whole picture does, and nothing is
    dropped out.

    Args:
        body: Maps pictures (B, 3, H, W) to maps (B, C, h, w), one per stride, each half the size of the one before.
        outputs: Which maps to take, by position or by name; None takes all.
        widths: Channels of the maps that leave, the finest first; a 1 × 1 convolution takes each map to its width. None
            hands the maps on as they are.
        stride: Pixels per side of a cell of the finest map that leaves. Strides that the body does not have, finer
            than its own, come from a small convolutional branch on the picture. Needs `widths`; None begins with the
            body's finest map.
        mean: What the body expects to be subtracted from the red, green and blue values in 0 ... 1.
        std: What it expects them to be divided by then.

    Attributes:
        body: The module.
        channels: Channels of each map.
        strides: Stride of each map.

    Raises:
        TypeError: If the body returns no maps.
        ValueError: If the maps are not one per stride, or `outputs`, `widths` and `stride` do not fit them.

    Example:
        >>> from lovasz_embed.model import ModelConfig, PanopticEmbedder
        >>> class Body(nn.Sequential):
        ...     def forward(self, picture):
        ...         fine = self[0](picture)
        ...         return {"fine": fine, "coarse": self[1](fine)}
        >>> body = Body(nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 9, 2, stride=2))
        >>> backbone = AdaptedBackbone(body, widths=(8, 8, 16), stride=2)
        >>> backbone.strides
        (2, 4, 8)
        >>> PanopticEmbedder(ModelConfig(("floor", "cup"), (1,)), backbone)(torch.zeros(1, 3, 30, 41)).shape
        torch.Size([1, 8, 30, 41])
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        outputs: Sequence[int | str] | None = None,
        widths: Sequence[int] | None = None,
        stride: int | None = None,
        mean: Sequence[float] = _GREY,
        std: Sequence[float] = _GREY,
    ) -> None:
        super().__init__()
        _check.is_a("body", body, nn.Module, "a torch.nn.Module")
        if outputs is not None:
            _check.is_sequence("outputs", outputs, "be positions or names of maps, or None")
        if widths is not None:
            check_widths(widths)
        if stride is not None:
            _check.is_int("stride", stride, 1, _DRY_RUN)
        if stride is not None and widths is None:
            raise ValueError(_check.message("widths", "be given where stride is", None))
        self.body = body.eval()
        self.outputs = None if outputs is None else tuple(outputs)
        # `prepare` gives -1 ... 1, which is (x - 0.5) / 0.5 of the values in 0 ... 1.
        scale, shift = _affine(mean, std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self._least = 1  # pixels of a side
        channels, strides = self._dry_run()
        self._least = strides[-1]
        wanted = strides
        if widths is not None:
            finest = strides[0] if stride is None else stride
            wanted = tuple(finest * 2**level for level in range(len(widths)))
            # Finer than the body's first stride is the detail branch's; the others must be the body's.
            known = all(own in strides or own < strides[0] for own in wanted)
            if not wanted or not known or not set(wanted) & set(strides):
                rule = f"name strides that halve down from the body's {strides}"
                remedy = "Give another stride, or one width for each map that is wanted."
                raise ValueError(_check.message("stride and widths", rule, wanted, remedy))
        self.strides = wanted
        self.channels = channels if widths is None else tuple(widths)
        self._taken = tuple(strides.index(own) for own in wanted if own in strides)
        finer = len(wanted) - len(self._taken)
        self.detail = ConvEncoder(self.channels[:finer], wanted[0]) if finer else None
        self.laterals = nn.ModuleList(
            nn.Identity() if widths is None else _Lateral(channels[own], width)
            for own, width in zip(self._taken, self.channels[finer:], strict=True)
        )

    scale: Tensor
    shift: Tensor

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Return the feature maps of prepared pictures (B, 3, H, W), finest first."""
        check_picture(picture, self.scale, self._least)
        found = self._maps(picture)
        maps = [lateral(found[own]) for own, lateral in zip(self._taken, self.laterals, strict=True)]
        return maps if self.detail is None else [*self.detail(picture), *maps]

    def train(self, mode: bool = True) -> Self:
        """Set training mode for all but the body."""
        super().train(mode)
        self.body.eval()
        return self

    def _maps(self, picture: Tensor) -> list[Tensor]:
        # Channels first on the CPU: there the backward pass of depthwise convolutions takes half the time of the other
        # layout (0.33 s and 0.65 s on two crops of 448 × 448, bfloat16, one core, torch 2.13).
        laid_out = picture.contiguous() if picture.device.type == "cpu" else picture
        maps = _as_list(self.body(laid_out * self.scale + self.shift), self.outputs)
        if not maps or not all(isinstance(found, Tensor) and found.ndim == 4 for found in maps):
            got = [tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__ for found in maps]
            remedy = "Choose among what it returns with outputs=...."
            raise TypeError(_check.message("body", "return feature maps (B, C, h, w)", got, remedy))
        return maps

    @torch.no_grad()
    def _dry_run(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return channels and strides of the body's maps."""
        like = next(self.body.parameters(), torch.empty(0))
        picture = torch.zeros(1, 3, _DRY_RUN, _DRY_RUN, dtype=like.dtype, device=like.device)
        self.scale, self.shift = self.scale.to(like), self.shift.to(like)
        maps = self._maps(picture)
        sizes = [tuple(found.shape[-2:]) for found in maps]
        strides = tuple(_DRY_RUN // max(height, 1) for height, _ in sizes)
        halved = all(coarse == 2 * fine for fine, coarse in pairwise(strides))
        if not halved or any(side * own != _DRY_RUN for size, own in zip(sizes, strides, strict=True) for side in size):
            rule = "return maps (B, C, h, w) that halve from one to the next"
            remedy = f"Choose among them with outputs=...; they are of a picture of {_DRY_RUN} × {_DRY_RUN}."
            raise ValueError(_check.message("body", rule, f"sizes {sizes}", remedy))
        return tuple(found.shape[1] for found in maps), strides


class _Lateral(nn.Module):
    """Take a map to another width, whatever its scale: what is pretrained may have values of any size.

    Every pixel is normalised over its channels, so that a crop still embeds as the whole picture does.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.take = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        taken: Tensor = self.take(self.norm(x.movedim(1, -1)))
        return taken.movedim(-1, 1)


def build_backbone(name: str, widths: Sequence[int], stride: int, *, pretrained: bool = False) -> nn.Module:
    """Return a backbone by name.

    Args:
        name: "conv", the built-in encoder, or "efficientnet-lite0".
        widths: Channels of its maps, the finest first.
        stride: Pixels per side of a cell of the finest map.
        pretrained: Whether to fill in ImageNet weights, where there are such.

    Raises:
        ModuleNotFoundError: If the weights are not installed (extra `pretrained`).
        ValueError: If there is no such backbone, or it has no weights, or no such strides.

    Example:
        >>> build_backbone("efficientnet-lite0", (16, 32, 48), 4).strides
        (4, 8, 16)
    """
    _check.one_of("backbone", name, BACKBONES)
    check_widths(widths)
    _check.is_int("stride", stride, 1)
    _check.is_bool("pretrained", pretrained)
    if name == EFFICIENTNET:
        network = EfficientNetLite0()
        body = load_imagenet(network) if pretrained else network
        return AdaptedBackbone(body, widths=widths, stride=stride)
    if pretrained:
        remedy = f"Use backbone={EFFICIENTNET!r}."
        raise ValueError(_check.message("pretrained", f"be False for backbone={name!r}", True, remedy))
    return ConvEncoder(widths, stride)


def _affine(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return factor and summand that take -1 ... 1 to a body's own normalisation."""
    for name, values in (("mean", mean), ("std", std)):
        rule = "hold three numbers, for red, green and blue"
        _check.is_sequence(name, values, rule)
        if len(values) != 3:
            raise ValueError(_check.message(name, rule, tuple(values)))
        for value in values:
            _check.between(name, value, -1e6, 1e6, f"{rule}, below a million")
    for value in std:
        _check.positive("std", value)
    middle, width = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    return 0.5 / width, (0.5 - middle) / width


def _as_list(found: Any, outputs: tuple[int | str, ...] | None) -> list[Any]:
    """Return the chosen maps of what a body returned."""
    if hasattr(found, "feature_maps"):
        found = found.feature_maps
    if isinstance(found, Tensor):
        found = [found]
    if not isinstance(found, (Mapping, list, tuple)):
        rule = "return a list, a mapping, or an object with feature_maps"
        raise TypeError(_check.message("body", rule, type(found).__name__))
    if outputs is None:
        return list(found.values()) if isinstance(found, Mapping) else list(found)
    try:
        return [found[name] for name in outputs]  # type: ignore[index]
    except (KeyError, IndexError, TypeError) as error:
        names = tuple(found) if isinstance(found, Mapping) else tuple(range(len(found)))
        raise ValueError(_check.message("outputs", f"be among {names}", outputs)) from error
