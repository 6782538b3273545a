"""Layouts and files as people have them, each with its right value."""

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_fer2013 import (
    FakeFace,
    encode,
    fake_faces,
    text,
    without_prefixes,
    write_fer2013_csv,
    write_folder,
    write_test_csv,
    write_train_csv,
    write_zip,
)

from fer_lightning.data import fer2013
from fer_lightning.data.faces import FER2013_SPLITS, TEST, TRAIN, UNNAMED, VAL, Faces, fingerprint
from fer_lightning.data.splits import USAGE_WORDS, dataset_claims, image_claims, name_claims, usage_claim, usages
from fer_lightning.emotions import EMOTIONS, emotion_index
from fer_lightning.errors import UserError

FACES = fake_faces()
MANY = fake_faces((8, 4, 4))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate the tests from the user's data and cache."""
    monkeypatch.delenv("FER2013_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(path: Path, **settings: object) -> Faces:
    return fer2013.load_faces(path, download=False, **settings)  # type: ignore[arg-type]


def error_of(path: Path, load: Callable[[Path], Faces] = load) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    return str(caught.value)


def plain(faces: Iterable[FakeFace], folder: str) -> list[FakeFace]:
    """Return the faces in class folders below a folder, under names that say nothing about the split."""
    top = f"{folder}/" if folder else ""
    return [replace(face, path=f"{top}{EMOTIONS[face.label]}/{i}.jpg") for i, face in enumerate(faces)]


def usage_of(faces: Faces) -> dict[bytes, int]:
    return {image.tobytes(): int(usage) for image, usage in zip(faces.images, faces.usage, strict=True)}


def true_usage(faces: Iterable[FakeFace]) -> dict[bytes, int]:
    return {face.pixels.tobytes(): face.usage for face in faces}


def of(usage: int, faces: Iterable[FakeFace] = FACES) -> list[FakeFace]:
    return [face for face in faces if face.usage == usage]


# Words


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[
            ("train", TRAIN),
            ("Training", TRAIN),
            ("TRAIN_DATA", TRAIN),
            ("trainset", TRAIN),
            ("FER2013Train", TRAIN),
        ],
        *[
            ("train_afew", TRAIN),
            ("01_train", TRAIN),
            ("train (1)", TRAIN),
            ("TrainImages", TRAIN),
            ("TRAINset", TRAIN),
        ],
        *[
            ("val_set", VAL),
            ("valid", VAL),
            ("Validation", VAL),
            ("PublicTest", VAL),
            ("public_test", VAL),
        ],
        *[("test", TEST), ("testing", TEST), ("Test1", TEST), ("private test", TEST), ("FER2013Test", TEST)],
        *[("latest", None), ("contest", None), ("pretrained", None), ("validated", None), ("interval", None)],
        *[
            ("private", None),
            ("public", None),
            ("holdout", None),
            ("dev", None),
            ("train_test_split", None),
            ("train_val", None),
        ],
    ],
)
def test_split_that_a_folder_name_means(name: str, split: int | None) -> None:
    assert usages(name_claims(name)) == ({split} - {None})


def test_name_of_a_whole_dataset_counts_only_without_other_words() -> None:
    for name in ("test", "my_test_faces", "kdef_test", "fer2013.test.zip", "FER2013Test.tar.gz", "PrivateTest.zip"):
        assert usages(dataset_claims(name)) == {TEST}, name
    assert usages(dataset_claims("KdefTest")) == {TEST}
    assert not dataset_claims("test_split_of_the_given_folder0")
    assert not dataset_claims("fer2013")


def test_words_of_a_usage_column() -> None:
    assert {usage_claim(word.upper()) for word in USAGE_WORDS} == set(USAGE_WORDS.values())
    assert [usage_claim(word) for word in ("Public Test", "private-test", " PrivateTest ")] == [
        "public test",
        *["private test"] * 2,
    ]
    assert usage_claim("Holdout") is usage_claim("") is usage_claim("dev") is None


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[("Training_1.jpg", TRAIN), ("PublicTest_x.jpg", VAL), ("Private_Test-71.png", TEST), ("test1.png", TEST)],
        *[
            ("test_0001_aligned.jpg", TEST),
            ("test (1).png", TEST),
            ("test_img_1.png", TEST),
            ("happy_test.png", TEST),
            ("test_happy_0001.jpg", TEST),
            ("aug_PrivateTest_17.jpg", TEST),
            ("Copy of PrivateTest_3.jpg", TEST),
            ("train_s005_001.png", TRAIN),
            ("test_subject3_01.jpg", TEST),
        ],
        *[
            ("training-day.jpg", None),
            ("man on train 3.jpg", TRAIN),
            ("test of my camera.jpg", None),
            ("1.jpg", None),
        ],
    ],
)
def test_split_that_an_image_name_means(name: str, split: int | None) -> None:
    assert usages(image_claims(name)) == ({split} - {None})


