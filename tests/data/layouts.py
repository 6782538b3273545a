"""Random layouts of datasets as people have them, with the truth about each image."""

import csv
import io
import tarfile
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from fake_fer2013 import encode
from hypothesis import strategies as st

from fer_lightning.data.faces import TEST, TRAIN, VAL
from fer_lightning.emotions import EMOTIONS

WORDS = {
    TRAIN: ("train", "training"),
    VAL: ("val", "valid", "validation"),
    TEST: ("test", "testing"),
}
# Forms of a split's word in a folder's or a file's name.
AFFIXES = (
    *(
        "{}",
        "{}",
        "{}",
        "{}_data",
        "{}_set",
        "{}set",
        "{}-images",
        "{}_afew",
        "my_{}",
        "fer2013_{}",
        "data {}",
        "01_{}",
    ),
    *("{}1", "{} (1)", "{}.faces", "FER2013{}"),
)
CASES = (str.lower, str.title, str.upper)
USAGES = {
    TRAIN: ("Training", "train", "training"),
    VAL: ("PublicTest", "val", "valid", "validation", "public", "public_test"),
    TEST: ("PrivateTest", "test", "testing", "private", "private_test"),
}
CSVS = ("one", "one, usage", "parts", "parts, usage")
CLASS_FOLDERS = ("folders", "below", "prefix", "official", "none", "persons")
# Settings of the reader -> the names of the class folders and labels, in the order of the classes.
CLASSES: tuple[tuple[dict[str, object], tuple[str, ...]], ...] = (
    *(({}, EMOTIONS),) * 3,
    ({}, ("Anger", "1_disgusted", "FEARFUL", "happiness", "sadness", "suprise", "neutrality")),
    ({"classes": "folders"}, ("10 bored", "angry", "not sure", "été")),
    ({"classes": ["bored", "angry", "9", "Été", "$x$"]}, ("Bored", "ANGER", "9", "été", "$x$")),
    ({"rename": {"contempt": "disgust", "joy": "great"}}, ("angry", "contempt", "fear", "happy", *EMOTIONS[4:])),
)
OUTER = ("archive", "images", "fer", "FER 2013", "data", "faces.d")
BETWEEN = ("", "", "images", "crops", "48x48")


@dataclass
class Truth:
    """A dataset on disk and what is true about it.

    Attributes:
        path: what a user would give as data.path.
        labels: label by image number.
        usages: split by image number; None if nothing names it.
        persons: person by image number; empty if there are none.
        sound: whether it must be read, rather than refused.
        description: the drawn choices, for messages.
        settings: how to read it: data.classes and data.rename.
    """

    path: Path
    labels: dict[int, int] = field(default_factory=dict)
    usages: dict[int, int | None] = field(default_factory=dict)
    persons: dict[int, str] = field(default_factory=dict)
    sound: bool = True
    description: dict[str, object] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)


@cache
def picture(number: int) -> bytes:
    """Return a PNG of a face that `number_of` recognises."""
    return encode(pixels(number), "PNG")


def pixels(number: int) -> np.ndarray:
    image = np.full((48, 48), 128, np.uint8)
    image[0, :2] = divmod(number, 256)
    return image


def number_of(image: np.ndarray) -> int:
    return int(image[0, 0]) * 256 + int(image[0, 1])


def _name(draw: st.DrawFn, usage: int) -> str:
    return draw(st.sampled_from(AFFIXES)).format(draw(st.sampled_from(CASES))(draw(st.sampled_from(WORDS[usage]))))


