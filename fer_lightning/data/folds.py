"""Folds of the training images for cross-validation, in which no image has a copy in another fold."""

import re

import numpy as np
import numpy.typing as npt

from fer_lightning.data.faces import TRAIN, Faces, first_copies, pixel_keys, rows_of_whole
from fer_lightning.data.near_copies import Rows, connected, near_copies
from fer_lightning.errors import UserError

FOLD = 4  # in FaceDataModule.usage: the training images that validate instead


def hold_out(faces: Faces, fold: str) -> npt.NDArray[np.uint8]:
    """Return the usage of each image when one fold of the training images validates.

    The folds depend on the images and labels only, on no seed, so that runs with different seeds share them.

    Args:
        faces: the dataset with all its splits.
        fold: "K/N", fold K from 0 to N - 1 of N folds, e.g. "0/5".

    Returns:
        uint8 (N,): FOLD for the images of the fold, otherwise `Faces.usage`.

    Raises:
        UserError: another text, more folds than groups of training images, or a class that is only in the fold or
            only outside it.
    """
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", str(fold))
    number, n = map(int, match.groups()) if match else (0, 0)
    if n < 2 or number >= n:
        raise UserError(
            f"data.fold={fold}: expected K/N, with N of at least 2 folds and K from 0 to N - 1, e.g. 0/5 to 4/5 "
            "for five folds."
        )
    usage = np.array(faces.usage)
    usage[assign_folds(faces, n) == number] = FOLD
    for label, name in enumerate(faces.classes):
        n_inside, n_outside = (int(((usage == part) & (faces.labels == label)).sum()) for part in (FOLD, TRAIN))
        if bool(n_inside) != bool(n_outside):
            raise UserError(
                f"data.fold={fold}: of the {n_inside + n_outside} images of {name}, {n_inside} are in the fold and "
                f"{n_outside} outside; both need some. Use fewer folds, or leave the class out with data.rename."
            )
    return usage


def assign_folds(faces: Faces, n: int) -> Rows:
    """Divide the training images into folds of nearly equal size, with nearly equal shares of each class.

    Groups are assigned in the order of their size, and of a hash of their pixels: neither the names of files nor
    their order matter. Each goes to the fold that has the smallest share of its classes so far.

    Args:
        faces: N faces.
        n: number of folds.

    Returns:
        int64 (N,), 0 to n - 1; equal for all training images of a group, and -1 for images of other splits.

    Raises:
        UserError: there are more folds than groups.
    """
    folds = np.full(len(faces), -1, np.int64)
    training = np.flatnonzero(faces.usage == TRAIN)
    groups: dict[int, list[int]] = {}
    for row, group in zip(training.tolist(), find_groups(faces)[training].tolist(), strict=True):
        groups.setdefault(group, []).append(row)
    if n > len(groups):
        raise UserError(
            f"data.fold=K/{n}: the {len(training)} images of {faces.split_names[TRAIN]} form only {len(groups)} "
            "groups that stay together (copies, near copies, a person or clip). Use fewer folds."
        )
    keys, labels, n_classes = pixel_keys(faces), np.asarray(faces.labels), len(faces.classes)
    # In integers, because a rounding error must not decide between folds that are equally good.
    weights = 10**9 // np.maximum(np.bincount(labels[training], minlength=n_classes), 1)
    counts = np.zeros((n, n_classes), np.int64)
    sizes = np.zeros(n, np.int64)
    for rows in sorted(groups.values(), key=lambda rows: (-len(rows), min(keys[row] for row in rows))):
        own = np.bincount(labels[rows], minlength=n_classes)
        share = counts @ (own * weights)
        smallest = np.flatnonzero(share == share.min())
        chosen = smallest[sizes[smallest].argmin()]
        folds[rows] = chosen
        counts[chosen] += own
        sizes[chosen] += len(rows)
    return folds


def find_groups(faces: Faces) -> Rows:
    """Return the group of each image, by the row of one of its images: int64 (N,).

    Images are connected by equal pixels, as near copies, and by a person or clip that their folders name, also by
    way of images of other splits and of `Faces.whole`: two near copies of a test image are alike.
    """
    whole = faces.whole or faces
    copies = connected(len(whole), near_copies(whole))[first_copies(whole)][rows_of_whole(faces)]
    first: dict[int | str, int] = {}  # group of copies, person or clip -> the first of its images
    links = []
    for row, (name, copy) in enumerate(zip(faces.ids, copies.tolist(), strict=True)):
        links += [(first.setdefault(key, row), row) for key in (copy, *faces.persons.get(name, ()))]
    return connected(len(faces), np.array(links, np.int64))
