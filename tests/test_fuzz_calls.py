"""Public functions given hostile arguments: who is called, and every case that was found, by name.

The calls themselves are made by `benchmarks/fuzz_calls.py`. What each test of a case shows failed once: another
exception than ours, a hang, or a wrong answer.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lovasz_embed import (
    HierarchicalLovaszHinge,
    Level,
    PanopticResult,
    Segment,
    assemble,
    class_means,
    cluster_embeddings,
    estimate_radius,
    hierarchical_lovasz_hinge,
    lovasz_hinge,
    lovasz_softmax,
    nearest_class_mean,
    panoptic_levels,
    panoptic_quality,
    segment,
    segment_means,
    segment_tiles,
    track,
)
from lovasz_embed.export import Reading
from lovasz_embed.model import (
    AdaptedBackbone,
    ConvEncoder,
    ModelConfig,
    PanopticEmbedder,
    StandardisedConv2d,
    build_backbone,
    prepare,
)
from lovasz_embed.report import paint, render, score_pictures
from lovasz_embed.synthetic import StreetScenes, street_clip, street_scene
from lovasz_embed.training import TrainConfig, fit
from lovasz_embed.visualise import Palette, as_picture, class_mean_map, colour_basis, overlay, panel, save_png

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
E = torch.tensor([[[0.0, 0.1, 5.0, 5.1]]])  # (B, D, P) = (1, 1, 4)
MEANS = torch.tensor([[0.0], [5.0]])
LABELS = torch.tensor([[0, 0, 1, 1]])
RESULT = PanopticResult.from_maps(LABELS, LABELS, things={1})
PICTURE = PanopticResult.from_maps(LABELS.view(1, 2, 2), LABELS.view(1, 2, 2), things={1})
IMAGE = np.zeros((2, 2, 3), np.uint8)
MODEL = PanopticEmbedder(ModelConfig(classes=("a", "b"), things=(1,), widths=(4,)))
HUGE = 10**400


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    """The modules of the fuzzer, which are no part of the package."""
    if not (BENCHMARKS / "fuzz_calls.py").is_file():
        pytest.skip("benchmarks/ is absent: run the tests from a checkout")
    sys.path.insert(0, str(BENCHMARKS))
    names = ("_hostile", "_hostile_calls", "_hostile_oracle", "_hostile_public", "_hostile_run")
    yield SimpleNamespace(**{name[1:]: importlib.import_module(name) for name in names})
    sys.path.remove(str(BENCHMARKS))


def test_every_public_function_is_called_or_says_why_not(fuzz: Any) -> None:
    assert fuzz.hostile_public.missing(set(fuzz.hostile_oracle.REGISTRY)) == set(), (
        "give it an entry in benchmarks/_hostile_*.py"
    )


def test_nothing_is_exempt_that_is_not_there(fuzz: Any) -> None:
    assert set(fuzz.hostile_public.EXEMPT) - fuzz.hostile_public.public_names() == set()


def test_a_call_is_made_again_from_its_number(fuzz: Any) -> None:
    known = fuzz.hostile_oracle.REGISTRY["lovasz_hinge"]
    one, other = (fuzz.hostile_oracle.make_call(known, 3, 17)[0] for _ in range(2))
    assert one.spoilt == other.spoilt
    assert fuzz.hostile_oracle.snapshot([one.args]) == fuzz.hostile_oracle.snapshot([other.args])


def outcomes(fuzz: Any, function: Any) -> Any:
    """Return what the oracle says of one call of a function."""
    entry = fuzz.hostile_oracle.Entry("f", lambda h: None)
    call = fuzz.hostile.Call(function, [torch.zeros(2)], spoilt=["something"])
    return fuzz.hostile_oracle.outcome(entry, call, fuzz.hostile.Hostile(0))


def test_the_oracle_sees_what_is_no_refusal_of_ours(fuzz: Any) -> None:
    def no_argument(x: Any) -> None:
        raise ValueError("x must be small, got 3")  # not raised in the package

    def writes(x: torch.Tensor) -> None:
        x[0] = 1

    def refuses(x: Any) -> None:
        lovasz_hinge(x, x)  # our error, about `target`: no parameter of this function

    def right(target: Any) -> None:
        lovasz_hinge(target, target)

    with pytest.raises(ValueError, match="small"):
        outcomes(fuzz, no_argument)
    with pytest.raises(fuzz.hostile_oracle.Broken, match="written"):
        outcomes(fuzz, writes)
    with pytest.raises(TypeError, match="target"):
        outcomes(fuzz, refuses)
    assert outcomes(fuzz, right) == "refused"


@pytest.mark.slow
def test_a_process_that_dies_is_counted_and_replaced(fuzz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker of a campaign is a spawned process: it is killed here as a crash would kill it."""
    run = fuzz.hostile_run
    listen = run._listen
    killed = []

    def kill_once(worker: Any, found: Any, campaign: Any) -> None:
        listen(worker, found, campaign)
        if not killed:
            killed.append(worker.process.pid)
            worker.process.kill()

    monkeypatch.setattr(run, "_listen", kill_once)
    monkeypatch.setattr(run, "_CHUNK", 1)
    names = ["NearestClassMean.reset", "TemporalStability.reset"]
    found = run.run_campaign(run.Campaign(names, 2, 0, 1, None, 60.0))
    assert [kind for _, kind, _ in found.defects] == ["SIGKILL"]
    assert sum(own["calls"] for own in found.counts.values()) == 4


