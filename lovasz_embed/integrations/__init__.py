"""Doors into other libraries, one module each, named after the library that it needs.

Nothing here is imported by the rest of the package, and importing this folder imports none of them.
"""

from __future__ import annotations

__all__: list[str] = []
