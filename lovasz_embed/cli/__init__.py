"""The command line: verbs that parse, call the library and print. No decision about segmentation is made here.

What a person reads goes to stderr; with `--json` the last line on stdout is one JSON object.
"""

from __future__ import annotations

from typing import Annotated

import typer

import lovasz_embed
from lovasz_embed.cli._console import failing_clearly
from lovasz_embed.cli._examples import epilog
from lovasz_embed.cli._group import OneLineErrors
from lovasz_embed.cli.demo import demo
from lovasz_embed.cli.evaluate import evaluate
from lovasz_embed.cli.export import export
from lovasz_embed.cli.info import info
from lovasz_embed.cli.predict import predict
from lovasz_embed.cli.report import report
from lovasz_embed.cli.train import train

__all__ = ["app"]

app = typer.Typer(name="lovasz-embed", cls=OneLineErrors, pretty_exceptions_enable=False)
for verb in (demo, train, predict, evaluate, report, export, info):
    app.command(epilog=epilog(verb.__name__))(failing_clearly(verb))


@app.callback(invoke_without_command=True)
def lovasz_embed_command(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Panoptic and instance segmentation from one pixel embedding."""
    if version:
        print(f"lovasz-embed {lovasz_embed.__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit(2)  # as for anything else that cannot be done
