"""One of two processes of `test_triton_training.py`: it trains on its own pictures with Triton's kernels, interpreted.

Run as `triton_worker.py FOLDER RANK`.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from lovasz_embed.lovasz import lovasz_softmax
from tests.binned_worker import CASES, ONE_TO_THREE, PICTURES, VOID, hinge, network, step

NAMES = ("hinge, uneven", "softmax, a class in one process")


def train(impl: str, model: nn.Module, own: slice, group: ProcessGroup | None) -> Tensor:
    """Take two steps on the hinge and the softmax of the global batch; return all parameters."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
    options = {"method": "binned", "bins": 32, "impl": impl, "group": group}
    for _ in range(2):
        optimiser.zero_grad()
        output = model(PICTURES[own])
        loss = hinge(output, VOID[own], ignore_index=255, **options) + lovasz_softmax(output, VOID[own], **options)
        loss.backward()
        optimiser.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def main(folder: str, rank: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    world = torch.distributed.group.WORLD
    results = {}
    for name in NAMES:
        results[name] = step(name, "triton", DistributedDataParallel(network()), CASES[name][2][rank], world)
        torch.save(results, f"{folder}/rank{rank}.pt")  # at once: a later case may fail
    results["train"] = train("triton", DistributedDataParallel(network()), ONE_TO_THREE[rank], world)
    torch.save(results, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()
    time.sleep(0.1)  # gloo's threads let go of their tensors: a process that ends at once may abort


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
