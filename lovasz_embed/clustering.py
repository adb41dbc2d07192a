"""Clustering: pixel embeddings to instances, exact where the embedding keeps its margin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.labels import as_labels
from lovasz_embed._ops.margin import Floats, Map, PictureClusters, cluster_picture
from lovasz_embed._ops.threads import map_threads

_TABLE = 65_536  # class labels below are looked up in a table, larger ones are sorted
_METHODS: dict[str, Callable[..., PictureClusters]] = {"margin": cluster_picture}


@dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of a batch: K_b of picture b, numbered 1..K_b by their first pixel in scan order.

    Attributes:
        labels: int32 (B, *spatial), the number of each pixel's cluster; 0 is noise and what was not
            clustered.
        centres: Per picture (K_b, D), mean embedding of the cluster numbered k + 1, in the embedding's
            dtype but at least float32.
        sizes: Per picture int64 (K_b,), pixels.
        scores: Per picture float32 (K_b,) in [0, 1], compactness: 1 - mean squared distance to the centre /
            radius². It is no probability.
        classes: Per picture int64 (K_b,), class label; 0 for a mask.
        margin_ok: Per picture, whether every two centres of one class are more than 2 radius apart: far
            enough for all instances whose pixels lie within radius / 2 of their mean. Parts that
            `connected=True` split count as one cluster. True where no class has two clusters.
    """

    labels: Tensor
    centres: tuple[Tensor, ...]
    sizes: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    classes: tuple[Tensor, ...]
    margin_ok: tuple[bool, ...]


def cluster_embeddings(
    embedding: Tensor,
    mask_or_labels: Tensor,
    *,
    radius: float,
    method: str = "margin",
    min_size: int = 1,
    connected: bool = False,
    reach: float | None = None,
) -> Clusters:
    r"""Group the pixels of every picture into instances of a known radius, without knowing how many.

    A pixel x of class c belongs to its nearest centre, argmin_k \|x - c_k\| over the centres of class c, if that is
    within `reach`. Centres are fixed points of mean shift with a flat kernel, c = mean of {x: \|x - c\| <= radius},
    sought among a sample of the pixels, densest first, then among what is left, until nothing new is found; each is
    then moved to the mean of the pixels nearest to it.

    **Guarantee.** Let every pixel lie within δ of the mean of its instance, and the means of two instances of one
    class at least Δ apart. If

        2 δ < radius < Δ - 2 δ,

    the clusters are the instances, exactly, down to a single pixel and in any order of the pixels (with the default
    options, and at most 4096 instances of a class in a picture). So Δ > 2 radius is enough for every δ < radius / 2.
    A level of the loss with radius r, inner radius a and outer radius b, r² = (a² + b²) / 2, trains towards δ <= a:
    for b = 3a and `radius` = r the condition reads Δ > 4.24 a.

    Beyond the guarantee (tails, mixed pixels along borders, closer means) weak modes do not split an instance: a mode
    counts only if it is farther than `radius` from all denser ones, and one found among what was left only if most of
    the pixels nearest to it were left as well.

    Args:
        embedding: Floats (B, D, *spatial), embedding units, of any number of spatial dimensions.
        mask_or_labels: (B, *spatial). bool: cluster the pixels that are True. Integers: the class of each
            pixel, 0 and above; pixels of a negative class are not clustered, and clusters never cross
            classes. A mask in uint8 is thus two classes: convert it with `.bool()`.
        radius: Radius of an instance, embedding units: the radius of the instance level of the loss.
        method: "margin" is the one described here.
        min_size: Fewest pixels of a cluster. Pixels of a smaller one join the next centre within `reach`, or
            become noise.
        connected: Split clusters into spatially connected parts (sharing a face); parts below `min_size`
            become noise.
        reach: Farthest distance at which a pixel joins its nearest centre, embedding units; None is `radius`.
            A larger one lets pixels in tails and along borders join, a smaller one turns them into noise.

    Returns:
        `Clusters`, on the device of the embedding, without gradients.

    Raises:
        TypeError: If the embedding is not floating point, the labels are no integers, or an option has the
            wrong type.
        ValueError: If shapes or devices differ, `radius` or `reach` is not above 0, `min_size` is below 1,
            the method is unknown, or a pixel to be clustered holds NaN or Inf.

    Notes:
        Equal densities go to the pixel first in scan order, equal distances to the centre with the smaller
        coordinate. Sums are float64 in a fixed order: neither the number of threads nor a repetition changes a bit.
        Half precision is computed in float32. Runs on the CPU; an embedding on another device is copied picture by
        picture. Values of pixels that are not clustered are never used. O(P D) time where pixels lie well inside
        their instance, O(P K D) at worst; memory is below that of one picture's embedding, plus its copy if it is
        not contiguous float32 or float64 on the CPU. While `min_size` is 1, every isolated outlier is a cluster.

    References:
        Y. Cheng, "Mean shift, mode seeking, and clustering", PAMI 17(8), 1995 (flat kernel, section I).
        The guarantee and its proof are ours; see the page "Clustering" of the documentation.

    Example:
        >>> embedding = torch.tensor([[[0.0, 0.2, 5.1, 0.1, 5.0, 9.9]]])
        >>> mask = torch.tensor([[True, True, True, True, True, False]])
        >>> clusters = cluster_embeddings(embedding, mask, radius=1.0)
        >>> clusters.labels
        tensor([[1, 1, 2, 1, 2, 0]], dtype=torch.int32)
        >>> clusters.sizes, clusters.margin_ok
        ((tensor([3, 2]),), (True,))
    """
    _check.is_embedding("embedding", embedding)
    labels = as_labels("mask_or_labels", mask_or_labels)
    spatial = tuple(embedding.shape[2:])
    _check.same_shape("mask_or_labels", labels, (len(embedding), *spatial), "embedding (B, *spatial)")
    _check.same_device("mask_or_labels", labels, embedding.device, "embedding")
    _check.positive("radius", radius)
    _check.one_of("method", method, tuple(_METHODS))
    if isinstance(min_size, bool) or not isinstance(min_size, int):
        raise TypeError(_check.message("min_size", "be an int, in pixels", type(min_size).__name__))
    if min_size < 1:
        raise ValueError(_check.message("min_size", "be at least 1 pixel", min_size))
    if not isinstance(connected, bool):
        raise TypeError(_check.message("connected", "be True or False", repr(connected)))
    if reach is not None:
        _check.positive("reach", reach)

    cluster = _METHODS[method]
    # Threads take whole pictures; a picture alone is cut into chunks. Either way the arithmetic is the same.
    run: Map = _map_serial if len(embedding) > 1 else map_threads

    def picture(b: int) -> tuple[PictureClusters, NDArray[np.int64]]:
        classes, ids = _compact(labels[b].cpu().flatten().numpy())
        planar = _planar(embedding[b].detach())
        _all_finite(planar, classes)
        clusters = cluster(
            planar,
            classes,
            spatial,
            radius=float(radius),
            reach=float(radius if reach is None else reach),
            min_size=min_size,
            connected=connected,
            run=run,
        )
        return clusters, ids[clusters.classes]

    results = map_threads(picture, range(len(embedding)))
    found = [clusters for clusters, _ in results]
    device, dtype = embedding.device, torch.promote_types(embedding.dtype, torch.float32)
    maps = torch.zeros(labels.shape, dtype=torch.int32)
    for b, clusters in enumerate(found):
        maps[b] = torch.from_numpy(clusters.labels).reshape(spatial)
    scores = [torch.from_numpy(1.0 - clusters.variances / radius**2).clamp(0.0, 1.0) for clusters in found]
    return Clusters(
        labels=maps.to(device),
        centres=tuple(torch.from_numpy(clusters.centres).to(device, dtype) for clusters in found),
        sizes=tuple(torch.from_numpy(clusters.sizes).to(device) for clusters in found),
        scores=tuple(score.to(device, torch.float32) for score in scores),
        classes=tuple(torch.from_numpy(ids).to(device) for _, ids in results),
        margin_ok=tuple(clusters.separation > 2 * radius for clusters in found),
    )


