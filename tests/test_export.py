"""An exported file gives what the model gives, and needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lovasz_embed import export as export_module
from lovasz_embed.export import EXPORTS, ExportedModel, Reading, export_model
from lovasz_embed.model import ModelConfig, PanopticEmbedder, prepare

SIZES = [(2, 37, 46), (1, 64, 64), (3, 20, 95), (1, 9, 10), (1, 16, 24)]


class Exported(NamedTuple):
    model: PanopticEmbedder
    format: str
    path: Path


def network(**options: Any) -> PanopticEmbedder:
    """Return a random network with class means of its own; the mean of the last category is absent."""
    config = {"classes": ("floor", "cup", "car", "absent"), "things": (1, 2, 3), "widths": (4, 6, 8), "dims": 5}
    areas = {"min_thing_area": 4, "min_stuff_area": 5}
    torch.manual_seed(0)
    model = PanopticEmbedder(ModelConfig(**{**config, **areas, **options})).eval()
    with torch.no_grad():
        model.ncm.update(model(2 * torch.rand(1, 3, 32, 32) - 1), torch.arange(1024).view(1, 32, 32) % 3)
    model.ncm.offset[1] = 0.01
    return model


# One of each: an export takes seconds.
CASES = [
    ("onnx", "added", 1),
    ("torch-export", "added", 2),
    pytest.param(("onnx", "fed", 2), marks=pytest.mark.slow),
    pytest.param(("torch-export", "fed", 1), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    format, coordinates, stride = request.param
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is absent: pip install lovasz-embed[export]")
    model = network(coordinates=coordinates, stride=stride)
    path = tmp_path_factory.mktemp("exported") / f"model{'.onnx' if format == 'onnx' else '.pt2'}"
    export_model(model, path, format=format)
    return Exported(model, format, path)


def test_outputs_are_those_of_the_model_at_any_size(exported: Exported) -> None:
    loaded = ExportedModel(exported.path)
    for batch, height, width in SIZES:
        picture = 2 * torch.rand(batch, 3, height, width) - 1
        with torch.no_grad():
            expected = exported.model(picture)
        embedding, category = loaded.run(picture.numpy())
        assert embedding.dtype == np.float32
        # float32 sums of some hundred terms of size one, in another order
        torch.testing.assert_close(torch.from_numpy(embedding), expected, rtol=0, atol=1e-5)
        assert np.array_equal(category, exported.model.ncm(expected).numpy())


def test_what_is_read_off_is_what_the_model_segments(exported: Exported) -> None:
    image = np.random.default_rng(0).integers(0, 256, (51, 63, 3), dtype=np.uint8)
    found, expected = ExportedModel(exported.path).segment(image), exported.model.segment(prepare(image)[None])
    assert torch.equal(found.segmentation, expected.segmentation)
    for mine, other in zip(found.segments[0], expected.segments[0], strict=True):
        assert (mine.id, mine.category, mine.area) == (other.id, other.category, other.area)
        assert mine.score == pytest.approx(other.score, abs=1e-4)  # of embeddings rounded otherwise


def test_the_file_tells_all_that_reading_takes(exported: Exported) -> None:
    loaded, config = ExportedModel(exported.path), exported.model.config
    assert loaded.settings["preparation"] == {"percentiles": [1.0, 99.8], "clamp": [-0.5, 1.5], "to": [-1, 1]}
    assert (loaded.settings["stride"], loaded.settings["context"]) == (4 * config.stride, exported.model.context)
    assert loaded.reading == Reading(
        config.classes,
        config.things,
        config.instance_radius,
        config.reach * config.instance_radius,
        connected=False,
        min_thing_area=4,
        min_stuff_area=5,
        instance_dims=config.instance_dims,
        vote=config.vote,
    )


def test_the_settings_lie_where_other_programs_look(exported: Exported) -> None:
    if exported.format == "onnx":
        onnx = pytest.importorskip("onnx")
        model = onnx.load(str(exported.path))
        text = {entry.key: entry.value for entry in model.metadata_props}["lovasz_embed"]
        assert [output.name for output in model.graph.output] == ["embedding", "category"]
        assert [entry.name for entry in model.graph.input] == ["picture"]
    else:
        extra = {"lovasz_embed": ""}
        torch.export.load(exported.path, extra_files=extra)
        text = extra["lovasz_embed"]
    assert json.loads(text)["classes"] == ["floor", "cup", "car", "absent"]


def test_only_the_file_is_written(exported: Exported) -> None:
    assert list(exported.path.parent.iterdir()) == [exported.path]


def test_pixels_without_a_class_are_void() -> None:
    reading = Reading(("floor", "cup"), (1,), radius=1.0, reach=1.0)
    result = reading.read_off(np.zeros((1, 2, 1, 3), np.float32), np.array([[[-1, 0, 1]]]))
    assert result.segmentation.tolist() == [[[0, 1, 2]]]


def test_things_are_read_off_by_their_own_dimensions_and_by_a_vote() -> None:
    embedding = np.array([[[[0.0, 0.0, 4.0, 0.0]], [[7.0, 7.1, 7.2, 9.9]]]], np.float32)
    category = np.array([[[0, 0, 1, 0]]])
    for options, segments in (
        ({"vote": False}, [(0, 2), (1, 1), (0, 1)]),
        ({"vote": True}, [(0, 3), (0, 1)]),
    ):
        reading = Reading(("car", "truck"), (0, 1), radius=1.0, reach=1.0, instance_dims=(1,), **options)
        assert [(s.category, s.area) for s in reading.read_off(embedding, category).segments[0]] == segments


def test_a_file_of_before_the_vote_is_read_as_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def before(model: PanopticEmbedder) -> dict[str, Any]:
        return {name: value for name, value in now(model).items() if name not in ("instance_dims", "vote")}

    now = export_module.settings_of
    monkeypatch.setattr(export_module, "settings_of", before)
    export_model(network(), tmp_path / "model.pt2", format="torch-export")
    reading = ExportedModel(tmp_path / "model.pt2").reading
    assert (reading.instance_dims, reading.vote) == (None, False)


# --- what is refused


def test_an_unknown_format_and_a_model_without_means_fail_clearly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format must be one of 'onnx', 'torch-export', got 'tensorrt'"):
        export_model(network(), tmp_path / "x.onnx", format="tensorrt")
    with pytest.raises(ValueError, match="model must have class means, got none"):
        export_model(PanopticEmbedder(network().config), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []
    assert EXPORTS == ("onnx", "torch-export")


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    pytest.importorskip("onnx")
    with pytest.raises(ModuleNotFoundError, match=r'ONNX files need onnxscript: pip install "lovasz-embed\[export\]"'):
        export_model(network(), tmp_path / "x.onnx")


def test_a_file_of_another_kind_fails_clearly(tmp_path: Path, exported: Exported) -> None:
    with pytest.raises(FileNotFoundError, match="must be an exported model, got no such file"):
        ExportedModel(tmp_path / "x.onnx")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match=r"the ending of path must be one of '.onnx', '.pt2', got '.txt'"):
        ExportedModel(tmp_path / "x.txt")
    small = np.zeros((30, exported.model.strides[-1], 3), np.uint8)
    with pytest.raises(ValueError, match="image must have sides of more than"):
        ExportedModel(exported.path).segment(small)
