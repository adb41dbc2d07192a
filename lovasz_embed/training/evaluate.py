"""Predict a data set picture by picture, and score it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import zip_longest
from os import PathLike

import numpy as np

from lovasz_embed import _check
from lovasz_embed.formats._mapped import mapped
from lovasz_embed.model import PanopticEmbedder, prepare
from lovasz_embed.model.preparing import Picture
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.quality import PanopticQuality, QualityResult


def predict(
    model: PanopticEmbedder,
    images: Iterable[Picture],
    *,
    tile: int | None = None,
    overlap: int | None = None,
    scratch: str | PathLike[str] | None = None,
) -> Iterator[PanopticResult]:
    """Segment pictures (H, W, 3) of bytes one by one, each at its own size.

    Args:
        model: Put into evaluation mode.
        images: Read one at a time, so that a large folder need not fit into memory. With tiles, one may lie in a file,
            such as `numpy.memmap`, `PanopticDataset.mapped_image` or what else reads a part when it is indexed.
        tile: Side of the tiles in which each picture is segmented, pixels; None segments it as a whole.
        overlap: Pixels around a tile that the network sees as well; see `PanopticEmbedder.segment_tiles`.
        scratch: With tiles, a folder for temporary files, where the map of the result lies until nobody holds it, so
            that pictures and results may be larger than memory. None keeps the map in memory.

    Yields:
        A result of one picture, on the CPU.

    Raises:
        ValueError: If the model has no class means yet, there is an overlap without a tile, or one of them does not
            fit the model.

    Example:
        >>> import torch
        >>> from lovasz_embed.model import ModelConfig
        >>> model = PanopticEmbedder(ModelConfig(classes=("floor", "cup"), things=(1,), widths=(4, 8)))
        >>> _ = model.ncm.update(torch.rand(1, 8, 4, 4), torch.arange(16).view(1, 4, 4) % 2)
        >>> [result] = predict(model, [np.zeros((20, 30, 3), np.uint8)])
        >>> tuple(result.segmentation.shape)
        (1, 20, 30)
    """
    _check.is_a("model", model, PanopticEmbedder, "lovasz_embed.model.PanopticEmbedder")
    _check.is_iterable("images", images, "an iterable of pictures")
    if tile is None and overlap is not None:
        raise ValueError(_check.message("overlap", "come with a tile", overlap))
    if tile is None and scratch is not None:
        raise ValueError(_check.message("scratch", "come with a tile", scratch))
    model.eval()
    device = next(model.parameters()).device
    for image in images:
        if tile is not None:
            out = None if scratch is None else mapped(image.shape[:2], np.int32, scratch)
            yield model.segment_tiles(image, tile=tile, overlap=overlap, out=out, scratch=scratch)
            continue
        result = model.segment(prepare(np.asarray(image))[None].to(device))
        yield PanopticResult(result.segmentation.cpu(), result.segments)


def evaluate(
    predictions: Iterable[PanopticResult],
    truths: Iterable[PanopticResult],
    *,
    classes: int,
    things: Collection[int],
) -> QualityResult:
    """Score predictions against truths, picture by picture, all counted together.

    Args:
        predictions: Results of one or more pictures each.
        truths: The same pictures in the same order.
        classes: Number of categories.
        things: The categories that are things.

    Raises:
        ValueError: If there are more of one than of the other, or sizes differ.

    Example:
        >>> import torch
        >>> truth = PanopticResult.from_maps(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]]), things={1})
        >>> evaluate([truth], [truth], classes=2, things={1}).pq
        1.0
    """
    for name, results in (("predictions", predictions), ("truths", truths)):
        _check.is_iterable(name, results, "an iterable of PanopticResult")
    quality = PanopticQuality(classes, things)
    for prediction, truth in zip_longest(predictions, truths):
        if prediction is None or truth is None:
            got = "fewer" if prediction is None else "more"
            raise ValueError(_check.message("predictions", "be as many as truths", got))
        quality.update(prediction, truth)
    return quality.compute()
