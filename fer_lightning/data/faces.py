"""Labelled faces as arrays: what every data source returns and everything after it reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

TRAIN, VAL, TEST = 0, 1, 2  # the values of Faces.usage
FER2013_SPLITS = ("Training", "PublicTest", "PrivateTest")
GENERIC_SPLITS = ("train", "validation", "test")
MAX_IMAGE_SIZE = 1024  # pixels that a network may take; beyond, a checkpoint could ask for any amount of memory


@dataclass(frozen=True, eq=False)
class Faces:
    """N grey 48x48 faces with their labels and splits.

    The arrays may be read-only memory maps.
    """

    images: npt.NDArray[np.uint8]  # (N, 48, 48)
    labels: npt.NDArray[np.int64]  # (N,) index into emotions.EMOTIONS
    usage: npt.NDArray[np.uint8]  # (N,) TRAIN, VAL or TEST
    ids: Sequence[str]  # N unique names: the path inside the archive or folder, or "fer2013.csv:LINE"
    dataset: str  # "FER-2013", "folder" or "synthetic"
    source: str  # where they came from, for people to read
    fingerprint: str  # 16 hex digits over images, labels and usage
    split_names: tuple[str, str, str] = FER2013_SPLITS  # of TRAIN, VAL and TEST
    notes: tuple[str, ...] = field(default=())  # what a person should be told once: converted, dropped, differing

    def __len__(self) -> int:
        return len(self.labels)


def fingerprint(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], usage: npt.NDArray[np.uint8]) -> str:
    """16 hex digits that change when any pixel, label, split or the order does."""
    digest = blake2b(digest_size=8)
    for array in (images, labels, usage):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@lru_cache(maxsize=1)  # every split of a dataset asks for them
def pixel_keys(faces: Faces) -> list[bytes]:
    """One key an image, equal where all pixels are."""
    return [blake2b(image.tobytes(), digest_size=16).digest() for image in faces.images]


def seen_elsewhere(faces: Faces, usages: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which images of the splits `usages` have pixels that also occur in a split outside them.

    Returns a bool array (N,), False for every image outside `usages`. Exact pixel equality only; FER-2013
    has 280 such images in PublicTest and 288 in PrivateTest that are also in Training.
    """
    inside = np.isin(faces.usage, usages)
    keys = pixel_keys(faces)
    outside = {key for key, is_in in zip(keys, inside, strict=True) if not is_in}
    return np.array([is_in and key in outside for key, is_in in zip(keys, inside, strict=True)], dtype=bool)
