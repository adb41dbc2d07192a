"""Synthetic streets: the same on every machine, labelled without contradiction, hard in the stated ways."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.utils.data import DataLoader

from lovasz_embed.synthetic import (
    CLASSES,
    COLOURS,
    EXTENDED_CLASSES,
    EXTENDED_COLOURS,
    EXTENDED_THINGS,
    THINGS,
    VOID,
    Scene,
    StreetScenes,
    street_clip,
    street_scene,
)

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(32, 96), st.integers(32, 96))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Two hundred scenes, enough for a rate of 0.5 to be off by 0.1 less than once in two hundred times."""
    return list(StreetScenes(200, seed=11))


@pytest.fixture(scope="module")
def clips() -> list[list[Scene]]:
    return [street_clip(seed, frames=48) for seed in range(12)]


def digest(scenes: Sequence[Scene]) -> str:
    """Return a fingerprint of every bit of `scenes`."""
    sha = hashlib.sha256()
    for scene in scenes:
        for tensor in scene:
            sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()[:16]


def instances(scene: Scene) -> list[int]:
    return [number for number in scene.instance.unique().tolist() if number > 0]


def neighbours(labels: torch.Tensor) -> torch.Tensor:
    """Return the (N, 2) pairs of labels of all pixels beside or above each other."""
    beside = torch.stack([labels[:, :-1].flatten(), labels[:, 1:].flatten()], dim=1)
    above = torch.stack([labels[:-1].flatten(), labels[1:].flatten()], dim=1)
    return torch.cat([beside, above])


def touches(scene: Scene, *, same_class: bool = False) -> bool:
    a, b = neighbours(scene.instance).unbind(1)
    meet = (a != b) & (a > 0) & (b > 0)
    if same_class:
        c, d = neighbours(scene.semantic).unbind(1)
        meet &= c == d
    return bool(meet.any())


def is_split(scene: Scene) -> bool:
    """Tell whether an instance is in pieces that do not even meet at corners: something hides its middle."""
    eight = torch.ones(3, 3).numpy()
    return any(ndimage.label((scene.instance == i).numpy(), eight)[1] > 1 for i in instances(scene))


def rate(found: Sequence[bool]) -> float:
    return sum(found) / len(found)


def test_the_bits_of_a_seed_are_the_same_on_every_machine() -> None:
    assert digest([street_scene(7)]) == "7eb1b38b7d518a66"
    assert digest(street_clip(7, frames=3, size=(64, 128))) == "8ff529b9f3ac6c0f"


def test_a_scene_depends_on_its_seed_and_number_alone() -> None:
    short, long = StreetScenes(3, seed=5, size=(32, 48)), StreetScenes(9, seed=5, size=(32, 48))
    assert digest([long[8], long[2]][1:]) == digest([short[2]])
    assert digest([short[2]]) == digest([street_scene((5, 2), size=(32, 48))])
    assert digest([short[-1]]) == digest([short[2]])


def test_two_seeds_have_no_scene_in_common() -> None:
    prints = [digest([scene]) for seed in (0, 1, 2) for scene in StreetScenes(20, seed=seed, size=(32, 32))]
    assert len(set(prints)) == 60


def test_a_loader_stacks_scenes() -> None:
    scenes = StreetScenes(3, seed=2, size=(32, 48))
    (batch,) = DataLoader(scenes, batch_size=3)
    assert isinstance(batch, Scene)
    assert batch.image.shape == (3, 3, 32, 48)
    assert torch.equal(batch.instance[1], scenes[1].instance)


@given(seed=seeds, size=sizes, max_things=st.integers(0, 16))
def test_no_label_contradicts_another_one(seed: int, size: tuple[int, int], max_things: int) -> None:
    scene = street_scene(seed, size=size, max_things=max_things)
    assert scene.image.shape == (3, *size)
    assert scene.image.is_contiguous()
    assert [tensor.dtype for tensor in scene] == [torch.float32, torch.int64, torch.int32, torch.bool]
    assert all(tensor.shape == size for tensor in scene[1:])
    assert set(scene.semantic.unique().tolist()) <= {*range(len(CLASSES)), VOID}
    # An instance is a thing, and a thing is an instance unless it is a crowd of persons.
    is_thing = torch.isin(scene.semantic, torch.tensor(sorted(THINGS)))
    assert torch.equal(scene.instance > 0, is_thing & ~scene.crowd)
    assert (scene.semantic[scene.crowd] == CLASSES.index("person")).all()
    numbers = instances(scene)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) <= max_things
    for number in numbers:
        inside = scene.instance == number
        assert inside.sum() >= 24
        assert len(scene.semantic[inside].unique()) == 1


