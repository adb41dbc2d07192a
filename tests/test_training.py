"""Training: views keep pictures and labels together, and a run is the same whether or not it was cut off."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from lovasz_embed.formats import Sample
from lovasz_embed.hierarchy import HierarchicalLoss, HierarchicalLovaszHinge
from lovasz_embed.model import ModelConfig, PanopticEmbedder
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.training import (
    Progress,
    TrainConfig,
    View,
    evaluate,
    fit,
    fit_class_means,
    predict,
    random_view,
    whole,
)
from lovasz_embed.training._batches import Batches
from lovasz_embed.training._checkpoint import Checkpoints

VOID = 255
FEW = TrainConfig(steps=6, batch=2, crop=16, warmup=2, scale=1.3, turn=True, log_every=1, checkpoint_every=3)


def tiny(seed: int = 0, **options: Any) -> PanopticEmbedder:
    torch.manual_seed(seed)
    config = ModelConfig(classes=("floor", "square"), things=(1,), widths=(4, 8))
    return PanopticEmbedder(replace(config, **options))


def squares(number: int) -> Sample:
    """Return a grey picture of 32 × 32 pixels with two light rectangles, the instances 1 and 2."""
    rng = np.random.default_rng(number)
    image, instance = np.full((32, 32, 3), 40, np.uint8), np.zeros((32, 32), np.int32)
    for identifier, left in ((1, 2), (2, 18)):
        top, side = rng.integers(2, 18), rng.integers(8, 12)
        part = (slice(top, top + side), slice(left, left + side))
        image[part], instance[part] = 200, identifier
    return Sample(f"squares{number}", image, (instance > 0).astype(np.uint8), instance)


def truth(sample: Sample) -> PanopticResult:
    assert sample.semantic is not None
    assert sample.instance is not None
    semantic, instance = torch.from_numpy(sample.semantic)[None], torch.from_numpy(sample.instance)[None]
    return PanopticResult.from_maps(semantic, instance, things={1})


PICTURES = [squares(number) for number in range(4)]


# --- views


def coordinates_view(height: int, width: int) -> View:
    """Return a picture whose channels are row and column, and whose labels say the same."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.stack([rows, columns, torch.ones_like(rows)]).float()
    return View(picture, rows % VOID, rows * width + columns + 1, (rows + columns) % 2 == 0)


@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    size=st.integers(1, 20),
    scale=st.sampled_from([1.0, 1.6, 3.0]),
    turn=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_picture_and_labels_move_together(
    height: int, width: int, size: int, scale: float, turn: bool, seed: int
) -> None:
    whole_view = coordinates_view(height, width)
    view = random_view(whole_view, np.random.default_rng(seed), size=size, scale=scale, turn=turn)
    assert [tuple(part.shape[-2:]) for part in view] == [(size, size)] * 4
    inside = view.semantic != VOID
    number = view.instance[inside] - 1
    row, column = number // width, number % width
    assert torch.equal(view.semantic[inside], row)
    assert torch.equal(view.crowd[inside], (row + column) % 2 == 0)
    # A label is that of the nearest pixel, so half a pixel off at most; at the edges of a picture that shrinks three
    # times, the mean over what one pixel covers moves inwards by another quarter. One whole pixel would be a mistake.
    off = (view.picture[:2, inside] - torch.stack([row, column])).abs()
    assert (off <= (0 if scale == 1 else 0.75)).all()
    outside = ~inside
    assert (view.instance[outside] == 0).all()
    assert not view.crowd[outside].any()
    assert (view.picture[:, outside] == 0).all()


def test_every_view_shows_as_much_of_the_picture_as_it_can() -> None:
    rng, picture = np.random.default_rng(0), coordinates_view(10, 30)
    for _ in range(20):
        assert int((random_view(picture, rng, size=16).semantic != VOID).sum()) == 10 * 16


@pytest.mark.parametrize(("turn", "ways"), [(False, 2), (True, 8)])
def test_views_are_mirrored_and_where_allowed_turned(turn: bool, ways: int) -> None:
    rng, picture = np.random.default_rng(0), coordinates_view(4, 4)
    seen = {tuple(random_view(picture, rng, size=4, turn=turn).instance.flatten().tolist()) for _ in range(200)}
    assert len(seen) == ways


