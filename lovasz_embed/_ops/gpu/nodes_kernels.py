# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton gives kernels types of its own.
"""Number the nodes of a label map on a GPU: labels of any size become 0, 1, 2, ... without sorting the pixels.

A table of slots takes part of every label: slot h(label) keeps the least label that comes there, whatever the order in
which they come. A label that finds another one in its slot tries a second part of the table, with another hash, and so
on. Afterwards every label stands in the table exactly once, so that only as many as there are nodes need sorting.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROUNDS = 6  # parts of the table; 4096 labels all find a place in 3 or 4
EMPTY = 2**63 - 1  # what a slot holds at first: above all labels

_ROUNDS = tl.constexpr(ROUNDS)
_EMPTY = tl.constexpr(EMPTY)


@triton.jit
def _slot(label, ROUND: tl.constexpr, FIRST: tl.constexpr, LATER: tl.constexpr):
    """Return the slot of a label in a part of the table: FIRST slots in part 0, LATER ones in all others."""
    mixed = label ^ (ROUND * 0x0B873593CC9E2D51)
    mixed = (mixed ^ (mixed >> 33)) * 0x7F51AFD7ED558CCD  # the finaliser of MurmurHash3, but for a sign
    mixed = (mixed ^ (mixed >> 29)) * 0x44CEB9FE1A85EC53
    mixed = mixed ^ (mixed >> 32)
    return mixed & (FIRST - 1) if ROUND == 0 else FIRST + (ROUND - 1) * LATER + (mixed & (LATER - 1))


@triton.jit
def claim_kernel(
    labels, table, pixels, blocks,
    PER_PICTURE: tl.constexpr, ROUND: tl.constexpr, FIRST: tl.constexpr, LATER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Let the labels that have no slot yet claim one in part ROUND of the table, (groups, slots) int64.

    `labels` are integers (B, P); `blocks` programs share a picture.
    """
    picture = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    labels += picture * pixels
    label = tl.load(labels + place, mask=place < pixels, other=0).to(tl.int64)
    # A neighbour of the same label claims for this pixel too: few pixels have none.
    inside = (place < pixels) & (place > 0)
    left = tl.load(labels + place - 1, mask=inside, other=0).to(tl.int64)
    pending = (place < pixels) & (label >= 0) & ((place == 0) | (label != left))
    if PER_PICTURE:
        table += picture * (FIRST + (_ROUNDS - 1) * LATER)
    for earlier in tl.static_range(ROUND):
        held = tl.load(table + _slot(label, earlier, FIRST, LATER), mask=pending, other=-1)
        pending = pending & (held != label)
    slot = table + _slot(label, ROUND, FIRST, LATER)
    # Past the first-level cache, which would not see what others wrote. Late news cost an atomic, nothing else.
    held = tl.load(slot, mask=pending, other=-1, cache_modifier=".cg")
    tl.atomic_min(slot, label, mask=pending & (held > label), sem="relaxed")


@triton.jit
def collect_kernel(table, counts, found, slots, room, BLOCK: tl.constexpr):
    """Write the labels of each row of the table, in no order, to `found` (groups, room), and add up how many.

    Programs: groups x runs of BLOCK slots. What there is no room for is counted only.
    """
    group = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(table + group * slots + slot, mask=slot < slots, other=_EMPTY)
    held = (label != _EMPTY).to(tl.int32)
    number = tl.sum(held, 0)
    if number > 0:
        start = tl.atomic_add(counts + group, number, sem="relaxed")
        place = start + tl.cumsum(held, 0) - 1
        tl.store(found + group * room + place, label, mask=(held > 0) & (place < room))


@triton.jit
def number_kernel(
    labels, table, ranks, starts, member, homeless, pixels, blocks,
    PER_PICTURE: tl.constexpr, FIRST: tl.constexpr, LATER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the node of every pixel, (B, P) int32; -1 for none, -2 for ignored.

    `ranks` has for every slot of the table the place of its label among those of its group, `starts` the first node
    of each picture. `homeless` becomes 1 where a label found no slot.
    """
    picture = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels + picture * pixels + place, mask=place < pixels, other=0).to(tl.int64)
    if PER_PICTURE:
        table += picture * (FIRST + (_ROUNDS - 1) * LATER)
        ranks += picture * (FIRST + (_ROUNDS - 1) * LATER)
    pending = (place < pixels) & (label >= 0)
    node = tl.where(label == -2, -2, -1)
    for part in tl.static_range(_ROUNDS):
        slot = _slot(label, part, FIRST, LATER)
        here = pending & (tl.load(table + slot, mask=pending, other=-1) == label)
        node = tl.where(here, tl.load(ranks + slot, mask=here, other=0), node)
        pending = pending & (here == 0)
    node = tl.where(node >= 0, node + tl.load(starts + picture), node)
    tl.store(member + picture * pixels + place, node, mask=place < pixels)
    tl.store(homeless + tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32) + 1, mask=pending)


@triton.jit
def parents_kernel(member, above, least, most, total, BLOCK: tl.constexpr):
    """Note the least and the greatest node of the level above among the pixels of every node, all int32.

    `member` and `above` have `total` pixels.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    node = tl.load(member + place, mask=inside, other=-1)
    parent = tl.load(above + place, mask=inside, other=-1)
    # A neighbour that says the same speaks for this pixel too.
    other = inside & (place > 0)
    same = (tl.load(member + place - 1, mask=other, other=-1) == node) & (
        tl.load(above + place - 1, mask=other, other=-1) == parent
    )
    speaks = (node >= 0) & ((same == 0) | (place == 0))
    tl.atomic_min(least + node, parent, mask=speaks, sem="relaxed")
    tl.atomic_max(most + node, parent, mask=speaks, sem="relaxed")
