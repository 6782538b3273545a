"""The test of a run: the best weights and the last ones, or the mean of several networks."""

from collections.abc import Sequence

from lightning.pytorch import Trainer

from fer_lightning.callbacks.checkpoints import best_checkpoint
from fer_lightning.data.datamodule import FaceDataModule
from fer_lightning.evaluation.scores import Predictions, ensemble, score_classes, score_splits, select
from fer_lightning.experiment.record import RunRecord
from fer_lightning.files import Json
from fer_lightning.training.module import EmotionClassifier


def test(module: EmotionClassifier, data: FaceDataModule, trainer: Trainer, record: RunRecord) -> None:
    """Tests the best weights, and after a fit the last ones beside them, on every held-out split.

    Args:
        module: as the fit left it, or with the weights to test.
        data: the faces.
        trainer: that of the fit, if there was one.
        record: gains the scores.
    """
    best = best_checkpoint(trainer)
    if best is not None:
        # First, for the best weights take the place of the last ones in `module`.
        record.last_epoch = score_splits(predict(module, data, trainer), data.faces)
    trainer.test(module, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
    assert module.held_out is not None
    record.set_scores(*headline(module.held_out, data))
    if module.tta != "none":
        module.tta = "none"
        record.without_tta = score_splits(predict(module, data, trainer), data.faces)
        module.tta = record.tta


def predict(module: EmotionClassifier, data: FaceDataModule, trainer: Trainer) -> Predictions:
    """The answers to every held-out image, whichever process they come from."""
    trainer.predict(module, datamodule=data, return_predictions=False)
    assert module.held_out is not None
    return module.held_out


def test_ensemble(
    modules: Sequence[EmotionClassifier], datas: Sequence[FaceDataModule], trainer: Trainer, record: RunRecord
) -> None:
    """Tests the mean of the networks' probabilities, and each network beside it, on every held-out split.

    Args:
        modules: the networks.
        datas: the same faces for each network, at its own size and normalisation.
        trainer: one that has not fitted.
        record: gains the scores.
    """

    def predict_all(tta: str) -> list[Predictions]:
        predictions = []
        for module, data in zip(modules, datas, strict=True):
            module.tta = tta
            predictions.append(predict(module, data, trainer))
        return predictions

    faces = datas[0].faces
    predictions = predict_all(record.tta)
    record.set_scores(*headline(ensemble(predictions), datas[0]))
    for member, own in zip(record.members or [], predictions, strict=True):
        member["splits"] = score_splits(own, faces)
    if record.tta != "none":
        record.without_tta = score_splits(ensemble(predict_all("none")), faces)


def headline(predictions: Predictions, data: FaceDataModule) -> tuple[str, dict[str, Json], dict[str, Json]]:
    """Return the headline split, the scores of every split, and those of each class on the headline split."""
    logits, labels, _ = select(predictions, data.faces, data.test_usages)
    return data.test_split, score_splits(predictions, data.faces), score_classes(logits, labels)
