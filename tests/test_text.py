"""Atomic writes and tables."""

import json
import os
import stat

import pytest

from fer_lightning import files
from fer_lightning.files import write_json
from fer_lightning.text import format_table


def test_write_json_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"accuracy": float("nan")})

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"accuracy": 0.6})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_written_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "results.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "results.json").stat().st_mode) == 0o640


def test_format_table():
    assert format_table(["split", "n"], [["Public", "3589"], ["x", "7"]]) == (
        "split      n\n------  ----\nPublic  3589\nx          7"
    )
