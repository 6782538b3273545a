"""Evaluation of a trained network: intervals, calibration, robustness and a paired test against another network."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_average_precision, multiclass_confusion_matrix

from fer_lightning.data.faces import TEST, VAL, Faces
from fer_lightning.errors import UserError
from fer_lightning.evaluation.corruptions import CORRUPTIONS, corrupt
from fer_lightning.evaluation.scores import (
    Predictions,
    confident_mistakes,
    score_classes,
    score_splits,
    select,
    select_strict,
)
from fer_lightning.evaluation.statistics import calibration, fit_temperature, mcnemar, wilson_interval
from fer_lightning.files import Json
from fer_lightning.inference.classifier import Classifier
from fer_lightning.models.tta import n_views

MISTAKES = 28  # mistakes to list, most confident first


def held_out_predictions(clf: Classifier, faces: Faces, tta: str = "none") -> Predictions:
    """Predict every image of both held-out splits.

    The logits of the result are the logarithms of the predicted probabilities.
    """
    rows = np.flatnonzero(np.isin(faces.usage, (VAL, TEST)))
    logits = torch.from_numpy(np.log(clf.predict(faces.images[rows], tta=tta).probabilities + 1e-30))
    return Predictions(torch.from_numpy(rows), logits, torch.from_numpy(faces.labels[rows]))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions of a network on the held-out splits; `to_json` computes the scores."""

    network: str  # display name or path
    parameters: int
    val_split: str | None  # split that the training run selected the weights on, if known
    faces: Faces
    tta: str
    predictions: Predictions  # on both held-out splits
    robustness: dict[str, list[float]]  # corruption -> accuracy on the test split at each strength
    own_tta: str | None = None  # the network's own, if its scores are reported beside those of `tta`
    own_predictions: Predictions | None = None  # on both held-out splits, with `own_tta`
    other: str | None = None  # name of the network to compare with
    other_predictions: Predictions | None = None

    @property
    def test(self) -> tuple[Tensor, Tensor, Tensor]:
        """The test split: logits (n, C), labels (n,) and a leak-free mask, bool (n,)."""
        return select(self.predictions, self.faces, (TEST,))

    @property
    def test_rows(self) -> npt.NDArray[np.int64]:
        """The rows of the test split in `faces`, int64 (n,)."""
        return np.flatnonzero(self.faces.usage == TEST)


def evaluate(
    network: str,
    clf: Classifier,
    faces: Faces,
    log: Callable[[str], None],
    tta: str | None = None,
    against: tuple[str, Classifier] | None = None,
) -> Evaluation:
    """Run a network on the held-out splits, and on the test split under every corruption.

    Args:
        network: display name of the network.
        clf: the network.
        faces: the dataset, with the network's classes in its order. The test split is required; without a
            validation split, no temperature is fitted.
        log: receives progress lines.
        tta: test-time augmentation of every prediction, a key of tta.VIEWS. None is "none", with the accuracy under
            the network's own beside it.
        against: name and network to compare with, on the clean images.

    Raises:
        UserError: the dataset has no test split, or `tta` is unknown.
    """
    rows = np.flatnonzero(faces.usage == TEST)
    if not len(rows):
        raise UserError(f"{faces.source}: no test images. Add a folder test/ with a subfolder per class.")
    own_tta = clf.own_tta if tta is None and clf.own_tta != "none" else None
    tta = "none" if tta is None else tta
    predictions = held_out_predictions(clf, faces, tta)
    log(f"{network}: {len(predictions.index):,} held-out images")
    own = None
    if own_tta:
        log(f"{network}: the same with tta={own_tta}, {n_views(own_tta)} views of each (--tta none leaves it out)")
        own = held_out_predictions(clf, faces, own_tta)
    other = None
    if against is not None:
        other = held_out_predictions(against[1], faces, tta)
        log(f"{against[0]}: {len(other.index):,} held-out images")
    robustness = {}
    for name, corruption in CORRUPTIONS.items():
        robustness[name] = [
            float((clf.predict(corrupt(faces.images[rows], name, s), tta).labels == faces.labels[rows]).mean())
            for s in corruption.strengths
        ]
        log(f"{name}: {' '.join(f'{accuracy:.1%}' for accuracy in robustness[name])}")
    return Evaluation(
        network=network,
        parameters=sum(parameter.numel() for parameter in clf.net.parameters()),
        val_split=clf.val_split,
        faces=faces,
        tta=tta,
        predictions=predictions,
        robustness=robustness,
        own_tta=own_tta,
        own_predictions=own,
        other=against[0] if against else None,
        other_predictions=other,
    )


