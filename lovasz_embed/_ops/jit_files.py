"""Machine code on disk that says which function, signature and processor it is of, and is believed only then.

numba keeps an index of each function, and a numbered file for each signature and processor. Of two processes that
compile two signatures at the same moment both read the index, both take the number 1, and the index of the one can stay
with the code of the other. Whoever reads that later runs code for other types of arrays on its own, and gets numbers
that mean nothing. An index that was cut off raises whatever reading it happens to hit. And where the disk is full, what
was compiled would be thrown away with the error.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any


class CheckedFiles:
    """The files of one function, in place of numba's own `IndexDataCacheFile`, which reads and writes them.

    Args:
        files: numba's.
    """

    def __init__(self, files: Any) -> None:
        self._files = files
        self._stamp = files._source_stamp

    def flush(self) -> None:
        """Forget all code."""
        self._files.flush()

    def load(self, key: Any) -> Any:
        """Return the code of a key (signature, processor, function), None where there is none of exactly that."""
        try:
            stamp, its_key, code = self._files.load(key)
        except Exception:  # nothing is there, it is not ours, or reading arbitrary bytes failed somehow: compile
            return None
        return code if stamp == self._stamp and its_key == key else None

    def save(self, key: Any, code: Any) -> None:
        """Write the code of a key.

        Raises:
            OSError: If the system refuses.
        """
        entry = (self._stamp, key, code)
        try:
            self._files.save(key, entry)
        except OSError:
            raise
        except Exception:  # an index that cannot be read
            self._files.flush()
            self._files.save(key, entry)


def check_files(dispatcher: Any) -> None:
    """Let a compiled function believe only files that say what they hold, and do without where it cannot write them.

    One without files stays as it is.
    """
    cache = getattr(dispatcher, "_cache", None)
    files = getattr(cache, "_cache_file", None)
    # numba promises nothing about these names: where they are others, its own files are as good as they are.
    if cache is not None and hasattr(files, "_source_stamp"):
        cache._cache_file = CheckedFiles(files)
        save = cache.save_overload

        def save_if_possible(signature: Any, code: Any) -> None:
            with suppress(OSError):
                save(signature, code)

        cache.save_overload = save_if_possible
