"""Time and memory of the losses, forward and backward, beside a textbook implementation in torch.

    python benchmarks/bench_loss.py            # minutes
    python benchmarks/bench_loss.py --smoke    # seconds: does it still run, and do the values agree?

The textbook sorts all errors, differences the Jaccard curve in float32, selects valid pixels by boolean
indexing, and loops over classes and instances. Values must agree with ours before anything is timed. The
gradients of the textbook are *not* right on large pictures (docs/mathematics.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _measure import Measurement, measure, report
from torch import Tensor

from lovasz_embed.hierarchy import hierarchical_lovasz_hinge, panoptic_levels
from lovasz_embed.hierarchy.levels import MARGIN_RATIO
from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax

VOID = 255
STUFF, THINGS = (0, 1, 2), (3, 4, 5)
RADII = (4.0, 1.0)


def textbook_extension(errors: Tensor, foreground: Tensor) -> Tensor:
    """Return the Lovász extension of the Jaccard loss by sorting and differencing."""
    errors, order = errors.sort(descending=True)
    mask = foreground[order].to(errors.dtype)
    intersection = mask.sum() - mask.cumsum(0)
    union = mask.sum() + (1 - mask).cumsum(0)
    jaccard = 1 - intersection / union
    weights = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
    return torch.dot(errors.relu(), weights)


def textbook_hinge(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over pictures of the Lovász hinge."""
    losses = []
    for picture, mask in zip(logits, target, strict=True):
        sign = 2 * mask.flatten().float() - 1
        losses.append(textbook_extension(1 - picture.flatten() * sign, mask.flatten()))
    return torch.stack(losses).mean()


