"""Shared style of the figures: colours, sizes and axes, and the export to pixels and files.

pyplot is not imported, because it keeps every figure alive.
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
from matplotlib.text import Text
from PIL import Image

from fer_lightning.files import write_atomically

TRAIN_COLOUR, VAL_COLOUR = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermillion
INK, FAINT = "#222222", "#6B6B6B"
DPI = 100


def add_title(figure: Figure, title: str) -> Text:
    """Add a title verbatim: it may hold a file name with dollar signs or with bytes that are not UTF-8."""
    text = title.encode(errors="backslashreplace").decode()
    return figure.suptitle(text, size=15, weight="bold", color=INK, x=0.01, ha="left", parse_math=False)


def shorten(name: str) -> str:
    """Return the name of a class, cut to the room that figures have for it: 12 characters."""
    return name if len(name) <= 12 else f"{name[:11]}…"


def series_of(
    rows: Sequence[Mapping[str, Any]], key: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the epochs and values of `key`, both float64 (E,), of the rows where it is finite."""
    finite = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None and np.isfinite(row[key])]
    pairs = np.array(finite, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def make_panels(n: int) -> tuple[Figure, list[Axes]]:
    """Create n small panels, four per row, with a shared y axis."""
    rows = -(-n // 4)
    figure = Figure(figsize=(11.2, 2.9 * rows + 0.3), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, 4, sharey=True, squeeze=False).ravel()
    for axes in grid[n:]:
        axes.remove()
    for axes in grid[:n]:
        style_axes(axes)
    return figure, list(grid[:n])


def label_axes(figure: Figure, x: str, y: str) -> None:
    """Label the x and y axes of all panels together."""
    figure.supxlabel(x, size=13, color=INK)
    figure.supylabel(y, size=13, color=INK)


def style_axes(axes: Axes) -> None:
    """Add a light grid and remove the top and right spines."""
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11)


def pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """Render a figure to uint8 (H, W, 3), the format of TensorBoard's add_image with dataformats="HWC"."""
    # Whole pixels: before 3.11, Matplotlib rounds 8.2 inches at 100 dpi down to 819.
    width, height = (np.round(figure.get_size_inches() * figure.dpi) + 1e-6) / figure.dpi
    figure.set_size_inches(width, height)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return rgba[..., :3].copy()


def write_png(picture: npt.NDArray[np.uint8], path: str | Path) -> None:
    """Write uint8 (H, W, 3) as a PNG atomically: readers see the old file or the new one, never a partial one."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    write_atomically(Path(path), file.getvalue())


def points(px: float) -> float:
    """Convert pixels to points, the unit of Matplotlib's font sizes."""
    return px * 72 / DPI


def rgb_of(colour: str) -> tuple[int, int, int]:
    """Convert a hex colour such as "#0072B2" to red, green and blue, 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def luminance(rgba: Sequence[float]) -> float:
    """Return the luminance of a colour, 0 to 1 (weights of Rec. 709)."""
    return 0.2126 * rgba[0] + 0.7152 * rgba[1] + 0.0722 * rgba[2]
