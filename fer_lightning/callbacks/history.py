"""Epoch history of a run: metrics, seconds and images/s, kept when resuming and printed one row per epoch."""

from time import perf_counter
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fer_lightning.training.module import EmotionClassifier


class History(Callback):
    """Callback that records the "history" of results.json and prints a row for every epoch.

    The history is saved in checkpoints, so that a resumed run has all of it. Training seconds exclude validation,
    drawing and writing, except for files written within an epoch.

    Args:
        val_split: name of the validation split, for the printed table.

    Attributes:
        epochs: one entry per epoch, as in results.json.
        train_seconds: seconds of training, over all epochs.
    """

    def __init__(self, val_split: str) -> None:
        self.val_split = val_split
        self.epochs: list[dict[str, float]] = []
        self.train_seconds = 0.0
        self._epoch_seconds = 0.0
        self._since: float | None = None
        self._validation: dict[str, Tensor] = {}  # all metrics after the epoch's last validation

    def state_dict(self) -> dict[str, Any]:
        """Return the history and the progress of the current epoch."""
        running = 0.0 if self._since is None else perf_counter() - self._since
        return {
            "epochs": self.epochs,
            "train_seconds": self.train_seconds,
            "epoch_seconds": self._epoch_seconds + running,
            "validation": self._validation,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history and the progress of the current epoch."""
        self.epochs = list(state_dict["epochs"])
        self.train_seconds = float(state_dict["train_seconds"])
        # Missing from checkpoints that predate mid-epoch checkpoints.
        self._epoch_seconds = float(state_dict.get("epoch_seconds", 0.0))
        self._validation = dict(state_dict.get("validation", {}))

    @property
    def images_per_second(self) -> float | None:
        """The median training speed of the epochs after the first, or that of the first if it is the only one."""
        epochs = self.epochs[1:] or self.epochs
        if not epochs:
            return None
        return float(np.median([epoch["images"] / epoch["seconds"] for epoch in epochs]))

    def _start(self) -> None:
        self._since = perf_counter()

    def _stop(self) -> None:
        if self._since is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # the host runs ahead of the GPU
            self._epoch_seconds += perf_counter() - self._since
            self._since = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table's header and start the clock."""
        if trainer.is_global_zero:
            self._print_row()
        # Lightning does not call on_train_epoch_start when resuming mid-epoch. The best checkpoint is selected by
        # these metrics.
        trainer.callback_metrics.update(self._validation)
        self._start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the clock and the validation metrics."""
        self._epoch_seconds = 0.0
        self._validation = {}
        self._start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation metrics and restart the clock."""
        if not trainer.sanity_checking:
            self._validation = {name: value.clone() for name, value in trainer.callback_metrics.items()}
            self._start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record, log and print the epoch."""
        assert isinstance(pl_module, EmotionClassifier)
        self._stop()
        self.train_seconds += self._epoch_seconds
        loss, accuracy, images = pl_module.train_metrics()
        record = {
            "epoch": trainer.current_epoch,
            "train_loss": loss,
            "train_accuracy": accuracy,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "images": images,
            "seconds": max(self._epoch_seconds, 1e-9),  # a coarse clock must not make images/s infinite
        }
        if self._validation:
            record |= {f"val_{name}": float(self._validation[f"{name}/val"]) for name in ("loss", "accuracy")}
        self.epochs.append(record)
        rate = record["images"] / record["seconds"]
        pl_module.log_at_epoch({"lr": record["lr"], "throughput/images_per_second": rate})
        if trainer.is_global_zero:
            self._print_row(
                f"{record['epoch']:.0f}",
                f"{record['train_loss']:.4f}",
                f"{record['train_accuracy']:.2%}",
                f"{record['val_loss']:.4f}" if self._validation else "-",
                f"{record['val_accuracy']:.2%}" if self._validation else "-",
                f"{rate:.0f}",
            )

    def _print_row(self, *cells: str) -> None:
        """Print the cells in columns, or without cells the header."""
        columns = ("epoch", "train loss", "accuracy", f"{self.val_split} loss", "accuracy", "images/s")
        print(
            "  ".join(cell.rjust(len(column)) for cell, column in zip(cells or columns, columns, strict=True)),
            flush=True,
        )
