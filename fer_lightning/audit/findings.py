"""What an audit found, case by case, and which images to leave out for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from fer_lightning.audit.audit import ALMOST_CONSTANT_STD, Audit, Rows
from fer_lightning.data.faces import TRAIN, Faces
from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.errors import UserError, did_you_mean

# What `exclusions` can list, in the order in which an image is counted under the first that applies.
KINDS = {
    "leaks": "pixels that also occur in a held-out split",
    "conflicts": "pixels that also occur under another label",
    "copies": "pixels that also occur earlier in the same split",
    "constant": "all pixels equal",
    "near": "near duplicates of a held-out image, or of an earlier one of the same split",
    "mislabels": "labels in doubt",
}
DEFAULT_KINDS = ("leaks", "conflicts", "copies", "constant")


@dataclass(frozen=True, eq=False)
class Finding:
    """One sort of trouble, and the images that have it."""

    key: str  # for files
    title: str  # for people
    meaning: str  # a sentence or two on it
    rows: Rows  # (n,) ascending; labels in doubt by how much
    groups: Sequence[Rows] | None = None  # the same images with those that they repeat


def count_classes(faces: Faces) -> Rows:
    """Images of each split and class: int64 (3, 7)."""
    return np.bincount(faces.usage * NUM_CLASSES + faces.labels, minlength=3 * NUM_CLASSES).reshape(3, NUM_CLASSES)


def findings(found: Audit) -> list[Finding]:
    """Every finding, also the empty ones, in the order in which they are told."""
    faces, exact, near = found.faces, found.exact, found.near

    def repeated(key: str, title: str, meaning: str, has: npt.NDArray[np.bool_], group: Rows) -> Finding:
        return Finding(key, title, meaning, np.flatnonzero(has), _groups(group, np.isin(group, group[has])))

    def across(group: Rows, key: str, title: str, meaning: str) -> list[Finding]:
        """Images of a split whose group has a member in an earlier one; of near groups no equal member."""
        told = []
        for early, late in combinations(range(3), 2):
            names = {"late": faces.split_names[late], "early": faces.split_names[early]}
            has = (faces.usage == late) & np.isin(group, group[faces.usage == early])
            if group is not exact:
                has &= ~np.isin(exact, exact[faces.usage == early])
            told.append(repeated(key.format(**names), title.format(**names), meaning.format(**names), has, group))
        return told

    told = [
        repeated(
            "copies",
            "copies of an earlier image",
            "All pixels are equal to those of an image that comes earlier in the data. In training a copy doubles "
            "an image's weight; in another split it leaks.",
            exact != np.arange(len(faces)),
            exact,
        ),
        *across(
            exact,
            "{late}_in_{early}",
            "  {late} images also in {early}",
            "All pixels are equal: what was learnt or chosen on {early} was learnt on these images of {late}.",
        ),
        repeated(
            "conflicts",
            "equal images with different labels",
            "All pixels are equal, and the labels are not: at most one of them is right.",
            _in_conflict(faces, exact),
            exact,
        ),
        repeated(
            "near",
            f"near duplicates, up to {found.near_bits} of 64 bits apart",
            f"The perceptual hashes of two images differ in at most {found.near_bits} of 64 bits, perhaps after "
            "mirroring one: mostly one photo in another size, crop, contrast or compression. A group is a chain of "
            "such pairs, so its ends may differ more. Equal images are shown once.",
            np.isin(near, near[near != exact]),
            near,
        ),
        *across(
            near,
            "{late}_near_{early}",
            "  {late} images with no equal but a near one in {early}",
            "Leaks from {early} to {late} that a comparison of pixels misses.",
        ),
        Finding(
            "constant",
            "constant images",
            "All pixels have the same grey: there is no face.",
            np.flatnonzero(found.constant),
        ),
        Finding(
            "almost_constant",
            f"almost constant images (std below {ALMOST_CONSTANT_STD:g} of 255)",
            "Hardly any contrast: probably no face.",
            np.flatnonzero(found.almost_constant),
        ),
    ]
    if found.suggested is not None and found.probabilities is not None:
        accuracy = (found.probabilities.argmax(axis=1) == faces.labels).mean()
        told.append(
            Finding(
                "mislabels",
                f"labels in doubt, by predictions that are {accuracy:.0%} right",
                "Confident learning (Northcutt et al. 2021): a network that was not trained on the image gives "
                "another class at least the probability that it gives on average to images with that label. The "
                f"widest margins come first. Only {accuracy:.1%} of all predictions are the label, so many of "
                "these mistakes may be the network's: look before you exclude.",
                _mislabelled(found),
            )
        )
    return told


def _mislabelled(found: Audit) -> Rows:
    """Rows whose label is in doubt, those with the widest margin of probability first."""
    assert found.suggested is not None
    assert found.probabilities is not None
    rows = np.flatnonzero(found.suggested != found.faces.labels)
    p = found.probabilities[rows]
    each = np.arange(len(rows))
    margin = p[each, found.suggested[rows]] - p[each, found.faces.labels[rows]]
    return rows[np.argsort(-margin, kind="stable")]


def _groups(group: Rows, chosen: npt.NDArray[np.bool_]) -> list[Rows]:
    """The chosen rows, those of one group together; groups by their first row."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(group[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(group[rows])) + 1
    return np.split(rows, starts) if len(rows) else []


def _in_conflict(faces: Faces, group: Rows) -> npt.NDArray[np.bool_]:
    """(N,): whether the group of each image has more than one label."""
    has = np.zeros((len(faces), NUM_CLASSES), dtype=bool)
    has[group, faces.labels] = True
    conflict: npt.NDArray[np.bool_] = (has.sum(axis=1) > 1)[group]
    return conflict


def exclusions(found: Audit, kinds: Sequence[str] = DEFAULT_KINDS) -> dict[str, Rows]:
    """Training images that are better left out, by kind; each once, under the first of KINDS that applies.

    Held-out splits are left whole, so that accuracies keep their n and stay comparable with published ones; the
    leak-free ones of results.json are the answer to duplicates there.

    Args:
        found: the audit.
        kinds: of KINDS.

    Raises:
        UserError: there is no such kind, or labels were not looked at.
    """
    check_kinds(kinds)
    faces = found.faces
    training = faces.usage == TRAIN
    if "mislabels" in kinds and found.suggested is None:
        raise UserError("mislabels needs predictions: add --mislabels, or give your own by --probabilities.")

    def is_held_out(group: Rows) -> npt.NDArray[np.bool_]:
        return np.isin(group, group[~training])

    def comes_later(group: Rows) -> npt.NDArray[np.bool_]:
        first = np.full(len(faces), len(faces))
        np.minimum.at(first, group[training], np.flatnonzero(training))
        later: npt.NDArray[np.bool_] = np.arange(len(faces)) > first[group]
        return later

    has = {
        "leaks": is_held_out(found.exact),
        "conflicts": _in_conflict(faces, found.exact),
        "copies": comes_later(found.exact),
        "constant": found.constant,
        "near": is_held_out(found.near) | comes_later(found.near),
    }
    if found.suggested is not None:
        has["mislabels"] = found.suggested != faces.labels
    listed = {}
    left = training
    for kind in KINDS:
        if kind in kinds:
            listed[kind] = np.flatnonzero(left & has[kind])
            left = left & ~has[kind]
    return listed


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises UserError for a name that is not among KINDS."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"{kind!r} is not a kind.{did_you_mean(kind, KINDS)} There are: {', '.join(KINDS)}.")