def test_test_folder_of_kaggle_agrees_with_public_test() -> None:
    assert usages(["test", "public test"]) == {VAL}
    assert usages(["test", "private test"]) == {TEST}
    assert usages(["train", "public test"]) == {TRAIN, VAL}
    assert usages(["validation", "private test"]) == {VAL, TEST}


# Split folders


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train_data", "test_data"),
        ("train_afew", "test_afew"),
        ("a/train/images", "a/test/images"),
        ("Train", "TESTING"),
    ],
)
def test_split_folders_by_other_names(train: str, test: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "a", plain(of(TRAIN, MANY), train) + plain(of(TEST, MANY), test))
    faces = load(tmp_path / "a")
    found, true = usage_of(faces), true_usage(MANY)
    assert len(faces) == 84
    assert all((found[pixels] == TEST) == (true[pixels] == TEST) for pixels in found)
    assert faces.notes == (
        "No official split: validation (7 images) cut from train, a tenth of each class, seed 0.",
    )


def test_split_folders_below_the_class_folders(tmp_path: Path) -> None:
    names = {TRAIN: "train", VAL: "val", TEST: "test"}
    below = [
        replace(face, path=f"{EMOTIONS[face.label]}/{names[face.usage]}/{i}.jpg") for i, face in enumerate(FACES)
    ]
    faces = load(write_zip(tmp_path / "a.zip", below))
    assert usage_of(faces) == true_usage(FACES)
    assert faces.notes == ()


def test_prefix_of_other_datasets(tmp_path: Path) -> None:
    names = {TRAIN: "train", VAL: "val", TEST: "test"}
    prefixed = [
        replace(face, path=f"{EMOTIONS[face.label]}/{names[face.usage]}_{i:05}_aligned.jpg")
        for i, face in enumerate(FACES)
    ]
    faces = load(write_folder(tmp_path / "a", prefixed))
    assert (usage_of(faces), faces.dataset, faces.notes) == (true_usage(FACES), "folder", ())


def test_split_of_the_given_folder_itself(tmp_path: Path) -> None:
    for name, split in (("test", TEST), ("val_data", VAL)):
        faces = load(write_folder(tmp_path / name, plain(FACES, "")))
        assert (set(faces.usage.tolist()), faces.notes) == ({split}, ())
    faces = load(write_zip(tmp_path / "test.zip", plain(FACES, "")))
    assert set(faces.usage.tolist()) == {TEST}
    (tmp_path / "mine.zip").write_bytes((tmp_path / "test.zip").read_bytes())
    assert set(load(tmp_path / "mine.zip").usage.tolist()) == {TRAIN, VAL, TEST}  # not from the other's cache
    inside = write_folder(tmp_path / "inside" / "test", plain(of(TRAIN), "train") + plain(of(TEST), "test"))
    assert (load(inside).usage == TEST).sum() == 14


CONTRADICTIONS = {
    "train/val": "is called train and validation by its folders",
    "testing/train": "is called test and train by its folders",
    "train/PrivateTest": "is called private test and train by its folders",
}


@pytest.mark.parametrize("folder", CONTRADICTIONS)
def test_contradictory_folders_are_refused(folder: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "a", plain(of(TRAIN), "train") + plain(of(TEST), folder))
    for skip_bad in (False, True):
        with pytest.raises(UserError, match=CONTRADICTIONS[folder]):
            load(tmp_path / "a", skip_bad=skip_bad)


def test_several_datasets_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_folder(tmp_path / "a", plain(of(TRAIN), name))
    assert "contains several datasets, which are not mixed: one/ (28 images), two/ (28 images)" in error_of(
        tmp_path / "a"
    )
    write_folder(tmp_path / "b", plain(of(TRAIN), "train") + plain(of(TEST), "test") + plain(of(VAL), "extra"))
    assert "several datasets, which are not mixed: ./ (42 images), extra/ (14 images)" in error_of(tmp_path / "b")
    for fold in ("fold1", "fold2"):
        write_folder(tmp_path / "c", plain(of(TRAIN), f"{fold}/train") + plain(of(TEST), f"{fold}/test"))
    assert "fold1/ (42 images), fold2/ (42 images)" in error_of(tmp_path / "c")