def test_exposure_changes_the_picture_and_no_label() -> None:
    picture = whole(squares(0))
    plain = random_view(picture, np.random.default_rng(7), size=32)
    exposed = random_view(picture, np.random.default_rng(7), size=32, jitter=0.5)
    assert all(torch.equal(a, b) for a, b in zip(plain[1:], exposed[1:], strict=True))
    assert not torch.allclose(plain.picture, exposed.picture, atol=0.05)


@pytest.mark.parametrize("identifier", [2**24 + 1, 2**31 - 1, 2**53 + 1])
def test_huge_ids_survive_a_view(identifier: int) -> None:
    view = coordinates_view(8, 8)._replace(instance=torch.full((8, 8), identifier))
    turned = random_view(view, np.random.default_rng(3), size=8, scale=2.0, turn=True)
    assert set(turned.instance.flatten().tolist()) <= {0, identifier}
    assert identifier in turned.instance


def test_a_view_depends_on_its_generator_alone() -> None:
    first, again = (
        random_view(whole(squares(0)), np.random.default_rng(5), size=20, scale=2.0, turn=True, jitter=0.4)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_view_leaves_the_picture_as_it_was() -> None:
    picture = whole(squares(0))
    before = [part.clone() for part in picture]
    random_view(picture, np.random.default_rng(0), size=64, scale=2.0, turn=True, jitter=1.0)
    assert all(torch.equal(a, b) for a, b in zip(picture, before, strict=True))


def test_maps_that_cannot_be_written_to_are_read() -> None:
    sample = replace(squares(0), crowd=np.zeros((32, 32), bool))
    for array in (sample.image, sample.semantic, sample.instance, sample.crowd):
        assert array is not None
        array.flags.writeable = False
    assert whole(sample).crowd.dtype == torch.bool


def test_a_picture_without_labels_fails_clearly() -> None:
    with pytest.raises(ValueError, match="sample must have semantic and instance labels, got none"):
        whole(replace(squares(0), instance=None))


@pytest.mark.parametrize("name", ["semantic", "instance", "crowd"])
def test_labels_of_another_size_fail_clearly(name: str) -> None:
    labels: Any = np.zeros((32, 31), np.uint8)
    text = rf"sample.{name} must have the picture's shape \(32, 32\), got \(32, 31\)"
    with pytest.raises(ValueError, match=text):
        whole(replace(squares(0), **{name: labels}))


# --- the loop


def same_weights(a: PanopticEmbedder, b: PanopticEmbedder) -> bool:
    there, here = a.state_dict(), b.state_dict()
    return there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there)


