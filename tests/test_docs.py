"""The Python blocks of the README and of `docs/` run as they stand, in order, one namespace per page.

A block that holds `>>>` is a doctest: what it prints is compared. A block that cannot run by itself says so
in a comment on the line before it: `<!-- not run: the reason -->`. One that needs other libraries names them there,
`<!-- needs: kornia, monai -->`, and is left out, by name, where one of them is absent. Shell blocks are left to
`.ci/run`.
"""

from __future__ import annotations

import doctest
import importlib.util
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from lovasz_embed.cli import app

ROOT = Path(__file__).resolve().parents[1]
BUILT = {"_build", "auto_gallery"}
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page.is_file() and BUILT.isdisjoint(page.relative_to(ROOT).parts)
]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


class Block(NamedTuple):
    """A Python block, with the number of the line before its first one."""

    line: int
    source: str
    needs: tuple[str, ...] = ()


def python_blocks(text: str) -> list[Block]:
    """Return the blocks of a page that must run."""
    found: list[Block] = []
    fence, language, start, skipped, needs, before = "", "", 0, False, (), ""
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        opening = re.match(r"(`{3,}|~{3,})\s*(\S*)", line)
        if not fence and opening:
            fence, language = opening.groups()
            start, skipped = number, before.startswith("<!-- not run:")
            named = re.fullmatch(r"<!-- needs: (.+) -->", before)
            needs = tuple(named[1].split(", ")) if named else ()
        elif fence and line.rstrip() == fence:
            if language in {"python", "py", "pycon"} and not skipped:
                found.append(Block(start, "\n".join(lines[start : number - 1]) + "\n", needs))
            fence = ""
        before = line.strip() or before
    return found


def run(block: Block, page: str, names: dict[str, object]) -> None:
    """Run one block in the namespace of its page; line numbers in errors are those of the page."""
    if ">>>" not in block.source:
        exec(compile("\n" * block.line + block.source, page, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(block.source, names, page, page, block.line)
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    report: list[str] = []
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    assert not report, "".join(report)


@pytest.mark.skipif(not PAGES, reason="README.md and docs/ are absent: run the tests from a checkout")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_python_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    absent: set[str] = set()
    for block in python_blocks(page.read_text(encoding="utf-8")):
        missing = {name for name in block.needs if importlib.util.find_spec(name) is None}
        absent |= missing
        with warnings.catch_warnings():
            if block.needs:  # what another library warns of is its own affair
                warnings.simplefilter("ignore")
            if not missing:
                run(block, page.name, names)
    if absent:
        pytest.skip(f"all blocks ran but those that need {', '.join(sorted(absent))}: install it")


def test_blocks_are_found_with_their_lines_and_marks() -> None:
    text = "a\n```python\nx = 1\n```\n```sh\nz\n```\n````py\nw\n````\n"
    text += "<!-- not run: needs data -->\n```python\ny\n```\n"
    text += "<!-- needs: here, there -->\n```python\nv\n```\n"
    assert python_blocks(text) == [Block(2, "x = 1\n"), Block(8, "w\n"), Block(16, "v\n", ("here", "there"))]


def test_a_block_that_raises_fails_with_the_line_of_its_page() -> None:
    with pytest.raises(ZeroDivisionError) as failure:
        run(Block(41, "x = 0\n1 / x\n"), "page.md", {})
    assert failure.traceback[-1].lineno == 42  # pytest counts from 0: line 43 of the page


def test_a_block_that_prints_something_else_fails() -> None:
    with pytest.raises(AssertionError, match="Expected"):
        run(Block(0, ">>> 1 + 1\n3\n"), "page.md", {})


def test_the_command_line_page_lists_every_option_of_every_verb() -> None:
    page = ROOT / "docs" / "command-line.md"
    if not page.is_file():
        pytest.skip("docs/command-line.md is absent: run the tests from a checkout")
    sections = re.split(r"(?m)^## ", page.read_text(encoding="utf-8"))[1:]
    described = {section.splitlines()[0]: set(re.findall(r"(?m)^\| `(--[\w-]+)`", section)) for section in sections}
    offered = {
        name: {option for parameter in verb.params for option in parameter.opts if option.startswith("--")}
        for name, verb in typer.main.get_group(app).commands.items()
    }
    # A section without options that is named after no verb is prose.
    described = {name: options for name, options in described.items() if options or name in offered}
    assert {verb: options - {"--help"} for verb, options in offered.items()} == described
