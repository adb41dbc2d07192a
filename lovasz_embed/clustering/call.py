"""The one call: checks, pictures side by side, one result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._ops.density import cluster_picture_by_density
from lovasz_embed._ops.labels import as_labels
from lovasz_embed._ops.margin import PictureClusters, cluster_picture
from lovasz_embed._ops.seeded import cluster_picture_by_seeds
from lovasz_embed._ops.threads import map_threads
from lovasz_embed.clustering._device import cluster_on_device, stays_on_device
from lovasz_embed.clustering._options import Options
from lovasz_embed.clustering._pictures import as_tensor, compact, compactness, planar, runner
from lovasz_embed.clustering.result import Clusters

_METHODS: dict[str, Callable[..., PictureClusters]] = {
    "margin": cluster_picture,
    "seeded": cluster_picture_by_seeds,
    "density": cluster_picture_by_density,
}


def cluster_embeddings(
    embedding: Tensor | NDArray[Any],
    mask_or_labels: Tensor | NDArray[Any],
    *,
    radius: float | None = None,
    method: str = "margin",
    min_size: int = 1,
    connected: bool = False,
    reach: float | None = None,
    seeds: Tensor | NDArray[Any] | None = None,
    bandwidth: Tensor | NDArray[Any] | None = None,
    min_seed: float | None = None,
    min_fresh: float | None = None,
) -> Clusters:
    r"""Group the pixels of every picture into instances, without knowing how many.

    **method="margin"**, for instances of a known radius. A pixel x of class c belongs to its nearest centre,
    argmin_k \|x - c_k\| over the centres of class c, if that is within `reach`. Centres are fixed points of mean shift
    with a flat kernel, c = mean of {x: \|x - c\| <= radius}, sought among a sample of the pixels, densest first, then
    among what is left, until nothing new is found; each is then moved to the mean of the pixels nearest to it.

    Its guarantee: let every pixel lie within δ of the mean of its instance, and the means of two instances of one
    class at least Δ apart. If

        2 δ < radius < Δ - 2 δ,

    the clusters are the instances, exactly, down to a single pixel and in any order of the pixels (with the default
    options, and at most 4096 instances of a class in a picture). So Δ > 2 radius is enough for every δ < radius / 2.
    A level of the loss with radius r, inner radius a and outer radius b, r² = (a² + b²) / 2, trains towards δ <= a:
    for b = 3a and `radius` = r the condition reads Δ > 4.24 a.

    Beyond the guarantee (tails, mixed pixels along borders, closer means) weak modes do not split an instance: a mode
    counts only if it is farther than `radius` from all denser ones, and one found among what was left only if most of
    the pixels nearest to it were left as well, and it does not look like a stretch of mixed pixels between two others.

    **method="seeded"**, for networks that say how well each pixel stands for its instance, and perhaps how large that
    is. One after the other, the pixels whose seed is at least `min_seed` and that no cluster has taken, highest
    seed first, propose all pixels of their class within their bandwidth r, {x: sum_d (x_d - s_d)² / r_d² <= 1} around
    the pixel's embedding s. If at least `min_size` of those, and more than the share `min_fresh`, belong to no
    cluster yet, these become one, for good. Otherwise none of them proposes any more, but others may take them.

    **method="density"**, for embeddings without a known radius: clusters are the dense regions that last longest
    while the required density rises (HDBSCAN*, on a sample), and each extends as far as its own pixels do.

    Args:
        embedding: Floats (B, D, *spatial), embedding units, of any number of spatial dimensions.
        mask_or_labels: (B, *spatial). bool: cluster the pixels that are True. Integers: the class of each
            pixel, 0 and above; pixels of a negative class are not clustered, and clusters never cross
            classes. A mask in uint8 is thus two classes: convert it with `.bool()`.
        radius: Radius of an instance, embedding units: the radius of the instance level of the loss. "seeded" takes
            it in place of a bandwidth; for "density" it is an upper limit, and None is none.
        method: "margin", "seeded" or "density", described above and in the documentation.
        min_size: Fewest pixels of a cluster. For "margin", pixels of a smaller one join the next centre within
            `reach`, or become noise.
        connected: Split clusters into spatially connected parts (sharing a face); parts below `min_size`
            become noise.
        reach: Farthest distance at which a pixel joins its nearest centre, embedding units; None is `radius`, and for
            "density" the extent of the cluster. A larger one lets pixels in tails and along borders join, a smaller
            one turns them into noise. Not for "seeded".
        seeds: Floats (B, *spatial) in [0, 1], for "seeded": how well a pixel stands for its instance. Compared in
            float32.
        bandwidth: Positive floats (B, 1, *spatial), or (B, D, *spatial) to have one for each dimension, embedding
            units, for "seeded" in place of `radius`: the radius of the instance that the pixel belongs to, as in
            `Level.bandwidth`, where the gaussian kernel is one half. For exp(-d² / (2 σ²)) it is σ sqrt(2 ln 2).
        min_seed: Smallest seed from which a cluster grows, in [0, 1], for "seeded"; None is 0.5.
        min_fresh: Share of its proposal that a cluster must exceed, in [0, 1], for "seeded"; None is 0.5.

    Returns:
        `Clusters`, on the device of the embedding, without gradients. The input may be NumPy arrays as well, and
        `Clusters.numpy()` is the result as arrays: a caller needs no torch.

    Raises:
        TypeError: If the embedding is not floating point, the labels are no integers, or an option has the
            wrong type.
        ValueError: If shapes or devices differ, `radius` or `reach` is not above 0, `min_size` is below 1,
            the method is unknown, needs an option that is missing or takes none of those given, or a pixel to be
            clustered has a seed outside [0, 1] or a bandwidth that is not above 0.

    Warns:
        RuntimeWarning: If pixels to be clustered hold NaN or Inf, in the embedding, the seeds or the bandwidth. They
            become noise and influence nothing; `Clusters.invalid` counts them.

    Notes:
        For "margin", of equal densities the climb begins with the smaller coordinate, and of equally near centres the
        one with the smaller coordinate is taken; for "seeded", equal seeds take their turns in scan order. Sums are
        integers or taken in a fixed order: neither the number of threads nor a repetition changes a bit. Half
        precision is computed in float32. On a CUDA device with Triton, "margin" runs there unless `connected`: the
        embedding and the labels stay, and the host waits for a few counts. Everything else runs on the CPU; an
        embedding on another device is copied picture by picture. Values of pixels that are not clustered are never
        used. For "margin" O(P·D) time where pixels lie well inside their instance, O(P·K·D) at worst and on a GPU;
        memory is below that of one picture's embedding, plus its copy if it is not contiguous float32 or float64 on
        the CPU. While `min_size` is 1, every isolated outlier is a cluster.

    References:
        Y. Cheng, "Mean shift, mode seeking, and clustering", PAMI 17(8), 1995 (flat kernel, section I).
        The guarantee and its proof are ours; see the page "Clustering" of the documentation.
        D. Neven, B. De Brabandere, M. Proesmans, L. Van Gool, "Instance segmentation by jointly optimizing spatial
        embeddings and clustering bandwidth", CVPR 2019 (seeds and bandwidth; what differs: "Clustering by seeds").
        R. Campello, D. Moulavi, J. Sander, "Density-based clustering based on hierarchical density estimates", PAKDD
        2013 (density).

    Example:
        >>> embedding = torch.tensor([[[0.0, 0.2, 5.1, 0.1, 5.0, 9.9]]])
        >>> mask = torch.tensor([[True, True, True, True, True, False]])
        >>> clusters = cluster_embeddings(embedding, mask, radius=1.0)
        >>> clusters.labels
        tensor([[1, 1, 2, 1, 2, 0]], dtype=torch.int32)
        >>> clusters.sizes, clusters.margin_ok
        ((tensor([3, 2]),), (True,))
        >>> seeds = torch.tensor([[0.6, 0.9, 0.8, 0.7, 0.4, 0.9]])  # how central a pixel is in its instance
        >>> cluster_embeddings(embedding, mask, method="seeded", seeds=seeds, radius=1.0).scores
        (tensor([0.9000, 0.8000]),)
    """
    embedding, mask_or_labels = as_tensor("embedding", embedding), as_tensor("mask_or_labels", mask_or_labels)
    seeds, bandwidth = as_tensor("seeds", seeds), as_tensor("bandwidth", bandwidth)
    _check.is_embedding("embedding", embedding)
    _check.has_values("embedding", embedding)
    labels = as_labels("mask_or_labels", mask_or_labels)
    spatial = tuple(embedding.shape[2:])
    _check.same_shape("mask_or_labels", labels, (len(embedding), *spatial), "embedding (B, *spatial)")
    _check.same_device("mask_or_labels", labels, embedding.device, "embedding")
    options = Options(method, radius, min_size, connected, reach, seeds, bandwidth, min_seed, min_fresh)
    options.check(embedding)
    if radius is not None and stays_on_device(embedding, method, connected):
        clusters_there = cluster_on_device(embedding, labels, radius=radius, reach=reach, min_size=min_size)
        _warn_of_invalid(clusters_there.invalid)
        return clusters_there

    cluster = _METHODS[method]
    run = runner(len(embedding))

    def picture(b: int) -> tuple[PictureClusters, NDArray[np.int64]]:
        classes, ids = compact(labels[b].cpu().flatten().numpy())
        clusters = cluster(planar(embedding[b].detach()), classes, spatial, **options.of_picture(b), run=run)
        return clusters, ids[clusters.classes]

    results = map_threads(picture, range(len(embedding)))
    found = [clusters for clusters, _ in results]
    _warn_of_invalid([clusters.invalid for clusters in found])
    device, dtype = embedding.device, torch.promote_types(embedding.dtype, torch.float32)
    maps = torch.zeros(labels.shape, dtype=torch.int32)
    for b, clusters in enumerate(found):
        maps[b] = torch.from_numpy(clusters.labels).reshape(spatial)
    return Clusters(
        labels=maps.to(device),
        centres=tuple(torch.from_numpy(clusters.centres).to(device, dtype) for clusters in found),
        sizes=tuple(torch.from_numpy(clusters.sizes).to(device) for clusters in found),
        scores=tuple(_scores(clusters, radius).to(device, torch.float32) for clusters in found),
        classes=tuple(torch.from_numpy(ids).to(device) for _, ids in results),
        margin_ok=tuple(_margin_ok(clusters, radius) for clusters in found),
        invalid=tuple(clusters.invalid for clusters in found),
    )


def _scores(clusters: PictureClusters, radius: float | None) -> Tensor:
    if clusters.scores is not None or radius is None:
        assert clusters.scores is not None, "a method without a radius has scores of its own"
        return torch.from_numpy(clusters.scores)
    return torch.from_numpy(compactness(clusters.variances, radius))


def _margin_ok(clusters: PictureClusters, radius: float | None) -> bool:
    if clusters.apart is not None or radius is None:
        assert clusters.apart is not None, "a method without a radius knows by itself what is apart"
        return clusters.apart
    return clusters.separation > 2 * radius


def _warn_of_invalid(found: Sequence[int]) -> None:
    count = sum(found)
    if count:
        where = f"in {sum(invalid > 0 for invalid in found)} of {len(found)} pictures"
        text = f"{count} pixels to be clustered, {where}, hold NaN or Inf: they are noise"
        remedy = "Look for a diverged network or an overflow in half precision; Clusters.invalid counts them."
        warnings.warn(f"{text}. {remedy}", RuntimeWarning, stacklevel=3)
