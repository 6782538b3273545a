"""Grad-CAM of a fixed sample of held-out faces."""

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from fer_lightning.callbacks.drawing import (
    SplitPredictions,
    balanced_sample,
    classifier,
    save_figure,
    test_predictions,
    validation_predictions,
)
from fer_lightning.drawing.faces import heat_overlay, prediction_grid
from fer_lightning.errors import check_at_least_one
from fer_lightning.inference.grad_cam import grad_cam
from fer_lightning.training.compat import evaluated_module


class GradCAM(Callback):
    """Callback that draws PredictionGrid's sample with heat maps of the evidence for each predicted emotion.

    Each figure costs a forward and a backward pass over the sample. A network without feature maps is an error.

    Args:
        n_faces: faces in the figure; use PredictionGrid's value to get the same sample.
        every_n_epochs: draw the validation split after every n-th epoch.

    Raises:
        UserError: a value is below 1.
    """

    def __init__(self, n_faces: int = 28, every_n_epochs: int = 1) -> None:
        for name, value in (("n_faces", n_faces), ("every_n_epochs", every_n_epochs)):
            check_at_least_one(f"callbacks.grad_cam.{name}", value)
        self.n_faces = n_faces
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the sample of the validation split."""
        if (predictions := validation_predictions(trainer, pl_module, self.every_n_epochs)) is not None:
            evaluated = evaluated_module(trainer, pl_module)
            self._draw(trainer, evaluated, predictions, "predictions", "grad_cam_val.png")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the sample of the headline test split."""
        if (predictions := test_predictions(trainer, pl_module)) is not None:
            self._draw(trainer, pl_module, predictions, "predictions_test", "grad_cam_test.png")

    def _draw(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: SplitPredictions,
        section: str,
        file_name: str,
    ) -> None:
        sample = balanced_sample(predictions.labels, self.n_faces)
        faces, probabilities = predictions.images[predictions.rows[sample]], predictions.probabilities[sample]
        heat = grad_cam(classifier(pl_module), faces, probabilities.argmax(axis=1).tolist())
        overlays = np.stack([heat_overlay(*pair) for pair in zip(faces, heat, strict=True)])
        title = f"{predictions.title}: evidence for the predicted emotion (Grad-CAM)"
        figure = prediction_grid(overlays, predictions.labels[sample], probabilities, title, predictions.classes)
        save_figure(trainer, figure, f"{section}/grid_grad_cam", file_name)
