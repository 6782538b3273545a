"""Read access to zip and tar archives and to compressed files, none of which is extracted into a folder."""

import bz2
import gzip
import lzma
import os
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

from fer_lightning.data.stores import KAGGLE_PAGE, abbreviate, is_hidden, parent
from fer_lightning.errors import UserError

# Limits on the uncompressed size of an archive: real ones, of JPEGs or CSVs, expand to 1 to 4 times their size.
_MAX_UNPACKED, _MAX_RATIO = 2**30, 100
# Exceptions for members that are damaged or of unknown compression; plain files raise OSError.
DAMAGED_MEMBER = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, OSError),
)
_COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_COMPRESSED_SUFFIXES = {".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz"}


def archive_kind(head: bytes) -> str | None:
    """Return "zip", "tar" or "compressed" if a file starts with these bytes, up to 512; otherwise None."""
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    if any(head.startswith(magic) for magic in _COMPRESSED):
        return "compressed"
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, ArithmeticError):
        return None
    return "tar"


class Archive:
    """An archive, or a single compressed file, read without extracting it into a folder.

    Args:
        path: a zip or tar, or either a tar or a single file compressed by gzip, bzip2 or xz.
        claims: what the name of the archive and its folders call all images inside; see splits.

    Raises:
        UserError: it is none of these, is truncated or encrypted, would expand to an implausible size, or has
            entries that point outside it.
    """

    def __init__(self, path: Path, claims: frozenset[str] = frozenset()) -> None:
        self.path = path
        self.claims = claims
        self.sizes: dict[str, int] = {}
        self.repeated: list[str] = []
        self._members: dict[str, zipfile.ZipInfo | tarfile.TarInfo | None] = {}
        self._zip: zipfile.ZipFile | None = None
        self._tar: tarfile.TarFile | None = None
        self._file: IO[bytes] | None = None  # a compressed file, decompressed
        self._folders: set[str] = set()
        self._kind = "zip archive"
        try:
            with ExitStack() as opened:
                self._open(opened)
                self._close = opened.pop_all().close
        # ArithmeticError and MemoryError come from sizes claimed in the header of a tar.
        except (*DAMAGED_MEMBER, ValueError, struct.error, ArithmeticError, MemoryError) as error:
            raise UserError(
                f"{path} is not a {self._kind} or is truncated ({error}); it has {path.stat().st_size:,} bytes. "
                f"Download it again from {KAGGLE_PAGE}."
            ) from error
        self.folders = sorted(self._folders - {""})

    def _open(self, opened: ExitStack) -> None:
        """Open the archive and list its members; `opened` closes it."""
        with self.path.open("rb") as start:
            head = start.read(512)
        kind = archive_kind(head)
        if kind == "compressed":
            self._kind = "compressed file"
            self._file = self._decompress(head, opened)
            kind = archive_kind(self._file.read(512))
            self._file.seek(0)
        if kind == "tar":
            self._kind = "tar archive"
            file: IO[bytes] = self._file or opened.enter_context(self.path.open("rb"))
            self._tar = opened.enter_context(tarfile.TarFile(fileobj=file))
            self._add(self._tar_members(file))
        elif self._file is not None:
            name = self.path.stem if self.path.suffix.lower() in _COMPRESSED_SUFFIXES else self.path.name
            self.sizes[name] = self._file.seek(0, 2)
            self._members[name] = None
        else:
            self._zip = opened.enter_context(zipfile.ZipFile(self.path))
            self._add(self._zip_members())

    def _decompress(self, head: bytes, opened: ExitStack) -> IO[bytes]:
        """Return the decompressed content, on disk: members of a compressed tar can only be read in order."""
        opener = next(function for magic, function in _COMPRESSED.items() if head.startswith(magic))
        unpacked = opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        with opener(self.path, "rb") as packed:
            while part := packed.read(2**20):
                self._check_size(unpacked.tell() + len(part))
                try:
                    unpacked.write(part)
                except OSError as error:
                    raise UserError(
                        f"{self.path} cannot be unpacked into {tempfile.gettempdir()} ({error.strerror})."
                    ) from error
        unpacked.seek(0)
        return unpacked

    def _check_size(self, unpacked: int) -> None:
        """Raise UserError if the archive expands to a size that is implausible for real data, in bytes."""
        if unpacked > max(_MAX_UNPACKED, _MAX_RATIO * self.path.stat().st_size):
            raise UserError(
                f"{self.path} would expand to {unpacked / 2**30:,.1f} GiB or more, which is more than {_MAX_RATIO} "
                f"times its size, so it is refused. Download it from {KAGGLE_PAGE}."
            )

    def _zip_members(self) -> Iterator[tuple[str, zipfile.ZipInfo, int, bool]]:
        assert self._zip is not None
        for member in self._zip.infolist():
            yield member.filename, member, member.file_size, bool(member.flag_bits & 0x1)

    def _tar_members(self, file: IO[bytes]) -> Iterator[tuple[str, tarfile.TarInfo, int, bool]]:
        assert self._tar is not None
        links = []
        for member in self._tar:
            if member.isdir():
                yield f"{member.name}/", member, 0, False
            elif member.isfile():
                yield member.name, member, member.size, False
            elif (member.issym() or member.islnk()) and not is_hidden(member.name.removeprefix("./")):
                links.append(member.name)
        # A damaged header ends the iteration like the end of the tar, which is a block of zeros.
        file.seek(self._tar.offset)
        if len(file.read(512).rstrip(b"\0")) or file.tell() < self._tar.offset + 512:
            raise tarfile.ReadError(f"no end marker at byte {self._tar.offset:,}")
        while part := file.read(2**20):
            if part.strip(b"\0"):
                raise tarfile.ReadError("more data after the end marker")
        if links:
            raise UserError(
                f"{self.path} contains links, which are not followed ({abbreviate(links)}). "
                "Extract it and give the folder."
            )

    def _add(self, members: Iterable[tuple[str, zipfile.ZipInfo | tarfile.TarInfo, int, bool]]) -> None:
        """Index the members; raise UserError if one points outside the archive or is encrypted."""
        outside, encrypted = [], []
        for filename, member, size, is_encrypted in members:
            parts = filename.replace("\\", "/").split("/")
            name = "/".join(part for part in parts if part not in ("", "."))
            if not parts[0] or parts[0][1:] == ":" or ".." in parts:
                outside.append(filename)
            elif is_hidden(name):
                continue
            elif not parts[-1]:
                self._folders.add(name)
            else:
                self._folders.add(parent(name))
                if is_encrypted:
                    encrypted.append(name)
                if name in self._members:
                    self.repeated.append(name)
                self._members[name] = member
                self.sizes[name] = size
        if outside:
            raise UserError(
                f"{self.path} has entries that point outside the archive ({abbreviate(outside)}), so it "
                f"is refused. Download it from {KAGGLE_PAGE}."
            )
        if encrypted:
            raise UserError(
                f"{self.path} is encrypted ({abbreviate(encrypted)}). "
                "Extract it with its password and give the folder."
            )

    def open(self, path: str) -> IO[bytes]:
        """Open a member for reading.

        Raises:
            NotImplementedError: its compression method is not supported.
            zipfile.BadZipFile: its local header is damaged.
        """
        member = self._members[path]
        if isinstance(member, tarfile.TarInfo):
            assert self._tar is not None
            return cast("IO[bytes]", self._tar.extractfile(member))  # None only for links and folders
        if member is None:
            assert self._file is not None
            self._file.seek(0)
            return os.fdopen(os.dup(self._file.fileno()), "rb")
        assert self._zip is not None
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # For other methods zipfile decompresses whole blocks, whatever size the member claims.
            raise NotImplementedError("compression other than deflate; extract the archive and give the folder")
        try:
            return self._zip.open(member)
        except UnicodeDecodeError as error:
            raise zipfile.BadZipFile("the file name in its local header is damaged") from error

    def check_unpacked(self, paths: Iterable[str], max_bytes: int | None) -> None:
        """Raise UserError if the files expand to a size that is implausible for real data.

        Args:
            paths: the files to be read.
            max_bytes: bytes read from each file at most; None for no limit.
        """
        self._check_size(
            sum(self.sizes[path] if max_bytes is None else min(self.sizes[path], max_bytes) for path in paths)
        )

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()
