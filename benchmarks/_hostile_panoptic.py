"""Calls of clustering, panoptic results, their quality, and tracking."""

from __future__ import annotations

import copy
import inspect
import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from _hostile import SIDES, Call, Hostile
from _hostile_oracle import entry, is_plain, moderate, require, same
from torch import Tensor

from lovasz_embed import (
    PanopticQuality,
    PanopticResult,
    Segment,
    Tracker,
    assemble,
    cluster_embeddings,
    estimate_radius,
    nearest_class_mean,
    panoptic_quality,
    segment,
    segment_means,
    segment_tiles,
    track,
)
from lovasz_embed.panoptic import Window
from lovasz_embed.quality import Frame, TemporalStability, temporal_stability

__all__ = ["a_result", "result_like"]

_THINGS = ({1}, {1, 2}, set(), [0, 1, 2], (1,), frozenset({0}))


# Clustering


def _scene(h: Hostile) -> tuple[Tensor, Tensor, int]:
    """Return an embedding, a mask or labels, and the embedding's width."""
    shape, width = (h.batch(), *h.spatial()), h.whole(1, 4)
    labels = h.labels(shape, (0, 1)) if h.chance(0.5) else h.labels(shape, h.pick(((-1, 0, 1), (-2, 7, 100_000), (0,))))
    return h.floats((shape[0], width, *shape[1:])), labels, width


def _cluster(h: Hostile) -> Call:
    embedding, labels, width = _scene(h)
    method = h.pick(("margin", "margin", "seeded", "density"))
    options: dict[str, Any] = {"method": method, **h.options(min_size=(1, 2, 5), connected=(True, False))}
    if method == "margin":
        options |= {"radius": h.pick((1.0, 0.1, 2, 50.0)), **h.options(reach=(0.5, 2.0, None))}
    elif method == "seeded":
        shape = labels.shape
        options["seeds"] = h.floats(shape).detach().abs().float().clamp(0, 1)
        if h.chance(0.5):
            options["radius"] = h.pick((1.0, 0.3))
        else:
            own = (shape[0], h.pick((1, width)), *shape[1:])
            options["bandwidth"] = h.floats(own).detach().float().abs() + 0.25
        options |= h.options(min_seed=(0.0, 0.5, 1.0, None), min_fresh=(0.0, 0.5, None))
    else:
        options |= h.options(radius=(1.0, 10.0, None), reach=(1.0, None))
    args = [embedding, labels]
    if h.chance(0.3):
        args = [h.array(embedding), h.array(labels)]
        options = {name: h.array(v) if isinstance(v, Tensor) else v for name, v in options.items()}
    return Call(cluster_embeddings, args, options)


def _check_clusters(call: Call, result: Any, h: Hostile) -> None:
    labels = result.labels
    embedding, given = (
        torch.from_numpy(v.astype(v.dtype.newbyteorder("="))) if isinstance(v, np.ndarray) else v for v in call.args
    )
    require(labels.dtype == torch.int32 and labels.shape == given.shape, "a cluster for every pixel")
    pictures = len(labels)
    columns = (result.centres, result.sizes, result.scores, result.classes, result.margin_ok, result.invalid)
    require(all(len(column) == pictures for column in columns), "one entry per picture")
    least = call.kwargs.get("min_size", 1)
    for b in range(pictures):
        own, count = labels[b], len(result.sizes[b])
        require(result.centres[b].shape == (count, embedding.shape[1]), "a centre per cluster")
        found = own.flatten().long().bincount(minlength=count + 1)
        require(len(found) == count + 1, "labels are numbered 1 ... K")
        require(torch.equal(found[1:], result.sizes[b]), "sizes are the pixels of the clusters")
        require(bool((result.sizes[b] >= least).all()), "no cluster is below min_size")
        scores = result.scores[b]
        require(bool(((scores >= 0) & (scores <= 1)).all()), "scores lie in [0, 1]")
        if given.dtype == torch.bool:
            require(not bool((own[~given[b]] > 0).any()), "what is not in the mask is in no cluster")
        elif given.dtype not in (torch.uint16, torch.uint32, torch.uint64):
            inside = own > 0
            classes = result.classes[b][(own[inside].long() - 1)]
            require(torch.equal(classes, given[b][inside].long()), "clusters do not cross classes")
    if pictures > 1 and h.chance(0.15):
        b = h.whole(0, pictures - 1)
        cut = {n: v[b : b + 1] if isinstance(v, (Tensor, np.ndarray)) and n in ("seeds", "bandwidth") else v
               for n, v in call.kwargs.items()}  # fmt: skip
        alone = cluster_embeddings(embedding[b : b + 1], given[b : b + 1], **cut)
        require(same(alone.labels[0], labels[b]), "a picture is clustered by itself")


