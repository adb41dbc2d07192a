"""`segment` on the device: the whole way from an embedding to segments, beside the CPU's."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from _clustering_scenes import MIN_SIZE, Problem, noisy, separated
from _gpu_rows import Bench, beside, extra_mb, memory_row, milliseconds, on_cpu, words
from _rows import Disagreement, Row
from torch import Tensor

from lovasz_embed.panoptic import PanopticResult, segment, segmentation

CLASSES, THINGS = 19, tuple(range(11, 19))
DIMS = 8

Segment = Callable[[Tensor], PanopticResult]


def scene(problem: Problem) -> tuple[Tensor, Segment]:
    """Give every instance a category, as `_clustering_targets.segment_row` does; return embedding and call."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.from_numpy(problem.truth).long()
    category = torch.randint(CLASSES, (int(truth.max()) + 1,), generator=generator)
    means = torch.randn(CLASSES, DIMS, generator=generator)
    means = 40 * means / means.norm(dim=1, keepdim=True)  # farther apart than instances
    embedding = (torch.from_numpy(problem.embedding) + means[category[truth]].movedim(-1, 1)).contiguous()
    by_device = {"cpu": means}

    def call(x: Tensor) -> PanopticResult:
        # Once: a copy waits for the device, and a model's means lie there already.
        if x.device.type not in by_device:
            by_device[x.device.type] = means.to(x.device)
        on_device = by_device[x.device.type]
        return segment(x, on_device, things=THINGS, radius=problem.radius, min_thing_area=MIN_SIZE)

    return embedding, call


def must_equal(pixels: int, instances: int, device: str) -> str:
    """Segment instances that margin clustering finds for certain, by the kernels and by the CPU's engine.

    Raises:
        Disagreement: Where a pixel or a segment differs.
    """
    embedding, call = scene(separated(pixels, DIMS, instances))
    expected = call(embedding)
    with _kernels(device):
        found = call(embedding.to(device))
    differ = int((expected.segmentation != found.segmentation.cpu()).sum())
    listed = [[(s.id, s.category, s.area) for s in result.segments[0]] for result in (expected, found)]
    if differ or listed[0] != listed[1]:
        raise Disagreement(f"segment, {pixels} pixels: {differ} pixels differ from the CPU's, or their segments do")
    return f"{len(listed[0])} segments, every pixel as by the CPU's engine"


def _kernels(device: str) -> contextlib.AbstractContextManager[object]:
    """Let `segment` take the kernels. They go by the device alone: on the CPU, in the interpreter, it must be told."""
    if device == "cuda":
        return contextlib.nullcontext()
    return patch.object(segmentation, "_fused", segmentation._on_device)


def segment_rows(bench: Bench, pixels: int, instances: int) -> Iterator[Row]:
    """Yield time and memory on instances with mixed pixels and tails, and the CPU's time for orientation."""
    embedding, call = scene(noisy(pixels, DIMS, instances))
    on_device = embedding.to("cuda")

    def ours() -> object:
        return call(on_device)

    def moved() -> object:
        return call(on_device).segmentation.cpu()

    first = bench.clock.first(ours)
    both = bench.clock.race({"ours": ours, "moved": moved}, repeats=bench.repeats)
    seconds = both["ours"]
    floor = (embedding.nbytes + 4 * pixels) / bench.rates.copy  # in once, a map of int32 out
    median = statistics.median(seconds)
    work = f"segment, {pixels} pixels, D = {DIMS}, {CLASSES} categories, {len(THINGS)} of things"
    differ = float((call(embedding).segmentation != call(on_device).segmentation.cpu()).double().mean())
    details = (
        f"floor {1e3 * floor:.3f} ms: embedding in, map out; we are {median / floor:.1f} x from it",
        f"first call, which compiles: {first:.2f} s",
        words("with the map on the host", both["moved"]),
        f"{differ:.3%} of the pixels have another id than on the CPU; here, unlike above, nothing guarantees that none",
    )
    data = {"floor_seconds": floor, "moved_seconds": list(both["moved"]), "differ": differ}
    yield milliseconds(work, seconds, 4, judged=bench.judged, details=details, **data)
    peak = extra_mb(ours)
    if peak is not None:
        of = "the embedding"
        yield memory_row("segment", of, embedding.nbytes, {"ours": peak}, 2.5, judged=bench.judged)
    yield beside(f"{work}, on the CPU", "ours", seconds, on_cpu(lambda: call(embedding)))
