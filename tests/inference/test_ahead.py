"""Results of threads that work ahead: in order, a few at a time, and with their errors in turn."""

from threading import Barrier, Event, current_thread, main_thread
from time import sleep

import pytest

from fer_lightning.inference import ahead
from fer_lightning.inference.ahead import map_ahead


@pytest.fixture(params=[1, 2, 16])
def threads(request, monkeypatch):
    monkeypatch.setattr(ahead, "count_cores", lambda: request.param)
    return min(request.param, 4)


@pytest.mark.usefixtures("threads")
def test_results_keep_the_order_of_the_items():
    first_may_end = Event()

    def square(number):
        if number == 1:
            first_may_end.set()
        elif number == 0 and current_thread() is not main_thread():
            assert first_may_end.wait(10)
        return number**2

    assert list(map_ahead(square, range(50))) == [number**2 for number in range(50)]
    assert list(map_ahead(square, [])) == []


def test_as_many_items_as_threads_are_computed_at_a_time(threads):
    together, names = Barrier(threads), set()

    def wait(_):
        names.add(current_thread().name)
        return together.wait(10)  # raises if nobody else comes

    assert len(list(map_ahead(wait, range(4 * threads)))) == 4 * threads
    assert len(names) == threads


def test_few_items_are_taken_ahead(threads):
    taken = 0

    def items():
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = map_ahead(str, items())
    for number in range(1, 30):
        assert next(results) == str(number)
        assert taken <= number + (threads if threads > 1 else 0)
    results.close()


def test_errors_follow_the_results_before_them(threads):
    def items():
        yield from (3, 2, 1)
        raise OSError("no more items")

    results = map_ahead(lambda number: 6 / number, items())
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(OSError, match="no more items"):
        next(results)

    def interrupted():
        yield 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(map_ahead(str, interrupted()))
    results = map_ahead(lambda number: 6 / number, [3, 0, *[1] * threads])
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_loop_that_ends_early_starts_no_more(monkeypatch):
    monkeypatch.setattr(ahead, "count_cores", lambda: 2)
    started, ended = [], []

    def slow(number):
        started.append(number)
        sleep(0.01)
        ended.append(number)

    results = map_ahead(slow, range(100))
    next(results)
    results.close()
    assert sorted(started) == sorted(ended)  # it waits for those that run
    assert len(started) <= 4
