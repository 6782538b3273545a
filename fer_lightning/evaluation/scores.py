"""Predictions of a network on the held-out splits, and their scores by split and by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from fer_lightning.data.faces import TEST, VAL, Faces, rows_of_whole, seen_elsewhere
from fer_lightning.data.near_copies import copied_elsewhere, near_copies
from fer_lightning.files import Json
from fer_lightning.models.tta import log_mean_probabilities


@dataclass(frozen=True)
class Predictions:
    """Logits and labels of every held-out image of a validation or test epoch, on the CPU."""

    index: Tensor  # int64 (N,), rows of Faces, ascending
    logits: Tensor  # float32 (N, C)
    labels: Tensor  # int64 (N,)


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """Average the probabilities of several networks for the same images."""
    logits = log_mean_probabilities(torch.stack([member.logits for member in members]))
    return Predictions(members[0].index, logits, members[0].labels)


def score(logits: Tensor, labels: Tensor) -> Json:
    """Compute accuracy, macro-F1 and cross-entropy.

    Args:
        logits: float32 (N, C).
        labels: int64 (N,).

    Returns:
        {"n", "accuracy", "macro_f1", "loss"}; the last three are None without images.
    """
    if not len(labels):
        return {"n": 0, "accuracy": None, "macro_f1": None, "loss": None}
    return {
        "n": len(labels),
        "accuracy": (logits.argmax(dim=1) == labels).double().mean().item(),
        "macro_f1": multiclass_f1_score(logits, labels, logits.shape[1], average="macro").item(),
        "loss": F.cross_entropy(logits.double(), labels).item(),
    }


def score_classes(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Json]:
    """Compute precision, recall, F1 and the number of images of each class.

    Args:
        logits: float32 (N, C).
        labels: int64 (N,).
        classes: the names of the C classes.

    Returns:
        class -> {"precision", "recall", "f1", "n"}. The first three are None without images, for example if
        trainer.limit_test_batches ends before the split.
    """
    if not len(labels):
        return {name: {"precision": None, "recall": None, "f1": None, "n": 0} for name in classes}
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    columns = [
        metric(logits, labels, len(classes), average="none").tolist()
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    ]
    return {
        name: {"precision": precision, "recall": recall, "f1": f1, "n": n}
        for name, precision, recall, f1, n in zip(classes, *columns, counts, strict=True)
    }


def score_splits(predictions: Predictions, faces: Faces) -> dict[str, Json]:
    """Score each held-out split and both together, each with and without leaked images.

    An image is leak-free if its pixels occur in no split other than the tested one, and strict if near copies of it
    do not occur there either; see data.near_copies.

    Args:
        predictions: predictions on every image of the splits VAL and TEST.
        faces: the dataset that `predictions.index` refers to.

    Returns:
        split name -> the keys of `score`, "accuracy_leak_free", "n_leak_free", "accuracy_strict" and "n_strict".
    """
    scores = {}
    for usages in ((VAL,), (TEST,), (VAL, TEST)):
        logits, labels, clean = select(predictions, faces, usages)
        strict = select_strict(predictions, faces, usages)
        leak_free, of_strict = score(logits[clean], labels[clean]), score(logits[strict], labels[strict])
        scores["+".join(faces.split_names[usage] for usage in usages)] = {
            **score(logits, labels),
            "accuracy_leak_free": leak_free["accuracy"],
            "n_leak_free": leak_free["n"],
            "accuracy_strict": of_strict["accuracy"],
            "n_strict": of_strict["n"],
        }
    return scores


def select(predictions: Predictions, faces: Faces, usages: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits (n, C), labels (n,) and leak-free mask, bool (n,), of some splits."""
    rows: npt.NDArray[np.int64] = predictions.index.numpy()
    chosen = np.isin(faces.usage[rows], usages)
    clean = ~seen_elsewhere(faces.whole or faces, usages)[rows_of_whole(faces)[rows[chosen]]]
    keep = torch.from_numpy(chosen)
    return predictions.logits[keep], predictions.labels[keep], torch.from_numpy(clean)


def select_strict(predictions: Predictions, faces: Faces, usages: Sequence[int]) -> Tensor:
    """Return which of the images of `select` have neither an exact nor a near copy in another split: bool (n,)."""
    rows: npt.NDArray[np.int64] = predictions.index.numpy()
    chosen = rows[np.isin(faces.usage[rows], usages)]
    whole = faces.whole or faces
    copied = copied_elsewhere(whole, usages, near_copies(whole))
    return torch.from_numpy(~copied[rows_of_whole(faces)[chosen]])


def confident_mistakes(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.floating[Any]], n: int | None = None
) -> npt.NDArray[np.int64]:
    """Return the positions of wrong predictions, at most `n`, most confident first.

    Args:
        labels: int64 (N,).
        probabilities: float (N, C).
        n: maximum number of mistakes; None returns all.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    confidence = probabilities.max(axis=1)[wrong]
    return wrong[np.argsort(-confidence, kind="stable")][:n]
