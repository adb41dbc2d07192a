"""The levels of a label tree: which node a pixel belongs to, and how large a node is in the embedding."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.host_numbers import among
from lovasz_embed._ops.labels import thing_categories
from lovasz_embed._ops.ncm import check_dims
from lovasz_embed._ops.nodes import IGNORED, NO_NODE

MARGIN_RATIO = math.sqrt(0.8)
"""Default margin over radius: the outer radius is then three times the inner one (m² = 0.8 r²)."""


@dataclass(frozen=True, eq=False)
class Level:
    """One level of a label tree: which node every pixel belongs to, and how large a node is in the embedding.

    Attributes:
        labels: Integers (B, *spatial). A label of 0 or above names the pixel's node; `Level.NO_NODE` (-1) is a
            pixel of no node, a negative for all of them; `Level.IGNORED` (-2) is a pixel that counts nowhere.
        radius: Where the logit crosses zero, in embedding units.
        margin: Margin m of the margin kernel, in embedding units, below the radius; None is `MARGIN_RATIO` of
            the radius. Positives nearer than sqrt(r² - m²) and negatives farther than sqrt(r² + m²) cost nothing.
        weight: Factor of this level in the total.
        per_picture: True if equal labels in two pictures are two nodes (instances), False if they are one
            (categories).
        dims: The embedding dimensions that this level looks at; None is all.
        bandwidth: Positive floats (B, *spatial): a node's radius is then their mean over the node, instead of
            `radius`. Gaussian kernel only.
        name: The level's name in logs.
    """

    NO_NODE = NO_NODE
    IGNORED = IGNORED

    labels: Tensor
    radius: float
    margin: float | None = None
    weight: float = 1.0
    per_picture: bool = True
    dims: tuple[int, ...] | None = None
    bandwidth: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        """Check what can be checked without the embedding."""
        _check.is_labels("labels", self.labels)
        check_dims(self.dims, None)
        _check.is_bool("per_picture", self.per_picture)
        if not isinstance(self.name, str):
            raise TypeError(_check.message("name", "be a text", type(self.name).__name__))
        _check.positive("radius", self.radius)
        _check.non_negative("weight", self.weight)
        if self.margin is not None:
            _check.positive("margin", self.margin)
            if self.margin > self.radius:
                rule = f"be at most the radius ({self.radius})"
                raise ValueError(_check.message("margin", rule, self.margin, "Positives could never be at rest."))
        if self.bandwidth is not None:
            _check.is_floating("bandwidth", self.bandwidth)
            _check.same_shape("bandwidth", self.bandwidth, tuple(self.labels.shape), "labels")
            _check.same_device("bandwidth", self.bandwidth, self.labels.device, "labels")

    @property
    def inner_radius(self) -> float:
        """Positives nearer than this to their node's mean cost nothing (margin kernel)."""
        return math.sqrt(max(self.radius**2 - self.margin2, 0.0))

    @property
    def outer_radius(self) -> float:
        """Negatives farther than this from a node's mean cost nothing (margin kernel)."""
        return math.sqrt(self.radius**2 + self.margin2)

    @property
    def margin2(self) -> float:
        """Squared margin, the default filled in."""
        return (MARGIN_RATIO * self.radius if self.margin is None else self.margin) ** 2


