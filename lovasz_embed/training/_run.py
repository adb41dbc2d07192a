"""A model in training: optimiser, schedule and running class means, advanced, saved and restored as one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lovasz_embed import _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed.hierarchy import HierarchicalLoss
from lovasz_embed.model import PanopticEmbedder
from lovasz_embed.training._loss import followed, hinge_of
from lovasz_embed.training._parameters import learning_parameters
from lovasz_embed.training._ranks import Ranks
from lovasz_embed.training._targets import category_targets
from lovasz_embed.training.config import TrainConfig
from lovasz_embed.training.views import View

FAILED = "failed-step"


class Run:
    """A model in training.

    Args:
        model: Trained in place.
        config: The options.
        ranks: The processes that train it together, each with its share of a batch; gradients are averaged over them.

    Attributes:
        step: Steps done, skipped ones included.
        seconds: Of training so far.
        skipped: Steps that changed nothing, because their loss or gradient was not finite.
        in_a_row: Of these, the last ones without another between them.
    """

    def __init__(self, model: PanopticEmbedder, config: TrainConfig, ranks: Ranks) -> None:
        self.model = model
        self.config = config
        self.ranks = ranks
        self.loss = hinge_of(config)
        self.groups = learning_parameters(model, model.backbone, config)
        self.optimiser = torch.optim.AdamW(
            [{"params": parameters} for parameters, _ in self.groups],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.device = next(model.parameters()).device
        self.network = model if ranks.count == 1 else _in_parallel(model, self.device)
        self.targets = category_targets(model, config).to(self.device) if config.spread is not None else None
        self.running = torch.full_like(model.ncm.means, torch.nan, dtype=torch.float32)
        self.step = 0
        self.seconds = 0.0
        self.skipped = 0
        self.in_a_row = 0

    @property
    def fraction(self) -> float:
        """Share of the schedule that is done; steps or minutes, whichever is farther."""
        share = self.step / self.config.steps
        if self.config.minutes is not None:
            share = max(share, self.seconds / (60 * self.config.minutes))
        return share

    def advance(self, views: View, out: Path | None) -> HierarchicalLoss | None:
        """Do one step of the optimiser; None where it was skipped.

        Args:
            views: The batch.
            out: Folder for a batch that ends the run; None writes nothing.

        Raises:
            ValueError: If too many steps in a row had a loss or gradient that is not finite.
        """
        picture, semantic, instance, crowd = (tensor.to(self.device) for tensor in views)
        self._set_rate()
        pixels = self._lattice(picture.shape[-2:])
        embedding = embed(self.network, picture, self.config.amp, pixels)
        if pixels is not None:
            semantic, instance, crowd = (
                labels[:, pixels[0][:, None], pixels[1]] for labels in (semantic, instance, crowd)
            )
        running = followed(self.running, embedding.detach(), semantic, self.config.momentum, self.ranks)
        result: HierarchicalLoss | None = None
        if bool(embedding.isfinite().all()):  # or the loss refuses it
            levels = self.model.levels(semantic, instance, crowd)
            result = self.loss(embedding, levels, running if self.targets is None else self.targets)
        loss = math.nan if result is None else float(result.loss.detach())
        # Every process takes part in the backward pass, or none does: one alone would wait for the others forever.
        if not self.ranks.all(math.isfinite(loss), self.device):
            self._skip("loss", "nan elsewhere" if math.isfinite(loss) else loss, views, out)
            return None
        assert result is not None  # its loss is finite
        self.optimiser.zero_grad()
        result.loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip))
        if not math.isfinite(norm):  # the same for every process, for the gradients are averaged by now
            self._skip("gradient", norm, views, out)
            return None
        self.running, self.in_a_row = running, 0
        self.optimiser.step()
        self.step += 1
        return result

    def _set_rate(self) -> None:
        warm = min(1.0, (self.step + 1) / max(self.config.warmup, 1))
        rate = self.config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * self.fraction))
        for group, (_, factor) in zip(self.optimiser.param_groups, self.groups, strict=True):
            group["lr"] = rate * factor

    def _skip(self, what: str, got: object, views: View, out: Path | None) -> None:
        """Count a step that must not change the weights; end the run where that is no exception any more."""
        what = f"the {what} of step {self.step}"
        if self.in_a_row >= self.config.max_skipped:
            remedy = f"Lower learning_rate or clip; {self.in_a_row} steps before it were skipped."
            if out is not None:
                remedy += f" Its batch is in {self._keep(views, what, got, out)}."
            raise ValueError(_check.message(what, "be finite", got, remedy))
        self.step, self.skipped, self.in_a_row = self.step + 1, self.skipped + 1, self.in_a_row + 1
        warnings.warn(f"{what} is {got}: the step is skipped, the {self.skipped}. of this run", stacklevel=4)

    def _keep(self, views: View, what: str, got: object, out: Path) -> Path:
        """Write a batch for inspection: pictures as the network got them, and their labels."""
        from safetensors.torch import save

        rank = f"-rank{self.ranks.number}" if self.ranks.count > 1 else ""
        path = out / f"{FAILED}{rank}.safetensors"
        tensors = {name: tensor.contiguous() for name, tensor in zip(View._fields, views, strict=True)}
        write_atomically(path, save(tensors, {"what": what, "got": str(got), "step": str(self.step)}))
        return path

    def score(self, score: Callable[[PanopticEmbedder], Mapping[str, float | None]]) -> dict[str, float | None]:
        """Score the model as it is, with the running class means in the place of the final ones."""
        ncm = self.model.ncm
        before = ncm.sums.clone(), ncm.counts.clone()
        known = ~self.running.isnan().any(1)
        ncm.sums.copy_(self.running.nan_to_num(0.0))
        ncm.counts.copy_(known)  # a mean is its own sum over one pixel
        self.model.eval()
        try:
            scores = score(self.model) if bool(known.any()) else {}
        finally:
            ncm.sums.copy_(before[0])
            ncm.counts.copy_(before[1])
            self.model.train()
        return {"step": self.step, "seconds": self.seconds, **scores}

    def _lattice(self, size: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Return the rows and columns that the loss of this step looks at: one in each few; None is all.

        Each is drawn by itself: on a regular lattice of a stride that the head's cells divide, a step would see one
        place in every cell alone, and train that part of the head alone.
        """
        stride = self.config.loss_stride
        if stride == 1:
            return None
        rng = np.random.default_rng((self.config.seed, self.step))
        rows, columns = (
            np.minimum(starts + rng.integers(stride, size=len(starts)), side - 1)
            for side, starts in ((side, np.arange(0, side, stride)) for side in size)
        )
        return torch.from_numpy(rows).to(self.device), torch.from_numpy(columns).to(self.device)

    @property
    def content(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "config": asdict(self.config),
            "model_config": asdict(self.model.config),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "running": self.running,
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
        }

    def restore(self, path: Path, content: dict[str, Any]) -> None:
        """Go on from the `content` of a run, which was read from `path`."""
        _must_agree(path, "configuration", content["config"], asdict(self.config))
        _must_agree(path, "model", content["model_config"], asdict(self.model.config))
        try:
            self.model.load_state_dict(content["model"])
        except RuntimeError as error:  # an own backbone is in no configuration
            rule = "be a checkpoint of the same model"
            raise ValueError(_check.message(str(path), rule, f"other tensors ({error})")) from error
        self.optimiser.load_state_dict(content["optimiser"])
        self.running, self.step, self.seconds = content["running"], content["step"], content["seconds"]
        self.skipped, self.in_a_row = content["skipped"], content["in_a_row"]


