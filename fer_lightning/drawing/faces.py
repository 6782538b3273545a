"""Figures of faces: grids of predictions, heat maps and explanations.

Built from plain arrays, independent of Lightning and TensorBoard. pyplot is not imported, because it keeps every
figure alive.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from fer_lightning.drawing.style import DPI, INK, TRAIN_COLOUR, VAL_COLOUR, add_title, points, rgb_of, shorten

# Okabe and Ito's bluish green and vermillion, darkened until text has a contrast of 5:1 on white.
RIGHT = "#007A5A"
WRONG = "#C23B00"
MARKS = {True: "✓", False: "✗"}  # so that colour is never the only cue
# The layout is in pixels, so that each pixel of a face becomes exactly _ZOOM x _ZOOM pixels.
_ZOOM = 3
_COLUMNS = 7  # about this many
_FRAME = 5
_GAP = 14
_TITLE_HEIGHT = 62
_NAME_HEIGHT = 54  # two lines above a face
# The largest size that fits "surprise 100%", because TensorBoard shrinks the image; smaller for longer names.
_NAME_PX = 19
_NAME_CHARACTERS = len("surprise")


def prediction_grid(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer[Any]],
    probabilities: npt.NDArray[np.floating[Any]],
    title: str,
    classes: Sequence[str],
) -> Figure:
    """Draw faces with their predictions, and with their labels where these differ.

    The frame, caption and mark of each face show whether the prediction is right. The faces are in the given
    order; if they cycle through all classes, each column has one class.

    Args:
        images: uint8 (N, 48, 48), or (N, 48, 48, 3) in colour.
        labels: integer (N,).
        probabilities: float (N, C).
        title: title of the figure.
        classes: names of the C classes.
    """
    n, height, width = images.shape[:3]
    names = list(map(shorten, classes))
    columns = len(classes) * max(1, round(_COLUMNS / len(classes))) if len(classes) <= 10 else _COLUMNS
    tile = (height * _ZOOM + 2 * _FRAME, width * _ZOOM + 2 * _FRAME)
    pitch = (tile[0] + _NAME_HEIGHT + _GAP, tile[1] + _GAP)
    rows = max(1, -(-n // columns))
    page = np.full((_TITLE_HEIGHT + rows * pitch[0], _GAP + columns * pitch[1], 3), 255, np.uint8)

    figure = Figure(figsize=(page.shape[1] / DPI, page.shape[0] / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    name_px = _NAME_PX * (_NAME_CHARACTERS + 5) / (max(_NAME_CHARACTERS, *map(len, names)) + 5)
    caption: dict[str, Any] = {"va": "bottom", "size": points(name_px), "parse_math": False}
    predicted = probabilities.argmax(axis=1) if n else np.zeros(0, np.int64)
    for i in range(n):
        top = _TITLE_HEIGHT + (i // columns) * pitch[0] + _NAME_HEIGHT
        left = _GAP + (i % columns) * pitch[1]
        right = bool(predicted[i] == labels[i])
        colour = RIGHT if right else WRONG
        page[top : top + tile[0], left : left + tile[1]] = rgb_of(colour)
        face = images[i].repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)  # nearest neighbour, without smoothing
        rgb = face if face.ndim == 3 else face[..., None]
        page[top + _FRAME : top + tile[0] - _FRAME, left + _FRAME : left + tile[1] - _FRAME] = rgb

        name = f"{names[predicted[i]]} {probabilities[i, predicted[i]]:.0%}"
        if not right:
            axes.text(left, top - 27, name, weight="bold", color=colour, **caption)
            name = f"true: {names[labels[i]]}"
        axes.text(left, top - 3, name, weight="bold" if right else "normal", color=colour, **caption)
        axes.text(
            left + tile[1] - 15,
            top + 15,
            MARKS[right],
            color="white",
            ha="center",
            va="center",
            size=points(20),
            bbox={"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none"},
        )
    axes.imshow(page, interpolation="none", extent=(0, page.shape[1], page.shape[0], 0), aspect="auto")
    axes.text(_GAP, _TITLE_HEIGHT / 2, title, va="center", color=INK, weight="bold", size=points(24))
    return figure


def face_table(images: npt.NDArray[np.uint8], rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    """Draw a table of faces.

    Args:
        images: uint8 (R, C, H, W).
        rows: names of the R rows.
        columns: names of the C columns.
        title: title of the figure.
    """
    height, width = images.shape[2:]
    zoom = max(1, round(48 * _ZOOM / height))
    pitch, margin = (height * zoom + _GAP, width * zoom + _GAP), 110
    shape = (_TITLE_HEIGHT + _NAME_HEIGHT // 2 + len(rows) * pitch[0], max(margin + len(columns) * pitch[1], 800))
    page = np.full(shape, 255, np.uint8)
    figure = Figure(figsize=(page.shape[1] / DPI, page.shape[0] / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    text: dict[str, Any] = {"size": points(_NAME_PX), "color": INK, "parse_math": False}
    first = shape[0] - len(rows) * pitch[0]
    for row, name in enumerate(rows):
        top = first + row * pitch[0]
        axes.text(_GAP, top + pitch[0] / 2 - _GAP / 2, name, va="center", **text)
        for column in range(len(columns)):
            left = margin + column * pitch[1]
            face = images[row, column].repeat(zoom, axis=0).repeat(zoom, axis=1)
            page[top : top + face.shape[0], left : left + face.shape[1]] = face
    for column, name in enumerate(columns):
        axes.text(margin + column * pitch[1], first - 5, shorten(name), va="bottom", **text)
    axes.imshow(page, cmap="gray", vmin=0, vmax=255, interpolation="none", extent=(0, shape[1], shape[0], 0))
    axes.text(_GAP, _TITLE_HEIGHT / 2, title, va="center", color=INK, weight="bold", size=points(24))
    return figure


def heat_overlay(face: npt.NDArray[np.uint8], heat: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Overlay a grey face with a heat map; the face is unchanged where the heat is 0.

    Args:
        face: uint8 (H, W).
        heat: float (h, w) in [0, 1], resized to the face.

    Returns:
        uint8 (H, W, 3).
    """
    share = _enlarged(heat, face.shape)[..., None]
    # Skip the black and white ends of the colour map.
    colour = 255 * colormaps["inferno"](0.25 + 0.65 * share[..., 0])[..., :3]
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
    classes: Sequence[str],
) -> Figure:
    """Draw a face, the heat map of `emotion` over it, and the probabilities as bars.

    The contour in the middle panel is at half of the map's maximum.

    Args:
        face: uint8 (H, W), grey.
        heat: float (h, w) in [0, 1].
        probabilities: float (C,).
        emotion: index of the explained class.
        title: title of the figure.
        classes: names of the C classes.
    """
    figure = Figure(figsize=(13.2, 5), dpi=DPI, layout="constrained")
    input_axes, heat_axes, bars = figure.subplots(1, 3)
    interpolation = "nearest" if max(face.shape) < 200 else "antialiased"
    input_axes.imshow(face, cmap="gray", vmin=0, vmax=255, interpolation=interpolation)
    input_axes.set_title("face", size=13, color=INK)
    heat_axes.imshow(heat_overlay(face, heat), interpolation=interpolation)
    if heat.any():
        for colour, width in (("black", 4), ("white", 2)):  # visible on light and dark skin
            heat_axes.contour(_enlarged(heat, face.shape), levels=[0.5], colors=colour, linewidths=width)
    heat_axes.set_title(
        f"evidence for {shorten(classes[emotion])}", size=13, color=INK, weight="bold", parse_math=False
    )
    for axes in (input_axes, heat_axes):
        axes.axis("off")
    rows = range(len(classes))
    bars.barh(rows, probabilities, color=[VAL_COLOUR if i == emotion else TRAIN_COLOUR for i in rows])
    bars.set_yticks(rows, list(map(shorten, classes)), parse_math=False)
    for i, probability in enumerate(probabilities):
        weight = "bold" if i == emotion else "normal"
        bars.text(probability + 0.02, i, f"{probability:.0%}", va="center", size=12, color=INK, weight=weight)
    bars.set_xlim(0, 1.15)
    bars.invert_yaxis()
    bars.set_xticks([])
    bars.tick_params(length=0, labelsize=13)
    bars.spines[:].set_visible(False)
    bars.set_title("probabilities", size=13, color=INK)
    add_title(figure, title)
    return figure