entry("cluster_embeddings", _check_clusters)(_cluster)


@entry("Clusters.numpy")
def _(h: Hostile) -> Call:
    call = _cluster(h)
    return Call(call.run().numpy, [])


def _check_radius(call: Call, result: Any, h: Hostile) -> None:
    require(result.radius > 0 and math.isfinite(result.radius), "the radius is a finite number above 0")
    require(result.clusters >= 1 and result.spread >= 0, "it rests on clusters")
    cluster_embeddings(*call.args, radius=result.radius)


# A few pixels may all be apart.
@entry("estimate_radius", _check_radius, allows=((ValueError, "lie together"),))
def _(h: Hostile) -> Call:
    shape, width = (h.whole(1, 2), h.whole(2, 5), h.whole(3, 6)), h.whole(1, 3)
    embedding = h.floats((shape[0], width, *shape[1:]))
    labels: Any = torch.ones(shape, dtype=torch.bool) if h.chance(0.7) else torch.zeros(shape, dtype=torch.int64)
    if h.chance(0.3):
        return Call(estimate_radius, [h.array(embedding), h.array(labels)])
    return Call(estimate_radius, [embedding, labels])


# Panoptic results


def a_result(h: Hostile, shape: tuple[int, ...] | None = None, classes: int = 3) -> PanopticResult:
    """Return a valid result, made by one of the ways there are."""
    shape = shape or (h.batch(), *h.spatial())
    semantic = h.labels(shape, [*range(classes), 255], dtype=torch.int64).detach()
    instance = h.labels(shape, h.pick(((0, 1, 2), (1,), (0, 4, 70_000))), dtype=torch.int64)
    crowd = h.labels(shape, (0, 0, 0, 1), dtype=torch.bool) if h.chance(0.2) else None
    things = [c for c in range(classes) if c % 2] or [0]
    result = PanopticResult.from_maps(semantic, instance, things=things, crowd=crowd)
    if h.chance(0.2) and result.segmentation.numel():  # ids with gaps
        maps = torch.where(result.segmentation > 0, 3 * result.segmentation + 5, 0)
        own = tuple(
            tuple(Segment(3 * s.id + 5, s.category, s.is_thing, s.area, s.score, s.is_crowd) for s in picture)
            for picture in result.segments
        )
        return PanopticResult(maps, own)
    return result


def result_like(h: Hostile, result: PanopticResult) -> PanopticResult:
    """Return the same result, or another of the same size."""
    return result if h.chance(0.2) else a_result(h, tuple(result.segmentation.shape))


def _check_result(result: PanopticResult) -> None:
    """Check that the map and the segments agree."""
    index = result.segment_index()
    require(result.segmentation.dtype == torch.int32, "the map is int32")
    for own, segments in zip(index, result.segments, strict=True):
        found = own.flatten().bincount(minlength=len(segments) + 1)[1:].tolist()
        require(found == [s.area for s in segments], "areas are those of the map")
        require(all(s.area > 0 for s in segments), "no segment is empty")
        require(all(0 <= s.score <= 1 for s in segments), "scores lie in [0, 1]")


def _check_from_maps(call: Call, result: PanopticResult, h: Hostile) -> None:
    _check_result(result)
    if not isinstance(call.kwargs["things"], (list, tuple, set, frozenset)):
        return  # an iterator is at its end now
    semantic, instance = call.args
    things, void = frozenset(int(c) for c in call.kwargs["things"]), call.kwargs.get("ignore_index", 255)
    if not (is_plain(semantic) and semantic.dtype != torch.bool):
        return
    categories, ids = result.semantic(ignore_index=-1), semantic.long()
    expected = torch.where(ids == void, -1, ids) if abs(void) < 2**63 else ids
    thing = torch.isin(expected, torch.tensor(sorted(c for c in things if abs(c) < 2**31), dtype=torch.int64))
    crowd = call.kwargs.get("crowd")
    none = thing & (instance.long() == 0) & (True if crowd is None else ~crowd)
    require(torch.equal(categories, torch.where(none, -1, expected)), "every pixel keeps its category")
    if h.chance(0.2):
        again = PanopticResult.from_maps(categories, result.instance(), things=things, ignore_index=-1)
        require(crowd is not None or torch.equal(again.segmentation, _renumbered(result)), "maps are read back")


