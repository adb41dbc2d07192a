"""Find pictures and their label maps in folders of folders, and refuse the halves that are missing."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError

PREDICT_ALONE = "Open pictures without labels with open_pictures."


def sub_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders inside `folder`, sorted, without hidden ones; () where it is no folder."""
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def files_by_key(folder: Path, endings: Collection[str]) -> dict[str, Path]:
    """Return the files of one folder by their name without `endings`, sorted; other files are passed over.

    One listing of the folder, no look at the files: 20,000 of them take a fraction of a second.
    """
    found: dict[str, Path] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            ending = next((e for e in endings if entry.name.lower().endswith(e.lower())), None)
            if ending is None or entry.name.startswith("."):
                continue
            key = entry.name[: len(entry.name) - len(ending)]
            if key in found:
                got = f"{found[key].name} and {entry.name}"
                raise DataError(message(str(folder), "hold one file per name", got))
            found[key] = Path(entry.path)
    return dict(sorted(found.items()))


def one_split(folder: Path, splits: Collection[str], split: str | None) -> str:
    """Return the split that was asked for, or the only one."""
    if split is None and len(splits) == 1:
        return next(iter(splits))
    if split is None or split not in splits:
        raise DataError(message("split", f"be one of {', '.join(splits) or 'none'} of {folder}", repr(split)))
    return split


def must_pair(pictures: Path, labels: Path, of_pictures: Mapping[str, object], of_labels: Mapping[str, object]) -> None:
    """Raise `DataError` where a picture has no labels, or labels no picture; keys name both.

    Args:
        pictures: The folder of pictures, for the text.
        labels: The folder of labels, for the text.
        of_pictures: Pictures by key.
        of_labels: Labels by key.
    """
    if not of_pictures and not of_labels:
        raise DataError(message(str(pictures), "hold at least one picture", "none"))
    for here, there, lacking in (
        (pictures, labels, [key for key in of_pictures if key not in of_labels]),
        (labels, pictures, [key for key in of_labels if key not in of_pictures]),
    ):
        if lacking:
            more = f", and {len(lacking) - 1} more lack theirs" if len(lacking) > 1 else ""
            rule = f"hold a file for {lacking[0]} of {here}"
            remedy = PREDICT_ALONE if here is pictures else ""
            raise DataError(message(str(there), rule, f"none{more}", remedy))


def must_have_same_folders(pictures: Path, labels: Path) -> tuple[str, ...]:
    """Return the folders (cities, sequences) that both have; `DataError` where one of the two lacks one."""
    of_pictures, of_labels = sub_folders(pictures), sub_folders(labels)
    for here, there, names, others in (
        (pictures, labels, of_pictures, of_labels),
        (labels, pictures, of_labels, of_pictures),
    ):
        lacking = [name for name in names if name not in others]
        if lacking:
            got = f"none of this name ({len(names)} there, {len(others)} here)"
            raise DataError(message(str(there), f"hold a folder {lacking[0]} as {here} does", got))
    return of_pictures
