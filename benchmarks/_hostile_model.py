"""Calls of the reference model, its parts, its export, and of training and prediction with it."""

from __future__ import annotations

import functools
import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _hostile import Call, Hostile
from _hostile_oracle import entry, moderate, require
from _hostile_panoptic import a_result, result_like
from torch import Tensor, nn

from lovasz_embed.export import ExportedModel, Reading, export_model, settings_of
from lovasz_embed.formats import Sample
from lovasz_embed.model import (
    AdaptedBackbone,
    ConvEncoder,
    ModelConfig,
    PanopticEmbedder,
    StandardisedConv2d,
    build_backbone,
    prepare,
)
from lovasz_embed.training import (
    TrainConfig,
    View,
    evaluate,
    fit,
    fit_class_means,
    predict,
    random_view,
    whole,
)
from lovasz_embed.weights import weights_folder

CLASSES = ("floor", "cup", "box")
_NO_FOLDER = ((OSError, ""), (ValueError, "null byte"))  # what the system says of a place that it cannot write to


@functools.lru_cache(maxsize=16)
def model(coordinates: str = "added", reduction: int = 1, *, means: bool = True) -> PanopticEmbedder:
    """Return a tiny model, the same for all calls: nothing that is fuzzed may change it."""
    torch.manual_seed(0)
    config = ModelConfig(CLASSES, (1,), dims=5, widths=(4, 4), coordinates=coordinates, reduction=reduction)
    made = PanopticEmbedder(config).eval()
    if means:
        made.ncm.update(torch.randn(1, 5, 3, 8), torch.arange(24).view(1, 3, 8) % 3)
    return made


def _any_model(h: Hostile) -> PanopticEmbedder:
    return model(h.pick(("added", "fed", "none")), h.pick((1, 2)))


def picture_of_bytes(h: Hostile, least: int = 1) -> Any:
    """Return uint8 (H, W, 3): noise, all alike, or nearly so."""
    shape = (h.whole(least, 9), h.whole(least, 9), 3)
    if h.chance(0.3):
        return np.full(shape, h.pick((0, 255, 7)), np.uint8)
    return h.numpy.integers(0, 256, shape, np.uint8)


def _pictures(h: Hostile) -> Tensor:
    return h.floats((h.whole(1, 2), 3, h.whole(1, 9), h.whole(1, 9)), dtype=torch.float32).detach()


_CONFIG = inspect.signature(ModelConfig).parameters


@entry("ModelConfig", names=("classes", "widths"))
def _(h: Hostile) -> Call:
    options = h.options(
        dims=(3, 8), backbone=("conv", "efficientnet-lite0"), widths=((4,), (4, 8)), stride=(1, 2, 4), reduction=(1, 2),
        coordinates=("added", "fed", "none"), unit=(10.0, 1), category_radius=(1.1, 4), instance_radius=(1.0, 2),
        margin_ratio=(0.5, 0.894), reach=(1.5, 1), connected=(True, False), vote=(True, False),
        min_thing_area=(0, 20), min_stuff_area=(0, 64), shared_dims=(0, 1),
    )  # fmt: skip
    return Call(_looked_at, [CLASSES, h.pick(((1,), (), (0, 2)))], options)


def _looked_at(classes: Any, things: Any, **options: Any) -> Any:
    config = ModelConfig(classes, things, **options)
    # A configuration that is accepted makes a model.
    if config.backbone == "conv" and config.dims < 50 and sum(config.widths) < 100 and config.stride * config.dims < 99:
        PanopticEmbedder(config)
    return config.category_dims, config.instance_dims


_looked_at.__signature__ = inspect.signature(ModelConfig)  # type: ignore[attr-defined]


@entry("PanopticEmbedder", names=("backbone",), share=0.2)
def _(h: Hostile) -> Call:
    config = ModelConfig(CLASSES, (1,), widths=(4, 8), coordinates=h.pick(("added", "fed", "none")))
    return Call(PanopticEmbedder, [config], h.options(pretrained=(False,)))


def _check_embedding(call: Call, result: Tensor, h: Hostile) -> None:
    picture = call.args[0]
    require(result.dtype == torch.float32, "the embedding is float32")
    if call.kwargs.get("pixels") is None:
        require(result.shape[-2:] == picture.shape[-2:], "an embedding for every pixel")
    if moderate(picture, 1e6):
        require(bool(torch.isfinite(result).all()), "the embedding of a finite picture is finite")


