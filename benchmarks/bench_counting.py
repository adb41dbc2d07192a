"""How far counting is from sorting, in value and gradient, beside what rounding the logits does to the exact loss.

    python benchmarks/bench_counting.py            # two minutes
    python benchmarks/bench_counting.py --smoke    # seconds: does it still run, and does the bracket hold?

Everything is computed in float32 by the engine of "auto" on the CPU and compared with the exact loss of the same
logits in float64. A network under autocast hands over logits that were rounded to bfloat16, or came of products that
were rounded to TF32: the gradient of those is what a step has anyway. The exit status says whether the certified
bracket held. No time and no memory is measured here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lovasz_embed._atomic import write_atomically
from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax

BINS = (128, 512, 2048)
CLASSES = 19


class Distance(NamedTuple):
    """How far a loss and its gradient are from the exact ones, relatively.

    Attributes:
        value: Of the loss.
        gradient: Of the gradient, in the Euclidean norm.
        largest: Of the gradient's entries, relative to the largest of all.
    """

    value: float
    gradient: float
    largest: float


def scenes(pixels: int) -> Iterator[tuple[str, Callable[..., Tensor], Tensor, Tensor]]:
    """Yield what is classified, the loss, logits and labels, at three stages of a training."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(1, pixels, generator=generator) < 0.1).long()
    for stage, distance, noise in (("random", 0.0, 1.0), ("half-trained", 1.5, 1.0), ("trained", 4.0, 1.5)):
        logits = distance * (2.0 * mask - 1) + noise * torch.randn(1, pixels, generator=generator)
        yield f"hinge, {stage}", lovasz_hinge, logits, mask
    pixels //= 2
    shares = torch.arange(1.0, CLASSES + 1)  # the first class is rare
    labels = shares.multinomial(pixels, replacement=True, generator=generator)[None]
    for stage, distance in (("random", 0.0), ("half-trained", 4.0), ("trained", 10.0)):
        logits = torch.randn(1, CLASSES, pixels, generator=generator)
        logits.scatter_add_(1, labels[:, None], torch.full((1, 1, pixels), distance))
        yield f"softmax, {stage}", lovasz_softmax, logits, labels


def to_tf32(values: Tensor) -> Tensor:
    """Return float32 values rounded to ten bits behind the leading one, to nearest, ties to even."""
    bits = values.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def run(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor, **options: Any) -> tuple[float, Tensor]:
    """Return value and gradient."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, labels, **options)
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad.double()


def distances(
    loss: Callable[..., Tensor], logits: Tensor, labels: Tensor
) -> Iterator[tuple[str, Distance, float, float]]:
    """Yield a name, the distance from the exact loss, the loss and the exact one."""
    exact, slope = run(loss, logits.double(), labels, method="sort")
    ways: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "sorted": (logits, {"method": "sort"}),
        **{f"{bins} bins": (logits, {"method": "binned", "bins": bins}) for bins in BINS},
        "TF32 logits": (to_tf32(logits), {"method": "sort"}),
        "bfloat16 logits": (logits.bfloat16().float(), {"method": "sort"}),
    }
    for name, (rounded, options) in ways.items():
        value, gradient = run(loss, rounded, labels, **options)
        off = gradient - slope
        far = Distance(
            abs(value / exact - 1), float(off.norm() / slope.norm()), float(off.abs().max() / slope.abs().max())
        )
        yield name, far, value, exact


def main() -> int:
    """Print a line for every scene and way; return 1 where the bracket did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a small picture")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    records, held = [], True
    print(f"{'':22}{'':17}{'value':>9}{'gradient':>10}{'largest':>9}")
    for scene, loss, logits, labels in scenes(2**12 if options.smoke else 2**21):
        for name, far, value, exact in distances(loss, logits, labels):
            print(f"{scene:22}{name:17}{far.value:9.0e}{far.gradient:10.0e}{far.largest:9.0e}", flush=True)
            records.append({"scene": scene, "way": name, **far._asdict()})
            if name.endswith("bins"):  # float32 sums round by less than 1e-6 of themselves
                bins = int(name.split()[0])
                held &= value * (1 - 1e-6) <= exact <= (1 + 1 / bins) * (value * (1 + 1e-6) + 2**-32)
    if options.json:
        write_atomically(options.json, json.dumps(records, indent=1).encode())
    print("the certified bracket held" if held else "THE CERTIFIED BRACKET DID NOT HOLD")
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
