"""Weights of the classes in the loss, and epochs in which all classes are equally frequent."""

from collections import Counter

import numpy as np
import pytest
import torch

from fer_lightning.data.augment import BatchAugment, NoAugment
from fer_lightning.data.balance import balanced_epoch, class_weights
from fer_lightning.data.datamodule import EpochBatches, FaceDataModule
from fer_lightning.data.faces import select_rows
from fer_lightning.data.synthetic import synthetic_faces
from fer_lightning.errors import UserError

LABELS = torch.tensor([0] * 12 + [1] * 6 + [3] * 2)  # none of class 2
CLASSES = ("a", "b", "c", "d")
ROWS = torch.arange(5, 25)


def test_balanced_weights_give_every_class_the_same_sum():
    weights = class_weights("balanced", LABELS, CLASSES)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([20 / (3 * 12), 20 / (3 * 6), 0, 20 / (3 * 2)])
    assert weights[LABELS].mean().item() == pytest.approx(1)


def test_given_weights_keep_their_ratios_and_none_means_none():
    weights = class_weights([1, 2, 5, 0], LABELS, CLASSES)
    assert weights[LABELS].mean().item() == pytest.approx(1)
    assert (weights / weights[0]).tolist() == pytest.approx([1, 2, 5, 0])
    assert class_weights("none", LABELS, CLASSES) is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("balance", "data.class_weights=balance: expected none, balanced, or a number for each class"),
        ([1, 2], "data.class_weights has 2 numbers for 4 classes. Give one for each of a, b, c, d, in this order"),
        ([1, 2, -1, 1], "expected numbers of at least 0"),
        ([1, 2, float("nan"), 1], "expected numbers of at least 0"),
        ([0, 0, 1, 0], "no training image would count"),
    ],
)
def test_wrong_weights_are_one_line(setting, message):
    with pytest.raises(UserError) as error:
        class_weights(setting, LABELS, CLASSES)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_class_is_equally_frequent_and_every_image_of_a_class_equally_often_drawn():
    total = Counter()
    for epoch in range(6):
        rows, copies = balanced_epoch(3, epoch, ROWS, LABELS)
        assert torch.bincount(LABELS[rows - 5]).tolist() == [7, 7, 0, 6]
        drawn = list(zip(rows.tolist(), copies.tolist(), strict=True))
        assert len(set(drawn)) == len(drawn) == 20  # so that each draw of an image is augmented anew
        total.update(rows.tolist())
    for label in (0, 1, 3):
        times = [total[row] for row in ROWS[label == LABELS].tolist()]
        assert max(times) - min(times) <= 1


def test_an_epoch_depends_on_seed_and_number_only():
    first, again = balanced_epoch(3, 1, ROWS, LABELS), balanced_epoch(3, 1, ROWS, LABELS)
    assert all(map(torch.equal, first, again))
    for other in (balanced_epoch(3, 2, ROWS, LABELS), balanced_epoch(4, 1, ROWS, LABELS)):
        assert not torch.equal(first[0], other[0])


def test_processes_and_batch_sizes_share_a_balanced_epoch():
    def draws(**options):
        return torch.cat(list(EpochBatches(ROWS, **options, seed=1, balance=LABELS, stride=25))).tolist()

    whole = draws(batch_size=6)
    assert draws(batch_size=20) == whole
    parts = [draws(batch_size=6, rank=rank, world_size=2) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    assert max(whole) >= 25  # some image is drawn more than once


def unequal_faces():
    """Two faces of the second class and ten of every other to train on."""
    faces = synthetic_faces(n_train=70, n_val=7, n_test=7)
    spare = np.flatnonzero((faces.labels == 1) & (faces.usage == 0))[2:]
    return select_rows(faces, ~np.isin(np.arange(84), spare))


def test_a_balanced_loader_augments_each_draw_of_an_image_anew():
    faces = unequal_faces()
    data = FaceDataModule(faces, BatchAugment(rotation_deg=30), batch_size=16, image_size=48, sampler="balanced")
    batches = list(data.train_dataloader())
    index, labels, images = (
        torch.cat([batch[name] for batch in batches]) for name in ("index", "labels", "images")
    )
    assert torch.equal(labels, torch.from_numpy(faces.labels)[index])
    assert sorted(torch.bincount(labels).tolist()) == [8, 9, 9, 9, 9, 9, 9]
    row, times = Counter(index.tolist()).most_common(1)[0]
    same = images[index == row]
    assert (faces.labels[row], times) == (1, 5)
    assert len({image.numpy().tobytes() for image in same}) == 5
    plain = FaceDataModule(faces, NoAugment(), batch_size=16, image_size=48)
    for name in ("val_dataloader", "test_dataloader"):
        for one, other in zip(getattr(data, name)(), getattr(plain, name)(), strict=True):
            assert torch.equal(one["index"], other["index"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "balance"}, "data.sampler=balance: expected shuffle or balanced"),
        ({"sampler": "balanced", "augment_epochs": 2}, "data.augment_epochs cannot"),
        ({"class_weights": [1.0]}, "data.class_weights has 1 numbers for 7 classes"),
    ],
)
def test_wrong_settings_are_errors(options, message):
    with pytest.raises(UserError) as error:
        FaceDataModule(unequal_faces(), NoAugment(), **options)
    assert message in str(error.value)
