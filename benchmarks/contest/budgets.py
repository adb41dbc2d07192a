"""How much of everything a contest takes."""

from __future__ import annotations

from typing import NamedTuple

from contest.tracks import Amounts


class Budget(NamedTuple):
    """Amounts of one contest, the same for all contestants.

    Attributes:
        steps: Of a training that is tested.
        tuning_steps: Of a training that is tuned, with its own complete schedule.
        trials: How many of a contestant's trials are tuned.
        amounts: Of pictures and films.
    """

    steps: int
    tuning_steps: int
    trials: int
    amounts: Amounts


BUDGETS = {
    "full": Budget(1500, 750, 4, Amounts(train=500, val=40, test=100, films=12, frames=8)),
    "small": Budget(330, 135, 2, Amounts(train=200, val=16, test=40, films=4, frames=5)),
    "smoke": Budget(2, 2, 2, Amounts(train=4, val=1, test=1, films=1, frames=2)),
}
TUNING_SEED = 1000
