"""Whole photos: read them, find their faces, cut these out as in FER-2013, and draw what a network says of them."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fer_lightning.data.images import decode
from fer_lightning.emotions import COLOURS, EMOTIONS
from fer_lightning.errors import UserError

if TYPE_CHECKING:
    from fer_lightning.inference.classifier import Classifier

Box = tuple[int, int, int, int]  # x, y, width, height in pixels of the upright photo
Key = TypeVar("Key")

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

_LEGIBLE = 384  # pixels of the longer side from which a picture has room for writing
_PATIENCE_SECONDS = 1.0  # that a photo waits for others, so that little is lost when someone stops
_BATCH_PIXELS = 64_000_000  # of photos held until their faces have gone through the network: 192 MB


@dataclass(frozen=True)
class Face:
    """A face in a photo and what a network says of it."""

    box: Box  # the square that the network saw, or the whole picture
    probabilities: dict[str, float]  # by emotion, in the order of emotions.EMOTIONS

    @property
    def emotion(self) -> str:
        """The most probable emotion."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probabilities[self.emotion]

    def to_json(self) -> dict[str, Any]:
        """As in the output of ``predict --json``."""
        return {
            "box": list(self.box),
            "emotion": self.emotion,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
        }


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


def look(
    clf: "Classifier",
    photos: Iterable[tuple[Key, Image.Image]],
    detect: bool = True,
    tta: str = "none",
    batch_size: int = 64,
) -> Iterator[tuple[Key, Image.Image, list[Face]]]:
    """Finds the faces of photos and tells their emotions, many at a time.

    Args:
        clf: the network.
        photos: upright RGB photos, each with whatever the caller knows it by.
        detect: look for faces; otherwise each photo is one face. A photo of up to WHOLE pixels always is.
        tta: test-time augmentation, a key of tta.VIEWS.
        batch_size: answers come after so many photos or faces, or after a second; 1 for a camera, whose answers
            should not wait.

    Yields:
        Each photo in its turn, as it came, with its faces.

    Raises:
        UserError: the detector is not installed; no such `tta`.
    """
    waiting: list[tuple[Key, Image.Image, list[Box]]] = []
    faces = pixels = 0
    since = perf_counter()
    for key, photo in photos:
        try:
            boxes = face_boxes(photo, detect)
        except UserError:  # without the detector: those that need none are answered all the same
            yield from _answers(clf, waiting, tta)
            raise
        waiting.append((key, photo, boxes))
        faces += len(boxes)
        pixels += photo.width * photo.height
        full = max(faces, len(waiting)) >= batch_size or pixels >= _BATCH_PIXELS
        if full or perf_counter() - since > _PATIENCE_SECONDS:
            yield from _answers(clf, waiting, tta)
            waiting, faces, pixels, since = [], 0, 0, perf_counter()
    yield from _answers(clf, waiting, tta)


def _answers(
    clf: "Classifier", waiting: list[tuple[Key, Image.Image, list[Box]]], tta: str
) -> Iterator[tuple[Key, Image.Image, list[Face]]]:
    crops = [crop_face(photo, box) for _, photo, boxes in waiting for box in boxes]
    probabilities = clf.predict(np.stack(crops), tta).probabilities.tolist() if crops else []
    answers = iter(probabilities)
    for key, photo, boxes in waiting:
        yield key, photo, [Face(box, dict(zip(EMOTIONS, next(answers), strict=True))) for box in boxes]


def crop_face(photo: Image.Image, box: Box) -> npt.NDArray[np.uint8]:
    """The face in a box as a network gets it: uint8 (FACE_SIZE, FACE_SIZE), grey."""
    x, y, width, height = box
    face = photo.crop((x, y, x + width, y + height)).convert("L")
    return np.asarray(face.resize((FACE_SIZE, FACE_SIZE), Image.Resampling.BILINEAR))


def annotate(photo: Image.Image, faces: Iterable[Face]) -> Image.Image:
    """A copy of the photo with a box for each face, its emotion and confidence; small ones are enlarged for it.

    White lines edged in black and white text on black can be read on any photo; the emotion's colour comes beside
    its name, never instead of it.
    """
    zoom = max(1, _LEGIBLE // max(photo.size))
    drawn = photo.resize((photo.width * zoom, photo.height * zoom), Image.Resampling.NEAREST)
    canvas = ImageDraw.Draw(drawn)
    longer = max(drawn.size)
    line = max(1, round(longer / 500))
    taken: list[Box] = []
    for face in sorted(faces, key=lambda face: face.box[1]):
        x, y, width, height = (zoom * pixels for pixels in face.box)
        corners = (x, y, x + width - 1, y + height - 1)
        for colour, inset, wide in (
            ("black", 0, line),
            (COLOURS[face.emotion], line, 2 * line),
            ("white", 3 * line, line),
            ("black", 4 * line, line),
        ):
            _frame(canvas, corners, inset, colour, wide)
        font = ImageFont.load_default(min(max(width / 8, longer / 60, 11), longer / 20))
        taken.append(_label(canvas, face, (x, y, height), font, taken, drawn.size))
    return drawn


def _frame(
    canvas: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], inset: int, colour: str, line: int
) -> None:
    left, top, right, bottom = corners
    if right - left > 2 * inset and bottom - top > 2 * inset:
        canvas.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=colour, width=line)


def _label(
    canvas: ImageDraw.ImageDraw,
    face: Face,
    at: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[Box],
    size: tuple[int, int],
) -> Box:
    """Writes a face's label above its box at (x, y, height), or where there is room; returns the label's place."""
    text = f"{face.emotion} {face.confidence:.0%}"
    x, y, face_height = at
    _, top, _, bottom = canvas.textbbox((0, 0), "happy 100%", font)
    pad = round((bottom - top) * 0.3) + 1
    swatch = round(bottom - top)
    width = round(canvas.textlength(text, font)) + swatch + 3 * pad
    height = round(bottom - top) + 2 * pad
    left = max(0, min(x, size[0] - width))
    places = (y - height, y + face_height, y, y + face_height - height)
    inside = [place for place in places if 0 <= place <= size[1] - height] or [0]
    free = [place for place in inside if not any(_overlap((left, place, width, height), box) for box in taken)]
    place = next(chain(free, inside))
    canvas.rectangle((left, place, left + width - 1, place + height - 1), fill="black")
    swatch_box = (left + pad, place + pad, left + pad + swatch - 1, place + pad + swatch - 1)
    canvas.rectangle(swatch_box, fill=COLOURS[face.emotion])
    canvas.text((left + 2 * pad + swatch, place + pad - top), text, fill="white", font=font)
    return left, place, width, height


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
