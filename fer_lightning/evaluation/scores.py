"""What a run comes to: scores of every split, and how results.json is told in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from fer_lightning.data.faces import TEST, VAL, Faces, seen_elsewhere
from fer_lightning.emotions import EMOTIONS, NUM_CLASSES
from fer_lightning.models.tta import mean_answer
from fer_lightning.text import decimal, format_table, percent

Json = dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """The network's answers on every held-out image of a validation or test epoch, on the CPU."""

    index: Tensor  # int64 (N,), rows of Faces, ascending
    logits: Tensor  # float32 (N, 7)
    labels: Tensor  # int64 (N,)


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """The mean of the probabilities that several networks gave for the same images."""
    logits = mean_answer(torch.stack([member.logits for member in members]))
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


def format_results(results: Json) -> str:
    """The tables that a person sees at the end of a run, at most 80 columns wide."""
    members = results["members"] or []
    tested = "best" if results["best_epoch"] is not None else "last" if "fit" in results["stages"] else "ckpt"
    if members:
        tested = "ckpts"
    splits = {f"{name} ({tested})": scores for name, scores in results["splits"].items()}
    name = results["split"]
    if results["last_epoch"]:
        splits[f"{name} (last)"] = results["last_epoch"][name]
    tables = [_scores_table("split (weights)", splits)]
    if members:
        labels = _distinct([member["ckpt"] for member in members])
        own = {label: member["splits"][name] for label, member in zip(labels, members, strict=True)}
        tables.append(_scores_table(name, own | {"ensemble": results["splits"][name]}))
    classes = [
        [
            emotion,
            str(scores["n"]),
            percent(scores["precision"]),
            percent(scores["recall"]),
            percent(scores["f1"]),
        ]
        for emotion, scores in results["per_class"].items()
    ]
    headline = f"{results['dataset']}, {results['split']} (n = {results['n']}): {percent(results['accuracy'])}"
    if members:
        headline += f", ensemble of {len(members)}"
    if results["without_tta"]:
        headline += f", tta={results['tta']}\n{percent(results['without_tta'][name]['accuracy'])} with tta=none"
    return "\n\n".join(
        [
            *tables,
            format_table([results["split"], "n", "precision", "recall", "F1"], classes),
            headline,
        ]
    )


def _scores_table(first: str, rows: Mapping[str, Json]) -> str:
    return format_table(
        [first, "n", "accuracy", "leak-free (n)", "macro-F1", "loss"],
        [
            [
                name,
                str(scores["n"]),
                percent(scores["accuracy"]),
                f"{percent(scores['accuracy_leak_free'])} ({scores['n_leak_free']})",
                decimal(scores["macro_f1"]),
                decimal(scores["loss"]),
            ]
            for name, scores in rows.items()
        ],
    )


def _distinct(paths: Sequence[str]) -> list[str]:
    """Short names: numbered, and the paths without what all have in common, at most 30 characters."""
    parts = [Path(path).parts for path in paths]
    common = set.intersection(*map(set, parts))
    names = ["/".join(part for part in own if part not in common) for own in parts]
    return [f"{number} {name[-27:]}".rstrip() for number, name in enumerate(names, start=1)]
