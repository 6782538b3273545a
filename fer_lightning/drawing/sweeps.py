"""Figures that compare the runs of a sweep."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fer_lightning.drawing.style import DPI, FAINT, INK, TRAIN_COLOUR, add_title, series_of, style_axes

# Okabe and Ito's colours without the yellow, which is invisible on white. Markers are a second cue besides colour.
_RANKED = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v")


def run_histories(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str, named: int = 5
) -> Figure:
    """Plot the histories of several runs by epoch; the best in colour, the others in grey.

    Args:
        histories: run name -> rows of "history" in results.json, best run first.
        key: "val_accuracy" or "val_loss".
        title: title of the figure.
        named: number of runs to show in colour and in the legend.
    """
    figure = Figure(figsize=(12, 5.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for place, (name, history) in reversed(list(enumerate(histories.items()))):
        epochs, values = series_of(history, key)
        colour, width = (_RANKED[place % len(_RANKED)], 2.2) if place < named else ("#C8C8C8", 1.2)
        marker = _MARKERS[place % len(_MARKERS)] if place < named else "."
        label = textwrap.shorten(f"{place + 1}. {name}", 120) if place < named else None
        axes.plot(epochs, values, marker=marker, markersize=5, color=colour, linewidth=width, label=label)
    if key.endswith("accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_xlabel("epoch", size=12)
    axes.set_ylabel(key.replace("val_", "validation "), size=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(lines[::-1], labels[::-1], frameon=False, fontsize=11, loc="outside lower left")
    add_title(figure, title)
    return figure


def parallel_coordinates(
    settings: Mapping[str, Sequence[str]], scores: Sequence[float], metric: str, title: str, highest: bool = True
) -> Figure:
    """Draw each run as a line through its settings to its score; the best run is thick.

    Args:
        settings: setting -> its value in each of N runs, as text; "" if the run does not have it.
        scores: scores of the N runs.
        metric: name of the score.
        title: title of the figure.
        highest: whether higher scores are better.
    """
    columns = [_axis(values) for values in settings.values()]
    span = (min(scores), max(scores))
    share = np.array([(score - span[0]) / ((span[1] - span[0]) or 1.0) for score in scores])
    good = share if highest else 1 - share
    figure = Figure(figsize=(max(8.0, 2.2 * (len(columns) + 1)), 5.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for number in np.argsort(good, kind="stable"):
        heights = [*(places[number] for places, _ in columns), share[number]]
        best = number == int(good.argmax())
        axes.plot(
            range(len(heights)),
            heights,
            color=colormaps["viridis_r"](0.1 + 0.9 * good[number]),
            linewidth=3.5 if best else 1.4,
            marker="o",
            markersize=7 if best else 4,
        )
    ends = [f"{value:.1%}" if metric.endswith("accuracy") else f"{value:.4f}" for value in span]
    for column, (_, ticks) in enumerate([*columns, ([], dict(zip(ends, (0.0, 1.0), strict=True)))]):
        axes.axvline(column, color=FAINT, linewidth=1, zorder=0)
        for label, height in ticks.items():
            axes.text(column + 0.03, height + 0.015, label, size=11, color=INK, backgroundcolor="#FFFFFFB0")
    axes.set_xticks(range(len(columns) + 1), [*settings, metric], size=12)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) + 0.35)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    add_title(figure, title)
    return figure


def _axis(values: Sequence[str]) -> tuple[list[float], dict[str, float]]:
    """Return the heights, in [0, 1], of a setting's values and of its tick labels.

    Numbers are placed to scale, other values evenly spaced.
    """
    distinct = list(dict.fromkeys(values))
    if numbers := _numbers(distinct):
        low, high = min(numbers), max(numbers)
        heights = {value: (number - low) / (high - low) for value, number in zip(distinct, numbers, strict=True)}
        ascending = sorted(heights, key=heights.__getitem__)
        labelled = ascending if len(ascending) <= 6 else [ascending[0], ascending[-1]]
        ticks = {f"{float(value):.4g}": heights[value] for value in labelled}
    else:
        heights = {value: place / max(len(distinct) - 1, 1) for place, value in enumerate(sorted(distinct))}
        ticks = {value[:24] or "-": height for value, height in heights.items()}
    return [heights[value] for value in values], ticks


def _numbers(texts: Sequence[str]) -> list[float]:
    """Parse two or more finite numbers, as logarithms if they span a factor of 20; return [] for other texts."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return []
    if len(numbers) < 2 or not all(map(np.isfinite, numbers)):
        return []
    if min(numbers) > 0 and max(numbers) / min(numbers) >= 20:
        return [float(np.log(number)) for number in numbers]
    return numbers


def importances(shares: Mapping[str, float], title: str) -> Figure:
    """Draw the share of the variance between runs, 0 to 1, that each setting explains, largest on top."""
    names = sorted(shares, key=shares.__getitem__)
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [shares[name] for name in names], color=TRAIN_COLOUR)
    for place, name in enumerate(names):
        axes.text(shares[name] + 0.01, place, f"{shares[name]:.0%}", va="center", size=12, color=INK)
    axes.set_xlim(0, 1.1)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=13)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("share of the variance between runs explained by the setting alone", size=12)
    add_title(figure, title)
    return figure
