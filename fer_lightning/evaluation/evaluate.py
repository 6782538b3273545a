"""How good a trained network is: intervals, calibration, robustness, and a test against another network."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_average_precision, multiclass_confusion_matrix

from fer_lightning.data.faces import TEST, VAL, Faces
from fer_lightning.emotions import EMOTIONS, NUM_CLASSES
from fer_lightning.errors import UserError
from fer_lightning.evaluation.corruptions import CORRUPTIONS, corrupt
from fer_lightning.evaluation.scores import Predictions, confident_mistakes, score_classes, score_splits, select
from fer_lightning.evaluation.statistics import calibration, fit_temperature, mcnemar, wilson_interval
from fer_lightning.files import Json
from fer_lightning.inference.classifier import Classifier

MISTAKES = 28  # listed, the most confident first


def held_out_predictions(clf: Classifier, faces: Faces, tta: str = "none") -> Predictions:
    """The classifier's answers on every image of both held-out splits."""
    rows = np.flatnonzero(np.isin(faces.usage, (VAL, TEST)))
    logits = torch.from_numpy(np.log(clf.predict(faces.images[rows], tta=tta).probabilities + 1e-30))
    return Predictions(torch.from_numpy(rows), logits, torch.from_numpy(faces.labels[rows]))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network's answers; `to_json` has what follows from them."""

    network: str  # for people to read: a name or a path
    parameters: int
    val_split: str | None  # that the network's run selected it on, where that is known
    faces: Faces
    tta: str
    predictions: Predictions  # of both held-out splits
    robustness: dict[str, list[float]]  # accuracy on the test split by corruption, one for each strength
    other: str | None = None  # what it is compared with
    other_predictions: Predictions | None = None

    @property
    def test(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, 7), labels (n,) and leak-free (n,) of the test split."""
        return select(self.predictions, self.faces, (TEST,))

    @property
    def test_rows(self) -> npt.NDArray[np.int64]:
        """The rows in `faces` of the test split: (n,)."""
        return np.flatnonzero(self.faces.usage == TEST)


def evaluate(
    network: str,
    clf: Classifier,
    faces: Faces,
    tell: Callable[[str], None],
    tta: str = "none",
    against: tuple[str, Classifier] | None = None,
) -> Evaluation:
    """Asks a network about the held-out splits, and about the test split under every corruption.

    Args:
        network: what to call it.
        clf: the network.
        faces: with a test split; without a validation split there is no temperature.
        tell: called with a line after each step.
        tta: test-time augmentation, a key of tta.VIEWS, used throughout.
        against: name and network to compare it with, on the clean images.

    Raises:
        UserError: no test split; no such `tta`.
    """
    rows = np.flatnonzero(faces.usage == TEST)
    if not len(rows):
        raise UserError(f"{faces.source} has no images to test on: give it a folder test/ with class folders.")
    predictions = held_out_predictions(clf, faces, tta)
    tell(f"{network}: {len(predictions.index):,} held-out images")
    other = None
    if against is not None:
        other = held_out_predictions(against[1], faces, tta)
        tell(f"{against[0]}: the same")
    robustness = {}
    for name, corruption in CORRUPTIONS.items():
        robustness[name] = [
            float((clf.predict(corrupt(faces.images[rows], name, s), tta).labels == faces.labels[rows]).mean())
            for s in corruption.strengths
        ]
        tell(f"{name}: {' '.join(f'{accuracy:.1%}' for accuracy in robustness[name])}")
    return Evaluation(
        network=network,
        parameters=sum(parameter.numel() for parameter in clf.net.parameters()),
        val_split=clf.val_split,
        faces=faces,
        tta=tta,
        predictions=predictions,
        robustness=robustness,
        other=against[0] if against else None,
        other_predictions=other,
    )


def to_json(found: Evaluation) -> Json:
    """Every number, with the names of results.json where it has them; images by their ids.

    ``confusion[i][j]`` counts the images of class i that were taken for class j.
    """
    faces = found.faces
    logits, labels, clean = found.test
    probabilities = logits.softmax(dim=1)
    split = faces.split_names[TEST]
    splits = score_splits(found.predictions, faces)
    for scores in splits.values():
        for key in ("accuracy", "accuracy_leak_free"):
            n = scores[key.replace("accuracy", "n")]
            scores[f"{key}_95"] = wilson_interval(round(scores[key] * n), n) if n else None
    per_class = score_classes(logits, labels)
    precisions = multiclass_average_precision(probabilities, labels, NUM_CLASSES, average="none").tolist()
    for scores, average_precision in zip(per_class.values(), precisions, strict=True):
        scores["average_precision"] = average_precision if scores["n"] else None
    mistakes = confident_mistakes(labels.numpy(), probabilities.numpy())
    return {
        "network": found.network,
        "parameters": found.parameters,
        "val_split": found.val_split,
        "dataset": faces.dataset,
        "source": faces.source,
        "data_fingerprint": faces.fingerprint,
        "notes": [*faces.notes, *_selection(found)],
        "tta": found.tta,
        "split": split,
        **splits[split],
        "splits": splits,
        "per_class": per_class,
        "confusion": multiclass_confusion_matrix(logits, labels, NUM_CLASSES).tolist(),
        "calibration": _calibration(found),
        "mistakes": [
            {
                "id": faces.ids[found.test_rows[i]],
                "label": EMOTIONS[int(labels[i])],
                "predicted": EMOTIONS[int(probabilities[i].argmax())],
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
            for name, accuracies in found.robustness.items()
        },
        "mean_corrupted_accuracy": float(np.mean(list(found.robustness.values()))),
        "comparison": _comparison(found),
    }


def _selection(found: Evaluation) -> list[str]:
    """Which of the splits has already decided which weights these are."""
    known = (found.val_split or "").split("+")
    both = [name for name in (found.faces.split_names[VAL], found.faces.split_names[TEST]) if name in known]
    if not both or found.faces.dataset != "FER-2013":  # elsewhere a split of the same name is another one
        return []
    return [f"weights selected on {'+'.join(both)} score too well on it"]


def _calibration(found: Evaluation) -> Json:
    """Before and after dividing the test split's logits by the validation split's temperature."""
    logits, labels, _ = found.test
    val_logits, val_labels, _ = select(found.predictions, found.faces, (VAL,))
    told: Json = {"before": calibration(logits, labels), "temperature": None, "fitted_on": None, "after": None}
    if len(val_labels):
        temperature = fit_temperature(val_logits, val_labels)
        told |= {
            "temperature": temperature,
            "fitted_on": found.faces.split_names[VAL],
            "after": calibration(logits / temperature, labels),
        }
    return told


def _comparison(found: Evaluation) -> Json | None:
    """`compare` with the other network; None without one."""
    if found.other_predictions is None:
        return None
    return {"against": found.other} | compare(found.predictions, found.other_predictions, found.faces)


def compare(predictions: Predictions, others: Predictions, faces: Faces) -> Json:
    """McNemar's test of two networks on the test split ("all") and on its leak-free part ("leak_free").

    Args:
        predictions: the first network's, of every image of the split.
        others: the second's, of the same images in the same order.
        faces: the dataset that their `index` points into.
    """
    logits, labels, clean = select(predictions, faces, (TEST,))
    other_logits, _, _ = select(others, faces, (TEST,))
    ours, theirs = logits.argmax(dim=1) == labels, other_logits.argmax(dim=1) == labels
    told: Json = {}
    for name, rows in (("all", torch.ones_like(clean)), ("leak_free", clean)):
        only_ours, only_theirs = int((ours & ~theirs & rows).sum()), int((theirs & ~ours & rows).sum())
        told[name] = {
            "n": int(rows.sum()),
            "both_right": int((ours & theirs & rows).sum()),
            "only_this_right": only_ours,
            "only_other_right": only_theirs,
            "p": mcnemar(only_ours, only_theirs),
        }
    return told
