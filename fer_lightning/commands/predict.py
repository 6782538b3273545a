"""Predict the emotions of faces in photos, videos, or a camera's or network stream.

Each PATH is a photo, a video, a folder of both, a glob pattern such as 'photos/*.jpg', the index of a camera (0 is
the first one), a stream such as rtsp://HOST/PATH or http://HOST/PATH, or - to read a photo from stdin. Animated
GIF, WebP, PNG and AVIF images are videos. Images of up to 96 pixels are treated as one cropped face; in larger
ones, faces are detected first, which needs pip install -e ".[photo]". A camera runs until Ctrl-C, a stream until
it ends.

Faces of less than 32 pixels are labelled "too small", because a third of the answers for faces of 24 pixels differ
from those for the same faces in full size. In JSON and CSV, faces in doubt keep their emotion and have "doubt".

In a video, every face has an id that stays with it, also if it is out of sight for up to a second. The table has a
row for each id. The table, the saved video and its timeline show smoothed probabilities. In JSON and CSV, emotion,
doubt and probabilities are those of the frame, and the smoothed probabilities stand beside them.
"""

import argparse
import glob
import io
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lightning.commands import add_network_arguments, add_tta_argument, load_network
from fer_lightning.commands.clips import (
    PHOTO,
    WRITTEN,
    Names,
    is_clip,
    predict_clip,
    progress,
    summarise,
)
from fer_lightning.errors import UserError, check_probability
from fer_lightning.files import write_atomically
from fer_lightning.inference.results import Frames, Result, each_result, write_csv, write_json
from fer_lightning.inference.tracking import SMOOTH_SECONDS
from fer_lightning.text import format_table, printable

if TYPE_CHECKING:
    from PIL import Image

    from fer_lightning.inference.classifier import Classifier