def test_several_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", plain(of(TRAIN), "train") + plain(of(VAL), "train_augmented"))
    assert "several folders for one split, which are not mixed: train/, train_augmented/" in error_of(
        tmp_path / "a"
    )


def test_doubled_folder_is_read_once(tmp_path: Path) -> None:
    faces = plain(of(TRAIN), "images/train") + plain(of(VAL), "images/validation")
    write_folder(tmp_path / "a", faces)
    expected = load(tmp_path / "a")
    shutil.copytree(tmp_path / "a" / "images", tmp_path / "a" / "images" / "images")
    doubled = load(tmp_path / "a")
    assert (doubled.fingerprint, doubled.ids) == (expected.fingerprint, expected.ids)
    assert doubled.notes[0] == (
        "42 images of doubled folders were read once: images/images/train/angry/0.jpg is a copy of "
        "images/train/angry/0.jpg."
    )
    (tmp_path / "a" / "images" / "images" / "train" / "happy" / "12.jpg").write_bytes(FACES[0].jpeg)
    message = error_of(tmp_path / "a")
    assert "images/images/train/happy/12.jpg and images/train/happy/12.jpg, two different images" in message


def test_own_photos_below_the_train_folder_of_fer2013(tmp_path: Path) -> None:
    mine = [replace(FACES[0], path=f"train/happy/IMG_2024_{i}.jpg", jpeg=MANY[i].jpeg) for i in range(5)]
    faces = load(write_folder(tmp_path / "a", [*FACES, *mine]))
    assert faces.dataset == "FER-2013"
    assert np.bincount(faces.usage).tolist() == [33, 14, 14]
    assert faces.notes[0] == "5 images without a prefix of FER-2013 are in the split that their folder names."


# Class folders


def test_numbers_before_the_names_of_classes_are_ignored(tmp_path: Path) -> None:
    assert [emotion_index(name) for name in ("0_angry", "6 - Neutral", "1.happy", "neutrality")] == [0, 6, 3, 6]
    assert emotion_index("3") is emotion_index("0_") is None
    numbered = [
        replace(face, path=face.path.replace("/", f"/{6 - face.label}_", 1)) for face in without_prefixes(FACES)
    ]
    faces = load(write_folder(tmp_path / "a", numbered))
    expected = {face.pixels.tobytes(): face.label for face in FACES}
    assert {i.tobytes(): int(c) for i, c in zip(faces.images, faces.labels, strict=True)} == expected


def test_numbers_as_class_folders_are_read_only_below_the_prefixes_of_fer2013(tmp_path: Path) -> None:
    numbered = [replace(f, path=f.path.replace(EMOTIONS[f.label], str(f.label))) for f in FACES]
    faces = load(write_folder(tmp_path / "a", numbered))
    assert usage_of(faces) == true_usage(FACES)
    expected = {face.pixels.tobytes(): face.label for face in FACES}
    assert {i.tobytes(): int(c) for i, c in zip(faces.images, faces.labels, strict=True)} == expected
    plain_numbers = [
        replace(f, path=f.path.replace(EMOTIONS[f.label], str(f.label))) for f in without_prefixes(FACES)
    ]
    message = error_of(write_folder(tmp_path / "b", plain_numbers))
    assert "Numbers are not guessed at: name the folders 0_angry, for example, list the classes" in message
    write_folder(tmp_path / "a", [replace(FACES[0], path="train/3/mine.jpg")])
    assert error_of(tmp_path / "a").startswith("train/3/mine.jpg: numbers are not guessed at")


def test_two_emotions_in_one_path_are_a_fault(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [*without_prefixes(FACES), replace(FACES[0], path="train/happy/sad/1.jpg")])
    assert error_of(tmp_path / "a").startswith("train/happy/sad/1.jpg: its folders name two classes.")


# Cutting


def test_cut_never_divides_equal_pixels(tmp_path: Path) -> None:
    many = without_prefixes(fake_faces((20, 0, 0)), split_folders=False)
    copies = [replace(face, path=face.path.replace("img", "copy")) for face in many[::2]]
    for seed in range(5):
        faces = load(write_folder(tmp_path / "a", many + copies), seed=seed)
        sides: dict[bytes, set[int]] = {}
        for image, usage in zip(faces.images, faces.usage, strict=True):
            sides.setdefault(image.tobytes(), set()).add(int(usage))
        assert len(sides) == 140
        assert all(len(found) == 1 for found in sides.values())
        for label in range(7):
            assert np.bincount(faces.usage[faces.labels == label]).tolist() == [24, 3, 3]