def _map_serial(function: Callable[[int], object], items: range) -> list[object]:
    return [function(item) for item in items]


def _planar(picture: Tensor) -> Floats:
    """Return a picture as a contiguous (D, P) array of float32 or float64, copied only if it must be."""
    picture = picture.to("cpu", torch.promote_types(picture.dtype, torch.float32))
    array: Floats = picture.flatten(1).contiguous().numpy()
    return array


def _compact(labels: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the class of every pixel without gaps (-1: not clustered), and the label of each class."""
    if labels.dtype == np.bool_:
        return labels.astype(np.int32) - 1, np.zeros(1, np.int64)
    labels = np.maximum(labels.astype(np.int64), -1)
    end = int(labels.max(initial=-1)) + 1
    if end > _TABLE:
        ids, classes = np.unique(labels, return_inverse=True)
        negative = int(ids[0] < 0)
        return (classes.reshape(-1) - negative).astype(np.int32), ids[negative:]
    present = np.zeros(end + 1, np.bool_)
    present[labels] = True  # -1 is the last place
    ids = np.flatnonzero(present[:end])
    table = np.full(end + 1, -1, np.int32)
    table[ids] = np.arange(len(ids))
    return table[labels], ids


def _all_finite(planar: Floats, classes: NDArray[np.int32]) -> None:
    """Raise `ValueError` if a pixel to be clustered holds NaN or Inf; plane by plane, to save memory."""
    for plane in planar:
        if not np.isfinite(plane).all():
            _check.all_finite("embedding", torch.from_numpy(planar[:, classes >= 0]))
            return
