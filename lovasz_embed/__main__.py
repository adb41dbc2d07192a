"""The door to the command line; it opens without the `cli` extra too, and says what to install."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say in one line what is missing."""
    try:
        import PIL  # noqa: F401
        import rich  # noqa: F401
        import safetensors  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as missing:
        sys.exit(f'lovasz-embed needs {missing.name} on the command line: pip install "lovasz-embed[cli]"')
    from lovasz_embed.cli import run

    run()


if __name__ == "__main__":
    main()