def test_class_of_equal_images_stays_in_train(tmp_path: Path) -> None:
    many = [face for face in without_prefixes(MANY, split_folders=False) if face.label != 3]
    equal = [replace(MANY[0], path=f"happy/{i}.jpg") for i in range(10)]
    faces = load(write_folder(tmp_path / "a", many + equal))
    assert np.bincount(faces.usage[faces.labels == 3], minlength=3).tolist() == [10, 0, 0]
    assert np.bincount(faces.usage[faces.labels == 4], minlength=3).tolist() == [12, 2, 2]


def persons(faces: Iterable[FakeFace], person: Callable[[int, FakeFace], str]) -> list[FakeFace]:
    return [replace(face, path=f"{EMOTIONS[face.label]}/{person(i, face)}/{i}.jpg") for i, face in enumerate(faces)]


def test_persons_stay_in_one_split(tmp_path: Path) -> None:
    # Person3 under another class is the same person, whatever the case; clips lie below persons.
    faces = load(write_folder(tmp_path / "a", persons(MANY, lambda i, f: f"{'Pp'[i % 2]}erson{i % 5}/clip{i % 3}")))
    sides: dict[str, set[int]] = {}
    for name, usage in zip(faces.ids, faces.usage, strict=True):
        sides.setdefault(name.split("/")[1].lower(), set()).add(int(usage))
    assert len(sides) == 5
    assert all(len(found) == 1 for found in sides.values())
    for split in (TRAIN, VAL, TEST):
        assert set(faces.labels[faces.usage == split].tolist()) == set(range(7))
    assert faces.notes[0].endswith("cut from train, whole persons or clips, seed 0.")


def test_persons_that_leave_a_split_without_a_class_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", persons(MANY, lambda i, face: f"person{i % 2}"))
    message = error_of(folder)
    assert "all images of a person or clip (a folder below the class folders) stay in one split" in message
    assert "Divide the images into train/, val/ and test/." in message


def test_one_folder_below_every_class_is_not_a_person(tmp_path: Path) -> None:
    faces = load(write_folder(tmp_path / "a", persons(MANY, lambda i, face: "images")))
    assert faces.notes[0].endswith("a tenth of each class, seed 0.")


# Evaluation, where nothing is trained


def test_all_images_are_tested_if_no_split_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", plain(MANY, ""))
    whole = fer2013.load_held_out(folder)
    assert (whole.usage == TEST).all()
    assert whole.notes == (
        "No split is named, so all 112 images are tested, which is only fair to a network that was trained on none "
        "of them. To a network that was, give the data.classes and data.rename of its training.",
    )
    assert whole.fingerprint == fingerprint(whole.images, whole.labels, whole.usage)
    cut = load(folder)
    again = fer2013.load_held_out(folder, trained_on=[None, cut.fingerprint])
    assert (again.fingerprint, again.notes) == (cut.fingerprint, cut.notes)


def test_named_splits_are_kept_for_evaluation(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", plain(of(TRAIN), "train") + plain(of(TEST), "test"))
    assert (fer2013.load_held_out(folder).usage == TEST).sum() == 14
    assert UNNAMED not in fer2013.load_held_out(folder).usage
    assert len(fer2013.load_held_out(write_folder(tmp_path / "one", plain(MANY[:1], "")))) == 1


# CSVs


def test_one_csv_for_each_split(tmp_path: Path) -> None:
    for usage, name in enumerate(("train", "val", "test")):
        write_train_csv(tmp_path / f"{name}.csv", of(usage))
    faces = load(tmp_path)
    assert (usage_of(faces), faces.dataset, faces.notes) == (true_usage(FACES), "folder", ())


def test_one_csv_for_each_usage(tmp_path: Path) -> None:
    for usage, name in enumerate(FER2013_SPLITS):
        write_fer2013_csv(tmp_path / f"fer2013_{name}.csv", of(usage))
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    faces = load(tmp_path)
    assert (usage_of(faces), faces.dataset) == (true_usage(FACES), "FER-2013")


def test_csv_in_split_folders(tmp_path: Path) -> None:
    for usage, name in enumerate(("train", "val", "test")):
        (tmp_path / name).mkdir()
        write_train_csv(tmp_path / name / "data.csv", of(usage))
    faces = load(tmp_path)
    assert usage_of(faces) == true_usage(FACES)
    assert faces.ids[0] == "test/data.csv:2"


def test_csv_called_test_is_not_trained_on(tmp_path: Path) -> None:
    faces = load(write_train_csv(tmp_path / "my_test.csv", FACES))
    assert set(faces.usage.tolist()) == {TEST}


CSV_REFUSALS = {
    "no name": (("other.csv", "train.csv"), write_train_csv, "not all are called train, val or test"),
    "same name": (("train.csv", "train_clean.csv"), write_train_csv, "some are called the same"),
    "same usage": (("a.csv", "b.csv"), write_fer2013_csv, "both contain Training"),
    "two folders": (("x/fer2013.csv", "y/fer2013.csv"), write_fer2013_csv, "are in different folders"),
}


@pytest.mark.parametrize("case", CSV_REFUSALS)
def test_csvs_that_are_not_parts_of_one_dataset_are_refused(case: str, tmp_path: Path) -> None:
    names, write, why = CSV_REFUSALS[case]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, of(TRAIN))
    message = error_of(tmp_path)
    assert message.startswith(f"{names[0]}, {names[1]} in {tmp_path} ")
    assert why in message
    assert message.endswith("Nothing was guessed: give the path of one CSV.")


