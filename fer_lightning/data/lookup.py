"""Where the data are: a given path, FER2013_PATH, ./data or Kaggle; and which files there hold them."""

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
    leaf,
    parent,
    regular_file,
    some,
    suffix,
)
from fer_lightning.emotions import EMOTIONS, emotion_index
from fer_lightning.errors import UserError
from fer_lightning.files import sha256

# With its version, because kagglehub finds an earlier download of an unversioned handle only when online.
KAGGLE_HANDLE = "msambare/fer2013/versions/1"


class FacesNotFound(UserError):
    """No path was given, and FER-2013 is nowhere where it is looked for."""


@dataclass(frozen=True)
class Source:
    """Data that were found, not yet read."""

    path: Path
    key: str  # changes with the content
    read: Callable[[bool], Faces]  # from skip_bad; only called when the cache has nothing under the key
    notes: tuple[str, ...] = ()


def find(path: str | Path | None, download: bool) -> Source:
    """Return the data at `path`, or, without one, in the first place that has any.

    Raises:
        FacesNotFound: no path was given, and nothing was found or to be downloaded.
        UserError: the path or FER2013_PATH holds no data, or the download failed.
    """
    if path is not None:
        return _given(str(path), f"data.path={path}")
    if (variable := os.environ.get("FER2013_PATH")) is not None:
        return _given(variable, f"FER2013_PATH={variable}")
    data = Path("data")
    if data.is_dir() and (source := _in_folder(Folder(data))) is not None:
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


def _given(path: str, given: str) -> Source:
    """What a person pointed at: anything but readable data is an error."""
    where = Path(os.path.expanduser(path))
    if not path or not where.exists():
        fault = "does not exist" if path else "is empty"
        raise UserError(f"{given} {fault}. Give a zip, a folder or a CSV, or leave it out.")
    if where.is_dir():
        folder = Folder(where)
        if (source := _in_folder(folder)) is None:
            raise UserError(f"{given} {_nothing(folder)}")
        return source
    if where.stat().st_size == 0:
        raise UserError(f"{given} is an empty file (0 bytes). Download it again from {KAGGLE_PAGE}.")
    if where.suffix.lower() == ".csv":
        return _from_folder(Folder(where.parent, only=where.name), Form("csv", (where.name,)))
    if where.suffix.lower() == ".zip" or zipfile.is_zipfile(where):
        return _from_zip(where)
    raise UserError(f"{given} is neither a zip, nor a CSV, nor a folder. Unpack it and give the folder.")


def _in_folder(folder: Folder) -> Source | None:
    """A folder's CSV or class folders, otherwise the archive that it holds, otherwise None."""
    if (form := _choose(folder)) is not None:
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
    return replace(source, notes=(f"{archives[0]} was read, of {some(archives)} found.",))


def _from_folder(folder: Folder, form: Form) -> Source:
    # The form's notes are on files that the key says nothing about: not for the cache.
    return Source(folder.path, folder.key(form), lambda skip_bad: read_faces(folder, form, skip_bad), form.notes)


def _from_zip(path: Path) -> Source:
    def read(skip_bad: bool) -> Faces:
        with Archive(path) as archive:
            if (form := _choose(archive)) is None:
                raise UserError(f"{path} {_nothing(archive)}")
            archive.check_unpacked(form.paths, MAX_IMAGE_BYTES if form.kind == "images" else None)
            faces = read_faces(archive, form, skip_bad)
            return replace(faces, notes=form.notes + faces.notes)

    return Source(path, f"zip-{sha256(regular_file(path))}", read)


def _choose(store: Store) -> Form | None:
    """The first form found, in an order that puts the complete and original ones first; None without any."""
    csvs = sorted((p for p in store.sizes if suffix(p) == ".csv"), key=lambda p: (p.count("/"), p))
    by_name = {leaf(path).lower(): path for path in reversed(csvs)}
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
        notes.append(f"{first} was read, of {some(list(forms))} found.")
    if kind == "images" and ignored:
        notes.append(f"Ignored, as no images in class folders: {some(ignored, 3)}.")
    return Form(kind, paths, tuple(notes))


def _images_in_class_folders(store: Store) -> tuple[list[str], list[str]]:
    """Sorted paths of the images in class folders and in folders beside them; other files in or beside these.

    A folder beside a class folder claims to be one too, so its images are read, and end as an error if
    there is no such emotion. Pictures anywhere else have nothing to do with the data.
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


def _nothing(store: Store) -> str:
    """Why a store is of no use, to follow its name."""
    if not store.sizes:
        return f"is empty. Put FER-2013's zip there ({KAGGLE_PAGE}), or give another path."
    images = [path for path in store.sizes if suffix(path) in IMAGE_SUFFIXES]
    if images:
        folders = sorted({parent(path) or "." for path in images})
        return (
            f"has images, but none in a folder named after an emotion ({', '.join(EMOTIONS)}); "
            f"they are in {some(folders)}."
        )
    if any(suffix(path) == ".zip" for path in store.sizes):  # of an archive: a folder's would have been read
        return "holds further zips, which are not opened. Unpack it and give the folder."
    return f"has no images, no CSV and no zip; it has {some(sorted(store.sizes))}."
