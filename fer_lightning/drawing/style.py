"""What all figures share: colours, sizes, axes, and how a figure becomes pixels and a file.

Nothing here imports pyplot, which keeps every figure alive.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fer_lightning.files import write_atomically

TRAIN_COLOUR, VAL_COLOUR = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermillion
INK, FAINT = "#222222", "#6B6B6B"
DPI = 100


def add_title(figure: Figure, title: str) -> None:
    """As it is: it may hold a file's name, with dollar signs that are no formula or bytes that are no text."""
    text = title.encode(errors="backslashreplace").decode()
    figure.suptitle(text, size=15, weight="bold", color=INK, x=0.01, ha="left", parse_math=False)


def series_of(
    rows: Sequence[Mapping[str, Any]], key: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Epochs and values of `key`, both float64 (E,), from the rows that have it as a finite number."""
    found = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None and np.isfinite(row[key])]
    pairs = np.array(found, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def make_panels(n: int) -> tuple[Figure, list[Axes]]:
    """n small panels, four to a row, with one scale."""
    rows = -(-n // 4)
    figure = Figure(figsize=(11.2, 2.9 * rows + 0.3), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, 4, sharey=True, squeeze=False).ravel()
    for axes in grid[n:]:
        axes.remove()
    for axes in grid[:n]:
        plain_axes(axes)
    return figure, list(grid[:n])


def label_axes(figure: Figure, x: str, y: str) -> None:
    figure.supxlabel(x, size=13, color=INK)
    figure.supylabel(y, size=13, color=INK)


def plain_axes(axes: Axes) -> None:
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
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    write_atomically(Path(path), file.getvalue())


def points(px: float) -> float:
    """Return pixels as the points that Matplotlib takes sizes in."""
    return px * 72 / DPI


def rgb_of(colour: str) -> tuple[int, int, int]:
    """Return a colour such as "#0072B2" as red, green and blue from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def luminance(rgba: Sequence[float]) -> float:
    """How bright a colour looks, 0 to 1 (Rec. 709's weights)."""
    return 0.2126 * rgba[0] + 0.7152 * rgba[1] + 0.0722 * rgba[2]
