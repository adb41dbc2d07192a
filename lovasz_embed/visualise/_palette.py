"""Colours of categories and instances, spread in OKLab, where equal distances look equally different.

Source: B. Ottosson, "A perceptual color space for image processing", 2020 (definition of OKLab).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lovasz_embed import _check
from lovasz_embed._ops.labels import thing_categories

Colours = NDArray[np.uint8]
Floats = NDArray[np.float64]

_GOLDEN_ANGLE = 2 * np.pi * (1 - 0.6180339887498949)
_FIRST_HUE = 4.4  # blue: the first category of many data sets is sky or background
_THING, _STUFF = (0.68, 0.16), (0.62, 0.045)  # lightness and chroma: things are vivid, stuff is muted
_LIGHTNESS = (0.50, 0.86)  # of instances: their difference stays visible without colour vision
_STEPS = (
    0.7548776662466927,
    0.5698402909980532,
)  # the R2 sequence: consecutive points of the plane lie far apart

_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@dataclass(frozen=True, eq=False)
class Palette:
    """The names and colours of categories, and the colours of their instances.

    Attributes:
        names: One name per category.
        things: Categories whose instances get colours of their own.
        colours: uint8 (C, 3), RGB.

    Raises:
        ValueError: There is not one colour per name, or a thing has no name.
        TypeError: `colours` is not uint8, or `things` is no collection of integers.

    >>> palette = Palette.of(("road", "car"), things={1})
    >>> palette.legend()
    {'road': (86, 107, 131), 'car': (234, 108, 91)}
    >>> palette.instances(category=1, ids=[1, 2]).shape
    (2, 3)
    """

    names: tuple[str, ...]
    things: frozenset[int]
    colours: Colours

    def __post_init__(self) -> None:
        _check_names(self.names)
        thing_categories(self.things)
        _check.is_a("colours", self.colours, np.ndarray, "an array")
        if self.colours.dtype != np.uint8:
            raise TypeError(_check.message("colours", "be uint8", self.colours.dtype, "RGB from 0 to 255."))
        if self.colours.shape != (len(self.names), 3):
            rule = f"have shape ({len(self.names)}, 3): one RGB colour per name"
            raise ValueError(_check.message("colours", rule, self.colours.shape))
        stray = sorted(c for c in self.things if not 0 <= c < len(self.names))
        if stray:
            raise ValueError(_check.message("things", f"be categories below {len(self.names)}", stray[0]))

    @classmethod
    def of(cls, names: Sequence[str], things: Collection[int], colours: ArrayLike | None = None) -> Palette:
        """Return the palette of named categories.

        Args:
            names: One per category.
            things: Category ids.
            colours: (C, 3) integers, RGB; None chooses vivid ones for things and muted ones for stuff. The
                choice for a category depends on its id and kind alone, not on how many there are.

        >>> Palette.of(("sky", "tree"), things=(), colours=[(0, 0, 255), (0, 128, 0)]).colours.tolist()
        [[0, 0, 255], [0, 128, 0]]
        """
        _check_names(names)
        kinds = thing_categories(things)
        if colours is None:
            number = np.arange(len(names))
            vivid = np.isin(number, list(kinds))
            light, chroma = (np.where(vivid, _THING[i], _STUFF[i]) for i in (0, 1))
            light = np.where(vivid, light, light + 0.10 * (number % 3 - 1))
            chosen = _from_polar(light, chroma, _FIRST_HUE + number * _GOLDEN_ANGLE)
        else:
            given = _as_integers("colours", colours)
            outside = given[(given < 0) | (given > 255)]
            if outside.size:
                raise ValueError(_check.message("colours", "be RGB from 0 to 255", outside[0]))
            chosen = given.astype(np.uint8)
        return cls(tuple(names), kinds, chosen)

    def legend(self) -> dict[str, tuple[int, int, int]]:
        """Return the colour of each name."""
        return {name: (int(r), int(g), int(b)) for name, (r, g, b) in zip(self.names, self.colours, strict=True)}

    def instances(self, category: int, ids: Sequence[int]) -> Colours:
        """Return a colour for each instance: its hue is near its category's, its lightness its own.

        Args:
            category: One of `things`.
            ids: The instances. A colour depends on category and id alone, so it follows one through a clip.

        Returns:
            uint8 (len(ids), 3).

        >>> palette = Palette.of(("car",), things={0})
        >>> palette.instances(0, [7])[0].tolist() == palette.instances(0, [3, 7])[1].tolist()
        True
        """
        _check.is_int("category", category, 0, len(self.names) - 1)
        number = _as_integers("ids", ids).astype(np.float64)
        if number.ndim != 1:
            raise ValueError(_check.message("ids", "be one per instance", number.shape))
        hue_step, light_step = (number * _STEPS[0]) % 1, (number * _STEPS[1]) % 1
        _, chroma, hue = _to_polar(self.colours[category])
        light = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * light_step
        around = hue + (2 * hue_step - 1) * self._spread()
        return _from_polar(light, np.full_like(light, max(float(chroma), 0.12)), around)

    def _spread(self) -> float:
        """Return how far (radians) instances leave the hue of their category, short of another's."""
        hues = np.sort(_to_polar(self.colours[sorted(self.things)])[2] % (2 * np.pi))
        gaps = np.diff(hues, append=hues[:1] + 2 * np.pi)
        return float(np.clip(0.25 * gaps.min(initial=2 * np.pi), np.radians(12), np.pi))


def _check_names(names: object) -> None:
    # A text is its letters.
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(_check.message("names", "be one text per category", repr(names)))


def _as_integers(argument: str, values: ArrayLike) -> NDArray[np.integer[Any]]:
    """Return an array of integers, or raise `TypeError`."""
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # ragged, or a tensor elsewhere
        found = np.empty(0, object)
    if found.size and found.dtype.kind not in "iu":
        raise TypeError(_check.message(argument, "be integers", found.dtype if found.dtype != object else repr(values)))
    return found if found.size else np.zeros(found.shape, np.int64)


def _to_polar(colours: Colours) -> tuple[Floats, Floats, Floats]:
    """Return lightness, chroma and hue of uint8 RGB colours (..., 3)."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T
    return lab[..., 0], np.hypot(lab[..., 1], lab[..., 2]), np.arctan2(lab[..., 2], lab[..., 1])


def _from_polar(light: Floats, chroma: Floats, hue: NDArray[np.floating[Any]]) -> Colours:
    """Return uint8 RGB colours (..., 3); what a screen cannot show is clipped."""
    lab = np.stack(np.broadcast_arrays(light, chroma * np.cos(hue), chroma * np.sin(hue)), axis=-1)
    linear = np.clip((lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_CONES).T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    levels: Colours = np.rint(255 * encoded).astype(np.uint8)
    return levels
