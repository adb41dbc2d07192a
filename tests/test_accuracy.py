"""Losses and gradients beside the textbook in wider floats, at hard cases: how far rounding may take them.

Rounding to nearest is off by at most u = eps / 2 of the dtype of the arithmetic, float32 for everything but float64.
The bounds count how many of them follow one another; a gradient is rounded once more, to the dtype of the input. That
of float16 has nothing between 0 and 6e-8, which a gradient of a million pixels feels; training scales the loss for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lovasz_embed
from lovasz_embed.hierarchy import Level

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _accuracy_cases import DTYPES, ENGINES, Off, hinges, softmaxes, trees

EXACT = [engine for engine in ENGINES if "binned" not in engine]


def roundings(off: Off) -> tuple[float, float]:
    """Return how far value and gradient may be off."""
    dtype = DTYPES[off.dtype]
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    to_input = 0.0 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps / 2
    # Sums are taken in runs, whose roundings are a random walk: the square root of their number, at most.
    sums = (1 << off.size) ** 0.5
    if off.function == "lovasz_hinge":
        # One for 1 - s F, one for the weight, one for their product.
        return (3 + sums) * unit, 3 * unit + to_input
    # Where two errors lie closer than rounding, their ranks may swap, and both weights are those of a point nearby: off
    # by one part in the union so far. That two thousand roundings (1e-4 in float32) cover it is measured, not derived.
    swap = 2048 * unit
    if off.function == "lovasz_softmax":
        # Three more for exp, sum and quotient. The gradient p (g - sum p g) takes them twice, and the difference
        # cancels where p is near 1, by 1 / (1 - p): the surest logits here lie 6 above the others, and e^6 = 403.
        return (6 + sums) * unit, 403 * 12 * unit + swap + 2 * to_input
    # Mean, difference, four squares, their sum and the division by m² or r²: ten, and for the gaussian kernel the
    # exponent multiplies them: where phi is still 1e-3 of the largest, by 7. In the gradient the pixel's own path and
    # that of its mean cancel, and may lose three bits. Pixels that lie 100 from the origin and about 1 from their mean
    # bring a difference of two numbers each of which is rounded as 100 is, eight times on the way.
    times = 7 if "gaussian" in off.function else 1
    return (10 * times + sums) * unit, (8 * 10 * times + 8 * 2 * 100 * times) * unit + swap + 2 * to_input


def all_cases(dtype: str, engine: str, size: int, seed: int) -> Iterator[Off]:
    yield from hinges(size, seed, dtype, engine)
    yield from softmaxes(size, seed, dtype, engine)
    for kernel in ("margin", "gaussian"):
        yield from trees(min(size, 14), seed, dtype, engine, kernel)


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_are_off_by_rounding_alone(dtype: str, engine: str) -> None:
    for off in all_cases(dtype, engine, 8, 0):
        value, gradient = roundings(off)
        assert off.value <= value, off
        assert off.gradient <= gradient + off.underflow, off


@pytest.mark.reliability
@pytest.mark.parametrize("size", [6, 10, 14, 17, 20])
@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_are_off_by_rounding_alone_at_all_sizes(dtype: str, engine: str, size: int) -> None:
    for seed in range({6: 8, 10: 8, 14: 2}.get(size, 1)):
        for off in all_cases(dtype, engine, size, seed):
            value, gradient = roundings(off)
            assert off.value <= value, off
            assert off.gradient <= gradient + off.underflow, off


@pytest.mark.parametrize("dtype", DTYPES)
def test_counting_stays_in_its_bracket(dtype: str) -> None:
    """The loss is at most one part in the number of bins too small, beside rounding."""
    for off in all_cases(dtype, "numba, binned", 8, 0):
        assert off.value <= 1 / 512 + roundings(off)[0], off


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_the_loss_has_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    """Its class terms are sums over all pixels, and torch alone cuts those by the number of its threads."""
    random = torch.Generator().manual_seed(0)
    embeddings = torch.randn(4, 1, 3, 100_003, generator=random, dtype=dtype)
    labels = torch.randint(0, 4, (1, 100_003), generator=random)
    before, seen = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            outs = [
                lovasz_embed.hierarchical_lovasz_hinge(embedding, (Level(labels, 2.0),), ncm_weight=1.0)
                for embedding in embeddings
            ]
            seen.add(tuple((out.loss.item(), out.ncm.item()) for out in outs))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1
