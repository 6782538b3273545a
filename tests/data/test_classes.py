"""Class sets: which names and numbers mean which class, and in which order."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from layouts import number_of, picture, pixels

from fer_lightning.data.classes import class_set, columns_of, restrict, shared_classes
from fer_lightning.data.faces import Faces
from fer_lightning.data.fer2013 import load_faces, load_held_out
from fer_lightning.emotions import EMOTIONS, canonical
from fer_lightning.errors import UserError

# A folder of CK+ or FER+, as on Kaggle: other words, and an emotion that FER-2013 lacks.
EIGHT = ("anger", "contempt", "disgust", "fear", "happiness", "neutrality", "sadness", "surprise")
FERPLUS = ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt")
RAFDB = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")


def write_folders(root: Path, folders: Sequence[str], n: int = 3) -> Path:
    """Write n images into each folder; image i lies in folder i // n."""
    for at, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (root / folder / f"{at * n + i}.png").write_bytes(picture(at * n + i))
    return root


def write_csv(path: Path, labels: Sequence[object]) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("emotion", "pixels", "Usage"))
        for number, label in enumerate(labels):
            rows.writerow((label, " ".join(map(str, pixels(number).ravel())), "Training"))
    return path


def classes_by_number(faces: Faces) -> list[str]:
    """Return the class of each image, in the order in which the images were written."""
    found = {
        number_of(image): faces.classes[label] for image, label in zip(faces.images, faces.labels, strict=True)
    }
    return [found[number] for number in sorted(found)]


def read(path: Path, **settings: object) -> Faces:
    return load_faces(path, download=False, **settings)  # type: ignore[arg-type]


def error_of(path: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "spelt"),
    [
        ("happy", ("Happiness", "3_happy", " JOY ", "happy")),
        ("contempt", ("Contemptuous", "7-contempt")),
        ("été", ("e\u0301te\u0301", " ÉTÉ")),  # macOS writes accents as letters of their own
        ("3", ("3",)),
        ("10 euro", ("10 Euro",)),  # not 20 euro
    ],
)
def test_spellings_of_a_name(names: str, spelt: Sequence[str]) -> None:
    assert {canonical(name) for name in spelt} == {names}


def test_fer2013_is_the_default_and_an_unknown_folder_is_never_a_class(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "a", [*EMOTIONS, "hapy"])
    message = error_of(folder)
    assert message.startswith("hapy/: 'hapy' is not one of angry, disgust, fear, happy, sad, surprise, neutral (3 ")
    assert "'hapy' is no class. Did you mean happy? If it is one, see data.classes (--classes); " in message
    assert "data.rename={hapy: happy} (--rename hapy=happy) reads it so." in message
    assert error_of(folder, classes="fer2013") == message
    assert "data.classes" in error_of(write_csv(tmp_path / "a.csv", [0, 1, "hapy"]))
    assert read(folder, skip_bad=True).classes == EMOTIONS


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("folders", EIGHT),
        ("ferplus", FERPLUS),
        ([*EIGHT[::-1]], EIGHT[::-1]),
        (["Sad", "angry", "Disgusted", "scared", "joy", "surprised", "calm", "CONTEMPT"],) * 2,
    ],
)
def test_eight_classes_have_the_names_and_the_order_of_their_set(
    classes: str | list[str], expected: Sequence[str], tmp_path: Path
) -> None:
    faces = read(write_folders(tmp_path / "a", EIGHT), classes=classes)
    assert faces.classes == tuple(expected)
    assert list(map(canonical, classes_by_number(faces))) == [canonical(name) for name in EIGHT for _ in range(3)]


