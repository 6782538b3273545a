"""Labels and soft targets for FER-2013's images from the votes of FER+; see votes for these."""

import re
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_lightning.data.classes import LEFT_OUT, ClassSet, class_index
from fer_lightning.data.faces import FER2013_SPLITS, TEST, TRAIN, UNNAMED, VAL, Faces, select_rows
from fer_lightning.data.images import IMAGE_SUFFIXES
from fer_lightning.data.stores import abbreviate, leaf, suffix
from fer_lightning.data.votes import (
    COLUMNS,
    EMOTIONS,
    Counts,
    Votes,
    find_votes,
    majority,
    read_votes,
    without_single,
)
from fer_lightning.errors import UserError

TARGETS = ("majority", "votes")
_BLOCK = 200  # consecutive rows in which labels and votes are compared; of FER-2013's own, 59% agree in the worst
_KAGGLE_NAME = re.compile(rf"({'|'.join(FER2013_SPLITS).lower()})_(\d{{1,9}})\.\w+")
_NO_ROW = 2**16 - 1  # in the table of the Kaggle names
_OWN_NAME = re.compile(r"(fer\d{7})\.\w+")

Rows = npt.NDArray[np.int64]


def check_settings(labels: str, targets: str, ferplus: str | Path | None) -> None:
    """Raise UserError unless the settings data.labels, data.targets and data.ferplus agree."""
    if labels not in ("fer2013", "ferplus"):
        raise UserError(f"data.labels={labels}: expected fer2013 or ferplus.")
    if targets not in TARGETS:
        raise UserError(f"data.targets={targets}: expected {' or '.join(TARGETS)}.")
    if labels == "fer2013" and (targets != "majority" or ferplus is not None):
        setting = f"data.targets={targets}" if targets != "majority" else f"data.ferplus={ferplus}"
        raise UserError(f"{setting} needs data.labels=ferplus: FER-2013's own labels have no votes.")


def label_by_votes(
    faces: Faces,
    classes: ClassSet,
    targets: str = "majority",
    path: str | Path | None = None,
    download: bool = True,
    cache_dir: str | Path | None = None,
) -> Faces:
    """Replace the labels of FER-2013's images by those that the votes of FER+ give.

    Single votes are ignored, as in the paper. An image is kept if more than half of the other votes are for one
    emotion; it is left out if there is no such majority, or if it is for "unknown" or "no face".

    Args:
        faces: N images of FER-2013 in any form, with FER-2013's labels, or with `votes` of their own.
        classes: the classes that the emotions mean.
        targets: "majority"; or "votes", which adds `Faces.targets`, the shares of the votes for each class, and
            keeps all images of TRAIN whose votes are for emotions by more than half. VAL and TEST are the same.
        path: file or folder with the votes; None to look beside the data, and then to download (1.6 MB).
        download: whether to download the votes if they are not found.
        cache_dir: folder for the download; None for ``cache.default_dir()``.

    Raises:
        UserError: the votes are not found or damaged, or the images cannot be told from their names or their order.
    """
    if faces.votes is not None:
        if path is not None:
            raise UserError(f"data.ferplus={path}: {faces.source} has votes itself. Leave data.ferplus out.")
        return _label(faces, faces.votes, np.ones(len(faces), bool), classes, targets)
    votes = read_votes(find_votes(path, Path(faces.source), download, cache_dir))
    rows = join(faces, votes)
    return _label(faces, votes.counts[rows], rows >= 0, classes, targets)


