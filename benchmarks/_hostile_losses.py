"""Calls of the losses, the label tree and the nearest class mean."""

from __future__ import annotations

import math
from typing import Any

import torch
from _hostile import Call, Hostile
from _hostile_oracle import entry, is_plain, moderate, require, same
from torch import Tensor

from lovasz_embed import (
    HierarchicalLovaszHinge,
    Level,
    LovaszHinge,
    LovaszSoftmax,
    NearestClassMean,
    class_means,
    hierarchical_lovasz_hinge,
    lovasz_hinge,
    lovasz_softmax,
    lovasz_weights,
    nearest_class_mean,
    panoptic_levels,
)

_IMPLS = ("auto", "numba", "reference")
_LOSS = {
    "reduction": ("mean", "sum", "none"),
    "impl": _IMPLS,
    "ignore_index": (255, 0, -1, 7, None, 2**40),
    "per_image": (True, False),
}
# Engines add up in different orders: a few roundings of float32 (or float64) per entry, and there are few entries.
_ROUNDING = 1e-4


def _binned(h: Hostile, options: dict[str, Any]) -> dict[str, Any]:
    if h.chance(0.3):
        options["method"] = h.pick(("auto", "sort", "binned"))
        if options["method"] == "binned" and h.chance(0.5):
            options["bins"] = h.pick((8, 64, 512))
    return options


def _targets(h: Hostile, shape: tuple[int, ...], classes: int, ignore_index: int | None) -> Tensor:
    values = [*range(classes)]
    if ignore_index is not None and ignore_index < 2**31 and h.chance(0.7):
        values.append(ignore_index)
        if h.chance(0.1):
            values = [ignore_index]
    return h.labels(shape, values) if classes or values else torch.zeros(shape, dtype=torch.int64)


def _hinge(h: Hostile) -> tuple[list[Any], dict[str, Any]]:
    options = _binned(h, h.options(**_LOSS, multilabel=(True, False)))
    shape = (h.batch(), *([h.whole(0, 3)] if options.get("multilabel") else []), *h.spatial((0, 3)))
    return [h.floats(shape), _targets(h, shape, 2, options.get("ignore_index"))], options


def _check_loss(call: Call, result: Any, h: Hostile) -> None:
    logits, target = call.args
    require(isinstance(result, Tensor), "the loss is a tensor")
    wanted = torch.float64 if logits.dtype == torch.float64 else torch.float32
    require(result.dtype == wanted, "the loss is float64 for float64, else float32")
    if call.kwargs.get("reduction", "mean") != "none":
        require(result.ndim == 0, "mean and sum are 0-d")
    if not (is_plain(logits) and is_plain(target) and moderate(logits)):
        return
    require(bool(torch.isfinite(result).all()), "the loss of finite logits is finite")
    require(bool((result >= 0).all()), "a loss is 0 or above")
    what = h.whole(0, 5)
    if what == 0:
        leaf = logits.detach().clone().requires_grad_()
        loss = call.function(leaf, target, **call.kwargs)
        require(loss.requires_grad, "the loss is attached to the graph")
        loss.sum().backward()
        grad = leaf.grad
        require(grad is not None and grad.dtype == logits.dtype, "the gradient has the dtype of the input")
        require(bool(torch.isfinite(grad).all()), "the gradient of finite logits is finite")
    elif what == 1:
        copy = [logits.detach().clone(memory_format=torch.contiguous_format), target.clone()]
        require(same(call.function(*copy, **call.kwargs).detach(), result.detach()), "layout does not change the loss")
    elif what == 2 and call.kwargs.get("method", "auto") != "binned":
        reference = call.function(logits.detach().double(), target, **{**call.kwargs, "impl": "reference"}).detach()
        scale = 1 + float(logits.detach().abs().max()) if logits.numel() else 1.0
        scale += float(reference.abs().max()) if reference.numel() else 0.0  # class weights may be of any size
        rounding = _ROUNDING * scale * max(result.numel(), 1)
        apart = float((reference - result.detach().double()).abs().max()) if result.numel() else 0.0
        require(apart <= rounding, f"engines agree (they are {apart:.3g} apart)")


