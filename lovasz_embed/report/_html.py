"""HTML that cannot be broken by what it shows: text is escaped unless a function here made it.

By hand, as it is forty lines: a template engine would be one more thing to install, with escaping as an option.
"""

from __future__ import annotations

import html
import unicodedata
from typing import Self

_EMPTY = frozenset({"img", "input", "meta", "link", "br"})


class Html(str):
    """Text that is markup already; every other text is escaped when it enters a page."""

    __slots__ = ()

    @classmethod
    def of(cls, *parts: str) -> Self:
        """Return the parts one after another, each escaped unless it is markup.

        >>> Html.of(Html("<b>"), "1 < 2", Html("</b>"))
        '<b>1 &lt; 2</b>'
        """
        return cls("".join(part if isinstance(part, Html) else _escaped(part) for part in parts))


def tag(name: str, /, *content: str, **attributes: str | float | bool | None) -> Html:
    """Return an element.

    Args:
        name: Its name.
        content: Text, which is escaped, and elements.
        attributes: Python's names for HTML's: `class_` is class, `aria_label` is aria-label. True is an attribute
            without a value; False and None leave it out.

    >>> tag("td", "a < b", class_="name", hidden=True, id=None)
    '<td class="name" hidden>a &lt; b</td>'
    """
    opening = [name]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            opening.append(attribute)
        elif value is not None and value is not False:
            opening.append(f'{attribute}="{_escaped(str(value))}"')
    start = Html(f"<{' '.join(opening)}>")
    return start if name in _EMPTY else Html.of(start, *content, Html(f"</{name}>"))


def _escaped(text: str) -> str:
    # No HTML file may hold control characters, nor UTF-8 the halves of surrogates that odd file names are read as.
    shown = (c if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cs"} else "\ufffd" for c in text)
    return html.escape("".join(shown))
