"""Apply a function in threads, ahead of the loop that uses the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fer_lightning.hardware import count_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_THREADS = 4  # each may hold a photo: 36 MB if it has 12 million pixels


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the function's result for each item, in order, while threads compute those of the next items.

    There is a thread for each CPU core that this process may use, up to four, and at most one item more than
    threads is under way, so that the memory does not grow with the number of items. With one core everything is
    computed in the caller's thread, which is always the one that iterates over `items`.

    Args:
        function: should spend its time outside Python's interpreter lock, as those of Pillow and ONNX Runtime do.
        items: its arguments.

    Raises:
        Exception: from `items` or `function`, after the results of the items before.
    """
    threads = min(count_cores(), _MOST_THREADS)
    if threads == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads)
    started: deque[Future[Result]] = deque()
    try:
        for future in _submit(pool, function, items):
            started.append(future)
            while started and (len(started) > threads or started[0].done()):
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        # Wait for the running ones: a process that exits while a thread is inside a native library may be aborted.
        pool.shutdown(cancel_futures=True)


def _submit(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Future[Result]]:
    """Yield a future for each item, and one with the exception if `items` raises one."""
    try:
        for item in items:
            yield pool.submit(function, item)
    except Exception as error:  # noqa: BLE001 - raised again by result(), in its turn
        failed: Future[Result] = Future()
        failed.set_exception(error)
        yield failed