def _renumbered(result: PanopticResult) -> Tensor:
    return result.segment_index().int()


@entry("PanopticResult.from_maps", _check_from_maps)
def _(h: Hostile) -> Call:
    shape = (h.batch(), *h.spatial())
    dtype = h.pick((torch.int64, torch.int64, torch.uint8, torch.int32, torch.uint16))
    options: dict[str, Any] = {"things": h.pick(_THINGS), **h.options(ignore_index=(255, -1, 2, 2**40))}
    if h.chance(0.3):
        options["crowd"] = h.labels(shape, (0, 1), dtype=torch.bool)
    semantic = h.labels(shape, (0, 1, 2) if options.get("ignore_index", 255) != 255 else (0, 1, 2, 255), dtype=dtype)
    instance = h.labels(shape, h.pick(((0, 1, 2), (0,), (3, 9, 2**40), (0, 2**31 - 1))))
    return Call(PanopticResult.from_maps, [semantic, instance], options)


_SEGMENTS = ("segments", "segmentation")


@entry("PanopticResult", names=(*_SEGMENTS, "truth", "prediction"))
def _(h: Hostile) -> Call:
    result = a_result(h)
    segments = result.segments
    if h.chance(0.3):
        segments = h.pick((_with_a_wrong_segment(h, segments), segments[:-1], [*segments], segments))
        call = Call(_rebuilt, [result.segmentation, segments])
        call.spoilt.append("a segment")
        return call
    return Call(_rebuilt, [result.segmentation, segments])


def _with_a_wrong_segment(h: Hostile, segments: Any) -> Any:
    if not segments or not segments[0]:
        return segments
    first = segments[0][0]
    values = {name: getattr(first, name) for name in ("id", "category", "is_thing", "area", "score", "is_crowd")}
    name = h.pick(sorted(values))
    values[name], _ = h.spoilt(values[name])
    return ((Segment(**values), *segments[0][1:]), *segments[1:])


def _rebuilt(segmentation: Any, segments: Any) -> tuple[Any, ...]:
    """Make a result and use it: all that reads it works, or says what is wrong with it."""
    result = PanopticResult(segmentation, segments)
    index, text = result.segment_index(), repr(result)
    used = result.semantic(-7), result.instance(), [len(picture) for picture in result], result.to_transformers()
    quality = panoptic_quality(result, result, things=()) if _all_small(result) else None
    return index, text, used, quality


def _all_small(result: PanopticResult) -> bool:
    return all(0 <= s.category < 1000 for picture in result.segments for s in picture)


# What torch says of a device that there is not is passed on.
@entry("PanopticResult.to", allows=((RuntimeError, ""), (TypeError, ""), (ValueError, ""), (AssertionError, "")))
def _(h: Hostile) -> Call:
    return Call(a_result(h).to, [h.pick(("cpu", torch.device("cpu")))], {}, ["device"])


@entry("PanopticResult.segment_index")
def _(h: Hostile) -> Call:
    return Call(a_result(h).segment_index, [])


@entry("PanopticResult.semantic")
def _(h: Hostile) -> Call:
    return Call(a_result(h).semantic, [], h.options(ignore_index=(255, -1, 1000)))


@entry("PanopticResult.instance")
def _(h: Hostile) -> Call:
    return Call(a_result(h).instance, [])


@entry("PanopticResult.__getitem__", names=("picture",), allows=((IndexError, "range"),))
def _(h: Hostile) -> Call:
    result = a_result(h)
    return Call(result.__getitem__, [h.whole(-len(result), len(result) - 1) if len(result) else 0], {}, ["index"])


@entry("PanopticResult.__eq__")
def _(h: Hostile) -> Call:
    result = a_result(h)
    return Call(result.__eq__, [result_like(h, result)])


@entry("PanopticResult.from_pictures", names=_SEGMENTS)
def _(h: Hostile) -> Call:
    first = a_result(h)
    return Call(PanopticResult.from_pictures, [[first, *(result_like(h, first) for _ in range(h.whole(0, 2)))]])


@entry("PanopticResult.to_transformers")
def _(h: Hostile) -> Call:
    return Call(a_result(h).to_transformers, [])


