"""Valid arguments of every shape, dtype and layout, and what spoils them: the generator of `fuzz_calls.py`.

A call is made valid first, and then none, one or two of its arguments are spoilt: calls that are wrong throughout die
in the first check, and nothing behind it is ever tried. Everything is drawn from one `random.Random` per call, which is
many times faster than a numpy generator for single numbers; numpy fills the arrays.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Choice = TypeVar("Choice")

FLOATS = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int64, torch.int32, torch.uint8, torch.int16, torch.int8, torch.uint16, torch.uint32)
SIDES = (0, 1, 1, 2, 3, 4, 5, 7)
# Of single numbers: what is out of range, what wraps around, and what is only nearly a number.
WHOLE = (-1, 0, 1, 2, -5, 255, 256, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30)
REAL = (0.0, -0.0, -1.0, 1e-320, 1e-45, 1e-12, 0.5, 1e9, 3.5e38, 1e38, 1e300, float("nan"), float("inf"), -float("inf"))
STRANGE = (None, True, "", "x", b"x", [], {}, (), 1j, object, "nan", [None], {"a": 1}, 10**400)
NUMBERS = (*WHOLE, *REAL)


class Unspoilt(Exception):
    """An argument that a mutation has nothing to say to."""


@dataclass
class Call:
    """One call: the function, what it is given, and what came before.

    Attributes:
        function: What is called.
        args: Positional arguments.
        kwargs: Keyword arguments.
        spoilt: What was done to which argument; nothing for a valid call.
        note: What the check of the result wants to know.
    """

    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    spoilt: list[str] = field(default_factory=list)
    note: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Any:
        """Call the function."""
        return self.function(*self.args, **self.kwargs)


class Hostile:
    """A source of arguments, seeded by one number."""

    def __init__(self, seed: str | int) -> None:
        self.random = random.Random(seed)

    @cached_property
    def numpy(self) -> np.random.Generator:
        """For whole arrays."""
        return np.random.Generator(np.random.SFC64(self.random.getrandbits(64)))

    def chance(self, share: float) -> bool:
        """Return True in a share of the calls."""
        return self.random.random() < share

    def pick(self, choices: Sequence[Choice]) -> Choice:
        """Return one of the choices."""
        return choices[int(self.random.random() * len(choices))]

    def whole(self, low: int, high: int) -> int:
        """Return an integer, both ends included."""
        return low + int(self.random.random() * (high - low + 1))

    def maybe(self, value: Choice, share: float = 0.5) -> Choice | None:
        """Return the value, or None."""
        return value if self.chance(share) else None

    def options(self, **choices: Sequence[Any]) -> dict[str, Any]:
        """Return some of the options, each with one of its choices."""
        return {name: self.pick(given) for name, given in choices.items() if self.chance(0.4)}

    def spatial(self, axes: tuple[int, int] = (1, 3), sides: Sequence[int] = SIDES) -> tuple[int, ...]:
        """Return the sizes of the spatial axes: points, pictures, volumes; sizes 0 and 1 included."""
        return tuple(self.pick(sides) for _ in range(self.whole(*axes)))

    def batch(self) -> int:
        """Return a number of pictures."""
        return self.pick((1, 1, 1, 2, 2, 3, 0))

    # Tensors

    def floats(self, shape: Sequence[int], *, dtype: torch.dtype | None = None, scale: float = 3.0) -> Tensor:
        """Return finite floats: ties, constants, subnormal numbers, signed zeros and plain ones."""
        kind = self.whole(0, 7)
        array = self.numpy.standard_normal(tuple(shape), dtype=np.float32) * np.float32(scale)
        if kind == 0:
            array = np.round(array * 2) / 2  # ties
        elif kind == 1:
            array = np.full(tuple(shape), self.pick((0.0, -0.0, 1.0, -2.5)), np.float32)
        elif kind == 2:
            array = array * np.float32(self.pick((1e-41, 1e-20, 1e-6)))
        elif kind == 3:
            array = np.where(array > 0, array, self.pick((0.0, -0.0))).astype(np.float32)
        elif kind == 4:
            array = array + np.float32(self.pick((100.0, -1000.0)))
        return self.laid_out(torch.from_numpy(np.asarray(array)).to(dtype or self.pick(FLOATS)))

    def labels(self, shape: Sequence[int], values: Sequence[int], *, dtype: torch.dtype | None = None) -> Tensor:
        """Return integers out of `values`, in a dtype that holds them all; often in regions, now and then constant."""
        low, high = min(values, default=0), max(values, default=0)
        if dtype is None:
            kinds = (torch.bool, *INTEGERS) if low >= 0 and high <= 1 else INTEGERS
            dtype = self.pick([kind for kind in kinds if _holds(kind, low, high)])
        chosen = np.array(values if not self.chance(0.15) else [self.pick(values)], np.int64)
        place = self.numpy.integers(0, len(chosen), tuple(shape))
        if self.chance(0.5):
            place = np.sort(place.reshape(-1)).reshape(place.shape)
        return self.laid_out(torch.from_numpy(np.asarray(chosen[place])).to(dtype))

    def laid_out(self, tensor: Tensor) -> Tensor:
        """Return the same values in another layout in half of the calls, and sometimes asking for a gradient."""
        kind = self.whole(0, 11)
        if tensor.is_meta or tensor.layout != torch.strided:
            return tensor
        if kind == 0 and tensor.ndim > 1:
            tensor = tensor.transpose(0, -1).contiguous().transpose(0, -1)
        elif kind == 1:
            tensor = torch.stack([tensor, tensor], -1)[..., 1]
        elif kind == 2 and tensor.ndim:
            tensor = torch.cat([tensor, tensor])[len(tensor) :]
        elif kind == 3 and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        elif kind == 4 and tensor.ndim and len(tensor) > 1 and _alike(tensor):
            tensor = tensor[:1].expand(tensor.shape)
        elif kind == 5 and tensor.is_floating_point():
            tensor = tensor.clone().requires_grad_()
        return tensor

    def array(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """Return a tensor as an array: sometimes read-only, or with negative strides."""
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        array = tensor.numpy()
        if array.ndim and self.chance(0.3):
            array = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
        if self.chance(0.2):
            array = array.copy()
            array.setflags(write=False)
        return array

    # What spoils a call

    def spoil(self, call: Call, fixed: Sequence[str] = ()) -> Call:
        """Spoil none, one or two of the arguments in place; those named in `fixed` stay as they are."""
        if self.chance(0.5):
            return call
        places: list[int | str] = [*range(len(call.args)), *(name for name in call.kwargs if name not in fixed)]
        for _ in range(self.pick((1, 1, 1, 2))):
            if not places:
                break
            place = self.pick(places)
            holder: Any = call.args if isinstance(place, int) else call.kwargs
            holder[place], how = self.spoilt(holder[place])
            call.spoilt.append(f"{place}: {how}")
        return call

    def spoilt(self, value: Any) -> tuple[Any, str]:
        """Return what an argument becomes, and in words how."""
        try:
            return self.strange() if self.chance(0.12) else self._spoilt(value)
        except Unspoilt:
            return self.strange()

    def _spoilt(self, value: Any) -> tuple[Any, str]:
        if isinstance(value, Tensor):
            return self._spoilt_tensor(value)
        if isinstance(value, np.ndarray):
            return self._spoilt_array(value)
        if isinstance(value, (bool, str, type(None))):
            wrong = (*NUMBERS, *STRANGE, np.bool_(True), np.float32(1), "auto", "mean", "margin", torch.ones(2))
            new = self.pick(wrong)
            return new, f"becomes {_short(new)}"
        if isinstance(value, (int, float)):
            new = self.pick((*NUMBERS, *NUMBERS, *STRANGE, np.int64(3), np.float32(0.5), torch.tensor(2)))
            return new, f"becomes {_short(new)}"
        if isinstance(value, (list, tuple, set, frozenset)):
            return self._spoilt_collection(value)
        return self.strange()

    def strange(self) -> tuple[Any, str]:
        """Return a value of some other type."""
        value = self.pick((*STRANGE, 0, -1, 1.5, np.zeros(2), torch.zeros(1, 2, 3), torch.zeros((), dtype=torch.int64)))
        return value, f"becomes {_short(value)}"

    def _spoilt_tensor(self, tensor: Tensor) -> tuple[Any, str]:
        if tensor.layout != torch.strided or tensor.is_complex():
            raise Unspoilt
        kind = self.whole(0, 11)
        if kind <= 3 and tensor.numel():
            return self._with_hostile_values(tensor)
        if kind == 4:
            dtype = self.pick((*FLOATS, *INTEGERS, torch.bool, torch.complex64, torch.uint64, torch.float8_e4m3fn))
            if torch.float8_e4m3fn in (dtype, tensor.dtype):
                return torch.zeros(tensor.shape).to(dtype), f"becomes zeros of {dtype}"
            return tensor.detach().to(dtype), f"becomes {dtype}"
        if kind == 5:
            return tensor.detach().to("meta"), "goes to the meta device"
        if kind == 6 and tensor.ndim:
            return tensor[self.pick((0, 0, slice(0, 0)))] if len(tensor) else tensor.sum(0), "loses its first axis"
        if kind == 7:
            return tensor[None] if self.chance(0.5) else tensor[..., None], "has one axis more"
        if kind == 8 and tensor.ndim:
            axis = self.whole(0, tensor.ndim - 1)
            return tensor.narrow(axis, 0, min(tensor.shape[axis], self.whole(0, 1))), f"axis {axis} is cut"
        if kind == 9 and tensor.ndim:
            axis = self.whole(0, tensor.ndim - 1)
            return torch.cat([tensor, tensor], axis), f"axis {axis} is doubled"
        if kind == 10:
            new = self.pick((tensor.tolist, lambda: tensor.to_sparse(), lambda: self.array(tensor)))
            try:
                return new(), "is no dense tensor any more"
            except (RuntimeError, TypeError, NotImplementedError):
                raise Unspoilt from None
        return self.laid_out(tensor.detach().clone()), "lies elsewhere"

    def _with_hostile_values(self, tensor: Tensor) -> tuple[Tensor, str]:
        dtype = tensor.dtype
        if tensor.is_meta or tensor.layout != torch.strided:
            raise Unspoilt
        if dtype.is_complex or dtype == torch.float8_e4m3fn:
            raise Unspoilt
        new = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
        if dtype.is_floating_point:
            value: Any = self.pick((float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 1e-45, -0.0, 1e5, 6e4))
            value = max(-torch.finfo(dtype).max, min(value, torch.finfo(dtype).max)) if abs(value) < 1e39 else value
        elif dtype == torch.bool:
            value = self.chance(0.5)
        else:
            limits = torch.iinfo(dtype)
            fits = [
                own for own in (-1, -2, -100, 255, *WHOLE, limits.min, limits.max) if limits.min <= own <= limits.max
            ]
            value = self.pick(fits)
        if dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch cannot index these
            array = new.numpy()
            array[... if self.chance(0.2) else self.whole(0, len(array) - 1)] = value
        elif self.chance(0.2):
            new.fill_(value)
        else:
            new[self.whole(0, len(new) - 1)] = value
        return new.reshape(tensor.shape), f"holds {value}"

    def _spoilt_array(self, array: np.ndarray[Any, Any]) -> tuple[Any, str]:
        kind = self.whole(0, 6)
        if kind == 0:
            dtype = self.pick(("f2", "f4", ">f8", "g", "c8", "i1", "<u2", "u8", "?", "O", "U3", "M8[s]"))
            if array.dtype.kind in "OUM":
                raise Unspoilt
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return array.astype(dtype) if dtype != "M8[s]" else np.zeros(array.shape, dtype), f"becomes {dtype}"
        if kind == 1:
            return array[..., None], "has one axis more"
        if kind == 2 and array.ndim:
            return array[self.pick((0, slice(0, 0)))] if len(array) else array.reshape(-1)[:0], "loses its first axis"
        if kind == 3 and array.ndim:
            return array[..., ::-1], "runs backwards"
        if kind == 4:
            return array.tolist(), "becomes a list"
        if kind == 5 and array.ndim:
            return np.concatenate([array, array], self.whole(0, array.ndim - 1)), "an axis is doubled"
        if array.dtype.kind in "fiu" and array.size:
            array = array.copy()
            value: Any = self.pick(REAL[-3:]) if array.dtype.kind == "f" else np.iinfo(array.dtype).max
            array.reshape(-1)[self.whole(0, array.size - 1)] = value
            return array, f"holds {value}"
        return array.copy(order="F"), "lies elsewhere"

    def _spoilt_collection(self, values: Any) -> tuple[Any, str]:
        own = list(values)
        make = type(values) if type(values) in (list, tuple, set, frozenset) else list
        kind = self.whole(0, 6)
        if kind == 0:
            return make(), "is empty"
        if kind == 1 and own:
            return make(own[:-1]), "is one shorter"
        if kind == 2 and own and make in (list, tuple):
            return make([*own, own[-1]]), "has its last one twice"
        if kind == 3 and own:
            place = self.whole(0, len(own) - 1)
            own[place], how = self.spoilt(own[place])
            try:
                return make(own), f"entry {place} {how}"
            except TypeError:
                raise Unspoilt from None
        if kind == 4:
            return self.pick((dict.fromkeys(range(len(own))), iter(own), np.arange(len(own)))), "is of another kind"
        new = self.pick((*WHOLE, None, "x", 1.5, True))
        return make([*own, new]), f"has {_short(new)} as well"


def _holds(dtype: torch.dtype, low: int, high: int) -> bool:
    if dtype == torch.bool:
        return True
    limits = torch.iinfo(dtype)
    return limits.min <= low and high <= limits.max


def _alike(tensor: Tensor) -> bool:
    first = tensor[:1].expand(tensor.shape)
    return bool((tensor == first).all()) if tensor.dtype not in (torch.uint16, torch.uint32) else False


def _short(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else f"an int of {value.bit_length()} bits"
    return text if len(text) < 60 else text[:57] + "..."
