"""The test split as the last layer sees it, for TensorBoard's embedding projector."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fer_lightning.callbacks.drawing import balanced_sample, classifier, tensorboard, test_predictions
from fer_lightning.emotions import EMOTIONS, NUM_CLASSES
from fer_lightning.errors import UserError
from fer_lightning.inference.classifier import Classifier

# FERModel0 has 16,384 features at 128 px, of which the browser would get hundreds of MiB.
MAX_FEATURES = 128


class Projector(Callback):
    """Writes the features of test faces, with the faces as sprites, where TensorBoard's Projector tab finds them.

    Args:
        n_faces: how many faces of the test split, class by class in turn.

    Raises:
        UserError: a value out of range.
    """

    def __init__(self, n_faces: int = 1000) -> None:
        if not 2 <= n_faces <= 5000:
            raise UserError(f"callbacks.projector.n_faces={n_faces} is out of range: it goes from 2 to 5000.")
        self.n_faces = n_faces

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # fast_dev_run is a rehearsal, without any logger.
        if trainer.is_global_zero and tensorboard(trainer) is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise UserError(
                "callbacks=projector writes for TensorBoard, which this run goes without: logger=tensorboard."
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        of, logger = test_predictions(trainer, pl_module), tensorboard(trainer)
        if of is None or logger is None:
            return
        sample = balanced_sample(of.labels, self.n_faces)
        faces, labels, answers = of.images[of.rows[sample]], of.labels[sample], of.probabilities[sample]
        logger.experiment.add_embedding(
            principal_components(penultimate_features(classifier(pl_module), faces), MAX_FEATURES),
            metadata=[
                [EMOTIONS[label], EMOTIONS[answer.argmax()], f"{answer.max():.3f}"]
                for label, answer in zip(labels, answers, strict=True)
            ],
            metadata_header=["emotion", "predicted", "confidence"],
            label_img=torch.from_numpy(faces).unsqueeze(1).float() / 255,
            global_step=trainer.current_epoch,
            tag=of.when,
        )
        logger.experiment.flush()


def penultimate_features(
    clf: Classifier, faces: npt.NDArray[np.uint8], batch_size: int = 256
) -> npt.NDArray[np.float32]:
    """What the last linear layer gets for faces (N, H, W): float32 (N, features).

    Raises:
        UserError: the network does not end in a linear layer.
    """
    linear = [module for module in clf.net.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1].out_features != NUM_CLASSES:
        raise UserError("This network does not end in a linear layer, whose input would be shown.")
    features: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
        features.append(given[0].float().cpu())

    with linear[-1].register_forward_pre_hook(keep), torch.no_grad():
        for start in range(0, len(faces), batch_size):
            # Not clf.net(...): a network compiled for the fit would not run the hook.
            clf.net.forward(clf.net_input(faces[start : start + batch_size]))
    return torch.cat(features).numpy()


def principal_components(features: npt.NDArray[np.float32], at_most: int) -> npt.NDArray[np.float32]:
    """Features (N, D) as they are, or where D is larger their first `at_most` principal components."""
    if features.shape[1] <= at_most:
        return features
    u, s, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    return (u * s)[:, :at_most]  # type: ignore[no-any-return]
