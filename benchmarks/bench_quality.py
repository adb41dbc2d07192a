"""Time and memory of panoptic quality, in memory and from files, beside hotcoco where it is installed.

    python benchmarks/bench_quality.py            # half a minute
    python benchmarks/bench_quality.py --smoke    # seconds: does it still run, and do the scores agree?

hotcoco (PyPI) is a compiled scorer of COCO panoptic files with panopticapi's rules. It reads PNG files, so
the fair comparison is "files": read and score. "memory" scores maps that are there already, as validation
during training does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import Measurement, measure, report
from PIL import Image

from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.quality import panoptic_quality

STUFF, THINGS = (0, 1, 2), (3, 4, 5)
CATEGORY_IDS = (*STUFF, *THINGS)


def truth_and_prediction(height: int, width: int, segments: int) -> tuple[PanopticResult, PanopticResult]:
    """Return bands of stuff with a grid of discs on them, and the same shifted, with void in both."""
    discs = segments - len(STUFF)
    semantic = (torch.arange(height) * len(STUFF) // height)[:, None].expand(height, width).clone()
    instance = torch.zeros(height, width, dtype=torch.int64)
    columns = max(round((discs * width / height) ** 0.5), 1)
    cell_h, cell_w = height / -(-discs // columns), width / columns
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    for k in range(discs):
        middle = ((k // columns + 0.5) * cell_h, (k % columns + 0.5) * cell_w)
        inside = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < (0.4 * min(cell_h, cell_w)) ** 2
        semantic[inside], instance[inside] = THINGS[k % len(THINGS)], k + 1
    semantic[: height // 50] = 255
    shift = (max(height // 100, 1), max(width // 200, 1))
    moved = [labels.roll(shift, (0, 1))[None] for labels in (semantic, instance)]
    truth = PanopticResult.from_maps(semantic[None], instance[None], things=THINGS)
    return truth, PanopticResult.from_maps(*moved, things=THINGS)


def write(result: PanopticResult, path: Path) -> None:
    """Write one picture as a COCO panoptic JSON with its PNG folder."""
    [(annotation, png)] = result.to_coco([1], CATEGORY_IDS, ["picture.png"])
    path.with_suffix("").mkdir()
    Image.fromarray(png).save(path.with_suffix("") / "picture.png")
    images = [{"id": 1, "file_name": "picture.jpg", "height": png.shape[0], "width": png.shape[1]}]
    categories = [{"id": c, "name": str(c), "isthing": int(c in THINGS)} for c in CATEGORY_IDS]
    path.write_text(json.dumps({"images": images, "annotations": [annotation], "categories": categories}))


def read(path: Path) -> PanopticResult:
    """Read what `write` wrote."""
    annotations = json.loads(path.read_text())["annotations"]
    pngs = [np.asarray(Image.open(path.with_suffix("") / a["file_name"])) for a in annotations]
    return PanopticResult.from_coco(annotations, pngs, CATEGORY_IDS, THINGS)


def hotcoco_scorer(truth: Path, prediction: Path) -> Callable[[], float] | None:
    """Return a call that gives hotcoco's PQ of two files, None where hotcoco is not installed."""
    try:
        from hotcoco.panoptic import PanopticEval
    except ImportError:
        return None

    def score() -> float:
        evaluation: Any = PanopticEval(truth, prediction)
        evaluation.evaluate()
        return float(evaluation.results()["All"]["pq"])

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--segments", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON line after the table")
    parser.add_argument("--smoke", action="store_true", help="a tiny picture, one repeat")
    options = parser.parse_args()
    if options.smoke:
        options.size, options.segments, options.repeats = (64, 96), 12, 1

    truth, prediction = truth_and_prediction(*options.size, options.segments)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "truth.json"), Path(folder, "prediction.json")
        write(truth, files[0])
        write(prediction, files[1])
        calls = [
            ("memory", "lovasz_embed", lambda: panoptic_quality(prediction, truth).pq),
            ("files", "lovasz_embed", lambda: panoptic_quality(read(files[1]), read(files[0])).pq),
        ]
        hotcoco = hotcoco_scorer(*files)
        if hotcoco is None:
            print("hotcoco is not installed: nothing to compare with")
        else:
            calls.append(("files", "hotcoco", hotcoco))
        scores = [call() for _, _, call in calls]
        np.testing.assert_allclose(scores, scores[0], rtol=1e-9)  # only the order of sums differs
        height, width = options.size
        print(f"one picture of {height} x {width}, {options.segments} segments, PQ {scores[0]:.4f}")
        measurements: list[Measurement] = [
            measure(task, implementation, call, repeats=options.repeats, device="cpu")
            for task, implementation, call in calls
        ]
    report(measurements, baseline="hotcoco", device="cpu", as_json=options.json)


if __name__ == "__main__":
    main()
