"""Mixup: the distribution of the shares, blended batches, and draws that depend only on seed, epoch and image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_fer2013 import random_faces

from fer_lightning.data import datamodule
from fer_lightning.data.augment import BatchAugment, NoAugment
from fer_lightning.data.datamodule import EpochBatches, FaceDataModule
from fer_lightning.data.mixup import Mixup
from fer_lightning.errors import UserError
from fer_lightning.experiment.preflight import check_augmentation


def some_data(alpha=0.4, batch_size=7, **options):
    augment = BatchAugment(flip_prob=0.5, rotation_deg=10.0, erase_prob=0.5)
    return FaceDataModule(
        random_faces((50, 8, 6)), augment, batch_size, image_size=48, mixup_alpha=alpha, **options
    )


def by_row(loader, epoch=0):
    """Return the images and targets of an epoch, in the order of the images' rows."""
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    order = torch.cat([batch["index"] for batch in batches]).argsort()
    return [torch.cat([batch[key] for batch in batches])[order] for key in ("images", "targets")]


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha):
    _, shares = Mixup(alpha, seed=0, rows=torch.arange(10)).draw(torch.arange(200_000), epoch=0)
    assert 0 <= shares.min() < 1e-4
    assert 0.499 < shares.max() <= 0.5
    squares = (1 - 2 * shares.double()) ** 2  # the same for a share s and 1 - s
    # Five standard errors of the mean are below 0.004.
    assert squares.mean().item() == pytest.approx(1 / (2 * alpha + 1), abs=0.004)
    assert (squares**2).mean().item() == pytest.approx(3 / ((2 * alpha + 1) * (2 * alpha + 3)), abs=0.004)


def test_small_shares_are_as_frequent_as_in_the_beta_distribution():
    torch.manual_seed(0)
    drawn = torch.distributions.Beta(0.2, 0.2).sample((200_000,))
    _, shares = Mixup(0.2, seed=0, rows=torch.arange(10)).draw(torch.arange(200_000), epoch=0)
    for limit in (1e-6, 1e-3, 0.1, 0.3):
        expected = (torch.minimum(drawn, 1 - drawn) < limit).double().mean().item()
        assert (shares < limit).double().mean().item() == pytest.approx(expected, abs=0.008)


def test_partners_are_any_training_images():
    rows = torch.tensor([2, 5, 11])
    partners, shares = Mixup(0.4, seed=0, rows=rows).draw(torch.arange(3000), epoch=0)
    assert torch.bincount(partners, minlength=12)[rows].tolist() == pytest.approx([1000] * 3, abs=150)
    assert abs(torch.corrcoef(torch.stack([partners.double(), shares.double()]))[0, 1]) < 0.1


def test_a_batch_is_blended_with_its_partners():
    data = some_data(alpha=1.0)
    plain = FaceDataModule(data.faces, data.augment, 7, image_size=48).train_dataloader()
    plain.sampler.set_epoch(3)
    alone = {int(row): image for batch in plain for row, image in zip(batch["index"], batch["images"], strict=True)}
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    for batch in loader:
        partners, shares = Mixup(1.0, 0, data.rows((0,))).draw(batch["index"], 3)
        for n, (row, partner, share) in enumerate(zip(batch["index"], partners, shares, strict=True)):
            expected = (1 - share) * alone[int(row)] + share * alone[int(partner)]
            torch.testing.assert_close(batch["images"][n], expected)
            labels = torch.from_numpy(data.faces.labels)
            assert batch["labels"][n] == labels[row]
            target = torch.zeros(7)
            target[labels[row]] += 1 - share
            target[labels[partner]] += share
            torch.testing.assert_close(batch["targets"][n], target)


def test_soft_labels_are_blended():
    targets = np.random.default_rng(0).dirichlet(np.ones(7), 64).astype(np.float32)
    data = some_data(alpha=1.0)
    data = FaceDataModule(replace(data.faces, targets=targets), NoAugment(), 7, 48, mixup_alpha=1.0)
    batch = next(iter(data.train_dataloader()))
    partners, shares = Mixup(1.0, 0, data.rows((0,))).draw(batch["index"], 0)
    main, other = (torch.from_numpy(targets)[rows] for rows in (batch["index"], partners))
    torch.testing.assert_close(batch["targets"], main + shares[:, None] * (other - main))


def test_mixtures_do_not_depend_on_batches_groups_or_processes(monkeypatch):
    expected = by_row(some_data().train_dataloader(), epoch=2)
    torch.testing.assert_close(by_row(some_data(batch_size=11).train_dataloader(), epoch=2), expected)
    loader = some_data().train_dataloader()
    rows, places, parts = loader.sampler.rows.tolist(), [], []
    for rank in (0, 1):
        loader.sampler = EpochBatches(loader.sampler.rows, 7, 0, rank, world_size=2)
        loader.sampler.set_epoch(2)
        places += sorted(rows.index(row) for row in torch.cat(list(loader.sampler)).tolist())
        parts.append(by_row(loader, epoch=2))
    order = torch.tensor(places).argsort()
    torch.testing.assert_close([torch.cat(both)[order] for both in zip(*parts, strict=True)], expected)
    monkeypatch.setattr(datamodule, "GROUP_PIXELS", 1)
    torch.testing.assert_close(by_row(some_data().train_dataloader(), epoch=2), expected)


def test_epochs_differ_until_they_repeat():
    loader = some_data(augment_epochs=2).train_dataloader()
    epochs = [by_row(loader, epoch) for epoch in range(4)]
    # An image's place in its batch can change a last bit.
    torch.testing.assert_close(epochs[0], epochs[2])
    torch.testing.assert_close(epochs[1], epochs[3])
    assert not torch.equal(epochs[0][1], epochs[1][1])


def test_only_training_images_are_mixed():
    data, plain = some_data(), some_data(alpha=0.0)
    for stage in ("val", "test"):
        got, expected = (next(iter(getattr(part, f"{stage}_dataloader")())) for part in (data, plain))
        assert got.keys() == expected.keys() == {"images", "labels", "index"}
        assert torch.equal(got["images"], expected["images"])
    assert "targets" not in next(iter(plain.train_dataloader()))


def test_preview_shows_the_mixtures_of_an_epoch():
    data = some_data(alpha=1.0)
    rows = data.rows((0,))
    images, _ = by_row(data.train_dataloader(), epoch=1)
    torch.testing.assert_close(data.mixed_preview(rows, epoch=1), images * data.std + data.mean)


@pytest.mark.parametrize("alpha", [-0.1, 1e-17, 1.5, float("nan")])
def test_an_alpha_out_of_range_is_an_error(alpha):
    with pytest.raises(UserError, match=f"mix.mixup_alpha={alpha}: expected 0, for no mixup, or 0.001 to 1"):
        some_data(alpha)


def test_a_wrong_augmentation_is_named_before_its_images_are_mixed():
    data = FaceDataModule(random_faces(), lambda images, *_: images, image_size=48, mixup_alpha=0.4)
    with pytest.raises(UserError, match="returned uint8"):
        check_augmentation(data)
