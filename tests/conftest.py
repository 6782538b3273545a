"""Fixtures: every test gets its own cache and no network access; others are shared by several tests."""

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

# Before torch is imported. The tests run side by side, so more threads per process would only compete.
os.environ["OMP_NUM_THREADS"] = "1"

from fer_lightning import hardware

# As in train.py: the first matrix product on a GPU decides for the process whether they can be deterministic.
hardware.prepare_cublas()

# Absolute, because tests change the working directory.
REAL_DATA = os.environ.get("FER2013_PATH") and os.path.abspath(os.environ["FER2013_PATH"])


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("FER2013_PATH", raising=False)

    connect = socket.socket.connect

    def connect_locally(self, address):
        if address[0] != "127.0.0.1":  # the demo's server is on it
            raise OSError("tests use no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture
def own_folder(monkeypatch, tmp_path):
    """Change to an empty folder and set sys.argv like train.py does, for runs in the test process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])


@pytest.fixture
def real_data():
    """Return the path of the real FER-2013 dataset; skip the test if FER2013_PATH is not set."""
    if not REAL_DATA:
        pytest.skip("FER2013_PATH is not set: tests on the real data are left out")
    return REAL_DATA


@pytest.fixture
def real_votes(real_data):
    """Return the path of FER+'s votes beside the real FER-2013; skip the test if they are not there."""
    from fer_lightning.data.votes import find_votes
    from fer_lightning.errors import UserError

    try:
        return find_votes(None, Path(real_data), download=False)
    except UserError:
        pytest.skip("fer2013new.csv is not beside FER2013_PATH: tests on the real votes are left out")


@pytest.fixture
def trained(own_folder, tmp_path_factory):
    """Return a function that puts a finished run of one epoch into runs/default/a; each kind is trained once.

    Call it before patching what a run uses: the run may be a copy, and other tests may get a copy of it.
    """

    from faults import run  # with Lightning, which most folders of tests need not import

    def copy(*settings):
        kept = tmp_path_factory.getbasetemp() / "trained" / "-".join(["run", *settings])
        if not kept.exists():
            run("name=a", "trainer.max_epochs=1", *settings)
            shutil.copytree("runs/default/a", kept)
        else:
            shutil.copytree(kept, "runs/default/a")

    return copy