@entry("PanopticEmbedder.forward", _check_embedding, names=("picture", "pixels", "at", "of"))
def _(h: Hostile) -> Call:
    picture = _pictures(h)
    options: dict[str, Any] = h.options(at=((0, 0), (4, 8)))
    if h.chance(0.3):
        rows, columns = (torch.arange(0, side, 2) for side in picture.shape[-2:])
        options["pixels"] = (rows, columns)
    if options.get("at") == (4, 8):
        options["of"] = (40, 40)
    return Call(_no_grad(_any_model(h)), [picture], options)


def _no_grad(made: PanopticEmbedder) -> Any:
    def forward(picture: Any, *, at: Any = (0, 0), of: Any = None, pixels: Any = None) -> Tensor:
        with torch.no_grad():
            embedding: Tensor = made(picture, at=at, of=of, pixels=pixels)
        return embedding

    return forward


@entry("PanopticEmbedder.embed_padded", names=("picture",), fixed=("at", "of"))
def _(h: Hostile) -> Call:
    made = _any_model(h)
    stride = made.strides[-1]
    picture = torch.randn(1, 3, stride * h.whole(1, 3), stride * h.whole(1, 3))
    return Call(made.embed_padded, [picture], {"at": (0, 0), "of": None})


@entry("PanopticEmbedder.segment", names=("picture",))
def _(h: Hostile) -> Call:
    return Call(_any_model(h).segment, [_pictures(h)])


@entry("PanopticEmbedder.read_off")
def _(h: Hostile) -> Call:
    return Call(_any_model(h).read_off, [h.floats((h.batch(), 5, h.whole(1, 9), h.whole(1, 9)))])


@entry("PanopticEmbedder.segment_tiles", names=("step", "context"), share=0.3)
def _(h: Hostile) -> Call:
    made = _any_model(h)
    stride = made.strides[-1]
    options = {"tile": stride * h.whole(1, 3), **h.options(overlap=(stride * h.whole(0, 3), None))}
    return Call(made.segment_tiles, [picture_of_bytes(h)], options)


@entry("PanopticEmbedder.levels", names=("radius",))
def _(h: Hostile) -> Call:
    shape = (h.batch(), h.whole(0, 5), h.whole(0, 5))
    maps = [h.labels(shape, (0, 1, 2, 255)), h.labels(shape, (0, 1, 7))]
    return Call(_any_model(h).levels, maps, {"crowd": h.maybe(h.labels(shape, (0, 1), dtype=torch.bool))})


@entry("PanopticEmbedder.save_pretrained", allows=_NO_FOLDER, share=0.02)
def _(h: Hostile) -> Call:
    return Call(_saved, [h.pick(("run", "deep/run"))])


def _saved(folder: Any) -> None:
    """Write below a temporary folder only, and read it back."""
    with tempfile.TemporaryDirectory() as place:
        inside = Path(place, folder) if isinstance(folder, str) and not folder.startswith("/") else folder
        model().save_pretrained(inside)
        PanopticEmbedder.from_pretrained(inside)


