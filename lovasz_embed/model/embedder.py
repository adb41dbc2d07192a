"""The reference network: an encoder-decoder with one head, the embedding, and all that prediction needs."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
from lovasz_embed.model.backbones import build_backbone
from lovasz_embed.model.config import ModelConfig, least_numbers, read_config
from lovasz_embed.model.layers import ConvEncoder, check_picture, double
from lovasz_embed.model.preparing import Picture, Stretch
from lovasz_embed.panoptic import PanopticResult, Window, segment, segment_tiles
from lovasz_embed.panoptic.tiles import check_tiles
from lovasz_embed.prototypes import NearestClassMean

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_MOST_SIDE = 1 << 24  # pixels
_BEYOND = 32  # pixels with the right embedding around a tile


class PanopticEmbedder(nn.Module):
    """Hierarchical Lovász embeddings: a picture in, one embedding per pixel out, and everything read off it.

    Args:
        config: See `ModelConfig`.
        backbone: Any module that maps (B, 3, H, W) to a list of feature maps, finest first, each half the size
            of the one before, with attributes `channels` and `strides`; `AdaptedBackbone` makes one of a network of
            timm, torchvision or transformers. None is the one that the configuration names.
        pretrained: Whether the named backbone begins with its ImageNet weights (extra `pretrained`).

    Example:
        >>> model = PanopticEmbedder(ModelConfig(classes=("floor", "cup"), things=(1,), widths=(8, 16)))
        >>> model(torch.zeros(1, 3, 30, 41)).shape
        torch.Size([1, 8, 30, 41])
    """

    def __init__(self, config: ModelConfig, backbone: nn.Module | None = None, *, pretrained: bool = False) -> None:
        super().__init__()
        _check.is_a("config", config, ModelConfig, "a ModelConfig")
        _check.is_bool("pretrained", pretrained)
        if backbone is not None:
            _check.is_a("backbone", backbone, nn.Module, "a torch.nn.Module or None")
            if not (hasattr(backbone, "channels") and hasattr(backbone, "strides")):
                got, remedy = type(backbone).__name__, "AdaptedBackbone makes one of a network."
                raise TypeError(_check.message("backbone", "have channels and strides", got, remedy))
        if pretrained and backbone is not None:
            remedy = "Load its weights before."
            raise ValueError(_check.message("pretrained", "be False for a backbone of your own", True, remedy))
        self.config = config
        self.own_backbone = backbone is not None
        if backbone is None:
            backbone = build_backbone(config.backbone, config.widths, config.stride, pretrained=pretrained)
        self.backbone = backbone
        channels: tuple[int, ...] = tuple(self.backbone.channels)  # type: ignore[arg-type]
        own: tuple[int, ...] = tuple(self.backbone.strides)  # type: ignore[arg-type]
        self.strides = tuple(stride * config.reduction for stride in own)
        extra = 2 if config.coordinates == "fed" else 0
        self.merges = nn.ModuleList(double(fine + coarse + extra, fine) for fine, coarse in pairwise(channels))
        # Where the finest map is coarser than the picture, the head lays its channels out as pixels: no mixed pixels
        # along borders, as interpolation would make them.
        self.head = nn.Conv2d(channels[0], config.dims * own[0] ** 2, 3, padding=1)
        self.ncm = NearestClassMean(len(config.classes), config.dims, dims=config.category_dims)

    def forward(
        self,
        picture: Tensor,
        *,
        at: tuple[int, int] = (0, 0),
        of: tuple[int, int] | None = None,
        pixels: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Embed prepared pictures (B, 3, H, W), any size: (B, D, H, W), float32.

        Args:
            picture: Whole pictures, or windows of larger ones.
            at: Row and column of a window's first pixel in the larger picture, multiples of the coarsest stride.
            of: Height and width of the larger picture; None is that of `picture`. Matters only to coordinates "fed".
            pixels: Rows and columns of `picture` to return, two integer tensors; None is all. Training that looks at
                some pixels alone need not write the others.
        """
        check_picture(picture, self.head.weight)
        _check_window(at, of, pixels, picture)
        height, width = picture.shape[-2:]
        stride = self.strides[-1]
        padded = F.pad(picture, (0, -width % stride, 0, -height % stride), mode="replicate")
        embedding = self.embed_padded(padded, at=at, of=of, pixels=pixels)
        return embedding[..., :height, :width] if pixels is None else embedding

    def embed_padded(
        self,
        picture: Tensor,
        *,
        at: tuple[int, int],
        of: tuple[int, int] | None,
        pixels: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Embed pictures whose sides are multiples of the coarsest stride, which `forward` takes care of."""
        check_picture(picture, self.head.weight)
        stride = self.strides[-1]
        if not torch.compiler.is_compiling() and any(side % stride for side in picture.shape[-2:]):
            rule = f"have sides that are multiples of {stride}, the coarsest stride"
            raise ValueError(_check.message("picture", rule, tuple(picture.shape)))
        reduction = self.config.reduction
        maps = self.backbone(F.avg_pool2d(picture, reduction) if reduction > 1 else picture)
        x = maps[-1]
        for fine, merge, cell in zip(reversed(maps[:-1]), reversed(self.merges), self.strides[-2::-1], strict=True):
            parts = [fine, F.interpolate(x, size=fine.shape[-2:])]
            if self.config.coordinates == "fed":
                whole = None if of is None else [-(-side // stride) * (stride // cell) for side in of]
                parts.append(_relative_position(fine, (at[0] // cell, at[1] // cell), whole))
            x = merge(torch.cat(parts, dim=1))
        embedding = F.pixel_shuffle(self.head(x), self.strides[0] // reduction)
        # An embedding is repeated for the pixels of its cell, not interpolated: again no mixed pixels.
        if pixels is not None:
            for axis, chosen in zip((-2, -1), pixels, strict=True):
                embedding = embedding.index_select(axis, chosen // reduction)
        elif reduction > 1:
            embedding = F.interpolate(embedding, scale_factor=reduction)
        embedding = embedding.float()
        if self.config.coordinates == "added":
            offsets = embedding[:, -2:] + self._position(embedding, at, pixels)
            embedding = torch.cat([embedding[:, :-2], offsets], dim=1)
        return embedding

    @torch.no_grad()
    def segment(self, picture: Tensor) -> PanopticResult:
        """Segment prepared pictures (B, 3, H, W) by the class means that training left.

        Raises:
            ValueError: If no class mean is known yet; fit the model, or update `ncm`.
        """
        return self.read_off(self(picture))

    def segment_tiles(
        self,
        image: Picture,
        *,
        tile: int = 1024,
        overlap: int | None = None,
        out: NDArray[np.int32] | None = None,
        scratch: str | os.PathLike[str] | None = None,
    ) -> PanopticResult:
        """Segment one picture of any size in the memory of a tile; see `lovasz_embed.segment_tiles`.

        Args:
            image: Bytes (H, W, 3), not prepared: an array, or what reads a part when it is indexed, such as
                `numpy.memmap`. It is read twice, the first time for the range of its values.
            tile: Largest side of a tile, pixels, a multiple of the coarsest stride.
            overlap: Pixels around a tile that the network sees as well, a multiple of the coarsest stride. From
                `context` on, the embedding is that of the whole picture but for rounding. None is 32 more, rounded
                up, which helps to find instances that an edge of a tile cuts.
            out: int32 (H, W), where the result's map is written; `numpy.memmap` keeps it out of memory.
            scratch: Folder of a temporary file, for the instance dimensions of all thing pixels; None is that of the
                system.

        Raises:
            TypeError: If a number of pixels is no int, or `out` is no int32 array.
            ValueError: If no class mean is known yet, the picture is not uint8 (H, W, 3), `tile` or `overlap` is no
                multiple of the stride, `overlap` is missing where `context` is None, or the configuration says
                `connected`, which takes the whole picture.

        Warns:
            UserWarning: If the overlap is less than `context`: pixels near the edges of tiles are embedded otherwise
                than in the whole picture.

        Example:
            >>> model = PanopticEmbedder(ModelConfig(classes=("floor", "cup"), things=(1,), widths=(4, 8)))
            >>> _ = model.ncm.update(torch.rand(1, 8, 4, 4), torch.arange(16).view(1, 4, 4) % 2)
            >>> model.context
            11
            >>> model.segment_tiles(np.zeros((70, 90, 3), np.uint8), tile=32).segmentation.shape
            torch.Size([1, 70, 90])
        """
        reading = self._reading()
        if reading.pop("connected"):
            remedy = "Segment the picture as a whole."
            raise ValueError(_check.message("config.connected", "be False for tiles", True, remedy))
        stride = self.strides[-1]
        if overlap is None:
            if self.context is None:
                which = "an own backbone" if self.own_backbone else f"backbone={self.config.backbone!r}"
                raise ValueError(_check.message("overlap", f"be given for {which}", None))
            overlap = -(-(self.context + _BEYOND) // stride) * stride
        check_tiles(tile, overlap, stride)
        stretch = Stretch.of(image)
        size = (image.shape[0], image.shape[1])
        if self.context is not None and overlap < self.context and max(size) > tile:
            remedy = f"Pixels within {self.context - overlap} of another tile are embedded otherwise."
            rule = f"be at least {self.context} for the result of the whole picture"
            warnings.warn(_check.message("overlap", rule, overlap, remedy), UserWarning, stacklevel=2)
        device = self.ncm.sums.device

        @torch.no_grad()
        def embed(window: Window) -> Tensor:
            picture = stretch.apply(np.asarray(image[window.rows, window.columns])).to(device)
            embedding: Tensor = self(picture[None], at=(window.top, window.left), of=size)
            return embedding

        return segment_tiles(
            embed,
            size,
            **reading,
            tile=tile,
            overlap=overlap,
            context=None if self.context is None else min(self.context, overlap),
            step=stride,
            out=out,
            scratch=scratch,
        )

    @property
    def context(self) -> int | None:
        """How many pixels from an edge an embedding may depend on what is beyond it; None if not known.

        It is known for the built-in encoder.
        """
        if not isinstance(self.backbone, ConvEncoder):
            return None
        return self.backbone.context * self.config.reduction

    def read_off(self, embedding: Tensor) -> PanopticResult:
        """Read categories and instances off an embedding (B, D, H, W) of this model.

        Raises:
            ValueError: If no class mean is known yet.
        """
        _check.is_embedding("embedding", embedding)
        if embedding.shape[1] != self.config.dims:
            rule = f"have {self.config.dims} dimensions, those of the model"
            raise ValueError(_check.message("embedding", rule, tuple(embedding.shape)))
        return segment(embedding, **self._reading())

    def _reading(self) -> dict[str, Any]:
        """Return all that `segment` is told beside the embedding."""
        config = self.config
        if not bool(self.ncm.counts.any()):
            raise ValueError(_check.message("model", "have class means", "none", "Fit it, or update model.ncm."))
        return {
            "class_means": self.ncm.means,
            "things": config.things,
            "radius": config.instance_radius,
            "reach": config.reach * config.instance_radius,
            "category_dims": config.category_dims,
            "instance_dims": config.instance_dims,
            "offset": self.ncm.offset,
            "connected": config.connected,
            "vote": config.vote,
            "min_thing_area": config.min_thing_area,
            "min_stuff_area": config.min_stuff_area,
            "ignore_index": -1,
        }

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
            instance_dims=config.instance_dims,
            crowd=crowd,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` (weights, class means, offsets) into a folder.

        Raises:
            OSError: If the folder cannot be written.
            ModuleNotFoundError: Without safetensors (extra `io`).
        """
        from safetensors.torch import save

        _check.is_path("folder", folder)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {**asdict(self.config), "own_backbone": self.own_backbone}
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

        _check.is_path("folder", folder)
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                remedy = "Give a folder that `lovasz-embed train` or save_pretrained wrote."
                raise FileNotFoundError(_check.message(str(folder), f"hold {name}", "no such file", remedy))
        values = read_config(folder / CONFIG)
        if values.pop("own_backbone", False) != (backbone is not None):
            rule = "be given exactly if the model was saved with an own one"
            raise ValueError(_check.message("backbone", rule, type(backbone).__name__))
        try:
            config = ModelConfig(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(_check.message(str(folder / CONFIG), "describe a model", error)) from error
        numbers, size = least_numbers(config, backbone is not None), (folder / WEIGHTS).stat().st_size
        if numbers > size:  # before a network is built that the memory might not hold
            rule = f"fit {CONFIG} beside it, which describes at least {numbers:,} numbers"
            raise ValueError(_check.message(str(folder / WEIGHTS), rule, f"{size:,} bytes"))
        model = cls(config, backbone)
        try:
            tensors = load_file(folder / WEIGHTS)
            model.load_state_dict(tensors)
            _must_be_finite(tensors)
        except (RuntimeError, SafetensorError, ValueError) as error:
            rule = f"fit {CONFIG} beside it"
            raise ValueError(_check.message(str(folder / WEIGHTS), rule, f"other tensors ({error})")) from error
        return model.eval()

    def _position(self, like: Tensor, at: tuple[int, int], pixels: tuple[Tensor, Tensor] | None) -> Tensor:
        """Row and column of every pixel in embedding units, (2, H, W)."""
        if pixels is None:
            rows, columns = (torch.arange(side, device=like.device) for side in like.shape[-2:])
        else:
            rows, columns = pixels
        steps = [(line + start) / self.config.unit for line, start in zip((rows, columns), at, strict=True)]
        return torch.stack(torch.meshgrid(steps, indexing="ij"))


def _must_be_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_complex() or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} with NaN or Inf")


def _check_window(
    at: tuple[int, int], of: tuple[int, int] | None, pixels: tuple[Tensor, Tensor] | None, picture: Tensor
) -> None:
    """Raise where the place of a window, or the pixels asked for, are none."""
    if torch.compiler.is_compiling():
        return
    for name, pair in (("at", at), ("of", of)):
        if pair is not None or name == "at":
            rule = "be two numbers of pixels, along the rows and the columns"
            _check.is_sequence(name, pair, rule, 2)
            _check.are_numbers(name, pair, rule, 0, _MOST_SIDE)
    if of is not None:
        ends = tuple(start + side for start, side in zip(at, picture.shape[-2:], strict=True))
        if any(end > side for end, side in zip(ends, of, strict=True)):
            raise ValueError(_check.message("of", f"hold the window, which ends at {ends}", of))
    if pixels is not None:
        _check.is_sequence("pixels", pixels, "be the rows and the columns, two integer tensors", 2)
        for side, own in zip(picture.shape[-2:], pixels, strict=True):
            _check.is_labels("pixels", own)
            if own.dtype not in (torch.int32, torch.int64):
                raise TypeError(_check.message("pixels", "hold int32 or int64", own.dtype))
            if own.ndim != 1:
                raise ValueError(_check.message("pixels", "have one axis each", tuple(own.shape)))
            _check.same_device("pixels", own, picture.device, "picture")
            if own.device.type == "cpu" and own.numel() and not 0 <= int(own.min()) <= int(own.max()) < side:
                raise ValueError(_check.message("pixels", "lie inside the picture", f"{int(own.max())} of {side}"))


def _relative_position(like: Tensor, at: tuple[int, int], of: Sequence[int] | None) -> Tensor:
    """Row and column from -1 to 1 as two channels (B, 2, h, w): of cells from `at` in a map of the size `of`."""
    batch, _, height, width = like.shape
    whole = (height, width) if of is None else of
    # Not torch.linspace, with which torch.export takes the size of its example for that of every picture.
    cells = (torch.arange(side, device=like.device) for side in whole)
    rows, columns = ((2 * cell / cell[-1:].clamp(min=1) - 1).to(like.dtype) for cell in cells)
    if of is not None:
        rows, columns = rows[at[0] : at[0] + height], columns[at[1] : at[1] + width]
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(batch, -1, -1, -1)
