"""The confusion matrix after every validation and test."""

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from fer_lightning.callbacks.drawing import SplitPredictions, show, test_predictions, validation_predictions
from fer_lightning.drawing.curves import confusion_matrix
from fer_lightning.emotions import NUM_CLASSES
from fer_lightning.errors import UserError


class ConfusionMatrix(Callback):
    """Draws which emotion is taken for which, on the validation split and on the headline test split.

    Args:
        every_n_epochs: 1 draws after every epoch's validation.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise UserError(f"every_n_epochs={every_n_epochs} must be at least 1.")
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (predictions := validation_predictions(trainer, pl_module, self.every_n_epochs)) is not None:
            show(trainer, _figure(predictions), "confusion/val", "confusion_val.png")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (predictions := test_predictions(trainer, pl_module)) is not None:
            show(trainer, _figure(predictions), "confusion/test", "confusion_test.png")


def _figure(of: SplitPredictions) -> Figure:
    counts = confusion_counts(of.labels, of.probabilities.argmax(axis=1))
    return confusion_matrix(counts, f"Confusion on {of.when}")


def confusion_counts(labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Int64 (7, 7) from labels and predictions (N,): true classes in rows, predicted ones in columns."""
    cells = labels * NUM_CLASSES + predicted
    return np.bincount(cells, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)
