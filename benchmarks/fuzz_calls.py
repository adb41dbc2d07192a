"""Call every public function with hostile arguments, many times: what does not return raises one of our own errors.

    python benchmarks/fuzz_calls.py --calls 100000 --jobs 2 --json fuzz.json     # hours
    python benchmarks/fuzz_calls.py --smoke                                      # seconds, for CI
    python benchmarks/fuzz_calls.py --only lovasz_hinge,segment --calls 20000
    python benchmarks/fuzz_calls.py --replay lovasz_hinge:0:1234                 # one call, with its traceback

Half of the calls are valid, the others are valid ones with one or two arguments spoilt. A defect is any other
exception than our own, a warning that is not documented, a valid call that is refused, an argument that is written to,
a result that breaks a promise, a process that dies, and a call that takes longer than `--limit` seconds. Each call is
made again from the name, the seed and its number. The exit status is 1 if there is a defect.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path

import _hostile_calls  # noqa: F401  (fills the registry)
from _hostile_oracle import REGISTRY, make_call, outcome
from _hostile_run import Campaign, prepare_process, run_campaign

from lovasz_embed._atomic import write_atomically

SMOKE = 60  # calls of each function


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000, help="per function; slow ones get their share of it")
    parser.add_argument("--only", default="", help="names, separated by commas; a name followed by * is a beginning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long; 0 is no limit")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a call may take, compilation included")
    parser.add_argument("--smoke", action="store_true", help=f"{SMOKE} calls of each function")
    parser.add_argument("--json", type=Path, help="write the counts here as well")
    parser.add_argument("--replay", metavar="NAME:SEED:INDEX", help="make one call again")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    options = parser.parse_args()
    if options.list:
        print("\n".join(sorted(REGISTRY)))
        return 0
    if options.replay:
        return replay(options.replay)
    calls = SMOKE if options.smoke else options.calls
    names = chosen(options.only)
    campaign = Campaign(names, calls, options.seed, options.jobs, options.seconds or None, options.limit)
    found = run_campaign(campaign)
    print(found.table())
    if options.json:
        write_atomically(options.json, (json.dumps(found.record(), indent=2) + "\n").encode())
    return 1 if found.defects else 0


def chosen(only: str) -> list[str]:
    """Return the names that are asked for."""
    names: list[str] = []
    for asked in filter(None, only.split(",")):
        own = [name for name in REGISTRY if name == asked or (asked.endswith("*") and name.startswith(asked[:-1]))]
        if not own:
            sys.exit(f"--only must name functions of --list, got {asked}")
        names += own
    return names or list(REGISTRY)


def replay(which: str) -> int:
    """Make one call again and print what it is told and what comes of it."""
    name, seed, index = which.rsplit(":", 2)
    prepare_process()
    call, hostile = make_call(REGISTRY[name], int(seed), int(index))
    print(f"{name}: {'; '.join(call.spoilt) or 'a valid call'}")
    for place, value in [*enumerate(call.args), *call.kwargs.items()]:
        shape = f" {value.dtype} {tuple(value.shape)} {value.device}" if hasattr(value, "dtype") else ""
        print(f"  {place}:{shape} {str(value)[:1000]}")
    try:
        print(outcome(REGISTRY[name], call, hostile))
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
