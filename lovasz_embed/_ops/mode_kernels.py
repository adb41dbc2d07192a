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
def choose_leaders(points: Floats, radius: float, owner: Ints, leaders: Floats) -> int:
    """Cover the points with balls of `radius` around some of them; return how many.

    In the order of the points, one that no leader covers becomes a leader itself; the others join the
    nearest.

    Args:
        points: (n, D).
        radius: Radius of the balls.
        owner: (n,), written: the leader of each point.
        leaders: (D, n), written: the leaders, in their order, in the first columns.
    """
    limit = radius * radius
    distance = np.empty(points.shape[0], np.float64)
    count = 0
    for i in range(points.shape[0]):
        _distances(leaders, count, points[i], distance)
        nearest = 0
        for j in range(1, count):
            if distance[j] < distance[nearest]:
                nearest = j
        if count == 0 or distance[nearest] > limit:
            nearest = count
            leaders[:, count] = points[i]
            count += 1
        owner[i] = nearest
    return count


@jit
def _ball(
    points: Floats,
    leaders: Floats,
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
    outer = (radius + cover) * (radius + cover) * (1.0 + 1e-6)  # rounding must not shut a ball that touches
    _distances(leaders, leaders.shape[1], centre, distance)
    for j in range(leaders.shape[1]):
        if distance[j] <= outer:
            for i in range(first[j], first[j + 1]):
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
def density(points: Floats, leaders: Floats, first: Ints, cover: float, radius: float, counts: Ints) -> None:
    """Write how many points lie within `radius` of each leader; see `find_modes`."""
    centre = np.empty(points.shape[1], np.float64)
    distance = np.empty(leaders.shape[1], np.float64)
    inside = np.empty(points.shape[0], np.int64)
    for j in range(leaders.shape[1]):
        centre[:] = leaders[:, j]
        counts[j] = _ball(points, leaders, first, cover, centre, radius, distance, inside)


@jit
def find_modes(
    points: Floats,
    leaders: Floats,
    first: Ints,
    cover: float,
    radius: float,
    order: Ints,
    modes: Floats,
    known: int,
) -> tuple[int, int]:
    """Find the modes of the points; return their number and that of the points they explain.

    From every leader that is farther than `radius` from all modes found before, the flat kernel climbs: with half
    the radius, so that it does not halt between two close instances, then with the radius, whose fixed point is
    the mean of a lone instance. Where it comes to rest is a mode if it is farther than `radius` from all others.

    Args:
        points: (n, D), sorted by their leader.
        leaders: (D, L), points that cover the others.
        first: (L + 1,), where the points of each leader begin.
        cover: Distance within which a leader covers its points.
        radius: Radius of an instance.
        order: (L,), the leaders in the order of their turns.
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
    found = known
    for j in order:
        if found == modes.shape[1]:
            break
        centre[:] = leaders[:, j]
        close = _is_near(modes, found, centre, limit, distance)
        for share in (0.5, 1.0):
            if close:
                break
            for _ in range(_STEPS):
                count = _ball(points, leaders, first, cover, centre, share * radius, distance, inside)
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
        count = _ball(points, leaders, first, cover, centre, radius, distance, inside)
        for i in inside[:count]:
            explained[i] = True
        modes[:, found] = centre
        found += 1
    return found, explained.sum()


@jit
def nearest_other(centres: Floats, first: Ints, axis: int, distance: Floats) -> None:
    """Write the distance from each centre to the nearest other centre of its class (inf where it is alone).

    The centres of class c are `first[c]` to `first[c + 1]`, sorted by their coordinate `axis`: centres
    farther apart along it than the nearest one so far are not compared.
    """
    for c in range(first.shape[0] - 1):
        for k in range(first[c], first[c + 1]):
            best = np.inf
            for j in range(k + 1, first[c + 1]):
                gap = centres[j, axis] - centres[k, axis]
                if gap * gap > best:
                    break
                best = min(best, squared_distance(centres[k], centres[j]))
            for j in range(k - 1, first[c] - 1, -1):
                gap = centres[k, axis] - centres[j, axis]
                if gap * gap > best:
                    break
                best = min(best, squared_distance(centres[k], centres[j]))
            distance[k] = np.sqrt(best)
