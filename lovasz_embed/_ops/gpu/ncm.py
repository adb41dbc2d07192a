"""The nearest class mean on a GPU: what the kernel is told, computed where the means are; nobody waits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lovasz_embed._ops.gpu.ncm_kernels import classify_kernel
from lovasz_embed._ops.gpu.pixels import planes
from lovasz_embed._ops.ncm import middle

_BLOCK = 256  # pixels of a program, two per thread
_CHUNK = 16  # classes whose scores a thread holds at once


def classes(
    embedding: Tensor,
    means: Tensor,
    offset: Tensor | None,
    looked_at: Tensor,
    reject_radius: float | None,
    ignore_index: int,
) -> Tensor:
    """Return the class of every pixel, int64 (B, *spatial); see `ncm.nearest_mean`."""
    names = torch.arange(len(means) + 1, device=means.device)
    names[-1].fill_(ignore_index)
    named = name_pixels(embedding, means, offset, looked_at, reject_radius, names)
    return named.view(len(embedding), *embedding.shape[2:])


def name_pixels(
    embedding: Tensor,
    means: Tensor,
    offset: Tensor | None,
    looked_at: Tensor,
    reject_radius: float | None,
    names: Tensor,
) -> Tensor:
    """Return (B, P): the name of each pixel's class in `names` (C + 1,), whose last one is that of void.

    The embedding, (B, D, *spatial) in any layout, is read in place. No value of it, and none of the means, is waited
    for.
    """
    own = planes(embedding.detach())
    given = _prepare(means.detach(), offset, looked_at, own.dtype)
    limit = math.inf if reject_radius is None else float(reject_radius) ** 2
    out = names.new_empty((len(embedding), own.pixels))
    if out.numel():
        grid = (-(-own.pixels // _BLOCK), len(embedding))
        with torch.cuda.device_of(embedding):  # type: ignore[no-untyped-call]
            classify_kernel[grid](
                own.data, own.batch_stride, own.dim_stride, own.row_stride, own.col_stride, own.width, own.pixels,
                given.centre, given.looked_at, given.weight.to(own.dtype), given.bias.to(own.dtype), given.offset,
                given.slack, torch.full((1,), limit, dtype=torch.float64, device=embedding.device), given.weight,
                given.bias, names, len(means), out,
                D=embedding.shape[1], REJECTS=reject_radius is not None, CHUNK=_CHUNK, BLOCK=_BLOCK,
            )  # fmt: skip
    return out


class _Given(NamedTuple):
    """The classes as the kernel wants them; an absent one has weight 0 and the score inf."""

    centre: Tensor
    looked_at: Tensor
    weight: Tensor  # (D, C) float64
    bias: Tensor  # (C,) float64
    offset: Tensor
    slack: Tensor


def _prepare(means: Tensor, offset: Tensor | None, looked_at: Tensor, dtype: torch.dtype) -> _Given:
    """Return what `ncm_numba` tells its kernel, by operations of fixed shape."""
    centre = middle(means, looked_at).to(dtype)
    shift = means.new_zeros(len(means), dtype=torch.float64) if offset is None else offset.detach().double()
    present = means.isfinite().all(1) & (shift > -math.inf)  # which NaN is not
    shift = torch.where(present, shift, 0.0)
    away = torch.where(present[:, None], means.double() - centre, 0.0) * looked_at
    bias = away.square().sum(1) - shift
    columns = means.shape[1]
    # Roundings of one term: of x, the weight, the product and the sum, at each dimension. Two more for the sum that
    # bounds them, and twice all that, as two scores are compared.
    unit, tiny, largest = (getattr(torch.finfo(dtype), name) for name in ("eps", "tiny", "max"))
    each = 2 * (8 + columns) * unit / 2
    slack = torch.stack(
        [
            each * (bias.abs().amax() + shift.abs().amax()) + 2 * (columns + 1) * tiny,
            each * 2 * away.abs().amax(),
            bias.new_full((), (columns + 8) * unit / 2),
            bias.new_full((), largest),
        ]
    )
    weight = (2 * away).T.contiguous()
    bias = torch.where(present, bias, math.inf)
    return _Given(centre, looked_at.to(dtype), weight, bias, shift.to(dtype), slack.to(dtype))


@torch.library.custom_op("lovasz_embed::nearest_mean_triton", mutates_args=())
def operator(
    embedding: Tensor,
    means: Tensor,
    offset: Tensor | None,
    looked_at: Tensor,
    reject_radius: float | None,
    ignore_index: int,
) -> Tensor:
    """Do what `classes` does, as an operator that compiled graphs may hold."""
    return classes(embedding, means, offset, looked_at, reject_radius, ignore_index)


@operator.register_fake
def _(
    embedding: Tensor,
    means: Tensor,
    offset: Tensor | None,
    looked_at: Tensor,
    reject_radius: float | None,
    ignore_index: int,
) -> Tensor:
    return embedding.new_empty((embedding.shape[0], *embedding.shape[2:]), dtype=torch.int64)
