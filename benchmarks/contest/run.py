"""The contest: four ways to segment things from pixels, on one network, tuned alike, tested over several seeds.

    python benchmarks/contest/run.py --track synthetic --budget small    # a quarter of an hour on 2 cores
    python benchmarks/contest/run.py --track synthetic --budget full --jobs 2
    python benchmarks/contest/run.py --track synthetic --budget full --table
    python benchmarks/contest/run.py --smoke                                           # does it still run?

Every training leaves a JSON file; the same command goes on where it stopped. See docs/contest.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contest.contestants import CONTESTANTS
from contest.options import parser_of
from contest.pool import run_all
from contest.table import table, trials_table
from contest.task import Contest
from contest.tuning import finals_of, trials_of


def main() -> None:
    arguments = parse()
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as folder:
            compete(Contest("synthetic", "smoke", Path(folder)), list(CONTESTANTS), [0], jobs=1)
        return
    contest = Contest(
        arguments.track, arguments.budget, arguments.out, arguments.steps, arguments.backbone, arguments.data
    )
    if not arguments.table:
        compete(contest, arguments.methods, arguments.seeds, arguments.jobs)
        return
    print(trials_table(contest.folder))
    print(table(contest.folder))


def compete(contest: Contest, methods: list[str], seeds: list[int], jobs: int) -> None:
    """Tune all methods, test the winners, write and print the tables."""
    run_all([task for method in methods for task in trials_of(contest, method)], jobs)
    run_all([task for method in methods for task in finals_of(contest, method, seeds)], jobs)
    text = f"{trials_table(contest.folder)}\n{table(contest.folder)}"
    (contest.folder / "table.md").write_text(text, encoding="utf-8")
    print(text)


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--methods", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--smoke", action="store_true", help="two steps of everything")
    return parser.parse_args()


if __name__ == "__main__":
    main()
