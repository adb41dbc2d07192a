"""Which training is to be done next, and which trial won; the same number of trials for every contestant."""

from __future__ import annotations

from collections.abc import Sequence

from contest.budgets import TUNING_SEED
from contest.contestants import CONTESTANTS
from contest.records import Key, Record
from contest.task import Contest, Task


def trials_of(contest: Contest, method: str) -> list[Task]:
    """Return the trainings in which a method is tuned, the default first."""
    contestant = CONTESTANTS[method]
    return [
        Task(contest, Key("tune", method, number, TUNING_SEED), options, contestant.READINGS)
        for number, options in enumerate(contestant.TRIALS[: contest.amounts.trials])
    ]


def winner(records: Sequence[Record]) -> tuple[int, int]:
    """Return trial and reading with the best PQ on the validation pictures; the first of equals."""
    best = max(records, key=lambda record: (record["scores"]["pq"] or 0.0, -record["trial"]))
    return int(best["trial"]), int(best["reading"])


def finals_of(contest: Contest, method: str, seeds: Sequence[int]) -> list[Task]:
    """Return the trainings that are tested: those of the winner.

    Raises:
        SystemExit: If a trial is missing.
    """
    records = []
    for task in trials_of(contest, method):
        record = task.done()
        if record is None:
            raise SystemExit(
                f"{task.key.path(contest.folder)} must be there, got none. Run the contest without --table."
            )
        records.append(record)
    trial, reading = winner(records)
    contestant = CONTESTANTS[method]
    readings = (contestant.READINGS[reading],)  # chosen on the validation pictures, like the trial
    return [Task(contest, Key("test", method, trial, seed), contestant.TRIALS[trial], readings) for seed in seeds]
