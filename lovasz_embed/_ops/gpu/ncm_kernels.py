"""The nearest class mean of every pixel on a GPU: the embedding is read in place, and scores stay in registers."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton gives kernels types of its own.

from __future__ import annotations

import triton
import triton.language as tl

from lovasz_embed._ops.gpu.pixel_kernels import place_of

_NOBODY = tl.constexpr(2**31 - 1)


@triton.jit
def _lowest(at, alive, dim_stride, centre, looked_at, weight, bias, classes,
            D: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Return the lowest and the second lowest score of each pixel and the class of the lowest, the first of equal ones.

    Scores are b_c - w_c·x with x = (e - m) * looked_at, in the dtype of the weights (D, C). Tiles are classes × pixels
    with the pixels along the threads: no thread needs another one's scores.
    """
    scalar: tl.constexpr = weight.dtype.element_ty
    best = tl.full([BLOCK], float("inf"), scalar)
    second = tl.full([BLOCK], float("inf"), scalar)
    which = tl.zeros([BLOCK], tl.int32)
    first = tl.full((), 0, tl.int32)
    while first < classes:  # the interpreter cannot make a range of what it is told at run time
        number = first + tl.arange(0, CHUNK)
        exists = number < classes
        score = tl.load(bias + number, mask=exists, other=float("inf"))[:, None] + tl.zeros([1, BLOCK], scalar)
        source = at
        column = weight + number
        for d in range(D):
            x = tl.load(source, mask=alive, other=0.0).to(scalar)
            x = tl.where(tl.abs(x) < float("inf"), x, 0.0)  # the caller knows which pixels are not finite
            x = (x - tl.load(centre + d).to(scalar)) * tl.load(looked_at + d).to(scalar)
            score -= tl.load(column, mask=exists, other=0.0)[:, None] * x[None, :]
            source += dim_stride
            column += classes
        low = tl.min(score, axis=0)
        who = tl.min(tl.where(score == low[None, :], number[:, None], _NOBODY), axis=0)
        next_low = tl.min(tl.where(number[:, None] == who[None, :], float("inf"), score), axis=0)
        second = tl.where(low < best, tl.minimum(best, next_low), tl.minimum(second, low))
        which = tl.where(low < best, who, which)
        best = tl.where(low < best, low, best)
        first += CHUNK
    return best, second, which


@triton.jit(do_not_specialize=["count", "classes"])
def classify_kernel(
    pixels, batch_stride, dim_stride, row_stride, col_stride, width, count,
    centre, looked_at, weight, bias, offset, slack, limit, exact_weight, exact_bias, names, classes, out,
    D: tl.constexpr, REJECTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    r"""Write the name of the class with the smallest |e - mu_c|² - o_c of every pixel; as `ncm_kernels.classify`.

    A pixel whose two best scores are closer than rounding can tell is decided in float64, by the whole block: that is
    rare, and a block costs what one pixel does.

    `weight` (D, C), `bias`, `offset` (C,), `centre`, `looked_at` (D,) and `slack` (4,) are in the dtype of the
    arithmetic, `limit` (1,), `exact_weight` (D, C) and `exact_bias` (C,) in float64; `names` (C + 1,), the last one for
    void; `out` (B, count). One program per block of pixels and picture.
    """
    scalar: tl.constexpr = weight.dtype.element_ty
    picture = tl.program_id(1).to(tl.int64)
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    alive = number < count
    at = place_of(pixels + picture * batch_stride, number, width, row_stride, col_stride)
    best, second, which = _lowest(
        at, alive, dim_stride, centre, looked_at, weight, bias, classes, D, CHUNK, BLOCK
    )  # fmt: skip
    spread = tl.zeros([BLOCK], scalar)
    norm = tl.zeros([BLOCK], scalar)
    finite = alive
    source = at
    for d in range(D):
        value = tl.load(source, mask=alive, other=0.0).to(scalar)
        finite = finite & (tl.abs(value) < float("inf"))
        value = tl.where(tl.abs(value) < float("inf"), value, 0.0)
        x = (value - tl.load(centre + d)) * tl.load(looked_at + d)
        spread += tl.abs(x)
        norm += x * x
        source += dim_stride
    doubt = tl.load(slack) + tl.load(slack + 1) * spread
    # Comparisons are false for NaN, as they must be; a score that overflowed is in doubt, too.
    sure = (second - best > doubt) & (best >= -tl.load(slack + 3)) & finite
    chosen = which
    if REJECTS:
        beyond = best + tl.load(offset + which) + norm - tl.load(limit).to(scalar)
        chosen = tl.where(beyond > 0, classes, chosen)
        sure = sure & (tl.abs(beyond) > doubt + tl.load(slack + 2) * norm)
    if tl.max((alive & (sure == 0)).to(tl.int32), axis=0) > 0:
        best64, _, which64 = _lowest(
            at, alive, dim_stride, centre, looked_at, exact_weight, exact_bias, classes, D, CHUNK, BLOCK
        )  # fmt: skip
        known = finite & (tl.abs(best64) <= tl.load(slack + 3).to(tl.float64))
        if REJECTS:
            distance = tl.zeros([BLOCK], tl.float64)
            source = at
            for d in range(D):
                x = tl.load(source, mask=alive & finite, other=0.0).to(tl.float64)
                x = (x - tl.load(centre + d).to(tl.float64)) * tl.load(looked_at + d).to(tl.float64)
                away = x - 0.5 * tl.load(exact_weight + d * classes + which64)
                distance += away * away
                source += dim_stride
            known = known & (distance <= tl.load(limit))
        chosen = tl.where(sure, chosen, tl.where(known, which64, classes))
    tl.store(out + picture * count + number, tl.load(names + chosen), mask=alive)
