"""Tiles of a picture: which pixels each one decides, and which it looks at for that."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """A part of a picture: rows `top` ... `bottom` - 1, columns `left` ... `right` - 1.

    Attributes:
        top: First row.
        left: First column.
        bottom: One past the last row.
        right: One past the last column.
    """

    top: int
    left: int
    bottom: int
    right: int

    @property
    def rows(self) -> slice:
        """The rows, to index an array with."""
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        """The columns, to index an array with."""
        return slice(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.bottom - self.top, self.right - self.left

    def widened(self, by: int, size: tuple[int, int]) -> Window:
        """Return the window with `by` pixels more on every side, as far as the picture goes."""
        height, width = size
        return Window(
            max(self.top - by, 0), max(self.left - by, 0), min(self.bottom + by, height), min(self.right + by, width)
        )

    def inside(self, outer: Window) -> Window:
        """Return the window in the coordinates of one that holds it."""
        return Window(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)


def tiles(size: tuple[int, int], side: int, step: int) -> list[Window]:
    """Divide a picture into windows of about one size, at most `side` a side, that begin at multiples of `step`.

    `side` is a multiple of `step`. Windows of about one size leave no sliver at the end.
    """
    edges = []
    for length in size:
        count = -(-length // side)
        each = -(-length // (count * step)) * step if count else step
        edges.append([(begin, min(begin + each, length)) for begin in range(0, length, each)])
    return [Window(top, left, bottom, right) for top, bottom in edges[0] for left, right in edges[1]]
