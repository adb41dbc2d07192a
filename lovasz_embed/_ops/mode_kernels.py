"""Numba kernels over few points: the sampled pixels and the centres found among them.

Arrays in, arrays out; the caller allocates what is returned. Points are columns (D, n) of float32 or float64: the loops
run along them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

_BLOCK = 32  # leaders compared at once
_STEPS = 50  # a flat kernel over finitely many points stops by itself, nearly always within ten steps
_REST = 1e-8  # squared step, in squared radii, at which it counts as standing still


@jit
def _distances(columns: Floats, begin: int, end: int, centre: Floats, distance: Floats) -> None:
    """Write the squared distances from `centre` to the columns `begin` to `end`; loops that vectorise."""
    base = np.uint64(begin)  # numba trusts that unsigned indices are not negative, and makes vectors
    count = np.uint64(end - begin)
    zero = columns.dtype.type(0)
    for j in range(count):
        distance[j] = zero
    whole = columns.shape[0] // 4 * 4
    for d in range(0, whole, 4):  # four coordinates at a time, in their order: sums stay in registers
        p, q, r, s = centre[d], centre[d + 1], centre[d + 2], centre[d + 3]
        for j in range(count):
            a = columns[d, base + j] - p
            b = columns[d + 1, base + j] - q
            c = columns[d + 2, base + j] - r
            e = columns[d + 3, base + j] - s
            distance[j] = distance[j] + a * a + b * b + c * c + e * e
    for d in range(whole, columns.shape[0]):
        value = centre[d]
        for j in range(count):
            difference = columns[d, base + j] - value
            distance[j] += difference * difference


@jit
def _first_above(values: Floats, low: int, high: int, bound: float) -> int:
    """Return the first index in low..high - 1 of sorted `values` that is not below `bound`, or high."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def choose_leaders(points: Floats, axis: int, radius: float, owner: Ints, leaders: Floats) -> int:
    """Cover the points with balls of `radius` around some of them; return how many.

    In the order of the points, one that no leader covers becomes a leader itself; the others join one that covers
    them. Leaders that are too far behind along one axis are not compared.

    Args:
        points: (D, n), sorted by their coordinate `axis`.
        axis: A coordinate, best the one that spreads widest.
        radius: Radius of the balls.
        owner: (n,), written: the leader of each point.
        leaders: (D, n), written: the leaders, in their order, in the first columns.
    """
    limit = radius * radius
    distance = np.empty(_BLOCK, points.dtype)
    count = behind = 0
    for i in range(points.shape[1]):
        bound = points[axis, i] - radius * (1.0 + 1e-6)  # rounding must not shut a ball that touches
        while behind < count and leaders[axis, behind] < bound:
            behind += 1
        chosen = -1
        end = count
        while chosen < 0 and end > behind:  # those that are near along the axis are the likeliest
            begin = max(end - _BLOCK, behind)
            _distances(leaders, begin, end, points[:, i], distance)
            for j in range(end - begin):
                if distance[j] <= limit:
                    chosen = begin + j
                    break
            end = begin
        if chosen < 0:
            chosen = count
            leaders[:, count] = points[:, i]
            count += 1
        owner[i] = chosen
    return count


@jit
def _ball(
    points: Floats,
    leaders: Floats,
    axis: int,
    first: Ints,
    cover: float,
    centre: Floats,
    radius: float,
    distance: Floats,
    stretch: Ints,
    inside: Ints,
) -> int:
    """Write the indices of the points within `radius` of `centre` into `inside`; return how many.

    Points `first[j]` to `first[j + 1]` lie within `cover` of leader j: balls too far away are not entered.
    """
    count = 0
    limit = points.dtype.type(radius * radius)
    reach = (radius + cover) * (1.0 + 1e-6)  # rounding must not shut a ball that touches
    outer = points.dtype.type(reach * reach)
    low = _first_above(leaders[axis], 0, leaders.shape[1], centre[axis] - reach)
    high = _first_above(leaders[axis], low, leaders.shape[1], centre[axis] + reach)
    _distances(leaders, low, high, centre, distance)
    near = 0
    for j in range(high - low):  # leaders that follow one another have their points side by side
        if distance[j] <= outer:
            begin, end = first[low + j], first[low + j + 1]
            if near > 0 and stretch[near - 1, 1] == begin:
                stretch[near - 1, 1] = end
            else:
                stretch[near, 0], stretch[near, 1] = begin, end
                near += 1
    for m in range(near):
        begin, end = stretch[m, 0], stretch[m, 1]
        _distances(points, begin, end, centre, distance)
        for i in range(end - begin):
            if distance[i] <= limit:
                inside[count] = begin + i
                count += 1
    return count


