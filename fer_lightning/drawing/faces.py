"""Figures from arrays: faces with their predictions, confusion matrices, curves of training and evaluation.

Nothing here knows Lightning or TensorBoard, and nothing imports pyplot, which keeps every figure alive.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from fer_lightning.emotions import COLOURS, EMOTIONS, NUM_CLASSES

# Okabe and Ito's bluish green and vermillion, darkened until text in them has a contrast of 5:1 on white.
RIGHT = "#007A5A"
WRONG = "#C23B00"
MARKS = {True: "✓", False: "✗"}  # so that colour is never the only cue

_TRAIN, _VAL = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermillion
_INK, _FAINT = "#222222", "#6B6B6B"
# Okabe and Ito's, without the yellow, which cannot be seen on white; markers, so that colour is not the only cue.
_RANKED = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v")

_DPI = 100
# The grid is laid out in pixels, so that every pixel of a face becomes exactly _ZOOM x _ZOOM pixels.
_ZOOM = 3
_COLUMNS = 7  # one for each class when the faces come in turn from all seven
_FRAME = 5
_GAP = 14
_TITLE_HEIGHT = 62
_NAME_HEIGHT = 54  # two lines above a face
_NAME_PX = 19  # as large as "surprise 100%" allows: TensorBoard shrinks the picture to a card


def prediction_grid(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer[Any]],
    probabilities: npt.NDArray[np.floating[Any]],
    title: str,
) -> Figure:
    """Faces (N, 48, 48) with their predictions, from probabilities (N, 7), and labels (N,) where they differ.

    The faces may be in colour: (N, 48, 48, 3).

    Frame, title and mark say whether it is right. Seven to a row, in the order given.
    """
    n, height, width = images.shape[:3]
    tile = (height * _ZOOM + 2 * _FRAME, width * _ZOOM + 2 * _FRAME)
    pitch = (tile[0] + _NAME_HEIGHT + _GAP, tile[1] + _GAP)
    rows = max(1, -(-n // _COLUMNS))
    page = np.full((_TITLE_HEIGHT + rows * pitch[0], _GAP + _COLUMNS * pitch[1], 3), 255, np.uint8)

    figure = Figure(figsize=(page.shape[1] / _DPI, page.shape[0] / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    predicted = probabilities.argmax(axis=1) if n else np.zeros(0, np.int64)
    for i in range(n):
        top = _TITLE_HEIGHT + (i // _COLUMNS) * pitch[0] + _NAME_HEIGHT
        left = _GAP + (i % _COLUMNS) * pitch[1]
        right = bool(predicted[i] == labels[i])
        colour = RIGHT if right else WRONG
        page[top : top + tile[0], left : left + tile[1]] = _rgb(colour)
        face = images[i].repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)  # nearest neighbour: the pixels themselves
        rgb = face if face.ndim == 3 else face[..., None]
        page[top + _FRAME : top + tile[0] - _FRAME, left + _FRAME : left + tile[1] - _FRAME] = rgb

        name = f"{EMOTIONS[predicted[i]]} {probabilities[i, predicted[i]]:.0%}"
        if not right:
            axes.text(left, top - 27, name, va="bottom", color=colour, weight="bold", size=_points(_NAME_PX))
            name = f"true: {EMOTIONS[labels[i]]}"
        weight = "bold" if right else "normal"
        axes.text(left, top - 3, name, va="bottom", color=colour, weight=weight, size=_points(_NAME_PX))
        axes.text(
            left + tile[1] - 15,
            top + 15,
            MARKS[right],
            color="white",
            ha="center",
            va="center",
            size=_points(20),
            bbox={"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none"},
        )
    axes.imshow(page, interpolation="none", extent=(0, page.shape[1], page.shape[0], 0), aspect="auto")
    axes.text(_GAP, _TITLE_HEIGHT / 2, title, va="center", color=_INK, weight="bold", size=_points(24))
    return figure


def heat_overlay(face: npt.NDArray[np.uint8], heat: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """A grey face (H, W) under a heat map (h, w) in [0, 1]: uint8 (H, W, 3).

    Where there is no heat the face shows as it is.
    """
    share = _enlarged(heat, face.shape)[..., None]
    colour = 255 * colormaps["inferno"](0.25 + 0.65 * share[..., 0])[..., :3]  # its ends are black and white
    blend = 0.7 * share
    picture: npt.NDArray[np.uint8] = np.rint((1 - blend) * face[..., None] + blend * colour).astype(np.uint8)
    return picture


def _enlarged(heat: npt.NDArray[np.floating[Any]], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    height, width = shape
    image = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def explanation(
    face: npt.NDArray[np.uint8],
    heat: npt.NDArray[np.floating[Any]],
    probabilities: npt.NDArray[np.floating[Any]],
    emotion: int,
    title: str,
) -> Figure:
    """A grey face (H, W), the heat map (h, w) of `emotion` over it, and the seven probabilities (7,) as bars.

    The line in the middle picture is at half of the map's highest value.
    """
    figure = Figure(figsize=(13.2, 5), dpi=_DPI, layout="constrained")
    plain, warm, bars = figure.subplots(1, 3)
    smooth = "nearest" if max(face.shape) < 200 else "antialiased"
    plain.imshow(face, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    plain.set_title("the face", size=13, color=_INK)
    warm.imshow(heat_overlay(face, heat), interpolation=smooth)
    if heat.any():
        for colour, width in (("black", 4), ("white", 2)):  # seen on light and dark skin
            warm.contour(_enlarged(heat, face.shape), levels=[0.5], colors=colour, linewidths=width)
    warm.set_title(f"what speaks for {EMOTIONS[emotion]}", size=13, color=_INK, weight="bold")
    for axes in (plain, warm):
        axes.axis("off")
    bars.barh(EMOTIONS, probabilities, color=[_VAL if i == emotion else _TRAIN for i in range(NUM_CLASSES)])
    for i, probability in enumerate(probabilities):
        weight = "bold" if i == emotion else "normal"
        bars.text(probability + 0.02, i, f"{probability:.0%}", va="center", size=12, color=_INK, weight=weight)
    bars.set_xlim(0, 1.15)
    bars.invert_yaxis()
    bars.set_xticks([])
    bars.tick_params(length=0, labelsize=13)
    bars.spines[:].set_visible(False)
    bars.set_title("probabilities", size=13, color=_INK)
    _title(figure, title)
    return figure


def confusion_matrix(counts: npt.NDArray[np.integer[Any]], title: str) -> Figure:
    """counts[i, j]: how many faces (7, 7) of true class i were predicted as class j.

    Colours and percentages are of the row, so the diagonal is the recall; the precision is below its column.
    """
    in_row, in_column, hits = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    share = counts / np.maximum(in_row, 1)[:, None]
    n = int(counts.sum())
    accuracy = f"accuracy {hits.sum() / n:.1%}, n = {n:,}" if n else "no faces"

    figure = Figure(figsize=(9.2, 8.2), dpi=_DPI)
    axes = figure.add_axes((0.16, 0.11, 0.82, 0.785))
    colours = colormaps["Blues"]
    axes.imshow(share, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for i in range(NUM_CLASSES):
        for j in range(NUM_CLASSES):
            ink = "white" if _luminance(colours(share[i, j])) < 0.5 else _INK
            percent = f"{share[i, j]:.0%}" if in_row[i] else "-"
            weight = "bold" if i == j else "normal"
            axes.text(j, i - 0.03, percent, ha="center", va="bottom", color=ink, size=17, weight=weight)
            axes.text(j, i + 0.07, f"{counts[i, j]:,}", ha="center", va="top", color=ink, size=11)
    precision = [f"{hits[j] / in_column[j]:.0%}" if in_column[j] else "-" for j in range(NUM_CLASSES)]
    columns = [f"{name}\n{value}" for name, value in zip(EMOTIONS, precision, strict=True)]
    rows = [f"{name}\nn = {size:,}" for name, size in zip(EMOTIONS, in_row, strict=True)]
    axes.set_xticks(range(NUM_CLASSES), columns, size=13)
    axes.set_yticks(range(NUM_CLASSES), rows, size=13)
    axes.text(-0.6, 6.93, "precision", ha="right", va="center", size=13, color=_FAINT)
    # White lines between the cells instead of a box around them.
    axes.set_xticks(np.arange(-0.5, NUM_CLASSES), minor=True)
    axes.set_yticks(np.arange(-0.5, NUM_CLASSES), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", size=15, weight="bold", labelpad=8)
    axes.set_ylabel("true", size=15, weight="bold", labelpad=4)
    figure.text(0.02, 0.962, title, va="center", size=17, weight="bold", color=_INK)
    figure.text(0.02, 0.925, f"{accuracy}; the diagonal is the recall", va="center", size=13, color=_FAINT)
    return figure


def history_curves(
    history: Sequence[Mapping[str, Any]],
    title: str,
    references: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    val_split: str = "validation",
) -> Figure:
    """Loss and accuracy by epoch: each row of `history` is one epoch of results.json's "history".

    `references` maps a name, such as "original", to such rows of another run; they are drawn dashed, and may
    lack columns. `val_split` names the validation split in the legend.
    """
    figure = Figure(figsize=(12, 4.8), dpi=_DPI, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _curves(loss, "loss", history, references or {}, val_split)
    _curves(accuracy, "accuracy", history, references or {}, val_split)
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    _title(figure, title)
    return figure


def timeline(
    seconds: npt.NDArray[np.floating[Any]], probabilities: npt.NDArray[np.floating[Any]], title: str
) -> Figure:
    """The seven probabilities of a face over time, a panel for each.

    Args:
        seconds: times (T,), ascending.
        probabilities: (T, 7) in canonical order; NaN where there was no face, which leaves a gap.
    """
    figure = Figure(figsize=(12, 7.2), dpi=_DPI, layout="constrained")
    panels = figure.subplots(NUM_CLASSES, 1, sharex=True, sharey=True)
    missing = np.isnan(probabilities).any(axis=1)
    values = np.where(missing[:, None], 0.0, probabilities)
    for axes, name, series in zip(panels, EMOTIONS, values.T, strict=True):
        axes.fill_between(seconds, series, where=~missing, color=COLOURS[name], linewidth=0)
        # With dots, for a line through one frame between two gaps cannot be seen.
        axes.plot(seconds, np.where(missing, np.nan, series), ".-", color=_INK, linewidth=0.8, markersize=2)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", size=13, color=_INK)
        axes.grid(color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=11)
    panels[0].set_ylim(0, 1)
    panels[0].set_yticks((0, 1), ("0%", "100%"))
    if seconds[0] < seconds[-1]:
        panels[0].set_xlim(seconds[0], seconds[-1])  # not only where there is a face
    panels[-1].set_xlabel("seconds", size=12)
    _title(figure, title)
    return figure


def _title(figure: Figure, title: str) -> None:
    """As it is: it may hold a file's name, with dollar signs that are no formula or bytes that are no text."""
    text = title.encode(errors="backslashreplace").decode()
    figure.suptitle(text, size=15, weight="bold", color=_INK, x=0.01, ha="left", parse_math=False)


