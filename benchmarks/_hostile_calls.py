"""The registry, filled: importing this makes every public callable known to `fuzz_calls.py`."""

from __future__ import annotations

import _hostile_losses  # noqa: F401
