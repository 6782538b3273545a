"""What every test gets: its own cache and no network; and what several ask for."""

import os
import socket
import sys

import pytest

# Before torch is imported. The tests run side by side, so more threads per process would only compete.
os.environ["OMP_NUM_THREADS"] = "1"

from fer_lightning import hardware

# As train.py does: the first product on a GPU decides for the whole process whether they can be deterministic.
hardware.prepare_cublas()

# Absolute, for the tests work in folders of their own.
REAL_DATA = os.environ.get("FER2013_PATH") and os.path.abspath(os.environ["FER2013_PATH"])


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("FER2013_PATH", raising=False)

    def refuse(*args, **kwargs):
        raise OSError("tests use no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def own_folder(monkeypatch, tmp_path):
    """An empty working folder, and a command line that is train.py's, for runs within the test's process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])


@pytest.fixture
def real_data():
    """The real FER-2013, where the person who runs the tests has it."""
    if not REAL_DATA:
        pytest.skip("FER2013_PATH is not set: tests on the real data are left out")
    return REAL_DATA