def test_a_picture_of_eight_bits_holds_the_image_exactly(scenes: list[Scene]) -> None:
    for scene in scenes[:10]:
        levels = (scene.image * 255).round().byte()
        assert torch.equal(levels.float() / 255, scene.image)


def test_a_street_without_things_has_no_instance() -> None:
    assert all(not instances(street_scene(seed, max_things=0)) for seed in range(20))


def test_things_show_at_least_the_area_asked_for() -> None:
    for seed in range(20):
        scene = street_scene(seed, min_area=150)
        assert all((scene.instance == number).sum() >= 150 for number in instances(scene))


def test_every_class_occurs_and_has_a_colour_of_its_own(scenes: list[Scene]) -> None:
    found = torch.stack([scene.semantic for scene in scenes]).unique().tolist()
    assert found == [*range(len(CLASSES)), VOID]
    assert len(set(COLOURS)) == len(CLASSES)


# The rates are those of the docstring; over two hundred scenes each may be off by a tenth.


def test_instances_touch_in_nine_scenes_of_ten(scenes: list[Scene]) -> None:
    assert rate([touches(scene) for scene in scenes]) > 0.8


def test_instances_of_one_class_touch_in_three_scenes_of_four(scenes: list[Scene]) -> None:
    assert rate([touches(scene, same_class=True) for scene in scenes]) > 0.65


def test_a_thing_in_front_splits_another_one_in_every_other_scene(scenes: list[Scene]) -> None:
    assert rate([is_split(scene) for scene in scenes]) > 0.4


def test_void_is_in_two_scenes_of_five(scenes: list[Scene]) -> None:
    assert rate([bool((scene.semantic == VOID).any()) for scene in scenes]) == pytest.approx(0.4, abs=0.1)


def test_a_crowd_is_in_one_scene_of_five(scenes: list[Scene]) -> None:
    assert rate([bool(scene.crowd.any()) for scene in scenes]) == pytest.approx(0.2, abs=0.1)


def test_nearer_things_hide_farther_ones(scenes: list[Scene]) -> None:
    # Ids ascend from far to near, and everything stands on the ground: the foot of a nearer thing is lower.
    # Where it is hidden or cut off the lowest visible pixel says less, hence the rate.
    right = []
    for scene in scenes:
        feet = [int((scene.instance == i).nonzero()[:, 0].max()) for i in instances(scene)]
        right += [far <= near for far, near in itertools.pairwise(feet)]
    assert rate(right) > 0.8


@given(seed=seeds)
def test_a_shorter_clip_begins_a_longer_one(seed: int) -> None:
    longer = street_clip(seed, frames=4, size=(32, 48))
    assert digest(street_clip(seed, frames=2, size=(32, 48))) == digest(longer[:2])


def test_an_id_keeps_its_class_through_a_clip(clips: list[list[Scene]]) -> None:
    for clip in clips:
        category: dict[int, int] = {}
        for frame in clip:
            for number in instances(frame):
                (found,) = frame.semantic[frame.instance == number].unique().tolist()
                assert category.setdefault(number, found) == found


def test_an_id_follows_its_thing(clips: list[list[Scene]]) -> None:
    # Nothing moves by its own width in one frame: most masks of an id meet those of the frame before.
    meets = [
        bool(((before.instance == number) & (after.instance == number)).any())
        for clip in clips
        for before, after in itertools.pairwise(clip)
        for number in set(instances(before)) & set(instances(after))
    ]
    assert rate(meets) > 0.95


def test_things_come_go_and_come_back_with_their_id(clips: list[list[Scene]]) -> None:
    comes, goes, returns = [], [], []
    for clip in clips:
        shown: dict[int, list[int]] = {}
        for time, frame in enumerate(clip):
            for number in instances(frame):
                shown.setdefault(number, []).append(time)
        comes.append(any(times[0] > 0 for times in shown.values()))
        goes.append(any(times[-1] < len(clip) - 1 for times in shown.values()))
        returns.append(any(times[-1] - times[0] >= len(times) for times in shown.values()))
    assert (rate(comes), rate(goes)) == (1, 1)
    assert rate(returns) > 0.5