@entry(
    "PanopticResult.from_transformers", lambda call, result, h: _check_result(result), names=(*_SEGMENTS, "pictures")
)
def _(h: Hostile) -> Call:
    outputs = a_result(h, (h.whole(1, 2), *h.spatial())).to_transformers()
    call = Call(PanopticResult.from_transformers, [outputs], {"things": h.pick(_THINGS)})
    return _spoil_records(h, call, [*outputs, *(info for output in outputs for info in output["segments_info"])])


def _spoil_records(h: Hostile, call: Call, records: list[dict[str, Any]]) -> Call:
    if records and h.chance(0.3):
        record = h.pick(records)
        key = h.pick(sorted(record))
        if h.chance(0.3):
            del record[key]
        else:
            record[key], _ = h.spoilt(record[key])
        call.spoilt.append(f"record {key}")
    return call


@entry("PanopticResult.to_coco", names=_SEGMENTS)
def _(h: Hostile) -> Call:
    result = a_result(h, (h.batch(), h.pick(SIDES), h.pick(SIDES)))
    ids = [h.pick((7, "x", 123456)) for _ in range(len(result))]
    return Call(result.to_coco, [ids], h.options(category_ids=([1, 2, 3], None, (90, 5, 0))))


@entry("PanopticResult.to_coco_instances", names=_SEGMENTS)
def _(h: Hostile) -> Call:
    result = a_result(h, (h.batch(), h.pick(SIDES), h.pick(SIDES)))
    options = h.options(category_ids=([1, 2, 3], None), first_id=(1, 100))
    return Call(result.to_coco_instances, [list(range(len(result)))], options)


@entry("PanopticResult.from_coco", lambda call, result, h: _check_result(result), names=_SEGMENTS)
def _(h: Hostile) -> Call:
    result = a_result(h, (h.whole(1, 2), h.whole(0, 4), h.whole(0, 4)))
    read = copy.deepcopy(result.to_coco(list(range(len(result))), [10, 11, 12]))
    records, pngs = [record for record, _ in read], [png for _, png in read]
    call = Call(PanopticResult.from_coco, [records, pngs, [10, 11, 12], h.pick(_THINGS)])
    return _spoil_records(h, call, [*records, *(info for record in records for info in record["segments_info"])])


def _check_assembled(call: Call, result: PanopticResult, h: Hostile) -> None:
    _check_result(result)
    if not isinstance(call.kwargs["things"], (list, tuple, set, frozenset)):
        return  # an iterator is at its end now
    thing, stuff = call.kwargs.get("min_thing_area", 0), call.kwargs.get("min_stuff_area", 0)
    for own in result.segments:
        require(all(s.area >= (thing if s.is_thing else stuff) for s in own), "no segment is too small")
        things = {int(c) for c in call.kwargs["things"]}
        require(all(s.is_thing == (s.category in things) for s in own), "things are things")


@entry("assemble", _check_assembled)
def _(h: Hostile) -> Call:
    shape = (h.batch(), *h.spatial())
    clusters = h.labels(shape, h.pick(((0, 1, 2), (0,), (0, 1, 300), (1, 2**40))))
    semantic = h.labels(shape, (0, 1, 2, 255), dtype=h.pick((torch.int64, torch.uint8, torch.int32)))
    options = {"things": h.pick(_THINGS), **h.options(min_thing_area=(0, 2, 0.5), min_stuff_area=(0, 3))}
    if h.chance(0.3):
        highest = int(clusters.long().max()) if clusters.numel() else 0
        if highest <= 300:
            options["scores"] = [torch.rand(highest + h.whole(0, 1)) for _ in range(shape[0])]
    return Call(assemble, [semantic, clusters], options)


def _segmenting(h: Hostile, width: int) -> dict[str, Any]:
    options = h.options(
        reach=(0.5, 2.0, None), connected=(True, False), vote=(True, False), min_thing_area=(0, 2, 1.5),
        min_stuff_area=(0, 3), reject_radius=(0.5, 3.0, None), ignore_index=(255, -1, 7),
    )  # fmt: skip
    if h.chance(0.3):
        options["category_dims"] = h.pick(((0,), [width - 1], tuple(range(width))))
    if h.chance(0.3):
        options["instance_dims"] = h.pick(((0,), [width - 1], tuple(range(width))))
    return {"things": h.pick(_THINGS), "radius": h.pick((1.0, 0.2, 30)), **options}


