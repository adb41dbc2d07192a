"""Curves as static SVG: axes with round numbers, a thin line of what was logged, a thick one of its average.

By hand: three lines on two axes, whose colours follow the page, are less than a plotting library to install.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lovasz_embed.report._html import Html, tag

_WIDTH, _HEIGHT = 440, 230  # of the drawing, in its own units; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 30
_LARGEST = 1e200  # that is drawn: differences and steps of numbers within it, and of 1 / it, are numbers
_MOST = 300  # points of a curve: finer than the screen


class Axis(NamedTuple):
    """Where numbers lie between two ends, and which of them are written."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, low: float, high: float, *, count: int = 5) -> Axis:
        """Return an axis whose ends and ticks are round numbers.

        >>> Axis.around(0.0, 0.93)
        Axis(low=0.0, high=1.0, ticks=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
        >>> Axis.around(0.0, 5e-324) == Axis.around(0.0, 0.0)
        True
        """
        low, high = max(low, -_LARGEST), min(high, _LARGEST)
        if not high - low > max(1e-12 * max(abs(low), abs(high)), 1 / _LARGEST):
            half = max(abs(low), abs(high)) / 2
            half = half if half > 1 / _LARGEST else 0.5
            low, high = low - half, high + half
        rough = (high - low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        digits = max(0, -math.floor(math.log10(step)))
        ticks = tuple(round(number * step, digits) for number in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks)

    def at(self, value: float) -> float:
        """Return where a value lies: 0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def chart(
    title: str,
    steps: Sequence[float],
    curves: Mapping[str, Sequence[float | None]],
    *,
    smooth: bool = False,
    percent: bool = False,
) -> Html:
    """Return a figure of curves over steps.

    Args:
        title: What is drawn.
        steps: Of the training, ascending.
        curves: Name -> values; None and numbers that are not finite leave a gap.
        smooth: Draw what was logged thin and its moving average thick; the axis then holds the averages and all but
            the largest hundredth of the logged values.
        percent: Values are fractions, written as percent on an axis from 0.

    >>> chart("Loss", [1, 2], {"loss": [0.5, 0.25]}).startswith('<figure class="chart"')
    True
    """
    factor = 100.0 if percent else 1.0
    logged = {name: [factor * _number(value) for value in values] for name, values in curves.items()}
    lines = {name: _average(values) if smooth else values for name, values in logged.items()}
    heights = sorted(value for values in logged.values() for value in values if math.isfinite(value))
    peak = heights[max(0, math.ceil(0.99 * len(heights)) - 1)] if smooth and heights else max(heights, default=1.0)
    peak = max([peak, *(v for values in lines.values() for v in values if math.isfinite(v))])
    x = _Across.over(steps)
    y = Axis.around(min([0.0, *heights]), peak if peak > 0 else 1.0)
    drawn = [_axes(x.axis, y)]
    for number, name in enumerate(curves, start=1):
        if smooth:
            drawn.append(tag("path", d=_path(steps, logged[name], x.axis, y), class_=f"thin c{number}"))
        path = _path(steps, lines[name], x.axis, y)
        drawn.append(tag("path", d=path, class_=f"{'thick' if 'L' in path else 'dots'} c{number}"))
    bottom = _HEIGHT - _BOTTOM
    drawn.append(tag("line", class_="cursor", x1=_LEFT, x2=_LEFT, y1=_TOP, y2=bottom, hidden=True))
    summary = "; ".join(f"{name} {_short(_last(values))} at the end" for name, values in lines.items())
    svg = tag(
        "svg",
        *drawn,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title} over {len(steps)} logged steps: {summary}",
    )
    kept = list(_thinned(len(steps)))
    points = {"x": [steps[i] for i in kept], "span": [x.axis.low, x.axis.high], "plot": [_LEFT, _WIDTH - _RIGHT]}
    points["y"] = [[_short(values[i]) for i in kept] for values in lines.values()]
    legend = [
        tag("span", tag("i", class_=f"key c{number}"), name, " ", tag("b", _short(_last(lines[name]))))
        for number, name in enumerate(curves, start=1)
    ]
    heading = tag("figcaption", tag("h3", f"{title}, %" if percent else title), tag("p", *legend, class_="legend"))
    return tag("figure", heading, svg, class_="chart", data_points=json.dumps(points))


class _Across(NamedTuple):
    axis: Axis

    @classmethod
    def over(cls, steps: Sequence[float]) -> _Across:
        """Return an axis that ends where training does: a round end would look unfinished."""
        last = max(1.0, min(max(steps), _LARGEST))
        ticks = Axis.around(0.0, last, count=4).ticks
        return cls(Axis(0.0, last, tuple(tick for tick in ticks if tick <= last)))


def _axes(x: Axis, y: Axis) -> Html:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in y.ticks:
        level = _y(y, tick)
        parts.append(tag("line", class_="grid", x1=_LEFT, x2=right, y1=level, y2=level))
        parts.append(tag("text", _short(tick), x=_LEFT - 6, y=level + 4, text_anchor="end"))
    for tick in x.ticks:
        place = _x(x, tick)
        parts.append(tag("line", class_="grid", x1=place, x2=place, y1=bottom, y2=bottom + 4))
        anchor = "end" if place > right - 14 else "middle"
        parts.append(tag("text", f"{tick:,.0f}", x=place, y=bottom + 18, text_anchor=anchor))
    return tag("g", *parts, class_="axes")


def _path(steps: Sequence[float], values: Sequence[float], x: Axis, y: Axis) -> str:
    """Return the `d` of a path; values beyond the axis run along its edge."""
    parts, pen = [], "M"
    for index in _thinned(len(steps)):
        value = values[index]
        if math.isfinite(value):
            at = f"{_x(x, steps[index])} {_y(y, min(max(value, y.low), y.high))}"
            parts.append(f"M{at}h0" if pen == "M" else f"L{at}")  # h0: a lone point is a dot
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def _x(axis: Axis, value: float) -> float:
    return round(_LEFT + axis.at(value) * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(_HEIGHT - _BOTTOM - axis.at(value) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _thinned(count: int) -> Iterator[int]:
    """Yield at most `_MOST` positions, evenly spread, the first and the last among them."""
    if count <= _MOST:
        yield from range(count)
    else:
        yield from (round(i * (count - 1) / (_MOST - 1)) for i in range(_MOST))


def _average(values: Sequence[float]) -> list[float]:
    """Return the moving average over about a twentieth of the values; its start is not pulled to zero."""
    keep = math.exp(-1 / max(1.0, len(values) / 20))
    total = weight = 0.0
    averages = []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        averages.append(total / weight if weight else math.nan)
    return averages


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _last(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if math.isfinite(value)), math.nan)


def _short(value: float) -> str:
    """Write a number in few characters.

    >>> [_short(value) for value in (0, 0.002, 0.25, 12.5, 3e-7)]
    ['0', '0.002', '0.25', '12.5', '3e-07']
    """
    return "-" if not math.isfinite(value) else f"{value:.3g}"