def test_the_camera_moves(clips: list[list[Scene]]) -> None:
    # Houses do not move by themselves.
    house = CLASSES.index("building")
    assert all(((clip[0].semantic == house) != (clip[12].semantic == house)).any() for clip in clips)


@pytest.fixture(scope="module")
def towns() -> list[Scene]:
    """Scenes of the extended street as the contest uses them."""
    return list(StreetScenes(30, seed=3, size=(256, 256), max_things=44, extended=True))


def test_the_bits_of_an_extended_street_are_the_same_on_every_machine() -> None:
    assert digest([street_scene(7, size=(64, 64), extended=True)]) == "c5ae31b74ce3553d"
    assert digest(street_clip(7, frames=3, size=(64, 128), extended=True)) == "987ae575e0a9017c"


def test_an_extended_street_has_eight_categories_and_all_occur(towns: list[Scene]) -> None:
    found = torch.stack([scene.semantic for scene in towns]).unique().tolist()
    assert found == [*range(8), VOID]
    assert len(EXTENDED_CLASSES) == len(set(EXTENDED_COLOURS)) == 8
    assert EXTENDED_CLASSES[: len(CLASSES)] == CLASSES
    assert {*THINGS, EXTENDED_CLASSES.index("truck")} == EXTENDED_THINGS


def test_the_labels_of_an_extended_street_do_not_contradict_each_other(towns: list[Scene]) -> None:
    things = torch.tensor(sorted(EXTENDED_THINGS))
    for scene in towns:
        assert torch.equal(scene.instance > 0, torch.isin(scene.semantic, things) & ~scene.crowd)
        for number in instances(scene):
            assert len(scene.semantic[scene.instance == number].unique()) == 1


def test_an_extended_street_is_crowded(towns: list[Scene]) -> None:
    counts = [len(instances(scene)) for scene in towns]
    assert max(counts) > 20
    assert sum(counts) / len(counts) > 12
    assert rate([touches(scene, same_class=True) for scene in towns]) > 0.9
    assert rate([is_split(scene) for scene in towns]) > 0.9


def test_an_extended_clip_moves_on_like_a_plain_one() -> None:
    clip = street_clip(3, frames=3, size=(96, 96), max_things=30, extended=True)
    before, after = (set(instances(frame)) for frame in clip[:2])
    assert len(before & after) > 4
    assert digest(clip[:2]) == digest(street_clip(3, frames=2, size=(96, 96), max_things=30, extended=True))


def test_an_extended_data_set_says_so() -> None:
    scenes = StreetScenes(3, seed=1, size=(64, 64), extended=True)
    assert repr(scenes) == "StreetScenes(3, seed=1, size=(64, 64), max_things=12, extended=True)"
    assert digest([scenes[1]]) == digest([street_scene((1, 1), size=(64, 64), extended=True)])


def test_a_representation_shows_how_to_make_the_data_set() -> None:
    text = "StreetScenes(3, seed=1, size=(32, 48), max_things=5)"
    assert repr(StreetScenes(3, seed=1, size=(32, 48), max_things=5)) == text


def test_an_index_beyond_the_last_scene_raises() -> None:
    with pytest.raises(IndexError):
        StreetScenes(3)[3]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": (3, -2)}, "seed must be at least 0, got -2"),
        ({"size": (31, 96)}, r"size must be a height and a width of at least 32 pixels, got \(31, 96\)"),
        ({"size": (96,)}, r"size must be a height and a width of at least 32 pixels, got \(96,\)"),
        ({"max_things": -1}, "max_things must be at least 0, got -1"),
        ({"min_area": 0}, "min_area must be at least 1, got 0"),
    ],
)
def test_a_number_that_is_too_small_fails_clearly(options: dict[str, Any], text: str) -> None:
    arguments = {"seed": 0, **options}
    with pytest.raises(ValueError, match=text):
        street_scene(**arguments)
    with pytest.raises(ValueError, match=text):
        street_clip(**arguments, frames=1)


def test_a_clip_without_frames_fails_clearly() -> None:
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        street_clip(0, frames=0)


def test_a_negative_length_fails_clearly() -> None:
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        StreetScenes(-1)
