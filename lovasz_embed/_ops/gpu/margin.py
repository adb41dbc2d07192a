"""Margin clustering of one picture on a GPU: the embedding stays there, and so does every map.

The steps are those of `_ops/margin.py` as far as work of fixed shape allows: a lattice of pixels, modes among them,
nearest centres, then all that is left. What differs: all climbs are made at once, each from the densest point around,
and what is left of a class is looked at part by part where it is more than `SECOND` points, which are compared with
each other without a grid. The host waits for a few counts, to know how much memory to ask for and whether to go on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lovasz_embed._ops.gpu.margin_modes import Modes, any_close, find_modes, widest
from lovasz_embed._ops.gpu.margin_sweep import DROPPED, Centres, Sweep
from lovasz_embed._ops.gpu.pixels import Planes
from lovasz_embed._ops.margin import MAX_CENTRES

SAMPLES = 16_384  # pixels among which modes are sought first
SECOND = 65_536  # pixels of those left that are looked at together; a class of 2 MAX_CENTRES must fit
_SHARE = 8  # one block of pixels in so many, to tell where the means are
_AT_REST = 0.1  # radii: a centre that was farther from the mean of its pixels is sought once more
_FEW = 512  # fewer than one in so many pixels of the lattice may be a mixture of two instances
_MANY = 16  # more than one pixel in so many is a matter of a pass over all
_LOOKS = 3  # at all that is left, at most; where the guarantee holds, one finds everything


@dataclass(frozen=True)
class DeviceClusters:
    """The clusters of one picture, in no order yet; cluster k carries label k + 1. A size may be 0."""

    labels: Tensor  # (P,) int32
    centres: Tensor  # (K, D) float64
    sizes: Tensor  # (K,) int64
    variances: Tensor  # (K,) float64, mean squared distance to the centre
    classes: Tensor  # (K,) int64
    apart: Tensor  # bool, the answer to `margin_ok`
    invalid: int  # pixels to be clustered that hold NaN or Inf


def cluster_picture(
    own: Planes,
    classes: Tensor,
    shape: tuple[int, ...],
    *,
    class_count: int,
    radius: float,
    reach: float,
    min_size: int,
) -> DeviceClusters:
    """Cluster the pixels of one picture, class by class; see `lovasz_embed.cluster_embeddings`.

    Args:
        own: The picture, the first of its batch.
        classes: (P,) int32 class of each pixel, 0 and above; negative: not clustered.
        shape: The spatial shape, of P pixels.
        class_count: One more than the highest class.
        radius: Radius of an instance.
        reach: Farthest distance at which a pixel joins its nearest centre.
        min_size: Fewest pixels of a cluster.
    """
    sweep = Sweep(own, classes, class_count, max(radius, reach))
    centres = _first_centres(sweep, shape, radius, min_size)
    left, points, invalid = _left(sweep, centres, radius)
    late, lone = _look_again(sweep, left, points, centres, radius, min_size)
    if len(lone):
        sweep.labels[lone] = -1  # taken: nobody looks at them again
    if len(late):
        centres, order = centres.join(late)
        new = order >= len(order) - len(late)
        _, totals = sweep.assign(centres, radius, late=new)
        # A later cluster that mostly takes pixels from the first ones is a fragment of one of them.
        fragments = new & (2 * totals.stolen > totals.counts)
        centres = _give(sweep, centres, fragments, radius)
    if reach > radius:
        pixels = ((sweep.labels == 0) & (classes >= 0)).nonzero()[:, 0]
        sweep.labels[pixels] = sweep.assign(centres, reach, pixels=pixels)[0]
    elif reach < radius:
        sweep.assign(centres, reach)
    means, variances, sizes = sweep.measure(centres)
    ones = torch.arange(len(lone), dtype=torch.int32, device=lone.device)
    sweep.labels[lone] = ones + (len(centres) + 1)
    alone = own.gather(lone).T.double()
    owners = torch.cat([centres.classes.clamp(min=0), classes[lone]])
    sizes = torch.cat([sizes, torch.ones_like(lone)])
    return DeviceClusters(
        sweep.labels,
        torch.cat([means, alone]),
        sizes,
        torch.cat([variances, torch.zeros_like(alone[:, 0])]),
        owners.long(),
        _apart(torch.cat([centres.means, alone]), owners, sizes > 0, radius),
        invalid,
    )


def _first_centres(sweep: Sweep, shape: tuple[int, ...], radius: float, min_size: int) -> Centres:
    """Find modes among a lattice of pixels, move them to the mean of their pixels, and label every pixel."""
    places = _places(sweep.classes, shape)
    points = sweep.own.gather(places)
    finite = points.isfinite().all(0)
    points = torch.where(finite, points, 0.0)
    axis = widest(points, finite)
    centres = Centres.none(sweep.dimensions, axis)
    if not len(places):
        return centres
    modes = find_modes(
        points, sweep.classes[places], finite, centres, sweep.number(radius), enough=2, sure=len(places) // _FEW
    )
    if not len(modes.means):
        return centres
    centres, _ = centres.like(modes.means, modes.classes)
    if sweep.own.pixels > SAMPLES:
        _, totals = sweep.assign(centres, radius, share=_SHARE)
        centres = centres.moved(totals.means(centres.means))
        sweep.labels.zero_()
    _, totals = sweep.assign(centres, radius)
    moved = totals.means(centres.means)
    far = (moved - centres.means).square().sum(1).sqrt() > _AT_REST * radius
    if int((totals.counts * far).sum()) * _MANY > sweep.own.pixels:
        centres = centres.moved(moved)
        _, totals = sweep.assign(centres, radius)
        moved = totals.means(centres.means)
        far = torch.zeros_like(far)
    # Those that moved far are found again; the labels are those of the centres as they were.
    doubtful = far | (totals.counts < min_size)
    return centres.moved(moved).drop(doubtful)


def _give(sweep: Sweep, centres: Centres, chosen: Tensor, limit: float) -> Centres:
    """Drop the chosen centres (K,) and give their pixels to the others."""
    centres = centres.drop(chosen)
    flags = torch.cat([chosen.new_zeros(1), chosen])
    pixels = flags[sweep.labels.clamp(min=0)].nonzero()[:, 0]
    if len(pixels):
        sweep.labels[pixels] = sweep.assign(centres, limit, pixels=pixels)[0]
    return centres


def _left(sweep: Sweep, centres: Centres, radius: float) -> tuple[Tensor, Tensor, int]:
    """Label what has no label yet, for centres have moved, and what dropped centres held.

    Returns:
        What is left (n,), those pixels (D, n), and how many others are not finite.
    """
    without = torch.cat([torch.ones(1, dtype=torch.bool, device=sweep.labels.device), centres.classes == DROPPED])
    pixels = (without[sweep.labels] & (sweep.classes >= 0)).nonzero()[:, 0]
    labels, _ = sweep.assign(centres, radius, pixels=pixels)
    sweep.labels[pixels] = labels
    left = pixels[labels == 0]
    points = sweep.own.gather(left)
    finite = points.isfinite().all(0)
    kept = finite.nonzero()[:, 0]
    invalid = len(left) - len(kept)
    return (left[kept], points[:, kept], invalid) if invalid else (left, points, 0)


def _look_again(
    sweep: Sweep, left: Tensor, points: Tensor, known: Centres, radius: float, min_size: int
) -> tuple[Centres, Tensor]:
    """Find centres among the pixels that the known ones leave: return those, and the lone pixels.

    All pixels are looked at together if they are few. Otherwise every class has a part of its pixels looked at, and
    again a part of what that leaves, while new centres explain at least half of it: where the guarantee holds they do,
    and what is left otherwise are the tails of known clusters. A new centre must stand out, see `find_modes`; one of a
    part by all its pixels, whose mean the part does not know.

    Args:
        sweep: The picture.
        left: (n,) which pixels.
        points: (D, n), finite.
        known: The centres so far.
        radius: Radius of an instance.
        min_size: Fewest pixels of a cluster.
    """
    late = Centres.none(sweep.dimensions, known.axis)
    lone = [left[:0]]
    groups = [torch.arange(len(left), device=left.device)] if len(left) <= SECOND else _by_class(sweep.classes[left])
    for rest in groups:
        looks = 0
        while len(rest) and looks < _LOOKS:
            complete = len(rest) <= SECOND
            looks += complete
            looked = rest if complete else rest[_evenly(len(rest), SECOND, rest.device)]
            # Of a part, so few that all instances below that number hold less than half of it.
            few = min_size if complete else min(min_size, 1 + len(looked) // (2 * MAX_CENTRES))
            around, _ = known.join(late)
            usable = torch.ones_like(looked, dtype=torch.bool)
            modes = find_modes(
                points[:, looked].contiguous(), sweep.classes[left[looked]], usable, around, sweep.number(radius),
                enough=max(2, few), sure=math.inf if complete else 0,
            )  # fmt: skip
            found, labels = _settle(sweep, left[rest], known, modes, radius, min_size, compact=not complete)
            late, _ = late.join(found)
            if complete and looks == 1 and min_size == 1:
                alone = (modes.company == 1) & (labels == 0)
                lone.append(left[looked[alone]])
                labels[alone] = -1
            if not len(modes.means):
                break
            if not complete:
                explained = torch.zeros(len(left), dtype=torch.bool, device=left.device)
                explained[rest] = labels != 0
                if 2 * int(explained[looked].sum()) < len(looked):
                    break
            rest = rest[labels == 0]
    return late, torch.cat(lone).sort().values


def _settle(
    sweep: Sweep, pixels: Tensor, like: Centres, modes: Modes, radius: float, min_size: int, *, compact: bool
) -> tuple[Centres, Tensor]:
    """Return the means of the pixels (n,) nearest to some modes, of those that have enough, and the labels (n,).

    With `compact`, three in four of the pixels must lie within half the radius of their mean: what stands out among all
    pixels, where modes of a part of them were not asked to. Those of the others have no label then.
    """
    centres, _ = like.like(modes.means, modes.classes)
    labels, totals = sweep.assign(centres, radius, pixels=pixels)
    centres = centres.moved(totals.means(centres.means))
    good = totals.counts >= min_size
    if compact:
        tight = sweep.assign(centres, radius / 2, pixels=pixels)[1].counts
        stands = 4 * tight >= 3 * totals.counts
        good &= stands
        labels = torch.where(torch.cat([stands.new_zeros(1), stands])[labels], labels, 0)
    kept = good.nonzero()[:, 0]
    return Centres(centres.means[kept], centres.classes[kept], centres.axis), labels


def _by_class(classes: Tensor) -> list[Tensor]:
    """Return the places (n,) of each class, those of classes with few of them together."""
    order = classes.sort(stable=True).indices
    groups: list[Tensor] = []
    begin = end = 0
    for count in classes.bincount().tolist():
        if end > begin and end + count - begin > SECOND:
            groups.append(order[begin:end])
            begin = end
        end += count
    return [group.sort().values for group in (*groups, order[begin:end])]


def _evenly(count: int, chosen: int, device: torch.device) -> Tensor:
    """Return so many of the places 0..count - 1, evenly spaced."""
    return (2 * torch.arange(chosen, device=device) + 1) * count // (2 * max(chosen, 1))


def _places(classes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return pixels to be clustered, all or those on a lattice, at most SAMPLES of them."""
    some = classes >= 0
    valid = int(some.sum())
    if valid <= SAMPLES:
        return some.nonzero()[:, 0]
    budget = SAMPLES * len(classes) / valid
    step = 1
    while math.prod(math.ceil(n / step) for n in shape) > budget:
        step += 1
    places = torch.zeros(1, dtype=torch.int64, device=classes.device)
    for n in shape:
        axis = torch.arange(min(step // 2, (n - 1) // 2), n, step, device=classes.device)
        places = (places[:, None] * n + axis).reshape(-1)
    sampled = places[some[places]]
    return sampled[:: math.ceil(len(sampled) / SAMPLES) or 1]  # the mask may favour the rows of the lattice


def _apart(points: Tensor, classes: Tensor, usable: Tensor, radius: float) -> Tensor:
    """Return whether no two usable points (n, D) of a class lie within 2 radius of each other."""
    wide = torch.full((1,), 2 * radius, dtype=torch.float64, device=points.device)
    # What is not a number is close to nothing.
    return ~any_close(points.masked_fill(~usable[:, None], math.nan).T.contiguous(), classes, wide)
