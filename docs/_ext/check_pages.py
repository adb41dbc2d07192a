"""Check built pages without a network: `python docs/_ext/check_pages.py docs/_build/html`.

Every link inside the site leads to a file and, where it names one, to an anchor; no page loads a script, a style, a
font or a picture from elsewhere. Links to other sites are not followed. Sphinx's own linkcheck asks the network.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "srcset"), ("iframe", "src")}


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif (tag, name) in LOADED:
                self.loads.append(value)
            elif name == "srcset":
                self.loads += [part.split()[0] for part in value.split(",") if part.strip()]
            elif tag == "a" and name == "href":
                self.links.append(value)


@cache
def page_at(path: Path) -> Page:
    """Read a page once."""
    return Page(path.read_text(encoding="utf-8"))


def faults(root: Path) -> list[str]:
    """Return what is wrong with the pages below a folder, one line each."""
    found = []
    for path in sorted(root.rglob("*.html")):
        page, name = page_at(path), path.relative_to(root)
        for target in (*page.loads, *page.links):
            parts = urlsplit(target)
            if parts.scheme in {"data", "mailto"}:
                continue
            if parts.scheme or parts.netloc:
                if target in page.loads:
                    found.append(f"{name} loads {target}")
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.is_file():
                found.append(f"{name}: no file {target}")
            elif file.suffix == ".html" and unquote(parts.fragment) not in page_at(file).anchors:
                found.append(f"{name}: no anchor {target}")
    for style in sorted(root.rglob("*.css")):
        for target in re.findall(r"(?:url\(|@import\s*)[\"']?(https?:[^\"')]+)", style.read_text(encoding="utf-8")):
            found.append(f"{style.relative_to(root)} loads {target}")
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    wrong = faults(folder)
    print(*wrong, sep="\n")
    pages = len(list(folder.rglob("*.html")))
    print(f"{pages} pages, {len(wrong)} faults")
    sys.exit(1 if wrong or not pages else 0)
