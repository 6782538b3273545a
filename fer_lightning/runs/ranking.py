"""Rank the runs below a folder, and format and plot the ranking. Imports nothing heavy."""

import math
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from fer_lightning.errors import UserError
from fer_lightning.files import Json
from fer_lightning.runs.folders import read_results, run_folders, status
from fer_lightning.text import decimal, format_table, percent

_REPEATS = ("seed", "data.fold")  # settings that repeat an experiment instead of changing it


@dataclass(frozen=True)
class Run:
    """A run in a ranking.

    Attributes:
        name: its folder, relative to the ranked one.
        status: running, finished, pruned, failed or interrupted.
        error: type and first line of the exception that made the run fail.
        tags: the labels that ``tags=`` gave the run.
        settings: the settings that differ between the ranked runs, apart from the tags.
        metric: val_accuracy or val_loss.
        best: the best value of `metric`.
        best_epoch: the epoch of `best`, from 0.
        history: one entry per epoch.
        val_split: the validation split.
        accuracy: accuracy of the best weights on `split`, a fraction.
        split: the test split.
        train_seconds: duration of the fit without validation.
    """

    name: str
    status: str
    error: str | None
    tags: list[str]
    settings: dict[str, str]
    metric: str
    best: float | None
    best_epoch: int | None
    history: list[dict[str, float]]
    val_split: str | None
    accuracy: float | None
    split: str | None
    train_seconds: float | None

    def to_json(self) -> Json:
        """Return the fields as plain values, with the number of epochs in place of the history."""
        entry = {**vars(self), "epochs": len(self.history)}
        del entry["history"]
        return entry


@dataclass(frozen=True)
class Group:
    """Finished runs that differ only in the seed or the fold.

    Attributes:
        label: their common settings, and what differs: "optim.lr=1e-3 data.fold=K/5".
        runs: at least two.
        best: mean and standard deviation of `Run.best`.
        accuracy: those of `Run.accuracy`; None if fewer than two runs were tested.
    """

    label: str
    runs: list[Run]
    best: tuple[float, float]
    accuracy: tuple[float, float] | None

    def to_json(self) -> Json:
        """Return the statistics as plain values."""
        entry: Json = {"group": self.label, "group_runs": len(self.runs)}
        for name, statistics in (("best", self.best), ("accuracy", self.accuracy)):
            entry[f"{name}_mean"], entry[f"{name}_std"] = statistics or (None, None)
        return entry


def is_minimised(monitor: str) -> bool:
    """Return whether a lower value of the monitored metric is better."""
    return monitor.startswith("loss")


def rank_runs(folder: Path) -> list[Run]:
    """Return the runs below `folder`, the best on the validation split first, runs without a value last.

    They are ranked by accuracy, or by loss if all runs selected their best epoch by loss; never by the test split,
    because selecting runs on it would make it a validation split.

    Raises:
        UserError: a run's results.json is damaged.
    """
    results_of = {run_dir: read_results(run_dir) or {} for run_dir in run_folders(folder)}
    settings_of = {run_dir: _settings(run_dir, results) for run_dir, results in results_of.items()}
    known = [settings for settings in settings_of.values() if settings]  # none for a run killed at its very start
    keys = dict.fromkeys(key for settings in known for key in settings)
    differing = [key for key in keys if len({settings.get(key) for settings in known}) > 1]
    by_loss = {results.get("monitor") for results in results_of.values() if results.get("history")} == {"loss/val"}
    metric, sign = ("val_loss", -1) if by_loss else ("val_accuracy", 1)
    runs = []
    for run_dir, results in results_of.items():
        settings = {key: settings_of[run_dir][key] for key in differing if key in settings_of[run_dir]}
        runs.append(_run(run_dir.relative_to(folder).as_posix(), run_dir, results, settings, metric, sign))
    return sorted(runs, key=lambda run: math.inf if run.best is None else -sign * run.best)


def _run(name: str, run_dir: Path, results: Json, settings: dict[str, str], metric: str, sign: int) -> Run:
    """Return the ranked form of a run; its best epoch maximises `sign` times `metric`."""
    history = results.get("history") or []
    epochs = [epoch for epoch in history if math.isfinite(epoch.get(metric, math.nan))]
    best = max(epochs, key=lambda epoch: sign * epoch[metric], default=None)
    return Run(
        name=name,
        status=status(run_dir),
        error=results.get("error"),
        tags=results.get("tags", []),
        settings=settings,
        metric=metric,
        best=best and best[metric],
        best_epoch=best and int(best["epoch"]),
        history=history,
        val_split=results.get("val_split"),
        accuracy=results.get("accuracy"),
        split=results.get("split"),
        train_seconds=results.get("train_seconds"),
    )


