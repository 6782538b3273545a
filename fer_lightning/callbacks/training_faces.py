"""Figure of training faces as the network sees them."""

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from fer_lightning.callbacks.drawing import balanced_sample, data_of, save_figure
from fer_lightning.data.augment import resize
from fer_lightning.drawing.faces import face_table
from fer_lightning.errors import check_at_least_one

_MOST_COLUMNS = 10


class TrainingFaces(Callback):
    """Callback that draws a training face of each class as augmented in the first epochs, when the fit starts.

    Args:
        n_epochs: number of epochs, a row of the figure for each.

    Raises:
        UserError: `n_epochs` is below 1.
    """

    def __init__(self, n_epochs: int = 3) -> None:
        check_at_least_one("callbacks.training_faces.n_epochs", n_epochs)
        self.n_epochs = n_epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figure."""
        if not trainer.is_global_zero:
            return
        data = data_of(trainer)
        classes, rows = data.faces.classes, data.rows(data.train_usages)
        labels = data.faces.labels[rows.numpy()]
        sample = rows[balanced_sample(labels, min(len(classes), _MOST_COLUMNS))]
        tables = [resize(data.images(sample), data.image_size)]
        tables += [data.mixed_preview(sample, epoch) for epoch in range(self.n_epochs)]
        pixels = [(255 * table.clamp(0, 1)).round().byte().squeeze(1).numpy() for table in tables]
        figure = face_table(
            np.stack(pixels),
            rows=["resized", *(f"epoch {epoch}" for epoch in range(self.n_epochs))],
            columns=[classes[label] for label in data.faces.labels[sample.numpy()]],
            title="Training faces, resized only and as augmented in each epoch",
        )
        save_figure(trainer, figure, "training/augmented", "training_faces.png")
