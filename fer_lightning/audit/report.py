"""Format an audit as text, JSON and CSV, and as lists of images to exclude or relabel."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fer_lightning.audit.audit import Audit, Rows
from fer_lightning.audit.findings import KINDS, Finding, count_classes, findings
from fer_lightning.data.faces import TRAIN, Faces
from fer_lightning.data.near_copies import MIN_CORRELATION
from fer_lightning.data.reading import PUBLISHED_COUNTS
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.text import format_table


def format_audit(audit: Audit) -> str:
    """Format an audit for the terminal; tables are at most 80 columns wide."""
    faces = audit.faces
    counts = [[name, *map(str, row)] for name, row in count_rows(faces)]
    rows = [
        [finding.title, f"{len(finding.rows)}", "" if finding.groups is None else f"{len(finding.groups)}"]
        for finding in findings(audit)
    ]
    return "\n\n".join(
        [
            "\n".join(
                [
                    f"{faces.dataset} from {faces.source}",
                    f"{len(faces):,} images, {audit.n_distinct:,} distinct; fingerprint {faces.fingerprint}",
                    *(f"note: {note}" for note in faces.notes),
                ]
            ),
            format_table(["class", *faces.split_names], counts) + f"\n{compare_counts(faces)}",
            format_table(["finding", "images", "groups"], rows),
        ]
    )


def count_rows(faces: Faces) -> list[tuple[str, list[int]]]:
    """Return the name of each class with its number of images in each split, and a row of the totals last."""
    counts = count_classes(faces)
    return [*zip(faces.classes, counts.T.tolist(), strict=True), ("images", counts.sum(axis=1).tolist())]


def compare_counts(faces: Faces) -> str:
    """Return a sentence that compares the counts with the published ones."""
    if faces.dataset != "FER-2013" or faces.classes != EMOTIONS:
        return "These labels, classes or splits have no published counts to compare with."
    if (count_classes(faces) == [PUBLISHED_COUNTS[name] for name in faces.split_names]).all():
        return "The counts match the published ones."
    return "The counts differ from the published ones: see the notes."


def to_json(audit: Audit) -> dict[str, Any]:
    """Return all findings, JSON-serialisable, with images named by id."""
    faces = audit.faces
    ids = np.array(faces.ids, dtype=object)

    def by_class(classes: Sequence[str], counts: Sequence[Any]) -> dict[str, int]:
        return {name: int(count) for name, count in zip(classes, counts, strict=True)}

    def entry_of(finding: Finding) -> dict[str, Any]:
        entry: dict[str, Any] = {"images": len(finding.rows), "ids": ids[finding.rows].tolist()}
        if finding.groups is not None:
            entry["groups"] = [ids[group].tolist() for group in finding.groups]
        if finding.key == "mislabels":
            assert audit.suggested is not None
            entry["suggested"] = [faces.classes[label] for label in audit.suggested[finding.rows]]
        return entry

    counts = {
        name: by_class(faces.classes, row)
        for name, row in zip(faces.split_names, count_classes(faces), strict=True)
    }
    published = {name: by_class(EMOTIONS, row) for name, row in PUBLISHED_COUNTS.items()}
    return {
        "dataset": faces.dataset,
        "source": faces.source,
        "data_fingerprint": faces.fingerprint,
        "notes": list(faces.notes),
        "images": len(faces),
        "distinct": audit.n_distinct,
        "counts": counts,
        "published_counts": published if faces.dataset == "FER-2013" and faces.classes == EMOTIONS else None,
        "near_correlation": MIN_CORRELATION,
        "findings": {finding.key: entry_of(finding) for finding in findings(audit)},
    }


def to_csv(audit: Audit) -> bytes:
    """Return a table with one line per image, as UTF-8; bytes of an id that are not UTF-8 stay as they are.

    Columns: id; split; label; findings, their keys separated by semicolons; copies and near_copies, the id of the
    first image of the group of equal and of near copies, if there are others; suggested_label, if there is one.
    """
    faces = audit.faces
    keys: list[list[str]] = [[] for _ in faces.ids]
    for finding in findings(audit):
        for row in finding.rows:
            keys[row].append(finding.key)
    suggested = faces.labels if audit.suggested is None else audit.suggested

    def first_ids(group: Rows) -> list[str]:
        shared = np.bincount(group, minlength=len(group))[group] > 1
        return [faces.ids[row] if several else "" for row, several in zip(group.tolist(), shared, strict=True)]

    rows = zip(
        faces.ids,
        (faces.split_names[usage] for usage in faces.usage),
        (faces.classes[label] for label in faces.labels),
        map(";".join, keys),
        first_ids(audit.exact),
        first_ids(audit.near),
        (faces.classes[new] if new != old else "" for new, old in zip(suggested, faces.labels, strict=True)),
        strict=True,
    )
    header = ("id", "split", "label", "findings", "copies", "near_copies", "suggested_label")
    return _csv([header, *rows]).encode("utf-8", "surrogateescape")


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def relabel_list(audit: Audit) -> str:
    """Format a file for data.relabel with the suggested labels of the training images.

    Held-out splits keep their labels, so that accuracies stay comparable.

    Raises:
        UserError: the audit has no suggested labels, or an id does not fit in a line of text.
    """
    if audit.suggested is None:
        raise UserError("--relabel needs predictions: add --mislabels, or pass your own with --probabilities.")
    faces = audit.faces
    rows = np.flatnonzero((audit.suggested != faces.labels) & (faces.usage == TRAIN))
    split = faces.split_names[TRAIN]
    note = f"# {faces.dataset} {faces.fingerprint}: suggested labels of {len(rows)} images of {split}"
    lines = [(_fitting(faces.ids[row]), faces.classes[audit.suggested[row]]) for row in rows.tolist()]
    return f"{note}, by fer-lightning audit\n{_csv([('id', 'label'), *lines])}"


def exclusion_list(faces: Faces, listed: Mapping[str, Rows]) -> str:
    """Format a file for data.exclude: one id per line, with a comment above each kind.

    Args:
        faces: the audited faces.
        listed: the result of `exclusions`.

    Raises:
        UserError: an id does not fit in a line of text because of a leading "#", surrounding spaces, a line break
            or bytes that are not UTF-8.
    """
    split = faces.split_names[TRAIN]
    lines = [f"# {faces.dataset} {faces.fingerprint}: images of {split} to exclude, by fer-lightning audit"]
    for kind, rows in listed.items():
        lines.append(f"# {kind}: {KINDS[kind]} ({len(rows)} images{' not listed above' if len(lines) > 1 else ''})")
        lines.extend(_fitting(faces.ids[row]) for row in rows)
    return "\n".join(lines) + "\n"


def _fitting(name: str) -> str:
    """Return an id; raise UserError if it does not fit in a list of one id per line."""
    if name.startswith("#") or name.strip() != name or name.splitlines() != [name] or not _is_utf8(name):
        raise UserError(f"image {name!r}: its id does not fit in a list of one id per line. Rename the file.")
    return name


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
