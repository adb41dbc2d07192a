"""From an embedding to a panoptic result: nearest class mean, clustering, assembly."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lovasz_embed import _check
from lovasz_embed._ops.assembly import Code, code_of, majority, pieces
from lovasz_embed._ops.grouping import SMALL_TABLE
from lovasz_embed._ops.ncm import check_classifier
from lovasz_embed._ops.ncm_numba import name_pixels
from lovasz_embed.clustering import cluster_embeddings
from lovasz_embed.clustering._classified import check_options, cluster_classified
from lovasz_embed.clustering._device import scores_of, stays_on_device
from lovasz_embed.panoptic._dims import checked_dims, look_at
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
    instance_dims: Sequence[int] | None = None,
    offset: Tensor | None = None,
    reject_radius: float | None = None,
    connected: bool = False,
    vote: bool = False,
    min_thing_area: int = 0,
    min_stuff_area: int = 0,
    ignore_index: int = 255,
) -> PanopticResult:
    """Read categories and instances off an embedding.

    Every pixel takes the category of the nearest class mean; the pixels of each thing category, or with `vote` those of
    all of them together, are clustered; small segments and thing pixels in no cluster become void.

    Args:
        embedding: Floats (B, D, *spatial).
        class_means: (C, D), one per category; a row of NaN is a category never predicted.
        things: The categories that have instances.
        radius: Radius of an instance, embedding units: that of the instance level of the loss.
        reach: Farthest distance at which a pixel joins its nearest instance; None is the radius.
        category_dims: The dimensions that tell categories apart; None is all.
        instance_dims: The dimensions that tell instances apart; None is all.
        offset: Per category, (C,), squared embedding units; see `nearest_class_mean`.
        reject_radius: Pixels farther than this from every class mean are void; None rejects nothing.
        connected: Split instances into spatially connected parts.
        vote: Cluster the pixels of all things together, and give every instance the category that most of its pixels
            have, the lowest of equal ones. False clusters each category by itself.
        min_thing_area: Pixels that a thing must have.
        min_stuff_area: Pixels that a stuff segment must have.
        ignore_index: The category of void inside; any number outside 0 ... C - 1. (A category of that number
            would be void.)

    Returns:
        The segments of every picture, with the clusters' scores.

    Raises:
        TypeError: If tensors are not floating point, or an option has the wrong type.
        ValueError: If shapes do not fit, a radius or area is out of range, or dimensions are not the embedding's.

    Note:
        Pixels whose embedding holds NaN or Inf are void, in whichever dimension. O(B·P·C·D) plus the clustering;
        deterministic, for any number of threads. On the CPU, in any layout and precision, besides the result it needs
        one map of int32, with `vote` and several thing categories two, and the memory of `cluster_embeddings`.
        Instance dimensions that follow one another are read in place, others are copied. So it does on a CUDA device
        with Triton, unless `connected`: the embedding and all maps stay there, as does the map of the result, and only
        tables of segments come to the host; beyond the guarantee of `cluster_embeddings` clusters may differ from the
        CPU's. Elsewhere it is `nearest_class_mean`, `cluster_embeddings` and `assemble` one after the other, and the
        result is theirs in any case.

    Example:
        >>> embedding = torch.tensor([[[0.0, 0.1, 5.0, 5.1, 8.0]]])
        >>> means = torch.tensor([[0.0], [6.0]])
        >>> result = segment(embedding, means, things={1}, radius=1.0)
        >>> result.segmentation.tolist()
        [[1, 1, 2, 2, 3]]

        A car (category 0) one pixel of which reads as a truck (1), told apart by the second dimension alone:

        >>> embedding = torch.tensor([[[0.0, 0.1, 4.0, 0.2], [7.0, 7.1, 7.2, 9.9]]])
        >>> means = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
        >>> options = {"things": {0, 1}, "radius": 1.0, "category_dims": [0], "instance_dims": [1]}
        >>> segment(embedding, means, **options).segmentation.tolist()
        [[1, 1, 2, 3]]
        >>> segment(embedding, means, **options, vote=True).segmentation.tolist()
        [[1, 1, 1, 2]]
    """
    _check.is_embedding("embedding", embedding)
    _check.has_values("embedding", embedding)
    _check.is_label("ignore_index", ignore_index)
    thing_set = thing_categories(things)
    _check.is_area("min_thing_area", min_thing_area)
    _check.is_area("min_stuff_area", min_stuff_area)
    check_options(radius, reach, connected)
    dims = checked_dims("category_dims", category_dims, embedding.shape[1])
    _check.is_bool("vote", vote)
    seen = look_at(embedding.detach(), checked_dims("instance_dims", instance_dims, embedding.shape[1]))
    reading = _Reading(
        thing_set,
        {"offset": offset, "dims": dims, "reject_radius": reject_radius},
        {"radius": radius, "reach": reach, "min_size": max(int(min_thing_area), 1), "connected": connected},
        vote,
        (min_thing_area, min_stuff_area),
        ignore_index,
    )
    if embedding.device.type == "cpu" and type(embedding) in (Tensor, nn.Parameter):
        return _fused(embedding.detach(), seen, class_means, reading)
    if stays_on_device(embedding, "margin", connected):
        return _on_device(embedding.detach(), seen, class_means, reading)
    semantic = nearest_class_mean(embedding, class_means, **reading.nearest, ignore_index=ignore_index)
    chosen = torch.tensor(sorted(thing_set), dtype=torch.long, device=semantic.device)
    is_thing = torch.isin(semantic, chosen) & (semantic != ignore_index)
    clusters = cluster_embeddings(seen, is_thing if vote else torch.where(is_thing, semantic, -1), **reading.clustering)
    return assemble(
        semantic,
        clusters.labels,
        things=thing_set,
        scores=clusters.scores,
        min_thing_area=min_thing_area,
        min_stuff_area=min_stuff_area,
        ignore_index=ignore_index,
    )


class _Reading(NamedTuple):
    """What `segment` was asked for."""

    things: frozenset[int]
    nearest: dict[str, Any]  # of `nearest_class_mean`
    clustering: dict[str, Any]  # of `cluster_embeddings`
    vote: bool
    minima: tuple[float, float]  # pixels of a thing and of a stuff segment
    ignore_index: int


def _fused(embedding: Tensor, seen: Tensor, means: Tensor, reading: _Reading) -> PanopticResult:
    """Do the same on the CPU without maps in between: one of codes, one of clusters that becomes that of segments.

    `seen` are the dimensions of the embedding that tell instances apart.
    """
    nearest = reading.nearest
    looked_at = check_classifier(embedding, means, **nearest)
    code, names = _code(len(means), reading.things, reading.ignore_index)
    values = name_pixels(embedding, means, nearest["offset"], looked_at, nearest["reject_radius"], names, code.void)
    things = len(code.things)
    vote = reading.vote and things > 1
    clusters = cluster_classified(seen, np.minimum(values, 0) if vote else values, **reading.clustering)
    labels = [picture.labels for picture in clusters]
    winners = None
    if not vote:
        winners = [np.append(0, picture.classes) for picture in clusters]
    elif max((len(picture.sizes) for picture in clusters), default=0) * things > max(values.shape[1], SMALL_TABLE):
        # A table of votes would be larger than the picture.
        winners = [majority(values[b], labels[b], len(own.sizes), things) for b, own in enumerate(clusters)]
    ids = labels[0][None] if len(labels) == 1 else np.empty(values.shape, np.int32)
    found = pieces(
        values,
        labels,
        code,
        [len(picture.sizes) for picture in clusters],
        minima=reading.minima,
        winners=winners,
        out=ids,
    )
    maps = torch.from_numpy(ids).view(len(embedding), *embedding.shape[2:])
    return result_of(maps, found, [picture.scores for picture in clusters])


def _on_device(embedding: Tensor, seen: Tensor, means: Tensor, reading: _Reading) -> PanopticResult:
    """Do the same on a GPU: the embedding and all maps stay there, tables of segments come to the host.

    Under Triton's interpreter it takes tensors on the CPU.
    """
    from lovasz_embed._ops.gpu.assembly import majority as majority_on_device
    from lovasz_embed._ops.gpu.assembly import number, tabulate
    from lovasz_embed._ops.gpu.margin import cluster_picture
    from lovasz_embed._ops.gpu.ncm import name_pixels as name_on_device
    from lovasz_embed._ops.gpu.pixels import planes

    nearest, clustering = reading.nearest, reading.clustering
    looked_at = check_classifier(embedding, means, **nearest)
    code, names = _code(len(means), reading.things, reading.ignore_index)
    named = torch.from_numpy(np.append(names, np.int32(code.void))).to(embedding.device)
    codes = name_on_device(embedding, means, nearest["offset"], looked_at, nearest["reject_radius"], named)
    stuff, things, radius = len(code.stuff), len(code.things), float(clustering["radius"])
    vote = reading.vote and things > 1
    reach = radius if clustering["reach"] is None else float(clustering["reach"])
    own = planes(seen)
    ids = torch.zeros_like(codes)
    segments = []
    for b, values in enumerate(codes):
        clusters = cluster_picture(
            own.picture(b),
            values.clamp(max=0) if vote else values,
            tuple(embedding.shape[2:]),
            class_count=1 if vote else things,
            radius=radius,
            reach=reach,
            min_size=clustering["min_size"],
        )
        count = len(clusters.sizes)
        classes = majority_on_device(values, clusters.labels, count, things) if vote else clusters.classes
        table = tabulate(values, clusters.labels, stuff, count, reading.minima)
        number(values, clusters.labels, stuff, table.ids, ids[b])
        cluster = (table.rows - stuff).clamp(min=0)
        is_thing = table.rows >= stuff
        # One table, one transfer; scores are float32, which float64 holds.
        scores = torch.cat([scores_of(clusters.variances, radius), embedding.new_ones(1, dtype=torch.float32)])
        thing = torch.cat([classes, classes.new_zeros(1)])
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
