"""Claim run folders, find them, and read the status of their runs."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from fnmatch import fnmatch
from pathlib import Path

from fer_lightning.errors import UserError
from fer_lightning.files import Json
from fer_lightning.runs.lock import is_locked, lock

LOCK = ".lock"
SWEEP_LOCK = ".sweep.lock"
SWEEP = "sweep.json"
RUNS = "runs"  # in the working directory
LOGGERS = "loggers.json"
DONE = ("finished", "pruned")
# What a run writes before its first checkpoint.
_WRITTEN = (
    LOCK,
    "config.yaml",
    "command.txt",
    "results.json",
    "hparams.yaml",
    "*metrics.csv",
    LOGGERS,
    "wandb/*",
    "figures/*.png",
    "events.out.tfevents.*",
)


@contextmanager
def claim(run_dir: Path) -> Iterator[bool]:
    """Claim a run's folder for this process until the end of the block; create it if it is missing.

    Yields:
        Whether the folder is ours; False if another process has claimed it.

    Raises:
        UserError: the folder cannot be written.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # Another process of a run on several devices, covered by the first process's claim.
        yield True
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / LOCK).touch()
    except OSError as error:
        raise UserError(f"{run_dir} cannot be written: {error.strerror}.") from error
    with lock(run_dir / LOCK, wait=False) as ours:
        yield ours


def is_replaceable(run_dir: Path) -> bool:
    """Return whether a folder holds a run that failed or was stopped without a checkpoint, and nothing else.

    The folder must be claimed by this process, or not in use.
    """
    results = read_results(run_dir)  # missing if the run was killed; resume= continues it
    if results is None or results["status"] in DONE:
        return False
    names = [path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if not path.is_dir()]
    return all(any(fnmatch(name, pattern) for pattern in _WRITTEN) for name in names)


def remove_replaceable(run_dir: Path) -> None:
    """Remove the files of a replaceable run from its claimed folder, so that another run can take its place."""
    print(f"note:     replaces the run in {run_dir}, which ended before its first checkpoint")
    for path in run_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def remove_unstarted(folder: Path) -> None:
    """Remove the folder of a run or sweep that never started, and the parent folders that this leaves empty."""
    if {path.name for path in folder.iterdir()} - {LOCK, SWEEP_LOCK, SWEEP, "multirun.yaml"}:
        return
    for path in folder.iterdir():
        # Windows refuses to delete a lock file that is still open.
        with suppress(PermissionError) if sys.platform == "win32" else nullcontext():
            path.unlink()
    with suppress(OSError):  # stops at the first folder that is not empty
        while folder.name:
            folder.rmdir()
            folder = folder.parent


def read_results(run_dir: Path) -> Json | None:
    """Return the content of a run's results.json, or None if it does not exist yet.

    Raises:
        UserError: the file is damaged. Interruptions cannot cause that, because it is written atomically.
    """
    path = run_dir / "results.json"
    try:
        results: Json = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Delete it to repeat the run.") from error
    if not isinstance(results, dict) or not isinstance(results.get("status"), str):
        raise UserError(f"{path} is damaged: it has no status. Delete it to repeat the run.")
    return results


def status(run_dir: Path) -> str:
    """Return a run's status: running, finished, pruned, failed or interrupted. Killed runs count as interrupted."""
    if is_locked(run_dir / LOCK):
        return "running"
    results = read_results(run_dir)
    return results["status"] if results else "interrupted"


def error_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def run_folders(folder: Path) -> list[Path]:
    """Return the run folders below `folder`, itself included, in natural order, however little they hold."""
    folders = {path.parent for name in (LOCK, "config.yaml", "results.json") for path in folder.rglob(name)}
    return sorted(folders, key=lambda path: [(part.isdigit() and int(part), part) for part in path.parts])
