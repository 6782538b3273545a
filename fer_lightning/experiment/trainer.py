"""Build Lightning's Trainer and the callbacks of a run, and fit."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from fer_lightning import hardware
from fer_lightning.arguments import LIBRARIES, first_line, raised_within
from fer_lightning.callbacks.checkpoints import AtomicCheckpointIO, best_checkpoint, best_value
from fer_lightning.callbacks.history import History
from fer_lightning.config.compose import build
from fer_lightning.config.schema import shown
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.environment import TORCHRUN_PROCESSES
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.experiment.processes import prepare_processes
from fer_lightning.experiment.record import RunRecord
from fer_lightning.models.checkpoint import read_checkpoint
from fer_lightning.training.module import EmotionClassifier


def resolve_trainer_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Replace this project's "auto" and null values by what suits the machine.

    Returns:
        The arguments of Lightning's Trainer, and one line that names the machine, the precision and its reason.
    """
    chosen = dict(arguments)
    kind = hardware.accelerator(str(chosen["accelerator"]))
    hardware.check_gpu(kind)
    reason = "as requested"
    if chosen["precision"] == "auto":
        chosen["precision"], reason = hardware.choose_precision(kind)
    elif kind == "cpu" and str(chosen["precision"]) in ("16-mixed", "16"):
        # What Lightning does too, but then the record would be wrong.
        chosen["precision"], reason = "bf16-mixed", "16-mixed is not available on CPU"
    if chosen["devices"] == "auto" and (n := os.environ.get(TORCHRUN_PROCESSES)):
        chosen["devices"] = int(n)
    if chosen["enable_progress_bar"] is None:
        chosen["enable_progress_bar"] = sys.stderr.isatty()
    if chosen.get("sync_batchnorm") == "auto":
        chosen["sync_batchnorm"] = kind == "cuda"
    return chosen, f"{hardware.describe(kind)}; precision {chosen['precision']} ({reason})"


def build_callbacks(nodes: Mapping[str, Any]) -> list[Callback]:
    """Build the callbacks of a configuration.

    Args:
        nodes: a node with a ``_target_`` for each callback, by name.

    Raises:
        UserError: a node whose ``_target_`` is not a Lightning callback.
    """
    callbacks = []
    for name, node in nodes.items():
        callback = build(node)
        if not isinstance(callback, Callback):
            others = [other for other in nodes if other != name]
            raise UserError(
                f"callbacks.{name} is not a Lightning callback.{did_you_mean(name, others)} For a custom "
                f"callback, set callbacks.{name}._target_=my_module.MyCallback."
            )
        callbacks.append(callback)
    return callbacks


def make_trainer(
    loggers: list[Logger], callbacks: list[Callback], run_dir: Path, arguments: dict[str, Any]
) -> Trainer:
    """Build Lightning's Trainer, and silence the warnings that do not apply to this project.

    Raises:
        UserError: an argument that Trainer rejects, or processes that this program cannot start.
    """
    # Batches are gathered from memory in one call, so worker processes would only add a copy.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # A fit that validates only at its end has no monitored value before that.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    # The folder of a resumed run is expected to exist.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # FaceLoader continues with the batch after the checkpoint's.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    warnings.filterwarnings("ignore", message=".*is not supported by the model summary.*")
    # The logged values are already reduced across processes.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    # It is what trainer.overfit_batches is for.
    warnings.filterwarnings("ignore", message="You requested to overfit but enabled")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # an internal of Lightning 2.6 with torch 2.15
    # `announce` replaces Lightning's info messages, except for the tables of layers and of a profiler, and the
    # message about a process that died and takes the others with it.
    for package in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{package}").setLevel(logging.WARNING)
    kept = ("pytorch.callbacks.model_summary", "pytorch.profilers", "fabric.strategies.launchers.subprocess_script")
    for module in kept:
        logging.getLogger(f"lightning.{module}").setLevel(logging.INFO)
    for name in ("callbacks", "plugins"):
        if value := arguments.get(name):
            raise UserError(
                f"trainer.{name}={shown(value)}: expected objects, which a setting cannot be. For a callback, set "
                "callbacks.NAME._target_=my_module.MyCallback."
            )
    ours: dict[str, Any] = {
        "logger": loggers or False,
        "default_root_dir": run_dir,
        "use_distributed_sampler": False,  # EpochBatches splits the images between processes itself
    }
    # Lightning does not turn this off again after an earlier run in this process.
    torch.use_deterministic_algorithms(False)
    # Without this environment, Lightning would take the tasks of a Slurm job for the processes of the run.
    fixed = {"callbacks": callbacks, "plugins": [AtomicCheckpointIO(), LightningEnvironment()]}
    settings = ours | arguments | fixed
    for name, value in os.environ.items():
        if name.startswith("PL_TRAINER_"):
            raise UserError(
                f"{name}={value}: Lightning would change the run by it without a trace in config.yaml. Unset it, "
                f"and set trainer.{name.removeprefix('PL_TRAINER_').lower()} instead."
            )
    try:
        trainer = Trainer(**settings)
    except Exception as error:
        if not raised_within(error, *LIBRARIES):
            raise
        message = first_line(error)
        if not any(name in message for name in arguments):
            given = " ".join(f"trainer.{name}={shown(value)}" for name, value in arguments.items())
            message += f" The arguments: {given}"
        raise UserError(f"Lightning's Trainer rejected its arguments: {message}") from error
    prepare_processes(trainer, settings)
    return trainer


def fit(
    module: EmotionClassifier,
    data: FaceDataModule,
    trainer: Trainer,
    history: History,
    record: RunRecord,
    resume_from: Path | None = None,
) -> None:
    """Fit, and store the outcome in `record`, even if the fit is interrupted.

    Args:
        module: the module with its initial weights.
        data: the faces.
        trainer: a trainer whose callbacks include `history` and a ModelCheckpoint.
        history: the callback that recorded the epochs.
        record: receives the history, the best epoch and its value, and the training speed.
        resume_from: a checkpoint to resume from.

    Raises:
        UserError: settings that contradict each other, e.g. a monitor that is never computed.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
    except (MisconfigurationException, ValueError) as error:
        # Contradictory settings. What Lightning rejects in a user's hook is a bug in that hook.
        is_about_settings = isinstance(error, MisconfigurationException) or "`val_check_interval`" in str(error)
        if not is_about_settings or not raised_within(error, *LIBRARIES, EmotionClassifier.__module__):
            raise
        raise UserError(f"Lightning cannot fit with these settings: {first_line(error)}") from error
    finally:
        record.history, record.train_seconds = history.epochs, history.train_seconds
        record.images_per_second = history.images_per_second
        best = best_checkpoint(trainer)
        if best is not None:
            # An unreadable checkpoint must not hide the fit's own error; without one, the test reports it.
            with suppress(UserError):
                record.best_epoch = read_checkpoint(best).epoch
                record.best_value = best_value(trainer)