# The cases that were found

SPARSE, META, EIGHT = E[0].to_sparse(), torch.zeros(1, 1, 4, device="meta"), torch.zeros(1, 4).to(torch.float8_e4m3fn)
TYPES: dict[str, tuple[Any, str]] = {
    "a sparse tensor": (lambda: lovasz_hinge(SPARSE, LABELS), "input must be a dense tensor"),
    "a float of eight bits": (lambda: lovasz_hinge(EIGHT, LABELS), "input must be a floating point tensor"),
    "per_image of text": (lambda: lovasz_hinge(E[0], LABELS, per_image="yes"), "per_image must be True or False"),
    "multilabel of 1": (lambda: lovasz_hinge(E[0], LABELS, multilabel=1), "multilabel must be True or False"),
    "a group of text": (
        lambda: lovasz_hinge(E[0], LABELS, method="binned", group="a"),
        "group must be a process group",
    ),
    "classes of a number": (lambda: lovasz_softmax(E, LABELS, classes=1.5), "classes must be"),
    "radii of one number": (
        lambda: panoptic_levels(LABELS, LABELS, things={1}, radii=4.0),
        "radii must be two numbers",
    ),
    "a name of a number": (lambda: Level(LABELS, 1.0, name=3), "name must be a text"),
    "things of text": (lambda: panoptic_levels(LABELS, LABELS, things="12"), "things must be a collection"),
    "things of a mask": (lambda: Palette.of(["a", "b"], [True, False]), "things must be a collection"),
    "pictures of a number": (lambda: fit(MODEL, torch.tensor(0), TrainConfig(steps=1)), "pictures must be a data set"),
    "levels of a tensor": (lambda: hierarchical_lovasz_hinge(E, LABELS), "levels must be a sequence of Level"),
    "dims of a tensor": (lambda: nearest_class_mean(E, MEANS, dims=torch.tensor(0)), "dims must be a sequence"),
    "ignore_index of text": (lambda: nearest_class_mean(E, MEANS, ignore_index="x"), "ignore_index must be an int"),
    "ignore_index of bytes": (
        lambda: class_means(E, LABELS, num_classes=2, ignore_index=b"x"),
        "ignore_index must be an int",
    ),
    "ignore_index of None": (
        lambda: segment(E, MEANS, things={1}, radius=1.0, ignore_index=None),
        "ignore_index must be an int",
    ),
    "category_dims of a number": (
        lambda: segment(E, MEANS, things={1}, radius=1.0, category_dims=1),
        "category_dims must be a sequence",
    ),
    "no function": (lambda: segment_tiles(3, (2, 2), MEANS, things={1}, radius=1.0), "embed must be a function"),
    "means of a list": (lambda: segment_tiles(len, (2, 2), [0], things={1}, radius=1.0), "class_means must be a torch"),
    "size of a number": (lambda: segment_tiles(len, 3, MEANS, things={1}, radius=1.0), "size must be a height and a"),
    "segments of numbers": (
        lambda: PanopticResult(RESULT.segmentation, ((1, 2),)),
        "segments must be tuples of Segment",
    ),
    "an id of text": (
        lambda: PanopticResult(RESULT.segmentation, ((Segment("1", 0, True, 1),),)),
        "segments must have an int as id",
    ),
    "a category of a tensor": (
        lambda: PanopticResult(RESULT.segmentation, ((Segment(1, torch.tensor(0), True, 1),),)),
        "segments must have an int as category",
    ),
    "a picture without values": (lambda: RESULT[torch.tensor(0, device="meta")], "picture must be an int"),
    "is_crowd of text": (
        lambda: PanopticResult(RESULT.segmentation, ((Segment(1, 0, True, 1, 1.0, "no"),),)),
        "segments must have True or False",
    ),
    "pictures of numbers": (lambda: PanopticResult.from_pictures([1]), "pictures must be a PanopticResult"),
    "a picture of a slice": (lambda: RESULT[0:1], "picture must be an int"),
    "an output of a list": (
        lambda: PanopticResult.from_transformers([[]], things=()),
        "outputs must hold dictionaries",
    ),
    "an output with a text": (
        lambda: PanopticResult.from_transformers([{"segmentation": "x", "segments_info": []}], things=()),
        "outputs must hold 'segmentation'",
    ),
    "image ids of a number": (lambda: PICTURE.to_coco(3), "image_ids must be a sequence"),
    "an image id of NaN": (lambda: PICTURE.to_coco([math.nan]), "image_ids must be ints or texts"),
    "a file name of a number": (lambda: PICTURE.to_coco([1], file_names=[2]), "file_names must be texts"),
    "category ids of a number": (lambda: PICTURE.to_coco([1], 7), "category_ids must be a sequence of int"),
    "a record of a number": (lambda: PanopticResult.from_coco([3], [IMAGE], [1], ()), "annotations must hold records"),
    "scores of a number": (lambda: assemble(LABELS, LABELS, things={1}, scores=3), "scores must be a sequence"),
    "a result of a tensor": (lambda: segment_means(LABELS, E), "result must be a PanopticResult"),
    "results of None": (lambda: track(None, E, gate=1.0), "results must hold one entry per frame"),
    "a config of a dictionary": (lambda: PanopticEmbedder({}), "config must be a ModelConfig"),
    "a body of a list": (lambda: AdaptedBackbone([]), "body must be a torch.nn.Module"),
    "widths of text": (lambda: build_backbone("conv", "ab", 1), "widths must be numbers of channels"),
    "an image of a list": (lambda: prepare([[0]]), "image must be an array of bytes"),
    "an embedding of a list": (lambda: Reading((), (), 1.0, 1.0).read_off([1], [2]), "embedding must be an array"),
    "a palette of text": (lambda: overlay(IMAGE, PICTURE, palette="x"), "palette must be a Palette"),
    "colours of text": (lambda: Palette.of(["a"], (), colours="red"), "colours must be integers"),
    "ids of text": (lambda: Palette.of(["a"], {0}).instances(0, ["x"]), "ids must be integers"),
    "columns of a list": (lambda: panel([IMAGE]), "columns must be a mapping"),
    "a path of a number": (lambda: save_png(3, IMAGE), "path must be a path"),
    "an image of complex numbers": (lambda: as_picture(torch.zeros(3, 1, 1, dtype=torch.complex64)), "image must be a"),
    "a run of None": (lambda: render(None, made={"command": "x"}), "run must be a RunRecord"),
    "made without its command": (lambda: render(None, made={}), "run must be a RunRecord"),
    "names of a number": (lambda: score_pictures([], [], 3, classes=1, things=()), "names must hold one entry"),
    "an image of floats": (lambda: paint(IMAGE / 2, PICTURE, PICTURE, Palette.of(["a"], ())), "image must be a uint8"),
    "a seed of None": (lambda: street_scene(None), "seed must be an int or a sequence"),
    "an index of text": (lambda: StreetScenes(3)["x"], "index must be an int"),
}
VALUES: dict[str, tuple[Any, str]] = {
    "an int beyond floats": (lambda: Level(LABELS, HUGE), "radius must be a finite number above 0"),
    "a radius whose square is 0": (lambda: Level(LABELS, 1e-320), "so must be its square"),
    "a weight beyond floats": (
        lambda: HierarchicalLovaszHinge(norm_weight=HUGE),
        "norm_weight must be a finite number",
    ),
    "an option of an array": (lambda: lovasz_hinge(E[0], LABELS, reduction=np.zeros(2)), "reduction must be one of"),
    "a few pixels that are all apart": (
        lambda: estimate_radius(torch.tensor([[[-7.0, -5, -1.5, -2, -1.5, -1.5, 0.5, 6.5]]]), torch.zeros(1, 8) == 0),
        "that hold no NaN or Inf and lie together, got no cluster",
    ),
    "a stride of True": (lambda: ModelConfig(("a",), (), stride=True), "stride must be one of"),
    "no channel": (
        lambda: lovasz_softmax(torch.zeros(3, 0, 1), torch.ones(3, 1).long(), ignore_index=1),
        "at least one channel",
    ),
    "more tiles than memory": (
        lambda: segment_tiles(len, (2**40, 3), MEANS, things={1}, radius=1.0, tile=1, overlap=0),
        "tile must divide the picture into at most",
    ),
    "an embedding to cluster without values": (
        lambda: cluster_embeddings(META, torch.ones(1, 4, device="meta").bool(), radius=1.0),
        "embedding must hold",
    ),
    "means of no dimension": (
        lambda: segment_tiles(len, (3, 0), MEANS[:, :0], things={1}, radius=1.0),
        "class_means must have shape",
    ),
    "weight of two axes": (lambda: lovasz_softmax(E, LABELS, weight=torch.ones(1, 1)), "weight must have shape"),
    "crowd elsewhere": (
        lambda: panoptic_levels(LABELS, LABELS, things={1}, crowd=LABELS.to("meta")),
        "crowd must be on the device",
    ),
    "ignore_index beyond 64 bits": (lambda: nearest_class_mean(E, MEANS, ignore_index=2**64), "fit 64 bits"),
    "a bandwidth of 0": (
        lambda: hierarchical_lovasz_hinge(E, [Level(LABELS, 1.0, bandwidth=0 * E[0])], kernel="gaussian"),
        r"levels\[0\].bandwidth must be finite and above 0",
    ),
    "an embedding without values": (lambda: segment(META, MEANS, things={1}, radius=1.0), "embedding must hold values"),
    "a map without values": (lambda: RESULT.to("meta").instance(), "segmentation must hold values"),
    "more pixels than there are": (
        lambda: cluster_embeddings(E, LABELS, radius=1.0, min_size=2**64),
        "min_size must be at most",
    ),
    "a huge area": (
        lambda: assemble(LABELS, LABELS, things={1}, min_thing_area=1e300),
        "min_thing_area must be at most",
    ),
    "an id beyond int32": (
        lambda: PanopticResult(RESULT.segmentation, ((Segment(2**31, 0, True, 1),),)),
        "segments must have ids up to",
    ),
    "a negative category": (
        lambda: PanopticResult(RESULT.segmentation, ((Segment(1, -1, True, 1),),)),
        "segments must have categories from",
    ),
    "a score of NaN": (
        lambda: PanopticResult(RESULT.segmentation, ((Segment(1, 0, True, 1, math.nan),),)),
        "segments must have scores",
    ),
    "void beyond 64 bits": (lambda: RESULT.semantic(2**64), "ignore_index must fit 64 bits"),
    "an output without a map": (
        lambda: PanopticResult.from_transformers([{"segments_info": []}], things=()),
        "outputs must hold 'segmentation'",
    ),
    "ids that would wrap around": (
        lambda: PanopticResult.from_transformers([{"segmentation": LABELS + 2**40, "segments_info": []}], things=()),
        "outputs must hold ids up to",
    ),
    "a record with NaN": (
        lambda: PanopticResult.from_coco([{"segments_info": [{"id": math.nan, "category_id": 1}]}], [IMAGE], [1], ()),
        "annotations must give each segment an id",
    ),
    "a crowd of an array": (
        lambda: PanopticResult.from_coco(
            [{"segments_info": [{"id": 1, "category_id": 1, "iscrowd": np.zeros(2)}]}], [IMAGE + 1], [1], ()
        ),
        "annotations must give each segment an id",
    ),
    "scores above 1": (
        lambda: assemble(LABELS, LABELS, things={1}, scores=[torch.tensor([2.0])]),
        "scores must lie in",
    ),
    "a picture of one axis less": (lambda: ConvEncoder((4,), 1)(torch.zeros(3, 4, 4)), "picture must have shape"),
    "a picture too small to halve": (
        lambda: ConvEncoder((4, 4), 1)(torch.zeros(1, 3, 1, 1)),
        "picture must hold at least one picture of 2 x 2",
    ),
    "channels that do not fit": (lambda: StandardisedConv2d(2, 3)(torch.zeros(1, 3, 4, 4)), "x must have shape"),
    "rows outside": (
        lambda: PanopticEmbedder(ModelConfig(("a",), (), widths=(4,)))(torch.zeros(1, 3, 4, 4), at=(-1, 0)),
        "at must be at least 0",
    ),
    "a window outside": (
        lambda: PanopticEmbedder(ModelConfig(("a",), (), widths=(4,)))(torch.zeros(1, 3, 4, 4), of=(4, 3)),
        "of must hold the window",
    ),
    "pixels outside": (
        lambda: PanopticEmbedder(ModelConfig(("a",), (), widths=(4,)))(
            torch.zeros(1, 3, 4, 4), pixels=(torch.tensor([9]), torch.tensor([0]))
        ),
        "pixels must lie inside the picture",
    ),
    "alpha of NaN": (lambda: overlay(IMAGE, PICTURE, alpha=math.nan), r"alpha must be in \[0, 1\]"),
    "an enormous scale": (lambda: overlay(IMAGE, PICTURE, scale=2**40), "scale must be at most"),
    "a percentile of NaN": (lambda: colour_basis(E[..., None], percentile=math.nan), "percentile must be a finite"),
    "means without values": (
        lambda: class_mean_map(E[..., None], MEANS.to("meta")),
        "class_means must hold values",
    ),
    "a category without a colour": (lambda: Palette.of(["a"], {0}).instances(3, [1]), "category must be at most 0"),
    "an empty picture": (lambda: save_png("a.png", IMAGE[:0]), "picture must be uint8"),
    "a path with a null byte": (lambda: save_png("a\0.png", IMAGE), "path must name a file"),
    "a film without end": (lambda: street_clip(0, frames=2**40, size=(32, 32)), "frames must be at most"),
    "an enormous street": (lambda: street_scene(0, size=(2**31, 32)), "size must be at most"),
    "a million million things": (lambda: street_scene(0, max_things=10**12), "max_things must be at most"),
}


