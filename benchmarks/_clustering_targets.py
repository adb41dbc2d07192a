"""The table that clustering has to reach, row by row."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _clustering_race import OURS, Result
from _clustering_scenes import MIN_SIZE, Problem, noisy
from _measure import peak_mb, timed
from _rows import Row
from bench_quality import hotcoco_scorer, truth_and_prediction, write

from lovasz_embed.clustering import cluster_embeddings
from lovasz_embed.panoptic import segment
from lovasz_embed.quality import panoptic_quality

OFFICIAL = 2**21
_ROUNDS = 5
CLASSES, THINGS = 19, tuple(range(11, 19))


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    pixels: int
    repeats: int
    read: float  # bytes per second

    @property
    def judged(self) -> bool:
        """The targets are for one size."""
        return self.pixels == OFFICIAL


def reading_rate(floats: int = 2**26) -> float:
    """Return the bytes per second at which torch's threads read float32 numbers: the best of a few sums."""
    source = torch.ones(floats)
    return source.nbytes / min(timed(source.sum, "cpu") for _ in range(_ROUNDS))


def clustering_rows(setting: Setting) -> Iterator[Row]:
    """Yield time and memory of margin clustering."""
    for instances, milliseconds in ((50, 40), (300, 120)):
        problem = noisy(setting.pixels, 8, instances)
        embedding, classes = torch.from_numpy(problem.embedding), torch.from_numpy(problem.classes)

        def call(e: torch.Tensor = embedding, c: torch.Tensor = classes, p: Problem = problem) -> object:
            return cluster_embeddings(e, c, radius=p.radius, reach=p.reach, min_size=MIN_SIZE)

        work = f"margin, {setting.pixels} pixels, D = 8, K = {instances}, noisy"
        yield _time_row(setting, work, call, milliseconds, embedding.nbytes)
        if instances == 50:
            peak = peak_mb(call, "cpu")
            ratio = None if peak is None else peak * 1e6 / embedding.nbytes
            yield Row(
                "peak extra memory of the same",
                "the embedding's bytes",
                "at most 0.75 x",
                ratio,
                ratio <= 0.75 if ratio is not None and setting.judged else None,
                details=(f"{peak:.0f} MB beside {embedding.nbytes / 1e6:.0f} MB" if peak is not None else "unknown",),
            )


def growth_row(setting: Setting, few: int, many: int) -> Iterator[Row]:
    """Yield how time grows with the pixels."""
    seconds = []
    for pixels in (few, many):
        problem = noisy(pixels, 8, 50)
        embedding, classes = torch.from_numpy(problem.embedding), torch.from_numpy(problem.classes)
        seconds.append(_times(lambda e=embedding, c=classes: _margin(e, c), setting.repeats))
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[0])
    linear = many / few
    yield Row(
        f"growth of margin from {few} to {many} pixels",
        f"{linear:g} times the pixels, {linear:g} times the time",
        "at most 1 x linear",
        ratio / linear,
        ratio <= linear if many == 2**23 else None,
        unit=" x linear",
        details=tuple(_words(name, s) for name, s in zip((f"{few} pixels", f"{many} pixels"), seconds, strict=True)),
    )


def segment_row(setting: Setting) -> Iterator[Row]:
    """Yield the time of `segment`: 19 categories, instances of eight, assembly."""
    problem = noisy(setting.pixels, 8, 50)
    generator = torch.Generator().manual_seed(0)
    truth = torch.from_numpy(problem.truth).long()
    category = torch.randint(CLASSES, (51,), generator=generator)  # of each instance
    means = torch.randn(CLASSES, 8, generator=generator)
    means = 40 * means / means.norm(dim=1, keepdim=True)  # farther apart than instances
    embedding = torch.from_numpy(problem.embedding) + means[category[truth]].movedim(-1, 1)
    embedding = embedding.contiguous()
    yield _time_row(
        setting,
        f"segment, {setting.pixels} pixels, D = 8, {CLASSES} categories, {len(THINGS)} of things",
        lambda: segment(embedding, means, things=THINGS, radius=problem.radius, min_thing_area=MIN_SIZE),
        100,
        embedding.nbytes,
    )


def quality_row(setting: Setting, height: int, width: int) -> Iterator[Row]:
    """Yield the time of `panoptic_quality`, beside hotcoco (from files) and torchmetrics."""
    truth, prediction = truth_and_prediction(height, width, 100 if setting.judged else 12)
    ours = _times(lambda: panoptic_quality(prediction, truth), setting.repeats)
    details = [_words("lovasz_embed", ours)]
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "truth.json"), Path(folder, "prediction.json")
        write(truth, files[0])
        write(prediction, files[1])
        hotcoco = hotcoco_scorer(*files)
        if hotcoco is None:
            details.append("hotcoco: not installed")
        else:
            details.append(_words("hotcoco (reads files)", _times(hotcoco, min(setting.repeats, 3))))
    details.append(_torchmetrics(truth, prediction))
    yield _judge(setting, f"panoptic_quality, {height} x {width}", ours, 50, details)


