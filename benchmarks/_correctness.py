"""Are peers, the textbook and we right? Values against the layer cake, gradients against the closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import _oracle
import _textbook
import numpy as np
import torch
from _peers import Peer
from _rows import BINNED_TOLERANCE, PLAIN_TOLERANCE, TOLERANCE
from _scenes import random_mask
from _targets import power
from torch import Tensor

from lovasz_embed.lovasz import lovasz_hinge, lovasz_softmax

VOID = 255
CLASSES = 19


@dataclass(frozen=True)
class Verdict:
    """One contestant's answer to one question; `right` is None where it has none."""

    question: str
    contestant: str
    truth: float
    found: float | None
    right: bool | None
    ours: bool

    def line(self) -> str:
        """Return it in words."""
        if self.found is None:
            return f"{self.contestant:27} {'-':>12}  cannot: it knows no ignored label"
        off = abs(self.found - self.truth) / max(abs(self.truth), 1e-12)
        return f"{self.contestant:27} {self.found:12.8f}  {'right' if self.right else 'WRONG'}, off by {off:.1e}"


@dataclass(frozen=True)
class Slopes:
    """How far one contestant's gradient is from the closed form in float64.

    Attributes:
        contestant: Whose gradient it is.
        largest: Largest relative error of an entry whose weight is not 0.
        median: The median of these.
        total: Sum of the absolute errors over the sum of the absolute slopes.
        spurious_zeros: Share of the entries that have a gradient of 0 and should not.
        ours: Whether it must be right.
    """

    contestant: str
    largest: float
    median: float
    total: float
    spurious_zeros: float
    ours: bool

    @property
    def right(self) -> bool:
        """Say whether it is right to float32 rounding."""
        return self.largest <= 1e-5 and self.spurious_zeros == 0

    def line(self) -> str:
        """Return it in words."""
        return (
            f"{self.contestant:27} {'right' if self.right else 'WRONG'}, off by {self.largest:.1e} at most, "
            f"{self.median:.1e} in the median, {self.total:.1e} in total; {self.spurious_zeros:.1%} spurious zeros"
        )


def contestants(peers: Sequence[Peer]) -> list[tuple[Peer, bool, float]]:
    """Return everyone who answers: whether it is ours, and how exact its values should be."""

    def ours(method: str) -> tuple[Any, Any]:
        return (
            lambda x, y, ignored: lovasz_hinge(x, y, ignore_index=ignored, method=method),
            lambda x, y, ignored: lovasz_softmax(x, y, ignore_index=ignored, method=method),
        )

    found = [
        (Peer("lovasz_embed", "", *ours("sort")), True, TOLERANCE),
        (Peer("lovasz_embed, binned", "", *ours("binned")), True, BINNED_TOLERANCE),
        (Peer("textbook", "", _textbook.hinge, _textbook.softmax), False, PLAIN_TOLERANCE),
    ]
    return found + [(peer, False, PLAIN_TOLERANCE) for peer in peers]


def check_values(peers: Sequence[Peer], pixels: int, device: str) -> list[Verdict]:
    """Ask everyone five questions and print the answers."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2 ** (pixels.bit_length() // 2), pixels // 2 ** (pixels.bit_length() // 2))
    logits = torch.randn(shape, generator=generator)
    scores = torch.randn(1, CLASSES, *shape[1:], generator=generator)
    labels = torch.randint(CLASSES, shape, generator=generator)
    mask = random_mask(shape, foreground=0.3)
    void = torch.rand(shape, generator=generator) < 0.25
    questions: list[tuple[str, str, Tensor, Tensor, int | None]] = [
        (f"softmax, {CLASSES} classes, random", "softmax", scores, labels, None),
        (f"softmax, {CLASSES} classes, a quarter ignored", "softmax", scores, labels.masked_fill(void, VOID), VOID),
        ("hinge, random", "hinge", logits, mask, None),
        ("hinge, a quarter ignored", "hinge", logits, mask.masked_fill(void, VOID), VOID),
        ("hinge, all background", "hinge", logits, torch.zeros_like(mask), None),
    ]
    verdicts = []
    for title, loss, x, y, ignored in questions:
        truth = getattr(_oracle, loss)(x, y, ignored)
        print(f"{title}, {power(pixels)} pixels: {truth:.8f}")
        for contestant, ours, tolerance in contestants(peers):
            found = None
            if ignored is None or contestant.ignores:
                found = float(getattr(contestant, loss)(x.to(device), y.to(device), ignored))
            right = None if found is None else abs(found - truth) <= tolerance * abs(truth)
            verdicts.append(Verdict(title, contestant.name, truth, found, right, ours))
            print(f"    {verdicts[-1].line()}")
    return verdicts


def check_slopes(peers: Sequence[Peer], pixels: int, device: str) -> list[Slopes]:
    """Compare gradients of the hinge, 1 % foreground, where errors are distinct and exact in float32.

    With ties, or errors that rounding can reorder, a gradient would be one of several.
    """
    ranks = torch.randperm(pixels, generator=torch.Generator().manual_seed(0))
    errors = (ranks + 1).float() * 2 / 2 ** (pixels - 1).bit_length()  # multiples of a power of two, 2 at most
    mask = random_mask((pixels,), foreground=0.01)
    logits = ((1 - errors) * (2 * mask - 1)).view(1, 1, pixels)
    target = mask.view(1, 1, pixels)
    truth = _oracle.hinge_slope(logits, target)
    weighty = truth != 0
    found = []
    print(f"gradient of the hinge, {power(pixels)} pixels, 1 % foreground, relative to the closed form in float64")
    for contestant, ours, tolerance in contestants(peers):
        if tolerance == BINNED_TOLERANCE:
            continue  # bins give a gradient of their own: that of a loss within the bracket
        slope = _slope(lambda x, c=contestant: c.hinge(x, target.to(device), None), logits.to(device))
        relative = np.abs(slope[weighty] / truth[weighty] - 1)
        found.append(
            Slopes(
                contestant.name,
                float(relative.max()),
                float(np.median(relative)),
                float(np.abs(slope - truth).sum() / np.abs(truth).sum()),
                float(np.mean(slope[weighty] == 0)),
                ours,
            )
        )
        print(f"    {found[-1].line()}")
    return found


def _slope(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Any:
    leaf = logits.clone().requires_grad_()
    loss(leaf).backward()
    return leaf.grad.double().cpu().numpy().ravel()


def check(peers: Sequence[Peer], device: str, *, smoke: bool) -> tuple[dict[str, Any], list[str]]:
    """Check all; return the records, and a line for everything of ours that is wrong."""
    values = check_values(peers, 2**10 if smoke else 2**17, device)
    slopes = check_slopes(peers, 2**12 if smoke else 2**20, device)
    answers = [(v.ours, v.right, f"{v.question}: {v.line()}") for v in values]
    answers += [(s.ours, s.right, f"gradient of the hinge: {s.line()}") for s in slopes]
    for _, right, line in answers:
        if right is False:
            print(f"wrong: {line}")
    records = {"values": [asdict(v) for v in values], "gradients": [{**asdict(s), "right": s.right} for s in slopes]}
    return records, [line for ours, right, line in answers if ours and right is False]
