"""Folders of runs and sweeps: who works in them, how each run stands, and all of them ranked.

Imports nothing heavy.
"""

import json
import math
import os
import shlex
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fer_lightning.errors import UserError
from fer_lightning.exit import print_error
from fer_lightning.runs.lock import is_locked, lock
from fer_lightning.files import write_json
from fer_lightning.text import decimal, format_table, percent

Json = dict[str, Any]

_LOCK = ".lock"
_SWEEP_LOCK = ".sweep.lock"
_SWEEP = "sweep.json"
_DONE = ("finished", "pruned")


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
        (run_dir / _LOCK).touch()
    except OSError as error:
        raise UserError(f"{run_dir} cannot be written: {error.strerror}.") from error
    with lock(run_dir / _LOCK, wait=False) as ours:
        yield ours


def remove_unbegun(folder: Path) -> None:
    """Removes the folder of a run or sweep that never began, and those above it that are empty then."""
    if {path.name for path in folder.iterdir()} - {_LOCK, _SWEEP_LOCK, _SWEEP, "multirun.yaml"}:
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
    if is_locked(run_dir / _LOCK):
        return "running"
    results = read_results(run_dir)
    return results["status"] if results else "interrupted"


def error_line(error: BaseException) -> str:
    """An exception's type and the first line that it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def begin_sweep(folder: Path, settings: Sequence[str]) -> None:
    """Makes a sweep's folder, or enters that of the same sweep.

    Args:
        folder: of the sweep, with a folder for each run below.
        settings: all that decides which run has which number, as NAME=value.

    Raises:
        UserError: the folder holds another sweep.
    """
    path = folder / _SWEEP
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
    return lock(folder / _SWEEP_LOCK)


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
        return results["status"] in _DONE

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


def run_folders(folder: Path) -> list[Path]:
    """Every run's folder below `folder`, itself included, whatever it has written so far; in natural order."""
    found = {path.parent for name in (_LOCK, "config.yaml", "results.json") for path in folder.rglob(name)}
    return sorted(found, key=lambda path: [(part.isdigit() and int(part), part) for part in path.parts])


@dataclass(frozen=True)
class Run:
    """A run in a ranking."""

    name: str  # its folder, from where the ranking was made
    status: str
    error: str | None  # of a failed run
    settings: dict[str, str]  # those that are not the same in all runs
    metric: str  # val_accuracy or val_loss, of which `best` is the best
    best: float | None
    best_epoch: int | None  # from 0
    history: list[dict[str, float]]  # a record for each epoch
    val_split: str | None
    accuracy: float | None  # on `split`, of the best weights
    split: str | None
    train_seconds: float | None

    def to_json(self) -> Json:
        """All but the history, as plain values."""
        told = {**vars(self), "epochs": len(self.history)}
        del told["history"]
        return told


def rank_runs(folder: Path) -> list[Run]:
    """Every run below `folder`, the best on its validation split first, those without a number last.

    What ranks is accuracy, or loss where all runs have chosen their best epoch by it. The test split does not:
    choosing among runs by it would make it a validation split.
    """
    found = [(run_dir, read_results(run_dir) or {}) for run_dir in run_folders(folder)]
    settings = [_settings(run_dir, results) for run_dir, results in found]
    told = [own for own in settings if own]  # a run that was killed at its very beginning tells nothing
    keys = dict.fromkeys(key for own in told for key in own)
    differ = [key for key in keys if len({own.get(key) for own in told}) > 1]
    by_loss = {results.get("monitor") for _, results in found if results.get("history")} == {"loss/val"}
    metric, sign = ("val_loss", -1) if by_loss else ("val_accuracy", 1)
    ranked = []
    for (run_dir, results), own in zip(found, settings, strict=True):
        history = results.get("history") or []
        epochs = [epoch for epoch in history if math.isfinite(epoch.get(metric, math.nan))]
        best = max(epochs, key=lambda epoch: sign * epoch[metric], default=None)
        ranked.append(
            Run(
                name=run_dir.relative_to(folder).as_posix(),
                status=status(run_dir),
                error=results.get("error"),
                settings={key: own[key] for key in differ if key in own},
                metric=metric,
                best=best and best[metric],
                best_epoch=best and int(best["epoch"]),
                history=history,
                val_split=results.get("val_split"),
                accuracy=results.get("accuracy"),
                split=results.get("split"),
                train_seconds=results.get("train_seconds"),
            )
        )
    ranked.sort(key=lambda run: math.inf if run.best is None else -sign * run.best)
    return ranked


def _settings(run_dir: Path, results: Json) -> dict[str, str]:
    command = results.get("command")
    if command is None:
        path = run_dir / "command.txt"
        command = path.read_text(encoding="utf-8") if path.exists() else ""
    pairs = (setting.partition("=") for setting in shlex.split(command)[2:])
    return {key: value for key, _, value in pairs}


