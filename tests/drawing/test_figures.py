import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from fer_lightning import emotions
from fer_lightning.drawing import faces as plots
from fer_lightning.drawing.curves import (
    confusion_matrix,
    history_curves,
    precision_recall_curves,
    reliability_diagram,
    robustness_curves,
)
from fer_lightning.drawing.style import INK, pixels, rgb_of, write_png
from fer_lightning.drawing.timeline import Band, timeline
from fer_lightning.emotions import EMOTIONS

HAPPY, SAD, SURPRISE = (EMOTIONS.index(name) for name in ("happy", "sad", "surprise"))


def colours(figure: Figure) -> dict[str, str]:
    """Return the colour of each text."""
    return {text.get_text(): text.get_color() for text in figure.axes[0].texts}


def sure(emotion: int, probability: float) -> list[float]:
    """Return seven probabilities with `probability` for `emotion` and the rest shared equally."""
    rest = (1 - probability) / 6
    return [probability if i == emotion else rest for i in range(7)]


@pytest.fixture
def grid() -> tuple[np.ndarray, Figure]:
    """Return two faces and their grid: one rightly predicted as happy, one wrongly as surprise."""
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48), dtype=np.uint8)
    probabilities = np.array([sure(HAPPY, 0.934), sure(SURPRISE, 0.6)])
    return images, plots.prediction_grid(images, np.array([HAPPY, SAD]), probabilities, "two faces", EMOTIONS)


def test_captions_show_right_and_wrong_by_colour_and_text(grid):
    texts = colours(grid[1])
    assert texts["happy 93%"] == plots.RIGHT
    assert texts["surprise 60%"] == plots.WRONG
    assert texts["true: sad"] == plots.WRONG
    assert "true: happy" not in texts
    assert "two faces" in texts


def test_marks_show_right_and_wrong_without_colour(grid):
    marks = [text.get_text() for text in grid[1].axes[0].texts if text.get_bbox_patch() is not None]
    assert marks == ["✓", "✗"]


@pytest.mark.parametrize(("face", "colour"), [(0, plots.RIGHT), (1, plots.WRONG)])
def test_faces_are_enlarged_pixel_by_pixel_within_a_frame(grid, face, colour):
    images, figure = grid
    picture = pixels(figure)
    top = plots._TITLE_HEIGHT + plots._NAME_HEIGHT + plots._FRAME
    left = plots._GAP + face * (48 * 3 + 2 * plots._FRAME + plots._GAP) + plots._FRAME
    seen = picture[top : top + 48 * 3, left : left + 48 * 3]
    expected = images[face].repeat(3, axis=0).repeat(3, axis=1)
    below_the_mark = slice(30, None)
    np.testing.assert_array_equal(seen[below_the_mark], expected[below_the_mark, :, None].repeat(3, axis=2))
    frame = picture[top + 70, left - plots._FRAME : left] / 255
    np.testing.assert_allclose(frame, np.tile(to_rgb(colour), (plots._FRAME, 1)), atol=1e-6)


def test_captions_do_not_overlap_the_next_column():
    images = np.zeros((7, 48, 48), np.uint8)
    probabilities = np.array([sure(SURPRISE, 1.0)] * 7)  # "surprise 100%" is the widest caption
    figure = plots.prediction_grid(images, np.full(7, SURPRISE), probabilities, "", EMOTIONS)
    pixels(figure)
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text() == "surprise 100%"]
    assert len(boxes) == 7
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert boxes[-1].x1 < figure.bbox.x1


