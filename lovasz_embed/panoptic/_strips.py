"""Maps that may be larger than memory, gone through from top to bottom, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lovasz_embed import _check
from lovasz_embed.panoptic.result import PanopticResult

_PIXELS = 1 << 20


def strip_rows(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of a picture, about a megapixel at a time.

    >>> [(rows.start, rows.stop) for rows in strip_rows(5, 1 << 19)]
    [(0, 2), (2, 4), (4, 5)]
    """
    each = max(_PIXELS // max(width, 1), 1)
    return (slice(top, min(top + each, height)) for top in range(0, height, each))


def index_strips(result: PanopticResult) -> Iterator[tuple[slice, NDArray[np.int32]]]:
    """Yield rows of a result of one picture (H, W), and in them the position of each pixel's segment.

    It is `PanopticResult.segment_index`, strip by strip: 0 = void, j = the j-th segment, counted from 1.

    Raises:
        ValueError: The map holds an id that the segments do not.
    """
    ids = result.segmentation[0].cpu().numpy()
    table = np.array([0, *(segment.id for segment in result.segments[0])], np.int32)
    numbered = int(table[-1]) == len(table) - 1  # 1..n already
    for rows in strip_rows(*ids.shape):
        strip = np.array(ids[rows])
        if numbered:
            known = (strip >= 0) & (strip < len(table))
        else:
            place = np.minimum(np.searchsorted(table, strip), len(table) - 1).astype(np.int32)
            known = table[place] == strip
        if not known.all():
            rule = "hold only ids of its segments (picture 0)"
            raise ValueError(_check.message("segmentation", rule, int(strip[~known][0])))
        yield rows, strip if numbered else place
