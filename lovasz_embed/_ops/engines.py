"""Which engine runs where: one place that knows about devices and about what is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

import torch

from lovasz_embed import _check

IMPLEMENTATIONS = ("auto", "reference", "numba", "triton")

_TRITON = (3, 6)  # the version that the kernels were run with; others may read them otherwise


def _triton_is_installed() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # a build of another name, as beside nightly builds of torch
        return False
    major, minor, *_ = version.split(".")
    return (int(major), int(minor)) >= _TRITON


_FOUND = _triton_is_installed()  # a constant: torch.compile warns of functions with a cache


def check_engine(impl: str, device: torch.device, argument: str) -> None:
    """Raise `ValueError` unless `impl` is an engine that runs on the device of `argument`."""
    _check.one_of("impl", impl, IMPLEMENTATIONS)
    if impl == "numba" and device.type != "cpu":
        raise ValueError(_check.message(argument, "be on the CPU for impl='numba'", device, "Use impl='auto'."))
    if impl == "triton":
        if not has_triton():
            rule = f"be 'auto' or 'reference' where Triton {_TRITON[0]}.{_TRITON[1]} or newer is missing"
            remedy = "Install it with pip install triton, or use impl='auto'."
            raise ValueError(_check.message("impl", rule, impl, remedy))
        if device.type != ("cpu" if interpreting() else "cuda"):
            rule = f"be on {'the CPU' if interpreting() else 'a CUDA device'} for impl='triton'"
            remedy = "TRITON_INTERPRET=1 is set." if interpreting() else "Use impl='auto'."
            raise ValueError(_check.message(argument, rule, device, remedy))


def engine_for(impl: str, device: torch.device) -> str:
    """Return the engine that "auto" stands for on a device; another name as it is.

    >>> engine_for("auto", torch.device("cpu")), engine_for("auto", torch.device("mps"))
    ('numba', 'reference')
    """
    if impl != "auto":
        return impl
    if device.type == "cpu":
        return "numba"
    return "triton" if device.type == "cuda" and has_triton() and not interpreting() else "reference"


def has_triton() -> bool:
    """Return whether a Triton that is new enough is installed; it is not imported for that."""
    return _FOUND


def interpreting() -> bool:
    """Return whether Triton's interpreter is asked for, which runs kernels on the CPU, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")
