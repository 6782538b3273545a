"""What a run comes to: scores of every split, and how results.json is told in the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from fer_lightning.data.faces import TEST, VAL, Faces, seen_elsewhere
from fer_lightning.emotions import EMOTIONS, NUM_CLASSES
from fer_lightning.files import Json
from fer_lightning.models.tta import log_mean_probabilities


@dataclass(frozen=True)
class Predictions:
    """The network's answers on every held-out image of a validation or test epoch, on the CPU."""

    index: Tensor  # int64 (N,), rows of Faces, ascending
    logits: Tensor  # float32 (N, 7)
    labels: Tensor  # int64 (N,)


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """The mean of the probabilities that several networks gave for the same images."""
    logits = log_mean_probabilities(torch.stack([member.logits for member in members]))
    return Predictions(members[0].index, logits, members[0].labels)


def score(logits: Tensor, labels: Tensor) -> Json:
    """Accuracy, macro-F1 and cross-entropy.

    Args:
        logits: float32 (N, 7).
        labels: int64 (N,).

    Returns:
        {"n", "accuracy", "macro_f1", "loss"}; the last three are None where there is no image.
    """
    if not len(labels):
        return {"n": 0, "accuracy": None, "macro_f1": None, "loss": None}
    return {
        "n": len(labels),
        "accuracy": (logits.argmax(dim=1) == labels).double().mean().item(),
        "macro_f1": multiclass_f1_score(logits, labels, NUM_CLASSES, average="macro").item(),
        "loss": F.cross_entropy(logits.double(), labels).item(),
    }


def score_classes(logits: Tensor, labels: Tensor) -> dict[str, Json]:
    """Precision, recall, F1 and number of images of each emotion: float32 (N, 7), int64 (N,) -> by name.

    Without any image, as where trainer.limit_test_batches ends before the split, the first three are None.
    """
    if not len(labels):
        return {emotion: {"precision": None, "recall": None, "f1": None, "n": 0} for emotion in EMOTIONS}
    counts = torch.bincount(labels, minlength=NUM_CLASSES).tolist()
    columns = [
        metric(logits, labels, NUM_CLASSES, average="none").tolist()
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    ]
    return {
        emotion: {"precision": precision, "recall": recall, "f1": f1, "n": n}
        for emotion, precision, recall, f1, n in zip(EMOTIONS, *columns, counts, strict=True)
    }


def score_splits(predictions: Predictions, faces: Faces) -> dict[str, Json]:
    """Each held-out split and both together, each with its leak-free twin.

    Leak-free are the images whose pixels occur in no split but the tested one.

    Args:
        predictions: of every image of the splits VAL and TEST.
        faces: the dataset that `predictions.index` points into.
    """
    scores = {}
    for usages in ((VAL,), (TEST,), (VAL, TEST)):
        logits, labels, clean = select(predictions, faces, usages)
        leak_free = score(logits[clean], labels[clean])
        scores["+".join(faces.split_names[usage] for usage in usages)] = {
            **score(logits, labels),
            "accuracy_leak_free": leak_free["accuracy"],
            "n_leak_free": leak_free["n"],
        }
    return scores


def select(predictions: Predictions, faces: Faces, usages: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, 7) and labels (n,) of some splits, and which of their images are leak-free, bool (n,)."""
    rows: npt.NDArray[np.int64] = predictions.index.numpy()
    chosen = np.isin(faces.usage[rows], usages)
    clean = ~seen_elsewhere(faces, usages)[rows[chosen]]
    keep = torch.from_numpy(chosen)
    return predictions.logits[keep], predictions.labels[keep], torch.from_numpy(clean)


def confident_mistakes(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.floating[Any]], n: int | None = None
) -> npt.NDArray[np.int64]:
    """Positions (up to n,) of wrong answers among labels (N,) and probabilities (N, 7), the surest first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    confidence = probabilities.max(axis=1)[wrong]
    return wrong[np.argsort(-confidence, kind="stable")][:n]
