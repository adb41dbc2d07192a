"""Panoptic quality: panopticapi's rules by hand, and hotcoco as the oracle on random pictures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hotcoco.panoptic import PanopticEval
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor

from lovasz_embed.panoptic import PanopticResult, Segment
from lovasz_embed.quality import PanopticQuality, QualityResult, panoptic_quality

THINGS = frozenset({1, 3})
CLASSES = 4
VOID = 255
CATEGORY_IDS = (7, 300, 12, 90)

Pair = tuple[PanopticResult, PanopticResult]  # prediction, truth


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """Draw a prediction and a truth that agree in most pixels, with void in both and crowd in the truth."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6)))

    def labels(values: list[int]) -> Tensor:
        return torch.from_numpy(draw(hnp.arrays(np.int64, shape, elements=st.sampled_from(values))))

    semantic, instance = labels([0, 1, 1, 2, 3, VOID]), labels([0, 1, 1, 2])
    crowd = labels([0, 0, 0, 1]).bool() & torch.isin(semantic, torch.tensor(sorted(THINGS)))
    agree = labels([0, 1, 1, 1]).bool()
    truth = PanopticResult.from_maps(semantic, instance, things=THINGS, crowd=crowd)
    predicted = torch.where(agree, semantic, labels([0, 1, 2, 3, VOID]))
    prediction = PanopticResult.from_maps(predicted, torch.where(agree, instance, labels([0, 1, 2, 3])), things=THINGS)
    return prediction, truth


def picture(ids: Sequence[int], *segments: tuple[int, int, bool]) -> PanopticResult:
    """Return a picture of one row: ids, and (id, category, is_crowd) of its segments."""
    return PanopticResult(
        torch.tensor([[ids]], dtype=torch.int32),
        (tuple(Segment(i, c, c in THINGS, list(ids).count(i), 1.0, crowd) for i, c, crowd in segments),),
    )


def row(*ids: int, category: int = 1) -> PanopticResult:
    """Return a picture of one row whose segments all have one category."""
    return picture(ids, *((i, category, False) for i in sorted({*ids} - {0})))


def counts(quality: QualityResult, category: int) -> tuple[int, int, int]:
    """Return tp, fp, fn of a class."""
    classes = quality.per_class
    return int(classes.tp[category]), int(classes.fp[category]), int(classes.fn[category])


def score(prediction: PanopticResult, truth: PanopticResult) -> QualityResult:
    return panoptic_quality(prediction, truth, num_classes=CLASSES, things=THINGS)


# --- by hand: the rules one by one


def test_a_perfect_prediction_scores_one_everywhere() -> None:
    semantic = torch.tensor([[[0, 0, 1], [2, 3, 3]]])
    truth = PanopticResult.from_maps(semantic, torch.tensor([[[0, 0, 1], [0, 1, 2]]]), things=THINGS)
    quality = panoptic_quality(truth, truth)
    scores = {name: value for name, value in vars(quality).items() if name != "per_class"}
    assert scores == dict.fromkeys(scores, 1.0)


def test_matches_count_their_overlap_and_the_rest_counts_half() -> None:
    truth = row(1, 1, 1, 1, 2, 2, 3, 3)
    prediction = row(1, 1, 1, 2, 2, 2, 4, 5)
    quality = score(prediction, truth)  # IoU 3/4 and 2/3; halves of segment 3 match nothing
    assert counts(quality, 1) == (2, 2, 1)
    assert quality.pq == pytest.approx((3 / 4 + 2 / 3) / 3.5, abs=1e-12)  # IoU sums have a grain of 2^-40
    assert quality.sq == pytest.approx((3 / 4 + 2 / 3) / 2, abs=1e-12)
    assert quality.rq == 2 / 3.5
    assert quality.ap50 == 2 / 5


def test_half_an_overlap_is_no_match() -> None:
    assert counts(score(row(1, 1, 0, 0), row(1, 1, 1, 1)), 1) == (0, 1, 1)
    assert counts(score(row(1, 1, 1, 0, 0), row(1, 1, 1, 1, 1)), 1) == (1, 0, 0)