def to_json(evaluation: Evaluation) -> Json:
    """Compute every score of an evaluation, JSON-serialisable.

    Keys match those of results.json where both have them, and images are named by id. ``confusion[i][j]`` is the
    number of images of class i that were predicted as class j.
    """
    faces = evaluation.faces
    logits, labels, clean = evaluation.test
    probabilities = logits.softmax(dim=1)
    split = faces.split_names[TEST]
    splits = _with_intervals(score_splits(evaluation.predictions, faces))
    own = evaluation.own_predictions
    per_class = score_classes(logits, labels, faces.classes)
    precisions = multiclass_average_precision(probabilities, labels, len(faces.classes), average="none").tolist()
    for scores, average_precision in zip(per_class.values(), precisions, strict=True):
        scores["average_precision"] = average_precision if scores["n"] else None
    mistakes = confident_mistakes(labels.numpy(), probabilities.numpy())
    return {
        "network": evaluation.network,
        "parameters": evaluation.parameters,
        "val_split": evaluation.val_split,
        "dataset": faces.dataset,
        "source": faces.source,
        "data_fingerprint": faces.fingerprint,
        "classes": list(faces.classes),
        "notes": [*faces.notes, *_selection_notes(evaluation)],
        "tta": evaluation.tta,
        "split": split,
        **splits[split],
        "splits": splits,
        "with_own_tta": own and {"tta": evaluation.own_tta, "splits": _with_intervals(score_splits(own, faces))},
        "per_class": per_class,
        "confusion": multiclass_confusion_matrix(logits, labels, len(faces.classes)).tolist(),
        "calibration": _calibration(evaluation),
        "mistakes": [
            {
                "id": faces.ids[evaluation.test_rows[i]],
                "label": faces.classes[int(labels[i])],
                "predicted": faces.classes[int(probabilities[i].argmax())],
                "confidence": float(probabilities[i].max()),
                "leak_free": bool(clean[i]),
            }
            for i in mistakes[:MISTAKES]
        ],
        "n_mistakes": len(mistakes),
        "robustness": {
            name: {
                "parameter": CORRUPTIONS[name].parameter,
                "strengths": list(CORRUPTIONS[name].strengths),
                "accuracy": accuracies,
                "mean_accuracy": float(np.mean(accuracies)),
            }
            for name, accuracies in evaluation.robustness.items()
        },
        "mean_corrupted_accuracy": float(np.mean(list(evaluation.robustness.values()))),
        "comparison": _comparison(evaluation),
    }


def _with_intervals(splits: dict[str, Json]) -> dict[str, Json]:
    """Add the 95% interval of each accuracy to the result of `score_splits`."""
    for scores in splits.values():
        for key in ("accuracy", "accuracy_leak_free", "accuracy_strict"):
            n = scores[key.replace("accuracy", "n")]
            scores[f"{key}_95"] = wilson_interval(round(scores[key] * n), n) if n else None
    return splits


def _selection_notes(evaluation: Evaluation) -> list[str]:
    """Return a note if the weights were selected on a split that is evaluated here."""
    known = (evaluation.val_split or "").split("+")
    selected = [
        name for name in (evaluation.faces.split_names[VAL], evaluation.faces.split_names[TEST]) if name in known
    ]
    # In another dataset, the same name is another split.
    if not selected or evaluation.faces.dataset not in ("FER-2013", "FER+"):
        return []
    return [f"weights selected on {'+'.join(selected)} have optimistic scores on it"]


def _calibration(evaluation: Evaluation) -> Json:
    """Measure the test split's calibration before and after scaling by the validation split's temperature."""
    logits, labels, _ = evaluation.test
    val_logits, val_labels, _ = select(evaluation.predictions, evaluation.faces, (VAL,))
    report: Json = {"before": calibration(logits, labels), "temperature": None, "fitted_on": None, "after": None}
    if len(val_labels):
        temperature = fit_temperature(val_logits, val_labels)
        report |= {
            "temperature": temperature,
            "fitted_on": evaluation.faces.split_names[VAL],
            "after": calibration(logits / temperature, labels),
        }
    return report


def _comparison(evaluation: Evaluation) -> Json | None:
    """Compare with the other network, or return None without one."""
    if evaluation.other_predictions is None:
        return None
    return {"against": evaluation.other} | compare(
        evaluation.predictions, evaluation.other_predictions, evaluation.faces
    )


def compare(predictions: Predictions, others: Predictions, faces: Faces) -> Json:
    """Run McNemar's test of two networks on the test split ("all") and on its parts ("leak_free" and "strict").

    Args:
        predictions: the first network's predictions on every image of the split.
        others: the second network's predictions on the same images in the same order.
        faces: the dataset that the predictions' `index` refers to.

    Returns:
        {"all" | "leak_free" | "strict": {"n", "both_right", "only_this_right", "only_other_right", "p"}}; "p" is
        the two-sided mid-p value, see `mcnemar`.
    """
    logits, labels, clean = select(predictions, faces, (TEST,))
    other_logits, _, _ = select(others, faces, (TEST,))
    ours, theirs = logits.argmax(dim=1) == labels, other_logits.argmax(dim=1) == labels
    report: Json = {}
    strict = select_strict(predictions, faces, (TEST,))
    for name, rows in (("all", torch.ones_like(clean)), ("leak_free", clean), ("strict", strict)):
        only_ours, only_theirs = int((ours & ~theirs & rows).sum()), int((theirs & ~ours & rows).sum())
        report[name] = {
            "n": int(rows.sum()),
            "both_right": int((ours & theirs & rows).sum()),
            "only_this_right": only_ours,
            "only_other_right": only_theirs,
            "p": mcnemar(only_ours, only_theirs),
        }
    return report
