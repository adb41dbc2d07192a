"""The nearest class mean on the CPU: one read of the embedding, whatever its layout and precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lovasz_embed._ops import ncm
from lovasz_embed._ops.ncm_kernels import BFLOAT16, HALF, STEP, classify
from lovasz_embed._ops.threads import crew_size, share

Array = NDArray[Any]

_CHUNK = 1 << 15  # pixels that one task goes through
_KINDS = {torch.float16: HALF, torch.bfloat16: BFLOAT16}


def classes(
    embedding: Tensor,
    means: Tensor,
    offset: Tensor | None,
    looked_at: Tensor,
    reject_radius: float | None,
    ignore_index: int,
) -> Tensor:
    """Return the class of every pixel, int64 (B, *spatial); see `ncm.nearest_mean`."""
    ids = np.arange(len(means))
    found = name_pixels(embedding, means, offset, looked_at, reject_radius, ids, ignore_index)
    return torch.from_numpy(found).view(len(embedding), *embedding.shape[2:])


def name_pixels(
    embedding: Tensor,
    means: Tensor,
    offset: Tensor | None,
    looked_at: Tensor,
    reject_radius: float | None,
    names: Array,
    void: int,
) -> Array:
    """Return (B, P): the name of each pixel's class, in the dtype of `names` (C,), or `void`.

    The embedding, (B, D, *spatial) on the CPU in any layout, is read once; of one in an unusual layout, a chunk at a
    time is copied.
    """
    dtype = np.dtype(np.float64 if embedding.dtype == torch.float64 else np.float32)
    given = _prepare(means.detach(), offset, looked_at, dtype)
    kind = _KINDS.get(embedding.dtype)
    limit = math.inf if reject_radius is None else float(reject_radius) ** 2
    names = names[given.present]
    pixels = math.prod(embedding.shape[2:])
    out = np.empty((len(embedding), pixels), names.dtype)
    if not len(names):
        out[:] = void
        return out

    def work(task: tuple[Array, int, int, Array]) -> None:
        source, begin, end, target = task
        if source.ndim > 2:
            source = source.reshape(len(source), -1)
        with np.errstate(all="ignore"):  # uncompiled kernels would warn of what void pixels hold
            classify(
                source, kind, begin, end, given.centre, given.looked_at, given.weight, given.bias, given.offset,
                given.slack, limit, given.exact_weight, given.exact_bias, names, void, target,
            )  # fmt: skip

    tasks = [task for picture, row in zip(embedding.detach(), out, strict=True) for task in _tasks(picture, row)]
    share(work, tasks, crew_size(out.size))
    return out


class _Given(NamedTuple):
    """The present classes, K of them, as `classify` wants them."""

    present: Array  # (K,) which they are
    centre: Array
    looked_at: Array
    weight: Array
    bias: Array
    offset: Array
    slack: Array
    exact_weight: Array
    exact_bias: Array


def _prepare(means: Tensor, offset: Tensor | None, looked_at: Tensor, dtype: np.dtype[Any]) -> _Given:
    with np.errstate(all="ignore"):  # what overflows is Inf, here and below
        centre = ncm.middle(means, looked_at).numpy().astype(dtype)
    shift = np.zeros(len(means)) if offset is None else offset.detach().double().numpy()
    present = np.flatnonzero(means.isfinite().all(1).numpy() & (shift > -math.inf))  # which NaN is not
    shift = shift[present]
    with np.errstate(all="ignore"):
        away = (means.double().numpy()[present] - centre) * looked_at.numpy()
        bias = (away * away).sum(1) - shift
        columns = away.shape[1]
        weight = np.zeros((len(present), -(-columns // STEP) * STEP), dtype)
        weight[:, :columns] = 2 * away
        # Roundings of one term: of x, the weight and the product, two sums in a step, and one at each step. Two more
        # for the sum that bounds them, and twice all that, as two scores are compared.
        unit = np.finfo(dtype).eps / 2
        each = 2 * (8 + weight.shape[1] / STEP) * unit
        largest_bias = np.abs(bias).max(initial=0) + np.abs(shift).max(initial=0)
        slack = [
            each * largest_bias + 2 * (columns + 1) * np.finfo(dtype).tiny,
            each * np.abs(weight).max(initial=0),
            (columns + 8) * unit,
            np.finfo(dtype).max,
        ]
        return _Given(
            present, centre, looked_at.numpy().astype(dtype), weight, bias.astype(dtype), shift.astype(dtype),
            np.array(slack, dtype), 2 * away, bias,
        )  # fmt: skip


def _tasks(picture: Tensor, target: Array) -> Iterator[tuple[Array, int, int, Array]]:
    """Yield what to read, from where to where, and where to write, for chunks of a picture (D, *spatial).

    What to read is (D, P), or (D, rows, ...) where it has to be copied first.
    """
    bits = picture if picture.dtype not in _KINDS else picture.view(torch.int16)
    pixels = len(target)
    try:
        plane = bits.view(len(bits), pixels).numpy()
    except RuntimeError:  # its rows do not follow each other
        whole, row = bits.numpy(), pixels // bits.shape[1]
        rows = max(1, _CHUNK // row)
        for first in range(0, bits.shape[1], rows):
            own = target[first * row : (first + rows) * row]
            yield _unsigned(whole[:, first : first + rows]), 0, len(own), own
        return
    for begin in range(0, pixels, _CHUNK):
        yield _unsigned(plane), begin, min(begin + _CHUNK, pixels), target


def _unsigned(pixels: Array) -> Array:
    return pixels.view(np.uint16) if pixels.dtype == np.int16 else pixels


@torch.library.custom_op("lovasz_embed::nearest_mean", mutates_args=(), device_types="cpu")
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
