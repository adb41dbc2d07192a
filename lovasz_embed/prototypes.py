"""Nearest class mean (NCM): categories from the distance to one mean embedding per class, without a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lovasz_embed import _check
from lovasz_embed._ops.class_means import as_linear, class_sums, linear_scores, means_of
from lovasz_embed._ops.engines import IMPLEMENTATIONS, check_engine
from lovasz_embed._ops.labels import as_labels, labels_in_range
from lovasz_embed._ops.ncm import check_classifier, check_dims, looked_at_of, nearest_mean
from lovasz_embed._ops.reference import at_least_float32


class ClassMeans(NamedTuple):
    """The mean embedding of every class and the number of pixels behind it.

    Attributes:
        means: (C, D) embedding units, NaN in the row of a class without pixels.
        counts: (C,) int64, pixels.
    """

    means: Tensor
    counts: Tensor


def class_means(embedding: Tensor, semantic: Tensor, *, num_classes: int, ignore_index: int | None = 255) -> ClassMeans:
    r"""Mean embedding of every class: mu_c = (1 / n_c) sum of e_i over the pixels i of class c.

    Args:
        embedding: floating point (B, D, *spatial), embedding units.
        semantic: integer (B, *spatial), classes 0..C-1 or `ignore_index`.
        num_classes: C, at least 1.
        ignore_index: label of the pixels that do not count; None = all pixels count.

    Returns:
        `ClassMeans`: means (C, D), differentiable, float64 for a float64 embedding and float32 otherwise;
        counts (C,) int64. A class without pixels has no mean: its row is NaN, and `nearest_class_mean` never
        predicts it.

    Raises:
        TypeError: embedding is not floating point, semantic holds no integers, num_classes is no int.
        ValueError: shapes or devices do not match, num_classes is below 1, or a label is out of range (looked
            at on the CPU only, and not while compiling: it would make the host wait. Elsewhere such a pixel
            does not count).

    Note:
        Sums are float64. Values of pixels that do not count are never read, NaN included. O(P D) time.

    Example:
        >>> embedding = torch.tensor([[[0.0, 2.0, 5.0, 9.0]]])
        >>> class_means(embedding, torch.tensor([[0, 0, 1, 255]]), num_classes=3)
        ClassMeans(means=tensor([[1.], [5.], [nan]]), counts=tensor([2, 1, 0]))
    """
    _check.is_embedding("embedding", embedding)
    _check.is_table("num_classes", num_classes, max(1, embedding.shape[0] * embedding.shape[1]))
    semantic = _check_labels(semantic, embedding, num_classes, ignore_index)
    sums, counts = class_sums(embedding, semantic, num_classes, ignore_index)
    dtype = torch.float64 if embedding.dtype == torch.float64 else torch.float32
    return ClassMeans(means_of(sums, counts).to(dtype), counts)


def nearest_class_mean(
    embedding: Tensor,
    means: Tensor,
    *,
    offset: Tensor | None = None,
    dims: Sequence[int] | None = None,
    reject_radius: float | None = None,
    ignore_index: int = 255,
    impl: str = "auto",
) -> Tensor:
    r"""Class of the nearest mean for every pixel: argmin_c of \|e - mu_c\|² - o_c, with offset o.

    As \|e\|² is the same for all classes, it is the argmax of 2 e·mu_c - \|mu_c\|² + o_c: one matrix product.

    Args:
        embedding: floating point (B, D, *spatial), embedding units.
        means: floating point (C, D); a class whose row holds NaN or Inf is absent and never predicted.
        offset: (C,) squared embedding units; the larger it is, the farther out a class wins. None = 0; a class
            with -Inf or NaN is absent.
        dims: the embedding dimensions that the distance looks at; None = all.
        reject_radius: embedding units; a pixel farther than this from the mean of its class belongs to none.
        ignore_index: what a pixel without a class gets: rejected, not finite (in any dimension, looked at or
            not), or no class is present at all.
        impl: "auto" (outside graphs numba on the CPU, and triton on a CUDA device where it is installed; else the
            reference), "reference", "numba" or "triton": speed, and which of two means a pixel gets that are equally
            near but for rounding.

    Returns:
        int64 (B, *spatial), classes 0..C-1 and `ignore_index`.

    Raises:
        TypeError: embedding, means or offset is not floating point, reject_radius is no number, or a
            dimension no int.
        ValueError: shapes or devices do not match, dims does not name existing dimensions once each,
            reject_radius is not above 0, or impl is unknown or does not run on the embedding's device.

    Note:
        The lowest class wins a tie. Without gradient. The arithmetic is float32 at least, under autocast too, and
        relative to the median of the means: a common offset of means and pixels costs no digits. The numba and the
        triton engine look once more, in float64, at pixels whose two best scores are too close for float32: their
        result is that of float64 arithmetic, for any number of threads. A pixel whose scores overflow counts as not
        finite. O(P C D) time. The numba and the triton engine read the embedding in place, in any layout, and need no
        memory besides the result, nor does the host wait for a GPU; the reference needs O(P C + P D), never an array
        of P C D.

    Example:
        >>> means = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
        >>> embedding = torch.tensor([[[1.0, 3.0, 9.0], [0.0, 0.0, 0.0]]])
        >>> nearest_class_mean(embedding, means, reject_radius=2.0)
        tensor([[  0,   1, 255]])

    Reference:
        Kerola et al., "Hierarchical Lovász Embeddings for Proposal-free Panoptic Segmentation", CVPR 2021,
        classifies pixels by the nearest class mean; offset, dims and the reject radius are ours.
    """
    _check.one_of("impl", impl, IMPLEMENTATIONS)
    looked_at = check_classifier(embedding, means, offset, dims, reject_radius)
    check_engine(impl, embedding.device, "embedding")
    return nearest_mean(
        embedding.detach(),
        means.detach(),
        None if offset is None else offset.detach(),
        looked_at,
        reject_radius=reject_radius,
        ignore_index=ignore_index,
        impl=impl,
    )


class NearestClassMean(nn.Module):
    """Nearest class mean classifier with streaming means; `forward` is `nearest_class_mean`.

    The state is the float64 sum and the int64 count of the embeddings of every class: the means do not
    depend on how the pixels were split into batches (up to float64 rounding), a saved classifier resumes
    exactly, and under `torch.distributed` every process holds the sums over all processes.

    Args:
        num_classes: C, at least 1.
        dim: D, embedding dimensions, at least 1.
        dims: the dimensions that the distance looks at; None = all.
        reject_radius: embedding units, see `nearest_class_mean`; None = never reject.
        ignore_index: label that does not count in `update` and that `forward` gives to pixels without class.
        impl: engine of `forward`, see `nearest_class_mean`.

    Attributes:
        sums: (C, D) float64 buffer, stays float64 when the module is converted.
        counts: (C,) int64 buffer, pixels.
        offset: (C,) buffer, squared embedding units, 0 at first; write to it to move the boundary of a class.

    Raises:
        TypeError: num_classes, dim or a dimension is no int, or reject_radius is no number.
        ValueError: num_classes or dim is below 1, dims does not name existing dimensions once each, reject_radius
            is not above 0, or impl is unknown.

    Example:
        >>> ncm = NearestClassMean(num_classes=2, dim=1)
        >>> ncm.update(torch.tensor([[[0.0, 2.0, 8.0]]]), torch.tensor([[0, 0, 1]]))
        NearestClassMean(num_classes=2, dim=1, dims=None, reject_radius=None, ignore_index=255, impl='auto')
        >>> ncm.means
        tensor([[1.], [8.]])
        >>> ncm(torch.tensor([[[4.0, 5.0]]]))
        tensor([[0, 1]])
    """

    sums: Tensor
    counts: Tensor
    offset: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        dims: Sequence[int] | None = None,
        reject_radius: float | None = None,
        ignore_index: int = 255,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        _check.is_int("dim", dim, 1)
        _check.is_table("num_classes", num_classes, dim)
        check_dims(dims, dim)
        if reject_radius is not None:
            _check.positive("reject_radius", reject_radius)
        _check.one_of("impl", impl, IMPLEMENTATIONS)
        self.num_classes = num_classes
        self.dim = dim
        self.dims = None if dims is None else tuple(dims)
        self.reject_radius = reject_radius
        self.ignore_index = ignore_index
        self.impl = impl
        self.register_buffer("sums", torch.zeros(num_classes, dim, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("offset", torch.zeros(num_classes, dtype=torch.float64))

    @property
    def means(self) -> Tensor:
        """The class means so far: (C, D) float32, NaN in the row of a class without pixels."""
        return means_of(self.sums, self.counts).float()

    @torch.no_grad()
    def update(self, embedding: Tensor, semantic: Tensor) -> Self:
        """Add the pixels of a batch to the means.

        Under `torch.distributed` every process has to call this the same number of times. What is summed over
        processes is the contribution of the batch, not the buffers: these are equal everywhere already.

        Args:
            embedding: floating point (B, D, *spatial), embedding units.
            semantic: integer (B, *spatial), classes 0..C-1 or `ignore_index`.

        Returns:
            The module itself.

        Raises:
            TypeError: embedding is not floating point or semantic holds no integers.
            ValueError: shapes or devices do not match, a label is out of range (looked at on the CPU only),
                or the embedding of a pixel that counts is not finite. The means are then as before.

        Note:
            Waits for the device, once, to see whether the sums are finite.
        """
        _check.is_embedding("embedding", embedding)
        _check_width(embedding, self.dim)
        _check.same_device("embedding", embedding, self.sums.device, "the module")
        semantic = _check_labels(semantic, embedding, self.num_classes, self.ignore_index)
        sums, counts = class_sums(embedding, semantic, self.num_classes, self.ignore_index)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        # After the reduction, so that all processes raise together and none waits for ever.
        broken = (~sums.isfinite().all(1)).nonzero().flatten().tolist()
        if broken:
            remedy = "Look for a diverged network: lower the learning rate or clip gradients."
            got = f"NaN or Inf in pixels of classes {broken}"
            raise ValueError(_check.message("embedding", "be finite where semantic holds a class", got, remedy))
        self.sums += sums
        self.counts += counts
        return self

    def reset(self) -> None:
        """Forget all pixels; the offset stays."""
        self.sums.zero_()
        self.counts.zero_()

    def as_linear(self) -> tuple[Tensor, Tensor]:
        r"""Return the classifier as one matrix product: `argmax(weight @ e + bias)` is the class.

        Returns:
            weight (C, D) = 2 mu and bias (C,) = offset - \|mu\|², float32, so that
            weight @ e + bias = \|e\|² - d² + offset. A class without pixels has weight 0 and bias -inf. The
            reject radius is not part of it.

        Example:
            >>> ncm = NearestClassMean(2, 1).update(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[0, 1]]))
            >>> ncm.as_linear()
            (tensor([[2.], [6.]]), tensor([-1., -9.]))
        """
        weight, bias = self._linear()
        return weight.float(), bias.float()

    def logits(self, embedding: Tensor) -> Tensor:
        r"""Return -\|e - mu_c\|² + offset_c for every class, -inf for a class without pixels.

        Args:
            embedding: floating point (B, D, *spatial), embedding units.

        Returns:
            (B, C, *spatial) squared embedding units, differentiable with respect to the embedding, float64
            for a float64 embedding and float32 otherwise. Ready for a softmax or a cross-entropy.

        Raises:
            TypeError: embedding is not floating point.
            ValueError: embedding does not have D dimensions.
        """
        _check.is_embedding("embedding", embedding)
        _check_width(embedding, self.dim)
        _check.same_device("embedding", embedding, self.sums.device, "the module")
        looked_at = looked_at_of(self.dims, self.sums).view(-1, *[1] * (embedding.ndim - 2))
        squared_norm = (at_least_float32(embedding) * looked_at).square().sum(1, keepdim=True)
        return linear_scores(embedding, *self._linear()) - squared_norm

    def extra_repr(self) -> str:
        """Return the arguments of the constructor call."""
        return (
            f"num_classes={self.num_classes}, dim={self.dim}, dims={self.dims}, "
            f"reject_radius={self.reject_radius}, ignore_index={self.ignore_index}, impl={self.impl!r}"
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the class of every pixel, int64 (B, *spatial), by `nearest_class_mean`."""
        return nearest_class_mean(
            embedding,
            means_of(self.sums, self.counts),
            offset=self.offset,
            dims=self.dims,
            reject_radius=self.reject_radius,
            ignore_index=self.ignore_index,
            impl=self.impl,
        )

    def _linear(self) -> tuple[Tensor, Tensor]:
        means = means_of(self.sums, self.counts)
        return as_linear(means, self.offset, looked_at_of(self.dims, means))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Convert the module, but move the float64 sums only: `half()` would cut them to 11 bits."""
        exact = {name: getattr(self, name) for name in ("sums", "offset")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            converted = getattr(self, name)
            setattr(self, name, converted.double() if value.is_meta else value.to(converted.device))
        return self


def _check_labels(semantic: Tensor, embedding: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Return `semantic` in a dtype that torch can compare."""
    semantic = as_labels("semantic", semantic)
    shape = (embedding.shape[0], *embedding.shape[2:])
    _check.same_shape("semantic", semantic, shape, "embedding without its D axis")
    _check.same_device("semantic", semantic, embedding.device, "embedding")
    labels_in_range("semantic", semantic, num_classes, ignore_index)
    return semantic


def _check_width(embedding: Tensor, dim: int) -> None:
    if embedding.shape[1] != dim:
        raise ValueError(_check.message("embedding", f"have D = {dim} on axis 1", tuple(embedding.shape)))
