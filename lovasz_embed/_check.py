"""Argument checks: one place, one message style.

Every message reads ``"<argument> must <rule>, got <value>"``, and ends with a remedy where one is known.
A wrong shape or value is a `ValueError`, a wrong type a `TypeError`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

# Dtypes that arithmetic here is defined for; torch has other floats, which most of its operations refuse.
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MOST_CLASSES = 2**24
"""No table of classes is longer than this: a number of classes beyond it is a mistake, and would fill the memory."""
MOST_PIXELS = 2**48
"""No picture has more pixels than this, and the sums of a few such numbers fit 64 bits."""

_MOST_ENTRIES = 2**27  # of a table: a gigabyte of float64


def message(argument: str, rule: str, got: object, remedy: str = "") -> str:
    """Return the text of an error: what must hold, what came, and what to do."""
    text = f"{argument} must {rule}, got {got}"
    return f"{text}. {remedy}" if remedy else text


def is_tensor(argument: str, value: object) -> None:
    """Raise `TypeError` unless `value` is a dense tensor."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise TypeError(message(argument, "be a torch.Tensor", kind, "Convert it with torch.as_tensor."))
    if value.layout != torch.strided:
        raise TypeError(message(argument, "be a dense tensor", value.layout, "Convert it with .to_dense()."))


def has_values(argument: str, value: Tensor) -> None:
    """Raise `ValueError` for a tensor on the meta device, where the values have to be looked at."""
    if value.is_meta:
        raise ValueError(message(argument, "hold values", "a tensor on the device meta", "Move it with .to_empty()."))


def is_floating(argument: str, value: Tensor) -> None:
    """Raise `TypeError` unless `value` is a floating point tensor of 16 bits or more."""
    is_tensor(argument, value)
    if value.dtype not in _FLOATS:
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
    # Only what has a hash and one truth value can be looked up; True is no 1.
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value not in allowed:
        raise ValueError(message(argument, f"be one of {', '.join(map(repr, allowed))}", repr(value)))


def is_bool(argument: str, value: object) -> None:
    """Raise `TypeError` unless `value` is True or False.

    >>> is_bool("vote", 1)
    Traceback (most recent call last):
    TypeError: vote must be True or False, got 1
    """
    if not isinstance(value, bool):
        raise TypeError(message(argument, "be True or False", repr(value)))


def is_int(
    argument: str, value: object, least: int | None = None, most: int | None = None, *, rule: str = "be an int"
) -> None:
    """Raise `TypeError` unless `value` is an int, `ValueError` where it is below `least` or above `most`.

    >>> is_int("frames", 0, 1)
    Traceback (most recent call last):
    ValueError: frames must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(argument, rule, type(value).__name__))
    if least is not None and value < least:
        raise ValueError(message(argument, f"be at least {least}", value))
    if most is not None and value > most:
        raise ValueError(message(argument, f"be at most {most}", _short(value)))


def is_label(argument: str, value: object) -> None:
    """Raise unless `value` is an int that an int64 map can hold."""
    is_int(argument, value)
    if not -(2**63) <= value < 2**63:  # type: ignore[operator]
        raise ValueError(message(argument, "fit 64 bits", _short(value)))


def is_sequence(argument: str, value: object, rule: str, length: int | None = None) -> None:
    """Raise `TypeError` unless `value` is a sequence and no text, `ValueError` where it has another length."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(message(argument, rule, type(value).__name__))
    if length is not None and len(value) != length:
        raise ValueError(message(argument, rule, f"{len(value)} of them"))


def positive(argument: str, value: float) -> None:
    """Raise unless `value` is a finite number above zero; its square, which distances want, has to be one too."""
    number = _number(argument, value)
    if not (number > 0 and number < math.inf):
        raise ValueError(message(argument, "be a finite number above 0", _short(value)))
    if not 0 < number * number < math.inf:
        raise ValueError(message(argument, "be a finite number above 0, and so must be its square", _short(value)))


def non_negative(argument: str, value: float) -> None:
    """Raise unless `value` is a finite number, zero or above."""
    number = _number(argument, value)
    if not (number >= 0 and number < math.inf):
        raise ValueError(message(argument, "be a finite number, 0 or above", _short(value)))


