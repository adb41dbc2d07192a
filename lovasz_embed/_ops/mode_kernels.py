"""Numba kernels over few points: the sampled pixels and the centres found among them.

Arrays in, arrays out; the caller allocates what is returned. Floats are float64. Points are rows (n, D) or columns
(D, n), whichever the loops run along.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

_BLOCK = 128  # leaders compared at once
_STEPS = 50  # a flat kernel over finitely many points stops by itself, nearly always within ten steps
_REST = 1e-8  # squared step, in squared radii, at which it counts as standing still


@jit
def squared_distance(row: Floats, other: Floats) -> float:
    """Return |row - other|²."""
    total = 0.0
    for d in range(row.shape[0]):
        difference = row[d] - other[d]
        total += difference * difference
    return total


@jit
def _distances(columns: Floats, count: int, centre: Floats, distance: Floats) -> None:
    """Write the squared distances from `centre` to the first `count` columns; loops that vectorise."""
    for j in range(count):
        distance[j] = 0.0
    for d in range(columns.shape[0]):
        value = centre[d]
        for j in range(count):
            difference = columns[d, j] - value
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

    In the order of the points, one that no leader covers becomes a leader itself; the others join the first that
    covers them. Leaders that are too far behind along one axis are not compared.

    Args:
        points: (n, D), sorted by their coordinate `axis`.
        axis: A coordinate, best the one that spreads widest.
        radius: Radius of the balls.
        owner: (n,), written: the leader of each point.
        leaders: (D, n), written: the leaders, in their order, in the first columns.
    """
    limit = radius * radius
    distance = np.empty(_BLOCK, np.float64)
    count = behind = 0
    for i in range(points.shape[0]):
        bound = points[i, axis] - radius * (1.0 + 1e-6)  # rounding must not shut a ball that touches
        while behind < count and leaders[axis, behind] < bound:
            behind += 1
        chosen = -1
        begin = behind
        while chosen < 0 and begin < count:
            size = min(_BLOCK, count - begin)
            _distances(leaders[:, begin : begin + size], size, points[i], distance)
            for j in range(size):
                if distance[j] <= limit:
                    chosen = begin + j
                    break
            begin += size
        if chosen < 0:
            chosen = count
            leaders[:, count] = points[i]
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
    inside: Ints,
) -> int:
    """Write the indices of the points within `radius` of `centre` into `inside`; return how many.

    Points `first[j]` to `first[j + 1]` lie within `cover` of leader j: balls too far away are not entered.
    """
    count = 0
    limit = radius * radius
    reach = (radius + cover) * (1.0 + 1e-6)  # rounding must not shut a ball that touches
    low = _first_above(leaders[axis], 0, leaders.shape[1], centre[axis] - reach)
    high = _first_above(leaders[axis], low, leaders.shape[1], centre[axis] + reach)
    _distances(leaders[:, low:high], high - low, centre, distance)
    for j in range(high - low):
        if distance[j] <= reach * reach:
            for i in range(first[low + j], first[low + j + 1]):
                if squared_distance(points[i], centre) <= limit:
                    inside[count] = i
                    count += 1
    return count


@jit
def _is_near(columns: Floats, count: int, centre: Floats, limit: float, distance: Floats) -> bool:
    """Whether one of the first `count` columns lies within the squared distance `limit` of `centre`."""
    _distances(columns, count, centre, distance)
    for j in range(count):  # noqa: SIM110  numba compiles the loop, not `any` over a generator
        if distance[j] <= limit:
            return True
    return False


@jit
def density(points: Floats, leaders: Floats, axis: int, first: Ints, cover: float, radius: float, counts: Ints) -> None:
    """Write how many points lie within `radius` of each leader; see `find_modes`."""
    centre = np.empty(points.shape[1], np.float64)
    distance = np.empty(leaders.shape[1], np.float64)
    inside = np.empty(points.shape[0], np.int64)
    for j in range(leaders.shape[1]):
        centre[:] = leaders[:, j]
        counts[j] = _ball(points, leaders, axis, first, cover, centre, radius, distance, inside)


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
    modes: Floats,
    known: int,
) -> tuple[int, int]:
    """Find the modes of the points; return their number and that of the points they explain.

    From every leader that is farther than `radius` from all modes found before, and has `enough` points within it,
    the flat kernel climbs: with half the radius, so that it does not halt between two close instances, then with
    the radius, whose fixed point is the mean of a lone instance. Where it comes to rest is a mode if it is farther
    than `radius` from all others. Then it climbs from every point that no mode explains, if it has company:
    `enough` such points within half the radius, and no climb began there before.

    Args:
        points: (n, D), sorted by their leader.
        leaders: (D, L), points that cover the others, sorted by their coordinate `axis`.
        axis: That coordinate.
        first: (L + 1,), where the points of each leader begin.
        cover: Distance within which a leader covers its points.
        radius: Radius of an instance.
        order: (L,), the leaders in the order of their turns.
        enough: Fewest points to climb from, counting the start.
        modes: (D, room), known modes in the first columns; the new ones are written behind them. The search
            stops when there is no room.
        known: How many modes are known.
    """
    dimensions, starts = leaders.shape
    limit = radius * radius
    distance = np.empty(max(starts, modes.shape[1]), np.float64)
    inside = np.empty(points.shape[0], np.int64)
    centre = np.empty(dimensions, np.float64)
    total = np.empty(dimensions, np.float64)
    explained = np.zeros(points.shape[0], np.bool_)
    tried = np.zeros(points.shape[0], np.bool_)
    found = known
    for turn in range(starts + points.shape[0]):
        if found == modes.shape[1]:
            break
        start = turn - starts
        if start < 0:
            centre[:] = leaders[:, order[turn]]
        elif explained[start] or tried[start]:
            continue
        else:
            centre[:] = points[start]
        close = _is_near(modes, found, centre, limit, distance)
        if close:
            continue
        share = 1.0 if start < 0 else 0.5
        count = _ball(points, leaders, axis, first, cover, centre, share * radius, distance, inside)
        company = 0
        for i in inside[:count]:
            company += not explained[i]
        if company < enough:
            continue
        if start >= 0:
            for i in inside[:count]:
                tried[i] = True
        for share in (0.5, 1.0):
            if close:
                break
            for _ in range(_STEPS):
                count = _ball(points, leaders, axis, first, cover, centre, share * radius, distance, inside)
                if count == 0:  # by rounding alone: a mean has points within the window it was taken over
                    break
                total[:] = 0.0
                for i in inside[:count]:
                    for d in range(dimensions):
                        total[d] += points[i, d]
                moved = 0.0
                for d in range(dimensions):
                    step = total[d] / count - centre[d]
                    moved += step * step
                    centre[d] += step
                close = close or _is_near(modes, found, centre, limit, distance)
                if close or moved <= _REST * limit:
                    break
        if close:
            continue
        count = _ball(points, leaders, axis, first, cover, centre, radius, distance, inside)
        for i in inside[:count]:
            explained[i] = True
        modes[:, found] = centre
        found += 1
    return found, explained.sum()


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
            _distances(members, members.shape[1], members[:, j], distance)
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