@pytest.mark.parametrize("case", TYPES)
def test_a_wrong_type_is_named(case: str) -> None:
    call, text = TYPES[case]
    with pytest.raises(TypeError, match=text):
        call()


@pytest.mark.parametrize("case", VALUES)
def test_a_wrong_value_is_named(case: str) -> None:
    call, text = VALUES[case]
    with pytest.raises(ValueError, match=text):
        call()


def test_a_radius_estimated_from_alike_pixels_and_a_stray_one_is_above_0() -> None:
    embedding = torch.full((2, 1, 4, 5), -2.5)
    embedding[1, 0, 0, 0] = 65504.0
    estimate = estimate_radius(embedding, torch.ones(2, 4, 5, dtype=torch.bool))
    assert estimate.radius == 1.0


@pytest.mark.parametrize("impl", ["reference", "numba"])
def test_means_of_no_class_give_a_cross_entropy_of_0(impl: str) -> None:
    leaf = E.clone().requires_grad_()
    levels = [Level(torch.full_like(LABELS, -1), 1.0)]
    out = hierarchical_lovasz_hinge(leaf, levels, class_means=MEANS[:0], ncm_weight=1.0, impl=impl)
    out.loss.backward()
    assert out.loss.item() == out.ncm.item() == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()


@pytest.mark.parametrize("seed", [7, 20, 27])
def test_centres_that_pass_each_other_keep_their_pixels(seed: int) -> None:
    """Two that moved past each other before others joined had each other's centre and size."""
    embedding = 4 * torch.randn(1, 2, 16, 24, generator=torch.Generator().manual_seed(seed))
    clusters = cluster_embeddings(embedding, torch.ones(1, 16, 24, dtype=torch.bool), radius=1.5, connected=False)
    for number, (centre, size) in enumerate(zip(clusters.centres[0], clusters.sizes[0], strict=True), start=1):
        own = embedding[0][:, clusters.labels[0] == number]
        assert own.shape[1] == size
        assert torch.allclose(own.mean(1), centre, atol=1e-5)


