"""From an embedding to a panoptic result: nearest class mean, clustering, assembly."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lovasz_embed.clustering import cluster_embeddings
from lovasz_embed.panoptic.assembly import assemble
from lovasz_embed.panoptic.result import PanopticResult
from lovasz_embed.prototypes import nearest_class_mean


def segment(
    embedding: Tensor,
    class_means: Tensor,
    *,
    things: Collection[int],
    radius: float,
    reach: float | None = None,
    category_dims: Sequence[int] | None = None,
    offset: Tensor | None = None,
    reject_radius: float | None = None,
    connected: bool = False,
    min_thing_area: int = 0,
    min_stuff_area: int = 0,
    ignore_index: int = 255,
) -> PanopticResult:
    """Read categories and instances off an embedding.

    Every pixel takes the category of the nearest class mean; the pixels of each thing category are clustered;
    small segments and thing pixels in no cluster become void.

    Args:
        embedding: Floats (B, D, *spatial).
        class_means: (C, D), one per category; a row of NaN is a category never predicted.
        things: The categories that have instances.
        radius: Radius of an instance, embedding units: that of the instance level of the loss.
        reach: Farthest distance at which a pixel joins its nearest instance; None is the radius.
        category_dims: The dimensions that tell categories apart; None is all.
        offset: Per category, (C,), squared embedding units; see `nearest_class_mean`.
        reject_radius: Pixels farther than this from every class mean are void; None rejects nothing.
        connected: Split instances into spatially connected parts.
        min_thing_area: Pixels that a thing must have.
        min_stuff_area: Pixels that a stuff segment must have.
        ignore_index: The category of void inside; any number outside 0 ... C - 1.

    Returns:
        The segments of every picture, with the clusters' scores.

    Raises:
        TypeError: If tensors are not floating point.
        ValueError: If shapes do not fit, the embedding holds NaN or Inf, or a radius or area is out of range.

    Note:
        O(B·P·C·D) plus the clustering; deterministic.

    Example:
        >>> embedding = torch.tensor([[[0.0, 0.1, 5.0, 5.1, 8.0]]])
        >>> means = torch.tensor([[0.0], [6.0]])
        >>> result = segment(embedding, means, things={1}, radius=1.0)
        >>> result.segmentation.tolist()
        [[1, 1, 2, 2, 3]]
    """
    dims = None if category_dims is None else tuple(category_dims)
    semantic = nearest_class_mean(
        embedding,
        class_means,
        dims=dims,
        offset=offset,
        reject_radius=reject_radius,
        ignore_index=ignore_index,
    )
    chosen = torch.tensor(sorted(things), dtype=torch.long, device=semantic.device)
    clusters = cluster_embeddings(
        embedding,
        torch.where(torch.isin(semantic, chosen), semantic, -1),
        radius=radius,
        reach=reach,
        min_size=max(int(min_thing_area), 1),
        connected=connected,
    )
    return assemble(
        semantic,
        clusters.labels,
        things=things,
        scores=clusters.scores,
        min_thing_area=min_thing_area,
        min_stuff_area=min_stuff_area,
        ignore_index=ignore_index,
    )
