"""Predictions against their truth, picture by picture: the scores of each, of all, and which to look at."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from torch import Tensor

from lovasz_embed import _check
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.panoptic.result import is_result
from lovasz_embed.quality import PanopticQuality, QualityResult


class PictureScore(NamedTuple):
    """The quality of one picture.

    Attributes:
        position: In the data set, from 0.
        name: Its name.
        pq: Panoptic quality, the mean of the classes that occur in it; nan where none does.
        sq: Segmentation quality, likewise.
        rq: Recognition quality, likewise.
        tp: Segments that were found.
        fp: Predicted segments that match none.
        fn: Segments that were missed.
        wrong: (class, fp, fn) of the classes with mistakes, most mistakes first.
    """

    position: int
    name: str
    pq: float
    sq: float
    rq: float
    tp: int
    fp: int
    fn: int
    wrong: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Scored:
    """Scores of a data set.

    Attributes:
        quality: Of all pictures, counted together.
        pictures: Of each picture, in the order of the data set.
        best: The best pictures with their predictions, best first.
        worst: The worst pictures with their predictions, worst first; no picture is in both.
    """

    quality: QualityResult
    pictures: tuple[PictureScore, ...]
    best: tuple[tuple[PictureScore, PanopticResult], ...]
    worst: tuple[tuple[PictureScore, PanopticResult], ...]


def score_pictures(
    predictions: Iterable[PanopticResult],
    truths: Iterable[PanopticResult],
    names: Collection[str],
    *,
    classes: int,
    things: Collection[int],
    keep: int = 4,
) -> Scored:
    """Score predictions one by one; memory holds the predictions of the best and the worst alone.

    Args:
        predictions: Results of one picture each.
        truths: The same pictures in the same order.
        names: Their names.
        classes: Number of categories.
        things: The categories that are things.
        keep: Pictures to keep at either end; a picture without a score (void alone) is at neither.

    Raises:
        ValueError: If there are more of one than of the others, or sizes differ.

    >>> import torch
    >>> maps = torch.tensor([[[0, 1]]])
    >>> truth = PanopticResult.from_maps(maps, maps, things={1})
    >>> scored = score_pictures([truth], [truth], ["a"], classes=2, things={1})
    >>> scored.pictures[0].pq, [picture.name for picture, _ in scored.worst], scored.best
    (1.0, ['a'], ())
    """
    _check.is_int("keep", keep)
    if keep < 0:
        raise ValueError(_check.message("keep", "be 0 or above", keep))
    given = {"predictions": predictions, "truths": truths, "names": names}
    for argument, values in given.items():
        if not isinstance(values, Iterable) or isinstance(values, Tensor):
            raise TypeError(_check.message(argument, "hold one entry per picture", type(values).__name__))
    total = PanopticQuality(classes, things)
    pictures: list[PictureScore] = []
    # Held in the order of their scores; what is neither among the best nor the worst so far is dropped.
    held: list[tuple[PictureScore, PanopticResult]] = []
    for index, (prediction, truth, name) in enumerate(zip_longest(predictions, truths, names)):
        if prediction is None or truth is None or name is None:
            got = f"{index} of {'names' if name is None else 'truths' if truth is None else 'predictions'}"
            raise ValueError(_check.message("predictions, truths and names", "be equally many", got))
        is_result("predictions", prediction)
        is_result("truths", truth)
        metric = PanopticQuality(classes, total.things)
        metric.update(prediction, truth)
        total.merge(metric)
        picture = _picture(index, name, metric.compute())
        pictures.append(picture)
        if not math.isnan(picture.pq):
            held.append((picture, prediction))
            held.sort(key=lambda pair: (pair[0].pq, pair[0].position))
            del held[keep : len(held) - keep]
    half = -(-len(held) // 2)  # of few pictures each is shown once
    worst, best = held[: min(keep, half)], held[::-1][: min(keep, len(held) - half)]
    return Scored(total.compute(), tuple(pictures), tuple(best), tuple(worst))


def _picture(index: int, name: str, quality: QualityResult) -> PictureScore:
    tp, fp, fn = (count.tolist() for count in (quality.per_class.tp, quality.per_class.fp, quality.per_class.fn))
    wrong = [(number, fp[number], fn[number]) for number in range(len(tp)) if fp[number] + fn[number]]
    wrong.sort(key=lambda entry: (-entry[1] - entry[2], entry[0]))
    return PictureScore(index, name, quality.pq, quality.sq, quality.rq, sum(tp), sum(fp), sum(fn), tuple(wrong))
