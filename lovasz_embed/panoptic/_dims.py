"""The dimensions of an embedding that one level of the hierarchy looks at."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lovasz_embed._ops.ncm import check_dims


def checked_dims(argument: str, dims: Sequence[int] | None, width: int) -> tuple[int, ...] | None:
    """Return `dims` as a tuple, or raise where they are not some of `width` dimensions, each once; None is all.

    >>> checked_dims("instance_dims", [6, 7], 8)
    (6, 7)
    """
    check_dims(dims, width, argument)
    return None if dims is None else tuple(dims)


def look_at(embedding: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """Return some dimensions of an embedding (B, D, *spatial): a view if they follow one another, else a copy.

    >>> import torch
    >>> look_at(torch.tensor([[[0.0], [1.0], [2.0]]]), (1, 2)).tolist()
    [[[1.0], [2.0]]]
    """
    if dims is None:
        return embedding
    first, end = dims[0], dims[0] + len(dims)
    return embedding[:, first:end] if dims == tuple(range(first, end)) else embedding[:, list(dims)]
