"""Pictures of what the network says of held-out faces."""

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from fer_lightning.callbacks.drawing import (
    SplitPredictions,
    balanced_sample,
    show,
    test_predictions,
    validation_predictions,
)
from fer_lightning.drawing.faces import prediction_grid
from fer_lightning.errors import UserError
from fer_lightning.evaluation.scores import confident_mistakes


class PredictionGrid(Callback):
    """Draws a fixed sample of held-out faces with their predictions, and the most confident mistakes.

    The sample is the same after every epoch and in every run on the same data; it costs no forward pass.
    `most_confident_mistakes.png` is of the split that was evaluated last.

    Args:
        n_faces: faces in each figure.
        every_n_epochs: 1 draws after every epoch's validation.
    """

    def __init__(self, n_faces: int = 28, every_n_epochs: int = 1) -> None:
        self.n_faces = n_faces
        if every_n_epochs < 1:
            raise UserError(f"every_n_epochs={every_n_epochs} must be at least 1.")
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (predictions := validation_predictions(trainer, pl_module, self.every_n_epochs)) is not None:
            self._draw(trainer, predictions, "predictions", "predictions_val.png")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (predictions := test_predictions(trainer, pl_module)) is not None:
            self._draw(trainer, predictions, "predictions_test", "predictions_test.png")

    def _draw(self, trainer: Trainer, of: SplitPredictions, section: str, file_name: str) -> None:
        right = of.probabilities.argmax(axis=1) == of.labels
        sample = balanced_sample(of.labels, self.n_faces)
        title = f"{of.when}: {right[sample].sum()} right of a fixed sample of {len(sample)}"
        show(trainer, _grid(of, sample, title), f"{section}/sample", file_name)

        mistakes = confident_mistakes(of.labels, of.probabilities, self.n_faces)
        title = f"{of.when}: most confident of {(~right).sum():,} mistakes in {len(right):,}"
        figure = _grid(of, mistakes, title)
        show(
            trainer,
            figure,
            f"{section}/most_confident_mistakes",
            "most_confident_mistakes.png",
        )


def _grid(of: SplitPredictions, chosen: npt.NDArray[np.int64], title: str) -> Figure:
    images = of.images[of.rows[chosen]]
    return prediction_grid(images, of.labels[chosen], of.probabilities[chosen], title)
