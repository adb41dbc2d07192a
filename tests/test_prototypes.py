"""Nearest class mean: against scikit-learn, streaming, two processes, absent classes, error texts."""

from __future__ import annotations

import inspect
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestCentroid
from torch import Tensor

import lovasz_embed
from lovasz_embed.prototypes import NearestClassMean, class_means, nearest_class_mean
from tests.strategies import label_maps, logit_maps

NO_CLASS = 255


def blobs(num_classes: int = 4, dim: int = 3, batch: int = 2, size: int = 8) -> tuple[Tensor, Tensor]:
    """Embeddings (B, D, size, size) around class centres that lie a few standard deviations apart."""
    semantic = torch.randint(0, num_classes, (batch, size, size))
    centres = 3 * torch.randn(num_classes, dim)
    return centres[semantic].movedim(-1, 1) + torch.randn(batch, dim, size, size), semantic


def rows(embedding: Tensor) -> Tensor:
    """The pixels of (B, D, *spatial) as rows (P, D)."""
    return embedding.movedim(1, -1).reshape(-1, embedding.shape[1])


# --- Against scikit-learn


@pytest.mark.parametrize("shape", [(2, 3, 50), (2, 3, 7, 9), (1, 3, 3, 4, 5)])
def test_means_and_classes_are_those_of_scikit_learn(shape: tuple[int, ...]) -> None:
    embedding = torch.randn(shape, dtype=torch.float64)
    semantic = torch.randint(0, 5, (shape[0], *shape[2:]))
    oracle = NearestCentroid().fit(rows(embedding).numpy(), semantic.flatten().numpy())
    means, counts = class_means(embedding, semantic, num_classes=5)
    torch.testing.assert_close(means, torch.as_tensor(oracle.centroids_))
    assert counts.tolist() == semantic.flatten().bincount(minlength=5).tolist()

    new = torch.randn(shape, dtype=torch.float64)
    expected = torch.as_tensor(oracle.predict(rows(new).numpy())).view(semantic.shape)
    assert torch.equal(nearest_class_mean(new, means), expected)
    assert torch.equal(NearestClassMean(5, 3).update(embedding, semantic)(new), expected)


@given(st.data())
def test_the_class_is_the_nearest_present_mean_by_definition(data: st.DataObject) -> None:
    embedding = data.draw(logit_maps((2, 3, 4)))
    means = data.draw(logit_maps((4, 3)))
    offset = data.draw(logit_maps((4,)))
    dims = data.draw(st.sets(st.integers(0, 2), min_size=1).map(sorted))
    absent = data.draw(st.sets(st.integers(0, 3), max_size=3).map(sorted))
    radius = data.draw(st.floats(0.5, 5))
    means[absent] = math.nan

    squares = (embedding.unsqueeze(1) - means.view(1, 4, 3, 1))[:, :, dims].square().sum(2)
    shifted = (squares - offset.view(1, 4, 1)).nan_to_num(nan=math.inf)
    expected = shifted.argmin(1)
    own = squares.gather(1, expected.unsqueeze(1)).squeeze(1)
    expected[own > radius**2] = NO_CLASS
    got = nearest_class_mean(embedding, means, offset=offset, dims=dims, reject_radius=radius)
    assert torch.equal(got, expected)


# --- Means


@given(st.data())
def test_means_ignore_what_is_ignored_and_absent_classes_have_none(data: st.DataObject) -> None:
    embedding = data.draw(logit_maps((2, 2, 5)))
    semantic = data.draw(label_maps((2, 5), 4, ignore_index=NO_CLASS))
    means, counts = class_means(embedding, semantic, num_classes=4)
    for c in range(4):
        pixels = rows(embedding)[semantic.flatten() == c]
        assert counts[c] == len(pixels)
        expected = pixels.mean(0) if len(pixels) else torch.full((2,), math.nan)
        torch.testing.assert_close(means[c], expected.double(), equal_nan=True)


