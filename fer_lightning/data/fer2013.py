"""Load FER-2013, in any form in which it is distributed, as ``Faces``.

The dataset: I. Goodfellow et al., "Challenges in Representation Learning: A report on three machine learning
contests", ICONIP 2013 (arXiv:1307.0414): 35,887 grey 48x48 faces from an image search, labelled with seven
emotions. The images are neither part of this project nor covered by its licence.

Forms: the Kaggle zip (as downloaded or extracted; ``train/happy/Training_1.jpg``), ``fer2013.csv``,
``icml_face_data.csv``, ``train.csv`` with or without ``test.csv``, and any folder of class folders.
"""

import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path

import numpy as np

from fer_lightning.data import cache
from fer_lightning.data.faces import TEST, TRAIN, VAL, Faces, fingerprint
from fer_lightning.data.lookup import find
from fer_lightning.data.reading import MAX_LISTED
from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.errors import UserError

# Fraction of each class to cut off for validation, and for test, if the data come without a split.
CUT_FRACTION = 0.1
_MAX_LIST = 2**26  # characters in a list of ids; a list of all of FER-2013 has 1.3 million
_MAX_NAME = 300  # characters of an id to show or to compare


def load_faces(
    path: str | Path | None = None,
    *,
    download: bool = True,
    skip_bad: bool = False,
    exclude: str | Path | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Faces:
    """Load FER-2013, or any folder of class folders, as N grey 48x48 faces.

    The data are searched for in ``path``, then $FER2013_PATH, then ./data, and finally (``download``) on Kaggle.
    The official splits come from the file names' prefixes or the Usage column. Data with neither get the splits of
    their train/, val/ and test/ folders, and missing splits are cut from train: a tenth of each class, chosen by
    ``seed`` and the pixels, so neither file names nor their order on disk matter.

    Args:
        path: a zip, a CSV, or a folder that contains one of these or class folders.
        download: download from Kaggle if no data are found.
        skip_bad: drop unreadable images and rows, with a note, instead of raising an error.
        exclude: a text file with one id per line (# starts a comment); these images are dropped.
        seed: seed of the splits that are cut here; the official splits do not depend on it.
        cache_dir: folder for decoded images; None for ``cache.default_dir()``.

    Returns:
        Faces with images (N, 48, 48) uint8, labels (N,) int64 and usage (N,) uint8. ``dataset`` is "FER-2013" if
        the official splits are known, otherwise "folder" with GENERIC_SPLITS. ``notes`` lists what was converted,
        dropped or cut, and any differences from the published counts.

    Raises:
        FacesNotFound: no path was given, no data were found, and ``download`` is False.
        UserError: the data are damaged or not in a known form; all faults of a source are listed together.
    """
    try:
        source = find(path, download)
    except OSError as error:
        raise UserError(f"Cannot read the data ({error}). Check the path and its permissions.") from error
    key = source.key + ("-skip" if skip_bad else "")
    faces = cache.load_or_build(key, lambda: source.read(skip_bad), cache_dir)
    faces = replace(faces, source=str(source.path), notes=(*source.notes, *faces.notes))
    if faces.dataset == "folder":
        faces = _cut_missing_splits(faces, seed)
    if exclude is not None:
        faces = _drop_excluded(faces, Path(exclude))
    return faces


# ---------------------------------------------------------------------------------------------------------
# Steps after reading and caching, so that a new seed or exclusion list needs no second pass over the files


def _cut_missing_splits(faces: Faces, seed: int) -> Faces:
    """Move a tenth of each class from train to validation, and to test, if these are empty."""
    empty = [split for split in (VAL, TEST) if not (faces.usage == split).any()]
    if not empty or not (faces.usage == TRAIN).any():
        return faces
    usage = np.array(faces.usage)
    salt = str(seed).encode()
    for label in range(NUM_CLASSES):
        members = np.flatnonzero((faces.labels == label) & (usage == TRAIN))
        # Order by a hash of the pixels, which depends neither on file names nor on their order on disk.
        ranks = {int(i): blake2b(faces.images[i].tobytes(), key=salt, digest_size=16).digest() for i in members}
        order = sorted(ranks, key=lambda i: (ranks[i], faces.ids[i]))
        count = max(1, round(len(order) * CUT_FRACTION)) if len(order) > len(empty) else 0
        for position, split in enumerate(empty):
            usage[order[position * count : (position + 1) * count]] = split
    names = " and ".join(f"{faces.split_names[split]} ({int((usage == split).sum()):,} images)" for split in empty)
    note = f"No official split: {names} cut from train, a tenth of each class, seed {seed}."
    return replace(
        faces,
        usage=usage,
        fingerprint=fingerprint(faces.images, faces.labels, usage),
        notes=(*faces.notes, note),
    )


def _drop_excluded(faces: Faces, path: Path) -> Faces:
    """Drop the images listed in a text file, one id per line."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            text = file.read(_MAX_LIST + 1)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise UserError(
            f"data.exclude={path} cannot be read ({error}). Give a UTF-8 text file with one image id per line."
        ) from error
    if len(text) > _MAX_LIST:
        raise UserError(f"data.exclude={path} is too large. Give a text file with one image id per line.")
    lines = text.splitlines()
    excluded = {line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")}
    unknown = sorted(excluded.difference(faces.ids))
    if unknown:
        near = _nearest_ids(unknown[:MAX_LISTED], faces.ids)
        entries = []
        for name in near:
            hint = f" - did you mean {' or '.join(near[name])}?" if near[name] else ""
            entries.append(f"  {name[:_MAX_NAME]}{hint}")
        if len(unknown) > MAX_LISTED:
            entries.append(f"  and {len(unknown) - MAX_LISTED:,} more")
        raise UserError("\n".join([f"data.exclude={path}: unknown image ids ({len(unknown):,}):", *entries]))
    keep = np.array([name not in excluded for name in faces.ids], dtype=bool)
    if not keep.any():
        raise UserError(f"data.exclude={path} excludes every image. Shorten the list.")
    images, labels, usage = faces.images[keep], faces.labels[keep], faces.usage[keep]
    return replace(
        faces,
        images=images,
        labels=labels,
        usage=usage,
        ids=tuple(name for name in faces.ids if name not in excluded),
        fingerprint=fingerprint(images, labels, usage),
        notes=(*faces.notes, f"data.exclude dropped {len(excluded):,} images."),
    )


def _nearest_ids(names: Sequence[str], ids: Sequence[str]) -> dict[str, list[str]]:
    """Return up to three similar ids for each unknown name."""
    # difflib takes seconds per name for 35,887 ids, so it only ranks the neighbours in the order of the ids and of
    # the reversed ids.
    candidates: dict[str, set[str]] = {name: set() for name in names}
    for step in (1, -1):
        ordered = sorted(text[::step] for text in ids)
        for name in names:
            at = bisect_left(ordered, name[::step])
            candidates[name].update(text[::step] for text in ordered[max(0, at - 50) : at + 50])
    # Cut long names: they are near to nothing, and difflib would take forever.
    return {name: get_close_matches(name[:_MAX_NAME], sorted(candidates[name])) for name in names}