def embed(model: nn.Module, picture: Tensor, amp: bool, pixels: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return the embedding (B, D, H, W) of pictures; with `pixels`, of these rows and columns alone."""
    with torch.autocast(picture.device.type, torch.bfloat16, enabled=amp):
        laid_out = picture.contiguous(memory_format=torch.channels_last)
        embedding: Tensor = model(laid_out) if pixels is None else model(laid_out, pixels=pixels)
    return embedding


def _in_parallel(model: PanopticEmbedder, device: torch.device) -> DistributedDataParallel:
    """Return a module that averages gradients over the processes; all begin with the weights of the first."""
    parallel = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=model.own_backbone,  # of a network made for something else, parts may lie idle
    )
    if device.type == "cpu":
        parallel.register_comm_hook(None, lambda _, bucket: _mean_in_order(bucket.buffer()))
    return parallel


def _mean_in_order(own: Tensor) -> torch.futures.Future[Tensor]:
    """Average gradients by adding those of the processes in their order, wherever in a bucket a number lies.

    DistributedDataParallel packs its buckets anew after the first step, and gloo begins the sum of a number with the
    process that its place calls for. So a run that was resumed would round otherwise than one that was left in peace.
    """
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    total = sum(parts[1:], parts[0])
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(total / len(parts))
    return done


def _must_agree(path: Path, what: str, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise where a checkpoint was made with other options; what decides no weight may change."""
    changed = sorted(name for name in {*there, *now} - {"workers", "max_skipped"} if there.get(name) != now.get(name))
    if changed:
        got = ", ".join(f"{name}={there.get(name)!r} there and {now.get(name)!r} now" for name in changed)
        remedy = "Use the options of the run, or another folder."
        raise ValueError(_check.message(str(path), f"be a checkpoint of the same {what}", got, remedy))
