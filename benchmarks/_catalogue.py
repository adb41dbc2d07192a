"""Every public function with compiled kernels behind it, each as a call on a drawn problem that returns its bits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lovasz_embed as le
from lovasz_embed.synthetic import CLASSES, THINGS, street_scene

Call = Callable[["Problem"], Any]


@dataclass(frozen=True)
class Problem:
    """Two pictures of a street with an embedding, all of it drawn from a seed.

    Attributes:
        embedding: float32 (2, 4, H, W): a place per instance, with noise that makes them touch.
        logits: float32 (2, 6, H, W).
        semantic: int64 (2, H, W), 255 = void.
        instance: int64 (2, H, W).
        seeds: float32 (2, H, W) in [0, 1].
        bandwidth: float32 (2, H, W), about 1.
    """

    embedding: Tensor
    logits: Tensor
    semantic: Tensor
    instance: Tensor
    seeds: Tensor
    bandwidth: Tensor


def problem(seed: int, size: tuple[int, int]) -> Problem:
    """Draw a problem; the same numbers for the same arguments."""
    random = torch.Generator().manual_seed(seed)
    scenes = [street_scene((seed, k), size=size) for k in range(2)]
    semantic = torch.stack([scene.semantic for scene in scenes])
    instance = torch.stack([scene.instance for scene in scenes]).long()
    places = 3.0 * torch.randn(256, 40, 4, generator=random)
    embedding = places[semantic, instance] + 0.25 * torch.randn(2, *size, 4, generator=random)
    logits = torch.randn(2, len(CLASSES), *size, generator=random)
    return Problem(
        embedding.movedim(-1, 1).contiguous(),
        logits,
        semantic,
        instance,
        torch.rand(2, *size, generator=random),
        0.5 + torch.rand(2, *size, generator=random),
    )


def _slope(leaf: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    leaf = leaf.clone().requires_grad_()
    value = loss(leaf)
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach(), leaf.grad


def _hinge(p: Problem, **how: Any) -> Any:
    return _slope(p.logits, lambda x: le.lovasz_hinge(x[:, 1], (p.semantic == 2).long(), impl="numba", **how))


def _softmax(p: Problem, **how: Any) -> Any:
    return _slope(p.logits, lambda x: le.lovasz_softmax(x, p.semantic, impl="numba", **how))


def _tree(p: Problem, **how: Any) -> Any:
    levels = le.panoptic_levels(p.semantic, p.instance, things=THINGS)
    return _slope(
        p.embedding,
        lambda x: le.hierarchical_lovasz_hinge(x, levels, impl="numba", ncm_weight=1.0, norm_weight=0.1, **how).loss,
    )


def _tree_with_bandwidth(p: Problem) -> Any:
    bandwidth = p.bandwidth.clone().requires_grad_()
    labels = torch.where(p.instance > 0, p.instance, -1)
    levels = (le.Level(labels, 1.0, bandwidth=bandwidth),)
    found = _slope(p.embedding, lambda x: le.hierarchical_lovasz_hinge(x, levels, kernel="gaussian", impl="numba").loss)
    return *found, bandwidth.grad


def _things(p: Problem) -> Tensor:
    is_thing = torch.isin(p.semantic, torch.tensor(sorted(THINGS)))
    return torch.where(is_thing, p.semantic, -1)


def _cluster(p: Problem, method: str, **how: Any) -> Any:
    return le.cluster_embeddings(p.embedding, _things(p), method=method, **how)


def _means(p: Problem) -> Tensor:
    return le.class_means(p.embedding, p.semantic, num_classes=len(CLASSES)).means


def _segment(p: Problem, **how: Any) -> Any:
    return le.segment(p.embedding, _means(p), things=THINGS, radius=1.0, **how)


def _truth(p: Problem) -> le.PanopticResult:
    return le.PanopticResult.from_maps(p.semantic, p.instance, things=THINGS)


def _ncm(p: Problem) -> Any:
    ncm = le.NearestClassMean(len(CLASSES), 4)
    ncm.update(p.embedding, p.semantic)
    return ncm.means, ncm.counts


def _tiles(p: Problem) -> Any:
    height, width = p.embedding.shape[2:]

    def embed(window: Any) -> Tensor:
        return p.embedding[:1, :, window.rows, window.columns]

    return le.segment_tiles(
        embed, (height, width), _means(p), things=THINGS, radius=1.0, tile=32, overlap=8, at_once=1
    )  # fmt: skip


CALLS: dict[str, Call] = {
    "lovasz_hinge": _hinge,
    "lovasz_hinge, one large picture": lambda p: _hinge(p, per_image=False),
    "lovasz_hinge, binned": lambda p: _hinge(p, method="binned"),
    "lovasz_softmax": _softmax,
    "lovasz_softmax, binned": lambda p: _softmax(p, method="binned"),
    "hierarchical_lovasz_hinge, margin": _tree,
    "hierarchical_lovasz_hinge, margin, siblings": lambda p: _tree(p, negatives="siblings"),
    "hierarchical_lovasz_hinge, margin, binned": lambda p: _tree(p, method="binned"),
    "hierarchical_lovasz_hinge, gaussian": lambda p: _tree(p, kernel="gaussian"),
    "hierarchical_lovasz_hinge, gaussian, binned": lambda p: _tree(p, kernel="gaussian", method="binned"),
    "hierarchical_lovasz_hinge, bandwidth": _tree_with_bandwidth,
    "class_means": lambda p: tuple(le.class_means(p.embedding, p.semantic, num_classes=len(CLASSES))),
    "NearestClassMean.update": _ncm,
    "nearest_class_mean": lambda p: le.nearest_class_mean(p.embedding, _means(p), impl="numba"),
    "nearest_class_mean, reject_radius": lambda p: le.nearest_class_mean(p.embedding, _means(p), reject_radius=2.0),
    "cluster_embeddings, margin": lambda p: _cluster(p, "margin", radius=1.0),
    "cluster_embeddings, margin, connected": lambda p: _cluster(p, "margin", radius=1.0, connected=True, min_size=9),
    "cluster_embeddings, seeded": lambda p: _cluster(p, "seeded", radius=1.5, seeds=p.seeds),
    "cluster_embeddings, seeded, bandwidth": lambda p: _cluster(
        p, "seeded", seeds=p.seeds, bandwidth=p.bandwidth[:, None]
    ),
    "cluster_embeddings, density": lambda p: _cluster(p, "density", min_size=20),
    "estimate_radius": lambda p: le.estimate_radius(p.embedding, _things(p)),
    "segment": _segment,
    "segment, vote, connected": lambda p: _segment(p, vote=True, connected=True, min_thing_area=10),
    "segment_tiles": _tiles,
    "assemble": lambda p: le.assemble(p.semantic, p.instance, things=THINGS, min_thing_area=20),
    "PanopticResult.from_maps": _truth,
    "PanopticResult.to_coco_instances": lambda p: _truth(p).to_coco_instances([1, 2], range(len(CLASSES))),
    "panoptic_quality": lambda p: le.panoptic_quality(_segment(p), _truth(p)),
    "segment_means": lambda p: le.segment_means(_truth(p), p.embedding),
    "track": lambda p: le.track(_truth(p), p.embedding, gate=2.0),
}


def digest(value: Any) -> bytes:
    """Return a hash of all bits of a result: of its tensors, numbers and names, at any depth."""
    seen = hashlib.blake2b(digest_size=16)
    for part in _bits(value):
        seen.update(part)
    return seen.digest()


def _bits(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    elif is_dataclass(value):
        yield from _bits([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, dict):
        yield from _bits(list(value.items()))
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        parts = list(value)
        yield f"{len(parts)}".encode()
        for part in parts:
            yield from _bits(part)
    else:
        yield repr(value).encode()  # of a float all digits
