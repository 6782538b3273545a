"""Test the best and the last weights of a run, or an ensemble of several networks."""

from collections.abc import Sequence

from lightning.pytorch import Trainer

from fer_lightning.callbacks.checkpoints import best_checkpoint
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.evaluation.scores import Predictions, ensemble, score_classes, score_splits, select
from fer_lightning.experiment.record import RunRecord
from fer_lightning.files import Json
from fer_lightning.training.module import EmotionClassifier


def test(module: EmotionClassifier, data: FaceDataModule, trainer: Trainer, record: RunRecord) -> None:
    """Test the best weights, and after a fit also the last ones, on every held-out split.

    Args:
        module: the module after the fit, or with the weights to test.
        data: the faces.
        trainer: the trainer of the fit, if there was one.
        record: receives the scores.
    """
    best = best_checkpoint(trainer)
    if best is not None:
        # Before trainer.test, which loads the best weights into `module` over the last ones.
        record.last_epoch = score_splits(predict(module, data, trainer), data.faces)
    trainer.test(module, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
    assert module.held_out is not None
    record.set_scores(*headline_scores(module.held_out, data))
    if module.tta != "none":
        module.tta = "none"
        record.without_tta = score_splits(predict(module, data, trainer), data.faces)
        module.tta = record.tta


def predict(module: EmotionClassifier, data: FaceDataModule, trainer: Trainer) -> Predictions:
    """Return the logits of every held-out image, gathered from all processes."""
    trainer.predict(module, datamodule=data, return_predictions=False)
    assert module.held_out is not None
    return module.held_out


def test_ensemble(
    modules: Sequence[EmotionClassifier],
    datamodules: Sequence[FaceDataModule],
    trainer: Trainer,
    record: RunRecord,
) -> None:
    """Test the mean of the networks' probabilities, and each network alone, on every held-out split.

    Args:
        modules: the networks.
        datamodules: the same faces for each network, at its input size and normalisation.
        trainer: a trainer that has not run a fit.
        record: receives the scores.
    """

    def predict_all(tta: str) -> list[Predictions]:
        predictions = []
        for module, data in zip(modules, datamodules, strict=True):
            module.tta = tta
            predictions.append(predict(module, data, trainer))
        return predictions

    faces = datamodules[0].faces
    predictions = predict_all(record.tta)
    record.set_scores(*headline_scores(ensemble(predictions), datamodules[0]))
    for member, member_predictions in zip(record.members or [], predictions, strict=True):
        member["splits"] = score_splits(member_predictions, faces)
    if record.tta != "none":
        record.without_tta = score_splits(ensemble(predict_all("none")), faces)


def headline_scores(predictions: Predictions, data: FaceDataModule) -> tuple[str, dict[str, Json], dict[str, Json]]:
    """Return the headline split, the scores of every split, and the scores per class on the headline split."""
    logits, labels, _ = select(predictions, data.faces, data.test_usages)
    return data.test_split, score_splits(predictions, data.faces), score_classes(logits, labels, data.faces.classes)
