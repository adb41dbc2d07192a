"""Panoptic results: what maps and clusters become, and that files and dictionaries say the same."""

from __future__ import annotations

import io
import time
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor

from lovasz_embed._ops.grouping import count_distinct, group_pixels
from lovasz_embed.panoptic import PanopticResult, Segment, assemble, assembly

THINGS = frozenset({1, 3})
VOID = 255
CATEGORY_IDS = (7, 300, 12, 90)  # of a data set: not sorted, and one beyond a byte


class LabelMaps(NamedTuple):
    semantic: Tensor
    instance: Tensor
    crowd: Tensor


@st.composite
def label_maps(draw: st.DrawFn, sizes: tuple[tuple[int, ...], ...] = ((7,), (4, 5), (2, 3, 3))) -> LabelMaps:
    """Draw a batch with stuff 0 and 2, things 1 and 3, void, crowd, and instance ids with gaps."""
    shape = (draw(st.integers(1, 2)), *draw(st.sampled_from(sizes)))

    def labels(values: list[int]) -> Tensor:
        return torch.from_numpy(draw(hnp.arrays(np.int64, shape, elements=st.sampled_from(values))))

    crowd = labels([0, 1]).bool() if draw(st.booleans()) else torch.zeros(shape, dtype=torch.bool)
    return LabelMaps(labels([0, 1, 2, 3, VOID]), labels([0, 1, 2, 5, 2**40]), crowd)


def from_maps(maps: LabelMaps) -> PanopticResult:
    return PanopticResult.from_maps(maps.semantic, maps.instance, things=THINGS, crowd=maps.crowd)


def one_picture(*ids: int, **area: int) -> PanopticResult:
    """Return a picture of one row whose segments are all stuff of category 0."""
    counts = Counter(i for i in ids if i)
    segments = tuple(Segment(i, 0, False, area.get("area", n)) for i, n in sorted(counts.items()))
    return PanopticResult(torch.tensor([[ids]], dtype=torch.int32), (segments,))


def number_by_first_pixel(groups: list[Any]) -> tuple[list[int], list[tuple[Any, int]]]:
    """Number what is not None in the order of the list; return the numbers, and each group with its size."""
    order = list(dict.fromkeys(group for group in groups if group is not None))
    sizes = Counter(groups)
    return [0 if g is None else order.index(g) + 1 for g in groups], [(g, sizes[g]) for g in order]


# --- from label maps


def test_a_small_picture_becomes_the_segments_one_counts_by_hand() -> None:
    semantic = torch.tensor([[[0, 0, 1, 1], [VOID, 1, 1, 3], [1, 2, 2, 3]]])
    instance = torch.tensor([[[0, 9, 4, 4], [4, 6, 4, 4], [0, 1, 2, 8]]])
    crowd = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]]).bool()
    result = PanopticResult.from_maps(semantic, instance, things=THINGS, crowd=crowd)
    assert result.segmentation.tolist() == [[[1, 1, 2, 2], [0, 3, 2, 4], [0, 5, 5, 6]]]
    assert result.segments == (
        (
            Segment(1, 0, False, 2),  # a stuff category is one segment, whatever its instance ids
            Segment(2, 1, True, 3),
            Segment(3, 1, True, 1),
            Segment(4, 3, True, 1),  # instance 4 again, of another category
            Segment(5, 2, False, 2),
            Segment(6, 3, True, 1, is_crowd=True),
        ),
    )


@given(label_maps())
def test_segments_are_the_groups_of_equal_labels_in_scan_order(maps: LabelMaps) -> None:
    result = from_maps(maps)
    for row, (semantic, instance, crowd) in enumerate(zip(*maps, strict=True)):
        groups: list[Any] = []
        for c, i, crowded in zip(*(m.flatten().tolist() for m in (semantic, instance, crowd)), strict=True):
            if c == VOID or (c in THINGS and i == 0 and not crowded):
                groups.append(None)
            else:
                groups.append((c, "crowd" if crowded else i if c in THINGS else "all"))
        numbers, expected = number_by_first_pixel(groups)
        assert result.segmentation[row].flatten().tolist() == numbers
        assert result.segments[row] == tuple(
            Segment(k, c, c in THINGS, area, is_crowd=which == "crowd")
            for k, ((c, which), area) in enumerate(expected, start=1)
        )