def peer_rows(results: Sequence[Result]) -> Iterator[Row]:
    """Yield accuracy and speed beside the peers, from the sweep."""
    here = [r for r in results if (r.data, r.pixels, r.dims, r.instances) == ("noisy", OFFICIAL, 8, 50) and r.seconds]
    scored = [r for r in here if r.ari is not None]
    ours = next((r for r in scored if r.method == "margin"), None)
    peers = [r for r in scored if r.method not in OURS]
    if ours is None or ours.ari is None or not peers:
        return
    best = max(peers, key=lambda r: r.ari or 0.0)
    lead = ours.ari - (best.ari or 0.0)
    yield Row(
        "adjusted Rand index of margin, noisy, 2^21 pixels, K = 50",
        f"the best peer, {best.method} ({best.ari:.4f})",
        "at most 0.002 below",
        lead,
        lead >= -0.002,
        unit="",
        details=(f"margin {ours.ari:.4f}",),
    )
    equal = [r for r in peers if (r.ari or 0.0) >= ours.ari - 0.002 and r.median]
    rest = f"{len(peers)} peers ended within the limit of {ours.limit_s:g} s"
    if not equal:
        yield Row(
            "times faster than the fastest peer of equal index",
            "no peer within the limit and within 0.002",
            "at least 50 x",
            None,
            None,
            details=(rest,),
        )
        return
    fastest = min(equal, key=lambda r: r.median or 0.0)
    ratio = (fastest.median or 0.0) / (ours.median or 1.0)
    yield Row(
        "times faster than the fastest peer of equal index", fastest.method, "at least 50 x", ratio, ratio >= 50,
        details=(rest,),
    )  # fmt: skip


def _margin(embedding: torch.Tensor, classes: torch.Tensor) -> object:
    return cluster_embeddings(embedding, classes, radius=1.25, reach=2.5, min_size=MIN_SIZE)


def _times(call: Callable[[], object], repeats: int) -> list[float]:
    call()  # compiles
    return [timed(call, "cpu") for _ in range(repeats)]


def _time_row(setting: Setting, work: str, call: Callable[[], object], milliseconds: float, read: int) -> Row:
    seconds = _times(call, setting.repeats)
    floor = read / setting.read
    share = statistics.median(seconds) / floor
    details = [
        _words("ours", seconds),
        f"floor {1e3 * floor:.2f} ms: {read / 1e6:.0f} MB once at {setting.read / 1e9:.1f} GB/s; we are {share:.1f} x",
    ]
    return _judge(setting, work, seconds, milliseconds, details, floor_seconds=floor)


def _judge(
    setting: Setting, work: str, seconds: Sequence[float], limit: float, details: Sequence[str], **data: Any
) -> Row:
    value = 1e3 * statistics.median(seconds)
    return Row(
        work,
        "the clock",
        f"at most {limit:g} ms",
        value,
        value <= limit if setting.judged else None,
        unit=" ms",
        spread=(1e3 * min(seconds), 1e3 * max(seconds)),
        details=tuple(details),
        data={"seconds": list(seconds), **data},
    )


def _words(name: str, seconds: Sequence[float]) -> str:
    low, high = 1e3 * min(seconds), 1e3 * max(seconds)
    return f"{name:24} {1e3 * statistics.median(seconds):9.2f} ms ({low:.2f} ... {high:.2f}; repeats: {len(seconds)})"


def _torchmetrics(truth: Any, prediction: Any) -> str:
    """Time torchmetrics once, where it is installed; its rules differ (see docs/panoptic-quality.md)."""
    try:
        from torchmetrics.functional.detection import panoptic_quality as theirs
    except Exception as error:  # not installed, or a torchvision that does not fit the torch
        return f"torchmetrics: not importable, {type(error).__name__}"
    pairs = []
    for result in (prediction, truth):
        ids = result.segmentation.long()
        table = torch.full((int(ids.max()) + 1,), 255)
        for part in result.segments[0]:
            table[part.id] = part.category
        pairs.append(torch.stack([table[ids], ids], -1))
    stuff = {part.category for part in truth.segments[0] if not part.is_thing}
    things = {part.category for part in truth.segments[0] if part.is_thing}
    once = timed(lambda: theirs(*pairs, things=things, stuffs=stuff, allow_unknown_preds_category=True), "cpu")
    return _words("torchmetrics (once)", [once])
