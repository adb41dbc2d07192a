"""The hierarchical Lovász hinge and its module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lovasz_embed import _check
from lovasz_embed._ops.engines import IMPLEMENTATIONS, check_engine, engine_for
from lovasz_embed._ops.labels import as_labels, plain
from lovasz_embed._ops.methods import bins_of, check_method
from lovasz_embed._ops.ncm import check_dims
from lovasz_embed._ops.reference import at_least_float32
from lovasz_embed._ops.tree_hinge import KERNELS, TreeLevel, tree_hinge
from lovasz_embed.hierarchy.class_terms import class_terms
from lovasz_embed.hierarchy.levels import Level

NEGATIVES = ("all", "siblings")


class NodeLosses(NamedTuple):
    """The losses of one level's K nodes, without gradient, for logging.

    With impl="triton" the three are longer than K, so that nobody waits to learn how many nodes there are: behind the
    K nodes stand entries with picture and label -1 and loss 0. `nodes.loss[nodes.label >= 0]` leaves them out, and
    waits.

    Attributes:
        picture: Picture of each node, (K,); -1 for a node that spans the batch.
        label: Label of each node, (K,).
        loss: Lovász hinge of each node, (K,).
    """

    picture: Tensor
    label: Tensor
    loss: Tensor


class HierarchicalLoss(NamedTuple):
    """What `hierarchical_lovasz_hinge` returns.

    Attributes:
        loss: The total, 0-d, attached to the graph.
        per_level: The unweighted mean loss of each level, (L,), without gradient.
        per_node: The nodes' losses, one entry per level; padded with impl="triton", see `NodeLosses`.
        ncm: The nearest-class-mean cross-entropy, 0-d, without gradient; 0 where it was not asked for.
    """

    loss: Tensor
    per_level: Tensor
    per_node: tuple[NodeLosses, ...]
    ncm: Tensor


def hierarchical_lovasz_hinge(
    embedding: Tensor,
    levels: Sequence[Level],
    *,
    kernel: str = "margin",
    negatives: str = "all",
    class_means: Tensor | None = None,
    pull_weight: float = 0.0,
    ncm_weight: float = 0.0,
    ncm_temperature: float = 1.0,
    norm_weight: float = 0.0,
    truncation: float | None = None,
    impl: str = "auto",
    method: str = "auto",
    bins: int | None = None,
) -> HierarchicalLoss:
    r"""Hinge the nodes of a label tree on the distances between pixels and node means.

    For a node n with pixels S_n, mean embedding µ_n and radius r, the distance d = |e_i - µ_n| of every pixel
    becomes a logit F, and the node's loss is the Lovász hinge of F against membership in S_n:

    - margin kernel: F = (r² - d²) / m²,
    - gaussian kernel: F = 2 exp(-d² ln 2 / r²) - 1.

    A level's loss is the mean over its present nodes; the total is

    .. math::

        \sum_l w_l L_l + w_{ncm} L_{ncm} + w_{pull} \overline{|µ_c - \hat µ_c|²} / r² + w_{norm} \overline{|µ_c|²} / r²

    where the last three look at the first level, r is its radius, µ̂ are the `class_means`, and L_ncm is the
    cross-entropy of softmax(-|e - µ̂_c|² / (τ r²)) against the first level's labels, with the means of this
    batch where no `class_means` are given.

    Args:
        embedding: Floats (B, D, *spatial).
        levels: From the root to the leaves; see `Level` and `panoptic_levels`.
        kernel: "margin" has a dead zone on both sides of the radius; "gaussian" never lets go of a pixel.
        negatives: "all" pixels outside a node, or its "siblings" only: pixels of the same parent node.
        class_means: Running means (C, D) of the first level's labels 0 ... C - 1, without gradient; that level's
            `dims` of them are looked at. Rows of NaN are classes not met yet.
        pull_weight: Weight of the pull of this batch's means towards `class_means`.
        ncm_weight: Weight of the nearest-class-mean cross-entropy.
        ncm_temperature: τ above; smaller is a sharper softmax.
        norm_weight: Weight of the regulariser that keeps the first level's means near the origin.
        truncation: For the gaussian kernel, whose negatives are never at rest: negatives with an error up to this
            t cost nothing. A node's loss falls by at most t, and the gradient changes by at most
            (4 t sqrt(ln 2 ln(2 / t)) + 4 sqrt(2 t ln 2)) / r in sum (docs/mathematics.md). None is 2^-48, below
            what float32 keeps; 0 leaves nothing out.
        impl: "auto" (numba on the CPU, Triton on a CUDA device where it is installed, else the reference),
            "reference", "numba" or "triton": speed, never meaning.
        method: "sort" is exact. "binned" counts errors into bins: a node's loss is below the exact one by at most
            1 / `bins` of it, as long as no error exceeds 2^32 (docs/mathematics.md). "auto" is "sort" for the reference
            and numba and "binned" for Triton, which has no other: a sort per node is what costs the most on a GPU. With
            impl="auto", "sort" is done by the reference on a CUDA device.
        bins: Bins per doubling of the error for "binned", a power of two; None is 512.

    Returns:
        The total and its parts; the total is 0 and attached to the graph where there is no node at all.

    Raises:
        TypeError: If the embedding is not floating point or labels are not integers.
        ValueError: If shapes, devices or options do not fit, the labels are no tree (siblings), or the
            embedding holds NaN or Inf (looked at on the CPU only, where looking does not wait for a device).
        RuntimeError: With impl="triton", raised by the device, later: if the labels are no tree, or a level has more
            than 4096 nodes over the whole batch.

    Note:
        Computed in at least float32, whatever autocast says; gradients come in the embedding's dtype. At ties
        of errors the gradient is one of several subgradients. Cost: O(B·P·D) per node that spans the batch,
        O(P·D) per node of one picture, plus sorting the entries with a positive error.

    Example:
        >>> from lovasz_embed.hierarchy import panoptic_levels
        >>> embedding = torch.tensor([[[0.0, 0.0, 9.0, 9.0]]])
        >>> levels = panoptic_levels(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 1]]), things={1})
        >>> hierarchical_lovasz_hinge(embedding, levels).loss.item()
        0.0

    References:
        Kerola et al., Hierarchical Lovász Embeddings for Proposal-free Panoptic Segmentation, CVPR 2021.
        The kernels, margins and defaults are ours; see docs/faithfulness.md.
    """
    _check_arguments(embedding, levels, kernel, negatives, truncation, impl, method, bins)
    _check_weights(pull_weight, ncm_weight, norm_weight, ncm_temperature)
    if pull_weight and class_means is None:
        raise ValueError(_check.message("class_means", "be given where pull_weight is above 0", None))
    engine = engine_for(impl, embedding.device)
    engine = "reference" if engine == "triton" and method == "sort" else engine
    with torch.autocast(embedding.device.type, enabled=False):
        flat = embedding.flatten(2)
        flat = at_least_float32(flat)
        tree = [
            TreeLevel(
                plain(level.labels).flatten(1),
                float(level.radius),
                float(level.margin2),
                float(level.weight),
                level.per_picture,
                level.dims,
                None if level.bandwidth is None else level.bandwidth.flatten(1),
            )
            for level in levels
        ]
        total, per_level, per_node = tree_hinge(
            flat,
            tree,
            kernel=kernel,
            siblings=negatives == "siblings",
            cut=_cut(kernel, truncation),
            impl=engine,
            bins=bins_of(method, bins, engine),
        )
        more, ncm = class_terms(
            flat,
            tree[0],
            class_means,
            pull_weight=float(pull_weight),
            ncm_weight=float(ncm_weight),
            ncm_temperature=float(ncm_temperature),
            norm_weight=float(norm_weight),
            engine=engine,
        )
        total = total + more
    return HierarchicalLoss(total, per_level, tuple(NodeLosses(*nodes) for nodes in per_node), ncm.detach())


class HierarchicalLovaszHinge(nn.Module):
    """`hierarchical_lovasz_hinge` as a module: options at construction, tensors at the call.

    Example:
        >>> HierarchicalLovaszHinge(negatives="siblings")
        HierarchicalLovaszHinge(kernel='margin', negatives='siblings', pull_weight=0.0, ncm_weight=0.0,
            ncm_temperature=1.0, norm_weight=0.0, truncation=None, impl='auto', method='auto', bins=None)
    """

    def __init__(
        self,
        *,
        kernel: str = "margin",
        negatives: str = "all",
        pull_weight: float = 0.0,
        ncm_weight: float = 0.0,
        ncm_temperature: float = 1.0,
        norm_weight: float = 0.0,
        truncation: float | None = None,
        impl: str = "auto",
        method: str = "auto",
        bins: int | None = None,
    ) -> None:
        super().__init__()
        _check_options(kernel, negatives, truncation, impl, method, bins)
        _check_weights(pull_weight, ncm_weight, norm_weight, ncm_temperature)
        self.kernel = kernel
        self.negatives = negatives
        self.pull_weight = pull_weight
        self.ncm_weight = ncm_weight
        self.ncm_temperature = ncm_temperature
        self.norm_weight = norm_weight
        self.truncation = truncation
        self.impl = impl
        self.method = method
        self.bins = bins

    def extra_repr(self) -> str:
        """Print the constructor's arguments."""
        names = (
            "kernel", "negatives", "pull_weight", "ncm_weight", "ncm_temperature", "norm_weight", "truncation", "impl",
            "method", "bins",
        )  # fmt: skip
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(
        self, embedding: Tensor, levels: Sequence[Level], class_means: Tensor | None = None
    ) -> HierarchicalLoss:
        """Return the loss of an embedding (B, D, *spatial); see `hierarchical_lovasz_hinge`."""
        return hierarchical_lovasz_hinge(
            embedding,
            levels,
            kernel=self.kernel,
            negatives=self.negatives,
            class_means=class_means,
            pull_weight=self.pull_weight,
            ncm_weight=self.ncm_weight,
            ncm_temperature=self.ncm_temperature,
            norm_weight=self.norm_weight,
            truncation=self.truncation,
            impl=self.impl,
            method=self.method,
            bins=self.bins,
        )


