"""Every form of FER-2013 gives the same arrays, and every fault is reported with place, cause and remedy."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import kagglehub
import numpy as np
import numpy.typing as npt
import pytest
from fake_fer2013 import (
    encode,
    fake_faces,
    text,
    without_prefixes,
    write_fer2013_csv,
    write_folder,
    write_icml_csv,
    write_test_csv,
    write_train_csv,
    write_zip,
)
from PIL import Image

from fer_lightning.data import lookup
from fer_lightning.data.classes import class_index
from fer_lightning.data.faces import (
    FER2013_SPLITS,
    GENERIC_SPLITS,
    TEST,
    TRAIN,
    VAL,
    Faces,
    fingerprint,
    seen_elsewhere,
)
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.images import FORMAT_NAMES, MAX_IMAGE_BYTES
from fer_lightning.data.reading import PUBLISHED_COUNTS, _count_differences
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError

# Absolute, because the tests change the working directory.
REAL = os.path.abspath(os.environ["FER2013_PATH"]) if os.environ.get("FER2013_PATH") else None
FACES = fake_faces()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate the tests from the user's data, cache and network."""

    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("Max retries exceeded")

    monkeypatch.delenv("FER2013_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(kagglehub, "dataset_download", offline)


def other_notes(faces: Faces) -> list[str]:
    """Return all notes except the one that the counts differ from the published ones."""
    return [note for note in faces.notes if "published" not in note]


def error_of(path: object, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        load_faces(path, **settings)  # type: ignore[arg-type]
    return str(caught.value)


# Forms


def zip_of_csv(tmp_path: Path) -> Path:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write_fer2013_csv(tmp_path / "a.csv", FACES), "fer2013/fer2013.csv")
        archive.writestr("fer2013/README", "no data")
    return path


def zip_in_folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write_zip(tmp_path / "in" / "archive.zip", FACES).parent


FORMS: dict[str, Callable[[Path], Path]] = {
    "zip": lambda tmp: write_zip(tmp / "fer2013.zip", FACES),
    "zip_reversed": lambda tmp: write_zip(tmp / "fer2013.zip", FACES[::-1]),
    "zip_with_top_folder": lambda tmp: write_zip(tmp / "archive.zip", FACES, top="fer2013/images/"),
    "zip_from_windows": lambda tmp: write_zip(
        tmp / "a.zip", [replace(face, path=face.path.replace("/", "\\")) for face in FACES]
    ),
    "zip_with_dots": lambda tmp: write_zip(tmp / "a.zip", FACES, top="./"),
    "zip_without_suffix": lambda tmp: write_zip(tmp / "fer2013", FACES),
    "zip_of_csv": zip_of_csv,
    "zip_in_folder": zip_in_folder,
    "folder": lambda tmp: write_folder(tmp / "fer", FACES),
    "folder_with_top_folder": lambda tmp: write_folder(tmp / "x" / "fer", FACES).parent,
    "fer2013.csv": lambda tmp: write_fer2013_csv(tmp / "fer2013.csv", FACES),
    "icml_face_data.csv": lambda tmp: write_icml_csv(tmp / "icml_face_data.csv", FACES),
    "renamed.csv": lambda tmp: write_fer2013_csv(tmp / "fer (1).CSV", FACES),
    "csv_in_folder": lambda tmp: write_icml_csv(tmp / "icml_face_data.csv", FACES).parent,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_faces(form: str, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path)
    for _ in range(2):  # read, then from the cache
        faces = load_faces(path)
        np.testing.assert_array_equal(faces.images, np.stack([face.pixels for face in FACES]))
        np.testing.assert_array_equal(faces.labels, [face.label for face in FACES])
        np.testing.assert_array_equal(faces.usage, [face.usage for face in FACES])
        assert (faces.images.dtype, faces.labels.dtype, faces.usage.dtype) == (np.uint8, np.int64, np.uint8)
        assert isinstance(faces.images, np.memmap)
        assert len(set(faces.ids)) == len(FACES) == 56
        assert (faces.dataset, faces.split_names) == ("FER-2013", FER2013_SPLITS)
        assert faces.fingerprint == fingerprint(faces.images, faces.labels, faces.usage)
        assert faces.source == str(tmp_path / "in" / "archive.zip" if form == "zip_in_folder" else path)
        assert other_notes(faces) == []


def test_ids_name_the_file_or_the_line(tmp_path: Path) -> None:
    assert load_faces(write_zip(tmp_path / "a.zip", FACES, top="top/")).ids[0] == "top/" + FACES[0].path
    assert load_faces(write_folder(tmp_path / "a", FACES)).ids[-1] == FACES[-1].path
    assert load_faces(write_fer2013_csv(tmp_path / "a.csv", FACES)).ids[:2] == ("a.csv:2", "a.csv:3")
    assert load_faces(zip_of_csv(tmp_path)).ids[-1] == "fer2013.csv:57"


@pytest.mark.parametrize("form", ["zip", "folder", "fer2013.csv"])
def test_second_load_comes_from_the_cache(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FORMS[form](tmp_path)
    first = load_faces(path)
    monkeypatch.setattr(lookup, "read_faces", None)
    assert load_faces(path).fingerprint == first.fingerprint


def test_changed_content_is_read_again(tmp_path: Path) -> None:
    folder, csv = write_folder(tmp_path / "a", FACES), write_fer2013_csv(tmp_path / "a.csv", FACES)
    archive = write_zip(tmp_path / "a.zip", FACES)
    assert [len(load_faces(path)) for path in (folder, csv, archive)] == [56, 56, 56]
    (folder / FACES[0].path).unlink()
    write_fer2013_csv(csv, FACES[1:])
    write_zip(archive, FACES[1:])
    assert [len(load_faces(path)) for path in (folder, csv, archive)] == [55, 55, 55]
    (folder / FACES[1].path).write_bytes(FACES[0].jpeg)
    np.testing.assert_array_equal(load_faces(folder).images[0], FACES[0].pixels)


def test_folder_with_only_a_changed_time_or_subfolder_is_read_again(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", FACES)
    assert load_faces(folder).ids[0] == FACES[0].path
    file = folder / FACES[0].path
    size = file.stat().st_size
    file.write_bytes(b"no image".ljust(size))
    os.utime(file, ns=(0, 0))
    assert error_of(folder).startswith(f"{FACES[0].path}: not an image")
    file.write_bytes(FACES[0].jpeg)
    assert len(load_faces(folder)) == 56
    (folder / "train" / "Happiness").mkdir()
    assert error_of(folder).startswith("train/Happiness/: contains no images")


def test_classes_are_mapped_by_name_not_alphabetically(tmp_path: Path) -> None:
    for emotion, grey in (("neutral", 60), ("sad", 40), ("surprise", 50)):  # alphabetically 4, 5, 6
        path = tmp_path / "data" / emotion / "img.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode(np.full((48, 48), grey, np.uint8), "PNG"))
    faces = load_faces(tmp_path / "data")
    assert dict(zip(faces.labels.tolist(), faces.images[:, 0, 0].tolist(), strict=True)) == {6: 60, 4: 40, 5: 50}


def test_class_folders_under_other_names(tmp_path: Path) -> None:
    aliases = ("Anger", "DISGUST", "fearful", "Happiness", "sadness", "suprise", "Neutral")
    renamed = [replace(face, path=face.path.replace(EMOTIONS[face.label], aliases[face.label])) for face in FACES]
    wanted = {face.path.rpartition("/")[2]: face.label for face in FACES}
    faces = load_faces(write_folder(tmp_path / "a", renamed))
    assert {name.rpartition("/")[2]: label for name, label in zip(faces.ids, faces.labels, strict=True)} == wanted


def test_operating_system_files_are_ignored_silently(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", FACES)
    for name in (".DS_Store", "train/happy/._x.jpg", "train/happy/Thumbs.db", "train/.cache/happy/x.jpg"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"\0")
    faces = load_faces(folder)
    assert (len(faces), other_notes(faces)) == (56, [])

    with zipfile.ZipFile(write_zip(tmp_path / "a.zip", FACES), "a") as archive:
        archive.writestr("__MACOSX/train/happy/._x.jpg", b"\0")
        archive.writestr("train/sad/.DS_Store", b"\0")
    faces = load_faces(tmp_path / "a.zip")
    assert (len(faces), other_notes(faces)) == (56, [])


def test_other_files_are_ignored_with_a_note(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", FACES)
    (folder / "train/happy/README.txt").write_text("hello")
    (folder / "holiday.jpg").write_bytes(b"no image")
    faces = load_faces(folder)
    assert len(faces) == 56
    assert other_notes(faces) == [
        "Ignored files that are not images in class folders: holiday.jpg, train/happy/README.txt."
    ]


def test_most_complete_of_several_forms_is_read_with_a_note(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", FACES[::2])
    write_train_csv(folder / "train.csv", FACES[:30])
    write_icml_csv(folder / "icml_face_data.csv", FACES[:40])
    write_zip(folder / "archive.zip", FACES)
    faces = load_faces(folder)
    assert len(faces) == 40
    assert other_notes(faces) == [
        "Found archives beside the data, which were not read: archive.zip.",
        "Found icml_face_data.csv, class folders, train.csv; only icml_face_data.csv was read.",
    ]
    (folder / "icml_face_data.csv").unlink()
    faces = load_faces(folder)
    assert len(faces) == 28
    assert other_notes(faces) == [
        "Found archives beside the data, which were not read: archive.zip.",
        "Found class folders, train.csv; only class folders were read.",
    ]


def test_several_versions_of_a_csv_are_refused(tmp_path: Path) -> None:
    write_fer2013_csv(tmp_path / "b.csv", FACES)
    write_fer2013_csv(tmp_path / "a.csv", FACES[:20])
    message = error_of(tmp_path)
    assert message.startswith(
        f"a.csv, b.csv in {tmp_path} both contain PublicTest and PrivateTest. Nothing was guessed"
    )
    assert len(load_faces(tmp_path / "a.csv")) == 20


def test_likeliest_of_several_zips_is_read_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_zip(tmp_path / "a" / "archive.zip", FACES[:20])
    write_zip(tmp_path / "a" / "fer2013.zip", FACES)
    faces = load_faces(tmp_path / "a")
    assert len(faces) == 56
    assert other_notes(faces) == ["Found fer2013.zip, archive.zip; only fer2013.zip was read."]


def test_prefix_that_contradicts_the_folder_is_refused(tmp_path: Path) -> None:
    moved = [replace(face, path=face.path.replace("test/", "train/")) for face in FACES]
    message = error_of(write_folder(tmp_path / "a", moved))
    assert message.startswith("train/angry/PrivateTest_")
    assert f"in {tmp_path / 'a'} is called private test by its name, and train by its folders." in message


# Splits cut by load_faces


def splits_by_content(faces: Faces) -> dict[bytes, int]:
    return {image.tobytes(): int(split) for image, split in zip(faces.images, faces.usage, strict=True)}


def test_folder_without_splits_is_cut_in_each_class(tmp_path: Path) -> None:
    many = without_prefixes(fake_faces((30, 0, 0)), split_folders=False)
    faces = load_faces(write_folder(tmp_path / "a", many), seed=3)
    assert (faces.dataset, faces.split_names) == ("folder", GENERIC_SPLITS)
    for label in range(7):
        assert np.bincount(faces.usage[faces.labels == label], minlength=3).tolist() == [24, 3, 3]
    assert faces.notes == (
        "No official split: validation (21 images) and test (21 images) cut from train, "
        "a tenth of each class, seed 3.",
    )
    assert faces.fingerprint == fingerprint(faces.images, faces.labels, faces.usage)


def test_cut_depends_on_the_seed_alone(tmp_path: Path) -> None:
    many = without_prefixes(fake_faces((30, 0, 0)), split_folders=False)
    renamed = [replace(face, path=face.path.replace("img", f"{i * 7919 % 211:04}")) for i, face in enumerate(many)]
    first = splits_by_content(load_faces(write_folder(tmp_path / "a", many), seed=3))
    assert splits_by_content(load_faces(write_folder(tmp_path / "b", many[::-1]), seed=3)) == first
    assert splits_by_content(load_faces(write_folder(tmp_path / "c", renamed), seed=3)) == first
    assert splits_by_content(load_faces(write_zip(tmp_path / "d.zip", many[::-1]), seed=3)) == first
    assert splits_by_content(load_faces(tmp_path / "a", seed=4)) != first
    assert splits_by_content(load_faces(tmp_path / "a", seed=3)) == first


def test_split_folders_are_kept_and_only_validation_is_cut(tmp_path: Path) -> None:
    plain = without_prefixes(fake_faces((20, 0, 5)))
    faces = load_faces(write_folder(tmp_path / "a", plain))
    in_test = np.array([name.startswith("test/") for name in faces.ids])
    np.testing.assert_array_equal(faces.usage == TEST, in_test)
    assert np.bincount(faces.usage).tolist() == [126, 14, 35]
    assert faces.notes == (
        "No official split: validation (14 images) cut from train, a tenth of each class, seed 0.",
    )


def test_three_split_folders_are_all_kept(tmp_path: Path) -> None:
    plain = without_prefixes(FACES)
    names = {TRAIN: "Train", VAL: "valid", TEST: "test"}
    moved = [replace(f, path=names[f.usage] + "/" + f.path.partition("/")[2]) for f in plain]
    faces = load_faces(write_zip(tmp_path / "a.zip", moved, top="ferplus/"))
    assert np.bincount(faces.usage).tolist() == [28, 14, 14]
    for name, split in zip(faces.ids, faces.usage, strict=True):
        assert name.split("/")[1] == names[split]
    assert (faces.dataset, faces.notes) == ("folder", ())


def test_test_folder_alone_stays_whole(tmp_path: Path) -> None:
    plain = without_prefixes(fake_faces((0, 0, 4)))
    faces = load_faces(write_folder(tmp_path / "a", plain))
    assert set(faces.usage.tolist()) == {TEST}
    assert faces.notes == ()


def test_missing_class_is_noted(tmp_path: Path) -> None:
    plain = [face for face in without_prefixes(FACES) if face.label not in (1, 5)]
    assert load_faces(write_folder(tmp_path / "a", plain)).notes[0] == "No images of: disgust, surprise."


def test_train_csv_with_unlabelled_test_csv(tmp_path: Path) -> None:
    write_train_csv(tmp_path / "train.csv", fake_faces((10, 0, 0)))
    write_test_csv(tmp_path / "test.csv", FACES)
    faces = load_faces(tmp_path)
    assert np.bincount(faces.usage).tolist() == [56, 7, 7]
    assert (faces.dataset, faces.split_names) == ("folder", GENERIC_SPLITS)
    assert faces.notes == (
        "test.csv has no labels (no emotion column) and was not used.",
        "No official split: validation (7 images) and test (7 images) cut from train, "
        "a tenth of each class, seed 0.",
    )


def test_train_csv_with_labelled_test_csv(tmp_path: Path) -> None:
    write_train_csv(tmp_path / "train.csv", fake_faces((10, 0, 0)))
    write_train_csv(tmp_path / "test.csv", FACES)
    faces = load_faces(tmp_path)
    assert np.bincount(faces.usage).tolist() == [63, 7, 56]
    assert {
        name.partition(":")[0] for name, split in zip(faces.ids, faces.usage, strict=True) if split == TEST
    } == {"test.csv"}


def test_unlabelled_test_csv_alone_is_an_error(tmp_path: Path) -> None:
    message = error_of(write_test_csv(tmp_path / "test.csv", FACES))
    assert "test.csv has no column emotion" in message
    assert "give train.csv or fer2013.csv" in message


# Other sizes and colours


def test_other_sizes_and_colours_are_converted_and_counted(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 96).astype(np.uint8)
    wide = np.tile(ramp, (48, 1))  # (48, 96)
    images = {
        "1.png": encode(np.dstack([wide[:, ::2]] * 3), "PNG"),
        "2.bmp": encode(wide, "BMP"),
        "3.png": _png_16_bit(np.full((48, 48), 200 * 257, np.uint16)),
        "4.png": encode(np.full((48, 48), 9, np.uint8), "PNG"),
    }
    folder = tmp_path / "a" / "happy"
    folder.mkdir(parents=True)
    for name, content in images.items():
        (folder / name).write_bytes(content)
    for _ in range(2):  # noted when read from the cache, too
        faces = load_faces(tmp_path / "a")
        assert "3 images were converted to grey 48x48 (1 not square: stretched)." in faces.notes
        np.testing.assert_array_equal(faces.images[0], wide[:, ::2])
        # Antialiased: each pixel is a mean of its neighbourhood on the ramp, not every second pixel.
        np.testing.assert_allclose(faces.images[1, 5, 1:-1], (ramp[::2] / 2 + ramp[1::2] / 2)[1:-1], atol=1)
        assert (faces.images[2] == 200).all()
        assert (faces.images[3] == 9).all()


def test_sideways_photo_is_turned_upright(tmp_path: Path) -> None:
    upright = np.zeros((48, 48), np.uint8)
    upright[:24] = 255  # bright above
    exif = Image.Exif()
    exif[0x112] = 6  # as stored by a phone: rotate by 90 degrees clockwise to view
    file = io.BytesIO()
    Image.fromarray(np.dstack([np.rot90(upright)] * 3)).save(file, "PNG", exif=exif.tobytes())
    (tmp_path / "a" / "sad").mkdir(parents=True)
    (tmp_path / "a" / "sad" / "x.png").write_bytes(file.getvalue())
    np.testing.assert_array_equal(load_faces(tmp_path / "a").images[0], upright)


def _png_16_bit(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


# Faults of single images or rows, which are listed in an error, or dropped and counted


def _png_of_claimed_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


BAD_FILES = {
    "zero_bytes": (b"", "empty file (0 bytes)", "1 x empty file"),
    "text": (b"hello", "not an image of type JPEG, PNG, ", "1 x damaged image"),
    "truncated": (FACES[0].jpeg[: len(FACES[0].jpeg) // 2], "damaged: ", "1 x damaged image"),
    "no_header": (FACES[0].jpeg[:30], "damaged: ", "1 x damaged image"),
    "bomb": (
        _png_of_claimed_size(50_000, 50_000),
        "too large: more than 178 million pixels",
        "1 x oversized image",
    ),
    "large": (
        _png_of_claimed_size(15_000, 12_000),
        "too large: more than 178 million pixels",
        "1 x oversized image",
    ),
    "float": (
        encode(np.full((48, 48), 0.5, np.float32), "TIFF"),
        "32 bits per pixel, range unknown",
        "1 x unsupported image",
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
@pytest.mark.parametrize("as_zip", [False, True])
def test_bad_image_file(fault: str, as_zip: bool, tmp_path: Path) -> None:
    content, why, counted = BAD_FILES[fault]
    bad = replace(FACES[0], path="train/happy/Training_0.jpg", jpeg=content)
    path = write_zip(tmp_path / "a.zip", [*FACES, bad]) if as_zip else write_folder(tmp_path / "a", [*FACES, bad])
    message = error_of(path)
    assert message.startswith(f"train/happy/Training_0.jpg: {why}")
    assert message.endswith(f"\nFix it in {path}, or set data.skip_bad=true to drop it.")
    for _ in range(2):
        faces = load_faces(path, skip_bad=True)
        assert len(faces) == 56
        assert bad.path not in faces.ids
        assert other_notes(faces) == [f"data.skip_bad dropped {counted}."]
    error_of(path)  # without skip_bad, what was dropped before is still an error


def with_rows(tmp_path: Path, *rows: str) -> Path:
    """Write a CSV of the fake faces with additional rows from line 58 on."""
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    with path.open("a", newline="", encoding="utf-8") as file:
        file.writelines(row + "\n" for row in rows)
    return path


GOOD = text(FACES[0])
SHORT = GOOD.rpartition(" ")[0]
BAD_ROWS = {
    "too_few_pixels": (f"3,{SHORT},Training", "expected 48x48 = 2304 pixels, got 2303"),
    "too_many_pixels": (f"3,{GOOD} 1,Training", "expected 48x48 = 2304 pixels, got 2305"),
    "no_pixels": ("3,,Training", "expected 48x48 = 2304 pixels, got 0"),
    "pixel_300": (f"3,{SHORT} 300,Training", "expected pixels from 0 to 255, got 300"),
    "pixel_negative": (f"3,{SHORT} -1,Training", "expected pixels from 0 to 255, got -1"),
    "pixel_abc": (f"3,{SHORT} abc,Training", "expected integers as pixels, got 'abc'"),
    "pixel_after_all": (f"3,{GOOD} abc,Training", "expected integers as pixels, got 'abc'"),
    "pixel_fraction": (f"3,1.5 {SHORT},Training", "expected integers as pixels, got '1.5'"),
    "pixel_nan": (f"3,nan {SHORT},Training", "expected integers as pixels, got 'nan'"),
    "pixel_huge": (f"3,{SHORT} 99999999999999999999,Training", "expected pixels from 0 to 255, got "),
    "emotion_9": (f"9,{GOOD},Training", "expected emotion 0 to 6 or its name, got '9'"),
    "emotion_negative": (f"-1,{GOOD},Training", "expected emotion 0 to 6 or its name, got '-1'"),
    "emotion_word": (f"hapy,{GOOD},Training", "expected emotion 0 to 6 or its name, got 'hapy'"),
    "emotion_empty": (f",{GOOD},Training", "expected emotion 0 to 6 or its name, got ''"),
    "usage": (f"3,{GOOD},Trainig", "expected Usage Training, PublicTest or PrivateTest, got 'Trainig'"),
    "too_few_columns": (f"3,{GOOD}", "expected 3 columns, got 2"),
    "too_many_columns": (f"3,{GOOD},Training,1", "expected 3 columns, got 4"),
    "huge_field": (f"3,{GOOD} {'1 ' * 100_000},Training", "field larger than field limit"),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_bad_csv_row(fault: str, tmp_path: Path) -> None:
    row, why = BAD_ROWS[fault]
    path = with_rows(tmp_path, row, f"3,{GOOD},PublicTest")
    message = error_of(path)
    assert message.startswith("fer2013.csv, line 58: ")
    assert why in message
    assert "data.skip_bad=true" in message
    faces = load_faces(path, skip_bad=True)
    assert len(faces) == 57
    assert faces.ids[-1] == "fer2013.csv:59"
    assert other_notes(faces)[0].startswith("data.skip_bad dropped 1 x ")


def test_row_that_is_not_utf_8(tmp_path: Path) -> None:
    path = with_rows(tmp_path)
    with path.open("ab") as file:
        file.write(b"3," + SHORT.encode() + b" \xff\xfe,Training\n")
    assert error_of(path).startswith("fer2013.csv, line 58: expected integers as pixels, got '\\udcff\\udcfe'")


def test_quote_that_is_never_closed_does_not_swallow_the_rest(tmp_path: Path) -> None:
    path = with_rows(tmp_path, '3,"1 2', *[f"3,{GOOD},Training"] * 30)
    assert "field larger than field limit" in error_of(path)


def test_all_faults_are_reported_together_and_ten_of_them_listed(tmp_path: Path) -> None:
    path = with_rows(tmp_path, *[f"{emotion},{GOOD},Training" for emotion in range(5, 30)])
    message = error_of(path)
    lines = message.splitlines()
    assert lines[0] == f"23 faults in {path}:"
    assert lines[1:11] == [
        f"  fer2013.csv, line {60 + i}: expected emotion 0 to 6 or its name, got '{7 + i}'" for i in range(10)
    ]
    assert lines[11:] == [
        "  and 13 more",
        "Fix them, or set data.skip_bad=true to drop them.",
        "'7' is no class. If it is one, see data.classes (--classes); data.rename={7: null} (--rename 7=) leaves "
        "such images out.",
    ]
    assert other_notes(load_faces(path, skip_bad=True)) == ["data.skip_bad dropped 23 x unknown emotion."]


def test_faults_are_counted_by_kind(tmp_path: Path) -> None:
    bad = [
        replace(FACES[0], path="train/happy/Training_0.jpg", jpeg=b""),
        replace(FACES[0], path="train/happy/Training_1.jpg", jpeg=b"no"),
        replace(FACES[0], path="train/sad/Training_2.jpg", jpeg=b"no"),
        replace(FACES[0], path="train/contempt/Training_3.jpg"),
        replace(FACES[0], path="train/contempt/Training_4.jpg"),
        replace(FACES[0], path="sad/mine.jpg"),
    ]
    folder = write_folder(tmp_path / "a", [*FACES, *bad])
    (folder / "test" / "Neutral").mkdir()
    message = error_of(folder)
    assert message.splitlines() == [
        f"6 faults in {folder}:",
        f"  train/contempt/: 'contempt' is not one of {', '.join(EMOTIONS)} (2 images)",
        "  test/Neutral/: contains no images",
        "  sad/mine.jpg: expected the prefix Training_, PublicTest_ or PrivateTest_",
        "  train/happy/Training_0.jpg: empty file (0 bytes)",
        f"  train/happy/Training_1.jpg: not an image of type {FORMAT_NAMES}",
        f"  train/sad/Training_2.jpg: not an image of type {FORMAT_NAMES}",
        "Fix them, or set data.skip_bad=true to drop them.",
        "'contempt' is no class. If it is one, see data.classes (--classes); data.rename={contempt: null} "
        "(--rename contempt=) leaves such images out.",
    ]
    faces = load_faces(folder, skip_bad=True)
    assert set(faces.ids) == {face.path for face in FACES}
    assert other_notes(faces) == [
        "data.skip_bad dropped 1 x unknown class folder 'contempt' (2 images), 1 x empty class folder, "
        "1 x name without a split, 1 x empty file, 2 x damaged image."
    ]


@pytest.mark.parametrize(
    ("unknown", "known", "refused"),
    [
        (("boredom", "pain"), ("happy",), True),  # two classes of three
        (("boredom",), ("happy",), True),  # one would be left
        (("boredom", "pain", "contempt"), ("happy", "sad"), True),  # most of the images
        (("boredom", "pain"), ("happy", "sad"), False),
    ],
)
def test_skip_bad_does_not_drop_the_data(unknown, known, refused, tmp_path: Path) -> None:
    faces = [replace(FACES[0], path=f"{name}/{i}.jpg") for name in (*unknown, *known) for i in range(8)]
    folder = write_folder(tmp_path / "a", faces)
    if not refused:
        assert len(load_faces(folder, skip_bad=True)) == 16
        return
    dropped = 8 * len(unknown)
    assert error_of(folder, skip_bad=True) == (
        f"{folder}: {dropped} of {len(faces)} images are of unknown classes ({', '.join(sorted(unknown))}). "
        "data.skip_bad drops damaged images, not most of the data. If these are classes, see data.classes "
        "(--classes); 'data.rename={boredom: null}' leaves one out."
    )


def test_empty_class_folder_in_a_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", [face for face in FACES if "train/disgust" not in face.path])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/disgust/", b"")
    assert error_of(path).startswith("train/disgust/: contains no images.")
    assert len(load_faces(path, skip_bad=True)) == 52


def test_image_outside_the_split_folders(tmp_path: Path) -> None:
    plain = [*without_prefixes(FACES), replace(FACES[0], path="happy/x.jpg")]
    folder = write_folder(tmp_path / "a", plain)
    assert error_of(folder).startswith("happy/x.jpg: not inside train/, val/ or test/.")
    assert len(load_faces(folder, skip_bad=True)) == 56


def test_no_images_left_after_dropping(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [replace(face, jpeg=b"") for face in FACES])
    assert error_of(folder, skip_bad=True) == f"{folder} has no usable images: all 56 are bad."


def test_oversized_member_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_zip(tmp_path / "a.zip", FACES), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/happy/Training_0.jpg", bytes(MAX_IMAGE_BYTES + 2**20))
    assert error_of(tmp_path / "a.zip").startswith("train/happy/Training_0.jpg: 51 MiB, above the limit of 50 MiB.")


def test_member_with_a_wrong_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:  # stored uncompressed, so that the bytes can be found below
        for face in FACES:
            archive.writestr(face.path, face.jpeg)
    content = path.read_bytes()
    at = content.index(FACES[7].jpeg) + 200
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert error_of(path).startswith(f"{FACES[7].path}: cannot be read (Bad CRC-32")
    faces = load_faces(path, skip_bad=True)
    assert (len(faces), other_notes(faces)) == (55, ["data.skip_bad dropped 1 x unreadable file."])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", [*FACES, FACES[0]])
    assert error_of(path).startswith(f"{FACES[0].path}: occurs more than once in the archive.")
    assert len(load_faces(path, skip_bad=True)) == 56


# Faults of a whole file or folder


def damaged_zip(tmp_path: Path, change: Callable[[bytes], bytes]) -> Path:
    path = write_zip(tmp_path / "fer2013.zip", FACES)
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("change", [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda _: b"<html>not found"])
def test_invalid_or_truncated_zip(change: Callable[[bytes], bytes], skip_bad: bool, tmp_path: Path) -> None:
    path = damaged_zip(tmp_path, change)
    message = error_of(path, skip_bad=skip_bad)
    assert message.startswith(f"{path} is not a zip archive or is truncated")
    assert f"{path.stat().st_size:,} bytes" in message
    assert "Download it again" in message


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "train/happy/../../../x.jpg", "C:\\x.jpg", "..\\x.jpg"])
def test_zip_with_entries_outside_the_archive_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(write_zip(tmp_path / "a.zip", FACES), "a") as archive:
        archive.writestr(name, FACES[0].jpeg)
    for skip_bad in (False, True):
        message = error_of(tmp_path / "a.zip", skip_bad=skip_bad)
        assert "has entries that point outside the archive" in message
        assert name in message


def test_encrypted_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", FACES[:1])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag in the central directory
    path.write_bytes(content)
    assert "is encrypted" in error_of(path)


BAD_CSVS = {
    "header_only": (b"emotion,pixels,Usage\n", "has no usable images."),
    "no_pixels": (
        b"emotion,Usage\n3,Training\n",
        "has no column pixels: its first line starts with 'emotion', 'usage'",
    ),
    "neither": (b"a,b\n1,2\n", "has no column emotion or pixels: its first line starts with 'a', 'b'"),
    "no_header": (f"3,{GOOD},Training\n".encode(), "has no column emotion or pixels"),
    "bars": (b"emotion|pixels|Usage\n", "has no column emotion"),
    "utf_16": ("emotion,pixels,Usage\n".encode("utf-16"), "is not UTF-8 text"),
    "huge_header": (b"a" * 10**6, "line 1: field larger than field limit"),
    "blank_lines": (b"\n\n", "has no column emotion"),
}


@pytest.mark.parametrize("fault", BAD_CSVS)
def test_invalid_csv(fault: str, tmp_path: Path) -> None:
    content, why = BAD_CSVS[fault]
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    for skip_bad in (False, True):
        message = error_of(path, skip_bad=skip_bad)
        assert "fer2013.csv" in message
        assert why in message


def test_csv_with_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    faces = load_faces(path)
    np.testing.assert_array_equal(faces.images, np.stack([face.pixels for face in FACES]))
    assert faces.ids[-1] == "fer2013.csv:57"


def test_damaged_csv_in_a_zip(tmp_path: Path) -> None:
    path = zip_of_csv(tmp_path)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    message = error_of(path)
    assert message.startswith(f"fer2013/fer2013.csv in {path} cannot be read (Bad CRC-32")


def test_folder_with_images_but_no_class_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [replace(face, path=f"0/{i}.jpg") for i, face in enumerate(FACES)])
    message = error_of(tmp_path / "a")
    assert "has images, but none in a folder named after a class (angry, disgust," in message
    assert "they are in 0." in message


def test_folder_with_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "a" / "happy").mkdir(parents=True)
    assert "is empty" in error_of(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert "has no images, and no CSV or archive of any; it contains notes.txt." in error_of(tmp_path / "a")


def test_link_to_a_folder_above_is_ignored(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", FACES)
    for link, target in (("train/up", folder), ("test/happy/up", folder / "test")):
        (folder / link).symlink_to(target, target_is_directory=True)
    faces = load_faces(os.path.relpath(folder))
    assert (len(faces), other_notes(faces)) == (56, [])


def test_linked_folder_is_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", FACES)
    (tmp_path / "a").mkdir()
    for name in ("train", "test"):
        (tmp_path / "a" / name).symlink_to(tmp_path / "elsewhere" / name, target_is_directory=True)
    assert load_faces(tmp_path / "a").ids == tuple(face.path for face in FACES)


# Differences from the published counts


def test_counts_are_compared_split_by_split_and_class_by_class() -> None:
    labels = np.concatenate([np.repeat(np.arange(7), counts) for counts in PUBLISHED_COUNTS.values()])
    usage = np.repeat(np.arange(3), [sum(counts) for counts in PUBLISHED_COUNTS.values()]).astype(np.uint8)

    def differences(keep: npt.NDArray[np.bool_]) -> list[str]:
        return _count_differences(
            np.stack([np.bincount(labels[keep & (usage == s)], minlength=7) for s in range(3)])
        )

    assert differences(np.ones(len(labels), bool)) == []
    keep = np.ones(len(labels), bool)
    keep[np.flatnonzero((labels == 3) & (usage == TRAIN))[:2]] = False
    keep[usage == TEST] = False
    keep[np.flatnonzero(usage == VAL)[::9]] = False
    found = np.bincount(labels[keep & (usage == VAL)], minlength=7)
    assert differences(keep) == [
        "Image counts differ from the published ones (in brackets): Training happy 7,213 (7,215); "
        f"PublicTest 3,190 (3,589), by class {' '.join(map(str, found))} (467 56 496 895 653 415 607); "
        "no PrivateTest (3,589)."
    ]


# Lookup


def zip_of(count: int, tmp_path: Path, name: str) -> Path:
    """Write a zip that is recognisable by its number of images."""
    return write_zip(tmp_path / name, FACES[:count])


def test_lookup_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded = write_folder(tmp_path / "downloaded", FACES[:8])
    requested: list[str] = []
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: requested.append(handle) or str(downloaded))

    assert len(load_faces()) == 8
    assert requested == ["msambare/fer2013/versions/1"]
    Path("data").mkdir()
    assert len(load_faces()) == 8  # an empty ./data is skipped
    zip_of(7, Path("data"), "archive.zip")
    assert len(load_faces()) == 7
    monkeypatch.setenv("FER2013_PATH", str(zip_of(6, tmp_path, "variable.zip")))
    assert len(load_faces()) == 6
    assert len(load_faces(zip_of(5, tmp_path, "given.zip"))) == 5
    assert len(requested) == 2


def test_data_folder_itself(tmp_path: Path) -> None:
    write_folder(Path("data"), FACES)
    assert load_faces(download=False).source == "data"


def test_missing_path_is_an_error_even_if_other_data_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(Path("data"), FACES)
    missing, empty = tmp_path / "missing.zip", tmp_path / "empty.zip"
    empty.touch()
    (tmp_path / "hollow").mkdir()
    assert error_of(missing).startswith(f"data.path={missing} does not exist.")
    assert error_of(empty).startswith(f"data.path={empty} is an empty file (0 bytes).")
    assert error_of(tmp_path / "hollow").startswith(f"data.path={tmp_path / 'hollow'} is empty.")
    assert error_of("").startswith("data.path= is empty.")
    monkeypatch.setenv("FER2013_PATH", str(missing))
    assert error_of(None).startswith(f"FER2013_PATH={missing} does not exist.")
    monkeypatch.setenv("FER2013_PATH", "")
    assert error_of(None).startswith("FER2013_PATH= is empty.")


def test_file_of_an_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "fer2013.7z").write_bytes(b"7z\xbc\xaf\x27\x1c")
    assert "is not a zip, tar, CSV or folder. Extract it" in error_of(tmp_path / "fer2013.7z")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_zip(tmp_path / "fer2013.zip", FACES)
    assert len(load_faces("~/fer2013.zip")) == 56


@pytest.mark.parametrize("failure", [ConnectionError("Max retries"), TimeoutError(), ValueError("bad file")])
def test_failed_download_lists_remedies(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> str:
        raise failure

    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    message = error_of(None)
    for remedy in ("https://www.kaggle.com/datasets/msambare/fer2013", "./data", "FER2013_PATH", "data=synthetic"):
        assert remedy in message


def test_download_only_when_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kagglehub, "dataset_download", lambda _: pytest.fail("contacted Kaggle"))
    message = error_of(None, download=False)
    assert "data.download=false" in message
    assert "data=synthetic" in message


# Exclusions


def test_excluded_images_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", FACES)
    gone = [FACES[3].path, FACES[50].path]
    listed = tmp_path / "exclude.txt"
    listed.write_text(f"# constant images\n\n{gone[0]}\n  {gone[1]}  \n")
    faces = load_faces(path, exclude=listed)
    assert list(faces.ids) == [face.path for face in FACES if face.path not in gone]
    np.testing.assert_array_equal(faces.images, np.stack([f.pixels for f in FACES if f.path not in gone]))
    np.testing.assert_array_equal(faces.labels, [f.label for f in FACES if f.path not in gone])
    assert faces.fingerprint == fingerprint(faces.images, faces.labels, faces.usage)
    assert faces.notes[-1] == "data.exclude dropped 2 images."
    assert len(load_faces(path)) == 56


def test_unknown_exclusion_names_the_nearest(tmp_path: Path) -> None:
    wanted = FACES[10].path
    listed = tmp_path / "exclude.txt"
    listed.write_text(f"{wanted}\n{wanted[:-5]}x.jpg\n{wanted.upper()}\nxyz\n")
    path = write_zip(tmp_path / "a.zip", FACES)
    first, *lines = error_of(path, exclude=listed).splitlines()
    assert first == f"data.exclude={listed}: unknown image ids (3):"
    assert any(line.startswith(f"  {wanted[:-5]}x.jpg - did you mean {wanted}") for line in lines)
    assert "  xyz" in lines


def test_excluding_everything_or_by_a_missing_list_is_an_error(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", FACES)
    assert "cannot be read" in error_of(path, exclude=tmp_path / "no.txt")
    (tmp_path / "all.txt").write_text("\n".join(face.path for face in FACES))
    assert "excludes every image" in error_of(path, exclude=tmp_path / "all.txt")


# Other labels


def relabelled(tmp_path: Path, text: str) -> tuple[Path, Path]:
    """Write the data and a CSV of labels; {0}, {1}, ... in the text are the ids of the images."""
    (tmp_path / "labels.csv").write_text(text.format(*(face.path for face in FACES)))
    return write_zip(tmp_path / "a.zip", FACES), tmp_path / "labels.csv"


def test_listed_images_get_their_new_labels(tmp_path: Path) -> None:
    old = [face.label for face in FACES]
    text = f'# checked by hand\n\nid,label\n{{3}}, Sad \n"{{50}}",happiness\n{{7}},{EMOTIONS[old[7]]}\n'
    path, listed = relabelled(tmp_path, text)
    faces = load_faces(path, relabel=listed)
    new = [*old[:3], EMOTIONS.index("sad"), *old[4:50], EMOTIONS.index("happy"), *old[51:]]
    assert old[3] != new[3]
    assert old[50] != new[50]
    assert faces.labels.tolist() == new
    assert faces.notes[-1] == "data.relabel changed 2 of 3 listed labels."
    before = load_faces(path)
    assert before.labels.tolist() == old
    assert faces.fingerprint == fingerprint(before.images, np.array(new), before.usage) != before.fingerprint
    assert faces.labels.dtype == np.int64


def test_an_image_may_be_relabelled_and_excluded(tmp_path: Path) -> None:
    path, listed = relabelled(tmp_path, "{3},sad\n{4},sad\n")
    (tmp_path / "exclude.txt").write_text(FACES[3].path)
    faces = load_faces(path, relabel=listed, exclude=tmp_path / "exclude.txt")
    assert (len(faces), faces.labels[3]) == (55, EMOTIONS.index("sad"))


def test_relabelling_changes_no_split_that_is_cut_here(tmp_path: Path) -> None:
    for i, face in enumerate(FACES * 2):
        file = tmp_path / "data" / EMOTIONS[face.label] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(face.jpeg)
    before = load_faces(tmp_path / "data")
    (tmp_path / "a.csv").write_text("".join(f'"{name}",fear\n' for name in before.ids[::2]))
    after = load_faces(tmp_path / "data", relabel=tmp_path / "a.csv")
    np.testing.assert_array_equal(after.usage, before.usage)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{1},happpy\n", ": unknown class happpy. Did you mean happy? Choose from angry, disgust, fear, happy, "),
        ("{1},3\n{2},x\n{3},happy\n", ": unknown class 3, x. Choose from angry, "),
        ("{1},happy\n{2},sad\n{1},sad\n", ": {1} is listed as happy and as sad. Keep one line."),
        ("{1}\n", ": expected an image id and a class name, separated by a comma, got '{1}'."),
        ("{1},happy,sad\n", ": expected an image id and a class name, separated by a comma, got '{1},happy,sad'."),
        ('{1},happy\n"{2}" x,sad\n', " is not a CSV (',' expected after '\"'). Quote ids that contain commas or"),
        ("{1},happy\nid,label\n", ": unknown class label."),  # a header must come first
        ("\0,happy\n", ": unknown image ids (1):"),
    ],
)
def test_unusable_lists_of_labels_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path, listed = relabelled(tmp_path, text)
    assert error_of(path, relabel=listed).startswith(
        f"data.relabel={listed}" + message.format(*(face.path for face in FACES))
    )


def test_the_same_label_under_two_names_is_no_contradiction(tmp_path: Path) -> None:
    path, listed = relabelled(tmp_path, "{1},sad\n{1},Sadness\n")
    assert load_faces(path, relabel=listed).labels[1] == EMOTIONS.index("sad")


def test_unknown_image_to_relabel_names_the_nearest(tmp_path: Path) -> None:
    wanted = FACES[10].path
    path, listed = relabelled(tmp_path, f"{{10}},sad\n{wanted[:-5]}x.jpg,sad\nxyz,sad\n")
    first, *lines = error_of(path, relabel=listed).splitlines()
    assert first == f"data.relabel={listed}: unknown image ids (2):"
    assert any(line.startswith(f"  {wanted[:-5]}x.jpg - did you mean {wanted}") for line in lines)
    assert "  xyz" in lines
    assert error_of(path, relabel=tmp_path / "no.csv").startswith(
        f"data.relabel={tmp_path / 'no.csv'} cannot be read ([Errno 2]"
    )


def test_classes_are_found_by_name_among_any_set() -> None:
    assert [class_index(name, EMOTIONS) for name in ("sad", "SAD", "sadness", "0_sad", "happpy", "")] == [
        *[EMOTIONS.index("sad")] * 4,
        None,
        None,
    ]
    classes = ("Contempt", "sad", "7")
    assert [class_index(name, classes) for name in ("contempt", "sadness", "7", "happy")] == [0, 1, 2, None]


# The real data


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Faces:
    return load_faces(REAL, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.skipif(not REAL, reason="FER2013_PATH names no data")
def test_real_counts(real: Faces) -> None:
    for split, name in enumerate(FER2013_SPLITS):
        assert tuple(np.bincount(real.labels[real.usage == split])) == PUBLISHED_COUNTS[name]
    assert real.notes == ()
    assert len(set(real.ids)) == 35_887
    assert len({image.tobytes() for image in real.images}) == 34_034
    assert real.images.mean() / 255 == pytest.approx(0.5074, abs=1e-4)


@pytest.mark.skipif(not REAL, reason="FER2013_PATH names no data")
@pytest.mark.parametrize(("split", "in_training"), [(VAL, 280), (TEST, 288)])
def test_real_test_images_that_are_also_in_training(real: Faces, split: int, in_training: int) -> None:
    keep = np.isin(real.usage, (TRAIN, split))
    pair = replace(real, images=real.images[keep], labels=real.labels[keep], usage=real.usage[keep])
    assert seen_elsewhere(pair, [split]).sum() == in_training


@pytest.mark.skipif(not REAL, reason="FER2013_PATH names no data")
def test_real_leak_free_private_test(real: Faces) -> None:
    leaks = seen_elsewhere(real, [TEST])
    assert ((real.usage == TEST) & ~leaks).sum() == 3275
