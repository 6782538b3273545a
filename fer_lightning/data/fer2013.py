"""FER-2013 in every form it is found in, read into ``Faces``.

The data: I. Goodfellow et al., "Challenges in Representation Learning: A report on three machine learning
contests", ICONIP 2013 (arXiv:1307.0414): 35,887 grey 48x48 faces from an image search, labelled with seven
emotions. The images are not part of this project and come with no licence from it.

Forms: the Kaggle zip (unopened or extracted; ``train/happy/Training_1.jpg``), ``fer2013.csv``,
``icml_face_data.csv``, ``train.csv`` with or without ``test.csv``, and any folder of class folders.
"""

import csv
import hashlib
import io
import lzma
import os
import re
import struct
import warnings
import zipfile
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.data import cache
from fer_lightning.data.faces import FER2013_SPLITS, GENERIC_SPLITS, TEST, TRAIN, VAL, Faces, fingerprint
from fer_lightning.data.images import ImageError, decode
from fer_lightning.emotions import EMOTIONS, NUM_CLASSES, emotion_index
from fer_lightning.errors import UserError
from fer_lightning.files import sha256

SIZE = 48
PIXELS = SIZE * SIZE
KAGGLE_PAGE = "https://www.kaggle.com/datasets/msambare/fer2013"
# With its version, because kagglehub finds an earlier download of an unversioned handle only when online.
KAGGLE_HANDLE = "msambare/fer2013/versions/1"

# Images of each class in each split, in the order of EMOTIONS; counted in fer2013.csv, and as published.
PUBLISHED_COUNTS = {
    "Training": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "PublicTest": (467, 56, 496, 895, 653, 415, 607),
    "PrivateTest": (491, 55, 528, 879, 594, 416, 626),
}

# Share of each class that is cut off for validation, and for test, where the data come without a split.
CUT_FRACTION = 0.1

MAX_IMAGE_BYTES = 50 * 2**20  # a face is 2 KiB, a photo 10 MiB: more is a mistake or an attack
_MAX_CSV_ROW = 2**20  # characters; a row of FER-2013 has at most 9,300
_MAX_LIST = 2**26  # characters of a list of ids; that of all of FER-2013 has 1.3 million
_MAX_DEPTH, _MAX_FOLDERS = 32, 100_000  # of folders below the one that is given; links can make any number of few
# What a zip may unpack to: the real ones, of JPEGs or of CSVs, have 1 to 4 times their own size.
_MAX_UNPACKED, _MAX_RATIO = 2**30, 100
_MAX_FAULTS = 1_000_000  # before the rest is not looked at
_SHOWN = 10  # offenders listed by name before only their number is given
_LONGEST_SHOWN = 300  # characters of a name

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "publictest"), VAL),
    **dict.fromkeys(("test", "testing", "privatetest"), TEST),
}
_USAGES = {name.lower(): usage for usage, name in enumerate(FER2013_SPLITS)}
_PREFIX = re.compile(r"(Training|PublicTest|PrivateTest)_", re.IGNORECASE)
_HIDDEN = {"__macosx", "thumbs.db", "desktop.ini"}
# What zipfile raises on a damaged member or one packed in a way that it does not know; of a plain file OSError.
_DAMAGED_MEMBER = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError)


class FacesNotFound(UserError):
    """No path was given, and FER-2013 is nowhere where it is looked for."""