def test_subnormal_embeddings_cluster_by_density() -> None:
    """Their distances have squares that are 0: a division by zero, before."""
    embedding = torch.linspace(-7e-41, 7e-41, 48).view(1, 1, 48)
    clusters = cluster_embeddings(embedding, torch.ones(1, 48, dtype=torch.bool), method="density")
    assert int(clusters.sizes[0].sum()) == int((clusters.labels > 0).sum())


@pytest.mark.parametrize("value", [1e38, -3.4e38])
def test_a_pixel_whose_square_overflows_is_a_cluster_by_itself(value: float) -> None:
    embedding = torch.tensor([[[0.0, 0.1, value, 0.2]]])
    clusters = cluster_embeddings(embedding, torch.ones(1, 4, dtype=torch.bool), radius=1.0)
    assert clusters.labels.tolist() == [[1, 1, 2, 1]]


def test_a_truncation_beyond_every_error_leaves_no_negatives() -> None:
    levels = [Level(LABELS, 1.0, per_picture=False)]
    losses = [
        hierarchical_lovasz_hinge(E, levels, kernel="gaussian", truncation=3.0, impl=impl).loss
        for impl in ("reference", "numba")
    ]
    assert torch.isfinite(losses[0])
    assert torch.allclose(*losses, rtol=1e-5)  # roundings of float32