def _settings(run_dir: Path, results: Json) -> dict[str, str]:
    """Return the settings on a run's command line, by name."""
    command = results.get("command")
    if command is None:
        path = run_dir / "command.txt"
        command = path.read_text(encoding="utf-8") if path.exists() else ""
    pairs = (setting.partition("=") for setting in shlex.split(command)[2:])
    return {key: value for key, _, value in pairs if key != "tags"}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Return the groups of at least two finished runs that differ only in the seed or the fold, the best first."""
    alike: dict[object, list[Run]] = {}
    for run in runs:
        if run.status == "finished" and run.best is not None:
            common = {key: value for key, value in run.settings.items() if key not in _REPEATS}
            alike.setdefault((frozenset(common.items()), _selected_on(run), run.split), []).append(run)
    groups = [_group(members) for members in alike.values() if any(map(_varied(members).get, _REPEATS))]
    sign = 1 if runs and runs[0].metric == "val_loss" else -1
    return sorted(groups, key=lambda group: sign * group.best[0])


def _varied(runs: Sequence[Run]) -> dict[str, bool]:
    """Return whether a setting differs between runs, for each setting of theirs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return {key: len({run.settings.get(key) for run in runs}) > 1 for key in keys}


def _group(runs: list[Run]) -> Group:
    """Return runs that differ only in the seed or the fold as a group."""
    folds = re.search(r"K/\d+", _selected_on(runs[0]))
    shown = {"seed": "*", "data.fold": folds[0] if folds else "*"}
    words = [f"{key}={shown[key] if varied else runs[0].settings[key]}" for key, varied in _varied(runs).items()]
    best = _mean_and_std([run.best for run in runs])
    assert best is not None
    return Group(" ".join(words), runs, best, _mean_and_std([run.accuracy for run in runs]))


