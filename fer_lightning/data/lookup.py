"""Find the data: in a given path, FER2013_PATH, ./data or on Kaggle; and choose the files to read."""

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fer_lightning.data.archives import DAMAGED_MEMBER, Archive, archive_kind
from fer_lightning.data.csvs import path_claims, peek_columns
from fer_lightning.data.faces import TEST, TRAIN, VAL, Faces
from fer_lightning.data.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from fer_lightning.data.layout import Layout
from fer_lightning.data.reading import read_faces
from fer_lightning.data.splits import dataset_claims, name_claims, usages
from fer_lightning.data.stores import (
    KAGGLE_PAGE,
    Folder,
    Form,
    Store,
    abbreviate,
    leaf,
    parent,
    regular_file,
    suffix,
)
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.files import sha256

_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz")
_CSV_SUFFIXES = (".csv", ".tsv")
_WHOLE = ("fer2013.csv", "icml_face_data.csv")  # CSVs that hold the whole of FER-2013
# Includes the version, because kagglehub finds an earlier download of an unversioned handle only when online.
KAGGLE_HANDLE = "msambare/fer2013/versions/1"


class FacesNotFound(UserError):
    """No path was given, and FER-2013 was not found in any of the default places."""


@dataclass(frozen=True)
class Source:
    """Data that were found but not read yet.

    Attributes:
        path: the folder, archive or CSV.
        key: cache key, which changes with the content.
        read: reads the faces, given `skip_bad`; called only if the cache has no entry for `key`.
        notes: what the user should know about the choice of files.
    """

    path: Path
    key: str
    read: Callable[[bool], Faces]
    notes: tuple[str, ...] = ()


def find(path: str | Path | None, download: bool) -> Source:
    """Return the data at `path` or, if it is None, those in the first default place that has any.

    Args:
        path: a zip, tar, CSV or folder.
        download: download from Kaggle if no data are found.

    Raises:
        FacesNotFound: `path` is None, no data were found, and `download` is False.
        UserError: the path or FER2013_PATH holds no data, or the download failed.
    """
    if path is not None:
        return _from_path(str(path), f"data.path={path}")
    if (variable := os.environ.get("FER2013_PATH")) is not None:
        return _from_path(variable, f"FER2013_PATH={variable}")
    data = Path("data")
    if data.is_dir() and (source := _search_folder(Folder(data))) is not None:
        return source
    if download:
        folder = _download()
        return _from_path(str(folder), f"The download in {folder}")
    raise FacesNotFound(f"FER-2013 was not found, and data.download=false.\n{_REMEDIES}")


_REMEDIES = (
    "Do one of the following:\n"
    f"  - download the zip by hand from {KAGGLE_PAGE}\n"
    "    and put it into ./data without extracting it, or pass its path:\n"
    "    data.path=ZIP to train.py, PATH to fer-lightning\n"
    "  - set the environment variable FER2013_PATH to your zip, tar, CSV or folder\n"
    "  - train on synthetic faces, without a download: data=synthetic"
)


def _download() -> Path:
    """Download FER-2013 with kagglehub and return its folder."""
    try:
        import kagglehub
        from kagglehub import exceptions as kaggle
    except ImportError as error:
        raise UserError(f"FER-2013 was not found, and kagglehub is not installed.\n{_REMEDIES}") from error
    try:
        return Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    except (
        OSError,  # includes all network errors of requests
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
            f"({type(error).__name__}: {reason}).\n{_REMEDIES}"
        ) from error


def _from_path(text: str, label: str) -> Source:
    """Return the data at a path; raise UserError if it holds none. `label` names the path in messages."""
    path = Path(os.path.expanduser(text))
    if not text or not path.exists():
        fault = "does not exist" if text else "is empty"
        raise UserError(f"{label} {fault}. Give a zip, tar, CSV or folder, or leave it out.")
    if path.is_dir():
        folder = Folder(path)
        if (source := _search_folder(folder)) is None:
            raise UserError(f"{label} {_describe_contents(folder)}")
        return source
    if path.stat().st_size == 0:
        raise UserError(f"{label} is an empty file (0 bytes). Download it again from {KAGGLE_PAGE}.")
    single = Folder(path.parent, only=path.name)
    if _is_archive(single, path.name):
        return _from_archive(path)
    if suffix(path.name) in _CSV_SUFFIXES or "pixels" in peek_columns(single, path.name):
        return _from_folder(single, Form("csv", (path.name,)))
    raise UserError(f"{label} is not a zip, tar, CSV or folder. Extract it and give the folder.")


def _is_archive(store: Store, path: str) -> bool:
    """Return whether a file is an archive by its content, or claims to be a zip by its name."""
    try:
        with store.open(path) as file:
            return suffix(path) == ".zip" or archive_kind(file.read(512)) is not None
    except DAMAGED_MEMBER:  # reported if the file is read
        return False


