"""A sweep: its folder, and its runs as one process sees them, beside others that work on the same sweep."""

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
    """Makes a sweep's folder, or enters that of the same sweep.

    Args:
        folder: of the sweep, with a folder for each run below.
        settings: all that decides which run has which number, as NAME=value.

    Raises:
        UserError: the folder holds another sweep.
    """
    path = folder / SWEEP
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_sweep(folder):
            if not path.exists():
                write_json(path, {"settings": list(settings)})
            before = list(map(str, json.loads(path.read_text(encoding="utf-8"))["settings"]))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be the folder of a sweep: {error.strerror}. Choose another name."
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}. Choose another name for the sweep.") from error
    if before != list(settings):
        gone = [setting for setting in before if setting not in settings]
        new = [setting for setting in settings if setting not in before]
        differences = [f"{words} {' '.join(those)}" for words, those in (("without", gone), ("with", new)) if those]
        raise UserError(
            f"{folder} holds another sweep: this one is {' and '.join(differences) or 'in another order'}. "
            "Give the same command to go on with it, or choose another name."
        )


def lock_sweep(folder: Path) -> AbstractContextManager[bool]:
    """For the moments in which one process at a time decides something about a sweep."""
    return lock(folder / SWEEP_LOCK)


class Sweep:
    """The runs of a sweep as one process sees them, beside others that may work on the same sweep.

    Args:
        folder: of the sweep.

    Raises:
        UserError: a run's results.json is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told: set[Path] = set()
        self._left: list[Path] = []
        # A failed run is tried again by the next command, not by each of several that run at once.
        self._failed_before = {
            run_dir: _stamp(run_dir)
            for run_dir in run_folders(folder)
            if (read_results(run_dir) or {}).get("status") == "failed"
        }

    def is_open(self, run_dir: Path) -> bool:
        """Whether there is something left to do that no process is doing."""
        return status(run_dir) != "running" and not self._is_settled(run_dir)

    def _is_settled(self, run_dir: Path) -> bool:
        results = read_results(run_dir)
        if results is None:
            return False
        if results["status"] == "failed":
            return _stamp(run_dir) != self._failed_before.get(run_dir)
        return results["status"] in DONE

    def attempt(self, run_dir: Path, command: str, job: Callable[[], None]) -> None:
        """Does a run, unless it is done or another process is doing it; an error is recorded, not raised.

        Args:
            run_dir: the run's folder.
            command: what results.json shall name if the run fails before it writes one.
            job: does the run.
        """
        with claim(run_dir) as ours:
            if not ours:
                print(f"job {run_dir.name}: another process does it, passed over")
            elif self._is_settled(run_dir):
                results = read_results(run_dir)
                assert results is not None
                if run_dir not in self._told:
                    print(f"job {run_dir.name}: {results['status']} before, skipped")
                self._told.add(run_dir)
            else:
                self._told.add(run_dir)
                try:
                    job()
                except Exception as error:  # noqa: BLE001
                    # Whatever it was, the other runs go on.
                    if isinstance(error, UserError):
                        print_error(error)
                    else:
                        traceback.print_exc()
                    results = read_results(run_dir) or {"command": command, "history": []}
                    with suppress(OSError):  # of a full disk: `report` counts the run as not done
                        write_json(
                            run_dir / "results.json", results | {"status": "failed", "error": error_line(error)}
                        )

    def look_again(self) -> bool:
        """Whether another process left a run undone, and it was not so at the last look."""
        before, self._left = self._left, [run_dir for run_dir in run_folders(self.folder) if self.is_open(run_dir)]
        return bool(self._left) and self._left != before

    def report(self) -> int:
        """Ranks the runs, says what failed and what is left, and returns the exit code: 1 if there is any."""
        runs = rank_runs(self.folder)
        if runs:
            print(f"\n{format_runs(self.folder, runs)}")
            if paths := draw_runs(self.folder, runs):
                print(f"\nfigures: {paths[0].parent}")
        states = [run.status for run in runs]
        if running := states.count("running"):
            print(f"{running} of {len(states)} runs are still going on in other processes.")
        if failed := states.count("failed"):
            print(
                f"error: {failed} of {len(states)} runs failed; the same command tries them again.", file=sys.stderr
            )
        if left := states.count("interrupted"):
            print(
                f"error: {left} of {len(states)} runs are left; the same command goes on with them.",
                file=sys.stderr,
            )
        return 1 if failed or left else 0


def _stamp(run_dir: Path) -> int:
    return (run_dir / "results.json").stat().st_mtime_ns