def _check_segmented(call: Call, result: PanopticResult, h: Hostile) -> None:
    _check_result(result)
    embedding, means = call.args
    require(result.segmentation.shape == (embedding.shape[0], *embedding.shape[2:]), "a segment for every pixel")
    listed = isinstance(call.kwargs["things"], (list, tuple, set, frozenset))
    if not h.chance(0.2) or not is_plain(embedding) or not listed:
        return
    options = {"ignore_index": 255, **call.kwargs}
    nearest = {n: options[n] for n in ("offset", "reject_radius") if n in options}
    semantic = nearest_class_mean(
        embedding, means, dims=options.get("category_dims"), ignore_index=options["ignore_index"], **nearest
    )
    things = sorted({int(c) for c in options["things"]})
    is_thing = torch.isin(semantic, torch.tensor(things, dtype=torch.int64)) & (semantic != options["ignore_index"])
    dims = options.get("instance_dims")
    seen = embedding if dims is None else embedding[:, list(dims)]
    clusters = cluster_embeddings(
        seen, is_thing if options.get("vote") else torch.where(is_thing, semantic, -1), radius=options["radius"],
        reach=options.get("reach"), connected=options.get("connected", False),
        min_size=max(int(options.get("min_thing_area", 0)), 1),
    )  # fmt: skip
    areas = {n: options[n] for n in ("min_thing_area", "min_stuff_area", "ignore_index") if n in options}
    expected = assemble(semantic, clusters.labels, things=things, scores=clusters.scores, **areas)
    require(same(expected.segmentation, result.segmentation), "it is nearest mean, clustering and assembly in turn")
    require(same(expected.segments, result.segments), "its segments are those of the three in turn")


@entry("segment", _check_segmented, names=("means", "dims"))
def _(h: Hostile) -> Call:
    shape, width, classes = (h.batch(), *h.spatial()), h.whole(1, 4), h.whole(1, 4)
    options = _segmenting(h, width)
    if h.chance(0.2):
        options["offset"] = h.floats((classes,))
    means = h.floats((classes, width)).detach()
    if h.chance(0.2):
        means = means.clone()
        means[h.whole(0, classes - 1)] = math.nan
    return Call(segment, [h.floats((shape[0], width, *shape[1:])), means], options)


@entry(
    "segment_tiles",
    names=("means", "context", *inspect.signature(segment_tiles).parameters),
    allows=((TypeError, "is not callable"), (TypeError, "argument")),
)
def _(h: Hostile) -> Call:
    size, width, classes = (h.whole(0, 9), h.whole(0, 9)), h.whole(1, 3), h.whole(1, 3)
    whole = torch.randn(1, width, *size)
    options = {n: v for n, v in _segmenting(h, width).items() if n != "connected"}
    step = h.pick((1, 1, 2))
    options |= {"tile": step * h.whole(1, 3), "overlap": step * h.whole(0, 2), "step": step}
    options |= h.options(at_once=(0, 0, 10, None))
    if h.chance(0.3):
        options["out"] = np.zeros(size, np.int32)
    embed = _Windows(whole)
    return Call(_tiled, [embed, size, torch.randn(classes, width)], options)


class _Windows:
    """An embedding that is read by windows."""

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole

    def __call__(self, window: Window) -> Tensor:
        return self.whole[..., window.rows, window.columns]


def _tiled(embed: Any, size: Any, class_means: Any, **options: Any) -> PanopticResult:
    """Segment tiles, and leave what is written to as it was."""
    if isinstance(options.get("out"), np.ndarray):
        options["out"] = options["out"].copy()
    result = segment_tiles(embed, size, class_means, **options)
    _check_result(result)
    return result


# Quality


def _check_quality(call: Call, result: Any, h: Hostile) -> None:
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff", "ap50", "miou"):
        value = getattr(result, name)
        require(math.isnan(value) or 0 <= value <= 1 + 1e-9, f"{name} lies in [0, 1]")
    prediction, truth = call.args
    tp, fp, fn, iou = _count_by_hand(prediction, truth, len(result.per_class.tp))
    require(result.per_class.tp.tolist() == tp, "true positives are those counted by hand")
    require(result.per_class.fp.tolist() == fp, "false positives are those counted by hand")
    require(result.per_class.fn.tolist() == fn, "false negatives are those counted by hand")
    # Sums of IoU are kept in steps of 2^-40.
    require(all(abs(a - b) < 1e-9 for a, b in zip(result.per_class.iou_sum.tolist(), iou, strict=True)), "IoU by hand")