def _curves(
    axes: Axes,
    quantity: str,
    history: Sequence[Mapping[str, Any]],
    references: Mapping[str, Sequence[Mapping[str, Any]]],
    val_split: str,
) -> None:
    """One panel: `quantity` ("loss" or "accuracy") on the training and the validation split."""
    for part, split, colour in (("train", "train", _TRAIN), ("val", val_split, _VAL)):
        key = f"{part}_{quantity}"
        epochs, values = _series(history, key)
        label = split
        if key == "val_accuracy" and len(values):
            best = int(values.argmax())
            label = f"{split}: highest {values[best]:.1%}, epoch {epochs[best]:.0f}"
            axes.plot(epochs[best], values[best], "o", color=colour, markersize=7)
        marker = "." if len(values) == 1 else ""  # a line through one point cannot be seen
        axes.plot(epochs, values, marker=marker, color=colour, linewidth=2, label=label)
        for name, rows in references.items():
            epochs, values = _series(rows, key)
            if len(values):
                axes.plot(epochs, values, "--", color=colour, alpha=0.6, label=f"{split}, {name}")
    axes.set_title(quantity, size=13, color=_INK)
    axes.set_xlabel("epoch", size=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axes)
    axes.legend(frameon=False, fontsize=11)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Epochs and values of `key`, both float64 (E,), from the rows that have it as a finite number."""
    found = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None and np.isfinite(row[key])]
    pairs = np.array(found, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def precision_recall_curves(
    curves: Mapping[str, tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]]]],
    average_precisions: Mapping[str, float],
    shares: Mapping[str, float],
) -> Figure:
    """A panel for each emotion with its curve in front of the others'.

    `curves` has recalls and precisions, both (K,), of each emotion that occurs; `shares`, the precision of a guess,
    is dotted.
    """
    figure, panels = _panels(len(curves))
    for axes, (name, (recall, precision)) in zip(panels, curves.items(), strict=True):
        for other in curves.values():
            axes.step(*other, color="#C8C8C8", linewidth=0.8, where="pre")
        axes.step(recall, precision, color=_TRAIN, linewidth=2.2, where="pre")
        axes.axhline(shares[name], color=_INK, linestyle=":", linewidth=1.2)
        axes.set_title(f"{name}: AP {average_precisions[name]:.2f}", size=13, color=_INK)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1))
    _label(figure, "recall", "precision")
    return figure


def reliability_diagram(calibrations: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy by confidence, a panel for each title; the share of the images in each bin is below.

    `calibrations` maps titles to what evaluation.calibration gives. A bar that ends below the diagonal is too
    sure.
    """
    figure = Figure(figsize=(5.6 * len(calibrations), 5.8), dpi=_DPI, layout="constrained")
    grid = figure.subplots(2, len(calibrations), sharex=True, squeeze=False, height_ratios=(3, 1))
    for (upper, lower), (title, told) in zip(grid.T, calibrations.items(), strict=True):
        n = sum(row["n"] for row in told["bins"])
        for row in told["bins"]:
            if row["n"]:
                place = {"x": row["from"], "width": row["to"] - row["from"], "align": "edge", "edgecolor": "white"}
                upper.bar(height=row["accuracy"], color=_TRAIN, **place)
                upper.plot(
                    row["confidence"], row["accuracy"], "o", color=_VAL, markeredgecolor="white", markersize=8
                )
                lower.bar(height=row["n"] / n, color=_FAINT, **place)
        upper.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1.5)
        upper.set_title(f"{title}: ECE {told['ece']:.1%}", size=13, color=_INK)
        upper.set(xlim=(0, 1), ylim=(0, 1))
        upper.set_ylabel("accuracy", size=12)
        lower.set_ylabel("images", size=12)
        lower.set_xlabel("confidence", size=12)
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
            _plain(axes)
    return figure


