"""The models that come with the package: small, complete, with a card, and able to do what the card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from typer.testing import CliRunner

from lovasz_embed.cli import app
from lovasz_embed.formats import open_dataset, read_coco_panoptic
from lovasz_embed.model import WEIGHTS, PanopticEmbedder
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.synthetic import CLASSES, THINGS, StreetScenes
from lovasz_embed.training import evaluate, predict
from lovasz_embed.weights import NAMES, weights_folder

PIL = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_below_two_megabytes_and_has_a_card_with_all_it_should_say(name: str) -> None:
    folder = weights_folder(name)
    assert (folder / WEIGHTS).stat().st_size < 2_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    for heading in ("Data", "Licence", "Figures", "Limits"):
        assert re.search(rf"^## {heading}$", card, re.MULTILINE), heading
    assert json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["categories"]


def test_a_name_that_is_not_there_fails_clearly() -> None:
    with pytest.raises(ValueError, match="weights must be one of"):
        weights_folder("cats")


def discs(count: int, seed: int) -> tuple[NDArray[np.uint8], int]:
    """Draw soft discs that do not touch on a dark, noisy ground; return picture and number."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:256, :256]
    light, centres = np.zeros((256, 256)), np.empty((0, 2))
    while len(centres) < count:
        centre = rng.uniform(20, 236, 2)
        if (np.hypot(*(centres - centre).T) > 36).all():
            centres = np.vstack([centres, centre])
            light[np.hypot(rows - centre[0], columns - centre[1]) < rng.uniform(8, 13)] = rng.uniform(0.6, 1)
    picture = ndimage.gaussian_filter(light, 1.2) * 120 + 20 + rng.normal(0, 2, light.shape)
    return picture.clip(0, 255).astype(np.uint8)[..., None].repeat(3, 2), count


@pytest.mark.parametrize("seed", range(3))
def test_nuclei_are_found_that_anybody_would_find(seed: int) -> None:
    picture, count = discs(12, seed)
    [result] = predict(PanopticEmbedder.from_pretrained(weights_folder("nuclei")), [picture])
    assert sum(segment.is_thing for segment in result.segments[0]) == count


def test_predict_takes_weights_by_name(tmp_path: Path) -> None:
    picture, count = discs(9, 7)
    PIL.fromarray(picture).save(tmp_path / "cells.png")
    place = tmp_path / "out"
    command = ["predict", "--weights", "nuclei", str(tmp_path / "cells.png"), "--out", str(place)]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    [segments] = read_coco_panoptic(place / "predictions.json").result(0).segments
    assert sum(segment.is_thing for segment in segments) == count
    with PIL.open(place / "labels" / "cells.png") as labels:
        assert len(np.unique(np.array(labels))) == count + 1


def test_streets_know_the_categories_of_the_painter() -> None:
    assert PanopticEmbedder.from_pretrained(weights_folder("streets")).config.classes == CLASSES


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["predict"], "the model must be given either as RUN or by --weights, got neither"),
        (["predict", "--weights", "cats", "x.png"], "weights must be one of"),
        (["evaluate", "RUN", "--weights", "nuclei", "--data", "D"], "must be given RUN or --weights with --data"),
    ],
)
def test_models_that_are_not_told_fail_clearly(command: list[str], text: str) -> None:
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code != 0
    assert text in str(answer.exception) + answer.output


def test_the_card_of_the_nuclei_tells_what_comes_out(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "dsb2018_nuclei", format="instance-map", split="val")
    some = range(0, len(dataset), 5)
    quality = evaluate(
        predict(PanopticEmbedder.from_pretrained(weights_folder("nuclei")), (dataset.image(index) for index in some)),
        (dataset.result(index) for index in some),
        classes=2,
        things={1},
    )
    # Ten of the fifty pictures: their mean may differ from that of all, which is on the card.
    assert quality.pq_things > 0.7


def test_streets_of_the_painter_are_segmented_as_the_card_says() -> None:
    scenes = StreetScenes(12, seed=77, max_things=10)
    pictures = ((scene.image * 255).round().byte().permute(1, 2, 0).numpy() for scene in scenes)
    truths = (
        PanopticResult.from_maps(scene.semantic[None], scene.instance[None], things=THINGS, crowd=scene.crowd[None])
        for scene in scenes
    )
    model = PanopticEmbedder.from_pretrained(weights_folder("streets"))
    quality = evaluate(predict(model, pictures), truths, classes=len(CLASSES), things=THINGS)
    # The card says 0.95 for 200 scenes; twelve hold some thirty things, of which two or three may be missed.
    assert quality.pq > 0.88
