"""What is wrong with a set of labelled faces: repeated images, contradicting labels, images without a face.

FER-2013 was collected by image search, and its duplicates were not all removed: images of Training occur again in
both test splits, some under another label.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lightning.audit.mislabels import confident_labels
from fer_lightning.data.faces import Faces, pixel_keys
from fer_lightning.errors import UserError

Rows = npt.NDArray[np.int64]
# On FER-2013 all of 48 pairs looked at, of 554 at distance 4, show one photo; of those at 6, 8 and 10 about 95%,
# 75% and 35%. Up to 4 bits a JPEG of quality 50, noise of 3 grey levels or 20 more of brightness are found in over
# 99% of 1,500 images.
NEAR_BITS = 4
MAX_NEAR_BITS = 12  # beyond it pairs of different faces come by the ten thousand
# Grey levels of 255: FER-2013's dimmest face has a standard deviation of 9.1, its grey field with JPEG noise 0.7.
ALMOST_CONSTANT_STD = 8.0


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found in N faces. Groups are named by the row of their first image."""

    faces: Faces
    near_bits: int
    exact: Rows  # (N,) the first image with the same pixels
    near: Rows  # (N,) the first image that near duplicates lead to; unites groups of `exact`
    constant: npt.NDArray[np.bool_]  # (N,) all pixels equal
    almost_constant: npt.NDArray[np.bool_]  # (N,) standard deviation below ALMOST_CONSTANT_STD, but not 0
    probabilities: npt.NDArray[np.floating[Any]] | None = None  # (N, 7) out of fold
    suggested: Rows | None = None  # (N,) the class that the probabilities speak for, where sure; else the label

    @property
    def n_distinct(self) -> int:
        """How many different images there are."""
        return int((self.exact == np.arange(len(self.faces))).sum())


def audit(faces: Faces, near_bits: int = NEAR_BITS) -> Audit:
    """Everything that pixels, labels and splits tell without a network.

    For FER-2013's 35,887 images it takes some seconds on one core; the search for near duplicates grows with N².

    Args:
        faces: every split together.
        near_bits: see `near_pairs`.

    Raises:
        UserError: near_bits is out of range.
    """
    if not 0 <= near_bits <= MAX_NEAR_BITS:
        raise UserError(
            f"--near {near_bits} is out of range: 0 to {MAX_NEAR_BITS} bits. Beyond that different faces are near."
        )
    first: dict[bytes, int] = {}
    exact = np.array([first.setdefault(key, row) for row, key in enumerate(pixel_keys(faces))])
    std = np.array([image.std() for image in faces.images])  # one by one, for all as floats would be 330 MB
    constant, dim = std == 0, std < ALMOST_CONSTANT_STD
    # A hash of nothing is noise, so images without content are near to none.
    distinct = np.flatnonzero((exact == np.arange(len(faces))) & ~dim)
    pairs = distinct[near_pairs(faces.images[distinct], near_bits)]
    near = _connected(len(faces), pairs)[exact]
    return Audit(faces, near_bits, exact, near, constant, dim & ~constant)


def perceptual_hash(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(N, 48, 48) uint8 -> (N, 64) bool: which of 8x8 low frequencies are above their median.

    The pHash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010: rows and
    columns 1 to 8 of the discrete cosine transform, without row and column 0, where brightness and shading are.
    dHash finds no more of the copies that were compressed, and at 8 bits 35 times as many pairs in FER-2013.
    """
    size = images.shape[-1]
    basis = np.cos(np.pi / size * np.outer(np.arange(1, 9), np.arange(size) + 0.5)).astype(np.float32)
    frequencies = (basis @ (images @ basis.T)).reshape(len(images), 64)
    above: npt.NDArray[np.bool_] = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return above


def near_pairs(images: npt.NDArray[np.uint8], max_bits: int) -> Rows:
    """Pairs of images whose hashes differ in at most `max_bits` of 64 bits, one perhaps mirrored.

    Args:
        images: (N, 48, 48).
        max_bits: the largest Hamming distance.

    Returns:
        int64 (P, 2), rows of `images`, the smaller one first. No pair of such a distance is missed.
    """
    # The product of two hashes of ±1 is 64 - 2 * distance: exact in float32, and as fast as the machine multiplies.
    signs, mirrored = (perceptual_hash(x) * np.float32(2) - 1 for x in (images, images[:, :, ::-1]))
    chunk = 512  # rows at a time: 70 MB for FER-2013
    pairs = []
    for start in range(0, len(images), chunk):
        rows = signs[start : start + chunk]
        close = rows @ signs[start:].T >= 64 - 2 * max_bits
        close |= rows @ mirrored[start:].T >= 64 - 2 * max_bits
        found = np.argwhere(close)
        pairs.append(found[found[:, 0] < found[:, 1]] + start)
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)


def _connected(n: int, pairs: Rows) -> Rows:
    """(P, 2) edges among n nodes -> (n,): the smallest node that each is connected to."""
    name = np.arange(n)
    while True:
        smaller = name.copy()
        np.minimum.at(smaller, pairs[:, 0], name[pairs[:, 1]])
        np.minimum.at(smaller, pairs[:, 1], name[pairs[:, 0]])
        smaller = smaller[smaller]
        if (smaller == name).all():
            return name
        name = smaller


def suspect_labels(found: Audit, probabilities: npt.NDArray[np.floating[Any]]) -> Audit:
    """The audit with labels in doubt, by `confident_labels` from out-of-fold probabilities (N, 7)."""
    return replace(
        found, probabilities=probabilities, suggested=confident_labels(probabilities, found.faces.labels)
    )
