"""What a fuzzed call may do, and the registry of everything that is called.

A call returns what it promises, or raises one of our own errors: a `ValueError` or `TypeError` (`DataError` is a
`ValueError`) that reads "<argument> must <rule>, got <value>", names an argument of that function, and was raised in
this package. Everything else is a defect: another exception, a warning that is not documented, a valid call that is
refused, an argument that is written to, a result that breaks its promise.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _hostile import Call, Hostile
from torch import Tensor

import lovasz_embed

PACKAGE = str(Path(lovasz_embed.__file__).parent)
_MESSAGE = re.compile(r"(?P<subject>.+?) must (?P<rule>.+?), got ", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_]\w*")


class Broken(Exception):
    """A result that is not what was promised, in words."""


def require(holds: object, promise: str) -> None:
    """Raise `Broken` unless a promise about a result holds."""
    if not holds:
        raise Broken(promise)


@dataclass(frozen=True)
class Entry:
    """One public callable in the registry.

    Attributes:
        name: As a user writes it, without the package.
        make: Returns a valid call.
        check: Raises `Broken` where a result breaks a promise; it is told the call, the result, and a source of chance.
        names: What errors may be about beside the function's parameters.
        allows: Other documented exceptions, as (type, part of the message).
        fixed: Keyword arguments that are left as they are.
        share: Share of the asked calls that this one gets: below 1 for what is slow.
    """

    name: str
    make: Callable[[Hostile], Call]
    check: Callable[[Call, Any, Hostile], None] | None = None
    names: frozenset[str] = frozenset()
    allows: tuple[tuple[type[BaseException], str], ...] = ()
    fixed: tuple[str, ...] = ()
    share: float = 1.0


REGISTRY: dict[str, Entry] = {}


def entry(
    name: str,
    check: Callable[[Call, Any, Hostile], None] | None = None,
    *,
    names: Iterable[str] = (),
    allows: tuple[tuple[type[BaseException], str], ...] = (),
    fixed: tuple[str, ...] = (),
    share: float = 1.0,
) -> Callable[[Callable[[Hostile], Call]], Callable[[Hostile], Call]]:
    """Register what makes valid calls of a public callable."""

    def register(make: Callable[[Hostile], Call]) -> Callable[[Hostile], Call]:
        assert name not in REGISTRY, name
        REGISTRY[name] = Entry(name, make, check, frozenset(names), allows, fixed, share)
        return make

    return register


def make_call(known: Entry, seed: int, index: int) -> tuple[Call, Hostile]:
    """Return call number `index` of an entry, spoilt or not, and the source that its check goes on with."""
    hostile = Hostile(f"{known.name}:{seed}:{index}")
    return hostile.spoil(known.make(hostile), known.fixed), hostile


def outcome(known: Entry, call: Call, hostile: Hostile) -> str:
    """Run a call; return "returned" or "refused", or raise what is a defect."""
    before = snapshot([call.args, call.kwargs])
    try:
        result = call.run()
        if inspect.isgenerator(result):
            result = list(result)
    except Exception as error:
        if not is_ours(error, known, call.function):
            raise
        if not call.spoilt and not any(part and part in str(error) for _, part in known.allows):
            raise Broken(f"a valid call is refused: {error}") from error
        require(snapshot([call.args, call.kwargs]) == before, "arguments are not written to")
        return "refused"
    require(snapshot([call.args, call.kwargs]) == before, "arguments are not written to")
    if known.check is not None:
        known.check(call, result, hostile)
    return "returned"


def is_ours(error: Exception, known: Entry, function: Callable[..., Any]) -> bool:
    """Return whether an exception is one that is documented, and says what is wrong."""
    text = str(error)
    if any(isinstance(error, kind) and part in text for kind, part in known.allows):
        return True
    if type(error) not in (ValueError, TypeError) and type(error).__name__ != "DataError":
        return False
    found = _MESSAGE.match(text)
    if found is None or not raised_by_us(error):
        return False
    if type(error).__name__ == "DataError":  # it is about a file or folder, and names that
        return True
    return bool((parameters(function) | known.names) & set(_WORD.findall(found["subject"])))


def raised_by_us(error: BaseException) -> bool:
    """Return whether the innermost frame is one of this package."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(PACKAGE)


def raising_line(error: BaseException) -> str:
    """Return the innermost line of this package that an exception passed, as file:line."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(PACKAGE):
            return f"{frame.filename[len(PACKAGE) + 1 :]}:{frame.lineno}"
    return "the check of the result"


def parameters(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's parameters."""
    try:
        return _parameters(function)
    except TypeError:  # not hashable, as a bound method of a dataclass with eq and without hash
        return frozenset(inspect.signature(function).parameters)


@functools.lru_cache(maxsize=512)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def snapshot(value: Any) -> Any:
    """Return the content of all tensors and arrays in `value`, so that writing to one is seen."""
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            return None
        flat = value.detach().contiguous().reshape(-1)
        if flat.dtype == torch.bfloat16 or flat.dtype.itemsize == 1:  # numpy has no name for some of these
            flat = flat.clone().view(torch.int16 if flat.dtype.itemsize == 2 else torch.uint8)
        return flat.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.dtype != object else None
    if isinstance(value, (list, tuple)):
        return [snapshot(own) for own in value]
    if isinstance(value, dict):
        return [snapshot(own) for own in value.values()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [snapshot(getattr(value, own.name)) for own in dataclasses.fields(value)]
    return None


def same(one: Any, other: Any) -> bool:
    """Return whether two results are the same, bit for bit but for the sign of zeros and the kind of NaN."""
    if isinstance(one, Tensor):
        fits = isinstance(other, Tensor) and one.shape == other.shape and one.dtype == other.dtype
        return (
            fits
            and bool(torch.equal(one.isnan(), other.isnan()) if one.is_floating_point() else True)
            and bool(
                torch.equal(one.nan_to_num(), other.nan_to_num())
                if one.is_floating_point()
                else torch.equal(one, other)
            )
        )
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        names = [own.name for own in dataclasses.fields(one)]
        return type(one) is type(other) and all(same(getattr(one, n), getattr(other, n)) for n in names)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float):
        return one == other or (one != one and other != other)
    return bool(one == other)


def is_plain(value: object) -> bool:
    """Return whether a tensor is one whose values can be looked at."""
    return isinstance(value, Tensor) and not value.is_meta and value.layout == torch.strided


def moderate(value: object, limit: float = 1e12) -> bool:
    """Return whether a tensor is finite and of values whose squares are far from overflow."""
    if not isinstance(value, Tensor) or not is_plain(value):
        return False
    return not value.numel() or bool((value.detach().double().abs() <= limit).all())
