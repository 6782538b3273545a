"""The results of ``fer-lightning predict`` for photos and for frames of videos, and their JSON and CSV."""

import csv
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from fer_lightning.inference.faces import DetectedFace


@dataclass
class Result:
    """The result for a photo or for one frame of a video.

    Attributes:
        path: the photo, video or stream as named by the user, without passwords, or "camera INDEX".
        faces: the detected faces; None until the photo or frame has been processed.
        error: why it could not be processed, if so.
        note: what the user should know about how it was read, if anything.
        seconds: time of a frame since the first one; None for a photo.
    """

    path: str
    faces: list[DetectedFace] | None = None
    error: str | None = None
    note: str | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of ``predict --json``; only a video's frames have "seconds"."""
        faces = [face.to_json() for face in self.faces or ()]
        time = {} if self.seconds is None else {"seconds": self.seconds}
        return {"path": self.path, **time, "error": self.error, "faces": faces}


class Frames:
    """The results for the frames of one video, as numbers: objects for half an hour would take a tenth of a GB.

    Iterating over it yields a `Result` for each frame, whose faces have ids and smoothed probabilities.

    Args:
        path: the video as named by the user, as in `Result`.
        classes: names of the C classes.
        min_confidence: as in `DetectedFace`.
    """

    def __init__(self, path: str, classes: Sequence[str], min_confidence: float = 0.0) -> None:
        self.path = path
        self._min_confidence = min_confidence
        self._classes = tuple(classes)
        self._seconds = array("d")
        self._n_faces = array("L")
        self._places = array("q")  # for each face, its box and id
        self._values = array("d")  # for each face, C probabilities and C smoothed ones

    def append(self, seconds: float, faces: Iterable[DetectedFace]) -> None:
        """Add the result for a frame.

        Args:
            seconds: time of the frame since the first one.
            faces: its faces, with ids and smoothed probabilities.
        """
        before = len(self._places)
        for face in faces:
            if face.id is None or face.smoothed is None:
                raise ValueError("a face of a video needs an id and smoothed probabilities")
            self._places.extend((*face.box, face.id))
            self._values.extend((*face.probabilities.values(), *face.smoothed.values()))
        self._n_faces.append((len(self._places) - before) // 5)
        self._seconds.append(seconds)

    def __len__(self) -> int:
        return len(self._seconds)

    def __iter__(self) -> Iterator[Result]:
        number = 0
        for seconds, n_faces in zip(self._seconds, self._n_faces, strict=True):
            faces = [self._face(at) for at in range(number, number + n_faces)]
            number += n_faces
            yield Result(self.path, faces, seconds=round(seconds, 3))

    def _face(self, number: int) -> DetectedFace:
        x, y, width, height, face_id = self._places[5 * number : 5 * number + 5]
        n_classes = len(self._classes)
        values = self._values[2 * n_classes * number : 2 * n_classes * (number + 1)]
        own = dict(zip(self._classes, values[:n_classes], strict=True))
        smoothed = dict(zip(self._classes, values[n_classes:], strict=True))
        box = x, y, width, height
        return DetectedFace(box, own, id=face_id, smoothed=smoothed, min_confidence=self._min_confidence)


def each_result(results: Iterable[Result | Frames]) -> Iterator[Result]:
    """Yield the results of photos, of each frame of videos, and of what failed, in order."""
    for result in results:
        yield from result if isinstance(result, Frames) else (result,)


def write_json(results: Iterable[Result], file: TextIO) -> None:
    """Write the entries as a JSON list, one by one, because those of a long video take much memory."""
    start = "["
    for result in results:
        entry = json.dumps(result.to_json(), indent=2, allow_nan=False).replace("\n", "\n  ")
        file.write(f"{start}\n  {entry}")
        start = ","
    file.write("[]\n" if start == "[" else "\n]\n")


def write_csv(results: Iterable[Result], classes: Sequence[str], file: TextIO) -> None:
    """Write a header and one row per face, or per photo or frame without faces.

    The columns of a face's id and its smoothed probabilities are empty for photos; the last one, doubt, for faces
    that are not in doubt.
    """
    rows = csv.writer(file, lineterminator="\n")
    columns = ("x", "y", "width", "height", "emotion", "confidence", *classes, "id")
    smoothed = [f"smoothed_{name}" for name in classes]
    rows.writerow(("path", "seconds", "error", *columns, *smoothed, "doubt"))
    for result in results:
        start = (result.path, result.seconds, result.error)
        for face in result.faces or ():
            own = (*face.box, face.emotion, face.confidence, *face.probabilities.values(), face.id)
            rows.writerow((*start, *own, *(face.smoothed or dict.fromkeys(classes)).values(), face.doubt))
        if not result.faces:
            rows.writerow((*start, *[""] * (len(columns) + len(smoothed) + 1)))
