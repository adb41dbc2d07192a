"""The options that the command lines of the contest and of its ablations share."""

from __future__ import annotations

import argparse
from pathlib import Path

from contest.budgets import BUDGETS
from contest.tracks import TRACKS


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows what is trained, on what, how often, and where the results go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--track", choices=TRACKS, default="synthetic")
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights and crops")
    parser.add_argument("--out", type=Path, default=Path("runs/contest"), help="folder of all results")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--steps", type=int, help="in place of the budget's; tuning takes half as many")
    parser.add_argument("--backbone", help="name of a pretrained backbone, for all trainings")
    parser.add_argument("--data", type=Path, help="folder of real pictures; LOVASZ_EMBED_DATA or ../shared/data else")
    parser.add_argument("--table", action="store_true", help="print the tables from what is there")
    return parser
