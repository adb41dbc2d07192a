"""The package is a house of floors: a room imports only from floors below its own, never sideways.

A room is one file or one sub-package directly under `lovasz_embed`. What a room imports inside itself is its
own affair. Imports inside functions and under `TYPE_CHECKING` count as well: they are read from the source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lovasz_embed

PACKAGE = Path(lovasz_embed.__file__).parent

# `_check` builds the errors of every room, so it carries the house.
FLOORS = {
    0: {"_check"},
    1: {"_ops", "_atomic", "_coco", "_json", "_rle", "synthetic", "weights"},
    2: {"lovasz", "hierarchy", "prototypes", "clustering"},
    3: {"panoptic"},
    4: {"model", "formats", "quality", "tracking", "visualise"},
    5: {"export", "training", "integrations"},
    6: {"report"},
    7: {"cli"},
    8: {"__init__", "__main__", "functional", "testing"},  # the doors: they see every room, no room sees them
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}


def rooms(package: Path) -> Iterator[tuple[str, Path]]:
    """Yield every source file with the room it lies in."""
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        yield (inside.parts[0] if len(inside.parts) > 1 else inside.stem), file


def imported_rooms(file: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the room of every import of this package in `file`."""
    name = package.name
    parents = [name, *file.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{source}.{alias.name}" for alias in node.names]
        for target in targets:
            top, _, rest = target.partition(".")
            if top == name:
                room = rest.partition(".")[0]
                # A name that is no room is an attribute of the package: it comes in through the door.
                is_room = room in FLOOR_OF or (package / f"{room}.py").is_file() or (package / room).is_dir()
                if rest != "__version__":
                    yield node.lineno, room if is_room else "__init__"


def violations(package: Path) -> list[str]:
    """Say for every forbidden import where it is and why."""
    found = []
    for room, file in rooms(package):
        for line, other in imported_rooms(file, package):
            own, below = FLOOR_OF.get(room), FLOOR_OF.get(other)
            if own is not None and below is not None and other != room and below >= own:
                where = f"{file.relative_to(package.parent)}:{line}"
                found.append(f"{where}: {room} (floor {own}) must not import {other} (floor {below})")
    return found


def test_every_room_has_a_floor() -> None:
    homeless = sorted({room for room, _ in rooms(PACKAGE)} - FLOOR_OF.keys())
    assert homeless == [], "give these rooms a floor in FLOORS"


def test_no_room_imports_upwards_or_sideways() -> None:
    assert violations(PACKAGE) == []


@pytest.fixture
def house(tmp_path: Path) -> Path:
    package = tmp_path / "lovasz_embed"
    (package / "_ops").mkdir(parents=True)
    (package / "formats").mkdir()
    for file in ("__init__", "_check", "lovasz", "hierarchy", "quality", "_ops/__init__", "formats/__init__"):
        (package / f"{file}.py").write_text("")
    return package


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("hierarchy.py", "from lovasz_embed.lovasz import lovasz_hinge"),
        ("hierarchy.py", "from lovasz_embed import lovasz"),
        ("hierarchy.py", "import lovasz_embed.lovasz as lovasz"),
        ("hierarchy.py", "from . import lovasz"),
        ("hierarchy.py", "from .lovasz import lovasz_hinge"),
        ("hierarchy.py", "def late():\n    from lovasz_embed.lovasz import lovasz_hinge"),
        ("hierarchy.py", "from lovasz_embed import lovasz_hinge"),
        ("_ops/kernels.py", "from lovasz_embed.lovasz import lovasz_hinge"),
        ("_ops/kernels.py", "from ..lovasz import lovasz_hinge"),
        ("formats/coco.py", "from lovasz_embed.quality import panoptic_quality"),
        ("formats/coco.py", "from .. import quality"),
        ("_check.py", "from lovasz_embed import _ops"),
    ],
)
def test_an_import_upwards_or_sideways_is_seen(house: Path, file: str, line: str) -> None:
    (house / file).write_text(line)
    assert len(violations(house)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("hierarchy.py", "from lovasz_embed import _check, __version__"),
        ("hierarchy.py", "from lovasz_embed._ops import reference"),
        ("hierarchy.py", "import torch\nfrom torch import Tensor"),
        ("formats/coco.py", "from lovasz_embed.formats.index import read"),
        ("formats/coco.py", "from .index import read\nfrom . import index"),
        ("formats/coco.py", "from ..hierarchy import Level"),
        ("__init__.py", "from lovasz_embed.lovasz import lovasz_hinge"),
    ],
)
def test_an_import_from_below_or_from_the_same_room_is_fine(house: Path, file: str, line: str) -> None:
    (house / file).write_text(line)
    assert violations(house) == []


def users_of(library: str, package: Path) -> set[str]:
    """Return the files that import a library or anything from it."""
    users = set()
    for _, file in rooms(package):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(module.partition(".")[0] == library for module in modules):
                users.add(file.relative_to(package).as_posix())
    return users


def test_one_file_alone_decides_how_numba_runs() -> None:
    assert users_of("numba", PACKAGE) <= {"_ops/jit.py"}


def test_triton_stays_in_its_folder() -> None:
    """A user without Triton, or without a GPU, must never meet it."""
    assert {Path(file).parent.as_posix() for file in users_of("triton", PACKAGE)} <= {"_ops/gpu"}