@entry("lovasz_hinge", _check_loss)
def _(h: Hostile) -> Call:
    args, options = _hinge(h)
    return Call(lovasz_hinge, args, options)


@entry("LovaszHinge")
def _(h: Hostile) -> Call:
    return Call(LovaszHinge, [], _binned(h, h.options(**_LOSS, multilabel=(True, False))))


@entry("LovaszHinge.forward", names=("input", "target"))
def _(h: Hostile) -> Call:
    args, options = _hinge(h)
    return Call(LovaszHinge(**options), args)


def _softmax(h: Hostile) -> tuple[list[Any], dict[str, Any]]:
    classes, batch, spatial = h.whole(1, 4), h.batch(), h.spatial((0, 3))
    options = _binned(h, h.options(**_LOSS))
    if h.chance(0.4):
        options["classes"] = h.pick(("present", "all", [0], tuple(range(classes)), [classes - 1]))
    if h.chance(0.2):
        options["weight"] = h.floats((classes,), dtype=torch.float32).detach().abs()
    target = _targets(h, (batch, *spatial), classes, options.get("ignore_index", 255))
    return [h.floats((batch, classes, *spatial)), target], options


@entry("lovasz_softmax", _check_loss)
def _(h: Hostile) -> Call:
    args, options = _softmax(h)
    return Call(lovasz_softmax, args, options)


@entry("LovaszSoftmax")
def _(h: Hostile) -> Call:
    _, options = _softmax(h)
    return Call(LovaszSoftmax, [], options)


@entry("LovaszSoftmax.forward", names=("input", "target", "classes", "weight"))
def _(h: Hostile) -> Call:
    args, options = _softmax(h)
    return Call(LovaszSoftmax(**options), args)


def _check_weights(call: Call, result: Tensor, h: Hostile) -> None:
    errors, _ = call.args
    require(result.shape == errors.shape, "one weight per error")
    if is_plain(result) and result.shape[-1]:
        require(bool((result >= 0).all()), "weights are 0 or above")
        total = result.double().sum(-1)
        require(bool(((total - 1).abs() < _ROUNDING).all()), "the weights of a row sum to 1")


@entry("lovasz_weights", _check_weights)
def _(h: Hostile) -> Call:
    shape = h.spatial((1, 3))
    return Call(lovasz_weights, [h.floats(shape), h.labels(shape, (0, 1))])


# The tree of labels


def _maps(h: Hostile, classes: int, ignore_index: int = 255) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    shape = (h.batch(), *h.spatial())
    void = [] if h.chance(0.4) else [ignore_index]
    semantic = h.labels(shape, [*range(classes), *void], dtype=h.pick((torch.int64, torch.uint8, torch.int32, None)))
    ids = h.pick(((0, 1, 2), (0, 1), (0,), (3, 90, 1000), (0, 2**31 - 1), (1, 2**40)))
    return semantic, h.labels(shape, ids), shape


def _check_levels(call: Call, result: Any, h: Hostile) -> None:
    category, instance = result
    require(category.labels.shape == instance.labels.shape == call.args[0].shape, "levels have the shape of the maps")
    require(category.radius > instance.radius, "radii fall")
    if is_plain(instance.labels) and instance.labels.numel():
        require(int(instance.labels.min()) >= Level.IGNORED, "labels are nodes, none or ignored")


@entry("panoptic_levels", _check_levels, names=("radius", "margin", "weight", "dims"))
def _(h: Hostile) -> Call:
    semantic, instance, shape = _maps(h, 3)
    options = h.options(
        radii=((4.0, 1.0), (2, 1)),
        margins=((None, None), (1.0, 0.5)),
        weights=((1.0, 0.0), (2, 1)),
        category_dims=((0,), None),
        instance_dims=((0, 1), [1], None),
        ignore_index=(255, 2, -1),
    )
    if h.chance(0.3):
        options["crowd"] = h.labels(shape, (0, 1), dtype=h.pick((torch.bool, torch.uint8)))
    options.setdefault("things", h.pick(({1}, {1, 2}, (), [0, 1, 2], frozenset({9}))))
    return Call(panoptic_levels, [semantic, instance], options)


