"""One segment of a picture, and the check of all segments of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lovasz_embed import _check
from lovasz_embed.panoptic._maps import MAX_CATEGORY

_MOST_IDS = 2**31 - 1


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


def check_segments(picture: Sequence[Segment]) -> None:
    """Raise where the segments of a picture are none, or their numbers not what `Segment` says; O(segments)."""
    if not isinstance(picture, (tuple, list)) or not all(isinstance(segment, Segment) for segment in picture):
        kinds = sorted({type(s).__name__ for s in picture}) if isinstance(picture, (tuple, list)) else None
        got = type(picture).__name__ if kinds is None else f"entries of {kinds}"
        raise TypeError(_check.message("segments", "be tuples of Segment", got))
    ids, categories, areas = (_whole(name, picture) for name in ("id", "category", "area"))
    if any(a >= b for a, b in pairwise([0, *ids])):
        raise ValueError(_check.message("segments", "have ids from 1 in ascending order", ids))
    if ids and ids[-1] > _MOST_IDS:
        raise ValueError(_check.message("segments", f"have ids up to {_MOST_IDS}, which int32 holds", ids[-1]))
    if categories and not 0 <= min(categories) <= max(categories) <= MAX_CATEGORY:
        got = f"{min(categories)} to {max(categories)}"
        raise ValueError(_check.message("segments", f"have categories from 0 to {MAX_CATEGORY}", got))
    if areas and min(areas) < 0:
        raise ValueError(_check.message("segments", "have areas of 0 or above", min(areas)))
    flags = {type(flag) for s in picture for flag in (s.is_thing, s.is_crowd)}
    if not flags <= {bool, np.bool_}:
        got = ", ".join(sorted(kind.__name__ for kind in flags))
        raise TypeError(_check.message("segments", "have True or False as is_thing and is_crowd", got))
    wrong = [s.score for s in picture if not isinstance(s.score, (float, int)) or not 0 <= s.score <= 1]
    if wrong:
        raise ValueError(_check.message("segments", "have scores in [0, 1]", repr(wrong[0])))


def _whole(name: str, picture: Sequence[Segment]) -> list[int]:
    values = [getattr(segment, name) for segment in picture]
    if set(map(type, values)) <= {int}:
        return values
    if all(isinstance(value, (int, np.integer)) for value in values):
        return list(map(int, values))
    raise TypeError(_check.message("segments", f"have an int as {name}", repr(values)))
