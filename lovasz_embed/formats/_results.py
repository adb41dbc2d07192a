"""Results beside the records of their pictures: as many as there are records, and of their sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lovasz_embed._check import message
from lovasz_embed.formats._base import DataError, ImageRecord
from lovasz_embed.panoptic import PanopticResult


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
    pictures = (picture for result in results for picture in result)
    wanted = f"hold a picture for each of the {len(images)} images"
    for number, image in enumerate(images):
        picture = next(pictures, None)
        if picture is None:
            raise DataError(message("results", wanted, number))
        yield image, picture
    if next(pictures, None) is not None:
        raise DataError(message("results", wanted, "more"))


def must_have_size(image: ImageRecord, picture: PanopticResult) -> None:
    """Raise `DataError` where a picture has another size than its record says."""
    height, width = picture.segmentation.shape[-2:]
    if (image.height or height, image.width or width) != (height, width):
        rule = f"have the size {image.height} x {image.width} of image {image.image_id}"
        raise DataError(message("results", rule, f"{height} x {width} (height x width)"))
