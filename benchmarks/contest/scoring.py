"""Scores of a trained contestant: panoptic quality on pictures, temporal stability on films, seconds of both parts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from contest.contestant import Contestant, Options
from contest.tracks import FilmFrame, Track
from lovasz_embed.model import prepare
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.quality import Frame, PanopticQuality, TemporalStability
from lovasz_embed.training import Labelled, whole

QUALITY = (
    "pq", "sq", "rq", "pq_things", "sq_things", "rq_things", "pq_stuff", "sq_stuff", "rq_stuff", "ap50", "miou",
)  # fmt: skip


class Scored(NamedTuple):
    """Scores of one way to read off, fractions; NaN is None.

    Attributes:
        scores: The fields of `QUALITY`.
        network_seconds: CPU seconds of the network, per picture.
        reading_seconds: CPU seconds from the network's output to the result, per picture.
    """

    scores: dict[str, float | None]
    network_seconds: float
    reading_seconds: float


@torch.no_grad()
def score_pictures(
    contestant: Contestant, pictures: Sequence[Labelled], track: Track, readings: Sequence[Options]
) -> list[Scored]:
    """Score whole pictures, each at its own size, read off in several ways; the network runs once."""
    qualities = [PanopticQuality(len(track.classes), track.things) for _ in readings]
    network, reading_times = 0.0, [0.0 for _ in readings]
    for index in range(len(pictures)):
        sample = pictures[index]
        truth = truth_of(sample, track)
        began = time.process_time()
        output = contestant(prepare(sample.image)[None])
        network += time.process_time() - began
        for number, reading in enumerate(readings):
            began = time.process_time()
            result = contestant.read(output, **reading)
            reading_times[number] += time.process_time() - began
            qualities[number].update(result, truth)
    count = max(len(pictures), 1)
    scored = []
    for quality, seconds in zip(qualities, reading_times, strict=True):
        result = asdict(quality.compute())
        scores = {name: number_or_none(result[name]) for name in QUALITY}
        scored.append(Scored(scores, network / count, seconds / count))
    return scored


@torch.no_grad()
def score_films(contestant: Contestant, track: Track, reading: Options) -> dict[str, float | None]:
    """Return the temporal stability over all films of the track."""
    stability = TemporalStability()
    for film in track.films:
        frames = [(frame, _seen(contestant, frame, track, reading)) for frame in film]
        for (before, first), (after, second) in pairwise(frames):
            moved = [b - a for a, b in zip(before.at, after.at, strict=True)]
            stability.update(first, second, shift=moved)
    return {name: number_or_none(value) for name, value in asdict(stability.compute()).items()}


def truth_of(sample: Labelled, track: Track) -> PanopticResult:
    """Return the truth of a picture."""
    view = whole(sample)
    return PanopticResult.from_maps(
        view.semantic[None], view.instance[None], things=track.things, crowd=view.crowd[None]
    )


def number_or_none(value: float) -> float | None:
    """Return what JSON can hold."""
    return None if math.isnan(value) or math.isinf(value) else value


def _seen(contestant: Contestant, frame: FilmFrame, track: Track, reading: Mapping[str, Any]) -> Frame:
    """Return what the contestant makes of a frame, beside its truth."""
    output = contestant(frame.picture[None])
    result = contestant.read(output, **reading)
    at = frame.at if track.moving else (0, 0)
    points = contestant.points(output, at)[0]
    return Frame(points, result.semantic()[0], frame.semantic, frame.instance, result.instance()[0])
