"""The command as a whole: mistakes in what was typed end in one line, like all others."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from lovasz_embed.cli._console import fail

# Typer raises click's exceptions, and since 0.26 brings a click of its own: their base is reached by what is public.
_Mistake: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


class OneLineErrors(TyperGroup):
    """A group of verbs whose usage errors are one line on stderr and exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; see `click.Command.main`."""
        if not kwargs.pop("standalone_mode", True):
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except typer.Abort:
            code = 130
        except _Mistake as mistake:
            context = getattr(mistake, "ctx", None)
            path = context.command_path if context is not None else "lovasz-embed"
            text = mistake.format_message().rstrip(".")
            fail(f"{text}{'' if text.endswith('?') else '.'} See {path} --help")
            code = mistake.exit_code
        sys.exit(code if isinstance(code, int) else 0)
