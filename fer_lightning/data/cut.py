"""Cut the splits that a dataset does not name from its training images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from fer_lightning.data.faces import TEST, TRAIN, UNNAMED, VAL, Faces, fingerprint
from fer_lightning.data.layout import group_of
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError

# Fraction of each class to cut off for validation, and for test, if the data come without a split.
CUT_FRACTION = 0.1


def cut_missing_splits(faces: Faces, seed: int) -> Faces:
    """Move a tenth of each class from train to validation, and to test, if the data name neither.

    Images with equal pixels stay in one split, and so do those of a person or clip: all images in folders of one
    name below the class folders (``angry/person3/``, ``happy/person3/``). Apart from that, a hash of the pixels
    decides, so neither file names nor their order on disk matter.

    Args:
        faces: a dataset whose images are UNNAMED, or TRAIN, VAL and TEST.
        seed: seed of the hash.

    Returns:
        Faces without UNNAMED images, with a note if anything was cut.

    Raises:
        UserError: the persons or equal images cannot be divided so that each split has every class.
    """
    usage = np.where(faces.usage == UNNAMED, TRAIN, faces.usage).astype(np.uint8)
    missing = [split for split in (VAL, TEST) if not (usage == split).any()]
    if not missing or not (usage == TRAIN).any():
        return faces
    rows = np.flatnonzero(usage == TRAIN)
    units, n_groups = _units(faces, rows, seed)
    counts = [Counter(faces.labels[unit].tolist()) for unit in units]
    totals = Counter(faces.labels[rows].tolist())
    # A class of fewer distinct images than splits stays in train as a whole; one of few persons is an error.
    distinct = totals if n_groups else Counter(label for count in counts for label in count)
    wanted = {
        label: max(1, round(n * CUT_FRACTION)) for label, n in totals.items() if distinct[label] > len(missing)
    }
    left = set(range(len(units)))
    for split in missing:
        chosen = _choose(counts, left, wanted)
        left -= chosen
        for at in chosen:
            usage[units[at]] = split
    _check_classes(faces, usage, missing, list(wanted), n_groups)
    names = " and ".join(
        f"{faces.split_names[split]} ({int((usage == split).sum()):,} images)" for split in missing
    )
    whole = f"; {n_groups} persons or clips stay in one split each" if n_groups else ""
    note = f"No official split: {names} cut from train, a tenth of each class, seed {seed}{whole}."
    return replace(
        faces,
        usage=usage,
        fingerprint=fingerprint(faces.images, faces.labels, usage),
        notes=(*faces.notes, note),
    )


def _units(faces: Faces, rows: npt.NDArray[np.int64], seed: int) -> tuple[list[list[int]], int]:
    """Return the rows that stay together, ordered by a hash of their pixels, and the number of persons or clips."""
    salt = str(seed).encode()
    digests = {int(row): blake2b(faces.images[row].tobytes(), key=salt, digest_size=16).digest() for row in rows}
    groups = {row: group_of(faces.ids[row]) for row in digests}
    n_groups = len({group for group in groups.values() if group is not None})
    links: dict[bytes | str, bytes | str] = {}  # union-find over digests and groups

    def find(node: bytes | str) -> bytes | str:
        while (above := links.setdefault(node, node)) != node:
            links[node] = links[above]
            node = above
        return node

    for row, digest in digests.items():
        group = groups[row]
        if group is not None and n_groups > 1:  # a single folder in all classes distinguishes nobody
            links[find(group)] = find(digest)
    units: dict[bytes | str, list[int]] = {}
    for row in sorted(digests, key=lambda row: (digests[row], faces.ids[row])):
        units.setdefault(find(digests[row]), []).append(row)
    return list(units.values()), n_groups if n_groups > 1 else 0


def _choose(counts: Sequence[Mapping[int, int]], left: set[int], wanted: Mapping[int, int]) -> set[int]:
    """Return units with about the wanted number of images of each class, from those left in train."""
    missing = dict(wanted)
    chosen: set[int] = set()

    def take(at: int) -> None:
        chosen.add(at)
        for label, n in counts[at].items():
            if label in missing:
                missing[label] -= n

    for at in sorted(left):
        if all(n <= missing.get(label, 0) for label, n in counts[at].items()):
            take(at)
    remaining: Counter[int] = Counter()
    for at in left - chosen:
        remaining.update(counts[at])
    # A class of which every unit is too large gets its smallest one, if train keeps some of each class.
    for label, n in wanted.items():
        if missing[label] < n:
            continue
        fitting = [
            at
            for at in left - chosen
            if counts[at].get(label) and all(remaining[c] > k for c, k in counts[at].items())
        ]
        if fitting:
            smallest = min(fitting, key=lambda at: (sum(counts[at].values()), at))
            take(smallest)
            remaining.subtract(counts[smallest])
    return chosen


def _check_classes(
    faces: Faces, usage: npt.NDArray[np.uint8], cut: Sequence[int], labels: Sequence[int], n_groups: int
) -> None:
    """Raise UserError if a class lacks images in train or in a split that was cut."""
    for split in (TRAIN, *cut):
        present = set(faces.labels[usage == split].tolist())
        if lacking := [EMOTIONS[label] for label in labels if label not in present]:
            what = (
                f"the {n_groups} persons or clips (folders below the class folders)" if n_groups else "equal images"
            )
            names = " and no ".join(faces.split_names[missing] for missing in cut)
            raise UserError(
                f"{faces.source} names no {names} images, and they cannot be cut from the rest: {what} stay in one "
                f"split each, which leaves {faces.split_names[split]} without {', '.join(lacking)}. "
                "Divide the images into train/, val/ and test/."
            )
