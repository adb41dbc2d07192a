"""What a user of the installed package relies on: one version, types, a light import, documented names."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
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
    "report",
]
HEAVY = [
    "numba",
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