@given(label_maps())
def test_the_maps_come_back_except_where_they_say_nothing(maps: LabelMaps) -> None:
    result = from_maps(maps)
    assigned = result.segmentation > 0
    assert torch.equal(result.semantic(), torch.where(assigned, maps.semantic, VOID))
    is_thing = torch.isin(maps.semantic, torch.tensor(sorted(THINGS)))
    told_apart = assigned & is_thing & ~maps.crowd
    assert torch.equal(result.instance() > 0, told_apart)
    assert result.instance().dtype == torch.int32
    assert from_maps(LabelMaps(result.semantic(), result.instance().long(), maps.crowd)) == result


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_every_integer_dtype_and_layout_gives_the_same(dtype: torch.dtype) -> None:
    semantic = torch.tensor([[[0, 1, VOID], [1, 1, 2]]])
    instance = torch.tensor([[[0, 1, 0], [1, 2, 0]]])
    expected = PanopticResult.from_maps(semantic, instance, things=THINGS)
    assert PanopticResult.from_maps(semantic.to(dtype), instance.to(dtype), things=THINGS) == expected
    strided = semantic.to(dtype).mT.contiguous().mT
    assert PanopticResult.from_maps(strided, instance.bool() * 1 + (instance > 1) * 1, things=[1, 3]) == expected


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 3), (1, 1), (1, 1, 1, 1)])
def test_empty_batches_and_single_pixels_work(shape: tuple[int, ...]) -> None:
    semantic = torch.ones(shape, dtype=torch.int64)
    result = PanopticResult.from_maps(semantic, semantic, things={1})
    assert result == assemble(semantic, semantic, things={1})
    assert result.semantic().shape == shape
    assert len(result) == shape[0]


def test_a_picture_of_void_has_no_segment() -> None:
    void = torch.full((1, 2, 2), VOID)
    assert PanopticResult.from_maps(void, void, things={1}).segments == ((),)
    assert assemble(void, void, things={1}).segments == ((),)


# --- the result itself


@given(label_maps())
def test_a_batch_is_the_sequence_of_its_pictures(maps: LabelMaps) -> None:
    result = from_maps(maps)
    assert PanopticResult.from_pictures(list(result)) == result
    assert result[-1] == result[len(result) - 1]
    assert [len(picture) for picture in result] == [1] * len(result)
    with pytest.raises(IndexError):
        result[len(result)]


def test_results_are_equal_only_with_equal_maps_and_segments() -> None:
    assert one_picture(1, 2) == one_picture(1, 2)
    assert one_picture(1, 2) != one_picture(2, 1)
    assert one_picture(1, 1, area=2) != one_picture(1, 1, area=3)
    assert one_picture(1) != "a picture"


@pytest.mark.parametrize("ids", [(0, 3, 1, 2), (0, 900, 16_000_000, 40)])
def test_the_segment_index_counts_segments_without_gaps(ids: tuple[int, ...]) -> None:
    order = sorted(ids)
    assert one_picture(*ids).segment_index().tolist() == [[[order.index(i) for i in ids]]]


def test_to_moves_the_map() -> None:
    result = one_picture(1, 2)
    assert result.to("meta").segmentation.device.type == "meta"
    assert result.to("cpu") == result


# --- conversions


def test_transformers_sees_ids_from_one_and_int32() -> None:
    semantic, clusters = torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]])
    result = assemble(semantic, clusters, things={1}, scores=[torch.tensor([0.25])])
    (picture,) = result.to_transformers()
    assert picture["segmentation"].dtype == torch.int32
    assert picture["segmentation"].tolist() == [[1, 0, 2, 2]]
    assert picture["segments_info"] == [
        {"id": 1, "label_id": 0, "was_fused": False, "score": 1.0},
        {"id": 2, "label_id": 1, "was_fused": False, "score": 0.25},
    ]