def test_csvs_with_and_without_usage_are_refused(tmp_path: Path) -> None:
    write_fer2013_csv(tmp_path / "train.csv", of(TRAIN))
    write_train_csv(tmp_path / "test.csv", of(TEST))
    assert "do not all have a Usage column" in error_of(tmp_path)
    (tmp_path / "train.csv").unlink()
    write_train_csv(tmp_path / "fer2013.csv", of(TRAIN))  # without Usage, its name is no reason to ignore test.csv
    assert "not all are called train, val or test" in error_of(tmp_path)


def test_usage_that_contradicts_the_name_is_refused(tmp_path: Path) -> None:
    write_fer2013_csv(tmp_path / "test.csv", of(VAL) + of(TEST))
    assert usage_of(load(tmp_path / "test.csv")) == true_usage(of(VAL) + of(TEST))
    write_fer2013_csv(tmp_path / "test.csv", of(TEST) + of(TRAIN))
    assert error_of(tmp_path / "test.csv") == (
        "test.csv, line 16: the row says 'Training', but the path test.csv says test. "
        "Nothing was guessed: rename the file, or correct the column."
    )


@pytest.mark.parametrize(
    ("words", "dataset"),
    [
        (("Training", "PublicTest", "PrivateTest"), "FER-2013"),
        (("TRAIN", "public_test", "private"), "FER-2013"),
        (("train", "val", "test"), "folder"),
        (("Training", "validation", "Testing"), "folder"),
    ],
)
def test_words_for_usage(words: tuple[str, str, str], dataset: str, tmp_path: Path) -> None:
    rows = [f"{face.label},{text(face)},{words[face.usage]}\n" for face in FACES]
    (tmp_path / "a.csv").write_text("".join(["emotion,pixels,Usage\n", *rows]))
    faces = load(tmp_path / "a.csv")
    assert (usage_of(faces), faces.dataset) == (true_usage(FACES), dataset)


def test_labels_written_as_floats(tmp_path: Path) -> None:
    content = write_fer2013_csv(tmp_path / "a.csv", FACES).read_text().splitlines()
    floats = [content[0], *(f"{line[0]}.0{line[1:]}" for line in content[1:])]
    (tmp_path / "a.csv").write_text("\n".join(floats))
    assert load(tmp_path / "a.csv").labels.tolist() == [face.label for face in FACES]
    (tmp_path / "a.csv").write_text("\n".join([*floats, floats[1].replace("0.0", "0.5", 1)]))
    assert "line 58: expected emotion 0 to 6 or its name, got '0.5'" in error_of(tmp_path / "a.csv")


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("first", ["", "sep={}\r\n"])
def test_other_delimiters(delimiter: str, first: str, tmp_path: Path) -> None:
    content = write_fer2013_csv(tmp_path / "a.csv", FACES).read_text()
    changed = content.replace(",", delimiter).replace("\n", "\r\n")
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + (first.format(delimiter) + changed).encode())
    faces = load(tmp_path / "a.csv")
    assert usage_of(faces) == true_usage(FACES)
    assert faces.ids[0] == ("a.csv:3" if first else "a.csv:2")


# Archives


def tar_of(tmp_path: Path, faces: Iterable[FakeFace]) -> bytes:
    write_fer2013_csv(tmp_path / "written.csv", faces)
    with tarfile.open(tmp_path / "written.tar", "w") as tar:
        tar.add(tmp_path / "written.csv", "fer2013/fer2013.csv")
        tar.addfile(tarfile.TarInfo("fer2013/README"))
    (tmp_path / "written.csv").unlink()
    content = (tmp_path / "written.tar").read_bytes()
    (tmp_path / "written.tar").unlink()
    return content


ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "fer2013.tar": bytes,
    "fer2013.csv": bytes,  # what remains if a tar is renamed
    "fer2013": bytes,
    "fer2013.tar.gz": gzip.compress,
    "fer2013.tgz": gzip.compress,
    "fer2013.tar.bz2": bz2.compress,
    "fer2013.tar.xz": lzma.compress,
    "fer2013.zip": gzip.compress,
}


