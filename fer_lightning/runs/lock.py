"""File locks that the operating system releases when their process ends, however it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import sleep

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a file until the end of the block; create it if it is missing.

    Args:
        path: a file that serves only as a lock; its folder must exist.
        wait: whether to wait for another process that holds the lock.

    Yields:
        Whether the lock is ours; always true with `wait`.
    """
    if sys.platform == "win32":
        with _lock_byte(path, "ab", wait) as ours:
            yield ours
    else:
        with path.open("ab") as file:
            for attempt in range(5):  # is_locked in another process holds the lock for a moment
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
    """Return whether a running process holds the file's lock; False if there is no file."""
    if not path.exists():
        return False
    if sys.platform == "win32":
        with _lock_byte(path, "rb", wait=False) as ours:
            return not ours
    else:
        with path.open("rb") as file:  # read-only, so that no write permission is needed
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


if sys.platform == "win32":

    @contextmanager
    def _lock_byte(path: Path, mode: str, wait: bool) -> Iterator[bool]:
        """Lock the first byte of a file until the end of the block. This has never been run on Windows.

        msvcrt.locking can wait by itself, but gives up after ten seconds, so this polls.

        Yields:
            Whether the lock is ours.
        """
        with path.open(mode) as file:
            for attempt in count():
                file.seek(0)  # msvcrt.locking locks from the current position
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except PermissionError:
                    if not wait and attempt == 4:
                        yield False
                        return
                    sleep(0.02)
            try:
                yield True
            finally:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
