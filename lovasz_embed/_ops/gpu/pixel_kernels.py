"""Where a pixel lies, for kernels; see `pixels.py`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton gives kernels types of its own.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place_of(pixels, number, width, row_stride, col_stride):
    """Return the addresses of dimension 0 of some pixels; the next dimension lies one `dim_stride` further."""
    row = (number // width).to(tl.int64)
    column = (number % width).to(tl.int64)
    return pixels + row * row_stride + column * col_stride
