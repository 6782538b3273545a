"""Soft targets of images that repeat, computed once for all runs that repeat the same ones."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from fer_lightning.data.datamodule import Batch
from fer_lightning.files import write_atomically

FORMAT = 1  # increase when the files change
_CHECKSUM_BYTES = 16

# Epoch -> all its training batches, the same ones on every call
Batches = Callable[[int], Iterable[Batch]]


class SoftTargetStore:
    """Teachers' predictions for every training image, for the epochs after which augmentation repeats.

    They are kept in memory and in ``directory/soft-targets-v<FORMAT>/<key>``, float32 and a checksum. The key of an
    epoch is computed from the dataset, the training rows, all its images and the predictions of its first batch, so
    that it changes with the teachers, the augmentation and the precision too. Runs share the files if their images
    are the same, which do not depend on their seed, batch size or number of processes.

    Args:
        n_epochs: epochs after which the images repeat.
        n_classes: C, the number of classes.
        fingerprint: identifies the dataset.
        rows: int64 (n,), the training images' rows in the dataset, ascending.
        directory: where the files are; None to keep the predictions in memory only.
    """

    def __init__(
        self, n_epochs: int, n_classes: int, fingerprint: str, rows: Tensor, directory: Path | None
    ) -> None:
        self.n_epochs = n_epochs
        self.n_classes = n_classes
        self.fingerprint = fingerprint
        self.rows = rows
        self.directory = directory
        self._can_write = True
        self._tables: dict[int, Tensor] = {}

    def table(self, epoch: int, batches: Batches, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the soft targets of an epoch: from memory, from a file, or computed and stored.

        Args:
            epoch: epoch number, from 0.
            batches: returns the training batches of an epoch below `n_epochs`.
            predict: images float (B, 1, H, W) -> soft targets float32 (B, C).

        Returns:
            float32 (N, C), in which row r belongs to row r of the dataset; zeros where that is not trained on.
        """
        epoch %= self.n_epochs
        if epoch not in self._tables:
            self._tables[epoch] = self._load_or_compute(epoch, batches, predict)
        return self._tables[epoch]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a table: a row for each image of the dataset up to the last one that is trained on."""
        return int(self.rows[-1]) + 1, self.n_classes

    def _load_or_compute(self, epoch: int, batches: Batches, predict: Callable[[Tensor], Tensor]) -> Tensor:
        path = None
        if self.directory is not None:
            path = self.directory / f"soft-targets-v{FORMAT}" / self._digest(batches(epoch), predict)
        if path is not None and (stored := self._load(path)) is not None:
            return stored
        targets = torch.cat([predict(batch["images"]) for batch in batches(epoch)])
        table = targets.new_zeros(self.shape)
        table[self.rows.to(targets.device)] = targets
        if path is not None and self._can_write:
            self._save(path, table)
        return table

    def _load(self, path: Path) -> Tensor | None:
        """Return the table in a file, or None if it cannot be read or is damaged."""
        try:
            content = bytearray(path.read_bytes())  # writable, as torch wants it
        except OSError:
            return None
        table, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        if _checksum(table) != checksum:
            _note(f"{path} was damaged; the teacher's soft targets are computed again.")
            return None
        return torch.frombuffer(table, dtype=torch.float32).view(self.shape)

    def _save(self, path: Path, table: Tensor) -> None:
        content = table.cpu().numpy().tobytes()
        try:
            write_atomically(path, content + _checksum(content))
        except OSError as error:
            _note(
                f"Cannot write the teacher's soft targets in {self.directory} ({error.strerror or error}); they "
                "are kept in memory only."
            )
            self._can_write = False

    def _digest(self, batches: Iterable[Batch], predict: Callable[[Tensor], Tensor]) -> str:
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update(self.rows.numpy().tobytes())
        for number, batch in enumerate(batches):
            for part in (batch["images"], *([] if number else [predict(batch["images"])])):
                digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@rank_zero_only
def _note(text: str) -> None:
    print(f"note:     {text}")


def _checksum(content: bytes | bytearray) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).digest()