@pytest.mark.parametrize("given", ["file", "folder"])
@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_recognised_by_their_content(name: str, given: str, tmp_path: Path) -> None:
    content = ARCHIVES[name](tar_of(tmp_path, FACES))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    for _ in range(2):  # read, then from the cache
        faces = load(tmp_path / "in" / name if given == "file" else tmp_path / "in")
        assert usage_of(faces) == true_usage(FACES)
        assert faces.ids[0] == "fer2013.csv:2"


@pytest.mark.parametrize("name", ["fer2013.csv.gz", "fer2013", "data.csv.xz"])
def test_compressed_and_unsuffixed_csv(name: str, tmp_path: Path) -> None:
    content = write_fer2013_csv(tmp_path / "a.csv", FACES).read_bytes()
    (tmp_path / "in").mkdir()
    compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    (tmp_path / "in" / name).write_bytes(compress(content))
    for path in (tmp_path / "in" / name, tmp_path / "in"):
        assert usage_of(load(path)) == true_usage(FACES)


def test_tar_of_images_with_links(tmp_path: Path) -> None:
    write_folder(tmp_path / "fer", FACES)
    (tmp_path / "fer" / "train" / "happy" / "Training_1.jpg").symlink_to("/etc/passwd")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "fer", "./fer")
    assert "a.tar.gz contains links, which are not followed (./fer/train/happy/Training_1.jpg)" in error_of(
        tmp_path / "a.tar.gz"
    )
    (tmp_path / "fer" / "train" / "happy" / "Training_1.jpg").unlink()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "fer", "./fer")
    faces = load(tmp_path / "a.tar.gz")
    assert (usage_of(faces), len(faces)) == (true_usage(FACES), 56)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(tmp_path / "fer" / FACES[0].path, "../happy/x.jpg")
    assert "has entries that point outside the archive (../happy/x.jpg)" in error_of(tmp_path / "b.tar")


def test_truncated_archives(tmp_path: Path) -> None:
    tar = tar_of(tmp_path, FACES)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar)[:-2000])
    assert "a.tar.gz is not a compressed file or is truncated" in error_of(tmp_path / "a.tar.gz")
    end = len(tar.rstrip(b"\0"))
    for cut in (20000, end // 512 * 512 - 512, -(-end // 512) * 512):  # in a file, at a header, at the end marker
        (tmp_path / "a.tar").write_bytes(tar[:cut])
        assert "a.tar is not a tar archive or is truncated" in error_of(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(tar + tar)  # as by cat
    assert "more data after the end marker" in error_of(tmp_path / "a.tar")


def test_compressed_file_that_expands_a_thousandfold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer_lightning.data.archives._MAX_UNPACKED", 10**6)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(bytes(10**8)))
    assert "which is more than 100 times its size, so it is refused" in error_of(tmp_path / "a.csv.gz")


def test_one_zip_for_each_split_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "test.zip", plain(of(TEST), ""))
    write_zip(tmp_path / "train.zip", plain(of(TRAIN), ""))
    assert "contains test.zip, train.zip, by name a split of a dataset, beside other data" in error_of(tmp_path)
    write_folder(tmp_path, plain(of(TRAIN), "train"))
    assert "contains test.zip, by name a split of a dataset" in error_of(tmp_path)
    write_folder(tmp_path, plain(of(TEST), "test"))
    assert (load(tmp_path).usage == TEST).sum() == 14


def test_unlabelled_csv_of_a_split_is_not_used(tmp_path: Path) -> None:
    write_train_csv(tmp_path / "train.csv", MANY)
    write_test_csv(tmp_path / "test.csv", FACES)
    assert load(tmp_path).notes[0] == "test.csv has no labels (no emotion column) and was not used."


def test_unsuffixed_text_is_not_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("emotion, faces\n")
    assert "it contains README" in error_of(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("happy.png", encode(np.zeros((48, 48), np.uint8), "PNG"))
    assert "has images, but none in a folder named after a class" in error_of(tmp_path / "a.zip")


def test_archive_in_a_split_folder_is_of_that_split(tmp_path: Path) -> None:
    (tmp_path / "a" / "test").mkdir(parents=True)
    write_zip(tmp_path / "a" / "test" / "images.zip", plain(of(TEST), ""))
    for path in (tmp_path / "a", tmp_path / "a" / "test", tmp_path / "a" / "test" / "images.zip"):
        assert set(load(path).usage.tolist()) == {TEST}
    (tmp_path / "a" / "train").mkdir()
    write_zip(tmp_path / "a" / "train" / "images.zip", plain(of(TRAIN), ""))
    assert "contains test/images.zip, train/images.zip, by name a split of a dataset" in error_of(tmp_path / "a")


def test_name_of_an_archive_that_contradicts_its_content_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "test.zip", plain(of(TRAIN), "train"))
    assert error_of(tmp_path / "test.zip").startswith(
        f"{tmp_path / 'test.zip'} is called test, but nothing inside is."
    )


def test_links_keep_the_name_that_was_given(tmp_path: Path) -> None:
    write_folder(tmp_path / "store", plain(FACES, ""))
    (tmp_path / "test").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "mine").symlink_to(tmp_path / "test", target_is_directory=True)
    assert set(load(tmp_path / "test").usage.tolist()) == {TEST}
    assert set(load(tmp_path / "store").usage.tolist()) == {TRAIN, VAL, TEST}


