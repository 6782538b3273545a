"""Silencing stderr."""

import os
from concurrent.futures import ThreadPoolExecutor
from time import sleep

from fer_lightning.inference.stderr import silent_stderr


def test_native_output_is_silenced_and_comes_back(capfd):
    with silent_stderr():
        os.write(2, b"noise")
    os.write(2, b"error")
    assert capfd.readouterr().err == "error"


def test_threads_do_not_leave_stderr_silenced(capfd):
    def silence(_: int) -> None:
        with silent_stderr():
            sleep(0.01)  # so that they overlap

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(silence, range(16)))
    os.write(2, b"error")
    assert capfd.readouterr().err == "error"