class _Body(nn.Module):
    """Feature maps of strides 2 and 4."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 2, 2, stride=2), nn.Conv2d(2, 3, 2, stride=2)

    def forward(self, picture: Tensor) -> list[Tensor]:
        maps = [self.fine(picture)]
        return [*maps, self.coarse(maps[0])]


@entry("AdaptedBackbone", share=0.2)
def _(h: Hostile) -> Call:
    options = h.options(outputs=([0, 1], (1,), None), mean=((0.5, 0.5, 0.5),), std=((0.2, 0.3, 0.4), [1, 1, 1]))
    if h.chance(0.4):
        options |= {"widths": (4, 4), "outputs": None, **h.options(stride=(1, 2, None))}
    return Call(AdaptedBackbone, [_Body()], options)


@entry("AdaptedBackbone.forward", names=("picture",), share=0.2)
def _(h: Hostile) -> Call:
    return Call(AdaptedBackbone(_Body()), [torch.randn(h.whole(1, 2), 3, 4 * h.whole(1, 3), 4 * h.whole(1, 3))])


@entry("build_backbone", names=("backbone",), allows=((ModuleNotFoundError, "pretrained"),), share=0.1)
def _(h: Hostile) -> Call:
    if h.chance(0.02):
        return Call(build_backbone, ["efficientnet-lite0", (4, 4), 4])
    return Call(build_backbone, ["conv", h.pick(((4,), (4, 8), [2, 2, 2])), h.pick((1, 2, 4))])


@entry("ConvEncoder", share=0.2)
def _(h: Hostile) -> Call:
    return Call(ConvEncoder, [h.pick(((4,), (4, 8), [2, 2, 2])), h.pick((1, 2, 4))])


@functools.lru_cache(maxsize=1)
def _encoder() -> ConvEncoder:
    return ConvEncoder((4, 4), 1)


@entry("ConvEncoder.forward", names=("picture",), share=0.3)
def _(h: Hostile) -> Call:
    return Call(_encoder(), [torch.randn(h.whole(1, 2), 3, h.whole(2, 9), h.whole(2, 9))])


@entry("StandardisedConv2d", share=0.2)
def _(h: Hostile) -> Call:
    return Call(StandardisedConv2d, [h.whole(1, 4), h.whole(1, 4)])


@functools.lru_cache(maxsize=1)
def _layer() -> StandardisedConv2d:
    return StandardisedConv2d(2, 3)


@entry("StandardisedConv2d.forward", names=("x",), share=0.3)
def _(h: Hostile) -> Call:
    return Call(_layer(), [torch.randn(h.whole(1, 2), 2, h.whole(1, 9), h.whole(1, 9))])


def _check_prepared(call: Call, result: Tensor, h: Hostile) -> None:
    require(result.shape == (3, *call.args[0].shape[:2]), "channels come first")
    require(bool((result.abs() <= 2).all()), "values are clamped")


@entry("prepare", _check_prepared)
def _(h: Hostile) -> Call:
    return Call(prepare, [picture_of_bytes(h)])


@entry("weights_folder", names=("weights",))
def _(h: Hostile) -> Call:
    return Call(weights_folder, [h.pick(("nuclei", "streets"))])


# Export


@entry("settings_of", names=("model",))
def _(h: Hostile) -> Call:
    return Call(settings_of, [_any_model(h)])


@entry("Reading.read_off", names=("dims", "semantic"))
def _(h: Hostile) -> Call:
    shape, width = (h.whole(0, 2), h.whole(0, 5), h.whole(0, 5)), h.whole(1, 3)
    reading = Reading(CLASSES, (1,), 1.0, 1.5, min_thing_area=h.whole(0, 3), vote=h.chance(0.5))
    embedding = h.array(h.floats((shape[0], width, *shape[1:]), dtype=torch.float32))
    return Call(reading.read_off, [embedding, h.array(h.labels(shape, (-1, 0, 1, 2), dtype=torch.int64))])


@functools.lru_cache(maxsize=1)
def _exported() -> ExportedModel:
    with tempfile.TemporaryDirectory() as folder:
        export_model(model(), f"{folder}/model.pt2", format="torch-export")
        return ExportedModel(f"{folder}/model.pt2")


@entry("ExportedModel.segment", share=0.1)
def _(h: Hostile) -> Call:
    return Call(_exported().segment, [picture_of_bytes(h, least=3)])


@entry("ExportedModel.run", names=("picture",), share=0.1)
def _(h: Hostile) -> Call:
    return Call(_exported().run, [h.numpy.standard_normal((1, 3, h.whole(3, 9), h.whole(3, 9)), np.float32)])


# A file takes seconds: what is refused costs nothing, so most of these calls are spoilt.
@entry("export_model", names=("model",), allows=_NO_FOLDER, share=0.001)
def _(h: Hostile) -> Call:
    call = Call(_exporting, [model(means=h.chance(0.5)), "model.pt2"], {"format": "torch-export"})
    if h.chance(0.9):
        which = h.pick(("model", "format", "example"))
        new, how = h.strange()
        if which == "model":
            call.args[0] = new
        else:
            call.kwargs[which] = new
        call.spoilt.append(f"{which} {how}")
    elif not bool(call.args[0].ncm.counts.any()):
        call.spoilt.append("a model without means")
    return call


def _exporting(model: Any, path: Any, *, format: Any = "onnx", example: Any = (16, 24)) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export_model(model, Path(folder, path) if isinstance(path, str) else path, format=format, example=example)


# Training


@entry("TrainConfig")
def _(h: Hostile) -> Call:
    options = h.options(
        steps=(1, 10), minutes=(None, 1.5), batch=(1, 2), crop=(8, 16), sampling=("pictures", "pixels"),
        learning_rate=(1e-3,), backbone_rate=(0.0, 1.0), frozen_stages=(0, 1), warmup=(0, 5), weight_decay=(0.0,),
        clip=(1.0,), amp=(True, False), seed=(0, 7), loss_stride=(1, 2), scale=(1.0, 2), turn=(True, False),
        jitter=(0.0, 1), kernel=("margin", "gaussian"), negatives=("all", "siblings"), ncm_weight=(0.0,),
        ncm_temperature=(0.25,), pull_weight=(0.0,), norm_weight=(0.01,), spread=(None, 2.0), momentum=(0.0, 0.95),
        mean_pictures=(1,), log_every=(1,), checkpoint_every=(1,), workers=(0,),
    )  # fmt: skip
    return Call(TrainConfig, [], options)


def _sample(h: Hostile, least: int = 1) -> Sample:
    image = picture_of_bytes(h, least)
    shape = image.shape[:2]
    semantic, instance = (h.numpy.integers(0, 3, shape).astype(kind) for kind in (np.uint8, np.int32))
    if h.chance(0.4):
        semantic[h.numpy.random(shape) < 0.3] = 255
    return Sample("a", image, semantic, instance, h.numpy.random(shape) < 0.1 if h.chance(0.3) else None)


@entry("whole", names=("image",))
def _(h: Hostile) -> Call:
    sample = _sample(h)
    call = Call(whole, [sample])
    if h.chance(0.3):
        name = h.pick(("image", "semantic", "instance", "crowd"))
        new, how = h.spoilt(getattr(sample, name))
        call.args[0] = Sample(**{**vars(sample), name: new})
        call.spoilt.append(f"{name} {how}")
    return call


def _check_view(call: Call, result: View, h: Hostile) -> None:
    size = call.kwargs["size"]
    require(result.picture.shape == (3, size, size), "a view has the size that was asked for")
    require(all(own.shape == (size, size) for own in result[1:]), "so have its labels")
    given = set(call.args[0].semantic.flatten().tolist()) | {255}
    require(set(result.semantic.flatten().tolist()) <= given, "no label comes from nowhere")


@entry("random_view", _check_view)
def _(h: Hostile) -> Call:
    rng = np.random.default_rng(h.whole(0, 2**31))
    options = {"size": h.pick((1, 2, 5, 12)), **h.options(scale=(1.0, 1.5, 3), turn=(True, False), jitter=(0.0, 0.5))}
    return Call(random_view, [whole(_sample(h)), rng], options)


@entry("predict", names=("image", "step", "context"), allows=_NO_FOLDER, fixed=("scratch",), share=0.3)
def _(h: Hostile) -> Call:
    made = _any_model(h)
    options = {"tile": made.strides[-1] * h.whole(1, 3)} if h.chance(0.3) else {}
    return Call(predict, [made, [picture_of_bytes(h) for _ in range(h.whole(0, 2))]], options)


@entry("evaluate", names=("prediction", "truth", "num_classes"))
def _(h: Hostile) -> Call:
    truths = [a_result(h) for _ in range(h.whole(0, 2))]
    predictions = [result_like(h, truth) for truth in truths]
    return Call(evaluate, [predictions, truths], {"classes": 3, "things": h.pick(({1}, [1, 2], ()))})


@entry("fit", names=("picture", "out", "batch", "crop", "sample"), fixed=("out",), share=0.001)
def _(h: Hostile) -> Call:
    config = TrainConfig(steps=1, batch=1, crop=8, amp=False, warmup=0)
    fresh = PanopticEmbedder(ModelConfig(CLASSES, (1,), dims=5, widths=(4, 4)))
    return Call(fit, [fresh, [_sample(h, 4) for _ in range(h.whole(1, 2))], config], h.options(score_every=(1, 5)))


@entry("fit_class_means", names=("picture", "embedding", "semantic", "view"), share=0.1)
def _(h: Hostile) -> Call:
    fresh = PanopticEmbedder(ModelConfig(CLASSES, (1,), dims=5, widths=(4, 4)))
    return Call(fit_class_means, [fresh, [whole(_sample(h)) for _ in range(h.whole(0, 2))]], {"amp": h.chance(0.3)})
