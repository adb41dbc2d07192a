"""Clustering of pixels whose classes are known as plain numbers: what `segment` asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.margin import Map, PictureClusters, cluster_picture
from lovasz_embed._ops.threads import map_threads
from lovasz_embed.clustering._pictures import planar


def check_options(radius: float, reach: float | None, connected: bool) -> None:
    """Raise where an option of margin clustering is wrong, as `cluster_embeddings` does."""
    _check.positive("radius", radius)
    if not isinstance(connected, bool):
        raise TypeError(_check.message("connected", "be True or False", repr(connected)))
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
    # Threads take whole pictures; a picture alone is cut into chunks. Either way the arithmetic is the same.
    run: Map = _serial if len(embedding) > 1 else map_threads

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
        scores = np.clip(1.0 - found.variances / radius**2, 0.0, 1.0)
        return replace(found, scores=scores.astype(np.float32))  # the precision of `Clusters.scores`

    return map_threads(picture, range(len(embedding)))


def _serial(function: Any, items: range) -> list[Any]:
    return [function(item) for item in items]