def test_renamed_compressed_csv_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    content = gzip.compress(write_train_csv(tmp_path / "a.csv", MANY).read_bytes())
    (tmp_path / "kdef_all.csv.gz").write_bytes(content)
    (tmp_path / "kdef_test.csv.gz").write_bytes(content)
    assert set(load(tmp_path / "kdef_all.csv.gz").usage.tolist()) == {TRAIN, VAL, TEST}
    assert set(load(tmp_path / "kdef_test.csv.gz").usage.tolist()) == {TEST}


def rows(faces: Iterable[FakeFace], *columns: Callable[[FakeFace], str]) -> str:
    return "".join(",".join([str(f.label), text(f), *(column(f) for column in columns)]) + "\n" for f in faces)


def test_split_in_another_column_than_usage(tmp_path: Path) -> None:
    word = ("train", "valid", "test").__getitem__
    (tmp_path / "a.csv").write_text("emotion,pixels,split\n" + rows(FACES, lambda face: word(face.usage)))
    faces = load(tmp_path / "a.csv")
    assert (usage_of(faces), faces.dataset, faces.notes) == (true_usage(FACES), "folder", ())
    content = rows(FACES, lambda face: word(face.usage), lambda face: FER2013_SPLITS[face.usage])
    (tmp_path / "e.csv").write_text("emotion,pixels,group\n" + rows(FACES[::-1], lambda f: FER2013_SPLITS[f.usage]))
    assert usage_of(load(tmp_path / "e.csv")) == true_usage(FACES)
    (tmp_path / "f.csv").write_text("emotion,pixels,set\n" + rows(FACES, lambda face: "fold 1"))
    assert "expected set Training, PublicTest or PrivateTest, got 'fold 1'" in error_of(tmp_path / "f.csv")
    (tmp_path / "b.csv").write_text("emotion,pixels,set,Usage\n" + content)
    assert usage_of(load(tmp_path / "b.csv")) == true_usage(FACES)
    content += rows(FACES[:1], lambda face: "test", lambda face: "Training")
    (tmp_path / "c.csv").write_text("emotion,pixels,set,Usage\n" + content)
    assert error_of(tmp_path / "c.csv").startswith("c.csv, line 58: the row says 'test' and 'Training'. Nothing")
    (tmp_path / "d.csv").write_text("emotion,pixels,Usage,usage\n" + content)
    assert error_of(tmp_path / "d.csv") == "d.csv has several columns usage: keep one of each."


def test_blank_lines_around_the_rows(tmp_path: Path) -> None:
    content = write_fer2013_csv(tmp_path / "a.csv", FACES).read_text()
    header, _, rest = content.partition("\n")
    (tmp_path / "a.csv").write_text(f"\n \n{header}\n\n  \n{rest}   \n")
    faces = load(tmp_path / "a.csv")
    assert (usage_of(faces), faces.ids[0]) == (true_usage(FACES), "a.csv:6")


def test_csvs_of_two_datasets_are_refused(tmp_path: Path) -> None:
    for folder, name, usage in (("fer", "train.csv", TRAIN), ("ck", "test.csv", TEST)):
        (tmp_path / folder).mkdir()
        write_train_csv(tmp_path / folder / name, of(usage))
    assert "ck/test.csv, fer/train.csv in" in (message := error_of(tmp_path))
    assert "are in different folders, so they are not parts of one dataset" in message


