"""Silence what native libraries print to stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()  # two threads at a time would restore each other's silence


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Silence stderr, also for libraries that do not write through Python."""
    if sys.stderr is None:  # closed, and its number may belong to another file
        yield
        return
    with _lock:
        sys.stderr.flush()
        stderr = os.dup(2)
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
