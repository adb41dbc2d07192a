"""Triton kernels over few points, compared with each other: company, leaders, climbs to modes, and which modes count.

Points are columns (D, n) sorted by class, then by the coordinate along which they spread most: what lies near a point
is one stretch of them, which the caller knows.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton gives kernels types of its own.

from __future__ import annotations

import triton
import triton.language as tl

_REST = tl.constexpr(1e-8)  # squared step, in squared radii, at which a climb counts as standing still


@triton.jit
def _part(spans, block, part, parts):
    """Return the part'th part of the stretch `spans` (2, blocks) of a block of points."""
    low = tl.load(spans + block)
    high = tl.load(spans + tl.num_programs(0) + block)
    size = (high - low + parts - 1) // parts
    return low + part * size, tl.minimum(low + (part + 1) * size, high)


@triton.jit
def _squared(points, count, own, others, alive, exist, D: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Return the squared distances from the points `others` to the points `own`, (CHUNK, BLOCK)."""
    scalar: tl.constexpr = points.dtype.element_ty
    squared = tl.zeros([CHUNK, BLOCK], scalar)
    row = points
    for _ in range(D):
        away = (
            tl.load(row + own, mask=alive, other=0.0)[None, :] - tl.load(row + others, mask=exist, other=0.0)[:, None]
        )
        squared += away * away
        row += count
    return squared


@triton.jit(do_not_specialize=["count"])
def company_kernel(
    points, classes, usable, spans, count, radius, near, company,
    D: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the usable points of its class within the radius (1,) of every point, itself included, and within half.

    `spans` (2, blocks) int32 are where what may lie near a block begins and ends, `near` and `company` (n,) int32 are
    added to. One program per block of points and part of its span.
    """
    begin = tl.program_id(0) * BLOCK
    own = begin + tl.arange(0, BLOCK)
    alive = own < count
    own_class = tl.load(classes + own, mask=alive, other=-1)
    reach = tl.load(radius)
    turn, end = _part(spans, tl.program_id(0), tl.program_id(1), tl.num_programs(1))
    close = tl.zeros([BLOCK], tl.int32)
    closer = tl.zeros([BLOCK], tl.int32)
    while turn < end:
        others = turn + tl.arange(0, CHUNK)
        exist = others < end
        squared = _squared(points, count, own, others, alive, exist, D, CHUNK, BLOCK)
        counts = (tl.load(usable + others, mask=exist, other=0) > 0)[:, None]
        counts = counts & (tl.load(classes + others, mask=exist, other=-2)[:, None] == own_class[None, :])
        close += tl.sum((counts & (squared <= reach * reach)).to(tl.int32), axis=0)
        closer += tl.sum((counts & (squared <= 0.25 * reach * reach)).to(tl.int32), axis=0)
        turn += CHUNK
    tl.atomic_add(company + own, close, mask=alive, sem="relaxed")
    tl.atomic_add(near + own, closer, mask=alive, sem="relaxed")


@triton.jit(do_not_specialize=["count"])
def leaders_kernel(
    points, classes, usable, spans, count, radius, near, beaten,
    D: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Set `beaten` (n,) int32 to 1 where a usable point of the class within the radius is denser.

    It is if more points are `near` it (n,), or as many and it comes first.
    """
    begin = tl.program_id(0) * BLOCK
    own = begin + tl.arange(0, BLOCK)
    alive = own < count
    own_class = tl.load(classes + own, mask=alive, other=-1)
    own_near = tl.load(near + own, mask=alive, other=0)
    reach = tl.load(radius)
    turn, end = _part(spans, tl.program_id(0), tl.program_id(1), tl.num_programs(1))
    denser = tl.zeros([BLOCK], tl.int32)
    while turn < end:
        others = turn + tl.arange(0, CHUNK)
        exist = others < end
        squared = _squared(points, count, own, others, alive, exist, D, CHUNK, BLOCK)
        counts = (tl.load(usable + others, mask=exist, other=0) > 0)[:, None]
        counts = counts & (tl.load(classes + others, mask=exist, other=-2)[:, None] == own_class[None, :])
        its = tl.load(near + others, mask=exist, other=0)[:, None]
        ahead = (its > own_near[None, :]) | ((its == own_near[None, :]) & (others[:, None] < own[None, :]))
        denser = tl.maximum(denser, tl.max((counts & ahead & (squared <= reach * reach)).to(tl.int32), axis=0))
        turn += CHUNK
    tl.atomic_max(beaten + own, denser, mask=alive & (denser > 0), sem="relaxed")


@triton.jit
def _window(
    points, classes, usable, count, own_class, low, high, spot, reach, middle, narrow,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum up the points from `low` to `high` - 1 within `reach` of `spot`, as offsets from it, in one fixed order.

    Return the sum (D_PAD,), how many these are, and how many of them lie within `narrow` of `middle`.
    """
    scalar: tl.constexpr = points.dtype.element_ty
    dimension = tl.arange(0, D_PAD)
    inside = dimension < D
    total = tl.zeros([D_PAD, BLOCK], scalar)
    number = tl.zeros([BLOCK], tl.int32)
    tight = tl.zeros([BLOCK], tl.int32)
    turn = low
    while turn < high:
        others = turn + tl.arange(0, BLOCK)
        exist = others < high
        wanted = inside[:, None] & exist[None, :]
        columns = tl.load(points + dimension[:, None] * count + others[None, :], mask=wanted, other=0.0)
        offset = tl.where(inside[:, None], columns - spot[:, None], 0.0)
        own = exist & (tl.load(classes + others, mask=exist, other=-2) == own_class)
        own = own & (tl.load(usable + others, mask=exist, other=0) > 0)
        own = own & (tl.sum(offset * offset, axis=0) <= reach * reach)
        total += tl.where(own[None, :], offset, 0.0)
        number += own.to(tl.int32)
        offset = tl.where(inside[:, None], columns - middle[:, None], 0.0)
        tight += (own & (tl.sum(offset * offset, axis=0) <= narrow * narrow)).to(tl.int32)
        turn += BLOCK
    return tl.sum(total, axis=1), tl.sum(number, axis=0), tl.sum(tight, axis=0)


@triton.jit(do_not_specialize=["count", "leaders"])
def climb_kernel(
    points, classes, usable, count, axis, starts, spans, leaders, radius, modes, support, stands,
    D: tl.constexpr, D_PAD: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Climb from every leader with the flat kernel, with half the radius, then with all of it; one program each.

    A climb that goes farther than 2 radii along `axis` comes to somebody else's mode, and is given up.

    What it is told:
        points: (D, n), like what follows as of `company_kernel`.
        classes: (n,).
        usable: (n,).
        count: n.
        axis: (1,) the coordinate by which points are sorted.
        starts: (L,) int32, the leaders.
        spans: (2, L) int32, where what lies within 4 radii of each along the axis begins and ends.
        leaders: L.
        radius: (1,).
        modes: (D, L), written: where each came to rest.
        support: (L,) int32, written: the points within the radius of it; -1 if it was given up.
        stands: (L,) int32, written: whether it stands out, as `mode_kernels._stands_out` says.
    """
    me = tl.program_id(0)
    start = tl.load(starts + me)
    low = tl.load(spans + me)
    high = tl.load(spans + leaders + me)
    own_class = tl.load(classes + start)
    dimension = tl.arange(0, D_PAD)
    origin = tl.load(points + dimension * count + start, mask=dimension < D, other=0.0)
    spot = origin
    whole = tl.load(radius)
    along = (dimension == tl.load(axis)).to(spot.dtype)
    away = whole * 0.0
    for phase in tl.static_range(2):
        reach = whole * (0.5 + 0.5 * phase)
        step = tl.full((), 0, tl.int32)
        moving = tl.full((), 1, tl.int32)
        while moving > 0:
            total, number, _ = _window(
                points, classes, usable, count, own_class, low, high, spot, reach, spot, reach, D, D_PAD, BLOCK
            )  # fmt: skip
            way = total / tl.maximum(number, 1).to(spot.dtype)
            spot = spot + way
            away = tl.maximum(away, tl.abs(tl.sum((spot - origin) * along, axis=0)))
            step += 1
            onwards = (tl.sum(way * way, axis=0) > _REST * whole * whole) & (away <= 2.0 * whole) & (step < STEPS)
            moving = onwards.to(tl.int32)
    total, number, _ = _window(
        points, classes, usable, count, own_class, low, high, spot, whole, spot, whole, D, D_PAD, BLOCK
    )  # fmt: skip
    mean = spot + total / tl.maximum(number, 1).to(spot.dtype)
    _, wide, _ = _window(
        points, classes, usable, count, own_class, low, high, spot, 2.0 * whole, spot, whole, D, D_PAD, BLOCK
    )  # fmt: skip
    _, _, tight = _window(
        points, classes, usable, count, own_class, low, high, spot, whole, mean, 0.5 * whole, D, D_PAD, BLOCK
    )  # fmt: skip
    straight = away <= 2.0 * whole
    stand = straight & ((4 * number >= 3 * wide) | (4 * tight >= 3 * number))
    tl.store(modes + dimension * leaders + me, spot, mask=dimension < D)
    tl.store(support + me, tl.where(straight, number, -1))
    tl.store(stands + me, stand.to(tl.int32))


@triton.jit(do_not_specialize=["count"])
def thin_kernel(
    modes, classes, count, radius, state, new_state,
    D: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take one step towards the modes that are farther than the radius (1,) from all that count before them.

    `modes` (D, n), `classes` (n,), the first ones first; `state` (n,) int32: 1 it counts, -1 it does not, 0 it depends
    on others. An undecided one counts if all near it that come before do not, and does not if one of these counts:
    repeated, that is what taking them one after the other gives.
    """
    begin = tl.program_id(0) * BLOCK
    own = begin + tl.arange(0, BLOCK)
    alive = own < count
    own_class = tl.load(classes + own, mask=alive, other=-1)
    own_state = tl.load(state + own, mask=alive, other=1)
    reach = tl.load(radius)
    verdict = tl.full([BLOCK], -1, tl.int32)  # the highest state of those near it that come before
    turn = tl.full((), 0, tl.int32)
    end = tl.minimum(begin + BLOCK, count) * tl.max((own_state == 0).to(tl.int32), axis=0)
    while turn < end:
        others = turn + tl.arange(0, CHUNK)
        exist = others < end
        squared = _squared(modes, count, own, others, alive, exist, D, CHUNK, BLOCK)
        counts = tl.load(classes + others, mask=exist, other=-2)[:, None] == own_class[None, :]
        counts = counts & (others[:, None] < own[None, :]) & (squared <= reach * reach)
        its = tl.load(state + others, mask=exist, other=-1)[:, None]
        verdict = tl.maximum(verdict, tl.max(tl.where(counts, its, -1), axis=0))
        turn += CHUNK
    tl.store(new_state + own, tl.where(own_state == 0, -verdict, own_state), mask=alive)
