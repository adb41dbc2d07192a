"""What suits one kind of pictures: options of training and of the network, by format and backbone."""

from __future__ import annotations

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """What suits one kind of pictures; the command line's options come on top."""

    training: dict[str, Any]
    model: dict[str, Any]


def _street(*, crop: int, unit: float, things: int, stuff: int, stride: int = 2) -> Preset:
    """Return a preset for pictures of streets: chosen by their sizes, not tuned on any of these data sets."""
    network = {"widths": (32, 64, 96, 128, 160), "stride": stride, "dims": 16, "unit": unit}
    return Preset(
        {"crop": crop, "batch": 4, "scale": 1.6, "loss_stride": 4},
        {**network, "min_thing_area": things, "min_stuff_area": stuff},
    )


_PHOTOGRAPHS = Preset(
    {"crop": 320, "batch": 4, "scale": 1.6, "loss_stride": 4},
    {"widths": (32, 64, 96, 128, 160), "stride": 2, "dims": 16, "unit": 32.0},
)
# Microscopy knows no up and down, and its pictures differ in size: of 431 of nuclei the 79 largest hold 46 % of them.
# Photographs show things of a few pixels and things as large as the picture: a wider view, a coarser unit and lattice,
# more dimensions for more categories.
PRESETS = {
    "instance-map": Preset({"turn": True, "sampling": "pixels"}, {}),
    "coco-panoptic": _PHOTOGRAPHS,
    "cityscapes": _street(crop=512, unit=32.0, things=100, stuff=1024),
    "cityscapes-coarse": _street(crop=512, unit=32.0, things=100, stuff=1024),
    "vistas": _street(crop=640, unit=64.0, stride=4, things=400, stuff=4096),
    "vistas-v1.2": _street(crop=640, unit=64.0, stride=4, things=400, stuff=4096),
    "vistas-v2.0": _street(crop=640, unit=64.0, stride=4, things=400, stuff=4096),
    "kitti-step": _street(crop=320, unit=24.0, things=50, stuff=512),
    "kitti": _street(crop=320, unit=24.0, things=50, stuff=512),
    "mots": _street(crop=320, unit=24.0, things=50, stuff=512),
    "shards": _PHOTOGRAPHS,  # of anything: many pictures are photographs more often than not
}

# What a pretrained backbone changes, whatever the format: it knows textures and objects already, and learns at a
# fraction of the rate, its first stages not at all.
_PRETRAINED = Preset(
    {"learning_rate": 1.5e-3, "backbone_rate": 0.15, "frozen_stages": 3},
    {"widths": (32, 48, 64, 96, 128), "stride": 2},
)
# What was found on the 26 training pictures of COCO's open subset (docs/results.md). Crops are whole pictures: the mean
# of an instance that a crop cuts is not that of the whole instance. Places of 133 categories are spread beforehand.
# The smallest areas are below 95 % of those pictures' things and 85 % of their stuff segments.
_PRETRAINED_FOR = {
    "coco-panoptic": Preset(
        {"crop": 640, "scale": 1.0, "jitter": 0.1, "ncm_temperature": 1.0, "spread": 4.0},
        {"reduction": 2, "dims": 20, "unit": 80.0, "min_thing_area": 64, "min_stuff_area": 1024},
    ),
}


def preset(format: str, backbone: str = "conv") -> Preset:
    """Return the preset of a format and a backbone; a format without has the defaults."""
    nothing = Preset({}, {})
    parts = [PRESETS.get(format, nothing)]
    if backbone != "conv":
        parts += [_PRETRAINED, _PRETRAINED_FOR.get(format, nothing), Preset({}, {"backbone": backbone})]
    training, model = ({name: value for part in parts for name, value in part[kind].items()} for kind in (0, 1))
    return Preset(training, model)
