"""Whatever names call an image, train, validation or test, it is that, or the data are refused."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import CLASS_FOLDERS, CSVS, Truth, class_folders, csvs, number_of

from fer_lightning.data.faces import TEST, TRAIN, VAL, Faces
from fer_lightning.data.fer2013 import load_faces, load_held_out
from fer_lightning.errors import UserError


def check(truth: Truth, cache: Path) -> None:
    """Read a layout for training and for evaluation, and compare with the truth."""
    for load in (load_faces, load_held_out):
        try:
            faces = load(truth.path, cache_dir=cache, **truth.settings)
        except UserError as error:
            if truth.sound:
                raise AssertionError(f"{truth.description} was refused") from error
            continue
        assert truth.sound, f"{truth.description} was not refused"
        numbers = [number_of(image) for image in faces.images]
        assert sorted(numbers) == sorted(truth.labels), truth.description  # every image, once
        assert [truth.labels[number] for number in numbers] == faces.labels.tolist(), truth.description
        usages = {number: int(usage) for number, usage in zip(numbers, faces.usage, strict=True)}
        _check_splits(truth, usages, faces, whole=load is load_held_out)


def _check_splits(truth: Truth, usages: dict[int, int], faces: Faces, whole: bool) -> None:
    named = {usage for usage in truth.usages.values() if usage is not None}
    note = " ".join(faces.notes)
    if not named and whole:
        assert set(usages.values()) == {TEST}
        assert "all" in note
        return
    # load_held_out cuts nothing from training images.
    cut = set() if whole else {VAL, TEST} - named
    for number, usage in usages.items():
        true = truth.usages[number]
        if true is None:
            assert not named, truth.description
        elif true == TRAIN and usage != TRAIN:  # only cut by us where the data name no such split, and said
            assert usage in cut, truth.description
            assert f"{faces.split_names[usage]} (" in note, truth.description
            assert "cut from train" in note
        else:
            assert usage == true, truth.description
    sides: dict[str, set[int]] = {}
    for number, person in truth.persons.items():
        sides.setdefault(person, set()).add(usages[number])
    assert all(len(found) == 1 for found in sides.values()), truth.description


def feed(n_layouts: int) -> None:
    """Check about n layouts, equally many of each kind."""
    kinds = [(class_folders, kind) for kind in CLASS_FOLDERS] + [(csvs, kind) for kind in CSVS]
    with tempfile.TemporaryDirectory() as parent:
        count = 0

        def check_kind(write: Callable[[Path, str], st.SearchStrategy[Truth]], kind: str) -> None:
            @settings(
                max_examples=n_layouts // len(kinds),
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(st.data())
            def layouts(data: st.DataObject) -> None:
                nonlocal count
                count += 1
                root = Path(parent, f"faces {count}")
                root.mkdir()
                check(data.draw(write(root, kind)), Path(parent, f"cache {count}"))

            layouts()

        for write, kind in kinds:
            check_kind(write, kind)
        assert count >= n_layouts


def test_splits_are_as_named_or_refused_in_100_layouts() -> None:
    feed(100)


@pytest.mark.slow
def test_splits_are_as_named_or_refused_in_2000_layouts() -> None:
    feed(2000)
