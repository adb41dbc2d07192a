"""One of two processes of `test_binned.py`: it trains on its own pictures.

Run as `binned_worker.py FOLDER RANK [ENGINE ...]`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax

RANDOM = torch.Generator().manual_seed(0)
PICTURES = torch.randn(4, 3, 80, dtype=torch.float64, generator=RANDOM)
CLASSES = torch.randint(0, 4, (4, 80), generator=RANDOM)
VOID = torch.where(torch.rand(4, 80, generator=RANDOM) < 0.3, 255, CLASSES)
HALF, ONE_TO_THREE, NONE_AND_ALL = (slice(0, 2), slice(2, 4)), (slice(0, 1), slice(1, 4)), (slice(0, 0), slice(0, 4))

Loss = Callable[..., Tensor]


def hinge(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return lovasz_hinge(logits[:, 0], torch.where(labels == 255, 255, (labels == 1).long()), per_image=False, **options)


def each(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    own = (labels.unsqueeze(1) == torch.arange(4).view(1, 4, 1)).long()
    return lovasz_hinge(logits, own, per_image=False, multilabel=True, **options)


def weighted(loss: Loss) -> Loss:
    """Masks and classes count differently, so that none can stand for another."""
    return lambda *data, **options: (loss(*data, reduction="none", **options) * torch.arange(1, 5)).sum()


def of_classes(classes: Any) -> Loss:
    return lambda *data, **options: lovasz_softmax(*data, classes=classes, **options)


FIRST_WITHOUT_1 = torch.where((CLASSES == 1) & (torch.arange(4) < 2).unsqueeze(1), 0, CLASSES)
CASES: dict[str, tuple[Loss, Tensor, tuple[slice, slice]]] = {
    "hinge": (hinge, CLASSES, HALF),
    "hinge, uneven": (hinge, CLASSES, ONE_TO_THREE),
    "hinge, void": (lambda *data, **o: hinge(*data, ignore_index=255, **o), VOID, ONE_TO_THREE),
    "hinge, foreground in one process": (hinge, FIRST_WITHOUT_1, HALF),
    "hinge, no foreground": (hinge, CLASSES * 0, HALF),
    "hinge, labels": (each, CLASSES, HALF),
    "hinge, labels, none": (weighted(each), CLASSES, ONE_TO_THREE),
    "hinge, few bins": (lambda *data, **o: hinge(*data, bins=8, **o), CLASSES, HALF),
    "all void": (lambda *data, **o: hinge(*data, ignore_index=255, **o), CLASSES * 0 + 255, HALF),
    "softmax": (lovasz_softmax, VOID, HALF),
    "softmax, uneven": (lovasz_softmax, VOID, ONE_TO_THREE),
    "softmax, a class in one process": (weighted(lovasz_softmax), FIRST_WITHOUT_1, HALF),
    "softmax, an absent class": (lovasz_softmax, CLASSES.clamp(max=2), HALF),
    "softmax, all": (of_classes("all"), CLASSES.clamp(max=2), HALF),
    "softmax, some": (of_classes([3, 1]), FIRST_WITHOUT_1, ONE_TO_THREE),
    "softmax, one process void": (lovasz_softmax, torch.cat([CLASSES[:2] * 0 + 255, CLASSES[2:]]), HALF),
    "hinge, no picture": (hinge, CLASSES, NONE_AND_ALL),
    "softmax, no picture": (lovasz_softmax, VOID, NONE_AND_ALL),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv1d(3, 4, 1).double()


def step(name: str, impl: str, model: nn.Module, own: slice, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Return the loss, and the gradient of all of the network's parameters."""
    function, labels, _ = CASES[name]
    model.zero_grad()
    loss = function(model(PICTURES[own]), labels[own], method="binned", impl=impl, group=group)
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def main(folder: str, rank: int, *engines: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    if "triton" in engines:
        from lovasz_embed._ops.gpu import counting

        counting._BLOCK = 2**15  # one step along a table, for the interpreter's sake
    results = {}
    for name, (_, _, parts) in CASES.items():
        for impl in engines or ("reference", "numba"):
            model = DistributedDataParallel(network())
            results[name, impl] = step(name, impl, model, parts[rank], torch.distributed.group.WORLD)
            torch.save(results, f"{folder}/rank{rank}.pt")  # at once: a later case may fail
    torch.distributed.destroy_process_group()
    time.sleep(0.1)  # gloo's threads let go of their tensors: a process that ends at once may abort


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
