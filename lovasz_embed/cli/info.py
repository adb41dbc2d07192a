"""`lovasz-embed info`: versions, and what a run holds."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import lovasz_embed
from lovasz_embed.cli._console import print_json, show_record
from lovasz_embed.cli._options import Json
from lovasz_embed.model import PanopticEmbedder

_PACKAGES = ("torch", "numpy", "scipy", "numba", "pillow", "tifffile", "safetensors", "typer", "rich")


def info(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Folder that `train` wrote.")] = None,
    json: Json = False,
) -> None:
    """Show versions, or the classes, radii and class means of a run."""
    record = _environment() if run is None else _model(run)
    show_record(record, "lovasz-embed" if run is None else str(run))
    if json:
        print_json(record)


def _environment() -> dict[str, Any]:
    found = {"lovasz-embed": lovasz_embed.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "cuda": torch.cuda.is_available(), "threads": torch.get_num_threads()}


def _model(run: Path) -> dict[str, Any]:
    model = PanopticEmbedder.from_pretrained(run)
    config = model.config
    return {
        "classes": list(config.classes),
        "things": [config.classes[thing] for thing in config.things],
        "dims": config.dims,
        "category_radius": config.category_radius,
        "instance_radius": config.instance_radius,
        "coordinates": config.coordinates,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "class_pixels": model.ncm.counts.tolist(),
    }
