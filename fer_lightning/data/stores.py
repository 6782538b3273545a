"""Read access to the files of a folder; see archives for those of a zip or tar."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Protocol

from fer_lightning.data.splits import dataset_claims, is_split_word, name_claims, usages
from fer_lightning.errors import UserError
from fer_lightning.files import sha256

KAGGLE_PAGE = "https://www.kaggle.com/datasets/msambare/fer2013"
_MAX_DEPTH, _MAX_FOLDERS = 32, 100_000  # below the given folder; links can turn a few folders into any number
_HIDDEN = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}


class Store(Protocol):
    """Read access to the files of a folder or an archive.

    Attributes:
        path: the folder, archive or single file.
        claims: what its name calls all its images, unless names inside say more; see splits.
        sizes: size in bytes of each file that is not hidden, by its path with forward slashes.
        folders: paths of all folders.
        repeated: paths that occur more than once.
    """

    path: Path
    claims: frozenset[str]
    sizes: dict[str, int]
    folders: list[str]
    repeated: list[str]

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading."""
        ...


class Folder:
    """A folder on disk with everything below it, or a single file in it.

    Args:
        root: the folder.
        only: name of the single file; None for the whole folder.
        claims: what the name of the path calls all images, unless names inside say more; see splits.
    """

    def __init__(self, root: Path, only: str | None = None, claims: frozenset[str] = frozenset()) -> None:
        self.root, self.path = root, root / (only or "")
        self.claims = claims
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
        if real in above:  # a link to a folder above
            return
        if folder:
            self.folders.append(folder)
        if len(self.folders) > _MAX_FOLDERS or len(above) > _MAX_DEPTH:
            raise UserError(
                f"{self.root} has more than {_MAX_FOLDERS:,} folders or {_MAX_DEPTH} levels of them (circular "
                "links?). Give the folder that contains train/ and test/, or the class folders."
            )
        with os.scandir(real) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if is_hidden(path):
                    continue
                if entry.is_dir():
                    self._walk(path, above | {real})
                else:  # for a dangling link, stat the link itself; reading it will report the error
                    self._add(path, entry.stat(follow_symlinks=entry.is_file()))

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading; raise OSError if it is not a regular file."""
        return regular_file(self.root / path).open("rb")

    def key(self, paths: Iterable[str], by_content: bool) -> str:
        """Return a cache key for files, from their content or, which is faster, from names, sizes and times."""
        if by_content:
            parts = [part for path in paths for part in (path, sha256(regular_file(self.root / path)))]
            parts += sorted(self.claims)
        else:
            files = [f"{path}\0{self.sizes[path]}\0{self._mtimes_ns[path]}" for path in paths]
            parts = [str(self.root.resolve()), *sorted(self.claims), *self.folders, *files]
        text = "\0".join(parts).encode("utf-8", "surrogateescape")
        return f"{'csv' if by_content else 'images'}-{hashlib.sha256(text).hexdigest()}"


def path_name_claims(path: Path) -> frozenset[str]:
    """Return what the name of a given path, or else that of its folder, calls everything inside; see splits.

    For a link, its name and that of its target count. The folder counts only if its name is a split's word alone
    ("test/images.zip"), because folders above can have any name.
    """
    named = Path(os.path.abspath(path))
    claims = dataset_claims(named.name) | dataset_claims(path.resolve().name)
    if not claims and is_split_word(named.parent.name):
        claims = name_claims(named.parent.name)
    if len(usages(claims)) > 1:
        raise UserError(f"{path} is called {' and '.join(sorted(claims))} by its name and that of its target.")
    return claims


def refuse_repeated(store: Store, paths: Iterable[str]) -> None:
    """Raise UserError if any of the files to read occurs more than once in an archive."""
    if repeated := sorted(set(store.repeated).intersection(paths)):
        raise UserError(f"{store.path} contains {abbreviate(repeated)} more than once. Keep one of each.")


def regular_file(path: Path) -> Path:
    """Return `path`; raise OSError if it is not a regular file."""
    if not path.is_file():  # a pipe or a device may never end
        raise OSError(f"{path} is not a regular file, or is a broken link")
    return path


# Paths within a store are strings with forward slashes: PurePosixPath would take a second for 35,887 of them.


def leaf(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]


def parent(path: str) -> str:
    """Return a path without its last part; empty if it has only one."""
    return path.rpartition("/")[0]


def suffix(path: str) -> str:
    """Return a path's suffix in lower case, including the dot; empty if it has none."""
    name = leaf(path)
    return name[name.rfind(".") :].lower() if "." in name else ""


def is_hidden(path: str) -> bool:
    """Return whether a file was left by an operating system: .DS_Store, __MACOSX, Thumbs.db and all below these."""
    return any(part.startswith(".") or part.lower() in _HIDDEN for part in path.split("/"))


def abbreviate(names: Iterable[str], shown: int = 5) -> str:
    """Return the first names, comma-separated, and the number of the rest."""
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")
