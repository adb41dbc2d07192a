"""Tables that the page's script can sort, and lists of names and values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lovasz_embed.report._html import Html, tag


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
        shown: What is read.
        value: What it is sorted by; None is last in either direction.
    """

    shown: str
    value: float | str | None


def percent(value: float) -> Cell:
    """Return a fraction in percent with one digit, as the command line prints it; nan is a dash."""
    return Cell("-", None) if math.isnan(value) else Cell(f"{100 * value:.1f}", round(value, 6))


def number(value: float) -> Cell:
    """Return a whole number with its thousands apart."""
    return Cell(f"{value:,.0f}", value)


def text(value: str) -> Cell:
    """Return text that is sorted by its letters."""
    return Cell(value, value.casefold())


def table(
    caption: str,
    columns: Mapping[str, str],
    rows: Iterable[Sequence[Cell]],
    *,
    sortable: bool = True,
    totals: int = 0,
) -> Html:
    """Return a table in a frame that scrolls sideways where the screen is narrow; the first column names the row.

    Args:
        caption: Says what the table holds.
        columns: Title -> what it means, shown where a pointer rests; "" for nothing.
        rows: Cells in the order of the columns; those of strings are set to the left, others to the right.
        sortable: Let the page's script sort it.
        totals: Rows at the end that are set apart.
    """
    bodies = list(rows)
    left = [all(isinstance(row[place].value, str) for row in bodies) for place in range(len(columns))]
    head = [
        tag("th", name, scope="col", title=hint or None, class_=None if text else "num")
        for (name, hint), text in zip(columns.items(), left, strict=True)
    ]
    lines = []
    for place, row in enumerate(bodies):
        cells = [
            tag("th", first.shown, scope="row", data_value=first.value)
            if not column
            else tag("td", first.shown, class_=None if left[column] else "num", data_value=first.value)
            for column, first in enumerate(row)
        ]
        lines.append(tag("tr", *cells, class_="total" if place >= len(bodies) - totals else None))
    inner = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *head)),
        tag("tbody", *lines),
        class_="sortable" if sortable else None,
    )
    return tag("div", inner, class_="frame", role="region", tabindex=0, aria_label=caption)


def values(caption: str, record: Mapping[str, Any]) -> Html:
    """Return names and values as a list of pairs."""
    pairs = []
    for name, value in record.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else _plain(value)
        pairs.append(tag("div", tag("dt", name), tag("dd", shown)))
    return tag("section", tag("h3", caption), tag("dl", *pairs), class_="values")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
