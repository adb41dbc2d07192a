"""Which engine runs where, and what is said of one that cannot, and of tensors on different devices. No GPU needed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import runpy
import sys
from collections.abc import Callable

import pytest
import torch

from lovasz_embed._ops import engines
from lovasz_embed.clustering import cluster_embeddings
from lovasz_embed.hierarchy import Level, hierarchical_lovasz_hinge, panoptic_levels
from lovasz_embed.lovasz import lovasz_softmax, lovasz_weights
from lovasz_embed.panoptic import segment
from lovasz_embed.prototypes import class_means, nearest_class_mean


@pytest.mark.parametrize(
    ("device", "triton", "interpreting", "engine"),
    [
        ("cpu", True, False, "numba"),
        ("cpu", False, False, "numba"),
        ("cpu", True, True, "numba"),
        ("cuda", True, False, "triton"),
        ("cuda:1", True, False, "triton"),
        ("cuda", False, False, "reference"),
        ("cuda", True, True, "reference"),
        ("mps", True, False, "reference"),
        ("xpu", True, False, "reference"),
        ("meta", True, False, "reference"),
    ],
)
def test_what_auto_takes(
    monkeypatch: pytest.MonkeyPatch, device: str, triton: bool, interpreting: bool, engine: str
) -> None:
    monkeypatch.setattr(engines, "has_triton", lambda: triton)
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpreting)))
    assert engines.engine_for("auto", torch.device(device)) == engine
    engines.check_engine("auto", torch.device(device), "input")


@pytest.mark.parametrize("impl", ["reference", "numba", "triton"])
def test_an_engine_that_was_named_is_taken(impl: str) -> None:
    assert engines.engine_for(impl, torch.device("cuda")) == impl


@pytest.mark.parametrize(
    ("version", "found"), [("3.6.0", True), ("4.0.0+git1", True), ("3.10.1", True), ("3.5.1", False), (None, False)]
)
def test_triton_is_looked_for_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, version: str | None, found: bool
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if version and name == "triton" else None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert runpy.run_path(engines.__file__)["has_triton"]() is found
    assert "triton" not in sys.modules


NO_TRITON = (
    "impl must be 'auto' or 'reference' where Triton 3.6 or newer is missing, got triton. "
    "Install it with pip install triton"
)


@pytest.mark.parametrize(
    ("impl", "device", "triton", "interpreting", "text"),
    [
        ("triton", "cpu", True, False, "x must be on a CUDA device for impl='triton', got cpu. Use impl='auto'."),
        ("triton", "mps", True, False, "x must be on a CUDA device for impl='triton', got mps. Use impl='auto'."),
        ("triton", "cuda", True, True, "x must be on the CPU for impl='triton', got cuda. TRITON_INTERPRET=1 is set."),
        ("triton", "cuda", False, False, NO_TRITON),
        ("triton", "cpu", False, True, NO_TRITON),
        ("numba", "cuda", True, False, "x must be on the CPU for impl='numba', got cuda. Use impl='auto'."),
        ("gpu", "cuda", True, False, "impl must be one of 'auto', 'reference', 'numba', 'triton', got 'gpu'"),
    ],
)
def test_an_engine_that_cannot_run_fails_clearly(
    monkeypatch: pytest.MonkeyPatch, impl: str, device: str, triton: bool, interpreting: bool, text: str
) -> None:
    monkeypatch.setattr(engines, "has_triton", lambda: triton)
    monkeypatch.setenv("TRITON_INTERPRET", "true" if interpreting else "0")
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        engines.check_engine(impl, torch.device(device), "x")


# The meta device stands in for a second one.
E, MEANS, LABELS, ELSEWHERE = torch.zeros(1, 3, 20), torch.eye(2, 3), torch.arange(20).view(1, 20) // 10, "meta"
TWO_DEVICES: dict[str, Callable[[], object]] = {
    "weight must be on the device of input": lambda: lovasz_softmax(E, LABELS, weight=torch.ones(3, device=ELSEWHERE)),
    "target must be on the device of errors": lambda: lovasz_weights(E[:, 0], LABELS.to(ELSEWHERE)),
    "means must be on the device of embedding": lambda: nearest_class_mean(E, MEANS.to(ELSEWHERE)),
    "semantic must be on the device of embedding": lambda: class_means(E, LABELS.to(ELSEWHERE), num_classes=2),
    "mask_or_labels must be on the device of embedding": lambda: cluster_embeddings(
        E, LABELS.to(ELSEWHERE), radius=1.0
    ),
    "offset must be on the device of embedding": lambda: segment(
        E, MEANS, things={1}, radius=1.0, offset=torch.zeros(2, device=ELSEWHERE)
    ),
    "class_means must be on the device of embedding": lambda: hierarchical_lovasz_hinge(
        E, [Level(LABELS, 1.0)], class_means=MEANS.to(ELSEWHERE), pull_weight=1.0
    ),
    "instance must be on the device of semantic": lambda: panoptic_levels(LABELS, LABELS.to(ELSEWHERE), things={1}),
}


@pytest.mark.parametrize("text", TWO_DEVICES)
def test_whatever_takes_two_tensors_says_which_one_is_elsewhere(text: str) -> None:
    with pytest.raises(ValueError, match=rf"{text} \(cpu\), got meta\. Move it with \.to\('cpu'\)"):
        TWO_DEVICES[text]()
