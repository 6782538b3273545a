"""Read whole photos, crop their faces as in FER-2013, and predict their emotions."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.data.images import decode, is_truncated
from fer_lightning.errors import UserError
from fer_lightning.inference.ahead import map_ahead
from fer_lightning.inference.detector import find_faces
from fer_lightning.inference.faces import DetectedFace, Region

Key = TypeVar("Key")
# A photo, the squares of its faces, and their crops for the network.
_Cropped = tuple[Key, Image.Image, list[Region], list[npt.NDArray[np.uint8]]]
Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
FACE_SIZE = 48  # FER-2013's: no network here was trained on sharper faces
# An image whose longer side has at most this many pixels is treated as one face that is already cropped.
MAX_CROP_SIDE = 96
TRUNCATED_NOTE = "the JPEG lacks its last bytes; the missing end was filled, as browsers do"
TURNED_NOTE = "it lies on its side or upside down; its faces were turned upright"
_ON_ITS_SIDE_DEG = 50  # turn above which the photo, not the head, is taken to be turned
# The 99th percentile of a face's grey levels below which it is brightened, and to what. 1% of FER-2013's images are
# darker, so the networks know little of such faces; results/photos/limits.json has the effect on portraits.
_DARK_PEAK = 128
_BRIGHTENED_PEAK = 200
_PATIENCE_SECONDS = 1.0  # how long a photo waits for its batch to fill, so that an interruption loses little
_BATCH_PIXELS = 64_000_000  # pixels of photos held while waiting for their batch: 192 MB, beside those in threads


def read_photo(file: str | Path | BinaryIO | Image.Image) -> Image.Image:
    """Read a photo upright and in RGB, with the decoder used for training images.

    Raises:
        UserError: the photo cannot be read; the message gives the cause without the file's name.
    """
    return decode(file).convert("RGB")


def face_regions(photo: Image.Image, detect: bool = True, try_turns: bool = True) -> list[Region]:
    """Return where the faces of a photo are.

    If `detect` is false or no side of the photo exceeds MAX_CROP_SIDE pixels, that is the whole photo.

    Raises:
        UserError: the detector is needed and not installed.
    """
    if detect and max(photo.size) > MAX_CROP_SIDE:
        return find_faces(photo, try_turns)
    return [Region((0, 0, *photo.size))]


def note_about(photo: Image.Image, turns_deg: Iterable[float]) -> str | None:
    """Return what the user should know about how a photo was read, if anything.

    Args:
        photo: image from `read_photo`.
        turns_deg: how far its faces were turned.
    """
    notes = []
    if is_truncated(photo):
        notes.append(TRUNCATED_NOTE)
    if any(abs(turn_deg) > _ON_ITS_SIDE_DEG for turn_deg in turns_deg):
        notes.append(TURNED_NOTE)
    return "; ".join(notes) or None


def predict_faces(
    predict: Predict,
    classes: Sequence[str],
    photos: Iterable[tuple[Key, Image.Image]],
    detect: bool = True,
    batch_size: int = 64,
    try_turns: bool = True,
    min_confidence: float = 0.0,
) -> Iterator[tuple[Key, Image.Image, list[DetectedFace]]]:
    """Detect the faces in photos and predict their emotions in batches.

    Args:
        predict: function from faces, uint8 (N, 48, 48), to probabilities, float32 (N, C).
        classes: names of the C classes.
        photos: upright RGB photos, each with a key of the caller's choice.
        detect: detect faces; otherwise treat each photo as one face. Photos with sides of
            at most MAX_CROP_SIDE pixels always are.
        batch_size: photos or faces to collect before yielding their results, for a second at most, while threads
            search the next photos. Use 1 for a camera, whose results should not wait.
        try_turns: also try photos in quarter turns; see find_faces.
        min_confidence: see DetectedFace.

    Yields:
        The key, photo and faces of each photo, in input order.

    Raises:
        UserError: from `photos`, or the detector is not installed; after the results of the photos before.
    """

    def find_and_crop(photo: tuple[Key, Image.Image]) -> _Cropped[Key]:
        regions = face_regions(photo[1], detect, try_turns)
        return *photo, regions, [crop_face(photo[1], region) for region in regions]

    apply = map if batch_size == 1 else map_ahead
    waiting: list[_Cropped[Key]] = []
    faces = pixels = 0
    since = perf_counter()
    try:
        for cropped in apply(find_and_crop, photos):
            waiting.append(cropped)
            faces += len(cropped[2])
            pixels += math.prod(cropped[1].size)
            full = max(faces, len(waiting)) >= batch_size or pixels >= _BATCH_PIXELS
            if full or perf_counter() - since > _PATIENCE_SECONDS:
                yield from _predict_batch(predict, classes, waiting, min_confidence)
                waiting, faces, pixels, since = [], 0, 0, perf_counter()
    except UserError:  # from `photos`, or no detector: the photos before still get their results
        yield from _predict_batch(predict, classes, waiting, min_confidence)
        raise
    yield from _predict_batch(predict, classes, waiting, min_confidence)


def _predict_batch(
    predict: Predict, classes: Sequence[str], waiting: list[_Cropped[Key]], min_confidence: float
) -> Iterator[tuple[Key, Image.Image, list[DetectedFace]]]:
    crops = [crop for *_, crops in waiting for crop in crops]
    rows = iter(predict(np.stack(crops)).tolist() if crops else [])
    for key, photo, regions, _ in waiting:
        faces = [
            DetectedFace(
                region.box,
                dict(zip(classes, next(rows), strict=True)),
                region.turn_deg,
                min_confidence=min_confidence,
            )
            for region in regions
        ]
        yield key, photo, faces


def crop_face(photo: Image.Image, region: Region) -> npt.NDArray[np.uint8]:
    """Crop a face for the network, turned upright, brightened if it is dark: uint8 (FACE_SIZE, FACE_SIZE), grey.

    What lies outside the photo after turning takes the colour of the nearest edge. If the region is the whole
    photo, its grey levels stay as they are, as in training.
    """
    x, y, width, height = region.box
    if region.turn_deg == 0:
        face = photo.crop((x, y, x + width, y + height)).convert("L")
    else:
        margin = math.ceil(0.21 * max(width, height))  # a square that turns needs a square of 1.42 times its side
        box = (x - margin, y - margin, x + width + margin, y + height + margin)
        inner = (max(box[0], 0), max(box[1], 0), min(box[2], photo.width), min(box[3], photo.height))
        padding = ((inner[1] - box[1], box[3] - inner[3]), (inner[0] - box[0], box[2] - inner[2]))
        wide = Image.fromarray(np.pad(np.asarray(photo.crop(inner).convert("L")), padding, "edge"))
        wide = wide.rotate(-region.turn_deg, Image.Resampling.BILINEAR)
        face = wide.crop((margin, margin, margin + width, margin + height))
    pixels = np.asarray(face.resize((FACE_SIZE, FACE_SIZE), Image.Resampling.BILINEAR))
    is_whole = region.box == (0, 0, *photo.size)
    if not is_whole and (peak := float(np.quantile(pixels, 0.99))) < _DARK_PEAK:
        pixels = np.minimum(np.round(pixels * (_BRIGHTENED_PEAK / max(peak, 1.0))), 255).astype(np.uint8)
    return pixels
