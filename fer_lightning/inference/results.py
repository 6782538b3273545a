"""The results of ``fer-lightning predict`` for photos and for frames of videos, and their JSON and CSV."""

import csv
import json
from collections.abc import Iterable, Sequence
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

    The last columns, a face's id and its smoothed probabilities, are empty for photos.
    """
    rows = csv.writer(file, lineterminator="\n")
    columns = ("x", "y", "width", "height", "emotion", "confidence", *classes, "id")
    smoothed = [f"smoothed_{name}" for name in classes]
    rows.writerow(("path", "seconds", "error", *columns, *smoothed))
    for result in results:
        start = (result.path, result.seconds, result.error)
        for face in result.faces or ():
            own = (*face.box, face.emotion, face.confidence, *face.probabilities.values(), face.id)
            rows.writerow((*start, *own, *(face.smoothed or dict.fromkeys(classes)).values()))
        if not result.faces:
            rows.writerow((*start, *[""] * (len(columns) + len(smoothed))))
