"""The engines of the nearest class mean: equal where sums are exact, as float64 where they are not, in any layout."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from lovasz_embed._ops import ncm_numba
from lovasz_embed.prototypes import NearestClassMean, nearest_class_mean

NO_CLASS = 255


def steps(shape: tuple[int, ...], most: int = 24) -> st.SearchStrategy[Tensor]:
    """Float64 multiples of 1/8: any float holds them, and sums of a few of their products are exact in float32."""
    counts = hnp.arrays(np.int64, shape, elements=st.integers(-most, most))
    return counts.map(lambda array: torch.from_numpy(array).double() / 8)


# --- The same from both, and from every layout


@given(st.data(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.integers(1, 9))
def test_both_engines_give_the_same_where_sums_are_exact(data: st.DataObject, dtype: torch.dtype, dim: int) -> None:
    """Ties, rejected pixels at their very distance, absent classes and pixels that are not finite included."""
    embedding = data.draw(steps((2, dim, 6)))
    means = data.draw(steps((4, dim)))
    bad = st.sampled_from([0.0, 0.0, 0.0, math.nan, math.inf, -math.inf])
    embedding += data.draw(hnp.arrays(np.float64, (2, dim, 6), elements=bad, fill=st.just(0.0)).map(torch.from_numpy))
    means[data.draw(st.sets(st.integers(0, 3)).map(sorted)), 0] = data.draw(bad)
    offset = data.draw(st.none() | steps((4,)))
    if offset is not None:
        offset[data.draw(st.integers(0, 3))] += data.draw(bad)
    dims = data.draw(st.none() | st.sets(st.integers(0, dim - 1), min_size=1).map(sorted))
    radius = data.draw(st.none() | st.integers(1, 40).map(lambda n: n / 8))
    options = {"offset": offset, "dims": dims, "reject_radius": radius, "ignore_index": -1}
    expected = nearest_class_mean(embedding.to(dtype), means, impl="reference", **options)
    got = nearest_class_mean(embedding.to(dtype), means, impl="numba", **options)
    assert got.dtype == torch.int64
    assert torch.equal(got, expected)


def crop(values: Tensor) -> Tensor:
    padded = torch.full((*values.shape[:-1], values.shape[-1] + 3), math.nan, dtype=values.dtype)
    padded[..., 1:-2] = values
    return padded[..., 1:-2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda values: values.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda values: values.mT.contiguous().mT,
    "cropped": crop,
    "every other pixel": lambda values: values.repeat_interleave(2, -1)[..., ::2],
    "batch last": lambda values: values.movedim(0, -1).contiguous().movedim(-1, 0),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 210, 301), (1, 3, 9, 70, 80), (2, 4, 70_001)])
def test_layout_and_precision_do_not_matter(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Pictures larger than one task, of sizes that no tile divides."""
    embedding = torch.randint(-24, 25, shape).to(dtype) / 8
    means = torch.randint(-24, 25, (7, shape[1])).double() / 8
    expected = nearest_class_mean(embedding, means, impl="reference", reject_radius=4.0)
    for name, layout in LAYOUTS.items():
        strided = layout(embedding)
        assert torch.equal(strided, embedding)
        got = nearest_class_mean(strided, means, impl="numba", reject_radius=4.0)
        assert torch.equal(got, expected), name


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_read_as_torch_reads_it(kind: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(kind).view(1, 1, -1)
    means = torch.linspace(-300, 300, 61).view(-1, 1)
    for impl in ("reference", "numba"):
        half, whole = (nearest_class_mean(x, means, impl=impl, reject_radius=4.0) for x in (bits, bits.float()))
        assert torch.equal(half, whole)
    tiny = torch.tensor([[[6e-8, -6e-8, 3e-5]]], dtype=torch.float16)  # subnormal halves
    assert nearest_class_mean(tiny, torch.tensor([[-1e-9], [5e-8], [3e-5]]), impl="numba").tolist() == [[1, 0, 2]]


def test_the_number_of_threads_changes_nothing() -> None:
    embedding, means = torch.randn(1, 6, 300, 500), torch.randn(11, 6)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(nearest_class_mean(embedding, means, impl="numba"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# --- Precision


def definition(embedding: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest mean by differences in float64, and by how much it is nearer than the next (squared)."""
    distances = (embedding.double().unsqueeze(1) - means.double().view(1, *means.shape, 1)).square().sum(2)
    (first, second), ids = distances.topk(2, 1, largest=False).values.unbind(1), distances.argmin(1)
    return ids, second - first


@pytest.mark.parametrize("far", [0.0, 100.0])
def test_pixels_beside_a_boundary_get_the_class_of_float64(far: float) -> None:
    """Some ten thousand pixels within float32 rounding of the plane between two of six means."""
    means = far + 3 * torch.randn(6, 8)
    pair = torch.rand(1 << 14, 6).argsort(1)[:, :2]
    share = 0.5 + 1e-6 * torch.randn(len(pair), 1)
    pixels = means[pair[:, 0]] * share + means[pair[:, 1]] * (1 - share)
    embedding = pixels.T[None].contiguous()
    expected, gap = definition(embedding, means)
    # Differences of float32 numbers are exact in float64, squares below 1e4 then round at 1e-12.
    decided = gap > 1e-10
    assert decided.sum() > 1 << 13
    got = nearest_class_mean(embedding, means, impl="numba")
    assert torch.equal(got[decided], expected[decided])
    single = nearest_class_mean(embedding, means, impl="reference")
    assert (single != expected)[decided].any(), "these pixels are no test"


def test_pixels_about_the_reject_radius_are_decided_as_in_float64() -> None:
    """By scores alone, float32 would err by some 1e-3 of the squared radius at this distance from the centre."""
    means = 100 * torch.randn(5, 8)
    owner = torch.randint(0, 5, (1 << 14,))
    away = torch.randn(len(owner), 8)
    away *= (0.5 + 1e-6 * torch.randn(len(owner), 1)) / away.norm(dim=1, keepdim=True)
    embedding = (means[owner] + away).T[None].contiguous()
    squares = (embedding[0].T.double() - means[owner].double()).square().sum(1)
    expected = torch.where(squares <= 0.25, owner, NO_CLASS)
    assert 0.2 < (expected == NO_CLASS).double().mean() < 0.8
    decided = (squares - 0.25).abs() > 1e-12  # float64 of numbers below 1000, whose differences are exact
    got = nearest_class_mean(embedding, means, impl="numba", reject_radius=0.5)
    assert torch.equal(got[0][decided], expected[decided])


@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_means_that_lie_together_far_from_the_origin_keep_apart(impl: str) -> None:
    """Squared norms are multiples of 128 there, in float32: most pixels would go astray by them."""
    means = 20_000 + torch.randn(5, 4)
    embedding = (20_000 + torch.randn(1, 4, 10_000)).contiguous()
    expected, gap = definition(embedding, means)
    # The steps of float32 at 20 000 are 1/512: pixels and means lie on a grid, and the middle of the means, too. What
    # rounds are squares of some 30, in float32.
    clear = gap > 1e-4
    assert torch.equal(nearest_class_mean(embedding, means, impl=impl)[clear], expected[clear])


@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_of_equal_distances_the_lowest_class_wins(impl: str) -> None:
    means = torch.tensor([[8.0, 8.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    embedding = torch.tensor([[[0.0, 2.0, -2.0, 0.0, 0.25], [0.0, 0.0, 0.0, 3.0, 0.25]]])
    assert nearest_class_mean(embedding, means, impl=impl).tolist() == [[1, 1, 2, 3, 1]]


# --- Pixels and classes that are none


@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_what_overflows_or_is_not_finite_has_no_class(impl: str) -> None:
    means = torch.tensor([[0.0, 0.0], [3.0, 0.0], [9.0, 0.0]])
    values = [[1.0, math.nan, 0.0, math.inf, 3e38, 1e30], [0.0, 0.0, -math.inf, 0.0, 0.0, 0.0]]
    got = nearest_class_mean(torch.tensor([values]), means, impl=impl)
    assert got.tolist() == [[0, NO_CLASS, NO_CLASS, NO_CLASS, NO_CLASS, 2]]
    got = nearest_class_mean(torch.tensor([values]), means, impl=impl, dims=[0])
    assert got.tolist()[0][2] == NO_CLASS, "also where nobody looks"


@pytest.mark.parametrize("impl", ["reference", "numba"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_mean_or_an_offset_that_is_no_number_makes_its_class_absent(impl: str, bad: float) -> None:
    means = torch.tensor([[0.0, 0.0], [1.0, bad], [5.0, 0.0]])
    embedding = torch.tensor([[[0.0, 1.0, 2.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])
    assert nearest_class_mean(embedding, means, impl=impl).tolist() == [[0, 0, 0, 2]]
    if bad != math.inf:
        offset = torch.tensor([0.0, bad, 0.0])
        got = nearest_class_mean(embedding, means.nan_to_num(0, 0, 0), impl=impl, offset=offset)
        assert got.tolist() == [[0, 0, 0, 2]]
    assert (nearest_class_mean(embedding, means[1:2], impl=impl) == NO_CLASS).all()


# --- Memory, graphs, Python


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_no_picture_is_copied(dtype: torch.dtype) -> None:
    embedding = crop(torch.randn(1, 32, 512, 512).to(dtype))
    means = torch.randn(3, 32)
    nearest_class_mean(embedding, means, impl="numba")
    tracemalloc.start()  # sees the arrays of numpy, not what compiled kernels keep: a few tiles
    nearest_class_mean(embedding, means, impl="numba")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    result = 8 * 512 * 512
    # A chunk of 2^15 of the 2^18 pixels for each thread, widened or not.
    assert peak - result < 1.1 * torch.get_num_threads() * 32 * 2**15 * embedding.element_size()


@pytest.mark.parametrize("radius", [None, 1.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_engine_is_a_proper_operator(dtype: torch.dtype, radius: float | None) -> None:
    looked_at = torch.tensor([True, False, True])
    offset = None if radius else torch.randn(4)
    arguments = (torch.randn(2, 3, 5, 4).to(dtype), torch.randn(4, 3), offset, looked_at, radius, 255)
    torch.library.opcheck(ncm_numba.operator, arguments)


@pytest.mark.parametrize("impl", ["auto", "reference", "numba"])
def test_every_engine_compiles_as_one_graph(impl: str) -> None:
    torch.compiler.reset()
    ncm = NearestClassMean(4, 3, dims=[0, 2], reject_radius=1.5, impl=impl)
    ncm.update(torch.randn(2, 3, 30), torch.randint(0, 4, (2, 30)))
    compiled = torch.compile(ncm, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 3, 5), (1, 3, 9)):
        values = torch.randn(shape)
        assert torch.equal(compiled(values), ncm(values))


@pytest.mark.parametrize(
    ("impl", "device", "text"),
    [
        ("fast", "cpu", "impl must be one of 'auto', 'reference', 'numba', 'triton', got 'fast'"),
        ("numba", "meta", "embedding must be on the CPU for impl='numba', got meta. Use impl='auto'"),
    ],
)
def test_an_engine_that_cannot_run_fails_clearly(impl: str, device: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        nearest_class_mean(torch.zeros(1, 2, 3, device=device), torch.zeros(2, 2, device=device), impl=impl)


UNCOMPILED = """
import math, torch
from lovasz_embed.prototypes import nearest_class_mean
embedding = torch.randint(-24, 25, (1, 3, 700)) / 8
embedding[0, 0, :3] = torch.tensor([math.nan, math.inf, 3e38])
means = torch.randint(-24, 25, (4, 3)) / 8
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    options = {"reject_radius": 2.5, "offset": torch.tensor([0.5, 0.0, 0.0, 1.0])}
    one, other = (nearest_class_mean(embedding.to(dtype), means, impl=i, **options) for i in ("reference", "numba"))
    assert torch.equal(one, other), dtype
"""


def test_uncompiled_kernels_give_the_same_without_a_warning() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", UNCOMPILED], env=environment, check=True, timeout=120)
