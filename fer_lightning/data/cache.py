"""Decoded faces kept on the disk: found again by content, memory-mapped, never half written, never pickled.

An entry is a folder ``faces-v<FORMAT>/<key>`` with one ``.npy`` an array and ``meta.json``. It is written
beside its final place and renamed into it, so a reader sees all of it or nothing, also when several processes
write the same entry at once.
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

from fer_lightning.data.faces import TEST, Faces
from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.files import sha256

FORMAT = 2  # raise it when the files of an entry, or what the reader makes of the same data, change
_TEMPORARY = ".writing-"
_STALE_HOURS = 24  # a temporary folder this old belongs to a process that was killed


class _DamagedError(Exception):
    """An entry exists but is not what was written."""


def default_dir() -> Path:
    """``fer_lightning`` in $XDG_CACHE_HOME or ~/.cache; on Windows in %LOCALAPPDATA%."""
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fer_lightning"


def load_or_build(key: str, build: Callable[[], Faces], directory: str | Path | None = None) -> Faces:
    """The faces stored under ``key``, or those of ``build()``, which are then stored.

    Args:
        key: names the content and every setting that ``build`` depends on, of letters and digits.
        build: called when there is no sound entry. What it raises is passed on and nothing is stored.
        directory: where entries are kept; ``default_dir()`` when None.

    Returns:
        Faces whose arrays are read-only memory maps of the entry; equal to those of ``build()``, notes
        included. A note is added when a damaged entry was replaced, and when the entry could not be written
        (read-only or full disk): then the arrays are those of ``build()``, in memory.
    """
    folder = Path(directory) if directory is not None else default_dir()
    entry = folder / f"faces-v{FORMAT}" / key
    notes: tuple[str, ...] = ()
    try:
        return _load(entry)
    except FileNotFoundError:
        pass
    except (_DamagedError, OSError) as error:
        notes = (f"The cache entry {entry} was damaged ({error}); it was read anew.",)

    faces = build()
    try:
        faces = _store(entry, faces)
    except (_DamagedError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        notes += (f"The cache in {folder} could not be written ({reason}): faces are kept in memory only.",)
    return replace(faces, notes=faces.notes + notes)


def _load(entry: Path) -> Faces:
    """The entry as Faces; FileNotFoundError when there is none, _DamagedError when it is not as written."""
    if not entry.is_dir():
        raise FileNotFoundError(entry)
    meta = _load_meta(entry / "meta.json")
    sums, notes = meta["sha256"], tuple(map(str, meta["notes"]))
    first, second, third = map(str, meta["split_names"])
    texts: dict[str, str] = {name: meta[name] for name in _TEXTS}
    arrays = {name: _load_array(entry, name, sums.get(name)) for name in _ARRAYS}
    if arrays["ids"].dtype != np.uint8 or arrays["ids"].ndim != 1:
        raise _DamagedError("its ids are not text")
    faces = Faces(
        images=arrays["images"],
        labels=arrays["labels"],
        usage=arrays["usage"],
        ids=_unpack(arrays["ids"]),
        split_names=(first, second, third),
        notes=notes,
        **texts,
    )
    if not _is_sound(faces):
        raise _DamagedError("its arrays do not fit together")
    return faces


_TEXTS = ("dataset", "source", "fingerprint")


def _load_meta(path: Path) -> dict[str, Any]:
    """What meta.json says of an entry, once it is known to be of the form that `_store` writes."""
    try:
        sealed = json.loads(path.read_bytes())
    except (ValueError, RecursionError, FileNotFoundError) as error:
        raise _DamagedError(f"meta.json: {type(error).__name__}: {error}") from error
    meta = sealed.get("meta") if isinstance(sealed, dict) else None
    if not isinstance(meta, dict) or sealed.get("sha256") != _digest_of_meta(meta):
        raise _DamagedError("meta.json does not match its checksum")
    kinds = {"split_names": list, "notes": list, "sha256": dict, **dict.fromkeys(_TEXTS, str)}
    for name, kind in kinds.items():
        if not isinstance(meta.get(name), kind):
            raise _DamagedError(f"meta.json has no {name} of the right type")
    if len(meta["split_names"]) != 3:
        raise _DamagedError("meta.json names more or less than three splits")
    return meta


def _is_sound(faces: Faces) -> bool:
    """Whether an entry is what Faces are: who forges one can forge its checksums."""
    n = len(faces.ids)
    wanted = {"images": ("uint8", (n, 48, 48)), "labels": ("int64", (n,)), "usage": ("uint8", (n,))}
    arrays = {name: getattr(faces, name) for name in wanted}
    return (
        n > 0
        and {name: (str(array.dtype), array.shape) for name, array in arrays.items()} == wanted
        and len(set(faces.ids)) == n
        and 0 <= int(faces.labels.min()) <= int(faces.labels.max()) < NUM_CLASSES
        and int(faces.usage.max()) <= TEST
    )


_ARRAYS = ("images", "labels", "usage", "ids")


def _load_array(entry: Path, name: str, expected: Any) -> npt.NDArray[Any]:
    path = entry / f"{name}.npy"
    if not path.exists() or sha256(path) != expected:
        raise _DamagedError(f"{path.name} does not match its checksum")
    try:
        array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # never a pickle, nor another format
    # NumPy reads the header as Python, and raises nearly anything for a forged one.
    except Exception as error:
        raise _DamagedError(f"{path.name}: {type(error).__name__}: {error}") from error
    return array


def _store(entry: Path, faces: Faces) -> Faces:
    """Write the entry and return it as read back; OSError when the disk does not take it."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    _sweep(entry.parent)
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
        for name, array in arrays.items():
            np.save(written / f"{name}.npy", array, allow_pickle=False)
        meta = {
            "dataset": faces.dataset,
            "source": faces.source,
            "fingerprint": faces.fingerprint,
            "split_names": list(faces.split_names),
            "notes": list(faces.notes),
            "sha256": {name: sha256(written / f"{name}.npy") for name in arrays},
        }
        (written / "meta.json").write_text(json.dumps({"meta": meta, "sha256": _digest_of_meta(meta)}))
        try:
            written.rename(entry)
        except OSError:
            # Someone else's entry is there: use it, or put a damaged one out of the way.
            try:
                return _load(entry)
            except (_DamagedError, FileNotFoundError):
                with contextlib.suppress(FileNotFoundError):
                    entry.rename(temporary / "damaged")
                with contextlib.suppress(OSError):  # a third process may have been quicker
                    written.rename(entry)
        return _load(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_HOURS * 3600:
                shutil.rmtree(leftover, ignore_errors=True)


def _pack(ids: Any) -> npt.NDArray[np.uint8]:
    """One UTF-8 text with NUL between the names, (bytes,) uint8: no fixed width, no Python objects."""
    return np.frombuffer("\0".join(ids).encode("utf-8", "surrogateescape"), np.uint8)


def _unpack(packed: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(packed.tobytes().decode("utf-8", "surrogateescape").split("\0"))


def _digest_of_meta(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