def test_an_object_left_mostly_unlabelled_is_missed_and_false() -> None:
    truth, prediction = row(*[1] * 10), row(*[1] * 3, *[0] * 7)
    assert counts(score(prediction, truth), 1) == (0, 1, 1)


def test_a_prediction_of_nothing_but_void_misses_everything() -> None:
    quality = score(row(0, 0, 0), row(1, 1, 2))
    assert counts(quality, 1) == (0, 0, 2)
    assert (quality.pq, quality.sq, quality.rq, quality.miou) == (0, 0, 0, 0)


def test_void_of_the_truth_is_taken_out_of_the_union() -> None:
    quality = score(row(*[1] * 10), row(*[1] * 6, *[0] * 4))
    assert counts(quality, 1) == (1, 0, 0)
    assert quality.sq == 1
    assert quality.miou == 1


@pytest.mark.parametrize(("void", "false"), [(3, 0), (2, 1)])
def test_a_prediction_mostly_over_void_is_forgiven(void: int, false: int) -> None:
    truth = picture([0] * void + [1] * (4 - void), (1, 0, False))
    assert counts(score(row(1, 1, 1, 1), truth), 1) == (0, false, 0)


def test_a_crowd_is_neither_matched_nor_missed() -> None:
    truth = picture([1, 1, 1], (1, 1, True))
    assert counts(score(row(1, 1, 1), truth), 1) == (0, 0, 0)  # the best overlap possible
    assert counts(score(row(0, 0, 0), truth), 1) == (0, 0, 0)


def test_predictions_over_crowd_and_void_together_are_forgiven() -> None:
    truth = picture([2, 2, 0, 0, 1, 1, 1], (1, 0, False), (2, 1, True))
    assert counts(score(row(1, 1, 1, 1, 1, 1, 1), truth), 1) == (0, 0, 0)  # 2 + 2 of 7
    assert counts(score(row(1, 1, 1, 0, 1, 1, 1), truth), 1) == (0, 1, 0)  # 2 + 1 of 6


def test_every_crowd_of_the_category_forgives() -> None:
    truth = picture([2, 3, 3, 1, 1], (1, 0, False), (2, 1, True), (3, 1, True))
    assert counts(score(row(1, 1, 1, 1, 1), truth), 1) == (0, 0, 0)  # 1 + 2 of 5


def test_a_crowd_of_another_category_forgives_nothing() -> None:
    truth = picture([1, 1, 1], (1, 3, True))
    assert counts(score(row(1, 1, 1), truth), 1) == (0, 1, 0)


def test_the_right_mask_of_the_wrong_category_is_missed_and_false() -> None:
    quality = score(row(1, 1, category=3), row(1, 1, category=1))
    assert counts(quality, 1) == (0, 0, 1)
    assert counts(quality, 3) == (0, 1, 0)


def test_averages_are_over_the_classes_that_occur() -> None:
    truth = picture([1, 1, 2, 2], (1, 0, False), (2, 1, False))
    prediction = picture([1, 1, 2, 3], (1, 0, False), (2, 2, False), (3, 1, False))
    quality = score(prediction, truth)
    assert (quality.pq_stuff, quality.pq_things, quality.pq) == (0.5, 0.0, pytest.approx(1 / 3))
    assert quality.per_class.pq[:3].tolist() == [1, 0, 0]
    assert math.isnan(quality.per_class.pq[3])
    assert quality.miou == (1 + 1 / 2) / 2  # category 2 is not in the truth


def test_what_does_not_occur_is_not_a_number() -> None:
    quality = score(row(0, 0), row(0, 0))
    assert all(math.isnan(v) for name, v in vars(quality).items() if name != "per_class")
    assert math.isnan(score(row(1, category=0), row(1, category=0)).pq_things)


# --- hotcoco, the oracle


