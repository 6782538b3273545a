"""Lists of images in the user's files: data.exclude drops images, data.relabel changes their labels."""

import csv
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fer_lightning.data.classes import class_index
from fer_lightning.data.faces import Faces, revise, select_rows
from fer_lightning.data.gathering import MAX_LISTED
from fer_lightning.errors import UserError, did_you_mean

_MAX_LIST = 2**26  # characters in a file; a list of all of FER-2013 has 1.3 million
_MAX_NAME = 300  # characters of an id or a label to show or to compare
_HEADERS = ("label", "new label", "new_label", "emotion", "class")  # of the second column of data.relabel


def drop_excluded(faces: Faces, path: Path) -> Faces:
    """Drop the images listed in a text file, one id per line.

    Raises:
        UserError: the file cannot be read, names unknown images or names all of them.
    """
    setting = f"data.exclude={path}"
    excluded = {line.strip() for line in _read_lines(setting, path, "a UTF-8 text file with one image id per line")}
    _refuse_unknown(setting, excluded, (faces.whole or faces).ids)
    keep = _not_in(excluded, faces)
    if not keep.any():
        raise UserError(f"{setting} excludes every image. Shorten the list.")
    whole = faces.whole and select_rows(faces.whole, _not_in(excluded, faces.whole))
    note = f"data.exclude dropped {len(faces) - keep.sum():,} images."
    return select_rows(faces, keep, whole=whole, notes=(*faces.notes, note))


def _not_in(excluded: set[str], faces: Faces) -> npt.NDArray[np.bool_]:
    return np.array([name not in excluded for name in faces.ids], dtype=bool)


def relabel(faces: Faces, path: Path) -> Faces:
    """Change the labels of the images listed in a CSV, with an id and the name of a class per line.

    Raises:
        UserError: the file cannot be read, a line has another form, an image or a class is unknown, or an image has
            two labels or was left out.
    """
    setting = f"data.relabel={path}"
    rows = _read_rows(setting, path)
    found = {label: class_index(label, faces.classes) for label in dict.fromkeys(label for _, label in rows)}
    indices = {label: index for label, index in found.items() if index is not None}
    unknown = [label[:_MAX_NAME] for label in found if label not in indices]
    if unknown:
        hint = did_you_mean(unknown[0].lower(), faces.classes)
        names = ", ".join(unknown[:MAX_LISTED])
        raise UserError(f"{setting}: unknown class {names}.{hint} Choose from {', '.join(faces.classes)}.")
    new: dict[str, str] = {}
    for name, label in rows:
        if indices[new.setdefault(name, label)] != indices[label]:
            raise UserError(
                f"{setting}: {name[:_MAX_NAME]} is listed as {new[name]} and as {label}. Keep one line."
            )
    _refuse_unknown(setting, new, (faces.whole or faces).ids)
    if gone := sorted(set(new).difference(faces.ids)):
        raise UserError(
            f"{setting}: {len(gone):,} of the images have no label of FER+ and are left out: "
            f"{', '.join(name[:_MAX_NAME] for name in gone[:MAX_LISTED])}. Remove their lines."
        )
    labels = faces.labels.copy()
    targets = None if faces.targets is None else faces.targets.copy()
    for row, name in enumerate(faces.ids):
        if name in new:
            labels[row] = indices[new[name]]
            if targets is not None:
                targets[row] = np.eye(len(faces.classes))[labels[row]]
    changed = int((labels != faces.labels).sum())
    note = f"data.relabel changed {changed:,} of {len(new):,} listed labels."
    return revise(faces, labels=labels, targets=targets, notes=(*faces.notes, note))


def _read_rows(setting: str, path: Path) -> list[tuple[str, str]]:
    """Return the ids and class names in a CSV, without its header."""
    lines = _read_lines(setting, path, "a UTF-8 CSV with an image id and a class name per line")
    try:
        rows = [[field.strip() for field in row] for row in csv.reader(lines, strict=True, skipinitialspace=True)]
    except csv.Error as error:
        raise UserError(f"{setting} is not a CSV ({error}). Quote ids that contain commas or quotes.") from error
    if rows and len(rows[0]) == 2 and rows[0][1].lower() in _HEADERS:
        del rows[0]
    for row in rows:
        if len(row) != 2:
            raise UserError(
                f"{setting}: expected an image id and a class name, separated by a comma, got "
                f"{','.join(row)[:_MAX_NAME]!r}. Quote ids that contain commas."
            )
    return [(name, label) for name, label in rows]


def _read_lines(setting: str, path: Path, form: str) -> list[str]:
    """Return the lines of a file that are neither empty nor comments."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            text = file.read(_MAX_LIST + 1)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise UserError(f"{setting} cannot be read ({error}). Give {form}.") from error
    if len(text) > _MAX_LIST:
        raise UserError(f"{setting} is too large. Give {form}.")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _refuse_unknown(setting: str, names: Iterable[str], ids: Sequence[str]) -> None:
    """Raise UserError if some names are not ids, with similar ids for each."""
    unknown = sorted(set(names).difference(ids))
    if not unknown:
        return
    near = _nearest_ids(unknown[:MAX_LISTED], ids)
    entries = []
    for name in near:
        hint = f" - did you mean {' or '.join(near[name])}?" if near[name] else ""
        entries.append(f"  {name[:_MAX_NAME]}{hint}")
    if len(unknown) > MAX_LISTED:
        entries.append(f"  and {len(unknown) - MAX_LISTED:,} more")
    raise UserError("\n".join([f"{setting}: unknown image ids ({len(unknown):,}):", *entries]))


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
