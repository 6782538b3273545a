"""Search a set of labelled faces for duplicates, conflicting labels and images without a face.

FER-2013 was collected by image search, and not all duplicates were removed: some images of Training occur again in
both test splits, some of them under another label.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lightning.audit.mislabels import confident_labels
from fer_lightning.data.faces import Faces, pixel_keys
from fer_lightning.errors import UserError

Rows = npt.NDArray[np.int64]
# FER-2013 has 554 pairs at distance 4; all of the 48 that were inspected show the same photo. At distances 6, 8 and
# 10, about 95%, 75% and 35% do. Within 4 bits, over 99% of 1,500 images match their copy after JPEG compression at
# quality 50, noise of 3 grey levels or brightening by 20 grey levels.
NEAR_BITS = 4
MAX_NEAR_BITS = 12  # beyond this, tens of thousands of pairs show different faces
# In grey levels of 255. The face of lowest contrast in FER-2013 has a standard deviation of 9.1, a plain grey image
# with JPEG noise 0.7.
ALMOST_CONSTANT_STD = 8.0


@dataclass(frozen=True, eq=False)
class Audit:
    """Results of an audit of N faces. A group is identified by the row of its first image."""

    faces: Faces
    near_bits: int
    exact: Rows  # (N,) first image with the same pixels
    near: Rows  # (N,) first image connected by near duplicates; merges groups of `exact`
    constant: npt.NDArray[np.bool_]  # (N,) all pixels equal
    almost_constant: npt.NDArray[np.bool_]  # (N,) standard deviation below ALMOST_CONSTANT_STD, but not 0
    probabilities: npt.NDArray[np.floating[Any]] | None = None  # (N, C) out of fold
    suggested: Rows | None = None  # (N,) class that the probabilities suggest with confidence, otherwise the label

    @property
    def n_distinct(self) -> int:
        """The number of distinct images."""
        return int((self.exact == np.arange(len(self.faces))).sum())


def audit(faces: Faces, near_bits: int = NEAR_BITS) -> Audit:
    """Audit pixels, labels and splits; needs no network.

    Takes a few seconds on one core for the 35,887 images of FER-2013. The search for near duplicates is O(N²).

    Args:
        faces: the dataset with all of its splits.
        near_bits: largest Hamming distance of near duplicates, 0 to MAX_NEAR_BITS; see `near_pairs`.

    Raises:
        UserError: near_bits is out of range.
    """
    if not 0 <= near_bits <= MAX_NEAR_BITS:
        raise UserError(
            f"--near {near_bits}: expected 0 to {MAX_NEAR_BITS} bits. Larger distances match different faces."
        )
    first: dict[bytes, int] = {}
    exact = np.array([first.setdefault(key, row) for row, key in enumerate(pixel_keys(faces))])
    std = np.array([image.std() for image in faces.images])  # one by one: all images as floats would take 330 MB
    constant, dim = std == 0, std < ALMOST_CONSTANT_STD
    # The hash of an image without content is noise, so such images are never near duplicates.
    distinct = np.flatnonzero((exact == np.arange(len(faces))) & ~dim)
    pairs = distinct[near_pairs(faces.images[distinct], near_bits)]
    near = _connected(len(faces), pairs)[exact]
    return Audit(faces, near_bits, exact, near, constant, dim & ~constant)


def perceptual_hash(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Compute the pHash of each image.

    After C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010: rows and columns 1
    to 8 of the discrete cosine transform, thresholded at their median. Row and column 0 are left out because they
    hold brightness and shading. dHash finds no more of the compressed copies, and at 8 bits it yields 35 times as
    many pairs in FER-2013.

    Args:
        images: uint8 (N, 48, 48).

    Returns:
        bool (N, 64): whether each of the 8x8 low frequencies is above their median.
    """
    size = images.shape[-1]
    basis = np.cos(np.pi / size * np.outer(np.arange(1, 9), np.arange(size) + 0.5)).astype(np.float32)
    frequencies = (basis @ (images @ basis.T)).reshape(len(images), 64)
    above: npt.NDArray[np.bool_] = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return above


def near_pairs(images: npt.NDArray[np.uint8], max_bits: int) -> Rows:
    """Find all pairs of images whose hashes, as they are or with one mirrored, differ in at most `max_bits` bits.

    The search is exhaustive.

    Args:
        images: uint8 (N, 48, 48).
        max_bits: largest Hamming distance, out of 64 bits.

    Returns:
        int64 (P, 2): pairs of rows of `images`, the smaller row first.
    """
    # The dot product of two hashes of ±1 is 64 - 2 * distance, exact in float32 and computed by a matrix product.
    signs, mirrored = (perceptual_hash(x) * np.float32(2) - 1 for x in (images, images[:, :, ::-1]))
    chunk = 512  # rows per block: 70 MB for FER-2013
    pairs = []
    for start in range(0, len(images), chunk):
        rows = signs[start : start + chunk]
        close = rows @ signs[start:].T >= 64 - 2 * max_bits
        close |= rows @ mirrored[start:].T >= 64 - 2 * max_bits
        block = np.argwhere(close)
        pairs.append(block[block[:, 0] < block[:, 1]] + start)
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)


def _connected(n: int, pairs: Rows) -> Rows:
    """Return the smallest node that each of n nodes is connected to, (n,), given edges (P, 2)."""
    root = np.arange(n)
    while True:
        smaller = root.copy()
        np.minimum.at(smaller, pairs[:, 0], root[pairs[:, 1]])
        np.minimum.at(smaller, pairs[:, 1], root[pairs[:, 0]])
        smaller = smaller[smaller]
        if (smaller == root).all():
            return root
        root = smaller


def suspect_labels(result: Audit, probabilities: npt.NDArray[np.floating[Any]]) -> Audit:
    """Return the audit with suspect labels added, by `confident_labels` from out-of-fold probabilities (N, C)."""
    return replace(
        result, probabilities=probabilities, suggested=confident_labels(probabilities, result.faces.labels)
    )