@entry("Level", names=("labels",))
def _(h: Hostile) -> Call:
    shape = (h.batch(), *h.spatial())
    radius = h.pick((1.0, 0.25, 3, 1e-6))
    options = {"margin": h.pick((None, radius, radius / 2)), "weight": h.pick((0, 1.0, 2.5))}
    options |= h.options(per_picture=(True, False), dims=((0,), (1, 0), None), name=("", "part"))
    if h.chance(0.2):
        options["bandwidth"] = h.floats(shape).detach().abs() + 1
    return Call(_level, [h.labels(shape, (-2, -1, 0, 1, 5)), radius], options)


def _level(
    labels: Any, radius: Any, *, margin: Any = None, weight: Any = 1.0, per_picture: Any = True, dims: Any = None,
    bandwidth: Any = None, name: Any = "",
) -> tuple[float, float, float]:  # fmt: skip
    """Make a level and look at what it works out."""
    level = Level(labels, radius, margin, weight, per_picture, dims, bandwidth, name)
    middle = float(level.radius)
    inside = level.inner_radius <= middle * (1 + 1e-12)  # of float64
    require(level.inner_radius >= 0 and inside, "the inner radius is no larger than the radius")
    require(level.outer_radius >= middle * (1 - 1e-12), "the outer radius is no smaller than the radius")
    return level.inner_radius, level.outer_radius, level.margin2


def _tree(h: Hostile) -> tuple[Tensor, tuple[Level, ...], dict[str, Any]]:
    """Return an embedding, levels over it, and options that go with them."""
    semantic, instance, shape = _maps(h, 3)
    width = h.whole(1, 4)
    embedding = h.floats((shape[0], width, *shape[1:]))
    options = h.options(kernel=("margin", "gaussian"), negatives=("all", "siblings"), impl=_IMPLS)
    options |= h.options(norm_weight=(0.0, 0.1), ncm_weight=(0.0, 1.0), ncm_temperature=(0.25, 1.0))
    options = _binned(h, options)
    if options.get("kernel") == "gaussian" and h.chance(0.3):
        options["truncation"] = h.pick((0.0, 0.01, 1.0))
    dims = h.pick((None, None, (0,), tuple(range(width))))
    levels = panoptic_levels(
        semantic, instance, things=h.pick(({1}, {1, 2}, set())), category_dims=dims,
        instance_dims=h.pick((None, (width - 1,))),
    )  # fmt: skip
    if h.chance(0.2):
        part = torch.where(levels[1].labels >= 0, 2 * levels[1].labels, levels[1].labels)
        levels = (*levels, Level(part, 0.5, name="part"))
    elif h.chance(0.2):
        levels = (h.pick(levels),)
        options.pop("negatives", None)
    if h.chance(0.3):
        rows = int(levels[0].labels.max()) + 1 if levels[0].labels.numel() else 3
        if rows <= 8:
            means = torch.randn(max(rows, 3), width)
            means[h.whole(0, len(means) - 1)] = math.nan if h.chance(0.5) else 0.0
            options["class_means"] = means
            options |= h.options(pull_weight=(0.0, 0.5))
    return embedding, levels, options


