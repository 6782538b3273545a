"""Faces as Lightning batches: one gather a batch, augmentation on the device, nothing done per sample."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fer_lightning.checkpoint import MAX_IMAGE_SIZE
from fer_lightning.data.augment import Augment, normalise, resize
from fer_lightning.data.faces import TEST, TRAIN, VAL, Faces
from fer_lightning.data.philox import permutation
from fer_lightning.errors import UserError

Batch = dict[str, Tensor]  # "images", "labels" int64 (B,) and "index" int64 (B,), the rows of Faces

SPLITS = ("official", "kaggle_folder")


class FaceBatches(Dataset[Batch]):
    """A whole batch in one indexing call: ``dataset[rows]``."""

    def __init__(self, faces: Faces) -> None:
        self.faces = faces

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, rows: Tensor) -> Batch:
        """Int64 (B,) -> images uint8 (B, 1, 48, 48), labels and index int64 (B,)."""
        at = rows.numpy()
        return {
            "images": torch.from_numpy(self.faces.images[at]).unsqueeze(1),
            "labels": torch.from_numpy(self.faces.labels[at]),
            "index": rows,
        }


class EpochBatches(Sampler[Tensor]):
    """Batches of rows, in an order that is a pure function of (seed, epoch), or in the given one.

    With several processes each takes its part of every batch, so that together they see the batches of one. Only a
    last batch with fewer images than processes is other than that of one: the batch before gives it some.

    Args:
        rows: int64 (n,), the rows of one split.
        batch_size: images a batch, all processes together; the last batch may be smaller.
        seed: of the order; None keeps the order of `rows`.
        rank: this process.
        world_size: number of processes.
        done: how many of the epoch's batches to leave out at its beginning; asked when the first one is wanted.

    Raises:
        UserError: a batch, or the whole split, with fewer images than processes.
    """

    def __init__(
        self,
        rows: Tensor,
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        done: Callable[[], int] = lambda: 0,
    ) -> None:
        if min(batch_size, len(rows)) < world_size:
            raise UserError(
                f"{world_size} processes share each batch, of {batch_size} images out of {len(rows)}: leave each "
                "process one at least, by data.batch_size and data.eval_batch_size or by fewer trainer.devices."
            )
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.done = done
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        rows = self.rows
        if self.seed is not None:
            rows = rows[permutation(self.seed, self.epoch, len(rows))]
        starts = list(range(0, len(rows), self.batch_size))
        starts[-1] = min(starts[-1], len(rows) - self.world_size)
        for start, end in list(zip(starts, [*starts[1:], len(rows)], strict=True))[self.done() :]:
            yield rows[start:end][self.rank :: self.world_size]


class FaceDataModule(LightningDataModule):
    """Train, validation and test batches of one set of faces.

    Training batches arrive at the network augmented, all others only resized; both normalised.

    Args:
        faces: every split together.
        augment: what training batches go through, on the device.
        batch_size: images a training batch, all processes together.
        image_size: height and width in pixels that the network gets.
        mean: subtracted after scaling pixels to [0, 1].
        std: divided by after that.
        split: "official" validates on VAL and tests on TEST; "kaggle_folder" validates and tests on both together,
            as everyone does who takes the Kaggle folder's test/ as it is (so its best epoch is chosen on the test
            images themselves).
        seed: of the epochs' order and of the augmentation.
        eval_batch_size: images a validation or test batch, all processes together.
        augment_epochs: epochs after which the augmentation's draws come again (the order of the images does not);
            None for never.

    Raises:
        UserError: a value out of range, or a split without images.
    """

    SETTINGS = ("batch_size", "eval_batch_size", "image_size", "mean", "std", "split", "augment_epochs")

    def __init__(
        self,
        faces: Faces,
        augment: Augment,
        batch_size: int = 32,
        image_size: int = 128,
        mean: float = 0.5,
        std: float = 0.5,
        split: str = "official",
        seed: int = 0,
        eval_batch_size: int = 128,
        augment_epochs: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("image_size", image_size),
        ):
            if value < 1:
                raise UserError(f"data.{name}={value} must be at least 1.")
        if augment_epochs is not None and (not isinstance(augment_epochs, int) or augment_epochs < 1):
            raise UserError(f"data.augment_epochs={augment_epochs} must be a whole number of at least 1, or null.")
        if image_size > MAX_IMAGE_SIZE:
            raise UserError(
                f"data.image_size={image_size} is too large: faces of 48 pixels go up to {MAX_IMAGE_SIZE}."
            )
        if std <= 0:
            raise UserError(f"data.std={std} must be above 0.")
        if split not in SPLITS:
            raise UserError(f"data.split={split} is not a protocol: choose {' or '.join(SPLITS)}.")
        self.faces = faces
        self.augment = augment
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.seed = seed
        self.augment_epochs = augment_epochs
        both = (VAL, TEST)
        self.train_usages: tuple[int, ...] = (TRAIN,)
        self.val_usages: tuple[int, ...] = both if split == "kaggle_folder" else (VAL,)
        self.test_usages: tuple[int, ...] = both if split == "kaggle_folder" else (TEST,)
        for usages in (self.train_usages, self.val_usages, self.test_usages):
            if not len(self.rows(usages)):
                raise UserError(
                    f"{faces.source} has no image in {self.split_name(usages)}; "
                    f"{len(faces)} images in all. Training needs every split: check the data's folders or columns."
                )

    def split_name(self, usages: tuple[int, ...]) -> str:
        """For people: "PublicTest" or "PublicTest+PrivateTest"."""
        return "+".join(self.faces.split_names[usage] for usage in usages)

    @property
    def val_split(self) -> str:
        """Name of the split that selects the best epoch."""
        return self.split_name(self.val_usages)

    @property
    def test_split(self) -> str:
        """Name of the split whose accuracy is the headline."""
        return self.split_name(self.test_usages)

    def rows(self, usages: tuple[int, ...]) -> Tensor:
        """The rows of the given splits: int64 (n,), ascending."""
        return torch.from_numpy(np.flatnonzero(np.isin(self.faces.usage, usages)))

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.train_usages, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.val_usages, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every held-out image, so that one pass gives each split's numbers."""
        return self._loader((VAL, TEST), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same images as in a test."""
        return self.test_dataloader()

    def _loader(self, usages: tuple[int, ...], batch_size: int, seed: int | None = None) -> DataLoader[Batch]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = EpochBatches(self.rows(usages), batch_size, seed, rank, world_size, self._trained_on)
        return DataLoader(FaceBatches(self.faces), batch_size=None, sampler=batches)

    def _trained_on(self) -> int:
        """Batches that the epoch has behind it when its first is wanted: none, but where a run goes on amid one."""
        if self.trainer is None or not self.trainer.training:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device: uint8 images -> float32 (B, 1, image_size, image_size), normalised."""
        images = batch["images"]
        if self.trainer is not None and self.trainer.training:
            epoch = self.trainer.current_epoch
            if self.augment_epochs is not None:
                epoch %= self.augment_epochs
            images = self.augment(images, batch["index"], self.seed, epoch, self.image_size)
        else:
            images = resize(images, self.image_size)
        return {**batch, "images": normalise(images, self.mean, self.std)}
