"""Panoptic results: one object for the map and its segments, made from maps or from clusters.

`PanopticResult` is a batch of pictures (or volumes) in which each pixel belongs to one segment or to void. Truth
becomes one by `PanopticResult.from_maps`, a prediction by `assemble`; it converts to COCO panoptic and back,
and to the dictionary of transformers.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check, _coco
from lovasz_embed._ops.grouping import Groups, count_distinct, group_pixels, number_groups
from lovasz_embed._ops.labels import as_labels, is_ignored

# Categories index tables: a label beyond this is a data set's raw id, not a contiguous category.
_MAX_CATEGORY = 2**16 - 1


@dataclass(frozen=True)
class Segment:
    """One segment of one picture: an instance of a thing, all of a stuff category, or a crowd region.

    Attributes:
        id: Its number in the map, at least 1, unique in its picture.
        category: Contiguous category id, 0..C-1.
        is_thing: Whether the category is countable.
        area: Pixels.
        score: Confidence in [0, 1].
        is_crowd: Whether it is a region of instances nobody told apart.
    """

    id: int
    category: int
    is_thing: bool
    area: int
    score: float = 1.0
    is_crowd: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class PanopticResult:
    """The panoptic segmentation of a batch of pictures.

    Attributes:
        segmentation: int32 (B, *spatial); 0 = void, else the id of a segment of that picture.
        segments: One tuple of `Segment` per picture, sorted by id.

    Raises:
        TypeError: `segmentation` is not an int32 tensor.
        ValueError: There is not one tuple per picture, or ids are below 1 or not ascending. That map and segments
            agree is checked by what reads the pixels (`segment_index` and all that builds on it).

    Notes:
        Two results are equal when their maps and their segments are. A result is a sequence of results of
        one picture each: it has a length, can be indexed and iterated.

    >>> semantic = torch.tensor([[[0, 1, 1], [0, 1, 255]]])
    >>> instance = torch.tensor([[[0, 1, 2], [0, 1, 0]]])
    >>> result = PanopticResult.from_maps(semantic, instance, things={1})
    >>> result
    PanopticResult(pictures=1, spatial=(2, 3), segments=(3,))
    >>> result.segmentation.tolist()
    [[[1, 2, 3], [1, 2, 0]]]
    >>> result.segments[0][1]
    Segment(id=2, category=1, is_thing=True, area=2, score=1.0, is_crowd=False)
    """

    segmentation: Tensor
    segments: tuple[tuple[Segment, ...], ...]

    def __post_init__(self) -> None:
        _check.is_tensor("segmentation", self.segmentation)
        if self.segmentation.dtype != torch.int32:
            raise TypeError(
                _check.message("segmentation", "be int32", self.segmentation.dtype, "Use .int().")
            )
        if self.segmentation.ndim < 2:
            got = tuple(self.segmentation.shape)
            raise ValueError(_check.message("segmentation", "have shape (B, *spatial)", got))
        if len(self.segments) != len(self.segmentation):
            rule = f"hold one tuple per picture ({len(self.segmentation)})"
            raise ValueError(_check.message("segments", rule, len(self.segments)))
        for picture in self.segments:
            ids = [0, *(segment.id for segment in picture)]
            if any(a >= b for a, b in zip(ids, ids[1:], strict=False)):
                raise ValueError(_check.message("segments", "have ids from 1 in ascending order", ids[1:]))

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, picture: int) -> PanopticResult:
        row = range(len(self))[picture]  # IndexError past the end, negative numbers from the end
        return PanopticResult(self.segmentation[row : row + 1], (self.segments[row],))

    def __iter__(self) -> Iterator[PanopticResult]:
        return (self[picture] for picture in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PanopticResult):
            return NotImplemented
        return self.segments == other.segments and torch.equal(self.segmentation, other.segmentation)

    def __repr__(self) -> str:
        spatial, counts = tuple(self.segmentation.shape[1:]), tuple(map(len, self.segments))
        return f"PanopticResult(pictures={len(self)}, spatial={spatial}, segments={counts})"

    def to(self, device: torch.device | str) -> PanopticResult:
        """Return the result with its map on `device`."""
        return PanopticResult(self.segmentation.to(device), self.segments)

    def segment_index(self) -> Tensor:
        """Return the map that numbers each picture's segments without gaps.

        Returns:
            int64 (B, *spatial): 0 = void, j = the j-th of `segments[picture]`, counted from 1.

        Raises:
            ValueError: The map holds an id that `segments` does not.
        """
        index = torch.empty(self.segmentation.shape, dtype=torch.int64, device=self.segmentation.device)
        for row, (ids_map, picture) in enumerate(zip(self.segmentation, self.segments, strict=True)):
            ids = [0, *(segment.id for segment in picture)]
            if ids[-1] == len(picture):  # 1..n already: the usual case, and much the fastest
                known = (ids_map >= 0) & (ids_map <= len(picture))
                index[row] = ids_map
            else:
                table = torch.tensor(ids, dtype=torch.int32, device=ids_map.device)
                index[row] = torch.searchsorted(table, ids_map.contiguous()).clamp_(max=len(picture))
                known = table[index[row]] == ids_map
            if not bool(known.all()):
                stray = int(ids_map[~known][0])
                rule = f"hold only ids of its segments (picture {row})"
                raise ValueError(_check.message("segmentation", rule, stray))
        return index

    def semantic(self, ignore_index: int = 255) -> Tensor:
        """Return the category of each pixel, int64 (B, *spatial); `ignore_index` = void.

        Raises:
            ValueError: The map holds an id that `segments` does not, or `ignore_index` is a category in use.
        """
        if any(segment.category == ignore_index for picture in self.segments for segment in picture):
            raise ValueError(
                _check.message("ignore_index", "differ from every category in use", ignore_index)
            )
        return self._per_segment(lambda segment: segment.category, ignore_index)

    def instance(self) -> Tensor:
        """Return the id of each pixel's thing, int32 (B, *spatial); 0 on stuff, crowd and void."""
        return self._per_segment(
            lambda segment: segment.id if segment.is_thing and not segment.is_crowd else 0, 0
        ).int()

    def _per_segment(self, value: Any, void: int) -> Tensor:
        index = self.segment_index()
        for row, picture in enumerate(self.segments):
            table = torch.tensor([void, *map(value, picture)], dtype=torch.int64, device=index.device)
            index[row] = table[index[row]]
        return index

    @classmethod
    def from_pictures(cls, pictures: Sequence[PanopticResult]) -> PanopticResult:
        """Return one batch of all pictures of `pictures`, in order; all of one size.

        Raises:
            ValueError: `pictures` is empty, or sizes differ.
        """
        if not pictures:
            raise ValueError(_check.message("pictures", "hold at least one result", "none"))
        shape = pictures[0].segmentation.shape[1:]
        for result in pictures:
            if result.segmentation.shape[1:] != shape:
                got = f"{tuple(shape)} and {tuple(result.segmentation.shape[1:])}"
                raise ValueError(_check.message("pictures", "have one size", got, "Keep them in a list."))
        maps = torch.cat([result.segmentation for result in pictures])
        return cls(maps, tuple(picture for result in pictures for picture in result.segments))

    @classmethod
    def from_maps(
        cls,
        semantic: Tensor,
        instance: Tensor,
        *,
        things: Collection[int],
        ignore_index: int = 255,
        crowd: Tensor | None = None,
    ) -> PanopticResult:
        """Return the panoptic result that two label maps describe.

        A stuff category is one segment per picture, a thing one per (category, instance > 0). Thing pixels of
        instance 0 are void. Crowd pixels of a category are one crowd segment, whatever their instance.

        Args:
            semantic: Integers (B, *spatial), categories 0.. or `ignore_index`.
            instance: Integers (B, *spatial), 0 = none; ids may have gaps, and may repeat across categories.
            things: Category ids that are things.
            ignore_index: Void in `semantic`.
            crowd: bool (B, *spatial), or None for no crowd.

        Returns:
            Segments numbered from 1 in each picture by their first pixel in scan order.

        Raises:
            ValueError: Shapes or devices differ, or a label is negative.
            TypeError: A map is not of integers, `crowd` is not bool, `things` is no collection of integers.
        """
        thing_set = thing_categories(things)
        category, valid = _categories("semantic", semantic, ignore_index)
        number = _labels_like("instance", instance, semantic)
        is_thing = _membership(thing_set, category)
        if crowd is None:
            in_crowd = torch.zeros_like(valid)
        else:
            _check.is_tensor("crowd", crowd)
            if crowd.dtype != torch.bool:
                raise TypeError(_check.message("crowd", "be a bool tensor", crowd.dtype))
            _check.same_shape("crowd", crowd, tuple(semantic.shape), "semantic")
            _check.same_device("crowd", crowd, semantic.device, "semantic")
            in_crowd = crowd

        # Slot of a pixel within its category: 0 the whole category, 1.. an instance, the last one the crowd.
        values, position, _ = group_pixels(number, _bound(number))
        starts_at_zero = bool((values[:1] == 0).all())
        slot = (position if starts_at_zero else position + 1).view_as(category)
        slots = len(values) + 2
        slot = torch.where(is_thing, slot, 0).masked_fill(in_crowd, slots - 1)
        valid = valid & ~(is_thing & (slot == 0))
        ids, groups = number_groups(category * slots + slot, valid, _bound(category) * slots)
        found: list[list[Segment]] = [[] for _ in range(len(semantic))]
        for picture, segment_id, key, area in _rows(groups):
            c, s = divmod(key, slots)
            found[picture].append(Segment(segment_id, c, c in thing_set, area, 1.0, s == slots - 1))
        return cls(ids, tuple(map(tuple, found)))

    def to_transformers(self) -> list[dict[str, Any]]:
        """Return what `post_process_panoptic_segmentation` of transformers returns, one dictionary per picture.

        Returns:
            ``{"segmentation": int32 (*spatial), "segments_info": [{"id", "label_id", "was_fused", "score"}]}``;
            ids from 1, 0 = void. A crowd region is an entry like any other.

        >>> result = PanopticResult(torch.ones(1, 2, 2, dtype=torch.int32), ((Segment(1, 7, False, 4),),))
        >>> result.to_transformers()[0]["segments_info"]
        [{'id': 1, 'label_id': 7, 'was_fused': False, 'score': 1.0}]
        """
        return [
            {
                "segmentation": ids,
                "segments_info": [
                    {"id": s.id, "label_id": s.category, "was_fused": False, "score": s.score}
                    for s in picture
                ],
            }
            for ids, picture in zip(self.segmentation, self.segments, strict=True)
        ]

    def to_coco(
        self,
        image_ids: Sequence[int | str],
        category_ids: Sequence[int] | None = None,
        file_names: Sequence[str] | None = None,
    ) -> list[tuple[dict[str, Any], NDArray[np.uint8]]]:
        """Return the COCO panoptic record and colour picture of each picture.

        Args:
            image_ids: One per picture.
            category_ids: The data set's id of each contiguous category; None keeps the contiguous ids.
            file_names: Name of each picture's PNG; None makes it of the image id, integers padded to 12 digits.

        Returns:
            Per picture ``{"image_id", "file_name", "segments_info"}`` with id, category_id, area, bbox
            [x, y, width, height] and iscrowd per segment, and the uint8 array (H, W, 3) whose colours are the ids.
            Scores are not part of the format.

        Raises:
            ValueError: Lengths differ, pictures are not 2-D, a segment id is beyond 24 bits, a category has no
                data set id, or map and segments disagree.

        >>> result = PanopticResult(torch.ones(1, 2, 3, dtype=torch.int32), ((Segment(1, 0, False, 6),),))
        >>> (record, png), = result.to_coco([42], category_ids=[90])
        >>> record["file_name"], record["segments_info"][0]["category_id"], record["segments_info"][0]["bbox"]
        ('000000000042.png', 90, [0, 0, 3, 2])
        """
        if self.segmentation.ndim != 3:
            got = tuple(self.segmentation.shape)
            raise ValueError(_check.message("segmentation", "have shape (B, H, W) to become COCO files", got))
        _one_per_picture("image_ids", image_ids, len(self))
        if file_names is None:
            file_names = [f"{i}.png" if isinstance(i, str) else f"{i:012d}.png" for i in image_ids]
        _one_per_picture("file_names", file_names, len(self))
        index = self.segment_index().cpu().numpy()
        ids = self.segmentation.cpu().numpy()
        return [
            _coco.write_annotation(
                image_ids[row], file_names[row], ids[row], index[row], picture, category_ids
            )
            for row, picture in enumerate(self.segments)
        ]

    @classmethod
    def from_coco(
        cls,
        annotations: Sequence[Mapping[str, Any]],
        pngs: Sequence[NDArray[np.uint8]],
        category_ids: Sequence[int],
        things: Collection[int],
    ) -> PanopticResult:
        """Return the result that COCO panoptic records and their colour pictures hold: the inverse of `to_coco`.

        Args:
            annotations: One record per picture, with image_id and segments_info.
            pngs: One uint8 array (H, W, 3) per picture, all of one size.
            category_ids: The data set's id of each contiguous category.
            things: Contiguous ids of the things.

        Returns:
            Segments keep their ids. Areas are counted in the pictures: the JSON's own are not read.

        Raises:
            ValueError: Record and picture disagree (a segment in one and not in the other, an unknown category);
                the text names image and segment. Or lengths or sizes differ.
            TypeError: A picture is not a uint8 array.
        """
        thing_set = thing_categories(things)
        _one_per_picture("pngs", pngs, len(annotations))
        if not annotations:
            raise ValueError(_check.message("annotations", "hold at least one record", "none"))
        read = [_coco.read_annotation(a, png, category_ids) for a, png in zip(annotations, pngs, strict=True)]
        shapes = {ids.shape for ids, _ in read}
        if len(shapes) > 1:
            remedy = "Read pictures of each size on their own."
            raise ValueError(_check.message("pngs", "have one size", sorted(shapes), remedy))
        segments = tuple(
            tuple(
                Segment(r.id, r.category, r.category in thing_set, r.area, 1.0, r.is_crowd) for r in records
            )
            for _, records in read
        )
        return cls(torch.from_numpy(np.stack([ids for ids, _ in read])), segments)


