"""The classes of Cityscapes, as its definition lists them; KITTI and KITTI-STEP use the same."""

from __future__ import annotations

from typing import NamedTuple

from lovasz_embed.formats._base import Category


class CityscapesClass(NamedTuple):
    """One class of the Cityscapes definition.

    Attributes:
        id: Label id, the value in `labelIds.png`.
        name: As the definition spells it.
        group: Supercategory.
        has_instances: Whether its instances are told apart.
        train_id: 0 to 18 for the 19 evaluated classes, None for the others. Inside the package it is the index of the
            category.
        color: Red, green, blue.
    """

    id: int
    name: str
    group: str
    has_instances: bool
    train_id: int | None
    color: tuple[int, int, int]


CITYSCAPES_CLASSES = (
    CityscapesClass(0, "unlabeled", "void", False, None, (0, 0, 0)),
    CityscapesClass(1, "ego vehicle", "void", False, None, (0, 0, 0)),
    CityscapesClass(2, "rectification border", "void", False, None, (0, 0, 0)),
    CityscapesClass(3, "out of roi", "void", False, None, (0, 0, 0)),
    CityscapesClass(4, "static", "void", False, None, (0, 0, 0)),
    CityscapesClass(5, "dynamic", "void", False, None, (111, 74, 0)),
    CityscapesClass(6, "ground", "void", False, None, (81, 0, 81)),
    CityscapesClass(7, "road", "flat", False, 0, (128, 64, 128)),
    CityscapesClass(8, "sidewalk", "flat", False, 1, (244, 35, 232)),
    CityscapesClass(9, "parking", "flat", False, None, (250, 170, 160)),
    CityscapesClass(10, "rail track", "flat", False, None, (230, 150, 140)),
    CityscapesClass(11, "building", "construction", False, 2, (70, 70, 70)),
    CityscapesClass(12, "wall", "construction", False, 3, (102, 102, 156)),
    CityscapesClass(13, "fence", "construction", False, 4, (190, 153, 153)),
    CityscapesClass(14, "guard rail", "construction", False, None, (180, 165, 180)),
    CityscapesClass(15, "bridge", "construction", False, None, (150, 100, 100)),
    CityscapesClass(16, "tunnel", "construction", False, None, (150, 120, 90)),
    CityscapesClass(17, "pole", "object", False, 5, (153, 153, 153)),
    CityscapesClass(18, "polegroup", "object", False, None, (153, 153, 153)),
    CityscapesClass(19, "traffic light", "object", False, 6, (250, 170, 30)),
    CityscapesClass(20, "traffic sign", "object", False, 7, (220, 220, 0)),
    CityscapesClass(21, "vegetation", "nature", False, 8, (107, 142, 35)),
    CityscapesClass(22, "terrain", "nature", False, 9, (152, 251, 152)),
    CityscapesClass(23, "sky", "sky", False, 10, (70, 130, 180)),
    CityscapesClass(24, "person", "human", True, 11, (220, 20, 60)),
    CityscapesClass(25, "rider", "human", True, 12, (255, 0, 0)),
    CityscapesClass(26, "car", "vehicle", True, 13, (0, 0, 142)),
    CityscapesClass(27, "truck", "vehicle", True, 14, (0, 0, 70)),
    CityscapesClass(28, "bus", "vehicle", True, 15, (0, 60, 100)),
    CityscapesClass(29, "caravan", "vehicle", True, None, (0, 0, 90)),
    CityscapesClass(30, "trailer", "vehicle", True, None, (0, 0, 110)),
    CityscapesClass(31, "train", "vehicle", True, 16, (0, 80, 100)),
    CityscapesClass(32, "motorcycle", "vehicle", True, 17, (0, 0, 230)),
    CityscapesClass(33, "bicycle", "vehicle", True, 18, (119, 11, 32)),
)
"""All classes by ascending label id. The definition's 35th, the licence plate (-1), is drawn in no label map."""

EVALUATED = tuple(c for c in CITYSCAPES_CLASSES if c.train_id is not None)
"""The 19 classes that count, by ascending train id."""

CATEGORIES = tuple(Category(c.id, c.name, c.has_instances, c.group) for c in EVALUATED)
"""The categories of Cityscapes and KITTI, ids = label ids: 11 stuff, 8 things."""