def _label(faces: Faces, counts: Counts, known: npt.NDArray[np.bool_], classes: ClassSet, targets: str) -> Faces:
    """Label faces by votes (N, 10); `known`, bool (N,), says which have any."""
    meanings = _meanings(classes)
    classes.check_renamed(EMOTIONS)
    names = classes.closed(meanings).names
    class_of = [names.index(meaning) if meaning != LEFT_OUT else -1 for meaning in meanings]
    top = np.where(known, majority(counts), -1)
    labels = np.array([*class_of, -1, -1, -1])[top]  # -1 for unknown, NF and, as the last one, no majority
    keep = labels >= 0
    # If a split is missing, held-out images are still cut from those of TRAIN.
    training = (faces.usage == TRAIN) & np.isin((TRAIN, VAL, TEST), faces.usage).all()

    shares = None
    if targets == "votes":
        kept = without_single(counts)
        votes = np.zeros((len(faces), len(names)), np.float32)
        for column, label in enumerate(class_of):
            if label >= 0:
                votes[:, label] += kept[:, column]
        total = votes.sum(axis=1, keepdims=True)
        keep |= training & known & (2 * total[:, 0] > kept.sum(axis=1))
        labels = np.where(labels < 0, votes.argmax(axis=1), labels)
        shares = votes / np.maximum(total, 1)

    lost = Counter(
        "without votes" if not seen else "without a majority" if column < 0 else _loss(COLUMNS[column])
        for seen, column in zip(known[~keep].tolist(), top[~keep].tolist(), strict=True)
    )
    left_out = f"; left out: {', '.join(f'{n:,} {why}' for why, n in sorted(lost.items()))}" if lost else ""
    note = f"Labels of FER+ (data.targets={targets}) for {keep.sum():,} of {len(faces):,} images{left_out}."
    if not keep.any():
        raise UserError(f"{faces.source}: {note}")
    official = faces.dataset == "FER-2013"  # otherwise splits are still cut
    whole = replace(faces, votes=None)
    return select_rows(
        replace(whole, labels=labels, targets=shares, whole=whole if official else None),
        keep,
        dataset="FER+" if official else faces.dataset,
        classes=names,
        notes=(*faces.notes, note),
    )


def _loss(column: str) -> str:
    return {"unknown": "unknown", "NF": "no face"}.get(column, f"{column} by data.rename")


def _meanings(classes: ClassSet) -> list[str]:
    """Return the class that each of EMOTIONS means."""
    found = {name: name if classes.is_open else None for name in EMOTIONS}
    found |= {name: meaning for name in EMOTIONS if (meaning := classes.meaning(name)) is not None}
    if unknown := [name for name, meaning in found.items() if meaning is None]:
        raise UserError(
            f"data.labels=ferplus: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} none of the classes "
            f"{', '.join(classes.names)}. Leave data.classes out for the eight of FER+, or leave such images out: "
            f"data.rename={{{', '.join(f'{name}: null' for name in unknown)}}}."
        )
    return [meaning for meaning in found.values() if meaning is not None]


def join(faces: Faces, votes: Votes) -> Rows:
    """Return the row of the votes that belongs to each image, int64 (N,); -1 for images without votes.

    Rows of CSVs are joined in their order, and image files by their names: FER+'s own, or those of the Kaggle
    folders, by a table that was made by comparing pixels with fer2013.csv.

    Raises:
        UserError: images have other names or are not in FER-2013's order, a split differs, or too many labels do.
    """
    is_image = [suffix(name) in IMAGE_SUFFIXES for name in faces.ids]
    if not any(is_image):
        rows, block = _join_in_order(faces, votes), _BLOCK
    else:
        rows, block = _join_by_name(faces, votes), None
    _check_splits(faces, votes, rows)
    _check_labels(faces, votes, rows, block)
    return rows


def _join_in_order(faces: Faces, votes: Votes) -> Rows:
    rows = np.full(len(faces), -1)
    for split in np.unique(faces.usage):
        ours, theirs = np.flatnonzero(faces.usage == split), np.flatnonzero(votes.usage == split)
        if split == UNNAMED:  # all of fer2013.csv, or the challenge's train.csv
            whole = len(ours) == len(votes.usage)
            theirs = np.flatnonzero((votes.usage == TRAIN) | whole)
        if len(ours) != len(theirs):
            name = "" if split == UNNAMED else f" of {faces.split_names[split]}"
            raise UserError(
                f"{faces.source} has {len(ours):,} rows{name}, FER-2013 has {len(theirs):,}. Votes belong to the "
                "rows of a CSV by their order, so none may be missing. Give the original fer2013.csv."
            )
        rows[ours] = theirs
    return rows


