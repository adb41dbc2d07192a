"""The class list of Mapillary Vistas: `config_v1.2.json`, `config_v2.0.json`, or just `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lovasz_embed._check import message
from lovasz_embed.formats._base import VOID, DataError
from lovasz_embed.formats._files import read_json


class VistasLabel(NamedTuple):
    """One label of a Vistas config; its position in the list is its value in label and instance maps.

    Attributes:
        value: Position in the config, from 0.
        name: The full name, such as "object--vehicle--car".
        readable: What people call it, such as "Car".
        has_instances: Whether its instances are told apart.
        evaluate: Whether it counts; what does not is void.
        color: Red, green, blue.
    """

    value: int
    name: str
    readable: str
    has_instances: bool
    evaluate: bool
    color: tuple[int, int, int]

    @property
    def category_id(self) -> int:
        """Id in the panoptic JSON of the published versions: values count from 1 there, because 0 is void."""
        return self.value + 1


def read_vistas_config(path: Path) -> tuple[VistasLabel, ...]:
    """Return the labels of a config; `DataError` where it is none."""
    content = read_json(path)
    entries = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(message(str(path), "hold a list 'labels'", "none"))
    labels = tuple(_label(f"labels[{value}] of {path}", value, entry) for value, entry in enumerate(entries))
    names = [label.name for label in labels]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(message(str(path), "name every label once", f"{twice} twice"))
    counted = sum(label.evaluate for label in labels)
    if len(labels) > VOID or not counted:
        rule = f"hold 1 to {VOID} labels, at least one of them to evaluate"
        raise DataError(message(str(path), rule, f"{len(labels)} labels, {counted} to evaluate"))
    return labels


def match_categories(json_path: Path, entries: Any, labels: tuple[VistasLabel, ...]) -> dict[int, VistasLabel]:
    """Return the label of each category id of a panoptic JSON.

    Version 2.0 writes the full name as `name`; version 1.2 writes the readable one, and the full one as
    `supercategory`.

    Raises:
        DataError: A category that the config does not have or calls stuff where the JSON calls it a thing: the two
            are of different versions.
    """
    if not isinstance(entries, list) or not entries:
        raise DataError(message(str(json_path), "hold a list 'categories'", "none"))
    by_name = {label.name: label for label in labels}
    remedy = "JSON and config are of different versions: fetch both of one."
    found: dict[int, VistasLabel] = {}
    for position, entry in enumerate(entries):
        where = f"categories[{position}] of {json_path}"
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            raise DataError(message(where, "have an integer 'id'", repr(entry)))
        names = [entry.get("name"), entry.get("supercategory")]
        label = next((by_name[name] for name in names if isinstance(name, str) and name in by_name), None)
        if label is None:
            raise DataError(message(where, "be a label of the config", repr(names[0]), remedy))
        if entry.get("isthing") not in (None, int(label.has_instances)):
            rule = f"say isthing {int(label.has_instances)} as the config does for {label.name}"
            raise DataError(message(where, rule, entry["isthing"], remedy))
        if entry["id"] in found or label in found.values():
            raise DataError(message(where, "have an id and a label of its own", f"{entry['id']} {names[0]!r} twice"))
        found[entry["id"]] = label
    return found


def _label(where: str, value: int, entry: Any) -> VistasLabel:
    entry = entry if isinstance(entry, dict) else {}
    name, instances, evaluate = entry.get("name"), entry.get("instances"), entry.get("evaluate", True)
    if not isinstance(name, str) or not isinstance(instances, bool) or not isinstance(evaluate, bool):
        got = f"name {name!r}, instances {instances!r}, evaluate {evaluate!r}"
        raise DataError(message(where, "have a text 'name' and true or false 'instances' and 'evaluate'", got))
    color = entry.get("color", [0, 0, 0])
    if not isinstance(color, list) or len(color) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in color):
        raise DataError(message(where, "have a 'color' of three numbers from 0 to 255", repr(color)))
    return VistasLabel(
        value, name, str(entry.get("readable") or name), instances, evaluate, (color[0], color[1], color[2])
    )
