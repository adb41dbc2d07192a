"""Clustering of pixels whose classes are known as plain numbers: what `segment` asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.margin import PictureClusters, cluster_picture
from lovasz_embed._ops.threads import map_threads
from lovasz_embed.clustering._pictures import compactness, planar, runner


def check_options(radius: float, reach: float | None, connected: bool) -> None:
    """Raise where an option of margin clustering is wrong, as `cluster_embeddings` does."""
    _check.positive("radius", radius)
    _check.is_bool("connected", connected)
    if reach is not None:
        _check.positive("reach", reach)


def cluster_classified(
    embedding: Tensor,
    classes: NDArray[np.int32],
    *,
    radius: float,
    reach: float | None,
    min_size: int,
    connected: bool,
) -> list[PictureClusters]:
    """Return the clusters of every picture by method "margin", with their scores; see `cluster_embeddings`.

    Args:
        embedding: (B, D, *spatial) on the CPU, finite where it is clustered.
        classes: (B, P) 0 and above, gaps allowed; negative: not clustered.
        radius: Radius of an instance.
        reach: Farthest distance at which a pixel joins, or None for the radius.
        min_size: Fewest pixels of a cluster.
        connected: Split clusters into connected parts.
    """
    run = runner(len(embedding))

    def picture(b: int) -> PictureClusters:
        found = cluster_picture(
            planar(embedding[b]),
            classes[b],
            tuple(embedding.shape[2:]),
            radius=float(radius),
            reach=float(radius if reach is None else reach),
            min_size=min_size,
            connected=connected,
            run=run,
        )
        return replace(found, scores=compactness(found.variances, radius))

    return map_threads(picture, range(len(embedding)))
