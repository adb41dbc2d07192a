"""The training loop: random views in, a model with its class means out, a folder that can be resumed."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lovasz_embed import _check
from lovasz_embed._atomic import write_atomically
from lovasz_embed.hierarchy import HierarchicalLoss
from lovasz_embed.model import PanopticEmbedder
from lovasz_embed.training._batches import Batches, Pictures
from lovasz_embed.training._loss import followed, hinge_of
from lovasz_embed.training._parameters import learning_parameters
from lovasz_embed.training._targets import category_targets
from lovasz_embed.training.config import TrainConfig
from lovasz_embed.training.views import View

CHECKPOINT = "checkpoint.pt"
OPTIONS = "train.json"
LOG = "log.jsonl"
SCORES = "scores.jsonl"


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
    score: Callable[[PanopticEmbedder], Mapping[str, float | None]] | None = None,
    score_every: int = 500,
) -> PanopticEmbedder:
    """Train a model with the hierarchical Lovász hinge, then take its class means over whole pictures.

    Step number s draws its crops from (seed, s) alone. A run that was cut off and resumed therefore sees the
    same crops as one that was not, and on the same machine ends with the same weights, bit for bit (without a
    limit in minutes).

    Args:
        model: Trained in place.
        pictures: The data set; see `Pictures`.
        config: The options.
        out: Folder for `train.json`, `log.jsonl`, `scores.jsonl`, `checkpoint.pt` and, at the end, the model as
            `PanopticEmbedder.save_pretrained` writes it; a model that is there stays until then. None writes
            nothing.
        resume: Go on from the checkpoint in `out`, if there is one. Otherwise that checkpoint is removed.
        writer: Receives the losses of every logged step, and the scores.
        on_step: Called after every step.
        score: Scores the model, in evaluation mode and with class means: the running ones during training, the
            final ones at its end. The weights do not depend on it, but its time counts as time of training.
        score_every: Steps between two scorings.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If there is no picture, a picture has no labels or a category outside the model's, the
            checkpoint is unreadable or of another configuration, or loss or gradient are not finite.

    Example:
        >>> from lovasz_embed.model import ModelConfig
        >>> from lovasz_embed.formats import Sample
        >>> import numpy as np
        >>> labels = np.arange(32 * 32).reshape(32, 32) % 2
        >>> picture = Sample("stripes", np.uint8(labels * 200)[..., None].repeat(3, 2), labels, labels)
        >>> small = ModelConfig(classes=("gap", "stripe"), things=(1,), widths=(4, 8))
        >>> model = fit(PanopticEmbedder(small), [picture], TrainConfig(steps=1, batch=2, crop=32))
        >>> model.ncm.counts.tolist()
        [512, 512]
    """
    if len(pictures) == 0:
        raise ValueError(_check.message("pictures", "hold at least one picture", "none"))
    if score is not None:
        _check.positive("score_every", score_every)
    if resume and out is None:
        raise ValueError(_check.message("out", "be the folder of the run where resume is set", out))
    run = _Run(model, config)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if resume and (out / CHECKPOINT).is_file():
            run.load(out / CHECKPOINT)
        # The checkpoint of a run that is being replaced must not be what a later resume goes on from.
        elif not resume:
            (out / CHECKPOINT).unlink(missing_ok=True)
        config.save(out / OPTIONS)
        for file in (LOG, SCORES):
            _cut_log(out / file, run.step)
    stream = Batches(pictures, config, len(model.config.classes))
    model.train()
    began, clock = run.step, time.perf_counter()
    for views in stream.start_at(run.step):
        if run.fraction >= 1:
            break
        result = run.advance(View(*views))
        # From step to step: loading and writing count too, as they do for whoever waits.
        now = time.perf_counter()
        run.seconds, clock = run.seconds + now - clock, now
        if run.step % config.log_every == 0:
            _tell(_record(run, result), "train", writer, out and out / LOG)
        if score is not None and run.step % score_every == 0 and run.fraction < 1:
            _tell(run.score(score), "score", writer, out and out / SCORES)
        if out is not None and run.step % config.checkpoint_every == 0:
            run.save(out / CHECKPOINT)
        if on_step is not None:
            on_step(Progress(run.step, min(run.fraction, 1.0), run.seconds, float(result.loss.detach())))
    if out is not None:
        run.save(out / CHECKPOINT)
    spread = range(0, len(pictures), -(-len(pictures) // config.mean_pictures))
    fit_class_means(model, (stream.picture(index) for index in spread), amp=config.amp)
    if out is not None:
        model.save_pretrained(out)
    if score is not None and run.step > began:
        record = {"step": run.step, "seconds": run.seconds, **score(model)}
        _tell(record, "score", writer, out and out / SCORES)
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
        self.loss = hinge_of(config)
        self.groups = learning_parameters(model, model.backbone, config)
        self.optimiser = torch.optim.AdamW(
            [{"params": parameters} for parameters, _ in self.groups],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.device = next(model.parameters()).device
        self.targets = category_targets(model, config).to(self.device) if config.spread is not None else None
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
        picture, semantic, instance, crowd = (tensor.to(self.device) for tensor in views)
        warm = min(1.0, (self.step + 1) / max(self.config.warmup, 1))
        rate = self.config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * self.fraction))
        for group, (_, factor) in zip(self.optimiser.param_groups, self.groups, strict=True):
            group["lr"] = rate * factor
        pixels = self._lattice(picture.shape[-2:])
        embedding = _embed(self.model, picture, self.config.amp, pixels)
        if pixels is not None:
            semantic, instance, crowd = (
                labels[:, pixels[0][:, None], pixels[1]] for labels in (semantic, instance, crowd)
            )
        self.running = followed(self.running, embedding.detach(), semantic, self.config.momentum)
        levels = self.model.levels(semantic, instance, crowd)
        result: HierarchicalLoss = self.loss(embedding, levels, self.running if self.targets is None else self.targets)
        _must_be_finite(f"the loss of step {self.step}", result.loss)
        self.optimiser.zero_grad()
        result.loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        _must_be_finite(f"the gradient of step {self.step}", norm)  # or a checkpoint could hold NaN
        self.optimiser.step()
        self.step += 1
        return result

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

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        content = {
            "config": asdict(self.config),
            "model_config": asdict(self.model.config),
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
        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
            options, architecture = content["config"], content["model_config"]
        # Reading arbitrary bytes raises what it happens to hit: RuntimeError, EOFError, UnpicklingError, KeyError ...
        except Exception as error:
            remedy = "Remove it to start again."
            raise ValueError(_check.message(str(path), "be what `fit` wrote", type(error).__name__, remedy)) from error
        _must_agree(path, "configuration", options, asdict(self.config))
        _must_agree(path, "model", architecture, asdict(self.model.config))
        try:
            self.model.load_state_dict(content["model"])
        except RuntimeError as error:  # an own backbone is in no configuration
            rule = "be a checkpoint of the same model"
            raise ValueError(_check.message(str(path), rule, f"other tensors ({error})")) from error
        self.optimiser.load_state_dict(content["optimiser"])
        self.running, self.step, self.seconds = content["running"], content["step"], content["seconds"]


def _embed(model: nn.Module, picture: Tensor, amp: bool, pixels: tuple[Tensor, Tensor] | None = None) -> Tensor:
    with torch.autocast(picture.device.type, torch.bfloat16, enabled=amp):
        laid_out = picture.contiguous(memory_format=torch.channels_last)
        embedding: Tensor = model(laid_out) if pixels is None else model(laid_out, pixels=pixels)
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


def _tell(record: Mapping[str, float | None], what: str, writer: Writer | None, file: Path | None) -> None:
    """Send a record to the writer and append it to a file, as far as there are such."""
    for name, value in record.items():
        if writer is not None and name != "step" and value is not None:
            writer.add_scalar(f"{what}/{name}", value, int(record["step"] or 0))
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")


def _must_be_finite(what: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value)):
        raise ValueError(_check.message(what, "be finite", value.item(), "Lower learning_rate or clip."))


def _must_agree(path: Path, what: str, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise where a checkpoint was made with other options; how pictures are loaded may change."""
    changed = sorted(name for name in {*there, *now} - {"workers"} if there.get(name) != now.get(name))
    if changed:
        got = ", ".join(f"{name}={there.get(name)!r} there and {now.get(name)!r} now" for name in changed)
        remedy = "Use the options of the run, or another folder."
        raise ValueError(_check.message(str(path), f"be a checkpoint of the same {what}", got, remedy))


def _cut_log(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint, for those steps are run again, and a line cut off in the middle."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    write_atomically(path, "".join(kept).encode())
