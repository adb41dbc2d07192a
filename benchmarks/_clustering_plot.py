"""Draw the sweep over pixels: time of every method, log-log, one panel for each data set."""

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
    "margin": ("#0072B2", "o"),
    "seeded": ("#009E73", "X"),
    "density": ("#D55E00", "P"),
    "Neven's loop, torch": ("#E69F00", "^"),
    "KMeans": ("#000000", "s"),
    "MeanShift": ("#CC79A7", "v"),
    "DBSCAN": ("#56B4E9", "D"),
    "HDBSCAN": ("#888888", "<"),
    "hdbscan": ("#888888", ">"),
    "fast_hdbscan": ("#555555", "p"),
}
_OURS = ("margin", "seeded", "density")


def draw(records: Sequence[Record], floor: Mapping[str, float] | None, path: Path, where: str) -> None:
    """Write the picture of a sweep's records.

    Args:
        records: As `Result.record` makes them.
        floor: Seconds per byte of reading, and bytes per pixel of the embedding; None draws no floor.
        path: Where to.
        where: The machine, in a line.
    """
    from matplotlib.figure import Figure  # optional; the command line says so before anything is measured

    chosen = [r for r in records if r["axis"] == "pixels"]
    names = list(dict.fromkeys(r["data"] for r in chosen))
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, max(len(names), 1), sharey=True, squeeze=False)[0]
    for axes, data in zip(panels, names, strict=False):
        own = [r for r in chosen if r["data"] == data]
        _panel(axes, own, floor)
        axes.set_title(f"{data}, D = {own[0]['dims']}, K = {own[0]['instances']}", loc="left", fontweight="bold")
    panels[0].set_ylabel("milliseconds")
    handles, labels = panels[0].get_legend_handles_labels()
    for axes in panels[1:]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    limit = next((r["limit_s"] for r in chosen), 0)
    figure.suptitle(
        f"Clustering one picture: medians with the spread of the repeats; lines end at the limit of {limit:g} s",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    figure.supxlabel(where, fontsize=8, color="#555555", x=0.01, ha="left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, picture.getvalue())


def _panel(axes: Any, records: Sequence[Record], floor: Mapping[str, float] | None) -> None:
    for name, (colour, marker) in _STYLES.items():
        own = sorted((r for r in records if r["method"] == name and r["median"]), key=lambda r: r["pixels"])
        if not own:
            continue
        ours = name in _OURS
        x, y = [r["pixels"] for r in own], [1e3 * r["median"] for r in own]
        label = f"{name} (ours)" if ours else name
        width = 2.2 if ours else 1.3
        axes.plot(
            x, y, color=colour, marker=marker, markersize=5, linewidth=width, label=label, zorder=4 if ours else 2
        )
        low, high = ([1e3 * f(r["seconds"]) for r in own] for f in (min, max))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    places = sorted({r["pixels"] for r in records})
    if floor is not None:
        times = [1e3 * p * floor["bytes_per_pixel"] * floor["seconds_per_byte"] for p in places]
        axes.plot(places, times, color="#999999", linestyle="--", linewidth=1, label="reading the embedding once")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(places, [f"$2^{{{math.log2(p):.0f}}}$" for p in places])
    axes.set_xlabel("pixels")
    low, high = axes.get_ylim()
    axes.set_yticks([10.0**k for k in range(-2, 7)], [f"{10.0**k:,g}" for k in range(-2, 7)])
    axes.minorticks_off()
    axes.set_ylim(low, high)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