@jit
def _is_near(columns: Floats, count: int, centre: Floats, limit: float, distance: Floats) -> bool:
    """Whether one of the first `count` columns lies within the squared distance `limit` of `centre`."""
    _distances(columns, 0, count, centre, distance)
    for j in range(count):  # noqa: SIM110  numba compiles the loop, not `any` over a generator
        if distance[j] <= limit:
            return True
    return False


@jit
def density(points: Floats, leaders: Floats, axis: int, first: Ints, cover: float, radius: float, counts: Ints) -> None:
    """Write how many points lie within `radius` of each leader; see `find_modes`."""
    distance = np.empty(points.shape[1], points.dtype)
    stretch = np.empty((leaders.shape[1], 2), np.int64)
    inside = np.empty(points.shape[1], np.int64)
    for j in range(leaders.shape[1]):
        counts[j] = _ball(points, leaders, axis, first, cover, leaders[:, j], radius, distance, stretch, inside)


@jit
def find_modes(
    points: Floats,
    leaders: Floats,
    axis: int,
    first: Ints,
    cover: float,
    radius: float,
    order: Ints,
    enough: int,
    sure: int,
    modes: Floats,
    known: int,
) -> tuple[int, int]:
    """Find the modes of the points; return their number and that of the points they explain.

    From every leader that is farther than `radius` from all modes found before, and has `enough` points within it,
    the flat kernel climbs: with half the radius, so that it does not halt between two close instances, then with
    the radius, whose fixed point is the mean of a lone instance. Where it comes to rest is a mode if it is farther
    than `radius` from all others. Then it climbs from every point that no mode explains, if it has company:
    `enough` such points within half the radius, and no climb began there before; not where all modes must stand out,
    for what does has a leader of its own.

    A mode of fewer than `sure` points must also look like an instance, not like a stretch of the pixels that lie
    between two: see `_stands_out`. No climb begins where one step leads to what does not, nor close to a mode that
    was refused.

    Args:
        points: (D, n), sorted by their leader.
        leaders: (D, L), points that cover the others, sorted by their coordinate `axis`.
        axis: That coordinate.
        first: (L + 1,), where the points of each leader begin.
        cover: Distance within which a leader covers its points.
        radius: Radius of an instance.
        order: (L,), the leaders in the order of their turns.
        enough: Fewest points to climb from, counting the start.
        sure: Fewest points of a mode that need not stand out.
        modes: (D, room), known modes in the first columns; the new ones are written behind them. The search
            stops when there is no room.
        known: How many modes are known.
    """
    dimensions, starts = leaders.shape
    size = points.shape[1]
    limit = radius * radius
    distance = np.empty(max(size, modes.shape[1]), points.dtype)
    apart = np.empty(modes.shape[1], np.float64)
    stretch = np.empty((starts, 2), np.int64)
    inside = np.empty(size, np.int64)
    centre = np.empty(dimensions, np.float64)
    spot = np.empty(dimensions, points.dtype)  # the centre as the points are stored
    mean = np.empty(dimensions, np.float64)
    explained = np.zeros(size, np.bool_)
    tried = np.zeros(size, np.bool_)
    found = known
    refused = np.empty((dimensions, modes.shape[1] if sure > 0 else 0), modes.dtype)
    refusals = 0
    for turn in range(starts + (size if sure <= size else 0)):
        if found == modes.shape[1]:
            break
        start = turn - starts
        if start < 0:
            spot[:] = leaders[:, order[turn]]
        elif explained[start] or tried[start]:
            continue
        else:
            spot[:] = points[:, start]
        centre[:] = spot
        close = _is_near(modes, found, centre, limit, apart)
        if close or _is_near(refused, refusals, centre, 0.25 * limit, apart):
            continue
        share = 1.0 if start < 0 else 0.5
        count = _ball(points, leaders, axis, first, cover, spot, share * radius, distance, stretch, inside)
        company = 0
        for i in inside[:count]:
            company += not explained[i]
        if company < enough:
            continue
        if start >= 0:
            for i in inside[:count]:
                tried[i] = True
        if start >= 0:
            count = _ball(points, leaders, axis, first, cover, spot, radius, distance, stretch, inside)
        if count < sure:
            _mean(points, inside[:count], mean)
            spot[:] = mean
            if not _stands_out(points, leaders, axis, first, cover, spot, radius, distance, stretch, inside, mean):
                continue
            spot[:] = centre
        for share in (0.5, 1.0):
            if close:
                break
            for _ in range(_STEPS):
                count = _ball(points, leaders, axis, first, cover, spot, share * radius, distance, stretch, inside)
                if count == 0:  # by rounding alone: a mean has points within the window it was taken over
                    break
                _mean(points, inside[:count], mean)
                moved = 0.0
                for d in range(dimensions):
                    step = mean[d] - centre[d]
                    moved += step * step
                    centre[d] = mean[d]
                spot[:] = centre
                close = close or _is_near(modes, found, centre, limit, apart)
                if close or moved <= _REST * limit:
                    break
        if close:
            continue
        count = _ball(points, leaders, axis, first, cover, spot, radius, distance, stretch, inside)
        if count < sure and not _stands_out(
            points, leaders, axis, first, cover, spot, radius, distance, stretch, inside, mean
        ):
            if refusals < refused.shape[1]:
                refused[:, refusals] = centre
                refusals += 1
            continue
        count = _ball(points, leaders, axis, first, cover, spot, radius, distance, stretch, inside)
        for i in inside[:count]:
            explained[i] = True
        modes[:, found] = centre
        found += 1
    return found, explained.sum()