def logged(run: Path) -> list[dict[str, float]]:
    """Return the log without the one column that tells two equal runs apart."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def stop_after(step: int) -> Any:
    """Return a callback that cuts a run off as ctrl-C would."""

    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return on_step


def test_training_learns_what_is_easy() -> None:
    losses: list[float] = []
    config = TrainConfig(steps=60, batch=4, crop=32, warmup=5, jitter=0.1, learning_rate=1e-2)
    model = fit(tiny(), PICTURES, config, on_step=lambda progress: losses.append(progress.loss))
    unseen = [squares(number) for number in range(100, 108)]
    quality = evaluate(predict(model, [s.image for s in unseen]), map(truth, unseen), classes=2, things={1})
    assert np.mean(losses[-5:]) < 0.2 * losses[0]
    assert quality.pq_things > 0.9


def test_the_loss_looks_at_a_lattice_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    forward = HierarchicalLovaszHinge.forward

    def spy(self: HierarchicalLovaszHinge, embedding: torch.Tensor, *args: Any) -> HierarchicalLoss:
        # The last two dimensions are positions, ten pixels a unit, plus small offsets: their least is the phase.
        seen.append(tuple(embedding.shape[2:]))
        phases.add(round(10 * float(embedding.detach()[:, -1].amin())))
        return forward(self, embedding, *args)

    phases: set[int] = set()
    monkeypatch.setattr(HierarchicalLovaszHinge, "forward", spy)
    model = tiny()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    fit(model, PICTURES, replace(FEW, learning_rate=1e-9, loss_stride=4))
    assert set(seen) == {(4, 4)}
    assert phases <= {0, 1, 2, 3}
    assert len(phases) > 1


def test_the_loss_knows_the_mean_of_a_category_from_the_step_that_first_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, known = [], []
    forward = HierarchicalLovaszHinge.forward

    def spy(self: HierarchicalLovaszHinge, embedding: torch.Tensor, levels: Any, means: torch.Tensor) -> Any:
        shown.append(set(levels[0].labels.unique().tolist()) - {-2})
        known.append(set((~means.isnan().any(1)).nonzero()[:, 0].tolist()))
        return forward(self, embedding, levels, means)

    monkeypatch.setattr(HierarchicalLovaszHinge, "forward", spy)
    floor = squares(0)
    floor = replace(floor, semantic=np.zeros_like(floor.semantic), instance=np.zeros_like(floor.instance))
    fit(tiny(), [floor] * 7 + [squares(1)], replace(FEW, batch=1, steps=16))
    assert {0} in shown  # some steps show the floor alone
    assert known == [set().union(*shown[: step + 1]) for step in range(len(shown))]
    assert known[-1] == {0, 1}


def test_a_step_looks_at_every_place_in_the_cells_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a regular lattice of the head's stride one place alone would learn."""
    places: list[torch.Tensor] = []
    forward = PanopticEmbedder.forward

    def spy(self: PanopticEmbedder, picture: torch.Tensor, **options: Any) -> torch.Tensor:
        if "pixels" in options:
            places.append(torch.stack([lines % 4 for lines in options["pixels"]]))
        return forward(self, picture, **options)

    monkeypatch.setattr(PanopticEmbedder, "forward", spy)
    fit(tiny(stride=4), PICTURES, replace(FEW, steps=2, crop=128, loss_stride=4))
    assert [sorted(line.unique().tolist()) for step in places for line in step] == [[0, 1, 2, 3]] * 4


@pytest.mark.parametrize("cut", [2, 3, 5])  # before the first checkpoint, right after it, and later
def test_a_run_cut_off_and_resumed_is_the_uninterrupted_one(tmp_path: Path, cut: int) -> None:
    whole_run = fit(tiny(), PICTURES, FEW, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), PICTURES, FEW, out=tmp_path / "cut", on_step=stop_after(cut))
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    with (tmp_path / "cut" / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # the line that a power failure leaves
    # What a checkpoint holds must not come from the model given, nor from torch's random numbers.
    model = tiny(seed=0 if cut < 3 else 1)
    torch.manual_seed(12345)
    resumed = fit(model, PICTURES, FEW, out=tmp_path / "cut", resume=True)
    assert same_weights(resumed, whole_run)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert [record["step"] for record in logged(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]


def test_a_run_cut_off_while_it_takes_the_class_means_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_run = fit(tiny(), PICTURES, FEW)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["lovasz_embed.training.fit"], "fit_class_means", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(), PICTURES, FEW, out=tmp_path)
    assert same_weights(fit(tiny(seed=1), PICTURES, FEW, out=tmp_path, resume=True), whole_run)


def test_a_run_cut_off_before_its_last_scoring_is_scored_and_one_that_ended_is_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(_: PanopticEmbedder) -> dict[str, float | None]:
        return {"pq": 0.5}

    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PanopticEmbedder, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(), PICTURES, FEW, out=tmp_path, score=score, score_every=2)
    assert steps() == [2, 4]
    for _ in range(2):
        fit(tiny(), PICTURES, FEW, out=tmp_path, score=score, score_every=2, resume=True)
        assert steps() == [2, 4, 6]


def test_what_a_run_leaves_is_complete(tmp_path: Path) -> None:
    model = fit(tiny(), PICTURES, FEW, out=tmp_path / "new" / "run")
    files = {file.name for file in (tmp_path / "new" / "run").iterdir()}
    assert files == {
        "checkpoint.pt",
        "checkpoint-before.pt",
        "config.json",
        "log.jsonl",
        "model.safetensors",
        "train.json",
    }
    assert TrainConfig.load(tmp_path / "new" / "run" / "train.json") == FEW
    assert same_weights(PanopticEmbedder.from_pretrained(tmp_path / "new" / "run"), model)