def test_numbers_are_those_of_the_set(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [*range(7)])
    assert tuple(classes_by_number(read(path))) == EMOTIONS
    assert tuple(classes_by_number(read(path, classes=list("gfedcba")))) == tuple("gfedcba")
    assert tuple(classes_by_number(read(path, classes="ferplus"))) == FERPLUS[:7]
    assert tuple(classes_by_number(read(path, classes="folders"))) == tuple("0123456")
    assert "expected emotion 1 to 7 or its name, got '0'" in error_of(path, classes="rafdb")
    path = write_csv(tmp_path / "b.csv", [1, 2.0, "3", " 4", "5.0", "+6", "07"])
    assert tuple(classes_by_number(read(path, classes="rafdb"))) == RAFDB
    folder = write_folders(tmp_path / "rafdb", [f"train/{number}" for number in range(1, 8)], n=1)
    assert tuple(classes_by_number(read(folder, classes="rafdb"))) == RAFDB
    assert "Numbers are not guessed at" in error_of(folder)
    assert "train/1/: " not in (message := error_of(folder, classes=list("abcdefg")))
    assert "train/7/: '7' is not one of a, b, c, d, e, f, g (1 images)" in message


def test_names_that_are_close_are_different_classes_if_both_are_named(tmp_path: Path) -> None:
    names = ("10 euro", "20 euro", "calm", "neutral")  # RAVDESS has calm and neutral
    folder = write_folders(tmp_path / "a", names)
    for classes in ("folders", list(names)):
        faces = read(folder, classes=classes)
        assert faces.classes == names
        assert classes_by_number(faces) == [name for name in names for _ in range(3)]
    assert shared_classes([names], ("calm", "20 Euro", "serene")) == ("20 euro", "calm")
    assert shared_classes([EMOTIONS], ("calm", "joy")) == ("happy", "neutral")


def test_numbers_that_are_names_have_no_other_meaning(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [1, 2, 3, 0])
    assert "expected the name or number of a class, got '0'" in error_of(path, classes=[1, 2, 3])
    assert classes_by_number(read(path, classes=[3, 2, 1], rename={0: None})) == ["1", "2", "3"]


def test_labels_that_are_words_for_splits(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        file.write("emotion,pixels\n")
        for number, label in enumerate(["test", "train", "valid", "test"]):
            file.write(f"{label},{' '.join(map(str, pixels(number).ravel()))}\n")
    faces = read(path, classes=["train", "test", "valid"])
    assert classes_by_number(faces) == ["test", "train", "valid", "test"]
    folder = write_folders(tmp_path / "b", ["test", "control"], n=1)
    (folder / "test/0.png").rename(folder / "test/test_1.png")
    (folder / "control/1.png").rename(folder / "control/control_1.png")
    assert read(folder, classes=["test", "control"]).classes == ("test", "control")


def test_order_of_close_names_is_always_the_same(tmp_path: Path) -> None:
    assert read(write_folders(tmp_path / "a", ["a1", "a01", "b"]), classes="folders").classes == ("a01", "a1", "b")


def test_every_name_is_a_class_with_folders(tmp_path: Path) -> None:
    names = ("2 dogs", "10 cats", "Zebra", "été")
    folder = write_folders(tmp_path / "a", [f"x/train/{name}" for name in names])
    write_folders(folder, [f"x/test/{name.upper()}" for name in names[2:]])
    (folder / "x/poster.png").write_bytes(picture(0))
    faces = read(write_folders(tmp_path / "b", [f"x/train/{name}" for name in names]), classes="folders")
    assert faces.classes == names
    assert classes_by_number(faces) == [name for name in names for _ in range(3)]
    assert "is not beside the other folders with images" in error_of(folder, classes="folders")
    alone = write_folders(tmp_path / "no_classes", ["train", "test"])
    assert "has images, but none in a folder of its own; they are in test, train." in error_of(
        alone, classes="folders"
    )
    (folder / "x/poster.png").unlink()
    assert read(folder, classes="folders").classes == names
    labels = ["b", "a", "nan", "10", "2", "a"]
    assert "expected the name or number of a class, got 'nan'" in error_of(
        write_csv(tmp_path / "a.csv", labels), classes="folders"
    )
    labels.remove("nan")
    faces = read(write_csv(tmp_path / "b.csv", labels), classes="folders")
    assert faces.classes == ("2", "10", "a", "b")
    assert classes_by_number(faces) == labels


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        (["valid", "invalid", "unsure"], "valid is not beside the other folders with images"),
        (["cat", "dog", "dog_test"], "dog_test is not beside the other folders with images"),
        (["cat", "dog", "cat/person1"], "cat/person1 is not beside the other folders with images"),
        (["a/cat", "a/dog", "b/cat", "b/dog", "c"], "are not beside the other folders with images"),
        (["train/cat", "train/dog", "test/cta"], "no training images of cta. If a name is misspelt, correct it"),
        (["train/cat", "test/cat"], "expected 2 to 100 classes, got 1 (cat)"),
        (["cat", "dog, grey"], "'dog, grey' cannot be the name of a class"),
        (["cat", "x" * 41], "cannot be the name of a class"),
    ],
)
def test_folders_that_are_not_certainly_classes_are_refused(folders: list[str], why: str, tmp_path: Path) -> None:
    assert why in error_of(write_folders(tmp_path / "a", folders), classes="folders")


