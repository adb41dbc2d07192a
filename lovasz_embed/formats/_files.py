"""What files refuse becomes a `DataError` that names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lovasz_embed import _json
from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError


def existing_folder(path: Path, what: str) -> Path:
    """Return `path`; `DataError` where it is no folder."""
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
        raise DataError(message(str(path), f"be {what}", got))
    return path


def read_json(path: Path) -> Any:
    """Return the content of `path`; `DataError` where it is missing, no JSON or beyond its limits."""
    with reading(path):
        try:
            return _json.read_json(path)
        except ValueError as error:
            raise DataError(str(error)) from error


def read_text(path: Path) -> str:
    """Return the text of `path`; `DataError` where it is missing or not UTF-8."""
    with reading(path):
        try:
            if not path.is_file() and path.exists():  # a pipe or a device may never end
                raise DataError(message(str(path), "be a file", "a folder, a pipe or a device"))
            return path.read_text(encoding="utf-8")
        except DataError:
            raise
        except ValueError as error:
            raise DataError(message(str(path), "be a text in UTF-8", error)) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system refuses while `path` is read into a `DataError` that names `path`."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(message(str(path), "exist", "no such file")) from error
    except OSError as error:
        raise DataError(message(str(path), "be readable", error.strerror or error)) from error


def is_file(path: Path) -> bool:
    """Return whether a file is there; a name that no system takes, such as one of 5,000 letters, names none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def leads_outside(name: str) -> bool:
    r"""Return whether a file name that somebody else wrote leaves the folder it is looked up in, on any system.

    Absolute names, drives and `..` do, with either separator; so does what names no file. Links are not followed:
    those are put into a folder by whoever owns it.

    >>> [leads_outside(name) for name in ("a/b.png", "a..png", "../b.png", "/b.png", r"..\b.png", "c:b.png", "")]
    [False, False, True, True, True, True, True]
    """
    flavours = (PurePosixPath(name), PureWindowsPath(name))
    if not name or "\0" in name or not flavours[0].name:
        return True
    return any(path.anchor or ".." in path.parts for path in flavours)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses while `path` is written into a `DataError` that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(message(str(path), "be writable", reason, "Choose another place for it.")) from error
