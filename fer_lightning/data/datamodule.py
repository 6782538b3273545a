"""Faces as Lightning batches: gathered and augmented many at a time, on the device, nothing done per sample."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Sampler

from fer_lightning import hardware
from fer_lightning.data.augment import Augment, normalise, resize
from fer_lightning.data.faces import MAX_IMAGE_SIZE, TEST, TRAIN, VAL, Faces
from fer_lightning.data.philox import permutation
from fer_lightning.errors import UserError

Batch = dict[str, Tensor]  # "images", "labels" int64 (B,) and "index" int64 (B,), the rows of Faces

SPLITS = ("official", "kaggle_folder")


# Pixels of the images that are prepared in one call, so that small batches share what a call costs whatever its
# size. On a CPU they are 455 images of 48 px or 64 of 128: more leave the caches, and fewer are slower too (2^18 to
# 2^22 tried). On a GPU, where a call is some 200 kernel launches, 7,281 images of 48 px or 1,024 of 128: 0.3 GB.
GROUP_PIXELS, GPU_GROUP_PIXELS = 2**20, 2**24

# uint8 (B, 1, 48, 48), index int64 (B,) and epoch -> float32 (B, 1, H, W), normalised
Prepare = Callable[[Tensor, Tensor, int], Tensor]


class FaceStore:
    """Images and labels of a dataset, to be gathered for a device.

    A GPU keeps a copy of all of them in its own memory, so that a batch costs no copy from the host. Elsewhere, or
    where they would take too much of that memory, they stay where they are, which may be a file on the disk.

    Args:
        faces: the dataset.
        device: where the gathered images shall be.
    """

    def __init__(self, faces: Faces, device: torch.device) -> None:
        self.faces = faces
        self.device = device
        self._resident: list[Tensor] | None = None
        if hardware.has_room(device, faces.images.nbytes):
            self._resident = [torch.tensor(part).to(device) for part in (faces.images, faces.labels)]

    @property
    def home(self) -> torch.device:
        """Where the images are, and where the rows that name them must be."""
        return torch.device("cpu") if self._resident is None else self.device

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels on the device: int64 (B,) -> uint8 (B, 1, 48, 48), int64 (B,)."""
        if self._resident is not None:
            images, labels = (part[rows] for part in self._resident)
        else:
            parts = (self.faces.images, self.faces.labels)
            images, labels = (torch.from_numpy(part[rows.numpy()]).to(self.device) for part in parts)
        return images.unsqueeze(1), labels


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
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        rows = self.rows
        if self.seed is not None:
            rows = rows[permutation(self.seed, self.epoch, len(rows), rows.device)]
        starts = list(range(0, len(rows), self.batch_size))
        starts[-1] = min(starts[-1], len(rows) - self.world_size)
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            yield rows[start:end][self.rank :: self.world_size]


class FaceLoader:
    """One split's batches, on the device and ready for the network.

    Several batches are gathered and prepared in one call. That changes nothing in them, because what becomes of an
    image depends on its row and the epoch alone.

    Args:
        store: where images and labels come from.
        sampler: batches of rows; Lightning tells it the epoch.
        prepare: what the images of a batch go through.
        group: batches to a call.
        done: returns how many batches to leave out at the epoch's beginning; called when the first is wanted.
    """

    batch_sampler = None  # Lightning takes what has a sampler for a DataLoader and asks for this too

    def __init__(
        self,
        store: FaceStore,
        sampler: EpochBatches,
        prepare: Prepare,
        group: int = 1,
        done: Callable[[], int] = lambda: 0,
    ) -> None:
        self.store = store
        self.sampler = sampler
        self.prepare = prepare
        self.group = group
        self.done = done

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        batches, done = list(self.sampler), self.done()
        # Groups begin where they would in a whole epoch: an image's place in its group can change its last bit.
        for start in range(done - done % self.group, len(batches), self.group):
            group = self._prepared(batches[start : start + self.group])
            yield from islice(group, max(done - start, 0), None)

    def _prepared(self, batches: list[Tensor]) -> Iterator[Batch]:
        rows = torch.cat(batches)
        images, labels = self.store.gather(rows)
        index = rows.to(self.store.device)
        parts = (self.prepare(images, index, self.sampler.epoch), labels, index)
        sizes = [len(batch) for batch in batches]
        for of_batch in zip(*(torch.split(part, sizes) for part in parts), strict=True):
            yield dict(zip(("images", "labels", "index"), of_batch, strict=True))


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
        self.device = torch.device("cpu")  # where batches are made
        self._store: FaceStore | None = None
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

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.device = self.trainer.strategy.root_device

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

    def train_dataloader(self) -> FaceLoader:
        # Lightning's overfit_batches is about the same batches in every epoch.
        fixed = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return self._loader(self.train_usages, self.batch_size, self._augmented, None if fixed else self.seed)

    def val_dataloader(self) -> FaceLoader:
        return self._loader(self.val_usages, self.eval_batch_size, self._resized)

    def test_dataloader(self) -> FaceLoader:
        """Every held-out image, so that one pass gives each split's numbers."""
        return self._loader((VAL, TEST), self.eval_batch_size, self._resized)

    def predict_dataloader(self) -> FaceLoader:
        """The same images as in a test."""
        return self.test_dataloader()

    def _loader(
        self, usages: tuple[int, ...], batch_size: int, prepare: Prepare, seed: int | None = None
    ) -> FaceLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self._store is None or self._store.device != self.device:
            self._store = FaceStore(self.faces, self.device)
        batches = EpochBatches(self.rows(usages).to(self._store.home), batch_size, seed, rank, world_size)
        pixels = GROUP_PIXELS if self.device.type == "cpu" else GPU_GROUP_PIXELS
        side = max(self.image_size, self.faces.images.shape[-1])  # images are warped at their own size, at least
        group = max(1, pixels * world_size // (batch_size * side**2))
        return FaceLoader(self._store, batches, prepare, group, self._trained_on)

    def _trained_on(self) -> int:
        """Batches already trained in this epoch; above 0 only where a run is resumed within one."""
        if self.trainer is None or not self.trainer.training:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _augmented(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        if self.augment_epochs is not None:
            epoch %= self.augment_epochs
        return normalise(self.augment(images, index, self.seed, epoch, self.image_size), self.mean, self.std)

    def _resized(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        return normalise(resize(images, self.image_size), self.mean, self.std)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch  # made there
