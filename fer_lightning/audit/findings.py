"""Findings of an audit, and the training images to exclude because of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from fer_lightning.audit.audit import Audit, Mask, Rows
from fer_lightning.audit.quality import BLURRED, BRIGHT, DARK
from fer_lightning.data.faces import TRAIN, Faces
from fer_lightning.data.near_copies import MIN_CONTRAST, MIN_CORRELATION, copied_among
from fer_lightning.errors import UserError, did_you_mean

# Kinds that `exclusions` can list. An image counts under the first kind that applies.
KINDS = {
    "leaks": "pixels that also occur in a held-out split",
    "conflicts": "pixels that also occur under another label",
    "copies": "pixels that also occur earlier in the same split",
    "constant": "all pixels equal",
    "near": "near copies of a held-out image, or of an earlier one of the same split",
    "dark": "hardly any pixel that is not dark",
    "bright": "very bright, often without a face",
    "blurred": "out of focus or enlarged",
    "mislabels": "suspect labels",
}
DEFAULT_KINDS = ("leaks", "conflicts", "copies", "constant")


@dataclass(frozen=True, eq=False)
class Finding:
    """A kind of problem and the images that have it."""

    key: str  # identifier in files
    title: str  # display name
    meaning: str  # one or two sentences of explanation
    rows: Rows  # (n,) ascending; suspect labels by descending margin
    groups: Sequence[Rows] | None = None  # the same images, grouped with the images that they duplicate


def count_classes(faces: Faces) -> Rows:
    """Count the images of each split and class: int64 (3, C)."""
    n = len(faces.classes)
    return np.bincount(faces.usage * n + faces.labels, minlength=3 * n).reshape(3, n)


def findings(audit: Audit) -> list[Finding]:
    """Return all findings, including empty ones, in the order of the reports."""
    faces, exact, near = audit.faces, audit.exact, audit.near

    def duplicates(key: str, title: str, meaning: str, has: Mask, group: Rows) -> Finding:
        return Finding(key, title, meaning, np.flatnonzero(has), _groups(group, np.isin(group, group[has])))

    def across(copied: Callable[[Mask], Mask], group: Rows, key: str, title: str, meaning: str) -> list[Finding]:
        """Find the images of a split that `copied` returns for the images of an earlier one."""
        found = []
        for early, late in combinations(range(3), 2):
            names = {"late": faces.split_names[late], "early": faces.split_names[early]}
            has = (faces.usage == late) & copied(faces.usage == early)
            texts = key.format(**names), title.format(**names), meaning.format(**names)
            found.append(duplicates(*texts, has, group))
        return found

    def equal(images: Mask) -> Mask:
        return np.isin(exact, exact[images])

    def alike(images: Mask) -> Mask:
        return copied_among(images, exact, audit.near_pairs) & ~equal(images)

    results = [
        duplicates(
            "copies",
            "copies of an earlier image",
            "All pixels equal those of an earlier image. Within the training split, a copy doubles the weight of "
            "the image; across splits, it is a leak.",
            exact != np.arange(len(faces)),
            exact,
        ),
        *across(
            equal,
            exact,
            "{late}_in_{early}",
            "  {late} images also in {early}",
            "All pixels are equal: a network trained or selected on {early} has seen these images of {late}.",
        ),
        duplicates(
            "conflicts",
            "equal images with different labels",
            "All pixels are equal but the labels differ: at most one label is right.",
            _in_conflict(faces, exact),
            exact,
        ),
        duplicates(
            "near",
            "near copies",
            "The same photo at another size, crop, contrast or compression, mirrored, or with a watermark: once "
            f"one image is moved onto the other, their details correlate by at least {MIN_CORRELATION:g}. A group "
            "is a chain of pairs, so images at its ends may differ more. Equal images are shown once.",
            np.isin(near, near[near != exact]),
            near,
        ),
        *across(
            alike,
            near,
            "{late}_near_{early}",
            "  {late} images with a near but no equal one in {early}",
            "Leaks from {early} to {late} that a comparison of pixels misses.",
        ),
        duplicates(
            "near_conflicts",
            "near copies with different labels",
            "The same photo under several labels: one of them is wrong, or the expression is ambiguous.",
            _in_conflict(faces, near) & np.isin(near, near[near != exact]),
            near,
        ),
        Finding(
            "constant",
            "constant images",
            "All pixels have the same grey level: there is no face.",
            np.flatnonzero(audit.constant),
        ),
        Finding(
            "almost_constant",
            f"almost constant images (std below {MIN_CONTRAST:g} of 255)",
            "Very low contrast: probably no face.",
            np.flatnonzero(audit.almost_constant),
        ),
        Finding(
            "dark",
            f"dark images (95% of the pixels below {DARK} of 255)",
            "Nothing in these images is bright: their faces are hard to make out. Constant images are not included "
            "here and in the next two kinds.",
            np.flatnonzero(audit.dark),
        ),
        Finding(
            "bright",
            f"bright images (mean above {BRIGHT} of 255)",
            "In FER-2013, three quarters of these are text or symbols in place of an image that was no longer "
            "available; the others are drawings, or faces without shading.",
            np.flatnonzero(audit.bright),
        ),
        Finding(
            "blurred",
            f"blurred images (std of the Laplacian below {BLURRED:g} of the std)",
            "Little detail for their contrast: out of focus, enlarged, or in soft light.",
            np.flatnonzero(audit.blurred),
        ),
    ]
    if audit.faceless is not None:
        results.append(
            Finding(
                "faceless",
                "images in which the face detector finds nothing",
                "Of 112 such images of FER-2013 that were looked at, 110 show a face, many of them turned aside, "
                "tilted, half hidden or cut off. So this is a list to look through, not one to exclude.",
                np.flatnonzero(audit.faceless),
            )
        )
    if audit.suggested is not None and audit.probabilities is not None:
        accuracy = (audit.probabilities.argmax(axis=1) == faces.labels).mean()
        results.append(
            Finding(
                "mislabels",
                f"suspect labels, from predictions with {accuracy:.0%} accuracy",
                "Confident learning (Northcutt et al. 2021): a network that was not trained on the image assigns "
                "another class at least the average probability that it assigns to images with that label. The "
                f"largest margins come first. Only {accuracy:.1%} of all predictions match the label, so many of "
                "these may be mistakes of the network: check them before you exclude any.",
                _suspect_rows(audit),
            )
        )
    return results


def _suspect_rows(audit: Audit) -> Rows:
    """Return the rows with suspect labels, largest probability margin first."""
    assert audit.suggested is not None
    assert audit.probabilities is not None
    rows = np.flatnonzero(audit.suggested != audit.faces.labels)
    p = audit.probabilities[rows]
    i = np.arange(len(rows))
    margin = p[i, audit.suggested[rows]] - p[i, audit.faces.labels[rows]]
    return rows[np.argsort(-margin, kind="stable")]


def _groups(group: Rows, chosen: Mask) -> list[Rows]:
    """Return the chosen rows of each group, groups in order of their first row."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(group[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(group[rows])) + 1
    return np.split(rows, starts) if len(rows) else []