def assemble(
    semantic: Tensor,
    cluster_labels: Tensor,
    *,
    things: Collection[int],
    scores: Sequence[Tensor] | None = None,
    min_thing_area: int = 0,
    min_stuff_area: int = 0,
    ignore_index: int = 255,
) -> PanopticResult:
    """Return the panoptic result of a category map and a map of clusters.

    A cluster becomes one thing, of the category that most of its thing pixels have; a stuff category becomes one
    segment per picture. Void are: void of `semantic`, thing pixels in no cluster, segments that are too small.

    Args:
        semantic: Integers (B, *spatial), categories 0.. or `ignore_index`.
        cluster_labels: Integers (B, *spatial), 0 = noise, else the number of a cluster of that picture. On stuff
            pixels they are not looked at.
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
    category, valid = _categories("semantic", semantic, ignore_index)
    label = _labels_like("cluster_labels", cluster_labels, semantic)
    if scores is not None:
        _check_scores(scores, label)
    pictures, classes = len(semantic), _bound(category)
    on_thing = valid & _membership(thing_set, category)
    values, position, _ = group_pixels(torch.where(on_thing, label, 0), _bound(label))
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
    minimum = torch.full((classes + clusters,), min_stuff_area, dtype=torch.int64, device=category.device)
    minimum[classes:] = min_thing_area
    ids, groups = number_groups(key, valid & (in_cluster | ~on_thing), classes + clusters, minimum)
    cluster_ids = values.tolist()
    found: list[list[Segment]] = [[] for _ in range(pictures)]
    for picture, segment_id, group, area in _rows(groups):
        if group < classes:
            found[picture].append(Segment(segment_id, group, False, area))
            continue
        number = group - classes
        score = 1.0 if scores is None else float(scores[picture][cluster_ids[number] - 1])
        found[picture].append(Segment(segment_id, winner[picture * clusters + number], True, area, score))
    return PanopticResult(ids, tuple(map(tuple, found)))


def thing_categories(things: Collection[int]) -> frozenset[int]:
    """Return `things` as a set of ints, or raise `TypeError`."""
    try:
        return frozenset(operator.index(category) for category in things)
    except TypeError:
        raise TypeError(
            _check.message(
                "things", "be a collection of category ids", repr(things), "For example {11, 12, 13}."
            )
        ) from None


def _rows(groups: Groups) -> Iterator[tuple[int, int, int, int]]:
    return zip(*(column.tolist() for column in groups), strict=True)


def _bound(labels: Tensor) -> int:
    return int(labels.max()) + 1 if labels.numel() else 1


def _membership(categories: frozenset[int], category: Tensor) -> Tensor:
    table = torch.zeros(_bound(category), dtype=torch.bool, device=category.device)
    table[[c for c in categories if 0 <= c < len(table)]] = True
    return table[category]


def _categories(argument: str, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the categories as int64, 0 where void, and the mask of pixels that are not void."""
    labels = as_labels(argument, labels)
    if labels.ndim < 2:
        remedy = "A single picture needs a batch axis: [None]."
        raise ValueError(_check.message(argument, "have shape (B, *spatial)", tuple(labels.shape), remedy))
    valid = ~is_ignored(labels, ignore_index)
    category = torch.where(valid, labels.long(), 0)
    wrong = (category < 0) | (category > _MAX_CATEGORY)
    if bool(wrong.any()):
        rule = f"hold categories from 0 to {_MAX_CATEGORY} or ignore_index={ignore_index}"
        raise ValueError(_check.message(argument, rule, int(category[wrong][0])))
    return category, valid


def _labels_like(argument: str, labels: Tensor, semantic: Tensor) -> Tensor:
    _check.is_labels(argument, labels)
    _check.same_shape(argument, labels, tuple(semantic.shape), "semantic")
    _check.same_device(argument, labels, semantic.device, "semantic")
    labels = labels.long()
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(_check.message(argument, "be 0 (none) or above", int(labels.min())))
    return labels


def _check_scores(scores: Sequence[Tensor], label: Tensor) -> None:
    _one_per_picture("scores", scores, len(label))
    for row, (score, labels) in enumerate(zip(scores, label, strict=True)):
        needed = _bound(labels) - 1
        if score.ndim != 1 or len(score) < needed:
            rule = f"have shape (K,) with K >= {needed}, the highest cluster (picture {row})"
            raise ValueError(_check.message("scores", rule, tuple(score.shape)))


def _one_per_picture(argument: str, values: Sequence[Any], pictures: int) -> None:
    if len(values) != pictures:
        raise ValueError(_check.message(argument, f"hold one entry per picture ({pictures})", len(values)))