def _search_folder(folder: Folder) -> Source | None:
    """Return the CSV or class folders in a folder, else the archive in it, else None."""
    suffixes = (*_ARCHIVE_SUFFIXES, *_CSV_SUFFIXES, "")
    archives = sorted(
        (path for path in folder.sizes if suffix(path) in suffixes and _is_archive(folder, path)),
        key=lambda path: (path.count("/"), "fer" not in path.lower(), path),
    )
    form = _choose_form(folder)
    _check_archives(folder, form, archives)
    if form is not None:
        return _from_folder(folder, form)
    if not archives:
        return None
    source = _from_archive(folder.root / archives[0])
    if len(archives) == 1:
        return source
    return replace(source, notes=(f"Found {abbreviate(archives)}; only {archives[0]} was read.",))


def _check_archives(folder: Folder, form: Form | None, archives: Sequence[str]) -> None:
    """Raise UserError if an archive is one split of a dataset by its name, and would not be read."""
    splits = {path: usages(name_claims(leaf(path).partition(".")[0])) for path in archives}
    unread = [
        path
        for path, named in splits.items()
        if (named and len(archives) > 1 if form is None else not named <= form.splits)
    ]
    if unread:
        raise UserError(
            f"{folder.path} contains {abbreviate(unread)}, by name one split of a dataset, beside other data. "
            "Nothing was guessed: extract all splits into one folder, or give the path of one archive."
        )


def _from_folder(folder: Folder, form: Form) -> Source:
    # The form's notes are about files that the key does not cover, so they must not be cached.
    return Source(folder.path, folder.key(form), lambda skip_bad: read_faces(folder, form, skip_bad), form.notes)


def _from_archive(path: Path) -> Source:
    def read(skip_bad: bool) -> Faces:
        with Archive(path) as archive:
            if (form := _choose_form(archive)) is None:
                raise UserError(f"{path} {_describe_contents(archive)}")
            archive.check_unpacked(form.paths, MAX_IMAGE_BYTES if form.kind == "images" else None)
            faces = read_faces(archive, form, skip_bad)
            return replace(faces, notes=form.notes + faces.notes)

    claims = "".join(f"-{claim.replace(' ', '-')}" for claim in dataset_claims(path.name.partition(".")[0]))
    return Source(path, f"zip-{sha256(regular_file(path))}{claims}", read)


def _choose_form(store: Store) -> Form | None:
    """Return the most complete and original form of the data in a store, or None if it has none."""
    layout = Layout(store)
    csvs = _csvs(store, _CSV_SUFFIXES)
    forms = _forms(store, layout, csvs or ([] if layout.paths else _csvs(store, ("",))))
    if not forms and csvs:  # reading it tells what is wrong
        forms.append(Form("csv", (csvs[0],)))
    if not forms:
        return None
    notes = []
    if len(forms) > 1:
        first, *rest = ("class folders" if form.kind == "images" else abbreviate(form.paths) for form in forms)
        notes.append(f"Found {first}, {', '.join(rest)}; only {first} was read.")
    if forms[0].kind == "images" and layout.ignored:
        notes.append(f"Ignored files that are not images in class folders: {abbreviate(layout.ignored, 3)}.")
    return replace(forms[0], notes=tuple(notes))


def _forms(store: Store, layout: Layout, csvs: Sequence[str]) -> list[Form]:
    """Return all forms of data in a store, the most complete and original first."""
    columns = {path: names for path in csvs if "pixels" in (names := peek_columns(store, path))}
    with_usage = [path for path in columns if "usage" in columns[path]]
    every = frozenset((TRAIN, VAL, TEST))
    whole = [tuple(path for path in with_usage if leaf(path).lower() == name) for name in _WHOLE]
    forms = [Form("csv", paths, splits=every) for paths in whole if paths]
    if layout.paths:  # before any other CSV, which may be a list of these images
        forms.append(Form("images", tuple(layout.paths), splits=layout.splits()))
    if others := [path for path in columns if not any(path in paths for paths in whole)]:
        splits = (every if path in with_usage else usages(path_claims(path)) for path in others)
        forms.append(Form("csv", tuple(others), splits=frozenset().union(*splits)))
    return forms


def _csvs(store: Store, suffixes: Sequence[str]) -> list[str]:
    found = (path for path in store.sizes if suffix(path) in suffixes and not _is_archive(store, path))
    return sorted(found, key=lambda path: (path.count("/"), path))


def _describe_contents(store: Store) -> str:
    """Return why a store has no usable data, as a predicate to follow its name."""
    if not store.sizes:
        return f"is empty. Put the FER-2013 zip there ({KAGGLE_PAGE}) or give another path."
    images = [path for path in store.sizes if suffix(path) in IMAGE_SUFFIXES]
    if images:
        folders = sorted({parent(path) or "." for path in images})
        numbers = " Numbers are not guessed at: name the folders 0_angry, for example."
        return (
            f"has images, but none in a folder named after an emotion ({', '.join(EMOTIONS)}); "
            f"they are in {abbreviate(folders)}.{numbers if any(leaf(f).isdecimal() for f in folders) else ''}"
        )
    if any(_is_archive(store, path) for path in store.sizes):  # in an archive: a folder's would have been read
        return "contains nested archives, which are not opened. Extract it and give the folder."
    return f"has no images, CSV or archive; it contains {abbreviate(sorted(store.sizes))}."
