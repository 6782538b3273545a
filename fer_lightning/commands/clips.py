"""The half of ``fer-lightning predict`` that is for clips: videos, animations, cameras and streams."""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lightning.commands import unique_name
from fer_lightning.errors import UserError
from fer_lightning.text import format_table, printable

if TYPE_CHECKING:
    from PIL import Image

    from fer_lightning.inference.animations import Animation
    from fer_lightning.inference.classifier import Classifier
    from fer_lightning.inference.results import Result
    from fer_lightning.inference.video import Video, VideoWriter

SAVED = ".emotions"  # between the name and the suffix of the files that --save writes
TIMELINE = ".timeline.png"  # after the name of a clip, the figure that --save writes

# Default of --smooth: an expression lasts half a second at least (Yan et al. 2013, "How Fast are the Leaked Facial
# Expressions"), while the prediction for a face that keeps still flickers from frame to frame.
SMOOTH_SECONDS = 0.5

_THUMBNAIL_SIDE = 96  # px
_MOST_BANDS = 12  # of a timeline: a figure of more no longer fits a screen


class Names:
    """Names of the files that --save writes: unique, and never the name of an input."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.replaced = 0  # number of files from an earlier run that are overwritten
        self._taken: set[str] = set()

    def stem(self, path: str) -> str:
        """Return the name, without its suffix, for what is drawn from an input."""
        if "://" in path:
            return unique_name(re.sub(r"\W+", "_", path.partition("://")[2]).strip("_")[:100], self._taken)
        return unique_name("stdin" if path == "-" else Path(path).stem, self._taken)

    def saved_path(self, folder: Path, stem: str, suffix: str) -> Path:
        """Return the path of the image or video to write, and count it if it replaces a file."""
        path = folder / f"{stem}{SAVED}{suffix}"
        self.replaced += path.exists()
        return path


def progress(items: Any, total: int | None, unit: str, name: str) -> Any:
    """Show a progress bar on stderr if it is a terminal and the work takes more than a second."""
    from tqdm import tqdm

    return tqdm(items, name, total, unit=unit, delay=1, leave=False, disable=None, dynamic_ncols=True)


def is_clip(source: str | int) -> bool:
    """Return whether a source is a camera, a stream, a video or an animation, rather than a photo."""
    from fer_lightning.inference.animations import is_animation
    from fer_lightning.inference.video import AMBIGUOUS_SUFFIXES, SUFFIXES, is_stream

    if isinstance(source, int) or is_stream(source):
        return True
    return Path(source).suffix.lower() in SUFFIXES | AMBIGUOUS_SUFFIXES or is_animation(source)


def predict_clip(
    args: argparse.Namespace, clf: "Classifier", source: str | int, names: Names, results: "list[Result]"
) -> None:
    """Predict the frames of a clip and append a result for each, and one for each thing that went wrong."""
    from fer_lightning.inference.results import Result
    from fer_lightning.inference.video import VideoWriter, without_secrets

    path = f"camera {source}" if isinstance(source, int) else without_secrets(source)
    stem = names.stem(path)
    try:
        clip = _open(source, args.fps)
        writer = VideoWriter(names.saved_path(names.folder, stem, ".webm"), clip.fps) if names.folder else None
    except UserError as error:
        results.append(Result(path, error=str(error)))
        return
    thumbnails: dict[int, Image.Image] = {}
    frames: list[Result] = []
    failures: list[str] = []
    try:
        with writer or nullcontext():
            _predict_frames(args, clf, (path, clip), frames, writer, thumbnails)
    except UserError as error:
        failures.append(str(error))
    finally:
        if writer and writer.failure:
            failures.append(writer.failure)
        if frames:
            frames[-1].note = clip.note
            if names.folder:
                timeline = names.folder / f"{stem}{TIMELINE}"
                failures += _save_timeline(timeline, path, clf.classes, frames, thumbnails)
        results.extend(frames)
        results.extend(Result(path, error=failure) for failure in failures)


def _predict_frames(
    args: argparse.Namespace,
    clf: "Classifier",
    named: "tuple[str, Video | Animation]",
    results: "list[Result]",
    writer: "VideoWriter | None",
    thumbnails: "dict[int, Image.Image]",
) -> None:
    """Predict the frames of a clip, append their results, and write those that are to be saved.

    Args:
        args: arguments of the command.
        clf: the network that predicts.
        named: name of the clip, and its frames.
        results: list to append to.
        writer: writer of the annotated video, if any.
        thumbnails: the largest face of each id so far, updated if there is a writer. Small pictures, because frames
            would fill the memory.
    """
    from fer_lightning.drawing.boxes import annotate
    from fer_lightning.inference.results import Result
    from fer_lightning.inference.tracking import Follower

    path, clip = named
    follower = Follower(args.smooth)
    areas: dict[int, int] = {}
    photos = progress(clip, clip.frames, "frame", printable(path))
    batch_size = 1 if clip.is_live else 64
    for seconds, frame, detected in clf.predict_stream(photos, not args.no_detect, args.tta, batch_size, False):
        faces = follower.update(seconds, detected)
        results.append(Result(path, faces, seconds=round(seconds, 3)))
        if not writer:
            continue
        writer.write(seconds, annotate(frame, [face.steady for face in faces]))
        for face in faces:
            x, y, width, height = face.box
            if face.id is not None and width * height > areas.get(face.id, 0):
                areas[face.id] = width * height
                crop = frame.crop((x, y, x + width, y + height))
                thumbnails[face.id] = crop.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))


def _open(source: str | int, fps: float | None) -> "Video | Animation":
    from fer_lightning.inference.animations import Animation, is_animation
    from fer_lightning.inference.video import Video, is_stream

    if isinstance(source, str) and not is_stream(source) and is_animation(source):
        return Animation(source, fps)
    return Video(source, fps)


def _save_timeline(
    path: Path, title: str, classes: Sequence[str], frames: "list[Result]", thumbnails: "dict[int, Image.Image]"
) -> list[str]:
    """Draw the ids that are seen in most frames; return why the figure cannot be written, if so."""
    import numpy as np

    from fer_lightning.drawing.style import pixels, write_png
    from fer_lightning.drawing.timeline import Band, timeline

    n_frames = Counter(face.id for frame in frames for face in frame.faces or () if face.id is not None)
    shown = sorted(number for number, _ in n_frames.most_common(_MOST_BANDS))
    values = np.full((len(shown), len(frames), len(classes)), np.nan, np.float32)
    for at, frame in enumerate(frames):
        for face in frame.faces or ():
            if face.id in shown:
                values[shown.index(face.id), at] = list(face.steady.probabilities.values())
    bands = [Band(number, np.asarray(thumbnails[number]), values[n]) for n, number in enumerate(shown)]
    seconds = np.array([frame.seconds for frame in frames], dtype=np.float64)
    try:
        write_png(pixels(timeline(seconds, bands, title, classes, len(n_frames) - len(shown))), path)
    except OSError as error:
        return [f"{path} cannot be written: {error.strerror}"]
    return []


def summarise(path: str, frames: "list[Result]") -> str:
    """Return a clip's length and a table with a row for each id, by its smoothed predictions."""
    seen: dict[int, list[float]] = {}
    emotions: dict[int, Counter[str]] = {}
    for frame in frames:
        for face in frame.faces or ():
            if face.id is not None and frame.seconds is not None:
                seen.setdefault(face.id, []).append(frame.seconds)
                emotions.setdefault(face.id, Counter())[face.steady.emotion] += 1
    seconds = frames[-1].seconds or 0.0
    n = f"{len(frames):,} {'frame' if len(frames) == 1 else 'frames'}"
    title = f"{printable(path)}: {n} in {seconds:.1f} s, faces in {sum(bool(frame.faces) for frame in frames):,}"
    if not seen:
        return title
    rows = []
    for number, times in sorted(seen.items()):
        shares = [(name, f"{count / len(times):.0%}") for name, count in emotions[number].most_common(2)]
        (first, most), (second, less) = (*shares, ("", ""))[:2]
        rows.append(
            (str(number), f"{times[0]:.1f} - {times[-1]:.1f}", f"{len(times):,}", first, most, second, less)
        )
    return f"{title}\n" + format_table(("id", "seconds", "frames", "emotion", "", "next", ""), rows)