def _cut(kernel: str, truncation: float | None) -> float:
    """Return the error up to which negatives are left out."""
    if kernel == "margin":
        return 0.0
    return 2.0**-48 if truncation is None else float(truncation)


def _check_weights(pull_weight: float, ncm_weight: float, norm_weight: float, ncm_temperature: float) -> None:
    _check.non_negative("pull_weight", pull_weight)
    _check.non_negative("ncm_weight", ncm_weight)
    _check.non_negative("norm_weight", norm_weight)
    _check.positive("ncm_temperature", ncm_temperature)


def _check_options(
    kernel: str, negatives: str, truncation: float | None, impl: str, method: str, bins: int | None
) -> None:
    _check.one_of("kernel", kernel, KERNELS)
    _check.one_of("negatives", negatives, NEGATIVES)
    _check.one_of("impl", impl, IMPLEMENTATIONS)
    check_method(method, bins)
    if impl == "triton" and method == "sort":
        remedy = "Use impl='reference', which sorts, or impl='auto'."
        raise ValueError(_check.message("method", "be 'auto' or 'binned' for impl='triton'", "'sort'", remedy))
    if truncation is not None:
        _check.non_negative("truncation", truncation)
        if kernel != "gaussian":
            remedy = "The margin kernel lets go of far pixels by itself."
            raise ValueError(_check.message("truncation", "be None for kernel='margin'", truncation, remedy))


