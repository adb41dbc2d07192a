"""From a category map and a map of clusters to a panoptic result."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.assembly import Piece, code_of, extents, pieces
from lovasz_embed._ops.grouping import SMALL_TABLE, count_distinct, group_pixels, number_groups
from lovasz_embed.panoptic._maps import (
    MAX_CATEGORY,
    categories_of,
    label_bound,
    labels_like,
    membership,
    one_per_picture,
    rows,
    thing_categories,
)
from lovasz_embed.panoptic.result import PanopticResult, Segment


def assemble(
    semantic: Tensor,
    cluster_labels: Tensor,
    *,
    things: Collection[int],
    scores: Sequence[Tensor] | None = None,
    min_thing_area: float = 0,
    min_stuff_area: float = 0,
    ignore_index: int = 255,
) -> PanopticResult:
    """Return the panoptic result of a category map and a map of clusters.

    A cluster becomes one thing, of the category that most of its thing pixels have; a stuff category becomes
    one segment per picture. Void are: void of `semantic`, thing pixels in no cluster, and segments that are
    too small.

    Args:
        semantic: Integers (B, *spatial), categories 0.. or `ignore_index`.
        cluster_labels: Integers (B, *spatial), 0 = noise, else the number of a cluster of that picture. Not
            looked at on stuff pixels.
        things: Category ids that are things.
        scores: One tensor (K,) per picture, the score of cluster k at k - 1; None scores everything 1.
        min_thing_area: Pixels a thing must have.
        min_stuff_area: Pixels a stuff segment must have.
        ignore_index: Void in `semantic`.

    Returns:
        Segments numbered from 1 in each picture by their first pixel in scan order, things and stuff alike.

    Raises:
        ValueError: Shapes or devices differ, a label is negative, an area is, or a cluster has no score.
        TypeError: A map is not of integers, or `things` is no collection of integers.

    Notes:
        Two categories with the same number of votes: the lower one wins. O(pixels), deterministic.

    >>> semantic = torch.tensor([[[0, 1, 1, 2, 1]]])
    >>> clusters = torch.tensor([[[0, 1, 1, 1, 0]]])
    >>> result = assemble(semantic, clusters, things={1, 2})
    >>> result.segmentation.tolist(), [s.category for s in result.segments[0]]
    ([[[1, 2, 2, 2, 0]]], [0, 1])
    """
    _check.is_labels("semantic", semantic)
    _check.is_labels("cluster_labels", cluster_labels)
    _check.is_int("ignore_index", ignore_index)
    thing_set = thing_categories(things)
    _check.is_area("min_thing_area", min_thing_area)
    _check.is_area("min_stuff_area", min_stuff_area)
    given = semantic, cluster_labels, thing_set, scores, (min_thing_area, min_stuff_area), ignore_index
    counted = _by_tables(*given)
    return _by_keys(*given) if counted is None else counted


def result_of(ids: Tensor, found: Sequence[Sequence[Piece]], scores: Sequence[Any] | None) -> PanopticResult:
    """Return the result of the map `ids` and the segments `found`; cluster k of a picture scores `scores[k - 1]`."""
    segments = []
    for picture, own in enumerate(found):
        score = None if scores is None else scores[picture].tolist()
        segments.append(
            tuple(
                Segment(p.id, p.category, p.cluster > 0, p.area, score[p.cluster - 1] if score and p.cluster else 1.0)
                for p in own
            )
        )
    return PanopticResult(ids, tuple(segments))


def _by_tables(
    semantic: Tensor,
    cluster_labels: Tensor,
    things: frozenset[int],
    scores: Sequence[Tensor] | None,
    minima: tuple[float, float],
    ignore_index: int,
) -> PanopticResult | None:
    """Count in tables, on the CPU; None where they would be too large, and where arguments are wrong."""
    plain = type(semantic) is Tensor and type(cluster_labels) is Tensor
    if not plain or {semantic.device.type, cluster_labels.device.type} != {"cpu"} or semantic.ndim < 2:
        return None
    if semantic.shape != cluster_labels.shape or not -(2**63) <= ignore_index < 2**63:
        return None
    maps = []
    for labels in (semantic, cluster_labels):
        if labels.is_floating_point() or labels.is_complex():
            return None
        native = labels if labels.dtype in (torch.int32, torch.int64) else labels.long()
        maps.append(native.contiguous().view(len(native), math.prod(native.shape[1:])).numpy())
    void = -1 if semantic.dtype == torch.bool else ignore_index  # no bool is void
    of_categories, of_labels = extents(maps[0], void), extents(maps[1], 0)
    lowest = min((low for low, _ in (*of_categories, *of_labels)), default=0)
    categories = 1 + max((high for _, high in of_categories), default=-1)
    if lowest < 0 or categories > MAX_CATEGORY + 1:
        return None
    code = code_of(categories, np.array(sorted(things), np.int64), void)
    clusters = [max(high, 0) for _, high in of_labels]
    if max(clusters, default=0) * max(1, len(code.things)) > max(maps[0].shape[1], SMALL_TABLE):
        return None
    if scores is not None:
        _check_scores(scores, clusters)
    ids = np.empty(maps[0].shape, np.int32)
    found = pieces(maps[0], list(maps[1]), code, clusters, minima=minima, winners=None, out=ids)
    return result_of(torch.from_numpy(ids).view(semantic.shape), found, scores)


def _by_keys(
    semantic: Tensor,
    cluster_labels: Tensor,
    things: frozenset[int],
    scores: Sequence[Tensor] | None,
    minima: tuple[float, float],
    ignore_index: int,
) -> PanopticResult:
    """Do the same on any device and with labels of any size, by whole-picture operations."""
    category, valid = categories_of("semantic", semantic, ignore_index)
    label = labels_like("cluster_labels", cluster_labels, semantic)
    if scores is not None:
        _check_scores(scores, [label_bound(row) - 1 for row in label])
    pictures, classes = len(semantic), label_bound(category)
    on_thing = valid & membership(things, category)
    values, position, _ = group_pixels(torch.where(on_thing, label, 0), label_bound(label))
    cluster, clusters = position.view_as(category), len(values)

    in_cluster = on_thing & (values[cluster] > 0)
    batch = torch.arange(pictures, device=category.device).view(-1, *[1] * (category.ndim - 1))
    ballot = ((batch * clusters + cluster) * classes + category)[in_cluster]
    ballots, votes = count_distinct(ballot, pictures * clusters * classes)
    # The winner is the largest of (votes, lowest category), packed into one integer.
    packed = votes * classes + (classes - 1 - ballots % classes)
    best = torch.zeros(pictures * clusters, dtype=torch.int64, device=category.device)
    best.scatter_reduce_(0, ballots // classes, packed, "amax")
    winner = (classes - 1 - best % classes).tolist()

    # Groups of a picture: its categories (stuff), then its clusters (things).
    key = torch.where(on_thing, classes + cluster, category)
    minimum = torch.full((classes + clusters,), math.ceil(minima[1]), device=category.device)
    minimum[classes:] = math.ceil(minima[0])
    ids, groups = number_groups(key, valid & (in_cluster | ~on_thing), classes + clusters, minimum)
    cluster_ids = values.tolist()
    found: list[list[Segment]] = [[] for _ in range(pictures)]
    for picture, segment_id, group, area in rows(groups):
        if group < classes:
            found[picture].append(Segment(segment_id, group, False, area))
            continue
        number = group - classes
        score = 1.0 if scores is None else float(scores[picture][cluster_ids[number] - 1])
        found[picture].append(Segment(segment_id, winner[picture * clusters + number], True, area, score))
    return PanopticResult(ids, tuple(map(tuple, found)))


def _check_scores(scores: Sequence[Tensor], clusters: Sequence[int]) -> None:
    one_per_picture("scores", scores, len(clusters))
    for row, (score, needed) in enumerate(zip(scores, clusters, strict=True)):
        _check.is_floating("scores", score)
        _check.has_values("scores", score)
        if score.ndim != 1 or len(score) < needed:
            rule = f"have shape (K,) with K >= {needed}, the highest cluster (picture {row})"
            raise ValueError(_check.message("scores", rule, tuple(score.shape)))
        if not bool(((score >= 0) & (score <= 1)).all()):
            raise ValueError(_check.message("scores", "lie in [0, 1]", f"others (picture {row})"))
