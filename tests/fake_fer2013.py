"""A miniature FER-2013 from a seeded generator, in all file formats of the real one."""

import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fer_lightning.data.faces import FER2013_SPLITS, TEST, TRAIN, VAL, Faces
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.emotions import EMOTIONS


@dataclass(frozen=True)
class FakeFace:
    """One image, as a file and as the pixels it decodes to."""

    path: str  # "train/happy/Training_17.jpg"
    label: int
    usage: int
    jpeg: bytes
    pixels: npt.NDArray[np.uint8]  # (48, 48)


def fake_faces(per_class: Sequence[int] = (4, 2, 2), seed: int = 0) -> list[FakeFace]:
    """Return `per_class` different images of each class in Training, PublicTest and PrivateTest, sorted by path."""
    rng = np.random.default_rng(seed)
    faces = []
    for usage, split in enumerate(FER2013_SPLITS):
        for label, emotion in enumerate(EMOTIONS):
            for _ in range(per_class[usage]):
                folder = "train" if usage == TRAIN else "test"
                name = f"{split}_{rng.integers(10**6, 10**8)}.jpg"
                coarse = rng.integers(0, 256, (6, 6), dtype=np.uint8)
                jpeg = encode(np.kron(coarse, np.ones((8, 8), np.uint8)))
                pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
                faces.append(FakeFace(f"{folder}/{emotion}/{name}", label, usage, jpeg, pixels))
    return sorted(faces, key=lambda face: face.path)


def random_faces(counts: Sequence[int] = (20, 8, 6)) -> Faces:
    """Return faces of random pixels, with `counts` of them in the three splits, in a random order."""
    rng = np.random.default_rng(0)
    usage = np.repeat(np.array([TRAIN, VAL, TEST], np.uint8), counts)
    rng.shuffle(usage)
    return Faces(
        images=rng.integers(0, 256, (len(usage), 48, 48), np.uint8),
        labels=np.arange(len(usage), dtype=np.int64) % 7,
        usage=usage,
        ids=[f"face:{n}" for n in range(len(usage))],
        dataset="FER-2013",
        source="made for the test",
        fingerprint="0" * 16,
        split_names=FER2013_SPLITS,
    )


def encode(pixels: npt.NDArray[np.uint8], file_format: str = "JPEG") -> bytes:
    """Encode uint8 (H, W) or (H, W, 3) as an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


def without_prefixes(faces: Iterable[FakeFace], split_folders: bool = True) -> list[FakeFace]:
    """Return the same images in class folders, without split prefixes, with or without train/ and test/."""
    plain = []
    for face in faces:
        folder, emotion, name = face.path.split("/")
        parts = ([folder] if split_folders else []) + [emotion, "img" + name.partition("_")[2]]
        plain.append(replace(face, path="/".join(parts)))
    return sorted(plain, key=lambda face: face.path)


def write_folder(root: Path, faces: Iterable[FakeFace]) -> Path:
    for face in faces:
        file = root / face.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(face.jpeg)
    return root


def write_folders(root: str, names: Sequence[str], n: int = 10) -> str:
    """Write n drawn faces into a folder of each name."""
    images = synthetic_faces(n_train=n * len(names), n_val=0, n_test=0).images
    for at, image in enumerate(images):
        folder = Path(root, names[at % len(names)])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{at}.png").write_bytes(encode(image, "PNG"))
    return root


def write_zip(path: Path, faces: Iterable[FakeFace], top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for face in faces:
            archive.writestr(top + face.path, face.jpeg)
    return path


def write_fer2013_csv(path: Path, faces: Iterable[FakeFace]) -> Path:
    """Write the challenge's original file: emotion,pixels,Usage."""
    return _write_csv(path, "emotion,pixels,Usage", ([f.label, text(f), FER2013_SPLITS[f.usage]] for f in faces))


def write_icml_csv(path: Path, faces: Iterable[FakeFace]) -> Path:
    """Write icml_face_data.csv: another column order, and a space before the second and third name."""
    header = "emotion, Usage, pixels"
    return _write_csv(path, header, ([f.label, FER2013_SPLITS[f.usage], text(f)] for f in faces))


def write_train_csv(path: Path, faces: Iterable[FakeFace]) -> Path:
    """Write the challenge's train.csv, which has no Usage column."""
    return _write_csv(path, "emotion,pixels", ([f.label, text(f)] for f in faces))


def write_test_csv(path: Path, faces: Iterable[FakeFace]) -> Path:
    """Write the challenge's test.csv, which has no labels either."""
    return _write_csv(path, "pixels", ([text(f)] for f in faces))


def write_ferplus_folders(
    root: Path, faces: Sequence[FakeFace], counts: Sequence[Sequence[int]], boxes: bool = False
) -> Path:
    """Write FER+'s own folders with the votes for each face, as its script does; in its repository, with boxes."""
    lists: dict[str, list[list[object]]] = {}
    for row, (face, votes) in enumerate(zip(faces, counts, strict=True)):
        folder = root / ("FER2013Train", "FER2013Valid", "FER2013Test")[face.usage]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"fer{row:07d}.png").write_bytes(encode(face.pixels, "PNG"))
        box = ["(0, 0, 48, 48)"] if boxes else []
        lists.setdefault(folder.name, []).append([f"fer{row:07d}.png", *box, *votes])
    for name, rows in lists.items():
        with (root / name / "label.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return root


def text(face: FakeFace) -> str:
    """Return the pixels column of a face."""
    return " ".join(map(str, face.pixels.ravel()))


def _write_csv(path: Path, header: str, rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        file.write(header + "\n")
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path
