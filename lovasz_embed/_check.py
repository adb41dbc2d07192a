"""Argument checks: one place, one message style.

Every message reads ``"<argument> must <rule>, got <value>"``, and ends with a remedy where one is known.
A wrong shape or value is a `ValueError`, a wrong type a `TypeError`.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor


def message(argument: str, rule: str, got: object, remedy: str = "") -> str:
    """Return the text of an error: what must hold, what came, and what to do."""
    text = f"{argument} must {rule}, got {got}"
    return f"{text}. {remedy}" if remedy else text


def is_tensor(argument: str, value: object) -> None:
    """Raise `TypeError` unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise TypeError(message(argument, "be a torch.Tensor", kind, "Convert it with torch.as_tensor."))


def is_floating(argument: str, value: Tensor) -> None:
    """Raise `TypeError` unless `value` is a real floating point tensor."""
    is_tensor(argument, value)
    if not value.is_floating_point():
        raise TypeError(message(argument, "be a floating point tensor", value.dtype, "Convert it with .float()."))


def is_labels(argument: str, value: Tensor) -> None:
    """Raise `TypeError` unless `value` holds integers or booleans."""
    is_tensor(argument, value)
    if value.is_floating_point() or value.is_complex():
        raise TypeError(message(argument, "hold integer or boolean labels", value.dtype, "Convert it with .long()."))


def same_shape(argument: str, value: Tensor, expected: tuple[int, ...], of: str) -> None:
    """Raise `ValueError` unless `value` has the shape that `of` asks for."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(message(argument, f"have shape {tuple(expected)} to match {of}", tuple(value.shape)))


def same_device(argument: str, value: Tensor, expected: torch.device, of: str) -> None:
    """Raise `ValueError` unless `value` lives where `of` lives."""
    if value.device != expected:
        remedy = f"Move it with .to({str(expected)!r})."
        raise ValueError(message(argument, f"be on the device of {of} ({expected})", value.device, remedy))


def is_embedding(argument: str, value: Tensor) -> None:
    """Raise unless `value` is a floating point tensor (B, D, *spatial) with D at least 1."""
    is_floating(argument, value)
    if value.ndim < 3 or value.shape[1] < 1:
        remedy = "A single picture needs a batch axis: embedding[None]."
        raise ValueError(message(argument, "have shape (B, D, *spatial) with D >= 1", tuple(value.shape), remedy))


def one_of(argument: str, value: object, allowed: Collection[object]) -> None:
    """Raise `ValueError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(message(argument, f"be one of {', '.join(map(repr, allowed))}", repr(value)))


def is_bool(argument: str, value: object) -> None:
    """Raise `TypeError` unless `value` is True or False.

    >>> is_bool("vote", 1)
    Traceback (most recent call last):
    TypeError: vote must be True or False, got 1
    """
    if not isinstance(value, bool):
        raise TypeError(message(argument, "be True or False", repr(value)))


def positive(argument: str, value: float) -> None:
    """Raise unless `value` is a finite number above zero."""
    _is_number(argument, value)
    if not (value > 0 and value < math.inf):
        raise ValueError(message(argument, "be a finite number above 0", value))


def non_negative(argument: str, value: float) -> None:
    """Raise unless `value` is a finite number, zero or above."""
    _is_number(argument, value)
    if not (value >= 0 and value < math.inf):
        raise ValueError(message(argument, "be a finite number, 0 or above", value))


def all_finite(argument: str, value: Tensor) -> None:
    """Raise `ValueError` where `value` holds NaN or Inf; waits for the device."""
    # A sum tells for a fraction of the cost; only one that overflowed needs the second look.
    if not math.isfinite(float(value.detach().sum(dtype=torch.promote_types(value.dtype, torch.float32)))):
        if bool(torch.isfinite(value).all()):
            return
        bad = int((~torch.isfinite(value)).sum())
        remedy = "Look for a diverged network: lower the learning rate or clip gradients."
        raise ValueError(message(argument, "be finite everywhere", f"{bad} NaN or Inf values", remedy))


def _is_number(argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(message(argument, "be a number", type(value).__name__))
