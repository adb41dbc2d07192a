"""Hypothesis strategies and slow, exact definitions that the tests of the losses compare with."""

from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import strategies as st
from torch import Tensor

# Multiples of 1/8: ties are frequent, and sums of a few of them are exact in float64.
_STEP = 8


@st.composite
def masks(draw: st.DrawFn, size: int) -> Tensor:
    """Bool (size,), all foreground and all background included."""
    return torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)


@st.composite
def error_rows(draw: st.DrawFn, size: int, *, low: float = 0.0, high: float = 2.0) -> Tensor:
    """Float64 (size,) of multiples of 1/8 from `low` to `high`, with many ties."""
    steps = st.integers(round(low * _STEP), round(high * _STEP))
    return torch.tensor(draw(st.lists(steps, min_size=size, max_size=size)), dtype=torch.float64) / _STEP


@st.composite
def problems(
    draw: st.DrawFn, *, rows: int = 1, low: float = 0.0, high: float = 2.0, max_size: int = 10
) -> tuple[Tensor, ...]:
    """As many rows of errors as asked for, and one mask as the last, all of one size."""
    size = draw(st.integers(1, max_size))
    return (*(draw(error_rows(size, low=low, high=high)) for _ in range(rows)), draw(masks(size)))


@st.composite
def distinct_problems(draw: st.DrawFn, *, max_size: int = 8) -> tuple[Tensor, Tensor]:
    """Errors at least 1/8 apart and away from 0 (no kink near), negative ones included, and a mask."""
    size = draw(st.integers(1, max_size))
    steps = st.integers(-2 * _STEP, 2 * _STEP).filter(lambda step: step != 0)
    errors = draw(st.lists(steps, min_size=size, max_size=size, unique=True))
    return torch.tensor(errors, dtype=torch.float64) / _STEP, draw(masks(size))


@st.composite
def label_maps(draw: st.DrawFn, shape: tuple[int, ...], num_classes: int, *, ignore_index: int | None = None) -> Tensor:
    """Int64 labels 0..num_classes-1 of the shape, and `ignore_index` if there is one."""
    values = st.integers(0, num_classes - 1)
    if ignore_index is not None:
        values |= st.just(ignore_index)
    size = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(values, min_size=size, max_size=size)), dtype=torch.int64).view(shape)


@st.composite
def logit_maps(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Float64 logits of the shape, from a drawn seed, spread over -3..3."""
    seed = draw(st.integers(0, 2**16))
    return 6 * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 3


def jaccard_loss(wrong: Tensor, target: Tensor) -> Fraction:
    """1 - IoU of the mask `target` and a prediction that errs exactly at `wrong`; 0 if both are empty."""
    prediction = wrong ^ target
    union = int((prediction | target).sum())
    return 1 - Fraction(int((prediction & target).sum()), union) if union else Fraction(0)


def layer_cake(errors: Tensor, target: Tensor) -> float:
    """The integral over t > 0 of the Jaccard loss of {errors >= t}: the Lovász extension by its definition.

    In exact rational arithmetic, with neither ranks nor weights: the independent oracle for values.
    """
    total, below = Fraction(0), Fraction(0)
    for level in sorted({Fraction(value) for value in errors.tolist() if value > 0}):
        total += (level - below) * jaccard_loss(errors >= float(level), target)
        below = level
    return float(total)
