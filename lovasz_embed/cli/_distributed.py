"""Commands that torchrun starts several times: the processes find each other, one speaks, none waits for the dead."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lovasz_embed import _check
from lovasz_embed.cli._console import let_one_speak
from lovasz_embed.training._ranks import Ranks

TIMEOUT = "LOVASZ_EMBED_PROCESS_TIMEOUT"
SECONDS = 600.0
"""How long a process waits for the others: longer than any of them is on its own, for one picture or one checkpoint."""

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What torch says of a process that has gone has no class of its own; gloo, NCCL and the store use these words.
_SIGNS = ("gloo", "nccl", "connection", "peer", "pair closure", "timed out", "timeout", "socket", "broken pipe")


@contextmanager
def processes(device: str) -> Iterator[tuple[Ranks, str]]:
    """Join the processes that a launcher such as torchrun started, for as long as the block runs; else be alone.

    Args:
        device: As typed; "cuda" is the GPU that the launcher has meant for this process.

    Yields:
        The processes, and the device of this one.

    Raises:
        ConnectionError: Another process has gone, or did not answer in time.
        ValueError: The device is one that several processes would share.
    """
    if any(name not in os.environ for name in _LAUNCHED):
        yield Ranks(), device
        return
    device = _own(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    seconds = _seconds()
    let_one_speak(int(os.environ["RANK"]))
    try:
        _meet(backend, timedelta(seconds=seconds))
        yield Ranks(), device
    except (dist.DistError, RuntimeError) as error:
        text = re.sub(r"\[\S+:\d+\] ", "", " ".join(str(error).split())).partition(". ")[0]  # its first sentence
        if not isinstance(error, dist.DistError) and not any(sign in text.lower() for sign in _SIGNS):
            raise
        remedy = f"One has ended, and says why above or on its machine, or was silent for {seconds:g} s ({TIMEOUT})."
        raise ConnectionError(_check.message("every process", "answer the others", text, remedy)) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        time.sleep(0.1)  # gloo's threads let go of their tensors: a process that ends at once may abort


def _meet(backend: str, timeout: timedelta) -> None:
    """Make the process group.

    After a restart torchrun (PyTorch 2.13) hands out the store of the start before: its processes' addresses are still
    there, and all would knock at the doors of the dead until they give up. So each start has names of its own.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, rank, count = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    names = dist.PrefixStore(f"start {start}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=names, rank=rank, world_size=count, timeout=timeout)


def gathered(ranks: Ranks, items: list[Any]) -> list[Any]:
    """Return what all processes have, in their order; as JSON, for torch's own way would pickle it."""
    if ranks.count == 1:
        return items
    own = torch.frombuffer(bytearray(json.dumps(items).encode()), dtype=torch.uint8)
    sizes = torch.zeros(ranks.count, dtype=torch.int64)
    sizes[ranks.number] = len(own)
    dist.all_reduce(sizes)
    room = torch.zeros(ranks.count, int(sizes.max()), dtype=torch.uint8)
    room[ranks.number, : len(own)] = own
    dist.all_reduce(room)
    parts = (bytes(row[:size].tolist()) for row, size in zip(room, sizes.tolist(), strict=True))
    return [item for part in parts for item in json.loads(part)]


def together(ranks: Ranks) -> None:
    """Wait until all have come here: a launcher stops the others when one ends with a code that is not 0."""
    if ranks.count > 1:
        dist.barrier()


def _own(device: str) -> str:
    """Return the device of this process."""
    if device != "cuda":
        if device.startswith("cuda:") and int(os.environ["WORLD_SIZE"]) > 1:
            remedy = "The launcher gives each process a GPU of its own."
            raise ValueError(_check.message("--device", "be cpu or cuda for several processes", device, remedy))
        return device
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(number)
    return f"cuda:{number}"


def _seconds() -> float:
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text) if text else SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ValueError(_check.message(TIMEOUT, "be seconds above 0", repr(text)))
    return seconds
