"""What `--help` shows of each verb below its options: commands to copy."""

from __future__ import annotations

EXAMPLES = {
    "demo": ("lovasz-embed demo", "lovasz-embed demo --minutes 1 --out try"),
    "train": (
        "lovasz-embed train --data DATA --out RUN",
        "lovasz-embed train --data CELLS --format instance-map --out RUN --minutes 60",
        "lovasz-embed train --data DATA --out RUN --score-every 500",
        "lovasz-embed train --data DATA --out RUN --resume",
    ),
    "predict": (
        "lovasz-embed predict RUN picture.jpg --overlays",
        "lovasz-embed predict --weights nuclei cells.tif --overlays",
        "lovasz-embed predict RUN folder/ --out PREDICTION",
        "lovasz-embed predict RUN --data DATA --split val --out PREDICTION",
    ),
    "evaluate": (
        "lovasz-embed evaluate RUN --data DATA --split val",
        "lovasz-embed evaluate --pred PREDICTION --truth DATA",
        "lovasz-embed evaluate RUN --data DATA --json | tail -n 1",
    ),
    "report": (
        "lovasz-embed report RUN",
        "lovasz-embed report RUN --data DATA --out report.html",
    ),
    "export": (
        "lovasz-embed export RUN --format onnx --out model.onnx",
        "lovasz-embed export RUN --format torch-export --out model.pt2",
    ),
    "info": ("lovasz-embed info", "lovasz-embed info RUN --json"),
}


def epilog(verb: str) -> str | None:
    """Return the examples of a verb, a paragraph each, which is what typer keeps apart."""
    commands = EXAMPLES.get(verb, ())
    return "\n\n".join(["Examples:", *(f"  {command}" for command in commands)]) if commands else None
