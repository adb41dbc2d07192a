"""How something was made: the command, its versions and the date. A run remembers it, a report shows it."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lovasz_embed
from lovasz_embed._atomic import write_atomically
from lovasz_embed.report._run import HISTORY


def this_command() -> dict[str, Any]:
    """Return the command that runs now, its date (UTC) and the versions that decide what comes out."""
    return {
        "command": shlex.join(["lovasz-embed", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {
            "lovasz-embed": lovasz_embed.__version__,
            "python": platform.python_version(),
            **{package: version_of(package) for package in ("torch", "numpy", "numba")},
        },
    }


def version_of(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def remember(run: Path, *, resumed: bool, **about: Any) -> None:
    """Add the command that trains now to the history of a run; one that is not resumed has no earlier history."""
    path = run / HISTORY
    before = path.read_bytes() if resumed and path.is_file() else b""
    write_atomically(path, before + (json.dumps({**this_command(), **about}) + "\n").encode())
