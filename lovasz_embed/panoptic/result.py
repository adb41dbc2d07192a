"""The panoptic segmentation of a batch of pictures, and its conversions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check, _coco, _rle
from lovasz_embed._ops.grouping import group_pixels, number_groups
from lovasz_embed.panoptic._maps import (
    categories_of,
    label_bound,
    labels_like,
    membership,
    one_per_picture,
    rows,
    thing_categories,
)
from lovasz_embed.panoptic._segments import Segment as Segment
from lovasz_embed.panoptic._segments import check_segments
from lovasz_embed.panoptic._transformers import read_output


@dataclass(frozen=True, eq=False, repr=False)
class PanopticResult:
    """The panoptic segmentation of a batch of pictures.

    Attributes:
        segmentation: int32 (B, *spatial); 0 = void, else the id of a segment of that picture.
        segments: One tuple of `Segment` per picture, sorted by id.

    Raises:
        TypeError: `segmentation` is not an int32 tensor.
        ValueError: There is not one tuple per picture, or ids are below 1 or not ascending. That map and
            segments agree is checked by what reads the pixels (`segment_index` and all that builds on it).

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
            raise TypeError(_check.message("segmentation", "be int32", self.segmentation.dtype, "Use .int()."))
        if self.segmentation.ndim < 2:
            got = tuple(self.segmentation.shape)
            raise ValueError(_check.message("segmentation", "have shape (B, *spatial)", got))
        _check.is_sequence("segments", self.segments, "be a tuple of tuples of Segment, one per picture")
        if len(self.segments) != len(self.segmentation):
            rule = f"hold one tuple per picture ({len(self.segmentation)})"
            raise ValueError(_check.message("segments", rule, len(self.segments)))
        for picture in self.segments:
            check_segments(picture)

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, picture: int) -> PanopticResult:
        try:
            row = range(len(self))[operator.index(picture)]  # IndexError past the end, negative numbers from the end
        except (TypeError, RuntimeError):  # RuntimeError: a tensor without values
            raise TypeError(_check.message("picture", "be an int", type(picture).__name__)) from None
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
        _check.has_values("segmentation", self.segmentation)
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
        _check.is_label("ignore_index", ignore_index)
        if any(segment.category == ignore_index for picture in self.segments for segment in picture):
            raise ValueError(_check.message("ignore_index", "differ from every category in use", ignore_index))
        return self._per_segment(lambda segment: segment.category, ignore_index)

    def instance(self) -> Tensor:
        """Return the id of each pixel's thing, int32 (B, *spatial); 0 on stuff, crowd and void."""
        return self._per_segment(
            lambda segment: segment.id if segment.is_thing and not segment.is_crowd else 0, 0
        ).int()

    def _per_segment(self, value: Callable[[Segment], int], void: int) -> Tensor:
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
        pictures = results_of("pictures", pictures)
        if not pictures:
            raise ValueError(_check.message("pictures", "hold at least one result", "none"))
        shape = pictures[0].segmentation.shape[1:]
        for result in pictures:
            if result.segmentation.shape[1:] != shape:
                got = f"{tuple(shape)} and {tuple(result.segmentation.shape[1:])}"
                raise ValueError(_check.message("pictures", "have one size", got, "Keep them in a list."))
            _check.same_device("pictures", result.segmentation, pictures[0].segmentation.device, "the first")
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
        category, valid = categories_of("semantic", semantic, ignore_index)
        number = labels_like("instance", instance, semantic)
        is_thing = membership(thing_set, category)
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
        values, position, _ = group_pixels(number, label_bound(number))
        starts_at_zero = bool((values[:1] == 0).all())
        slot = (position if starts_at_zero else position + 1).view_as(category)
        slots = len(values) + 2
        slot = torch.where(is_thing, slot, 0).masked_fill(in_crowd, slots - 1)
        valid = valid & ~(is_thing & (slot == 0))
        ids, groups = number_groups(category * slots + slot, valid, label_bound(category) * slots)
        found: list[list[Segment]] = [[] for _ in range(len(semantic))]
        for picture, segment_id, key, area in rows(groups):
            c, s = divmod(key, slots)
            found[picture].append(Segment(segment_id, c, c in thing_set, area, 1.0, s == slots - 1))
        return cls(ids, tuple(map(tuple, found)))

    def to_transformers(self) -> list[dict[str, Any]]:
        """Return one dictionary per picture, as `post_process_panoptic_segmentation` of transformers does.

        Returns:
            "segmentation", int32 (*spatial), ids from 1 and 0 = void, and "segments_info", a list of {id,
            label_id, was_fused, score}. A crowd region is an entry like any other.

        >>> result = PanopticResult(torch.ones(1, 2, 2, dtype=torch.int32), ((Segment(1, 7, False, 4),),))
        >>> result.to_transformers()[0]["segments_info"]
        [{'id': 1, 'label_id': 7, 'was_fused': False, 'score': 1.0}]
        """
        return [
            {
                "segmentation": ids,
                "segments_info": [
                    {"id": s.id, "label_id": s.category, "was_fused": False, "score": s.score} for s in picture
                ],
            }
            for ids, picture in zip(self.segmentation, self.segments, strict=True)
        ]

    @classmethod
    def from_transformers(cls, outputs: Sequence[Mapping[str, Any]], *, things: Collection[int]) -> PanopticResult:
        """Return the result that dictionaries of transformers hold: the inverse of `to_transformers`.

        Args:
            outputs: One per picture, as `post_process_panoptic_segmentation` returns them, all of one size:
                "segmentation", ids from 1, 0 and below = void, and "segments_info" with id, label_id and score.
            things: Category ids (label_id) that are things; `was_fused` only says which segments were merged.

        Raises:
            ValueError: There is none, sizes differ, or map and segments disagree.
            TypeError: `things` is no collection of integers.

        Notes:
            Segments without a pixel are left out: a mask may lose its last one when it is resized.

        >>> result = PanopticResult(torch.ones(1, 2, 2, dtype=torch.int32), ((Segment(1, 7, False, 4),),))
        >>> PanopticResult.from_transformers(result.to_transformers(), things=set()) == result
        True
        """
        thing_set = thing_categories(things)
        _check.is_sequence("outputs", outputs, "be a sequence of dictionaries, one per picture")
        pictures = []
        for output in outputs:
            ids, info = read_output(output)
            present, counts = torch.unique(ids, return_counts=True)
            areas = dict(zip(present.tolist(), counts.tolist(), strict=True))
            found = (Segment(i, c, c in thing_set, areas[i], score) for i, c, score in sorted(info) if i in areas)
            result = cls(ids[None], (tuple(found),))
            result.segment_index()  # every id of the map is a segment's
            pictures.append(result)
        return cls.from_pictures(pictures)

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
            file_names: Name of each picture's PNG; None makes it of the image id, integers padded to 12
                digits.

        Returns:
            Per picture a record {image_id, file_name, segments_info}, with {id, category_id, area, bbox,
            iscrowd} per segment, bbox = [x, y, width, height] in pixels, and the uint8 array (H, W, 3) whose
            colours are the ids. Scores are not part of the format.

        Raises:
            ValueError: Lengths differ, pictures are not 2-D, a segment id is beyond 24 bits, a category has
                no data set id or one that it shares, or map and segments disagree.

        >>> result = PanopticResult(torch.ones(1, 2, 3, dtype=torch.int32), ((Segment(1, 0, False, 6),),))
        >>> (record, png), = result.to_coco([42], category_ids=[90])
        >>> record["file_name"], record["segments_info"][0]["category_id"], record["segments_info"][0]["bbox"]
        ('000000000042.png', 90, [0, 0, 3, 2])
        """
        if self.segmentation.ndim != 3:
            got = tuple(self.segmentation.shape)
            raise ValueError(_check.message("segmentation", "have shape (B, H, W) to become COCO files", got))
        one_per_picture("image_ids", image_ids, len(self))
        image_ids = [_coco.image_id(i) for i in image_ids]
        if file_names is None:
            file_names = [f"{i}.png" if isinstance(i, str) else f"{i:012d}.png" for i in image_ids]
        one_per_picture("file_names", file_names, len(self))
        if not all(isinstance(name, str) for name in file_names):
            raise TypeError(_check.message("file_names", "be texts", repr(file_names)))
        index = self.segment_index().cpu().numpy()
        ids = self.segmentation.cpu().numpy()
        return [
            _coco.write_annotation(image_ids[row], file_names[row], ids[row], index[row], picture, category_ids)
            for row, picture in enumerate(self.segments)
        ]

    def to_coco_instances(
        self, image_ids: Sequence[int | str], category_ids: Sequence[int] | None = None, *, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """Return the things as COCO instance annotations, of all pictures in one list.

        The list is what `loadRes` of pycocotools takes as results, and `annotations` of an instances file. Stuff is
        left out.

        Args:
            image_ids: One per picture.
            category_ids: The data set's id of each contiguous category; None keeps the contiguous ids.
            first_id: Of the first annotation; the others follow. Ids must be unique in a file.

        Returns:
            {id, image_id, category_id, segmentation, area, bbox, iscrowd, score} per segment: segmentation =
            {"size": [H, W], "counts": compressed run lengths}, a string as JSON has it, area in pixels, bbox = [x, y,
            width, height] in pixels.

        Raises:
            ValueError: As `to_coco`, ids of any size allowed.

        >>> result = PanopticResult(torch.ones(1, 2, 3, dtype=torch.int32), ((Segment(1, 0, True, 6, 0.5),),))
        >>> (annotation,) = result.to_coco_instances([42], category_ids=[90])
        >>> annotation["category_id"], annotation["bbox"], annotation["score"], annotation["segmentation"]
        (90, [0, 0, 3, 2], 0.5, {'size': [2, 3], 'counts': '06'})
        """
        if self.segmentation.ndim != 3:
            got = tuple(self.segmentation.shape)
            raise ValueError(_check.message("segmentation", "have shape (B, H, W) to become COCO annotations", got))
        one_per_picture("image_ids", image_ids, len(self))
        _check.is_int("first_id", first_id)
        found: list[dict[str, Any]] = []
        for image_id, index, picture in zip(image_ids, self.segment_index().cpu().numpy(), self.segments, strict=True):
            name = _coco.image_id(image_id)
            info = _coco.segments_info(name, index, picture, category_ids)
            counts = _rle.encode_segments(index, len(picture))
            for segment, entry, runs in zip(picture, info, counts, strict=True):
                if segment.is_thing:
                    mask = {"size": list(index.shape), "counts": runs}
                    own = {"id": first_id + len(found), "image_id": name, "segmentation": mask, "score": segment.score}
                    found.append({**entry, **own})
        return found

    @classmethod
    def from_coco(
        cls,
        annotations: Sequence[Mapping[str, Any]],
        pngs: Sequence[NDArray[np.uint8]],
        category_ids: Sequence[int],
        things: Collection[int],
    ) -> PanopticResult:
        """Return the result that COCO panoptic records and their pictures hold: the inverse of `to_coco`.

        Args:
            annotations: One record per picture, with image_id and segments_info.
            pngs: One uint8 array (H, W, 3) per picture, all of one size.
            category_ids: The data set's id of each contiguous category.
            things: Contiguous ids of the things.

        Returns:
            Segments keep their ids. Areas are counted in the pictures: the JSON's own are not read.

        Raises:
            ValueError: Record and picture disagree (a segment in one and not in the other, an unknown
                category); the text names image and segment. Or lengths or sizes differ.
            TypeError: A picture is not a uint8 array.
        """
        thing_set = thing_categories(things)
        _check.is_sequence("annotations", annotations, "be a sequence of records, one per picture")
        one_per_picture("pngs", pngs, len(annotations))
        if not annotations:
            raise ValueError(_check.message("annotations", "hold at least one record", "none"))
        read = [_coco.read_annotation(a, png, category_ids) for a, png in zip(annotations, pngs, strict=True)]
        shapes = {ids.shape for ids, _ in read}
        if len(shapes) > 1:
            remedy = "Read pictures of each size on their own."
            raise ValueError(_check.message("pngs", "have one size", sorted(shapes), remedy))
        segments = tuple(
            tuple(Segment(r.id, r.category, r.category in thing_set, r.area, 1.0, r.is_crowd) for r in records)
            for _, records in read
        )
        return cls(torch.from_numpy(np.stack([ids for ids, _ in read])), segments)


def is_result(argument: str, value: object) -> None:
    """Raise `TypeError` unless `value` is a `PanopticResult`."""
    if not isinstance(value, PanopticResult):
        remedy = "Make one with PanopticResult.from_maps."
        raise TypeError(_check.message(argument, "be a PanopticResult", type(value).__name__, remedy))


def results_of(argument: str, values: Iterable[PanopticResult]) -> list[PanopticResult]:
    """Return results as a list, or raise `TypeError`."""
    try:
        found = list(values)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor without axes or values
        raise TypeError(_check.message(argument, "be a sequence of PanopticResult", type(values).__name__)) from None
    for value in found:
        is_result(argument, value)
    return found
