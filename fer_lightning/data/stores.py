"""A folder or a zip archive as named files to read; an archive is never unpacked onto the disk."""

import hashlib
import os
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from fer_lightning.errors import UserError
from fer_lightning.files import sha256

KAGGLE_PAGE = "https://www.kaggle.com/datasets/msambare/fer2013"
_MAX_DEPTH, _MAX_FOLDERS = 32, 100_000  # of folders below the one that is given; links can make any number of few
# What a zip may unpack to: the real ones, of JPEGs or of CSVs, have 1 to 4 times their own size.
_MAX_UNPACKED, _MAX_RATIO = 2**30, 100
_HIDDEN = {"__macosx", "thumbs.db", "desktop.ini"}


class Store(Protocol):
    """Named files to read, of a folder or a zip archive."""

    path: Path
    sizes: dict[str, int]  # bytes of each file that is not hidden, by its path with forward slashes
    folders: list[str]
    repeated: list[str]  # paths that occur more than once

    def open(self, path: str) -> IO[bytes]: ...


class Folder:
    """A folder on the disk with all below it, or one file of it alone."""

    def __init__(self, root: Path, only: str | None = None) -> None:
        self.root, self.path = root, root / (only or "")
        self.sizes: dict[str, int] = {}
        self.folders: list[str] = []
        self.repeated: list[str] = []
        self._mtimes_ns: dict[str, int] = {}
        if only is not None:
            self._add(only, (root / only).stat())
        else:
            self._walk("", frozenset())
            self.folders.sort()

    def _add(self, path: str, stat: os.stat_result) -> None:
        self.sizes[path] = stat.st_size
        self._mtimes_ns[path] = stat.st_mtime_ns

    def _walk(self, folder: str, above: frozenset[Path]) -> None:
        real = (self.root / folder).resolve()
        if real in above:  # a link that leads back up
            return
        if folder:
            self.folders.append(folder)
        if len(self.folders) > _MAX_FOLDERS or len(above) > _MAX_DEPTH:
            raise UserError(
                f"{self.root} has more than {_MAX_FOLDERS:,} folders, or {_MAX_DEPTH} one in the other (do links "
                "lead in circles?). Give the folder that holds train/ and test/, or the class folders."
            )
        with os.scandir(real) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if _is_hidden(path):
                    continue
                if entry.is_dir():
                    self._walk(path, above | {real})
                else:  # of a link that leads nowhere its own, for it shall be missed when it is read
                    self._add(path, entry.stat(follow_symlinks=entry.is_file()))

    def open(self, path: str) -> IO[bytes]:
        return regular_file(self.root / path).open("rb")

    def key(self, form: "Form") -> str:
        """Of CSVs their content; of many images only place, names, sizes and times, which is quick."""
        if form.kind == "csv":
            parts = [part for path in form.paths for part in (path, sha256(regular_file(self.root / path)))]
        else:
            files = [f"{path}\0{self.sizes[path]}\0{self._mtimes_ns[path]}" for path in form.paths]
            parts = [str(self.root.resolve()), *self.folders, *files]
        text = "\0".join(parts).encode("utf-8", "surrogateescape")
        return f"{form.kind}-{hashlib.sha256(text).hexdigest()}"


class Archive:
    """A zip archive, never unpacked onto the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise UserError(
                f"{path} is not a zip archive, or was cut off ({error}); it has "
                f"{path.stat().st_size:,} bytes. Download it again from {KAGGLE_PAGE}."
            ) from error
        self.sizes: dict[str, int] = {}
        self.repeated: list[str] = []
        self._members: dict[str, zipfile.ZipInfo] = {}
        folders: set[str] = set()
        outside, encrypted = [], []
        for member in self._zip.infolist():
            parts = member.filename.replace("\\", "/").split("/")
            name = "/".join(part for part in parts if part not in ("", "."))
            if not parts[0] or parts[0][1:] == ":" or ".." in parts:
                outside.append(member.filename)
            elif _is_hidden(name):
                continue
            elif not parts[-1]:
                folders.add(name)
            else:
                folders.add(parent(name))
                if member.flag_bits & 0x1:
                    encrypted.append(name)
                if name in self._members:
                    self.repeated.append(name)
                self._members[name] = member
                self.sizes[name] = member.file_size
        self.folders = sorted(folders - {""})
        if outside or encrypted:
            self._zip.close()
        if outside:
            raise UserError(
                f"{path} holds names that lead out of the archive ({some(outside)}), which no copy of "
                f"FER-2013 does: it is refused. Download it from {KAGGLE_PAGE}."
            )
        if encrypted:
            raise UserError(
                f"{path} is encrypted ({some(encrypted)}). Unpack it with its password and give the folder."
            )

    def open(self, path: str) -> IO[bytes]:
        if self._members[path].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks a block of the others whole, whatever size it claims.
            raise NotImplementedError("packed in another way than deflate; unpack it and give the folder")
        try:
            return self._zip.open(self._members[path])
        except UnicodeDecodeError as error:
            raise zipfile.BadZipFile("the name in front of the file is damaged") from error

    def check_unpacked(self, paths: Iterable[str], most: int | None) -> None:
        """Raises UserError for files that unpack to what no data do; up to `most` bytes are read of each."""
        unpacked = sum(self.sizes[path] if most is None else min(self.sizes[path], most) for path in paths)
        if unpacked > max(_MAX_UNPACKED, _MAX_RATIO * self.path.stat().st_size):
            raise UserError(
                f"{self.path} would unpack to {unpacked / 2**30:,.1f} GiB, more than {_MAX_RATIO} times its size: "
                f"this is no copy of FER-2013, and it is refused. Download it from {KAGGLE_PAGE}."
            )

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *exc: object) -> None:
        self._zip.close()


@dataclass(frozen=True)
class Form:
    """The files of a store that are read, and how."""

    kind: str  # "csv" or "images"
    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()


def regular_file(path: Path) -> Path:
    """Return the path of a file; OSError for anything else."""
    if not path.is_file():  # a pipe or a device may never end
        raise OSError(f"{path} is not a file, or a link to none")
    return path


# Paths within a store are text with forward slashes: PurePosixPath would take a second for 35,887 of them.


def leaf(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]


def parent(path: str) -> str:
    """Return a path without its last part."""
    return path.rpartition("/")[0]


def suffix(path: str) -> str:
    """Return a path's suffix in lower case, with its dot."""
    name = leaf(path)
    return name[name.rfind(".") :].lower() if "." in name else ""


def _is_hidden(path: str) -> bool:
    """What systems leave behind: .DS_Store, __MACOSX, Thumbs.db and anything below such a folder."""
    return any(part.startswith(".") or part.lower() in _HIDDEN for part in path.split("/"))


def some(names: Iterable[str], shown: int = 5) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")