@pytest.mark.parametrize(
    ("rename", "classes", "of_each"),
    [
        ({"contempt": None}, EMOTIONS, "angry - disgust fear happy neutral sad surprise"),
        ({"contempt": "disgusted"}, EMOTIONS, "angry disgust disgust fear happy neutral sad surprise"),
        (
            {
                "Contempt": "negative",
                "fear": "negative",
                "sad": "negative",
                "anger": "negative",
                "disgust": "negative",
            },
            ("negative", "happy", "surprise", "neutral"),
            "negative negative negative negative happy neutral negative surprise",
        ),
        ({"contempt": "proud"}, (*EMOTIONS, "proud"), "angry proud disgust fear happy neutral sad surprise"),
        (
            {"contempt": None, "happiness": "joyful", 6: None},
            ("angry", "disgust", "fear", "joyful", "sad", "surprise"),
            "angry - disgust fear joyful - sad surprise",
        ),
    ],
)
def test_classes_are_renamed_merged_and_left_out(
    rename: Mapping[str, str | None], classes: Sequence[str], of_each: str, tmp_path: Path
) -> None:
    faces = read(write_folders(tmp_path / "a", EIGHT, n=2), rename=rename)
    assert faces.classes == tuple(classes)
    kept = [name for name in of_each.split() if name != "-"]
    assert classes_by_number(faces) == [name for name in kept for _ in range(2)]
    left_out = 2 * of_each.split().count("-")
    assert (f"data.rename left out {left_out} images." in faces.notes) == bool(left_out)


def test_numbers_and_labels_are_renamed_too(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [0, 1, 2, 7, "contempt"])
    faces = read(path, rename={"7": None, "contempt": "disgust", "fear": "negative", "angry": "negative"})
    assert classes_by_number(faces) == ["negative", "disgust", "negative", "disgust"]
    faces = read(path, classes="folders", rename={0: "x", 1: "x", 2: None})
    assert (faces.classes, classes_by_number(faces)) == (("7", "contempt", "x"), ["x", "x", "7", "contempt"])


def test_a_number_beside_the_published_ones_is_left_out(tmp_path: Path) -> None:
    eight = ["neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt"]  # AffectNet's order
    folder = write_folders(tmp_path / "a", [str(number) for number in range(9)], n=2)
    faces = read(folder, classes=eight, rename={8: None})
    assert (faces.classes, classes_by_number(faces)) == (tuple(eight), [name for name in eight for _ in range(2)])
    path = write_csv(tmp_path / "a.csv", ["0.0", "1.0", "8.0"])
    assert classes_by_number(read(path, classes=eight, rename={8: None})) == ["neutral", "happy"]


