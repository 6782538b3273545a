"""Find the data: in a given path, FER2013_PATH, ./data or on Kaggle; and choose the files to read."""

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from fer_lightning.data.archives import DAMAGED_MEMBER, Archive, archive_kind
from fer_lightning.data.classes import ClassSet
from fer_lightning.data.csvs import Table, peek
from fer_lightning.data.faces import TEST, TRAIN, VAL, Faces
from fer_lightning.data.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from fer_lightning.data.layout import Form, Layout
from fer_lightning.data.reading import read_faces
from fer_lightning.data.splits import path_claims, usages
from fer_lightning.data.stores import (
    KAGGLE_PAGE,
    Folder,
    Store,
    abbreviate,
    leaf,
    parent,
    path_name_claims,
    regular_file,
    suffix,
)
from fer_lightning.data.votes import has_votes, is_vote_list
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


def find(path: str | Path | None, download: bool, classes: ClassSet) -> Source:
    """Return the data at `path` or, if it is None, those in the first default place that has any.

    Args:
        path: a zip, tar, CSV or folder.
        download: download from Kaggle if no data are found.
        classes: the classes that labels may mean.

    Raises:
        FacesNotFound: `path` is None, no data were found, and `download` is False.
        UserError: the path or FER2013_PATH holds no data, or the download failed.
    """
    if path is not None:
        return _from_path(str(path), f"data.path={path}", classes)
    if (variable := os.environ.get("FER2013_PATH")) is not None:
        return _from_path(variable, f"FER2013_PATH={variable}", classes)
    data = Path("data")
    if data.is_dir() and (source := _search_folder(Folder(data), classes)) is not None:
        return source
    if download:
        folder = _download()
        return _from_path(str(folder), f"The download in {folder}", classes)
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


def _from_path(text: str, label: str, classes: ClassSet) -> Source:
    """Return the data at a path; raise UserError if it holds none. `label` names the path in messages."""
    path = Path(os.path.expanduser(text))
    if not text or not path.exists():
        fault = "does not exist" if text else "is empty"
        raise UserError(f"{label} {fault}. Give a zip, tar, CSV or folder, or leave it out.")
    claims = path_name_claims(path)
    if path.is_dir():
        folder = Folder(path, claims=claims)
        if (source := _search_folder(folder, classes)) is None:
            raise UserError(f"{label} {_describe_contents(folder, classes)}")
        return source
    if path.stat().st_size == 0:
        raise UserError(f"{label} is an empty file (0 bytes). Download it again from {KAGGLE_PAGE}.")
    single = Folder(path.parent, only=path.name, claims=claims)
    if _is_archive(single, path.name):
        return _from_archive(path, claims, classes)
    if suffix(path.name) in _CSV_SUFFIXES or ((table := peek(single, path.name)) and table.has_pixels):
        return _from_folder(single, Form((path.name,)), classes)
    raise UserError(f"{label} is not a zip, tar, CSV or folder. Extract it and give the folder.")


def _is_archive(store: Store, path: str) -> bool:
    """Return whether a file is an archive by its content, or claims to be a zip by its name."""
    try:
        with store.open(path) as file:
            return suffix(path) == ".zip" or archive_kind(file.read(512)) is not None
    except DAMAGED_MEMBER:  # reported if the file is read
        return False


def _search_folder(folder: Folder, classes: ClassSet) -> Source | None:
    """Return the CSV or class folders in a folder, else the archive in it, else None."""
    suffixes = (*_ARCHIVE_SUFFIXES, *_CSV_SUFFIXES, "")
    archives = sorted(
        (path for path in folder.sizes if suffix(path) in suffixes and _is_archive(folder, path)),
        key=lambda path: (path.count("/"), "fer" not in path.lower(), path),
    )
    form = _choose_form(folder, classes)
    if form is not None:
        note = f"Found archives beside the data, which were not read: {abbreviate(archives)}."
        return _from_folder(folder, replace(form, notes=(note, *form.notes)) if archives else form, classes)
    if not archives:
        return None
    if len(archives) > 1:
        _check_unread(folder, archives, frozenset())
    claims = path_claims(archives[0]) | folder.claims
    if len(usages(claims)) > 1:
        raise UserError(
            f"{folder.path / archives[0]} is called {' and '.join(sorted(claims))}. Nothing was guessed."
        )
    source = _from_archive(folder.root / archives[0], claims, classes)
    if len(archives) == 1:
        return source
    return replace(source, notes=(f"Found {abbreviate(archives)}; only {archives[0]} was read.",))


