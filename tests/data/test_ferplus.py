"""Labels of FER+: the protocol, where the votes come from, and which image they belong to."""

import csv
import hashlib
import io
import random
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from fake_fer2013 import (
    FakeFace,
    encode,
    fake_faces,
    write_fer2013_csv,
    write_ferplus_folders,
    write_folder,
    write_train_csv,
    write_zip,
)

from fer_lightning.data import ferplus, votes
from fer_lightning.data.classes import restrict
from fer_lightning.data.faces import FER2013_SPLITS, TEST, TRAIN, VAL, Faces
from fer_lightning.data.fer2013 import load_faces, load_held_out
from fer_lightning.data.votes import COLUMNS, EMOTIONS, Votes, find_votes, majority, read_votes
from fer_lightning.emotions import EMOTIONS as FER2013
from fer_lightning.errors import UserError
from fer_lightning.evaluation.scores import Predictions, score_splits

HEADER = [
    "Usage",
    "Image name",
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
    "unknown",
    "NF",
]
PER_CLASS = (6, 3, 3)
ROWS = tuple(7 * n for n in PER_CLASS)
FACES = sorted(fake_faces(PER_CLASS), key=lambda face: (face.usage, random.Random(face.path).random()))
OF_FERPLUS = [EMOTIONS.index(name) for name in FER2013]  # FER-2013's classes as columns of the votes


def agreeing(face: FakeFace, row: int) -> list[int]:
    """Return the votes of a face: mostly for its label, in one of six cases for the next emotion."""
    counts = [0] * 10
    column = OF_FERPLUS[face.label]
    counts[(column + 1) % 8 if row % 6 == 0 else column] = 7
    counts[row % 8] += 3
    return counts


COUNTS = [agreeing(face, row) for row, face in enumerate(FACES)]


