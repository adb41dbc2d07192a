"""The ablations: single changes of our method, each with a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Change(NamedTuple):
    """One change of the default.

    Attributes:
        training: Options of `Variant`, `Hle`, `ModelConfig` or `TrainConfig`.
        reading: Options of `Variant.read` or `ModelConfig`.
        tracks: The tracks on which it means something; none is all.
    """

    training: Mapping[str, Any] = {}
    reading: Mapping[str, Any] = {}
    tracks: tuple[str, ...] = ()


# Supercategories of the extended street: sky; building; ground (road, pavement); vehicles; persons; signs.
_STREET_GROUPS = (0, 1, 2, 3, 4, 5, 2, 3)

CHANGES: dict[str, Change] = {
    "default": Change(),
    "kernel gaussian": Change({"kernel": "gaussian"}),
    "negatives siblings": Change({"negatives": "siblings"}),
    "kernel gaussian, negatives siblings": Change({"kernel": "gaussian", "negatives": "siblings"}),
    **{f"dims {n}": Change({"dims": n}) for n in (3, 4, 6, 16, 32)},
    **{f"dims {n}, coordinates none": Change({"dims": n, "coordinates": "none"}) for n in (2, 8)},
    "coordinates fed": Change({"coordinates": "fed"}),
    "coordinates fed, category radius 4": Change({"coordinates": "fed", "category_radius": 4.0}),
    **{f"instances see {2 + n} dimensions": Change({"shared_dims": n}) for n in (2, 6)},
    "instances see all dimensions, no vote": Change({"shared_dims": 6, "vote": False}),
    **{f"unit {n:g}": Change({"unit": n}) for n in (5.0, 20.0)},
    **{f"category radius {n:g}": Change({"category_radius": n}) for n in (2.0, 4.0)},
    "outer over inner radius 1.3": Change({"margin_ratio": 0.506}),  # m² / r² = (b² - a²) / (b² + a²)
    "outer over inner radius 1.7": Change({"margin_ratio": 0.697}),
    "outer over inner radius 5": Change({"margin_ratio": 0.961}),
    "ncm weight 0": Change({"ncm_weight": 0.0}),
    "ncm weight 0.3": Change({"ncm_weight": 0.3}),
    "ncm weight 3": Change({"ncm_weight": 3.0}),
    "ncm as warm-up, 150 steps": Change({"ncm_steps": 150}),
    **{f"ncm temperature {n:g}": Change({"ncm_temperature": n}) for n in (0.1, 1.0)},
    "pull to running means 0.1": Change({"pull_weight": 0.1}),
    "momentum of running means 0.99": Change({"momentum": 0.99}),
    "norm weight 0": Change({"norm_weight": 0.0}),
    "level weights 1 to 2": Change({"level_weights": (1.0, 2.0)}),
    "level weights 2 to 1": Change({"level_weights": (2.0, 1.0)}),
    "predicted bandwidth, density": Change({"bandwidth": True}, {"clustering": "density"}),
    "negatives in windows of half a crop": Change({"window": 80}, tracks=("synthetic", "few")),
    "negatives in windows of half a crop of 192": Change({"window": 96}, tracks=("nuclei",)),
    "supercategories": Change({"groups": _STREET_GROUPS}, tracks=("synthetic", "few")),
    "class means running": Change({"means": "running"}),
    "linear softmax on the same features": Change({"linear": True}, {"classifier": "linear"}),
    "clustering density": Change({}, {"clustering": "density"}),
    "no vote": Change({}, {"vote": False}),
    "connected parts": Change({}, {"connected": True}),
    **{f"reach {n:g}": Change({}, {"reach": n}) for n in (1.0, 2.5)},
}


def changes_for(track: str) -> dict[str, Change]:
    """Return the changes that mean something on a track."""
    return {name: change for name, change in CHANGES.items() if not change.tracks or track in change.tracks}
