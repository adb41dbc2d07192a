"""Which parameters learn, and how fast: backbones that know something already learn slowly, or not at all."""

from __future__ import annotations

from torch import nn

from lovasz_embed import _check
from lovasz_embed.model import AdaptedBackbone
from lovasz_embed.training.config import TrainConfig


def learning_parameters(
    model: nn.Module, backbone: nn.Module, config: TrainConfig
) -> list[tuple[list[nn.Parameter], float]]:
    """Return the parameters that learn, with a factor of the learning rate each; the others are frozen.

    `backbone` is a part of `model`.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> groups = learning_parameters(model, model[0], TrainConfig(backbone_rate=0.1))
    >>> [(len(parameters), factor) for parameters, factor in groups]
    [(2, 1.0), (2, 0.1)]
    """
    body = backbone.body if isinstance(backbone, AdaptedBackbone) else backbone
    still = [body] if config.backbone_rate == 0 else _first_stages(body, config.frozen_stages)
    for part in still:
        part.requires_grad_(False)  # torch then keeps nothing of its maps for a backward pass
    own = {id(parameter) for parameter in body.parameters()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rest = [parameter for parameter in learning if id(parameter) not in own]
    slow = [parameter for parameter in learning if id(parameter) in own]
    return [(rest, 1.0), (slow, config.backbone_rate)] if slow and config.backbone_rate != 1 else [(learning, 1.0)]


def _first_stages(body: nn.Module, number: int) -> list[nn.Module]:
    """Return what comes before the stages of a backbone, and its first stages."""
    if not number:
        return []
    stages = getattr(body, "stages", None)
    if not isinstance(stages, nn.ModuleList) or number > len(stages):
        count = len(stages) if isinstance(stages, nn.ModuleList) else "none"
        remedy = "Freeze parts of it yourself with requires_grad_(False)."
        raise ValueError(_check.message("frozen_stages", f"be at most the backbone's stages, {count}", number, remedy))
    return [body.get_submodule("stem"), *stages[:number]]
