"""What the drawing callbacks share: the predictions to draw, and where figures go."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure

from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.drawing.style import pixels, write_png
from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.inference.classifier import Classifier
from fer_lightning.training.module import EmotionClassifier


@dataclass(frozen=True, eq=False)
class SplitPredictions:
    """What the network just said of one split."""

    when: str  # "PublicTest after epoch 12", or the split alone at test
    images: npt.NDArray[np.uint8]  # (all faces, 48, 48), to be indexed with rows
    rows: npt.NDArray[np.int64]  # (N,) ascending
    labels: npt.NDArray[np.int64]  # (N,)
    probabilities: npt.NDArray[np.float32]  # (N, 7)


def validation_predictions(
    trainer: Trainer, pl_module: LightningModule, every_n_epochs: int
) -> SplitPredictions | None:
    """The validation split's, for ``on_validation_end``; None where there is nothing to draw now."""
    fitting = trainer.state.fn == TrainerFn.FITTING
    skip = fitting and (trainer.current_epoch + 1) % every_n_epochs != 0
    if trainer.sanity_checking or skip or not trainer.is_global_zero:
        return None
    data = _data(trainer)
    after = f" after epoch {trainer.current_epoch}" if fitting else ""
    return _predictions(data, pl_module, data.val_usages, data.val_split, after)


def test_predictions(trainer: Trainer, pl_module: LightningModule) -> SplitPredictions | None:
    """The headline test split's, for ``on_test_end``; None in a process that draws nothing."""
    if not trainer.is_global_zero:
        return None
    data = _data(trainer)
    return _predictions(data, pl_module, data.test_usages, data.test_split, "")


def _data(trainer: Trainer) -> FaceDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, FaceDataModule)
    return data


def _predictions(
    data: FaceDataModule, pl_module: LightningModule, usages: tuple[int, ...], split: str, after: str
) -> SplitPredictions:
    assert isinstance(pl_module, EmotionClassifier)
    held_out = pl_module.held_out
    assert held_out is not None
    rows = held_out.index.numpy()
    inside = np.isin(data.faces.usage[rows], usages)
    probabilities = torch.softmax(held_out.logits, dim=1).numpy()
    return SplitPredictions(
        when=split + after,
        images=data.faces.images,
        rows=rows[inside],
        labels=held_out.labels.numpy()[inside],
        probabilities=probabilities[inside],
    )


def classifier(pl_module: LightningModule) -> Classifier:
    """The module's network as it is now, to ask for more than the split's answers."""
    assert isinstance(pl_module, EmotionClassifier)
    return Classifier(pl_module.net, pl_module.inputs, str(pl_module.device))


def balanced_sample(labels: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Positions (up to n,) in labels (N,), dealt out class by class in turn until n are reached.

    A function of the labels alone. Those of one class are spread evenly over the split.
    """
    by_class = [np.flatnonzero(labels == index) for index in range(NUM_CLASSES)]
    deal = sorted((turn, index) for index, found in enumerate(by_class) for turn in range(min(len(found), n)))[:n]
    share = Counter(index for _, index in deal)
    chosen = [by_class[index][turn * len(by_class[index]) // share[index]] for turn, index in deal]
    return np.array(chosen, dtype=np.int64)


def tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    """The run's TensorBoard logger, if it has one and this process is the one that writes."""
    if not trainer.is_global_zero:
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def show(trainer: Trainer, figure: Figure, tag: str, file_name: str) -> None:
    """Write the figure to the run's ``figures/`` and, with the epoch as its step, to TensorBoard."""
    picture = pixels(figure)
    write_png(picture, Path(trainer.default_root_dir) / "figures" / file_name)
    if (logger := tensorboard(trainer)) is not None:
        logger.experiment.add_image(tag, picture, trainer.current_epoch, dataformats="HWC")
