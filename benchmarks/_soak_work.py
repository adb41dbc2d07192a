"""One cycle of what a user does all day: train, stop, go on, predict, track, score, write, read; every loss besides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lovasz_embed as le
from lovasz_embed import training
from lovasz_embed.formats import Category, ImageRecord, Sample, read_coco_panoptic, write_coco_panoptic
from lovasz_embed.model import ModelConfig, PanopticEmbedder, prepare
from lovasz_embed.synthetic import CLASSES, THINGS, Scene, street_clip, street_scene
from lovasz_embed.training import Progress, TrainConfig, fit

MODEL = ModelConfig(classes=CLASSES, things=tuple(sorted(THINGS)), widths=(12, 16, 24), unit=7.0, min_thing_area=24)
SIZES = ((96, 128), (128, 160), (160, 224), (224, 288))
"""Of the pictures of a cycle, about: every one is moved by up to 31 pixels, so that hardly two are alike."""
ROUND = 16
"""Cycles after which the sizes come again: PyTorch's convolutions and NumPy keep something for every size they meet."""
CATEGORIES = tuple(Category(10 + number, name, number in THINGS) for number, name in enumerate(CLASSES))


class Interrupted(Exception):
    """What stops a training in the middle, as Ctrl-C does."""


@dataclass
class Cycle:
    """What one cycle took and found.

    Attributes:
        step_s: Seconds of each step of training; the first of a session, which starts a worker, is left out.
        predict_s: Seconds per megapixel of each picture that was predicted.
        losses: Calls of a loss.
        quality: Panoptic quality of the cycle's model, a fraction.
    """

    step_s: list[float] = field(default_factory=list)
    predict_s: list[float] = field(default_factory=list)
    losses: int = 0
    quality: float = 0.0


