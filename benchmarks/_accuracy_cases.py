"""Cases that are hard for a loss in few bits, and how far each engine is off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _exact import SlopeError, hinge, slope_error, softmax, tree
from torch import Tensor

import lovasz_embed as le

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ENGINES: dict[str, dict[str, Any]] = {
    "reference": {"impl": "reference"},
    "numba": {"impl": "numba"},
    "numba, binned": {"impl": "numba", "method": "binned"},
    "triton, binned": {"impl": "triton", "method": "binned"},
}
BINS = 512


@dataclass(frozen=True)
class Off:
    """How far one call is off.

    Attributes:
        function: What was called.
        engine: By which engine.
        dtype: Of the input.
        size: Entries, as a power of two.
        case: The distribution.
        value: Error of the value, over the value.
        gradient: Largest error of the gradient over its largest entry.
        underflow: What of that the dtype forces, for want of smaller numbers: half its smallest over the largest entry.
    """

    function: str
    engine: str
    dtype: str
    size: int
    case: str
    value: float
    gradient: float
    underflow: float


def rows(size: int, seed: int, dtype: torch.dtype, binned: bool) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield logits (P,) in the dtype and bool masks (P,), by the name of what is hard about them."""
    random = torch.Generator().manual_seed(seed)
    pixels = 1 << size
    logits = torch.randn(pixels, generator=random, dtype=torch.float64)
    half = torch.rand(pixels, generator=random) < 0.5
    few = torch.rand(pixels, generator=random) < 0.01
    few[0] = True
    # The bracket of "binned" holds for errors up to 2^32.
    huge = 1e4 if dtype == torch.float16 else 1e8 if binned else 1e30
    tiny = 1e-7 if dtype == torch.float16 else 1e-40  # subnormal
    yield "normal", logits.to(dtype), half
    yield "1 % foreground", (2 * logits - 3).to(dtype), few
    yield "ties", ((8 * logits).round() / 8).to(dtype), half
    yield "huge", (huge * logits).to(dtype), half
    yield "subnormal", (tiny * logits).to(dtype), half
    yield "late in training", (4 * torch.where(few, 1.0, -1.0) + logits).to(dtype), few
    yield "no foreground", logits.to(dtype), torch.zeros(pixels, dtype=torch.bool)


def hinges(size: int, seed: int, dtype: str, engine: str) -> Iterator[Off]:
    """Compare the Lovász hinge."""
    for case, logits, mask in rows(size, seed, DTYPES[dtype], "binned" in engine):
        leaf = logits.clone()[None].requires_grad_()
        value = le.lovasz_hinge(leaf, mask[None], **ENGINES[engine])
        value.backward()  # type: ignore[no-untyped-call]
        exact = hinge(logits.double().numpy().astype(np.longdouble), mask.numpy())
        assert leaf.grad is not None
        arithmetic = np.float64 if dtype == "float64" else np.float32
        grad = leaf.grad[0].double().numpy().astype(np.longdouble)
        slope = slope_error(grad, exact, arithmetic, _step(DTYPES[dtype]))
        # Where nothing is foreground, one of the largest errors takes all: which one is a tie like any other.
        yield Off("lovasz_hinge", engine, dtype, size, case, _off(value, exact.value), *slope)


def softmaxes(size: int, seed: int, dtype: str, engine: str) -> Iterator[Off]:
    """Compare the Lovász softmax, of 5 classes."""
    random = torch.Generator().manual_seed(seed)
    pixels = 1 << size
    labels = torch.randint(0, 5, (pixels,), generator=random)
    noise = torch.randn(5, pixels, generator=random, dtype=torch.float64)
    rare = torch.where(torch.rand(pixels, generator=random) < 0.01, labels, 0)
    sure = torch.nn.functional.one_hot(labels, 5).T.double()
    for case, logits, truth in (
        ("normal", noise, labels),
        ("1 % foreground", noise, rare),
        ("late in training", noise + 6 * sure, labels),
    ):
        given = logits.to(DTYPES[dtype])
        leaf = given.clone()[None].requires_grad_()
        value = le.lovasz_softmax(leaf, truth[None], **ENGINES[engine])
        value.backward()  # type: ignore[no-untyped-call]
        exact, slope = softmax(given.double().numpy().astype(np.longdouble), truth.numpy())
        assert leaf.grad is not None
        off = _slope_error(leaf.grad[0], torch.from_numpy(slope.astype(np.float64)))
        yield Off("lovasz_softmax", engine, dtype, size, case, _off(value, exact), *off)