def write_coco(folder: Path, name: str, pictures: Sequence[PanopticResult]) -> Path:
    """Write a COCO panoptic JSON and its PNG folder."""
    (folder / name).mkdir()
    annotations, images = [], []
    for number, result in enumerate(pictures):
        ((record, png),) = result.to_coco([number], CATEGORY_IDS)
        Image.fromarray(png).save(folder / name / record["file_name"])
        annotations.append(record)
        size = {"height": png.shape[0], "width": png.shape[1]}
        images.append({"id": number, "file_name": record["file_name"], **size})
    categories = [
        {"id": category_id, "name": str(category_id), "isthing": int(category in THINGS)}
        for category, category_id in enumerate(CATEGORY_IDS)
    ]
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def hotcoco_results(prediction: Sequence[PanopticResult], truth: Sequence[PanopticResult]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = [write_coco(Path(folder), name, p) for name, p in (("t", truth), ("p", prediction))]
        evaluation = PanopticEval(*files)
        evaluation.evaluate()
        results: dict[str, Any] = evaluation.results()
        return results


def assert_same(quality: QualityResult, expected: dict[str, Any]) -> None:
    for group, ending in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for name in ("pq", "sq", "rq"):
            ours = getattr(quality, name + ending)
            if expected[group]["n"] == 0:
                assert math.isnan(ours)
            else:
                assert ours == pytest.approx(expected[group][name], abs=1e-6)
    for category, category_id in enumerate(CATEGORY_IDS):
        theirs = expected["per_class"][category_id]
        assert counts(quality, category) == (theirs["tp"], theirs["fp"], theirs["fn"])
        assert float(quality.per_class.iou_sum[category]) == pytest.approx(theirs["iou"], abs=1e-6)


@given(pairs())
def test_hotcoco_scores_the_same(pair: Pair) -> None:
    prediction, truth = pair
    assert_same(score(prediction, truth), hotcoco_results(list(prediction), list(truth)))


def test_hotcoco_scores_real_pictures_the_same(shared_data: Path) -> None:
    folder = shared_data / "coco_panoptic_open" / "annotations"
    content = json.loads((folder / "panoptic_val2017.json").read_text())
    category_ids = sorted(category["id"] for category in content["categories"])
    group = {c: k % CLASSES for k, c in enumerate(category_ids)}  # 133 categories as 4, so that they meet
    predictions, truths = [], []
    metric = PanopticQuality(CLASSES, THINGS)
    for record in content["annotations"]:
        png = np.asarray(Image.open(folder / "panoptic_val2017" / record["file_name"]).convert("RGB"))
        entries = [{**e, "category_id": group[e["category_id"]]} for e in record["segments_info"]]
        truth = PanopticResult.from_coco([{**record, "segments_info": entries}], [png], range(CLASSES), THINGS)
        semantic, instance = (m.roll((9, 14), (1, 2)) for m in (truth.semantic(), truth.instance()))
        prediction = PanopticResult.from_maps(semantic, instance, things=THINGS)
        metric.update(prediction, truth)
        predictions.append(prediction)
        truths.append(truth)
    assert 0.1 < metric.compute().pq < 0.9
    assert_same(metric.compute(), hotcoco_results(predictions, truths))


# --- properties


@given(pairs())
def test_semantic_iou_is_that_of_the_category_maps(pair: Pair) -> None:
    prediction, truth = pair
    labelled = truth.semantic() != VOID
    ious = []
    for category in range(CLASSES):
        p, t = ((result.semantic() == category) & labelled for result in (prediction, truth))
        if t.any():
            ious.append(float((p & t).sum() / (p | t).sum()))
    miou = score(prediction, truth).miou
    assert miou == pytest.approx(np.mean(ious), abs=1e-6) if ious else math.isnan(miou)  # float32 above


@given(pairs())
def test_quality_is_overlap_times_recognition(pair: Pair) -> None:
    classes = score(*pair).per_class
    assert torch.allclose(classes.pq, classes.sq * classes.rq, equal_nan=True)


@given(pairs(), st.integers(2, 2**20))
def test_ids_are_names_only(pair: Pair, stretch: int) -> None:
    prediction, truth = pair

    def renamed(result: PanopticResult) -> PanopticResult:
        ids = [[stretch * (len(p) + 1 - s.id) for s in p] for p in result.segments]  # the last one first
        tables = [torch.tensor([0, *row], dtype=torch.int32) for row in ids]
        maps = torch.stack([table[m.long()] for table, m in zip(tables, result.segmentation, strict=True)])
        segments = tuple(
            tuple(replace(segment, id=i) for i, segment in zip(row, picture, strict=True))[::-1]
            for row, picture in zip(ids, result.segments, strict=True)
        )
        return PanopticResult(maps, segments)

    assert state(renamed(prediction), renamed(truth)).equal(state(prediction, truth))


def state(prediction: PanopticResult, truth: PanopticResult) -> Tensor:
    metric = PanopticQuality(CLASSES, THINGS)
    metric.update(prediction, truth)
    return metric.counts


@given(pairs(), st.randoms(use_true_random=False))
def test_pictures_add_up_in_any_order_and_any_grouping(pair: Pair, random: Any) -> None:
    order = list(zip(*pair, strict=True))
    random.shuffle(order)
    metrics = [PanopticQuality(CLASSES, THINGS) for _ in range(2)]
    for prediction, truth in order:
        random.choice(metrics).update(prediction, truth)
    metrics[0].merge(metrics[1])
    assert metrics[0].counts.equal(state(*pair))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@given(pairs())
def test_an_accelerator_counts_the_same(pair: Pair) -> None:
    prediction, truth = pair
    assert state(prediction.to("cuda"), truth.to("cuda")).equal(state(prediction, truth))


def test_classes_and_things_are_read_off_the_segments() -> None:
    truth = picture([1, 1, 2, 2], (1, 0, False), (2, 3, False))
    derived, given_ = panoptic_quality(truth, truth), score(truth, truth)
    assert derived.per_class.pq.shape == (4,)
    assert (derived.pq_things, derived.pq_stuff) == (given_.pq_things, given_.pq_stuff)
    overruled = panoptic_quality(truth, truth, things=set())
    assert math.isnan(overruled.pq_things)


def test_the_state_survives_saving_half_precision_and_reset() -> None:
    prediction, truth = row(1, 1, 1, 2), row(1, 1, 2, 2)
    metric = PanopticQuality(CLASSES, THINGS)
    metric.update(prediction, truth)
    resumed = PanopticQuality(CLASSES, THINGS).half()
    resumed.load_state_dict(metric.state_dict())
    assert resumed.compute().pq == metric.compute().pq > 0
    metric.reset()
    assert math.isnan(metric.compute().pq)


def test_a_batch_without_pictures_changes_nothing() -> None:
    empty = PanopticResult(torch.zeros(0, 4, 4, dtype=torch.int32), ())
    assert not state(empty, empty).any()


def test_a_street_of_hundreds_of_segments_takes_a_fraction_of_a_second() -> None:
    rows, columns = torch.meshgrid(torch.arange(1024), torch.arange(2048), indexing="ij")
    cell = ((rows // 48) * 43 + columns // 48)[None]
    truth = PanopticResult.from_maps(cell % 19, cell + 1, things=range(11, 19))
    prediction = PanopticResult.from_maps(cell.roll(9, 2) % 19, cell.roll(9, 2) + 1, things=range(11, 19))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        panoptic_quality(prediction, truth)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5  # 0.015 s on one core in 2026; torchmetrics 1.9: 7.9 s


# --- two processes

RANK = """
import sys, time, torch, torch.distributed as dist
from datetime import timedelta
from lovasz_embed.quality import PanopticQuality
rank, store, data, out = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group(
    "gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
metric = PanopticQuality(4, {1, 3})
for batch in torch.load(data, weights_only=False)[rank]:
    metric.update(*batch)
torch.save(metric.counts, f"{out}/{rank}.pt")
dist.barrier()
dist.destroy_process_group()
time.sleep(0.1)  # gloo's threads let go of their tensors: a process that ends at once may abort
"""


def test_two_gloo_processes_equal_one(tmp_path: Path) -> None:
    def result(*shape: int) -> PanopticResult:
        semantic, instance = torch.randint(0, 4, shape), torch.randint(1, 3, shape)
        return PanopticResult.from_maps(semantic, instance, things=THINGS)

    def near(truth: PanopticResult) -> PanopticResult:
        keep = torch.rand(truth.segmentation.shape) < 0.9
        semantic = torch.where(keep, truth.semantic(), 2)
        return PanopticResult.from_maps(semantic, truth.instance(), things=THINGS)

    truths = [result(2, 6, 7), result(1, 9, 4), result(2, 5, 5), result(0, 5, 5)]
    batches = [(near(truth), truth) for truth in truths]  # the last one: a rank that has run out of pictures
    torch.save([batches[:2], batches[2:]], tmp_path / "data.pt")
    store = (tmp_path / "store").as_uri()
    arguments = [store, str(tmp_path / "data.pt"), str(tmp_path)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), *arguments], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors

    single = PanopticQuality(CLASSES, THINGS)
    for batch in batches:
        single.update(*batch)
    assert int(single.counts[0].sum()) > 0
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt").equal(single.counts)


# --- clear errors


def test_pictures_of_other_sizes_fail_clearly() -> None:
    with pytest.raises(ValueError, match=r"prediction must have shape \(1, 1, 2\) to match truth, got \(1, 1, 3\)"):
        score(row(1, 1, 1), row(1, 1))


def test_pictures_on_two_devices_fail_clearly() -> None:
    with pytest.raises(ValueError, match=r"prediction must be on the device of truth \(cpu\), got meta. Move it"):
        score(row(1, 1).to("meta"), row(1, 1))


@pytest.mark.parametrize("which", ["prediction", "truth"])
def test_a_category_beyond_num_classes_fails_clearly(which: str) -> None:
    both = {"prediction": row(1), "truth": row(1), which: row(1, category=4)}
    with pytest.raises(ValueError, match=f"{which} must hold categories below 4, got 4"):
        score(**both)


@pytest.mark.parametrize("which", ["prediction", "truth"])
@pytest.mark.parametrize("area", [0, 3])
def test_a_segment_that_is_not_what_it_says_fails_clearly(which: str, area: int) -> None:
    ids = torch.tensor([[[1, 0]]], dtype=torch.int32) * (area > 0)
    wrong = PanopticResult(ids, ((Segment(1, 1, True, area),),))
    both = {"prediction": row(1, 1), "truth": row(1, 1), which: wrong}
    rule = rf"{which} must have segments with the pixels that their areas say \(picture 0, segment 1\)"
    with pytest.raises(ValueError, match=rf"{rule}, got {min(area, 1)} pixels and area {area}"):
        score(**both)


def test_a_category_that_is_thing_and_stuff_fails_clearly() -> None:
    stuff = PanopticResult(torch.ones(1, 1, 1, dtype=torch.int32), ((Segment(1, 1, False, 1),),))
    with pytest.raises(ValueError, match=r"things must be given where .*, got None and category 1"):
        panoptic_quality(row(1), stuff)
    assert panoptic_quality(row(1), stuff, things={1}).pq_things == 1


def test_what_cannot_be_classes_fails_clearly() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        PanopticQuality(0, [])
    with pytest.raises(TypeError, match="num_classes must be an int, got float"):
        PanopticQuality(2.0, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"things must be categories from 0 to 1, got \[2\]"):
        PanopticQuality(2, [1, 2])
    with pytest.raises(TypeError, match="things must be a collection of category ids, got 1"):
        PanopticQuality(2, 1)  # type: ignore[arg-type]


def test_merging_other_classes_fails_clearly() -> None:
    rule = r"other must have the classes and things of PanopticQuality\(num_classes=2, things=\[\]\)"
    for other in (PanopticQuality(3, []), PanopticQuality(2, [1])):
        with pytest.raises(ValueError, match=rule):
            PanopticQuality(2, []).merge(other)