@st.composite
def class_folders(draw: st.DrawFn, root: Path, kind: str) -> Truth:
    """Write class folders into an empty folder or an archive in it.

    Args:
        draw: draws the choices.
        root: the empty folder.
        kind: one of CLASS_FOLDERS: where the split is named, in folders above or below the class folders,
            in the names of the images, in those of FER-2013, or nowhere, with or without a folder for each person.
    """
    counts = {TRAIN: draw(st.integers(3, 6))}
    if kind != "none" and kind != "persons":
        counts |= draw(st.sampled_from(({TEST: 2}, {VAL: 2}, {VAL: 2, TEST: 2}, {VAL: 1, TEST: 2})))
    outer = draw(st.lists(st.sampled_from(OUTER), max_size=2))
    between = draw(st.sampled_from(BETWEEN))
    folder = {usage: _name(draw, usage) for usage in counts}
    if kind == "official" and draw(st.booleans()):  # the Kaggle folder: test/ holds both
        folder = {TRAIN: "train", VAL: "test", TEST: "test"}
    prefixes = ("{}_{:05}.png", "{}{}.png", "{} ({}).png", "face_{}_{}.png", "{}_happy_{}.png", "{}_s05_{}.png")
    faults = ("prefix", "stray", "second root", "unknown class", "nested", "fold", "unread")
    wrong = draw(st.sampled_from((None,) * 7 + faults))
    doubled = draw(st.sampled_from((False, False, False, True)))
    settings, classes = draw(st.sampled_from(CLASSES))
    prefix = draw(st.sampled_from(prefixes)).replace("happy", next(name for name in classes if name.isalpha()))
    truth = Truth(
        root,
        sound=not (
            settings.get("classes") == "folders" and kind == "persons"
        ),  # or the persons might be the classes
        description={"kind": kind, "wrong": wrong, "folder": folder, "outer": outer, "between": between},
        settings=settings,
    )
    truth.description |= settings
    files: dict[str, bytes] = {}
    number = 0
    for usage, count in counts.items():
        for label, emotion in enumerate(classes):
            for at in range(count):
                parts, name = [*outer], f"{number}.png"
                if kind in ("folders", "official"):
                    parts += [folder[usage], *([between] if between else []), emotion]
                elif kind == "below":
                    parts += [emotion, folder[usage]]
                elif kind == "persons":
                    truth.persons[number] = f"person{at % 3}"
                    parts += [emotion, truth.persons[number], *([between] if between else [])]
                else:
                    parts.append(emotion)
                if kind == "official":
                    name = f"{('Training', 'PublicTest', 'PrivateTest')[usage]}_{number}.png"
                elif kind == "prefix":
                    name = prefix.format(WORDS[usage][0], number)
                truth.labels[number], truth.usages[number] = (
                    label,
                    usage if kind not in ("none", "persons") else None,
                )
                files["/".join([*parts, name])] = picture(number)
                number += 1
    if wrong is not None:
        _spoil(truth, files, wrong, number, next(iter(files)).rsplit("/", 1)[0], outer, classes[0])
    files |= draw(st.sampled_from(({}, {"README.txt": b"faces, emotion, pixels"}, {"x/.DS_Store": b"\0"})))
    if doubled and outer:
        files |= {
            f"{outer[0]}/{path}": content for path, content in files.items() if path.startswith(f"{outer[0]}/")
        }
    _write(root, files, draw(st.sampled_from(("folder", "folder", "zip", "tar", "tar.gz"))), truth)
    return truth


def _spoil(
    truth: Truth, files: dict[str, bytes], wrong: str, number: int, folder: str, outer: list[str], name: str
) -> None:
    """Add an image whose split or class cannot be told, so that the dataset must be refused.

    `folder` is that of the first training image, `name` that of its class.
    """
    top = "".join(f"{name}/" for name in outer)
    named = truth.usages[0] is not None
    path = {
        "prefix": f"{folder}/PrivateTest_{number}.png",
        "stray": f"{top}{name}/{number}.png",
        "second root": f"{top}extra/{name}/{number}.png",
        "unknown class": f"{folder.replace(name, f'x{name}')}/{number}.png",
        "nested": f"{folder}/test/{number}.png",
        "fold": f"{top}fold2/test/{name}/{number}.png",
        "unread": f"{top}test.csv",
    }[wrong]
    if (
        (not named and wrong == "stray")
        or (truth.description["kind"] == "prefix" and wrong in ("prefix", "nested"))
        or (wrong == "unknown class" and truth.settings.get("classes") == "folders")
    ):
        return  # as sound as before
    if wrong == "unread":
        truth.sound &= TEST in truth.usages.values()
        files[path] = b""
        return
    truth.sound = False
    truth.labels[number], truth.usages[number] = 0, TEST if wrong in ("prefix", "nested") else None
    files[path] = picture(number)


