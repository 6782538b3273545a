"""Search a set of labelled faces for copies, conflicting labels and images that are hard to recognise.

FER-2013 was collected by image search, and not all duplicates were removed: many images of Training occur again in
both test splits, at another size, crop or contrast, and some of them under another label.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lightning.audit.mislabels import confident_labels
from fer_lightning.audit.quality import is_blurred, is_bright, is_dark
from fer_lightning.data.faces import Faces, first_copies
from fer_lightning.data.near_copies import MIN_CONTRAST, connected, contrast, near_copies

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Audit:
    """Results of an audit of N faces. A group is identified by the row of its first image."""

    faces: Faces
    exact: Rows  # (N,) first image with the same pixels
    near_pairs: Rows  # (P, 2) near copies, first images only
    near: Rows  # (N,) first image connected by near copies; merges groups of `exact`
    constant: Mask  # (N,) all pixels equal
    almost_constant: Mask  # (N,) contrast below MIN_CONTRAST, but not 0
    dark: Mask  # (N,) this and the next two without constant images
    bright: Mask  # (N,)
    blurred: Mask  # (N,)
    faceless: Mask | None = None  # (N,) a face detector finds nothing
    probabilities: npt.NDArray[np.floating[Any]] | None = None  # (N, C) out of fold
    suggested: Rows | None = None  # (N,) class that the probabilities suggest with confidence, otherwise the label

    @property
    def n_distinct(self) -> int:
        """The number of distinct images."""
        return int((self.exact == np.arange(len(self.faces))).sum())


def audit(faces: Faces, cache_dir: str | Path | None = None) -> Audit:
    """Audit pixels, labels and splits; needs no network.

    Args:
        faces: the dataset with all of its splits.
        cache_dir: see `near_copies`.
    """
    exact = first_copies(faces)
    pairs = near_copies(faces, cache_dir)
    near = connected(len(faces), pairs)[exact]
    std = contrast(faces.images)
    constant = std == 0
    return Audit(
        faces,
        exact,
        pairs,
        near,
        constant,
        (std < MIN_CONTRAST) & ~constant,
        is_dark(faces.images) & ~constant,
        is_bright(faces.images) & ~constant,
        is_blurred(faces.images) & ~constant,
    )


def suspect_labels(result: Audit, probabilities: npt.NDArray[np.floating[Any]]) -> Audit:
    """Return the audit with suspect labels added, by `confident_labels` from out-of-fold probabilities (N, C)."""
    return replace(
        result, probabilities=probabilities, suggested=confident_labels(probabilities, result.faces.labels)
    )
