"""Whole photos: read them, find their faces, and cut these out as in FER-2013."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.data.images import decode
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.inference.faces import Box, DetectedFace

Key = TypeVar("Key")
Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
FACE_SIZE = 48  # of FER-2013: a sharper face would be one that no network here was trained on
WHOLE = 96  # pixels of the longer side: a picture up to this is a face already, for there is no room for more
# The detector looks for faces of 80 pixels or more; on a photo enlarged or reduced to this, for a sixteenth of it.
_DETECTION_SIDE = 1280
# Of the detector's scores, chosen on two portraits in 60 sizes, tilts and exposures, at 1,200 pixels: it found 59
# of the 60 faces, and 4 that were none; at its own threshold of 0 it found 60, and 8.
_DETECTION_SCORE = 0.1
# Mean over 200 images of PrivateTest and their mirror images, of which it found 79%: the detector's box is this
# part of a FER-2013 image, and its centre lies this part of the image's side below that of the image.
_BOX_IN_FACE = 0.87
_BOX_BELOW = 0.05
_PATIENCE_SECONDS = 1.0  # that a photo waits for others, so that little is lost when someone stops
_BATCH_PIXELS = 64_000_000  # of photos held until their faces have gone through the network: 192 MB


def read_photo(file: str | Path | BinaryIO | Image.Image) -> Image.Image:
    """Return the upright photo in RGB, decoded as training images are.

    Raises:
        UserError: it cannot be read; the message is the cause alone, without the file's name.
    """
    return decode(file).convert("RGB")


def require_detector() -> None:
    """Raises UserError if the detector is not installed."""
    _detector()


@functools.cache
def _detector() -> Callable[..., Any]:
    """dlib's detector of upright faces: its weights lie in the library itself.

    King, "Max-Margin Object Detection" (arXiv:1502.00046), on histograms of oriented gradients; five templates, for
    faces to the front, turned to the sides and tilted.
    """
    try:
        import dlib
    except ImportError as error:
        raise UserError(
            'Finding faces needs dlib: pip install -e ".[photo]". Pictures of one face each need no detector: '
            "--no-detect, or detect=False."
        ) from error
    find: Callable[..., Any] = dlib.get_frontal_face_detector().run
    return find


def find_faces(photo: Image.Image) -> list[Box]:
    """The faces of an upright photo, from left to right.

    Faces are found from a sixteenth of the photo's longer side upwards, tilted by up to 30 degrees or so.

    Returns:
        A square for each face, with the margin that faces of FER-2013 have, inside the photo.

    Raises:
        UserError: the detector is not installed.
    """
    find = _detector()
    scale = _DETECTION_SIDE / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    grey = np.asarray(photo.convert("L").resize(size, Image.Resampling.BILINEAR))
    found, _, _ = find(grey, 0, _DETECTION_SCORE)
    return sorted(
        _square(
            (box.left() + box.right() + 1) / 2 / scale,
            (box.top() + box.bottom() + 1) / 2 / scale,
            max(box.width(), box.height()) / scale,
            photo.size,
        )
        for box in found
    )


def _square(x: float, y: float, side: float, photo_size: tuple[int, int]) -> Box:
    """The face around a detector's box with the centre (x, y): moved, and if need be reduced, into the photo."""
    width, height = photo_size
    face = min(round(side / _BOX_IN_FACE), width, height)
    left = round(x - face / 2)
    top = round(y - face * (0.5 + _BOX_BELOW))
    return min(max(left, 0), width - face), min(max(top, 0), height - face), face, face


def face_boxes(photo: Image.Image, detect: bool = True) -> list[Box]:
    """Where the faces of an upright photo are: all of it, without `detect` or if it is a face already by its size.

    Raises:
        UserError: the detector is needed and not installed.
    """
    return find_faces(photo) if detect and max(photo.size) > WHOLE else [(0, 0, *photo.size)]


def predict_faces(
    predict: Predict, photos: Iterable[tuple[Key, Image.Image]], detect: bool = True, batch_size: int = 64
) -> Iterator[tuple[Key, Image.Image, list[DetectedFace]]]:
    """Find the faces of photos and predict their emotions, many at a time.

    Args:
        predict: faces, uint8 (N, 48, 48), to probabilities, float32 (N, 7).
        photos: upright RGB photos, each with a key of the caller's choice.
        detect: look for faces; otherwise each photo is one face. A photo of up to WHOLE pixels always is.
        batch_size: photos or faces after which results are yielded, at the latest after a second; 1 for a camera,
            whose results should not wait.

    Yields:
        Key, photo and faces of each photo, in the order in which they came.

    Raises:
        UserError: the detector is not installed.
    """
    waiting: list[tuple[Key, Image.Image, list[Box]]] = []
    faces = pixels = 0
    since = perf_counter()
    for key, photo in photos:
        try:
            boxes = face_boxes(photo, detect)
        except UserError:  # without the detector: those that need none are answered all the same
            yield from _predicted(predict, waiting)
            raise
        waiting.append((key, photo, boxes))
        faces += len(boxes)
        pixels += photo.width * photo.height
        full = max(faces, len(waiting)) >= batch_size or pixels >= _BATCH_PIXELS
        if full or perf_counter() - since > _PATIENCE_SECONDS:
            yield from _predicted(predict, waiting)
            waiting, faces, pixels, since = [], 0, 0, perf_counter()
    yield from _predicted(predict, waiting)


def _predicted(
    predict: Predict, waiting: list[tuple[Key, Image.Image, list[Box]]]
) -> Iterator[tuple[Key, Image.Image, list[DetectedFace]]]:
    crops = [crop_face(photo, box) for _, photo, boxes in waiting for box in boxes]
    answers = iter(predict(np.stack(crops)).tolist() if crops else [])
    for key, photo, boxes in waiting:
        yield key, photo, [DetectedFace(box, dict(zip(EMOTIONS, next(answers), strict=True))) for box in boxes]


def crop_face(photo: Image.Image, box: Box) -> npt.NDArray[np.uint8]:
    """The face in a box as a network gets it: uint8 (FACE_SIZE, FACE_SIZE), grey."""
    x, y, width, height = box
    face = photo.crop((x, y, x + width, y + height)).convert("L")
    return np.asarray(face.resize((FACE_SIZE, FACE_SIZE), Image.Resampling.BILINEAR))
