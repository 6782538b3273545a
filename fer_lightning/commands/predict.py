"""The emotions of faces in photos, folders of photos, videos, or before a camera.

Each PATH is a photo, a folder, a pattern such as 'photos/*.jpg', a video, the index of a camera (0 the first), or
- for a photo on stdin. A picture of up to 96 pixels is taken for a face already cut out; in larger ones faces are
found first, which needs pip install -e ".[photo]". A camera runs until Ctrl-C.
"""

import argparse
import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lightning.commands import add_network_arguments, add_tta_argument, load_network, untaken
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.files import write_atomically
from fer_lightning.text import format_table, printable

if TYPE_CHECKING:
    from PIL import Image

    from fer_lightning.inference.classifier import Classifier
    from fer_lightning.inference.faces import DetectedFace

PHOTO_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # looked for in a folder

_DRAWN = ".emotions"  # between the name and the suffix of what --save writes

_PATH_WIDTH = 30  # of the table's first column, for the whole to fit 80


@dataclass
class Answer:
    """What became of a photo, or of a frame of a video."""

    path: str
    faces: "list[DetectedFace] | None" = None  # None until it was looked at
    error: str | None = None
    seconds: float | None = None  # a frame's time since the first one


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``fer-lightning predict``."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="photo, folder, pattern, video, camera index or -")
    add_network_arguments(parser)
    parser.add_argument("--no-detect", action="store_true", help="every picture is one face, cut out already")
    add_tta_argument(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of the table")
    form.add_argument("--csv", action="store_true", help="print a line of CSV for each face instead of the table")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="write the pictures with boxes and emotions; of a video also a timeline of the seven probabilities",
    )


def run(args: argparse.Namespace) -> int:
    """Predicts and prints; what was done before Ctrl-C is printed too."""
    from fer_lightning.models.tta import check_tta

    check_tta(args.tta)
    answers: list[Answer] = []
    names = _Names(args.save)
    sources = list(_sources(args.paths, answers))
    if args.save:
        try:
            args.save.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{args.save} cannot be written: {error.strerror}.") from error
    try:
        if sources:
            _predict(args, sources, names, answers)
    except OSError as error:  # what cannot be read is an answer of its own
        raise UserError(f"{error.filename or args.save} cannot be written: {error.strerror}.") from error
    finally:
        _print(args, names, answers)
    return 1 if any(answer.error for answer in answers) else 0


def _sources(paths: Iterable[str], answers: list[Answer]) -> Iterator[str | int]:
    """Photos, videos, "-" and cameras' indices; what does not exist becomes an answer with an error."""
    for path in paths:
        if path == "-" or (os.path.exists(path) and not os.path.isdir(path)):
            yield path
        elif os.path.isdir(path):
            yield from _photos_in(Path(path), answers)
        elif path.isdecimal():
            yield int(path)
        elif found := [file for file in sorted(glob.glob(path, recursive=True)) if os.path.isfile(file)]:
            yield from found
        else:
            answers.append(Answer(path, error="no such file or folder, and no pattern that fits any file"))


def _photos_in(folder: Path, answers: list[Answer]) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        answers.append(Answer(str(error.filename), error=error.strerror))

    found = (Path(place, name) for place, _, names in os.walk(folder, onerror=unreadable) for name in names)
    files = sorted(file for file in found if file.is_file() or file.is_symlink())  # a broken link is named later
    photos = [
        str(file)
        for file in files
        if file.suffix.lower() in PHOTO_SUFFIXES and not file.name.endswith(f"{_DRAWN}.jpg")
    ]
    if not photos:
        answers.append(Answer(str(folder), error=f"a folder without photos ({', '.join(PHOTO_SUFFIXES)})"))
    elif others := len(files) - len(photos):
        left_out = f"left out what is no photo by its name, or drawn by --save ({others:,})"
        print(f"note: {printable(str(folder))}: {left_out}", file=sys.stderr)
    yield from photos


