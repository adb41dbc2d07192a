# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton gives kernels types of its own.
"""The hierarchical hinge on a GPU: sums over nodes, counts of errors, and gradients.

A program holds the embedding of a block of pixels, (D, BLOCK), in registers and walks the nodes that look at their
picture; no array has nodes x pixels entries. Sums over programs are integers in fixed point, whose order does not
matter: `unit` of a sum, a float64 from a bound of it (tree.py), is what 1 stands for in it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lovasz_embed._ops.gpu.counting_kernels import cell_of, weigh_cells_kernel

_LN2 = tl.constexpr(0.6931471805599453)
_IGNORED = tl.constexpr(-2)


@triton.jit
def _fixed(value, unit):
    """Return a number in fixed point; 0 for one that is none, whose unit is none either, which shows in the end."""
    scaled = value.to(tl.float64) / unit
    return tl.where(tl.abs(scaled) < 9e18, scaled, 0.0).to(tl.int64)


@triton.jit
def _tile(planes, picture, place, dims, pixels, channels, D: tl.constexpr, D_PAD: tl.constexpr):
    """Return where the dimensions `dims` of some pixels of a picture lie, (D_PAD, BLOCK), and which of it exists."""
    lane = tl.arange(0, D_PAD)
    channel = tl.load(dims + lane, mask=lane < D, other=0).to(tl.int64)
    where = planes + picture * channels * pixels + channel[:, None] * pixels + place[None, :]
    return where, (lane < D)[:, None] & (place < pixels)[None, :]


@triton.jit
def _error(distance2, radius2, number, inside, GAUSSIAN: tl.constexpr):
    """Return the errors at squared distances, and their slope along them.

    `number` is the squared margin of the margin kernel; the gaussian one has none.
    """
    if GAUSSIAN:
        phi = 2 * tl.exp2(-distance2 / radius2)
        error = tl.where(inside, 2 - phi, phi)
        slope = phi * (_LN2 / radius2)
    else:
        logit = (radius2 - distance2) / number
        error = tl.where(inside, 1 - logit, 1 + logit)
        slope = tl.zeros_like(distance2) + 1 / number
    return error, tl.where(inside, slope, -slope)


@triton.jit
def _costs(error, inside, member, group, node, parents, number, SIBLINGS: tl.constexpr, GAUSSIAN: tl.constexpr):
    """Return which pixels have a positive error that counts; one that is no number does.

    `number` is the error up to which the gaussian kernel leaves negatives out.
    """
    limit = tl.where(inside, 0 * number, number) if GAUSSIAN else tl.zeros_like(error)
    costs = (member != _IGNORED) & ((error > limit) | (error != error))
    if SIBLINGS:
        costs = costs & (group == tl.load(parents + node))
    return costs


@triton.jit
def sums_kernel(
    embedding, member, bandwidth, dims, units, sums, pixels, blocks, channels,
    BANDWIDTH: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up size, bandwidth and embedding of every node's pixels, (M, 2 + D_PAD) int64.

    `embedding` (B, channels, P), `member` and `bandwidth` (B, P); `dims` (D,) int32 are the channels to look at;
    `units` (2,) those of bandwidth and embedding. `blocks` programs share a picture.
    """
    picture = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    node = tl.load(member + picture * pixels + place, mask=place < pixels, other=-1)
    last = tl.max(node, 0)
    if last >= 0:
        first = tl.min(tl.where(node < 0, last, node), 0)
        where, there = _tile(embedding, picture, place, dims, pixels, channels, D, D_PAD)
        x = tl.load(where, mask=there, other=0)
        lane = tl.arange(0, D_PAD)
        k = first
        while k <= last:  # the interpreter cannot make a range of what it is told at run time
            inside = node == k
            size = tl.sum(inside.to(tl.int32), 0)
            if size > 0:
                row = sums + k.to(tl.int64) * (2 + D_PAD)
                tl.atomic_add(row, size.to(tl.int64), sem="relaxed")
                total = tl.sum(tl.where(inside[None, :], x, 0), 1)
                tl.atomic_add(row + 2 + lane, _fixed(total, tl.load(units + 1)), mask=lane < D, sem="relaxed")
                if BANDWIDTH:
                    width = tl.load(bandwidth + picture * pixels + place, mask=inside, other=0)
                    tl.atomic_add(row + 1, _fixed(tl.sum(width, 0), tl.load(units)), sem="relaxed")
            k += 1