def trees(size: int, seed: int, dtype: str, engine: str, kernel: str) -> Iterator[Off]:
    """Compare the hierarchical hinge: four categories with eight instances, 4 dimensions, one picture."""
    random = torch.Generator().manual_seed(seed)
    pixels = 1 << size
    instance = torch.randint(0, 8, (pixels,), generator=random)
    uneven = (8 * torch.rand(pixels, generator=random) ** 6).long()
    places = 6 * torch.randn(8, 4, generator=random, dtype=torch.float64)
    noise = torch.randn(pixels, 4, generator=random, dtype=torch.float64)
    cases = {
        "scene": (places[instance] + 0.7 * noise, instance),
        "early in training": (noise, instance),
        "small instances": (places[uneven] + noise, uneven),
        "far from the origin": (places[instance] + 0.7 * noise + 100, instance),
    }
    for case, (embedding, labels) in cases.items():
        given = embedding.T.contiguous().to(DTYPES[dtype])
        yield _tree(case, given, labels, size, dtype, engine, kernel, None)
    if kernel == "gaussian":
        given = (places[instance] + 0.7 * noise).T.contiguous().to(DTYPES[dtype])
        bandwidth = 0.5 + torch.rand(pixels, generator=random, dtype=torch.float64)
        yield _tree("learnt bandwidth", given, instance, size, dtype, engine, kernel, bandwidth)


def _tree(
    case: str, given: Tensor, labels: Tensor, size: int, dtype: str, engine: str, kernel: str, bandwidth: Tensor | None
) -> Off:
    leaf = given.clone()[None].requires_grad_()
    wide = given.double().requires_grad_()
    own, exact_own = None, None
    if bandwidth is not None:
        own = bandwidth.to(torch.promote_types(given.dtype, torch.float32))[None].requires_grad_()
        exact_own = own.detach()[0].double().requires_grad_()
        nodes: tuple[le.Level, ...] = (le.Level(labels[None], 1.0, bandwidth=own),)
        levels = [(labels, 1.0, 0.8)]
    else:
        nodes = (le.Level(labels[None] // 2, 4.0), le.Level(labels[None], 1.0))
        levels = [(labels // 2, 4.0, 0.8 * 16), (labels, 1.0, 0.8)]
    value = le.hierarchical_lovasz_hinge(leaf, nodes, kernel=kernel, **ENGINES[engine]).loss
    value.backward()  # type: ignore[no-untyped-call]
    exact = tree(wide, levels, kernel=kernel, bandwidth=exact_own)
    exact.backward()  # type: ignore[no-untyped-call]
    pairs = [(leaf.grad, wide.grad)] + ([] if own is None or exact_own is None else [(own.grad, exact_own.grad)])
    slopes = []
    for got, right in pairs:
        assert got is not None
        assert right is not None
        slopes.append(_slope_error(got[0], right))
    name = f"hierarchical_lovasz_hinge, {kernel}"
    return Off(name, engine, dtype, size, case, _off(value, np.longdouble(exact.item())), *max(slopes))


def _slope_error(got: Tensor, right: Tensor) -> SlopeError:
    largest = float(right.abs().max())
    return SlopeError(float((got.double() - right).abs().max()) / largest, _step(got.dtype) / 2 / largest)


def _step(dtype: torch.dtype) -> float:
    """Return the smallest number above 0."""
    limits = torch.finfo(dtype)
    return limits.tiny * limits.eps


def _off(value: Tensor, exact: np.longdouble) -> float:
    return float(abs(np.longdouble(value.item()) - exact) / abs(exact)) if exact else float(abs(value.item()))
