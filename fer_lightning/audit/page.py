"""HTML page of an audit: every count, and example images of each finding."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fer_lightning.audit.audit import Audit
from fer_lightning.audit.findings import Finding, findings
from fer_lightning.audit.report import compare_counts, count_rows
from fer_lightning.drawing.html import escape, figure, page, table

_EXAMPLES = 36  # groups or single images per finding
_PICTURES = 6  # distinct images per group
_COPIES = 4  # captions per distinct image


def audit_page(audit: Audit) -> str:
    """Render an audit as a self-contained HTML document, with up to 36 examples of each non-empty finding."""
    faces = audit.faces
    counts = [[escape(name), *(f"{count:,}" for count in row)] for name, row in count_rows(faces)]
    results = findings(audit)
    overview = [
        [_link(finding), f"{len(finding.rows):,}", "" if finding.groups is None else f"{len(finding.groups):,}"]
        for finding in results
    ]
    title = f"Audit of {faces.dataset}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(faces.source)}<br>{len(faces):,} images, {audit.n_distinct:,} distinct; '
        f"fingerprint {faces.fingerprint}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in faces.notes),
        table(["class", *map(escape, faces.split_names)], counts),
        f"<p>{compare_counts(faces)}</p>",
        table(["finding", "images", "groups"], overview),
        *(_section(audit, finding) for finding in results if len(finding.rows)),
    ]
    return page(title, "\n".join(body))


def _link(finding: Finding) -> str:
    name = finding.title.lstrip()
    indent = " " * (len(finding.title) - len(name))
    return indent + (f'<a href="#{finding.key}">{escape(name)}</a>' if len(finding.rows) else escape(name))


def _section(audit: Audit, finding: Finding) -> str:
    n = len(finding.rows)
    total = f"{n:,} {'image' if n == 1 else 'images'}"
    examples: Sequence[npt.NDArray[np.int64]] = finding.rows[:, None]  # type: ignore[assignment]
    if finding.groups is not None:
        examples = finding.groups
        total += f", {len(examples):,} groups"
    if len(examples) > _EXAMPLES:
        if finding.key == "mislabels":
            chosen = np.arange(_EXAMPLES)
            total += f"; showing the first {_EXAMPLES}"
        else:
            chosen = np.linspace(0, len(examples) - 1, _EXAMPLES).astype(int)
            total += f"; showing {_EXAMPLES}, evenly spaced"
        examples = [examples[int(i)] for i in chosen]
    title = finding.title.strip()
    cards = "\n".join(_card(audit, rows, finding.key) for rows in examples)
    return (
        f'<h2 id="{finding.key}">{escape(title[:1].upper() + title[1:])}</h2>\n'
        f'<p>{escape(finding.meaning)} <span class="faint">{total}.</span></p>\n'
        f'<div class="cards">\n{cards}\n</div>'
    )


def _card(audit: Audit, rows: npt.NDArray[np.int64], key: str) -> str:
    """Show the distinct images among the rows, each above the labels, splits and ids of its copies."""
    faces = audit.faces
    differ = len(set(faces.labels[rows].tolist())) > 1
    pictures = list(dict.fromkeys(audit.exact[rows].tolist()))
    parts = []
    for first in pictures[:_PICTURES]:
        copies = rows[audit.exact[rows] == first]
        lines = [_caption(audit, int(row), differ, key) for row in copies[:_COPIES]]
        if len(copies) > _COPIES:
            lines.append(f"and {len(copies) - _COPIES} more")
        parts.append(figure(faces.images[first], "<br>".join(lines)))
    if len(pictures) > _PICTURES:
        parts.append(f"and {len(pictures) - _PICTURES} more")
    return f'<div class="card">{"".join(parts)}</div>'


def _caption(audit: Audit, row: int, differ: bool, key: str) -> str:
    faces = audit.faces
    label = escape(faces.classes[faces.labels[row]])
    caption = f'<span class="warn">{label}</span>' if differ else f"<b>{label}</b>"
    if key == "mislabels" and audit.probabilities is not None and audit.suggested is not None:
        other = audit.suggested[row]
        p = audit.probabilities[row]
        suggested = f'<span class="warn">{escape(faces.classes[other])}</span> {p[other]:.0%}'
        caption += f" {p[faces.labels[row]]:.0%}, suggested {suggested}"
    split = escape(faces.split_names[faces.usage[row]])
    name = escape(faces.ids[row]).replace("/", "/<wbr>").replace("_", "_<wbr>")  # allow line breaks
    return f'{caption} <span class="faint">{split}<br>{name}</span>'