def load_faces(
    path: str | Path | None = None,
    *,
    download: bool = True,
    skip_bad: bool = False,
    exclude: str | Path | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Faces:
    """FER-2013, or any folder of class folders, as N grey 48x48 faces.

    Looked for in ``path``, then the environment's FER2013_PATH, then ./data, then (``download``) at Kaggle.
    The official splits come from the file names' prefixes or the Usage column. Data with neither get the
    splits of their train/, val/ and test/ folders, and what is missing is cut from train: a tenth of each
    class, chosen by ``seed`` and pixels, so neither file names nor their order on the disk matter.

    Args:
        path: a zip, a CSV, or a folder that holds one of these or class folders.
        download: ask Kaggle when nothing is found.
        skip_bad: drop what cannot be read, and say so in ``notes``, where it would be an error.
        exclude: a text file with one id a line (# starts a comment): these images are dropped.
        seed: of the splits that are cut here; FER-2013's own need none.
        cache_dir: where decoded images are kept; ``cache.default_dir()`` when None.

    Returns:
        Faces with images (N, 48, 48) uint8, labels (N,) int64 and usage (N,) uint8. ``dataset`` is "FER-2013"
        when the official splits are known, otherwise "folder" with GENERIC_SPLITS. ``notes`` tells what
        was converted, dropped, cut, or differs from the published counts.

    Raises:
        FacesNotFound: no path was given, nothing was found, and nothing was to be downloaded.
        UserError: what was given or found is damaged or not what it should be; all offenders of a source are
            listed together.
    """
    try:
        source = _find(path, download)
    except OSError as error:
        raise UserError(f"The data cannot be read: {error}.") from error
    key = source.key + ("-skip" if skip_bad else "")
    faces = cache.load_or_build(key, lambda: source.read(skip_bad), cache_dir)
    faces = replace(faces, source=str(source.path), notes=(*source.notes, *faces.notes))
    if faces.dataset == "folder":
        faces = _cut_missing_splits(faces, seed)
    if exclude is not None:
        faces = _without(faces, Path(exclude))
    return faces


# ---------------------------------------------------------------------------------------------------------
# Where the data are


class _Store(Protocol):
    """Named files to read, of a folder or a zip archive."""

    path: Path
    sizes: dict[str, int]  # bytes of each file that is not hidden, by its path with forward slashes
    folders: list[str]
    repeated: list[str]  # paths that occur more than once

    def open(self, path: str) -> IO[bytes]: ...


class _Folder:
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
        return _checked(self.root / path).open("rb")

    def key(self, form: "_Form") -> str:
        """Of CSVs their content; of many images only place, names, sizes and times, which is quick."""
        if form.kind == "csv":
            parts = [part for path in form.paths for part in (path, sha256(_checked(self.root / path)))]
        else:
            files = [f"{path}\0{self.sizes[path]}\0{self._mtimes_ns[path]}" for path in form.paths]
            parts = [str(self.root.resolve()), *self.folders, *files]
        text = "\0".join(parts).encode("utf-8", "surrogateescape")
        return f"{form.kind}-{hashlib.sha256(text).hexdigest()}"


class _Archive:
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
                folders.add(_parent(name))
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
                f"{path} holds names that lead out of the archive ({_some(outside)}), which no copy of "
                f"FER-2013 does: it is refused. Download it from {KAGGLE_PAGE}."
            )
        if encrypted:
            raise UserError(
                f"{path} is encrypted ({_some(encrypted)}). Unpack it with its password and give the folder."
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

    def __enter__(self) -> "_Archive":
        return self

    def __exit__(self, *exc: object) -> None:
        self._zip.close()


@dataclass(frozen=True)
class _Form:
    """What of a store is read, and how."""

    kind: str  # "csv" or "images"
    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """Data that were found, not yet read."""

    path: Path
    key: str  # changes with the content
    read: Callable[[bool], Faces]  # from skip_bad; only called when the cache has nothing under the key
    notes: tuple[str, ...] = ()


def _find(path: str | Path | None, download: bool) -> _Source:
    if path is not None:
        return _given(str(path), f"data.path={path}")
    if (variable := os.environ.get("FER2013_PATH")) is not None:
        return _given(variable, f"FER2013_PATH={variable}")
    data = Path("data")
    if data.is_dir() and (source := _in_folder(_Folder(data))) is not None:
        return source
    if download:
        folder = _download()
        return _given(str(folder), f"The download in {folder}")
    raise FacesNotFound(f"FER-2013 was not found, and data.download=false.\n{_WAYS_OUT}")


_WAYS_OUT = (
    "Do one of these:\n"
    f"  - download the zip by hand from {KAGGLE_PAGE}\n"
    "    and put it, unopened, into ./data, or name it: data.path=ZIP for train.py, PATH for fer-lightning\n"
    "  - set the environment variable FER2013_PATH to a zip, folder or CSV that you have\n"
    "  - train with data=synthetic: drawn faces, no download"
)


def _download() -> Path:
    """The folder that kagglehub downloaded to."""
    try:
        import kagglehub
        from kagglehub import exceptions as kaggle
    except ImportError as error:
        raise UserError(f"FER-2013 was not found, and kagglehub is not installed.\n{_WAYS_OUT}") from error
    try:
        return Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    except (
        OSError,  # every network error of requests is one
        ValueError,
        zipfile.BadZipFile,
        kaggle.BackendError,
        kaggle.CredentialError,
        kaggle.DataCorruptionError,
        kaggle.KaggleEnvironmentError,
        kaggle.NotFoundError,
        kaggle.UnauthenticatedError,
    ) as error:
        reason = "no connection" if "onnection" in type(error).__name__ else str(error).split("\n")[0][:200]
        raise UserError(
            f"FER-2013 was not found on this machine, and the download from Kaggle failed "
            f"({type(error).__name__}: {reason}).\n{_WAYS_OUT}"
        ) from error


def _given(path: str, given: str) -> _Source:
    """What a person pointed at: anything but readable data is an error."""
    where = Path(os.path.expanduser(path))
    if not path or not where.exists():
        fault = "does not exist" if path else "is empty"
        raise UserError(f"{given} {fault}. Give a zip, a folder or a CSV, or leave it out.")
    if where.is_dir():
        folder = _Folder(where)
        if (source := _in_folder(folder)) is None:
            raise UserError(f"{given} {_nothing(folder)}")
        return source
    if where.stat().st_size == 0:
        raise UserError(f"{given} is an empty file (0 bytes). Download it again from {KAGGLE_PAGE}.")
    if where.suffix.lower() == ".csv":
        return _from_folder(_Folder(where.parent, only=where.name), _Form("csv", (where.name,)))
    if where.suffix.lower() == ".zip" or zipfile.is_zipfile(where):
        return _from_zip(where)
    raise UserError(f"{given} is neither a zip, nor a CSV, nor a folder. Unpack it and give the folder.")


def _in_folder(folder: _Folder) -> _Source | None:
    """A folder's CSV or class folders, otherwise the archive that it holds, otherwise None."""
    if (form := _choose(folder)) is not None:
        return _from_folder(folder, form)
    archives = sorted(
        (path for path in folder.sizes if _suffix(path) == ".zip"),
        key=lambda path: (path.count("/"), "fer" not in path.lower(), path),
    )
    if not archives:
        return None
    source = _from_zip(folder.root / archives[0])
    if len(archives) == 1:
        return source
    return replace(source, notes=(f"{archives[0]} was read, of {_some(archives)} found.",))


def _from_folder(folder: _Folder, form: _Form) -> _Source:
    # The form's notes are on files that the key says nothing about: not for the cache.
    return _Source(folder.path, folder.key(form), lambda skip_bad: _read(folder, form, skip_bad), form.notes)


def _from_zip(path: Path) -> _Source:
    def read(skip_bad: bool) -> Faces:
        with _Archive(path) as archive:
            if (form := _choose(archive)) is None:
                raise UserError(f"{path} {_nothing(archive)}")
            archive.check_unpacked(form.paths, MAX_IMAGE_BYTES if form.kind == "images" else None)
            faces = _read(archive, form, skip_bad)
            return replace(faces, notes=form.notes + faces.notes)

    return _Source(path, f"zip-{sha256(_checked(path))}", read)


def _checked(path: Path) -> Path:
    if not path.is_file():  # a pipe or a device may never end
        raise OSError(f"{path} is not a file, or a link to none")
    return path


def _choose(store: _Store) -> _Form | None:
    """The first form found, in an order that puts the complete and original ones first; None without any."""
    csvs = sorted((p for p in store.sizes if _suffix(p) == ".csv"), key=lambda p: (p.count("/"), p))
    by_name = {_leaf(path).lower(): path for path in reversed(csvs)}
    images, ignored = _images_in_class_folders(store)
    forms: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name in ("fer2013.csv", "icml_face_data.csv"):
        if name in by_name:
            forms[by_name[name]] = ("csv", (by_name[name],))
    if images:  # before any other CSV: that may be a list of these very images
        forms["class folders"] = ("images", tuple(images))
    if not forms and "train.csv" in by_name:
        pair = [by_name[name] for name in ("train.csv", "test.csv") if name in by_name]
        forms[" and ".join(pair)] = ("csv", tuple(pair))
    if not forms:
        forms = {path: ("csv", (path,)) for path in csvs}
    if not forms:
        return None
    (first, (kind, paths)), *others = forms.items()
    notes = []
    if others:
        notes.append(f"{first} was read, of {_some(list(forms))} found.")
    if kind == "images" and ignored:
        notes.append(f"Ignored, as no images in class folders: {_some(ignored, 3)}.")
    return _Form(kind, paths, tuple(notes))


def _images_in_class_folders(store: _Store) -> tuple[list[str], list[str]]:
    """Sorted paths of the images in class folders and in folders beside them; other files in or beside these.

    A folder beside a class folder claims to be one too, so its images are read, and end as an error if
    there is no such emotion. Pictures anywhere else have nothing to do with the data.
    """
    roots = {_parent(folder) for folder in store.folders if emotion_index(_leaf(folder)) is not None}
    images: list[str] = []
    ignored: list[str] = []
    for path in sorted(store.sizes):
        folder = _parent(path)
        if folder and _parent(folder) in roots:
            (images if _suffix(path) in _IMAGE_SUFFIXES else ignored).append(path)
        elif _suffix(path) in _IMAGE_SUFFIXES:
            ignored.append(path)
    return images, ignored


def _nothing(store: _Store) -> str:
    """Why a store is of no use, to follow its name."""
    if not store.sizes:
        return f"is empty. Put FER-2013's zip there ({KAGGLE_PAGE}), or give another path."
    images = [path for path in store.sizes if _suffix(path) in _IMAGE_SUFFIXES]
    if images:
        folders = sorted({_parent(path) or "." for path in images})
        return (
            f"has images, but none in a folder named after an emotion ({', '.join(EMOTIONS)}); "
            f"they are in {_some(folders)}."
        )
    if any(_suffix(path) == ".zip" for path in store.sizes):  # of an archive: a folder's would have been read
        return "holds further zips, which are not opened. Unpack it and give the folder."
    return f"has no images, no CSV and no zip; it has {_some(sorted(store.sizes))}."


# ---------------------------------------------------------------------------------------------------------
# Reading


@dataclass
class _Gathered:
    """Good images on one side, offenders on the other, from one pass over the data."""

    images: bytearray = field(default_factory=bytearray)  # grows without the copies of a list of arrays
    labels: list[int] = field(default_factory=list)
    usage: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    offences: Counter[str] = field(default_factory=Counter)  # by kind
    told: list[str] = field(default_factory=list)  # the sentence on each of the first ones
    converted: int = 0
    stretched: int = 0

    def add(self, name: str, label: int, usage: int, pixels: bytes) -> None:
        self.images += pixels
        self.labels.append(label)
        self.usage.append(usage)
        self.ids.append(name)

    def reject(self, kind: str, where: str, why: str) -> None:
        self.offences[kind] += 1
        if len(self.told) < _SHOWN:  # a file may hold millions
            self.told.append(f"{where}: {why}")
        if self.offences.total() > _MAX_FAULTS:
            raise UserError(
                f"More than {_MAX_FAULTS:,} faults, the first: {self.told[0]}. These are no labelled faces."
            )


class _RowError(Exception):
    """Why one row or image is of no use; ``kind`` names the sort of fault, to be counted."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def _read(store: _Store, form: _Form, skip_bad: bool) -> Faces:
    """Decode all of it, in memory; usage is TRAIN where the data do not say."""
    gathered = _Gathered()
    if form.kind == "csv":
        official, notes = _read_csvs(store, form.paths, gathered)
    else:
        official, notes = _read_images(store, form.paths, gathered)

    if gathered.offences and not skip_bad:
        raise UserError(_list_offences(store.path, gathered.told, gathered.offences.total()))
    if not gathered.labels:
        raise UserError(
            f"{store.path} has no usable image"
            + (f": all {gathered.offences.total():,} are bad." if gathered.offences else ".")
        )
    if gathered.offences:
        kinds = [f"{n} x {kind}" for kind, n in gathered.offences.items()]
        notes.append(f"data.skip_bad dropped {_some(kinds, 20)}.")
    if gathered.converted:
        stretched = f" ({gathered.stretched:,} not square: stretched)" if gathered.stretched else ""
        notes.append(f"{gathered.converted:,} images were converted to grey 48x48{stretched}.")

    images = np.frombuffer(gathered.images, np.uint8).reshape(-1, SIZE, SIZE)
    labels = np.array(gathered.labels, np.int64)
    usage = np.array(gathered.usage, np.uint8)
    if official:
        notes += _count_differences(labels, usage)
    elif missing := [name for i, name in enumerate(EMOTIONS) if not (labels == i).any()]:
        notes.append(f"No images of: {', '.join(missing)}.")
    return Faces(
        images=images,
        labels=labels,
        usage=usage,
        ids=tuple(gathered.ids),
        dataset="FER-2013" if official else "folder",
        source=str(store.path),
        fingerprint=fingerprint(images, labels, usage),
        split_names=FER2013_SPLITS if official else GENERIC_SPLITS,
        notes=tuple(notes),
    )


def _list_offences(path: Path, told: Sequence[str], total: int) -> str:
    if total == 1:
        return f"{told[0]}.\nFix it in {path}, or set data.skip_bad=true to drop it."
    lines = [f"  {offence}" for offence in told]
    if total > len(told):
        lines.append(f"  and {total - len(told):,} more")
    head = f"{total:,} faults in {path}:"
    return "\n".join([head, *lines, "Fix them, or set data.skip_bad=true to drop them."])


def _read_images(store: _Store, paths: Sequence[str], into: _Gathered) -> tuple[bool, list[str]]:
    """Decode the images at ``paths``; returns whether their splits are FER-2013's own, and notes."""
    prefixes = {path: match[1].lower() for path in paths if (match := _PREFIX.match(_leaf(path)))}
    official = len(prefixes) * 2 >= len(paths)
    roots = {_parent(_parent(path)) for path in paths}
    in_split_folders = any(_leaf(root).lower() in _SPLIT_FOLDERS for root in roots)
    filled = {_parent(path) for path in paths}
    unknown = Counter(folder for folder in map(_parent, paths) if emotion_index(_leaf(folder)) is None)
    for folder, count in sorted(unknown.items()):
        why = f"{_leaf(folder)!r} is not one of {', '.join(EMOTIONS)} ({count:,} images)"
        into.reject(f"unknown class folder {_leaf(folder)!r} ({count:,} images)", f"{folder}/", why)
    for folder in store.folders:
        if _parent(folder) in roots and folder not in filled and emotion_index(_leaf(folder)) is not None:
            into.reject("empty class folder", f"{folder}/", "no images in it")
    for path in sorted(set(store.repeated).intersection(paths)):
        into.reject("repeated name", path, "is in the archive more than once")

    displaced = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata, once for each image
        for path in paths:
            label = emotion_index(_leaf(_parent(path)))
            if label is None:
                continue
            split_folder = _SPLIT_FOLDERS.get(_leaf(_parent(_parent(path))).lower())
            try:
                if official:
                    if path not in prefixes:
                        raise _RowError("name without a split", f"no {'_, '.join(FER2013_SPLITS)}_ before its name")
                    usage = _USAGES[prefixes[path]]
                    displaced += split_folder is not None and (split_folder == TRAIN) != (usage == TRAIN)
                elif in_split_folders:
                    if split_folder is None:
                        raise _RowError("image outside the split folders", "not below train/, val/ or test/")
                    usage = split_folder
                else:
                    usage = TRAIN  # until load_faces cuts the rest from it
                into.add(path, label, usage, _decode(store, path, into))
            except _RowError as error:
                into.reject(error.kind, path, str(error))
    notes = []
    if displaced:
        notes.append(f"{displaced:,} images lie in train/ or test/ against their name's prefix: the prefix counts.")
    return official, notes


def _decode(store: _Store, path: str, into: _Gathered) -> bytes:
    """The 2304 grey values of one image file; _RowError when there are none to be had."""
    if store.sizes[path] == 0:
        raise _RowError("empty file", "empty file (0 bytes)")
    if store.sizes[path] > MAX_IMAGE_BYTES:
        megabytes = store.sizes[path] / 2**20
        raise _RowError("oversized image", f"{megabytes:,.0f} MiB, where an image may have 50 MiB")
    try:
        with store.open(path) as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except _DAMAGED_MEMBER as error:
        raise _RowError("unreadable file", f"cannot be read ({error})") from error
    try:
        image = decode(io.BytesIO(content))
    except ImageError as error:
        raise _RowError(error.kind, str(error)) from error
    if image.mode != "L" or image.size != (SIZE, SIZE):
        into.converted += 1
        into.stretched += image.width != image.height
        image = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return image.tobytes()


def _read_csvs(store: _Store, paths: Sequence[str], into: _Gathered) -> tuple[bool, list[str]]:
    """Parse fer2013.csv or its kin; returns whether their splits are FER-2013's own, and notes."""
    official, notes = True, []
    for position, path in enumerate(paths):
        if store.sizes[path] == 0:
            raise UserError(f"{path} in {store.path} is empty (0 bytes). Download it again.")
        try:
            with store.open(path) as binary:
                # Bytes that are not UTF-8 must not end the pass: their row becomes an offender.
                text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
                with warnings.catch_warnings():
                    warnings.simplefilter("error", DeprecationWarning)  # see _parse_pixels
                    has_usage = _read_csv(_leaf(path), _Lines(text), TEST if position else TRAIN, into)
        except _DAMAGED_MEMBER as error:
            raise UserError(f"{path} in {store.path} cannot be read ({error}). Download it again.") from error
        if has_usage is None:
            notes.append(f"{_leaf(path)} has no labels (no emotion column), so it was not used.")
        else:
            official &= has_usage
    return official, notes


class _Lines:
    """The lines of a text for csv.reader, which can fill the memory with neither a line nor a row of many lines."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._of_row = 0

    def begin_row(self) -> None:
        self._of_row = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(_MAX_CSV_ROW)
        if not line:
            raise StopIteration
        self._of_row += len(line)
        if self._of_row > _MAX_CSV_ROW:
            raise csv.Error("a row of more than 2^20 characters")
        return line


def _read_csv(name: str, lines: _Lines, default_usage: int, into: _Gathered) -> bool | None:
    """Gather the rows of one CSV; whether it has a Usage column, None when it has no emotions."""
    rows = csv.reader(lines)
    try:
        header = [column.strip().lower() for column in next(rows, [])]
    except csv.Error as error:
        raise UserError(f"{name}, line 1: {error}. The columns emotion, pixels, Usage are needed.") from error
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for column in header for char in column):
        raise UserError(f"{name} is not UTF-8 text. Save it as CSV in UTF-8, or download it again.")
    if "pixels" in header and "emotion" not in header and default_usage == TEST:
        return None
    missing = [column for column in ("emotion", "pixels") if column not in header]
    if missing:
        hint = (
            " The challenge's test.csv has no labels: give train.csv or fer2013.csv." if "pixels" in header else ""
        )
        raise UserError(
            f"{name} has no column {' and no column '.join(missing)}: its first line has "
            f"{', '.join(map(repr, header[:_SHOWN]))[:300]}.{hint}"
        )
    emotion_at, pixels_at = header.index("emotion"), header.index("pixels")
    usage_at = header.index("usage") if "usage" in header else None
    while True:
        try:
            lines.begin_row()
            row = next(rows)
            if not row:
                continue
            line = rows.line_num
            if len(row) != len(header):
                raise _RowError("malformed row", f"{len(row)} columns where the first line has {len(header)}")
            label = _parse_emotion(row[emotion_at])
            usage = default_usage if usage_at is None else _parse_usage(row[usage_at])
            into.add(f"{name}:{line}", label, usage, _parse_pixels(row[pixels_at]))
        except StopIteration:
            return usage_at is not None
        except csv.Error as error:
            into.reject("malformed row", f"{name}, line {rows.line_num}", str(error))
        except _RowError as error:
            into.reject(error.kind, f"{name}, line {line}", str(error))


def _parse_emotion(text: str) -> int:
    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < NUM_CLASSES:
        raise _RowError("unknown emotion", f"emotion {text[:40]!r} is not one of 0 to {NUM_CLASSES - 1}")
    return label


def _parse_usage(text: str) -> int:
    usage = _USAGES.get(text.strip().lower())
    if usage is None:
        raise _RowError("unknown Usage", f"Usage {text[:40]!r} is none of {', '.join(FER2013_SPLITS)}")
    return usage


def _parse_pixels(text: str) -> bytes:
    """48x48 grey values from "70 80 82 ..."."""
    try:
        # Seven times as fast as int() on each; numpy 1.26 only warns of what is no number.
        values = np.fromstring(text, np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        wrong = next((word for word in text.split() if not re.fullmatch(r"\d+", word, re.ASCII)), text)
        raise _RowError("bad pixel", f"pixel {wrong[:40]!r} is not a whole number") from None
    if len(values) != PIXELS:
        raise _RowError("wrong number of pixels", f"{len(values)} pixels where 48x48 = {PIXELS} are needed")
    if values.min() < 0 or values.max() > 255:
        wrong_value = values[(values < 0) | (values > 255)][0]
        raise _RowError("bad pixel", f"pixel {wrong_value} is not from 0 to 255")
    return values.astype(np.uint8).tobytes()


def _count_differences(labels: npt.NDArray[np.int64], usage: npt.NDArray[np.uint8]) -> list[str]:
    """A note on where the counts are not the published ones, or none."""
    differences = []
    for split, name in enumerate(FER2013_SPLITS):
        published = PUBLISHED_COUNTS[name]
        found = np.bincount(labels[usage == split], minlength=NUM_CLASSES).tolist()
        apart = [(e, a, b) for e, a, b in zip(EMOTIONS, found, published, strict=True) if a != b]
        if not any(found):
            differences.append(f"no {name} ({sum(published):,})")
        elif len(apart) > 3:
            by_class = f"{' '.join(map(str, found))} ({' '.join(map(str, published))})"
            differences.append(f"{name} {sum(found):,} ({sum(published):,}), by class {by_class}")
        else:
            differences += [f"{name} {emotion} {a:,} ({b:,})" for emotion, a, b in apart]
    if not differences:
        return []
    return [f"Not the published number of images (in brackets): {'; '.join(differences)}."]


# ---------------------------------------------------------------------------------------------------------
# After reading: neither the seed nor the exclusions cost another pass over the files


def _cut_missing_splits(faces: Faces, seed: int) -> Faces:
    """Move a tenth of each class from train to validation, and to test, where these are empty."""
    empty = [split for split in (VAL, TEST) if not (faces.usage == split).any()]
    if not empty or not (faces.usage == TRAIN).any():
        return faces
    usage = np.array(faces.usage)
    salt = str(seed).encode()
    for label in range(NUM_CLASSES):
        members = np.flatnonzero((faces.labels == label) & (usage == TRAIN))
        # Ordered by a hash of the pixels: the same whatever the files are called or the disk's order is.
        ranks = {int(i): blake2b(faces.images[i].tobytes(), key=salt, digest_size=16).digest() for i in members}
        order = sorted(ranks, key=lambda i: (ranks[i], faces.ids[i]))
        count = max(1, round(len(order) * CUT_FRACTION)) if len(order) > len(empty) else 0
        for position, split in enumerate(empty):
            usage[order[position * count : (position + 1) * count]] = split
    names = " and ".join(f"{faces.split_names[split]} ({int((usage == split).sum()):,} images)" for split in empty)
    note = f"No official split: {names} cut from train, a tenth of each class, seed {seed}."
    return replace(
        faces,
        usage=usage,
        fingerprint=fingerprint(faces.images, faces.labels, usage),
        notes=(*faces.notes, note),
    )


def _without(faces: Faces, path: Path) -> Faces:
    """Drop the images that a text file names, one id a line."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            text = file.read(_MAX_LIST + 1)
    except (OSError, ValueError) as error:  # the latter of what is not UTF-8
        raise UserError(f"data.exclude={path} cannot be read: {error}.") from error
    if len(text) > _MAX_LIST:
        raise UserError(f"data.exclude={path} is too large for a list of ids: it takes one id a line.")
    lines = text.splitlines()
    wanted = {line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")}
    unknown = sorted(wanted.difference(faces.ids))
    if unknown:
        near = _nearest(unknown[:_SHOWN], faces.ids)
        told = []
        for name in near:
            hint = f" - did you mean {' or '.join(near[name])}?" if near[name] else ""
            told.append(f"  {name[:_LONGEST_SHOWN]}{hint}")
        if len(unknown) > _SHOWN:
            told.append(f"  and {len(unknown) - _SHOWN:,} more")
        raise UserError(
            "\n".join([f"data.exclude={path} names {len(unknown):,} images that are not there:", *told])
        )
    keep = np.array([name not in wanted for name in faces.ids], dtype=bool)
    if not keep.any():
        raise UserError(f"data.exclude={path} names every image: none is left.")
    images, labels, usage = faces.images[keep], faces.labels[keep], faces.usage[keep]
    return replace(
        faces,
        images=images,
        labels=labels,
        usage=usage,
        ids=tuple(name for name in faces.ids if name not in wanted),
        fingerprint=fingerprint(images, labels, usage),
        notes=(*faces.notes, f"data.exclude dropped {len(wanted):,} images."),
    )


def _nearest(names: Sequence[str], ids: Sequence[str]) -> dict[str, list[str]]:
    """Up to three ids for each name that it may have been meant for."""
    # difflib takes seconds a name over 35,887 ids: it ranks the neighbours by beginning and by end alone.
    candidates: dict[str, set[str]] = {name: set() for name in names}
    for step in (1, -1):
        ordered = sorted(text[::step] for text in ids)
        for name in names:
            at = bisect_left(ordered, name[::step])
            candidates[name].update(text[::step] for text in ordered[max(0, at - 50) : at + 50])
    # Of a name longer than any file's nothing is near, and difflib would take forever.
    return {name: get_close_matches(name[:_LONGEST_SHOWN], sorted(candidates[name])) for name in names}


# ---------------------------------------------------------------------------------------------------------
# Paths as text with forward slashes: PurePosixPath would take a second for 35,887 of them


def _leaf(path: str) -> str:
    return path.rpartition("/")[2]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _suffix(path: str) -> str:
    leaf = _leaf(path)
    return leaf[leaf.rfind(".") :].lower() if "." in leaf else ""


def _is_hidden(path: str) -> bool:
    """What systems leave behind: .DS_Store, __MACOSX, Thumbs.db and anything below such a folder."""
    return any(part.startswith(".") or part.lower() in _HIDDEN for part in path.split("/"))


def _some(names: Iterable[str], shown: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")
