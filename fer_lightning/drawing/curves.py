"""Figures of training and evaluation: curves and the confusion matrix."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fer_lightning.drawing.style import (
    DPI,
    FAINT,
    INK,
    TRAIN_COLOUR,
    VAL_COLOUR,
    add_title,
    label_axes,
    luminance,
    make_panels,
    series_of,
    shorten,
    style_axes,
)

_MOST_CELLS_WITH_TEXT = 30  # in a row: more text is too small to read, and takes seconds to draw


def confusion_matrix(counts: npt.NDArray[np.integer[Any]], title: str, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix with row percentages and counts.

    Colours and percentages are relative to the row, so the diagonal shows the recall. The precision is below each
    column.

    Args:
        counts: integer (C, C); counts[i, j] is the number of faces of true class i that were predicted as class j.
        title: title of the figure.
        classes: names of the C classes.
    """
    n_classes = len(classes)
    scale = max(1.0, min(n_classes, _MOST_CELLS_WITH_TEXT) / 14)  # of the figure
    text_scale = min(1.0, 8 * scale / n_classes)
    in_row, in_column, hits = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    share = counts / np.maximum(in_row, 1)[:, None]
    n = int(counts.sum())
    accuracy = f"accuracy {hits.sum() / n:.1%}, n = {n:,}" if n else "no faces"

    figure = Figure(figsize=(9.2 * scale, 8.2 * scale), dpi=DPI)
    axes = figure.add_axes((0.16, 0.11, 0.82, 0.785))
    blues = colormaps["Blues"]
    axes.imshow(share, cmap=blues, vmin=0, vmax=1, aspect="auto")
    for i in range(n_classes) if n_classes <= _MOST_CELLS_WITH_TEXT else ():
        for j in range(n_classes):
            ink = "white" if luminance(blues(share[i, j])) < 0.5 else INK
            percent = f"{share[i, j]:.0%}" if in_row[i] else "-"
            weight = "bold" if i == j else "normal"
            axes.text(
                j, i - 0.03, percent, ha="center", va="bottom", color=ink, size=17 * text_scale, weight=weight
            )
            axes.text(j, i + 0.07, f"{counts[i, j]:,}", ha="center", va="top", color=ink, size=11 * text_scale)
    precision = [f"{hits[j] / in_column[j]:.0%}" if in_column[j] else "-" for j in range(n_classes)]
    names = list(map(shorten, classes))
    columns = [f"{name}\n{value}" for name, value in zip(names, precision, strict=True)]
    rows = [f"{name}\nn = {size:,}" for name, size in zip(names, in_row, strict=True)]
    narrow = min(1.0, 8.5 / max(map(len, names)))  # a longer name would touch the next
    axes.set_xticks(range(n_classes), columns, size=13 * text_scale * narrow, parse_math=False)
    axes.set_yticks(range(n_classes), rows, size=13 * text_scale, parse_math=False)
    unit = n_classes / scale  # cells per 6.4 inches, the height of the matrix
    below = n_classes - 0.5 + (0.03 + 0.4 * text_scale) * unit / 7
    axes.text(-0.5 - unit / 70, below, "precision", ha="right", va="center", size=13 * text_scale, color=FAINT)
    # Separate the cells by white lines instead of framing the matrix.
    axes.set_xticks(np.arange(-0.5, n_classes), minor=True)
    axes.set_yticks(np.arange(-0.5, n_classes), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", size=15, weight="bold", labelpad=8)
    axes.set_ylabel("true", size=15, weight="bold", labelpad=4)
    figure.text(0.02, 0.962, title, va="center", size=17, weight="bold", color=INK)
    figure.text(0.02, 0.925, f"{accuracy}; the diagonal shows the recall", va="center", size=13, color=FAINT)
    return figure


def history_curves(
    history: Sequence[Mapping[str, Any]],
    title: str,
    references: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    val_split: str = "validation",
) -> Figure:
    """Plot loss and accuracy by epoch.

    Args:
        history: rows of "history" in results.json, one per epoch.
        title: title of the figure.
        references: name, such as "original" -> rows of another run, drawn dashed; they may lack columns.
        val_split: name of the validation split in the legend.
    """
    figure = Figure(figsize=(12, 4.8), dpi=DPI, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _curves(loss, "loss", history, references or {}, val_split)
    _curves(accuracy, "accuracy", history, references or {}, val_split)
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    add_title(figure, title)
    return figure


def _curves(
    axes: Axes,
    quantity: str,
    history: Sequence[Mapping[str, Any]],
    references: Mapping[str, Sequence[Mapping[str, Any]]],
    val_split: str,
) -> None:
    """Plot `quantity` ("loss" or "accuracy") of the training and validation splits into one panel."""
    for part, split, colour in (("train", "train", TRAIN_COLOUR), ("val", val_split, VAL_COLOUR)):
        key = f"{part}_{quantity}"
        epochs, values = series_of(history, key)
        label = split
        if key == "val_accuracy" and len(values):
            best = int(values.argmax())
            label = f"{split}: highest {values[best]:.1%}, epoch {epochs[best]:.0f}"
            axes.plot(epochs[best], values[best], "o", color=colour, markersize=7)
        marker = "." if len(values) == 1 else ""  # a line through a single point is invisible
        axes.plot(epochs, values, marker=marker, color=colour, linewidth=2, label=label)
        for name, rows in references.items():
            epochs, values = series_of(rows, key)
            if len(values):
                axes.plot(epochs, values, "--", color=colour, alpha=0.6, label=f"{split}, {name}")
    axes.set_title(quantity, size=13, color=INK)
    axes.set_xlabel("epoch", size=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)
    axes.legend(frameon=False, fontsize=11)


def precision_recall_curves(
    curves: Mapping[str, tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]]]],
    average_precisions: Mapping[str, float],
    shares: Mapping[str, float],
) -> Figure:
    """Plot the precision-recall curve of each class in its own panel, in front of the other curves in grey.

    Args:
        curves: class -> recalls and precisions, both float (K,); only classes that occur.
        average_precisions: class -> average precision, for the panel titles.
        shares: class -> its share of the images, the precision of random guessing, drawn dotted.
    """
    figure, panels = make_panels(len(curves))
    for axes, (name, (recall, precision)) in zip(panels, curves.items(), strict=True):
        for other in curves.values():
            axes.step(*other, color="#C8C8C8", linewidth=0.8, where="pre")
        axes.step(recall, precision, color=TRAIN_COLOUR, linewidth=2.2, where="pre")
        axes.axhline(shares[name], color=INK, linestyle=":", linewidth=1.2)
        heading = f"{shorten(name)}: AP {average_precisions[name]:.2f}"
        axes.set_title(heading, size=13, color=INK, parse_math=False)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1))
    label_axes(figure, "recall", "precision")
    return figure


