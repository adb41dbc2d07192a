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
        needed = 'pip install "lovasz-embed[cli]"'
        print(f"lovasz-embed needs {missing.name} on the command line: {needed}", file=sys.stderr)
        sys.exit(2)
    try:
        from lovasz_embed.cli import app
    except KeyboardInterrupt:  # the import takes seconds, and fingers are fast
        sys.exit(130)
    app()


if __name__ == "__main__":
    main()
