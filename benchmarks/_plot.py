"""Draw the sweep: four panels, one colour per implementation."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lovasz_embed._atomic import write_atomically

Record = Mapping[str, Any]

# Told apart with any kind of colour vision (after Okabe and Ito), and by their markers.
_STYLES = {
    "textbook": ("#000000", "s", "textbook torch"),
    "per-node loop": ("#000000", "s", "per-node loop, margin kernel"),
    "Neven's loop": ("#E69F00", "^", "per-node loop, gaussian (Neven's type)"),
    "kornia": ("#CC79A7", "v", "kornia"),
    "segmentation_models_pytorch": ("#56B4E9", "D", "segmentation-models-pytorch"),
    "lovasz_embed": ("#0072B2", "o", "lovasz-embed"),
    "lovasz_embed, binned": ("#009E73", "X", "lovasz-embed, binned"),
    "lovasz_embed, gaussian": ("#D55E00", "P", "lovasz-embed, gaussian kernel"),
}


def draw(records: Sequence[Record], path: Path, where: str) -> None:
    """Write the picture of a sweep's records."""
    from matplotlib.figure import Figure  # optional; the command line says so before anything is measured

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, (title, losses, axis, quantity) in zip(
        panels.flat,
        (
            ("Lovász hinge: time by pixels", ["hinge"], "pixels", "time"),
            ("Lovász hinge: time by share past the margin", ["hinge"], "past the margin", "time"),
            ("All instances of a picture: time", ["hierarchical, margin", "hierarchical, gaussian"], "nodes", "time"),
            ("All instances of a picture: memory", ["hierarchical, margin", "hierarchical, gaussian"], "nodes", "peak"),
        ),
        strict=True,
    ):
        chosen = [r for r in records if r["loss"] in losses and r["axis"] == axis]
        _panel(axes, chosen, quantity)
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11, pad=18)
        standing = chosen[0]["standing"] if chosen else "not measured"
        axes.text(0, 1.015, standing, transform=axes.transAxes, fontsize=9, color="#555555")
        _scale(axes, axis, sorted({r["at"] for r in chosen}))
    figure.suptitle("Forward and backward, medians with the spread of the repeats", x=0.01, ha="left")
    figure.supxlabel(where, fontsize=8, color="#555555", x=0.01, ha="left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, picture.getvalue())


def _panel(axes: Any, records: Sequence[Record], quantity: str) -> None:
    names = [(_style_of(r), r) for r in records]
    for name in dict.fromkeys(n for n, _ in names):
        own = sorted((r for n, r in names if n == name), key=lambda r: r["at"])
        own = [r for r in own if quantity == "time" or r["peak_mb"]]
        colour, marker, label = _STYLES.get(name, ("#999999", ".", name))
        x = [r["at"] for r in own]
        y = [r["median"] * 1e3 if quantity == "time" else r["peak_mb"] for r in own]
        above = 3 if name.startswith("lovasz_embed") else 2  # ours are not to hide behind anyone
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.6, label=label, zorder=above)
        if quantity == "time":
            low, high = ([1e3 * f(r["seconds"]) for r in own] for f in (min, max))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        guessed = [(a, b) for a, b, r in zip(x, y, own, strict=True) if r["measured"] is not None]
        if guessed:  # hollow: a part was run and scaled up
            axes.plot(
                *zip(*guessed, strict=True), marker, color=colour, markerfacecolor="white", markersize=5, zorder=4
            )
    hollow = any(r["measured"] is not None for r in records)
    note = "hollow: extrapolated from some of the nodes" if hollow else None
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [digit * 10.0**k for k in range(-3, 7) for digit in ((1,) if high > 300 * low else (1, 2, 5))]
    axes.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(low, high)
    axes.set_ylabel("milliseconds" if quantity == "time" else "peak extra memory, MB")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if records:
        axes.legend(fontsize=8, frameon=False, title=note, title_fontsize=8, alignment="left")


def _style_of(record: Record) -> str:
    gaussian = record["loss"].endswith("gaussian") and record["implementation"] == "lovasz_embed"
    return "lovasz_embed, gaussian" if gaussian else record["implementation"]


def _scale(axes: Any, axis: str, places: Sequence[float]) -> None:
    if axis == "past the margin":
        axes.set_xticks(places, [f"{p:.0%}" for p in places])
        axes.set_xlabel("share of pixels past the margin")
        return
    if axis == "pixels":
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"$2^{{{math.log2(p):.0f}}}$" for p in places])
        axes.set_xlabel("pixels")
    else:
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{p:g}" for p in places])
        axes.minorticks_off()
        axes.set_xlabel("instances")
