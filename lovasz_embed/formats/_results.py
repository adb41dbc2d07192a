"""Results beside the records of their pictures: as many as there are records, and of their sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from lovasz_embed import _check
from lovasz_embed._check import message
from lovasz_embed.formats._base import Category, DataError, ImageRecord
from lovasz_embed.formats._files import leads_outside
from lovasz_embed.panoptic import PanopticResult
from lovasz_embed.panoptic.result import is_result


def paired(
    results: Iterable[PanopticResult], images: Sequence[ImageRecord]
) -> Iterator[tuple[ImageRecord, PanopticResult]]:
    """Yield every record with its picture; results hold one picture or a batch, and are consumed one by one.

    Raises:
        DataError: Not as many pictures as records.

    >>> record = ImageRecord(image_id=7, file_name="a.png")
    >>> list(paired([], [record]))
    Traceback (most recent call last):
    lovasz_embed.formats._base.DataError: results must hold a picture for each of the 1 images, got 0
    """
    pictures = (picture for result in _each(results) for picture in result)
    wanted = f"hold a picture for each of the {len(images)} images"
    for number, image in enumerate(images):
        picture = next(pictures, None)
        if picture is None:
            raise DataError(message("results", wanted, number))
        yield image, picture
    if next(pictures, None) is not None:
        raise DataError(message("results", wanted, "more"))


def _each(results: Iterable[PanopticResult]) -> Iterator[PanopticResult]:
    if not isinstance(results, Iterable) or isinstance(results, Tensor):
        raise TypeError(message("results", "be PanopticResults, one after the other", type(results).__name__))
    for result in results:
        is_result("results", result)
        if result.segmentation.ndim != 3:
            got = tuple(result.segmentation.shape)
            raise DataError(message("results", "hold pictures (B, H, W) to be written", got))
        yield result


def check_images(images: Sequence[ImageRecord]) -> None:
    """Raise unless `images` are records of at least one picture, whose files can have the names they say."""
    _check.is_sequence("images", images, "be the records of the pictures")
    if not images:
        raise DataError(message("images", "name at least one picture", "none"))
    for image in images:
        _check.is_a("images", image, ImageRecord, "the records of the pictures")
        if not isinstance(image.file_name, str):
            raise TypeError(message("images", "have texts as file names", repr(image.file_name)))
        if leads_outside(image.file_name):
            raise DataError(message("images", "have file names inside their folder", repr(image.file_name)))
        for side in (image.height, image.width):
            if side is not None:
                _check.is_int("images", side, 0, rule="have sides in pixels, or None")
        if not isinstance(image.image_id, str):
            _check.is_int("images", image.image_id, rule="have ints or texts as image_id")


def check_categories(categories: Sequence[Category]) -> None:
    """Raise unless `categories` are categories with ids and names that JSON can hold."""
    _check.is_sequence("categories", categories, "be a sequence of Category")
    for category in categories:
        _check.is_a("categories", category, Category, "a sequence of Category")
        _check.is_int("categories", category.id, rule="have ints as ids")
        _check.is_a("categories", category.name, str, "a sequence of Category with texts as names")
        _check.is_a("categories", category.supercategory, str, "a sequence of Category with texts as supercategories")


def must_have_size(image: ImageRecord, picture: PanopticResult) -> None:
    """Raise `DataError` where a picture has another size than its record says."""
    height, width = picture.segmentation.shape[-2:]
    if (image.height or height, image.width or width) != (height, width):
        rule = f"have the size {image.height} x {image.width} of image {image.image_id}"
        raise DataError(message("results", rule, f"{height} x {width} (height x width)"))