def write_votes(path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def vote_rows(faces: Sequence[FakeFace] = FACES, counts: Sequence[Sequence[int]] = COUNTS) -> list[list[object]]:
    return [
        [FER2013_SPLITS[face.usage], f"fer{row:07d}.png", *votes]
        for row, (face, votes) in enumerate(zip(faces, counts, strict=True))
    ]


def digest_of_names(rows: Sequence[Sequence[object]]) -> str:
    return hashlib.sha256("\n".join(str(row[1]) for row in rows).encode()).hexdigest()


def of_emotions(**counts: int) -> list[int]:
    return [counts.get(name, 0) for name in COLUMNS]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make FER-2013 as small as FACES, and let no test reach for the network."""
    monkeypatch.setattr(votes, "ROWS", ROWS)
    monkeypatch.setattr(votes, "NAMES_SHA256", digest_of_names(vote_rows()))
    monkeypatch.setattr(ferplus, "_BLOCK", 14)

    def refuse(*_: object, **__: object) -> object:
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the table of the Kaggle names have those of FACES."""
    rows = {Path(face.path).stem.lower(): [row] for row, face in enumerate(FACES)}
    monkeypatch.setattr(ferplus, "_kaggle_rows", lambda: dict(rows))


def read(path: Path, **settings: object) -> Faces:
    return load_faces(path, labels="ferplus", **settings)  # type: ignore[arg-type]


def error_of(path: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    assert "\n  " not in str(caught.value)
    return str(caught.value)


def labels_by_pixels(faces: Faces) -> dict[bytes, str]:
    return {image.tobytes(): faces.classes[label] for image, label in zip(faces.images, faces.labels, strict=True)}


def expected(counts: Sequence[Sequence[int]] = COUNTS, faces: Sequence[FakeFace] = FACES) -> dict[bytes, str]:
    top = majority(np.array(counts, np.uint8))
    return {
        face.pixels.tobytes(): EMOTIONS[column] for face, column in zip(faces, top, strict=True) if 0 <= column < 8
    }


# The protocol


@pytest.mark.parametrize(
    ("counts", "label"),
    [
        (of_emotions(happy=10), "happy"),
        (of_emotions(happy=6, sad=4), "happy"),
        (of_emotions(happy=5, sad=5), None),
        (of_emotions(happy=5, sad=2, fear=3), None),
        (of_emotions(happy=5, sad=1, fear=1, angry=3), "happy"),  # 5 of 8, because single votes do not count
        (of_emotions(happy=3, sad=2, fear=1, angry=1, neutral=1, disgust=1, contempt=1), "happy"),
        (of_emotions(unknown=6, happy=4), "unknown"),
        (of_emotions(NF=10), "NF"),
        (of_emotions(contempt=6, unknown=4), "contempt"),
        (of_emotions(neutral=1, happy=1, surprise=1, sad=1, angry=1, disgust=1, fear=1, contempt=1), None),
    ],
)
def test_majority_is_that_of_the_paper(counts: list[int], label: str | None) -> None:
    [column] = majority(np.array([counts], np.uint8))
    assert (COLUMNS[column] if column >= 0 else None) == label


def test_a_csv_has_the_labels_of_the_majority(tmp_path: Path) -> None:
    write_votes(tmp_path / "fer2013new.csv", vote_rows())
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    faces = read(path)
    assert (faces.dataset, faces.classes, faces.split_names) == ("FER+", EMOTIONS, FER2013_SPLITS)
    assert labels_by_pixels(faces) == expected()
    assert [int((faces.usage == split).sum()) for split in (TRAIN, VAL, TEST)] == list(ROWS)
    assert (faces.targets, faces.votes) == (None, None)
    own = load_faces(path)
    assert (own.dataset, own.classes) == ("FER-2013", FER2013)
    assert own.fingerprint != faces.fingerprint


def test_images_without_a_majority_for_an_emotion_are_left_out_and_counted(tmp_path: Path) -> None:
    counts = [list(row) for row in COUNTS]
    counts[0] = of_emotions(happy=5, sad=5)
    counts[1] = of_emotions(unknown=9, sad=1)
    counts[2] = of_emotions(NF=10)
    write_votes(tmp_path / "fer2013new.csv", vote_rows(counts=counts))
    faces = read(write_fer2013_csv(tmp_path / "fer2013.csv", FACES))
    assert labels_by_pixels(faces) == expected(counts)
    assert faces.notes[-1] == (
        "Labels of FER+ (data.targets=majority) for 81 of 84 images; left out: 1 no face, 1 unknown, "
        "1 without a majority."
    )


def test_targets_are_the_shares_of_the_votes(tmp_path: Path) -> None:
    counts = [list(row) for row in COUNTS]
    counts[0] = of_emotions(happy=5, sad=4, fear=1)  # a majority only because the single vote does not count
    counts[1] = of_emotions(happy=4, sad=4, unknown=2)  # no majority, but mostly emotions
    counts[2] = of_emotions(happy=2, sad=2, fear=2, unknown=4)  # mostly emotions, too
    counts[3] = of_emotions(happy=3, unknown=3, NF=3)
    counts[ROWS[0]] = of_emotions(happy=4, sad=4, unknown=2)  # PublicTest has only majorities
    write_votes(tmp_path / "fer2013new.csv", vote_rows(counts=counts))
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    faces = read(path, targets="votes")
    assert faces.targets is not None
    assert faces.targets.dtype == np.float32
    np.testing.assert_allclose(faces.targets.sum(axis=1), 1, atol=1e-6)
    shares = [dict(zip(EMOTIONS, row.tolist(), strict=True)) for row in faces.targets[:4]]
    assert [{name: round(p, 4) for name, p in row.items() if p} for row in shares[:3]] == [
        {"happy": 0.5556, "sad": 0.4444},
        {"happy": 0.5, "sad": 0.5},
        {"happy": 0.3333, "sad": 0.3333, "fear": 0.3333},
    ]
    assert faces.classes[faces.labels[0]] == "happy"
    assert faces.images[3].tobytes() == FACES[4].pixels.tobytes()
    held_out = read(path)
    for split in (VAL, TEST):
        for name in ("images", "labels"):
            one, other = (getattr(each, name)[each.usage == split] for each in (faces, held_out))
            np.testing.assert_array_equal(one, other)
    assert "(data.targets=votes) for 82 of 84 images; left out: 2 without a majority." in faces.notes[-1]


def test_the_targets_belong_to_the_fingerprint(tmp_path: Path) -> None:
    other = [list(row) for row in COUNTS]
    other[0] = [n - 1 if n > 5 else n for n in other[0]]  # the same majority
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    found = {
        read(path, targets="votes", ferplus=write_votes(tmp_path / name, vote_rows(counts=counts))).fingerprint
        for name, counts in (("a.csv", COUNTS), ("b.csv", other))
    }
    assert len(found) == 2


def test_classes_are_merged_and_left_out_by_rename(tmp_path: Path) -> None:
    write_votes(tmp_path / "fer2013new.csv", vote_rows())
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    faces = read(path, targets="votes", rename={"contempt": None, "disgust": "angry"})
    assert faces.classes == ("neutral", "happy", "surprise", "sad", "angry", "fear")
    assert faces.targets is not None
    by_image = dict(zip(map(np.ndarray.tobytes, faces.images), faces.targets, strict=True))
    for face, counts in zip(FACES, COUNTS, strict=True):
        kept = dict(zip(COLUMNS, (0 if n == 1 else n for n in counts), strict=True))
        emotions = {name: kept[name] for name in faces.classes} | {"angry": kept["angry"] + kept["disgust"]}
        top = max(kept, key=kept.__getitem__)
        found = by_image.get(face.pixels.tobytes())
        if found is None:
            assert top == "contempt"
        else:
            share = np.array([emotions[name] for name in faces.classes]) / sum(emotions.values())
            np.testing.assert_allclose(found, share, atol=1e-6)
            assert top != "contempt"
    assert "contempt by data.rename" in faces.notes[-1]
    message = error_of(path, classes="fer2013")
    assert "contempt is none of the classes" in message
    assert "data.rename={contempt: null}" in message
    message = error_of(path, classes=["neutral", "happy", "sad"])
    assert "surprise, angry, disgust, fear, contempt are none of the classes neutral, happy, sad." in message
    assert "data.rename={surprise: null, angry: null, disgust: null, fear: null, contempt: null}" in message
    assert read(path, classes="fer2013", rename={"contempt": None}).classes == FER2013
    assert "data.rename: the data have no class 'hapy'. Did you mean happy?" in error_of(
        path, rename={"hapy": None}
    )
    assert set(read(path, classes="folders").classes) == set(EMOTIONS)


def test_relabelled_and_excluded_images_have_their_targets(tmp_path: Path) -> None:
    write_votes(tmp_path / "fer2013new.csv", vote_rows())
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    faces = read(path, targets="votes")
    assert faces.targets is not None
    (tmp_path / "labels.csv").write_text(f"{faces.ids[1]},contempt\n")
    (tmp_path / "exclude.txt").write_text(f"{faces.ids[0]}\n")
    changed = read(path, targets="votes", relabel=tmp_path / "labels.csv", exclude=tmp_path / "exclude.txt")
    assert changed.targets is not None
    assert changed.targets[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    np.testing.assert_array_equal(changed.targets[1:], faces.targets[2:])


def test_lists_of_images_may_name_those_without_a_majority(tmp_path: Path) -> None:
    counts = [list(row) for row in COUNTS]
    counts[0] = of_emotions(happy=5, sad=5)
    write_votes(tmp_path / "fer2013new.csv", vote_rows(counts=counts))
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    (tmp_path / "exclude.txt").write_text("fer2013.csv:2\nfer2013.csv:3\n")
    faces = read(path, exclude=tmp_path / "exclude.txt")
    assert faces.ids[0] == "fer2013.csv:4"
    assert faces.notes[-1] == "data.exclude dropped 1 images."
    (tmp_path / "labels.csv").write_text("fer2013.csv:2,sad\nfer2013.csv:4,contempt\n")
    message = error_of(path, relabel=tmp_path / "labels.csv")
    assert "1 of the images have no label of FER+ and are left out: fer2013.csv:2. Remove their lines." in message
    (tmp_path / "exclude.txt").write_text("fer2013.csv:99\n")
    with pytest.raises(UserError, match=r"unknown image ids \(1\):"):
        read(path, exclude=tmp_path / "exclude.txt")


@pytest.mark.parametrize("targets", ["majority", "votes"])
def test_a_copy_without_a_majority_is_a_leak_too(targets: str, tmp_path: Path) -> None:
    faces = [*FACES[:-2], replace(FACES[-2], pixels=FACES[0].pixels), replace(FACES[-1], pixels=FACES[1].pixels)]
    counts = [list(row) for row in COUNTS]
    counts[0] = of_emotions(unknown=10)
    write_votes(tmp_path / "fer2013new.csv", vote_rows(counts=counts))
    path = write_fer2013_csv(tmp_path / "fer2013.csv", faces)

    def leak_free(loaded: Faces) -> tuple[int, int]:
        rows = torch.from_numpy(np.flatnonzero(loaded.usage != TRAIN))
        predictions = Predictions(rows, torch.rand(len(rows), 8), torch.from_numpy(loaded.labels)[rows])
        scores = score_splits(predictions, loaded)["PrivateTest"]
        return scores["n"], scores["n_leak_free"]

    assert leak_free(read(path, targets=targets)) == (21, 19)
    seven = restrict(read(path), FER2013)
    assert leak_free(replace(seven, classes=EMOTIONS))[1] == leak_free(replace(seven, classes=EMOTIONS))[0] - 2
    (tmp_path / "exclude.txt").write_text("fer2013.csv:2\nfer2013.csv:3\n")
    assert leak_free(read(path, targets=targets, exclude=tmp_path / "exclude.txt")) == (21, 21)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": "fer+"}, "data.labels=fer+: expected fer2013 or ferplus"),
        ({"labels": "ferplus", "targets": "soft"}, "data.targets=soft: expected majority or votes"),
        ({"targets": "votes"}, "data.targets=votes needs data.labels=ferplus"),
        ({"ferplus": "a.csv"}, "data.ferplus=a.csv needs data.labels=ferplus"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, str], words: str, tmp_path: Path) -> None:
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    with pytest.raises(UserError, match=words.replace("+", r"\+")):
        load_faces(path, **settings)  # type: ignore[arg-type]


# Where the votes come from


@pytest.mark.parametrize("beside", ["fer2013new.csv", "ferplus/fer2013new.csv", "FERPlus/fer2013new.csv"])
def test_votes_beside_the_data(beside: str, tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "fer2013.zip", [])
    found = write_votes(tmp_path / beside, vote_rows())
    assert find_votes(None, archive, download=False) == found
    assert find_votes(None, tmp_path, download=False) == found


def test_votes_at_a_given_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = write_votes(tmp_path / "a" / "fer2013new.csv", vote_rows())
    write_votes(tmp_path / "fer2013new.csv", [])
    assert find_votes(given, tmp_path, True) == find_votes(given.parent, tmp_path, True) == given
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_votes("~/a", tmp_path, True) == given
    with pytest.raises(UserError, match=r"data.ferplus=b: b does not exist. Give fer2013new.csv"):
        find_votes("b", tmp_path, True)


def test_votes_are_downloaded_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write_votes(tmp_path / "source.csv", vote_rows()).read_bytes()
    requested = []

    def serve(url: str, timeout: float) -> io.BytesIO:
        requested.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr("urllib.request.urlopen", serve)
    with pytest.raises(UserError, match="is not the published file: its SHA-256 is"):
        find_votes(None, tmp_path, True, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(votes, "SHA256", hashlib.sha256(content).hexdigest())
    found = find_votes(None, tmp_path, True, tmp_path / "cache")
    assert (found, found.read_bytes()) == (tmp_path / "cache" / "fer2013new.csv", content)
    assert find_votes(None, tmp_path, False, tmp_path / "cache") == found
    assert requested == [votes.URL] * 2
    found.write_bytes(content[:-9])  # a damaged copy is not used
    find_votes(None, tmp_path, True, tmp_path / "cache")
    assert found.read_bytes() == content


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path) -> None:
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    for settings, reason in (({}, "their download failed"), ({"download": False}, "are not downloaded here")):
        message = error_of(path, **settings)
        assert reason in message
        assert f"Download {votes.URL}\nand put it beside the data, or give its path: data.ferplus=PATH" in message


def _damage(change: Callable[[list[list[object]]], object]) -> list[list[object]]:
    rows = vote_rows()
    change(rows)
    return rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (vote_rows()[:-1], "(42, 21, 20) rows by split, FER-2013 has (42, 21, 21)"),
        (_damage(lambda rows: rows[3].pop()), "line 5: expected a split, a name and 10 numbers of votes"),
        (_damage(lambda rows: rows[3].append(1)), "line 5"),
        (_damage(lambda rows: rows[3].__setitem__(4, "x")), "line 5"),
        (_damage(lambda rows: rows[3].__setitem__(4, -1)), "line 5"),
        (_damage(lambda rows: rows[3].__setitem__(4, 256)), "line 5"),
        (_damage(lambda rows: rows[3].__setitem__(slice(2, 12), [0] * 10)), "line 5"),
        (_damage(lambda rows: rows[3].__setitem__(0, "train")), "line 5"),
        (_damage(lambda rows: rows[3].clear()), "line 5"),
        (_damage(lambda rows: rows[3].__setitem__(slice(2, 4), [6, 5])), "line 5"),
        ([*vote_rows()[1:42], vote_rows()[0], *vote_rows()[42:]], "in another order"),
        (_damage(lambda rows: rows[3].__setitem__(1, "")), "other names of images"),
        ([], "(0, 0, 0) rows by split"),
    ],
)
def test_damaged_votes_are_refused(rows: list[list[object]], words: str, tmp_path: Path) -> None:
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    message = error_of(path, ferplus=write_votes(tmp_path / "votes.csv", rows))
    assert words in message
    assert "votes.csv" in message
    assert "Download https://" in message


