"""Disk cache of decoded faces: keyed by content, memory-mapped, written atomically, without pickles.

An entry is a folder ``faces-v<FORMAT>/<key>`` with one ``.npy`` file per array and a ``meta.json``. It is written
to a temporary folder next to its final place and then renamed, so readers see a whole entry or none, even when
several processes write the same one at once.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lightning.data.faces import UNNAMED, Faces
from fer_lightning.files import sha256

FORMAT = 5  # increase when the files of an entry change, or what the reader makes of the same data
_TEMPORARY = ".writing-"
_STALE_HOURS = 24  # a temporary folder this old was left behind by a killed process


class _DamagedError(Exception):
    """A cache entry exists, but not as it was written."""


def default_dir() -> Path:
    """Return ``fer_lightning`` in $XDG_CACHE_HOME, by default ~/.cache; on Windows in %LOCALAPPDATA%."""
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fer_lightning"


def load_or_build(key: str, build: Callable[[], Faces], directory: str | Path | None = None) -> Faces:
    """Return the faces cached under ``key``, or build and cache them.

    Args:
        key: identifies the content and every setting that ``build`` depends on; letters, digits and hyphens.
        build: called when there is no valid entry. Its exceptions propagate, and nothing is cached.
        directory: cache folder; None for ``default_dir()``.

    Returns:
        Faces equal to those of ``build()``, notes included; the arrays are read-only memory maps of the entry. If
        the entry cannot be written (read-only or full disk), the arrays are those of ``build()``, in memory. A note
        is added in that case and when a damaged entry was replaced.
    """
    folder = Path(directory) if directory is not None else default_dir()
    entry = folder / f"faces-v{FORMAT}" / key
    notes: tuple[str, ...] = ()
    try:
        return _load(entry)
    except FileNotFoundError:
        pass
    except (_DamagedError, OSError) as error:
        notes = (f"Cache entry {entry} was damaged ({error}); the data were read again.",)

    faces = build()
    try:
        faces = _store(entry, faces)
    except (_DamagedError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        notes += (f"Cannot write the cache in {folder} ({reason}); faces are kept in memory only.",)
    return replace(faces, notes=faces.notes + notes)


def _load(entry: Path) -> Faces:
    """Load an entry; raise FileNotFoundError if it is missing, _DamagedError if it is not as it was written."""
    if not entry.is_dir():
        raise FileNotFoundError(entry)
    meta = _load_meta(entry / "meta.json")
    sums, notes = meta["sha256"], tuple(map(str, meta["notes"]))
    first, second, third = map(str, meta["split_names"])
    arrays = {name: _load_array(entry, name, sums.get(name)) for name in _ARRAYS}
    votes = _load_array(entry, "votes", sums["votes"]) if "votes" in sums else None
    if arrays["ids"].dtype != np.uint8 or arrays["ids"].ndim != 1:
        raise _DamagedError("ids.npy does not hold text")
    faces = Faces(
        images=arrays["images"],
        labels=arrays["labels"],
        usage=arrays["usage"],
        ids=_unpack(arrays["ids"]),
        split_names=(first, second, third),
        classes=tuple(map(str, meta["classes"])),
        notes=notes,
        votes=votes,
        dataset=meta["dataset"],
        source=meta["source"],
        fingerprint=meta["fingerprint"],
    )
    if not _is_sound(faces):
        raise _DamagedError("its arrays are inconsistent")
    return faces


_TEXTS = ("dataset", "source", "fingerprint")


def _load_meta(path: Path) -> dict[str, Any]:
    """Return the metadata in meta.json, checked to have the form that `_store` writes."""
    try:
        sealed = json.loads(path.read_bytes())
    except (ValueError, RecursionError, FileNotFoundError) as error:
        raise _DamagedError(f"meta.json: {type(error).__name__}: {error}") from error
    meta = sealed.get("meta") if isinstance(sealed, dict) else None
    if not isinstance(meta, dict) or sealed.get("sha256") != _digest_of_meta(meta):
        raise _DamagedError("meta.json does not match its checksum")
    kinds = {"split_names": list, "classes": list, "notes": list, "sha256": dict, **dict.fromkeys(_TEXTS, str)}
    for name, kind in kinds.items():
        if not isinstance(meta.get(name), kind):
            raise _DamagedError(f"meta.json: {name} is missing or of the wrong type")
    if len(meta["split_names"]) != 3:
        raise _DamagedError(f"meta.json: expected 3 split names, got {len(meta['split_names'])}")
    return meta


def _is_sound(faces: Faces) -> bool:
    """Return whether the arrays of an entry are valid Faces; a forged entry can have matching checksums."""
    n = len(faces.ids)
    wanted = {"images": ("uint8", (n, 48, 48)), "labels": ("int64", (n,)), "usage": ("uint8", (n,))}
    if faces.votes is not None:
        wanted["votes"] = ("uint8", (n, 10))
    arrays = {name: getattr(faces, name) for name in wanted}
    return (
        n > 0
        and {name: (str(array.dtype), array.shape) for name, array in arrays.items()} == wanted
        and len(set(faces.ids)) == n
        and 0 <= int(faces.labels.min()) <= int(faces.labels.max()) < len(faces.classes)
        and int(faces.usage.max()) <= UNNAMED
    )


_ARRAYS = ("images", "labels", "usage", "ids")


def _load_array(entry: Path, name: str, expected: Any) -> npt.NDArray[Any]:
    path = entry / f"{name}.npy"
    if not path.exists() or sha256(path) != expected:
        raise _DamagedError(f"{path.name} does not match its checksum")
    try:
        array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # accepts neither pickles nor .npz
    # NumPy parses the header as Python and raises almost anything for a forged one.
    except Exception as error:
        raise _DamagedError(f"{path.name}: {type(error).__name__}: {error}") from error
    return array


def _store(entry: Path, faces: Faces) -> Faces:
    """Write an entry and return it as read back; raise OSError if it cannot be written."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(entry.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=entry.parent))
    try:
        written = temporary / "entry"
        written.mkdir()
        arrays: dict[str, npt.NDArray[Any]] = {
            "images": faces.images,
            "labels": faces.labels,
            "usage": faces.usage,
            "ids": _pack(faces.ids),
        }
        if faces.votes is not None:
            arrays["votes"] = faces.votes
        for name, array in arrays.items():
            np.save(written / f"{name}.npy", array, allow_pickle=False)
        meta = {
            "dataset": faces.dataset,
            "source": faces.source,
            "fingerprint": faces.fingerprint,
            "split_names": list(faces.split_names),
            "classes": list(faces.classes),
            "notes": list(faces.notes),
            "sha256": {name: sha256(written / f"{name}.npy") for name in arrays},
        }
        (written / "meta.json").write_text(json.dumps({"meta": meta, "sha256": _digest_of_meta(meta)}))
        try:
            written.rename(entry)
        except OSError:
            # The entry exists already: use it if another process wrote it, or move a damaged one out of the way.
            try:
                return _load(entry)
            except (_DamagedError, FileNotFoundError):
                with contextlib.suppress(FileNotFoundError):
                    entry.rename(temporary / "damaged")
                with contextlib.suppress(OSError):  # a third process may have been faster
                    written.rename(entry)
        return _load(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary folders that killed processes left behind."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_HOURS * 3600:
                shutil.rmtree(leftover, ignore_errors=True)


def _pack(ids: Any) -> npt.NDArray[np.uint8]:
    """Pack ids into one UTF-8 string separated by NUL, uint8 (bytes,): no fixed width, no Python objects."""
    return np.frombuffer("\0".join(ids).encode("utf-8", "surrogateescape"), np.uint8)


def _unpack(packed: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(packed.tobytes().decode("utf-8", "surrogateescape").split("\0"))


def _digest_of_meta(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
