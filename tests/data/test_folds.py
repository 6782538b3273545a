"""Folds of the training images: every image validates once, and no copy or person is on both sides."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from layouts import picture
from PIL import Image

from fer_lightning.data import folds as module
from fer_lightning.data.augment import NoAugment
from fer_lightning.data.balance import class_weights
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.data.faces import TEST, TRAIN, VAL, Faces, revise, select_rows
from fer_lightning.data.fer2013 import load_faces
from fer_lightning.data.folds import FOLD, assign_folds, find_groups, hold_out
from fer_lightning.data.near_copies import near_copies
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.errors import UserError

DRAWN = synthetic_faces(140, 14, 14)  # without copies: images 0 to 139 are TRAIN
Pixels = npt.NDArray[np.uint8]


def jpeg(pixels: Pixels) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def faces_of(images: Sequence[Pixels], usage: Sequence[int] | None = None) -> Faces:
    n = len(images)
    return revise(
        DRAWN,
        images=np.stack(images),
        labels=np.arange(n, dtype=np.int64) % 7,
        usage=np.array([TRAIN] * n if usage is None else usage, np.uint8),
        ids=[str(i) for i in range(n)],
    )


def data_of(faces: Faces, fold: str | None, **settings: object) -> FaceDataModule:
    return FaceDataModule(faces, NoAugment(), image_size=48, fold=fold, **settings)  # type: ignore[arg-type]


def test_every_training_image_validates_once_and_the_tests_stay() -> None:
    validated = []
    for number in range(5):
        data = data_of(DRAWN, f"{number}/5", seed=number)  # the seed of the run does not matter
        train, val = data.rows(data.train_usages).tolist(), data.rows(data.val_usages).tolist()
        assert sorted(train + val) == np.flatnonzero(DRAWN.usage == TRAIN).tolist()
        assert data.val_dataloader().sampler.rows.tolist() == val
        assert data.train_dataloader().sampler.rows.tolist() == train
        assert data.test_dataloader().sampler.rows.tolist() == np.flatnonzero(DRAWN.usage != TRAIN).tolist()
        assert (data.val_split, data.test_split) == (f"train fold {number}/5", "test")
        validated += val
    assert sorted(validated) == np.flatnonzero(DRAWN.usage == TRAIN).tolist()


def test_the_fold_also_selects_in_the_protocol_of_the_kaggle_folder() -> None:
    data = data_of(DRAWN, "1/2", split="kaggle_folder")
    assert (data.val_split, data.test_split) == ("train fold 1/2", "validation+test")
    assert set(DRAWN.usage[data.rows(data.val_usages)].tolist()) == {TRAIN}


@pytest.mark.parametrize("n", [2, 3, 7])
def test_folds_have_equal_sizes_and_shares_of_the_classes(n: int) -> None:
    keep = np.ones(len(DRAWN), bool)
    keep[np.flatnonzero(DRAWN.labels == 1)[:17]] = False  # a rare class
    faces = select_rows(DRAWN, keep)
    folds = assign_folds(faces, n)
    training = faces.usage == TRAIN
    assert set(folds[~training].tolist()) == {-1}
    sizes = np.bincount(folds[training], minlength=n)
    assert sizes.max() - sizes.min() <= 1
    for label in range(7):
        counts = np.bincount(folds[training & (faces.labels == label)], minlength=n)
        assert counts.max() - counts.min() <= 1


def test_copies_of_every_kind_share_a_fold() -> None:
    originals = list(DRAWN.images[:60])
    changed = [x for image in originals for x in (image.copy(), image[:, ::-1], jpeg(image))]
    faces = faces_of([*originals, *changed])
    folds = assign_folds(faces, 5)
    np.testing.assert_array_equal(folds[60:].reshape(60, 3), np.repeat(folds[:60, None], 3, axis=1))
    assert (np.bincount(folds) == 48).all()


def test_groups_are_transitive_also_through_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # 0 = 5 (pixels) ~ 1 ~ 2 (test) ~ 3, but 0 is unlike 3.
    images = [*DRAWN.images[:5], DRAWN.images[0], *DRAWN.images[6:30]]
    faces = faces_of(images, [TRAIN, TRAIN, TEST, *[TRAIN] * 27])
    monkeypatch.setattr(module, "near_copies", lambda _: np.array([[0, 1], [1, 2], [2, 3]]))
    assert np.flatnonzero(find_groups(faces) == 0).tolist() == [0, 1, 2, 3, 5]
    for n in range(2, 20):
        folds = assign_folds(faces, n)
        assert len(set(folds[[0, 1, 3, 5]].tolist())) == 1
        assert folds[2] == -1


def test_images_without_a_label_connect_too() -> None:
    """With FER+'s labels, an image without a majority is left out of the faces, but not of the whole."""
    whole = faces_of(list(DRAWN.images[:9]))
    keep = np.ones(9, bool)
    keep[4] = False
    faces = select_rows(replace(whole, whole=whole), keep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "near_copies", lambda _: np.array([[2, 4], [4, 8]]))
        groups = find_groups(faces)
    assert np.flatnonzero(groups == groups[2]).tolist() == [2, 7]  # row 8 of the whole is row 7