def test_starting_again_forgets_the_checkpoint_and_the_log_but_keeps_the_model_until_the_end(tmp_path: Path) -> None:
    first = fit(tiny(), PICTURES, FEW, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(seed=1), PICTURES, FEW, out=tmp_path, on_step=stop_after(2))
    assert not (tmp_path / "checkpoint.pt").exists()
    assert [record["step"] for record in logged(tmp_path)] == [1, 2]
    assert same_weights(PanopticEmbedder.from_pretrained(tmp_path), first)


# Newer Pythons warn wherever a process with threads forks, as every DataLoader with workers does.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_change_no_bit_and_may_change_on_the_way(tmp_path: Path) -> None:
    alone = fit(tiny(), PICTURES, FEW)
    assert same_weights(fit(tiny(), PICTURES, replace(FEW, workers=1)), alone)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), PICTURES, FEW, out=tmp_path, on_step=stop_after(4))
    resumed = fit(tiny(seed=1), PICTURES, replace(FEW, workers=1), out=tmp_path, resume=True)
    assert same_weights(resumed, alone)


def test_the_seed_alone_decides_about_the_views() -> None:
    def weights(seed: int, torch_seed: int) -> PanopticEmbedder:
        model = tiny()
        torch.manual_seed(torch_seed)
        return fit(model, PICTURES, replace(FEW, steps=2, seed=seed))

    assert same_weights(weights(3, 0), weights(3, 1))
    assert not same_weights(weights(3, 0), weights(4, 0))


@pytest.mark.parametrize(("sampling", "share"), [("pictures", 1 / 2), ("pixels", 3 / 4)])
def test_pictures_or_pixels_are_drawn_evenly(sampling: str, share: float) -> None:
    small, large = (
        Sample(str(n), np.full((8, 8 * n, 3), n, np.uint8), *(np.full((8, 8 * n), n - 1),) * 2) for n in (1, 3)
    )
    config = TrainConfig(steps=1, batch=2000, crop=8, jitter=0.0, sampling=sampling)
    categories = Batches([small, large], config, classes=3)[0].semantic[:, 0, 0]
    # Of 2000 draws: five standard deviations are 0.056.
    assert abs(float((categories == 2).float().mean()) - share) < 0.056


def test_a_data_set_that_knows_its_sizes_is_not_decoded_for_them() -> None:
    class Sized(list[Sample]):
        def size(self, index: int) -> tuple[int, int]:
            return 16, 16

        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("decoded")

    Batches(Sized([squares(0)]), TrainConfig(sampling="pixels"), classes=2)


def test_a_sampling_that_there_is_not_fails_clearly() -> None:
    with pytest.raises(ValueError, match="sampling must be one of 'pictures', 'pixels'"):
        TrainConfig(sampling="nuclei")


def test_amp_is_honoured_and_learns_the_same_to_its_precision() -> None:
    def losses(amp: bool) -> list[float]:
        kept: list[float] = []
        fit(tiny(), PICTURES, replace(FEW, amp=amp), on_step=lambda progress: kept.append(progress.loss))
        return kept

    with_amp, without = losses(True), losses(False)
    assert with_amp != without
    assert with_amp == pytest.approx(without, rel=0.1)  # bfloat16 has 8 bits


def test_the_class_means_are_those_of_whole_pictures() -> None:
    model = fit(tiny(), PICTURES, replace(FEW, amp=False))
    views = [whole(picture) for picture in PICTURES]
    embedding = torch.stack([model(view.picture[None])[0] for view in views]).double()
    semantic = torch.stack([view.semantic for view in views])
    for category in (0, 1):
        mean = embedding.movedim(1, -1)[semantic == category].mean(0)
        # float32 convolutions of one picture and of four, one of them in another memory layout
        torch.testing.assert_close(model.ncm.means[category].double(), mean, rtol=0, atol=1e-5)
    assert int(model.ncm.counts.sum()) == 4 * 32 * 32


def test_class_means_are_taken_anew() -> None:
    model, views = tiny(), [whole(squares(0))]
    fit_class_means(model, views, amp=False)
    fit_class_means(model.train(), views, amp=False)
    assert int(model.ncm.counts.sum()) == 32 * 32
    assert not model.training