def test_means_pass_gradcheck_also_beside_absent_classes() -> None:
    embedding = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    semantic = torch.tensor([[0, 2, 2, NO_CLASS], [0, 0, 2, 2]])

    def present(e: Tensor) -> Tensor:
        return class_means(e, semantic, num_classes=4).means[[0, 2]]

    # Anomaly mode fails on a NaN anywhere in the graph: 0 / 0 of an absent class must not be hidden by a mask.
    with torch.autograd.set_detect_anomaly(True):
        assert torch.autograd.gradcheck(present, embedding)


def test_means_of_many_far_pixels_keep_their_digits() -> None:
    """A float32 sum of a million numbers near 1000 is off in the fourth digit of the small part."""
    embedding = 1000 + torch.rand(1, 1, 2**20)
    means, _ = class_means(embedding, torch.zeros(1, 2**20, dtype=torch.int64), num_classes=1)
    # One float32 rounding of the result: half of 2^-14 near 1000.
    assert abs(float(means) - float(embedding.double().mean())) <= 2**-15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_arithmetic_is_float32_at_least(dtype: torch.dtype) -> None:
    embedding, semantic = blobs()
    embedding = embedding.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    means, _ = class_means(embedding, semantic, num_classes=4)
    assert means.dtype == wide
    assert torch.equal(means, class_means(embedding.to(wide), semantic, num_classes=4).means)
    ncm = NearestClassMean(4, 3).update(embedding, semantic)
    assert ncm.sums.dtype == torch.float64
    assert ncm.means.dtype == torch.float32
    assert ncm.logits(embedding).dtype == wide
    assert torch.equal(ncm(embedding), ncm(embedding.to(wide)))
    assert ncm(embedding).dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_any_label_dtype_gives_the_same_means(dtype: torch.dtype) -> None:
    embedding, semantic = blobs(num_classes=2)
    expected = class_means(embedding, semantic, num_classes=300)
    got = class_means(embedding, semantic.to(dtype), num_classes=300)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=0, atol=0)


def test_memory_layout_does_not_matter() -> None:
    embedding, semantic = blobs()
    strided = embedding.to(memory_format=torch.channels_last)
    ncm = NearestClassMean(4, 3).update(strided, semantic.mT.contiguous().mT)
    other = NearestClassMean(4, 3).update(embedding, semantic)
    torch.testing.assert_close(ncm.means, other.means)
    assert torch.equal(ncm(strided), ncm(embedding))


# --- Streaming


def test_streaming_equals_one_batch() -> None:
    embedding, semantic = blobs(batch=5)
    whole = NearestClassMean(4, 3).update(embedding, semantic)
    parts = NearestClassMean(4, 3)
    for b in range(5):
        parts.update(embedding[b : b + 1], semantic[b : b + 1])
    # Float64 sums in another order.
    torch.testing.assert_close(parts.sums, whole.sums, rtol=1e-12, atol=1e-12)
    assert torch.equal(parts.counts, whole.counts)


def test_a_saved_classifier_resumes_exactly() -> None:
    (first, first_labels), (second, second_labels) = blobs(), blobs()
    ncm = NearestClassMean(4, 3).update(first, first_labels)
    ncm.offset[1] = 0.5
    resumed = NearestClassMean(4, 3)
    resumed.load_state_dict(ncm.state_dict())
    for module in (ncm, resumed):
        module.update(second, second_labels)
    assert torch.equal(resumed.sums, ncm.sums)
    assert torch.equal(resumed(first), ncm(first))


def test_conversion_never_rounds_the_sums() -> None:
    embedding, semantic = blobs()
    ncm = NearestClassMean(4, 3).update(embedding, semantic)
    expected = ncm.sums.clone()
    for convert in (NearestClassMean.half, NearestClassMean.bfloat16, NearestClassMean.float):
        assert torch.equal(convert(ncm).sums, expected)
    with torch.device("meta"):
        empty = NearestClassMean(4, 3)
    assert empty.to_empty(device="cpu").sums.dtype == torch.float64


def test_reset_forgets_the_pixels_and_keeps_the_offset() -> None:
    ncm = NearestClassMean(4, 3).update(*blobs())
    ncm.offset += 1
    ncm.reset()
    assert ncm.means.isnan().all()
    assert ncm.counts.sum() == 0
    assert (ncm.offset == 1).all()


