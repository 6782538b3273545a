"""What every command writes: whole files or none, and tables for the terminal. Imports nothing heavy."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4


def write_json(path: Path, content: Any) -> None:
    """Writes the whole file or leaves the old one: never half of it."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `content`, text as UTF-8, to a temporary file beside `path`, then puts it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's, which only its owner may read.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def printable(text: str) -> str:
    r"""The text in one line: what would steer the terminal, or is no text, as its escape, such as \n or \x1b."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def percent(value: float | None) -> str:
    """A fraction as a table has it, "-" for none."""
    return "-" if value is None else f"{value:.2%}"


def decimal(value: float | None) -> str:
    """A number to four places, "-" for none."""
    return "-" if value is None else f"{value:.4f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines)
