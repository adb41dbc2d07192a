"""`lovasz-embed export`: a run in, one file for other programs out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lovasz_embed import export as exporting
from lovasz_embed.cli._console import print_json, say
from lovasz_embed.cli._options import Json
from lovasz_embed.cli._run import load_run

_ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}


def _complete(incomplete: str) -> list[str]:
    return [name for name in _ENDINGS if name.startswith(incomplete)]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `train` wrote.")],
    format: Annotated[str, typer.Option(help="onnx or torch-export.", autocompletion=_complete)] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write; RUN/model.onnx or .pt2 if not given.")] = None,
    json: Json = False,
) -> None:
    """Write network and nearest class mean as one graph, with what reading its outputs takes."""
    _, model = load_run(run, "cpu")
    if format not in _ENDINGS:
        raise ValueError(f"--format must be one of {', '.join(_ENDINGS)}, got {format!r}")
    ending = _ENDINGS[format]
    file = run / f"model{ending}" if out is None else out
    if file.suffix != ending:
        raise ValueError(f"--out must end in {ending} for --format {format}, got {file.name}")
    exporting.export_model(model, file, format=format)
    say(f"wrote {file}, {file.stat().st_size / 1e6:.1f} MB; next: lovasz_embed.export.ExportedModel({str(file)!r})")
    if json:
        print_json({"file": str(file), "format": format, "bytes": file.stat().st_size})
