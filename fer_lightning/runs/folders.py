"""Folders of runs: who works in them, and how each run stands."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fer_lightning.errors import UserError
from fer_lightning.files import Json
from fer_lightning.runs.lock import is_locked, lock

LOCK = ".lock"
SWEEP_LOCK = ".sweep.lock"
SWEEP = "sweep.json"
DONE = ("finished", "pruned")


@contextmanager
def claim(run_dir: Path) -> Iterator[bool]:
    """Keeps other processes out of a run's folder until the end of the block; yields whether it is ours.

    Raises:
        UserError: nothing can be written there.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # One of several processes of one run, which work under the first one's claim.
        yield True
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / LOCK).touch()
    except OSError as error:
        raise UserError(f"{run_dir} cannot be written: {error.strerror}.") from error
    with lock(run_dir / LOCK, wait=False) as ours:
        yield ours


def remove_unbegun(folder: Path) -> None:
    """Removes the folder of a run or sweep that never began, and those above it that are empty then."""
    if {path.name for path in folder.iterdir()} - {LOCK, SWEEP_LOCK, SWEEP, "multirun.yaml"}:
        return
    for path in folder.iterdir():
        path.unlink()
    with suppress(OSError):  # "not empty" ends it
        while folder.name:
            folder.rmdir()
            folder = folder.parent


def read_results(run_dir: Path) -> Json | None:
    """A run's results.json, or None where there is none yet.

    Raises:
        UserError: it is damaged, which no interruption does.
    """
    path = run_dir / "results.json"
    try:
        results: Json = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Remove it to have the run done again.") from error
    if not isinstance(results, dict) or not isinstance(results.get("status"), str):
        raise UserError(f"{path} is damaged: it has no status. Remove it to have the run done again.")
    return results


def status(run_dir: Path) -> str:
    """running, finished, pruned, failed or interrupted, as which a killed run counts."""
    if is_locked(run_dir / LOCK):
        return "running"
    results = read_results(run_dir)
    return results["status"] if results else "interrupted"


def error_line(error: BaseException) -> str:
    """An exception's type and the first line that it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def run_folders(folder: Path) -> list[Path]:
    """Every run's folder below `folder`, itself included, whatever it has written so far; in natural order."""
    found = {path.parent for name in (LOCK, "config.yaml", "results.json") for path in folder.rglob(name)}
    return sorted(found, key=lambda path: [(part.isdigit() and int(part), part) for part in path.parts])
