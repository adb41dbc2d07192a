"""The contest: every contestant learns, reads a perfect output perfectly, and an interrupted contest goes on."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lovasz_embed.formats import Sample
from lovasz_embed.model import PanopticEmbedder
from lovasz_embed.quality import panoptic_quality
from lovasz_embed.synthetic import CLASSES, THINGS, street_scene
from lovasz_embed.training import TrainConfig, View, fit

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
METHODS = ("hle", "centre", "spatial", "discriminative")
MODULES = (
    "contestants",
    "loop",
    "records",
    "scoring",
    "table",
    "task",
    "tracks",
    "tuning",
    "ablate",
    "changes",
    "pool",
    "mean_shift",
)


@pytest.fixture(scope="module")
def contest() -> Iterator[Any]:
    """The modules of the contest, which is no part of the package."""
    if not (BENCHMARKS / "contest").is_dir():
        pytest.skip("benchmarks/ is absent: run the tests from a checkout")
    sys.path.insert(0, str(BENCHMARKS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the contest runs so; more threads do not pay for pictures this small
    yield SimpleNamespace(**{name: importlib.import_module(f"contest.{name}") for name in MODULES})
    torch.set_num_threads(threads)
    sys.path.remove(str(BENCHMARKS))


def sample(seed: int, side: int = 48) -> Sample:
    scene = street_scene(seed, size=(side, side), max_things=5, min_area=30)
    image = (scene.image * 255).round().byte().permute(1, 2, 0).numpy()
    semantic = scene.semantic.numpy().astype(np.uint8)
    return Sample(f"scene{seed}", image, semantic, scene.instance.numpy(), scene.crowd.numpy())


@pytest.fixture(scope="module")
def track(contest: Any) -> Any:
    """Two tiny scenes to learn by heart, and a clip of two frames."""
    pictures = [sample(14), sample(8)]
    view = contest.scoring.whole(pictures[0])
    frame = contest.tracks.FilmFrame(view.picture, view.semantic, view.instance)
    return contest.tracks.Track(
        "tiny",
        CLASSES,
        THINGS,
        pictures,
        pictures,
        pictures,
        [[frame, frame]],
        model={"widths": (12, 16, 24), "min_thing_area": 10, "min_stuff_area": 10, "unit": 6.0},
        training={"batch": 2, "crop": 48, "jitter": 0.0},
    )


def views_of(contest: Any, track: Any) -> View:
    views = [contest.scoring.whole(picture) for picture in track.train]
    return View(*(torch.stack(parts) for parts in zip(*views, strict=True)))


def built(contest: Any, track: Any, method: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return contest.contestants.CONTESTANTS[method](track, **options)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_on_one_batch(contest: Any, track: Any, method: str) -> None:
    contestant, views = built(contest, track, method), views_of(contest, track)
    optimiser = torch.optim.AdamW(contestant.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = contestant.loss(contestant(views.picture), views)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in contestant.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_void_alone_costs_nothing_and_stays_in_the_graph(contest: Any, track: Any, method: str) -> None:
    contestant = built(contest, track, method)
    output = contestant(torch.zeros(1, 3, 16, 16))
    void = View(
        torch.zeros(1, 3, 16, 16),
        torch.full((1, 16, 16), 255),
        torch.zeros(1, 16, 16, dtype=torch.long),
        torch.zeros(1, 16, 16, dtype=torch.bool),
    )
    loss = contestant.loss(output, void)
    loss.backward()
    assert float(loss.detach()) == 0.0


def perfect_output(contest: Any, track: Any, method: str, contestant: Any, views: View) -> Tensor:
    """Return the output (1, N, H, W) of a network that knows the truth of the first picture."""
    semantic, instance = views.semantic[:1], views.instance[:1]
    height, width = semantic.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([rows, columns]).float()
    centre = position.clone()
    peaks = torch.zeros(height, width)
    for number in range(1, int(instance.max()) + 1):
        inside = instance[0] == number
        if bool(inside.any()):
            mean = position[:, inside].mean(1).round()
            centre[:, inside] = mean[:, None]
            peaks[int(mean[0]), int(mean[1])] = 1 - 0.01 * number
    if method == "hle":
        unit = contestant.network.config.unit
        embedding = torch.zeros(1, contestant.network.config.dims, height, width)
        embedding[0, :-2] = 9 * torch.nn.functional.one_hot(semantic[0].clamp(max=5), 6).movedim(-1, 0)
        embedding[0, -2:] = 100 * centre / unit
        contestant.network.ncm.update(embedding, semantic)
        return embedding
    logits = 20.0 * torch.nn.functional.one_hot(semantic.clamp(max=5), 6).movedim(-1, 1)
    way = (centre - position) / contestant.unit
    if method == "centre":
        return torch.cat([logits, peaks[None, None], way[None]], 1)
    if method == "spatial":
        bandwidth, seed = torch.full((1, 1, height, width), -2.5), torch.where(instance > 0, 6.0, -6.0)[:, None]
        return torch.cat([logits, way[None], bandwidth, seed], 1)
    own = torch.zeros(1, 8, height, width)
    own[0, :2] = 10 * centre  # not in the last two: those are offsets to the position
    own[0, -2:] = way
    return torch.cat([logits, own], 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_perfect_output_reads_as_the_truth(contest: Any, track: Any, method: str) -> None:
    contestant, views = built(contest, track, method), views_of(contest, track)
    views = View(*(part[:1] for part in views))
    assert not bool(views.crowd.any())  # or a crowd would have to be told from an instance
    output = perfect_output(contest, track, method, contestant, views)
    truth = contest.scoring.truth_of(track.train[0], track)
    assert len([s for s in truth.segments[0] if s.is_thing]) > 2
    for reading in type(contestant).READINGS:
        if reading.get("nms", 7) > 7:
            continue  # centres lie nearer to each other in this small scene
        result = contestant.read(output, **reading)
        quality = panoptic_quality(result, truth, things=track.things, num_classes=6)
        assert quality.pq == 1.0, reading


@pytest.mark.parametrize("method", METHODS[1:])  # ours is the library to the bit, which tests its own loss
def test_offsets_that_point_to_the_centre_cost_less_than_those_that_point_away(
    contest: Any, track: Any, method: str
) -> None:
    contestant, views = built(contest, track, method), views_of(contest, track)
    views = View(*(part[:1] for part in views))
    output = perfect_output(contest, track, method, contestant, views)
    first = {"centre": 7, "spatial": 6, "discriminative": 12}[method]
    if method == "discriminative":
        output[:, 6:first] = 0  # offsets alone tell the instances apart
    away = output.clone()
    away[:, first : first + 2] *= -1
    assert float(contestant.loss(output, views)) < 0.999 * float(contestant.loss(away, views))


@pytest.mark.parametrize("method", METHODS)
def test_points_know_the_place_of_the_window(contest: Any, track: Any, method: str) -> None:
    contestant = built(contest, track, method)
    output = contestant(torch.rand(1, 3, 16, 16)).detach()
    here, there = contestant.points(output), contestant.points(output, (12, 18))
    way = (there - here)[0].flatten(1)
    torch.testing.assert_close(way[-2:], torch.tensor([[2.0], [3.0]]).expand(2, 256), atol=1e-5, rtol=0)
    assert float(way[:-2].abs().sum()) == 0.0


def test_all_networks_are_one_but_for_the_last_convolution(contest: Any, track: Any) -> None:
    states = [built(contest, track, method).network.state_dict() for method in METHODS]
    body = {name for name in states[0] if name.startswith(("backbone.", "merges."))}
    assert len(body) > 10
    assert all(torch.equal(states[0][name], other[name]) for name in body for other in states[1:])
    rest = {name for state in states for name in state} - body
    assert rest == {"head.weight", "head.bias", "ncm.sums", "ncm.counts", "ncm.offset"}


@pytest.mark.parametrize("backbone_rate", [1.0, 0.3])
def test_ours_is_the_library_to_the_bit(contest: Any, track: Any, backbone_rate: float) -> None:
    config = TrainConfig(steps=4, seed=3, warmup=2, backbone_rate=backbone_rate, **track.training)
    torch.manual_seed(7)
    ours = contest.contestants.CONTESTANTS["hle"](track)
    contest.loop.train(ours, track.train, config)
    torch.manual_seed(7)
    library = fit(PanopticEmbedder(ours.network.config), track.train, config)
    for name, tensor in library.state_dict().items():
        assert torch.equal(tensor, ours.network.state_dict()[name]), name
    picture = contest.scoring.whole(track.train[0]).picture[None]
    with torch.no_grad():
        assert ours.read(ours(picture)) == library.segment(picture)


@pytest.mark.parametrize("seed", range(5))
def test_mean_shift_finds_what_scikit_learn_finds(contest: Any, seed: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(seed)
    places = rng.uniform(-8, 8, (6, 3))
    points = np.concatenate([place + rng.normal(0, 0.3, (40, 3)) for place in places])
    found = contest.mean_shift.mean_shift(torch.from_numpy(points), 1.0, sample=1000)
    theirs = cluster.MeanShift(bandwidth=1.0, cluster_all=False).fit(points).labels_ + 1
    # They begin at every point, and sort modes of equally many points by place: only the partition must agree.
    pairs = {(int(a), int(b)) for a, b in zip(found, theirs, strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert len(set(found.tolist()) - {0}) >= 4


def test_mean_shift_takes_points_beyond_its_sample_to_the_nearest_mode(contest: Any) -> None:
    points = torch.tensor([[0.0], [9.0], [0.1], [9.1], [0.2], [9.3], [50.0], [0.4]])
    assert contest.mean_shift.mean_shift(points, 1.0, sample=8).tolist() == [1, 2, 1, 2, 1, 2, 3, 1]
    # Of every second point: nobody is left near 9, and the last point joins a mode that it had no say in.
    assert contest.mean_shift.mean_shift(points, 1.0, sample=4).tolist() == [1, 0, 1, 0, 1, 0, 2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_contestant_learns_two_scenes_by_heart(contest: Any, track: Any, method: str) -> None:
    options = contest.contestants.CONTESTANTS[method].TRIALS[1] if method == "centre" else {}
    contestant = built(contest, track, method, **options)
    config = TrainConfig(steps=400, warmup=5, amp=False, learning_rate=4e-3, **track.training)
    contest.loop.train(contestant, track.train, config)
    readings = type(contestant).READINGS
    scored = contest.scoring.score_pictures(contestant, track.train, track, readings)
    assert max(one.scores["pq"] for one in scored) > 0.9  # 0.99 and more when this was written


@pytest.fixture
def small(contest: Any, track: Any, tmp_path: Path) -> Any:
    """A contest over the tiny track with two steps a training."""
    return contest.task.Contest("synthetic", "smoke", tmp_path)


def test_an_interrupted_contest_goes_on_and_gives_the_same_table(
    contest: Any, track: Any, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = contest.tuning.trials_of(small, "hle") + contest.tuning.trials_of(small, "spatial")
    first = contest.task.run_task(tasks[0], track)
    path = tasks[0].key.path(small.folder)
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="must be there, got none"):
        contest.tuning.finals_of(small, "hle", [0])  # a trial is missing
    for task in tasks:
        contest.task.run_task(task, track)
    assert path.read_bytes() == before  # it was not run again
    assert contest.task.run_task(tasks[0], track)["scores"] == first["scores"]
    for method in ("hle", "spatial"):
        for task in contest.tuning.finals_of(small, method, [0, 1]):
            contest.task.run_task(task, track)
    text = contest.table.table(small.folder)
    assert "ours (HLE)" in text
    assert "seeds 0, 1" in text
    monkeypatch.setattr(contest.pool, "run_task", None)  # nothing is left to be run
    contest.pool.run_all(tasks, jobs=1)
    assert contest.table.table(small.folder) == text


def test_records_of_another_contest_are_refused(contest: Any, track: Any, small: Any) -> None:
    (task, *_) = contest.tuning.trials_of(small, "centre")
    contest.task.run_task(task, track)
    longer = contest.task.Contest("synthetic", "smoke", small.out, steps=8)
    with pytest.raises(SystemExit, match="must be of the same contest, got other steps"):
        contest.tuning.trials_of(longer, "centre")[0].done()


def record(method: str, seed: int, pq: float, **others: Any) -> dict[str, Any]:
    scores = {"pq": pq, "sq": 0.5, "rq": 0.5, "pq_things": None, "pq_stuff": 0.25, "ap50": 0.125, "miou": 0.5}
    stability = {"persistence": 0.75, "kept": 1.0, "tracked": 0.5, "flicker": 0.25, "drift": 0.1 + seed / 10}
    return {
        **{"stage": "test", "method": method, "trial": 0, "seed": seed, "steps": 10, "batch": 4, "crop": 64},
        **{"scores": scores, "stability": stability, "settings": {"options": {}, "readings": [{"reach": 1.0}]}},
        **{"parameters": 1234567, "train_seconds": 2.0, "loss_seconds": 0.5, "network_seconds": 0.02},
        **{
            "reading_seconds": 0.01,
            "pictures": 3,
            "date": "2026-11-23",
            "machine": "2 cores",
            "torch": "2.13",
            **others,
        },
    }


def test_the_table_is_made_of_the_records_alone(contest: Any, tmp_path: Path) -> None:
    for method, seed, pq in (("centre", 0, 0.25), ("hle", 0, 0.5), ("hle", 1, 0.75)):
        contest.records.write_record(tmp_path, contest.records.Key("test", method, 0, seed), record(method, seed, pq))
    lines = contest.table.table(tmp_path).splitlines()
    ours, centre = lines[4:6]
    # Mean of 50 and 75, and their sample standard deviation, 25 / sqrt(2); the best comes first.
    assert ours == "| ours (HLE) | 62.5 ± 17.7 | 50.0 ± 0.0 | 50.0 ± 0.0 | n/a | 25.0 ± 0.0 | 12.5 ± 0.0 | 50.0 ± 0.0 |"
    assert centre == "| centres and offsets | 25.0 | 50.0 | 50.0 | n/a | 25.0 | 12.5 | 50.0 |"
    assert "| ours (HLE) | 1,234,567 | 200 | 50 | 20 | 10 | reach 1.0 |" in lines
    assert "| ours (HLE) | 75.0 ± 0.0 | 100.0 ± 0.0 | 50.0 ± 0.0 | 25.0 ± 0.0 | 0.150 ± 0.071 |" in lines


def test_an_empty_folder_has_no_table(contest: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="must hold results of tests, got none"):
        contest.table.table(tmp_path)


def test_the_winner_is_the_best_on_validation_and_the_first_of_equals(contest: Any) -> None:
    records = [{"trial": t, "reading": r, "scores": {"pq": pq}} for t, r, pq in ((0, 3, 0.5), (1, 2, 0.7), (2, 1, 0.7))]
    assert contest.tuning.winner(records) == (1, 2)


def test_every_contestant_has_as_many_trials_and_readings(contest: Any) -> None:
    kinds = contest.contestants.CONTESTANTS.values()
    assert {len(kind.TRIALS) for kind in kinds} == {4}
    assert {len(kind.READINGS) for kind in kinds} == {4}
    assert all(dict(kind.TRIALS[0]) == dict(kind.READINGS[0]) == {} for kind in kinds)


def test_splits_share_no_picture(contest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest.tracks, "_SIZE", (64, 64))
    track = contest.tracks.open_track("synthetic", contest.tracks.Amounts(6, 6, 6, 1, 2), cache=tmp_path)
    prints = [p.image.tobytes() for part in (track.train, track.val, track.test) for p in part]
    assert len(set(prints)) == 18
    again = contest.tracks.open_track("synthetic", contest.tracks.Amounts(6, 6, 6, 1, 2), cache=tmp_path)
    assert again.train[5].image.tobytes() == prints[5]  # read from the file
    assert len(track.films[0]) == 2


def test_few_examples_are_the_first_of_many_tested_on_the_same(contest: Any, tmp_path: Path) -> None:
    amounts = contest.tracks.Amounts(80, 1, 1, 1, 2)
    few = contest.tracks.open_track("few", amounts, cache=tmp_path)
    many = contest.tracks.open_track("synthetic", contest.tracks.Amounts(2, 1, 1, 1, 2), cache=tmp_path)
    assert (few.name, len(few.train)) == ("few", 2)
    assert [p.image.tobytes() for p in few.train] == [p.image.tobytes() for p in many.train]
    assert few.test[0].image.tobytes() == many.test[0].image.tobytes()


def test_windows_slide_over_the_same_surface(contest: Any, shared_data: Path, tmp_path: Path) -> None:
    amounts = contest.tracks.Amounts(5, 5, 5, 2, 4)
    track = contest.tracks.open_track("nuclei", amounts, cache=tmp_path, data=shared_data)
    known = {picture.name for part in (track.train, track.val) for picture in part}
    assert len(known) == 10
    for film in track.films:
        for before, after in pairwise(film):
            step = [b - a for a, b in zip(before.at, after.at, strict=True)]
            assert all(4 <= abs(way) <= 8 for way in step)
            height, width = before.instance.shape
            rows, columns = (slice(max(w, 0), side + min(w, 0)) for w, side in zip(step, (height, width), strict=True))
            other = tuple(slice(max(-w, 0), side - max(w, 0)) for w, side in zip(step, (height, width), strict=True))
            assert torch.equal(before.instance[rows, columns], after.instance[other])
            assert torch.equal(before.picture[:, rows, columns], after.picture[:, *other])


@pytest.mark.parametrize(
    "name", ["default", "supercategories", "predicted bandwidth, density", "linear softmax on the same features",
             "class means running", "level weights 1 to 2", "ncm as warm-up, 150 steps"],
)  # fmt: skip
def test_changes_can_be_trained_and_read(contest: Any, track: Any, small: Any, name: str) -> None:
    change = contest.changes.CHANGES[name]
    if "groups" in change.training:
        change = change._replace(training={"groups": (0, 1, 2, 3, 4, 3)})  # six categories here
    task = contest.ablate.task_of(small, name, change, 0)
    result = contest.task.run_task(task, track)
    assert result["stability"]["instances"] > 0
    assert contest.task.run_task(task, track)["scores"] == result["scores"]
    assert json.loads(task.key.path(small.folder).read_text())["method"] == name


def test_a_variant_without_a_change_is_ours(contest: Any, track: Any) -> None:
    views = views_of(contest, track)
    losses = []
    for kind in (contest.contestants.CONTESTANTS["hle"], contest.contestants.VARIANTS["variant"]):
        torch.manual_seed(0)
        contestant = kind(track)
        losses.append(float(contestant.loss(contestant(views.picture), views).detach()))
    assert losses[0] == losses[1]


def test_windows_that_do_not_divide_the_crop_fail_clearly(contest: Any, track: Any) -> None:
    variant = contest.contestants.VARIANTS["variant"](track, window=20)
    views = views_of(contest, track)
    with pytest.raises(ValueError, match=r"window must divide the crop \(48, 48\), got 20"):
        variant.loss(variant(views.picture), views)


def test_one_window_as_large_as_the_crop_is_no_window(contest: Any, track: Any) -> None:
    views = views_of(contest, track)
    losses = []
    for window in (None, 48):
        torch.manual_seed(0)
        variant = contest.contestants.VARIANTS["variant"](track, window=window)
        losses.append(float(variant.loss(variant(views.picture), views).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # two calls instead of one add in another order