def test_paths_that_cannot_be_read_are_a_users_mistake(tmp_path: Path) -> None:
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    message = error_of(path, ferplus="a" * 300)
    assert "The votes of FER+ cannot be read" in message
    assert "Download https://" in message


@pytest.mark.usefixtures("kaggle")
def test_votes_in_the_folder_of_an_archive_are_not_read_as_data(tmp_path: Path) -> None:
    write_zip(tmp_path / "fer2013.zip", FACES)
    write_votes(tmp_path / "fer2013new.csv", vote_rows())
    assert load_faces(tmp_path).dataset == "FER-2013"
    assert labels_by_pixels(read(tmp_path)) == expected()
    root = write_ferplus_folders(tmp_path / "FERPlus", FACES, COUNTS, boxes=True)  # as in its repository:
    for image in root.rglob("*.png"):
        image.unlink()
    assert labels_by_pixels(read(tmp_path)) == expected()
    (tmp_path / "fer2013.zip").unlink()
    assert "has no images, and no CSV or archive of any; it contains FERPlus/" in error_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"emotion,pixels,Usage\n", b"\xff\xfe\x00", b'"', bytes(100)])
def test_other_files_are_no_votes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "votes.csv").write_bytes(content)
    message = error_of(write_fer2013_csv(tmp_path / "fer2013.csv", FACES), ferplus=tmp_path / "votes.csv")
    assert "has other columns than FER+" in message or "cannot be read" in message


