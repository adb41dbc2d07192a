"""One training with its scores: the unit of work that a process takes and a file holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from contest.budgets import BUDGETS, Budget
from contest.contestant import Contestant, Options
from contest.contestants import CONTESTANTS, VARIANTS
from contest.loop import train
from contest.records import Key, Record, folder_of, read_record, surroundings, write_record
from contest.scoring import score_films, score_pictures
from contest.tracks import Track, open_track
from lovasz_embed.training import TrainConfig


@dataclass(frozen=True)
class Contest:
    """What all trainings of a table have in common.

    Attributes:
        track: Name of the track.
        budget: Name of the budget.
        out: Folder of all results.
        steps: In place of the budget's; tuning takes half as many. None takes the budget's.
        backbone: Name of a pretrained backbone, None for the built-in encoder.
        data: Folder of the real pictures.
    """

    track: str
    budget: str
    out: Path
    steps: int | None = None
    backbone: str | None = None
    data: Path | None = None

    @property
    def folder(self) -> Path:
        """Where its records are."""
        return folder_of(self.out, self.track, self.budget)

    @property
    def amounts(self) -> Budget:
        """The budget with the steps that were asked for."""
        budget = BUDGETS[self.budget]
        if self.steps is None:
            return budget
        return budget._replace(steps=self.steps, tuning_steps=max(self.steps // 2, 1))

    def settings(self, stage: str) -> Record:
        """Return what must agree between a record and the contest that takes it over."""
        budget = self.amounts
        steps = budget.tuning_steps if stage == "tune" else budget.steps
        return {"track": self.track, "steps": steps, "backbone": self.backbone, **asdict(budget.amounts)}

    def open(self) -> Track:
        """Open the track."""
        return open_track(self.track, self.amounts.amounts, cache=self.out / "painted", data=self.data)


@dataclass(frozen=True)
class Task:
    """One training.

    Attributes:
        contest: What it is part of.
        key: Which one it is.
        options: Of training: "learning_rate" and others of `TrainConfig` that are the loop's, the rest the method's.
        readings: The ways to read off that are scored.
        contestant: Name of the contestant, where the key's method is the name of an ablation.
    """

    contest: Contest
    key: Key
    options: Options
    readings: tuple[Options, ...]
    contestant: str = ""

    @property
    def settings(self) -> Record:
        """Return what must agree with a record that is there already."""
        return {
            **self.contest.settings(self.key.stage),
            "contestant": self.contestant or self.key.method,
            "options": dict(self.options),
            "readings": [dict(reading) for reading in self.readings],
        }

    def done(self) -> Record | None:
        """Return its record if it is there."""
        return read_record(self.contest.folder, self.key, self.settings)


# Options of the loop; everything else is told to the contestant.
_LOOP = ("learning_rate", "weight_decay", "clip", "warmup", "amp")
# Of a backbone that knows something already, as in `lovasz-embed train --backbone`.
_PRETRAINED = {"backbone_rate": 0.15, "frozen_stages": 3}


def build(task: Task, track: Track) -> tuple[Contestant, TrainConfig]:
    """Return the untrained contestant and the options of its training."""
    options = dict(task.options)
    loop = {name: options.pop(name) for name in _LOOP if name in options}
    pretrained = {} if task.contest.backbone is None else _PRETRAINED
    steps = task.contest.settings(task.key.stage)["steps"]
    config = TrainConfig(**{**track.training, **pretrained, **loop, "steps": steps, "seed": task.key.seed})
    # A short training has no time for a warm-up of fifty steps.
    config = replace(config, warmup=min(config.warmup, max(config.steps // 10, 1)))
    torch.manual_seed(task.key.seed)
    method = {**CONTESTANTS, **VARIANTS}[task.contestant or task.key.method]
    return method(track, backbone=task.contest.backbone, **options), config


def run_task(task: Task, track: Track | None = None) -> Record:
    """Train, score, write the record; return it. A record that is there is returned as it is."""
    known = task.done()
    if known is not None:
        return known
    torch.set_num_threads(1)
    track = task.contest.open() if track is None else track
    contestant, config = build(task, track)
    trained = train(contestant, track.train, config)
    pictures = track.test if task.key.stage == "test" else track.val
    scored = score_pictures(contestant, pictures, track, task.readings)
    best = max(range(len(scored)), key=lambda number: (scored[number].scores["pq"] or 0.0, -number))
    stability = None if task.key.stage == "tune" else score_films(contestant, track, task.readings[best])
    record = {
        "track": task.contest.track,
        "budget": task.contest.budget,
        "settings": task.settings,
        "batch": config.batch,
        "crop": config.crop,
        "learning_rate": config.learning_rate,
        "parameters": sum(parameter.numel() for parameter in contestant.parameters()),
        "steps": trained.steps,
        "train_seconds": trained.seconds,
        "loss_seconds": trained.loss_seconds,
        "losses": trained.losses,
        "pictures": len(pictures),
        "reading": best,
        "all_readings": [entry.scores for entry in scored],
        "scores": scored[best].scores,
        "network_seconds": scored[best].network_seconds,
        "reading_seconds": scored[best].reading_seconds,
        "stability": stability,
        **surroundings(),
    }
    write_record(task.contest.folder, task.key, record)
    return {**task.key._asdict(), **record}
