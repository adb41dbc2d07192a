"""Time one method on one problem, in a process of its own that can be stopped; prints JSON lines.

    python benchmarks/_clustering_child.py FOLDER METHOD REPEATS BUDGET_S

Every repeat prints its seconds when it is done, the last line holds memory and scores. What was printed counts even
if the process is stopped: that a method was too slow is a result.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _clustering_methods import METHODS, OURS
from _clustering_scenes import Problem, noisy
from _measure import peak_mb
from numpy.typing import NDArray

from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.quality import panoptic_quality


def rand_index(truth: NDArray[np.integer], labels: NDArray[np.integer]) -> float:
    """Return the adjusted Rand index of two labellings (Hubert and Arabie 1985); noise is one more cluster."""
    columns = int(labels.max(initial=0)) + 1
    table = np.bincount(truth.astype(np.int64) * columns + labels, minlength=(int(truth.max(initial=0)) + 1) * columns)
    table = table.reshape(-1, columns)

    def pairs(counts: NDArray[np.integer]) -> float:
        return float((counts.astype(np.float64) * (counts - 1) / 2).sum())

    both, one, other = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    total = len(truth) * (len(truth) - 1) / 2
    expected = one * other / total if total else 0.0
    most = (one + other) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def scores(problem: Problem, labels: NDArray[np.integer]) -> dict[str, float]:
    """Return the mean adjusted Rand index over pictures and the panoptic quality over all of them."""
    inside = problem.classes >= 0
    pictures = [b for b in range(len(labels)) if inside[b].any()]
    index = [rand_index(problem.truth[b][inside[b]], labels[b][inside[b]]) for b in pictures]
    category = torch.zeros(labels.shape, dtype=torch.int64)
    maps = [torch.from_numpy(np.where(inside, ids, 0).astype(np.int64)) for ids in (labels, problem.truth)]
    results = [PanopticResult.from_maps(category.where(ids > 0, 255), ids, things={0}) for ids in maps]
    return {"ari": statistics.mean(index), "pq": panoptic_quality(*results).pq, "found": float(labels.max(initial=0))}


def main() -> None:
    folder, name, repeats, budget = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    warnings.simplefilter("ignore")  # of other libraries
    method = METHODS[name]
    method.run(noisy(2**12, 2, 2) if name not in OURS else _small(folder))  # compiles
    problem = Problem.load(folder)
    print(json.dumps({"ready": True}), flush=True)
    began = time.perf_counter()
    for _ in range(repeats):
        start = time.perf_counter()
        labels = method.run(problem)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds}), flush=True)
        if time.perf_counter() - began + seconds > budget:
            break
    found = scores(problem, labels)
    if time.perf_counter() - began + seconds <= budget:
        found["peak_mb"] = peak_mb(lambda: method.run(problem), "cpu") or 0.0
    print(json.dumps(found), flush=True)


def _small(folder: Path) -> Problem:
    dims = np.load(folder / "embedding.npy", mmap_mode="r").shape[1]
    return noisy(2**14, dims, 6)


if __name__ == "__main__":
    main()