@jit
def _stands_out(
    points: Floats,
    leaders: Floats,
    axis: int,
    first: Ints,
    cover: float,
    centre: Floats,
    radius: float,
    distance: Floats,
    stretch: Ints,
    inside: Ints,
    mean: Floats,
) -> bool:
    """Whether the points within `radius` of `centre` look like an instance of their own.

    They do if three in four of them lie within half the radius of their mean, as all of an instance do where the
    guarantee holds; or if three in four points within twice the radius are theirs: little surrounds them. Of pixels
    spread along a line, such as mixtures of two instances, one half do either.
    """
    wide = _ball(points, leaders, axis, first, cover, centre, 2.0 * radius, distance, stretch, inside)
    count = _ball(points, leaders, axis, first, cover, centre, radius, distance, stretch, inside)
    if 4 * count >= 3 * wide:
        return True
    _mean(points, inside[:count], mean)
    limit = 0.25 * radius * radius
    tight = 0
    for i in inside[:count]:
        squared = 0.0
        for d in range(points.shape[0]):
            difference = points[d, i] - mean[d]
            squared += difference * difference
        tight += squared <= limit
    return 4 * tight >= 3 * count


@jit
def _mean(points: Floats, chosen: Ints, mean: Floats) -> None:
    """Write the mean of some points; four coordinates side by side, whose additions need not wait for each other."""
    whole = points.shape[0] // 4 * 4
    for d in range(0, whole, 4):
        p = q = r = s = 0.0
        for i in chosen:
            p += points[d, i]
            q += points[d + 1, i]
            r += points[d + 2, i]
            s += points[d + 3, i]
        mean[d], mean[d + 1], mean[d + 2], mean[d + 3] = p, q, r, s
    for d in range(whole, points.shape[0]):
        p = 0.0
        for i in chosen:
            p += points[d, i]
        mean[d] = p
    for d in range(points.shape[0]):
        mean[d] /= chosen.shape[0]


@jit
def neighbours(columns: Floats, first: Ints, within: float, near: Ints, gap: Floats, nearest: Floats) -> None:
    """Find the nearest other centres of each centre, of its class and closer than `within`.

    Args:
        columns: (D, K), sorted by class.
        first: (C + 1,), where the centres of each class begin.
        within: Greatest distance of interest.
        near: (K, M), written: the nearest ones, the nearest first.
        gap: (K, M + 1), written: their distances, then one that is not above that of any other centre.
        nearest: (K,), written: the distance to the nearest, however far; inf if there is none.
    """
    room = near.shape[1]
    distance = np.empty(columns.shape[1], np.float64)
    who = np.empty(room + 1, np.int64)
    for c in range(first.shape[0] - 1):
        members = columns[:, first[c] : first[c + 1]]
        for j in range(members.shape[1]):
            k = first[c] + j
            _distances(members, 0, members.shape[1], members[:, j], distance)
            distance[j] = np.inf
            least = np.inf
            who[:] = k
            gap[k, :] = within
            for i in range(members.shape[1]):
                least = min(least, distance[i])
                if distance[i] < gap[k, room] * gap[k, room]:
                    m = room
                    root = np.sqrt(distance[i])
                    while m > 0 and gap[k, m - 1] > root:
                        gap[k, m] = gap[k, m - 1]
                        who[m] = who[m - 1]
                        m -= 1
                    gap[k, m] = root
                    who[m] = first[c] + i
            near[k, :] = who[:room]
            nearest[k] = np.sqrt(least)
