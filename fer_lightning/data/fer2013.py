"""FER-2013 in every form it is found in, read into ``Faces``.

The data: I. Goodfellow et al., "Challenges in Representation Learning: A report on three machine learning
contests", ICONIP 2013 (arXiv:1307.0414): 35,887 grey 48x48 faces from an image search, labelled with seven
emotions. The images are not part of this project and come with no licence from it.

Forms: the Kaggle zip (unopened or extracted; ``train/happy/Training_1.jpg``), ``fer2013.csv``,
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
from fer_lightning.data.reading import SHOWN
from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.errors import UserError

# Share of each class that is cut off for validation, and for test, where the data come without a split.
CUT_FRACTION = 0.1
_MAX_LIST = 2**26  # characters of a list of ids; that of all of FER-2013 has 1.3 million
_LONGEST_SHOWN = 300  # characters of a name


def load_faces(
    path: str | Path | None = None,
    *,
    download: bool = True,
    skip_bad: bool = False,
    exclude: str | Path | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Faces:
    """FER-2013, or any folder of class folders, as N grey 48x48 faces.

    Looked for in ``path``, then the environment's FER2013_PATH, then ./data, then (``download``) at Kaggle.
    The official splits come from the file names' prefixes or the Usage column. Data with neither get the
    splits of their train/, val/ and test/ folders, and what is missing is cut from train: a tenth of each
    class, chosen by ``seed`` and pixels, so neither file names nor their order on the disk matter.

    Args:
        path: a zip, a CSV, or a folder that holds one of these or class folders.
        download: ask Kaggle when nothing is found.
        skip_bad: drop what cannot be read, and say so in ``notes``, where it would be an error.
        exclude: a text file with one id a line (# starts a comment): these images are dropped.
        seed: of the splits that are cut here; FER-2013's own need none.
        cache_dir: where decoded images are kept; ``cache.default_dir()`` when None.

    Returns:
        Faces with images (N, 48, 48) uint8, labels (N,) int64 and usage (N,) uint8. ``dataset`` is "FER-2013"
        when the official splits are known, otherwise "folder" with GENERIC_SPLITS. ``notes`` tells what
        was converted, dropped, cut, or differs from the published counts.

    Raises:
        FacesNotFound: no path was given, nothing was found, and nothing was to be downloaded.
        UserError: what was given or found is damaged or not what it should be; all offenders of a source are
            listed together.
    """
    try:
        source = find(path, download)
    except OSError as error:
        raise UserError(f"The data cannot be read: {error}.") from error
    key = source.key + ("-skip" if skip_bad else "")
    faces = cache.load_or_build(key, lambda: source.read(skip_bad), cache_dir)
    faces = replace(faces, source=str(source.path), notes=(*source.notes, *faces.notes))
    if faces.dataset == "folder":
        faces = _cut_missing_splits(faces, seed)
    if exclude is not None:
        faces = _without(faces, Path(exclude))
    return faces


# ---------------------------------------------------------------------------------------------------------
# After reading: neither the seed nor the exclusions cost another pass over the files


def _cut_missing_splits(faces: Faces, seed: int) -> Faces:
    """Move a tenth of each class from train to validation, and to test, where these are empty."""
    empty = [split for split in (VAL, TEST) if not (faces.usage == split).any()]
    if not empty or not (faces.usage == TRAIN).any():
        return faces
    usage = np.array(faces.usage)
    salt = str(seed).encode()
    for label in range(NUM_CLASSES):
        members = np.flatnonzero((faces.labels == label) & (usage == TRAIN))
        # Ordered by a hash of the pixels: the same whatever the files are called or the disk's order is.
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


def _without(faces: Faces, path: Path) -> Faces:
    """Drop the images that a text file names, one id a line."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            text = file.read(_MAX_LIST + 1)
    except (OSError, ValueError) as error:  # the latter of what is not UTF-8
        raise UserError(f"data.exclude={path} cannot be read: {error}.") from error
    if len(text) > _MAX_LIST:
        raise UserError(f"data.exclude={path} is too large for a list of ids: it takes one id a line.")
    lines = text.splitlines()
    wanted = {line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")}
    unknown = sorted(wanted.difference(faces.ids))
    if unknown:
        near = _nearest(unknown[:SHOWN], faces.ids)
        told = []
        for name in near:
            hint = f" - did you mean {' or '.join(near[name])}?" if near[name] else ""
            told.append(f"  {name[:_LONGEST_SHOWN]}{hint}")
        if len(unknown) > SHOWN:
            told.append(f"  and {len(unknown) - SHOWN:,} more")
        raise UserError(
            "\n".join([f"data.exclude={path} names {len(unknown):,} images that are not there:", *told])
        )
    keep = np.array([name not in wanted for name in faces.ids], dtype=bool)
    if not keep.any():
        raise UserError(f"data.exclude={path} names every image: none is left.")
    images, labels, usage = faces.images[keep], faces.labels[keep], faces.usage[keep]
    return replace(
        faces,
        images=images,
        labels=labels,
        usage=usage,
        ids=tuple(name for name in faces.ids if name not in wanted),
        fingerprint=fingerprint(images, labels, usage),
        notes=(*faces.notes, f"data.exclude dropped {len(wanted):,} images."),
    )


def _nearest(names: Sequence[str], ids: Sequence[str]) -> dict[str, list[str]]:
    """Up to three ids for each name that it may have been meant for."""
    # difflib takes seconds a name over 35,887 ids: it ranks the neighbours by beginning and by end alone.
    candidates: dict[str, set[str]] = {name: set() for name in names}
    for step in (1, -1):
        ordered = sorted(text[::step] for text in ids)
        for name in names:
            at = bisect_left(ordered, name[::step])
            candidates[name].update(text[::step] for text in ordered[max(0, at - 50) : at + 50])
    # Of a name longer than any file's nothing is near, and difflib would take forever.
    return {name: get_close_matches(name[:_LONGEST_SHOWN], sorted(candidates[name])) for name in names}