# Which image they belong to: the rows of CSVs


def test_csvs_for_each_split_and_without_usage(tmp_path: Path) -> None:
    given = write_votes(tmp_path / "votes.csv", vote_rows())
    (tmp_path / "parts").mkdir()
    (tmp_path / "alone").mkdir()
    for usage, name in enumerate(("train", "val", "test")):
        write_train_csv(tmp_path / "parts" / f"{name}.csv", [face for face in FACES if face.usage == usage])
    assert labels_by_pixels(read(tmp_path / "parts", ferplus=given)) == expected()
    whole = write_train_csv(tmp_path / "whole.csv", FACES)
    assert labels_by_pixels(read(whole, ferplus=given)) == expected()
    training = write_train_csv(tmp_path / "alone" / "train.csv", FACES[: ROWS[0]])
    faces = read(training, ferplus=given)
    assert labels_by_pixels(faces) == expected(COUNTS[: ROWS[0]], FACES[: ROWS[0]])
    assert set(faces.usage.tolist()) == {TRAIN, VAL, TEST}  # cut from it
    cut = read(training, ferplus=given, targets="votes")  # held-out images have a majority here, too
    assert len(cut) == len(faces)
    assert cut.targets is not None


def test_an_edited_csv_is_refused(tmp_path: Path) -> None:
    given = write_votes(tmp_path / "votes.csv", vote_rows())
    path = tmp_path / "fer2013.csv"
    for faces in (FACES[1:], FACES[:-1], [*FACES, FACES[-1]]):
        message = error_of(write_fer2013_csv(path, faces), ferplus=given)
        assert "FER-2013 has" in message
        assert "so none may be missing" in message
    for seed, part in enumerate((slice(0, 84), slice(0, 42), slice(42, 63), slice(63, 84))):
        mixed = list(FACES)
        mixed[part] = random.Random(seed).sample(mixed[part], len(mixed[part]))
        mixed.sort(key=lambda face: face.usage)
        message = error_of(write_fer2013_csv(path, mixed), ferplus=given)
        assert "no longer in the order of fer2013.csv, or their labels were changed" in message


