"""The Lovász losses: the eleven properties of the extension, the options, the edges, the error texts."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lovasz_embed._ops.reference import lovasz_extension
from lovasz_embed.lovasz import LovaszHinge, LovaszSoftmax, lovasz_hinge, lovasz_softmax, lovasz_weights
from tests.strategies import (
    jaccard_loss,
    label_maps,
    layer_cake,
    logit_maps,
    masks,
    problems,
)

# Values are sums of at most a few hundred float64 numbers of size 1: rounding stays below 1e-12.
ROUNDING = 1e-12


def extension(errors: Tensor, target: Tensor) -> float:
    return float(lovasz_extension(errors, target))


# --- Properties of the extension (numbered as in the design)


@given(problems(low=-2))
def test_1_the_value_is_the_layer_cake_integral(problem: tuple[Tensor, Tensor]) -> None:
    errors, target = problem
    assert extension(errors, target) == pytest.approx(layer_cake(errors, target), abs=ROUNDING)


@given(problems(rows=1))
def test_2_at_a_set_of_wrong_pixels_the_value_is_one_minus_iou(problem: tuple[Tensor, Tensor]) -> None:
    errors, target = problem
    wrong = errors > 1
    expected = float(jaccard_loss(wrong, target))
    assert extension(wrong.double(), target) == pytest.approx(expected, abs=ROUNDING)


@given(problems(low=-2), st.integers(0, 8))
def test_2_positively_homogeneous(problem: tuple[Tensor, Tensor], factor: int) -> None:
    errors, target = problem
    expected = factor * extension(errors, target)
    assert extension(factor * errors, target) == pytest.approx(expected, abs=ROUNDING)


@given(problems(), st.integers(0, 8))
def test_2_a_constant_on_all_errors_adds_itself(problem: tuple[Tensor, Tensor], constant: int) -> None:
    errors, target = problem
    expected = extension(errors, target) + constant
    assert extension(errors + constant, target) == pytest.approx(expected, abs=ROUNDING)


@given(problems(rows=2, low=-2), st.sampled_from([0.125, 0.5, 0.75]))
def test_2_convex(problem: tuple[Tensor, Tensor, Tensor], share: float) -> None:
    first, second, target = problem
    between = extension(share * first + (1 - share) * second, target)
    chord = share * extension(first, target) + (1 - share) * extension(second, target)
    assert between <= chord + ROUNDING


@given(problems(rows=2))
def test_2_monotone(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    errors, more, target = problem
    assert extension(errors, target) <= extension(errors + more, target) + ROUNDING


@given(problems(rows=2))
def test_2_additive_for_errors_in_the_same_order(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    first, second, target = problem
    first, second = first.sort().values, second.sort().values
    expected = extension(first, target) + extension(second, target)
    assert extension(first + second, target) == pytest.approx(expected, abs=ROUNDING)


@given(problems(rows=2, low=-2))
def test_2_moves_no_more_than_the_farthest_error(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    first, second, target = problem
    moved = abs(extension(first, target) - extension(second, target))
    assert moved <= float((first - second).abs().max()) + ROUNDING


@given(problems(low=-2))
def test_3_weights_are_a_distribution(problem: tuple[Tensor, Tensor]) -> None:
    weights = lovasz_weights(*problem)
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1, abs=ROUNDING)


@given(problems())
def test_tied_errors_keep_their_input_order(problem: tuple[Tensor, Tensor]) -> None:
    _, target = problem
    untied = torch.arange(len(target), 0, -1, dtype=torch.float64)
    assert torch.equal(lovasz_weights(torch.zeros_like(untied), target), lovasz_weights(untied, target))


@given(problems())
def test_3_the_value_lies_between_mean_and_maximum(problem: tuple[Tensor, Tensor]) -> None:
    errors, target = problem
    assert float(errors.mean()) - ROUNDING <= extension(errors, target) <= float(errors.max()) + ROUNDING


@given(problems(low=-2))
def test_4_the_value_is_the_gradient_times_the_errors(problem: tuple[Tensor, Tensor]) -> None:
    errors, target = problem
    errors.requires_grad_()
    value = lovasz_extension(errors, target)
    (gradient,) = torch.autograd.grad(value, errors)
    assert float(gradient @ errors.detach()) == pytest.approx(float(value.detach()), abs=ROUNDING)


@given(problems(max_size=5))
def test_4_the_value_is_the_largest_over_all_orders(problem: tuple[Tensor, Tensor]) -> None:
    errors, target = problem
    values = []
    for order in itertools.permutations(range(len(errors))):
        # A made-up strictly descending row in this order has the weights of this order.
        made_up = torch.empty_like(errors)
        made_up[list(order)] = torch.arange(len(errors), 0, -1, dtype=errors.dtype)
        values.append(float(lovasz_weights(made_up, target) @ errors))
    assert extension(errors, target) == pytest.approx(max(values), abs=ROUNDING)


@given(problems(low=-2), st.randoms(use_true_random=False))
def test_5_and_11_the_order_of_pixels_does_not_matter(problem: tuple[Tensor, Tensor], random: Any) -> None:
    errors, target = problem
    order = random.sample(range(len(errors)), len(errors))
    shuffled = extension(errors[order], target[order])
    assert shuffled == pytest.approx(extension(errors, target), abs=ROUNDING)


@given(problems(low=-2), st.integers(2, 4))
def test_5_repeating_every_pixel_changes_nothing(problem: tuple[Tensor, Tensor], times: int) -> None:
    errors, target = problem
    repeated = extension(errors.repeat(times), target.repeat(times))
    assert repeated == pytest.approx(extension(errors, target), abs=ROUNDING)


@given(problems())
def test_6_all_foreground_is_the_mean_and_all_background_the_maximum(problem: tuple[Tensor, Tensor]) -> None:
    errors, target = problem
    all_foreground = extension(errors, torch.ones_like(target))
    assert all_foreground == pytest.approx(float(errors.mean()), abs=ROUNDING)
    assert extension(errors, torch.zeros_like(target)) == float(errors.max())


@given(st.booleans(), st.floats(0, 10))
def test_6_one_pixel_is_its_error(foreground: bool, error: float) -> None:
    assert extension(torch.tensor([error], dtype=torch.float64), torch.tensor([foreground])) == error


@given(st.data())
def test_7_the_hinge_bounds_one_minus_iou(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    logits, target = data.draw(logit_maps((1, size))), data.draw(masks(size))
    wrong = (logits[0] > 0) ^ target
    assert float(lovasz_hinge(logits, target[None])) >= float(jaccard_loss(wrong, target)) - ROUNDING


@given(st.data())
def test_7_c_times_the_softmax_bounds_one_minus_iou_of_the_argmax(data: st.DataObject) -> None:
    num_classes = data.draw(st.integers(1, 5))
    logits = data.draw(logit_maps((2, num_classes, 3)))
    target = data.draw(label_maps((2, 3), num_classes))
    losses = lovasz_softmax(logits, target, classes="all", reduction="none")
    for c, loss in enumerate(losses.tolist()):
        wrong = (logits.argmax(1) == c) ^ (target == c)
        assert num_classes * loss >= float(jaccard_loss(wrong, target == c)) - ROUNDING


@given(problems(), st.integers(1, 4))
def test_8_background_entries_of_error_zero_change_nothing(problem: tuple[Tensor, Tensor], count: int) -> None:
    errors, target = problem
    padded = extension(torch.cat([errors.new_zeros(count), errors]), torch.cat([target.new_zeros(count), target]))
    assert padded == pytest.approx(extension(errors, target), abs=ROUNDING)


@given(problems(rows=2, low=-2))
def test_9_only_positive_errors_matter(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    errors, others, target = problem
    changed = torch.where(errors > 0, errors, -others.abs())
    assert extension(changed, target) == pytest.approx(extension(errors, target), abs=ROUNDING)


@given(problems(), st.sampled_from([0.25, 0.5, 1.0]))
def test_10_any_order_inside_bins_is_low_by_at_most_the_bin_width(problem: tuple[Tensor, Tensor], width: float) -> None:
    errors, target = problem
    binned = float(lovasz_weights((errors / width).floor(), target) @ errors)
    assert -ROUNDING <= extension(errors, target) - binned <= width + ROUNDING


@given(problems(), st.sampled_from([0.25, 0.5, 1.0]))
def test_10_bin_centres_are_off_by_at_most_half_a_bin(problem: tuple[Tensor, Tensor], width: float) -> None:
    errors, target = problem
    centres = ((errors / width).floor() + 0.5) * width
    assert abs(extension(errors, target) - extension(centres, target)) <= width / 2 + ROUNDING


@given(problems(), problems())
def test_10_histograms_of_parts_add_to_the_loss_of_the_whole(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> None:
    def histograms(errors: Tensor, target: Tensor) -> Tensor:
        bins = (8 * errors).long()
        return torch.stack([torch.bincount(bins[target == y], minlength=17) for y in (0, 1)])

    background, foreground = histograms(*one) + histograms(*other)
    levels = torch.arange(17, dtype=torch.float64) / 8
    errors = torch.cat([levels.repeat_interleave(background), levels.repeat_interleave(foreground)])
    target = torch.arange(len(errors)) >= background.sum()
    whole = extension(torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]]))
    assert extension(errors, target) == pytest.approx(whole, abs=ROUNDING)


# --- The losses are the extension of their errors


@given(st.data(), st.booleans(), st.sampled_from([None, 255]))
def test_hinge_of_every_mask_is_the_layer_cake_of_its_hinge_errors(
    data: st.DataObject, per_image: bool, ignore_index: int | None
) -> None:
    logits = data.draw(logit_maps((2, 2, 2)))
    target = data.draw(label_maps((2, 2, 2), 2, ignore_index=ignore_index))
    got = lovasz_hinge(logits, target, per_image=per_image, ignore_index=ignore_index, reduction="none")
    errors, valid = 1 - logits * (2.0 * (target == 1) - 1), target != 255
    rows = [(errors[b][valid[b]], target[b][valid[b]] == 1) for b in range(2)]
    if not per_image:
        rows = [(torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows]))]
    expected = [layer_cake(*row) for row in rows]
    assert got.flatten().tolist() == pytest.approx(expected, abs=ROUNDING)
    assert got.shape == ((2,) if per_image else ())


@given(st.data(), st.booleans(), st.sampled_from(["present", "all", [2, 0]]))
def test_softmax_of_every_class_is_the_layer_cake_of_its_errors(
    data: st.DataObject, per_image: bool, classes: Any
) -> None:
    logits = data.draw(logit_maps((2, 3, 2, 2)))
    target = data.draw(label_maps((2, 2, 2), 3, ignore_index=255))
    got = lovasz_softmax(logits, target, classes=classes, per_image=per_image, reduction="none")
    probabilities = logits.softmax(1)
    pictures = [[0], [1]] if per_image else [[0, 1]]
    expected = []
    for picture in pictures:
        valid = target[picture] != 255
        for c in range(3) if isinstance(classes, str) else classes:
            mask = target[picture][valid] == c
            errors = (mask.double() - probabilities[picture, c][valid]).abs()
            counts = mask.any() if classes == "present" else valid.any()
            expected.append(layer_cake(errors, mask) if counts else 0.0)
    assert got.flatten().tolist() == pytest.approx(expected, abs=ROUNDING)
    assert got.shape == ((2, got.shape[-1]) if per_image else got.shape[-1:])


def test_multilabel_hinge_takes_every_channel_as_a_mask_of_its_own() -> None:
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 2, (2, 3, 4, 5))
    got = lovasz_hinge(logits, target, multilabel=True, reduction="none")
    per_channel = [lovasz_hinge(logits[:, c], target[:, c], reduction="none") for c in range(3)]
    torch.testing.assert_close(got, torch.stack(per_channel, 1))
    pooled = lovasz_hinge(logits, target, multilabel=True, per_image=False, reduction="none")
    one_picture = [lovasz_hinge(logits[:, c], target[:, c], per_image=False) for c in range(3)]
    torch.testing.assert_close(pooled, torch.stack(one_picture))


def test_axes_are_not_scrambled_pixels_may_be_listed_in_any_layout() -> None:
    logits, target = torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 3, 5))
    as_points = lovasz_softmax(logits.movedim(1, -1).reshape(30, 4), target.reshape(30))
    torch.testing.assert_close(lovasz_softmax(logits, target), as_points)
    volume = lovasz_softmax(logits[:, :, None], target[:, None])
    torch.testing.assert_close(lovasz_softmax(logits, target), volume)


def test_relabelling_classes_together_with_channels_changes_nothing() -> None:
    """A loss that sorts class ids instead of the foreground of the class fails this."""
    logits, target, order = torch.randn(1, 19, 8, 8), torch.randint(0, 19, (1, 8, 8)), torch.randperm(19)
    relabelled = lovasz_softmax(logits[:, order], order.argsort()[target])
    torch.testing.assert_close(relabelled, lovasz_softmax(logits, target))


@given(st.data(), st.sampled_from([255, 1]))
def test_ignored_pixels_count_as_if_they_were_not_there(data: st.DataObject, ignore_index: int) -> None:
    """Also where the label to ignore is a class of its own."""
    logits = data.draw(logit_maps((1, 3, 8)))
    target = data.draw(label_maps((1, 8), 3, ignore_index=ignore_index))
    valid = target[0] != ignore_index
    got = lovasz_softmax(logits, target, ignore_index=ignore_index)
    torch.testing.assert_close(got, lovasz_softmax(logits[..., valid], target[:, valid], ignore_index=None))
    # A hinge that ignores label 1 has no foreground left.
    binary = target.clamp(max=1) if ignore_index > 1 else torch.zeros_like(target)
    binary = torch.where(valid, binary, ignore_index)
    got = lovasz_hinge(logits[:, 0], binary, ignore_index=ignore_index)
    torch.testing.assert_close(got, lovasz_hinge(logits[:, 0, valid], binary[:, valid]))


def test_a_picture_that_is_wholly_ignored_changes_no_mean() -> None:
    logits, target = torch.randn(2, 3, 4), torch.randint(0, 3, (2, 4))
    more_logits = torch.cat([logits, torch.randn(1, 3, 4)])
    more_target = torch.cat([target, torch.full((1, 4), 255)])
    for per_image in (True, False):
        expected = lovasz_softmax(logits, target, per_image=per_image)
        torch.testing.assert_close(lovasz_softmax(more_logits, more_target, per_image=per_image), expected)
    expected = lovasz_hinge(logits, logits > 0.3, multilabel=True)
    masks_ = torch.cat([(logits > 0.3).long(), torch.full((1, 3, 4), 255)])
    got = lovasz_hinge(more_logits, masks_, multilabel=True, ignore_index=255)
    torch.testing.assert_close(got, expected)


def test_an_ignore_index_that_the_dtype_cannot_hold_ignores_nothing() -> None:
    """In torch, uint8 156 equals -100, and uint8 0 equals 256."""
    logits, target = torch.randn(1, 200, 4), torch.tensor([[156, 0, 3, 3]])
    expected = lovasz_softmax(logits, target, ignore_index=None)
    for ignore_index in (-100, 256):
        got = lovasz_softmax(logits, target.to(torch.uint8), ignore_index=ignore_index)
        torch.testing.assert_close(got, expected)


def test_class_weights_make_a_weighted_mean_over_present_classes() -> None:
    logits, target = torch.randn(2, 4, 6), torch.tensor([[0, 1, 2, 0, 0, 1], [2, 1, 0, 0, 1, 1]])
    weight = torch.tensor([1.0, 2.0, 0.5, 100.0])
    losses = lovasz_softmax(logits, target, reduction="none")[:3]
    weighted = weight[:3] * losses
    torch.testing.assert_close(lovasz_softmax(logits, target, weight=weight), weighted.sum() / 3.5)
    torch.testing.assert_close(lovasz_softmax(logits, target, weight=weight, reduction="sum"), weighted.sum())
    got = lovasz_softmax(logits, target, weight=weight, reduction="none", classes=[2, 1])
    torch.testing.assert_close(got, weighted[[2, 1]])


def test_per_image_mean_is_the_mean_over_pictures_of_the_mean_over_their_classes() -> None:
    logits, target = torch.randn(2, 3, 6), torch.tensor([[0] * 6, [0, 1, 2, 0, 1, 2]])
    each = [lovasz_softmax(logits[b : b + 1], target[b : b + 1]) for b in range(2)]
    torch.testing.assert_close(lovasz_softmax(logits, target, per_image=True), torch.stack(each).mean())


def test_a_perfect_prediction_costs_nothing_and_a_reversed_one_everything() -> None:
    target = torch.tensor([[0, 1, 1, 0, 1]])
    sure = 20.0 * torch.stack([1 - target, target], 1) - 10
    assert float(lovasz_hinge(sure[:, 1], target)) == 0
    # exp(-20) of each pixel is what a logit difference of 20 leaves.
    assert float(lovasz_softmax(sure, target)) < 5e-9
    assert float(lovasz_hinge(-sure[:, 1], target)) == 11
    assert float(lovasz_softmax(-sure, target)) == pytest.approx(1)


# --- Numbers: large pictures, dtypes, memory layouts


def test_weights_do_not_vanish_at_four_million_pixels() -> None:
    """Float32 differences of the Jaccard curve lose 9 % of the gradient here, more if foreground is rare."""
    pixels = 2**22
    errors = torch.linspace(1, 0, pixels)
    for every in (2, 100):
        target = torch.arange(pixels) % every == 0
        got = lovasz_weights(errors, target).numpy()
        seen = np.cumsum(target.numpy(), dtype=np.float64)
        jaccard = 1 - (seen[-1] - seen) / (seen[-1] + np.arange(1, pixels + 1) - seen)
        expected = np.diff(jaccard, prepend=0.0)
        # The closed form rounds four times in float32; the differences in float64 are good to 1e-16 / 1e-9.
        big = expected > 1e-9
        assert big.mean() > 0.1
        assert np.abs(got[big] / expected[big] - 1).max() < 1e-6
        assert (got[:-every] > 0).all()


def test_counts_stay_exact_above_the_integers_of_float32() -> None:
    """Above 2^24 a float32 count skips odd numbers: the one foreground pixel left would become 0 or 2."""
    pixels = 2**24 + 5
    target = torch.ones(pixels, dtype=torch.bool)
    target[-2] = False
    weight = lovasz_weights(torch.zeros(()).expand(pixels), target)[-2]
    assert float(weight) * pixels * (pixels - 1) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, torch.uint16])
def test_any_label_dtype_gives_the_same_loss(dtype: torch.dtype) -> None:
    logits, target = torch.randn(2, 2, 7), torch.randint(0, 2, (2, 7))
    assert lovasz_hinge(logits[:, 0], target.to(dtype)) == lovasz_hinge(logits[:, 0], target)
    assert lovasz_softmax(logits, target.to(dtype)) == lovasz_softmax(logits, target)
    weights = lovasz_weights(logits[:, 0], target.to(dtype))
    assert torch.equal(weights, lovasz_weights(logits[:, 0], target))


def test_memory_layout_does_not_matter() -> None:
    logits, target = torch.randn(2, 5, 6, 3).permute(0, 3, 2, 1), torch.randint(0, 3, (2, 5, 6)).mT
    assert not logits.is_contiguous()
    assert lovasz_softmax(logits, target) == lovasz_softmax(logits.contiguous(), target.contiguous())
    got = lovasz_hinge(logits, logits > 1, multilabel=True)
    assert got == lovasz_hinge(logits.contiguous(), (logits > 1).contiguous(), multilabel=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_arithmetic_is_float32_at_least(dtype: torch.dtype) -> None:
    logits, target = torch.randn(1, 3, 50).to(dtype), torch.randint(0, 3, (1, 50))
    wide = torch.promote_types(dtype, torch.float32)
    for got, expected in [
        (lovasz_softmax(logits, target), lovasz_softmax(logits.to(wide), target)),
        (lovasz_hinge(logits[:, 0], target == 0), lovasz_hinge(logits[:, 0].to(wide), target == 0)),
    ]:
        assert got.dtype == wide
        assert got == expected
    weights = lovasz_weights(torch.linspace(1, 0, 2**20, dtype=dtype), torch.ones(2**20, dtype=torch.bool))
    assert weights.dtype == wide
    assert (weights > 0).all()


def test_nan_is_not_hidden() -> None:
    logits = torch.tensor([[1.0, math.nan, -1.0]])
    assert lovasz_hinge(logits, torch.tensor([[1, 0, 0]])).isnan()
    assert lovasz_softmax(torch.stack([logits, -logits], 1), torch.tensor([[1, 0, 0]])).isnan()


# --- Modules


@pytest.mark.parametrize(("module", "function"), [(LovaszHinge, lovasz_hinge), (LovaszSoftmax, lovasz_softmax)])
def test_a_module_takes_the_options_of_its_function(module: type[nn.Module], function: Any) -> None:
    options = list(inspect.signature(function).parameters.values())[2:]
    assert list(inspect.signature(module).parameters.values()) == options
    assert all(f"{option.name}=" in repr(module()) for option in options)


def test_modules_hand_every_option_on() -> None:
    logits, target = torch.randn(2, 3, 8), torch.randint(0, 2, (2, 8))
    target[:, 0] = 7
    hinge = {"per_image": False, "multilabel": True, "ignore_index": 7, "reduction": "none"}
    many = target.unsqueeze(1).expand(-1, 3, -1)
    got = LovaszHinge(**hinge, impl="reference", method="sort")(logits, many)
    torch.testing.assert_close(got, lovasz_hinge(logits, many, **hinge))
    softmax = {"classes": [1, 0], "per_image": True, "ignore_index": 7, "reduction": "none"}
    softmax["weight"] = torch.tensor([1.0, 3.0, 2.0])
    got = LovaszSoftmax(**softmax, impl="reference", method="sort")(logits, target)
    torch.testing.assert_close(got, lovasz_softmax(logits, target, **softmax))


def test_class_weights_travel_with_the_module() -> None:
    loss = LovaszSoftmax(weight=torch.tensor([1.0, 2.0]))
    assert torch.equal(loss.state_dict()["weight"], torch.tensor([1.0, 2.0]))
    assert loss.double().weight.dtype == torch.float64
    assert "weight=tensor((2,))" in repr(loss)


# --- Errors

LOGITS, TARGET = torch.zeros(1, 3, 4), torch.zeros(1, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda: lovasz_softmax(LOGITS, TARGET[:, :3]),
            ValueError,
            r"target must have shape \(1, 4\) to match input without its class axis, got \(1, 3\)",
        ),
        (
            lambda: lovasz_softmax(torch.zeros(3), TARGET),
            ValueError,
            r"input must have shape \(B, C, \*spatial\), got \(3,\)\. A single picture needs a batch axis",
        ),
        (
            lambda: lovasz_hinge(torch.zeros(3), TARGET, multilabel=True),
            ValueError,
            r"input must have shape \(B, C, \*spatial\), got \(3,\)",
        ),
        (
            lambda: lovasz_hinge(torch.tensor(1.0), TARGET),
            ValueError,
            r"input must have shape \(B, \*spatial\), got \(\)",
        ),
        (
            lambda: lovasz_hinge(LOGITS, TARGET),
            ValueError,
            r"target must have shape \(1, 3, 4\) to match input, got \(1, 4\)",
        ),
        (
            lambda: lovasz_weights(torch.tensor(1.0), torch.tensor(1)),
            ValueError,
            r"errors must have shape \(\.\.\., P\), got \(\)",
        ),
        (
            lambda: lovasz_weights(torch.zeros(2), torch.zeros(3).long()),
            ValueError,
            r"target must have shape \(2,\) to match errors, got \(3,\)",
        ),
        (
            lambda: lovasz_softmax(LOGITS.long(), TARGET),
            TypeError,
            r"input must be a floating point tensor, got torch\.int64\. Convert it with \.float\(\)",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET.float()),
            TypeError,
            r"target must hold integer or boolean labels, got torch\.float32\. Convert it with \.long\(\)",
        ),
        (
            lambda: lovasz_hinge([0.0], TARGET),  # type: ignore[arg-type]
            TypeError,
            r"input must be a torch\.Tensor, got list",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET.to("meta")),
            ValueError,
            r"target must be on the device of input \(cpu\), got meta\. Move it with \.to\('cpu'\)",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET + 3),
            ValueError,
            r"target must hold labels from 0 to 2 or ignore_index=255, got 4 pixels with 3\. Map the labels",
        ),
        (
            lambda: lovasz_softmax(LOGITS, torch.tensor([[-1, 0, 9, 255]]), ignore_index=None),
            ValueError,
            r"target must hold labels from 0 to 2, got 3 pixels with -1, 9, 255",
        ),
        (
            lambda: lovasz_hinge(LOGITS[:, 0], torch.tensor([[0, 1, 255, 2]]), ignore_index=255),
            ValueError,
            r"target must hold labels from 0 to 1 or ignore_index=255, got 1 pixels with 2",
        ),
        (
            lambda: lovasz_weights(torch.zeros(2), torch.tensor([0, 2])),
            ValueError,
            r"target must hold labels from 0 to 1, got 1 pixels with 2",
        ),
        (
            lambda: lovasz_hinge(LOGITS[:, 0], TARGET, reduction="max"),  # type: ignore[arg-type]
            ValueError,
            r"reduction must be one of 'mean', 'sum', 'none', got 'max'",
        ),
        (
            lambda: lovasz_hinge(LOGITS[:, 0], TARGET, impl="cuda"),
            ValueError,
            r"impl must be one of 'auto', 'reference', 'numba', 'triton', got 'cuda'",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET, method="bins"),
            ValueError,
            r"method must be one of 'auto', 'sort', 'binned', got 'bins'",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET, ignore_index=1.0),  # type: ignore[arg-type]
            TypeError,
            r"ignore_index must be an int or None, got float",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET, classes="some"),  # type: ignore[arg-type]
            ValueError,
            r"classes must be one of 'present', 'all', got 'some'",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET, classes=[0.5]),  # type: ignore[list-item]
            TypeError,
            r'classes must be "present", "all" or a sequence of class ids \(int\), got \[0\.5\]',
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET, classes=[]),
            ValueError,
            r"classes must name at least one class, each once, 0 or above, got \[\]",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET, classes=[1, 1]),
            ValueError,
            r"classes must name at least one class, each once, 0 or above, got \[1, 1\]",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET, classes=[3]),
            ValueError,
            r"classes must be below the 3 channels of input, got \[3\]",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET, weight=torch.ones(2)),
            ValueError,
            r"weight must have shape \(3,\) to match the channels of input, got \(2,\)",
        ),
        (
            lambda: lovasz_softmax(LOGITS, TARGET, weight=torch.tensor([1.0, -1.0, math.nan])),
            ValueError,
            r"weight must be finite, 0 or above, got \[-1\.0, nan\]",
        ),
        (
            lambda: LovaszSoftmax(weight=torch.ones(3, dtype=torch.int64)),
            TypeError,
            r"weight must be a floating point tensor, got torch\.int64",
        ),
        (
            lambda: LovaszHinge(reduction="max"),  # type: ignore[arg-type]
            ValueError,
            r"reduction must be one of",
        ),
    ],
)
def test_bad_arguments_fail_clearly(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()
