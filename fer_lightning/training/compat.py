"""Private APIs of Lightning, torch and TensorBoard, one function and one reason each.

Nothing else in the package may use one. tests/training/test_training_compat.py names what an upgrade broke.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor

# Lightning notes in this attribute the hook that it is in, some 40 times a step.
HOOK_NAME = "_current_fx_name"


def starts_processes(trainer: Trainer) -> bool:
    """Return whether Lightning starts a run's further processes by running the program again.

    There is no public name for the launcher that does.
    """
    launcher = trainer.strategy.launcher
    return isinstance(launcher, _SubprocessScriptLauncher) and not (
        launcher.cluster_environment.creates_processes_externally
    )


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from replacing the handlers of signals, which no argument of Trainer does."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def averaged_model(averaging: WeightAveraging) -> torch.optim.swa_utils.AveragedModel | None:
    """Return the average that Lightning's callback keeps, or None before the fit; it has no public name."""
    return averaging._average_model


def evaluated_module(trainer: Trainer, pl_module: LightningModule) -> LightningModule:
    """Return the module with the weights that are validated: the average, where the run keeps one.

    Lightning swaps it in while it validates, and back before the callbacks' last hook.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and (average := averaged_model(callback)) is not None:
            assert isinstance(average.module, LightningModule)
            return average.module
    return pl_module


def latest_update(averaging: WeightAveraging) -> int:
    """Return the step at which the average was updated last, which Lightning saves and restores."""
    return averaging._latest_update_step


def set_latest_update(averaging: WeightAveraging, step: int) -> None:
    """Note the step of an update that was made without Lightning's own hook."""
    averaging._latest_update_step = step


def lerp_all_(averages: list[Tensor], current: list[Tensor], weight: float) -> None:
    """Move each tensor towards another, in place: one kernel for all, where the public functions take one each."""
    torch._foreach_lerp_(averages, current, weight)


def copy_all_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each tensor into another, in place and in one kernel."""
    torch._foreach_copy_(targets, sources)


def let_lightning_scale(optimizer: torch.optim.Optimizer) -> None:
    """Keep a fused optimizer from offering to undo the loss scaling of fp16 itself.

    For that offer Lightning refuses to clip gradients, with bf16 too. It scales back just as well.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def write_hparams(writer: Any, hparams: Mapping[str, bool | int | float | str]) -> None:
    """Write a run's hyperparameters alone, without the columns of TensorBoard's table.

    Both SummaryWriter.add_hparams and Lightning's log_hyperparams name the columns too: TensorBoard takes those of
    a single run for all, and a run in progress has to give its results as 0. Left to itself it shows what any run
    has, the hyperparameters that differ first, and leaves empty what is not known yet.

    Args:
        writer: a SummaryWriter.
        hparams: by name.
    """
    from tensorboard.plugins.hparams import summary_v2  # what hparams.api offers, without TensorFlow; not quick

    writer._get_file_writer().add_summary(summary_v2.hparams_pb(hparams, trial_id=""))  # "": named as the run
