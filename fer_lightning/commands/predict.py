"""Predict the emotions of faces in photos, videos or a camera stream.

Each PATH is a photo, a folder of photos, a glob pattern such as 'photos/*.jpg', a video, the index of a camera (0
is the first one), or - to read a photo from stdin. Images of up to 96 pixels are treated as one cropped face; in
larger ones, faces are detected first, which needs pip install -e ".[photo]". A camera runs until Ctrl-C.
"""

import argparse
import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lightning.commands import add_network_arguments, add_tta_argument, load_network, unique_name
from fer_lightning.errors import UserError
from fer_lightning.files import write_atomically
from fer_lightning.text import format_table, printable

if TYPE_CHECKING:
    from PIL import Image

    from fer_lightning.inference.classifier import Classifier
    from fer_lightning.inference.faces import DetectedFace

_SAVED = ".emotions"  # between the name and the suffix of the files that --save writes

_PATH_WIDTH = 30  # width of the first column, so that the table fits 80 columns


@dataclass
class Result:
    """The result for a photo or for one frame of a video.

    Attributes:
        path: the photo or video as named by the user, or "camera INDEX".
        faces: the detected faces; None until the photo or frame has been processed.
        error: why it could not be processed, if so.
        note: what the user should know about how it was read, if anything.
        seconds: time of a frame since the first one; None for a photo.
    """

    path: str
    faces: "list[DetectedFace] | None" = None
    error: str | None = None
    note: str | None = None
    seconds: float | None = None


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fer-lightning predict``."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="photo, folder, pattern, video, camera index or -")
    add_network_arguments(parser)
    parser.add_argument("--no-detect", action="store_true", help="treat each image as one cropped face")
    add_tta_argument(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument("--csv", action="store_true", help="print CSV, one row per face, instead of a table")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="write the images with boxes and emotions to DIR; for a video, also a timeline of the probabilities",
    )


def run(args: argparse.Namespace) -> int:
    """Predict and print the results, or those so far after Ctrl-C; return 1 if any photo or video failed."""
    from fer_lightning.models.tta import check_tta

    check_tta(args.tta)
    clf = load_network(args)
    results: list[Result] = []
    names = _Names(args.save)
    sources = list(_find_sources(args.paths, results))
    if args.save:
        try:
            args.save.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{args.save} cannot be written: {error.strerror}.") from error
    try:
        if sources:
            _predict(args, clf, sources, names, results)
    except OSError as error:  # from writing only: reading errors are part of the results
        raise UserError(f"{error.filename or args.save} cannot be written: {error.strerror}.") from error
    finally:
        _print(args, clf.classes, names, results)
    return 1 if any(result.error for result in results) else 0


def _find_sources(paths: Iterable[str], results: list[Result]) -> Iterator[str | int]:
    """Yield photos, videos, "-" and camera indices; append an error to `results` for paths that do not exist."""
    for path in paths:
        if path == "-" or (os.path.exists(path) and not os.path.isdir(path)):
            yield path
        elif os.path.isdir(path):
            yield from _photos_in(Path(path), results)
        elif path.isdecimal():
            yield int(path)
        elif matches := [file for file in sorted(glob.glob(path, recursive=True)) if os.path.isfile(file)]:
            yield from matches
        else:
            results.append(Result(path, error="no such file or folder, and no file matches it as a pattern"))


def _photos_in(folder: Path, results: list[Result]) -> Iterator[str]:
    from fer_lightning.data.images import FORMAT_NAMES, IMAGE_SUFFIXES

    def report_error(error: OSError) -> None:
        results.append(Result(str(error.filename), error=error.strerror))

    entries = (Path(place, name) for place, _, names in os.walk(folder, onerror=report_error) for name in names)
    # Keep broken links, so that reading them reports the error.
    files = sorted(entry for entry in entries if entry.is_file() or entry.is_symlink())
    photos = [
        str(file)
        for file in files
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.endswith(f"{_SAVED}.jpg")
    ]
    if not photos:
        results.append(Result(str(folder), error=f"no photos in this folder ({FORMAT_NAMES})"))
    elif skipped := len(files) - len(photos):
        note = f"skipped files that are not photos or were written by --save ({skipped:,})"
        print(f"note: {printable(str(folder))}: {note}", file=sys.stderr)
    yield from photos


