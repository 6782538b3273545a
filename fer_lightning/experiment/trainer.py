"""Lightning's Trainer for a run: its settings, its callbacks, its processes, and the fit."""

import logging
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from fer_lightning import hardware
from fer_lightning.arguments import LIBRARIES, first_line, raised_within
from fer_lightning.callbacks.checkpoints import AtomicCheckpointIO, best_checkpoint, best_value
from fer_lightning.callbacks.history import History
from fer_lightning.config.compose import build
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.experiment.processes import prepare_processes
from fer_lightning.experiment.record import RunRecord
from fer_lightning.models.checkpoint import read_checkpoint
from fer_lightning.training.module import EmotionClassifier


def for_this_machine(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Trainer's arguments with every "auto" of ours decided, and the machine and choice in one line."""
    chosen = dict(arguments)
    kind = hardware.accelerator(str(chosen["accelerator"]))
    why = "as asked"
    if chosen["precision"] == "auto":
        chosen["precision"], why = hardware.choose_precision(kind)
    if chosen["enable_progress_bar"] is None:
        chosen["enable_progress_bar"] = sys.stderr.isatty()
    if chosen.get("sync_batchnorm") == "auto":
        chosen["sync_batchnorm"] = kind == "cuda"
    return chosen, f"{hardware.describe(kind)}; precision {chosen['precision']} ({why})"


def build_callbacks(nodes: Mapping[str, Any]) -> list[Callback]:
    """Build the callbacks that a configuration lists, each by its name and a node with a ``_target_``.

    Raises:
        UserError: a node that names no callback.
    """
    callbacks = []
    for name, node in nodes.items():
        callback = build(node)
        if not isinstance(callback, Callback):
            with_target = [other for other in nodes if other != name]
            raise UserError(
                f"callbacks.{name} is not a Lightning callback.{did_you_mean(name, with_target)} A callback of "
                f"your own is named by its class: callbacks.{name}._target_=my_module.MyCallback"
            )
        callbacks.append(callback)
    return callbacks


def make_trainer(
    logger: Logger | bool, callbacks: list[Callback], run_dir: Path, arguments: dict[str, Any]
) -> Trainer:
    """A Lightning Trainer; what it refuses is the person's to put right.

    Raises:
        UserError: an argument that Trainer refuses.
    """
    # Batches are gathered from memory in one call: workers would only copy them once more.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # A fit that validates at its end only has no monitor before.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    # Epochs are always logged, whatever the interval; and a resumed run's folder is there on purpose.
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Its batches go on where they were: see FaceLoader.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    warnings.filterwarnings("ignore", message=".*is not supported by the model summary.*")
    # What is logged is that of all processes already.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6's own business with torch 2.15
    # `announce` has said what Lightning would, but for the network's layers, and for a process that
    # died and takes the run's others with it.
    for package in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{package}").setLevel(logging.WARNING)
    for module in ("pytorch.callbacks.model_summary", "fabric.strategies.launchers.subprocess_script"):
        logging.getLogger(f"lightning.{module}").setLevel(logging.INFO)
    ours: dict[str, Any] = {
        "logger": logger,
        "callbacks": callbacks,
        "default_root_dir": run_dir,
        "plugins": [AtomicCheckpointIO()],
        "use_distributed_sampler": False,  # EpochBatches deals the images out itself
    }
    # Lightning leaves on what an earlier run of this process has asked for.
    torch.use_deterministic_algorithms(False)
    settings = ours | arguments
    try:
        trainer = Trainer(**settings)
    except Exception as error:
        if not raised_within(error, *LIBRARIES):
            raise
        raise UserError(f"Lightning's Trainer does not take this: {first_line(error)}") from error
    if trainer.world_size > 1:
        prepare_processes(trainer)
    return trainer


def fit(
    module: EmotionClassifier,
    data: FaceDataModule,
    trainer: Trainer,
    history: History,
    record: RunRecord,
    resume_from: Path | None = None,
) -> None:
    """Fits, and fills `record` with what came of it, also when it is interrupted.

    Args:
        module: with fresh weights, or those to start from.
        data: the faces.
        trainer: with `history` and a ModelCheckpoint among its callbacks.
        history: what the epochs' records are taken from.
        record: gains the history, the best epoch and its value, and the speed.
        resume_from: a checkpoint to go on from.

    Raises:
        UserError: settings that do not go together, such as a monitor that the Trainer never computes.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
    except (MisconfigurationException, ValueError) as error:
        # Settings that do not go together. What Lightning refuses in somebody's own hook is a bug of that hook.
        of_settings = isinstance(error, MisconfigurationException) or "`val_check_interval`" in str(error)
        if not of_settings or not raised_within(error, *LIBRARIES, EmotionClassifier.__module__):
            raise
        raise UserError(f"Lightning cannot fit with these settings: {first_line(error)}") from error
    finally:
        record.history, record.train_seconds = history.epochs, history.train_seconds
        record.images_per_second = history.images_per_second
        best = best_checkpoint(trainer)
        if best is not None:
            with suppress(UserError):  # in the place of what went wrong before; the test names it otherwise
                record.best_epoch = read_checkpoint(best).epoch
                record.best_value = best_value(trainer)
