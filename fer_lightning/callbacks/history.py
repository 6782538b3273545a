"""The epochs of a run: metrics, seconds and images/s, kept across interruptions and told in one line each."""

from time import perf_counter
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fer_lightning.training.module import EmotionClassifier


class History(Callback):
    """Records every epoch as results.json's "history" has it, and prints a row for each.

    The record is saved in checkpoints, so that a resumed run has all of it. Training seconds leave validation,
    drawing and writing out, but for what is written amid an epoch.

    Args:
        val_split: the validation split's name, for the printed table.
    """

    def __init__(self, val_split: str) -> None:
        self.val_split = val_split
        self.epochs: list[dict[str, float]] = []
        self.train_seconds = 0.0
        self._epoch_seconds = 0.0
        self._since: float | None = None
        self._validation: dict[str, Tensor] = {}  # all metrics, as the epoch's last validation left them

    def state_dict(self) -> dict[str, Any]:
        running = 0.0 if self._since is None else perf_counter() - self._since
        return {
            "epochs": self.epochs,
            "train_seconds": self.train_seconds,
            "epoch_seconds": self._epoch_seconds + running,
            "validation": self._validation,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])
        self.train_seconds = float(state_dict["train_seconds"])
        # Checkpoints from before they could be written amid an epoch lack these.
        self._epoch_seconds = float(state_dict.get("epoch_seconds", 0.0))
        self._validation = dict(state_dict.get("validation", {}))

    @property
    def images_per_second(self) -> float | None:
        """Of training: the median over the epochs after the first, or the first where there is no other."""
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
        if trainer.is_global_zero:
            self._print()
        # Where a run goes on amid an epoch, on_train_epoch_start is not called again.
        trainer.callback_metrics.update(self._validation)  # the best checkpoint is chosen by them
        self._start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_seconds = 0.0
        self._validation = {}
        self._start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validation = {name: value.clone() for name, value in trainer.callback_metrics.items()}
            self._start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
            self._print(
                f"{record['epoch']:.0f}",
                f"{record['train_loss']:.4f}",
                f"{record['train_accuracy']:.2%}",
                f"{record['val_loss']:.4f}" if self._validation else "-",
                f"{record['val_accuracy']:.2%}" if self._validation else "-",
                f"{rate:.0f}",
            )

    def _print(self, *cells: str) -> None:
        columns = ("epoch", "train loss", "accuracy", f"{self.val_split} loss", "accuracy", "images/s")
        print(
            "  ".join(cell.rjust(len(column)) for cell, column in zip(cells or columns, columns, strict=True)),
            flush=True,
        )