def test_a_dropped_row_is_no_reason_to_guess(tmp_path: Path) -> None:
    given = write_votes(tmp_path / "votes.csv", vote_rows())
    path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    lines = path.read_text().splitlines()
    lines[5] = lines[5].replace(",", ",x", 1)
    path.write_text("\n".join(lines))
    assert "has 41 rows of Training, FER-2013 has 42" in error_of(path, ferplus=given, skip_bad=True)


# Names


@pytest.mark.usefixtures("kaggle")
def test_named_images_of_a_class_that_is_seldom_confirmed(tmp_path: Path) -> None:
    counts = [list(row) for row in COUNTS]
    fear = [row for row, face in enumerate(FACES) if face.label == FER2013.index("fear")]
    for row in fear[len(fear) // 3 :]:
        counts[row] = of_emotions(surprise=10)
    faces = [FACES[row] for row in fear]
    path = write_folder(tmp_path / "a", faces)
    given = write_votes(tmp_path / "votes.csv", vote_rows(counts=counts))
    assert labels_by_pixels(read(path, ferplus=given)) == expected([counts[row] for row in fear], faces)
    for row in fear:
        counts[row] = of_emotions(surprise=10)
    assert "their labels were changed" in error_of(
        path, ferplus=write_votes(tmp_path / "votes.csv", vote_rows(counts=counts))
    )


@pytest.mark.usefixtures("kaggle")
def test_the_names_of_the_kaggle_folders(tmp_path: Path) -> None:
    given = write_votes(tmp_path / "votes.csv", vote_rows())
    for path in (write_zip(tmp_path / "a.zip", FACES), write_folder(tmp_path / "a", FACES)):
        assert labels_by_pixels(read(path, ferplus=given)) == expected()
    part = read(write_folder(tmp_path / "part", FACES[::2]), ferplus=given)
    assert labels_by_pixels(part) == expected(COUNTS[::2], FACES[::2])
    renamed = [
        replace(face, path=face.path.replace(".jpg", ".PNG"), jpeg=encode(face.pixels, "PNG")) for face in FACES
    ]
    assert labels_by_pixels(read(write_folder(tmp_path / "png", renamed), ferplus=given)) == expected()


@pytest.mark.usefixtures("kaggle")
def test_images_with_other_names_are_refused(tmp_path: Path) -> None:
    given = write_votes(tmp_path / "votes.csv", vote_rows())
    for name in ("train/sad/me.jpg", "train/sad/Training_5.jpg", "train/sad/Training_5_copy.jpg"):
        path = write_folder(tmp_path / "a", [*FACES, replace(FACES[0], path=name)])
        message = error_of(path, ferplus=given)
        assert f"1 images that FER+ does not know by name: {name}" in message
        shutil.rmtree(path)


def test_names_that_occur_twice_are_told_apart_by_their_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = next(face for face in FACES if face.label == FER2013.index("surprise") and face.usage == TRAIN)
    other = next(face for face in FACES if face.label == FER2013.index("angry") and face.usage == TRAIN)
    name = Path(twice.path).name
    renamed = [replace(face, path=f"train/0_angry/{name}") if face is other else face for face in FACES]
    rows = {Path(face.path).stem.lower(): [row] for row, face in enumerate(FACES)}
    rows[Path(name).stem.lower()] = [FACES.index(other), FACES.index(twice)]  # in the order of the classes' names
    monkeypatch.setattr(ferplus, "_kaggle_rows", lambda: dict(rows))
    given = write_votes(tmp_path / "votes.csv", vote_rows())
    assert labels_by_pixels(read(write_folder(tmp_path / "a", renamed), ferplus=given)) == expected()
    alone = [face for face in renamed if face.pixels is not other.pixels]
    faces = read(write_folder(tmp_path / "b", alone), ferplus=given)
    assert "left out: 1 without votes." in faces.notes[-1]
    assert twice.pixels.tobytes() not in labels_by_pixels(faces)


def test_the_table_of_the_kaggle_names() -> None:
    rows_of = ferplus._kaggle_rows()
    rows = [row for found in rows_of.values() for row in found if row >= 0]
    assert (len(rows_of), sum(map(len, rows_of.values())), len(rows)) == (35885, 35887, 35712)
    assert sorted(name for name, found in rows_of.items() if len(found) > 1) == [
        "training_52789098",
        "training_8475486",
    ]
    assert rows_of["training_8475486"] == [24067, 27820]  # angry, surprise
    assert rows_of["privatetest_10131363"] == [33914]
    starts = dict(zip(("training", "publictest", "privatetest"), (0, 28709, 32298), strict=True))
    for name, found in rows_of.items():
        start = starts[name.partition("_")[0]]
        assert all(row < 0 or start <= row < start + (28709 if not start else 3589) for row in found)


def test_the_names_of_ferplus_in_class_folders(tmp_path: Path) -> None:
    given = write_votes(tmp_path / "votes.csv", vote_rows())
    named = [
        replace(face, path=f"{('train', 'val', 'test')[face.usage]}/{FER2013[face.label]}/fer{row:07d}.png")
        for row, face in enumerate(FACES)
    ]
    assert labels_by_pixels(read(write_folder(tmp_path / "a", named), ferplus=given)) == expected()
    moved = [replace(named[0], path=named[0].path.replace("train", "test")), *named[1:]]
    message = error_of(write_folder(tmp_path / "b", moved), ferplus=given)
    assert "disagree on the splits of 1 images: test/" in message
    assert "of Training in FER+" in message
    relabelled = [
        replace(face, path=face.path.replace(FER2013[face.label], FER2013[(face.label + 2) % 7])) for face in named
    ]
    assert "their labels were changed" in error_of(write_folder(tmp_path / "c", relabelled), ferplus=given)


def test_two_rows_of_one_name_mean_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = vote_rows()
    rows[7][1] = rows[1][1]
    monkeypatch.setattr(votes, "NAMES_SHA256", digest_of_names(rows))
    table = read_votes(write_votes(tmp_path / "votes.csv", rows))
    face = replace(FACES[1], path=f"train/{FER2013[FACES[1].label]}/fer0000001.png")
    faces = load_faces(write_folder(tmp_path / "a", [face]))
    assert ferplus.join(faces, table).tolist() == [1]


# FER+'s own folders


@pytest.mark.parametrize("boxes", [False, True])
def test_own_folders_are_read_as_they_are(boxes: bool, tmp_path: Path) -> None:
    root = write_ferplus_folders(tmp_path / "a", FACES, COUNTS, boxes)
    faces = read(root)
    assert (faces.dataset, faces.split_names, faces.classes) == ("FER+", FER2013_SPLITS, EMOTIONS)
    assert labels_by_pixels(faces) == expected()
    assert [int((faces.usage == split).sum()) for split in (TRAIN, VAL, TEST)] == list(ROWS)
    assert faces.ids[-1] == "FER2013Valid/fer0000062.png"
    write_votes(tmp_path / "fer2013new.csv", vote_rows())
    csv_path = write_fer2013_csv(tmp_path / "fer2013.csv", FACES)
    soft, same = read(root, targets="votes"), read(csv_path, targets="votes")
    assert soft.targets is not None
    assert same.targets is not None
    by_image = dict(zip(map(np.ndarray.tobytes, same.images), same.targets.tolist(), strict=True))
    assert by_image == dict(zip(map(np.ndarray.tobytes, soft.images), soft.targets.tolist(), strict=True))
    assert read(root).fingerprint == faces.fingerprint  # from the cache


def test_own_folders_in_a_zip_and_alone(tmp_path: Path) -> None:
    root = write_ferplus_folders(tmp_path / "a", FACES, COUNTS)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, f"data/{file.relative_to(root)}")
    assert labels_by_pixels(read(tmp_path / "a.zip")) == expected()
    alone = read(root / "FER2013Train")
    assert labels_by_pixels(alone) == expected(COUNTS[: ROWS[0]], FACES[: ROWS[0]])
    assert (alone.dataset, set(alone.usage.tolist())) == ("folder", {TRAIN, VAL, TEST})


