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


# Microscopy knows no up and down. Photographs show things of a few pixels and things as large as the picture: a
# wider view, a coarser unit and lattice, more dimensions for more categories.
PRESETS = {
    "instance-map": Preset({"turn": True}, {}),
    "coco-panoptic": Preset(
        {"crop": 320, "batch": 4, "scale": 1.6, "loss_stride": 4},
        {
            "widths": (32, 64, 96, 128, 160),
            "stride": 2,
            "dims": 16,
            "unit": 32.0,
        },
    ),
    "cityscapes": _street(crop=512, unit=32.0, things=100, stuff=1024),
    "cityscapes-coarse": _street(crop=512, unit=32.0, things=100, stuff=1024),
    "vistas": _street(crop=640, unit=64.0, stride=4, things=400, stuff=4096),
    "vistas-v1.2": _street(crop=640, unit=64.0, stride=4, things=400, stuff=4096),
    "vistas-v2.0": _street(crop=640, unit=64.0, stride=4, things=400, stuff=4096),
    "kitti-step": _street(crop=320, unit=24.0, things=50, stuff=512),
    "kitti": _street(crop=320, unit=24.0, things=50, stuff=512),
    "mots": _street(crop=320, unit=24.0, things=50, stuff=512),
}

# What a pretrained backbone changes, whatever the format. It knows textures and objects already: it learns at a tenth
# of the rate, its first stages not at all. Crops are nearly whole pictures of usual size: the mean of an instance that
# a crop cuts is not that of the whole instance.
_PRETRAINED = Preset(
    {"crop": 512, "batch": 2, "scale": 1.0, "loss_stride": 3, "backbone_rate": 0.1, "frozen_stages": 3},
    {"widths": (32, 48, 64, 96, 128), "stride": 2},
)


def preset(format: str, backbone: str = "conv") -> Preset:
    """Return the preset of a format and a backbone; a format without has the defaults."""
    own = PRESETS.get(format, Preset({}, {}))
    if backbone == "conv":
        return own
    model = {**own.model, **_PRETRAINED.model, "backbone": backbone}
    return Preset({**own.training, **_PRETRAINED.training}, model)
