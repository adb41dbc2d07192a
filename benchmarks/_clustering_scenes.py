"""Embeddings to cluster, with their true instances: what they look like decides what a clustering costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _network import SIDE, Painted, picture
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lovasz_embed.model import ModelConfig, PanopticEmbedder, prepare
from lovasz_embed.synthetic import CLASSES, THINGS, StreetScenes
from lovasz_embed.training import TrainConfig, fit

MIN_SIZE = 32
"""Pixels of the smallest cluster that counts. Every method gets it: as an option, or as a filter afterwards."""


@dataclass(frozen=True)
class Problem:
    """Pictures to cluster, and what is known about them.

    Attributes:
        name: Name of the data set.
        embedding: float32 (B, D, H, W).
        classes: int32 (B, H, W), the class of each pixel, -1 where it is not to be clustered.
        truth: int32 (B, H, W), the true instance, 0 where there is none or where it does not count.
        seeds: float32 (B, H, W) in [0, 1], how sure a pixel is to lie near its mean; None where nobody knows.
        radius: Radius of an instance, for methods that want one: the one of the hinge, or half of Δ.
        reach: Distance within which a pixel may join its nearest cluster, for methods that know one: on noisy data
            more than the radius, so that mixed pixels and tails join, as they must in KMeans and mean shift.
        spread: δ, distance within which nearly all pixels of an instance lie from its mean.
        instances: True number of instances in a picture, for methods that want it.
    """

    name: str
    embedding: NDArray[np.float32]
    classes: NDArray[np.int32]
    truth: NDArray[np.int32]
    seeds: NDArray[np.float32] | None
    radius: float
    reach: float
    spread: float
    instances: tuple[int, ...]

    @property
    def pixels(self) -> int:
        """Pixels of all pictures."""
        return self.truth.size

    def save(self, folder: Path) -> None:
        """Write all arrays, for another process to read."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("embedding", "classes", "truth", "seeds"):
            if getattr(self, name) is not None:
                np.save(folder / f"{name}.npy", getattr(self, name))
        rest = {name: getattr(self, name) for name in ("name", "radius", "reach", "spread", "instances")}
        np.save(folder / "rest.npy", np.array([rest], dtype=object), allow_pickle=True)

    @classmethod
    def load(cls, folder: Path) -> Problem:
        """Read what `save` wrote."""
        rest: dict[str, Any] = np.load(folder / "rest.npy", allow_pickle=True)[0]
        seeds = folder / "seeds.npy"
        arrays = {name: np.load(folder / f"{name}.npy") for name in ("embedding", "classes", "truth")}
        return cls(**arrays, **rest, seeds=np.load(seeds) if seeds.is_file() else None)