def _count_by_hand(
    prediction: PanopticResult, truth: PanopticResult, classes: int
) -> tuple[list[int], list[int], list[int], list[float]]:
    """Count matches pixel by pixel, in plain Python: the rules of panopticapi."""
    tp, fp, fn, iou = [0] * classes, [0] * classes, [0] * classes, [0.0] * classes
    for found, true in zip(prediction, truth, strict=True):
        pairs = Counter(zip(found.segmentation.flatten().tolist(), true.segmentation.flatten().tolist(), strict=True))
        predicted, real = ({s.id: s for s in own.segments[0]} for own in (found, true))
        matched_p, matched_t = set(), set()
        for (p, t), pixels in pairs.items():
            if p and t and not real[t].is_crowd and real[t].category == predicted[p].category:
                union = predicted[p].area + real[t].area - pixels - pairs.get((p, 0), 0)
                if 2 * pixels > union:
                    tp[real[t].category] += 1
                    iou[real[t].category] += pixels / union
                    matched_p.add(p)
                    matched_t.add(t)
        for t, own in real.items():
            fn[own.category] += t not in matched_t and not own.is_crowd
        for p, own in predicted.items():
            crowd = [t for t, s in real.items() if s.is_crowd and s.category == own.category]
            forgiven = pairs.get((p, 0), 0) + sum(pairs.get((p, t), 0) for t in crowd)
            fp[own.category] += p not in matched_p and 2 * forgiven <= own.area
    return tp, fp, fn, iou


@entry("panoptic_quality", _check_quality, names=_SEGMENTS)
def _(h: Hostile) -> Call:
    truth = a_result(h)
    options = {"num_classes": h.pick((3, 4)), "things": h.pick(({1}, [1, 2], ()))} if h.chance(0.5) else {}
    return Call(panoptic_quality, [result_like(h, truth), truth], options)


@entry("PanopticQuality")
def _(h: Hostile) -> Call:
    return Call(PanopticQuality, [h.whole(3, 5), h.pick(_THINGS)], h.options(local=(True, False)))


def _metric(h: Hostile) -> PanopticQuality:
    metric = PanopticQuality(3, {1})
    if h.chance(0.5):
        truth = a_result(h)
        metric.update(result_like(h, truth), truth)
    return metric


@entry("PanopticQuality.update", names=("things", "num_classes"))
def _(h: Hostile) -> Call:
    truth = a_result(h)
    return Call(_metric(h).update, [result_like(h, truth), truth])


@entry("PanopticQuality.merge")
def _(h: Hostile) -> Call:
    return Call(_metric(h).merge, [_metric(h)])


@entry("PanopticQuality.gather", names=("local",))
def _(h: Hostile) -> Call:
    metric = PanopticQuality(3, {1}, local=h.chance(0.5))
    call = Call(metric.gather, [])
    if not metric.local:
        call.spoilt.append("not local")
    return call


@entry("PanopticQuality.compute")
def _(h: Hostile) -> Call:
    return Call(_metric(h).compute, [])


@entry("PanopticQuality.reset")
def _(h: Hostile) -> Call:
    return Call(_metric(h).reset, [])


def _frame(h: Hostile, shape: tuple[int, ...], width: int, *, segments: bool) -> Frame:
    ids = h.pick(((0, 1, 2), (1,), (0,), (5, 2**40)))
    maps = [h.labels(shape, (0, 1, 255), dtype=torch.int64) for _ in range(2)]
    last = h.labels(shape, (0, 1, 2)) if segments else None
    return Frame(h.floats((width, *shape)), *maps, h.labels(shape, ids), last)


def _spoil_frame(h: Hostile, call: Call, frame: Frame) -> Frame:
    if not h.chance(0.2):
        return frame
    name = h.pick(frame._fields)
    new, how = h.spoilt(getattr(frame, name))
    call.spoilt.append(f"{name} {how}")
    return frame._replace(**{name: new})


_FRAME = ("before", "after", "points", "categories", "semantic", "instance", "segments")


@entry("TemporalStability")
def _(h: Hostile) -> Call:
    return Call(TemporalStability, [], h.options(ignore_index=(255, 0, -1)))


