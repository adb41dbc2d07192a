"""The dictionaries of transformers, read with care: they come from code that is not ours."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lovasz_embed import _check

_WANTED = ("id", "label_id", "score")


def read_output(output: Mapping[str, Any]) -> tuple[Tensor, list[tuple[int, int, float]]]:
    """Return the map of ids (*spatial), int32, 0 = void, and id, label_id and score of every segment.

    Raises:
        TypeError: The output is no dictionary, or holds no map of numbers.
        ValueError: It lacks an entry, or one is out of range.
    """
    if not isinstance(output, Mapping):
        raise TypeError(_check.message("outputs", "hold dictionaries", type(output).__name__))
    for name in ("segmentation", "segments_info"):
        if name not in output:
            raise ValueError(_check.message("outputs", f"hold {name!r}", list(map(str, output))))
    return _ids(output["segmentation"]), [_segment(entry) for entry in _entries(output["segments_info"])]


def _ids(segmentation: Any) -> Tensor:
    try:
        array = np.array(segmentation) if isinstance(segmentation, np.ndarray) else segmentation
        ids = torch.as_tensor(array)  # of a copy: an array may be read-only, or run backwards
        real = ids.layout == torch.strided and not ids.is_meta and not ids.is_complex()
        ids = ids.detach().double() if real else ids
    except (TypeError, ValueError, RuntimeError):
        real = False
    if not real or ids.ndim < 1:
        raise TypeError(_check.message("outputs", "hold 'segmentation' as a map of ids", repr(segmentation)[:100]))
    # Transformers returns floats where nothing is found; beyond 2^53 a float64 is larger than int32 in any case.
    if not bool((ids < 2**31).all()):  # NaN is not either
        raise ValueError(_check.message("outputs", "hold ids up to 2147483647 in 'segmentation'", "others"))
    return ids.clamp(min=0).to(torch.int32)


def _entries(info: Any) -> list[Any]:
    if not isinstance(info, (list, tuple)):
        raise TypeError(_check.message("outputs", "hold 'segments_info' as a list", type(info).__name__))
    return list(info)


def _segment(entry: Any) -> tuple[int, int, float]:
    rule = "hold id, label_id and score of each segment"
    if not isinstance(entry, Mapping) or not set(_WANTED) <= entry.keys():
        raise ValueError(_check.message("outputs", rule, repr(entry)[:100]))
    try:
        return operator.index(entry["id"]), operator.index(entry["label_id"]), float(entry["score"])
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(_check.message("outputs", rule + " as numbers", repr(dict(entry))[:100])) from None
