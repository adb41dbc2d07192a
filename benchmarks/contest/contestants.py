"""The contestants by name."""

from __future__ import annotations

from contest.centre import Centre
from contest.contestant import Contestant
from contest.discriminative import Discriminative
from contest.hle import Hle
from contest.spatial import Spatial
from contest.variants import Variant

CONTESTANTS: dict[str, type[Contestant]] = {
    "hle": Hle,
    "centre": Centre,
    "spatial": Spatial,
    "discriminative": Discriminative,
}
VARIANTS: dict[str, type[Contestant]] = {"variant": Variant}
TITLES = {
    "hle": "ours (HLE)",
    "centre": "centres and offsets",
    "spatial": "spatial embedding, seeds",
    "discriminative": "pull and push, mean shift",
}
