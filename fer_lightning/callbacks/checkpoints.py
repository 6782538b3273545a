"""Checkpoint callbacks: atomic writes, the best and the last epoch, and optional mid-epoch checkpoints."""

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.files import write_atomically
from fer_lightning.runs.ranking import is_minimised
from fer_lightning.training.module import logged_metrics


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint IO that writes a temporary file next to the target and renames it.

    Lightning 2.6 writes to the system's temporary folder and then moves the file. Across disks that move is a copy,
    so a full disk or a kill halfway leaves a truncated checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint atomically."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), content.getvalue())


class TimedCheckpoint(Callback):
    """Periodic checkpoints between two steps of an epoch.

    Resuming from one gives the same final weights as a run that was never stopped.

    Args:
        path: the checkpoint's path; each checkpoint overwrites the previous one.
        every_n_minutes: minutes since the last mid-epoch checkpoint after which the next possible step writes one.

    Raises:
        UserError: `every_n_minutes` is not a number above 0.
    """

    def __init__(self, path: Path, every_n_minutes: float) -> None:
        if type(every_n_minutes) not in (int, float) or not every_n_minutes > 0:
            raise UserError(
                f"checkpoint.every_n_minutes={every_n_minutes}: expected a number above 0, or null to disable."
            )
        self.path = path
        self.seconds = 60 * every_n_minutes
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the timer."""
        self._since = monotonic()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if one is due."""
        # At this point all work of the previous step is complete, including validation.
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # Epoch ends have their own checkpoints, and a checkpoint does not hold partially accumulated gradients.
        resumable = (
            batch_idx > 0 and not progress.is_last_batch and batch_idx % trainer.accumulate_grad_batches == 0
        )
        due = monotonic() - self._since >= self.seconds
        if resumable and not trainer.fast_dev_run and trainer.strategy.broadcast(due):  # type: ignore[attr-defined]
            for counter in (progress.current, progress.total):
                counter.ready -= 1  # the batch that is about to start
            trainer.save_checkpoint(self.path)
            progress.increment_ready()
            self._since = monotonic()


class MovableCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that remembers the best epoch of a run whose folder was moved or copied.

    ModelCheckpoint saves absolute paths and discards the best score when the folder has changed. This class maps
    the paths to the current folder. It discards the best score only if that checkpoint no longer exists, so that
    another epoch can become the best.
    """

    @cached_property  # Lightning reads it twelve times per step
    def state_key(self) -> str:
        """The key of ModelCheckpoint, under which runs from before this class saved their state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state with all paths mapped to the current folder."""
        folder = Path(str(self.dirpath))

        def relocate(path: str) -> str:
            # Lightning deletes the previous best file. A manipulated state must not make it delete anything else.
            return str(folder / Path(path).name) if Path(path).suffix == ".ckpt" else ""

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        best = {relocate(path): score for path, score in state_dict["best_k_models"].items()}
        if any(not Path(path).exists() for path in best):
            return
        moved = {"dirpath": self.dirpath, "best_k_models": best} | {key: relocate(state_dict[key]) for key in paths}
        super().load_state_dict(state_dict | moved)


def check_monitor(monitor: str, classes: Sequence[str], key: str = "monitor") -> None:
    """Raise UserError if a network with these classes does not log the metric that the setting `key` names."""
    logged = logged_metrics(classes)
    if monitor not in logged:
        raise UserError(
            f"{key}={monitor} is not a metric.{did_you_mean(monitor, logged)} Choose from {', '.join(logged)}."
        )


def checkpoints(run_dir: Path, monitor: str, every_n_minutes: float | None = None) -> list[Callback]:
    """Build the callbacks that keep checkpoints/best.ckpt, the best epoch by `monitor`, and checkpoints/last.ckpt.

    Args:
        run_dir: the run's folder.
        monitor: a metric that EmotionClassifier logs; losses are minimised, all others maximised.
        every_n_minutes: interval at which last.ckpt is written within an epoch; None writes it only at its end.

    Raises:
        UserError: `every_n_minutes` is not above 0.
    """
    common: dict[str, Any] = {
        "dirpath": run_dir / "checkpoints",
        # Saved when the epoch's history entry is complete, so that the checkpoint includes it.
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    best = MovableCheckpoint(
        filename="best", monitor=monitor, mode="min" if is_minimised(monitor) else "max", **common
    )
    # Not save_last=True, which in Lightning 2.6 writes only when the best epoch improves. It comes second, so that
    # last.ckpt includes the updated best score.
    timed = [] if every_n_minutes is None else [TimedCheckpoint(run_dir / "checkpoints/last.ckpt", every_n_minutes)]
    return [best, MovableCheckpoint(filename="last", **common), *timed]


def best_checkpoint(trainer: Trainer) -> str | None:
    """Return the path of the fit's best checkpoint, or None if there is none."""
    callback = _best_callback(trainer)
    return callback.best_model_path if callback else None


def best_value(trainer: Trainer) -> float | None:
    """Return the monitor's value at the best checkpoint, or None if there is none or it is not finite."""
    callback = _best_callback(trainer)
    score = callback.best_model_score if callback else None
    return score.item() if score is not None and score.isfinite() else None


def _best_callback(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that holds a best checkpoint, or None."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return callback
    return None
