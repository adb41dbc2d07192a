"""Pictures say what the data says: every colour, line and brightness is compared with a plain restatement."""

from __future__ import annotations

import colorsys
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA

from lovasz_embed.panoptic import PanopticResult, Segment
from lovasz_embed.synthetic import CLASSES, COLOURS, THINGS, Scene, street_scene
from lovasz_embed.visualise import (
    Palette,
    as_picture,
    class_mean_map,
    colour_basis,
    embedding_colours,
    overlay,
    panel,
    save_png,
)
from lovasz_embed.visualise._palette import _to_polar

PALETTE = Palette.of(CLASSES, THINGS, COLOURS)
WHITE, DARK = [255, 255, 255], [24, 24, 28]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return street_scene((1, 1))  # holds void and a crowd


@pytest.fixture(scope="module")
def result(scene: Scene) -> PanopticResult:
    semantic, instance, crowd = (labels[None] for labels in scene[1:])
    return PanopticResult.from_maps(semantic, instance, things=THINGS, crowd=crowd)


def grey(height: int, width: int, level: int = 100) -> NDArray[np.uint8]:
    return np.full((height, width, 3), level, dtype=np.uint8)


def hue_distance(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return how far apart two colours are on the circle of hues, in turns."""
    a, b = (colorsys.rgb_to_hsv(*(colour / 255))[0] for colour in (first, second))
    return min((a - b) % 1, (b - a) % 1)


# ------------------------------------------------------------------------------------------------- palette


@pytest.mark.parametrize(
    ("colour", "light", "a", "b"),
    [
        ((255, 255, 255), 1.0, 0.0, 0.0),
        ((255, 0, 0), 0.62796, 0.22486, 0.12585),
        ((0, 255, 0), 0.86644, -0.23389, 0.17950),
        ((0, 0, 255), 0.45201, -0.03246, -0.31153),
    ],
)
def test_oklab_has_its_published_values(colour: tuple[int, int, int], light: float, a: float, b: float) -> None:
    found, chroma, hue = _to_polar(np.array(colour, dtype=np.uint8))
    # The published values have five digits.
    assert (found, chroma * np.cos(hue), chroma * np.sin(hue)) == pytest.approx((light, a, b), abs=1e-5)


def test_things_are_vivid_and_stuff_is_muted() -> None:
    colours = Palette.of([str(c) for c in range(40)], things=range(20, 40)).colours.astype(int)
    vividness = colours.max(axis=1) - colours.min(axis=1)
    assert vividness[:20].max() < vividness[20:].min()


def test_a_colour_does_not_depend_on_how_many_categories_there_are() -> None:
    few, many = Palette.of("abc", things={1}), Palette.of("abcdefgh", things={1, 5, 6})
    assert few.colours.tolist() == many.colours[:3].tolist()


def test_a_hundred_instances_have_a_hundred_colours() -> None:
    assert len(np.unique(PALETTE.instances(3, range(1, 101)), axis=0)) == 100


def test_the_hue_of_an_instance_is_that_of_its_category_or_near() -> None:
    for own in THINGS:
        for colour in PALETTE.instances(own, range(1, 101)):
            others = [hue_distance(colour, PALETTE.colours[other]) for other in THINGS - {own}]
            assert hue_distance(colour, PALETTE.colours[own]) < min(others)


def test_consecutive_instances_differ_in_lightness_or_hue() -> None:
    colours = PALETTE.instances(4, range(1, 101)).astype(int)
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 25


def test_the_legend_names_the_colours() -> None:
    assert PALETTE.legend() == dict(zip(CLASSES, COLOURS, strict=True))


def test_a_palette_that_does_not_fit_fails_clearly() -> None:
    with pytest.raises(ValueError, match=r"colours must have shape \(2, 3\): one RGB colour per name, got"):
        Palette(("a", "b"), frozenset(), np.zeros((3, 3), np.uint8))
    with pytest.raises(TypeError, match=r"colours must be uint8, got float64\. RGB from 0 to 255\."):
        Palette(("a",), frozenset(), np.zeros((1, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"colours must be RGB from 0 to 255, got 300"):
        Palette.of("a", (), colours=[(0, 0, 300)])
    with pytest.raises(ValueError, match=r"colours must have shape \(2, 3\)"):
        Palette.of("ab", (), colours=[(0, 0, 0)])
    with pytest.raises(ValueError, match="things must be categories below 2, got 2"):
        Palette.of("ab", things={2})


# -------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    "image",
    [
        torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0]]]),
        torch.tensor([[[-3.0, 7.0]]]),
        torch.tensor([[[0, 255]]], dtype=torch.uint8),
        torch.tensor([[[0.0, 1.0]]], dtype=torch.bfloat16, requires_grad=True),
        np.array([[0, 255]], dtype=np.uint8),
        np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8),
    ],
)
def test_every_usual_image_becomes_one_picture(image: torch.Tensor | NDArray[np.uint8]) -> None:
    picture = as_picture(image)
    assert picture.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert picture.dtype == np.uint8
    assert picture.flags.writeable


def test_another_image_fails_clearly() -> None:
    with pytest.raises(ValueError, match=r"image must have shape \(1 or 3, H, W\), got \(1, 3, 2, 2\)"):
        as_picture(torch.zeros(1, 3, 2, 2))
    with pytest.raises(TypeError, match="image must be a uint8 array or a floating point tensor, got float64"):
        as_picture(np.zeros((2, 2, 3)))
    with pytest.raises(TypeError, match="image must be a uint8 array or a floating point tensor, got int64"):
        as_picture(torch.zeros(3, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"image must have shape \(H, W\) or \(H, W, 3\), got \(2, 2, 4\)"):
        as_picture(np.zeros((2, 2, 4), dtype=np.uint8))


# ------------------------------------------------------------------------------------------------- overlay


def test_opaque_segments_have_exactly_their_colours(scene: Scene, result: PanopticResult) -> None:
    picture = overlay(scene.image, result, palette=PALETTE, alpha=1, contours=False)
    segments = result.segmentation[0].numpy()
    for segment in result.segments[0]:
        inside = picture[segments == segment.id]
        if segment.is_crowd:
            full = PALETTE.colours[segment.category]
            assert np.unique(inside, axis=0).tolist() == [(full // 2).tolist(), full.tolist()]
        elif segment.is_thing:
            assert (inside == PALETTE.instances(segment.category, [segment.id])[0]).all()
        else:
            assert (inside == PALETTE.colours[segment.category]).all()


def test_transparent_segments_leave_the_picture_as_it_is(scene: Scene, result: PanopticResult) -> None:
    picture = overlay(scene.image, result, alpha=0, contours=False)
    known = result.segmentation[0].numpy() > 0
    assert (picture[known] == as_picture(scene.image)[known]).all()


@given(alpha=st.floats(0, 1), level=st.integers(0, 255))
def test_alpha_is_the_share_of_the_colour(alpha: float, level: int) -> None:
    result = PanopticResult(torch.ones(1, 1, 1, dtype=torch.int32), ((Segment(1, 0, False, 1),),))
    palette = Palette.of(["only"], things=(), colours=[(0, 90, 255)])
    picture = overlay(grey(1, 1, level), result, palette=palette, alpha=alpha, contours=False)[0, 0]
    # Shares are 256ths, off by half of one, and the result is rounded down: below one level each.
    assert np.abs(picture - (alpha * palette.colours[0] + (1 - alpha) * level)).max() < 2


def test_void_is_the_picture_darkened_and_striped() -> None:
    nothing = PanopticResult(torch.zeros(1, 16, 16, dtype=torch.int32), ((),))
    picture = overlay(grey(16, 16, 200), nothing)
    assert len(np.unique(picture)) == 2
    assert picture.max() < 200


def test_contours_are_where_the_segment_changes(scene: Scene, result: PanopticResult) -> None:
    plain = overlay(scene.image, result, palette=PALETTE, contours=False)
    lined = overlay(scene.image, result, palette=PALETTE)
    ids = result.segmentation[0].tolist()
    is_thing = {0: False, **{segment.id: segment.is_thing for segment in result.segments[0]}}
    for y, row in enumerate(ids):
        for x, own in enumerate(row):
            beside = [ids[y - 1][x]] * (y > 0) + [row[x - 1]] * (x > 0)
            others = [other for other in beside if other != own]
            if not others:
                assert (lined[y, x] == plain[y, x]).all()
            elif is_thing[own] or all(is_thing[other] for other in others):
                assert lined[y, x].tolist() == WHITE
            elif not any(is_thing[other] for other in others):
                assert lined[y, x].tolist() == DARK


def test_contours_stay_one_pixel_wide_when_enlarged() -> None:
    ids = torch.tensor([[[1, 1, 2, 2]]], dtype=torch.int32)
    result = PanopticResult(ids, ((Segment(1, 0, False, 2), Segment(2, 1, True, 2)),))
    picture = overlay(grey(1, 4), result, scale=5)
    assert picture.shape == (5, 20, 3)
    is_white = (picture == 255).all(axis=2)
    assert is_white.sum(axis=1).tolist() == [1] * 5
    assert is_white[:, 10].all()


def test_an_instance_keeps_its_colour_in_another_picture() -> None:
    def picture(segments: tuple[Segment, ...]) -> NDArray[np.uint8]:
        ids = torch.tensor([[[segment.id for segment in segments]]], dtype=torch.int32)
        return overlay(grey(1, len(segments)), PanopticResult(ids, (segments,)), palette=PALETTE, contours=False)

    one, two = Segment(4, 3, True, 1), Segment(9, 3, True, 1)
    assert picture((two,))[0, 0].tolist() == picture((one, two))[0, 1].tolist()


@given(height=st.integers(1, 9), width=st.integers(1, 9), scale=st.integers(1, 4))
def test_pictures_of_every_size_can_be_painted(height: int, width: int, scale: int) -> None:
    ids = torch.arange(height * width, dtype=torch.int32).view(1, height, width)
    segments = tuple(Segment(i, i % 7, i % 7 > 3, 1) for i in range(1, height * width))
    picture = overlay(grey(height, width), PanopticResult(ids, (segments,)), scale=scale)
    assert picture.shape == (scale * height, scale * width, 3)
    assert picture.dtype == np.uint8


def test_an_overlay_that_does_not_fit_fails_clearly(scene: Scene, result: PanopticResult) -> None:
    with pytest.raises(ValueError, match=r"result must be one picture of the image's 8 x 96 pixels, got shape"):
        overlay(grey(8, 96), result)
    batch = PanopticResult.from_pictures([result, result])
    with pytest.raises(ValueError, match=r"got shape \(2, 96, 96\)\. One picture of a batch is result\[i\]"):
        overlay(scene.image, batch)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 1.5"):
        overlay(scene.image, result, alpha=1.5)
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        overlay(scene.image, result, scale=0)
    with pytest.raises(ValueError, match=r"palette must hold every category of the result \(1\), got 1 categor"):
        overlay(scene.image, result, palette=Palette.of(["sky"], things=()))


# ----------------------------------------------------------------------------------------------- embedding


def test_the_colour_axes_are_the_principal_components() -> None:
    embedding = torch.randn(2, 5, 8, 8, dtype=torch.float64) * torch.tensor([1.0, 5, 2, 9, 3])[:, None, None]
    found = colour_basis(embedding).axes
    expected = PCA(3).fit(embedding.movedim(1, -1).reshape(-1, 5).numpy()).components_
    assert np.abs(np.sum(found * expected, axis=1)) == pytest.approx([1, 1, 1])  # a sign is free
    assert all(axis[np.abs(axis).argmax()] > 0 for axis in found)


def test_an_outlier_does_not_take_the_colours_from_the_rest() -> None:
    embedding = torch.linspace(0, 1, 400).view(1, 20, 20).clone()
    embedding[0, 7, 7] = 1e6
    red = np.sort(embedding_colours(embedding)[..., 0], axis=None)
    assert red[4] == 0
    assert red[-5] == 255
    assert len(np.unique(red)) > 200


def test_frames_with_one_basis_share_their_colours() -> None:
    first, second = torch.randn(6, 8, 8), torch.randn(6, 8, 8) + 3
    second[:, 2, 5] = first[:, 7, 1]
    basis = colour_basis(torch.stack([first, second]))
    one, two = (embedding_colours(frame, basis=basis) for frame in (first, second))
    assert two[2, 5].tolist() == one[7, 1].tolist()


@given(
    dims=st.integers(1, 9),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_embeddings_of_every_size_and_precision_have_colours(
    dims: int, height: int, width: int, dtype: torch.dtype
) -> None:
    picture = embedding_colours(torch.randn(dims, height, width).to(dtype))
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8


def test_what_does_not_vary_is_mid_grey() -> None:
    assert (embedding_colours(torch.full((4, 3, 3), 7.0)) == 128).all()
    one_dimension = embedding_colours(torch.arange(12.0).view(1, 3, 4))
    assert (one_dimension[..., 1:] == 128).all()
    assert len(np.unique(one_dimension[..., 0])) == 12


def test_an_embedding_without_colours_fails_clearly() -> None:
    with pytest.raises(ValueError, match=r"embedding must have shape \(D, H, W\), got \(2, 3, 4, 4\)"):
        embedding_colours(torch.zeros(2, 3, 4, 4))
    with pytest.raises(TypeError, match=r"embedding must be a floating point tensor, got torch\.int64"):
        embedding_colours(torch.zeros(3, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="embedding must be finite everywhere, got 1 NaN or Inf"):
        embedding_colours(torch.tensor([[[0.0, torch.nan]]]))
    with pytest.raises(ValueError, match=r"embedding must hold at least one pixel, got \(0, 3, 4, 4\)"):
        colour_basis(torch.zeros(0, 3, 4, 4))
    with pytest.raises(ValueError, match=r"percentile must be in \[0, 50\), got 50"):
        colour_basis(torch.zeros(1, 3, 4, 4), percentile=50)
    with pytest.raises(ValueError, match="basis must have the embedding's 4 dimensions, got 3"):
        embedding_colours(torch.zeros(4, 2, 2), basis=colour_basis(torch.rand(1, 3, 4, 4)))


# --------------------------------------------------------------------------------------------- class means


@given(classes=st.integers(2, 6), absent=st.integers(0, 1), seed=st.integers(0, 999))
def test_the_map_shows_the_nearest_mean_and_how_near_the_second_is(classes: int, absent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    means = torch.randn(classes, 3, generator=generator, dtype=torch.float64)
    means[:absent] = torch.nan
    palette = Palette.of([str(c) for c in range(classes)], things=range(classes))
    picture = class_mean_map(embedding, means, palette=palette)
    for y in range(4):
        for x in range(5):
            distance = {c: float((embedding[:, y, x] - means[c]).norm()) for c in range(absent, classes)}
            nearest = min(distance, key=distance.__getitem__)
            rest = [d for c, d in distance.items() if c != nearest]
            light = 0.15 + 0.85 * (1 - distance[nearest] / min(rest)) if rest else 1
            # Rounded to whole levels, so at most half of one away, and a hair.
            assert np.abs(picture[y, x] - light * palette.colours[nearest].astype(float)).max() < 0.51


def test_absent_classes_leave_the_map_black() -> None:
    assert (class_mean_map(torch.randn(2, 3, 3), torch.full((4, 2), torch.nan)) == 0).all()


def test_a_map_longer_than_one_chunk_is_seamless() -> None:
    row = torch.randn(2, 1, 300)
    picture = class_mean_map(row.expand(2, 300, 300), torch.randn(5, 2))
    # The order of sums in a matrix product may differ with its size: one level of rounding.
    assert np.abs(picture.astype(int) - picture[:1]).max() <= 1


def test_class_means_that_do_not_fit_fail_clearly() -> None:
    with pytest.raises(ValueError, match=r"class_means must have shape \(C, 3\) to match embedding, got \(4, 2\)"):
        class_mean_map(torch.zeros(3, 2, 2), torch.zeros(4, 2))
    with pytest.raises(TypeError, match=r"class_means must be a floating point tensor, got torch\.int64"):
        class_mean_map(torch.zeros(3, 2, 2), torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="palette must have 4 categories, one per mean, got 6"):
        class_mean_map(torch.zeros(3, 2, 2), torch.zeros(4, 3), palette=PALETTE)


# ------------------------------------------------------------------------------------------ panel and files


def find(sheet: NDArray[np.uint8], picture: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return where `picture` lies in `sheet`, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, picture.shape)[:, :, 0]
    return [(int(y), int(x)) for y, x in np.argwhere((windows == picture).all(axis=(2, 3, 4)))]


def test_a_panel_shows_every_picture_in_its_column_and_row() -> None:
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, size=(4, 10, 12, 3), dtype=np.uint8)
    sheet = panel({"left": list(pictures[:2]), "right": list(pictures[2:])}, height=10)
    places = [find(sheet, picture) for picture in pictures]
    assert all(len(place) == 1 for place in places)
    (a,), (b,), (c,), (d,) = places
    assert a[1] == b[1] < c[1] == d[1]
    assert a[0] == c[0] < b[0] == d[0]


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    picture = np.random.default_rng(0).integers(0, 256, size=(5, 4, 3), dtype=np.uint8)
    sheet = panel({"small": picture}, height=19)
    assert len(find(sheet, picture.repeat(3, axis=0).repeat(3, axis=1))) == 1


def test_titles_and_legend_are_written() -> None:
    blank, plain = panel({"": grey(20, 60)}), panel({"input": grey(20, 60)})
    assert (blank != plain).any(axis=2).sum() > 20  # the letters
    keyed = panel({"input": grey(20, 60)}, legend={"road": (12, 200, 34)})
    assert keyed.shape[0] > plain.shape[0]
    assert (keyed == (12, 200, 34)).all(axis=2).sum() > 100


def test_a_long_legend_takes_several_lines_and_stays_inside() -> None:
    few, many = ({f"category {i}": (9, 9, 200) for i in range(n)} for n in (1, 30))
    narrow, tall = panel({"": grey(20, 60)}, legend=few), panel({"": grey(20, 60)}, legend=many)
    assert tall.shape[0] > narrow.shape[0]
    assert (tall == (9, 9, 200)).all(axis=2).sum() == 30 * (narrow == (9, 9, 200)).all(axis=2).sum()


def test_a_long_title_shrinks_to_its_column() -> None:
    sheet = panel({"a title far longer than its column": grey(40, 60), "": grey(40, 60)}, height=40)
    second = sheet[: sheet.shape[0] // 4, sheet.shape[1] // 2 :]
    assert (second == 255).all()


def test_a_panel_without_order_fails_clearly() -> None:
    with pytest.raises(ValueError, match="columns must hold at least one picture, got none"):
        panel({})
    with pytest.raises(ValueError, match=r"columns must hold as many pictures each, got \[1, 2\]"):
        panel({"a": grey(2, 2), "b": [grey(2, 2), grey(2, 2)]})
    with pytest.raises(ValueError, match=r"columns must hold uint8 pictures \(H, W, 3\), got float64 of shape"):
        panel({"a": np.zeros((2, 2, 3))})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="height must be a finite number above 0, got 0"):
        panel({"a": grey(2, 2)}, height=0)


def test_a_file_holds_the_picture_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_text("an older file")
    picture = np.random.default_rng(0).integers(0, 256, size=(5, 4, 3), dtype=np.uint8)
    save_png(file, picture)
    assert (np.asarray(Image.open(file)) == picture).all()
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_file_that_cannot_be_written_fails_clearly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.png, got picture\.jpg"):
        save_png(tmp_path / "picture.jpg", grey(2, 2))
    with pytest.raises(ValueError, match=r"picture must be uint8 \(H, W, 3\) or \(H, W\), got uint8 of shape"):
        save_png(tmp_path / "picture.png", np.zeros((2, 2, 4), dtype=np.uint8))
    with pytest.raises(FileNotFoundError, match=r"path must lie in a folder that exists, got .*Create it first"):
        save_png(tmp_path / "none" / "picture.png", grey(2, 2))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"folder\.png"):
        save_png(tmp_path / "folder.png", grey(2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_without_pillow_panels_and_files_fail_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    text = r'^Pillow is needed for pictures: pip install "lovasz-embed\[viz\]"$'
    with pytest.raises(ImportError, match=text):
        panel({"a": grey(2, 2)})
    with pytest.raises(ImportError, match=text):
        save_png(tmp_path / "picture.png", grey(2, 2))


def test_colours_need_no_pillow() -> None:
    code = "import sys; sys.modules['PIL'] = None; import lovasz_embed.visualise as v; v.Palette.of('a', ())"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