@given(label_maps(sizes=((1, 1), (4, 5))), st.integers(1, 2_000_000))
def test_coco_files_say_the_same_as_the_result(maps: LabelMaps, stretch: int) -> None:
    small = from_maps(maps)
    segments = tuple(
        tuple(Segment(s.id * stretch, s.category, s.is_thing, s.area, 1.0, s.is_crowd) for s in picture)
        for picture in small.segments
    )
    result = PanopticResult(small.segmentation * stretch, segments)  # ids that need all three colours
    names = [f"{row}.png" for row in range(len(result))]
    records, pngs = zip(*result.to_coco(names, CATEGORY_IDS), strict=True)
    stored = [io.BytesIO() for _ in pngs]
    for file, png in zip(stored, pngs, strict=True):
        Image.fromarray(png).save(file, "PNG")
    read = [np.asarray(Image.open(file)) for file in stored]
    assert PanopticResult.from_coco(records, read, CATEGORY_IDS, THINGS) == result


@given(label_maps(sizes=((4, 5),)))
def test_coco_boxes_and_areas_enclose_the_segments(maps: LabelMaps) -> None:
    result = from_maps(maps)
    for ids, (record, _) in zip(result.segmentation, result.to_coco(range(len(result))), strict=True):
        for entry in record["segments_info"]:
            rows, columns = (ids == entry["id"]).nonzero(as_tuple=True)
            x, y = int(columns.min()), int(rows.min())
            assert entry["bbox"] == [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
            assert entry["area"] == len(rows)


def test_a_coco_record_is_named_as_the_data_set_names_it() -> None:
    result = PanopticResult(torch.full((1, 1, 2), 2, dtype=torch.int32), ((Segment(2, 3, True, 2, 1.0, True),),))
    ((record, png),) = result.to_coco(np.array([285]), CATEGORY_IDS)
    assert record == {
        "image_id": 285,
        "file_name": "000000000285.png",
        "segments_info": [{"id": 2, "category_id": 90, "area": 2, "bbox": [0, 0, 2, 1], "iscrowd": 1}],
    }
    assert type(record["image_id"]) is int
    assert png.dtype == np.uint8
    assert png.tolist() == [[[2, 0, 0], [2, 0, 0]]]
    assert result.to_coco(["street"])[0][0]["file_name"] == "street.png"
    assert result.to_coco([1], file_names=["a.png"])[0][0]["file_name"] == "a.png"
    assert result.to_coco([1])[0][0]["segments_info"][0]["category_id"] == 3


def test_colours_are_widened_before_they_are_multiplied() -> None:
    png = np.array([[[1, 2, 3]]], dtype=np.uint8)
    record = {"image_id": 1, "segments_info": [{"id": 1 + 2 * 256 + 3 * 65536, "category_id": 7}]}
    result = PanopticResult.from_coco([record], [png], CATEGORY_IDS, THINGS)
    assert result.segmentation.tolist() == [[[197121]]]
    assert result.segments == ((Segment(197121, 0, False, 1),),)


# --- assembly


def test_a_cluster_takes_the_category_of_most_of_its_pixels() -> None:
    semantic, clusters = torch.tensor([[[3, 1, 1, 3, 3]]]), torch.tensor([[[1, 1, 1, 2, 2]]])
    result = assemble(semantic, clusters, things=THINGS)
    assert result.segmentation.tolist() == [[[1, 1, 1, 2, 2]]]
    assert [s.category for s in result.segments[0]] == [1, 3]


def test_of_two_equal_votes_the_lower_category_wins() -> None:
    semantic, clusters = torch.tensor([[[3, 1]]]), torch.tensor([[[1, 1]]])
    assert assemble(semantic, clusters, things=THINGS).segments == ((Segment(1, 1, True, 2),),)


def test_noise_is_void_on_things_and_clusters_do_not_count_on_stuff() -> None:
    semantic, clusters = torch.tensor([[[0, 0, 1, 1, VOID]]]), torch.tensor([[[1, 0, 0, 1, 1]]])
    assert assemble(semantic, clusters, things=THINGS).segmentation.tolist() == [[[1, 1, 0, 2, 0]]]


def test_small_segments_become_void_and_leave_no_gap_in_the_ids() -> None:
    semantic, clusters = torch.tensor([[[2, 1, 1, 0, 0, 1]]]), torch.tensor([[[0, 1, 1, 0, 0, 2]]])
    result = assemble(semantic, clusters, things=THINGS, min_thing_area=2, min_stuff_area=1.5)
    assert result.segmentation.tolist() == [[[0, 1, 1, 2, 2, 0]]]
    assert result.segments == ((Segment(1, 1, True, 2), Segment(2, 0, False, 2)),)


def test_scores_follow_their_clusters() -> None:
    semantic = torch.tensor([[[1, 1, 0]], [[0, 1, 1]]])
    clusters = torch.tensor([[[5, 1, 0]], [[0, 3, 3]]])  # numbers may have gaps
    scores = [torch.tensor([0.5, 0.0, 0.0, 0.0, 0.75]), torch.tensor([0.0, 0.0, 0.25])]
    result = assemble(semantic, clusters, things=THINGS, scores=scores)
    assert [[s.score for s in picture] for picture in result.segments] == [[0.75, 0.5, 1.0], [1.0, 0.25]]


@given(label_maps(), st.integers(0, 3), st.integers(0, 3))
def test_assembly_does_what_a_loop_over_pixels_does(maps: LabelMaps, thing_area: int, stuff_area: int) -> None:
    result = assemble(maps.semantic, maps.instance, things=THINGS, min_thing_area=thing_area, min_stuff_area=stuff_area)
    for row, (semantic, clusters) in enumerate(zip(maps.semantic, maps.instance, strict=True)):
        pixels = list(zip(semantic.flatten().tolist(), clusters.flatten().tolist(), strict=True))
        votes: dict[int, Counter[int]] = {}
        for c, k in pixels:
            if c in THINGS and k:
                votes.setdefault(k, Counter())[c] += 1
        winner = {k: min(sorted(v), key=lambda c, v=v: -v[c]) for k, v in votes.items()}
        groups: list[Any] = [
            None if c == VOID or (c in THINGS and not k) else (winner[k], k) if c in THINGS else (c, None)
            for c, k in pixels
        ]
        sizes = Counter(groups)
        groups = [g if g and sizes[g] >= (thing_area if g[1] else stuff_area) else None for g in groups]
        numbers, expected = number_by_first_pixel(groups)
        assert result.segmentation[row].flatten().tolist() == numbers
        assert result.segments[row] == tuple(
            Segment(i, c, k is not None, area) for i, ((c, k), area) in enumerate(expected, start=1)
        )


DTYPES = [torch.bool, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64]


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from([VOID, -1, 2, 1]))
def test_counting_in_tables_equals_sorting_keys(
    data: st.DataObject, one: torch.dtype, other: torch.dtype, ignore_index: int
) -> None:
    shape = data.draw(st.sampled_from([(2, 7), (3, 4, 5), (1, 2, 3, 3), (0, 4), (2, 0)]))

    def labels(values: list[int], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(data.draw(hnp.arrays(np.int64, shape, elements=st.sampled_from(values)))).to(dtype)

    void = {ignore_index} & {VOID} if one not in (torch.int16, torch.int32, torch.int64) else {ignore_index}
    semantic = labels([0, 1, 2, 3, *void], one)
    clusters = labels([0, 1, 2, 3, 9], other)
    things = data.draw(st.sets(st.integers(-1, 5)))
    scores = data.draw(st.sampled_from([None, [torch.rand(9) for _ in range(shape[0])]]))
    minima = data.draw(st.tuples(st.sampled_from([0, 1.5, 3]), st.sampled_from([0, 2])))
    given_to_both = semantic, clusters, frozenset(things), scores, minima, ignore_index
    by_tables = assembly._by_tables(*given_to_both)
    assert by_tables is not None
    assert by_tables == assembly._by_keys(*given_to_both)


def test_maps_of_several_tasks_are_counted_as_one() -> None:
    shape = (2, 700, 600)
    semantic, clusters = torch.randint(0, 5, shape), torch.randint(0, 50, (2, 7, 600)).repeat_interleave(100, 1)
    clusters[1] += 3000
    semantic[0, -1, 7:], semantic[0, -1, 11] = 6, 5  # stuff of the last task alone
    given_to_both = semantic, clusters.int(), frozenset({1, 3, 4}), None, (100, 0), VOID
    by_tables = assembly._by_tables(*given_to_both)
    assert by_tables is not None
    assert by_tables == assembly._by_keys(*given_to_both)


def test_numbers_too_large_for_tables_are_sorted() -> None:
    semantic = torch.tensor([[0, 1, 1]])
    assert assembly._by_tables(semantic, semantic * 2**40, frozenset({1}), None, (0, 0), VOID) is None
    assert assembly._by_tables(semantic, semantic, frozenset({1}), None, (0, 0), 2**80) is None
    assert assemble(semantic, semantic, things={1}, ignore_index=2**80) == assemble(semantic, semantic, things={1})


@given(label_maps())
def test_truth_in_truth_out(maps: LabelMaps) -> None:
    number = maps.semantic * 2**42 + maps.instance  # clusters that do not cross categories
    clusters = torch.where(maps.instance > 0, number, 0)
    truth = PanopticResult.from_maps(maps.semantic, maps.instance, things=THINGS)
    assert assemble(maps.semantic, clusters, things=THINGS) == truth


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@given(label_maps())
def test_an_accelerator_gives_the_same(maps: LabelMaps) -> None:
    on_device = LabelMaps(*(m.cuda() for m in maps))
    assert from_maps(on_device).to("cpu") == from_maps(maps)
    assert from_maps(on_device).semantic().cpu().equal(from_maps(maps).semantic())
    on_cpu = assemble(maps.semantic, maps.instance, things=THINGS, min_thing_area=2)
    assert assemble(*on_device[:2], things=THINGS, min_thing_area=2).to("cpu") == on_cpu


def test_a_street_of_hundreds_of_clusters_is_assembled_well_within_a_second() -> None:
    rows, columns = torch.meshgrid(torch.arange(1024), torch.arange(2048), indexing="ij")
    cell = (rows // 48) * 43 + columns // 48
    category = torch.randint(0, 19, (int(cell.max()) + 1,))[cell][None]
    seconds = []
    for _ in range(3):
        start = time.process_time()
        result = assemble(category, cell[None] + 1, things=range(11, 19), min_thing_area=10)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0  # 0.07 s on one core in 2026
    assert len(result.segments[0]) > 300


@given(hnp.arrays(np.int64, st.integers(0, 30), elements=st.integers(0, 40)))
def test_groups_found_by_counting_are_those_found_by_sorting(key: np.ndarray) -> None:
    tensor = torch.from_numpy(key)
    values, position, counts = torch.unique(tensor, return_inverse=True, return_counts=True)
    for bound in (41, 2**40):  # a table, a sort
        assert [x.tolist() for x in count_distinct(tensor, bound)] == [values.tolist(), counts.tolist()]
        expected = [values.tolist(), position.tolist(), counts.tolist()]
        assert [x.tolist() for x in group_pixels(tensor, bound)] == expected


# --- clear errors


def test_a_map_that_is_no_tensor_fails_clearly() -> None:
    with pytest.raises(TypeError, match=r"segmentation must be a torch.Tensor, got ndarray"):
        PanopticResult(np.zeros((1, 2), dtype=np.int32), ((),))  # type: ignore[arg-type]


def test_a_map_of_another_dtype_fails_clearly() -> None:
    with pytest.raises(TypeError, match=r"segmentation must be int32, got torch.int64. Use .int\(\)"):
        PanopticResult(torch.zeros(1, 2, dtype=torch.int64), ((),))


def test_a_map_without_batch_axis_fails_clearly() -> None:
    with pytest.raises(ValueError, match=r"segmentation must have shape \(B, \*spatial\), got \(1,\)"):
        PanopticResult(torch.zeros(1, dtype=torch.int32), ((),))
    with pytest.raises(ValueError, match=r"semantic must have shape \(B, \*spatial\), got \(3,\). A single"):
        PanopticResult.from_maps(torch.zeros(3).long(), torch.zeros(3).long(), things={1})


def test_segments_of_another_number_of_pictures_fail_clearly() -> None:
    with pytest.raises(ValueError, match=r"segments must hold one tuple per picture \(2\), got 1"):
        PanopticResult(torch.zeros(2, 2, dtype=torch.int32), ((),))


@pytest.mark.parametrize("ids", [(0,), (2, 1), (3, 3)])
def test_ids_out_of_order_fail_clearly(ids: tuple[int, ...]) -> None:
    segments = (tuple(Segment(i, 0, False, 1) for i in ids),)
    with pytest.raises(ValueError, match=r"segments must have ids from 1 in ascending order, got \["):
        PanopticResult(torch.zeros(1, 2, dtype=torch.int32), segments)


@pytest.mark.parametrize("stray", [-1, 2, 7])
@pytest.mark.parametrize("segment_id", [1, 6])
def test_a_pixel_of_no_segment_fails_clearly(stray: int, segment_id: int) -> None:
    ids = torch.tensor([[segment_id, stray]], dtype=torch.int32)
    result = PanopticResult(ids, ((Segment(segment_id, 0, False, 1),),))
    with pytest.raises(ValueError, match=rf"segmentation must hold only ids .*\(picture 0\), got {stray}"):
        result.semantic()


def test_an_ignore_index_that_is_a_category_fails_clearly() -> None:
    with pytest.raises(ValueError, match="ignore_index must differ from every category in use, got 0"):
        one_picture(1).semantic(ignore_index=0)


def test_pictures_of_two_sizes_fail_clearly() -> None:
    with pytest.raises(ValueError, match=r"pictures must have one size, got \(1, 1\) and \(1, 2\). Keep them"):
        PanopticResult.from_pictures([one_picture(1), one_picture(1, 1)])
    with pytest.raises(ValueError, match="pictures must hold at least one result, got none"):
        PanopticResult.from_pictures([])


LABELS = torch.ones(1, 2, 2, dtype=torch.int64)


@pytest.mark.parametrize("make", [PanopticResult.from_maps, assemble])
def test_label_maps_that_do_not_fit_fail_clearly(make: Any) -> None:
    second = "instance" if make is not assemble else "cluster_labels"
    with pytest.raises(ValueError, match=rf"{second} must have shape \(1, 2, 2\) to match semantic, got \(1, 4\)"):
        make(LABELS, LABELS.view(1, 4), things={1})
    with pytest.raises(TypeError, match=rf"{second} must hold integer or boolean labels, got torch.float32"):
        make(LABELS, LABELS.float(), things={1})
    with pytest.raises(ValueError, match=rf"{second} must be on the device of semantic \(cpu\), got meta"):
        make(LABELS, LABELS.to("meta"), things={1})
    with pytest.raises(ValueError, match=rf"{second} must be 0 \(none\) or above, got -4"):
        make(LABELS, LABELS * -4, things={1})
    with pytest.raises(TypeError, match=r"semantic must hold integer or boolean labels, got torch.float32"):
        make(LABELS.float(), LABELS, things={1})
    for wrong in (-1, 70_000):
        rule = "semantic must hold categories from 0 to 65535 or ignore_index=255"
        with pytest.raises(ValueError, match=rf"{rule}, got {wrong}"):
            make(LABELS * wrong, LABELS, things={1})
    for things in (1, None, [1.5], "ab"):
        with pytest.raises(TypeError, match=r"things must be a collection of category ids, got .*For example"):
            make(LABELS, LABELS, things=things)


def test_a_crowd_that_does_not_fit_fails_clearly() -> None:
    with pytest.raises(TypeError, match=r"crowd must be a bool tensor, got torch.int64"):
        PanopticResult.from_maps(LABELS, LABELS, things={1}, crowd=LABELS)
    with pytest.raises(ValueError, match=r"crowd must have shape \(1, 2, 2\) to match semantic, got \(1, 4\)"):
        PanopticResult.from_maps(LABELS, LABELS, things={1}, crowd=LABELS.bool().view(1, 4))


def test_scores_that_do_not_fit_fail_clearly() -> None:
    with pytest.raises(ValueError, match=r"scores must hold one entry per picture \(1\), got 0"):
        assemble(LABELS, LABELS, things={1}, scores=[])
    with pytest.raises(ValueError, match=r"scores must have shape \(K,\) with K >= 3.*picture 0\), got \(2,\)"):
        assemble(LABELS, LABELS * 3, things={1}, scores=[torch.ones(2)])


@pytest.mark.parametrize("argument", ["min_thing_area", "min_stuff_area"])
def test_a_negative_area_fails_clearly(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be a finite number, 0 or above, got -1"):
        assemble(LABELS, LABELS, things={1}, **{argument: -1})  # type: ignore[arg-type]


def test_what_cannot_become_coco_fails_clearly() -> None:
    volume = PanopticResult(torch.zeros(1, 2, 2, 2, dtype=torch.int32), ((),))
    with pytest.raises(ValueError, match=r"segmentation must have shape \(B, H, W\) to become COCO files"):
        volume.to_coco([1])
    with pytest.raises(ValueError, match=r"image_ids must hold one entry per picture \(1\), got 2"):
        one_picture(1).to_coco([1, 2])
    with pytest.raises(ValueError, match=r"file_names must hold one entry per picture \(1\), got 0"):
        one_picture(1).to_coco([1], file_names=[])
    with pytest.raises(ValueError, match=r"segments must have ids of 24 bits \(image 5, segment 16777216\)"):
        one_picture(2**24).to_coco([5])
    with pytest.raises(ValueError, match=r"category_ids must have an entry .*\(image 5, segment 1\), got none"):
        one_picture(1).to_coco([5], category_ids=[])
    with pytest.raises(ValueError, match=r"category_ids must be distinct, got \[3, 3\]"):
        one_picture(1).to_coco([5], category_ids=[3, 3])
    absent = PanopticResult(torch.zeros(1, 1, 1, dtype=torch.int32), ((Segment(1, 0, False, 1),),))
    with pytest.raises(ValueError, match=r"segmentation must hold each of its segments \(image 5, segment 1\)"):
        absent.to_coco([5])


PNG = np.array([[[1, 0, 0], [2, 0, 0]]], dtype=np.uint8)
ENTRIES = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 12}]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (ENTRIES[:1], r"annotations must hold each segment of the PNG \(image 4, segment 2\)"),
        ([*ENTRIES, {"id": 3, "category_id": 7}], r"pngs must hold each .* JSON \(image 4, segment 3\)"),
        ([*ENTRIES, {"id": 0, "category_id": 7}], r"pngs must hold each .* JSON \(image 4, segment 0\)"),
        ([*ENTRIES, ENTRIES[0]], r"annotations must name each segment once \(image 4, segment 1\), got two"),
        (
            [ENTRIES[0], {"id": 2, "category_id": 13}],
            r"annotations must use categories of category_ids \(image 4, segment 2\), got 13",
        ),
        (
            [{"id": 1}],
            r"annotations must give each segment an id and a category_id \(image 4\), got \{'id': 1\}",
        ),
    ],
)
def test_a_record_that_does_not_fit_its_png_fails_clearly(entries: list[dict[str, int]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PanopticResult.from_coco([{"image_id": 4, "segments_info": entries}], [PNG], CATEGORY_IDS, THINGS)


def test_what_is_no_coco_picture_fails_clearly() -> None:
    record = {"image_id": 4, "segments_info": ENTRIES}

    def read(records: list[Any], pngs: list[Any], category_ids: tuple[int, ...] = CATEGORY_IDS) -> None:
        PanopticResult.from_coco(records, pngs, category_ids, THINGS)

    with pytest.raises(TypeError, match=r"pngs must be uint8 arrays \(image 4\), got int64"):
        read([record], [PNG.astype(np.int64)])
    with pytest.raises(TypeError, match=r"pngs must be uint8 arrays \(image 4\), got str"):
        read([record], ["a.png"])
    with pytest.raises(ValueError, match=r"pngs must have shape \(H, W, 3\) \(image 4\), got \(1, 2\). Open the"):
        read([record], [PNG[..., 0]])
    with pytest.raises(ValueError, match=r"pngs must hold one entry per picture \(1\), got 2"):
        read([record], [PNG, PNG])
    with pytest.raises(ValueError, match=r"annotations must hold at least one record, got none"):
        read([], [])
    with pytest.raises(ValueError, match=r"annotations must hold segments_info \(image 4\), got \['image_id'\]"):
        read([{"image_id": 4}], [PNG])
    with pytest.raises(ValueError, match=r"pngs must have one size, got .*Read pictures of each size on their"):
        read([record, record], [PNG, PNG.transpose(1, 0, 2)])
    with pytest.raises(ValueError, match=r"category_ids must be distinct, got \[7, 12, 7\]"):
        read([record], [PNG], (7, 12, 7))