@pytest.mark.parametrize("n", [0, 1, 7, 8])
def test_grid_of_any_number(n):
    figure = plots.prediction_grid(
        np.zeros((n, 48, 48), np.uint8), np.zeros(n, np.int64), np.full((n, 7), 1 / 7), "any", EMOTIONS
    )
    picture = pixels(figure)
    assert picture.dtype == np.uint8
    rows = max(1, -(-n // 7))
    assert picture.shape == (62 + rows * (48 * 3 + 10 + 54 + 14), 14 + 7 * (48 * 3 + 10 + 14), 3)


@pytest.fixture
def counts() -> np.ndarray:
    counts = np.zeros((7, 7), np.int64)
    counts[HAPPY, HAPPY], counts[HAPPY, SAD] = 3, 1
    counts[SAD, SAD] = 1234
    return counts


def test_confusion_cells_show_row_percentages_and_counts(counts):
    axes = confusion_matrix(counts, "Confusion on PrivateTest", EMOTIONS).axes[0]
    cells: dict[tuple[int, int], list[str]] = {}
    for text in axes.texts:
        cells.setdefault((round(text.get_position()[1]), round(text.get_position()[0])), []).append(text.get_text())
    assert cells[HAPPY, HAPPY] == ["75%", "3"]
    assert cells[HAPPY, SAD] == ["25%", "1"]
    assert cells[SAD, HAPPY] == ["0%", "0"]
    assert cells[SAD, SAD] == ["100%", "1,234"]
    assert cells[0, 0] == ["-", "0"]  # no angry face, so no percentage


def test_confusion_rows_are_true_and_columns_predicted(counts):
    axes = confusion_matrix(counts, "Confusion on PrivateTest", EMOTIONS).axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert axes.get_yticklabels()[HAPPY].get_text() == "happy\nn = 4"
    assert axes.get_xticklabels()[HAPPY].get_text() == "happy\n100%"  # precision
    assert axes.get_xticklabels()[SURPRISE].get_text() == "surprise\n-"
    np.testing.assert_allclose(axes.images[0].get_array()[HAPPY, [HAPPY, SAD]], [0.75, 0.25])


def test_confusion_heading_shows_n_and_accuracy(counts):
    figure = confusion_matrix(counts, "Confusion on PrivateTest", EMOTIONS)
    heading = [text.get_text() for text in figure.texts]
    assert heading[0] == "Confusion on PrivateTest"
    assert heading[1].startswith("accuracy 99.9%, n = 1,238;")
    empty = confusion_matrix(np.zeros((7, 7), np.int64), "empty", EMOTIONS)
    assert empty.texts[1].get_text().startswith("no faces;")


def test_confusion_text_is_light_on_dark_and_dark_on_light(counts):
    ink = colours(confusion_matrix(counts, "", EMOTIONS))
    assert ink["1,234"] == "white"  # 100%: the darkest blue
    assert ink["25%"] == INK


HISTORY = [
    {"epoch": 0, "train_loss": 1.7, "train_accuracy": 0.3, "val_loss": 1.6, "val_accuracy": 0.35},
    {"epoch": 1, "train_loss": 1.4, "train_accuracy": 0.5, "val_loss": 1.5, "val_accuracy": 0.45},
    {"epoch": 2, "train_loss": 1.1, "train_accuracy": 0.6, "val_loss": None, "val_accuracy": float("nan")},
]


def test_history_curves_name_the_split_and_its_best_epoch():
    figure = history_curves(HISTORY, "baseline", val_split="PublicTest")
    loss, accuracy = figure.axes
    assert loss.get_legend_handles_labels()[1] == ["train", "PublicTest"]
    assert accuracy.get_legend_handles_labels()[1] == ["train", "PublicTest: highest 45.0%, epoch 1"]
    lines = {line.get_label(): line for line in loss.lines}
    np.testing.assert_array_equal(lines["train"].get_xydata(), [[0, 1.7], [1, 1.4], [2, 1.1]])
    np.testing.assert_array_equal(lines["PublicTest"].get_xydata(), [[0, 1.6], [1, 1.5]])  # epoch 2 has no value


def test_references_are_dashed_in_the_colour_of_their_split():
    reference = [{"epoch": 0, "val_accuracy": 0.4}, {"epoch": 1, "val_accuracy": 0.5}]
    figure = history_curves(HISTORY, "baseline", {"original": reference}, "PublicTest")
    loss, accuracy = figure.axes
    assert all(line.get_linestyle() == "-" for line in loss.lines)  # the reference has no losses
    lines = {line.get_label(): line for line in accuracy.lines}
    dashed, val = lines["PublicTest, original"], lines["PublicTest: highest 45.0%, epoch 1"]
    assert dashed.get_linestyle() == "--"
    assert dashed.get_color() == val.get_color() != lines["train"].get_color()
    np.testing.assert_array_equal(dashed.get_xydata(), [[0, 0.4], [1, 0.5]])


def test_history_curves_without_epochs():
    assert pixels(history_curves([], "interrupted at once")).shape[2] == 3


def test_png_has_the_pixels_and_no_temporary_files_remain(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    path = tmp_path / "figures" / "x.png"
    write_png(picture, path)
    write_png(picture[::-1], path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), picture[::-1])
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]


def test_failed_write_keeps_the_old_png(tmp_path):
    path = tmp_path / "x.png"
    write_png(np.zeros((2, 2, 3), np.uint8), path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_png(np.zeros((2, 2, 3), np.complex64), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_drawing_never_imports_pyplot_or_lightning():
    code = """
import sys, numpy as np
from fer_lightning.drawing import faces as plots
from fer_lightning.drawing.curves import confusion_matrix, history_curves
from fer_lightning.drawing.style import pixels
pixels(plots.prediction_grid(np.zeros((1, 48, 48), np.uint8), np.zeros(1, int), np.full((1, 2), 1 / 2), "", "ab"))
pixels(confusion_matrix(np.eye(2, dtype=int), "", "ab"))
pixels(history_curves([], ""))
print([name for name in ("matplotlib.pyplot", "lightning", "torch") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_each_class_has_its_curve_in_front_and_a_dotted_baseline():
    curves = {
        "happy": (np.array([1, 0.5, 0]), np.array([0.6, 0.8, 1])),
        "sad": (np.array([1, 0]), np.array([0.3, 1])),
    }
    figure = precision_recall_curves(curves, {"happy": 0.75, "sad": 0.5}, {"happy": 0.6, "sad": 0.3})
    assert [axes.get_title() for axes in figure.axes] == ["happy: AP 0.75", "sad: AP 0.50"]
    *others, front, dotted = figure.axes[1].lines
    assert len(others) == 2
    np.testing.assert_array_equal(front.get_xydata(), [[1, 0.3], [0, 1]])
    assert (dotted.get_linestyle(), dotted.get_ydata()[0]) == (":", 0.3)


def test_reliability_diagram_skips_empty_bins():
    empty = {"from": 0, "to": 0.5, "n": 0, "confidence": None, "accuracy": None}
    full = {"from": 0.5, "to": 1.0, "n": 3, "confidence": 0.9, "accuracy": 0.6}
    figure = reliability_diagram({"before": {"ece": 0.3, "bins": [empty, full]}})
    upper, lower = figure.axes
    assert upper.get_title() == "before: ECE 30.0%"
    assert [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in upper.patches] == [(0.5, 0.5, 0.6)]
    assert [bar.get_height() for bar in lower.patches] == [1.0]
    np.testing.assert_array_equal(upper.lines[0].get_xydata(), [[0.9, 0.6]])


def test_robustness_curves_show_strengths_and_a_dashed_clean_accuracy():
    row = {"strengths": [80, 65, 58, 50, 40], "accuracy": [0.6, 0.5, 0.4, 0.3, 0.2]}
    figure = robustness_curves(dict.fromkeys(("JPEG", "a", "b", "c", "d"), row), 0.61)
    assert [axes.get_title() for axes in figure.axes] == ["JPEG", "a", "b", "c", "d"]
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["80", "65", "58", "50", "40"]
    clean, curve = axes.lines
    assert (clean.get_linestyle(), clean.get_ydata()[0]) == ("--", 0.61)
    np.testing.assert_array_equal(curve.get_ydata(), row["accuracy"])


def band(number, rows):
    """Return a band of a grey face; a row is None where the person is absent."""
    probabilities = [np.full(7, np.nan) if row is None else row for row in rows]
    return Band(number, np.full((96, 96, 3), 90, np.uint8), np.array(probabilities))


def shares(axes, column):
    """Return how much of a column of a band each emotion takes, or None where it is empty."""
    picture = axes.images[0].get_array()
    rows = picture[:, int(column * picture.shape[1])]
    taken = [(rows == rgb_of(colour)).all(axis=1).mean() for colour in emotions.colours(EMOTIONS)]
    return taken if sum(taken) else None


def test_a_timeline_divides_each_band_by_the_probabilities():
    first = [sure(HAPPY, 0.7)] * 3 + [None] * 2 + [sure(SAD, 0.7)] * 5
    second = [None] * 9 + [sure(SURPRISE, 1.0)]
    figure = timeline(np.arange(10) / 2, [band(1, first), band(12, second)], "a$1_$2.mp4", EMOTIONS, left_out=1234)
    upper, lower = (axes for axes in figure.axes if axes.get_xlim() == (0, 5))
    for column, expected in ((0.01, first[0]), (0.29, first[0]), (0.31, None), (0.49, None), (0.51, first[-1])):
        assert shares(upper, column) == (expected and pytest.approx(expected, abs=1 / 76))
    assert shares(lower, 0.89) is None
    assert shares(lower, 0.999) == pytest.approx(second[-1])
    assert [text.get_text() for text in upper.texts] == ["happy", "sad"]
    assert upper.texts[0].get_position() == (pytest.approx(0.75), pytest.approx(0.05 * HAPPY + 0.35))
    texts = [text.get_text() for text in figure.texts]
    assert {"1", "12", "a$1_$2.mp4", "height: probability; 1,234 more ids, seen in fewer frames"} <= set(texts)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(EMOTIONS)
    assert pixels(figure).shape[1] == 1200


def test_frames_in_the_same_column_of_a_timeline_are_averaged():
    rows = [sure(HAPPY, 1.0), sure(SAD, 1.0)] * 5000
    axes, _ = timeline(np.arange(10_000) / 30, [band(1, rows)], "clip.mp4", EMOTIONS).axes
    half = [0.5 * (index in (HAPPY, SAD)) for index in range(7)]
    assert shares(axes, 0.5) == pytest.approx(half, abs=0.1)


def test_a_timeline_of_one_frame_or_without_a_face():
    axes, _ = timeline(np.zeros(1), [band(1, [sure(HAPPY, 1.0)])], "clip.mp4", EMOTIONS).axes
    assert shares(axes, 0.5)[HAPPY] == 1
    (axes,) = timeline(np.zeros(1), [], "clip.mp4", EMOTIONS).axes
    assert [text.get_text() for text in axes.texts] == ["no face"]
