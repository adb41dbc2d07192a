"""From an embedding to a panoptic result: nearest class mean, clustering, assembly."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lovasz_embed import _check
from lovasz_embed._ops.assembly import Code, code_of, pieces
from lovasz_embed._ops.ncm import check_classifier
from lovasz_embed._ops.ncm_numba import name_pixels
from lovasz_embed.clustering import cluster_embeddings
from lovasz_embed.clustering._classified import check_options, cluster_classified
from lovasz_embed.clustering._device import scores_of, stays_on_device
from lovasz_embed.panoptic._maps import thing_categories
from lovasz_embed.panoptic.assembly import assemble, result_of
from lovasz_embed.panoptic.result import PanopticResult, Segment
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
        ignore_index: The category of void inside; any number outside 0 ... C - 1. (A category of that number
            would be void.)

    Returns:
        The segments of every picture, with the clusters' scores.

    Raises:
        TypeError: If tensors are not floating point.
        ValueError: If shapes do not fit, or a radius or area is out of range.

    Note:
        Pixels whose embedding holds NaN or Inf are void. O(B·P·C·D) plus the clustering; deterministic, for any
        number of threads. On the CPU, in any layout and precision, besides the result it needs one map of int32
        and the memory of `cluster_embeddings`. So it does on a CUDA device with Triton, unless `connected`: the
        embedding and all maps stay there, as does the map of the result, and only tables of segments come to the
        host; beyond the guarantee of `cluster_embeddings` clusters may differ from the CPU's. Elsewhere it is
        `nearest_class_mean`, `cluster_embeddings` and `assemble` one after the other, and the result is theirs in
        any case.

    Example:
        >>> embedding = torch.tensor([[[0.0, 0.1, 5.0, 5.1, 8.0]]])
        >>> means = torch.tensor([[0.0], [6.0]])
        >>> result = segment(embedding, means, things={1}, radius=1.0)
        >>> result.segmentation.tolist()
        [[1, 1, 2, 2, 3]]
    """
    _check.is_embedding("embedding", embedding)
    thing_set = thing_categories(things)
    _check.non_negative("min_thing_area", min_thing_area)
    _check.non_negative("min_stuff_area", min_stuff_area)
    check_options(radius, reach, connected)
    dims = None if category_dims is None else tuple(category_dims)
    nearest: dict[str, Any] = {"offset": offset, "dims": dims, "reject_radius": reject_radius}
    clustering: dict[str, Any] = {
        "radius": radius,
        "reach": reach,
        "min_size": max(int(min_thing_area), 1),
        "connected": connected,
    }
    minima = min_thing_area, min_stuff_area
    if embedding.device.type == "cpu" and type(embedding) in (Tensor, nn.Parameter):
        return _fused(embedding.detach(), class_means, thing_set, nearest, clustering, minima, ignore_index)
    if stays_on_device(embedding, "margin", connected):
        return _on_device(embedding.detach(), class_means, thing_set, nearest, clustering, minima, ignore_index)
    semantic = nearest_class_mean(embedding, class_means, **nearest, ignore_index=ignore_index)
    chosen = torch.tensor(sorted(thing_set), dtype=torch.long, device=semantic.device)
    is_thing = torch.isin(semantic, chosen) & (semantic != ignore_index)
    clusters = cluster_embeddings(embedding, torch.where(is_thing, semantic, -1), **clustering)
    return assemble(
        semantic,
        clusters.labels,
        things=thing_set,
        scores=clusters.scores,
        min_thing_area=min_thing_area,
        min_stuff_area=min_stuff_area,
        ignore_index=ignore_index,
    )