def test_a_reject_radius_of_a_large_int_rejects_nothing() -> None:
    assert nearest_class_mean(E, MEANS, reject_radius=10**30, impl="reference").tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("weight", [5e-41, 1e-45, 3e38])
@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_class_weights_near_the_ends_of_the_range_give_the_gradient_of_ones(impl: str, weight: float) -> None:
    """1 / 5e-41 is Inf in float32, and the sum of two of 3e38 as well: the gradient was NaN."""
    grads = []
    for own in (weight, 1.0):
        logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], requires_grad=True)
        loss = lovasz_softmax(logits, torch.tensor([[0, 1]]), weight=torch.full((2,), own), impl=impl)
        loss.backward()
        grads.append(logits.grad)
    assert torch.equal(*grads)


def test_means_whose_squares_overflow_are_answered_without_a_warning() -> None:
    means = torch.tensor([[0.0], [3e38]])
    assert nearest_class_mean(E, means).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("kind", [np.float32, np.bool_])
def test_an_array_that_runs_backwards_along_one_pixel_is_read(kind: type) -> None:
    embedding, mask = np.zeros((1, 1, 1), np.float32)[..., ::-1], np.ones((1, 1), bool)[..., ::-1]
    assert (
        cluster_embeddings(embedding.astype(kind) if kind is np.float32 else embedding, mask, radius=1.0).sizes[0] == 1
    )