def test_own_folders_have_no_other_labels(tmp_path: Path) -> None:
    root = write_ferplus_folders(tmp_path / "a", FACES, COUNTS)
    for load in (load_faces, load_held_out):
        with pytest.raises(UserError, match=r"has the votes of FER\+, not the labels .* Set data.labels=ferplus"):
            load(root)  # type: ignore[operator]
    message = error_of(root, ferplus=write_votes(tmp_path / "votes.csv", vote_rows()))
    assert "has votes itself. Leave data.ferplus out" in message


def test_faults_of_own_folders(tmp_path: Path) -> None:
    root = write_ferplus_folders(tmp_path / "a", FACES, COUNTS)
    path = root / "FER2013Train" / "label.csv"
    lines = path.read_text().splitlines()
    (root / "FER2013Train" / "fer0000002.png").write_bytes(b"no image")
    path.write_text("\n".join(["fer9999999.png,1,2,3,4,0,0,0,0,0,0", lines[0].replace(",7", ",x"), *lines[1:]]))
    with pytest.raises(UserError) as caught:
        read(root)
    message = str(caught.value)
    assert "3 faults" in message
    assert "FER2013Train/label.csv, line 1: 'fer9999999.png' is not in the same folder" in message
    assert "line 2: expected a name, a box and ten votes, got 'fer0000000.png," in message
    assert "FER2013Train/label.csv, line 4: " in message
    faces = read(root, skip_bad=True)
    assert len(faces) == 82
    assert labels_by_pixels(faces).items() <= expected().items()
    path.write_text("\n".join([*lines[:1], *lines[:1], *lines[3:]]))
    faces = read(root)
    assert len(faces) == 82
    assert "1 lines of the lists of votes name an image again; the first one was read." in faces.notes
    assert "2 images that are in no list of votes were not read." in faces.notes
    path.write_text("\n".join(line.replace(".png,", ".png,0,") for line in lines))  # a column too many
    assert "contains FER2013Train/label.csv, by name a split of a dataset, beside other data" in error_of(root)
    path.write_bytes(b"\n".join(line.encode() for line in lines) + b"\nfer0000001.png,\xff,1,2,3,4,5,6,7,8,9\n")
    assert "FER2013Train/label.csv" in error_of(root)


