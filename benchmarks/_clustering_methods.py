"""Clustering methods behind one signature: ours, the loop of Neven et al., and other libraries where installed.

A method turns a problem into labels (B, H, W), 0 for noise. Peers cluster one class of one picture at a time, as
they know of no classes; clusters below the smallest size become noise, whoever found them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _clustering_scenes import MIN_SIZE, Problem
from numpy.typing import NDArray

from lovasz_embed.clustering import cluster_embeddings

Labels = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Method:
    """One contestant.

    Attributes:
        run: From a problem to labels.
        package: The package that it comes from; None is this repository.
        told: What it is told beside the embedding.
        seeded: Whether it needs a seed map.
    """

    run: Callable[[Problem], Labels]
    package: str | None
    told: str
    seeded: bool = False


def _ours(problem: Problem, **options: Any) -> Labels:
    clusters = cluster_embeddings(
        torch.from_numpy(problem.embedding), torch.from_numpy(problem.classes), min_size=MIN_SIZE, **options
    )
    labels: Labels = clusters.labels.numpy()
    return labels


def _margin(problem: Problem) -> Labels:
    return _ours(problem, radius=problem.radius, reach=problem.reach)


def _seeded(problem: Problem) -> Labels:
    assert problem.seeds is not None
    return _ours(problem, method="seeded", radius=problem.radius, seeds=torch.from_numpy(problem.seeds))


def _density(problem: Problem) -> Labels:
    return _ours(problem, method="density", reach=problem.reach)


def _each(problem: Problem, cluster: Callable[[Floats, Problem, int], NDArray[np.integer]]) -> Labels:
    """Run a method on the pixels (n, D) of every class of every picture; it returns labels, below 0 for noise."""
    result = np.zeros(problem.truth.shape, np.int32)
    for b, (picture, classes) in enumerate(zip(problem.embedding, problem.classes, strict=True)):
        count = 0
        for c in np.unique(classes[classes >= 0]):
            inside = classes == c
            points = np.ascontiguousarray(picture[:, inside].T)
            if len(points) < MIN_SIZE:
                continue
            true = problem.truth[b][inside]
            labels = cluster(points, problem, len(np.unique(true[true > 0]))).astype(np.int64) + 1
            sizes = np.bincount(labels)
            large = sizes >= MIN_SIZE
            large[0] = False
            number = np.where(large, np.cumsum(large) + count, 0)
            result[b][inside] = number[labels]
            count += int(large.sum())
    return result


def _kmeans(problem: Problem) -> Labels:
    from sklearn.cluster import KMeans

    return _each(problem, lambda points, _, count: KMeans(max(count, 1), n_init=1, random_state=0).fit_predict(points))


def _mean_shift(problem: Problem) -> Labels:
    from sklearn.cluster import MeanShift

    def cluster(points: Floats, p: Problem, _: int) -> NDArray[np.integer]:
        model = MeanShift(bandwidth=p.radius, bin_seeding=True, min_bin_freq=5)
        labels: NDArray[np.integer] = model.fit_predict(points)
        return labels

    return _each(problem, cluster)


def _dbscan(problem: Problem) -> Labels:
    from sklearn.cluster import DBSCAN

    return _each(problem, lambda points, p, _: DBSCAN(eps=0.6 * p.spread, min_samples=5).fit_predict(points))


def _hdbscan_sklearn(problem: Problem) -> Labels:
    from sklearn.cluster import HDBSCAN

    return _each(
        problem, lambda points, p, _: HDBSCAN(min_cluster_size=MIN_SIZE, min_samples=5, copy=True).fit_predict(points)
    )


def _hdbscan(problem: Problem) -> Labels:
    from hdbscan import HDBSCAN

    return _each(problem, lambda points, p, _: HDBSCAN(min_cluster_size=MIN_SIZE, min_samples=5).fit_predict(points))


def _fast_hdbscan(problem: Problem) -> Labels:
    from fast_hdbscan import HDBSCAN

    return _each(problem, lambda points, p, _: HDBSCAN(min_cluster_size=MIN_SIZE, min_samples=5).fit_predict(points))


def _neven(problem: Problem) -> Labels:
    """Run the greedy loop of Neven et al. 2019 in torch, written from its rule.

    The seed is the best free pixel above 0.5; its proposal are the pixels that its gaussian gives more than one half.
    A proposal with enough pixels, most of them free, is an instance, and overwrites what lies there; its pixels are
    taken in any case.
    """
    assert problem.seeds is not None
    result = torch.zeros(problem.truth.shape, dtype=torch.int32)
    sigma2 = problem.radius**2 / (2 * np.log(2))  # one half at the radius
    for b in range(len(result)):
        inside = torch.from_numpy(problem.classes[b] >= 0)
        points = torch.from_numpy(problem.embedding[b])[:, inside]
        seeds = torch.from_numpy(problem.seeds[b])[inside].clone()
        labels = torch.zeros(points.shape[1], dtype=torch.int32)
        free = torch.ones(points.shape[1], dtype=torch.bool)
        count = 0
        while True:
            best = int((seeds * free).argmax())
            if not free[best] or float(seeds[best]) <= 0.5:
                break
            distance2 = ((points - points[:, best : best + 1]) ** 2).sum(0)
            proposal = torch.exp(-distance2 / (2 * sigma2)) > 0.5
            size = int(proposal.sum())
            if size >= MIN_SIZE and int((proposal & free).sum()) > 0.5 * size:
                count += 1
                labels[proposal] = count
            free &= ~proposal
            free[best] = False
        result[b][inside] = labels
    return result.numpy()


OURS = ("margin", "seeded", "density")
METHODS: dict[str, Method] = {
    "margin": Method(_margin, None, "radius, reach"),
    "seeded": Method(_seeded, None, "radius, seed map", seeded=True),
    "density": Method(_density, None, "reach"),
    "Neven's loop, torch": Method(_neven, None, "radius, seed map", seeded=True),
    "KMeans": Method(_kmeans, "scikit-learn", "true K"),
    "MeanShift": Method(_mean_shift, "scikit-learn", "radius"),
    "DBSCAN": Method(_dbscan, "scikit-learn", "eps = 0.6 δ"),
    "HDBSCAN": Method(_hdbscan_sklearn, "scikit-learn", "nothing"),
    "hdbscan": Method(_hdbscan, "hdbscan", "nothing"),
    "fast_hdbscan": Method(_fast_hdbscan, "fast-hdbscan", "nothing"),
}
_MODULES = {"scikit-learn": "sklearn", "hdbscan": "hdbscan", "fast-hdbscan": "fast_hdbscan"}


def installed() -> tuple[dict[str, str], list[str]]:
    """Return the versions of the packages that can be imported, and a line for each that cannot."""
    found, missing = {}, []
    for package, module in _MODULES.items():
        try:
            importlib.import_module(module)
            found[package] = importlib.metadata.version(package)
        except Exception as error:  # not installed, or for another numpy: no peer, but no failure of ours
            missing.append(f"{package}: not importable, {type(error).__name__}: {error}".splitlines()[0])
    return found, missing
