"""Find images that are too dark, too bright or too blurred, or in which a face detector finds nothing."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.data.near_copies import measure
from fer_lightning.inference.ahead import map_ahead

Images = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

# The limits were chosen by looking at the images of FER-2013 on both sides. Grey levels are 0 to 255.
# 95% of the pixels of a dark image are below: 62 images, nearly all faces that are hard to make out. Not the
# mean, because a face in front of black is not dark.
DARK = 80
# The mean of a bright image is above: 37 images, of which 28 are text or symbols in place of an image that was no
# longer available, and the others drawings or faces without shading.
BRIGHT = 225
# The standard deviation of a blurred image's Laplacian is below this fraction of the image's own: 29 images, two
# thirds of them out of focus or enlarged. Above, most show smooth skin in soft light.
BLURRED = 0.33

_CELL = 64  # side of the square with one image in its middle: detectors need a margin around a face
_CELLS = 2  # images in a row and in a column of a photo
# Enlargement of a photo. The detector misses 12% of 1,280 images of PublicTest in photos of 8x8 images at their own
# size, and 3% of them in these: results/photos/constants.json.
_ZOOM = 4


def is_dark(images: Images) -> Mask:
    """Return which images (N, H, W) have 95% of their pixels below DARK, bool (N,)."""
    return measure(images, lambda x: (x < DARK).mean(axis=(1, 2)) >= 0.95)


def is_bright(images: Images) -> Mask:
    """Return which images (N, H, W) have a mean above BRIGHT, bool (N,)."""
    return measure(images, lambda x: x.mean(axis=(1, 2)) > BRIGHT)


def is_blurred(images: Images) -> Mask:
    """Return which images (N, H, W) have little detail for their contrast, see BLURRED, bool (N,)."""

    def test(x: npt.NDArray[np.float32]) -> Mask:
        neighbours = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
        laplacian = 4 * x[:, 1:-1, 1:-1] - neighbours
        blurred: Mask = laplacian.std(axis=(1, 2)) < BLURRED * x.std(axis=(1, 2))
        return blurred

    return measure(images, test)


def has_no_face(images: Images, find_faces: Callable[[Image.Image], list[tuple[int, int, int, int]]]) -> Mask:
    """Return the images in which a detector finds no face.

    Args:
        images: uint8 (N, 48, 48).
        find_faces: returns the boxes (x, y, width, height) of the faces in a photo, also if several threads call
            it. It gets photos of 2x2 enlarged images, because detectors are made for faces in large photos.

    Returns:
        bool (N,).
    """
    margin = (_CELL - images.shape[-1]) // 2
    cell_side = _CELL * _ZOOM

    def with_a_face(start: int) -> list[int]:
        """Return which of the images in the photo that begins with this one have a face."""
        block = images[start : start + _CELLS**2]
        photo = np.full((_CELLS, _CELLS, _CELL, _CELL), 128, np.uint8)  # row, column, y, x
        cells = photo.reshape(_CELLS**2, _CELL, _CELL)
        cells[: len(block), margin:-margin, margin:-margin] = block
        whole = photo.swapaxes(1, 2).reshape(_CELLS * _CELL, _CELLS * _CELL)
        enlarged = Image.fromarray(whole).resize(
            (_CELLS * cell_side, _CELLS * cell_side), Image.Resampling.BILINEAR
        )
        places = [
            start + int((y + height / 2) // cell_side) * _CELLS + int((x + width / 2) // cell_side)
            for x, y, width, height in find_faces(enlarged)
        ]
        return [place for place in places if place < len(images)]

    none = np.ones(len(images), bool)
    for places in map_ahead(with_a_face, range(0, len(images), _CELLS**2)):
        none[places] = False
    return none
