"""Wrappers around private APIs of Lightning, torch and TensorBoard, each with the reason for its use.

No other module of the package may use these APIs. tests/training/test_training_compat.py shows which of them an
upgrade broke.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor

# The attribute that Lightning sets to the name of the current hook, about 40 times per step.
HOOK_NAME = "_current_fx_name"


def runs_program_again(strategy: Strategy) -> bool:
    """Return whether Lightning starts the processes of this strategy by running the program again.

    The launcher that does so has no public name; others fork, or pickle the run and send it to the new processes.
    """
    return isinstance(strategy.launcher, _SubprocessScriptLauncher)


def starts_processes(trainer: Trainer) -> bool:
    """Return whether this process is to start the run's other processes by running the program again."""
    launcher = trainer.strategy.launcher
    return isinstance(launcher, _SubprocessScriptLauncher) and not (
        launcher.cluster_environment.creates_processes_externally
    )


def keep_signal_handlers(trainer: Trainer) -> None:
    """Keep Lightning from replacing signal handlers; no Trainer argument prevents it."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def averaged_model(averaging: WeightAveraging) -> torch.optim.swa_utils.AveragedModel | None:
    """Return the averaged model of Lightning's callback, or None before the fit; it has no public accessor."""
    return averaging._average_model


def evaluated_module(trainer: Trainer, pl_module: LightningModule) -> LightningModule:
    """Return the module whose weights are validated: the average if the run keeps one, else `pl_module`.

    Lightning swaps the average in for validation, and back before the callbacks' ``on_validation_end``.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and (average := averaged_model(callback)) is not None:
            assert isinstance(average.module, LightningModule)
            return average.module
    return pl_module


def latest_update(averaging: WeightAveraging) -> int:
    """Return the step of the average's last update, which Lightning saves and restores."""
    return averaging._latest_update_step


def set_latest_update(averaging: WeightAveraging, step: int) -> None:
    """Record the step of an update made outside Lightning's own hook."""
    averaging._latest_update_step = step


def lerp_all_(averages: list[Tensor], current: list[Tensor], weight: float) -> None:
    """Interpolate each tensor towards another in place, with one kernel for all tensors instead of one for each."""
    if [tensor.dtype for tensor in averages] != [tensor.dtype for tensor in current]:  # e.g. precision=bf16-true
        current = [tensor.to(average.dtype) for tensor, average in zip(current, averages, strict=True)]
    torch._foreach_lerp_(averages, current, weight)


def copy_all_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others in place, with one kernel for all of them."""
    torch._foreach_copy_(targets, sources)


def let_lightning_unscale(optimizer: torch.optim.Optimizer) -> None:
    """Keep a fused optimizer from unscaling fp16 gradients itself, so that Lightning does it instead.

    Lightning refuses to clip the gradients of an optimizer that unscales internally, with bf16 as well as fp16.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def write_charts(writer: Any, category: str, charts: Mapping[str, Sequence[str]]) -> None:
    """Write the layout of TensorBoard's Custom Scalars tab, with charts that TensorBoard does not smooth.

    It smooths multi-line charts by 0.6 until told otherwise in the browser, which at a few epochs shows values that
    no epoch had. It never smooths margin charts, here with margins of zero width; SummaryWriter.add_custom_scalars
    allows only one line in such a chart. TensorBoard 2.21 shows margin charts in reverse order.

    Args:
        writer: a SummaryWriter.
        category: heading of the charts.
        charts: title of each chart -> tags of its lines.
    """
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2  # slow to import
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    lines = {
        title: [layout_pb2.MarginChartContent.Series(value=tag, lower=tag, upper=tag) for tag in tags]
        for title, tags in charts.items()
    }
    content = [
        layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=series))
        for title, series in lines.items()
    ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title=category, chart=content[::-1])])
    value = summary_pb2.Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=tensor_pb2.TensorProto(
            dtype="DT_STRING",
            string_val=[layout.SerializeToString()],
            tensor_shape=tensor_shape_pb2.TensorShapeProto(),
        ),
    )
    writer._get_file_writer().add_summary(summary_pb2.Summary(value=[value]))


def write_hparams(writer: Any, hparams: Mapping[str, bool | int | float | str]) -> None:
    """Write a run's hyperparameters without declaring the columns of TensorBoard's table.

    SummaryWriter.add_hparams and Lightning's log_hyperparams also declare columns: TensorBoard then uses one run's
    columns for all runs, and an unfinished run has to report its results as 0. Without a declaration TensorBoard
    shows the union of all runs' columns, differing hyperparameters first, and leaves unknown cells empty.

    Args:
        writer: a SummaryWriter.
        hparams: hyperparameter name -> value.
    """
    from tensorboard.plugins.hparams import summary_v2  # hparams.api without TensorFlow; slow to import

    writer._get_file_writer().add_summary(summary_v2.hparams_pb(hparams, trial_id=""))  # "": named after the run
