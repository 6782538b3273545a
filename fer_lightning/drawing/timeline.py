"""The figure of the emotions of a clip's faces over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fer_lightning.drawing.style import DPI, FAINT, INK, add_title, luminance, rgb_of, shorten
from fer_lightning.emotions import colours

_COLUMNS, _ROWS = 1040, 76  # pixels of a band, at most one column for each pixel of the figure
_ABSENT = "#EEEEEE"
_CHARACTER, _LINE = 7.5, 14  # px; rough width and height of the names in the bands


@dataclass(frozen=True, eq=False)
class Band:
    """One person in a clip of T frames and C classes.

    Attributes:
        id: the person's number.
        face: picture of the face, uint8 (H, W, 3).
        probabilities: float (T, C), summing to 1; NaN in frames without this person.
    """

    id: int
    face: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.floating[Any]]


def timeline(
    seconds: npt.NDArray[np.floating[Any]],
    bands: Sequence[Band],
    title: str,
    classes: Sequence[str],
    left_out: int = 0,
) -> Figure:
    """Draw a band for each person: at every time, its height is divided among the classes by their probabilities.

    Each frame is shown until the next one. Where an emotion is the most probable one for long enough, the band
    holds its name, so that colour is not the only cue.

    Args:
        seconds: float (T,), times of the frames, ascending.
        bands: the persons, from top to bottom.
        title: title of the figure.
        classes: names of the C classes.
        left_out: number of persons who have no band, which the figure states.
    """
    period = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1.0
    start, end = float(seconds[0]), float(seconds[-1]) + period
    in_row = 8 if max(map(len, classes)) <= 8 else 6  # names of the legend
    rows = -(-len(classes) // in_row)
    top, row, bottom = 0.65 + 0.27 * rows, 0.88, 0.62  # inches
    n_panels = max(1, len(bands))
    height = top + row * n_panels + bottom
    figure = Figure(figsize=(12, height), dpi=DPI)
    columns = np.clip(((seconds - start) / (end - start) * _COLUMNS).astype(np.int64), 0, _COLUMNS - 1)
    panels = []
    for number in range(n_panels):
        y = (bottom + row * (n_panels - 1 - number) + 0.06) / height
        axes = figure.add_axes((0.118, y, _COLUMNS / 1200, _ROWS / DPI / height))
        axes.set(xlim=(start, end), ylim=(0, 1), yticks=(), facecolor=_ABSENT)
        axes.spines[:].set_visible(False)
        axes.tick_params(labelsize=11, labelbottom=number == n_panels - 1, color=FAINT)
        panels.append(axes)
    for axes, band in zip(panels, bands, strict=False):
        picture = figure.add_axes((0.048, axes.get_position().y0, _ROWS / 1200, _ROWS / DPI / height))
        picture.imshow(band.face, aspect="auto")
        picture.set_axis_off()
        y = axes.get_position().y0 + _ROWS / DPI / height / 2
        figure.text(0.041, y, str(band.id), ha="right", va="center", size=15, weight="bold", color=INK)
        _draw_band(axes, _by_column(columns, band.probabilities), classes, (start, end))
    panels[-1].set_xlabel("seconds", size=12)
    if not bands:
        panels[0].text((start + end) / 2, 0.5, "no face", ha="center", va="center", size=13, color=FAINT)
    handles = [Patch(color=colour) for colour in colours(classes)]
    legend = figure.legend(
        handles,
        list(map(shorten, classes)),
        loc="upper left",
        bbox_to_anchor=(0.11, 1 - 0.38 / height),
        ncols=min(in_row, len(classes)),
        frameon=False,
        fontsize=11,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    note = "height: probability" + (f"; {left_out:,} more ids, seen in fewer frames" if left_out else "")
    figure.text(0.985, 0.1 / height, note, ha="right", va="bottom", size=11, color=FAINT)
    add_title(figure, title).set_y(1 - 0.1 / height)
    return figure


def _by_column(
    columns: npt.NDArray[np.int64], probabilities: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float64]:
    """Return the mean probabilities in each column of a band, float64 (_COLUMNS, C); NaN where there are none.

    Args:
        columns: int64 (T,), the column of each frame, ascending. Columns without a frame repeat the one before.
        probabilities: float (T, C), NaN where the person is absent.
    """
    present = np.isfinite(probabilities[:, 0])
    sums = np.zeros((_COLUMNS, probabilities.shape[1]))
    np.add.at(sums, columns[present], probabilities[present])
    n_present = np.bincount(columns[present], minlength=_COLUMNS)
    means = np.where(n_present[:, None] > 0, sums / np.maximum(n_present, 1)[:, None], np.nan)
    last = columns[np.searchsorted(columns, np.arange(_COLUMNS), side="right") - 1]
    filled: npt.NDArray[np.float64] = means[last]
    return filled


def _draw_band(
    axes: Axes, values: npt.NDArray[np.float64], classes: Sequence[str], extent: tuple[float, float]
) -> None:
    """Draw the band of the probabilities by column, float64 (_COLUMNS, C), NaN where the person is absent."""
    palette = np.array([*map(rgb_of, colours(classes)), rgb_of(_ABSENT)], dtype=np.uint8)
    levels = (np.arange(_ROWS) + 0.5) / _ROWS  # from the bottom
    upper = np.minimum(values.cumsum(axis=1), 1)
    upper[:, -1] = 1.0  # the sum may be rounded down
    present = np.isfinite(values[:, 0])
    owner = (levels[:, None, None] > upper).sum(axis=2)  # (_ROWS, _COLUMNS): class at each level
    owner[:, ~present] = len(classes)
    axes.imshow(palette[owner], aspect="auto", origin="lower", extent=(*extent, 0, 1), interpolation="nearest")
    likeliest = np.where(present, np.where(present[:, None], values, 0).argmax(axis=1), -1)
    starts = np.flatnonzero(np.diff(likeliest, prepend=-2))
    for begin, stop in zip(starts, [*starts[1:], _COLUMNS], strict=True):
        which = likeliest[begin]
        middle = (begin + stop) // 2
        name = shorten(classes[which])
        if which < 0 or stop - begin < _CHARACTER * len(name) or values[middle, which] * _ROWS < _LINE:
            continue
        x = extent[0] + (begin + stop) / 2 / _COLUMNS * (extent[1] - extent[0])
        y = upper[middle, which] - values[middle, which] / 2
        ink = "white" if luminance(to_rgb(colours(classes)[which])) < 0.5 else INK
        axes.text(x, y, name, ha="center", va="center", size=10, color=ink, parse_math=False)