def _in_conflict(faces: Faces, group: Rows) -> Mask:
    """Return a mask of the images whose group has more than one label, (N,)."""
    has = np.zeros((len(faces), len(faces.classes)), dtype=bool)
    has[group, faces.labels] = True
    conflict: Mask = (has.sum(axis=1) > 1)[group]
    return conflict


def exclusions(audit: Audit, kinds: Sequence[str] = DEFAULT_KINDS) -> dict[str, Rows]:
    """Select the training images to exclude, by kind; each image once, under the first of KINDS that applies.

    Held-out splits are never reduced, so that accuracies keep their n and stay comparable with published ones. For
    duplicates there, results.json has leak-free accuracies.

    Args:
        audit: the audit.
        kinds: the kinds to exclude, keys of KINDS.

    Returns:
        kind -> rows of the training images, ascending, in the order of KINDS.

    Raises:
        UserError: a kind is unknown, or "mislabels" was requested but the audit has no predictions.
    """
    check_kinds(kinds)
    faces = audit.faces
    training = faces.usage == TRAIN
    if "mislabels" in kinds and audit.suggested is None:
        raise UserError("mislabels needs predictions: add --mislabels, or pass your own with --probabilities.")

    def comes_later(group: Rows) -> Mask:
        first = np.full(len(faces), len(faces))
        np.minimum.at(first, group[training], np.flatnonzero(training))
        later: Mask = np.arange(len(faces)) > first[group]
        return later

    has = {
        "leaks": np.isin(audit.exact, audit.exact[~training]),
        "conflicts": _in_conflict(faces, audit.exact),
        "copies": comes_later(audit.exact),
        "constant": audit.constant,
        "near": copied_among(~training, audit.exact, audit.near_pairs) | comes_later(audit.near),
        "dark": audit.dark,
        "bright": audit.bright,
        "blurred": audit.blurred,
    }
    if audit.suggested is not None:
        has["mislabels"] = audit.suggested != faces.labels
    listed = {}
    remaining = training
    for kind in KINDS:
        if kind in kinds:
            listed[kind] = np.flatnonzero(remaining & has[kind])
            remaining = remaining & ~has[kind]
    return listed


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise UserError if a name is not in KINDS."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"unknown kind {kind!r}.{did_you_mean(kind, KINDS)} Choose from {', '.join(KINDS)}.")
