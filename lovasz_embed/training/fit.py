"""The training loop: random views in, a model with its class means out, a folder that can be resumed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from lovasz_embed import _check
from lovasz_embed._atomic import remove_leftovers, write_atomically
from lovasz_embed.formats._lock import locked
from lovasz_embed.hierarchy import HierarchicalLoss
from lovasz_embed.model import CONFIG, WEIGHTS, PanopticEmbedder
from lovasz_embed.training._batches import Batches, Pictures
from lovasz_embed.training._checkpoint import NEWEST, Checkpoints
from lovasz_embed.training._ranks import Ranks
from lovasz_embed.training._run import Run, embed
from lovasz_embed.training.config import TrainConfig
from lovasz_embed.training.views import VOID, View

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
        loss: Total loss of the step, in this process; NaN where the step was skipped.
        skipped: Steps so far that changed nothing, because their loss or gradient was not finite.
    """

    step: int
    fraction: float
    seconds: float
    loss: float
    skipped: int = 0


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
    limit in minutes). There are always the last two checkpoints, with checksums: where the newest is damaged, the run
    goes on from the one before it, with a warning.

    A step whose loss or gradient is not finite changes nothing, with a warning; after `TrainConfig.max_skipped` of
    them in a row the next one ends the run, and its batch is written to `failed-step.safetensors` for inspection.

    In a process group (`torch.distributed`), each process calls this with the same arguments and takes its share of
    every batch, gradients and class means are those of all, and the first process writes the files. The crops are the
    same for any number of processes; the loss of a process is that of its share, and their mean is followed.

    Args:
        model: Trained in place.
        pictures: The data set; see `Pictures`.
        config: The options.
        out: Folder for `train.json`, `log.jsonl`, `scores.jsonl`, `checkpoint.pt` and, at the end, the model as
            `PanopticEmbedder.save_pretrained` writes it; a model that is there stays until then. None writes
            nothing.
        resume: Go on from the checkpoints in `out`, if there are any. Otherwise they are removed.
        writer: Receives the losses of every logged step, and the scores.
        on_step: Called after every step.
        score: Scores the model, in evaluation mode and with class means: the running ones during training, the
            final ones at its end. The weights do not depend on it, but its time counts as time of training. Every
            process calls it.
        score_every: Steps between two scorings.

    Returns:
        The model, in evaluation mode.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there is no picture, a picture has no labels or a category outside the model's, the batch
            cannot be shared evenly, `out` cannot be written or another process trains into it, all checkpoints are
            damaged or one is of another configuration, or loss or gradient are not finite again and again.
        OSError: If `out` has no room for three checkpoints, before the first step; later, if a checkpoint cannot be
            written: the last one is still there.

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
    _check.is_a("model", model, PanopticEmbedder, "lovasz_embed.model.PanopticEmbedder")
    _check.is_data_set("pictures", pictures)
    _check.is_a("config", config, TrainConfig, "lovasz_embed.training.TrainConfig")
    if len(pictures) == 0:
        raise ValueError(_check.message("pictures", "hold at least one picture", "none"))
    if score is not None:
        _check.is_int("score_every", score_every, 1)
    if resume and out is None:
        raise ValueError(_check.message("out", "be the folder of the run where resume is set", out))
    ranks = Ranks()
    if config.batch % ranks.count:
        raise ValueError(_check.message("batch", f"be a multiple of the {ranks.count} processes", config.batch))
    run = Run(model, config, ranks)
    # What loads pictures for a killed run may hold its lock for some seconds more.
    lock = locked(out / NEWEST, patience=10.0) if out is not None and ranks.first else nullcontext()
    with lock:
        checkpoints = None if out is None else _begin(run, out, resume)
        tell = _Log(writer, out if ranks.first else None)
        stream = Batches(pictures, config, len(model.config.classes), ranks)
        model.train()
        saved, clock = run.step, time.perf_counter()
        for views in stream.start_at(run.step):
            if run.fraction >= 1:
                break
            result = run.advance(View(*views), out)
            # From step to step: loading and writing count too, as they do for whoever waits.
            now = time.perf_counter()
            run.seconds, clock = ranks.largest(run.seconds + now - clock, run.device), now
            if result is not None and run.step % config.log_every == 0:
                tell.loss(_record(run, result))
            if score is not None and run.step % score_every == 0 and run.fraction < 1:
                tell.scores(run.score(score))
            if checkpoints is not None and ranks.first and run.step % config.checkpoint_every == 0:
                checkpoints.save(run.content)
                saved = run.step
            if on_step is not None:
                loss = math.nan if result is None else float(result.loss.detach())
                on_step(Progress(run.step, min(run.fraction, 1.0), run.seconds, loss, run.skipped))
        if checkpoints is not None and ranks.first and saved != run.step:
            checkpoints.save(run.content)
        fit_class_means(model, _spread(stream, config.mean_pictures, ranks), amp=config.amp)
        if out is not None and ranks.first:
            model.save_pretrained(out)
        # A run killed here and resumed lacks the last line; one that had ended has it.
        if score is not None and ranks.all(tell.lacks_scores_of(run.step), run.device):
            tell.scores({"step": run.step, "seconds": run.seconds, **score(model)})
    return model


