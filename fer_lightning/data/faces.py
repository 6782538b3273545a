"""Labelled faces as arrays, the common output of all data sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lightning.emotions import EMOTIONS

TRAIN, VAL, TEST = 0, 1, 2  # the values of Faces.usage
UNNAMED = 3  # only between reading and load_faces: the data call the image neither train, validation nor test
FER2013_SPLITS = ("Training", "PublicTest", "PrivateTest")
GENERIC_SPLITS = ("train", "validation", "test")
SIZE = 48  # height and width of a face in pixels
MAX_IMAGE_SIZE = 1024  # in pixels; without a limit a checkpoint could request any amount of memory


@dataclass(frozen=True, eq=False)
class Faces:
    """N grey 48x48 faces with their labels and splits.

    The arrays may be read-only memory maps.

    Attributes:
        images: uint8 (N, 48, 48).
        labels: int64 (N,), indices into `classes`.
        usage: uint8 (N,), TRAIN, VAL or TEST.
        ids: N unique names: the path inside the archive or folder, or "fer2013.csv:LINE".
        dataset: "FER-2013", "FER+", "folder" or "synthetic".
        source: where the faces come from, for display.
        fingerprint: 16 hex digits over images, labels, usage and targets.
        split_names: names of TRAIN, VAL and TEST.
        classes: names of the classes, which are those of FER-2013 by default.
        notes: what the user should know about the data: images converted or dropped, counts that differ.
        targets: float32 (N, C), the probability of each class to train on instead of `labels`; None for the labels.
        votes: uint8 (N, 10), what people said about each image; only between reading and load_faces, see
            data.ferplus.
        whole: the dataset that these images are a part of; None if they are all of it. Copies are searched in it,
            because a network may have been trained on an image that has no label here.
        persons: id -> the persons or clips that a training image belongs to, as its folders name them.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    usage: npt.NDArray[np.uint8]
    ids: Sequence[str]
    dataset: str
    source: str
    fingerprint: str
    split_names: tuple[str, str, str] = FER2013_SPLITS
    classes: tuple[str, ...] = EMOTIONS
    notes: tuple[str, ...] = field(default=())
    targets: npt.NDArray[np.float32] | None = None
    votes: npt.NDArray[np.uint8] | None = None
    whole: "Faces | None" = None
    persons: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


def fingerprint(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    usage: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.float32] | None = None,
) -> str:
    """Return 16 hex digits that change with any pixel, label, split or target, and with the order."""
    digest = blake2b(digest_size=8)
    for array in (images, labels, usage, *(() if targets is None else (targets,))):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def revise(faces: Faces, **changes: Any) -> Faces:
    """Return the faces with some attributes changed, and the fingerprint that belongs to them."""
    revised = replace(faces, **changes)
    return replace(revised, fingerprint=fingerprint(revised.images, revised.labels, revised.usage, revised.targets))


def select_rows(faces: Faces, keep: npt.NDArray[np.bool_], **changes: Any) -> Faces:
    """Return the faces that a mask (N,) keeps, with other attributes changed."""
    return revise(
        faces,
        images=faces.images[keep],
        labels=faces.labels[keep],
        usage=faces.usage[keep],
        ids=tuple(name for name, kept in zip(faces.ids, keep, strict=True) if kept),
        targets=None if faces.targets is None else faces.targets[keep],
        **changes,
    )


@lru_cache(maxsize=1)  # requested for each split of a dataset
def rows_of_whole(faces: Faces) -> npt.NDArray[np.int64]:
    """Return the row of each image in `faces.whole`, int64 (N,)."""
    if faces.whole is None:
        return np.arange(len(faces))
    row_of = {name: row for row, name in enumerate(faces.whole.ids)}
    return np.array([row_of[name] for name in faces.ids], np.int64)


@lru_cache(maxsize=1)  # requested for each split of a dataset
def pixel_keys(faces: Faces) -> list[bytes]:
    """Return one key per image; equal keys mean equal pixels."""
    return [blake2b(image.tobytes(), digest_size=16).digest() for image in faces.images]


def first_copies(faces: Faces) -> npt.NDArray[np.int64]:
    """Return the row of the first image with the same pixels as each image, int64 (N,)."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(key, row) for row, key in enumerate(pixel_keys(faces))], np.int64)


def seen_elsewhere(faces: Faces, usages: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which images of the splits `usages` have the same pixels as an image of another split.

    Only exact copies count. In FER-2013, 280 images of PublicTest and 288 of PrivateTest also occur in Training.

    Args:
        faces: the whole dataset.
        usages: values of `Faces.usage`, the splits to check.

    Returns:
        bool (N,), False for every image outside `usages`.
    """
    inside, first = np.isin(faces.usage, usages), first_copies(faces)
    seen: npt.NDArray[np.bool_] = inside & np.isin(first, first[~inside])
    return seen
