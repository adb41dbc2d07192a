"""The training that is killed, the process that does it, and whether two finished runs are the same."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lovasz_embed import training
from lovasz_embed.formats import Sample
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.synthetic import CLASSES, THINGS, street_scene
from lovasz_embed.training import Progress, TrainConfig, fit

MODEL = ModelConfig(classes=CLASSES, things=tuple(sorted(THINGS)), widths=(8, 16), unit=7.0)
SCORE_EVERY = 7


class Pictures:
    """Six painted scenes, drawn once."""

    def __init__(self) -> None:
        scenes = [street_scene((5, k), size=(64, 64)) for k in range(6)]
        self._samples = [
            Sample(
                f"scene{k}",
                (scene.image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(),
                scene.semantic.numpy().astype(np.uint8),
                scene.instance.numpy(),
                scene.crowd.numpy(),
            )
            for k, scene in enumerate(scenes)
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


PICTURES = Pictures()


def options(steps: int, checkpoint_every: int, workers: int, seed: int) -> TrainConfig:
    """Return the options of the run: one line of the log a step, no limit in minutes."""
    return TrainConfig(
        steps=steps, batch=2, crop=48, warmup=5, log_every=1, checkpoint_every=checkpoint_every, workers=workers,
        seed=seed,
    )  # fmt: skip


def train(folder: Path, config: TrainConfig, told: int | None = None) -> None:
    """Train, or go on; `told` is a file descriptor that hears of every step."""
    torch.manual_seed(config.seed)
    model = PanopticEmbedder(MODEL)

    def on_step(progress: Progress) -> None:
        if told is not None:
            os.write(told, f"{progress.step}\n".encode())

    fit(model, PICTURES, config, out=folder, resume=True, on_step=on_step, score=_score, score_every=SCORE_EVERY)


def _score(model: PanopticEmbedder) -> Mapping[str, float]:
    sample = PICTURES[0]
    truth = PanopticResult.from_maps(
        torch.from_numpy(sample.semantic)[None], torch.from_numpy(sample.instance)[None], things=THINGS
    )
    found = training.evaluate(training.predict(model, [sample.image]), [truth], classes=len(CLASSES), things=THINGS)
    return {"pq": found.pq}


class Session:
    """A process that trains until it ends or is killed: a fork of this one, which has imported and compiled all.

    Args:
        folder: Of the run.
        config: Its options.
        errors: A file for what it says.
    """

    def __init__(self, folder: Path, config: TrainConfig, errors: Path) -> None:
        self._steps, told = os.pipe()
        sys.stdout.flush()
        self.began = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            self._be_the_child(folder, config, errors, told)
        os.setpgid(self.pid, self.pid)  # by both, so that it is so before either goes on
        os.close(told)
        self.code: int | None = None

    def _be_the_child(self, folder: Path, config: TrainConfig, errors: Path, told: int) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            os.close(self._steps)
            said = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            train(folder, config, told)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def ended(self) -> bool:
        """Return whether it has ended by itself."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def kill(self) -> bool:
        """Kill it and its workers, if it has not ended; return whether it was killed."""
        if self.ended():
            return False
        os.killpg(self.pid, signal.SIGKILL)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code == -signal.SIGKILL

    def steps(self) -> list[int]:
        """Return the steps it told of; it must have ended."""
        # A worker that dies a moment later than its master holds the pipe open: what is there is all there will be.
        os.set_blocking(self._steps, False)
        heard = b""
        try:
            while part := os.read(self._steps, 1 << 16):
                heard += part
        except BlockingIOError:
            pass
        os.close(self._steps)
        return [int(line) for line in heard.split()]


def differences(one: Path, other: Path) -> list[str]:
    """Return in what two finished runs differ, seconds apart: files, lines, tensors bit by bit."""
    names = {path.name for folder in (one, other) for path in folder.iterdir()}
    found = []
    for name in sorted(names):
        if not ((one / name).is_file() and (other / name).is_file()):
            found.append(f"{name} is in one of them only")
        elif not _same(_content(one / name), _content(other / name)):
            found.append(name)
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return path.read_bytes()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape and (
            one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))
        )  # fmt: skip
    if isinstance(one, dict):
        keys = {key for key in {*one, *other} if key not in ("seconds", "workers")}
        return all(key in one and key in other and _same(one[key], other[key]) for key in keys)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
