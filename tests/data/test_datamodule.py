"""Splits, order and batches, and augmentation of training batches only."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_fer2013 import random_faces
from lightning.pytorch import LightningModule, Trainer

from fer_lightning import hardware
from fer_lightning.data import datamodule
from fer_lightning.data.augment import BatchAugment, NoAugment, normalise, resize
from fer_lightning.data.datamodule import EpochBatches, FaceDataModule, FaceLoader
from fer_lightning.data.faces import TEST, TRAIN, VAL, seen_elsewhere
from fer_lightning.errors import UserError


class Watcher(LightningModule):
    """Module that records its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.got = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.got["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.got["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.got["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def watch(data, epochs=1, **options):
    trainer = Trainer(
        **options,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    watcher = Watcher()
    trainer.fit(watcher, datamodule=data)
    trainer.test(watcher, datamodule=data, verbose=False)
    return {
        stage: {key: torch.cat([b[key] for b in batches]) for key in batches[0]}
        for stage, batches in watcher.got.items()
    }


def test_only_training_batches_are_augmented():
    faces = random_faces()
    augment = BatchAugment(flip_prob=0.5, rotation_deg=10.0, brightness=0.2)
    got = watch(FaceDataModule(faces, augment, batch_size=7, image_size=48, eval_batch_size=5))
    plain = normalise(resize(torch.from_numpy(faces.images).unsqueeze(1), 48), 0.5, 0.5)
    for stage in ("val", "test"):
        assert torch.equal(got[stage]["images"], plain[got[stage]["index"]])
    expected = augment(
        torch.from_numpy(faces.images)[got["train"]["index"]].unsqueeze(1), got["train"]["index"], 0, 0, 48
    )
    torch.testing.assert_close(got["train"]["images"], normalise(expected, 0.5, 0.5))
    assert not torch.equal(got["train"]["images"], plain[got["train"]["index"]])


@pytest.mark.parametrize(
    ("split", "val", "test", "val_n", "test_n"),
    [
        ("official", "PublicTest", "PrivateTest", 8, 6),
        ("kaggle_folder", "PublicTest+PrivateTest", "PublicTest+PrivateTest", 14, 14),
    ],
)
def test_protocols(split, val, test, val_n, test_n):
    faces = random_faces()
    data = FaceDataModule(faces, NoAugment(), image_size=48, split=split)
    assert (data.val_split, data.test_split) == (val, test)
    assert (len(data.rows(data.val_usages)), len(data.rows(data.test_usages))) == (val_n, test_n)
    got = watch(data)
    for stage, usages in (("train", [TRAIN]), ("val", data.val_usages), ("test", [VAL, TEST])):
        rows = got[stage]["index"]
        assert sorted(rows.tolist()) == np.flatnonzero(np.isin(faces.usage, usages)).tolist()
        assert torch.equal(got[stage]["labels"], torch.from_numpy(faces.labels[rows.numpy()]))


def test_each_epoch_has_its_own_order_and_every_image_once():
    got = watch(FaceDataModule(random_faces(), NoAugment(), batch_size=7, image_size=48, seed=3), epochs=2)
    first, second = got["train"]["index"].view(2, 20).tolist()
    assert sorted(first) == sorted(second)
    assert first != second
    batches = EpochBatches(torch.tensor(sorted(first)), 7, seed=3)
    batches.set_epoch(1)
    assert torch.cat(list(batches)).tolist() == second


def test_overfit_batches_are_the_same_in_every_epoch():
    got = watch(FaceDataModule(random_faces(), NoAugment(), 7, 48), epochs=3, overfit_batches=2)["train"]
    first, *others = got["index"].view(3, 14)
    assert all(torch.equal(order, first) for order in others)


def test_augmentation_repeats_its_draws_and_not_the_order():
    augment = BatchAugment(flip_prob=0.5, rotation_deg=10.0)
    got = watch(FaceDataModule(random_faces(), augment, image_size=48, augment_epochs=2), epochs=4)["train"]
    orders = got["index"].view(4, 20)
    epochs = [images[order.argsort()] for images, order in zip(got["images"].chunk(4), orders, strict=True)]
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[1], epochs[3])
    assert not torch.equal(epochs[0], epochs[1])
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_ordered_batches_have_the_images_of_the_epoch_in_the_order_of_the_rows():
    augment = BatchAugment(flip_prob=0.5, rotation_deg=10.0)
    repeated = []
    for seed in (0, 1):
        data = FaceDataModule(random_faces(), augment, 3, 48, seed=seed, augment_epochs=2, mixup_alpha=0.4)
        [ordered] = data.ordered_batches(5)
        batches = batches_of(data.train_dataloader(), 5)
        index = torch.cat([batch["index"] for batch in batches])
        assert torch.equal(ordered["index"], data.rows((TRAIN,)))
        for part in ("images", "targets"):
            trained = torch.cat([batch[part] for batch in batches])[index.argsort()]
            torch.testing.assert_close(ordered[part], trained)
        repeated.append(ordered)
    first, second = repeated
    assert all(torch.equal(first[part], second[part]) for part in first)  # whatever the seed


def batches_of(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(one, other, strict=True)
    )


def some_data(**options):
    augment = BatchAugment(flip_prob=0.5, rotation_deg=10.0, brightness=0.2, erase_prob=0.5)
    return FaceDataModule(random_faces((50, 8, 6)), augment, batch_size=7, image_size=48, **options)


def test_batches_do_not_depend_on_how_many_are_prepared_together(monkeypatch):
    together = some_data().train_dataloader()
    monkeypatch.setattr(datamodule, "GROUP_PIXELS", 3 * 7 * 48**2)
    three = some_data().train_dataloader()
    monkeypatch.setattr(datamodule, "GROUP_PIXELS", 1)
    alone = some_data().train_dataloader()
    assert (alone.group, three.group) == (1, 3)
    assert together.group > len(together) == 8
    expected = batches_of(alone, epoch=2)
    assert [len(batch["labels"]) for batch in expected] == [7] * 7 + [1]
    for grouped in (batches_of(three, epoch=2), batches_of(together, epoch=2)):
        for got, batch in zip(grouped, expected, strict=True):
            torch.testing.assert_close(got, batch)


@pytest.mark.parametrize("skipped", range(9))
def test_resumed_epoch_is_bitwise_identical_at_every_batch(skipped):
    data = some_data()
    whole = data.train_dataloader()
    rest = FaceLoader(whole.store, whole.sampler, whole.prepare, group=3, skip=lambda: skipped)
    whole.group = 3
    assert same(batches_of(rest), batches_of(whole)[skipped:])


def test_batches_from_a_resident_dataset_are_the_same(monkeypatch):
    """On a GPU the dataset is resident; here the CPU stands in for one."""
    loaders = [getattr(some_data(), f"{stage}_dataloader")() for stage in ("train", "val", "test")]
    monkeypatch.setattr(hardware, "has_room", lambda device, n_bytes: True)
    residents = [getattr(some_data(), f"{stage}_dataloader")() for stage in ("train", "val", "test")]
    for loader, resident in zip(loaders, residents, strict=True):
        assert same(batches_of(loader, 1), batches_of(resident, 1))


@pytest.mark.parametrize("resident", [False, True])
def test_batches_have_the_targets_of_their_images_if_the_data_have_any(resident, monkeypatch):
    monkeypatch.setattr(hardware, "has_room", lambda device, n_bytes: resident)
    faces = random_faces((50, 8, 6))
    targets = np.random.default_rng(0).dirichlet(np.ones(7), len(faces)).astype(np.float32)
    data = FaceDataModule(replace(faces, targets=targets), NoAugment(), batch_size=7, image_size=48)
    batches = batches_of(data.train_dataloader(), 1)
    assert sum(len(batch["targets"]) for batch in batches) == 50
    for batch in batches:
        np.testing.assert_array_equal(batch["targets"].numpy(), targets[batch["index"].numpy()])
    assert "targets" not in next(iter(FaceDataModule(faces, NoAugment()).train_dataloader()))


def test_a_dataset_may_take_a_quarter_of_a_gpus_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert [hardware.has_room(torch.device("cuda"), n_bytes) for n_bytes in (250, 251)] == [True, False]
    assert not hardware.has_room(torch.device("cpu"), 1)


@pytest.mark.parametrize("n", [20, 21])
def test_processes_share_each_batch_of_a_single_process(n):
    rows = torch.arange(n)
    whole = list(EpochBatches(rows, 6, seed=1))
    parts = [list(EpochBatches(rows, 6, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    for batch, even, odd in zip(whole, *parts, strict=True):
        assert sorted(batch.tolist()) == sorted([*even.tolist(), *odd.tolist()])


def test_last_batch_with_fewer_images_than_processes_takes_from_the_one_before():
    parts = [list(EpochBatches(torch.arange(13), 6, rank=rank, world_size=3)) for rank in range(3)]
    assert [[batch.tolist() for batch in part] for part in parts] == [
        [[0, 3], [6, 9], [10]],
        [[1, 4], [7], [11]],
        [[2, 5], [8], [12]],
    ]


@pytest.mark.parametrize(("n", "batch_size"), [(2, 8), (8, 2)])
def test_fewer_images_than_processes_are_an_error(n, batch_size):
    with pytest.raises(UserError, match="3 processes cannot share a batch of"):
        EpochBatches(torch.arange(n), batch_size, world_size=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"image_size": 0}, "data.image_size=0"),
        ({"std": 0.0}, "data.std=0.0"),
        ({"augment_epochs": 0}, "data.augment_epochs=0"),
        ({"split": "private"}, "data.split=private"),
    ],
)
def test_settings_out_of_range_are_errors(options, message):
    with pytest.raises(UserError) as error:
        FaceDataModule(random_faces(), NoAugment(), **options)
    assert message in str(error.value)


def test_split_without_images_is_an_error():
    with pytest.raises(UserError, match="has no images in PrivateTest"):
        FaceDataModule(random_faces((10, 5, 0)), NoAugment())


def test_seen_elsewhere_by_hand():
    faces = random_faces((2, 2, 2))
    train, val, test = (np.flatnonzero(faces.usage == usage) for usage in (TRAIN, VAL, TEST))
    faces.images[test[0]] = faces.images[train[0]]  # PrivateTest image in Training
    faces.images[val[1]] = faces.images[test[1]]  # PublicTest image in PrivateTest
    assert np.flatnonzero(seen_elsewhere(faces, (TEST,))).tolist() == sorted([test[0], test[1]])
    assert np.flatnonzero(seen_elsewhere(faces, (VAL,))).tolist() == [val[1]]
    # With both splits together, only copies in Training count.
    assert np.flatnonzero(seen_elsewhere(faces, (VAL, TEST))).tolist() == [test[0]]
