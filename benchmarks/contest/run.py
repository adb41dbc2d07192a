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

from contest.budgets import BUDGETS
from contest.contestants import CONTESTANTS
from contest.pool import run_all
from contest.table import table, trials_table
from contest.task import Contest
from contest.tracks import TRACKS
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--track", choices=TRACKS, default="synthetic")
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--methods", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the tests")
    parser.add_argument("--out", type=Path, default=Path("runs/contest"), help="folder of all results")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--steps", type=int, help="in place of the budget's; tuning takes half as many")
    parser.add_argument("--backbone", help="name of a pretrained backbone, for all methods")
    parser.add_argument("--data", type=Path, help="folder of real pictures; LOVASZ_EMBED_DATA or ../shared/data else")
    parser.add_argument("--table", action="store_true", help="print the tables from what is there")
    parser.add_argument("--smoke", action="store_true", help="two steps of everything")
    return parser.parse_args()


if __name__ == "__main__":
    main()
