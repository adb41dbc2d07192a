"""Other libraries' Lovász losses behind one signature, where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Loss = Callable[[Tensor, Tensor, int | None], Tensor]
"""From logits, target and ignored label to the loss; the hinge's logits are (1, H, W), the softmax's (1, C, H, W)."""


@dataclass(frozen=True)
class Peer:
    """One contestant; `ignores` says whether it knows of labels that do not count."""

    name: str
    version: str
    hinge: Loss
    softmax: Loss
    ignores: bool = True


def installed() -> tuple[list[Peer], list[str]]:
    """Return the peers that can be imported, and one line for each that cannot or has no such loss."""
    found, missing = [], []
    for name, adapt in (("kornia", _kornia), ("segmentation_models_pytorch", _smp), ("monai", _monai)):
        try:
            adapted = adapt(importlib.import_module(name))
        except ModuleNotFoundError as error:
            adapted = "not installed" if error.name == name else f"not importable, {error}"
        except Exception as error:  # such as a torchvision that does not fit the torch: no peer, but no failure of ours
            adapted = f"not importable, {type(error).__name__}: {error}"
        if isinstance(adapted, Peer):
            found.append(adapted)
        else:
            missing.append(f"{name}: {adapted}")
    return found, missing


def _kornia(kornia: Any) -> Peer:
    losses = importlib.import_module("kornia.losses")
    return Peer(
        "kornia",
        kornia.__version__,
        lambda logits, target, _: losses.lovasz_hinge_loss(logits[:, None], target),
        lambda logits, target, _: losses.lovasz_softmax_loss(logits, target),
        ignores=False,
    )


def _smp(smp: Any) -> Peer:
    def hinge(logits: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
        return smp.losses.LovaszLoss("binary", per_image=True, ignore_index=ignore_index)(logits, target)

    def softmax(logits: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
        return smp.losses.LovaszLoss("multiclass", ignore_index=ignore_index)(logits, target)

    return Peer("segmentation_models_pytorch", smp.__version__, hinge, softmax)


def _monai(monai: Any) -> str:
    losses = importlib.import_module("monai.losses")
    named = any("lovasz" in attribute.lower() for attribute in dir(losses))
    return f"{monai.__version__} has {'a Lovász loss now, and no adapter here' if named else 'no Lovász loss'}"
