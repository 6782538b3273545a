"""How checkpoints get to the disk: whole or not at all, and in the middle of an epoch where asked."""

import io
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fer_lightning.errors import UserError
from fer_lightning.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

    Lightning 2.6 writes to the system's temporary folder first, and where that is another disk, "moving" is a copy:
    a full disk or a kill in the middle of it leaves half a file under the checkpoint's name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), content.getvalue())


class TimedCheckpoint(Callback):
    """Writes a checkpoint between two steps of an epoch, every so many minutes.

    A run that goes on from it ends with the weights of one that was never stopped.

    Args:
        path: of the checkpoint; it takes the place of the one before.
        every_n_minutes: counted from the last one of this kind; the next step that allows it is taken.

    Raises:
        UserError: a number that is not above 0, or none at all.
    """

    def __init__(self, path: Path, every_n_minutes: float) -> None:
        if type(every_n_minutes) not in (int, float) or not every_n_minutes > 0:
            raise UserError(
                f"checkpoint.every_n_minutes={every_n_minutes} must be a number above 0, or null for none."
            )
        self.path = path
        self.seconds = 60 * every_n_minutes
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = monotonic()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Here all that the step before had to do is done, validation included.
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # The epochs' ends have checkpoints of their own, and half accumulated gradients are in none.
        amid = batch_idx > 0 and not progress.is_last_batch and batch_idx % trainer.accumulate_grad_batches == 0
        due = monotonic() - self._since >= self.seconds
        if amid and not trainer.fast_dev_run and trainer.strategy.broadcast(due):  # type: ignore[attr-defined]
            for counted in (progress.current, progress.total):
                counted.ready -= 1  # the batch that is about to begin
            trainer.save_checkpoint(self.path)
            progress.increment_ready()
            self._since = monotonic()
