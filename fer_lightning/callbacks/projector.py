"""Features of test faces for TensorBoard's embedding projector."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fer_lightning.callbacks.drawing import balanced_sample, classifier, tensorboard, test_predictions
from fer_lightning.errors import UserError
from fer_lightning.inference.classifier import Classifier

# FERModel0 has 16,384 features at 128 px, which would send hundreds of MiB to the browser.
MAX_FEATURES = 128


class Projector(Callback):
    """Callback that writes features and images of test faces for TensorBoard's Projector tab.

    Args:
        n_faces: number of faces of the test split, from 2 to 5000, taken class by class in turn.

    Raises:
        UserError: `n_faces` is out of range.
    """

    def __init__(self, n_faces: int = 1000) -> None:
        if not 2 <= n_faces <= 5000:
            raise UserError(f"callbacks.projector.n_faces={n_faces}: expected 2 to 5000.")
        self.n_faces = n_faces

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise UserError if the run has no TensorBoard logger."""
        # fast_dev_run disables all loggers.
        if trainer.is_global_zero and tensorboard(trainer) is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise UserError("callbacks=projector needs TensorBoard. Set logger=tensorboard.")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the embedding of the headline test split."""
        predictions, logger = test_predictions(trainer, pl_module), tensorboard(trainer)
        if predictions is None or logger is None:
            return
        sample = balanced_sample(predictions.labels, self.n_faces)
        faces, labels = predictions.images[predictions.rows[sample]], predictions.labels[sample]
        classes = predictions.classes
        logger.experiment.add_embedding(
            principal_components(penultimate_features(classifier(pl_module), faces), MAX_FEATURES),
            metadata=[
                [classes[label], classes[probabilities.argmax()], f"{probabilities.max():.3f}"]
                for label, probabilities in zip(labels, predictions.probabilities[sample], strict=True)
            ],
            metadata_header=["emotion", "predicted", "confidence"],
            label_img=torch.from_numpy(faces).unsqueeze(1).float() / 255,
            global_step=trainer.current_epoch,
            tag=predictions.title,
        )
        logger.experiment.flush()


def penultimate_features(
    clf: Classifier, faces: npt.NDArray[np.uint8], batch_size: int = 256
) -> npt.NDArray[np.float32]:
    """Compute the input of the last linear layer for faces (N, H, W): float32 (N, features).

    Raises:
        UserError: the network does not end in a linear layer.
    """
    linear = [module for module in clf.net.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1].out_features != len(clf.inputs.classes):
        raise UserError(
            "callbacks=projector shows the input of a final linear layer, which this network lacks. Leave it out."
        )
    features: list[Tensor] = []

    def capture(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        features.append(inputs[0].float().cpu())

    with linear[-1].register_forward_pre_hook(capture), torch.no_grad():
        for start in range(0, len(faces), batch_size):
            # Not clf.net(...), because a network compiled for the fit would not run the hook.
            clf.net.forward(clf.net_input(faces[start : start + batch_size]))
    return torch.cat(features).numpy()


def principal_components(features: npt.NDArray[np.float32], at_most: int) -> npt.NDArray[np.float32]:
    """Reduce features (N, D) to their first `at_most` principal components, if D is larger than that."""
    if features.shape[1] <= at_most:
        return features
    u, s, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    return (u * s)[:, :at_most]  # type: ignore[no-any-return]