def _predict(args: argparse.Namespace, sources: list[str | int], names: "_Names", answers: list[Answer]) -> None:
    from fer_lightning.inference.video import SUFFIXES

    clf = load_network(args)

    def is_video(source: str | int) -> bool:
        return isinstance(source, int) or Path(source).suffix.lower() in SUFFIXES

    for moving, group in groupby(sources, is_video):
        if moving:
            for source in group:
                _video(args, clf, source, names, answers)
        else:
            _photos(args, clf, [str(source) for source in group], names, answers)


class _Names:
    """Names for what is saved: never that of the photo itself, and never the same for two."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.replaced = 0  # pictures of an earlier run
        self._taken: set[str] = set()

    def stem(self, path: str) -> str:
        return untaken("stdin" if path == "-" else Path(path).stem, self._taken)

    def drawn(self, folder: Path, stem: str, suffix: str) -> Path:
        """Where the picture or video of that stem is about to be written."""
        path = folder / f"{stem}{_DRAWN}{suffix}"
        self.replaced += path.exists()
        return path


def _progress(items: Any, total: int | None, unit: str, name: str) -> Any:
    """A bar on stderr, in a terminal and for work of more than a second."""
    from tqdm import tqdm

    return tqdm(items, name, total, unit=unit, delay=1, leave=False, disable=None, dynamic_ncols=True)


def _photos(
    args: argparse.Namespace, clf: "Classifier", paths: list[str], names: _Names, answers: list[Answer]
) -> None:
    from fer_lightning.drawing.boxes import annotate
    from fer_lightning.inference.photos import read_photo
    from fer_lightning.inference.video import SUFFIXES

    def readable() -> "Iterator[tuple[Answer, Image.Image]]":
        for path in _progress(paths, len(paths), "photo", "photos"):
            answers.append(Answer(path))
            try:
                photo = read_photo(_stdin() if path == "-" else path)
            except UserError as error:
                videos = f"; a video's name ends in {', '.join(SUFFIXES)}" * str(error).startswith("not an image")
                answers[-1].error = f"{error}{videos}"
            else:
                yield answers[-1], photo

    for answer, photo, faces in clf.predict_stream(readable(), not args.no_detect, args.tta):
        if names.folder:
            jpeg = io.BytesIO()
            annotate(photo, faces).save(jpeg, "JPEG", quality=92)
            picture = names.drawn(names.folder, names.stem(answer.path), ".jpg")
            try:
                write_atomically(picture, jpeg.getvalue())
            except OSError as error:  # the answers go on
                answer.error = f"{picture} cannot be written: {error.strerror}"
        answer.faces = faces


def _stdin() -> io.BytesIO:
    if sys.stdin is None:
        raise UserError("stdin is closed")
    return io.BytesIO(sys.stdin.buffer.read())


def _video(
    args: argparse.Namespace, clf: "Classifier", source: str | int, names: _Names, answers: list[Answer]
) -> None:
    from fer_lightning.drawing.boxes import annotate
    from fer_lightning.inference.video import Video, VideoWriter, opencv

    path = f"camera {source}" if isinstance(source, int) else source
    opencv()  # if it is missing, that is not this video's fault
    stem = names.stem(path)
    try:
        video = Video(source)
        writer = VideoWriter(names.drawn(names.folder, stem, ".webm"), video.fps) if names.folder else nullcontext()
    except UserError as error:
        answers.append(Answer(path, error=str(error)))
        return
    frames = _progress(video, video.frames, "frame", path)
    first: float | None = None
    mine: list[Answer] = []
    try:
        with writer:
            batch_size = 1 if video.is_camera else 64
            for seconds, frame, faces in clf.predict_stream(frames, not args.no_detect, args.tta, batch_size):
                first = seconds if first is None else first
                mine.append(Answer(path, faces, seconds=round(seconds - first, 3)))
                if isinstance(writer, VideoWriter):
                    writer.write(seconds - first, annotate(frame, faces))
    except UserError as error:
        mine.append(Answer(path, error=str(error)))
    finally:
        answers.extend(mine)
        if names.folder:
            _save_timeline(names.folder / f"{stem}.timeline.png", path, mine)


def _save_timeline(path: Path, title: str, answers: list[Answer]) -> None:
    import numpy as np

    from fer_lightning.drawing.curves import timeline
    from fer_lightning.drawing.style import pixels, write_png

    frames = [answer for answer in answers if answer.seconds is not None]
    if not frames:
        return
    missing = dict.fromkeys(EMOTIONS, float("nan"))
    rows = [list(_largest(frame).probabilities.values() if frame.faces else missing.values()) for frame in frames]
    seconds = np.array([frame.seconds for frame in frames], dtype=np.float64)
    write_png(pixels(timeline(seconds, np.array(rows, dtype=np.float64), f"{title}: the largest face")), path)


def _largest(answer: Answer) -> "DetectedFace":
    return max(answer.faces or (), key=lambda face: face.box[2] * face.box[3])


def _print(args: argparse.Namespace, names: "_Names", answers: list[Answer]) -> None:
    answers = [answer for answer in answers if answer.error or answer.faces is not None]
    for answer in answers:
        if answer.error:
            print(f"error: {printable(answer.path)}: {printable(answer.error)}", file=sys.stderr)
    if args.json:
        print(json.dumps([_json(answer) for answer in answers], indent=2, allow_nan=False))
    elif args.csv:
        _print_csv(answers)
    else:
        _print_table(answers)
    if args.save and any(answer.error is None for answer in answers):
        replaced = f", {names.replaced:,} of an earlier run replaced" if names.replaced else ""
        print(f"pictures: {printable(str(args.save))}{replaced}", file=sys.stderr)


def _json(answer: Answer) -> dict[str, Any]:
    faces = [face.to_json() for face in answer.faces or ()]
    time = {} if answer.seconds is None else {"seconds": answer.seconds}
    return {"path": answer.path, **time, "error": answer.error, "faces": faces}


def _print_csv(answers: list[Answer]) -> None:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(("path", "seconds", "error", "x", "y", "width", "height", "emotion", "confidence", *EMOTIONS))
    for answer in answers:
        start = (answer.path, answer.seconds, answer.error)
        for face in answer.faces or ():
            rows.writerow((*start, *face.box, face.emotion, face.confidence, *face.probabilities.values()))
        if not answer.faces:
            rows.writerow((*start, *[""] * (6 + len(EMOTIONS))))


def _print_table(answers: list[Answer]) -> None:
    rows: list[tuple[str, ...]] = []
    videos: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.seconds is not None:
            videos.setdefault(answer.path, []).append(answer)
        elif answer.faces is not None:
            rows.extend(_rows(answer))
    if rows:
        print(format_table(("photo", "x, y, width", "emotion", "", "next", ""), rows))
    for path, frames in videos.items():
        print(_summary(path, frames))


def _rows(answer: Answer) -> Iterator[tuple[str, ...]]:
    path = printable(answer.path)
    path = path if len(path) <= _PATH_WIDTH else "..." + path[3 - _PATH_WIDTH :]
    if not answer.faces:
        yield path, "no face", "", "", "", ""
    for face in answer.faces or ():
        (first, most), (second, less), *_ = sorted(face.probabilities.items(), key=lambda pair: -pair[1])
        yield path, "{}, {}, {}".format(*face.box), first, f"{most:.0%}", second, f"{less:.0%}"


def _summary(path: str, frames: list[Answer]) -> str:
    """A video in a table: how often each emotion was that of the largest face."""
    seen = [_largest(frame).emotion for frame in frames if frame.faces]
    seconds = frames[-1].seconds or 0.0
    n = f"{len(frames):,} {'frame' if len(frames) == 1 else 'frames'}"
    title = f"{printable(path)}: {n} in {seconds:.1f} s, a face in {len(seen):,}"
    if not seen:
        return title
    shares = sorted(((seen.count(emotion) / len(seen), emotion) for emotion in EMOTIONS), reverse=True)
    return f"{title}\n" + format_table(
        ("emotion of the largest face", "of the time"),
        [(emotion, f"{share:.0%}") for share, emotion in shares if share],
    )
