"""The pages fit together: the reference and what the package offers, links between pages, the table of contents.

What only the built pages show, links to the gallery and to entries of the reference among them, is checked by
`docs/_ext/check_pages.py` after the build; `.ci/run` does both.
"""

from __future__ import annotations

import importlib
import re
import runpy
import unicodedata
from pathlib import Path

import pytest

import lovasz_embed

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BUILT = {"_build", "auto_gallery"}
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if BUILT.isdisjoint(page.relative_to(DOCS).parts)]
BESIDE = [page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md") if page.is_file()]


def relative(page: Path) -> str:
    """Return a page's name for people."""
    return page.relative_to(ROOT).as_posix()


def page_or_skip(name: str) -> str:
    """Return the text of a page, or skip where only the package is there."""
    page = DOCS / name
    if not page.is_file():
        pytest.skip(f"docs/{name} is absent: run the tests from a checkout")
    return page.read_text(encoding="utf-8")


def reference_tables() -> dict[str, list[str]]:
    """Return the names in the table of each module of the reference."""
    text = page_or_skip("reference.md")
    tables = re.findall(r"currentmodule:: ([\w.]+)\n\.\. autosummary::\n   :nosignatures:\n\n((?:   \w+\n)+)", text)
    return {module: names.split() for module, names in tables}


def test_the_tables_of_the_reference_are_what_the_modules_offer() -> None:
    tables = reference_tables()
    assert tables
    # Constants have no entry of their own in some modules: their table may leave out what is no class or function.
    for module, names in tables.items():
        home = importlib.import_module(module)
        offered = set(home.__all__) if hasattr(home, "__all__") else set(names)
        plain = {name for name in offered if not callable(getattr(home, name))}
        assert len(names) == len(set(names)), module
        assert set(names) - offered == set(), module
        assert offered - plain - set(names) == set(), module


def test_what_the_package_offers_is_what_its_modules_offer() -> None:
    homes = {name: importlib.import_module(module) for module, names in reference_tables().items() for name in names}
    for name in set(lovasz_embed.__all__) - {"__version__"}:
        assert name in homes, name
        assert getattr(lovasz_embed, name) is getattr(homes[name], name), name


def slug(heading: str) -> str:
    """Return the anchor that GitHub and MyST make of a heading."""
    text = unicodedata.normalize("NFC", re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a Markdown file."""
    text = re.sub(r"(?ms)^(```+|~~~+).*?^\1\s*$", "", page.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"(?m)^#+ (.*)$", text)}


def broken_links(page: Path) -> list[str]:
    """Return the links of a Markdown file that lead to no file of the repository or to no heading of it."""
    text = re.sub(r"(?ms)^(```+|~~~+).*?^\1\s*$", "", page.read_text(encoding="utf-8"))
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        # The pages of the gallery are written by the build, which checks the links to them.
        if "auto_gallery" in file.parts:
            continue
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", [*BESIDE, *PAGES], ids=relative)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# What is `here`\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md) [b](there.md#what-is-here) [c](gone.md) [d](there.md#gone)\n", encoding="utf-8")
    assert broken_links(page) == ["gone.md", "there.md#gone"]


def test_every_page_is_in_the_table_of_contents() -> None:
    if not PAGES:
        pytest.skip("docs/ is absent: run the tests from a checkout")
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for entries in re.findall(r"(?s)```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8")):
            listed |= {page.parent / f"{entry}.md" for entry in re.findall(r"(?m)^[\w/-]+$", entries)}
    assert [relative(page) for page in PAGES if page not in listed] == []


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # matplotlib on a torch tensor
def test_a_script_of_the_gallery_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    script = DOCS / "gallery" / "plot_6_tracking_a_clip.py"
    if not script.is_file():
        pytest.skip("docs/gallery is absent: run the tests from a checkout")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context(fname=DOCS / "_static" / "lovasz.mplstyle"):
        names = runpy.run_path(str(script))
    matplotlib.pyplot.close("all")
    # A thing may begin a second track where it was away for too long; a track never stands for two things.
    assert len({track for _, track in names["pairs"]}) == len(names["pairs"])
