"""The training loop: random views in, a model with its class means out, a folder that can be resumed."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lovasz_embed import _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed.hierarchy import HierarchicalLoss, HierarchicalLovaszHinge
from lovasz_embed.model import PanopticEmbedder
from lovasz_embed.prototypes import class_means
from lovasz_embed.training.config import TrainConfig
from lovasz_embed.training.views import VOID, Labelled, View, random_view, whole

CHECKPOINT = "checkpoint.pt"
OPTIONS = "train.json"
LOG = "log.jsonl"
_CACHE_BYTES = 2 << 30


class Pictures(Protocol):
    """A data set: a length, and labelled pictures by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Labelled: ...


class Writer(Protocol):
    """Where scalars go; `torch.utils.tensorboard.SummaryWriter` is one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Record one number of one step."""


class Progress(NamedTuple):
    """What a caller of `fit` is told after every step.

    Attributes:
        step: Steps done.
        fraction: Share of the schedule that is done, 0 ... 1.
        seconds: Seconds of training so far, earlier sessions of a resumed run included.
        loss: Total loss of the step.
    """

    step: int
    fraction: float
    seconds: float
    loss: float


def fit(
    model: PanopticEmbedder,
    pictures: Pictures,
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    writer: Writer | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> PanopticEmbedder:
    """Train a model with the hierarchical Lovász hinge, then take its class means over all pictures.

    Step number s draws its crops from (seed, s) alone. A run that was cut off and resumed therefore sees the
    same crops as one that was not, and on the same machine ends with the same weights, bit for bit (without a
    limit in minutes).

    Args:
        model: Trained in place.
        pictures: The data set; see `Pictures`.
        config: The options.
        out: Folder for `train.json`, `log.jsonl`, `checkpoint.pt` and, at the end, the model as
            `PanopticEmbedder.save_pretrained` writes it. None writes nothing.
        resume: Go on from the checkpoint in `out`, if there is one.
        writer: Receives the losses of every logged step.
        on_step: Called after every step.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If there is no picture, a picture has no labels or a category outside the model's, the
            checkpoint is of another configuration, or the loss is not finite.

    Example:
        >>> from lovasz_embed.model import ModelConfig
        >>> from lovasz_embed.formats import Sample
        >>> labels = np.arange(32 * 32).reshape(32, 32) % 2
        >>> picture = Sample("stripes", np.uint8(labels * 200)[..., None].repeat(3, 2), labels, labels)
        >>> small = ModelConfig(classes=("gap", "stripe"), things=(1,), widths=(4, 8))
        >>> model = fit(PanopticEmbedder(small), [picture], TrainConfig(steps=1, batch=2, crop=32))
        >>> model.ncm.counts.tolist()
        [512, 512]
    """
    if len(pictures) == 0:
        raise ValueError(_check.message("pictures", "hold at least one picture", "none"))
    run = _Run(model, config)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if resume and (out / CHECKPOINT).is_file():
            run.load(out / CHECKPOINT)
        config.save(out / OPTIONS)
        _cut_log(out / LOG, run.step)
    stream = _Views(pictures, config, len(model.config.classes))
    model.train()
    for views in _loader(stream, run.step):
        if run.fraction >= 1:
            break
        result = run.advance(View(*views))
        if run.step % config.log_every == 0:
            record = _record(run, result)
            for name, value in record.items():
                if writer is not None and name != "step":
                    writer.add_scalar(f"train/{name}", value, run.step)
            if out is not None:
                with (out / LOG).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(record) + "\n")
        if out is not None and run.step % config.checkpoint_every == 0:
            run.save(out / CHECKPOINT)
        if on_step is not None:
            on_step(Progress(run.step, min(run.fraction, 1.0), run.seconds, float(result.loss.detach())))
    if out is not None:
        run.save(out / CHECKPOINT)
    fit_class_means(model, (stream.view(index) for index in range(len(pictures))), amp=config.amp)
    if out is not None:
        model.save_pretrained(out)
    return model


@torch.no_grad()
def fit_class_means(model: PanopticEmbedder, views: Iterator[View] | Sequence[View], *, amp: bool) -> None:
    """Replace the model's class means by those over whole pictures; leaves it in evaluation mode.

    Args:
        model: Embeds the pictures and takes the means.
        views: Whole labelled pictures; see `whole`.
        amp: Whether to embed in bfloat16, as training does.

    Example:
        >>> from lovasz_embed.model import ModelConfig
        >>> model = PanopticEmbedder(ModelConfig(classes=("floor", "cup"), things=(1,), widths=(4, 8)))
        >>> floor = torch.zeros(8, 8, dtype=torch.long)
        >>> fit_class_means(model, [View(torch.zeros(3, 8, 8), floor, floor, floor > 0)], amp=False)
        >>> model.ncm.counts.tolist()
        [64, 0]
    """
    model.eval()
    model.ncm.reset()
    device = next(model.parameters()).device
    for view in views:
        embedding = _embed(model, view.picture[None].to(device), amp)
        model.ncm.update(embedding, view.semantic[None].to(device))