@st.composite
def csvs(draw: st.DrawFn, root: Path, kind: str) -> Truth:
    """Write one CSV, or one for each split, into an empty folder or an archive in it.

    Args:
        draw: draws the choices.
        root: the empty folder.
        kind: one of CSVS: one CSV or one for each split, with or without a column of splits.
    """
    with_usage, parted = "usage" in kind, "parts" in kind
    counts = {TRAIN: 4} | draw(st.sampled_from(({}, {TEST: 1}, {VAL: 1}, {VAL: 1, TEST: 1})))
    words = {usage: draw(st.sampled_from(CASES))(draw(st.sampled_from(USAGES[usage]))) for usage in counts}
    # A file for each split without a Usage column must name it; one file for all must not.
    style = draw(st.sampled_from(("split", "number"))) if with_usage else "split"
    column = draw(st.sampled_from(("Usage", "usage", " Usage", "split", "Set")))
    blank = draw(st.booleans())
    names = {
        usage: f"{_name(draw, usage)}.csv" if style == "split" else f"fer_part_{'abc'[usage]}.csv"
        for usage in counts
    }
    if not parted:
        names = dict.fromkeys(counts, draw(st.sampled_from(("fer2013.csv", "icml_face_data.csv", "faces.CSV"))))
    wrong = draw(st.sampled_from((None,) * 5 + ("usage", "holdout", "version", "no name")))
    delimiter = draw(st.sampled_from((",", ",", ";", "\t")))
    index, floats = draw(st.booleans()), draw(st.booleans())
    settings, classes = draw(st.sampled_from(CLASSES))
    may_be_numbered = "rename" not in settings and settings.get("classes") != "folders" and "9" not in classes
    numbered = may_be_numbered and draw(st.booleans())
    truth = Truth(
        root,
        description={"names": names, "words": words, "wrong": wrong, "with_usage": with_usage, **settings},
        settings=settings,
    )
    tables: dict[str, list[list[object]]] = {}
    number = 0
    for usage, count in counts.items():
        for label, text in enumerate(classes):
            for _ in range(count):
                value = (f"{label}.0" if floats else label) if numbered else text
                row = [value, " ".join(map(str, pixels(number).ravel())), words[usage]]
                tables.setdefault(names[usage], []).append(row)
                named = with_usage or parted
                truth.labels[number], truth.usages[number] = label, usage if named else None
                number += 1
    if wrong == "usage" and with_usage and parted and style == "split" and TEST in counts:
        tables[names[TEST]][0][2], truth.sound = "Training", False
    elif wrong == "holdout" and with_usage:
        tables[names[TRAIN]][0][2], truth.sound = "Holdout", False
    elif wrong == "version":
        tables["z_copy.csv"], truth.sound = (
            tables[names[TRAIN]],
            not parted and "fer2013.csv" in tables and with_usage,
        )
        truth.sound |= "icml_face_data.csv" in tables and with_usage
    elif wrong == "no name" and parted and not with_usage and len(counts) > 1:
        tables["faces.csv"], truth.sound = tables.pop(names[TRAIN]), False
    header = [*([""] if index else []), "emotion", "pixels", *([column] if with_usage else [])]
    folder = draw(st.sampled_from(("", "", "data/", "fer/csv/")))
    files = {}
    for name, rows in tables.items():
        file = io.StringIO()
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        file.write("\n \n" if blank else "")
        width = 3 if with_usage else 2
        writer.writerows([*([at] if index else []), *row[:width]] for at, row in enumerate(rows))
        files[f"{folder}{name}"] = file.getvalue().encode()
    files |= draw(st.sampled_from(({}, {"example_submission.csv": b"emotion\n0\n"}, {"notes.csv": b"a,b\n1,2\n"})))
    _write(root, files, draw(st.sampled_from(("folder", "folder", "zip", "tar.gz"))), truth)
    return truth


def _write(root: Path, files: dict[str, bytes], form: str, truth: Truth) -> None:
    truth.description["form"] = form
    if form == "folder":
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return
    truth.path = root / f"faces.{form}"
    if form == "zip":
        with zipfile.ZipFile(truth.path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return
    with tarfile.open(truth.path, "w:gz" if form == "tar.gz" else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