def textbook_softmax(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over present classes of the Lovász softmax."""
    probabilities = logits.softmax(1).movedim(1, -1).flatten(0, -2)
    valid = target.flatten() != VOID
    probabilities, labels = probabilities[valid], target.flatten()[valid]
    losses = []
    for category in range(logits.shape[1]):
        mask = (labels == category).float()
        if mask.sum() > 0:
            losses.append(textbook_extension((mask - probabilities[:, category]).abs(), mask))
    return torch.stack(losses).mean()


def textbook_level(pixels: Tensor, labels: Tensor, nodes: Tensor, radius: float) -> Tensor:
    """Return the mean over nodes of the hinge of the margin kernel: (P, D) pixels, all of them negatives."""
    losses = []
    for node in nodes:
        mask = labels == node
        distance2 = (pixels - pixels[mask].mean(0)).square().sum(1)
        logits = (radius**2 - distance2) / (MARGIN_RATIO * radius) ** 2
        losses.append(textbook_extension(1 - logits * (2 * mask.float() - 1), mask))
    return torch.stack(losses).mean()


def textbook_hierarchical(embedding: Tensor, semantic: Tensor, instance: Tensor) -> Tensor:
    """Return the two-level loss: categories over the batch, instances picture by picture."""
    pixels = embedding.movedim(1, -1).flatten(0, -2)
    valid = semantic.flatten() != VOID
    categories = semantic.flatten()[valid]
    loss = textbook_level(pixels[valid], categories, categories.unique(), RADII[0])
    # One picture: the mean over its instances is the mean over all of them.
    ids = instance.flatten()[valid]
    return loss + textbook_level(pixels[valid], ids, ids[ids > 0].unique(), RADII[1])


def scene(height: int, width: int, instances: int) -> tuple[Tensor, Tensor]:
    """Lay out one picture: three bands of stuff, a grid of rectangular things on them, a void frame."""
    semantic = (torch.arange(height) * len(STUFF) // height)[:, None].expand(height, width).clone()
    instance = torch.zeros(height, width, dtype=torch.int64)
    columns = round((instances * width / height) ** 0.5)
    rows = -(-instances // columns)
    cell_h, cell_w = height // rows, width // columns
    for k in range(instances):
        top, left = k // columns * cell_h, k % columns * cell_w
        box = (slice(top, top + max(cell_h * 2 // 3, 1)), slice(left, left + max(cell_w * 2 // 3, 1)))
        semantic[box], instance[box] = THINGS[k % len(THINGS)], k + 1
    for edge in (slice(0, 2), slice(-2, None)):
        semantic[edge], instance[edge] = VOID, 0
    return semantic[None], instance[None]


def embed(semantic: Tensor, instance: Tensor, dims: int, separation: float, noise: float) -> Tensor:
    """Return an embedding whose nodes lie around centres of their own, with gaussian noise.

    At separation 1 categories are far apart and instances just inside their category's inner radius.
    """
    generator = torch.Generator(device=semantic.device.type).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=semantic.device)

    categories = 9 * draw(VOID + 1, dims)
    instances = 1.6 * torch.nn.functional.normalize(draw(int(instance.max()) + 1, dims), dim=1)
    centres = separation * (categories[semantic] + instances[instance])
    return (centres + noise * draw(*semantic.shape, dims)).movedim(-1, 1).contiguous()


def step(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> Callable[[], Tensor]:
    """Return a call that runs forward and backward and returns the loss."""

    def call() -> Tensor:
        leaf.grad = None
        value = loss(leaf)
        value.backward()
        return value.detach()

    return call


def tasks(options: argparse.Namespace) -> list[tuple[str, dict[str, Callable[[], Tensor]]]]:
    """Return every task with a call per implementation."""
    height, width = options.size
    semantic, instance = (x.to(options.device) for x in scene(height, width, options.instances))
    mask = (instance > 0).long()
    torch.manual_seed(0)
    logits = torch.randn(semantic.shape, device=options.device).add(2 * mask - 1).requires_grad_()
    scores = torch.randn(1, options.classes, height, width, device=options.device).requires_grad_()
    found: list[tuple[str, dict[str, Callable[[], Tensor]]]] = [
        (
            "lovasz_hinge",
            {
                "textbook": step(lambda x: textbook_hinge(x, mask), logits),
                "lovasz_embed": step(lambda x: lovasz_hinge(x, mask), logits),
            },
        ),
        (
            f"lovasz_softmax, {options.classes} classes",
            {
                "textbook": step(lambda x: textbook_softmax(x, semantic), scores),
                "lovasz_embed": step(lambda x: lovasz_softmax(x, semantic), scores),
            },
        ),
    ]
    levels = panoptic_levels(semantic, instance, things=THINGS, radii=RADII)
    for phase, separation, noise in (("early", 0.05, 1.0), ("late", 1.0, 0.17)):
        leaf = embed(semantic, instance, options.dims, separation, noise).requires_grad_()
        calls = {
            "textbook": step(lambda x: textbook_hierarchical(x, semantic, instance), leaf),
            "lovasz_embed": step(lambda x: hierarchical_lovasz_hinge(x, levels).loss, leaf),
        }
        if options.reference:
            calls["reference"] = step(lambda x: hierarchical_lovasz_hinge(x, levels, impl="reference").loss, leaf)
        found.append((f"hierarchical, {options.instances} instances, {phase}", calls))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--instances", type=int, default=50)
    parser.add_argument("--classes", type=int, default=19, help="of the softmax")
    parser.add_argument("--dims", type=int, default=8, help="of the embedding")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--reference", action="store_true", help="time the reference of the hierarchical loss, too")
    parser.add_argument("--json", action="store_true", help="print one JSON line after the table")
    parser.add_argument("--smoke", action="store_true", help="tiny pictures, one repeat")
    options = parser.parse_args()
    if options.smoke:
        options.size, options.instances, options.classes, options.repeats = (48, 64), 6, 7, 1

    height, width = options.size
    print(f"forward and backward, one picture of {height} x {width}, {options.dims} embedding dimensions")
    measurements: list[Measurement] = []
    for task, calls in tasks(options):
        expected = calls["textbook"]()
        for implementation, call in calls.items():
            # The textbook's float32 counts and sums are good for about four digits on millions of pixels.
            torch.testing.assert_close(call(), expected, rtol=1e-3, atol=1e-5, msg=f"{task}: {implementation}")
            measurements.append(measure(task, implementation, call, repeats=options.repeats, device=options.device))
    report(measurements, baseline="textbook", device=options.device, as_json=options.json)


if __name__ == "__main__":
    main()