def reliability_diagram(calibrations: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot accuracy by confidence and, below, the share of the images in each bin.

    Bars that end below the diagonal mean overconfidence.

    Args:
        calibrations: panel title -> a result of evaluation.statistics.calibration.
    """
    figure = Figure(figsize=(5.6 * len(calibrations), 5.8), dpi=DPI, layout="constrained")
    grid = figure.subplots(2, len(calibrations), sharex=True, squeeze=False, height_ratios=(3, 1))
    for (upper, lower), (title, calibration) in zip(grid.T, calibrations.items(), strict=True):
        n = sum(row["n"] for row in calibration["bins"])
        for row in calibration["bins"]:
            if row["n"]:
                place = {"x": row["from"], "width": row["to"] - row["from"], "align": "edge", "edgecolor": "white"}
                upper.bar(height=row["accuracy"], color=TRAIN_COLOUR, **place)
                upper.plot(
                    row["confidence"], row["accuracy"], "o", color=VAL_COLOUR, markeredgecolor="white", markersize=8
                )
                lower.bar(height=row["n"] / n, color=FAINT, **place)
        upper.plot([0, 1], [0, 1], "--", color=INK, linewidth=1.5)
        upper.set_title(f"{title}: ECE {calibration['ece']:.1%}", size=13, color=INK)
        upper.set(xlim=(0, 1), ylim=(0, 1))
        upper.set_ylabel("accuracy", size=12)
        lower.set_ylabel("images", size=12)
        lower.set_xlabel("confidence", size=12)
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
            style_axes(axes)
    return figure


def robustness_curves(robustness: Mapping[str, Mapping[str, Any]], clean: float) -> Figure:
    """Plot accuracy by strength, one panel per corruption.

    Args:
        robustness: the value of "robustness" from evaluation.evaluate.to_json.
        clean: accuracy on the clean images, drawn dashed.
    """
    figure, panels = make_panels(len(robustness))
    for axes, (name, row) in zip(panels, robustness.items(), strict=True):
        axes.axhline(clean, color=INK, linestyle="--", linewidth=1.2)
        axes.plot(range(5), row["accuracy"], "o-", color=TRAIN_COLOUR, linewidth=2.2)
        axes.set_xticks(range(5), [f"{strength:g}" for strength in row["strengths"]])
        axes.set_title(name, size=13, color=INK)
        axes.set(ylim=(0, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    label_axes(figure, "strength", "accuracy")
    return figure