@pytest.mark.parametrize("top", ["", "train/"])
def test_a_person_is_in_one_fold_whatever_the_classes(top: str, tmp_path: Path) -> None:
    parts = [f"{top}{name}/person{p}" for p in range(12) for name in ("bored", "calm")]
    parts += [f"{split}/{name}/x" for split in ("val", "test") for name in ("bored", "calm")] if top else []
    for at, folder in enumerate(parts):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(2):
            (tmp_path / folder / f"{2 * at + i}.png").write_bytes(picture(2 * at + i))
    faces = load_faces(tmp_path, download=False, classes=["bored", "calm"])
    folds = assign_folds(faces, 3)
    training = faces.usage == TRAIN
    sides: dict[str, set[int]] = {}
    for row in np.flatnonzero(training):
        sides.setdefault(faces.ids[row].split("/")[-2], set()).add(int(folds[row]))
    assert len(sides) > 5
    assert all(len(found) == 1 for found in sides.values())
    persons = np.bincount([found.pop() for found in sides.values()])
    assert persons.max() - persons.min() <= 1


def test_folds_depend_on_neither_names_nor_order() -> None:
    order = np.random.default_rng(0).permutation(len(DRAWN))
    shuffled = revise(
        DRAWN,
        images=DRAWN.images[order],
        labels=DRAWN.labels[order],
        usage=DRAWN.usage[order],
        ids=[f"other{i}" for i in range(len(DRAWN))],
    )
    np.testing.assert_array_equal(assign_folds(shuffled, 5), assign_folds(DRAWN, 5)[order])
    usage = hold_out(DRAWN, "2/5")
    np.testing.assert_array_equal(usage == FOLD, assign_folds(DRAWN, 5) == 2)
    assert set(DRAWN.usage.tolist()) == {TRAIN, VAL, TEST}  # unchanged


def test_class_weights_count_the_training_part_only() -> None:
    labels = DRAWN.labels.copy()
    labels[:30] = 0
    data = data_of(revise(DRAWN, labels=labels), "0/3", class_weights="balanced")
    part = torch.from_numpy(labels)[data.rows(data.train_usages)]
    expected = class_weights("balanced", part, DRAWN.classes)
    assert expected is not None
    assert data.class_weights is not None
    torch.testing.assert_close(data.class_weights, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "fold",
    ["5/5", "-1/5", "0/1", "0/0", "a/b", "0", "", "0/5/2", "0.5/2", "1/ 5", "\u0660/\u0665", "0/9999999999", 0],
)
def test_bad_folds_are_refused(fold: str) -> None:
    with pytest.raises(UserError, match="expected K/N, with N of at least 2 folds and K from 0 to N - 1") as caught:
        hold_out(DRAWN, fold)
    assert str(caught.value).startswith(f"data.fold={fold}: ")


def test_more_folds_than_groups_are_refused() -> None:
    faces = faces_of([*DRAWN.images[:6], *DRAWN.images[:6]])
    assert sorted(np.bincount(assign_folds(faces, 6)).tolist()) == [2] * 6
    with pytest.raises(UserError, match=r"data\.fold=K/7: the 12 images of train form only 6 groups"):
        assign_folds(faces, 7)


def test_a_fold_without_an_image_of_a_class_is_refused() -> None:
    keep = np.ones(len(DRAWN), bool)
    keep[np.flatnonzero((DRAWN.labels == 1) & (DRAWN.usage == TRAIN))[3:]] = False
    faces = select_rows(DRAWN, keep)
    empty = [k for k in range(5) if not (faces.labels[assign_folds(faces, 5) == k] == 1).any()]
    assert len(empty) == 2
    message = rf"data\.fold={empty[0]}/5: of the 3 images of disgust, 0 are in the fold and 3 outside"
    with pytest.raises(UserError, match=message):
        hold_out(faces, f"{empty[0]}/5")
    assert (hold_out(faces, "0/3") == FOLD).any()


def test_no_copy_crosses_a_fold_of_fer2013(real_data: str) -> None:
    faces = load_faces(real_data, download=False)
    folds = assign_folds(faces, 5)
    training = faces.usage == TRAIN
    sides: dict[bytes, set[int]] = {}
    for row in np.flatnonzero(training):
        sides.setdefault(faces.images[row].tobytes(), set()).add(int(folds[row]))
    assert len(sides) < training.sum() - 1000  # there are copies
    assert all(len(found) == 1 for found in sides.values())
    pairs = near_copies(faces)
    pairs = pairs[training[pairs].all(axis=1)]
    assert len(pairs) > 4000
    np.testing.assert_array_equal(folds[pairs[:, 0]], folds[pairs[:, 1]])
    sizes = np.bincount(folds[training])
    assert (sizes.sum(), len(sizes)) == (28709, 5)
    assert sizes.max() - sizes.min() <= 5
    for label in range(7):
        counts = np.bincount(folds[training & (faces.labels == label)])
        assert counts.max() - counts.min() <= 5
