"""What a clustering returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of a batch: K_b of picture b, numbered 1..K_b by their first pixel in scan order.

    Attributes:
        labels: int32 (B, *spatial), the number of each pixel's cluster; 0 is noise and what was not
            clustered.
        centres: Per picture (K_b, D), mean embedding of the cluster numbered k + 1, in the embedding's
            dtype but at least float32.
        sizes: Per picture int64 (K_b,), pixels.
        scores: Per picture float32 (K_b,) in [0, 1]. "margin": compactness, 1 - mean squared distance to the
            centre / radius²; it is no probability. "density": the same, with the extent of the cluster. "seeded":
            the seed of the pixel that the cluster grew from, and so did all parts that `connected=True` split.
        classes: Per picture int64 (K_b,), class label; 0 for a mask.
        margin_ok: Per picture, whether every two centres of one class are farther apart than their two radii
            together: for one `radius`, more than 2 radius, far enough for all instances whose pixels lie within
            radius / 2 of their mean. "seeded" takes a cluster's bandwidth, the largest of its dimensions, "density"
            the largest extent. Parts that `connected=True` split count as one cluster. True where no class has two
            clusters.
        invalid: Per picture, how many pixels to be clustered hold NaN or Inf. They are noise.
    """

    labels: Tensor
    centres: tuple[Tensor, ...]
    sizes: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    classes: tuple[Tensor, ...]
    margin_ok: tuple[bool, ...]
    invalid: tuple[int, ...]
