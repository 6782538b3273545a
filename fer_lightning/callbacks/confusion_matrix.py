"""Confusion matrices of validation and test."""

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from fer_lightning.callbacks.drawing import SplitPredictions, save_figure, test_predictions, validation_predictions
from fer_lightning.drawing.curves import confusion_matrix
from fer_lightning.errors import check_at_least_one


class ConfusionMatrix(Callback):
    """Callback that draws the confusion matrix of the validation split and of the headline test split.

    Args:
        every_n_epochs: draw the validation split after every n-th epoch.

    Raises:
        UserError: `every_n_epochs` is below 1.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        check_at_least_one("callbacks.confusion_matrix.every_n_epochs", every_n_epochs)
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation split."""
        if (predictions := validation_predictions(trainer, pl_module, self.every_n_epochs)) is not None:
            save_figure(trainer, _figure(predictions), "scores/confusion_val", "confusion_val.png")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the headline test split."""
        if (predictions := test_predictions(trainer, pl_module)) is not None:
            save_figure(trainer, _figure(predictions), "scores/confusion_test", "confusion_test.png")


def _figure(predictions: SplitPredictions) -> Figure:
    classes = predictions.classes
    counts = confusion_counts(predictions.labels, predictions.probabilities.argmax(axis=1), len(classes))
    return confusion_matrix(counts, f"Confusion on {predictions.title}", classes)


def confusion_counts(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], n_classes: int
) -> npt.NDArray[np.int64]:
    """Count labels and predictions (N,) into int64 (C, C): rows are true classes, columns predicted ones."""
    cells = labels * n_classes + predicted
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)
