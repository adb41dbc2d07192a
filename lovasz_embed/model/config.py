"""All that defines the reference network, and how it is read from a file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lovasz_embed import _check
from lovasz_embed._json import read_json

COORDINATES = ("added", "fed", "none")
EFFICIENTNET = "efficientnet-lite0"
BACKBONES = ("conv", EFFICIENTNET)
MOST_WIDTHS, WIDEST, _MOST_DIMS = 12, 1 << 16, 4096


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a `PanopticEmbedder`, saved beside its weights.

    Attributes:
        classes: Names of the categories 0 ... C - 1.
        things: Categories that have instances.
        dims: Dimensions of the embedding.
        backbone: "conv", the built-in encoder, or "efficientnet-lite0", pretrained on ImageNet (see docs/backbones.md).
            Not looked at where `PanopticEmbedder` is given a backbone of your own; nor are `widths` and `stride`.
        widths: Channels of the maps that the backbone returns, the finest first, each half the size of the one before.
        stride: Pixels per side of a cell of the finest map: 1, 2 or 4.
        reduction: The network sees the picture averaged over so many pixels along both axes, and each embedding serves
            as many: with 2 it costs a quarter, and strides are twice as large. Borders are coarser by as much.
        coordinates: How the network learns where a pixel is, which a convolution cannot tell (Novotny et al.
            2018). "added": the last two dimensions are offsets to the pixel's own position, and categories look
            at the other dimensions only; works the same at any picture size. "fed": two channels of relative
            position beside the decoder's features. "none".
        unit: Pixels per embedding unit where coordinates are added.
        shared_dims: Dimensions beside the two positions that the instance level looks at too, where coordinates are
            added: the last ones of the category dimensions. dims - 2 is all. Not looked at otherwise, where instances
            take all dimensions.
        category_radius: Radius of the category level, embedding units. Where positions are added, categories lie in
            dimensions of their own and need no room for instances; a radius near that of instances then makes a
            missed pixel cost about as much as a wrong one (see docs/hierarchy.md). Take about four times the
            instance radius otherwise.
        instance_radius: Radius of the instance level, embedding units.
        margin_ratio: Margin over radius of both levels.
        reach: Pixels farther than this from every instance's mean are void; in instance radii.
        connected: Whether instances are split into spatially connected parts.
        vote: Whether the pixels of all things are clustered together, and each instance takes the category that most
            of its pixels have; False clusters each category by itself.
        min_thing_area: Smaller predicted things become void, pixels.
        min_stuff_area: Smaller predicted stuff segments become void, pixels.
    """

    classes: tuple[str, ...]
    things: tuple[int, ...]
    dims: int = 8
    backbone: str = "conv"
    widths: tuple[int, ...] = (24, 32, 64, 96, 128)
    stride: int = 1
    reduction: int = 1
    coordinates: str = "added"
    unit: float = 10.0
    shared_dims: int = 0
    category_radius: float = 1.1
    instance_radius: float = 1.0
    margin_ratio: float = 0.894
    reach: float = 1.5
    connected: bool = False
    vote: bool = True
    min_thing_area: int = 20
    min_stuff_area: int = 64

    def __post_init__(self) -> None:
        """Check the values that a hand-written file could get wrong."""
        for name, kind in (("classes", str), ("things", int), ("widths", int)):
            values = getattr(self, name)
            if not isinstance(values, tuple) or any(type(value) is not kind for value in values):
                raise TypeError(_check.message(name, f"be a tuple of {kind.__name__}", repr(values)))
        _check.one_of("coordinates", self.coordinates, COORDINATES)
        _check.one_of("backbone", self.backbone, BACKBONES)
        _check.one_of("stride", self.stride, (1, 2, 4))
        for name in ("unit", "category_radius", "instance_radius", "margin_ratio", "reach"):
            _check.positive(name, getattr(self, name))
        if not self.classes or not self.widths:
            rule = "hold at least one entry"
            raise ValueError(_check.message("classes and widths", rule, (self.classes, self.widths)))
        for name in ("dims", "shared_dims", "reduction", "min_thing_area", "min_stuff_area"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise TypeError(_check.message(name, "be a whole number", repr(getattr(self, name))))
        # Beyond these no network is meant, and what counts up to them would fill the memory.
        if len(self.widths) > MOST_WIDTHS or not all(1 <= width <= WIDEST for width in self.widths):
            rule = f"be at most {MOST_WIDTHS} numbers from 1 to {WIDEST}"
            raise ValueError(_check.message("widths", rule, self.widths))
        for name, most in (("dims", _MOST_DIMS), ("reduction", WIDEST)):
            if getattr(self, name) > most:
                raise ValueError(_check.message(name, f"be at most {most}", getattr(self, name)))
        if self.reduction < 1:
            raise ValueError(_check.message("reduction", "be 1 or above", self.reduction))
        least = 3 if self.coordinates == "added" else 1
        if self.dims < least:
            rule = f"be at least {least} for coordinates={self.coordinates!r}"
            raise ValueError(_check.message("dims", rule, self.dims))
        if self.coordinates == "added" and not 0 <= self.shared_dims <= self.dims - 2:
            rule = f"lie in 0 ... {self.dims - 2}, the dimensions beside the positions"
            raise ValueError(_check.message("shared_dims", rule, self.shared_dims))
        _check.is_bool("vote", self.vote)
        _check.is_bool("connected", self.connected)
        outside = [t for t in self.things if not 0 <= t < len(self.classes)]
        if outside:
            rule = f"lie in 0 ... {len(self.classes) - 1}, the categories"
            raise ValueError(_check.message("things", rule, outside))

    @property
    def category_dims(self) -> tuple[int, ...]:
        """The dimensions that tell categories apart: all but those with coordinates added."""
        return tuple(range(self.dims - 2 if self.coordinates == "added" else self.dims))

    @property
    def instance_dims(self) -> tuple[int, ...]:
        """The dimensions that tell instances apart: with coordinates added, those two and the shared ones before."""
        return tuple(range(self.dims - 2 - self.shared_dims if self.coordinates == "added" else 0, self.dims))


def least_numbers(config: ModelConfig, own_backbone: bool) -> int:
    """Return how many numbers the weights of a model hold at least, without building it.

    >>> least_numbers(ModelConfig(classes=("a",), things=(), widths=(8, 16)), own_backbone=False)
    2888
    """
    means = len(config.classes) * config.dims
    if own_backbone or config.backbone != "conv":
        return means
    return means + 9 * sum(width * width for width in config.widths)


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration strictly: every field known, sequences as the tuples they were."""
    values = read_json(path)
    known = {field.name for field in fields(ModelConfig)} | {"own_backbone"}
    if not isinstance(values, dict) or not {"classes", "things"} <= set(values) <= known:
        got = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
        remedy = "It may come from another version of lovasz-embed."
        raise ValueError(_check.message(str(path), "hold the fields of ModelConfig", got, remedy))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
