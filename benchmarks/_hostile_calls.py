"""The registry, filled: importing this makes every public callable known to `fuzz_calls.py`."""

from __future__ import annotations

import _hostile_losses  # noqa: F401
import _hostile_model  # noqa: F401
import _hostile_panoptic  # noqa: F401
import _hostile_pictures  # noqa: F401