def _check_tree(call: Call, result: Any, h: Hostile) -> None:
    embedding, levels = call.args
    require(result.loss.ndim == 0 and result.per_level.shape == (len(levels),), "one loss, and one per level")
    require(len(result.per_node) == len(levels), "the nodes of each level")
    for nodes in result.per_node:
        require(len(nodes.picture) == len(nodes.label) == len(nodes.loss), "as many pictures, labels and losses")
    plain = all(not v.is_meta for v in (embedding, result.loss)) and moderate(embedding, 1e6)
    means = call.kwargs.get("class_means")
    options = [v for v in call.kwargs.values() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    usual = all(level.radius < 1e6 and level.margin2 > 1e-9 for level in levels) and all(
        own == 0 or 1e-6 < abs(own) < 1e6 for own in options
    )
    if not plain or not usual or (means is not None and not moderate(means.nan_to_num(), 1e6)):
        return
    require(bool(torch.isfinite(result.loss)), "the loss of a finite embedding is finite")
    require(float(result.loss.detach()) >= 0, "the loss is 0 or above")
    what = h.whole(0, 4)
    if what == 0:
        leaf = embedding.detach().clone().requires_grad_()
        call.function(leaf, levels, **call.kwargs).loss.backward()
        require(leaf.grad is not None and leaf.grad.dtype == embedding.dtype, "the gradient has the embedding's dtype")
        in_half = embedding.dtype == torch.float16  # whose largest number is 65504
        require(in_half or bool(torch.isfinite(leaf.grad).all()), "the gradient of a finite embedding is finite")
    elif what == 1:
        copy = embedding.detach().clone(memory_format=torch.contiguous_format)
        again = call.function(copy, levels, **call.kwargs)
        require(same(again.loss.detach(), result.loss.detach()), "layout does not change the loss")
    elif what == 2 and call.kwargs.get("method", "auto") != "binned" and moderate(embedding, 100.0):
        other = call.function(embedding.detach().double(), levels, **{**call.kwargs, "impl": "reference"})
        rounding = _ROUNDING * (1 + 1e3 * float(other.loss.detach()))
        if embedding.dtype == torch.float64:
            rounding = 1e-9 * (1 + 1e3 * float(other.loss.detach()))
        apart = abs(float(other.loss.detach()) - float(result.loss.detach()))
        require(
            apart <= rounding, f"engines agree ({float(other.loss.detach()):.9g} and {float(result.loss.detach()):.9g})"
        )


_LEVEL_NAMES = ("levels", "class_means", "labels")


@entry("hierarchical_lovasz_hinge", _check_tree, names=_LEVEL_NAMES)
def _(h: Hostile) -> Call:
    embedding, levels, options = _tree(h)
    return Call(hierarchical_lovasz_hinge, [embedding, levels], options)


@entry("HierarchicalLovaszHinge")
def _(h: Hostile) -> Call:
    _, _, options = _tree(h)
    options.pop("class_means", None)
    return Call(HierarchicalLovaszHinge, [], options)


@entry("HierarchicalLovaszHinge.forward", names=(*_LEVEL_NAMES, "embedding"))
def _(h: Hostile) -> Call:
    embedding, levels, options = _tree(h)
    means = options.pop("class_means", None)
    return Call(HierarchicalLovaszHinge(**options), [embedding, levels, means])


# The nearest class mean


def _labelled(h: Hostile, classes: int, width: int) -> tuple[Tensor, Tensor, int | None]:
    shape, ignore_index = (h.batch(), *h.spatial()), h.pick((255, None, -1, 0))
    semantic = _targets(h, shape, classes, ignore_index)
    return h.floats((shape[0], width, *shape[1:])), semantic, ignore_index


def _check_means(call: Call, result: Any, h: Hostile) -> None:
    embedding, semantic = call.args
    require(result.means.shape == (call.kwargs["num_classes"], embedding.shape[1]), "means are (C, D)")
    if is_plain(embedding) and is_plain(semantic):
        void = call.kwargs.get("ignore_index", 255)
        for c, (mean, count) in enumerate(zip(result.means, result.counts.tolist(), strict=True)):
            mine = (semantic.long() == c) & ((c != void) or semantic.dtype == torch.bool)
            require(count == int(mine.sum()), "counts are the pixels of a class")
            if count and moderate(embedding):
                own = embedding.detach().movedim(1, -1)[mine].double().mean(0)
                near = torch.allclose(mean.double(), own, rtol=1e-5, atol=1e-6)  # float32 of a float64 sum
                require(near, "the mean is that of the pixels")
            elif not count:
                require(bool(mean.isnan().all()), "a class without pixels has no mean")


@entry("class_means", _check_means)
def _(h: Hostile) -> Call:
    classes = h.whole(1, 4)
    embedding, semantic, ignore_index = _labelled(h, classes, h.whole(1, 4))
    options = {} if ignore_index == 255 else {"ignore_index": ignore_index}
    return Call(class_means, [embedding, semantic], {"num_classes": classes, **options})


def _classifier(h: Hostile, width: int) -> dict[str, Any]:
    options = h.options(reject_radius=(0.5, 2, None), ignore_index=(255, -1, 0), impl=_IMPLS)
    if h.chance(0.3):
        options["dims"] = h.pick(((0,), [width - 1], tuple(range(width)), None))
    return options


def _check_classes(call: Call, result: Tensor, h: Hostile) -> None:
    embedding = call.args[0]
    require(result.dtype == torch.int64, "classes are int64")
    require(result.shape == (embedding.shape[0], *embedding.shape[2:]), "a class for every pixel")
    if len(call.args) < 2 or not (is_plain(embedding) and moderate(embedding, 1e4) and moderate(call.args[1], 1e4)):
        return
    means, offset, dims = call.args[1].detach().double(), call.kwargs.get("offset"), call.kwargs.get("dims")
    void, radius = call.kwargs.get("ignore_index", 255), call.kwargs.get("reject_radius")
    if offset is not None and not moderate(offset, 1e4):
        return
    chosen = list(range(means.shape[1]) if dims is None else dims)
    pixels = embedding.detach().double().movedim(1, -1)[..., chosen]
    distance = (pixels[..., None, :] - means[:, chosen]).square().sum(-1)
    scores = distance if offset is None else distance - offset.detach().double()
    best = scores.amin(-1)
    known = (result >= 0) & (result < len(means))
    if 0 <= void < len(means):
        return
    own = scores.gather(-1, result.clamp(0, len(means) - 1)[..., None])[..., 0]
    # The reference's float32 takes a few roundings of the squares that it subtracts.
    tolerance = 1e-4 * (1 + float(distance.max())) if distance.numel() else 0.0
    require(bool(((own - best <= tolerance) | ~known).all()), "the class is that of the nearest mean")
    require(bool((known | (result == void)).all()), "a class or ignore_index")
    if radius is None:
        require(bool(known.all()), "every finite pixel has a class")


@entry("nearest_class_mean", _check_classes)
def _(h: Hostile) -> Call:
    classes, width = h.whole(1, 4), h.whole(1, 5)
    embedding = h.floats((h.batch(), width, *h.spatial()))
    options = _classifier(h, width)
    if h.chance(0.3):
        options["offset"] = h.floats((classes,))
    return Call(nearest_class_mean, [embedding, h.floats((classes, width))], options)


@entry("NearestClassMean")
def _(h: Hostile) -> Call:
    width = h.whole(1, 4)
    return Call(NearestClassMean, [h.whole(1, 4), width], _classifier(h, width))


def _fitted(h: Hostile, width: int) -> NearestClassMean:
    classes = h.whole(1, 4)
    ncm = NearestClassMean(classes, width, **_classifier(h, width))
    if h.chance(0.8):
        semantic = h.labels((1, 6), range(classes), dtype=torch.int64)
        if not (0 <= ncm.ignore_index < classes):
            ncm.update(h.floats((1, width, 6)), semantic)
    return ncm


@entry("NearestClassMean.update", names=("the module",))
def _(h: Hostile) -> Call:
    width = h.whole(1, 4)
    ncm = _fitted(h, width)
    shape = (h.batch(), *h.spatial())
    semantic = _targets(h, shape, ncm.num_classes, ncm.ignore_index)
    return Call(ncm.update, [h.floats((shape[0], width, *shape[1:])), semantic])


@entry("NearestClassMean.forward", _check_classes, names=("embedding", "means"))
def _(h: Hostile) -> Call:
    width = h.whole(1, 4)
    return Call(_fitted(h, width), [h.floats((h.batch(), width, *h.spatial()))])


@entry("NearestClassMean.logits")
def _(h: Hostile) -> Call:
    width = h.whole(1, 4)
    return Call(_fitted(h, width).logits, [h.floats((h.batch(), width, *h.spatial()))])


def _check_linear(call: Call, result: Any, h: Hostile) -> None:
    weight, bias = result
    require(bool(torch.isfinite(weight).all()) and not bool(bias.isnan().any()), "weights are finite, biases no NaN")


@entry("NearestClassMean.as_linear", _check_linear)
def _(h: Hostile) -> Call:
    return Call(_fitted(h, h.whole(1, 4)).as_linear, [])


@entry("NearestClassMean.reset")
def _(h: Hostile) -> Call:
    return Call(_fitted(h, h.whole(1, 4)).reset, [])