def is_a(argument: str, value: object, kind: type | tuple[type, ...], name: str, remedy: str = "") -> None:
    """Raise `TypeError` unless `value` is of a kind; `name` is what it is called, with its article."""
    if not isinstance(value, kind):
        raise TypeError(message(argument, f"be {name}", type(value).__name__, remedy))


def has_fields(argument: str, value: object, names: Sequence[str], what: str) -> None:
    """Raise `TypeError` unless `value` has attributes of these names; `what` says what it should be."""
    lacking = [name for name in names if not hasattr(value, name)]
    if lacking:
        raise TypeError(message(argument, f"be {what}", f"{type(value).__name__} without {lacking[0]}"))


def is_iterable(argument: str, value: object, what: str) -> None:
    """Raise `TypeError` unless one can iterate over `value`; `what` says what it should be."""
    try:
        iter(value)  # type: ignore[call-overload]
    except TypeError:  # of a 0-d tensor, too, which has the method for it
        raise TypeError(message(argument, f"be {what}", type(value).__name__)) from None


def is_data_set(argument: str, value: object) -> None:
    """Raise `TypeError` unless `value` has a length and items by number."""
    what = "a data set: a length, and pictures by number"
    has_fields(argument, value, ("__len__", "__getitem__"), what)
    try:
        len(value)  # type: ignore[arg-type]
    except TypeError:  # of a 0-d tensor, which has the method for it
        raise TypeError(message(argument, f"be {what}", type(value).__name__)) from None


def is_table(argument: str, rows: int, columns: int) -> None:
    """Raise unless so many rows (an int, `argument` names it), of `columns` each, make a table that memory can hold."""
    is_int(argument, rows, 1)
    if rows * columns > _MOST_ENTRIES:
        rule = f"be at most {_MOST_ENTRIES // columns} with {columns} numbers for each"
        raise ValueError(message(argument, rule, _short(rows)))


def is_path(argument: str, value: object) -> None:
    """Raise `TypeError` unless `value` can be a path, `ValueError` where no system takes it."""
    is_a(argument, value, (str, os.PathLike), "a path: a text or a pathlib.Path")
    text = os.fspath(value)  # type: ignore[call-overload]
    if not text or ("\0" if isinstance(text, str) else b"\0") in text:
        raise ValueError(message(argument, "name a file or folder", repr(text)))


def are_numbers(argument: str, values: object, rule: str, least: int = 1, most: int = MOST_CLASSES) -> None:
    """Raise unless `values` is a sequence of ints from `least` to `most`; `rule` says so."""
    is_sequence(argument, values, rule)
    for value in values:  # type: ignore[attr-defined]
        is_int(argument, value, least, most, rule=rule)


def is_area(argument: str, value: float) -> None:
    """Raise unless `value` is a number of pixels, 0 or above."""
    non_negative(argument, value)
    if value > MOST_PIXELS:
        raise ValueError(message(argument, f"be at most {MOST_PIXELS} pixels", _short(value)))


def between(argument: str, value: float, low: float, high: float, rule: str) -> None:
    """Raise unless `value` is a number from `low` to `high`, both included; `rule` says so."""
    if not low <= _number(argument, value) <= high:
        raise ValueError(message(argument, rule, _short(value)))


def all_finite(argument: str, value: Tensor) -> None:
    """Raise `ValueError` where `value` holds NaN or Inf; waits for the device."""
    # A sum tells for a fraction of the cost; only one that overflowed needs the second look.
    if not math.isfinite(float(value.detach().sum(dtype=torch.promote_types(value.dtype, torch.float32)))):
        if bool(torch.isfinite(value).all()):
            return
        bad = int((~torch.isfinite(value)).sum())
        remedy = "Look for a diverged network: lower the learning rate or clip gradients."
        raise ValueError(message(argument, "be finite everywhere", f"{bad} NaN or Inf values", remedy))


def _number(argument: str, value: object) -> float:
    """Return a number as a float, Inf where it is an int too large for one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(message(argument, "be a number", type(value).__name__))
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _short(value: Any) -> object:
    """Return what is shown of a number: Python refuses to print an int of more than 4300 digits."""
    return value if not isinstance(value, int) or abs(value) < 10**30 else f"an int of {value.bit_length()} bits"
