"""Panoptic quality by panopticapi's rules, fast, deterministic, and mergeable over processes.

Written by hand although torchmetrics has a PanopticQuality: that one differs from panopticapi where a
prediction leaves pixels unlabelled (a clustering does, and would be flattered), knows no crowd, and takes
seconds for a picture in which one count of one integer key per pixel takes some milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lovasz_embed import _check
from lovasz_embed._ops.grouping import count_distinct
from lovasz_embed.panoptic import PanopticResult, Segment
from lovasz_embed.panoptic._maps import thing_categories

# Sums of IoU are kept in fixed point, so that no order of pictures, ranks or merges changes a bit: an error
# of at most 2^-41 per match, and room for 2^23 matches of a class.
_IOU_UNIT = 2**40


class _Row(IntEnum):
    """Rows of the counts (7, C): segments first, then pixels that are not void in the truth."""

    TP = 0
    FP = 1
    FN = 2
    IOU = 3
    SHARED = 4
    PREDICTED = 5
    TRUE = 6


class ClassQuality(NamedTuple):
    """What was counted for each class; tensors (C,), nan where the class does not occur.

    Attributes:
        iou_sum: float64, the sum of the IoU of the matches.
        tp: int64, matches.
        fp: int64, predicted segments without a match, those mostly over void or crowd left out.
        fn: int64, true segments without a match, crowd left out.
        pq: float64, iou_sum / (tp + fp/2 + fn/2).
        sq: float64, iou_sum / tp, 0 without a match.
        rq: float64, tp / (tp + fp/2 + fn/2).
        iou: float64, the semantic intersection over union, over all pixels that are not void in the truth;
            nan for a class without a pixel in the truth.
    """

    iou_sum: Tensor
    tp: Tensor
    fp: Tensor
    fn: Tensor
    pq: Tensor
    sq: Tensor
    rq: Tensor
    iou: Tensor


@dataclass(frozen=True)
class QualityResult:
    """Panoptic quality in [0, 1]: means over the classes that occur (tp + fp + fn > 0), nan where none does.

    Attributes:
        pq: Panoptic quality, the mean of the classes' sq × rq.
        sq: Segmentation quality, how well matches overlap.
        rq: Recognition quality, the F1 score of the segments.
        pq_things: `pq` over things; likewise the next two.
        sq_things: See `pq_things`.
        rq_things: See `pq_things`.
        pq_stuff: `pq` over stuff; likewise the next two.
        sq_stuff: See `pq_stuff`.
        rq_stuff: See `pq_stuff`.
        ap50: Mean over things of tp / (tp + fp + fn): the average precision at IoU 0.5 of nuclei challenges.
        miou: Mean semantic IoU of the classes that the truth holds.
        per_class: The counts and scores of each class.
    """

    pq: float
    sq: float
    rq: float
    pq_things: float
    sq_things: float
    rq_things: float
    pq_stuff: float
    sq_stuff: float
    rq_stuff: float
    ap50: float
    miou: float
    per_class: ClassQuality


def panoptic_quality(
    prediction: PanopticResult,
    truth: PanopticResult,
    *,
    num_classes: int | None = None,
    things: Collection[int] | None = None,
) -> QualityResult:
    r"""Return the panoptic quality of a batch of predictions.

    .. math:: PQ_c = \frac{\sum_{(p, t) \in TP_c} IoU(p, t)}{|TP_c| + |FP_c| / 2 + |FN_c| / 2}

    A predicted and a true segment of one category match when IoU > 0.5, the union counted without the
    predicted pixels that are void in the truth. A crowd segment matches nothing and is not missed. A
    prediction without a match is forgiven when more than half of it lies over void and crowd of its category.

    Args:
        prediction: B pictures.
        truth: The same B pictures, of the same size.
        num_classes: C, the length of the per-class tensors; None takes the largest category in use.
        things: Category ids that are things; None takes them from the segments.

    Returns:
        Fractions in [0, 1]; counts are taken over the whole batch before they are divided.

    Raises:
        ValueError: Sizes, devices or numbers of pictures differ; a map and its segments disagree; a category
            is `num_classes` or above; or, without `things`, one is a thing here and stuff there.

    Notes:
        To the letter of panopticapi's evaluation.py, but for two cases that its own data never holds: of
        several crowd segments of one category it looks at the last one, here all count; and areas are counted
        in the map, where it believes the truth's JSON. Void pixels of the prediction count against it, as
        there. Time and memory are linear in pixels.

    References:
        Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4; https://github.com/cocodataset/panopticapi

    >>> semantic, instance = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]])
    >>> truth = PanopticResult.from_maps(semantic, instance, things={1})
    >>> quality = panoptic_quality(truth, truth)
    >>> quality.pq, quality.pq_things, quality.miou
    (1.0, 1.0, 1.0)
    """
    _check_results(prediction, truth)
    segments = [segment for picture in (*prediction.segments, *truth.segments) for segment in picture]
    if num_classes is None:
        num_classes = max((int(segment.category) + 1 for segment in segments), default=1)
    if things is None:
        things = _things_of(segments)
    metric = PanopticQuality(num_classes, things)
    metric.counts += _count(prediction, truth, num_classes)
    return metric.compute()


class PanopticQuality(nn.Module):
    """Panoptic quality over many pictures, added batch by batch; the rules are those of `panoptic_quality`.

    Args:
        num_classes: C; categories are 0..C-1.
        things: Category ids that are things; the segments' own `is_thing` is not looked at.
        local: Whether `update` counts the pictures of this process alone, under torch.distributed too; `gather` adds
            up over all of them, once.

    Raises:
        ValueError: `num_classes` is below 1, or a thing is outside 0..C-1.
        TypeError: `things` is no collection of integers, or `local` is neither True nor False.

    Notes:
        The state is one int64 buffer, so it travels in `state_dict` and adds up exactly: two ranks equal one,
        bit for bit. Under torch.distributed each `update` all-reduces the batch's counts before it adds them,
        so that every rank holds the whole at any time. All ranks must update equally often, a rank that has
        run out of pictures with an empty batch; with `local` each as often as it has pictures. With NCCL the module
        must be on the rank's GPU.

    >>> semantic, instance = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]])
    >>> truth = PanopticResult.from_maps(semantic, instance, things={1})
    >>> metric = PanopticQuality(num_classes=2, things={1})
    >>> metric
    PanopticQuality(num_classes=2, things=[1])
    >>> metric.update(truth, truth)
    >>> metric.compute().pq_stuff
    1.0
    """

    counts: Tensor

    def __init__(self, num_classes: int, things: Collection[int], *, local: bool = False) -> None:
        super().__init__()
        _check.is_bool("local", local)
        self.local = local
        _check.is_table("num_classes", num_classes, len(_Row))
        self.num_classes = num_classes
        self.things = thing_categories(things)
        stray = sorted(c for c in self.things if not 0 <= c < num_classes)
        if stray:
            raise ValueError(_check.message("things", f"be categories from 0 to {num_classes - 1}", stray))
        self.register_buffer("counts", torch.zeros(len(_Row), num_classes, dtype=torch.int64))

    def update(self, prediction: PanopticResult, truth: PanopticResult) -> None:
        """Add a batch; under torch.distributed, the batches of all ranks, unless `local`.

        Raises:
            TypeError: As `panoptic_quality`.
            ValueError: As `panoptic_quality`.
        """
        counts = _count(prediction, truth, self.num_classes).to(self.counts.device)
        if not self.local and dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        self.counts += counts

    def gather(self) -> None:
        """Add what `local` metrics of all processes have counted; each then holds the whole. All must call it, once.

        Raises:
            ValueError: The metric is not `local`: it holds the whole already.
        """
        if not self.local:
            remedy = "Without local, update adds up over all processes."
            raise ValueError(_check.message("local", "be True to gather", self.local, remedy))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)

    def merge(self, other: PanopticQuality) -> None:
        """Add what another metric has counted: of another process that is not under torch.distributed, say.

        Raises:
            TypeError: It is no `PanopticQuality`.
            ValueError: The classes or the things differ.
        """
        _check.is_a("other", other, PanopticQuality, "a PanopticQuality")
        mine, others = (self.num_classes, self.things), (other.num_classes, other.things)
        if mine != others:
            raise ValueError(_check.message("other", f"have the classes and things of {self}", other))
        self.counts += other.counts.to(self.counts.device)

    def reset(self) -> None:
        """Forget everything."""
        self.counts.zero_()

    def compute(self) -> QualityResult:
        """Return the quality of all pictures added so far."""
        return _quality(self.counts, self.things)

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        local = ", local=True" if self.local else ""
        return f"num_classes={self.num_classes}, things={sorted(self.things)}{local}"


def _quality(counts: Tensor, things: Collection[int]) -> QualityResult:
    """Return what counts (rows, C) say, C classes of which `things` are things."""
    counts = counts.cpu()
    tp, fp, fn = counts[_Row.TP], counts[_Row.FP], counts[_Row.FN]
    iou_sum = counts[_Row.IOU].double() / _IOU_UNIT
    size = tp + (fp + fn).double() / 2
    shared, true = counts[_Row.SHARED], counts[_Row.TRUE]
    iou = shared.double() / torch.where(true > 0, counts[_Row.PREDICTED] + true - shared, 0)
    occurs = tp + fp + fn > 0
    matched_iou = (iou_sum / tp.clamp(min=1)).masked_fill(~occurs, torch.nan)
    per_class = ClassQuality(iou_sum, tp, fp, fn, iou_sum / size, matched_iou, tp / size, iou)

    is_thing = torch.zeros(counts.shape[1], dtype=torch.bool)
    is_thing[sorted(things)] = True

    def averages(group: Tensor) -> tuple[float, float, float]:
        return _mean(per_class.pq[group]), _mean(per_class.sq[group]), _mean(per_class.rq[group])

    pq, sq, rq = averages(torch.ones_like(is_thing))
    pq_things, sq_things, rq_things = averages(is_thing)
    pq_stuff, sq_stuff, rq_stuff = averages(~is_thing)
    return QualityResult(
        pq=pq,
        sq=sq,
        rq=rq,
        pq_things=pq_things,
        sq_things=sq_things,
        rq_things=rq_things,
        pq_stuff=pq_stuff,
        sq_stuff=sq_stuff,
        rq_stuff=rq_stuff,
        ap50=_mean((tp.double() / (tp + fp + fn))[is_thing]),
        miou=_mean(iou),
        per_class=per_class,
    )


def _mean(scores: Tensor) -> float:
    """Return the mean of the classes that occur, nan where there is none."""
    return float(scores.nanmean())


def _things_of(segments: list[Segment]) -> set[int]:
    things = {segment.category for segment in segments if segment.is_thing}
    both = things & {segment.category for segment in segments if not segment.is_thing}
    if both:
        rule = "be given where a category is a thing in one segment and stuff in another"
        raise ValueError(_check.message("things", rule, f"None and category {min(both)}"))
    return things


def _check_results(prediction: PanopticResult, truth: PanopticResult) -> None:
    for name, result in (("prediction", prediction), ("truth", truth)):
        _check.is_a(name, result, PanopticResult, "a PanopticResult")


def _count(prediction: PanopticResult, truth: PanopticResult, num_classes: int) -> Tensor:
    """Return the counts (rows, C) of a batch, on the CPU."""
    _check_results(prediction, truth)
    shape = tuple(truth.segmentation.shape)
    _check.same_shape("prediction", prediction.segmentation, shape, "truth")
    _check.same_device("prediction", prediction.segmentation, truth.segmentation.device, "truth")
    for name, result in (("prediction", prediction), ("truth", truth)):
        highest = max((s.category for picture in result.segments for s in picture), default=0)
        if highest >= num_classes:
            raise ValueError(_check.message(name, f"hold categories below {num_classes}", highest))
    counts = torch.zeros(len(_Row), num_classes, dtype=torch.int64)
    maps = zip(prediction.segment_index(), truth.segment_index(), strict=True)
    for row, (predicted, true) in enumerate(maps):
        _count_picture(counts, predicted, true, prediction.segments[row], truth.segments[row], row)
    return counts


def _count_picture(
    counts: Tensor,
    predicted: Tensor,
    true: Tensor,
    predicted_segments: tuple[Segment, ...],
    true_segments: tuple[Segment, ...],
    row: int,
) -> None:
    """Add one picture to `counts`; `predicted` and `true` number its segments from 1, 0 = void."""
    width = len(predicted_segments) + 1
    key, pixels = count_distinct(true * width + predicted, (len(true_segments) + 1) * width)
    # From here on every tensor is as long as the segments or the pairs of them that meet: small, on the CPU.
    key, pixels = key.cpu(), pixels.cpu()
    t, p = key // width, key % width
    true_category = torch.tensor([-1, *(s.category for s in true_segments)])
    true_crowd = torch.tensor([False, *(s.is_crowd for s in true_segments)])
    predicted_category = torch.tensor([-1, *(s.category for s in predicted_segments)])
    true_area = _sums(t, pixels, len(true_category))
    predicted_area = _sums(p, pixels, len(predicted_category))
    _check_areas("truth", true_segments, true_area, row)
    _check_areas("prediction", predicted_segments, predicted_area, row)

    void = _sums(p, pixels * (t == 0), width)
    same = (true_category[t] == predicted_category[p]) & (t > 0) & (p > 0)
    union = true_area[t] + predicted_area[p] - pixels - void[p]
    # At most one pair of a segment passes: pairs of one segment are disjoint parts of it.
    match = same & ~true_crowd[t] & (2 * pixels > union)
    iou = (pixels[match].double() / union[match] * _IOU_UNIT).round().long()
    matched_category = true_category[t[match]]
    counts[_Row.TP].index_add_(0, matched_category, torch.ones_like(iou))
    counts[_Row.IOU].index_add_(0, matched_category, iou)

    missed = ~true_crowd
    missed[0] = False
    missed[t[match]] = False
    counts[_Row.FN].index_add_(0, true_category[missed], torch.ones_like(true_category[missed]))

    forgiven = void + _sums(p, pixels * (same & true_crowd[t]), width)
    wrong = 2 * forgiven <= predicted_area
    wrong[0] = False
    wrong[p[match]] = False
    counts[_Row.FP].index_add_(0, predicted_category[wrong], torch.ones_like(predicted_category[wrong]))

    labelled, voted = t > 0, (t > 0) & (p > 0)
    counts[_Row.TRUE].index_add_(0, true_category[t[labelled]], pixels[labelled])
    counts[_Row.PREDICTED].index_add_(0, predicted_category[p[voted]], pixels[voted])
    counts[_Row.SHARED].index_add_(0, true_category[t[same]], pixels[same])


def _sums(index: Tensor, values: Tensor, length: int) -> Tensor:
    return torch.zeros(length, dtype=torch.int64).index_add_(0, index, values)


def _check_areas(argument: str, segments: tuple[Segment, ...], areas: Tensor, row: int) -> None:
    for segment, area in zip(segments, areas[1:].tolist(), strict=True):
        if segment.area != area or area == 0:
            rule = f"have segments with the pixels that their areas say (picture {row}, segment {segment.id})"
            raise ValueError(_check.message(argument, rule, f"{area} pixels and area {segment.area}"))
