"""What a user of the installed package relies on: one version, types, a light import, documented names."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import lovasz_embed as le

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(le.__file__).parent
PUBLIC_MODULES = [
    "lovasz",
    "hierarchy",
    "prototypes",
    "clustering",
    "panoptic",
    "quality",
    "integrations.torchmetrics",
    "formats",
    "synthetic",
    "visualise",
    "model",
    "training",
    "export",
    "report",
]
HEAVY = [
    "numba",
    "scipy",
    "PIL",
    "tifffile",
    "typer",
    "rich",
    "hotcoco",
    "sklearn",
    "tensorboard",
    "matplotlib",
    "torchmetrics",
]


def public_names(module: ModuleType) -> list[str]:
    """Return the names that a module offers: its `__all__`, or what it defines without an underscore."""
    if hasattr(module, "__all__"):
        return sorted(set(module.__all__) - {"__version__"})
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(module.__name__)
    )


def documented(module: ModuleType) -> list[tuple[str, object]]:
    """Return the public classes and functions of a module, with their names."""
    members = ((name, getattr(module, name)) for name in public_names(module))
    return [(name, value) for name, value in members if inspect.isclass(value) or inspect.isroutine(value)]


@pytest.fixture(params=["", *PUBLIC_MODULES], ids=lambda name: name or "lovasz_embed")
def module(request: pytest.FixtureRequest) -> ModuleType:
    if "." in request.param:  # a door into another library, which may be absent
        pytest.importorskip(request.param.rpartition(".")[2])
    return importlib.import_module(f"lovasz_embed.{request.param}".rstrip("."))


def checkout_file(name: str) -> str:
    """Return the text of a file of the repository, or skip where only the package is there."""
    file = ROOT / name
    if not file.is_file():
        pytest.skip(f"{name} is absent: run the tests from a checkout")
    return file.read_text(encoding="utf-8")


def test_the_version_is_written_in_one_place() -> None:
    project = tomllib.loads(checkout_file("pyproject.toml"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "lovasz_embed/__init__.py"
    assert not re.search(r"(?m)^version:", checkout_file("CITATION.cff"))


def test_the_installed_version_is_that_of_the_source() -> None:
    try:
        installed = importlib.metadata.version("lovasz-embed")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("lovasz-embed is not installed: pip install -e .")
    assert installed == le.__version__, "installed from an older source: run pip install -e . again"


def test_type_checkers_see_the_types() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_the_import_pulls_in_nothing_heavy_but_torch() -> None:
    code = f"import sys, lovasz_embed; print(sorted(set({HEAVY}) & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert (answer.stdout, answer.stderr) == ("[]\n", "")


def test_the_import_adds_little_to_that_of_torch() -> None:
    """At most 0.15 s, of processor time: the clock on the wall tells of other processes as well."""
    code = "import torch, time; t = time.process_time(); import lovasz_embed; print(time.process_time() - t)"
    seconds: list[float] = []
    while len(seconds) < 3 and min(seconds, default=1.0) > 0.15:  # the first run may have bytecode to write
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
        seconds.append(float(answer.stdout))
    assert min(seconds) <= 0.15, f"{seconds} s: import what is heavy in the function that needs it"


CONSUMER = '''
"""A user's own code, checked as strictly as mypy can."""

from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import lovasz_embed as le
from lovasz_embed.formats import open_dataset
from lovasz_embed.model import PanopticEmbedder


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = le.LovaszHinge(ignore_index=255)
        self.classes = le.LovaszSoftmax(classes="present", weight=torch.ones(3))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return le.lovasz_softmax(logits, target) + le.lovasz_hinge(logits[:, 0], target == 0)


def step(embedding: Tensor, semantic: Tensor, instance: Tensor) -> Tensor:
    levels = le.panoptic_levels(semantic, instance, things={1, 2}, radii=(4.0, 1.0))
    assert_type(levels, tuple[le.Level, le.Level])
    out = le.hierarchical_lovasz_hinge(embedding, levels, kernel="margin", ncm_weight=1.0)
    assert_type(out.loss, Tensor)
    return out.loss


def score(embedding: Tensor, semantic: Tensor, instance: Tensor) -> float:
    ncm = le.NearestClassMean(num_classes=3, dim=8)
    ncm.update(embedding, semantic)
    result = le.segment(embedding, ncm.means, things=[1, 2], radius=1.0)
    truth = le.PanopticResult.from_maps(semantic, instance, things={1, 2})
    back = le.PanopticResult.from_transformers(result.to_transformers(), things={1, 2})
    assert_type(back, le.PanopticResult)
    ids = [segment.id for picture in result for segment in picture.segments[0]]
    assert_type(ids, list[int])
    quality = le.panoptic_quality(result, truth)
    assert_type(quality.pq, float)
    return quality.pq_things


def arrays(embedding: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    clusters = le.cluster_embeddings(embedding, mask, radius=le.estimate_radius(embedding, mask).radius)
    assert_type(clusters, le.Clusters)
    assert_type(clusters.numpy().labels, NDArray[np.int32])
    return clusters.numpy().labels


def files(folder: str) -> list[dict[str, Any]]:
    data = open_dataset(folder, format="instance-map", split="train")
    model = PanopticEmbedder.from_pretrained(folder)
    result = model.segment(torch.rand(1, 3, 32, 32))
    le.lovasz_hinge("logits", torch.ones(1))  # type: ignore[arg-type]  # unused where the types are Any
    return result.to_coco_instances(range(len(data)))
'''


@pytest.mark.slow
def test_a_users_strict_mypy_passes(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "consumer.py").write_text(CONSUMER)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--warn-unused-ignores",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    try:
        importlib.metadata.version("lovasz-embed")  # installed: py.typed must do
    except importlib.metadata.PackageNotFoundError:
        environment["MYPYPATH"] = str(PACKAGE.parent)
        command.append("--follow-imports=silent")
    answer = subprocess.run(
        [*command, "consumer.py"], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Success" in answer.stdout


def test_every_promised_name_exists(module: ModuleType) -> None:
    assert [name for name in public_names(module) if not hasattr(module, name)] == []


def test_every_public_name_says_what_it_is(module: ModuleType) -> None:
    assert module.__doc__
    # A dataclass or named tuple without a docstring of its own shows its signature, which says nothing.
    assert [
        name
        for name, value in documented(module)
        if not inspect.getdoc(value) or (inspect.getdoc(value) or "").startswith(f"{name}(")
    ] == []


def test_every_public_function_shows_an_example(module: ModuleType) -> None:
    functions = [(name, value) for name, value in documented(module) if inspect.isroutine(value)]
    assert [name for name, value in functions if ">>>" not in (inspect.getdoc(value) or "")] == []


def test_the_reference_lists_every_public_name(module: ModuleType) -> None:
    listed = set(re.findall(r"(?m)^\s+~?(?:lovasz_embed\.)?(?:\w+\.)?(\w+)$", checkout_file("docs/reference.md")))
    assert [name for name in public_names(module) if name not in listed] == []
