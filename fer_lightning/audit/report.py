"""An audit as text, as JSON and as a list of images to leave out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fer_lightning.audit.audit import Audit, Rows
from fer_lightning.audit.findings import KINDS, Finding, count_classes, findings
from fer_lightning.data.faces import TRAIN, Faces
from fer_lightning.data.reading import PUBLISHED_COUNTS
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.text import format_table


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