def test_a_mirrored_picture_is_prepared() -> None:
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert torch.equal(prepare(picture[:, ::-1]), prepare(picture).flip(-1))


def test_read_only_arrays_of_transformers_are_read_without_a_warning() -> None:
    ids = np.ones((2, 2), np.int32)
    ids.setflags(write=False)
    info = [{"id": 1, "label_id": 0, "score": 0.5}]
    [result] = PanopticResult.from_transformers([{"segmentation": ids, "segments_info": info}], things=())
    assert result.segments[0][0].area == 4


def test_transformers_maps_of_floats_are_read() -> None:
    """It returns floats, all -1, where nothing is found."""
    result = PanopticResult.from_transformers([{"segmentation": torch.zeros(2, 2) - 1, "segments_info": []}], things=())
    assert result.segments == ((),)


def test_tiles_of_any_size_are_those_of_a_picture_in_one() -> None:
    result = segment_tiles(lambda window: E.view(1, 1, 2, 2), (2, 2), MEANS, things={1}, radius=1.0, tile=2**48)
    assert result.segmentation.tolist() == [[[1, 1], [2, 2]]]


def test_a_reach_beyond_the_range_of_the_pixels_takes_all() -> None:
    """Twice: joined tiles look for instances in a box around their pixels."""
    embed = lambda window: E.view(1, 1, 1, 4)[..., window.rows, window.columns]  # noqa: E731
    options = {"things": {1}, "radius": 1.0, "reach": 1e39, "tile": 2, "overlap": 0, "at_once": 0}
    assert segment_tiles(embed, (1, 4), MEANS, **options).segmentation.tolist() == [[[1, 1, 2, 2]]]


def test_categories_of_numpy_are_counted() -> None:
    """Segments of a data set of one's own may hold numpy's integers."""
    result = PanopticResult(torch.ones(1, 2, dtype=torch.int32), ((Segment(1, np.int64(3), True, 2),),))
    assert panoptic_quality(result, result).pq == 1.0


# The campaigns


@pytest.mark.slow
def test_a_short_campaign_finds_nothing(fuzz: Any) -> None:
    run = fuzz.hostile_run
    found = run.run_campaign(run.Campaign(sorted(fuzz.hostile_oracle.REGISTRY), 20, 1, 1, None, 120.0))
    assert found.defects == {}, found.table()


@pytest.mark.reliability
def test_a_hundred_thousand_calls_of_each_function_find_nothing(fuzz: Any) -> None:
    run = fuzz.hostile_run
    found = run.run_campaign(run.Campaign(sorted(fuzz.hostile_oracle.REGISTRY), 100_000, 0, 2, None, 120.0))
    assert found.defects == {}, found.table()