def _join_by_name(faces: Faces, votes: Votes) -> Rows:
    rows_of = _kaggle_rows()
    for row, name in enumerate(votes.names):
        rows_of.setdefault(name.lower(), [row])  # of the two rows that four names have, the first
    images: dict[str, list[int]] = {}
    # The Kaggle folders have two names twice, in two classes each, which their order by class distinguishes.
    for at in sorted(range(len(faces)), key=lambda at: (faces.classes[faces.labels[at]], faces.ids[at])):
        name = leaf(faces.ids[at]).lower()
        own, kaggle = _OWN_NAME.fullmatch(name), _KAGGLE_NAME.fullmatch(name)
        key = f"{own[1]}.png" if own else f"{kaggle[1]}_{int(kaggle[2])}" if kaggle else ""
        images.setdefault(key if key in rows_of else "", []).append(at)
    if unknown := images.pop("", []):
        raise UserError(
            f"{faces.source} has {len(unknown):,} images that FER+ does not know by name: "
            f"{abbreviate(faces.ids[at] for at in unknown)}. Its votes belong to the names of the Kaggle folders "
            "(Training_3908.jpg) and to its own (fer0000000.png). Leave other images out, or give fer2013.csv."
        )
    rows = np.full(len(faces), -1)
    for key, found in images.items():
        if len(found) == len(rows_of[key]):  # otherwise it is not known which one of two is there
            rows[found] = rows_of[key]
    return rows


def _kaggle_rows() -> dict[str, list[int]]:
    """Return the rows of fer2013.csv of each name in the Kaggle folders, such as "training_3908".

    A row is -1 if the votes call the image no face, or no equal image was found in fer2013.csv.
    """
    with files("fer_lightning.data").joinpath("kaggle_rows.npz").open("rb") as file, np.load(file) as table:
        splits, numbers, rows = (table[name].tolist() for name in ("splits", "numbers", "rows"))
    rows_of: dict[str, list[int]] = {}
    for split, number, row in zip(splits, numbers, rows, strict=True):
        rows_of.setdefault(f"{FER2013_SPLITS[split].lower()}_{number}", []).append(row if row != _NO_ROW else -1)
    return rows_of


def _check_splits(faces: Faces, votes: Votes, rows: Rows) -> None:
    """Raise UserError if the data call an image another split than FER+ does."""
    wrong = np.flatnonzero((rows >= 0) & (faces.usage != UNNAMED) & (faces.usage != votes.usage[rows]))
    if len(wrong):
        at = wrong[0]
        raise UserError(
            f"{faces.source} and FER+ disagree on the splits of {len(wrong):,} images: {faces.ids[at]} is in "
            f"{faces.split_names[faces.usage[at]]}, and of {FER2013_SPLITS[votes.usage[rows[at]]]} in FER+. "
            "Nothing was guessed: give FER-2013 as it was published."
        )


def _check_labels(faces: Faces, votes: Votes, rows: Rows, block: int | None) -> None:
    """Raise UserError if too few labels are those of the majority.

    In `block` consecutive rows of FER-2013, that is less than half. Named images (None) may be of few classes. FER+
    confirms only 14% of fear, for example, but still more than twice as many as it would of random images.
    """
    everywhere = majority(votes.counts)
    top = np.where(rows >= 0, everywhere[rows], -1)
    column_of = np.array([class_index(name, EMOTIONS) for name in faces.classes])
    is_emotion = [(columns >= 0) & (columns < len(EMOTIONS)) for columns in (everywhere, top)]
    ours = np.where(is_emotion[1], column_of[faces.labels], -1)
    share = np.bincount(everywhere[is_emotion[0]], minlength=len(EMOTIONS)) / is_emotion[0].sum()
    size = block or len(faces)
    for start in range(0, len(faces), size):
        chosen = slice(start, start + size)
        compared = ours[chosen] >= 0
        same = (ours == top)[chosen][compared]
        enough = len(same) / 2
        if block is None:
            enough = min(enough, 2 * share[ours[chosen][compared]].sum())
        if same.sum() < enough:
            raise UserError(
                f"{faces.source}: of {len(same):,} labels from {faces.ids[start]} on, only {same.sum():,} are "
                "those of FER+, too few for the same images: the data are no longer in the order of fer2013.csv, "
                "or their labels were changed. Give FER-2013 as it was published."
            )