def shape_of(pixels: int) -> tuple[int, int]:
    """Return height and width, one to two or one to one, of a picture of 2^k pixels."""
    side = 2 ** (int(math.log2(pixels)) // 2)
    return side, pixels // side


def separated(pixels: int, dims: int, instances: int) -> Problem:
    """Return instances whose pixels lie within δ = 1 of their means, the means 4.2 δ apart or more."""
    return _cells("margin-separated", pixels, dims, instances, gap=4.2, noisy=False)


def noisy(pixels: int, dims: int, instances: int) -> Problem:
    """Return means 2.5 δ apart or more, mixed pixels along borders, tails and stray pixels.

    Every pixel that has another instance to its left or above is a mixture of the two in a random share (some
    would call it neither); 2 % of the pixels lie up to 1.5 δ out, 0.3 % anywhere.
    """
    return _cells("noisy", pixels, dims, instances, gap=2.5, noisy=True)


def _cells(name: str, pixels: int, dims: int, instances: int, *, gap: float, noisy: bool) -> Problem:
    rng = np.random.default_rng((pixels, dims, instances))
    height, width = shape_of(pixels)
    coarse = 2 if pixels >= 2**18 else 1  # cells have steps of two pixels then: finding them is slower than clustering
    rows, columns = np.meshgrid(np.arange(0, height, coarse), np.arange(0, width, coarse), indexing="ij")
    places = cKDTree(rng.uniform((0, 0), (height, width), (instances, 2)))
    owner = places.query(np.stack([rows, columns], -1).reshape(-1, 2), workers=-1)[1].reshape(rows.shape)
    truth = owner.repeat(coarse, 0).repeat(coarse, 1).astype(np.int32)
    means = _means(rng, instances, dims, gap).astype(np.float32)

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    offset = torch.randn(dims, height, width, generator=generator)
    length = torch.rand(height, width, generator=generator).sqrt_()
    if noisy:
        tail = torch.rand(height, width, generator=generator) < 0.02
        length[tail] = 1 + 0.5 * torch.rand(int(tail.sum()), generator=generator)
    offset *= length / offset.norm(dim=0)
    embedding = offset.numpy()
    for d in range(dims):
        embedding[d] += means[truth, d]
    if noisy:
        for axis in (0, 1):  # the pixel before, along columns and along rows
            before = np.roll(truth, 1, axis)
            border = before != truth
            border[(0,) if axis == 0 else (slice(None), 0)] = False
            share = rng.uniform(size=int(border.sum())).astype(np.float32)
            for d in range(dims):
                embedding[d][border] = share * embedding[d][border] + (1 - share) * means[before[border], d]
        stray = rng.uniform(size=truth.shape) < 0.003
        bound = 1.5 * float(np.abs(means).max()) + 1
        embedding[:, stray] = rng.uniform(-bound, bound, (dims, int(stray.sum())))
    # What a network's seed map looks like: high near the mean, half at δ, not quite certain.
    distance = sum((embedding[d] - means[truth, d]) ** 2 for d in range(dims))
    seeds = np.clip(np.exp2(-np.asarray(distance)) + rng.normal(scale=0.05, size=truth.shape), 0, 1)
    return Problem(
        name=name,
        embedding=embedding[None],
        classes=np.zeros((1, height, width), np.int32),
        truth=truth[None] + 1,
        seeds=seeds[None].astype(np.float32),
        radius=gap / 2,
        reach=gap if noisy else gap / 2,
        spread=1.0,
        instances=(instances,),
    )


def _means(rng: np.random.Generator, count: int, dims: int, gap: float) -> NDArray[np.float64]:
    """Draw means from a box, none closer to another than `gap`; the box grows until all have room."""
    means = np.empty((0, dims))
    side = gap * max(1.2, count ** (1 / dims))
    while len(means) < count:
        for candidate in rng.uniform(-side, side, (20 * count, dims)):
            if len(means) < count and (((means - candidate) ** 2).sum(1) >= gap * gap).all():
                means = np.append(means, candidate[None], 0)
        side *= 1.1
    return means


def trained(run: Path | None, pictures: int, minutes: float, size: int = SIDE) -> Problem:
    """Return the embeddings of a trained model on painted streets it has not seen; classes are the true ones.

    Args:
        run: Folder of a model trained on painted streets (`lovasz-embed demo`); None trains one.
        pictures: How many.
        minutes: Of training.
        size: Side of a picture.
    """
    if run is not None:
        model = PanopticEmbedder.from_pretrained(run)
    else:
        torch.manual_seed(0)
        config = ModelConfig(classes=CLASSES, things=tuple(sorted(THINGS)), widths=(24, 32, 48, 64, 64), unit=7.0)
        schedule = TrainConfig(minutes=minutes, batch=4, crop=size, mean_pictures=20)
        model = fit(PanopticEmbedder(config), Painted(1000, 0, side=size), schedule)
    model.eval()
    unseen = StreetScenes(pictures, seed=1_000_000, size=(size, size), max_things=10)
    embedding, classes, truth = [], [], []
    with torch.no_grad():
        for scene in (unseen[k] for k in range(pictures)):
            embedding.append(model(prepare(picture(scene))[None]).float().numpy()[0])
            thing = (scene.instance > 0).numpy()
            classes.append(np.where(thing, scene.semantic.numpy(), -1).astype(np.int32))
            truth.append(scene.instance.numpy().astype(np.int32))
    counts = tuple(int(labels.max()) for labels in truth)
    radius = model.config.instance_radius
    return Problem(
        name="trained model",
        embedding=np.stack(embedding),
        classes=np.stack(classes),
        truth=np.stack(truth),
        seeds=None,
        radius=radius,
        reach=model.config.reach * radius,
        spread=radius / 2,
        instances=counts,
    )
