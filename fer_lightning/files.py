"""Atomic writes, checksums and paths of files. Imports nothing heavy."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

Json = dict[str, Any]  # a JSON object


def expand_home(argument: str) -> str:
    """Return an argument with ~ expanded in --OPTION=~/PATH; shells expand it only at the start of a word."""
    option, equals, value = argument.partition("=")
    return f"{option}{equals}{os.path.expanduser(value)}" if option.startswith("-") else argument


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON atomically: the file is either replaced completely or left as it was."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to a temporary file beside `path`, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Files made by tempfile would be readable by their owner only.
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
    """Return the SHA-256 of a file's content as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