def _begin(run: Run, out: Path, resume: bool) -> Checkpoints:
    """Make the folder of a run ready, and take up what is there if that is asked for."""
    checkpoints = Checkpoints(out)
    out.mkdir(parents=True, exist_ok=True)
    found = checkpoints.load(run.device) if resume else None
    if found is not None:
        run.restore(*found)
    # All have read by now, so that the first may remove and write.
    if run.ranks.largest(run.step, run.device) != -run.ranks.largest(-run.step, run.device):
        raise ValueError(_check.message(str(out), "be one folder that all processes see", "other steps elsewhere"))
    if run.ranks.first:
        # The checkpoint of a run that is being replaced must not be what a later resume goes on from.
        if not resume:
            checkpoints.remove()
        for path in (checkpoints.newest, *(out / name for name in (OPTIONS, LOG, SCORES, WEIGHTS, CONFIG))):
            remove_leftovers(path)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in run.model.parameters())
        checkpoints.must_have_room(3 * weights)  # the optimiser keeps two moments of every weight
        run.config.save(out / OPTIONS)
        for file in (LOG, SCORES):
            _cut_log(out / file, run.step)
    return checkpoints


def _spread(stream: Batches, most: int, ranks: Ranks) -> Iterator[View]:
    """Yield this process's share of evenly spread pictures; as many as the others get, for they take sums together."""
    chosen = range(0, len(stream.pictures), -(-len(stream.pictures) // most))
    for start in range(0, len(chosen), ranks.count):
        position = start + ranks.number
        view = stream.picture(chosen[min(position, len(chosen) - 1)])
        # One that has run out of pictures adds one without a labelled pixel.
        yield view if position < len(chosen) else view._replace(semantic=torch.full_like(view.semantic, VOID))


@torch.no_grad()
def fit_class_means(model: PanopticEmbedder, views: Iterable[View], *, amp: bool) -> None:
    """Replace the model's class means by those over whole pictures; leaves it in evaluation mode.

    In a process group the means are those over the pictures of all processes, which give equally many.

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
    _check.is_a("model", model, PanopticEmbedder, "lovasz_embed.model.PanopticEmbedder")
    _check.is_bool("amp", amp)
    _check.is_iterable("views", views, "an iterable of View")
    model.eval()
    model.ncm.reset()
    device = next(model.parameters()).device
    for view in views:
        _check.is_a("views", view, View, "an iterable of View")
        embedding = embed(model, view.picture[None].to(device), amp)
        model.ncm.update(embedding, view.semantic[None].to(device))


def _record(run: Run, result: HierarchicalLoss) -> dict[str, float]:
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
        "skipped": run.skipped,
    }


class _Log:
    """Where the numbers of a run go: to the caller's writer and to files in its folder, as far as there are such."""

    def __init__(self, writer: Writer | None, folder: Path | None) -> None:
        self.writer, self.folder = writer, folder

    def loss(self, record: Mapping[str, float | None]) -> None:
        """Record what a step's loss was made of."""
        self._tell(record, "train", LOG)

    def lacks_scores_of(self, step: int) -> bool:
        """Return whether the folder's scores, if there are any, do not tell of this step."""
        file = None if self.folder is None else self.folder / SCORES
        if file is None or not file.is_file():
            return True
        return all(json.loads(line)["step"] != step for line in file.read_text(encoding="utf-8").splitlines())

    def scores(self, record: Mapping[str, float | None]) -> None:
        """Record a scoring."""
        self._tell(record, "score", SCORES)

    def _tell(self, record: Mapping[str, float | None], what: str, file: str) -> None:
        for name, value in record.items():
            if self.writer is not None and name != "step" and value is not None:
                self.writer.add_scalar(f"{what}/{name}", value, int(record["step"] or 0))
        if self.folder is not None:
            with (self.folder / file).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")


def _cut_log(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint, for those steps are run again, and what a power failure left."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    write_atomically(path, "".join(line for line in lines if _is_record(line, step)).encode())


def _is_record(line: str, step: int) -> bool:
    """Return whether a line is whole and tells of a step up to `step`."""
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return line.endswith("\n") and isinstance(record, dict) and record.get("step", step + 1) <= step
