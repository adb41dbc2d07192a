"""From a category map and a map of clusters to a panoptic result."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.grouping import count_distinct, group_pixels, number_groups
from lovasz_embed.panoptic._maps import (
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
    thing_set = thing_categories(things)
    _check.non_negative("min_thing_area", min_thing_area)
    _check.non_negative("min_stuff_area", min_stuff_area)
    category, valid = categories_of("semantic", semantic, ignore_index)
    label = labels_like("cluster_labels", cluster_labels, semantic)
    if scores is not None:
        _check_scores(scores, label)
    pictures, classes = len(semantic), label_bound(category)
    on_thing = valid & membership(thing_set, category)
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
    minimum = torch.full((classes + clusters,), math.ceil(min_stuff_area), device=category.device)
    minimum[classes:] = math.ceil(min_thing_area)
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


def _check_scores(scores: Sequence[Tensor], label: Tensor) -> None:
    one_per_picture("scores", scores, len(label))
    for row, (score, labels) in enumerate(zip(scores, label, strict=True)):
        needed = label_bound(labels) - 1
        if score.ndim != 1 or len(score) < needed:
            rule = f"have shape (K,) with K >= {needed}, the highest cluster (picture {row})"
            raise ValueError(_check.message("scores", rule, tuple(score.shape)))