def test_the_limit_in_minutes_ends_a_run_and_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    monkeypatch.setattr(sys.modules["lovasz_embed.training.fit"], "time", clock)
    told: list[Progress] = []
    fit(tiny(), PICTURES, replace(FEW, steps=1000, minutes=5 / 60), on_step=told.append)
    assert [(progress.step, progress.seconds) for progress in told] == [(n, float(n)) for n in range(1, 6)]
    assert [progress.fraction for progress in told] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_seconds_of_a_resumed_run_go_on(tmp_path: Path) -> None:
    fit(tiny(), PICTURES, FEW, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), PICTURES, replace(FEW, minutes=1e6), out=tmp_path, on_step=stop_after(4))
    told: list[Progress] = []
    fit(tiny(), PICTURES, replace(FEW, minutes=1e6), out=tmp_path, resume=True, on_step=told.append)
    saved = [json.loads(line)["seconds"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert told[0].step == 4
    assert told[0].seconds > saved[2]
    assert saved == sorted(saved)


def test_a_writer_receives_every_logged_number() -> None:
    received: list[tuple[str, float, int]] = []
    writer = SimpleNamespace(add_scalar=lambda tag, value, step: received.append((tag, value, step)))
    fit(tiny(), PICTURES, replace(FEW, log_every=2), writer=writer)
    assert {step for _, _, step in received} == {2, 4, 6}
    assert {tag for tag, _, _ in received} == {
        f"train/{name}" for name in ("loss", "category", "instance", "ncm", "learning_rate", "seconds", "skipped")
    }
    assert all(np.isfinite(value) for _, value, _ in received)


def test_the_rate_warms_up_and_then_falls_to_zero() -> None:
    rates: dict[int, float] = {}

    def keep(tag: str, value: float, step: int) -> None:
        if tag == "train/learning_rate":
            rates[step] = value

    fit(tiny(), PICTURES, replace(FEW, learning_rate=1.0, warmup=2), writer=SimpleNamespace(add_scalar=keep))
    cosine = [0.5 + 0.5 * np.cos(np.pi * step / 6) for step in range(6)]
    assert list(rates.values()) == pytest.approx([0.5 * cosine[0], *cosine[1:]])


def test_the_library_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit(tiny(), PICTURES, FEW, out=tmp_path)
    assert capfd.readouterr() == ("", "")


# --- what fails


def test_an_empty_data_set_fails_clearly() -> None:
    with pytest.raises(ValueError, match="pictures must hold at least one picture, got none"):
        fit(tiny(), [], FEW)


@pytest.mark.parametrize("value", [2, 254])
def test_a_category_out_of_range_fails_clearly(value: int) -> None:
    labels = np.array([[0, value], [VOID, 1]], np.uint8).repeat(16, 0).repeat(16, 1)
    picture = replace(squares(0), semantic=labels)
    text = f"picture 0 must have categories in 0 ... 1, or 255 for void, got 0 ... {value}"
    with pytest.raises(ValueError, match=re.escape(text)):
        fit(tiny(), [picture], FEW)


def test_a_picture_without_labels_ends_a_run_clearly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sample must have semantic and instance labels"):
        fit(tiny(), [replace(squares(0), semantic=None)], FEW, out=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_pictures_without_a_labelled_pixel_train_nothing_and_predicting_fails_clearly() -> None:
    void = replace(squares(0), semantic=np.full((32, 32), VOID, np.uint8))
    model = fit(tiny(), [void], FEW)
    with pytest.raises(ValueError, match=r"model must have class means, got none\. Fit it"):
        next(predict(model, [void.image]))


@pytest.mark.filterwarnings("ignore:the (loss|gradient) of step:UserWarning")
def test_a_diverging_run_fails_clearly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        fit(tiny(), PICTURES, replace(FEW, steps=50, learning_rate=1e30, warmup=0), out=tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def spoil_loss(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """Make the loss NaN at these calls of it, from 0."""
    sound, call = HierarchicalLovaszHinge.forward, itertools.count()

    def forward(self: HierarchicalLovaszHinge, *arguments: Any) -> HierarchicalLoss:
        result = sound(self, *arguments)
        return result._replace(loss=result.loss * torch.nan) if next(call) in calls else result

    monkeypatch.setattr(HierarchicalLovaszHinge, "forward", forward)


def test_a_loss_that_is_not_a_number_skips_its_step_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_loss(monkeypatch, {1, 2, 4})
    seen: list[Progress] = []
    weights: list[torch.Tensor] = []
    model = tiny()

    def look(progress: Progress) -> None:
        seen.append(progress)
        weights.append(model.head.weight.detach().clone())

    with pytest.warns(UserWarning, match="the step is skipped") as told:
        fit(model, PICTURES, replace(FEW, max_skipped=2), out=tmp_path, on_step=look)
    assert str(told[-1].message) == "the loss of step 4 is nan: the step is skipped, the 3. of this run"
    assert [progress.skipped for progress in seen] == [0, 1, 2, 2, 3, 3]
    assert [math.isnan(progress.loss) for progress in seen] == [False, True, True, False, True, False]
    changed = [not torch.equal(one, other) for one, other in itertools.pairwise(weights)]
    assert changed == [False, False, True, False, True]
    assert [record["step"] for record in logged(tmp_path)] == [1, 4, 6]
    assert logged(tmp_path)[-1]["skipped"] == 3


def test_a_skipped_step_is_remembered_by_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(FEW, checkpoint_every=1, max_skipped=2)
    spoil_loss(monkeypatch, {0, 1, 2})
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(KeyboardInterrupt):
        fit(tiny(), PICTURES, config, out=tmp_path, on_step=stop_after(2))
    with pytest.raises(ValueError, match=r"the loss of step 2 must be finite.*; 2 steps before it"):
        fit(tiny(), PICTURES, replace(config, max_skipped=1), out=tmp_path, resume=True)


def test_too_many_skipped_steps_end_the_run_and_leave_their_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_loss(monkeypatch, set(range(100)))
    text = r"the loss of step 2 must be finite, got nan\. Lower learning_rate or clip; 2 steps before it were skipped\."
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match=text) as failure:
        fit(tiny(), PICTURES, replace(FEW, max_skipped=2), out=tmp_path)
    assert str(failure.value).endswith(f"Its batch is in {tmp_path / 'failed-step.safetensors'}.")
    assert not (tmp_path / "checkpoint.pt").exists()
    with safe_open(tmp_path / "failed-step.safetensors", "pt") as file:
        assert file.metadata() == {"what": "the loss of step 2", "got": "nan", "step": "2"}
        expected = Batches(PICTURES, FEW, 2)[2]
        assert all(torch.equal(file.get_tensor(name), getattr(expected, name)) for name in expected._fields)


def test_an_embedding_that_is_not_a_number_skips_its_step(tmp_path: Path) -> None:
    """The loss itself refuses such an embedding."""
    model = tiny()
    calls = itertools.count()
    model.head.register_forward_hook(lambda *a: a[-1] * torch.inf if next(calls) == 2 else None)
    with pytest.warns(UserWarning, match="the loss of step 2 is nan: the step is skipped, the 1. of this run"):
        fit(model, PICTURES, FEW, out=tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_gradient_that_is_not_a_number_fails_clearly_and_spoils_no_weight(tmp_path: Path) -> None:
    model = tiny()
    model.head.weight.register_hook(lambda gradient: gradient * torch.nan)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="the gradient of step 0 must be finite, got nan"):
        fit(model, PICTURES, replace(FEW, checkpoint_every=1, max_skipped=0), out=tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_checkpoint_of_other_options_fails_clearly(tmp_path: Path) -> None:
    fit(tiny(), PICTURES, replace(FEW, clip=2.5), out=tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    text = r"checkpoint.pt must be a checkpoint of the same configuration, got clip=2.5 there and 0.1 now, seed=0 there"
    with pytest.raises(ValueError, match=text):
        fit(tiny(), PICTURES, replace(FEW, seed=9, clip=0.1), out=tmp_path, resume=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "text"),
    [({"widths": (4, 12)}, r"widths=\(4, 8\) there"), ({"classes": ("floor", "circle")}, "classes=")],
)
def test_a_checkpoint_of_another_model_fails_clearly(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    fit(tiny(), PICTURES, FEW, out=tmp_path)
    with pytest.raises(ValueError, match=f"checkpoint.pt must be a checkpoint of the same model, got {text}"):
        fit(tiny(**options), PICTURES, FEW, out=tmp_path, resume=True)


def damaged(content: bytes, how: str) -> bytes:
    """Return bytes that a bad disk or a cut-off copy might leave of a checkpoint."""
    if how == "flip":
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"empty": b"", "other": b"no checkpoint", "half": content[: len(content) // 2]}[how]


@pytest.mark.parametrize("how", ["empty", "other", "half", "flip"])
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(tmp_path: Path, how: str) -> None:
    whole_run = fit(tiny(), PICTURES, FEW, out=tmp_path)
    newest = tmp_path / "checkpoint.pt"
    newest.write_bytes(damaged(newest.read_bytes(), how))
    text = r"checkpoint.pt is damaged \(.+\): going on from step 3 in checkpoint-before.pt"
    with pytest.warns(UserWarning, match=text):
        resumed = fit(tiny(seed=1), PICTURES, FEW, out=tmp_path, resume=True)
    assert same_weights(resumed, whole_run)


def test_a_checkpoint_that_moved_halfway_is_found(tmp_path: Path) -> None:
    """What a kill between the two renames leaves."""
    whole_run = fit(tiny(), PICTURES, FEW, out=tmp_path)
    (tmp_path / "checkpoint.pt").replace(tmp_path / "checkpoint-before.pt")
    assert same_weights(fit(tiny(seed=1), PICTURES, FEW, out=tmp_path, resume=True), whole_run)


@pytest.mark.parametrize("how", ["empty", "other", "half", "flip"])
def test_where_all_checkpoints_are_damaged_resuming_fails_clearly(tmp_path: Path, how: str) -> None:
    fit(tiny(), PICTURES, FEW, out=tmp_path)
    for name in ("checkpoint.pt", "checkpoint-before.pt"):
        (tmp_path / name).write_bytes(damaged((tmp_path / name).read_bytes(), how))
    with pytest.raises(ValueError, match=r"checkpoint.pt must be what `fit` wrote, got \w+\. Remove it"):
        fit(tiny(), PICTURES, FEW, out=tmp_path, resume=True)


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(tmp_path: Path) -> None:
    fit(tiny(), PICTURES, FEW, out=tmp_path)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.before.unlink()
    sound = checkpoints.newest.read_bytes()
    loaded = checkpoints.load(torch.device("cpu"))
    assert loaded is not None
    rng = np.random.default_rng(0)
    noticed = 0
    for bit in rng.choice(8 * len(sound), 200, replace=False):
        spoilt = bytearray(sound)
        spoilt[bit // 8] ^= 1 << (bit % 8)
        checkpoints.newest.write_bytes(spoilt)
        try:
            there = checkpoints.load(torch.device("cpu"))
        except ValueError:
            noticed += 1
            continue
        # A bit of padding between the parts of the archive, of a date, of a flag: nothing that is read.
        assert there is not None
        assert same_content(there[1], loaded[1])
    assert noticed > 100


def same_content(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(-1.0), other.nan_to_num(-1.0))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_content(one[key], other[key]) for key in one)
    return one == other


def test_what_killed_processes_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.123-0a1b2c3d").write_bytes(b"half")
    (tmp_path / ".model.safetensors.123-0a1b2c3d").write_bytes(b"half")
    (tmp_path / ".mine").write_bytes(b"mine")
    fit(tiny(), PICTURES, FEW, out=tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == [".mine"]


def test_a_full_disk_is_reported_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))  # type: ignore[attr-defined]
    with pytest.raises(OSError, match=r"must have room for three checkpoints of \d+ MB, got 0 MB\. Choose another"):
        fit(tiny(), PICTURES, FEW, out=tmp_path, on_step=stop_after(1))


def test_a_disk_that_fills_up_ends_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_run = fit(tiny(), PICTURES, FEW)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(progress: Progress) -> None:
        if progress.step == 3:
            patch.setattr(os, "fsync", full)

    with monkeypatch.context() as patch:
        text = r"checkpoint.pt must be writable, got No space left on device\. Make room and resume from checkpoint.pt"
        with pytest.raises(OSError, match=text):
            fit(tiny(), PICTURES, FEW, out=tmp_path, on_step=fill)
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]
    assert same_weights(fit(tiny(seed=1), PICTURES, FEW, out=tmp_path, resume=True), whole_run)


def test_a_folder_that_cannot_be_written_is_reported_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint.pt must be writable, got Not a directory"):
        fit(tiny(), PICTURES, FEW, out=tmp_path / "file" / "run", on_step=stop_after(1))


def test_two_trainings_into_one_folder_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", itertools.count(0, 6).__next__)  # nobody wants to wait for ten seconds

    def another(progress: Progress) -> None:
        with pytest.raises(ValueError, match="must be written by one process at a time, got another"):
            fit(tiny(), PICTURES, FEW, out=tmp_path)

    fit(tiny(), PICTURES, FEW, out=tmp_path, on_step=another)
    assert not list(tmp_path.glob(".*"))


def test_resuming_without_a_folder_fails_clearly() -> None:
    with pytest.raises(ValueError, match="out must be the folder of the run where resume is set, got None"):
        fit(tiny(), PICTURES, FEW, resume=True)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"batch": 1.5}, TypeError, "batch must be a whole number, got float"),
        ({"workers": -1}, ValueError, "workers must be at least 0, got -1"),
        ({"minutes": 0.0}, ValueError, "minutes must be a finite number above 0, got 0.0"),
        ({"learning_rate": float("inf")}, ValueError, "learning_rate must be a finite number above 0, got inf"),
        ({"jitter": -0.1}, ValueError, "jitter must lie in 0 ... 1, got -0.1"),
        ({"scale": 0.5}, ValueError, "scale must lie in 1 ... 1000, got 0.5"),
        ({"momentum": 1.0}, ValueError, r"momentum must lie in \[0, 1\), got 1.0"),
    ],
)
def test_a_wrong_option_fails_clearly(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        TrainConfig(**options)


@pytest.mark.parametrize(("option", "text"), [("kernel", "kernel must be one of"), ("negatives", "negatives must be")])
def test_a_wrong_option_of_the_loss_fails_before_anything_is_written(tmp_path: Path, option: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fit(tiny(), PICTURES, TrainConfig(**{option: "no such"}), out=tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "be a readable JSON file"),
        ("[]", "hold options of TrainConfig, got list"),
        ('{"epochs": 3}', r"got \['epochs'\]"),
    ],
)
def test_options_of_another_version_fail_clearly(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match=f"train.json must .*{text}"):
        TrainConfig.load(tmp_path / "train.json")


# --- predicting and scoring


def test_pictures_are_predicted_one_by_one_at_their_own_size() -> None:
    model = fit(tiny(), PICTURES, FEW)
    read: list[int] = []

    def images() -> Iterator[NDArray[np.uint8]]:
        for number, size in enumerate([(32, 32), (7, 50), (1, 1)]):
            read.append(number)
            yield np.zeros((*size, 3), np.uint8)

    results = predict(model.train(), images())
    assert next(results).segmentation.shape == (1, 32, 32)
    assert read == [0]
    assert [tuple(result.segmentation.shape) for result in results] == [(1, 7, 50), (1, 1, 1)]
    assert not model.training


def test_a_perfect_prediction_scores_one_whatever_way_it_is_batched() -> None:
    truths = [truth(picture) for picture in PICTURES]
    batched = [PanopticResult.from_pictures(truths[:3]), truths[3]]
    assert evaluate(truths, truths, classes=2, things={1}).pq == 1.0
    assert evaluate(batched, batched, classes=2, things={1}).pq == 1.0


def test_a_prediction_too_few_or_too_many_fails_clearly() -> None:
    truths = [truth(picture) for picture in PICTURES]
    with pytest.raises(ValueError, match="predictions must be as many as truths, got fewer"):
        evaluate(truths[:3], truths, classes=2, things={1})
    with pytest.raises(ValueError, match="predictions must be as many as truths, got more"):
        evaluate(truths, truths[:3], classes=2, things={1})
