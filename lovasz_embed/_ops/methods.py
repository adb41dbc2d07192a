"""Exact or counted: the names of the methods, which one "auto" stands for, and how many bins."""

from __future__ import annotations

from lovasz_embed import _check

METHODS = ("auto", "sort", "binned")
DEFAULT_BINS = 512


def check_method(method: str, bins: int | None) -> None:
    """Raise unless `method` exists, and `bins` is a number that goes with it."""
    _check.one_of("method", method, METHODS)
    if bins is None:
        return
    _check.is_int("bins", bins, rule="be an int or None")
    if not 8 <= bins <= 2**16 or bins & (bins - 1):
        raise ValueError(_check.message("bins", "be a power of two from 8 to 65536", bins))
    if method != "binned":
        raise ValueError(_check.message("bins", f"be None for method='{method}'", bins, "Use method='binned'."))


def bins_of(method: str, bins: int | None, engine: str) -> int:
    """Return the bins per doubling of the error, 0 for the exact method.

    "auto" sorts where that is done well, and counts on a CUDA device, where a sort per node costs the most.

    >>> bins_of("auto", None, "numba"), bins_of("auto", None, "triton"), bins_of("binned", 64, "numba")
    (0, 512, 64)
    """
    counted = method == "binned" or (method == "auto" and engine == "triton")
    return (bins or DEFAULT_BINS) if counted else 0