@entry("TemporalStability.update", names=_FRAME)
def _(h: Hostile) -> Call:
    shape, width, segments = h.spatial((0, 3)), h.whole(1, 3), h.chance(0.5)
    stability = TemporalStability()
    call = Call(stability.update, [])
    frames = [_frame(h, shape, width, segments=segments) for _ in range(2)]
    call.args = [_spoil_frame(h, call, frame) for frame in frames]
    call.kwargs = h.options(shift=(None, (0,) * len(shape), tuple(range(-1, len(shape) - 1)), (9,) * len(shape)))
    return call


@entry("TemporalStability.compute")
def _(h: Hostile) -> Call:
    shape, stability = h.spatial(), TemporalStability()
    if h.chance(0.7):
        stability.update(*(_frame(h, shape, 2, segments=True) for _ in range(2)))
    return Call(stability.compute, [])


@entry("TemporalStability.reset")
def _(h: Hostile) -> Call:
    return Call(TemporalStability().reset, [])


def _check_stability(call: Call, result: Any, h: Hostile) -> None:
    for name in ("persistence", "kept", "tracked", "flicker"):
        value = getattr(result, name)
        require(math.isnan(value) or 0 <= value <= 1, f"{name} lies in [0, 1]")
    require(math.isnan(result.drift) or result.drift >= 0, "drift is 0 or above")


@entry("temporal_stability", _check_stability, names=_FRAME)
def _(h: Hostile) -> Call:
    shape, width = h.spatial(), h.whole(1, 3)
    frames = [_frame(h, shape, width, segments=h.chance(0.5)) for _ in range(h.whole(0, 3))]
    return Call(temporal_stability, [frames], h.options(shift=(None, (0,) * len(shape)), ignore_index=(255, -1)))


# Tracking


@entry("Tracker")
def _(h: Hostile) -> Call:
    return Call(Tracker, [], {"gate": h.pick((1.0, 0.1, 5)), **h.options(memory=(0, 1, 5))})


def _tracker(h: Hostile, width: int) -> Tracker:
    tracker = Tracker(gate=h.pick((1.0, 3.0)), memory=h.pick((0, 2)))
    for _ in range(h.whole(0, 2)):
        result = a_result(h, (1, *h.spatial()))
        tracker.update(result, h.floats((1, width, *result.segmentation.shape[1:])))
    return tracker


def _check_tracked(call: Call, result: Any, h: Hostile) -> None:
    _check_result(result.result)
    ids = [s.id for s in result.result.segments[0]]
    require(len(set(ids)) == len(ids), "no id names two things")
    require(set(result.births) <= set(ids), "what is born is seen")
    require(not set(result.deaths) & set(ids), "what has died is not seen")


@entry("Tracker.update", _check_tracked, names=_SEGMENTS)
def _(h: Hostile) -> Call:
    width, result = h.whole(1, 3), a_result(h, (1, *h.spatial()))
    tracker = _tracker(h, width)
    if h.chance(0.3):
        return Call(tracker.update, [result], {"means": h.floats((len(result.segments[0]), width))})
    return Call(tracker.update, [result, h.floats((1, width, *result.segmentation.shape[1:]))])


@entry("Tracker.reset")
def _(h: Hostile) -> Call:
    return Call(_tracker(h, 2).reset, [])


@entry("track", names=(*_SEGMENTS, "result", "embedding"))
def _(h: Hostile) -> Call:
    film, width = a_result(h), h.whole(1, 3)
    embeddings: Any = h.floats((len(film), width, *film.segmentation.shape[1:]))
    if h.chance(0.3):
        embeddings = [embeddings[n : n + 1] for n in range(len(film))]
    results: Any = film if h.chance(0.5) else list(film)
    return Call(track, [results, embeddings], {"gate": h.pick((1.0, 4)), **h.options(memory=(0, 3))})


def _check_segment_means(call: Call, result: Any, h: Hostile) -> None:
    own, embedding = call.args
    require([len(m) for m in result] == [len(s) for s in own.segments], "one mean per segment")
    if moderate(embedding):
        require(all(bool(torch.isfinite(m).all()) for m in result), "means of finite pixels are finite")


@entry("segment_means", _check_segment_means, names=_SEGMENTS)
def _(h: Hostile) -> Call:
    result = a_result(h)
    return Call(segment_means, [result, h.floats((len(result), h.whole(1, 3), *result.segmentation.shape[1:]))])
