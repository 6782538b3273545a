"""Where in the fixed sample's faces the network sees their emotions."""

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from fer_lightning.callbacks.drawing import (
    SplitPredictions,
    balanced_sample,
    classifier,
    show,
    test_predictions,
    validation_predictions,
)
from fer_lightning.drawing.faces import heat_overlay, prediction_grid
from fer_lightning.errors import UserError
from fer_lightning.inference.grad_cam import grad_cam
from fer_lightning.training.compat import evaluated_module


class GradCAM(Callback):
    """Draws PredictionGrid's sample under the maps of what speaks for each predicted emotion.

    It costs a forward and a backward pass of the sample. A network without feature maps ends the run.

    Args:
        n_faces: faces in the figure; the same as PredictionGrid's for the same sample.
        every_n_epochs: 1 draws after every epoch's validation.
    """

    def __init__(self, n_faces: int = 28, every_n_epochs: int = 1) -> None:
        for name, value in (("n_faces", n_faces), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise UserError(f"callbacks.grad_cam.{name}={value} must be at least 1.")
        self.n_faces = n_faces
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (predictions := validation_predictions(trainer, pl_module, self.every_n_epochs)) is not None:
            answered = evaluated_module(trainer, pl_module)
            self._draw(trainer, answered, predictions, "predictions", "grad_cam_val.png")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (predictions := test_predictions(trainer, pl_module)) is not None:
            self._draw(trainer, pl_module, predictions, "predictions_test", "grad_cam_test.png")

    def _draw(
        self, trainer: Trainer, pl_module: LightningModule, of: SplitPredictions, section: str, file_name: str
    ) -> None:
        sample = balanced_sample(of.labels, self.n_faces)
        faces, answers = of.images[of.rows[sample]], of.probabilities[sample]
        heat = grad_cam(classifier(pl_module), faces, answers.argmax(axis=1).tolist())
        overlays = np.stack([heat_overlay(*pair) for pair in zip(faces, heat, strict=True)])
        title = f"{of.when}: what speaks for the predicted emotion (Grad-CAM)"
        figure = prediction_grid(overlays, of.labels[sample], answers, title)
        show(trainer, figure, f"{section}/grad_cam", file_name)
