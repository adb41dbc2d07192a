"""Arrays that lie in a file rather than in memory."""

from __future__ import annotations

import math
import os
import tempfile
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def mapped(shape: tuple[int, ...], dtype: DTypeLike, folder: str | PathLike[str] | None = None) -> NDArray[Any]:
    """Return an array of zeros in a file without a name, which is gone with the array, or with the process.

    Args:
        shape: Of the array.
        dtype: Of its elements.
        folder: Where the file lies; None is the system's folder of temporary files, which may itself be memory.

    Raises:
        OSError: If there is no such folder, or less room than the array needs.

    >>> array = mapped((2, 3), np.uint8)
    >>> array[0] = 7
    >>> array.tolist()
    [[7, 7, 7], [0, 0, 0]]
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=None if folder is None else os.fspath(folder)) as file:
        if hasattr(os, "posix_fallocate"):  # a disk that is full later would end the process without a word
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "r+", shape=shape)
