"""Carry out the runs of a sweep, which several processes may share."""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from fer_lightning.errors import UserError
from fer_lightning.exit import print_error
from fer_lightning.files import write_json
from fer_lightning.runs.folders import DONE, SWEEP, SWEEP_LOCK, claim, error_line, read_results, run_folders, status
from fer_lightning.runs.lock import lock
from fer_lightning.runs.ranking import draw_runs, format_runs, rank_runs


def begin_sweep(folder: Path, settings: Sequence[str]) -> None:
    """Create a sweep's folder, or check that it belongs to the same sweep.

    Args:
        folder: the sweep's folder; each run gets a subfolder.
        settings: the settings that determine the number of each run, as NAME=value.

    Raises:
        UserError: the folder holds a different sweep or cannot be written.
    """
    path = folder / SWEEP
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_sweep(folder):
            if not path.exists():
                write_json(path, {"settings": list(settings)})
            existing = list(map(str, json.loads(path.read_text(encoding="utf-8"))["settings"]))
    except OSError as error:
        raise UserError(f"{folder} cannot hold a sweep: {error.strerror}. Choose another name.") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}. Choose another name for the sweep.") from error
    if existing != list(settings):
        missing = [setting for setting in existing if setting not in settings]
        added = [setting for setting in settings if setting not in existing]
        changes = [f"{verb} {' '.join(those)}" for verb, those in (("lacks", missing), ("adds", added)) if those]
        raise UserError(
            f"{folder} holds another sweep: this one {' and '.join(changes) or 'orders its settings differently'}. "
            "Repeat the same command to resume it, or choose another name."
        )


def lock_sweep(folder: Path) -> AbstractContextManager[bool]:
    """Lock a sweep's folder while one process decides what to do next."""
    return lock(folder / SWEEP_LOCK)


class Sweep:
    """The runs of a sweep that this process works on, possibly together with other processes.

    Args:
        folder: the sweep's folder.

    Raises:
        UserError: a run's results.json is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reported: set[Path] = set()
        self._leftovers: list[Path] = []
        # A run that failed before this process started is retried. One that fails from now on is left to the next
        # command, so that processes that share the sweep do not each retry it.
        self._failed_before = {
            run_dir: _modified_ns(run_dir)
            for run_dir in run_folders(folder)
            if (read_results(run_dir) or {}).get("status") == "failed"
        }

    def is_pending(self, run_dir: Path) -> bool:
        """Return whether the run is not done and no process is working on it."""
        return status(run_dir) != "running" and not self._is_settled(run_dir)

    def _is_settled(self, run_dir: Path) -> bool:
        results = read_results(run_dir)
        if results is None:
            return False
        if results["status"] == "failed":
            return _modified_ns(run_dir) != self._failed_before.get(run_dir)
        return results["status"] in DONE

    def attempt(self, run_dir: Path, command: str, job: Callable[[], None]) -> None:
        """Carry out a run, unless it is done or running elsewhere. Record errors instead of raising them.

        Args:
            run_dir: the run's folder.
            command: the run's command, for results.json in case the run fails before writing one.
            job: carries out the run.
        """
        with claim(run_dir) as ours:
            if not ours:
                print(f"job {run_dir.name}: running in another process, skipped")
            elif self._is_settled(run_dir):
                results = read_results(run_dir)
                assert results is not None
                if run_dir not in self._reported:
                    print(f"job {run_dir.name}: already {results['status']}, skipped")
                self._reported.add(run_dir)
            else:
                self._reported.add(run_dir)
                try:
                    job()
                except Exception as error:  # noqa: BLE001
                    # Whatever went wrong, the other runs continue.
                    if isinstance(error, UserError):
                        print_error(error)
                    else:
                        traceback.print_exc()
                    results = read_results(run_dir) or {"command": command, "history": []}
                    with suppress(OSError):  # e.g. the disk is full; `report` then counts the run as unfinished
                        write_json(
                            run_dir / "results.json", results | {"status": "failed", "error": error_line(error)}
                        )

    def has_new_leftovers(self) -> bool:
        """Return whether runs are pending, unless they are the same ones as at the last call."""
        before = self._leftovers
        self._leftovers = [run_dir for run_dir in run_folders(self.folder) if self.is_pending(run_dir)]
        return bool(self._leftovers) and self._leftovers != before

    def report(self) -> int:
        """Print and plot the ranking, and return the exit code: 1 if runs failed or are unfinished, otherwise 0."""
        runs = rank_runs(self.folder)
        if runs:
            print(f"\n{format_runs(self.folder, runs)}")
            if paths := draw_runs(self.folder, runs):
                print(f"\nfigures: {paths[0].parent}")
        states = [run.status for run in runs]
        if running := states.count("running"):
            print(f"{running} of {len(states)} runs are still running in other processes.")
        if failed := states.count("failed"):
            print(
                f"error: {failed} of {len(states)} runs failed; repeat the command to retry them.", file=sys.stderr
            )
        if unfinished := states.count("interrupted"):
            print(
                f"error: {unfinished} of {len(states)} runs are unfinished; repeat the command to resume them.",
                file=sys.stderr,
            )
        return 1 if failed or unfinished else 0


def _modified_ns(run_dir: Path) -> int:
    return (run_dir / "results.json").stat().st_mtime_ns
