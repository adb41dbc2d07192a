"""The one place that decides how numba runs: serial, without the GIL, cached, compiled on first call.

Never `parallel=True`: after one parallel kernel a forked DataLoader worker dies with "fork() called from a
process already using GNU OpenMP", and under the workqueue layer two threads that enter parallel kernels abort
the process. Serial kernels that release the GIL, run side by side by `threads.py`, have neither fault.
Never `fastmath`: it lets the compiler assume that NaN does not exist and reorder sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from lovasz_embed._ops.jit_files import check_files

P = ParamSpec("P")
R = TypeVar("R")


class Kernel(Generic[P, R]):
    """A function over plain arrays that numba compiles when it is first called.

    numba is imported by the first call, not by `import lovasz_embed`. A kernel may call other kernels *of its
    own file*: numba's cache follows changes of the file of the outer kernel, and looks at no other file.
    """

    __wrapped__: Callable[P, R]

    def __init__(self, function: Callable[P, R]) -> None:
        functools.update_wrapper(self, function)
        self._compiled: Any = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compile if needed, then run."""
        try:
            result: R = self._dispatcher()(*args, **kwargs)
        except OSError:  # kernels do no input or output: the cache could not be written (disk full, quota)
            self._compiled = _njit(self.__wrapped__, cache=False)
            result = self._compiled(*args, **kwargs)
        return result

    def __repr__(self) -> str:
        return f"Kernel({self.__wrapped__.__module__}.{self.__wrapped__.__qualname__})"

    @property
    def _numba_type_(self) -> Any:
        """How numba reads a kernel named inside another kernel: as the function that it compiles to."""
        return self._dispatcher()._numba_type_

    def _dispatcher(self) -> Any:
        # No lock: a fork could inherit it held. A race costs one spare compilation and nothing else.
        if self._compiled is None:
            try:
                self._compiled = _njit(self.__wrapped__, cache=True)
            except RuntimeError:  # neither the package nor the home directory takes a cache
                self._compiled = _njit(self.__wrapped__, cache=False)
        return self._compiled


def jit(function: Callable[P, R]) -> Kernel[P, R]:
    """Turn a function over plain arrays into a serial, GIL-free, cached numba kernel, compiled on first call.

    With `NUMBA_DISABLE_JIT=1` it stays Python (slow; for debuggers and coverage). Without a writable cache
    directory it is compiled anew in every process.

    >>> import numpy as np
    >>> @jit
    ... def total(values):
    ...     result = 0.0
    ...     for value in values:
    ...         result += value
    ...     return result
    >>> total(np.array([1.0, 2.0, 3.5]))
    6.5
    """
    return Kernel(function)


def _njit(function: Callable[P, R], *, cache: bool) -> Any:
    import numba  # a quarter of a second, paid by the first kernel and not by `import lovasz_embed`

    compiled = numba.njit(function, nogil=True, cache=cache)
    if cache:
        check_files(compiled)
    return compiled
