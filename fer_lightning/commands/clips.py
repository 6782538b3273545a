"""The half of ``fer-lightning predict`` that is for clips: videos, animations, cameras and streams."""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
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
    from fer_lightning.inference.faces import DetectedFace
    from fer_lightning.inference.results import Frames, Result
    from fer_lightning.inference.video import Video, VideoWriter

# The ends of the names of the files that --save writes, which are not read as input: photos, videos and timelines.
WRITTEN = PHOTO, VIDEO, TIMELINE = ".emotions.jpg", ".emotions.webm", ".timeline.png"

_THUMBNAIL_SIDE = 96  # px
_MOST_BANDS = 12  # of a timeline: a figure of more no longer fits a screen
_MOST_THUMBNAILS = 200  # of 27 KB each


class Names:
    """Names of the files that --save writes: unique, and never the name of an input.

    Args:
        folder: where --save writes, if anywhere.
        sources: the inputs.
    """

    def __init__(self, folder: Path | None, sources: Iterable[str | int]) -> None:
        self.folder = folder
        self.replaced = 0  # number of files from an earlier run that are overwritten
        self._inputs = {os.path.realpath(source) for source in sources if isinstance(source, str)}
        self._taken: set[str] = set()

    def stem(self, path: str) -> str:
        """Return the name, without its suffix, for what is drawn from an input."""
        name = "stdin" if path == "-" else Path(path).stem
        if "://" in path:
            name = re.sub(r"\W+", "_", path.partition("://")[2]).strip("_")[:100]
        stem = unique_name(name, self._taken)
        while self.folder and any(
            os.path.realpath(self.folder / f"{stem}{end}") in self._inputs for end in WRITTEN
        ):
            stem = unique_name(name, self._taken)
        return stem

    def saved_path(self, folder: Path, stem: str, end: str) -> Path:
        """Return the path of a file to write, whose name ends in one of WRITTEN; count it if it replaces a file."""
        path = folder / f"{stem}{end}"
        self.replaced += path.is_file()
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
    args: argparse.Namespace, clf: "Classifier", source: str | int, names: Names, results: "list[Result | Frames]"
) -> None:
    """Predict the frames of a clip and append their results, and one for each thing that went wrong."""
    from fer_lightning.inference.results import Frames, Result
    from fer_lightning.inference.video import VideoWriter, without_secrets

    path = f"camera {source}" if isinstance(source, int) else without_secrets(source)
    stem = names.stem(path)
    try:
        clip = _open(source, args.fps)
        writer = VideoWriter(names.saved_path(names.folder, stem, VIDEO), clip.fps) if names.folder else None
    except UserError as error:
        results.append(Result(path, error=str(error)))
        return
    frames = Frames(path, clf.classes, args.min_confidence)
    results.append(frames)
    thumbnails = _Thumbnails()
    failures: list[str] = []
    try:
        with writer or nullcontext():
            _predict_frames(args, clf, clip, frames, writer, thumbnails)
    except UserError as error:
        failures.append(str(error))
    finally:
        for note in filter(None, (clip.note, writer and writer.note)):
            print(f"note: {printable(path)}: {note}", file=sys.stderr)
        if writer and writer.failure:
            failures.append(writer.failure)
        if names.folder and len(frames):
            timeline = names.saved_path(names.folder, stem, TIMELINE)
            failures += _save_timeline(timeline, frames, clf.classes, thumbnails)
        results.extend(Result(path, error=failure) for failure in failures)


def _predict_frames(
    args: argparse.Namespace,
    clf: "Classifier",
    clip: "Video | Animation",
    frames: "Frames",
    writer: "VideoWriter | None",
    thumbnails: "_Thumbnails",
) -> None:
    """Predict the frames of a clip, append their results to `frames`, and write those that are to be saved."""
    from fer_lightning.drawing.boxes import annotate
    from fer_lightning.inference.tracking import Follower

    follower = Follower(args.smooth)
    read = progress(clip, clip.frames, "frame", printable(frames.path))
    batch_size = 1 if clip.is_live else 64
    for seconds, frame, detected in clf.predict_stream(
        read, not args.no_detect, args.tta, batch_size, try_turns=False, min_confidence=args.min_confidence
    ):
        faces = follower.update(seconds, detected)
        frames.append(seconds, faces)
        if writer:
            writer.write(seconds, annotate(frame, [face.steady for face in faces]))
            thumbnails.update(frame, faces)


