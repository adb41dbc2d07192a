"""The reference network: an encoder-decoder with one head, the embedding, and all that prediction needs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lovasz_embed import _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed.hierarchy import Level, panoptic_levels
from lovasz_embed.panoptic import PanopticResult, segment
from lovasz_embed.prototypes import NearestClassMean

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
COORDINATES = ("added", "fed", "none")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a `PanopticEmbedder`, saved beside its weights.

    Attributes:
        classes: Names of the categories 0 ... C - 1.
        things: Categories that have instances.
        dims: Dimensions of the embedding.
        widths: Channels of the encoder, from the finest map to the coarsest, each half the size of the one before.
        stride: Pixels per side of a cell of the finest map: 1, 2 or 4.
        coordinates: How the network learns where a pixel is, which a convolution cannot tell (Novotny et al.
            2018). "added": the last two dimensions are offsets to the pixel's own position, and categories look
            at the other dimensions only; works the same at any picture size. "fed": two channels of relative
            position beside the decoder's features. "none".
        unit: Pixels per embedding unit where coordinates are added.
        category_radius: Radius of the category level, embedding units. Where positions are added, categories lie in
            dimensions of their own and need no room for instances; a radius near that of instances then makes a
            missed pixel cost about as much as a wrong one (see docs/hierarchy.md). Take about four times the
            instance radius otherwise.
        instance_radius: Radius of the instance level, embedding units.
        margin_ratio: Margin over radius of both levels.
        reach: Pixels farther than this from every instance's mean are void; in instance radii.
        connected: Whether instances are split into spatially connected parts.
        min_thing_area: Smaller predicted things become void, pixels.
        min_stuff_area: Smaller predicted stuff segments become void, pixels.
    """

    classes: tuple[str, ...]
    things: tuple[int, ...]
    dims: int = 8
    widths: tuple[int, ...] = (24, 32, 64, 96, 128)
    stride: int = 1
    coordinates: str = "added"
    unit: float = 10.0
    category_radius: float = 1.1
    instance_radius: float = 1.0
    margin_ratio: float = 0.894
    reach: float = 1.5
    connected: bool = False
    min_thing_area: int = 20
    min_stuff_area: int = 64

    def __post_init__(self) -> None:
        """Check the values that a hand-written file could get wrong."""
        _check.one_of("coordinates", self.coordinates, COORDINATES)
        _check.one_of("stride", self.stride, (1, 2, 4))
        for name in ("unit", "category_radius", "instance_radius", "margin_ratio", "reach"):
            _check.positive(name, getattr(self, name))
        if not self.classes or not self.widths:
            rule = "hold at least one entry"
            raise ValueError(_check.message("classes and widths", rule, (self.classes, self.widths)))
        for name in ("dims", "min_thing_area", "min_stuff_area"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise TypeError(_check.message(name, "be a whole number", repr(getattr(self, name))))
        least = 3 if self.coordinates == "added" else 1
        if self.dims < least:
            rule = f"be at least {least} for coordinates={self.coordinates!r}"
            raise ValueError(_check.message("dims", rule, self.dims))
        outside = [t for t in self.things if not 0 <= t < len(self.classes)]
        if outside:
            rule = f"lie in 0 ... {len(self.classes) - 1}, the categories"
            raise ValueError(_check.message("things", rule, outside))

    @property
    def category_dims(self) -> tuple[int, ...]:
        """The dimensions that tell categories apart: all but those with coordinates added."""
        return tuple(range(self.dims - 2 if self.coordinates == "added" else self.dims))


class ConvEncoder(nn.Module):
    """A plain convolutional encoder: pictures (B, 3, H, W) to feature maps, each half the size of the one before.

    Attributes:
        channels: Channels of each map.
        strides: Stride of each map.
    """

    def __init__(self, widths: Sequence[int], stride: int) -> None:
        super().__init__()
        self.channels = tuple(widths)
        self.strides = tuple(stride * 2**level for level in range(len(widths)))
        # A cell of the finest map sees its own pixels and half as many beyond each side.
        self.stem = nn.Conv2d(3, widths[0], 2 * stride + stride % 2, stride=stride, padding=(stride + 1) // 2)
        self.stages = nn.ModuleList(_double(a, b) for a, b in zip((widths[0], *widths[:-1]), widths, strict=True))

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Return the feature maps, finest first."""
        x = self.stem(picture)
        maps = []
        for level, stage in enumerate(self.stages):
            x = stage(x if level == 0 else F.max_pool2d(x, 2))
            maps.append(x)
        return maps


class PanopticEmbedder(nn.Module):
    """Hierarchical Lovász embeddings: a picture in, one embedding per pixel out, and everything read off it.

    Args:
        config: See `ModelConfig`.
        backbone: Any module that maps (B, 3, H, W) to a list of feature maps, finest first, each half the size
            of the one before, with attributes `channels` and `strides`. None is the built-in `ConvEncoder`.

    Example:
        >>> model = PanopticEmbedder(ModelConfig(classes=("floor", "cup"), things=(1,), widths=(8, 16)))
        >>> model(torch.zeros(1, 3, 30, 41)).shape
        torch.Size([1, 8, 30, 41])
    """

    def __init__(self, config: ModelConfig, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = ConvEncoder(config.widths, config.stride) if backbone is None else backbone
        channels: tuple[int, ...] = tuple(self.backbone.channels)  # type: ignore[arg-type]
        self.strides: tuple[int, ...] = tuple(self.backbone.strides)  # type: ignore[arg-type]
        extra = 2 if config.coordinates == "fed" else 0
        self.merges = nn.ModuleList(_double(fine + coarse + extra, fine) for fine, coarse in pairwise(channels))
        # Where the finest map is coarser than the picture, the head lays its channels out as pixels: no mixed pixels
        # along borders, as interpolation would make them.
        self.head = nn.Conv2d(channels[0], config.dims * self.strides[0] ** 2, 3, padding=1)
        self.ncm = NearestClassMean(len(config.classes), config.dims, dims=config.category_dims)

    def forward(self, picture: Tensor) -> Tensor:
        """Embed prepared pictures (B, 3, H, W), any size: (B, D, H, W), float32."""
        height, width = picture.shape[-2:]
        stride = self.strides[-1]
        maps = self.backbone(F.pad(picture, (0, -width % stride, 0, -height % stride), mode="replicate"))
        x = maps[-1]
        for fine, merge in zip(reversed(maps[:-1]), reversed(self.merges), strict=True):
            parts = [fine, F.interpolate(x, size=fine.shape[-2:])]
            if self.config.coordinates == "fed":
                parts.append(_relative_position(fine))
            x = merge(torch.cat(parts, dim=1))
        embedding = F.pixel_shuffle(self.head(x), self.strides[0])[..., :height, :width].float()
        if self.config.coordinates == "added":
            embedding = torch.cat([embedding[:, :-2], embedding[:, -2:] + self._position(embedding)], dim=1)
        return embedding

    @torch.no_grad()
    def segment(self, picture: Tensor) -> PanopticResult:
        """Segment prepared pictures (B, 3, H, W) by the class means that training left.

        Raises:
            ValueError: If no class mean is known yet; fit the model, or update `ncm`.
        """
        return self.read_off(self(picture))

    def read_off(self, embedding: Tensor) -> PanopticResult:
        """Read categories and instances off an embedding (B, D, H, W) of this model.

        Raises:
            ValueError: If no class mean is known yet.
        """
        config = self.config
        if not bool(self.ncm.counts.any()):
            raise ValueError(_check.message("model", "have class means", "none", "Fit it, or update model.ncm."))
        return segment(
            embedding,
            self.ncm.means,
            things=config.things,
            radius=config.instance_radius,
            reach=config.reach * config.instance_radius,
            category_dims=config.category_dims,
            offset=self.ncm.offset,
            connected=config.connected,
            min_thing_area=config.min_thing_area,
            min_stuff_area=config.min_stuff_area,
            ignore_index=-1,
        )

    def levels(self, semantic: Tensor, instance: Tensor, crowd: Tensor | None = None) -> tuple[Level, Level]:
        """Return the two levels that this model is trained with; see `panoptic_levels`."""
        config = self.config
        radii = (config.category_radius, config.instance_radius)
        return panoptic_levels(
            semantic,
            instance,
            things=config.things,
            radii=radii,
            margins=(config.margin_ratio * radii[0], config.margin_ratio * radii[1]),
            category_dims=config.category_dims,
            crowd=crowd,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` (weights, class means, offsets) into a folder.

        Raises:
            OSError: If the folder cannot be written.
            ModuleNotFoundError: Without safetensors (extra `io`).
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {**asdict(self.config), "own_backbone": not isinstance(self.backbone, ConvEncoder)}
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        # The weights first: a folder with a configuration is a complete one.
        write_atomically(folder / WEIGHTS, save(tensors))
        write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, backbone: nn.Module | None = None) -> PanopticEmbedder:
        """Read what `save_pretrained` wrote; nothing is unpickled. The model comes in evaluation mode.

        Args:
            folder: The folder with `config.json` and `model.safetensors`.
            backbone: The module that the model was built with, if it was not the built-in encoder.

        Raises:
            FileNotFoundError: If one of the two files is missing.
            ValueError: If the configuration is of another version, or the weights do not fit it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                remedy = "Give a folder that `lovasz-embed train` or save_pretrained wrote."
                raise FileNotFoundError(_check.message(str(folder), f"hold {name}", "no such file", remedy))
        values = _read_config(folder / CONFIG)
        if values.pop("own_backbone", False) != (backbone is not None):
            rule = "be given exactly if the model was saved with an own one"
            raise ValueError(_check.message("backbone", rule, type(backbone).__name__))
        try:
            model = cls(ModelConfig(**values), backbone)
        except (TypeError, ValueError) as error:
            raise ValueError(_check.message(str(folder / CONFIG), "describe a model", error)) from error
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except (RuntimeError, SafetensorError) as error:
            rule = f"fit {CONFIG} beside it"
            raise ValueError(_check.message(str(folder / WEIGHTS), rule, f"other tensors ({error})")) from error
        return model.eval()

    def _position(self, like: Tensor) -> Tensor:
        """Row and column of every pixel in embedding units, (2, H, W)."""
        height, width = like.shape[-2:]
        rows = torch.arange(height, device=like.device) / self.config.unit
        columns = torch.arange(width, device=like.device) / self.config.unit
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def prepare(image: NDArray[np.uint8]) -> Tensor:
    """Turn a picture (H, W, 3) of bytes into the network's input (3, H, W), about -1 ... 1.

    The range between the 1st and the 99.8th percentile of the whole picture is stretched, one range for all
    channels: exposure, which says nothing about the content, goes; colour stays.

    Raises:
        ValueError: If the picture is not uint8 (H, W, 3).

    Example:
        >>> prepare(np.zeros((4, 4, 3), np.uint8)).shape
        torch.Size([3, 4, 4])
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}"
        raise ValueError(_check.message("image", "be bytes of shape (H, W, 3)", got))
    low, high = np.percentile(image, (1, 99.8))
    pixels = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)
    return ((pixels - float(low)) / max(float(high - low), 1.0)).clamp(-0.5, 1.5) * 2 - 1


def _read_config(path: Path) -> dict[str, Any]:
    """Read a configuration strictly: every field known, sequences as the tuples they were."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(_check.message(str(path), "be a JSON file", error)) from error
    known = {field.name for field in fields(ModelConfig)} | {"own_backbone"}
    if not isinstance(values, dict) or not {"classes", "things"} <= set(values) <= known:
        got = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
        remedy = "It may come from another version of lovasz-embed."
        raise ValueError(_check.message(str(path), "hold the fields of ModelConfig", got, remedy))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


class StandardisedConv2d(nn.Conv2d):
    """A 3 × 3 convolution whose weights, not whose outputs, are normalised: mean 0 and norm 1, times a learnt gain.

    Statistics of activations would differ between training crops and whole pictures: with batch normalisation the
    foreground IoU on 25 nuclei pictures was 0.73 by each picture's own statistics and 0.57 by the running ones. This
    layer has none, so that a crop embeds as the whole picture does, at any batch size.

    References:
        Qiao et al., Weight Standardization, arXiv 1903.10520; the gain for ReLU follows Brock et al., arXiv 2101.08692.
    """

    _RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))
        # Standardisation forgets the scale of the weights, but the optimiser's step is relative to it: one scale for
        # all layers lets wide ones turn no faster than narrow ones (at 0.1, two percent a step at a rate of 2e-3).
        nn.init.normal_(self.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the standardised weights."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        size = self.weight[0].numel()
        weight = (self.weight - mean) * torch.rsqrt(variance * size + 1e-6) * (self.gain * self._RELU_GAIN)
        return F.conv2d(x, weight, self.bias, padding=1)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions, each followed by a ReLU."""
    return nn.Sequential(
        StandardisedConv2d(inputs, outputs),
        nn.ReLU(inplace=True),
        StandardisedConv2d(outputs, outputs),
        nn.ReLU(inplace=True),
    )


def _relative_position(like: Tensor) -> Tensor:
    """Row and column from -1 to 1 as two channels (B, 2, h, w)."""
    batch, _, height, width = like.shape
    rows = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)
    columns = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(batch, -1, -1, -1)
