"""Read whole photos, detect their faces, and crop these as in FER-2013."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.data.images import decode
from fer_lightning.errors import UserError
from fer_lightning.inference.faces import Box, DetectedFace

Key = TypeVar("Key")
Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
FACE_SIZE = 48  # FER-2013's: no network here was trained on sharper faces
# An image whose longer side has at most this many pixels is treated as one face that is already cropped.
MAX_CROP_SIDE = 96
# The detector finds faces from 80 pixels upwards. Photos are resized so that their longer side has 1280 pixels, of
# which 80 are a sixteenth.
_DETECTION_SIDE = 1280
# Lowest accepted detector score, chosen on two portraits in 60 sizes, tilts and exposures, at 1,200 pixels: 59 of
# the 60 faces are found, with 4 false positives. The detector's own threshold of 0 finds all 60, with 8 false
# positives.
_DETECTION_SCORE = 0.1
# The detector's box relative to a FER-2013 image: its side, and how far its centre lies below the image's centre,
# as fractions of the image's side. Means over 200 images of PrivateTest and their mirror images; it found 79% of
# them.
_BOX_IN_FACE = 0.87
_BOX_BELOW = 0.05
# Note about a photo for which `is_truncated` is true.
TRUNCATED_NOTE = "the JPEG lacks its last bytes; the missing end was filled, as browsers do"
_PATIENCE_SECONDS = 1.0  # how long a photo waits for its batch to fill, so that an interruption loses little
_BATCH_PIXELS = 64_000_000  # pixels of photos held while waiting for their batch: 192 MB


def read_photo(file: str | Path | BinaryIO | Image.Image) -> Image.Image:
    """Read a photo upright and in RGB, with the decoder used for training images.

    Raises:
        UserError: the photo cannot be read; the message gives the cause without the file's name.
    """
    return decode(file).convert("RGB")


def require_detector() -> None:
    """Raise UserError if the face detector is not installed."""
    _detector()


@functools.cache
def _detector() -> Callable[..., Any]:
    """Load dlib's detector of upright faces, whose weights are part of the library.

    King, "Max-Margin Object Detection" (arXiv:1502.00046), on histograms of oriented gradients, with five
    templates: frontal faces, faces turned to either side, and tilted faces.
    """
    try:
        import dlib
    except ImportError as error:
        raise UserError(
            'Detecting faces needs dlib: pip install -e ".[photo]". For images of one cropped face, use '
            "--no-detect or detect=False."
        ) from error
    detect: Callable[..., Any] = dlib.get_frontal_face_detector().run
    return detect


def find_faces(photo: Image.Image) -> list[Box]:
    """Detect the faces in an upright photo.

    Finds faces that measure at least a sixteenth of the photo's longer side, tilted by up to about 30 degrees.

    Returns:
        A square box for each face, from left to right, inside the photo and with the margin of FER-2013's faces.

    Raises:
        UserError: the detector is not installed.
    """
    detect = _detector()
    scale = _DETECTION_SIDE / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    grey = np.asarray(photo.convert("L").resize(size, Image.Resampling.BILINEAR))
    rectangles, _, _ = detect(grey, 0, _DETECTION_SCORE)
    return sorted(
        _square(
            (rectangle.left() + rectangle.right() + 1) / 2 / scale,
            (rectangle.top() + rectangle.bottom() + 1) / 2 / scale,
            max(rectangle.width(), rectangle.height()) / scale,
            photo.size,
        )
        for rectangle in rectangles
    )


def _square(x: float, y: float, side: float, photo_size: tuple[int, int]) -> Box:
    """Return the face's box around a detector's box with centre (x, y), moved and if necessary shrunk to fit."""
    width, height = photo_size
    face = min(round(side / _BOX_IN_FACE), width, height)
    left = round(x - face / 2)
    top = round(y - face * (0.5 + _BOX_BELOW))
    return min(max(left, 0), width - face), min(max(top, 0), height - face), face, face


def face_boxes(photo: Image.Image, detect: bool = True) -> list[Box]:
    """Return the boxes of the faces in an upright photo.

    If `detect` is false or no side of the photo exceeds MAX_CROP_SIDE pixels, the only box is the whole photo.

    Raises:
        UserError: the detector is needed and not installed.
    """
    return find_faces(photo) if detect and max(photo.size) > MAX_CROP_SIDE else [(0, 0, *photo.size)]


def predict_faces(
    predict: Predict,
    classes: Sequence[str],
    photos: Iterable[tuple[Key, Image.Image]],
    detect: bool = True,
    batch_size: int = 64,
) -> Iterator[tuple[Key, Image.Image, list[DetectedFace]]]:
    """Detect the faces in photos and predict their emotions in batches.

    Args:
        predict: function from faces, uint8 (N, 48, 48), to probabilities, float32 (N, C).
        classes: names of the C classes.
        photos: upright RGB photos, each with a key of the caller's choice.
        detect: detect faces; otherwise treat each photo as one face. Photos with sides of
            at most MAX_CROP_SIDE pixels always are.
        batch_size: photos or faces to collect before yielding their results, for a second at most; use 1 for a
            camera, whose results should not wait.

    Yields:
        The key, photo and faces of each photo, in input order.

    Raises:
        UserError: the detector is not installed.
    """
    waiting: list[tuple[Key, Image.Image, list[Box]]] = []
    faces = pixels = 0
    since = perf_counter()
    for key, photo in photos:
        try:
            boxes = face_boxes(photo, detect)
        except UserError:  # no detector: photos before this one did not need it and still get their results
            yield from _predict_batch(predict, classes, waiting)
            raise
        waiting.append((key, photo, boxes))
        faces += len(boxes)
        pixels += photo.width * photo.height
        full = max(faces, len(waiting)) >= batch_size or pixels >= _BATCH_PIXELS
        if full or perf_counter() - since > _PATIENCE_SECONDS:
            yield from _predict_batch(predict, classes, waiting)
            waiting, faces, pixels, since = [], 0, 0, perf_counter()
    yield from _predict_batch(predict, classes, waiting)


def _predict_batch(
    predict: Predict, classes: Sequence[str], waiting: list[tuple[Key, Image.Image, list[Box]]]
) -> Iterator[tuple[Key, Image.Image, list[DetectedFace]]]:
    crops = [crop_face(photo, box) for _, photo, boxes in waiting for box in boxes]
    rows = iter(predict(np.stack(crops)).tolist() if crops else [])
    for key, photo, boxes in waiting:
        yield key, photo, [DetectedFace(box, dict(zip(classes, next(rows), strict=True))) for box in boxes]


def crop_face(photo: Image.Image, box: Box) -> npt.NDArray[np.uint8]:
    """Crop the face in a box for the network: uint8 (FACE_SIZE, FACE_SIZE), grey."""
    x, y, width, height = box
    face = photo.crop((x, y, x + width, y + height)).convert("L")
    return np.asarray(face.resize((FACE_SIZE, FACE_SIZE), Image.Resampling.BILINEAR))
