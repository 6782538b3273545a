"""Folders of runs and sweeps: who works in them, how each run stands, and all of them ranked.

Imports nothing heavy.
"""

import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fer_lightning.files import Json
from fer_lightning.runs.folders import read_results, run_folders, status
from fer_lightning.text import decimal, format_table, percent


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
    runs = []
    for (run_dir, results), own in zip(found, settings, strict=True):
        name, differing = run_dir.relative_to(folder).as_posix(), {key: own[key] for key in differ if key in own}
        runs.append(_run(name, run_dir, results, differing, metric, sign))
    return sorted(runs, key=lambda run: math.inf if run.best is None else -sign * run.best)


def _run(name: str, run_dir: Path, results: Json, settings: dict[str, str], metric: str, sign: int) -> Run:
    """A run whose best epoch has the highest `sign` times `metric`."""
    history = results.get("history") or []
    epochs = [epoch for epoch in history if math.isfinite(epoch.get(metric, math.nan))]
    best = max(epochs, key=lambda epoch: sign * epoch[metric], default=None)
    return Run(
        name=name,
        status=status(run_dir),
        error=results.get("error"),
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
    from fer_lightning.drawing.style import pixels, write_png
    from fer_lightning.drawing.sweeps import importances, parallel_coordinates, run_histories

    scored = [run for run in runs if run.best is not None]
    if len(scored) < 2:
        return []
    names = [" ".join([run.name, *_told(run.settings)]) for run in scored]
    metric = scored[0].metric
    val_split = " and ".join(sorted({str(run.val_split) for run in scored}))
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