def _check_unread(store: Store, paths: Sequence[str], read: frozenset[int]) -> None:
    """Raise UserError if a file that will not be read is, by name, a split that is not `read` otherwise.

    Its split would be cut anew from the training images, and its images might be among these.
    """
    unread = [path for path in paths if not usages(path_claims(path)) <= read]
    if unread:
        raise UserError(
            f"{store.path} contains {abbreviate(unread)}, by name a split of a dataset, beside other data. "
            "Nothing was guessed: put all splits into one folder in the same form, or give the path of one of them."
        )


def _from_folder(folder: Folder, form: Form, classes: ClassSet) -> Source:
    # The form's notes are about files that the key does not cover, so they must not be cached.
    key = folder.key(form.paths, by_content=not form.has_images) + classes.key
    return Source(folder.path, key, lambda skip_bad: read_faces(folder, form, classes, skip_bad), form.notes)


def _from_archive(path: Path, claims: frozenset[str], classes: ClassSet) -> Source:
    def read(skip_bad: bool) -> Faces:
        with Archive(path, claims) as archive:
            if (form := _choose_form(archive, classes)) is None:
                raise UserError(f"{path} {_describe_contents(archive, classes)}")
            archive.check_unpacked(form.paths, MAX_IMAGE_BYTES if form.has_images else None)
            faces = read_faces(archive, form, classes, skip_bad)
            return replace(faces, notes=form.notes + faces.notes)

    # A compressed CSV has the name of its archive, which may name the split and is part of the ids.
    names = [*sorted(claims), *([] if zipfile.is_zipfile(path) else [path.name])]
    named = blake2b("\0".join(names).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    key = f"zip-{sha256(regular_file(path))}{f'-{named}' if names else ''}{classes.key}"
    return Source(path, key, read)


def _choose_form(store: Store, classes: ClassSet) -> Form | None:
    """Return the most complete and original form of the data in a store, or None if it has none.

    Raises:
        UserError: another file is a split that the form lacks.
    """
    layout = Layout(store, classes)
    has_images = any(suffix(path) in IMAGE_SUFFIXES for path in store.sizes)
    csvs = _csvs(store, _CSV_SUFFIXES) or ([] if has_images else _csvs(store, ("",)))
    tables = {path: table for path in csvs if (table := peek(store, path))}
    forms = _forms(layout, tables)
    if not forms and not has_images:  # reading a CSV tells what is wrong, but the votes of FER+ are no data
        unclear = (path for path in csvs if suffix(path) and not (path in tables and _is_votes(tables[path])))
        if tried := next(unclear, None):
            forms.append(Form((tried,)))
    if not forms:
        return None
    _check_left_out(store, forms[0], tables)
    return replace(forms[0], notes=(*forms[0].notes, *_notes(forms)))


def _forms(layout: Layout, tables: Mapping[str, Table]) -> list[Form]:
    """Return all forms of data in a store, the most complete and original first."""
    faces = [path for path, table in tables.items() if table.has_pixels]
    whole = [
        tuple(path for path in faces if tables[path].split_at and leaf(path).lower() == name) for name in _WHOLE
    ]
    forms = [Form(paths) for paths in whole if paths]
    if layout.paths:  # before any other CSV, which may be a list of these images
        forms.append(Form(tuple(layout.paths), layout))
    elif voted := _voted_form(layout.store, tables):
        forms.append(voted)
    if others := tuple(path for path in faces if not any(path in paths for paths in whole)):
        forms.append(Form(others))
    return forms


def _voted_form(store: Store, tables: Mapping[str, Table]) -> Form | None:
    """Return FER+'s lists of votes with the images in the same folders, or None if there are none."""
    voted = sorted(path for path, table in tables.items() if is_vote_list(table.columns))
    folders = {parent(path) for path in voted}
    images = sorted(path for path in store.sizes if suffix(path) in IMAGE_SUFFIXES)
    listed = [path for path in images if parent(path) in folders]
    if not listed:
        return None
    elsewhere = sorted(set(map(parent, images)) - folders)
    note = (
        f"{len(images) - len(listed):,} images in folders without a list of votes were not read: "
        f"{abbreviate(folder or '.' for folder in elsewhere)}."
    )
    return Form((*voted, *listed), notes=(note,) if elsewhere else (), voted=True)


def _is_votes(table: Table) -> bool:
    return has_votes(table.columns) or is_vote_list(table.columns)


def _check_left_out(store: Store, form: Form, tables: Mapping[str, Table]) -> None:
    """Raise UserError if a file outside the form is a split that it lacks, or names splits of its images."""
    unread = {path for path in store.sizes if suffix(path) in (*_CSV_SUFFIXES, *_ARCHIVE_SUFFIXES)}
    # Images without labels cannot be tested, so reading the other splits is right.
    unread -= {path for path, table in tables.items() if table.has_pixels and not table.has_labels}
    unread -= set(form.paths)
    if any(map(path_claims, unread)):
        _check_unread(store, sorted(unread), _named_splits(form, tables))
    lists = [path for path, table in tables.items() if table.split_at and not table.has_pixels]
    if lists and form.layout and not form.layout.splits():
        raise UserError(
            f"{abbreviate(lists)} names splits of the images, and lists of images are not read. "
            "Nothing was guessed: put the images into train/, val/ and test/, or remove the list."
        )


def _named_splits(form: Form, tables: Mapping[str, Table]) -> frozenset[int]:
    """Return the values of Faces.usage that the names in a form call some of the images."""
    if form.layout:
        return form.layout.splits()
    if any(path in tables and tables[path].split_at for path in form.paths):  # a Usage column names them
        return frozenset((TRAIN, VAL, TEST))
    return frozenset().union(*(usages(path_claims(path)) for path in form.paths))


def _notes(forms: Sequence[Form]) -> tuple[str, ...]:
    """Return what the user should know about reading the first of the forms."""
    notes = []
    layout = forms[0].layout
    if len(forms) > 1:
        first, *rest = map(_describe_form, forms)
        were = "were" if layout or len(forms[0].paths) > 1 else "was"
        notes.append(f"Found {first}, {', '.join(rest)}; only {first} {were} read.")
    if layout and layout.ignored:
        notes.append(f"Ignored files that are not images in class folders: {abbreviate(layout.ignored, 3)}.")
    return tuple(notes)


def _describe_form(form: Form) -> str:
    return "class folders" if form.layout else "FER+'s folders" if form.voted else abbreviate(form.paths)


def _csvs(store: Store, suffixes: Sequence[str]) -> list[str]:
    found = (path for path in store.sizes if suffix(path) in suffixes and not _is_archive(store, path))
    return sorted(found, key=lambda path: (path.count("/"), path))


def _describe_contents(store: Store, classes: ClassSet) -> str:
    """Return why a store has no usable data, as a predicate to follow its name."""
    if not store.sizes:
        return f"is empty. Put the FER-2013 zip there ({KAGGLE_PAGE}) or give another path."
    images = [path for path in store.sizes if suffix(path) in IMAGE_SUFFIXES]
    if images:
        folders = sorted({parent(path) or "." for path in images})
        remedy = " For other classes, see data.classes (--classes)."
        if any(leaf(folder).isdecimal() for folder in folders):
            remedy = (
                " Numbers are not guessed at: name the folders 0_angry, for example, list the classes in the order "
                "of the numbers from 0, or set data.classes=rafdb or ferplus (--classes) if these are its numbers."
            )
        known = f"named after a class ({abbreviate(classes.names, 10)})" if classes.names else "of its own"
        return f"has images, but none in a folder {known}; they are in {abbreviate(folders)}.{remedy}"
    if any(_is_archive(store, path) for path in store.sizes):  # in an archive: a folder's would have been read
        return "contains nested archives, which are not opened. Extract it and give the folder."
    return f"has no images, and no CSV or archive of any; it contains {abbreviate(sorted(store.sizes))}."
