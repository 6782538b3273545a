"""Figures of held-out faces with their predictions."""

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from fer_lightning.callbacks.drawing import (
    SplitPredictions,
    balanced_sample,
    save_figure,
    test_predictions,
    validation_predictions,
)
from fer_lightning.drawing.faces import prediction_grid
from fer_lightning.errors import check_at_least_one
from fer_lightning.evaluation.scores import confident_mistakes


class PredictionGrid(Callback):
    """Callback that draws a fixed sample of held-out faces and the most confident mistakes, with predictions.

    The sample is the same after every epoch and in every run on the same data. The figures need no forward pass.
    `most_confident_mistakes.png` shows the split that was evaluated last.

    Args:
        n_faces: faces in each figure.
        every_n_epochs: draw the validation split after every n-th epoch.

    Raises:
        UserError: `every_n_epochs` is below 1.
    """

    def __init__(self, n_faces: int = 28, every_n_epochs: int = 1) -> None:
        self.n_faces = n_faces
        check_at_least_one("callbacks.prediction_grid.every_n_epochs", every_n_epochs)
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation split."""
        if (predictions := validation_predictions(trainer, pl_module, self.every_n_epochs)) is not None:
            self._draw(trainer, predictions, "predictions", "predictions_val.png")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the headline test split."""
        if (predictions := test_predictions(trainer, pl_module)) is not None:
            self._draw(trainer, predictions, "predictions_test", "predictions_test.png")

    def _draw(self, trainer: Trainer, predictions: SplitPredictions, section: str, file_name: str) -> None:
        labels, probabilities = predictions.labels, predictions.probabilities
        correct = probabilities.argmax(axis=1) == labels
        sample = balanced_sample(labels, self.n_faces)
        title = f"{predictions.title}: {correct[sample].sum()} of {len(sample)} correct in a fixed sample"
        save_figure(trainer, _grid(predictions, sample, title), f"{section}/grid", file_name)

        mistakes = confident_mistakes(labels, probabilities, self.n_faces)
        title = f"{predictions.title}: most confident of {(~correct).sum():,} mistakes in {len(correct):,}"
        figure = _grid(predictions, mistakes, title)
        save_figure(
            trainer,
            figure,
            f"{section}/most_confident_mistakes",
            "most_confident_mistakes.png",
        )


def _grid(predictions: SplitPredictions, positions: npt.NDArray[np.int64], title: str) -> Figure:
    images = predictions.images[predictions.rows[positions]]
    labels, probabilities = predictions.labels[positions], predictions.probabilities[positions]
    return prediction_grid(images, labels, probabilities, title, predictions.classes)