def test_a_class_gets_another_name(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "a", EIGHT)
    faces = read(folder, classes="ferplus", rename={"happy": "joy", "7": "proud", "contempt": "proud"})
    assert faces.classes == ("neutral", "joy", "surprise", "sad", "angry", "disgust", "fear", "proud")
    path = write_csv(tmp_path / "a.csv", [1, 3, 7])
    assert classes_by_number(read(path, classes="rafdb", rename={7: 3})) == ["surprise", "disgust", "disgust"]


def test_classes_without_training_images_are_noted(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "a", ["train/happy", "train/sad", "test/happy", "test/angry"])
    assert "No training images of: angry." in read(folder, classes=["happy", "sad", "angry"]).notes
    assert "No training images of: angry." in read(folder).notes


def test_without_the_default_classes_counts_are_not_compared_with_the_published_ones(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [*range(7)])
    assert any("differ from the published" in note for note in read(path).notes)
    assert not any("differ from the published" in note for note in read(path, rename={"fear": "sad"}).notes)
    assert any("differ from the published" in note for note in read(path).notes)  # not from the other's cache entry


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"classes": "ferpls"}, "data.classes=ferpls: unknown class set. Did you mean ferplus? Expected fer2013, "),
        ({"classes": ["happy"]}, "data.classes: expected 2 to 100 classes, got 1 (happy)"),
        ({"classes": ["happy", "Happy "]}, "'happy' and 'Happy' are the same class"),
        ({"classes": [True, False]}, 'In YAML, write "no" and "yes" with quotes.'),
        ({"classes": ["happy", 3.5]}, "data.classes=['happy', 3.5]: Expected fer2013"),
        ({"classes": 3}, "data.classes=3: Expected fer2013"),
        ({"classes": ["a", "b/c"]}, "'b/c' cannot be the name of a class"),
        ({"rename": ["a"]}, "data.rename=['a']: expected a mapping such as {contempt: null"),
        ({"rename": {"fear": 3.5}}, "data.rename: fear: 3.5 is no name of a class"),
        ({"rename": {"fear": " "}}, "data.rename: fear: ' ' is no name of a class"),
        ({"rename": {"fear": "sad", "sad": "bad"}}, "data.rename: 'sad' is renamed itself"),
        ({"rename": dict.fromkeys(EMOTIONS[1:])}, "data.rename: expected 2 to 100 classes, got 1 (angry)"),
        ({"rename": {"contemt": None}}, "data.rename: the data have no class 'contemt'. Did you mean contempt?"),
        ({"classes": "folders", "rename": {"hapiness": "x"}}, "no class 'hapiness'. Did you mean happiness?"),
    ],
)
def test_wrong_settings(settings: dict[str, object], why: str, tmp_path: Path) -> None:
    assert why in error_of(write_folders(tmp_path / "a", EIGHT), **settings)


@pytest.mark.parametrize(
    ("classes", "names"), [(["bored", "calm"], ("Bored", "neutrality")), ("rafdb", tuple("1234567"))]
)
def test_persons_of_any_classes_stay_together(classes: object, names: Sequence[str], tmp_path: Path) -> None:
    persons = range(12)
    folder = write_folders(tmp_path / "a", [f"{name}/person{p}" for name in names for p in persons], n=1)
    faces = read(folder, classes=classes)
    assert set(faces.usage.tolist()) == {0, 1, 2}
    for person in persons:
        rows = [at for at, name in enumerate(faces.ids) if f"person{person}/" in name]
        assert len(rows) == len(names)
        assert len(set(faces.usage[rows].tolist())) == 1


# Evaluation on data with other classes


def held_out(path: Path, *networks: Sequence[str], **settings: object) -> Faces:
    return load_held_out(path, networks=networks, **settings)  # type: ignore[arg-type]