class _Run:
    """A model in training: optimiser, schedule, running class means; saved and restored as one."""

    def __init__(self, model: PanopticEmbedder, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.loss = HierarchicalLovaszHinge(
            kernel=config.kernel,
            negatives=config.negatives,
            ncm_weight=config.ncm_weight,
            ncm_temperature=config.ncm_temperature,
            pull_weight=config.pull_weight,
            norm_weight=config.norm_weight,
        )
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.device = next(model.parameters()).device
        self.running = torch.full_like(model.ncm.means, torch.nan, dtype=torch.float32)
        self.step = 0
        self.seconds = 0.0

    @property
    def fraction(self) -> float:
        """Share of the schedule that is done; steps or minutes, whichever is farther."""
        share = self.step / self.config.steps
        if self.config.minutes is not None:
            share = max(share, self.seconds / (60 * self.config.minutes))
        return share

    def advance(self, views: View) -> HierarchicalLoss:
        """Do one step of the optimiser."""
        start = time.perf_counter()
        picture, semantic, instance, crowd = (tensor.to(self.device) for tensor in views)
        warm = min(1.0, (self.step + 1) / max(self.config.warmup, 1))
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * self.fraction))
        embedding = _embed(self.model, picture, self.config.amp)
        self._follow(embedding.detach(), semantic)
        levels = self.model.levels(semantic, instance, crowd)
        result: HierarchicalLoss = self.loss(embedding, levels, self.running)
        if not bool(torch.isfinite(result.loss)):
            remedy = "Lower learning_rate or clip."
            raise ValueError(_check.message(f"the loss of step {self.step}", "be finite", result.loss.item(), remedy))
        self.optimiser.zero_grad()
        result.loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimiser.step()
        self.step += 1
        self.seconds += time.perf_counter() - start
        return result

    def _follow(self, embedding: Tensor, semantic: Tensor) -> None:
        """Move the running class means towards those of this batch."""
        means, counts = class_means(embedding, semantic, num_classes=len(self.running))
        known = (counts > 0).unsqueeze(1)
        blended = torch.lerp(means.to(self.running), self.running, self.config.momentum)
        blended = torch.where(self.running.isnan(), means.to(self.running), blended)
        self.running = torch.where(known, blended, self.running)

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        content = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "running": self.running,
            "step": self.step,
            "seconds": self.seconds,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; only tensors and plain values are unpickled."""
        content = torch.load(path, map_location=self.device, weights_only=True)
        saved, now = content["config"], asdict(self.config)
        changed = sorted(name for name in now if saved.get(name) != now[name])
        if changed:
            got = ", ".join(f"{name}={saved.get(name)!r} there and {now[name]!r} now" for name in changed)
            remedy = "Use the options of the run, or another folder."
            raise ValueError(_check.message(str(path), "be a checkpoint of the same configuration", got, remedy))
        try:
            self.model.load_state_dict(content["model"])
        except RuntimeError as error:
            rule = "be a checkpoint of the same model"
            raise ValueError(_check.message(str(path), rule, f"other tensors ({error})")) from error
        self.optimiser.load_state_dict(content["optimiser"])
        self.running, self.step, self.seconds = content["running"], content["step"], content["seconds"]


class _Views(Dataset[View]):
    """Item s is the batch of step s: it depends on the seed and on s, on nothing else."""

    def __init__(self, pictures: Pictures, config: TrainConfig, classes: int) -> None:
        self.pictures = pictures
        self.config = config
        self.classes = classes
        self._cache: dict[int, View] = {}
        self._cached = 0

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> View:
        config = self.config
        rng = np.random.default_rng((config.seed, step))
        views = [
            random_view(
                self.view(int(rng.integers(len(self.pictures)))),
                rng,
                size=config.crop,
                scale=config.scale,
                turn=config.turn,
                jitter=config.jitter,
            )
            for _ in range(config.batch)
        ]
        return View(*(torch.stack(tensors) for tensors in zip(*views, strict=True)))

    def view(self, index: int) -> View:
        """Return a whole picture; kept in memory while there is room, so that it is decoded once."""
        if index in self._cache:
            return self._cache[index]
        view = whole(self.pictures[index])
        labels = view.semantic[view.semantic != VOID]
        if labels.numel() and (int(labels.max()) >= self.classes or int(labels.min()) < 0):
            rule = f"have categories in 0 ... {self.classes - 1}, or {VOID} for void"
            raise ValueError(_check.message(f"picture {index}", rule, int(labels.max())))
        size = sum(tensor.numel() * tensor.element_size() for tensor in view)
        if self._cached + size <= _CACHE_BYTES:
            self._cache[index] = view
            self._cached += size
        return view


def _loader(stream: _Views, first: int) -> Iterator[View]:
    """Yield the batches from step `first` on."""
    steps = range(first, len(stream))
    return iter(DataLoader(stream, batch_size=None, sampler=steps, num_workers=stream.config.workers))


def _embed(model: nn.Module, picture: Tensor, amp: bool) -> Tensor:
    with torch.autocast(picture.device.type, torch.bfloat16, enabled=amp):
        embedding: Tensor = model(picture.contiguous(memory_format=torch.channels_last))
    return embedding


def _record(run: _Run, result: HierarchicalLoss) -> dict[str, float]:
    """One line of the log."""
    category, instance = result.per_level.tolist()
    return {
        "step": run.step,
        "loss": float(result.loss.detach()),
        "category": category,
        "instance": instance,
        "ncm": float(result.ncm),
        "learning_rate": run.optimiser.param_groups[0]["lr"],
        "seconds": run.seconds,
    }


def _cut_log(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint: those steps are run again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    write_atomically(path, "".join(kept).encode())
