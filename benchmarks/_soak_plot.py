"""Draw a soak: memory, files and threads, and speed, over the hours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lovasz_embed._atomic import write_atomically

STYLE = Path(__file__).parents[1] / "docs" / "_static" / "lovasz.mplstyle"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture of a report of `soak.py`."""
    import matplotlib  # optional, like the benchmarks that draw
    from matplotlib.figure import Figure

    cycles = report["cycles"]
    minutes = [60 * c["hours"] for c in cycles]
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(9, 2.9))
        memory, counts, speed = figure.subplots(1, 3)
        for name, label in (
            ("peak_mb", "peak of a cycle"),
            ("rss_mb", "after it"),
            ("live_mb", "of that allocated"),
            ("children_mb", "worker, at most"),
        ):
            memory.plot(minutes, [c[name] for c in cycles], linewidth=1.2, label=label)
        memory.set_title("Memory, MB")
        for name, label in (("threads", "threads"), ("files", "open files"), ("disk_files", "files on disk")):
            counts.plot(minutes, [c[name] for c in cycles], linewidth=1.2, label=label)
        counts.set_title("Threads and files after a cycle")
        for name, label in (("step_s", "a training step"), ("predict_s", "a predicted megapixel")):
            first = cycles[0][name] if len(cycles) < 3 else sorted(c[name] for c in cycles)[len(cycles) // 2]
            speed.plot(minutes, [c[name] / first for c in cycles], linewidth=1.2, label=label)
        speed.set_title("Time, over its median")
        for axes in (memory, counts, speed):
            axes.set_xlabel("minutes")
            axes.set_ylim(bottom=0)
            axes.legend(loc="lower right", fontsize=8)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, picture.getvalue())
