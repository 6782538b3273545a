"""Locks on files that the kernel releases when their process dies, however it dies: none is ever left behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

try:
    import fcntl
except ImportError:  # Windows, where one process at a time must do
    fcntl = None  # type: ignore[assignment]


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Locks the file, made if missing, until the end of the block.

    Args:
        path: a file that is there for this only; its folder exists.
        wait: whether to wait for another process that has the lock.

    Yields:
        Whether the lock is ours; always true with `wait`.
    """
    if fcntl is None:
        yield True
        return
    with path.open("ab") as file:
        for attempt in range(5):  # who looks whether it is locked has it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if attempt == 4:
                    yield False
                    return
                sleep(0.02)
        yield True


def is_locked(path: Path) -> bool:
    """Whether a living process has the file's lock; false where there is no file."""
    if fcntl is None or not path.exists():
        return False
    with path.open("rb") as file:  # to look takes no right to write
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
