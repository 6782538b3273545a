"""What is wrong with a set of labelled faces: repeated images, contradicting labels, images without a face.

FER-2013 was collected by image search, and its duplicates were not all removed: images of Training occur again in
both test splits, some under another label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lightning.audit.mislabels import confident_labels
from fer_lightning.data.faces import TRAIN, Faces, pixel_keys
from fer_lightning.data.fer2013 import PUBLISHED_COUNTS
from fer_lightning.emotions import EMOTIONS, NUM_CLASSES
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.text import format_table

Rows = npt.NDArray[np.int64]

# On FER-2013 all of 48 pairs looked at, of 554 at distance 4, show one photo; of those at 6, 8 and 10 about 95%,
# 75% and 35%. Up to 4 bits a JPEG of quality 50, noise of 3 grey levels or 20 more of brightness are found in over
# 99% of 1,500 images.
NEAR_BITS = 4
MAX_NEAR_BITS = 12  # beyond it pairs of different faces come by the ten thousand

# Grey levels of 255: FER-2013's dimmest face has a standard deviation of 9.1, its grey field with JPEG noise 0.7.
ALMOST_CONSTANT_STD = 8.0

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


@dataclass(frozen=True, eq=False)
class Finding:
    """One sort of trouble, and the images that have it."""

    key: str  # for files
    title: str  # for people
    meaning: str  # a sentence or two on it
    rows: Rows  # (n,) ascending; labels in doubt by how much
    groups: Sequence[Rows] | None = None  # the same images with those that they repeat


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


# ---------------------------------------------------------------------------------------------------------
# What it comes to


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


# ---------------------------------------------------------------------------------------------------------
# Told to people and programs


def format_audit(found: Audit) -> str:
    """For the terminal; tables are at most 80 columns wide."""
    faces = found.faces
    counts = [
        [name, f"{row.sum()}", *map(str, row)]
        for name, row in zip(faces.split_names, count_classes(faces), strict=True)
    ]
    told = [
        [finding.title, f"{len(finding.rows)}", "" if finding.groups is None else f"{len(finding.groups)}"]
        for finding in findings(found)
    ]
    return "\n\n".join(
        [
            "\n".join(
                [
                    f"{faces.dataset} from {faces.source}",
                    f"{len(faces):,} images, {found.n_distinct:,} distinct; fingerprint {faces.fingerprint}",
                    *(f"note: {note}" for note in faces.notes),
                ]
            ),
            format_table(["split", "images", *EMOTIONS], counts) + f"\n{compare_counts(faces)}",
            format_table(["found", "images", "groups"], told),
        ]
    )


def compare_counts(faces: Faces) -> str:
    """Whether the counts are the published ones, in a sentence."""
    if faces.dataset != "FER-2013":
        return "Not FER-2013's own splits, so there are no published counts to compare with."
    if (count_classes(faces) == [PUBLISHED_COUNTS[name] for name in faces.split_names]).all():
        return "These are the published counts."
    return "These are not the published counts: see the notes."


def to_json(found: Audit) -> dict[str, Any]:
    """Everything, images by their ids."""
    faces = found.faces
    ids = np.array(faces.ids, dtype=object)

    def by_class(counts: Sequence[Any]) -> dict[str, int]:
        return {name: int(count) for name, count in zip(EMOTIONS, counts, strict=True)}

    def told(finding: Finding) -> dict[str, Any]:
        entry: dict[str, Any] = {"images": len(finding.rows), "ids": ids[finding.rows].tolist()}
        if finding.groups is not None:
            entry["groups"] = [ids[group].tolist() for group in finding.groups]
        if finding.key == "mislabels":
            assert found.suggested is not None
            entry["suggested"] = [EMOTIONS[label] for label in found.suggested[finding.rows]]
        return entry

    counts = {name: by_class(row) for name, row in zip(faces.split_names, count_classes(faces), strict=True)}
    published = {name: by_class(row) for name, row in PUBLISHED_COUNTS.items()}
    return {
        "dataset": faces.dataset,
        "source": faces.source,
        "data_fingerprint": faces.fingerprint,
        "notes": list(faces.notes),
        "images": len(faces),
        "distinct": found.n_distinct,
        "counts": counts,
        "published_counts": published if faces.dataset == "FER-2013" else None,
        "near_bits": found.near_bits,
        "findings": {finding.key: told(finding) for finding in findings(found)},
    }


def exclusion_list(faces: Faces, listed: Mapping[str, Rows]) -> str:
    """The text of a file for data.exclude: ids one a line, kind by kind under a comment.

    Args:
        faces: the audited faces.
        listed: see `exclusions`.

    Raises:
        UserError: an id that a line of text cannot hold.
    """
    split = faces.split_names[TRAIN]
    lines = [f"# {faces.dataset} {faces.fingerprint}: images of {split} to leave out, by fer-lightning audit"]
    for kind, rows in listed.items():
        lines.append(f"# {kind}: {KINDS[kind]} ({len(rows)} images{' not listed above' if len(lines) > 1 else ''})")
        for row in rows:
            name = faces.ids[row]
            if name.startswith("#") or name.strip() != name or name.splitlines() != [name] or not _is_utf8(name):
                raise UserError(f"the image {name!r} cannot stand in a list of one id a line: rename its file.")
            lines.append(name)
    return "\n".join(lines) + "\n"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
