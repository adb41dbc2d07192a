"""What a clustering returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
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

    def numpy(self) -> ArrayClusters:
        """Return the same clusters as NumPy arrays, copied from the device where they are not on the CPU.

        >>> import numpy as np
        >>> from lovasz_embed import cluster_embeddings
        >>> embedding, mask = np.array([[[0.0, 0.2, 5.1, 0.1]]]), np.ones((1, 4), dtype=bool)
        >>> cluster_embeddings(embedding, mask, radius=1.0).numpy().labels
        array([[1, 1, 2, 1]], dtype=int32)
        """
        return ArrayClusters(
            labels=self.labels.cpu().numpy(),
            centres=_arrays(self.centres),
            sizes=_arrays(self.sizes),
            scores=_arrays(self.scores),
            classes=_arrays(self.classes),
            margin_ok=self.margin_ok,
            invalid=self.invalid,
        )


@dataclass(frozen=True, eq=False)
class ArrayClusters:
    """`Clusters` as NumPy arrays, for callers without torch: `Clusters.numpy()` makes it.

    Attributes:
        labels: int32 (B, *spatial); the meaning of this and of all others is that in `Clusters`.
        centres: Per picture float32 or float64 (K_b, D).
        sizes: Per picture int64 (K_b,), pixels.
        scores: Per picture float32 (K_b,) in [0, 1].
        classes: Per picture int64 (K_b,).
        margin_ok: Per picture.
        invalid: Per picture, pixels.
    """

    labels: NDArray[np.int32]
    centres: tuple[NDArray[Any], ...]
    sizes: tuple[NDArray[np.int64], ...]
    scores: tuple[NDArray[np.float32], ...]
    classes: tuple[NDArray[np.int64], ...]
    margin_ok: tuple[bool, ...]
    invalid: tuple[int, ...]


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[NDArray[Any], ...]:
    return tuple(tensor.cpu().numpy() for tensor in tensors)