WORKER = """
import sys, time, torch, torch.distributed as dist
from lovasz_embed.prototypes import NearestClassMean
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
embedding, semantic = torch.load(f"{folder}/data.pt")
ncm = NearestClassMean(4, 3)
for step in range(2):
    picture = 2 * step + rank
    ncm.update(embedding[picture : picture + 1], semantic[picture : picture + 1])
broken = embedding[:1] if rank else torch.full_like(embedding[:1], torch.nan)
try:
    ncm.update(broken, semantic[:1])
    raised = False
except ValueError:
    raised = True
torch.save((ncm.state_dict(), raised), f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
time.sleep(0.1)  # gloo's threads let go of their tensors: a process that ends at once may abort
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    embedding, semantic = blobs(batch=4)
    torch.save((embedding, semantic), tmp_path / "data.pt")
    root = str(Path(lovasz_embed.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]

    expected = NearestClassMean(4, 3).update(embedding, semantic)
    for rank in range(2):
        state, raised = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(state["sums"], expected.sums, rtol=1e-12, atol=1e-12)
        assert torch.equal(state["counts"], expected.counts)
        assert raised, "a NaN in one process must stop all of them, with the means as before"


# --- Prediction


def test_absent_classes_are_never_predicted() -> None:
    embedding = torch.zeros(1, 2, 4)
    ncm = NearestClassMean(3, 2).update(embedding + 5, torch.full((1, 4), 1))
    assert (ncm(embedding) == 1).all(), "the origin is not the mean of an absent class"
    assert (ncm.logits(embedding).argmax(1) == 1).all()
    assert ncm.logits(embedding)[:, [0, 2]].eq(-math.inf).all()


def test_without_any_mean_there_is_no_class() -> None:
    assert (NearestClassMean(3, 2)(torch.randn(1, 2, 4)) == NO_CLASS).all()


def test_pixels_that_are_not_finite_have_no_class() -> None:
    embedding = torch.tensor([[[0.0, math.nan, math.inf, -math.inf, 1.0]]])
    got = nearest_class_mean(embedding, torch.tensor([[0.0], [1.0]]), ignore_index=-1)
    assert got.tolist() == [[0, -1, -1, -1, 1]]


def test_reject_radius_is_exact_far_from_the_origin() -> None:
    """Squared distances by expansion would be off by 60 here: the mean lies at 10 000."""
    means = torch.tensor([[1e4], [2e4]])
    embedding = means[0] + torch.tensor([[[0.0, 0.875, 1.0, 1.125, -2.0]]])
    got = nearest_class_mean(embedding, means, reject_radius=1.0)
    assert got.tolist() == [[0, 0, 0, NO_CLASS, NO_CLASS]]
    ncm = NearestClassMean(1, 1, reject_radius=1.0, ignore_index=-1)
    ncm.update(means[:1, None], torch.zeros(1, 1, dtype=torch.int64))
    assert ncm(embedding).tolist() == [[0, 0, 0, -1, -1]]


def test_dims_leave_the_other_dimensions_out() -> None:
    means = torch.tensor([[0.0, 0.0], [1.0, 50.0]])
    embedding = torch.tensor([[[0.9], [0.0]]])
    assert nearest_class_mean(embedding, means).tolist() == [[0]]
    assert nearest_class_mean(embedding, means, dims=[0], reject_radius=1.0).tolist() == [[1]]


def test_an_offset_moves_the_boundary_towards_the_other_class() -> None:
    """Between means at 0 and 2 the boundary is at 1; an offset o of the first moves it to 1 + o / 4."""
    ncm = NearestClassMean(2, 1).update(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[0, 1]]))
    embedding = torch.tensor([[[0.875, 1.125, 1.375, 1.625]]])
    assert ncm(embedding).tolist() == [[0, 1, 1, 1]]
    ncm.offset[0] = 2.0
    assert ncm(embedding).tolist() == [[0, 0, 0, 1]]


def test_linear_form_and_logits_have_the_class_as_their_argmax() -> None:
    embedding, semantic = blobs()
    ncm = NearestClassMean(5, 3, dims=[0, 2]).update(embedding, semantic)
    ncm.offset.copy_(torch.randn(5))
    weight, bias = ncm.as_linear()
    products = torch.einsum("cd,bdhw->bchw", weight, embedding) + bias.view(-1, 1, 1)
    assert torch.equal(products.argmax(1), ncm(embedding))
    assert torch.equal(ncm.logits(embedding).argmax(1), ncm(embedding))


def test_logits_are_minus_the_squared_distance_plus_the_offset() -> None:
    embedding, semantic = blobs()
    ncm = NearestClassMean(4, 3).update(embedding, semantic)
    ncm.offset.copy_(torch.randn(4))
    away = embedding.double().unsqueeze(1) - (ncm.sums / ncm.counts.unsqueeze(1)).view(1, 4, 3, 1, 1)
    expected = ncm.offset.view(1, 4, 1, 1) - away.square().sum(2)
    torch.testing.assert_close(ncm.logits(embedding.double()), expected)
    # Float32 rounding of squared norms below 200.
    torch.testing.assert_close(ncm.logits(embedding).double(), expected, rtol=0, atol=1e-4)


def test_logits_train_an_embedding() -> None:
    embedding, semantic = blobs()
    ncm = NearestClassMean(5, 3).update(embedding, semantic)
    embedding.requires_grad_()
    torch.nn.functional.cross_entropy(ncm.logits(embedding), semantic).backward()
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()


def test_autocast_on_equals_autocast_off() -> None:
    embedding, semantic = blobs()
    ncm = NearestClassMean(4, 3, reject_radius=1.5).update(embedding, semantic)
    expected = ncm(embedding), ncm.logits(embedding), class_means(embedding, semantic, num_classes=4).means
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ncm(embedding), ncm.logits(embedding), class_means(embedding, semantic, num_classes=4).means
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (0, 3, 4, 4)])
def test_empty_pictures_change_and_predict_nothing(shape: tuple[int, ...]) -> None:
    ncm = NearestClassMean(4, 3, reject_radius=1.0).update(*blobs())
    before = ncm.sums.clone()
    empty = torch.zeros(shape)
    ncm.update(empty, torch.zeros(shape[0], *shape[2:], dtype=torch.int64))
    assert torch.equal(ncm.sums, before)
    assert ncm(empty).shape == (shape[0], *shape[2:])
    assert ncm.logits(empty).shape == (shape[0], 4, *shape[2:])


def test_the_module_prints_its_constructor_call() -> None:
    options = inspect.signature(NearestClassMean).parameters
    assert all(f"{name}=" in repr(NearestClassMean(2, 1, dims=[0])) for name in options)


# --- Errors

EMBEDDING, SEMANTIC = torch.zeros(1, 2, 4), torch.zeros(1, 4, dtype=torch.int64)
MEANS = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda: class_means(EMBEDDING[0], SEMANTIC, num_classes=2),
            ValueError,
            r"embedding must have shape \(B, D, \*spatial\) with D >= 1, got \(2, 4\)",
        ),
        (
            lambda: class_means(EMBEDDING.long(), SEMANTIC, num_classes=2),
            TypeError,
            r"embedding must be a floating point tensor, got torch\.int64",
        ),
        (
            lambda: class_means(EMBEDDING, SEMANTIC[:, :3], num_classes=2),
            ValueError,
            r"semantic must have shape \(1, 4\) to match embedding without its D axis, got \(1, 3\)",
        ),
        (
            lambda: class_means(EMBEDDING, SEMANTIC.float(), num_classes=2),
            TypeError,
            r"semantic must hold integer or boolean labels, got torch\.float32",
        ),
        (
            lambda: class_means(EMBEDDING, SEMANTIC.to("meta"), num_classes=2),
            ValueError,
            r"semantic must be on the device of embedding \(cpu\), got meta",
        ),
        (
            lambda: class_means(EMBEDDING, SEMANTIC + 2, num_classes=2),
            ValueError,
            r"semantic must hold labels from 0 to 1 or ignore_index=255, got 4 pixels with 2",
        ),
        (
            lambda: class_means(EMBEDDING, SEMANTIC, num_classes=0),
            ValueError,
            r"num_classes must be at least 1, got 0",
        ),
        (
            lambda: NearestClassMean(2.0, 2),  # type: ignore[arg-type]
            TypeError,
            r"num_classes must be an int, got float",
        ),
        (lambda: NearestClassMean(2, 0), ValueError, r"dim must be at least 1, got 0"),
        (
            lambda: NearestClassMean(2, 2, dims=[0, 2]),
            ValueError,
            r"dims must name at least one of the dimensions 0 to 1, each once, got \[0, 2\]",
        ),
        (
            lambda: NearestClassMean(2, 2, dims=[0.0]),  # type: ignore[list-item]
            TypeError,
            r"dims must be a sequence of int or None, got \[0\.0\]",
        ),
        (
            lambda: NearestClassMean(2, 2, reject_radius=-1.0),
            ValueError,
            r"reject_radius must be a finite number above 0, got -1\.0",
        ),
        (
            lambda: nearest_class_mean(EMBEDDING, MEANS, reject_radius=0),
            ValueError,
            r"reject_radius must be a finite number above 0, got 0",
        ),
        (
            lambda: nearest_class_mean(EMBEDDING, MEANS, dims=[]),
            ValueError,
            r"dims must name at least one of the dimensions 0 to 1, each once, got \[\]",
        ),
        (
            lambda: nearest_class_mean(EMBEDDING, torch.zeros(3, 5)),
            ValueError,
            r"means must have shape \(C, 2\) with C >= 1 to match embedding, got \(3, 5\)",
        ),
        (
            lambda: nearest_class_mean(EMBEDDING, MEANS.long()),
            TypeError,
            r"means must be a floating point tensor, got torch\.int64",
        ),
        (
            lambda: nearest_class_mean(EMBEDDING, MEANS, offset=torch.zeros(2)),
            ValueError,
            r"offset must have shape \(3,\) to match means, got \(2,\)",
        ),
        (
            lambda: nearest_class_mean(EMBEDDING, MEANS.to("meta")),
            ValueError,
            r"means must be on the device of embedding \(cpu\), got meta",
        ),
        (
            lambda: NearestClassMean(2, 3).update(EMBEDDING, SEMANTIC),
            ValueError,
            r"embedding must have D = 3 on axis 1, got \(1, 2, 4\)",
        ),
        (
            lambda: NearestClassMean(2, 3).logits(EMBEDDING),
            ValueError,
            r"embedding must have D = 3 on axis 1, got \(1, 2, 4\)",
        ),
        (
            lambda: NearestClassMean(2, 2).update(EMBEDDING.to("meta"), SEMANTIC),
            ValueError,
            r"embedding must be on the device of the module \(cpu\), got meta",
        ),
        (
            lambda: NearestClassMean(2, 2).update(EMBEDDING + math.inf, SEMANTIC),
            ValueError,
            r"embedding must be finite where semantic holds a class, got NaN or Inf in pixels of classes "
            r"\[0\]\. Look for a diverged network",
        ),
    ],
)
def test_bad_arguments_fail_clearly(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_a_broken_batch_leaves_the_means_as_they_were() -> None:
    embedding, semantic = blobs()
    ncm = NearestClassMean(4, 3).update(embedding, semantic)
    before = ncm.sums.clone(), ncm.counts.clone()
    embedding[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="embedding must be finite"):
        ncm.update(embedding, semantic)
    assert torch.equal(ncm.sums, before[0])
    assert torch.equal(ncm.counts, before[1])


def test_nan_at_ignored_pixels_is_no_error() -> None:
    embedding, semantic = blobs()
    expected = NearestClassMean(4, 3).update(embedding, torch.where(semantic == 2, NO_CLASS, semantic))
    broken = torch.where((semantic == 2).unsqueeze(1), math.nan, embedding)
    ncm = NearestClassMean(4, 3).update(broken, torch.where(semantic == 2, NO_CLASS, semantic))
    assert torch.equal(ncm.sums, expected.sums)
