"""Silencing stderr."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from time import sleep

from fer_lightning.inference.stderr import silent_stderr


def test_native_output_is_silenced_and_comes_back(capfd):
    with silent_stderr():
        os.write(2, b"noise")
    os.write(2, b"error")
    assert capfd.readouterr().err == "error"


def test_a_closed_stderr_stays_closed(tmp_path):
    """A file that is opened after stderr was closed takes its number."""
    script = (
        "import os; os.close(2); import sys; sys.stderr = None; file = open('a.txt', 'w', buffering=1)\n"
        "from fer_lightning.inference.stderr import silent_stderr\n"
        "assert file.fileno() == 2\n"
        "with silent_stderr(): file.write('kept')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "a.txt").read_text() == "kept"


def test_threads_do_not_leave_stderr_silenced(capfd):
    def silence(_: int) -> None:
        with silent_stderr():
            sleep(0.01)  # so that they overlap

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(silence, range(16)))
    os.write(2, b"error")
    assert capfd.readouterr().err == "error"
