"""Cut the splits that a dataset does not name from its training images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from random import Random

import numpy as np
import numpy.typing as npt

from fer_lightning.data.classes import ClassSet
from fer_lightning.data.faces import TEST, TRAIN, UNNAMED, VAL, Faces, revise
from fer_lightning.data.layout import groups_of
from fer_lightning.errors import UserError

# Fraction of each class to cut off for validation, and for test, if the data come without a split.
CUT_FRACTION = 0.1
_ATTEMPTS = 50  # to divide persons so that each split has every class
# Beginnings of folder names that are a person's at any depth below the class folder ("session1/subject3").
_PERSONS = ("person", "subject", "subj", "actor", "speaker", "participant")


def cut_missing_splits(faces: Faces, seed: int, classes: ClassSet) -> Faces:
    """Move a tenth of each class from train to validation, and to test, where the data do not name these.

    Images with equal pixels stay in one split, and so do those of a person or clip: all images in folders of one
    name below the class folders (``angry/person3/``, ``happy/person3/``). Apart from that, a hash of the pixels
    decides, so neither file names nor their order on disk matter.

    Args:
        faces: a dataset whose images are UNNAMED, or TRAIN, VAL and TEST.
        seed: seed of the hash.
        classes: the classes that the names of folders mean.

    Returns:
        Faces without UNNAMED images, with their `persons`, and with a note if anything was cut.

    Raises:
        UserError: no way was found to divide the persons so that each split has every class.
    """
    usage = np.where(faces.usage == UNNAMED, TRAIN, faces.usage).astype(np.uint8)
    missing = [split for split in (VAL, TEST) if not (usage == split).any()]
    rows = np.flatnonzero(usage == TRAIN)
    groups = _groups(faces, rows, classes)
    faces = replace(faces, persons={faces.ids[row]: names for row, names in groups.items()})
    if not missing or not len(rows):
        return faces
    units = _units(faces, rows, groups, seed)
    order = Random(seed)
    for attempt in range(_ATTEMPTS):
        if attempt:
            order.shuffle(units)
        cut = _cut(faces, rows, units, missing, bool(groups))
        lacking = _lacking_classes(faces, rows, cut, missing)
        if not groups or not lacking:
            break
    else:
        names = " and no ".join(faces.split_names[split] for split in missing)
        split, absent = next(iter(lacking.items()))
        raise UserError(
            f"{faces.source} names no {names} images, and no way was found to cut them from the rest: all images "
            "of a person or clip (a folder below the class folders) stay in one split, which leaves "
            f"{faces.split_names[split]} without {', '.join(absent)}. "
            "Divide the images into train/, val/ and test/."
        )
    usage[rows] = cut
    counts = {faces.split_names[split]: int((cut == split).sum()) for split in missing}
    names = " and ".join(f"{name} ({count:,} images)" for name, count in counts.items() if count)
    if not names:
        return revise(faces, usage=usage)
    share = "whole persons or clips" if groups else "a tenth of each class"
    note = f"No official split: {names} cut from train, {share}, seed {seed}."
    return revise(faces, usage=usage, notes=(*faces.notes, note))


def _groups(faces: Faces, rows: npt.NDArray[np.int64], classes: ClassSet) -> dict[int, list[str]]:
    """Return the persons or clips of each row that belongs to any."""
    folders = {int(row): found for row in rows if (found := groups_of(faces.ids[row], classes))}
    level = 0
    # A folder that all images share does not distinguish persons.
    while folders and len({found[level] if level < len(found) else None for found in folders.values()}) == 1:
        level += 1
        folders = {row: found for row, found in folders.items() if level < len(found)}
    return {
        row: [name for at, name in enumerate(found[level:]) if not at or name.startswith(_PERSONS)]
        for row, found in folders.items()
    }


def _cut(
    faces: Faces,
    rows: npt.NDArray[np.int64],
    units: Sequence[list[int]],
    missing: Sequence[int],
    grouped: bool,
) -> npt.NDArray[np.uint8]:
    """Return the split of each row, TRAIN or one of the missing ones: uint8 (len(rows),)."""
    counts = [Counter(faces.labels[unit].tolist()) for unit in units]
    totals = Counter(faces.labels[rows].tolist())
    # A class of fewer distinct images than splits stays in train as a whole; one of few persons is an error.
    distinct = totals if grouped else Counter(label for count in counts for label in count)
    wanted = {
        label: max(1, round(n * CUT_FRACTION)) for label, n in totals.items() if distinct[label] > len(missing)
    }
    usage = np.full(len(faces), TRAIN, np.uint8)
    left = set(range(len(units)))
    for split in missing:
        chosen = _choose(counts, left, wanted)
        left -= chosen
        for at in chosen:
            usage[units[at]] = split
    return usage[rows]


def _units(
    faces: Faces, rows: npt.NDArray[np.int64], groups: Mapping[int, list[str]], seed: int
) -> list[list[int]]:
    """Return the rows that stay together, ordered by a hash of their pixels."""
    key = str(seed).encode()
    digests = {int(row): blake2b(faces.images[row].tobytes(), key=key, digest_size=16).digest() for row in rows}
    links: dict[bytes | str, bytes | str] = {}  # union-find over digests and groups

    def find(node: bytes | str) -> bytes | str:
        while (above := links.setdefault(node, node)) != node:
            links[node] = links[above]
            node = above
        return node

    for row, names in groups.items():
        for name in names:
            links[find(name)] = find(digests[row])
    units: dict[bytes | str, list[int]] = {}
    for row in sorted(digests, key=lambda row: (digests[row], faces.ids[row])):
        units.setdefault(find(digests[row]), []).append(row)
    return list(units.values())


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


def _lacking_classes(
    faces: Faces, rows: npt.NDArray[np.int64], cut: npt.NDArray[np.uint8], missing: Sequence[int]
) -> dict[int, list[str]]:
    """Return the classes of more images than splits that train or a split that was cut lacks, by split."""
    labels = faces.labels[rows]
    large = [label for label, n in Counter(labels.tolist()).items() if n > len(missing)]
    found = {split: set(labels[cut == split].tolist()) for split in (TRAIN, *missing)}
    return {
        split: lacking
        for split in found
        if (lacking := [faces.classes[label] for label in large if label not in found[split]])
    }