@pytest.mark.parametrize("content", [b"", "emotion,pixels\n".encode("utf-16"), b"pixel0,pixel1\n1,2\n"])
def test_unreadable_test_set_is_not_cut_anew(content: bytes, tmp_path: Path) -> None:
    write_train_csv(tmp_path / "train.csv", MANY)
    (tmp_path / "test.csv").write_bytes(content)
    assert "contains test.csv, by name a split of a dataset, beside other data" in error_of(tmp_path)


def test_unread_split_beside_unnamed_data_is_refused(tmp_path: Path) -> None:
    write_train_csv(tmp_path / "faces.csv", MANY)
    (tmp_path / "test.csv").write_bytes(b"")
    assert "contains test.csv, by name a split of a dataset, beside other data" in error_of(tmp_path)
    (tmp_path / "test.csv").unlink()
    write_folder(tmp_path / "a", plain(MANY, ""))
    write_zip(tmp_path / "a" / "test.zip", plain(FACES, ""))
    assert "contains test.zip, by name a split of a dataset, beside other data" in error_of(tmp_path / "a")


def test_list_of_images_with_a_split_column_is_not_ignored(tmp_path: Path) -> None:
    write_folder(tmp_path, plain(MANY, ""))
    (tmp_path / "labels.csv").write_text("path,emotion,split\nangry/0.jpg,angry,train\n")
    assert "labels.csv names splits of the images, and lists of images are not read" in error_of(tmp_path)


def test_csv_that_occurs_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    content = write_fer2013_csv(tmp_path / "a.csv", FACES).read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            member = tarfile.TarInfo("fer2013.csv")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert "contains fer2013.csv more than once" in error_of(tmp_path / "a.tar")


def test_folder_of_folders_of_several_splits_is_no_split_itself(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", plain(of(TRAIN), "training_data/train") + plain(of(TEST), "training_data/test"))
    faces = load(tmp_path / "a")
    assert all((usage == TEST) == (true_usage(FACES)[pixels] == TEST) for pixels, usage in usage_of(faces).items())


def test_folds_of_a_cross_validation_are_refused(tmp_path: Path) -> None:
    faces = [*plain(of(TRAIN), "train/fold1"), *plain(of(VAL), "val/fold1"), *plain(of(TEST), "train/fold2")]
    assert "contains several datasets, which are not mixed: fold1, fold2." in error_of(
        write_folder(tmp_path, faces)
    )


def test_doubled_folder_with_other_images_is_refused(tmp_path: Path) -> None:
    other = [replace(face, path=f"fer/{face.path}").path for face in plain(of(TRAIN), "fer")]
    others = [replace(f, path=path.replace(".jpg", "b.jpg")) for f, path in zip(of(TRAIN), other, strict=True)]
    write_folder(tmp_path, [*plain(of(TRAIN), "fer"), *others])
    assert "fer/fer/angry/ and fer/angry/" in error_of(tmp_path)


def test_class_folder_with_a_split_in_its_name_is_unknown(tmp_path: Path) -> None:
    write_folder(tmp_path, [*plain(of(TRAIN), ""), replace(FACES[0], path="happy_test/1.jpg")])
    assert error_of(tmp_path).startswith("happy_test/: 'happy_test' is not one of angry,")


@pytest.mark.parametrize("folders", ["images/person{}", "session{}/subject{}"])
def test_persons_below_other_folders(folders: str, tmp_path: Path) -> None:
    # Nested numbers: the session changes with each image of a subject, so sessions link all subjects of three.
    faces = load(
        write_folder(tmp_path, persons(MANY, lambda i, face: folders.format(i % 4 // 2 * 3 + i % 3, i % 3)))
    )
    sides: dict[str, set[int]] = {}
    for name, usage in zip(faces.ids, faces.usage, strict=True):
        sides.setdefault(name.split("/")[2], set()).add(int(usage))
    assert all(len(found) == 1 for found in sides.values())


def test_evaluation_cuts_only_what_the_network_was_trained_without(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", plain(MANY, "train"))
    default, other = load(folder), load(folder, seed=1)
    assert fer2013.load_held_out(folder, trained_on=[default.fingerprint]).fingerprint == default.fingerprint
    assert set(fer2013.load_held_out(folder, trained_on=[other.fingerprint]).usage.tolist()) == {TRAIN}


def test_tar_with_a_member_of_impossible_size_is_refused(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("x" * 50).tobuf())
    header[124:136] = b"\x80" + b"\xff" * 11
    header[156:157] = b"L"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(2048))
    assert "a.tar is not a tar archive or is truncated" in error_of(tmp_path / "a.tar")
