"""Find the data: in a given path, FER2013_PATH, ./data or on Kaggle; and choose the files to read."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fer_lightning.data.faces import Faces
from fer_lightning.data.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from fer_lightning.data.reading import read_faces
from fer_lightning.data.stores import (
    KAGGLE_PAGE,
    Archive,
    Folder,
    Form,
    Store,
    abbreviate,
    leaf,
    parent,
    regular_file,
    suffix,
)
from fer_lightning.emotions import EMOTIONS, emotion_index
from fer_lightning.errors import UserError
from fer_lightning.files import sha256

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
        path: a zip, CSV or folder.
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
    "  - set the environment variable FER2013_PATH to your zip, folder or CSV\n"
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
        raise UserError(f"{label} {fault}. Give a zip, folder or CSV, or leave it out.")
    if path.is_dir():
        folder = Folder(path)
        if (source := _search_folder(folder)) is None:
            raise UserError(f"{label} {_describe_contents(folder)}")
        return source
    if path.stat().st_size == 0:
        raise UserError(f"{label} is an empty file (0 bytes). Download it again from {KAGGLE_PAGE}.")
    if path.suffix.lower() == ".csv":
        return _from_folder(Folder(path.parent, only=path.name), Form("csv", (path.name,)))
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        return _from_zip(path)
    raise UserError(f"{label} is not a zip, CSV or folder. Extract it and give the folder.")


def _search_folder(folder: Folder) -> Source | None:
    """Return the CSV or class folders in a folder, else the archive in it, else None."""
    if (form := _choose_form(folder)) is not None:
        return _from_folder(folder, form)
    archives = sorted(
        (path for path in folder.sizes if suffix(path) == ".zip"),
        key=lambda path: (path.count("/"), "fer" not in path.lower(), path),
    )
    if not archives:
        return None
    source = _from_zip(folder.root / archives[0])
    if len(archives) == 1:
        return source
    return replace(source, notes=(f"Found {abbreviate(archives)}; only {archives[0]} was read.",))


def _from_folder(folder: Folder, form: Form) -> Source:
    # The form's notes are about files that the key does not cover, so they must not be cached.
    return Source(folder.path, folder.key(form), lambda skip_bad: read_faces(folder, form, skip_bad), form.notes)


def _from_zip(path: Path) -> Source:
    def read(skip_bad: bool) -> Faces:
        with Archive(path) as archive:
            if (form := _choose_form(archive)) is None:
                raise UserError(f"{path} {_describe_contents(archive)}")
            archive.check_unpacked(form.paths, MAX_IMAGE_BYTES if form.kind == "images" else None)
            faces = read_faces(archive, form, skip_bad)
            return replace(faces, notes=form.notes + faces.notes)

    return Source(path, f"zip-{sha256(regular_file(path))}", read)


def _choose_form(store: Store) -> Form | None:
    """Return the most complete and original form of the data in a store, or None if it has none."""
    csvs = sorted((p for p in store.sizes if suffix(p) == ".csv"), key=lambda p: (p.count("/"), p))
    by_name = {leaf(path).lower(): path for path in reversed(csvs)}
    images, ignored = _images_in_class_folders(store)
    forms: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name in ("fer2013.csv", "icml_face_data.csv"):
        if name in by_name:
            forms[by_name[name]] = ("csv", (by_name[name],))
    if images:  # before any other CSV, which may be a list of these images
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
        notes.append(f"Found {abbreviate(forms)}; only {first} was read.")
    if kind == "images" and ignored:
        notes.append(f"Ignored files that are not images in class folders: {abbreviate(ignored, 3)}.")
    return Form(kind, paths, tuple(notes))


def _images_in_class_folders(store: Store) -> tuple[list[str], list[str]]:
    """Return the images to read and the files to ignore, both as sorted paths.

    A folder next to a class folder is taken for one too, so its images are read, and are an error if there is no
    such emotion. Images anywhere else are not part of the data.
    """
    roots = {parent(folder) for folder in store.folders if emotion_index(leaf(folder)) is not None}
    images: list[str] = []
    ignored: list[str] = []
    for path in sorted(store.sizes):
        folder = parent(path)
        if folder and parent(folder) in roots:
            (images if suffix(path) in IMAGE_SUFFIXES else ignored).append(path)
        elif suffix(path) in IMAGE_SUFFIXES:
            ignored.append(path)
    return images, ignored


def _describe_contents(store: Store) -> str:
    """Return why a store has no usable data, as a predicate to follow its name."""
    if not store.sizes:
        return f"is empty. Put the FER-2013 zip there ({KAGGLE_PAGE}) or give another path."
    images = [path for path in store.sizes if suffix(path) in IMAGE_SUFFIXES]
    if images:
        folders = sorted({parent(path) or "." for path in images})
        return (
            f"has images, but none in a folder named after an emotion ({', '.join(EMOTIONS)}); "
            f"they are in {abbreviate(folders)}."
        )
    if any(suffix(path) == ".zip" for path in store.sizes):  # in an archive: a folder's zip would have been read
        return "contains nested zips, which are not opened. Extract it and give the folder."
    return f"has no images, CSV or zip; it contains {abbreviate(sorted(store.sizes))}."
