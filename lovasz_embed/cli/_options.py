"""Options that several verbs share: one wording, one completion, one place in the help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import torch
import typer

from lovasz_embed.formats import FORMATS, DataError, dataset_splits
from lovasz_embed.weights import NAMES

# Panels of the help. What has no panel comes first: what a verb reads and writes.
TRAINING, SCORING, RUNNING = "Training", "Scores while it trains", "Running"


def complete_format(incomplete: str) -> list[str]:
    """Return the formats that begin as what was typed."""
    return [name for name in FORMATS if name.startswith(incomplete)]


def complete_split(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the splits of the data set that was typed already; none where there is no such thing."""
    data = ctx.params.get("data") or ctx.params.get("truth")
    if data is None:
        return []
    formats = [ctx.params["format"]] if ctx.params.get("format") else list(FORMATS)
    for format in formats:
        with suppress(DataError, OSError):  # half a command line is no mistake
            return [name for name in dataset_splits(data, format=format) if name.startswith(incomplete)]
    return []


def complete_weights(incomplete: str) -> list[str]:
    """Return the weights that come with the package."""
    return [name for name in NAMES if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """Return the devices that torch can use here."""
    return [name for name in _devices() if name.startswith(incomplete)]


def _devices() -> Iterator[str]:
    yield "cpu"
    if torch.cuda.is_available():
        yield "cuda"
        yield from (f"cuda:{number}" for number in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        yield "mps"


Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...", autocompletion=complete_device, rich_help_panel=RUNNING)
]
Weights = Annotated[
    str | None,
    typer.Option(
        help=f"A model that comes with the package, in the place of RUN: {', '.join(NAMES)}.",
        autocompletion=complete_weights,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as last line on stdout.", rich_help_panel=RUNNING)]
