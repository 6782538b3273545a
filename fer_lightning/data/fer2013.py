"""Load FER-2013, in any form in which it is distributed, as ``Faces``.

The dataset: I. Goodfellow et al., "Challenges in Representation Learning: A report on three machine learning
contests", ICONIP 2013 (arXiv:1307.0414): 35,887 grey 48x48 faces from an image search, labelled with seven
emotions. The images are neither part of this project nor covered by its licence.

Forms: the Kaggle zip (as downloaded or extracted; ``train/happy/Training_1.jpg``), ``fer2013.csv`` and
``icml_face_data.csv``, one CSV for each split, and any folder of class folders; each also in a zip or tar.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fer_lightning.data import cache, lists
from fer_lightning.data.classes import ClassSet, class_set, class_set_of
from fer_lightning.data.cut import cut_missing_splits
from fer_lightning.data.faces import TEST, UNNAMED, Faces, revise
from fer_lightning.data.ferplus import check_settings, label_by_votes
from fer_lightning.data.images import FORMATS
from fer_lightning.data.lookup import find
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError


def load_faces(
    path: str | Path | None = None,
    *,
    download: bool = True,
    skip_bad: bool = False,
    exclude: str | Path | None = None,
    relabel: str | Path | None = None,
    labels: str = "fer2013",
    targets: str = "majority",
    ferplus: str | Path | None = None,
    classes: str | Sequence[str | int] | ClassSet | None = None,
    rename: Mapping[str, str | None] | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Faces:
    """Load FER-2013, or any folder of class folders, as N grey 48x48 faces.

    The data are searched for in ``path``, then $FER2013_PATH, then ./data, and finally (``download``) on Kaggle.
    An image belongs to the split that its name, its folders or its Usage column call it; names that contradict each
    other are refused. Splits that the data do not name are cut from train: see ``cut_missing_splits``.

    Args:
        path: an archive, a CSV, or a folder that contains one of these or class folders.
        download: download from Kaggle if no data are found.
        skip_bad: drop unreadable images and rows, with a note, instead of raising an error.
        exclude: a text file with one id per line (# starts a comment); these images are dropped.
        relabel: a CSV with an id and the name of a class per line (# starts a comment, a header is optional); these
            images get that label.
        labels: "fer2013", the labels in the data; or "ferplus", the better ones that ten people voted for, which
            needs the images of FER-2013: see ``ferplus.label_by_votes``.
        targets: what to train on with FER+: "majority", the label; or "votes", the shares of the votes.
        ferplus: file or folder with FER+'s votes, fer2013new.csv; None to look beside the data and to download it.
        classes: the classes and their order: fer2013, ferplus or rafdb, whose published numbers are known;
            "folders", with every folder or label as a class; or a list of names in the order of their numbers from
            0. None for those of `labels`. An emotion may have any of its usual names, such as happiness. A name
            that is no class is an error.
        rename: name of a class, folder or label -> the class that it means instead; None leaves its images out.
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
    check_settings(labels, targets, ferplus)
    known = class_set(labels if classes is None else classes, rename)
    if labels == "ferplus":
        faces = _read(path, download, class_set(), skip_bad, cache_dir, labels)
        faces = label_by_votes(faces, known, targets, ferplus, download, cache_dir)
    else:
        faces = _read(path, download, known, skip_bad, cache_dir)
    if faces.dataset == "folder":
        faces = cut_missing_splits(faces, seed, known)
    if relabel is not None:  # before images are dropped, so that both files may list the same ones
        faces = lists.relabel(faces, Path(relabel))
    if exclude is not None:
        faces = lists.drop_excluded(faces, Path(exclude))
    return faces


def load_held_out(
    path: str | Path | None = None,
    *,
    networks: Sequence[Sequence[str]] = (EMOTIONS,),
    trained_on: Collection[str | None] = (),
    labels: str = "fer2013",
    ferplus: str | Path | None = None,
    classes: str | Sequence[str | int] | None = None,
    rename: Mapping[str, str | None] | None = None,
    skip_bad: bool = False,
    cache_dir: str | Path | None = None,
) -> Faces:
    """Load a dataset to evaluate networks on: like ``load_faces``, but nothing is cut from the training images.

    Data that name no split are test images, all of them. Only if a network was trained on these very images, with
    the splits that ``load_faces`` cuts by default, are they cut in the same way.

    Args:
        path: see ``load_faces``; nothing is downloaded.
        networks: the classes of each network.
        trained_on: fingerprints of the datasets that the networks were trained on.
        labels: see ``load_faces``.
        ferplus: see ``load_faces``; nothing is downloaded.
        classes: see ``load_faces``; None for the networks' classes and any other emotion that occurs.
        rename: see ``load_faces``.
        skip_bad: see ``load_faces``.
        cache_dir: see ``load_faces``.

    Raises:
        FacesNotFound: no path was given, and no data were found.
        UserError: see ``load_faces``.
    """
    check_settings(labels, "majority", ferplus)
    if labels == "ferplus":
        known = class_set(class_set_of(networks) if classes is None else classes, rename)
        read = _read(path, False, class_set(), skip_bad, cache_dir, labels)
        faces = label_by_votes(read, known, "majority", ferplus, False, cache_dir)
    else:
        faces, known = _read_for(networks, path, classes, rename, skip_bad, cache_dir)
    if faces.dataset != "folder":
        return faces
    try:
        cut = cut_missing_splits(faces, 0, known)
    except UserError:  # so no network was trained on these
        cut = None
    if cut is not None:
        possible = {cut.fingerprint}
        if labels == "ferplus":  # data.targets=votes cuts the same images
            soft = label_by_votes(read, known, "votes", ferplus, False, cache_dir)
            possible.add(revise(cut, targets=soft.targets).fingerprint)
        if not possible.isdisjoint(trained_on):
            return cut
    if not (faces.usage == UNNAMED).all():
        return faces
    usage = np.full_like(faces.usage, TEST)
    note = (
        f"No split is named, so all {len(faces):,} images are tested, which is only fair to a network that was "
        "trained on none of them. To a network that was, give the data.classes and data.rename of its training."
    )
    return revise(faces, usage=usage, notes=(*faces.notes, note))


def _read_for(
    networks: Sequence[Sequence[str]],
    path: str | Path | None,
    classes: str | Sequence[str | int] | None,
    rename: Mapping[str, str | None] | None,
    skip_bad: bool,
    cache_dir: str | Path | None,
) -> tuple[Faces, ClassSet]:
    """Return the faces at a path and the classes that were known, for the arguments of ``load_held_out``."""
    if classes is None and not rename and set(map(tuple, networks)) == {EMOTIONS}:
        known = class_set()
        try:  # the same as in training, so from the same entry of the cache
            return _read(path, False, known, False, cache_dir), known
        except UserError:  # perhaps only another emotion
            pass
    known = class_set(class_set_of(networks) if classes is None else classes, rename)
    return _read(path, False, known, skip_bad, cache_dir), known


def _read(
    path: str | Path | None,
    download: bool,
    classes: ClassSet,
    skip_bad: bool,
    cache_dir: str | Path | None,
    labels: str = "fer2013",
) -> Faces:
    """Return all the faces at a path, from the cache if possible, before any step that needs no second reading."""
    try:
        source = find(path, download, classes)
    except OSError as error:
        raise UserError(f"Cannot read the data ({error}). Check the path and its permissions.") from error
    # What is skipped depends on the formats that Pillow can read.
    key = source.key + (f"-skipped-{len(FORMATS)}" if skip_bad else "")
    faces = cache.load_or_build(key, lambda: source.read(skip_bad), cache_dir)
    if faces.votes is not None and labels != "ferplus":
        raise UserError(
            f"{source.path} has the votes of FER+, not the labels of FER-2013. Set data.labels=ferplus "
            "(--labels ferplus)."
        )
    return replace(faces, source=str(source.path), notes=(*source.notes, *faces.notes))