def test_own_folders_that_name_no_split_or_several(tmp_path: Path) -> None:
    root = write_ferplus_folders(tmp_path / "a", FACES, COUNTS)
    shutil.copytree(root / "FER2013Train", root / "backup" / "train")
    assert "for one split. Give the path of one dataset." in error_of(root)
    shutil.rmtree(root / "backup")
    train = [root / "FER2013Train" / f"fer000000{number}.png" for number in (0, 1)]
    for image in train:
        shutil.copy(image, root)
    lines = (root / "FER2013Train" / "label.csv").read_text().splitlines()
    (root / "label.csv").write_text("\n".join(lines[:2]))
    assert "has label.csv, which no folder gives a split, beside FER2013Test/label.csv" in error_of(root)
    (root / "label.csv").unlink()
    note = "2 images in folders without a list of votes were not read: .."
    assert note in read(root).notes
    assert note in read(root).notes  # from the cache
    (root / "FER2013Valid" / "label.csv").write_text("")
    assert "FER2013Valid/label.csv" in error_of(root)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["label.csv", "fer0000000.png"])
def test_doubled_names_in_an_archive_are_refused(name: str, tmp_path: Path) -> None:
    root = write_ferplus_folders(tmp_path / "a", FACES, COUNTS)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in [*sorted(root.rglob("*.*")), root / "FER2013Train" / name]:
            archive.write(file, file.relative_to(root))
    assert f"contains FER2013Train/{name} more than once. Keep one of each." in error_of(tmp_path / "a.zip")