def robustness_curves(robustness: Mapping[str, Mapping[str, Any]], clean: float) -> Figure:
    """Accuracy by strength, a panel for each corruption; dashed is that on the images as they are.

    `robustness` is that of evaluation.to_json.
    """
    figure, panels = _panels(len(robustness))
    for axes, (name, told) in zip(panels, robustness.items(), strict=True):
        axes.axhline(clean, color=_INK, linestyle="--", linewidth=1.2)
        axes.plot(range(5), told["accuracy"], "o-", color=_TRAIN, linewidth=2.2)
        axes.set_xticks(range(5), [f"{strength:g}" for strength in told["strengths"]])
        axes.set_title(name, size=13, color=_INK)
        axes.set(ylim=(0, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    _label(figure, "strength", "accuracy")
    return figure


def run_histories(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str, named: int = 5
) -> Figure:
    """`key` ("val_accuracy" or "val_loss") of several runs by epoch; the first `named` in colour, the others grey.

    `histories` maps a run's name to rows of results.json's "history", in the order of the ranking.
    """
    figure = Figure(figsize=(12, 5.4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for place, (name, history) in reversed(list(enumerate(histories.items()))):
        epochs, values = _series(history, key)
        colour, width = (_RANKED[place % len(_RANKED)], 2.2) if place < named else ("#C8C8C8", 1.2)
        marker = _MARKERS[place % len(_MARKERS)] if place < named else "."
        label = textwrap.shorten(f"{place + 1}. {name}", 120) if place < named else None
        axes.plot(epochs, values, marker=marker, markersize=5, color=colour, linewidth=width, label=label)
    if key.endswith("accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_xlabel("epoch", size=12)
    axes.set_ylabel(key.replace("val_", "validation "), size=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axes)
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(lines[::-1], labels[::-1], frameon=False, fontsize=11, loc="outside lower left")
    _title(figure, title)
    return figure


def parallel_coordinates(
    settings: Mapping[str, Sequence[str]], scores: Sequence[float], metric: str, title: str, highest: bool = True
) -> Figure:
    """Each run as a line through its settings to its score; the best is thick.

    Args:
        settings: name of a setting -> its value in each of N runs, as text; "" where a run has none.
        scores: of the N runs.
        metric: name of the score.
        title: above the picture.
        highest: whether the best score is the highest.
    """
    columns = [_axis(values) for values in settings.values()]
    span = (min(scores), max(scores))
    share = np.array([(score - span[0]) / ((span[1] - span[0]) or 1.0) for score in scores])
    good = share if highest else 1 - share
    figure = Figure(figsize=(max(8.0, 2.2 * (len(columns) + 1)), 5.4), dpi=_DPI, layout="constrained")
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
        axes.axvline(column, color=_FAINT, linewidth=1, zorder=0)
        for label, height in ticks.items():
            axes.text(column + 0.03, height + 0.015, label, size=11, color=_INK, backgroundcolor="#FFFFFFB0")
    axes.set_xticks(range(len(columns) + 1), [*settings, metric], size=12)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) + 0.35)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _title(figure, title)
    return figure


def _axis(values: Sequence[str]) -> tuple[list[float], dict[str, float]]:
    """Heights in [0, 1] of a setting's values, and labels at heights: numbers to scale, other values evenly."""
    distinct = list(dict.fromkeys(values))
    try:
        numbers = [float(value) for value in distinct]
    except ValueError:
        numbers = []
    if numbers and all(map(np.isfinite, numbers)) and len(numbers) > 1:
        if min(numbers) > 0 and max(numbers) / min(numbers) >= 20:  # logarithmic
            numbers = [float(np.log(number)) for number in numbers]
        low, high = min(numbers), max(numbers)
        heights = {value: (number - low) / (high - low) for value, number in zip(distinct, numbers, strict=True)}
        ends = sorted(heights, key=heights.__getitem__)
        told = ends if len(ends) <= 6 else [ends[0], ends[-1]]
        ticks = {f"{float(value):.4g}": heights[value] for value in told}
    else:
        heights = {value: place / max(len(distinct) - 1, 1) for place, value in enumerate(sorted(distinct))}
        ticks = {value[:24] or "-": height for value, height in heights.items()}
    return [heights[value] for value in values], ticks


def importances(shares: Mapping[str, float], title: str) -> Figure:
    """How much of the differences between runs each setting explains, 0 to 1, the largest above."""
    names = sorted(shares, key=shares.__getitem__)
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(names)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [shares[name] for name in names], color=_TRAIN)
    for place, name in enumerate(names):
        axes.text(shares[name] + 0.01, place, f"{shares[name]:.0%}", va="center", size=12, color=_INK)
    axes.set_xlim(0, 1.1)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=13)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("share of the variance between runs that the setting alone explains", size=12)
    _title(figure, title)
    return figure


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    """n small panels, four to a row, with one scale."""
    rows = -(-n // 4)
    figure = Figure(figsize=(11.2, 2.9 * rows + 0.3), dpi=_DPI, layout="constrained")
    grid = figure.subplots(rows, 4, sharey=True, squeeze=False).ravel()
    for axes in grid[n:]:
        axes.remove()
    for axes in grid[:n]:
        _plain(axes)
    return figure, list(grid[:n])


def _label(figure: Figure, x: str, y: str) -> None:
    figure.supxlabel(x, size=13, color=_INK)
    figure.supylabel(y, size=13, color=_INK)


def _plain(axes: Axes) -> None:
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11)


def pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """The figure as uint8 (H, W, 3), as TensorBoard's add_image takes it with dataformats="HWC"."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return rgba[..., :3].copy()


def write_png(picture: npt.NDArray[np.uint8], path: str | Path) -> None:
    """Write uint8 (H, W, 3) so that a reader sees the old file or the whole new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        Image.fromarray(picture).save(unfinished, format="png")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _points(px: float) -> float:
    return px * 72 / _DPI


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(rgba: Sequence[float]) -> float:
    """How bright a colour looks, 0 to 1 (Rec. 709's weights)."""
    return 0.2126 * rgba[0] + 0.7152 * rgba[1] + 0.0722 * rgba[2]