class _Thumbnails:
    """A picture of the largest face of each id so far; of a crowd, only of the ids seen in most frames.

    Small pictures, because frames would fill the memory.
    """

    def __init__(self) -> None:
        self.pictures: dict[int, Image.Image] = {}
        self.n_frames: Counter[int] = Counter()  # in which each id was seen
        self._areas: dict[int, int] = {}

    def update(self, frame: "Image.Image", faces: "Iterable[DetectedFace]") -> None:
        """Add the faces of a frame."""
        for face in faces:
            if face.id is None:
                continue
            x, y, width, height = face.box
            self.n_frames[face.id] += 1
            if width * height > self._areas.get(face.id, 0):
                self._areas[face.id] = width * height
                crop = frame.crop((x, y, x + width, y + height))
                self.pictures[face.id] = crop.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        if len(self.pictures) > _MOST_THUMBNAILS:  # an id that is seen again gets a new one
            kept = {number for number, _ in self.n_frames.most_common(_MOST_THUMBNAILS // 2)}
            for number in self.pictures.keys() - kept:
                del self.pictures[number], self._areas[number]


def _open(source: str | int, fps: float | None) -> "Video | Animation":
    from fer_lightning.inference.animations import Animation, is_animation
    from fer_lightning.inference.video import Video, is_stream

    if isinstance(source, str) and not is_stream(source) and is_animation(source):
        return Animation(source, fps)
    return Video(source, fps)


def _save_timeline(path: Path, frames: "Frames", classes: Sequence[str], thumbnails: _Thumbnails) -> list[str]:
    """Draw the ids that are seen in most frames; return why the figure cannot be written, if so."""
    import numpy as np

    from fer_lightning.drawing.style import pixels, write_png
    from fer_lightning.drawing.timeline import Band, timeline

    shown = sorted(number for number, _ in thumbnails.n_frames.most_common(_MOST_BANDS))
    values = np.full((len(shown), len(frames), len(classes)), np.nan, np.float32)
    for at, frame in enumerate(frames):
        for face in frame.faces or ():
            if face.id in shown:
                values[shown.index(face.id), at] = list(face.steady.probabilities.values())
    bands = [Band(number, np.asarray(thumbnails.pictures[number]), values[n]) for n, number in enumerate(shown)]
    seconds = np.array([frame.seconds for frame in frames], dtype=np.float64)
    try:
        left_out = len(thumbnails.n_frames) - len(shown)
        write_png(pixels(timeline(seconds, bands, frames.path, classes, left_out)), path)
    except OSError as error:
        return [f"{path} cannot be written: {error.strerror}"]
    return []


def summarise(frames: "Frames") -> str:
    """Return a clip's length and a table with a row for each id, by its smoothed predictions."""
    seen: dict[int, list[float]] = {}  # first and last time
    emotions: dict[int, Counter[str]] = {}
    n_with_faces, end = 0, 0.0
    for frame in frames:
        end = frame.seconds or 0.0
        n_with_faces += bool(frame.faces)
        for face in frame.faces or ():
            if face.id is not None:
                seen.setdefault(face.id, [end, end])[1] = end
                emotions.setdefault(face.id, Counter())[face.steady.doubt or face.steady.emotion] += 1
    n = f"{len(frames):,} {'frame' if len(frames) == 1 else 'frames'}"
    title = f"{printable(frames.path)}: {n} in {end:.1f} s, faces in {n_with_faces:,}"
    if not seen:
        return title
    rows = []
    for number, (first_seen, last_seen) in sorted(seen.items()):
        n_frames = emotions[number].total()
        top = [(name, f"{count / n_frames:.0%}") for name, count in emotions[number].most_common(2)]
        (emotion, share), (other, rest) = (*top, ("", ""))[:2]
        rows.append(
            (str(number), f"{first_seen:.1f} - {last_seen:.1f}", f"{n_frames:,}", emotion, share, other, rest)
        )
    return f"{title}\n" + format_table(("id", "seconds", "frames", "emotion", "", "next", ""), rows)