def importance(runs: Sequence[Run]) -> dict[str, float]:
    """Which share of the differences between runs each setting explains alone, 0 to 1.

    That is Kelley's epsilon squared ("An unbiased correlation ratio measure", 1935) of the runs' best values in
    groups with the same setting: the share of the variance between the groups, less what chance would give so many
    groups; 0 where that is less than nothing. Numbers with more than four values make four groups of equal size.
    """
    scored = [(run.settings, run.best) for run in runs if run.best is not None]
    values = [best for _, best in scored]
    total = sum((value - fmean(values)) ** 2 for value in values)
    shares = {}
    for key in dict.fromkeys(key for settings, _ in scored for key in settings):
        of_group: dict[object, list[float]] = {}
        for group, value in zip(_groups([settings.get(key, "") for settings, _ in scored]), values, strict=True):
            of_group.setdefault(group, []).append(value)
        within = sum((value - fmean(group)) ** 2 for group in of_group.values() for value in group)
        free = len(values) - len(of_group)
        shares[key] = max(0.0, 1 - within / free * (len(values) - 1) / total) if free and total else 0.0
    return shares


def _groups(values: Sequence[str]) -> Sequence[object]:
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return values
    distinct = sorted(set(numbers))
    if len(distinct) <= 4:
        return numbers
    return [4 * distinct.index(number) // len(distinct) for number in numbers]


def draw_runs(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """Draws the runs' histories, their settings as parallel coordinates, and what each setting is worth.

    Returns:
        The pictures, in `folder`/figures; none where there are not two runs to compare.
    """
    from fer_lightning.drawing import faces as plots

    scored = [run for run in runs if run.best is not None]
    if len(scored) < 2:
        return []
    names = [" ".join([run.name, *_told(run.settings)]) for run in scored]
    metric = scored[0].metric
    val_split = " and ".join(sorted({str(run.val_split) for run in scored}))
    title = f"{len(scored)} runs, {metric.removeprefix('val_')} on {val_split}"
    histories = {name: run.history for name, run in zip(names, scored, strict=True)}
    figures = {"history": plots.run_histories(histories, metric, title)}
    keys = dict.fromkeys(key for run in scored for key in run.settings)
    if keys:
        columns = {key: [run.settings.get(key, "") for run in scored] for key in keys}
        scores = [run.best for run in scored if run.best is not None]
        figures["parallel"] = plots.parallel_coordinates(
            columns, scores, metric.removeprefix("val_"), title, metric == "val_accuracy"
        )
        figures["importance"] = plots.importances(importance(scored), title)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / "figures" / f"{name}.png")
        plots.write_png(plots.pixels(figure), paths[-1])
    return paths


def _told(settings: Mapping[str, str]) -> list[str]:
    """Settings as NAME=value, numbers with four digits: a search gives them with seventeen."""
    told = []
    for key, value in settings.items():
        try:
            short = f"{float(value):.4g}" if len(value) > 8 else value
        except ValueError:
            short = value
        told.append(f"{key}={short}")
    return told


def format_runs(folder: Path, runs: Sequence[Run]) -> str:
    """The ranking as a table of at most 80 columns, with the failed runs' errors below."""
    numbers = [
        [
            percent(run.best) if run.metric == "val_accuracy" else decimal(run.best),
            percent(run.accuracy),
            "-" if run.best_epoch is None else f"{run.best_epoch}/{len(run.history)}",
            "-" if run.train_seconds is None else f"{run.train_seconds:.0f}",
            run.status,
        ]
        for run in runs
    ]
    quantity = runs[0].metric.removeprefix("val_")
    header = [quantity, "test", "best/epochs", "seconds", "status"]
    width = 80 - sum(2 + max(map(len, column)) for column in zip(header, *numbers, strict=True))
    rows = []
    for run, own in zip(runs, numbers, strict=True):
        told = " ".join([run.name, *_told(run.settings)])
        first, *more = textwrap.wrap(told, width, subsequent_indent="  ", break_on_hyphens=False)
        rows += [[first, *own], *([line, "", "", "", "", ""] for line in more)]
    val_splits = ", ".join(sorted({run.val_split for run in runs if run.val_split and run.best is not None}))
    lines = [
        *textwrap.wrap(
            f"{len(runs)} run{'s' * (len(runs) > 1)} in {folder}, ranked by {quantity} on {val_splits or '-'}",
            80,
            break_on_hyphens=False,
        ),
        "",
        format_table(["run", *header], rows),
    ]
    failed = [run for run in runs if run.status == "failed"]
    if failed:
        lines.append("")
        for run in failed:
            told = f"{run.name} failed: {run.error or 'not recorded'}"
            lines += textwrap.wrap(told, 80, subsequent_indent="  ", max_lines=3)
    return "\n".join(lines)