@triton.jit
def count_kernel(
    embedding, member, group, parents, starts, stops, dims, means, radius2, number, counts, flags,
    batch_first, pixels, blocks, channels, shift,
    NODES: tl.constexpr, CELLS: tl.constexpr, GAUSSIAN: tl.constexpr, SIBLINGS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the positive errors of NODES nodes from `batch_first` on into the rows of `counts`, (NODES, CELLS) int32.

    A node's pixels without a positive error are counted in cell 1; other entries without one nowhere. `flags`
    (programs, NODES / 32) int32 get a bit per node that has a positive error in the block, from the first on that
    looks at it. `means` (M, D_PAD), padded with 0; `radius2` (M,); `number` see `_error` and `_costs`.
    """
    picture = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.maximum(tl.load(starts + picture), batch_first)
    last = tl.minimum(tl.load(stops + picture), batch_first + NODES)
    if first < last:
        place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
        own = tl.load(member + picture * pixels + place, mask=place < pixels, other=_IGNORED)
        parent = own
        if SIBLINGS:
            parent = tl.load(group + picture * pixels + place, mask=place < pixels, other=_IGNORED)
        where, there = _tile(embedding, picture, place, dims, pixels, channels, D, D_PAD)
        x = tl.load(where, mask=there, other=0)
        limit = tl.load(number).to(x.dtype)
        lane = tl.arange(0, D_PAD)
        flags += tl.program_id(0).to(tl.int64) * (NODES // 32)
        begin = first
        while begin < last:
            bits = begin - begin
            stop = tl.minimum(begin + 32, last)
            k = begin
            while k < stop:
                gap = x - tl.load(means + k.to(tl.int64) * D_PAD + lane)[:, None]
                distance2 = tl.sum(gap * gap, 0)
                inside = own == k
                error, _ = _error(distance2, tl.load(radius2 + k), limit, inside, GAUSSIAN)
                costs = _costs(error, inside, own, parent, k, parents, limit, SIBLINGS, GAUSSIAN)
                # Two sums in one: those that cost, and those of the node at rest.
                both = tl.sum(costs.to(tl.int32) + ((inside & (costs == 0)).to(tl.int32) << 16), 0)
                row = counts + (k - batch_first).to(tl.int64) * CELLS
                if both >= 65536:
                    tl.atomic_add(row + 1, both >> 16, sem="relaxed")
                if both & 65535 > 0:
                    cell = cell_of(error, inside, shift)
                    if GAUSSIAN:
                        # Far negatives would all wait for the lowest bin: they are counted here, and added once.
                        low = costs & (cell == 2)
                        tl.atomic_add(row + 2, tl.sum(low.to(tl.int32), 0), sem="relaxed")
                        costs = costs & (cell != 2)
                    tl.atomic_add(row + cell, 1, mask=costs, sem="relaxed")
                    bits |= 1 << (k - begin)
                k += 1
            tl.store(flags + (begin - first) // 32, bits)
            begin += 32


@triton.jit
def weigh_kernel(
    counts, weights, totals, count, batch_first, BINS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Turn the counts of a node per program into weights, and clear them; see `counting_kernels`."""
    if batch_first + tl.program_id(0) < tl.load(count):
        weigh_cells_kernel(counts, weights, totals, BINS, BLOCK)
        tl.debug_barrier()  # other threads may still read what this one clears
        row = counts + tl.program_id(0).to(tl.int64) * (2 * BINS + 2)
        lane = tl.arange(0, BLOCK)
        for start in range(0, 2 * BINS + 2, BLOCK):
            tl.store(row + start + lane, tl.zeros([BLOCK], tl.int32), mask=start + lane < 2 * BINS + 2)


@triton.jit
def gradient_kernel(
    embedding, member, group, parents, starts, stops, dims, means, radius2, number, weights, flags, units, sums,
    scale, grad, batch_first, pixels, blocks, channels, shift,
    WANTED: tl.constexpr, BANDWIDTH: tl.constexpr,
    NODES: tl.constexpr, CELLS: tl.constexpr, GAUSSIAN: tl.constexpr, SIBLINGS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up each node's loss and its slopes along squared radius and mean, and the embedding's gradient.

    `sums` (M, 2 + D_PAD) int64 with `units` (M, 3) for the three, not scaled; `grad` like the embedding, `scale` times
    the slopes. Everything else as in `count_kernel`.
    """
    picture = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.maximum(tl.load(starts + picture), batch_first)
    last = tl.minimum(tl.load(stops + picture), batch_first + NODES)
    if first < last:
        place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
        own = tl.load(member + picture * pixels + place, mask=place < pixels, other=_IGNORED)
        parent = own
        if SIBLINGS:
            parent = tl.load(group + picture * pixels + place, mask=place < pixels, other=_IGNORED)
        where, there = _tile(embedding, picture, place, dims, pixels, channels, D, D_PAD)
        x = tl.load(where, mask=there, other=0)
        limit = tl.load(number).to(x.dtype)
        lane = tl.arange(0, D_PAD)
        slopes = tl.zeros_like(x)
        moved = first - first
        flags += tl.program_id(0).to(tl.int64) * (NODES // 32)
        begin = first
        while begin < last:
            bits = tl.load(flags + (begin - first) // 32)
            if bits != 0:
                moved += 1
                stop = tl.minimum(begin + 32, last)
                k = begin
                while k < stop:
                    if (bits >> (k - begin)) & 1 != 0:
                        gap = x - tl.load(means + k.to(tl.int64) * D_PAD + lane)[:, None]
                        distance2 = tl.sum(gap * gap, 0)
                        inside = own == k
                        squared = tl.load(radius2 + k)
                        error, slope = _error(distance2, squared, limit, inside, GAUSSIAN)
                        costs = _costs(error, inside, own, parent, k, parents, limit, SIBLINGS, GAUSSIAN)
                        cell = cell_of(error, inside, shift)
                        row = weights + (k - batch_first).to(tl.int64) * CELLS
                        weight = tl.load(row + cell, mask=costs, other=0)
                        total = sums + k.to(tl.int64) * (2 + D_PAD)
                        unit = units + 3 * k
                        loss = tl.sum(tl.where(costs, weight * error, 0), 0)
                        tl.atomic_add(total, _fixed(loss, tl.load(unit)), sem="relaxed")
                        if WANTED:
                            pull = tl.where(costs, weight * slope, 0)
                            step = 2 * pull[None, :] * gap
                            slopes += step
                            along = _fixed(-tl.sum(step, 1), tl.load(unit + 2))
                            tl.atomic_add(total + 2 + lane, along, mask=lane < D, sem="relaxed")
                            if BANDWIDTH:
                                wider = -tl.sum(pull * (distance2 / squared), 0)
                                tl.atomic_add(total + 1, _fixed(wider, tl.load(unit + 1)), sem="relaxed")
                    k += 1
            begin += 32
        if WANTED and moved > 0:
            to, _ = _tile(grad, picture, place, dims, pixels, channels, D, D_PAD)
            slopes = slopes * tl.load(scale).to(x.dtype)
            tl.store(to, tl.load(to, mask=there, other=0) + slopes, mask=there)


@triton.jit
def spread_kernel(
    member, dims, shares, grad, grad_bandwidth, pixels, blocks, channels,
    BANDWIDTH: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass on to every pixel its share of the slopes along its node's radius and mean, `shares` (M, 1 + D_PAD)."""
    picture = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    node = tl.load(member + picture * pixels + place, mask=place < pixels, other=-1)
    if tl.max(node, 0) >= 0:
        lane = tl.arange(0, D_PAD)
        row = shares + node.to(tl.int64) * (1 + D_PAD)
        to, there = _tile(grad, picture, place, dims, pixels, channels, D, D_PAD)
        there = there & (node >= 0)[None, :]
        share = tl.load(row[None, :] + 1 + lane[:, None], mask=there, other=0)
        tl.store(to, tl.load(to, mask=there, other=0) + share, mask=there)
        if BANDWIDTH:
            inside = node >= 0
            tl.store(grad_bandwidth + picture * pixels + place, tl.load(row, mask=inside, other=0), mask=inside)
