"""Margin clustering where the embedding is, on a GPU: no map and no embedding is copied to the host."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lovasz_embed._ops.engines import engine_for
from lovasz_embed.clustering.result import Clusters

_TABLE = 65_536  # class labels below are used as they are, larger ones are sorted


def stays_on_device(embedding: Tensor, method: str, connected: bool) -> bool:
    """Return whether a clustering runs where the embedding is; otherwise it runs on the CPU."""
    plain = type(embedding) in (Tensor, nn.Parameter)
    return plain and method == "margin" and not connected and engine_for("auto", embedding.device) == "triton"


def cluster_on_device(
    embedding: Tensor, labels: Tensor, *, radius: float, reach: float | None, min_size: int
) -> Clusters:
    """Return the clusters of every picture by method "margin"; see `cluster_embeddings`, like all arguments.

    Args:
        embedding: (B, D, *spatial) on a CUDA device; under Triton's interpreter on the CPU.
        labels: (B, *spatial) bool or integers that torch can compare.
        radius: Radius of an instance.
        reach: Farthest distance at which a pixel joins, or None for the radius.
        min_size: Fewest pixels of a cluster.
    """
    from lovasz_embed._ops.gpu.assembly import number, tabulate
    from lovasz_embed._ops.gpu.margin import cluster_picture
    from lovasz_embed._ops.gpu.pixels import planes

    embedding = embedding.detach()
    own = planes(embedding)
    maps = torch.zeros(labels.shape, dtype=torch.int32, device=embedding.device)
    flat = maps.view(len(maps), own.pixels)
    found = []
    for b, (classes, ids) in enumerate(_compact(labels)):
        picture = cluster_picture(
            own.picture(b),
            classes,
            tuple(embedding.shape[2:]),
            class_count=1 if ids is None else len(ids),
            radius=float(radius),
            reach=float(radius if reach is None else reach),
            min_size=min_size,
        )
        table = tabulate(classes, picture.labels, 0, len(picture.sizes), (min_size, 0))
        number(classes, picture.labels, 0, table.ids, flat[b])
        kept = table.rows
        found.append(
            (
                picture.centres[kept].to(own.dtype),
                table.areas,
                scores_of(picture.variances[kept], radius),
                torch.zeros_like(kept) if ids is None else ids[picture.classes[kept]],
                bool(picture.apart),
                picture.invalid,
            )
        )
    return Clusters(maps, *(tuple(column) for column in zip(*found, strict=True))) if found else _nothing(maps)


def scores_of(variances: Tensor, radius: float) -> Tensor:
    """Return 1 - mean squared distance to the centre / radius², at least 0, float32."""
    return (1.0 - variances / radius**2).clamp(0.0, 1.0).float()


def _nothing(maps: Tensor) -> Clusters:
    return Clusters(maps, (), (), (), (), (), ())


def _compact(labels: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield for every picture the class of each pixel, int32 (P,), negative: not clustered; and what each stands for.

    A mask has one class, 0, and None for what it stands for.
    """
    for picture in labels:
        flat = picture.flatten()
        if flat.dtype == torch.bool:
            yield flat.to(torch.int32) - 1, None
            continue
        flat = flat.long().clamp(min=-1)
        end = int(flat.max()) + 1 if len(flat) else 0
        if end <= _TABLE:
            yield flat.to(torch.int32), torch.arange(end, device=flat.device)
            continue
        ids, classes = flat.unique(return_inverse=True)
        negative = (ids[:1] < 0).long()
        yield (classes - negative).to(torch.int32), ids[int(negative) :]
