"""How checkpoints get to the disk: whole or not at all, and in the middle of an epoch where asked."""

import io
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
from fer_lightning.training.module import LOGGED


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


class MovableCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that keeps the best epoch of a run whose folder was moved or copied.

    It saves absolute paths, and Lightning's own forgets the best score when they differ from today's. A best one
    that is no longer there is forgotten, so that another can take its place.
    """

    @cached_property  # Lightning asks for it twelve times a step
    def state_key(self) -> str:
        # ModelCheckpoint's, under which runs begun before this class have saved their state.
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            # Lightning removes what was the best: nothing but a checkpoint, whatever the file says.
            return str(folder / Path(path).name) if Path(path).suffix == ".ckpt" else ""

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        if any(not Path(path).exists() for path in best):
            return
        moved = {"dirpath": self.dirpath, "best_k_models": best} | {key: here(state_dict[key]) for key in paths}
        super().load_state_dict(state_dict | moved)


def checkpoints(run_dir: Path, monitor: str, every_n_minutes: float | None = None) -> list[Callback]:
    """Keeps checkpoints/best.ckpt, the epoch with the best `monitor`, and checkpoints/last.ckpt.

    Args:
        run_dir: the run's folder.
        monitor: a name that EmotionClassifier logs; losses are best low, all others high.
        every_n_minutes: how often last.ckpt is written within an epoch; None: at its end only.

    Raises:
        UserError: nothing of that name is logged, or `every_n_minutes` is not above 0.
    """
    if monitor not in LOGGED:
        raise UserError(
            f"monitor={monitor} is not a metric.{did_you_mean(monitor, LOGGED)} There are: {', '.join(LOGGED)}."
        )
    kept: dict[str, Any] = {
        "dirpath": run_dir / "checkpoints",
        # After the epoch's record is complete, so that the checkpoint holds it.
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    best = MovableCheckpoint(
        filename="best", monitor=monitor, mode="min" if monitor.startswith("loss") else "max", **kept
    )
    # Not the first one's save_last: in Lightning 2.6 that writes only when the best improves. Second, so that
    # last.ckpt knows of the epoch's best.
    timed = [] if every_n_minutes is None else [TimedCheckpoint(run_dir / "checkpoints/last.ckpt", every_n_minutes)]
    return [best, MovableCheckpoint(filename="last", **kept), *timed]


def best_checkpoint(trainer: Trainer) -> str | None:
    """The path of the best checkpoint of this fit, or None where there was none."""
    keeper = _best_keeper(trainer)
    return keeper.best_model_path if keeper else None


def best_value(trainer: Trainer) -> float | None:
    """The monitor's value at the best checkpoint, or None where there is none or it is no number."""
    keeper = _best_keeper(trainer)
    score = keeper.best_model_score if keeper else None
    return score.item() if score is not None and score.isfinite() else None


def _best_keeper(trainer: Trainer) -> ModelCheckpoint | None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return callback
    return None