def _fused(
    embedding: Tensor,
    means: Tensor,
    things: frozenset[int],
    nearest: dict[str, Any],
    clustering: dict[str, Any],
    minima: tuple[float, float],
    ignore_index: int,
) -> PanopticResult:
    """Do the same on the CPU without maps in between: one of codes, one of clusters that becomes that of segments."""
    looked_at = check_classifier(embedding, means, **nearest)
    code, names = _code(len(means), things, ignore_index)
    values = name_pixels(embedding, means, nearest["offset"], looked_at, nearest["reject_radius"], names, code.void)
    clusters = cluster_classified(embedding, values, **clustering)
    labels = [picture.labels for picture in clusters]
    ids = labels[0][None] if len(labels) == 1 else np.empty(values.shape, np.int32)
    found = pieces(
        values,
        labels,
        code,
        [len(picture.sizes) for picture in clusters],
        minima=minima,
        winners=[np.append(0, picture.classes) for picture in clusters],
        out=ids,
    )
    maps = torch.from_numpy(ids).view(len(embedding), *embedding.shape[2:])
    return result_of(maps, found, [picture.scores for picture in clusters])


def _on_device(
    embedding: Tensor,
    means: Tensor,
    things: frozenset[int],
    nearest: dict[str, Any],
    clustering: dict[str, Any],
    minima: tuple[float, float],
    ignore_index: int,
) -> PanopticResult:
    """Do the same on a GPU: the embedding and all maps stay there, tables of segments come to the host.

    Under Triton's interpreter it takes tensors on the CPU.
    """
    from lovasz_embed._ops.gpu.assembly import number, tabulate
    from lovasz_embed._ops.gpu.margin import cluster_picture
    from lovasz_embed._ops.gpu.ncm import name_pixels as name_on_device
    from lovasz_embed._ops.gpu.pixels import planes

    looked_at = check_classifier(embedding, means, **nearest)
    code, names = _code(len(means), things, ignore_index)
    named = torch.from_numpy(np.append(names, np.int32(code.void))).to(embedding.device)
    codes = name_on_device(embedding, means, nearest["offset"], looked_at, nearest["reject_radius"], named)
    stuff, radius = len(code.stuff), float(clustering["radius"])
    reach = radius if clustering["reach"] is None else float(clustering["reach"])
    own = planes(embedding)
    ids = torch.zeros_like(codes)
    segments = []
    for b, values in enumerate(codes):
        clusters = cluster_picture(
            own.picture(b),
            values,
            tuple(embedding.shape[2:]),
            class_count=len(code.things),
            radius=radius,
            reach=reach,
            min_size=clustering["min_size"],
        )
        table = tabulate(values, clusters.labels, stuff, len(clusters.sizes), minima)
        number(values, clusters.labels, stuff, table.ids, ids[b])
        cluster = (table.rows - stuff).clamp(min=0)
        is_thing = table.rows >= stuff
        # One table, one transfer; scores are float32, which float64 holds.
        scores = torch.cat([scores_of(clusters.variances, radius), embedding.new_ones(1, dtype=torch.float32)])
        thing = torch.cat([clusters.classes, clusters.classes.new_zeros(1)])
        columns = table.rows, table.areas, is_thing, thing[cluster], torch.where(is_thing, scores[cluster], 1.0)
        rows = torch.stack([column.double() for column in columns], 1).tolist()
        segments.append(
            tuple(
                Segment(
                    number_of,
                    int(code.things[int(own_class)] if is_own else code.stuff[int(row)]),
                    bool(is_own),
                    int(area),
                    score,
                )
                for number_of, (row, area, is_own, own_class, score) in enumerate(rows, start=1)
            )
        )
    return PanopticResult(ids.view(len(embedding), *embedding.shape[2:]), tuple(segments))


def _code(categories: int, things: frozenset[int], ignore_index: int) -> tuple[Code, NDArray[np.int32]]:
    """Return a code in which things are 0 and above, as clustering wants them, and the value of each category.

    Void is -1, stuff below.
    """
    plain = code_of(categories, np.array(sorted(things), np.int64), ignore_index)
    stuff = len(plain.stuff)
    values = np.where(plain.slots < 0, plain.slots - 1, plain.slots).astype(np.int32)
    if 0 <= ignore_index < categories:
        values[ignore_index] = -1
    slots = np.concatenate([np.arange(-stuff, 1), np.arange(len(plain.things))])
    return Code(-1, -1 - stuff, slots, plain.things, plain.stuff), values
