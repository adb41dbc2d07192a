"""The command line: verbs that parse, call the library and print. No decision about segmentation is made here.

What a person reads goes to stderr; with `--json` the last line on stdout is one JSON object.
"""

from __future__ import annotations

import typer

from lovasz_embed.cli._console import failing_clearly
from lovasz_embed.cli.demo import demo
from lovasz_embed.cli.evaluate import evaluate
from lovasz_embed.cli.info import info
from lovasz_embed.cli.predict import predict
from lovasz_embed.cli.report import report
from lovasz_embed.cli.train import train

__all__ = ["app"]

app = typer.Typer(
    name="lovasz-embed",
    help="Panoptic and instance segmentation from one pixel embedding.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for verb in (demo, train, predict, evaluate, report, info):
    app.command()(failing_clearly(verb))