def test_data_to_evaluate_on_may_have_emotions_that_the_networks_lack(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "a", EIGHT)
    assert held_out(folder, EMOTIONS).classes == (*EMOTIONS, "contempt")
    assert held_out(folder, FERPLUS).classes == FERPLUS
    assert held_out(folder, FERPLUS, EMOTIONS).classes == FERPLUS
    assert held_out(folder, EMOTIONS, FERPLUS).classes == (*EMOTIONS, "contempt")
    seven = write_folders(tmp_path / "b", EMOTIONS)
    assert held_out(seven, EMOTIONS).classes == EMOTIONS
    assert held_out(seven, FERPLUS).classes == FERPLUS[:7]
    assert held_out(folder, EMOTIONS, rename={"contempt": None}).classes == EMOTIONS
    with pytest.raises(UserError, match="'hapy' is no class"):
        held_out(write_folders(tmp_path / "c", [*EMOTIONS, "hapy"]), EMOTIONS)


def test_numbers_are_those_of_fer2013_for_its_networks_and_unknown_for_others(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [*range(7)])
    assert tuple(classes_by_number(held_out(path, EMOTIONS))) == EMOTIONS
    own = ("negative", "neutral", "positive")
    for networks in ((own,), (FERPLUS,), (RAFDB,), (EMOTIONS, FERPLUS), (EMOTIONS, own)):
        with pytest.raises(UserError, match="expected the name or number of a class, got '0'"):
            held_out(path, *networks)
    named = write_csv(tmp_path / "b.csv", ["positive", "negative", "neutrality"])
    faces = held_out(named, own)
    assert (faces.classes, classes_by_number(faces)) == (own, ["positive", "negative", "neutral"])
    assert held_out(path, own, classes="fer2013").classes == EMOTIONS


def test_a_network_with_classes_of_its_own_gets_its_own_cut(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "a", ["bored", "happy"], n=20)
    trained = read(folder, classes=["happy", "bored"])
    again = held_out(folder, trained.classes, trained_on=[trained.fingerprint])
    np.testing.assert_array_equal(again.usage, trained.usage)
    assert set(held_out(folder, trained.classes).usage.tolist()) == {2}


def test_the_shared_classes_have_the_first_networks_names_and_order() -> None:
    assert shared_classes([EMOTIONS], EIGHT) == EMOTIONS
    assert shared_classes([FERPLUS, EMOTIONS], EIGHT) == FERPLUS[:7]
    assert shared_classes([("Joy", "x", "Sadness")], EMOTIONS) == ("Joy", "Sadness")
    with pytest.raises(UserError, match="there are no two in both"):
        shared_classes([EMOTIONS], ("happy", "bored"))
    assert columns_of(("Joy", "sad"), EMOTIONS) == [3, 4]


def test_images_of_other_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    faces = read(write_folders(tmp_path / "a", EIGHT, n=2), classes="folders")
    fewer = restrict(faces, ("happy", "sad", "angry"))
    assert fewer.classes == ("happy", "sad", "angry")
    assert classes_by_number(fewer) == ["angry"] * 2 + ["happy"] * 2 + ["sad"] * 2
    assert [number_of(image) for image in fewer.images] == [int(Path(name).stem) for name in fewer.ids]
    left_out = "2 of contempt, 2 of disgust, 2 of fear, 2 of neutrality, 2 of surprise"
    assert fewer.notes[-1] == f"Images of classes that are not compared were left out: {left_out}."
    assert restrict(faces, faces.classes).notes == faces.notes


def test_a_class_set_is_hashed_by_its_settings() -> None:
    keys = [
        class_set(classes, rename).key
        for classes, rename in (
            ("fer2013", None),
            ("ferplus", None),
            ("folders", None),
            (["a", "b"], None),
            (["b", "a"], None),
            ("fer2013", {"fear": "sad"}),
            ("fer2013", {"fear": None}),
            ("fer2013", {"fear": "x", "sad": "y"}),
            ("fer2013", {"fear": "y", "sad": "x"}),
            (["a", "b"], {"c": "x", "d": "y"}),
            (["a", "b"], {"d": "y", "c": "x"}),
            ("folders", {"fear": None}),
        )
    ]
    assert keys[0] == ""
    assert len(set(keys)) == len(keys)
    assert class_set("fer2013", {}).key == ""
