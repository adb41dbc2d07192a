"""The reference model: any picture size, positions, own backbones, and folders that give back what was saved."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lovasz_embed.model import CONFIG, WEIGHTS, ModelConfig, PanopticEmbedder, StandardisedConv2d, prepare
from lovasz_embed.synthetic import CLASSES, THINGS

COORDINATES = ("added", "fed", "none")
CELL = 4  # stride of the coarsest map of `tiny`: moving by this much moves every map by whole cells


def tiny(**options: Any) -> PanopticEmbedder:
    """Return a model of three categories, two of them things."""
    config = ModelConfig(classes=("floor", "cup", "car"), things=(1, 2), widths=(4, 8), stride=2)
    return PanopticEmbedder(ModelConfig(**{**vars(config), **options}))


def with_means(model: PanopticEmbedder) -> PanopticEmbedder:
    """Give a model class means and offsets that no default could be mistaken for."""
    model.ncm.update(torch.randn(1, model.config.dims, 9, 1), torch.arange(9).view(1, 9, 1) % 3)
    model.ncm.offset.copy_(torch.tensor([0.1, -0.2, 1 / 3], dtype=torch.float64))
    return model.eval()


class OwnBackbone(nn.Module):
    """Two maps at stride 4 and 8, made without any part of the built-in encoder."""

    channels = (6, 5)
    strides = (4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 5, 2, stride=2)

    def forward(self, picture: Tensor) -> list[Tensor]:
        fine = self.fine(picture).relu()
        return [fine, self.coarse(fine).relu()]


# --- embedding


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_a_picture_of_any_size_has_one_embedding_per_pixel(coordinates: str, stride: int) -> None:
    model = tiny(coordinates=coordinates, stride=stride, dims=5)
    for size in [(1, 1), (1, 9), (2, 3), (17, 5), (31, 33)]:
        embedding = model(torch.rand(2, 3, *size))
        assert embedding.shape == (2, 5, *size)
        assert embedding.isfinite().all()


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_a_prediction_covers_the_picture(height: int, width: int) -> None:
    model = with_means(tiny())
    result = model.segment(torch.rand(1, 3, height, width))
    assert result.segmentation.shape == (1, height, width)


def test_the_embedding_is_float32_under_autocast_too() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert tiny()(torch.rand(1, 3, 8, 8)).dtype == torch.float32


def test_added_coordinates_are_row_and_column_in_embedding_units() -> None:
    added, none = tiny(coordinates="added", unit=7.0), tiny(coordinates="none")
    none.load_state_dict(added.state_dict())
    picture = torch.rand(1, 3, 9, 13)
    rows, columns = torch.meshgrid(torch.arange(9) / 7.0, torch.arange(13) / 7.0, indexing="ij")
    position = torch.stack([torch.zeros(9, 13)] * 6 + [rows, columns])
    assert torch.equal(added(picture), none(picture) + position)
    assert added.config.category_dims == tuple(range(6))
    assert none.config.category_dims == tuple(range(8))


@pytest.mark.parametrize(
    ("options", "dims"),
    [
        ({}, (6, 7)),
        ({"shared_dims": 2}, (4, 5, 6, 7)),
        ({"shared_dims": 6}, tuple(range(8))),
        ({"dims": 3}, (1, 2)),
        ({"coordinates": "fed", "shared_dims": 2}, tuple(range(8))),
        ({"coordinates": "none", "dims": 1}, (0,)),
    ],
    ids=str,
)
def test_instances_are_told_apart_by_their_place_and_by_what_is_shared(
    options: dict[str, Any], dims: tuple[int, ...]
) -> None:
    assert tiny(**options).config.instance_dims == dims


def test_fed_coordinates_tell_places_apart_that_look_alike() -> None:
    middle, grey = slice(24, 24 + 2 * CELL), torch.zeros(1, 3, 64, 64)
    for coordinates, tells in [("none", False), ("fed", True)]:
        row = tiny(coordinates=coordinates)(grey)[0, :, 32, middle]
        # Pixels one cell of the coarsest map apart take the same place in every map.
        assert torch.allclose(row[:, :CELL], row[:, CELL:], rtol=0, atol=1e-6) != tells


@pytest.mark.parametrize("coordinates", ["added", "none"])
def test_a_crop_embeds_as_the_whole_picture_does_but_for_its_position(coordinates: str) -> None:
    model = tiny(coordinates=coordinates, unit=10.0)
    picture = torch.rand(1, 3, 96, 96)
    top, left, side, border = 4 * CELL, 3 * CELL, 64, 24  # zeros beyond the edge reach some 20 pixels into a crop
    crop = model(picture[..., top : top + side, left : left + side])
    whole = model(picture)[..., top : top + side, left : left + side]
    if coordinates == "added":
        crop[:, -2] += top / 10.0
        crop[:, -1] += left / 10.0
    inside = (..., slice(border, -border), slice(border, -border))
    # float32 sums of some hundred terms of size one, in an order that depends on the size of the picture
    torch.testing.assert_close(crop[inside], whole[inside], rtol=0, atol=1e-5)
    assert not torch.allclose(crop[..., 0, 0], whole[..., 0, 0], rtol=0, atol=1e-3)


def test_a_picture_embeds_alike_alone_and_in_a_batch_while_training_too() -> None:
    model, pictures = tiny().train(), torch.rand(3, 3, 16, 16)
    # as above: other batch sizes may sum in another order
    torch.testing.assert_close(model(pictures)[1:2], model(pictures[1:2]), rtol=0, atol=1e-5)


def test_a_standardised_convolution_forgets_scale_and_mean_of_its_weights() -> None:
    layer, x = StandardisedConv2d(3, 4), torch.randn(1, 3, 8, 8)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(3.0).add_(torch.randn(4, 1, 1, 1))
    # 1e-6 beside a variance of 27 × 0.01 stands in the root
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-4)


def test_the_demo_has_about_a_million_parameters_at_most() -> None:
    model = PanopticEmbedder(ModelConfig(classes=CLASSES, things=tuple(sorted(THINGS))))
    assert sum(parameter.numel() for parameter in model.parameters()) < 1.1e6


# --- own backbone


def test_an_own_backbone_is_used_and_trained() -> None:
    model = PanopticEmbedder(tiny().config, OwnBackbone())
    embedding = model(torch.rand(1, 3, 21, 30))
    embedding.square().sum().backward()
    assert embedding.shape == (1, 8, 21, 30)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_own_backbone_is_saved_and_loaded(tmp_path: Path) -> None:
    model = with_means(PanopticEmbedder(tiny().config, OwnBackbone()))
    model.save_pretrained(tmp_path)
    again = PanopticEmbedder.from_pretrained(tmp_path, backbone=OwnBackbone())
    picture = torch.rand(1, 3, 16, 16)
    assert torch.equal(again(picture), model(picture))


@pytest.mark.parametrize("own", [True, False])
def test_a_forgotten_or_needless_backbone_fails_clearly(tmp_path: Path, own: bool) -> None:
    PanopticEmbedder(tiny().config, OwnBackbone() if own else None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="backbone must be given exactly if the model was saved with an own one"):
        PanopticEmbedder.from_pretrained(tmp_path, backbone=None if own else OwnBackbone())


# --- reading results off


def test_results_are_read_off_by_means_offset_and_radius() -> None:
    model = tiny(coordinates="none", dims=2, instance_radius=1.0, min_thing_area=2, min_stuff_area=2)
    # a row: two floor pixels, two cups of two pixels, a speck of car, then floor that only the offset makes a cup
    row = [[0, 0], [0, 0], [9, 0], [9, 0], [9, 6], [9, 6], [0, 40], [4, 0], [4, 0]]
    embedding = torch.tensor(row, dtype=torch.float32).T.reshape(1, 2, 1, 9)
    semantic = torch.tensor([[[0, 0, 1, 1, 1, 1, 2, 255, 255]]])
    model.ncm.update(embedding, semantic)
    assert model.read_off(embedding).semantic().tolist() == [[[0, 0, 1, 1, 1, 1, 255, 0, 0]]]
    model.ncm.offset[1] = 30.0
    result = model.read_off(embedding)
    assert result.semantic().tolist() == [[[0, 0, 1, 1, 1, 1, 255, 1, 1]]]
    assert len(set(result.instance()[0, 0, 2:].tolist()) - {0}) == 3


@pytest.mark.parametrize(("vote", "segments"), [(True, [(1, 3), (1, 3)]), (False, [(1, 2), (1, 3), (2, 1)])])
def test_instances_are_read_off_their_place_and_their_category_is_voted_on(
    vote: bool, segments: list[tuple[int, int]]
) -> None:
    """Two cups, a pixel of which looks like a car, and whose pixels scatter in the category dimensions."""
    model = tiny(dims=4, vote=vote, min_thing_area=1, min_stuff_area=1)
    category = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])  # two dimensions, three categories
    means = torch.cat([category, torch.full((2, 3), 5.0)])[None, :, None]
    model.ncm.update(means, torch.arange(3).view(1, 1, 3))
    look = category[:, [1, 1, 2, 1, 1, 1]] + torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.5, -2.5], [0.0] * 6])
    place = torch.tensor([[1.0, 1.1, 1.2, 9.0, 9.1, 9.2], [4.0] * 6])
    result = model.read_off(torch.cat([look, place])[None, :, None])
    assert sorted((s.category, s.area) for s in result.segments[0]) == segments


def test_the_levels_are_those_of_the_configuration() -> None:
    semantic, instance = torch.tensor([[[0, 1, 1, 255]]]), torch.tensor([[[0, 1, 2, 0]]])
    model = tiny(category_radius=5.0, instance_radius=2.0, margin_ratio=0.5)
    category, things = model.levels(semantic, instance)
    assert (category.radius, category.margin, category.dims) == (5.0, 2.5, model.config.category_dims)
    assert (things.radius, things.margin, things.dims) == (2.0, 1.0, (6, 7))
    crowd = torch.tensor([[[False, True, False, False]]])
    assert (model.levels(semantic, instance, crowd)[1].labels == things.IGNORED).tolist() == [
        [[False, True, False, True]]
    ]


# --- folders


def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = with_means(tiny(unit=11.0, min_thing_area=3, shared_dims=2, vote=False))
    model.save_pretrained(tmp_path / "new" / "folder")
    again = PanopticEmbedder.from_pretrained(tmp_path / "new" / "folder")
    picture = torch.rand(1, 3, 30, 20)
    assert again.config == model.config
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
        assert again.state_dict()[name].dtype == value.dtype, name
    assert torch.equal(again.ncm.offset, torch.tensor([0.1, -0.2, 1 / 3], dtype=torch.float64))
    assert again.segment(picture) == model.segment(picture)


def test_a_folder_holds_two_files_and_neither_is_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny().save_pretrained(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    PanopticEmbedder.from_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    model = tiny(dims=5)
    model.save_pretrained(tmp_path)
    assert PanopticEmbedder.from_pretrained(tmp_path).config.dims == 5


def test_a_folder_that_cannot_be_made_fails_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        tiny().save_pretrained(tmp_path / "file" / "folder")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_fails_clearly(tmp_path: Path, name: str) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold {name}, got no such file. Give a folder"):
        PanopticEmbedder.from_pretrained(tmp_path)


def test_a_configuration_of_before_a_field_has_its_default(tmp_path: Path) -> None:
    tiny(shared_dims=2, vote=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config.pop("shared_dims"), config.pop("vote")) == (2, False)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    again = PanopticEmbedder.from_pretrained(tmp_path).config
    assert (again.shared_dims, again.vote) == (0, True)


def without(field: str) -> Callable[[dict[str, Any]], object]:
    return lambda config: {name: value for name, value in config.items() if name != field}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda config: {**config, "later_option": 1}, r"hold the fields of ModelConfig, got \['later_option'\]"),
        (without("classes"), "hold the fields of ModelConfig"),
        (lambda config: [config], "hold the fields of ModelConfig, got list"),
        (lambda config: {**config, "things": [7]}, "things must lie in 0 ... 2"),
        (lambda config: {**config, "coordinates": "polar"}, "coordinates must be one of 'added', 'fed', 'none'"),
        (lambda config: {**config, "widths": [4, 16]}, f"{WEIGHTS} must fit {CONFIG} beside it"),
        (lambda config: {**config, "classes": ["one", "two"], "things": []}, f"{WEIGHTS} must fit {CONFIG} beside it"),
    ],
)
def test_a_configuration_that_does_not_fit_fails_clearly(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(change(config)))
    with pytest.raises(ValueError, match=text):
        PanopticEmbedder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"), [(CONFIG, "config.json must be a readable JSON file"), (WEIGHTS, f"{WEIGHTS} must fit {CONFIG}")]
)
def test_a_truncated_file_fails_clearly(tmp_path: Path, name: str, text: str) -> None:
    tiny().save_pretrained(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=text):
        PanopticEmbedder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"coordinates": "polar"}, "coordinates must be one of 'added', 'fed', 'none', got 'polar'"),
        ({"stride": 3}, "stride must be one of 1, 2, 4, got 3"),
        ({"unit": 0.0}, "unit must be a finite number above 0, got 0.0"),
        ({"instance_radius": -1.0}, "instance_radius must be a finite number above 0, got -1.0"),
        ({"category_radius": float("nan")}, "category_radius must be a finite number above 0, got nan"),
        ({"dims": 2, "coordinates": "added"}, "dims must be at least 3 for coordinates='added', got 2"),
        ({"things": (3,)}, r"things must lie in 0 ... 2, the categories, got \[3\]"),
        ({"shared_dims": 7}, "shared_dims must lie in 0 ... 6, the dimensions beside the positions, got 7"),
        ({"shared_dims": -1}, "shared_dims must lie in 0 ... 6, the dimensions beside the positions, got -1"),
    ],
)
def test_a_wrong_option_fails_clearly(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tiny(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shared_dims": 1.0}, "shared_dims must be a whole number, got 1.0"),
        ({"vote": "yes"}, "vote must be True or False, got 'yes'"),
    ],
)
def test_an_option_of_a_wrong_type_fails_clearly(options: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        tiny(**options)


# --- prepare


def test_preparing_takes_exposure_away_and_leaves_the_scene() -> None:
    scene = np.random.default_rng(0).integers(0, 60, (20, 30, 3), dtype=np.uint8)
    brighter = (2 * scene + 90).astype(np.uint8)
    # percentiles and quotients of whole numbers, in float32
    torch.testing.assert_close(prepare(scene), prepare(brighter), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0, 127, 255])
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_preparing_a_picture_of_one_colour_is_finite(size: tuple[int, int], value: int) -> None:
    prepared = prepare(np.full((*size, 3), value, np.uint8))
    assert prepared.shape == (3, *size)
    assert prepared.dtype == torch.float32
    assert prepared.abs().max() <= 2


def test_preparing_leaves_the_picture_as_it_was() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    image.flags.writeable = False
    prepare(image)
    assert image.flatten().tolist() == list(range(48))
