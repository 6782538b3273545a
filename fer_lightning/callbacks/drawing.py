"""Shared parts of the drawing callbacks: the predictions to draw, and the output of figures."""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure

from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.drawing.style import pixels, write_png
from fer_lightning.inference.classifier import Classifier
from fer_lightning.training.module import EmotionClassifier


@dataclass(frozen=True, eq=False)
class SplitPredictions:
    """Predictions of the latest evaluation on one split.

    Attributes:
        title: the split's name, during a fit with the epoch, e.g. "PublicTest after epoch 12".
        images: all faces of the dataset, uint8 (faces, 48, 48), indexed by `rows`.
        rows: the split's rows in ascending order, int64 (N,).
        labels: int64 (N,).
        probabilities: float32 (N, C).
        classes: names of the C classes.
    """

    title: str
    images: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]


def validation_predictions(
    trainer: Trainer, pl_module: LightningModule, every_n_epochs: int
) -> SplitPredictions | None:
    """Return the validation split's predictions in ``on_validation_end``, or None if nothing is to be drawn."""
    fitting = trainer.state.fn == TrainerFn.FITTING
    skip = fitting and (trainer.current_epoch + 1) % every_n_epochs != 0
    if trainer.sanity_checking or skip or not trainer.is_global_zero:
        return None
    data = data_of(trainer)
    suffix = f" after epoch {trainer.current_epoch}" if fitting else ""
    return _predictions(data, pl_module, data.val_usages, data.val_split, suffix)


def test_predictions(trainer: Trainer, pl_module: LightningModule) -> SplitPredictions | None:
    """Return the headline test split's predictions in ``on_test_end``, or None in a process that does not draw."""
    if not trainer.is_global_zero:
        return None
    data = data_of(trainer)
    return _predictions(data, pl_module, data.test_usages, data.test_split, "")


def data_of(trainer: Trainer) -> FaceDataModule:
    """Return the run's data module."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, FaceDataModule)
    return data


def _predictions(
    data: FaceDataModule, pl_module: LightningModule, usages: tuple[int, ...], split: str, suffix: str
) -> SplitPredictions:
    assert isinstance(pl_module, EmotionClassifier)
    held_out = pl_module.held_out
    assert held_out is not None
    rows = held_out.index.numpy()
    selected = np.isin(data.usage[rows], usages)
    probabilities = torch.softmax(held_out.logits, dim=1).numpy()
    return SplitPredictions(
        title=split + suffix,
        images=data.faces.images,
        rows=rows[selected],
        labels=held_out.labels.numpy()[selected],
        probabilities=probabilities[selected],
        classes=pl_module.inputs.classes,
    )


def classifier(pl_module: LightningModule) -> Classifier:
    """Wrap the module's network with its current weights in a Classifier."""
    assert isinstance(pl_module, EmotionClassifier)
    # A Classifier computes in float32, a run with trainer.precision=bf16-true or the like in another type.
    net = pl_module.net
    if pl_module.dtype != torch.float32:
        with torch.inference_mode(False):  # Grad-CAM needs gradients
            net = deepcopy(net).float()
    return Classifier(net, pl_module.inputs, str(pl_module.device))


def balanced_sample(labels: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Select up to n positions in labels (N,), class by class in turn.

    The selection depends only on the labels. The positions of each class are spread evenly over the split.

    Returns:
        int64 positions, min(n, N) of them.
    """
    by_class = [np.flatnonzero(labels == index) for index in range(labels.max(initial=-1) + 1)]
    turns = sorted((turn, index) for index, rows in enumerate(by_class) for turn in range(min(len(rows), n)))[:n]
    counts = Counter(index for _, index in turns)
    sample = [by_class[index][turn * len(by_class[index]) // counts[index]] for turn, index in turns]
    return np.array(sample, dtype=np.int64)


def tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    """Return the run's TensorBoard logger, or None if it has none or this process does not write."""
    if not trainer.is_global_zero:
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def save_figure(trainer: Trainer, figure: Figure, tag: str, file_name: str) -> None:
    """Write a figure to the run's ``figures/`` and, with the epoch as the step, to the loggers that take pictures.

    Args:
        trainer: the run's trainer, in the process that writes.
        figure: the figure.
        tag: its name in the loggers. TensorBoard shows the pictures in alphabetical order.
        file_name: its name in ``figures/``.
    """
    picture, epoch = pixels(figure), trainer.current_epoch
    write_png(picture, Path(trainer.default_root_dir) / "figures" / file_name)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, picture, epoch, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [picture], epoch)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, key=tag, step=epoch)
