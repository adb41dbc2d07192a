"""The nodes of a level on a GPU, found without waiting to learn how many there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lovasz_embed._ops.gpu import nodes_kernels as kernels
from lovasz_embed._ops.nodes import NO_NODE

MAX_NODES = 4096  # of a level, over the whole batch
# Of a part of the table, four times as many in the first. With as many labels as slots a part, the most there can be,
# chance leaves one of them without a place once in 1e11 level maps; that fails as too many nodes do.
LEAST_SLOTS = 1024

_BLOCK = 512  # pixels of a program
_SLOTS = 1024  # slots of a program


class Count:
    """The number of nodes on its way to the host, which does not wait for it."""

    def __init__(self, count: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        # What is captured into a graph must not depend on what the host happens to know.
        if count.is_cuda and not torch.cuda.is_current_stream_capturing():
            self._value = torch.empty(1, dtype=count.dtype, pin_memory=True)
            self._value.copy_(count, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def peek(self) -> int | None:
        """Return the number if it has come, else None."""
        if self._event is None or not self._event.query():  # type: ignore[no-untyped-call]
            return None
        return int(self._value)


@dataclass(frozen=True)
class DeviceNodes:
    """The K nodes of a level over B pictures of P pixels; K is known to the device only.

    Attributes:
        member: Node of each pixel, (B, P) int32; -1 is none, -2 ignored.
        starts: First node that looks at the pixels of each picture, (B,) int32.
        stops: The node after the last of them, (B,) int32.
        count: K, (1,) int32.
        early: The same, for a host that is in luck.
        picture: Picture of each node, (M,) int64, M being the most that there can be; -1 for a node that spans the
            batch, and from K on.
        label: Label of each node, (M,) int64; -1 from K on.
    """

    member: Tensor
    starts: Tensor
    stops: Tensor
    count: Tensor
    early: Count
    picture: Tensor
    label: Tensor


def capacity(labels: Tensor) -> int:
    """Return the most nodes that labels (B, P) can have: what the host knows without looking."""
    most: int = torch.sym_min(labels.shape[0] * labels.shape[1], MAX_NODES)  # type: ignore[no-untyped-call]
    return most


def number_nodes(labels: Tensor, *, per_picture: bool) -> DeviceNodes:
    """Number the nodes of integer labels (B, P) by picture, then by label, as `_ops.nodes.find_nodes` does.

    Fails on the device, later, where there are more than `MAX_NODES`. Scratch is 4 bytes a pixel, and 0.5 MB a picture
    or, without `per_picture`, for all.
    """
    batch, pixels = labels.shape
    labels = labels.contiguous()
    labels = labels.long() if labels.dtype in (torch.bool, torch.uint16, torch.uint32, torch.uint64) else labels
    most = capacity(labels)
    if not most:
        nothing = labels.new_zeros(0, dtype=torch.long)
        starts = labels.new_zeros(batch, dtype=torch.int32)
        count = starts.new_zeros(1)
        return DeviceNodes(starts.new_empty(batch, pixels), starts, starts, count, Count(count), nothing, nothing)
    groups = batch if per_picture else 1
    room = min(pixels if per_picture else batch * pixels, MAX_NODES)  # of a group
    later = max(LEAST_SLOTS, 1 << (room - 1).bit_length())
    first = 4 * later
    slots = first + (kernels.ROUNDS - 1) * later
    table = torch.full((groups, slots), kernels.EMPTY, dtype=torch.long, device=labels.device)
    blocks = -(-pixels // _BLOCK)
    for part in range(kernels.ROUNDS):
        kernels.claim_kernel[(batch * blocks,)](
            labels, table, pixels, blocks,
            PER_PICTURE=per_picture, ROUND=part, FIRST=first, LATER=later, BLOCK=_BLOCK,
        )  # fmt: skip
    counts = labels.new_zeros(groups, dtype=torch.int32)
    found = torch.full((groups, room), kernels.EMPTY, dtype=torch.long, device=labels.device)
    kernels.collect_kernel[(groups, -(-slots // _SLOTS))](table, counts, found, slots, room, BLOCK=_SLOTS)
    names = found.sort(1).values
    ranks = torch.searchsorted(names, table, out_int32=True)
    held = counts.clamp(max=room)
    stops = held.cumsum(0, dtype=torch.int32)
    starts = stops - held
    count = stops[-1:]
    early = Count(count)
    member = torch.empty(batch, pixels, dtype=torch.int32, device=labels.device)
    homeless = torch.zeros_like(count)
    if not per_picture:
        starts, stops = starts.expand(batch).contiguous(), stops.expand(batch).contiguous()
    kernels.number_kernel[(batch * blocks,)](
        labels, table, ranks, starts, member, homeless, pixels, blocks,
        PER_PICTURE=per_picture, FIRST=first, LATER=later, BLOCK=_BLOCK,
    )  # fmt: skip
    fits = (counts.amax() <= room) & (count <= most) & (homeless == 0)
    torch._assert_async(
        fits,
        f"levels must have at most {MAX_NODES} nodes each for impl='triton', over the whole batch, got more. "
        "Use impl='reference', or fewer pictures at a time.",
    )
    number = torch.arange(most, dtype=torch.int32, device=labels.device)
    if per_picture:
        picture = torch.searchsorted(stops, number, right=True).clamp(max=batch - 1)
        place = (number - starts[picture]).clamp(0, room - 1)
        label = names.flatten()[picture * room + place]
    else:
        picture, label = torch.full_like(number, -1, dtype=torch.long), names[0, :most]
    there = number < count
    return DeviceNodes(
        member, starts, stops, count, early, torch.where(there, picture, -1), torch.where(there, label, NO_NODE)
    )


def parents_of(nodes: DeviceNodes, above: DeviceNodes) -> Tensor:
    """Return the node of the level above that each node lies in, (M,) int32; fails, later, where it is not one."""
    least = torch.full_like(nodes.label, 2**31 - 1, dtype=torch.int32)
    most = torch.full_like(least, -(2**31))
    total = nodes.member.numel()
    if total:
        grid = (-(-total // _BLOCK),)
        kernels.parents_kernel[grid](nodes.member, above.member, least, most, total, BLOCK=_BLOCK)
    wrong = ((least != most) | (least < 0)) & (nodes.label >= 0)
    torch._assert_async(
        ~wrong.any(),
        "levels must form a tree: every node inside one node of the level above, got a node outside or across nodes "
        "of the level above. Ignore those pixels, or use negatives='all'.",
    )
    return least


@torch.library.custom_op("lovasz_embed::named_nodes_triton", mutates_args=())
def named_nodes(labels: Tensor, per_picture: bool) -> tuple[Tensor, Tensor]:
    """Return the node of every pixel, (B, P) int32, and the label of every node, (M,) int64; see `DeviceNodes`."""
    with torch.cuda.device_of(labels):  # type: ignore[no-untyped-call]
        nodes = number_nodes(labels, per_picture=per_picture)
    return nodes.member, nodes.label


@named_nodes.register_fake
def _(labels: Tensor, per_picture: bool) -> tuple[Tensor, Tensor]:
    return labels.new_empty(labels.shape, dtype=torch.int32), labels.new_empty(capacity(labels), dtype=torch.int64)