_PATH_WIDTH = 30  # width of the first column, so that the table fits 80 columns


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fer-lightning predict``."""
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="photo, video, folder, pattern, camera index, URL or -"
    )
    add_network_arguments(parser)
    parser.add_argument("--no-detect", action="store_true", help="treat each image as one cropped face")
    add_tta_argument(parser)
    parser.add_argument(
        "--min-confidence",
        type=float,
        default=0.0,
        metavar="P",
        help='label a face "unsure" if its emotion has a probability below P, from 0 to 1 (default: %(default)s)',
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument("--csv", action="store_true", help="print CSV, one row per face, instead of a table")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="write the images with boxes and emotions to DIR; for a video, also a timeline of each face",
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=SMOOTH_SECONDS,
        metavar="SECONDS",
        help="in videos, average each face's probabilities over about this time; 0 is off (default: %(default)s)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        metavar="F",
        help="in videos, look at F frames a second and skip the others, also in the video that --save writes "
        "(default: all frames)",
    )


def run(args: argparse.Namespace) -> int:
    """Predict and print the results, or those so far after Ctrl-C; return 1 if any photo or video failed."""
    from fer_lightning.models.tta import check_tta

    check_tta(args.tta)
    check_probability("--min-confidence", args.min_confidence)
    if not 0 <= args.smooth < math.inf:
        raise UserError(f"--smooth={args.smooth:g}: expected seconds, 0 or more, e.g. 0.5; 0 turns smoothing off.")
    if args.fps is not None and not 0 < args.fps < math.inf:
        raise UserError(f"--fps={args.fps:g}: expected frames a second, more than 0, e.g. 5.")
    clf = load_network(args)
    results: list[Result | Frames] = []
    sources = list(_find_sources(args.paths, results))
    names = Names(args.save, sources)
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
    return 1 if any(result.error for result in results if isinstance(result, Result)) else 0


def _find_sources(paths: Iterable[str], results: list[Result | Frames]) -> Iterator[str | int]:
    """Yield paths, URLs, "-" and camera indices; append an error to `results` for paths that do not exist."""
    from fer_lightning.inference.video import is_stream, without_secrets

    for path in paths:
        if path == "-" or is_stream(path) or (os.path.exists(path) and not os.path.isdir(path)):
            yield path
        elif os.path.isdir(path):
            yield from _files_in(Path(path), results)
        elif path.isdecimal():
            yield int(path)
        elif "://" in path:
            results.append(Result(without_secrets(path), error="unknown kind of address: use rtsp:// or http://"))
        elif matches := [file for file in sorted(glob.glob(path, recursive=True)) if os.path.isfile(file)]:
            yield from matches
        else:
            results.append(Result(path, error="no such file or folder, and no file matches it as a pattern"))


def _files_in(folder: Path, results: list[Result | Frames]) -> Iterator[str]:
    """Yield the photos and videos in a folder and below, sorted by path."""
    from fer_lightning.data.images import FORMAT_NAMES, IMAGE_SUFFIXES
    from fer_lightning.inference.video import SUFFIXES

    def report_error(error: OSError) -> None:
        results.append(Result(str(error.filename), error=error.strerror))

    entries = (Path(place, name) for place, _, names in os.walk(folder, onerror=report_error) for name in names)
    # Keep broken links, so that reading them reports the error.
    files = sorted(entry for entry in entries if entry.is_file() or entry.is_symlink())
    taken = [
        str(file)
        for file in files
        if file.suffix.lower() in IMAGE_SUFFIXES | SUFFIXES and not file.name.endswith(WRITTEN)
    ]
    if not taken:
        results.append(Result(str(folder), error=f"no photos ({FORMAT_NAMES}) or videos in this folder"))
    elif skipped := len(files) - len(taken):
        note = f"skipped files that are neither photos nor videos or were written by --save ({skipped:,})"
        print(f"note: {printable(str(folder))}: {note}", file=sys.stderr)
    yield from taken


def _predict(
    args: argparse.Namespace,
    clf: "Classifier",
    sources: list[str | int],
    names: Names,
    results: list[Result | Frames],
) -> None:
    for clips, group in groupby(sources, is_clip):
        if clips:
            for source in group:
                predict_clip(args, clf, source, names, results)
        else:
            _predict_photos(args, clf, [str(source) for source in group], names, results)


def _predict_photos(
    args: argparse.Namespace, clf: "Classifier", paths: list[str], names: Names, results: list[Result | Frames]
) -> None:
    from fer_lightning.drawing.boxes import annotate
    from fer_lightning.inference.photos import note_about

    for result, photo, faces in clf.predict_stream(
        _read_photos(paths, results), not args.no_detect, args.tta, min_confidence=args.min_confidence
    ):
        if names.folder:
            jpeg = io.BytesIO()
            annotate(photo, faces).save(jpeg, "JPEG", quality=92)
            path = names.saved_path(names.folder, names.stem(result.path), PHOTO)
            try:
                write_atomically(path, jpeg.getvalue())
            except OSError as error:  # keep predicting: the printed results need no file
                result.error = f"{path} cannot be written: {error.strerror}"
        result.note = note_about(photo, (face.turn_deg for face in faces))
        result.faces = faces


def _read_photos(paths: list[str], results: list[Result | Frames]) -> "Iterator[tuple[Result, Image.Image]]":
    """Append a result for each path, with an error if it cannot be read, and yield it and the photo if it can."""
    from PIL import Image

    from fer_lightning.inference.ahead import map_ahead

    # Reading a photo also sets and resets this filter, but filters belong to all threads.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    for is_file, group in groupby(progress(paths, len(paths), "photo", "photos"), _is_file):
        # Ctrl-C does not stop a thread that waits for a pipe.
        for result, photo in (map_ahead if is_file else map)(_read, group):
            results.append(result)
            if photo is not None:
                yield result, photo


def _is_file(path: str) -> bool:
    return path != "-" and os.path.isfile(path)


def _read(path: str) -> "tuple[Result, Image.Image | None]":
    from fer_lightning.inference.photos import read_photo

    try:
        return Result(path), read_photo(_read_stdin() if path == "-" else path)
    except UserError as error:
        return Result(path, error=f"{error}{_hint(path) * str(error).startswith('not an image')}"), None


def _hint(path: str) -> str:
    """Return what to do about a file that is not an image."""
    from fer_lightning.data.images import IMAGE_SUFFIXES

    if path == "-":
        return "; stdin takes one photo"
    return "" if Path(path).suffix.lower() in IMAGE_SUFFIXES else "; a video needs a suffix such as .mp4 or .mkv"


def _read_stdin() -> io.BytesIO:
    if sys.stdin is None:
        raise UserError("stdin is closed")
    return io.BytesIO(sys.stdin.buffer.read())


def _print(args: argparse.Namespace, classes: Sequence[str], names: Names, results: list[Result | Frames]) -> None:
    # Ctrl-C may have come between reading a photo and its prediction.
    results = [
        result for result in results if isinstance(result, Frames) or result.error or result.faces is not None
    ]
    for result in results:
        if isinstance(result, Frames):
            continue
        if result.note:
            print(f"note: {printable(result.path)}: {result.note}", file=sys.stderr)
        if result.error:
            print(f"error: {printable(result.path)}: {printable(result.error)}", file=sys.stderr)
    if args.json:
        write_json(each_result(results), sys.stdout)
    elif args.csv:
        write_csv(each_result(results), classes, sys.stdout)
    else:
        _print_table(results)
    if args.save and any(result.error is None for result in each_result(results)):
        replaced = f" (replaced {names.replaced:,} from an earlier run)" if names.replaced else ""
        print(f"pictures: {printable(str(args.save))}{replaced}", file=sys.stderr)


def _print_table(results: list[Result | Frames]) -> None:
    photos = [result for result in results if isinstance(result, Result) and result.faces is not None]
    rows = [row for photo in photos for row in _rows(photo)]
    if rows:
        print(format_table(("photo", "x, y, width", "emotion", "", "next", ""), rows))
    for result in results:
        if isinstance(result, Frames) and len(result):
            print(summarise(result))


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    path = printable(result.path)
    path = path if len(path) <= _PATH_WIDTH else "..." + path[3 - _PATH_WIDTH :]
    if not result.faces:
        yield path, "no face", "", "", "", ""
    for face in result.faces or ():
        (first, most), (second, less), *_ = sorted(face.probabilities.items(), key=lambda pair: -pair[1])
        answers = (first, f"{most:.0%}", second, f"{less:.0%}")
        if face.doubt is not None:
            answers = (face.doubt, "", first, f"{most:.0%}")
        yield path, "{}, {}, {}".format(*face.box), *answers
