"""All readers of untrusted files, with valid files to mutate and a way to feed them any other bytes.

Used by test_hostile.py and long/fuzz.py. A reader may raise nothing but UserError, and may leave no files outside
the folder that it is given.
"""

import contextlib
import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from fake_fer2013 import fake_faces, write_fer2013_csv, write_icml_csv, write_train_csv, write_zip
from PIL import Image

from fer_lightning.audit.mislabels import read_probabilities
from fer_lightning.config.compose import Conf, to_yaml
from fer_lightning.config.saved import resumed
from fer_lightning.data import cache as face_cache
from fer_lightning.data.faces import Faces, fingerprint
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.images import FORMATS
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.inference.photos import read_photo
from fer_lightning.models import build_model
from fer_lightning.models.checkpoint import net_from, read_checkpoint


@dataclass(frozen=True)
class Reader:
    """A reader of untrusted files."""

    seeds: Callable[[], list[bytes]]  # valid files to mutate
    read: Callable[[bytes, Path], object]  # takes the bytes and an empty folder


def attempt(name: str, content: bytes) -> bool:
    """Return whether a reader accepts the bytes, or refuses them with a UserError."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "given"
        folder.mkdir()
        try:
            READERS[name].read(content, folder)
        except UserError:
            return False
        finally:
            assert [path.name for path in Path(parent).iterdir()] == ["given"]
        return True


# ---------------------------------------------------------------------------------------------------------
# Data


def _checked(faces: Faces) -> None:
    n = len(faces)
    assert n
    assert (faces.images.shape, faces.images.dtype) == ((n, 48, 48), np.uint8)
    assert (faces.labels.shape, faces.labels.dtype) == ((n,), np.int64)
    assert ((faces.labels >= 0) & (faces.labels < len(EMOTIONS))).all()
    assert set(np.unique(faces.usage)) <= {0, 1, 2}
    assert len(set(faces.ids)) == n


def _data(content: bytes, path: Path) -> None:
    """Load the data strictly, where any fault is an error, and with skip_bad."""
    path.write_bytes(content)
    strict = None
    with contextlib.suppress(UserError):
        strict = load_faces(path, cache_dir=path.parent / "cache")
    whole = load_faces(path, skip_bad=True, cache_dir=path.parent / "cache")
    _checked(whole)
    if strict is not None:  # nothing was bad, so nothing may have been dropped
        assert strict.fingerprint == whole.fingerprint


def _csv(content: bytes, folder: Path) -> None:
    _data(content, folder / "given.csv")


def _zip(content: bytes, folder: Path) -> None:
    _data(content, folder / "given.zip")


def _image(content: bytes, folder: Path) -> None:
    """Read the bytes as an image in a class folder."""
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("train/happy/a.jpg", content)
        archive.writestr("train/sad/b.png", pictures()[0])
    _data((folder / "images.zip").read_bytes(), folder / "given.zip")


def _exclude(content: bytes, folder: Path) -> None:
    (folder / "list.txt").write_bytes(content)
    write_zip(folder / "given.zip", _faces())
    _checked(load_faces(folder / "given.zip", exclude=folder / "list.txt", cache_dir=folder / "cache"))


def _relabel(content: bytes, folder: Path) -> None:
    (folder / "labels.csv").write_bytes(content)
    write_zip(folder / "given.zip", _faces())
    _checked(load_faces(folder / "given.zip", relabel=folder / "labels.csv", cache_dir=folder / "cache"))


def _cache(content: bytes, folder: Path) -> None:
    """Replace one file of an entry, selected by the first byte, with correct checksums as in a forgery."""
    faces = _drawn()
    face_cache.load_or_build("key", lambda: faces, folder)
    (entry,) = folder.glob("faces-v*/key")
    names = sorted(path.name for path in entry.iterdir())
    name = names[content[0] % len(names)] if content else "meta.json"
    (entry / name).write_bytes(content[1:])
    if name == "meta.json":
        try:
            meta = json.loads(content[1:])["meta"]
            digest = face_cache._digest_of_meta(meta)
        except (ValueError, KeyError, TypeError, RecursionError):
            meta = None
    else:
        meta = json.loads((entry / "meta.json").read_bytes())["meta"]
        meta["sha256"][name.removesuffix(".npy")] = hashlib.sha256(content[1:]).hexdigest()
        digest = face_cache._digest_of_meta(meta)
    if meta is not None:
        (entry / "meta.json").write_text(json.dumps({"meta": meta, "sha256": digest}))
    _checked(face_cache.load_or_build("key", lambda: faces, folder))


def _probabilities(content: bytes, folder: Path) -> None:
    (folder / "given.npz").write_bytes(content)
    assert read_probabilities(folder / "given.npz", _drawn().ids, len(EMOTIONS)).shape == (
        len(_drawn()),
        len(EMOTIONS),
    )


@cache
def _faces() -> list:
    return fake_faces((2, 1, 1))


@cache
def _drawn() -> Faces:
    faces = _faces()
    images = np.stack([face.pixels for face in faces])
    labels, usage = np.array([face.label for face in faces]), np.array([face.usage for face in faces], np.uint8)
    ids = tuple(face.path for face in faces)
    return Faces(images, labels, usage, ids, "FER-2013", "drawn", fingerprint(images, labels, usage))


def _written(*writers: Callable) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [write(Path(folder) / "file", _faces()[:6]).read_bytes() for write in writers]


def _csvs() -> list[bytes]:
    return _written(write_fer2013_csv, write_icml_csv, write_train_csv)


def _zips() -> list[bytes]:
    csv = io.BytesIO()
    with zipfile.ZipFile(csv, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fer2013.csv", _csvs()[0])
        archive.writestr("inner.zip", _written(write_zip)[0])
    return [*_written(write_zip), csv.getvalue()]


@cache
def pictures() -> list[bytes]:
    """Return a small picture in every supported format, in several modes."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    kinds = [
        ("PNG", "L"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "I;16"),
        ("BMP", "RGB"),
        ("GIF", "P"),
        ("TIFF", "RGB"),
        ("TIFF", "1"),
        ("WEBP", "RGBA"),
        ("PPM", "RGB"),
        ("JPEG2000", "RGB"),
        *([("AVIF", "RGBA")] if "AVIF" in FORMATS else []),
    ]
    files = []
    for kind, mode in kinds:
        file = io.BytesIO()
        more = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
        more |= {"compression": "tiff_lzw"} if (kind, mode) == ("TIFF", "RGB") else {}
        (picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode)).save(file, kind, **more)
        files.append(file.getvalue())
    for options in ({"progressive": True}, {"restart_marker_blocks": 2}):  # a truncated JPEG is searched for scans
        file = io.BytesIO()
        picture.save(file, "JPEG", **options)
        files.append(file.getvalue()[:-40])
    return files


