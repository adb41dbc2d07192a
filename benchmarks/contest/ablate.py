"""The ablations of our method: each changes one thing, trained and scored by the loop of the contest.

    python benchmarks/contest/ablate.py --track synthetic --budget full --jobs 2
    python benchmarks/contest/ablate.py --track synthetic --only "kernel gaussian" "dims 16" --seeds 0
    python benchmarks/contest/ablate.py --track synthetic --budget full --table
    python benchmarks/contest/ablate.py --list

Scored are the validation pictures, for these tables choose the library's defaults; the test pictures stay unseen. A
change of reading alone still trains: with the same seed the weights are those of the default.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contest.changes import CHANGES, Change, changes_for
from contest.options import parser_of
from contest.pool import run_all
from contest.records import Key
from contest.table import ablation_table
from contest.task import Contest, Task


def main() -> None:
    arguments = parse()
    if arguments.list:
        print("\n".join(f"{name}: {dict(c.training)} {dict(c.reading)}" for name, c in CHANGES.items()))
        return
    contest = Contest(
        arguments.track, arguments.budget, arguments.out, arguments.steps, arguments.backbone, arguments.data
    )
    known = changes_for(contest.track)
    chosen = {name: known[name] for name in known if not arguments.only or name in arguments.only}
    if not arguments.table:
        # Seed by seed: a run that is stopped has all changes for its first seeds.
        tasks = [task_of(contest, name, chosen[name], seed) for seed in arguments.seeds for name in chosen]
        run_all(tasks, arguments.jobs)
    text = ablation_table(contest.folder, list(known))
    (contest.folder / "ablations.md").write_text(text, encoding="utf-8")
    print(text)


def task_of(contest: Contest, name: str, change: Change, seed: int) -> Task:
    """Return the training of a change."""
    return Task(contest, Key("ablate", name, 0, seed), change.training, (change.reading,), contestant="variant")


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=CHANGES, help="names of changes; all that suit the track else")
    parser.add_argument("--list", action="store_true", help="print the changes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