def _mean_and_std(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Return the mean and the sample standard deviation of at least two values; unknown ones are left out."""
    known = [value for value in values if value is not None]
    return (fmean(known), stdev(known)) if len(known) > 1 else None


def _selected_on(run: Run) -> str:
    """Return the name of a run's validation split, the same for all folds: "Training fold K/5"."""
    return re.sub(r" fold \d+/", " fold K/", str(run.val_split))


def importance(runs: Sequence[Run]) -> dict[str, float]:
    """Return the share of the variance between runs that each setting alone explains, from 0 to 1.

    This is Kelley's epsilon squared ("An unbiased correlation ratio measure", 1935) of the runs' best values,
    grouped by the setting: the variance between groups as a share of the total, less the share expected by chance
    for that number of groups, and at least 0. Numeric settings with more than four values are binned into four
    groups of equal size.
    """
    scored = [(run.settings, run.best) for run in runs if run.best is not None]
    values = [best for _, best in scored]
    total = sum((value - fmean(values)) ** 2 for value in values)
    shares = {}
    for key in dict.fromkeys(key for settings, _ in scored for key in settings):
        by_label: dict[object, list[float]] = {}
        labels = _group_labels([settings.get(key, "") for settings, _ in scored])
        for label, value in zip(labels, values, strict=True):
            by_label.setdefault(label, []).append(value)
        within = sum((value - fmean(group)) ** 2 for group in by_label.values() for value in group)
        freedom = len(values) - len(by_label)
        shares[key] = max(0.0, 1 - within / freedom * (len(values) - 1) / total) if freedom and total else 0.0
    return shares


def _group_labels(values: Sequence[str]) -> Sequence[object]:
    """Return the group of each value: itself, or one of four bins if there are more than four numbers."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return values
    distinct = sorted(set(numbers))
    if len(distinct) <= 4:
        return numbers
    return [4 * distinct.index(number) // len(distinct) for number in numbers]


def draw_runs(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """Plot the runs' histories, their settings as parallel coordinates, and the settings' importance.

    Returns:
        The paths of the PNG files in `folder`/figures; empty if fewer than two runs have a value to compare.
    """
    from fer_lightning.drawing.style import pixels, write_png
    from fer_lightning.drawing.sweeps import importances, parallel_coordinates, run_histories

    scored = [run for run in runs if run.best is not None]
    if len(scored) < 2:
        return []
    names = [_label(run) for run in scored]
    metric = scored[0].metric
    val_split = " and ".join(sorted({_selected_on(run) for run in scored}))
    title = f"{len(scored)} runs, {metric.removeprefix('val_')} on {val_split}"
    histories = {name: run.history for name, run in zip(names, scored, strict=True)}
    figures = {"history": run_histories(histories, metric, title)}
    keys = dict.fromkeys(key for run in scored for key in run.settings)
    if keys:
        columns = {key: [run.settings.get(key, "") for run in scored] for key in keys}
        scores = [run.best for run in scored if run.best is not None]
        figures["parallel"] = parallel_coordinates(
            columns, scores, metric.removeprefix("val_"), title, metric == "val_accuracy"
        )
        figures["importance"] = importances(importance(scored), title)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / "figures" / f"{name}.png")
        write_png(pixels(figure), paths[-1])
    return paths


def _label(run: Run) -> str:
    """Return a run's name and settings in one line; long numbers, as a search gives them, to four digits."""
    words = [run.name]
    for key, value in run.settings.items():
        try:
            short = f"{float(value):.4g}" if len(value) > 8 else value
        except ValueError:
            short = value
        words.append(f"{key}={short}")
    return " ".join(words)


def _tags(run: Run) -> str:
    return f" tags={','.join(run.tags)}" if run.tags else ""


def resolve_checkpoint(path: str, setting: str = "ckpt") -> str:
    """Return the best checkpoint of the run or sweep in a folder, and print which; return any other path unchanged.

    Raises:
        UserError: no run in the folder has a checkpoint.
    """
    folder = Path(path)
    if not folder.is_dir():
        return path
    runs = rank_runs(folder)
    best = _best_run(folder, runs)
    if best is None:
        raise UserError(
            f"{setting}={path}: no run in this folder has finished an epoch, so there is no checkpoint."
        )
    checkpoint = _checkpoint(folder, best)
    among = f" of {len(runs)} runs" if len(runs) > 1 else ""
    score = f"{best.metric.removeprefix('val_')} {_score(best)} on {best.val_split}"
    print(f"note:     {path}: taking {checkpoint}, the best{among} ({score})", file=sys.stderr)
    return str(checkpoint)


def _checkpoint(folder: Path, run: Run) -> Path:
    return folder / run.name / "checkpoints" / "best.ckpt"


def _best_run(folder: Path, runs: Sequence[Run]) -> Run | None:
    """Return the first ranked run that has a checkpoint."""
    return next((run for run in runs if run.best is not None and _checkpoint(folder, run).exists()), None)


def _score(run: Run) -> str:
    return percent(run.best) if run.metric == "val_accuracy" else decimal(run.best)


def format_runs(folder: Path, runs: Sequence[Run]) -> str:
    """Return the ranking as a table at most 80 columns wide, followed by the errors of failed runs."""
    numbers = [
        [
            _score(run),
            percent(run.accuracy),
            "-" if run.best_epoch is None else f"{run.best_epoch}/{len(run.history)}",
            "-" if run.train_seconds is None else f"{run.train_seconds:.0f}",
            run.status,
        ]
        for run in runs
    ]
    quantity = runs[0].metric.removeprefix("val_")
    header = [quantity, "test", "best/epochs", "seconds", "status"]
    rows = [(_label(run) + _tags(run), cells) for run, cells in zip(runs, numbers, strict=True)]
    val_splits = ", ".join(sorted({_selected_on(run) for run in runs if run.val_split and run.best is not None}))
    lines = [
        *textwrap.wrap(
            f"{len(runs)} run{'s' * (len(runs) > 1)} in {folder}, ranked by {quantity} on {val_splits or '-'}",
            80,
            break_on_hyphens=False,
        ),
        "",
        _format_table("run", header, rows),
    ]
    if groups := group_runs(runs):
        lines += ["", _format_groups(groups, quantity)]
    if best := _best_run(folder, runs):
        lines += ["", f"best: {_checkpoint(folder, best)}"]
    failed = [run for run in runs if run.status == "failed"]
    if failed:
        lines.append("")
        for run in failed:
            text = f"{run.name} failed: {run.error or 'error not recorded'}"
            lines += textwrap.wrap(text, 80, subsequent_indent="  ", max_lines=3)
    return "\n".join(lines)


def _format_groups(groups: Sequence[Group], quantity: str) -> str:
    def shown(statistics: tuple[float, float] | None, is_loss: bool) -> str:
        if statistics is None:
            return "-"
        mean, std = statistics
        return f"{mean:.4f} ± {std:.4f}" if is_loss else f"{100 * mean:.2f} ± {100 * std:.2f}%"

    rows = [
        (group.label, [shown(group.best, quantity == "loss"), shown(group.accuracy, False), str(len(group.runs))])
        for group in groups
    ]
    return _format_table("mean ± standard deviation", [quantity, "test", "runs"], rows)


def _format_table(title: str, header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Format rows of a text and cells as a table at most 80 columns wide, with the texts wrapped under `title`."""
    cells = [header, *(cells for _, cells in rows)]
    width = 80 - sum(2 + max(map(len, column)) for column in zip(*cells, strict=True))
    lines: list[list[str]] = []
    for text, numbers in rows:
        first, *more = textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)
        lines += [[first, *numbers], *([line, *[""] * len(numbers)] for line in more)]
    return format_table([title, *header], lines)