def test_other_numbers_beside_images_are_no_votes(tmp_path: Path) -> None:
    root = write_ferplus_folders(
        tmp_path / "a", FACES, [[69, 109, 106, 113, 77, 142, 73, 152, 10, 154]] * len(FACES)
    )
    assert "has images, but none in a folder named after a class" in error_of(root)


# Evaluation


@pytest.mark.usefixtures("kaggle")
def test_held_out_images_have_the_labels_of_the_majority(tmp_path: Path) -> None:
    write_votes(tmp_path / "fer2013new.csv", vote_rows())
    path = write_zip(tmp_path / "fer2013.zip", FACES)
    for networks in ([FER2013], [EMOTIONS], [FER2013, EMOTIONS]):
        faces = load_held_out(path, networks=networks, labels="ferplus")
        assert labels_by_pixels(faces) == expected()
        assert set(faces.classes) == set(EMOTIONS)


@pytest.mark.parametrize("targets", ferplus.TARGETS)
def test_splits_that_were_cut_for_training_are_found_again(targets: str, tmp_path: Path) -> None:
    root = write_ferplus_folders(tmp_path / "a", FACES, COUNTS)
    plain = (root / "FER2013Train").rename(tmp_path / "plain")
    trained = read(plain, targets=targets)
    faces = load_held_out(plain, networks=[trained.classes], trained_on=[trained.fingerprint], labels="ferplus")
    np.testing.assert_array_equal(faces.usage, trained.usage)
    assert faces.targets is None
    other = load_held_out(plain, networks=[trained.classes], trained_on=["0"], labels="ferplus")
    assert set(other.usage.tolist()) == {TEST}


# The real ones

_REAL = {name: getattr(votes, name) for name in ("ROWS", "NAMES_SHA256")}


def _use_real(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _REAL.items():
        monkeypatch.setattr(votes, name, value)


def test_protocol_counts_of_the_real_votes(real_votes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use_real(monkeypatch)
    assert hashlib.sha256(real_votes.read_bytes()).hexdigest() == votes.SHA256
    table = read_votes(real_votes)
    top = majority(table.counts)
    kept = (top >= 0) & (top < 8)
    assert np.bincount(table.usage[kept]).tolist() == [25060, 3199, 3153]


def test_protocol_counts_of_the_real_kaggle_zip(
    real_data: str, real_votes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use_real(monkeypatch)
    own = load_faces(real_data, download=False)
    rows = ferplus.join(own, table := read_votes(real_votes))
    known = rows >= 0
    assert known.sum() == 35712
    np.testing.assert_array_equal(own.usage[known], table.usage[rows[known]])
    faces = read(Path(real_data), download=False)
    assert np.bincount(faces.usage).tolist() == [25059, 3199, 3152]
    assert np.bincount(faces.labels[faces.usage == TEST]).tolist() == [1089, 893, 396, 384, 273, 18, 83, 16]
    of = dict(zip(own.ids, (own.classes[label] for label in own.labels), strict=True))
    same = [of[name] == faces.classes[label] for name, label in zip(faces.ids, faces.labels, strict=True)]
    assert (sum(same), len(same)) == (21219, 31410)
    soft = read(Path(real_data), download=False, targets="votes")
    assert np.bincount(soft.usage).tolist() == [28415, 3199, 3152]
    shuffled = replace(own, labels=own.labels[np.random.default_rng(0).permutation(len(own))])
    with pytest.raises(UserError, match="or their labels were changed"):
        ferplus.join(shuffled, table)
    assert isinstance(table, Votes)