class Pictures:
    """Painted scenes as labelled pictures of bytes, fresh ones for every seed."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        scene = street_scene((self.seed, index))
        semantic = scene.semantic.numpy().astype(np.uint8)
        return Sample(f"scene{index}", as_bytes(scene), semantic, scene.instance.numpy(), scene.crowd.numpy())


def as_bytes(scene: Scene) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the picture of a scene as a camera would."""
    array: np.ndarray[Any, np.dtype[np.uint8]] = (scene.image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return array


def run_cycle(number: int, folder: Path, *, steps: int, watch: Callable[[], object], seed: int = 0) -> Cycle:
    """Do everything once.

    Args:
        number: Of the cycle; all that is drawn at random depends on it and on the seed alone, sizes on its place in
            a `ROUND`.
        folder: Where the run and the predictions lie; the next cycle writes over them.
        steps: Of training, in two sessions: the first is interrupted, the second goes on from its checkpoint.
        watch: Called after every step and every part, to look at what the process holds.
        seed: Of all cycles.

    Raises:
        RuntimeError: If a result is wrong: a loss that is not finite or not that of the reference, files that do not
            say what was written, a clustering or tracking that lost pixels.
    """
    cycle = Cycle()
    rng = np.random.default_rng((seed, number % ROUND))
    model = _train(cycle, number, folder / "run", steps, watch)
    sizes = [(h + int(rng.integers(-31, 32)), w + int(rng.integers(-31, 32))) for h, w in SIZES]
    scenes = [street_scene((seed, number, 1, k), size=size) for k, size in enumerate(sizes)]
    predictions: list[le.PanopticResult] = []
    for image in map(as_bytes, scenes):
        began = time.perf_counter()
        predictions += training.predict(model, [image])
        cycle.predict_s.append((time.perf_counter() - began) / image[..., 0].size * 1e6)
        watch()
    truths = [
        le.PanopticResult.from_maps(s.semantic[None], s.instance[None], things=THINGS, crowd=s.crowd[None])
        for s in scenes
    ]
    cycle.quality = float(training.evaluate(predictions, truths, classes=len(CLASSES), things=THINGS).pq)
    _files(folder / "prediction.json", predictions)
    _film(model, seed, number, sizes[0])
    watch()
    _clusterings(rng)
    watch()
    for calls in _losses(rng):
        cycle.losses += calls
        watch()
    return cycle


def _train(cycle: Cycle, number: int, run: Path, steps: int, watch: Callable[[], object]) -> PanopticEmbedder:
    torch.manual_seed(number)
    config = TrainConfig(
        steps=steps, batch=4, crop=96, warmup=5, log_every=5, checkpoint_every=max(steps // 6, 1), workers=1,
        seed=number, mean_pictures=6,
    )  # fmt: skip
    session: list[float] = []
    stop: int | None = None

    def on_step(progress: Progress) -> None:
        session.append(time.perf_counter())
        watch()
        if progress.step == stop:
            raise Interrupted

    pictures = Pictures(number, 24)
    for resume in (False, True):
        stop = None if resume else steps // 2
        model = PanopticEmbedder(MODEL)
        session.clear()
        with suppress(Interrupted):
            fit(model, pictures, config, out=run, resume=resume, on_step=on_step)
        cycle.step_s += np.diff(session).tolist()
    return PanopticEmbedder.from_pretrained(run)


def _files(path: Path, results: list[le.PanopticResult]) -> None:
    """Write COCO files and read them back."""
    images = [
        ImageRecord(k, f"scene{k}.jpg", *map(int, result.segmentation.shape[1:])) for k, result in enumerate(results)
    ]
    write_coco_panoptic(path, results, images=images, categories=CATEGORIES)
    there = read_coco_panoptic(path)
    for k, result in enumerate(results):
        unscored = tuple(replace(segment, score=1.0) for segment in result.segments[0])  # the files have no scores
        written = le.PanopticResult(result.segmentation, (unscored,))
        _require(there.result(k) == written, f"{path.name} holds another result of picture {k} than was written")


@torch.no_grad()
def _film(model: PanopticEmbedder, seed: int, number: int, size: tuple[int, int]) -> None:
    """Segment and track a clip; assemble the tracked maps anew, which must change nothing but ids."""
    clip = street_clip((seed, number, 2), frames=4, size=size)
    embeddings = [model(prepare(as_bytes(scene))[None]) for scene in clip]
    results = [model.read_off(embedding) for embedding in embeddings]
    for before, frame in zip(results, le.track(results, embeddings, gate=1.0), strict=True):
        after = frame.result
        _require(torch.equal(before.segmentation > 0, after.segmentation > 0), "tracking moved pixels")
        categories = torch.tensor([255, *(segment.category for segment in after.segments[0])])
        things = torch.tensor([0, *(segment.id * segment.is_thing for segment in after.segments[0])])
        index = after.segment_index()
        again = le.assemble(categories[index], things[index], things=THINGS)
        _require(torch.equal(again.segmentation > 0, after.segmentation > 0), "assembling lost pixels")


def _clusterings(rng: np.random.Generator) -> None:
    """Cluster with every method what any of them can tell apart, at a size of its own."""
    side, count = int(rng.integers(48, 160)), int(rng.integers(3, 20))
    means = 20.0 * np.arange(count)[:, None] * np.array([1.0, 0.5, -0.5])
    truth = rng.integers(count, size=(1, side, side))
    embedding = np.moveaxis(means[truth] + rng.uniform(-0.2, 0.2, (1, side, side, 3)), -1, 1).astype(np.float32)
    mask = np.ones((1, side, side), dtype=bool)
    options: dict[str, dict[str, Any]] = {
        "margin": {"radius": 1.0},
        "seeded": {"radius": 1.0, "seeds": np.ones((1, side, side), dtype=np.float32)},
        "density": {"radius": 1.0},
    }
    for method, own in options.items():
        found = le.cluster_embeddings(embedding, mask, method=method, **own)
        pairs = np.unique(np.stack([truth.ravel(), found.labels.numpy().ravel()]), axis=1)
        got = f"{method} found {found.sizes[0].numel()} clusters in {count}"
        _require(pairs.shape[1] == count and len(found.sizes[0]) == count, got)


def _losses(rng: np.random.Generator) -> Iterator[int]:
    """Yield how many calls each comparison made: every engine's value and gradient beside the reference's."""
    side = int(rng.integers(40, 140))
    seed = int(rng.integers(1 << 30))
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 6, side, side + 7, generator=random)
    semantic = torch.randint(0, 6, (2, side, side + 7), generator=random)
    instance = torch.randint(0, 9, (2, side, side + 7), generator=random)
    levels = le.panoptic_levels(semantic, instance, things=THINGS)
    mask = (semantic == 1).long()

    def tree(kernel: str) -> Callable[..., Tensor]:
        return lambda x, **how: le.hierarchical_lovasz_hinge(x, levels, kernel=kernel, ncm_weight=1.0, **how).loss

    losses: tuple[Callable[..., Tensor], ...] = (
        lambda x, **how: le.lovasz_hinge(x[:, 0], mask, **how),
        lambda x, **how: le.lovasz_softmax(x, semantic, **how),
        tree("margin"),
        tree("gaussian"),
    )
    for loss in losses:
        expected, slope = _value_and_gradient(loss, logits, impl="reference")
        # Counting in 512 bins per doubling costs at most 1/512 of the value. The rest is float32's rounding over the
        # sums of a picture, seen to be below 1e-5.
        for how, rtol in (({"impl": "numba"}, 1e-4), ({"impl": "numba", "method": "binned"}, 1 / 512 + 1e-4)):
            value, gradient = _value_and_gradient(loss, logits, **how)
            same = abs(value - expected) <= rtol * abs(expected)
            _require(same, f"a loss of {value} by {how} and {expected} by the reference, {side} pixels, seed {seed}")
            if "method" not in how:
                off = float((gradient - slope).abs().sum() / slope.abs().sum())
                # At a tie of two errors of float32 either order is a subgradient: a few pixels of many.
                _require(off <= 1e-2, f"a gradient {off:.1e} off by {how}, {side} pixels, seed {seed}")
        yield 3


def _value_and_gradient(loss: Callable[..., Tensor], logits: Tensor, **how: Any) -> tuple[float, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, **how)
    value.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    _require(bool(torch.isfinite(leaf.grad).all()), f"a gradient that is not finite, by {how}")
    return float(value.detach()), leaf.grad


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(what)