def panoptic_levels(
    semantic: Tensor,
    instance: Tensor,
    *,
    things: Collection[int],
    radii: tuple[float, float] = (4.0, 1.0),
    margins: tuple[float | None, float | None] = (None, None),
    weights: tuple[float, float] = (1.0, 1.0),
    category_dims: tuple[int, ...] | None = None,
    instance_dims: tuple[int, ...] | None = None,
    ignore_index: int = 255,
    crowd: Tensor | None = None,
) -> tuple[Level, Level]:
    """Build the two levels of panoptic segmentation, category > instance.

    Categories span the batch, instances belong to their picture. Void pixels count nowhere. Crowd pixels count
    for their category and are ignored among instances, and so are thing pixels without an instance id.

    Args:
        semantic: Category of each pixel, integers (B, *spatial).
        instance: Instance of each pixel, integers (B, *spatial); 0 is none. Ids need be unique only within a
            category of a picture; ids on stuff pixels are not looked at.
        things: The categories that have instances.
        radii: Radii of the category and of the instance level, in embedding units; the first is the larger,
            because instances live inside their category's region.
        margins: Margins of the two levels; see `Level.margin`.
        weights: Weights of the two levels.
        category_dims: The embedding dimensions that the category level looks at; None is all.
        instance_dims: The embedding dimensions that the instance level looks at; None is all.
        ignore_index: The category of void pixels.
        crowd: Bool (B, *spatial), True where a group of things is not told apart.

    Returns:
        The levels named "category" and "instance".

    Raises:
        TypeError: If a map does not hold integers.
        ValueError: If shapes differ, ids are negative, or the radii are not falling. On a CUDA device, where looking
            at values would make the host wait, the values are checked on the device and fail there, later, as a
            RuntimeError; so do ids that are too large to be told apart by one number per category and id.

    Example:
        >>> semantic = torch.tensor([[0, 0, 1, 1, 255]])
        >>> instance = torch.tensor([[0, 0, 1, 2, 0]])
        >>> category, instances = panoptic_levels(semantic, instance, things={1})
        >>> category.labels.tolist(), instances.labels.tolist()
        ([[0, 0, 1, 1, -2]], [[-1, -1, 4, 5, -2]])
    """
    _check.is_labels("semantic", semantic)
    _check.is_labels("instance", instance)
    _check.same_shape("instance", instance, tuple(semantic.shape), "semantic")
    _check.same_device("instance", instance, semantic.device, "semantic")
    _check.is_label("ignore_index", ignore_index)
    for name, pair in (("radii", radii), ("margins", margins), ("weights", weights)):
        _check.is_sequence(name, pair, "be two numbers, for the category and the instance level", 2)
    for radius in radii:
        _check.positive("radii", radius)
    if radii[0] <= radii[1]:
        raise ValueError(_check.message("radii", "fall from the category to the instance level", radii))
    semantic, instance = semantic.long(), instance.long()
    void = semantic == ignore_index
    _check_values(semantic, instance, void, ignore_index)
    if crowd is not None:
        _check.is_labels("crowd", crowd)
        _check.same_shape("crowd", crowd, tuple(semantic.shape), "semantic")
        _check.same_device("crowd", crowd, semantic.device, "semantic")
        crowd = crowd.bool()
    is_thing = among(semantic, sorted(thing_categories(things))) & ~void
    untold = is_thing & (instance == 0)
    if crowd is not None:
        untold = untold | (is_thing & crowd)
    labels = torch.where(is_thing, _numbers(semantic, instance, is_thing), NO_NODE)
    return (
        Level(
            torch.where(void, IGNORED, semantic),
            radii[0],
            margin=margins[0],
            weight=weights[0],
            per_picture=False,
            dims=category_dims,
            name="category",
        ),
        Level(
            torch.where(void | untold, IGNORED, labels),
            radii[1],
            margin=margins[1],
            weight=weights[1],
            dims=instance_dims,
            name="instance",
        ),
    )


def _check_values(semantic: Tensor, instance: Tensor, void: Tensor, ignore_index: int) -> None:
    if not instance.numel() or instance.is_meta:
        return
    wrong = (semantic < 0) & ~void
    allowed = f"hold categories of 0 or above, or ignore_index ({ignore_index})"
    if instance.is_cuda:
        torch._assert_async(instance.amin() >= 0, _check.message("instance", "hold ids of 0 or above", "less"))
        torch._assert_async(~wrong.any(), _check.message("semantic", allowed, "others"))
        return
    if int(instance.min()) < 0:
        raise ValueError(_check.message("instance", "hold ids of 0 or above", int(instance.min())))
    if bool(wrong.any()):
        raise ValueError(_check.message("semantic", allowed, int(semantic[~void].min())))


def _numbers(semantic: Tensor, instance: Tensor, is_thing: Tensor) -> Tensor:
    """Return one number per category and instance."""
    if not instance.numel():
        return instance
    if instance.is_cuda or instance.is_meta:
        span = instance.amax() + 1
        categories = torch.where(is_thing, semantic, 0).amax() + 1
        if instance.is_cuda:
            text = _check.message(
                "instance", "hold ids below 2^63 divided by the highest category", "more", "Number them from 1."
            )
            torch._assert_async(span.double() * categories < 2.0**63, text)
        return semantic * span + instance
    if int(instance.max()) >= 2**31:  # the product could overflow
        instance = torch.unique(instance, return_inverse=True)[1]
    return semantic * (int(instance.max()) + 1) + instance
