"""JSON that somebody else wrote: whatever is wrong with it is one kind of error, before memory runs out."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from lovasz_embed import _check

VARIABLE = "LOVASZ_EMBED_MAX_JSON_MEGABYTES"
MEGABYTES = 2000.0  # COCO's largest file has 400; Python holds about ten times of it


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: It is no JSON, nested deeper than Python follows, or larger than the limit that the environment
            variable `LOVASZ_EMBED_MAX_JSON_MEGABYTES` may raise.
        OSError: It cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.json").write_text("[" * 100_000)
    ...     read_json(Path(folder, "a.json"))
    Traceback (most recent call last):
    ValueError: .../a.json must be a readable JSON file, got lists and objects nested too deep
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # a pipe or a device may never end
        raise ValueError(_check.message(str(path), "be a file", "a folder, a pipe or a device"))
    limit, size = _limit(), about.st_size / 1e6
    if size > limit:
        remedy = f"Set {VARIABLE} to more for a file that you trust."
        raise ValueError(_check.message(str(path), f"have at most {limit:g} megabytes", f"{size:,.0f}", remedy))
    return parse_json(str(path), path.read_bytes())


def parse_json(where: str, content: bytes) -> Any:
    """Return the content of some JSON; `ValueError` where it is none."""
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        got = "lists and objects nested too deep"
        raise ValueError(_check.message(where, "be a readable JSON file", got)) from error
    except ValueError as error:
        raise ValueError(_check.message(where, "be a readable JSON file", error)) from error


def _limit() -> float:
    text = os.environ.get(VARIABLE)
    try:
        limit = float(text) if text else MEGABYTES
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise ValueError(_check.message(VARIABLE, "be a number of megabytes above 0", repr(text)))
    return limit
