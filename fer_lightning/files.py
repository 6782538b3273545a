"""Files that are written whole or not at all, and their checksums. Imports nothing heavy."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

Json = dict[str, Any]  # what a JSON file holds


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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