def _lists() -> list[bytes]:
    names = [face.path for face in _faces()]
    return ["\n".join(["# left out", *names[:3]]).encode(), "\r\n".join(names[2:5]).encode("utf-8-sig")]


def _label_lists() -> list[bytes]:
    names = [face.path for face in _faces()]
    return [f"# by hand\nid,label\n{names[0]},sad\n".encode(), f'"{names[1]}", Happiness\r\n'.encode("utf-8-sig")]


def _cache_files() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        face_cache.load_or_build("key", _drawn, folder)
        files = sorted(Path(folder).glob("faces-v*/key/*"))
        return [bytes([number]) + file.read_bytes() for number, file in enumerate(files)]


def _npz() -> list[bytes]:
    files = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        n = len(_drawn())
        save(file, ids=np.array(_drawn().ids), probabilities=np.full((n, 7), 1 / 7, np.float32))
        files.append(file.getvalue())
    return files


# ---------------------------------------------------------------------------------------------------------
# Runs


def checkpoint(**changes: object) -> bytes:
    """Return a run's checkpoint of a tiny network; `changes` override its metadata."""
    model = {"name": "fer_model0", "channels": [2, 3]}
    net = build_model(image_size=8, **model)
    metadata = {
        "image_size": 8,
        "mean": 0.5,
        "std": 0.5,
        "classes": EMOTIONS,
        "model": model,
        "val_split": "PublicTest",
    }
    weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    file = io.BytesIO()
    torch.save({"epoch": 1, "global_step": 8, "fer_lightning": metadata | changes, "state_dict": weights}, file)
    return file.getvalue()


def with_pickle(pickled: bytes) -> bytes:
    """Return the checkpoint with another data.pkl and correct checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint())) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("/data.pkl") else old.read(name))
    return file.getvalue()


def pickled_checkpoint() -> bytes:
    """Return the checkpoint's data.pkl."""
    with zipfile.ZipFile(io.BytesIO(checkpoint())) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def _checkpoint(content: bytes, folder: Path) -> None:
    (folder / "given.ckpt").write_bytes(content)
    loaded = read_checkpoint(folder / "given.ckpt")
    size = loaded.inputs.image_size
    assert net_from(loaded)(torch.zeros(1, 1, size, size)).shape == (1, len(EMOTIONS))


def _pickle(content: bytes, folder: Path) -> None:
    _checkpoint(with_pickle(content), folder)


def saved_config() -> str:
    """Return the config.yaml of a run."""
    cfg = Conf().compose(["experiment=demo"])
    plain = {key: cfg[key] for key in cfg if key != "hydra"}
    return to_yaml(plain | {"experiment": "demo", "overrides": ["experiment=demo"]})


def _config(content: bytes, folder: Path) -> None:
    (folder / "config.yaml").write_bytes(content)
    assert resumed(folder, []).resume == str(folder)


READERS = {
    "csv": Reader(_csvs, _csv),
    "zip": Reader(_zips, _zip),
    "image": Reader(pictures, _image),
    "photo": Reader(pictures, lambda content, folder: read_photo(io.BytesIO(content))),
    "exclude": Reader(_lists, _exclude),
    "relabel": Reader(_label_lists, _relabel),
    "cache": Reader(_cache_files, _cache),
    "probabilities": Reader(_npz, _probabilities),
    "checkpoint": Reader(lambda: [checkpoint()], _checkpoint),
    "pickle": Reader(lambda: [pickled_checkpoint()], _pickle),
    "config": Reader(lambda: [saved_config().encode()], _config),
}
