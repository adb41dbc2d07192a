"""One of several processes of `test_distributed.py`.

Run by torchrun or with its variables set, as `distributed_worker.py same FOLDER` (what must equal one process), or as
`distributed_worker.py HOW WHEN COMMAND ...`: the command line, some of whose processes meet HOW. WHEN is a list such as
`0:1:5,1:0:7`: after the first start process 1 after step 5, after the first restart process 0 after step 7.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lovasz_embed.formats import Sample
from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.prototypes import NearestClassMean
from lovasz_embed.quality import PanopticQuality
from lovasz_embed.training import TrainConfig, fit

PICTURES, CLASSES, THINGS, VOID = 7, 4, {2, 3}, 255
# Which pictures each process has in each of two rounds: uneven, none at all, only void (3), no thing (4).
ROUNDS = {
    1: [[range(0, 5)], [range(5, 7)]],
    2: [[range(0, 4), range(4, 5)], [range(5, 5), range(5, 7)]],
    4: [[range(0, 3), range(3, 3), range(3, 4), range(4, 5)], [range(5, 6), range(6, 6), range(6, 7), range(7, 7)]],
}
FIT = TrainConfig(
    steps=4, batch=4, crop=16, scale=1.0, jitter=0.0, warmup=2, amp=False, pull_weight=0.1, mean_pictures=7, log_every=1
)


class Data(NamedTuple):
    """Seven pictures that every process makes for itself."""

    features: Tensor
    embedding: Tensor
    semantic: Tensor
    instance: Tensor


def data() -> Data:
    """Return features (7, 3, 8, 6), embeddings (7, 2, 8, 6) and labels; picture 3 is void, picture 4 without things."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(PICTURES, 3, 8, 6, dtype=torch.float64, generator=random)
    embedding = torch.randn(PICTURES, 2, 8, 6, dtype=torch.float64, generator=random)
    semantic = torch.randint(0, CLASSES, (PICTURES, 8, 6), generator=random)
    semantic[torch.rand(semantic.shape, generator=random) < 0.2] = VOID
    semantic[3] = VOID
    semantic[4] = semantic[4].clamp(max=1)
    instance = torch.randint(1, 4, semantic.shape, generator=random)
    return Data(features, embedding, semantic, torch.where(semantic < VOID, instance, 0))


def results(given: Data, own: range) -> tuple[PanopticResult, PanopticResult]:
    """Return a prediction and the truth of some pictures."""
    chosen = slice(own.start, own.stop)
    semantic, instance = given.semantic[chosen], given.instance[chosen]
    near = torch.where((given.embedding[chosen, 0] < 1.2) & (semantic < VOID), semantic, 0)
    truth = PanopticResult.from_maps(semantic, instance, things=THINGS)
    return PanopticResult.from_maps(near, instance.clamp(min=1), things=THINGS), truth


def losses(given: Data, own: range, group: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the losses of the global batch and their gradients by the network's parameters."""
    chosen = slice(own.start, own.stop)
    features, semantic = given.features[chosen], given.semantic[chosen]
    mask = torch.where(semantic == VOID, VOID, (semantic == 2).long())
    found = {}
    for name in ("softmax", "hinge"):
        torch.manual_seed(0)
        network: nn.Module = nn.Conv2d(3, CLASSES, 1).double()
        module = network if group is None else DistributedDataParallel(network)
        logits = module(features)
        options: dict[str, Any] = {"method": "binned", "group": group, "ignore_index": VOID, "per_image": False}
        if name == "softmax":
            loss = lovasz_softmax(logits, semantic, **options)
        else:
            loss = lovasz_hinge(logits[:, 0], mask, **options)
        loss.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        found[name] = (loss.detach(), gradient)
    return found


def summed(given: Data, rounds: list[range]) -> dict[str, Tensor]:
    """Return class means and panoptic quality of some rounds of pictures."""
    ncm = NearestClassMean(CLASSES, 2)
    each, once = PanopticQuality(CLASSES, THINGS), PanopticQuality(CLASSES, THINGS, local=True)
    for own in rounds:
        chosen = slice(own.start, own.stop)
        ncm.update(given.embedding[chosen], given.semantic[chosen])
        each.update(*results(given, own))
        for number in own:  # as many as there are: no process waits for another here
            once.update(*results(given, range(number, number + 1)))
    once.gather()
    return {"sums": ncm.sums, "pixels": ncm.counts, "counts": each.counts, "gathered": once.counts}


def samples() -> list[Sample]:
    """Return labelled pictures to train on, of other sizes; one of them without things, one void."""
    found = []
    for number in range(PICTURES):
        rng = np.random.default_rng(number)
        size = (20 + number, 24)
        semantic, instance = np.zeros(size, np.uint8), np.zeros(size, np.int32)
        for identifier in range(0 if number == 1 else number % 3 + 1):
            top, left = rng.integers(1, 12, 2)
            semantic[top : top + 6, left : left + 7], instance[top : top + 6, left : left + 7] = 1, identifier + 1
        if number == 2:
            semantic[:], instance[:] = VOID, 0
        image = (60 + 120 * (semantic == 1))[..., None] + rng.integers(0, 60, (*size, 3))
        found.append(Sample(str(number), image.astype(np.uint8), semantic, instance))
    return found


def model() -> PanopticEmbedder:
    """Return the network of these tests, of the same weights each time."""
    torch.manual_seed(0)
    return PanopticEmbedder(ModelConfig(classes=("floor", "cup"), things=(1,), widths=(4, 8)))


def trained(network: PanopticEmbedder) -> dict[str, Tensor]:
    """Return the weights and class means that training ended with, and the gradient of its last step."""
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    return {**network.state_dict(), "gradient": torch.cat(gradients)}


def same(folder: str) -> None:
    """Write what must be the same for any number of processes."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    given, own = data(), [row[rank] for row in ROUNDS[ranks]]
    found = {
        "losses": losses(given, own[0], dist.group.WORLD),
        "summed": summed(given, own),
        "step": trained(fit(model(), samples(), replace(FIT, steps=1))),
        "trained": trained(fit(model(), samples(), FIT)),
    }
    torch.save(found, f"{folder}/{ranks}-{rank}.pt")
    dist.destroy_process_group()
    time.sleep(0.1)  # gloo's threads let go of their tensors: a process that ends at once may abort


def command(how: str, when: set[str], arguments: list[str]) -> None:
    """Run the command line, with a checkpoint every two steps; its processes meet their end when they are told."""
    from lovasz_embed.cli import app

    verb = sys.modules["lovasz_embed.cli.train"]
    original = verb.fit  # type: ignore[attr-defined]
    rank, start = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

    def fit_until(network: Any, pictures: Any, config: TrainConfig, *, on_step: Any, **options: Any) -> Any:
        def then(progress: Any) -> None:
            on_step(progress)
            if rank == 0:
                with open(os.environ["STEPS"], "a") as file:
                    file.write(f"{start} {progress.step}\n")
            if f"{start}:{rank}:{progress.step}" in when:
                if how == "raise":
                    raise ValueError("picture 7 must be readable, got damage")
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[how])

        return original(network, pictures, replace(config, checkpoint_every=2), on_step=then, **options)

    verb.fit = fit_until  # type: ignore[attr-defined]
    sys.argv = ["lovasz-embed", *arguments]
    app()


if __name__ == "__main__":
    if sys.argv[1] == "same":
        same(sys.argv[2])
    else:
        command(sys.argv[1], set(sys.argv[2].split(",")), sys.argv[3:])
