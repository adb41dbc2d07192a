"""Modes among a few thousand points on a GPU: all climbs at once, then those that count."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from lovasz_embed._ops.gpu.margin_pair_kernels import climb_kernel, company_kernel, leaders_kernel, thin_kernel
from lovasz_embed._ops.gpu.margin_sweep import Centres
from lovasz_embed._ops.margin import MAX_CENTRES

BLOCK = 128  # points of a program that compares points with points
_CHUNK = 16  # points that a thread compares its own with at once
_PARTS = 4  # programs among which what lies near a block is shared out, so that few points fill a GPU, too
_TILE = 4096  # values of a climb's tile
_STEPS = 50  # a flat kernel over finitely many points stops by itself, nearly always within ten steps
_HAIR = 1e-6  # radii: rounding must not leave out a point that is just near enough
_ROUNDS = 2  # steps of thinning from one look at what is undecided to the next


class Modes(NamedTuple):
    """New modes (k, D) float64 and their classes (k,) int32; and how many usable points lie near each point (n,)."""

    means: Tensor
    classes: Tensor
    company: Tensor


class _Cloud(NamedTuple):
    """Points in the order that the kernels want, and where each came from."""

    points: Tensor  # (D, n)
    classes: Tensor  # (n,) int32
    keys: Tensor  # (n,) float64, ascending: class and coordinate in one
    slack: Tensor  # (): what a key may be off
    order: Tensor  # (n,) int64

    def spans(self, first: Tensor, last: Tensor, reach: Tensor) -> Tensor:
        """Return where what lies within `reach` (1,) of the points `first` to `last` begins and ends, (2, k) int32."""
        wide = reach.double() * (1 + _HAIR) + self.slack
        begin = torch.searchsorted(self.keys, self.keys[first] - wide)
        end = torch.searchsorted(self.keys, self.keys[last] + wide, right=True)
        return torch.stack([begin, end]).to(torch.int32)

    def spans_of_blocks(self, reach: Tensor) -> Tensor:
        first = torch.arange(0, len(self.keys), BLOCK, device=self.keys.device)
        return self.spans(first, (first + (BLOCK - 1)).clamp(max=len(self.keys) - 1), reach)


def widest(points: Tensor, usable: Tensor) -> Tensor:
    """Return the coordinate (1,) along which the usable points (D, n) spread most."""
    share = usable / usable.sum().clamp(min=1)
    away = torch.where(usable, points.double(), 0.0)
    mean = (away * share).sum(1, keepdim=True)
    return (torch.where(usable, away - mean, 0.0).square() * share).sum(1).argmax(keepdim=True)


def any_close(points: Tensor, classes: Tensor, radius: Tensor) -> Tensor:
    """Return whether two points (D, n) of a class lie within the radius (1,) of each other, bool ()."""
    state = torch.zeros_like(classes)
    return (_thinned(points, classes, state, radius, torch.ones_like(state)) < 1).any()


def find_modes(
    points: Tensor, classes: Tensor, usable: Tensor, known: Centres, radius: Tensor, enough: int, sure: float
) -> Modes:
    """Find the modes of points that lie farther than the radius from known centres, and from denser modes.

    A climb begins at every usable point with `enough` of them within the radius that has no denser one within it:
    density is how many lie within half the radius, and of equal ones the first counts. What lies within the radius of
    a point is the whole instance and nothing else where the guarantee holds, so that each instance has one such point.

    Args:
        points: (D, n), finite.
        classes: (n,) int32.
        usable: (n,) bool: the others are looked at by nobody.
        known: Centres that are there already; points are searched along their axis.
        radius: (1,) in the dtype of the points.
        enough: Fewest points to climb from, counting the start.
        sure: A mode of fewer points must stand out, see `mode_kernels._stands_out`.
    """
    cloud = _cloud(points, classes, known.axis, radius)
    spans = cloud.spans_of_blocks(radius)
    chosen = usable[cloud.order].to(torch.int32)
    near, company = _company(cloud, chosen, spans, radius)
    chosen = chosen * (company >= enough)
    if enough > 2:  # what has too little company is no part of an instance, nor of what surrounds one
        near, _ = _company(cloud, chosen, spans, radius)
    beaten = torch.zeros_like(near)
    dimensions, count = cloud.points.shape
    with torch.cuda.device_of(points):  # type: ignore[no-untyped-call]
        leaders_kernel[(-(-count // BLOCK), _PARTS)](
            cloud.points, cloud.classes, chosen, spans, count, radius, near, beaten,
            D=dimensions, CHUNK=_CHUNK, BLOCK=BLOCK,
        )  # fmt: skip
    back = torch.empty_like(company).index_copy_(0, cloud.order, company)
    starts = ((chosen > 0) & (beaten == 0)).nonzero()[:, 0]
    if not len(starts):
        return Modes(known.means[:0], known.classes[:0], back)
    starts = starts[near[starts].sort(descending=True, stable=True).indices]
    climbed = points.new_empty(dimensions, len(starts))
    support, stands = (torch.empty_like(near[: len(starts)]) for _ in range(2))
    width = triton.next_power_of_2(dimensions)
    with torch.cuda.device_of(points):  # type: ignore[no-untyped-call]
        climb_kernel[(len(starts),)](
            cloud.points, cloud.classes, chosen, count, known.axis, starts.to(torch.int32),
            cloud.spans(starts, starts, 4 * radius), len(starts), radius, climbed, support, stands,
            D=dimensions, D_PAD=width, STEPS=_STEPS, BLOCK=max(_TILE // width, 16),
        )  # fmt: skip
    good = (stands > 0) | (support >= sure)
    kept = _thin(climbed, cloud.classes[starts], good, known, radius)
    return Modes(climbed.T[kept].double(), cloud.classes[starts][kept], back)


def _cloud(points: Tensor, classes: Tensor, axis: Tensor, reach: Tensor) -> _Cloud:
    order = points.index_select(0, axis)[0].sort(stable=True).indices
    order = order[classes[order].sort(stable=True).indices]
    ordered, owners = points[:, order].contiguous(), classes[order]
    along = ordered.index_select(0, axis)[0].double()
    low, high = along.aminmax()
    # Classes lie apart; what rounding takes of a key where they are far apart, or points, costs comparisons only.
    apart = high - low + 8 * reach.double()[0]
    keys = owners * apart + (along - low)
    return _Cloud(ordered, owners, keys, keys.abs().amax() * 2.0**-50, order)


def _company(cloud: _Cloud, usable: Tensor, spans: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many usable points lie within half the radius, and within the radius, of each."""
    dimensions, count = cloud.points.shape
    near, company = (torch.zeros_like(cloud.classes) for _ in range(2))
    with torch.cuda.device_of(cloud.points):  # type: ignore[no-untyped-call]
        company_kernel[(-(-count // BLOCK), _PARTS)](
            cloud.points, cloud.classes, usable, spans, count, radius, near, company,
            D=dimensions, CHUNK=_CHUNK, BLOCK=BLOCK,
        )  # fmt: skip
    return near, company


def _thinned(modes: Tensor, classes: Tensor, state: Tensor, radius: Tensor, out: Tensor) -> Tensor:
    """Return `out` with one step of `thin_kernel` from `state`, for modes (D, n)."""
    count = len(state)
    if count:
        with torch.cuda.device_of(modes):  # type: ignore[no-untyped-call]
            thin_kernel[(-(-count // BLOCK),)](
                modes, classes, count, radius, state, out, D=len(modes), CHUNK=_CHUNK, BLOCK=BLOCK
            )
    return out


def _thin(climbed: Tensor, classes: Tensor, good: Tensor, known: Centres, radius: Tensor) -> Tensor:
    """Return which modes (D, k), the densest first, are good and farther than the radius from all that count."""
    before = len(known)
    modes = torch.cat([known.means.T.to(climbed.dtype), climbed], 1).contiguous()
    owners = torch.cat([known.classes, classes])
    state = torch.cat([torch.ones_like(known.classes), torch.where(good, 0, -1).to(torch.int32)])
    other = torch.empty_like(state)
    undecided = True
    while undecided:
        for _ in range(_ROUNDS):
            state, other = _thinned(modes, owners, state, radius, other), state
        undecided = bool((state == 0).any())
    kept = (state[before:] > 0).nonzero()[:, 0]
    if before + len(kept) > MAX_CENTRES:  # of one class no more than so many: beyond, it is noise and not instances
        owners = torch.cat([known.classes, classes[kept]])
        order = owners.sort(stable=True).indices
        ranked = owners[order]
        rank = torch.arange(len(order), device=order.device) - torch.searchsorted(ranked, ranked)
        within = torch.empty_like(rank).index_copy_(0, order, rank) < MAX_CENTRES
        kept = kept[within[before:]]
    return kept