def _check_arguments(
    embedding: Tensor,
    levels: Sequence[Level],
    kernel: str,
    negatives: str,
    truncation: float | None,
    impl: str,
    method: str,
    bins: int | None,
) -> None:
    _check.is_embedding("embedding", embedding)
    _check_options(kernel, negatives, truncation, impl, method, bins)
    check_engine(impl, embedding.device, "embedding")
    _check.is_sequence("levels", levels, "be a sequence of Level")
    if not levels:
        raise ValueError(_check.message("levels", "hold at least one Level", "none"))
    for number, level in enumerate(levels):
        name = f"levels[{number}]"
        if not isinstance(level, Level):
            raise TypeError(_check.message(name, "be a Level", type(level).__name__))
        expected = (embedding.shape[0], *embedding.shape[2:])
        _check.same_shape(f"{name}.labels", level.labels, expected, "embedding")
        _check.same_device(f"{name}.labels", level.labels, embedding.device, "embedding")
        check_dims(level.dims, embedding.shape[1], f"{name}.dims")
        if level.bandwidth is not None and kernel != "gaussian":
            remedy = "Use kernel='gaussian', or drop it."
            raise ValueError(_check.message(f"{name}.bandwidth", "be None for kernel='margin'", "a tensor", remedy))
        if level.bandwidth is not None:
            _check.same_device(f"{name}.bandwidth", level.bandwidth, embedding.device, "embedding")
    if embedding.device.type == "cpu" and not torch.compiler.is_compiling():
        _check.all_finite("embedding", embedding)
        for number, level in enumerate(levels):
            if level.bandwidth is not None:
                width = level.bandwidth.detach()
                wrong = ~((width > 0) & width.isfinite()) & (as_labels("labels", level.labels) >= 0)
                if bool(wrong.any()):
                    rule = "be finite and above 0 in every pixel of a node"
                    raise ValueError(_check.message(f"levels[{number}].bandwidth", rule, float(width[wrong][0])))