def _predict(
    args: argparse.Namespace, clf: "Classifier", sources: list[str | int], names: "_Names", results: list[Result]
) -> None:
    from fer_lightning.inference.video import SUFFIXES

    def is_video(source: str | int) -> bool:
        return isinstance(source, int) or Path(source).suffix.lower() in SUFFIXES

    for videos, group in groupby(sources, is_video):
        if videos:
            for source in group:
                _predict_video(args, clf, source, names, results)
        else:
            _predict_photos(args, clf, [str(source) for source in group], names, results)


class _Names:
    """Names of the files that --save writes: unique, and never the name of an input photo."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.replaced = 0  # number of files from an earlier run that are overwritten
        self._taken: set[str] = set()

    def stem(self, path: str) -> str:
        return unique_name("stdin" if path == "-" else Path(path).stem, self._taken)

    def saved_path(self, folder: Path, stem: str, suffix: str) -> Path:
        """Return the path of the image or video to write, and count it if it replaces a file."""
        path = folder / f"{stem}{_SAVED}{suffix}"
        self.replaced += path.exists()
        return path


def _progress(items: Any, total: int | None, unit: str, name: str) -> Any:
    """Show a progress bar on stderr if it is a terminal and the work takes more than a second."""
    from tqdm import tqdm

    return tqdm(items, name, total, unit=unit, delay=1, leave=False, disable=None, dynamic_ncols=True)


def _predict_photos(
    args: argparse.Namespace, clf: "Classifier", paths: list[str], names: _Names, results: list[Result]
) -> None:
    from fer_lightning.drawing.boxes import annotate
    from fer_lightning.inference.photos import note_about, read_photo
    from fer_lightning.inference.video import SUFFIXES

    def read_photos() -> "Iterator[tuple[Result, Image.Image]]":
        for path in _progress(paths, len(paths), "photo", "photos"):
            results.append(Result(path))
            try:
                photo = read_photo(_read_stdin() if path == "-" else path)
            except UserError as error:
                hint = f"; videos must end in {', '.join(SUFFIXES)}" * str(error).startswith("not an image")
                results[-1].error = f"{error}{hint}"
            else:
                yield results[-1], photo

    for result, photo, faces in clf.predict_stream(read_photos(), not args.no_detect, args.tta):
        if names.folder:
            jpeg = io.BytesIO()
            annotate(photo, faces).save(jpeg, "JPEG", quality=92)
            path = names.saved_path(names.folder, names.stem(result.path), ".jpg")
            try:
                write_atomically(path, jpeg.getvalue())
            except OSError as error:  # keep predicting: the printed results need no file
                result.error = f"{path} cannot be written: {error.strerror}"
        result.note = note_about(photo, (face.turn_deg for face in faces))
        result.faces = faces


def _read_stdin() -> io.BytesIO:
    if sys.stdin is None:
        raise UserError("stdin is closed")
    return io.BytesIO(sys.stdin.buffer.read())


def _predict_video(
    args: argparse.Namespace, clf: "Classifier", source: str | int, names: _Names, results: list[Result]
) -> None:
    from fer_lightning.drawing.boxes import annotate
    from fer_lightning.inference.video import Video, VideoWriter, opencv

    path = f"camera {source}" if isinstance(source, int) else source
    opencv()  # outside the try block: a missing OpenCV ends the command, instead of being this video's error
    stem = names.stem(path)
    try:
        video = Video(source)
        writer = (
            VideoWriter(names.saved_path(names.folder, stem, ".webm"), video.fps) if names.folder else nullcontext()
        )
    except UserError as error:
        results.append(Result(path, error=str(error)))
        return
    frames = _progress(video, video.frames, "frame", path)
    first: float | None = None
    frame_results: list[Result] = []
    try:
        with writer:
            batch_size = 1 if video.is_camera else 64
            for seconds, frame, faces in clf.predict_stream(frames, not args.no_detect, args.tta, batch_size):
                first = seconds if first is None else first
                frame_results.append(Result(path, faces, seconds=round(seconds - first, 3)))
                if isinstance(writer, VideoWriter):
                    writer.write(seconds - first, annotate(frame, faces))
    except UserError as error:
        frame_results.append(Result(path, error=str(error)))
    finally:
        results.extend(frame_results)
        if names.folder:
            _save_timeline(names.folder / f"{stem}.timeline.png", path, clf.classes, frame_results)


def _save_timeline(path: Path, title: str, classes: Sequence[str], results: list[Result]) -> None:
    import numpy as np

    from fer_lightning.drawing.curves import timeline
    from fer_lightning.drawing.style import pixels, write_png

    frames = [result for result in results if result.seconds is not None]
    if not frames:
        return
    missing = dict.fromkeys(classes, float("nan"))
    rows = [
        list(_largest_face(frame).probabilities.values() if frame.faces else missing.values()) for frame in frames
    ]
    seconds = np.array([frame.seconds for frame in frames], dtype=np.float64)
    figure = timeline(seconds, np.array(rows, dtype=np.float64), f"{title}: largest face", classes)
    write_png(pixels(figure), path)


def _largest_face(result: Result) -> "DetectedFace":
    return max(result.faces or (), key=lambda face: face.box[2] * face.box[3])


def _print(args: argparse.Namespace, classes: Sequence[str], names: "_Names", results: list[Result]) -> None:
    results = [result for result in results if result.error or result.faces is not None]
    for result in results:
        if result.note:
            print(f"note: {printable(result.path)}: {result.note}", file=sys.stderr)
        if result.error:
            print(f"error: {printable(result.path)}: {printable(result.error)}", file=sys.stderr)
    if args.json:
        print(json.dumps([_to_json(result) for result in results], indent=2, allow_nan=False))
    elif args.csv:
        _print_csv(results, classes)
    else:
        _print_table(results)
    if args.save and any(result.error is None for result in results):
        replaced = f" (replaced {names.replaced:,} from an earlier run)" if names.replaced else ""
        print(f"pictures: {printable(str(args.save))}{replaced}", file=sys.stderr)


def _to_json(result: Result) -> dict[str, Any]:
    faces = [face.to_json() for face in result.faces or ()]
    time = {} if result.seconds is None else {"seconds": result.seconds}
    return {"path": result.path, **time, "error": result.error, "faces": faces}


def _print_csv(results: list[Result], classes: Sequence[str]) -> None:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(("path", "seconds", "error", "x", "y", "width", "height", "emotion", "confidence", *classes))
    for result in results:
        start = (result.path, result.seconds, result.error)
        for face in result.faces or ():
            rows.writerow((*start, *face.box, face.emotion, face.confidence, *face.probabilities.values()))
        if not result.faces:
            rows.writerow((*start, *[""] * (6 + len(classes))))


def _print_table(results: list[Result]) -> None:
    rows: list[tuple[str, ...]] = []
    videos: dict[str, list[Result]] = {}
    for result in results:
        if result.seconds is not None:
            videos.setdefault(result.path, []).append(result)
        elif result.faces is not None:
            rows.extend(_rows(result))
    if rows:
        print(format_table(("photo", "x, y, width", "emotion", "", "next", ""), rows))
    for path, frames in videos.items():
        print(_summarise_video(path, frames))


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    path = printable(result.path)
    path = path if len(path) <= _PATH_WIDTH else "..." + path[3 - _PATH_WIDTH :]
    if not result.faces:
        yield path, "no face", "", "", "", ""
    for face in result.faces or ():
        (first, most), (second, less), *_ = sorted(face.probabilities.items(), key=lambda pair: -pair[1])
        yield path, "{}, {}, {}".format(*face.box), first, f"{most:.0%}", second, f"{less:.0%}"


def _summarise_video(path: str, frames: list[Result]) -> str:
    """Summarise a video: its length, and a table of how often the largest face showed each emotion."""
    emotions = [_largest_face(frame).emotion for frame in frames if frame.faces]
    seconds = frames[-1].seconds or 0.0
    n = f"{len(frames):,} {'frame' if len(frames) == 1 else 'frames'}"
    title = f"{printable(path)}: {n} in {seconds:.1f} s, faces in {len(emotions):,}"
    if not emotions:
        return title
    shares = sorted(((emotions.count(emotion) / len(emotions), emotion) for emotion in set(emotions)), reverse=True)
    return f"{title}\n" + format_table(
        ("emotion of the largest face", "share"),
        [(emotion, f"{share:.0%}") for share, emotion in shares],
    )
