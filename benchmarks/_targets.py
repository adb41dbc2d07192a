"""The rows of the table of targets that know no embedding: hinge, softmax and weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import _oracle
import _textbook
import numpy as np
import torch
from _floor import Floor, Rates, hinge_floor, softmax_floor
from _measure import Step, take_turns
from _rows import BINNED_TOLERANCE, PLAIN_TOLERANCE, TOLERANCE, Row, must_agree, speed_row
from _scenes import hinge_logits, random_mask, scene

from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax, lovasz_weights

OFFICIAL_SIZE = (1024, 2048)


@dataclass(frozen=True)
class Setting:
    """What all rows share: the picture, the machine's rates, and how much patience there is."""

    height: int
    width: int
    rates: Rates
    repeats: int
    device: str = "cpu"
    instances: tuple[int, int] = (100, 400)
    classes: int = 19
    steps: int = 300
    full: bool = False

    @property
    def judged(self) -> bool:
        """The targets are for one size and for the CPU."""
        return (self.height, self.width) == OFFICIAL_SIZE and self.instances == (100, 400) and self.device == "cpu"

    @property
    def pixels(self) -> int:
        """Pixels of the picture."""
        return self.height * self.width


def power(pixels: int) -> str:
    """Return the number of pixels as a power of two, where it is one."""
    exponent = math.log2(pixels)
    return f"2^{exponent:.0f}" if exponent.is_integer() else str(pixels)


def hinge_rows(setting: Setting) -> Iterator[Row]:
    """Yield the rows of one binary mask: the textbook beside the exact and the binned method."""
    target = random_mask((1, setting.height, setting.width))
    for title, past, methods in (
        ("random logits", None, {"exact": 10, "binned": 25}),
        ("95 % past the margin", 0.95, {"exact": 60}),
    ):
        leaf = hinge_logits(target, past).to(setting.device).requires_grad_()
        on_device = target.to(setting.device)
        truth = _oracle.hinge(leaf.detach(), target)
        positive = int((leaf.detach() * (2 * on_device - 1) < 1).sum())
        textbook = Step(lambda x, y=on_device: _textbook.hinge(x, y), leaf)
        for name, at_least in methods.items():
            work = f"lovasz_hinge, {power(setting.pixels)} pixels, {title}, {name}"
            method = "binned" if name == "binned" else "sort"
            ours = Step(lambda x, y=on_device, m=method: lovasz_hinge(x, y, method=m), leaf)
            must_agree(work, "textbook torch", textbook.value(), truth, PLAIN_TOLERANCE)
            must_agree(work, "ours", ours.value(), truth, BINNED_TOLERANCE if name == "binned" else TOLERANCE)
            floor = hinge_floor(setting.pixels, positive, ordered=name == "exact")
            yield race(setting, work, ("textbook torch", textbook), ours, at_least, floor)


def softmax_rows(setting: Setting) -> Iterator[Row]:
    """Yield the row of 19 classes: a loop over the classes beside ours."""
    semantic, _ = scene(setting.height, setting.width, setting.instances[0])
    semantic = semantic.to(setting.device)
    logits = torch.randn(1, setting.classes, setting.height, setting.width, generator=torch.Generator().manual_seed(0))
    leaf = logits.to(setting.device).requires_grad_()
    loop = Step(lambda x: _textbook.softmax(x, semantic), leaf)
    ours = Step(lambda x: lovasz_softmax(x, semantic), leaf)
    work = f"lovasz_softmax, {setting.classes} classes, {setting.height} x {setting.width}"
    # The layer cake of 40 million float64 errors would take longer than the row; the sweep has it up to 2^20 pixels.
    must_agree(work, "loop over classes", loop.value(), ours.value(), PLAIN_TOLERANCE)
    floor = softmax_floor(setting.pixels, setting.classes)
    yield race(setting, work, ("loop over classes", loop), ours, 15, floor)


def race(setting: Setting, work: str, baseline: tuple[str, Step], ours: Step, at_least: float, floor: Floor) -> Row:
    """Time a baseline and ours in turns, take their memory, and judge."""
    name, slow = baseline
    seconds = take_turns({name: slow.seconds, "ours": ours.seconds}, repeats=setting.repeats)
    peaks = {name: slow.peak_mb(), "ours": ours.peak_mb()}
    contestants = [(n, seconds[n]) for n in (name, "ours")]
    return speed_row(work, *contestants, at_least, floor, setting.rates, judged=setting.judged, peaks=peaks)


def weight_rows(setting: Setting) -> Iterator[Row]:
    """Yield the row of the weights in float32, 1 % foreground, beside those in float64."""
    pixels = 2 * setting.pixels
    generator = torch.Generator().manual_seed(0)
    # Distinct and exact in float32 up to 2^24 pixels: the order is certain, so every weight has one true value.
    errors = (torch.randperm(pixels, generator=generator) + 1).float() / 2 ** math.ceil(math.log2(pixels))
    target = random_mask((pixels,), foreground=0.01)
    truth = _oracle.weights(errors.double().numpy(), target.numpy() == 1)
    details, data = [], {}
    for name, weigh in (("ours", lovasz_weights), ("textbook torch", _textbook.weights)):
        found = weigh(errors.to(setting.device), target.to(setting.device)).double().cpu().numpy()
        weighty = truth > 0
        relative = np.abs(found[weighty] / truth[weighty] - 1)
        zeros = int(np.count_nonzero(found[weighty] == 0))
        data[name] = {"largest": float(relative.max()), "median": float(np.median(relative)), "spurious_zeros": zeros}
        details.append(
            f"{name:27} relative error {relative.max():.1e} at most, {np.median(relative):.1e} in the median; "
            f"{zeros} spurious zeros ({zeros / pixels:.0%})"
        )
    worst, zeros = data["ours"]["largest"], data["ours"]["spurious_zeros"]
    half_ulp = float(np.finfo(np.float32).eps) / 2
    details.append(f"floor {half_ulp:.1e}, the rounding of one float32; we are {worst / half_ulp:.1f} x from it")
    yield Row(
        f"weights against float64, {power(pixels)} pixels, 1 % foreground",
        "the closed form in float64",
        "at most 1e-6, no spurious zero",
        worst,
        worst <= 1e-6 and zeros == 0 if setting.judged else None,
        unit="",
        details=tuple(details),
        data=data,
    )
